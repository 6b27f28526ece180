//! What a machine asks of its host, as traits: a component implements them by its imports, a test by
//! [`TestHost`](crate::TestHost).
//!
//! The map is a trait of its own, because a resident component must not even name it.

/// What happened to a key that watchers see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It has a value now.
    Put,
    /// It is gone.
    Delete,
}

/// Why the host did not do something with a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseFailure {
    /// There is no such lease, or there is none any more.
    UnknownLease,
    /// The machine holds as many leases, or attached keys, as it is allowed to.
    TooMany,
}

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// What both worlds have.
pub trait Host {
    fn emit(&self, kind: EventKind, key: &[u8], value: &[u8]);
    fn grant(&self, ttl_ms: u64) -> Result<u64, LeaseFailure>;
    fn revoke(&self, lease: u64) -> Result<(), LeaseFailure>;
    fn attach(&self, lease: u64, key: &[u8]) -> Result<(), LeaseFailure>;
    fn detach(&self, key: &[u8]);
    fn remaining(&self, lease: u64) -> Result<u64, LeaseFailure>;
    fn log(&self, level: LogLevel, message: &str);
}

/// The ordered map of a stored machine.
pub trait Map {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>>;
    fn get_many(&self, keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>>;
    fn set(&self, key: &[u8], value: &[u8]);
    fn delete(&self, key: &[u8]);
    fn delete_span(&self, start: &[u8], end: Option<&[u8]>);
    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: u32, backward: bool) -> Vec<(Vec<u8>, Vec<u8>)>;
}
