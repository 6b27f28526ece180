//! Everything that one call into a guest may do to the state: the functions of the contract, with their
//! limits.
//!
//! A frame moves into an instance for a call and comes back with what the guest did. Going over a limit gives
//! [`CallError::Limit`], which the instance turns into a trap; the heart then rolls the input back.

use std::io::{Read, Write as _};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::Head;
use super::event::{EventKind, EventRows};
use super::guest::QueryView;
use super::lease::{self, Lease, Tally};
use super::outcome::Context;
use super::overlay::{Overlay, Write};
use super::view::{Direction, Span, Table, View};
use crate::error::Fault;

/// The limits of the contract (`wit/machine.wit`), per call.
pub mod limits {
    /// Bytes of a key, at most; at least one.
    pub const KEY_BYTES_MAX: usize = 64 << 10;
    /// Bytes of a value of the store, of an event or of a lease.
    pub const VALUE_BYTES_MAX: usize = 4 << 20;
    /// Bytes of an answer.
    pub const ANSWER_BYTES_MAX: usize = 4 << 20;
    /// Bytes of a refusal's message.
    pub const REFUSAL_BYTES_MAX: usize = 4 << 10;
    /// Events of one input.
    pub const EVENTS_MAX: u32 = 10_000;
    /// Grants, revocations, attachments and detachments of one input.
    pub const LEASE_CHANGES_MAX: u32 = 10_000;
    /// Log lines of one call.
    pub const LOG_LINES_MAX: usize = 64;
    /// Bytes of one log line.
    pub const LOG_LINE_BYTES_MAX: usize = 4 << 10;
    /// Keys and values of sets, deletes and events of one input, overwritten ones counted again.
    pub const WRITE_BYTES_MAX: usize = 16 << 20;
    /// Keys of one `get-many`.
    pub const GET_MANY_KEYS_MAX: usize = 1_024;
    /// Bytes of the values that one `get-many` returns.
    pub const GET_MANY_BYTES_MAX: usize = 4 << 20;
    /// The pair of a scan that reaches this many bytes is the last.
    pub const SCAN_BYTES: usize = 1 << 20;
    /// Bytes of one snapshot chunk.
    pub const CHUNK_BYTES_MAX: usize = 1 << 20;
}

use limits::*;

/// Keys with their values, in the order of a scan.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Why a host call did not return to the guest.
#[derive(Clone, Debug)]
pub enum CallError {
    /// The guest broke the contract: it traps. The text is for this node's log.
    Limit(String),
    /// This computer failed.
    Fault(Fault),
}

impl From<Fault> for CallError {
    fn from(fault: Fault) -> CallError {
        CallError::Fault(fault)
    }
}

/// What a lease call answers when it cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseFailure {
    /// There is no such lease, or it has ended.
    UnknownLease,
    /// The machine has as many leases as it may.
    TooMany,
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// For whoever writes the guest.
    Debug,
    /// For whoever runs it.
    Info,
    /// Something is odd.
    Warn,
    /// Something is wrong.
    Error,
}

/// A diagnostic line of a guest. Never replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: LogLevel,
    /// The guest's words.
    pub message: String,
}

/// What a guest is told that would write where nothing may be written.
pub const ONLY_APPLY_WRITES: &str = "only apply may change the state";

/// What the guest was called for: it decides what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Apply,
    Query,
    Save,
    Restore,
}

/// One call's use of what is limited per call.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    write_bytes: usize,
    events: u32,
    lease_changes: u32,
}

/// Everything one call may see and change.
pub struct Frame {
    overlay: Overlay,
    events: EventRows,
    purpose: Purpose,
    context: Context,
    usage: Usage,
    log_lines: Vec<LogLine>,
    /// What there is of leases, as of the writes so far, and where it goes back to on a rollback.
    leases: Tally,
    leases_saved: Tally,
    /// How many there may be.
    leases_max: u64,
    /// When the leader's term began: leases end by it.
    term_began_ms: u64,
    save_to: Option<Box<dyn std::io::Write + Send>>,
    restore_from: Option<Box<dyn Read + Send>>,
}

/// The host's side of the calls: what the heart and the node do with a frame.
impl Frame {
    /// A frame for the inputs of a batch over `view`, of a machine that stands at `head`.
    pub fn for_batch(view: Arc<dyn View>, head: &Head) -> Frame {
        Frame::new(view, Purpose::Apply, head)
    }

    /// A frame for one query of `view`, of a machine that stands at `head`.
    pub fn for_query(view: Arc<dyn View>, at: QueryView, head: &Head) -> Frame {
        let mut frame = Frame::new(view, Purpose::Query, head);
        frame.context = Context { index: at.index, offset: 0, time: at.time, revision: at.revision };
        frame
    }

    /// A frame in which a resident guest writes its state to `sink`.
    pub fn for_save(view: Arc<dyn View>, sink: Box<dyn std::io::Write + Send>) -> Frame {
        Frame { save_to: Some(sink), ..Frame::new(view, Purpose::Save, &Head::default()) }
    }

    /// A frame in which a resident guest reads its state from `source`.
    pub fn for_restore(view: Arc<dyn View>, source: Box<dyn Read + Send>) -> Frame {
        Frame { restore_from: Some(source), ..Frame::new(view, Purpose::Restore, &Head::default()) }
    }

    fn new(view: Arc<dyn View>, purpose: Purpose, head: &Head) -> Frame {
        Frame {
            overlay: Overlay::over(view),
            events: EventRows::after(head.event_bytes),
            purpose,
            context: Context::default(),
            usage: Usage::default(),
            log_lines: Vec::new(),
            leases: head.leases,
            leases_saved: head.leases,
            leases_max: head.settings.in_force().leases_max,
            term_began_ms: head.term_began.0,
            save_to: None,
            restore_from: None,
        }
    }

    /// Begins one input: what follows can be rolled back to here, and counts against fresh limits.
    pub fn begin(&mut self, context: Context) {
        self.overlay.savepoint();
        self.events.savepoint();
        self.leases_saved = self.leases;
        self.context = context;
        self.usage = Usage::default();
        self.log_lines.clear();
    }

    /// Takes back everything since [`begin`](Frame::begin). Log lines stay.
    pub fn rollback(&mut self) {
        self.overlay.rollback();
        self.events.rollback();
        self.leases = self.leases_saved;
        self.usage = Usage::default();
    }

    /// How many events the call at hand has emitted.
    pub fn events(&self) -> u32 {
        self.usage.events
    }

    /// The rows that the call at hand has written, without its events: for whoever compares runs.
    pub fn written(&self) -> Vec<Write> {
        self.overlay.since_savepoint()
    }

    /// Takes the log lines of the call at hand.
    pub fn take_log_lines(&mut self) -> Vec<LogLine> {
        std::mem::take(&mut self.log_lines)
    }

    /// The writes so far and what there is of leases, for the host's own operations.
    pub(super) fn host_rows(&mut self) -> (&mut Overlay, &mut Tally) {
        (&mut self.overlay, &mut self.leases)
    }

    /// Settings changed, from the next input on.
    pub(super) fn set_leases_max(&mut self, leases_max: u64) {
        self.leases_max = leases_max;
    }

    /// The writes of the batch, what there is of leases, and the bytes of all events ever.
    pub(super) fn finish(mut self) -> (Overlay, Tally, u64) {
        let bytes = self.events.bytes();
        for (key, row) in self.events.into_rows() {
            self.overlay.put(Table::Events, key, Some(row));
        }
        (self.overlay, self.leases, bytes)
    }

    /// After a save: flushes what the guest wrote.
    pub fn finish_save(&mut self) -> Result<(), Fault> {
        match &mut self.save_to {
            Some(sink) => sink.flush().map_err(|e| Fault::new(format!("cannot write a snapshot: {e}"))),
            None => Ok(()),
        }
    }
}

/// `store`.
impl Frame {
    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, CallError> {
        self.check_may_read("store.get")?;
        check_key(key)?;
        Ok(self.overlay.get(Table::Store, key)?)
    }

    /// The values of `keys`, in their order.
    pub fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, CallError> {
        self.check_may_read("store.get-many")?;
        check("keys of get-many", keys.len(), GET_MANY_KEYS_MAX)?;
        let mut values = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for key in keys {
            let value = self.get(key)?;
            bytes += value.as_ref().map_or(0, Bytes::len);
            check("bytes of get-many's values", bytes, GET_MANY_BYTES_MAX)?;
            values.push(value);
        }
        Ok(values)
    }

    /// Sets `key` to `value`.
    pub fn set(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), CallError> {
        self.check_may_write("store.set")?;
        check_key(&key)?;
        check_value(&value)?;
        self.charge_write(key.len() + value.len())?;
        self.overlay.put(Table::Store, key, Some(value.into()));
        Ok(())
    }

    /// Deletes `key`, if it is there.
    pub fn delete(&mut self, key: Vec<u8>) -> Result<(), CallError> {
        self.check_may_write("store.delete")?;
        check_key(&key)?;
        self.charge_write(key.len())?;
        self.overlay.put(Table::Store, key, None);
        Ok(())
    }

    /// Deletes the keys from `start` up to, not including, `end`, and says how many there were. Each key
    /// found counts as a delete of its own.
    pub fn delete_span(&mut self, start: &[u8], end: Option<&[u8]>) -> Result<u64, CallError> {
        self.check_may_write("store.delete-span")?;
        check_bounds(start, end)?;
        let room = WRITE_BYTES_MAX.saturating_sub(self.usage.write_bytes);
        let mut keys = Vec::new();
        let mut bytes = 0;
        self.overlay.scan(Table::Store, Span { start, end }, Direction::Forward, &mut |key, _| {
            bytes += key.len();
            keys.push(key.to_vec());
            if bytes > room { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        self.charge_write(bytes)?;
        let count = keys.len() as u64;
        for key in keys {
            self.overlay.put(Table::Store, key, None);
        }
        Ok(count)
    }

    /// The pairs of a span, in key order or from its last key back: at most `limit` (0: no limit), and none
    /// after the pair that reaches 1 MiB.
    pub fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u32,
        direction: Direction,
    ) -> Result<Pairs, CallError> {
        self.check_may_read("store.scan")?;
        check_bounds(start, end)?;
        let pairs_max = if limit == 0 { usize::MAX } else { limit as usize };
        let mut pairs = Vec::new();
        let mut bytes = 0;
        self.overlay.scan(Table::Store, Span { start, end }, direction, &mut |key, value| {
            bytes += key.len() + value.len();
            pairs.push((key.to_vec(), value.to_vec()));
            let full = pairs.len() >= pairs_max || bytes >= SCAN_BYTES;
            if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(pairs)
    }
}

/// `events`.
impl Frame {
    /// Emits one event under the input's revision.
    pub fn emit(&mut self, kind: EventKind, key: Vec<u8>, value: Vec<u8>) -> Result<(), CallError> {
        self.check_may_write("events.emit")?;
        check_key(&key)?;
        check_value(&value)?;
        check("events of one input", self.usage.events as usize + 1, EVENTS_MAX as usize)?;
        self.charge_write(key.len() + value.len())?;
        self.events.push(&self.context, kind, key, value);
        self.usage.events += 1;
        Ok(())
    }
}

/// `leases`.
impl Frame {
    /// A new lease of `ttl_ms` milliseconds from the context's time: the machine's own.
    pub fn grant(&mut self, ttl_ms: u64) -> Result<Result<u64, LeaseFailure>, CallError> {
        self.charge_lease_change("leases.grant")?;
        if self.leases.live >= self.leases_max {
            return Ok(Err(LeaseFailure::TooMany));
        }
        let lease = Lease { of_machine: true, ..Lease::granted(self.context.time, ttl_ms) };
        Ok(Ok(lease::insert(&mut self.overlay, &mut self.leases, lease)?))
    }

    /// Ends a lease and drops its attachments, without an input.
    pub fn revoke(&mut self, id: u64) -> Result<Result<(), LeaseFailure>, CallError> {
        self.charge_lease_change("leases.revoke")?;
        let Some(lease) = self.living(id)? else { return Ok(Err(LeaseFailure::UnknownLease)) };
        let keys = lease::remove(&mut self.overlay, &mut self.leases, id, &lease)?;
        self.charge_write(keys.iter().map(Vec::len).sum())?;
        Ok(Ok(()))
    }

    /// Ties `key` to a lease; it moves from its former one.
    pub fn attach(&mut self, id: u64, key: &[u8]) -> Result<Result<(), LeaseFailure>, CallError> {
        self.charge_lease_change("leases.attach")?;
        check_key(key)?;
        if self.living(id)?.is_none() {
            return Ok(Err(LeaseFailure::UnknownLease));
        }
        lease::attach(&mut self.overlay, id, key)?;
        Ok(Ok(()))
    }

    /// Unties `key` from its lease, if it has one.
    pub fn detach(&mut self, key: &[u8]) -> Result<(), CallError> {
        self.charge_lease_change("leases.detach")?;
        check_key(key)?;
        Ok(lease::detach(&mut self.overlay, key)?)
    }

    /// Milliseconds left of a lease at the context's or view's time. A query may see one that has none left,
    /// until its end is in the log.
    pub fn remaining(&self, id: u64) -> Result<Result<u64, LeaseFailure>, CallError> {
        let lease = match self.purpose {
            Purpose::Apply => self.living(id)?,
            Purpose::Query => lease::find(&self.overlay, id)?,
            purpose => return Err(CallError::Limit(format!("leases.remaining in {purpose:?}"))),
        };
        let left = |lease: Lease| lease.end_ms(self.term_began_ms).saturating_sub(self.context.time);
        Ok(lease.map(left).ok_or(LeaseFailure::UnknownLease))
    }

    /// The lease `id`, if it lives.
    fn living(&self, id: u64) -> Result<Option<Lease>, Fault> {
        let found = lease::find(&self.overlay, id)?;
        Ok(found.filter(|lease| lease.lives(self.context.time, self.term_began_ms)))
    }

    fn charge_lease_change(&mut self, call: &str) -> Result<(), CallError> {
        self.check_may_write(call)?;
        self.usage.lease_changes += 1;
        check("lease changes of one input", self.usage.lease_changes as usize, LEASE_CHANGES_MAX as usize)
    }
}

/// `log` and `snapshot-stream`.
impl Frame {
    /// One diagnostic line.
    pub fn log(&mut self, level: LogLevel, message: String) -> Result<(), CallError> {
        check("log lines of one call", self.log_lines.len() + 1, LOG_LINES_MAX)?;
        check("bytes of a log line", message.len(), LOG_LINE_BYTES_MAX)?;
        self.log_lines.push(LogLine { level, message });
        Ok(())
    }

    /// One chunk of a snapshot being saved.
    pub fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), CallError> {
        check("bytes of a snapshot chunk", chunk.len(), CHUNK_BYTES_MAX)?;
        let Some(sink) = &mut self.save_to else {
            return Err(CallError::Limit("snapshot-stream.write outside save".into()));
        };
        sink.write_all(chunk)
            .map_err(|e| CallError::Fault(Fault::new(format!("cannot write a snapshot: {e}"))))
    }

    /// The next bytes of a snapshot being restored: at most `limit`, empty only at the end.
    pub fn read_chunk(&mut self, limit: u32) -> Result<Vec<u8>, CallError> {
        let Some(source) = &mut self.restore_from else {
            return Err(CallError::Limit("snapshot-stream.read outside restore".into()));
        };
        if limit == 0 {
            return Err(CallError::Limit("snapshot-stream.read of 0 bytes; at least 1".into()));
        }
        let mut chunk = Vec::new();
        let bytes_max = (limit as usize).min(CHUNK_BYTES_MAX) as u64;
        let read = source.by_ref().take(bytes_max).read_to_end(&mut chunk);
        read.map_err(|e| CallError::Fault(Fault::new(format!("cannot read a snapshot: {e}"))))?;
        Ok(chunk)
    }
}

/// The limits.
impl Frame {
    fn check_may_read(&self, call: &str) -> Result<(), CallError> {
        match self.purpose {
            Purpose::Apply | Purpose::Query => Ok(()),
            purpose => Err(CallError::Limit(format!("{call} in {purpose:?}"))),
        }
    }

    fn check_may_write(&self, call: &str) -> Result<(), CallError> {
        match self.purpose {
            Purpose::Apply => Ok(()),
            purpose => Err(CallError::Limit(format!("{call} in {purpose:?}: {ONLY_APPLY_WRITES}"))),
        }
    }

    fn charge_write(&mut self, bytes: usize) -> Result<(), CallError> {
        self.usage.write_bytes += bytes;
        check("bytes written by one input", self.usage.write_bytes, WRITE_BYTES_MAX)
    }
}

fn check(what: &str, value: usize, max: usize) -> Result<(), CallError> {
    if value <= max { Ok(()) } else { Err(CallError::Limit(format!("{what}: {value}, at most {max}"))) }
}

fn check_key(key: &[u8]) -> Result<(), CallError> {
    if key.is_empty() {
        return Err(CallError::Limit("an empty key; at least 1 byte".into()));
    }
    check("bytes of a key", key.len(), KEY_BYTES_MAX)
}

fn check_value(value: &[u8]) -> Result<(), CallError> {
    check("bytes of a value", value.len(), VALUE_BYTES_MAX)
}

fn check_bounds(start: &[u8], end: Option<&[u8]>) -> Result<(), CallError> {
    check("bytes of a span's start", start.len(), KEY_BYTES_MAX + 1)?;
    check("bytes of a span's end", end.map_or(0, <[u8]>::len), KEY_BYTES_MAX + 1)
}
