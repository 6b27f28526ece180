//! What the host keeps of a machine, in memory: the map, leases, events; with the contract's limits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;

use crate::host::{EventKind, Host, LeaseFailure, LogLevel, Map};
use crate::machine::LeaseEnd;

const KEY_BYTES_MAX: usize = 64 << 10;
const VALUE_BYTES_MAX: usize = 4 << 20;
const WRITE_BYTES_MAX: usize = 16 << 20;
const EVENTS_MAX: usize = 10_000;
const LEASE_CHANGES_MAX: usize = 10_000;
const GET_MANY_KEYS_MAX: usize = 1_024;
const GET_MANY_BYTES_MAX: usize = 4 << 20;
const SCAN_BYTES: usize = 1 << 20;
const LOG_LINES_MAX: usize = 64;
const LOG_LINE_BYTES_MAX: usize = 4 << 10;
/// What the host allows a machine that has no setting of its own.
const LEASES_MAX: usize = 1_000_000;

/// What watchers see.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Event {
    pub revision: u64,
    pub kind: EventKind,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Lease {
    ttl_ms: u64,
    deadline_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub map: BTreeMap<Vec<u8>, Vec<u8>>,
    pub events: Vec<Event>,
    leases: BTreeMap<u64, Lease>,
    attached: BTreeMap<Vec<u8>, u64>,
    last_lease: u64,
    index: u64,
    time_ms: u64,
    revision: u64,
}

/// What one call has used.
#[derive(Default)]
struct Usage {
    write_bytes: usize,
    events: usize,
    lease_changes: usize,
    log_lines: usize,
}

pub struct Simulated {
    state: RefCell<State>,
    usage: RefCell<Usage>,
    lines: RefCell<Vec<(LogLevel, String)>>,
    reads_only: Cell<bool>,
}

/// Panics over a limit of the contract, where a machine would trap.
pub fn check(what: &str, is: usize, max: usize) {
    assert!(is <= max, "{what}: {is}, the contract allows {max}; the host would trap");
}

fn check_key(key: &[u8]) {
    assert!(!key.is_empty(), "a key is empty, the contract wants 1 byte at least; the host would trap");
    check("bytes of a key", key.len(), KEY_BYTES_MAX);
}

impl Simulated {
    pub fn new(time_ms: u64) -> Simulated {
        let state = State {
            map: BTreeMap::new(),
            events: Vec::new(),
            leases: BTreeMap::new(),
            attached: BTreeMap::new(),
            last_lease: 0,
            index: 0,
            time_ms,
            revision: 1,
        };
        Simulated {
            state: RefCell::new(state),
            usage: RefCell::default(),
            lines: RefCell::default(),
            reads_only: Cell::new(false),
        }
    }

    /// Index, time and revision.
    pub fn place(&self) -> (u64, u64, u64) {
        let state = self.state.borrow();
        (state.index, state.time_ms, state.revision)
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub fn set_state(&self, state: State) {
        self.state.replace(state);
    }

    pub fn log(&self) -> Vec<(LogLevel, String)> {
        self.lines.borrow().clone()
    }

    /// Begins an input: a batch of its own.
    pub fn begin(&self) -> (u64, u64, u64) {
        self.usage.take();
        self.state.borrow_mut().index += 1;
        self.place()
    }

    /// Ends an input that was not refused.
    pub fn finish(&self) {
        if self.usage.borrow().events > 0 {
            self.state.borrow_mut().revision += 1;
        }
    }

    /// Ends an input that was refused: only its place in the log remains.
    pub fn undo(&self, before: State) {
        let index = self.place().0;
        self.set_state(State { index, ..before });
    }

    /// Runs a query.
    pub fn reading<T>(&self, query: impl FnOnce() -> T) -> T {
        self.usage.take();
        self.reads_only.set(true);
        let answer = query();
        self.reads_only.set(false);
        answer
    }

    pub fn set_time(&self, time_ms: u64) {
        self.state.borrow_mut().time_ms = time_ms;
    }

    /// The lease that ends first, by deadline and id, if its time is over.
    pub fn next_due(&self, now_ms: u64) -> Option<u64> {
        let state = self.state.borrow();
        let due = state.leases.iter().filter(|(_, lease)| lease.deadline_ms <= now_ms);
        due.min_by_key(|(id, lease)| (lease.deadline_ms, **id)).map(|(id, _)| *id)
    }

    /// Removes a lease, and answers the keys that were attached to it.
    pub fn end(&self, lease: u64) -> Option<Vec<Vec<u8>>> {
        let mut state = self.state.borrow_mut();
        state.leases.remove(&lease)?;
        let keys = state.attached.extract_if(.., |_, to| *to == lease).map(|(key, _)| key).collect();
        Some(keys)
    }

    pub fn grant_lease(&self, ttl_ms: u64) -> u64 {
        let mut state = self.state.borrow_mut();
        state.last_lease += 1;
        let (id, deadline_ms) = (state.last_lease, state.time_ms.saturating_add(ttl_ms));
        state.leases.insert(id, Lease { ttl_ms, deadline_ms });
        id
    }

    pub fn renew(&self, lease: u64) -> bool {
        let mut state = self.state.borrow_mut();
        let time_ms = state.time_ms;
        let Some(lease) = state.leases.get_mut(&lease) else { return false };
        lease.deadline_ms = time_ms.saturating_add(lease.ttl_ms);
        true
    }

    pub fn leases(&self) -> Vec<LeaseEnd> {
        let state = self.state.borrow();
        let keys = |lease: u64| {
            let of_it = state.attached.iter().filter(|(_, to)| **to == lease);
            of_it.map(|(key, _)| key.clone()).collect()
        };
        state.leases.keys().map(|lease| LeaseEnd { lease: *lease, keys: keys(*lease) }).collect()
    }

    fn must_not_read_only(&self, what: &str) {
        assert!(!self.reads_only.get(), "{what} in a query; the host would trap");
    }

    fn write(&self, what: &str, bytes: usize) {
        self.must_not_read_only(what);
        let mut usage = self.usage.borrow_mut();
        usage.write_bytes += bytes;
        check("bytes written by one input", usage.write_bytes, WRITE_BYTES_MAX);
    }

    fn change_lease(&self, what: &str) {
        self.must_not_read_only(what);
        let mut usage = self.usage.borrow_mut();
        usage.lease_changes += 1;
        check("lease changes of one input", usage.lease_changes, LEASE_CHANGES_MAX);
    }
}

impl Host for Simulated {
    fn emit(&self, kind: EventKind, key: &[u8], value: &[u8]) {
        self.write("an event", key.len() + value.len());
        check_key(key);
        check("bytes of a value", value.len(), VALUE_BYTES_MAX);
        let mut usage = self.usage.borrow_mut();
        usage.events += 1;
        check("events of one input", usage.events, EVENTS_MAX);
        let mut state = self.state.borrow_mut();
        let revision = state.revision + 1;
        state.events.push(Event { revision, kind, key: key.to_vec(), value: value.to_vec() });
    }

    fn grant(&self, ttl_ms: u64) -> Result<u64, LeaseFailure> {
        self.change_lease("a grant");
        if self.state.borrow().leases.len() >= LEASES_MAX {
            return Err(LeaseFailure::TooMany);
        }
        Ok(self.grant_lease(ttl_ms))
    }

    fn revoke(&self, lease: u64) -> Result<(), LeaseFailure> {
        self.change_lease("a revocation");
        self.end(lease).map(|_| ()).ok_or(LeaseFailure::UnknownLease)
    }

    fn attach(&self, lease: u64, key: &[u8]) -> Result<(), LeaseFailure> {
        self.change_lease("an attachment");
        check_key(key);
        let mut state = self.state.borrow_mut();
        if !state.leases.contains_key(&lease) {
            return Err(LeaseFailure::UnknownLease);
        }
        state.attached.insert(key.to_vec(), lease);
        Ok(())
    }

    fn detach(&self, key: &[u8]) {
        self.change_lease("a detachment");
        check_key(key);
        self.state.borrow_mut().attached.remove(key);
    }

    fn remaining(&self, lease: u64) -> Result<u64, LeaseFailure> {
        let state = self.state.borrow();
        let lease = state.leases.get(&lease).ok_or(LeaseFailure::UnknownLease)?;
        Ok(lease.deadline_ms.saturating_sub(state.time_ms))
    }

    fn log(&self, level: LogLevel, message: &str) {
        let mut usage = self.usage.borrow_mut();
        usage.log_lines += 1;
        check("log lines of one call", usage.log_lines, LOG_LINES_MAX);
        check("bytes of a log line", message.len(), LOG_LINE_BYTES_MAX);
        self.lines.borrow_mut().push((level, message.to_owned()));
    }
}

/// The bounds of a span; none if nothing can be in it.
fn bounds(start: &[u8], end: Option<&[u8]>) -> Option<(Bound<Vec<u8>>, Bound<Vec<u8>>)> {
    check("bytes of a span's start", start.len(), KEY_BYTES_MAX + 1);
    check("bytes of a span's end", end.map_or(0, <[u8]>::len), KEY_BYTES_MAX + 1);
    if end.is_some_and(|end| end <= start) {
        return None;
    }
    let end = end.map_or(Bound::Unbounded, |end| Bound::Excluded(end.to_vec()));
    Some((Bound::Included(start.to_vec()), end))
}

impl Map for Simulated {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        check_key(key);
        self.state.borrow().map.get(key).cloned()
    }

    fn get_many(&self, keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
        check("keys of get-many", keys.len(), GET_MANY_KEYS_MAX);
        let values: Vec<_> = keys.iter().map(|key| self.get(key)).collect();
        let bytes = values.iter().flatten().map(Vec::len).sum();
        check("bytes of get-many's values", bytes, GET_MANY_BYTES_MAX);
        values
    }

    fn set(&self, key: &[u8], value: &[u8]) {
        self.write("a set", key.len() + value.len());
        check_key(key);
        check("bytes of a value", value.len(), VALUE_BYTES_MAX);
        self.state.borrow_mut().map.insert(key.to_vec(), value.to_vec());
    }

    fn delete(&self, key: &[u8]) {
        self.write("a delete", key.len());
        check_key(key);
        self.state.borrow_mut().map.remove(key);
    }

    fn delete_span(&self, start: &[u8], end: Option<&[u8]>) {
        let Some(bounds) = bounds(start, end) else { return self.write("a delete", 0) };
        let bytes = self.state.borrow().map.range(bounds.clone()).map(|(key, _)| key.len()).sum();
        self.write("a delete", bytes);
        self.state.borrow_mut().map.extract_if(bounds, |_, _| true).for_each(drop);
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: u32, backward: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
        let Some(bounds) = bounds(start, end) else { return Vec::new() };
        let state = self.state.borrow();
        let range = state.map.range(bounds);
        let pairs: Box<dyn Iterator<Item = _>> =
            if backward { Box::new(range.rev()) } else { Box::new(range) };
        let mut scanned = Vec::new();
        let mut bytes = 0;
        for (key, value) in pairs {
            scanned.push((key.clone(), value.clone()));
            bytes += key.len() + value.len();
            if scanned.len() == limit as usize || bytes >= SCAN_BYTES {
                break;
            }
        }
        scanned
    }
}
