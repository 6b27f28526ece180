//! What a client is told of its command.

use bytes::Bytes;

/// Where an input stands in the machine's history. The same on every replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Position of the batch in the machine's log.
    pub index: u64,
    /// Position of this input within its batch, from 0.
    pub offset: u32,
    /// The log's clock: milliseconds since the Unix epoch.
    pub time: u64,
    /// The revision that the events of this input will carry, if it emits any.
    pub revision: u64,
}

/// A guest's refusal: the input changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The guest's own code, never 0.
    pub code: u32,
    /// The guest's own words, at most 4 KiB.
    pub message: String,
}

/// Why the host, not the guest, ended an input without effect. Fixed codes: no text of this computer is in
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HostCode {
    /// The guest trapped, or went over a limit of the contract.
    Trapped = 1,
    /// The guest used up its fuel.
    Exhausted = 2,
    /// A command for a machine that was not created, or whose creation failed.
    NotCreated = 3,
    /// The operation names a lease that does not exist.
    UnknownLease = 4,
    /// The operation cannot be done in this state, or this version does not know it.
    Invalid = 5,
}

impl HostCode {
    /// The code of a number; none if this version does not know it.
    pub fn read(number: u32) -> Option<HostCode> {
        use HostCode::{Exhausted, Invalid, NotCreated, Trapped, UnknownLease};
        [Trapped, Exhausted, NotCreated, UnknownLease, Invalid]
            .into_iter()
            .find(|&code| code as u32 == number)
    }
}

/// What became of one operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; the guest's answer.
    Ok(Bytes),
    /// The guest refused.
    Refused(Refusal),
    /// The host ended it.
    Host(HostCode),
}

/// What became of a query is a part of what can become of a command.
impl From<Result<Bytes, Refusal>> for Outcome {
    fn from(outcome: Result<Bytes, Refusal>) -> Outcome {
        match outcome {
            Ok(answer) => Outcome::Ok(answer),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }
}
