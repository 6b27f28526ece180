//! Where an input or a query stands in the machine's history, and what can be done there: emit events, grant
//! leases, log. The only clock is the log's.

use crate::host::{EventKind, Host, LeaseFailure, LogLevel};

/// One input at its place in the log. The same on every replica.
pub struct Change<'a> {
    pub(crate) host: &'a dyn Host,
    pub(crate) index: u64,
    pub(crate) offset: u32,
    pub(crate) time_ms: u64,
    pub(crate) revision: u64,
}

impl Change<'_> {
    /// Position of the batch in the machine's log.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Position of this input within its batch, from 0.
    pub fn offset(&self) -> u32 {
        self.offset
    }

    /// The log's clock: milliseconds since the Unix epoch. Never goes back.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The revision that the events of this input will carry, if it emits any.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Tells watchers that `key` has a value.
    pub fn put(&self, key: &[u8], value: &[u8]) {
        self.host.emit(EventKind::Put, key, value);
    }

    /// Tells watchers that `key` is gone.
    pub fn deleted(&self, key: &[u8]) {
        self.host.emit(EventKind::Delete, key, &[]);
    }

    /// Grants a lease of the machine's own, for `ttl_ms` milliseconds from now; answers its id.
    ///
    /// # Errors
    /// `TooMany` if the machine holds as many leases as it may.
    pub fn grant(&self, ttl_ms: u64) -> Result<u64, LeaseFailure> {
        self.host.grant(ttl_ms)
    }

    /// Ends a lease and drops its attachments, without a `lease_ended`.
    ///
    /// # Errors
    /// `UnknownLease`.
    pub fn revoke(&self, lease: u64) -> Result<(), LeaseFailure> {
        self.host.revoke(lease)
    }

    /// Ties a key to a lease, and away from the one it was tied to: `lease_ended` will name it.
    ///
    /// # Errors
    /// `UnknownLease`, or `TooMany`.
    pub fn attach(&self, lease: u64, key: &[u8]) -> Result<(), LeaseFailure> {
        self.host.attach(lease, key)
    }

    /// Unties a key.
    pub fn detach(&self, key: &[u8]) {
        self.host.detach(key);
    }

    /// How many milliseconds a lease has left.
    ///
    /// # Errors
    /// `UnknownLease`.
    pub fn remaining_ms(&self, lease: u64) -> Result<u64, LeaseFailure> {
        self.host.remaining(lease)
    }

    /// A line in the log of the node, for people. Never replicated.
    pub fn log(&self, level: LogLevel, message: &str) {
        self.host.log(level, message);
    }
}

/// What a query reads: the state after the batch at `index`.
pub struct View<'a> {
    pub(crate) host: &'a dyn Host,
    pub(crate) index: u64,
    pub(crate) time_ms: u64,
    pub(crate) revision: u64,
}

impl View<'_> {
    /// Position in the log of the last batch that is seen.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The clock that expiry is judged by: milliseconds since the Unix epoch, at least the batch's own.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Of the last input that emitted events; 1 before the first.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many milliseconds a lease has left.
    ///
    /// # Errors
    /// `UnknownLease`.
    pub fn remaining_ms(&self, lease: u64) -> Result<u64, LeaseFailure> {
        self.host.remaining(lease)
    }

    /// A line in the log of the node, for people.
    pub fn log(&self, level: LogLevel, message: &str) {
        self.host.log(level, message);
    }
}
