//! The functions of the contract that guests import: each charges fuel, then asks the frame.
//!
//! Fuel is charged by the number of calls and by the bytes that cross, so that a guest that only calls the
//! host ends too. The prices are part of the engine's fingerprint.

use bytes::Bytes;
use wasmtime::component::{Linker, LinkerInstance};
use wasmtime::{AsContextMut, StoreContextMut};

use super::contract::{EventKind, Failure, Level, Pair};
use super::instance::Data;
use super::validate::World;
use crate::machine::event;
use crate::machine::frame::{CallError, Frame};
use crate::machine::view::Direction;

/// Fuel for each call.
const CALL_FUEL: u64 = 500;
/// Fuel for each call that reads or writes the store.
const STORE_CALL_FUEL: u64 = 2_000;
/// Fuel for each 16 bytes that cross.
const FUEL_PER_16_BYTES: u64 = 4;
/// Fuel for each pair that a scan returns.
const PAIR_FUEL: u64 = 500;

/// A guest's call, as wasmtime hands it to the host.
type Caller<'a> = StoreContextMut<'a, Data>;
type Result<T> = wasmtime::Result<T>;
/// The answer of lease calls.
type Leased<T> = std::result::Result<T, Failure>;

/// Adds what `world` imports.
pub fn link(linker: &mut Linker<Data>, world: World) -> Result<()> {
    events(&mut linker.instance("statehouse:machine/events@0.1.0")?)?;
    leases(&mut linker.instance("statehouse:machine/leases@0.1.0")?)?;
    log(&mut linker.instance("statehouse:machine/log@0.1.0")?)?;
    match world {
        World::Stored => store(&mut linker.instance("statehouse:machine/store@0.1.0")?),
        World::Resident => snapshot(&mut linker.instance("statehouse:machine/snapshot-stream@0.1.0")?),
    }
}

fn store(linker: &mut LinkerInstance<Data>) -> Result<()> {
    linker.func_wrap("get", |mut cx: Caller, (key,): (Vec<u8>,)| {
        charge(&mut cx, STORE_CALL_FUEL, key.len())?;
        let value = on_frame(&mut cx, |frame| frame.get(&key))?;
        charge(&mut cx, 0, value.as_ref().map_or(0, Bytes::len))?;
        Ok((value.map(Vec::from),))
    })?;
    linker.func_wrap("get-many", |mut cx: Caller, (keys,): (Vec<Vec<u8>>,)| {
        let bytes = keys.iter().map(Vec::len).sum();
        charge(&mut cx, STORE_CALL_FUEL * (1 + keys.len() as u64), bytes)?;
        let values = on_frame(&mut cx, |frame| frame.get_many(&keys))?;
        charge(&mut cx, 0, values.iter().flatten().map(Bytes::len).sum())?;
        Ok((values.into_iter().map(|value| value.map(Vec::from)).collect::<Vec<_>>(),))
    })?;
    linker.func_wrap("set", |mut cx: Caller, (key, value): (Vec<u8>, Vec<u8>)| {
        charge(&mut cx, STORE_CALL_FUEL, key.len() + value.len())?;
        on_frame(&mut cx, |frame| frame.set(key, value))
    })?;
    linker.func_wrap("delete", |mut cx: Caller, (key,): (Vec<u8>,)| {
        charge(&mut cx, STORE_CALL_FUEL, key.len())?;
        on_frame(&mut cx, |frame| frame.delete(key))
    })?;
    linker.func_wrap("delete-span", |mut cx: Caller, (start, end): (Vec<u8>, Option<Vec<u8>>)| {
        charge(&mut cx, STORE_CALL_FUEL, start.len())?;
        let deleted = on_frame(&mut cx, |frame| frame.delete_span(&start, end.as_deref()))?;
        charge(&mut cx, PAIR_FUEL * deleted, 0)
    })?;
    linker.func_wrap(
        "scan",
        |mut cx: Caller, (start, end, limit, backward): (Vec<u8>, Option<Vec<u8>>, u32, bool)| {
            charge(&mut cx, STORE_CALL_FUEL, start.len())?;
            let direction = if backward { Direction::Backward } else { Direction::Forward };
            let pairs = on_frame(&mut cx, |frame| frame.scan(&start, end.as_deref(), limit, direction))?;
            let bytes = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
            charge(&mut cx, PAIR_FUEL * pairs.len() as u64, bytes)?;
            Ok((pairs.into_iter().map(|(key, value)| Pair { key, value }).collect::<Vec<_>>(),))
        },
    )
}

fn events(linker: &mut LinkerInstance<Data>) -> Result<()> {
    linker.func_wrap("emit", |mut cx: Caller, (kind, key, value): (EventKind, Vec<u8>, Vec<u8>)| {
        charge(&mut cx, CALL_FUEL, key.len() + value.len())?;
        let kind = match kind {
            EventKind::Put => event::EventKind::Put,
            EventKind::Delete => event::EventKind::Delete,
        };
        on_frame(&mut cx, |frame| frame.emit(kind, key, value))
    })
}

fn leases(linker: &mut LinkerInstance<Data>) -> Result<()> {
    linker.func_wrap("grant", |mut cx: Caller, (ttl_ms,): (u64,)| {
        charge(&mut cx, STORE_CALL_FUEL, 0)?;
        let granted: Leased<u64> = on_frame(&mut cx, |frame| frame.grant(ttl_ms))?.map_err(Failure::from);
        Ok((granted,))
    })?;
    linker.func_wrap("revoke", |mut cx: Caller, (lease,): (u64,)| {
        charge(&mut cx, STORE_CALL_FUEL, 0)?;
        let revoked: Leased<()> = on_frame(&mut cx, |frame| frame.revoke(lease))?.map_err(Failure::from);
        Ok((revoked,))
    })?;
    linker.func_wrap("attach", |mut cx: Caller, (lease, key): (u64, Vec<u8>)| {
        charge(&mut cx, STORE_CALL_FUEL, key.len())?;
        let attached: Leased<()> =
            on_frame(&mut cx, |frame| frame.attach(lease, &key))?.map_err(Failure::from);
        Ok((attached,))
    })?;
    linker.func_wrap("detach", |mut cx: Caller, (key,): (Vec<u8>,)| {
        charge(&mut cx, STORE_CALL_FUEL, key.len())?;
        on_frame(&mut cx, |frame| frame.detach(&key))
    })?;
    linker.func_wrap("remaining", |mut cx: Caller, (lease,): (u64,)| {
        charge(&mut cx, STORE_CALL_FUEL, 0)?;
        let left: Leased<u64> = on_frame(&mut cx, |frame| frame.remaining(lease))?.map_err(Failure::from);
        Ok((left,))
    })
}

fn log(linker: &mut LinkerInstance<Data>) -> Result<()> {
    linker.func_wrap("write", |mut cx: Caller, (level, message): (Level, String)| {
        charge(&mut cx, CALL_FUEL, message.len())?;
        on_frame(&mut cx, |frame| frame.log(level.into(), message))
    })
}

fn snapshot(linker: &mut LinkerInstance<Data>) -> Result<()> {
    linker.func_wrap("write", |mut cx: Caller, (chunk,): (Vec<u8>,)| {
        charge(&mut cx, CALL_FUEL, chunk.len())?;
        on_frame(&mut cx, |frame| frame.write_chunk(&chunk))
    })?;
    linker.func_wrap("read", |mut cx: Caller, (limit,): (u32,)| {
        let chunk = on_frame(&mut cx, |frame| frame.read_chunk(limit))?;
        charge(&mut cx, CALL_FUEL, chunk.len())?;
        Ok((chunk,))
    })
}

/// Takes fuel for a call; out of fuel, the guest ends as it does when it runs out by itself.
pub fn charge(cx: &mut Caller, call_fuel: u64, bytes: usize) -> Result<()> {
    let price = call_fuel + bytes as u64 / 16 * FUEL_PER_16_BYTES;
    let mut store = cx.as_context_mut();
    match store.get_fuel()?.checked_sub(price) {
        Some(left) => store.set_fuel(left),
        None => {
            store.set_fuel(0)?;
            Err(wasmtime::Trap::OutOfFuel.into())
        }
    }
}

/// Calls the frame; a limit becomes a trap, and so does a fault, which is kept for who called the guest.
pub fn on_frame<T>(
    cx: &mut Caller,
    call: impl FnOnce(&mut Frame) -> std::result::Result<T, CallError>,
) -> Result<T> {
    let data = cx.data_mut();
    let Some(frame) = &mut data.frame else {
        return Err(wasmtime::Error::msg("a call of the host while the instance is being made"));
    };
    call(frame).map_err(|error| match error {
        CallError::Limit(what) => wasmtime::Error::msg(what),
        CallError::Fault(fault) => {
            data.fault = Some(fault);
            wasmtime::Error::msg("this computer failed")
        }
    })
}
