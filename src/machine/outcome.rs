//! What a client is told of its command.

use bytes::Bytes;
use prost::Message;

use crate::id::{Index, Revision};

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
    /// The operation names a lease that does not exist, has ended, or is the machine's own.
    UnknownLease = 4,
    /// The operation cannot be done in this state, or this version does not know it.
    Invalid = 5,
    /// The lease id that was asked for is in use, or was given before.
    LeaseInUse = 6,
    /// The machine has as many leases as it may.
    TooManyLeases = 7,
    /// The session does not exist or has ended: whether the command was applied before is not known any more,
    /// and it is not applied now.
    UnknownSession = 8,
    /// The machine has as many sessions as it may.
    TooManySessions = 9,
    /// The client has acknowledged the outcome of this number: it was forgotten, and the command is not
    /// applied again.
    NumberPassed = 10,
    /// The number is further ahead of what the client has acknowledged than the session's window: not
    /// applied.
    NumberAhead = 11,
}

impl HostCode {
    /// The code of a number; none if this version does not know it.
    pub fn read(number: u32) -> Option<HostCode> {
        HostCode::ALL.into_iter().find(|&code| code as u32 == number)
    }

    /// All codes, in the order of their numbers.
    pub const ALL: [HostCode; 11] = [
        HostCode::Trapped,
        HostCode::Exhausted,
        HostCode::NotCreated,
        HostCode::UnknownLease,
        HostCode::Invalid,
        HostCode::LeaseInUse,
        HostCode::TooManyLeases,
        HostCode::UnknownSession,
        HostCode::TooManySessions,
        HostCode::NumberPassed,
        HostCode::NumberAhead,
    ];
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

/// What became of an operation, and where: what its client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutcomeAt {
    /// The index of the batch it was applied in: a local read with this `min_index` sees it.
    pub index: Index,
    /// The machine's revision after it.
    pub revision: Revision,
    /// What the guest, or the host, answered.
    pub outcome: Outcome,
}

/// An outcome with its place in the machine's history, as nodes keep it and tell each other.
#[derive(Clone, PartialEq, Message)]
pub struct OutcomeRow {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    revision: u64,
    /// 0: ok, 1: refused, 2: ended by the host.
    #[prost(uint32, tag = "3")]
    kind: u32,
    /// The answer, or the refusal's message.
    #[prost(bytes = "bytes", tag = "4")]
    bytes: Bytes,
    /// The guest's or the host's.
    #[prost(uint32, tag = "5")]
    code: u32,
}

impl OutcomeRow {
    /// The row of an outcome.
    pub fn of(first: &OutcomeAt) -> OutcomeRow {
        let (kind, bytes, code) = match &first.outcome {
            Outcome::Ok(bytes) => (0, bytes.clone(), 0),
            Outcome::Refused(Refusal { code, message }) => (1, Bytes::from(message.clone()), *code),
            Outcome::Host(code) => (2, Bytes::new(), *code as u32),
        };
        OutcomeRow { index: first.index.0, revision: first.revision.0, kind, bytes, code }
    }

    /// What the row says; none if this version does not understand it.
    pub fn outcome(self) -> Option<OutcomeAt> {
        let outcome = match self.kind {
            0 => Outcome::Ok(self.bytes),
            1 => {
                let message = String::from_utf8_lossy(&self.bytes).into_owned();
                Outcome::Refused(Refusal { code: self.code, message })
            }
            2 => Outcome::Host(HostCode::read(self.code)?),
            _ => return None,
        };
        Some(OutcomeAt { index: Index(self.index), revision: Revision(self.revision), outcome })
    }

    /// Reads a row.
    pub fn read(row: &[u8]) -> Option<OutcomeAt> {
        OutcomeRow::decode(row).ok()?.outcome()
    }
}
