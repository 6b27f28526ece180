//! A host in memory: for tests, and for measuring the machine without WebAssembly.
//!
//! It keeps the contract's rules and panics where the real host would trap, because a trap of this machine
//! is a bug.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::{EventKind, Host, Pair, Read, TooManyLeases, UnknownLease};
use crate::{EVENTS_MAX, LEASE_CHANGES_MAX, VALUE_BYTES_MAX, WRITE_BYTES_MAX};

const KEY_BYTES_MAX: usize = 64 << 10;
const PAGE_BYTES: usize = 1 << 20;

/// What watchers were told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Put or delete.
    pub kind: EventKind,
    /// The key.
    pub key: Vec<u8>,
    /// An encoded `KeyValue`.
    pub value: Vec<u8>,
}

/// A lease: the milliseconds it has left, and its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// What [`Read::remaining_ms`] tells.
    pub remaining_ms: u64,
    /// What is attached.
    pub keys: BTreeSet<Vec<u8>>,
}

/// The state of a host with one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The ordered map.
    pub rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The leases that exist.
    pub leases: BTreeMap<u64, Lease>,
    /// The lease of each key that is attached to one.
    holders: BTreeMap<Vec<u8>, u64>,
    /// The last lease that was granted. No id is used twice.
    pub last_lease: u64,
    /// How many leases there may be; none: any number.
    pub leases_max: Option<usize>,
    /// The events of the input at hand.
    pub events: Vec<Emitted>,
    /// The contract's measure of what the input at hand has written.
    pub written_bytes: usize,
    /// Leases and attachments changed by the input at hand.
    pub lease_changes: usize,
}

impl Memory {
    /// Grants a lease to a client.
    pub fn grant_to_client(&mut self, remaining_ms: u64) -> u64 {
        self.last_lease += 1;
        self.leases.insert(self.last_lease, Lease { remaining_ms, keys: BTreeSet::new() });
        self.last_lease
    }

    /// Ends a lease, and gives the keys that were attached: what `lease-ended` carries.
    pub fn end_lease(&mut self, lease: u64) -> Vec<Vec<u8>> {
        let keys = self.leases.remove(&lease).unwrap_or_default().keys;
        keys.into_iter().inspect(|key| _ = self.holders.remove(key)).collect()
    }

    /// Begins the next input and gives the events of the last.
    pub fn next_input(&mut self) -> Vec<Emitted> {
        self.written_bytes = 0;
        self.lease_changes = 0;
        std::mem::take(&mut self.events)
    }

    fn write(&mut self, key: &[u8], value: &[u8]) {
        assert!((1..=KEY_BYTES_MAX).contains(&key.len()), "a key of {} bytes would trap", key.len());
        assert!(value.len() <= VALUE_BYTES_MAX, "a value of {} bytes would trap", value.len());
        self.written_bytes += key.len() + value.len();
        assert!(self.written_bytes <= WRITE_BYTES_MAX, "writing {} bytes would trap", self.written_bytes);
    }

    fn change_lease(&mut self) {
        self.lease_changes += 1;
        assert!(self.lease_changes <= LEASE_CHANGES_MAX, "{} lease changes would trap", self.lease_changes);
    }

    fn untie(&mut self, key: &[u8]) {
        assert!((1..=KEY_BYTES_MAX).contains(&key.len()), "a key of {} bytes would trap", key.len());
        if let Some(lease) = self.holders.remove(key).and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(key);
        }
    }
}

impl Read for Memory {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        assert!((1..=KEY_BYTES_MAX).contains(&key.len()), "a key of {} bytes would trap", key.len());
        self.rows.get(key).cloned()
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: u32) -> Vec<Pair> {
        for bound in [Some(start), end].into_iter().flatten() {
            assert!(bound.len() <= KEY_BYTES_MAX + 1, "a bound of {} bytes would trap", bound.len());
        }
        let mut bytes = 0;
        let mut page = Vec::new();
        for (key, value) in
            self.rows.range::<[u8], _>((std::ops::Bound::Included(start), std::ops::Bound::Unbounded))
        {
            if end.is_some_and(|end| key.as_slice() >= end) {
                break;
            }
            bytes += key.len() + value.len();
            page.push((key.clone(), value.clone()));
            if bytes >= PAGE_BYTES || page.len() == limit as usize {
                break;
            }
        }
        page
    }

    fn remaining_ms(&self, lease: u64) -> Result<u64, UnknownLease> {
        self.leases.get(&lease).map(|lease| lease.remaining_ms).ok_or(UnknownLease)
    }
}

impl Host for Memory {
    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.write(key, value);
        self.rows.insert(key.to_vec(), value.to_vec());
    }

    fn delete(&mut self, key: &[u8]) {
        self.write(key, &[]);
        self.rows.remove(key);
    }

    fn emit(&mut self, kind: EventKind, key: &[u8], value: &[u8]) {
        self.write(key, value);
        self.events.push(Emitted { kind, key: key.to_vec(), value: value.to_vec() });
        assert!(self.events.len() <= EVENTS_MAX, "{} events would trap", self.events.len());
    }

    fn grant(&mut self, ttl_ms: u64) -> Result<u64, TooManyLeases> {
        self.change_lease();
        if self.leases.len() >= self.leases_max.unwrap_or(usize::MAX) {
            return Err(TooManyLeases);
        }
        Ok(self.grant_to_client(ttl_ms))
    }

    fn revoke(&mut self, lease: u64) -> Result<(), UnknownLease> {
        self.change_lease();
        if !self.leases.contains_key(&lease) {
            return Err(UnknownLease);
        }
        // The contract counts the keys that the lease lets go of.
        for key in self.end_lease(lease) {
            self.write(&key, &[]);
        }
        Ok(())
    }

    fn attach(&mut self, lease: u64, key: &[u8]) -> Result<(), UnknownLease> {
        self.change_lease();
        if !self.leases.contains_key(&lease) {
            return Err(UnknownLease);
        }
        self.untie(key);
        self.leases.entry(lease).or_default().keys.insert(key.to_vec());
        self.holders.insert(key.to_vec(), lease);
        Ok(())
    }

    fn detach(&mut self, key: &[u8]) {
        self.change_lease();
        self.untie(key);
    }
}
