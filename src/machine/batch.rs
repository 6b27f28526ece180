//! What one Raft entry carries: a clock reading and a list of operations; and the head that a machine has
//! after it.

use bytes::Bytes;
use prost::Message;

use crate::error::{Fault, REPAIR};
use crate::id::{Digest, Index, LogTime, Revision, StateHash};

/// One Raft entry of a machine's group. Fixed by the leader, never cut or joined afterwards.
#[derive(Clone, PartialEq, Message)]
pub struct Batch {
    /// The leader's stamp: milliseconds since the Unix epoch, never below the last batch's.
    #[prost(uint64, tag = "1")]
    pub time_ms: u64,
    /// What to do, in order.
    #[prost(message, repeated, tag = "2")]
    pub operations: Vec<Operation>,
}

/// A client's command, or an act of the host.
#[derive(Clone, PartialEq, Message)]
pub struct Operation {
    /// Which; none means that a newer version wrote it, and the outcome is `HostCode::Invalid`.
    #[prost(oneof = "Act", tags = "1, 2, 3, 4, 5")]
    pub act: Option<Act>,
    /// The context of the trace that it belongs to, for those who follow it through the nodes; usually
    /// nothing. No guest sees it.
    #[prost(bytes = "vec", tag = "15")]
    pub trace: Vec<u8>,
}

/// The kinds of operation.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Act {
    /// A client's command, as the guest will see it.
    #[prost(bytes = "bytes", tag = "1")]
    Command(Bytes),
    /// The machine's first input. Does nothing if the machine was created already.
    #[prost(message, tag = "2")]
    Create(Create),
    /// The deadline of these leases has passed; those that were renewed meanwhile are left alone.
    #[prost(message, tag = "3")]
    Expire(Expire),
    /// What the leader found of an input at which resident replicas ran out of budget.
    #[prost(message, tag = "4")]
    Verdict(Verdict),
    /// The leader's hash at an earlier index, for the replicas to compare theirs with. Changes nothing.
    #[prost(message, tag = "5")]
    Beacon(Beacon),
}

/// The machine is made from `module` with `configuration`.
#[derive(Clone, PartialEq, Message)]
pub struct Create {
    /// The sha256 of the component, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub module: Vec<u8>,
    /// The creator's configuration, as given.
    #[prost(bytes = "bytes", tag = "2")]
    pub configuration: Bytes,
}

/// Leases whose deadline has passed.
#[derive(Clone, PartialEq, Message)]
pub struct Expire {
    /// In the order in which they end: by deadline, then id.
    #[prost(uint64, repeated, tag = "1")]
    pub leases: Vec<u64>,
}

/// The leader's decision on an exhausted input of a resident machine.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Verdict {
    /// The index of the batch.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// The input's offset in it.
    #[prost(uint32, tag = "2")]
    pub offset: u32,
    /// True: the input's outcome is `exhausted` on every replica. False: retry it with double the budget.
    #[prost(bool, tag = "3")]
    pub exhausted: bool,
}

/// Where the leader stood when it proposed this.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Beacon {
    /// The last index that it had applied.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Its rolling hash there, 32 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
}

impl Batch {
    /// A batch of client commands, for tests and benches.
    pub fn of_commands(time_ms: u64, commands: impl IntoIterator<Item = Bytes>) -> Batch {
        let operations = commands.into_iter().map(Operation::command).collect();
        Batch { time_ms, operations }
    }

    /// Reads a committed entry. A failure is corruption: the log checks its entries' sums before this is
    /// called.
    pub fn read(bytes: Bytes) -> Result<Batch, Fault> {
        Batch::decode(bytes).map_err(|e| Fault::new(format!("a committed batch does not decode: {e}")))
    }
}

impl Operation {
    /// A client's command.
    pub fn command(payload: Bytes) -> Operation {
        Act::Command(payload).into()
    }

    /// Its size in the log, in bytes.
    pub fn size(&self) -> usize {
        // Commands are nearly all there is, and their size is known without walking the message.
        match &self.act {
            Some(Act::Command(payload)) => payload.len() + self.trace.len() + 16,
            _ => self.encoded_len(),
        }
    }

    /// The machine's first input.
    pub fn create(module: Digest, configuration: Bytes) -> Operation {
        Act::Create(Create { module: module.0.to_vec(), configuration }).into()
    }
}

impl From<Act> for Operation {
    fn from(act: Act) -> Operation {
        Operation { act: Some(act), trace: Vec::new() }
    }
}

/// Where a machine stands: written with every batch, in the same atomic write as the batch's effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The last applied index of the group's log.
    pub index: Index,
    /// The stamp of the last batch.
    pub time: LogTime,
    /// Of the last input that emitted events.
    pub revision: Revision,
    /// The rolling hash over everything up to `index`.
    pub hash: StateHash,
    /// The component that applies the next input; `None` before the machine is created.
    pub module: Option<Digest>,
    /// The id of the last lease granted; ids are never used twice.
    pub last_lease: u64,
}

impl Default for Head {
    fn default() -> Head {
        Head {
            index: Index(0),
            time: LogTime(0),
            revision: Revision::FIRST,
            hash: StateHash::default(),
            module: None,
            last_lease: 0,
        }
    }
}

/// The stored form of [`Head`].
#[derive(Clone, PartialEq, Message)]
struct HeadRow {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    time_ms: u64,
    #[prost(uint64, tag = "3")]
    revision: u64,
    #[prost(bytes = "vec", tag = "4")]
    hash: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "5")]
    module: Option<Vec<u8>>,
    #[prost(uint64, tag = "6")]
    last_lease: u64,
}

impl Head {
    /// The key of the head in `Table::Head`.
    pub const KEY: &'static [u8] = b"head";

    /// The row's bytes.
    pub fn encode(&self) -> Vec<u8> {
        HeadRow {
            index: self.index.0,
            time_ms: self.time.0,
            revision: self.revision.0,
            hash: self.hash.0.to_vec(),
            module: self.module.map(|digest| digest.0.to_vec()),
            last_lease: self.last_lease,
        }
        .encode_to_vec()
    }

    /// Reads a row. A failure is corruption.
    pub fn decode(bytes: &[u8]) -> Result<Head, Fault> {
        let damaged = || Fault::new(format!("a machine's head row is damaged. {REPAIR}"));
        let row = HeadRow::decode(bytes).map_err(|_| damaged())?;
        let module = row.module.map(|m| m.try_into().map(Digest).map_err(|_| damaged())).transpose()?;
        Ok(Head {
            index: Index(row.index),
            time: LogTime(row.time_ms),
            revision: Revision(row.revision),
            hash: StateHash(row.hash.try_into().map_err(|_| damaged())?),
            module,
            last_lease: row.last_lease,
        })
    }
}
