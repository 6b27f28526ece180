//! The imports of the contract: each charges fuel for the call and its bytes, then asks the frame.
//!
//! Promises: nothing is decided here; limits and meaning are the frame's. A function that fails traps, and
//! the heart rolls its input back.

use wasmtime::Result;
use wasmtime::component::{Linker, WasmList};

use super::bindings::{Failure, Kind, Level, Pair};
use super::data::{Caller, Data, charge, charge_call};
use super::limits::{BYTE_FUEL, ITEM_FUEL};
use crate::machine::event::EventKind;
use crate::machine::frame::{LeaseFailure, LogLevel};
use crate::machine::view::Direction;

/// Links the imports that both worlds have.
pub fn link_host(linker: &mut Linker<Data>) -> Result<()> {
    link_events(linker)?;
    link_leases(linker)?;
    link_log(linker)
}

/// Links what only the world `stored` has.
pub fn link_store(linker: &mut Linker<Data>) -> Result<()> {
    let mut store = linker.instance("statehouse:machine/store@0.1.0")?;
    store.func_wrap("get", |caller: Caller, (key,): (WasmList<u8>,)| get(caller, &key))?;
    store.func_wrap("get-many", |caller: Caller, (keys,): (Vec<Vec<u8>>,)| get_many(caller, &keys))?;
    store.func_wrap("set", |mut caller: Caller, (key, value): (Vec<u8>, Vec<u8>)| {
        charge_call(&mut caller, key.len() + value.len())?;
        let data = caller.data_mut();
        let done = data.frame()?.set(key, value);
        data.trap(done)
    })?;
    store.func_wrap("delete", |mut caller: Caller, (key,): (Vec<u8>,)| {
        charge_call(&mut caller, key.len())?;
        let data = caller.data_mut();
        let done = data.frame()?.delete(key);
        data.trap(done)
    })?;
    store.func_wrap("delete-span", |caller: Caller, (start, end): (Vec<u8>, Option<Vec<u8>>)| {
        delete_span(caller, &start, end.as_deref())
    })?;
    type Scan = (Vec<u8>, Option<Vec<u8>>, u32, bool);
    store.func_wrap("scan", |caller: Caller, (start, end, limit, backward): Scan| {
        let direction = if backward { Direction::Backward } else { Direction::Forward };
        scan(caller, &start, end.as_deref(), limit, direction)
    })
}

/// Links what only the world `resident` has.
pub fn link_snapshot_stream(linker: &mut Linker<Data>) -> Result<()> {
    let mut stream = linker.instance("statehouse:machine/snapshot-stream@0.1.0")?;
    stream.func_wrap("write", |mut caller: Caller, (chunk,): (Vec<u8>,)| {
        charge_call(&mut caller, chunk.len())?;
        let data = caller.data_mut();
        let done = data.frame()?.write_chunk(&chunk);
        data.trap(done)
    })?;
    stream.func_wrap("read", |mut caller: Caller, (limit,): (u32,)| {
        charge_call(&mut caller, 0)?;
        let data = caller.data_mut();
        let chunk = data.frame()?.read_chunk(limit);
        let chunk = data.trap(chunk)?;
        charge(&mut caller, chunk.len() as u64 * BYTE_FUEL)?;
        Ok((chunk,))
    })
}

fn get(mut caller: Caller, key: &WasmList<u8>) -> Result<(Option<Vec<u8>>,)> {
    charge_call(&mut caller, key.len())?;
    // The key is read where it lies in the guest's memory; a value that came from the disk moves without a
    // copy.
    let found = match &caller.data().frame {
        Some(frame) => frame.get(key.as_le_slice(&caller)),
        None => return caller.data_mut().frame().map(|_| (None,)),
    };
    let value = caller.data_mut().trap(found)?.map(Vec::from);
    charge(&mut caller, value.as_ref().map_or(0, Vec::len) as u64 * BYTE_FUEL)?;
    Ok((value,))
}

fn get_many(mut caller: Caller, keys: &[Vec<u8>]) -> Result<(Vec<Option<Vec<u8>>>,)> {
    charge_call(&mut caller, keys.iter().map(Vec::len).sum())?;
    charge(&mut caller, keys.len() as u64 * ITEM_FUEL)?;
    let data = caller.data_mut();
    let found = data.frame()?.get_many(keys);
    let found = data.trap(found)?;
    let values: Vec<Option<Vec<u8>>> = found.into_iter().map(|value| value.map(Vec::from)).collect();
    let bytes: usize = values.iter().flatten().map(Vec::len).sum();
    charge(&mut caller, bytes as u64 * BYTE_FUEL)?;
    Ok((values,))
}

fn delete_span(mut caller: Caller, start: &[u8], end: Option<&[u8]>) -> Result<()> {
    charge_call(&mut caller, start.len() + end.map_or(0, <[u8]>::len))?;
    let data = caller.data_mut();
    let deleted = data.frame()?.delete_span(start, end);
    let deleted = data.trap(deleted)?;
    charge(&mut caller, deleted * ITEM_FUEL)
}

fn scan(
    mut caller: Caller,
    start: &[u8],
    end: Option<&[u8]>,
    limit: u32,
    direction: Direction,
) -> Result<(Vec<Pair>,)> {
    charge_call(&mut caller, start.len() + end.map_or(0, <[u8]>::len))?;
    let data = caller.data_mut();
    let found = data.frame()?.scan(start, end, limit, direction);
    let found = data.trap(found)?;
    let bytes: usize = found.iter().map(|(key, value)| key.len() + value.len()).sum();
    charge(&mut caller, found.len() as u64 * ITEM_FUEL + bytes as u64 * BYTE_FUEL)?;
    Ok((found.into_iter().map(|(key, value)| Pair { key, value }).collect(),))
}

fn link_events(linker: &mut Linker<Data>) -> Result<()> {
    let mut events = linker.instance("statehouse:machine/events@0.1.0")?;
    events.func_wrap("emit", |mut caller: Caller, (kind, key, value): (Kind, Vec<u8>, Vec<u8>)| {
        charge_call(&mut caller, key.len() + value.len())?;
        let kind = match kind {
            Kind::Put => EventKind::Put,
            Kind::Delete => EventKind::Delete,
        };
        let data = caller.data_mut();
        let done = data.frame()?.emit(kind, key, value);
        data.trap(done)
    })
}

fn link_leases(linker: &mut Linker<Data>) -> Result<()> {
    let mut leases = linker.instance("statehouse:machine/leases@0.1.0")?;
    leases.func_wrap("grant", |mut caller: Caller, (ttl_ms,): (u64,)| {
        charge_call(&mut caller, 0)?;
        let data = caller.data_mut();
        let granted = data.frame()?.grant(ttl_ms);
        Ok((data.trap(granted)?.map_err(Failure::from),))
    })?;
    leases.func_wrap("revoke", |mut caller: Caller, (lease,): (u64,)| {
        charge_call(&mut caller, 0)?;
        let data = caller.data_mut();
        let revoked = data.frame()?.revoke(lease);
        Ok((data.trap(revoked)?.map_err(Failure::from),))
    })?;
    leases.func_wrap("attach", |mut caller: Caller, (lease, key): (u64, Vec<u8>)| {
        charge_call(&mut caller, key.len())?;
        let data = caller.data_mut();
        let attached = data.frame()?.attach(lease, &key);
        Ok((data.trap(attached)?.map_err(Failure::from),))
    })?;
    leases.func_wrap("detach", |mut caller: Caller, (key,): (Vec<u8>,)| {
        charge_call(&mut caller, key.len())?;
        let data = caller.data_mut();
        let done = data.frame()?.detach(&key);
        data.trap(done)
    })?;
    leases.func_wrap("remaining", |mut caller: Caller, (lease,): (u64,)| {
        charge_call(&mut caller, 0)?;
        let data = caller.data_mut();
        let remaining = data.frame()?.remaining(lease);
        Ok((data.trap(remaining)?.map_err(Failure::from),))
    })
}

fn link_log(linker: &mut Linker<Data>) -> Result<()> {
    let mut log = linker.instance("statehouse:machine/log@0.1.0")?;
    log.func_wrap("write", |mut caller: Caller, (level, message): (Level, String)| {
        charge_call(&mut caller, message.len())?;
        let data = caller.data_mut();
        let done = data.frame()?.log(level.into(), message);
        data.trap(done)
    })
}

impl From<LeaseFailure> for Failure {
    fn from(failure: LeaseFailure) -> Failure {
        match failure {
            LeaseFailure::UnknownLease => Failure::UnknownLease,
            LeaseFailure::TooMany => Failure::TooMany,
        }
    }
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> LogLevel {
        match level {
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        }
    }
}
