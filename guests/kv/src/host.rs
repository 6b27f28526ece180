//! What the machine asks of its host: the part of the contract it uses, as traits.
//!
//! The component implements them with the imports of the world `stored`; [`Memory`](crate::memory::Memory)
//! implements them for tests and native measurements. A query gets [`Read`] only, so the compiler proves
//! that it writes nothing.

/// A pair of the host's ordered map.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Where an input or a query stands in the machine's history: the part of the contract's `context` and
/// `view` that this machine goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Of an input: the revision that its events will carry. Of a query: that of the last input that
    /// emitted events.
    pub revision: u64,
    /// The log's clock, in milliseconds. Times to live are judged by it.
    pub time_ms: u64,
}

/// The lease does not exist, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownLease;

/// The machine has as many leases as its host allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyLeases;

/// What watchers are told of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It has a new version.
    Put,
    /// It is gone.
    Delete,
}

/// Reads of the host's ordered map and leases, with the limits of the contract.
pub trait Read {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Option<Vec<u8>>;

    /// Pairs from `start` up to, not including, `end`, in key order: at most `limit` (0: no limit), and not
    /// beyond the pair that reaches 1 MiB; at least one if there is any.
    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: u32) -> Vec<Pair>;

    /// Milliseconds that the lease has left at the time of the input or view.
    fn remaining_ms(&self, lease: u64) -> Result<u64, UnknownLease>;
}

/// Writes, events and leases: what one input does, all or nothing.
pub trait Host: Read {
    /// Sets `key` to `value`.
    fn set(&mut self, key: &[u8], value: &[u8]);

    /// Removes `key`.
    fn delete(&mut self, key: &[u8]);

    /// Tells watchers.
    fn emit(&mut self, kind: EventKind, key: &[u8], value: &[u8]);

    /// A new lease of so many milliseconds from the time of the input.
    fn grant(&mut self, ttl_ms: u64) -> Result<u64, TooManyLeases>;

    /// Ends a lease without an input, and unties its keys.
    fn revoke(&mut self, lease: u64) -> Result<(), UnknownLease>;

    /// Ties `key` to `lease`, and to no other.
    fn attach(&mut self, lease: u64, key: &[u8]) -> Result<(), UnknownLease>;

    /// Unties `key`.
    fn detach(&mut self, key: &[u8]);
}

/// Everything that can change the machine: the contract's `input`.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// The machine was created, with its creator's configuration.
    Created(&'a [u8]),
    /// A client's command.
    Command(&'a [u8]),
    /// A lease ended; the keys that were attached, in key order.
    LeaseEnded {
        /// The lease that is gone.
        lease: u64,
        /// The keys that were attached to it.
        keys: &'a [Vec<u8>],
    },
    /// The machine now runs another component, or this one again.
    Upgraded,
}
