//! What one Raft entry carries: a clock reading and a list of operations; and the head that a machine has
//! after it.

use bytes::Bytes;
use prost::Message;

use super::lease::Tally;
use super::settings::Settings;
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
    /// Whether it is the first of its leader's term: leases that clients renew get time to be renewed.
    #[prost(bool, tag = "3")]
    pub begins_term: bool,
}

/// A client's command, or an act of the host.
#[derive(Clone, PartialEq, Message)]
pub struct Operation {
    /// Which; none means that a newer version wrote it, and the outcome is `HostCode::Invalid`.
    #[prost(oneof = "Act", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub act: Option<Act>,
    /// Of a command: its place in a session, which makes it safe to send again.
    #[prost(message, optional, tag = "14")]
    pub numbered: Option<Numbered>,
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
    /// A client asks for a lease. Its outcome is [`granted`](Operation::granted).
    #[prost(message, tag = "6")]
    Grant(Grant),
    /// Clients keep leases alive. Its outcome is [`Renewed`].
    #[prost(message, tag = "7")]
    Renew(Renew),
    /// A client ends a lease. An outcome without an answer.
    #[prost(uint64, tag = "8")]
    Revoke(u64),
    /// A client opens a session: a lease with numbered commands. Its outcome is that of a grant.
    #[prost(message, tag = "9")]
    OpenSession(Grant),
    /// An operator changes settings. An outcome without an answer.
    #[prost(message, tag = "10")]
    Configure(Settings),
    /// Events before this revision are no longer kept, on any replica.
    #[prost(uint64, tag = "11")]
    Trim(u64),
    /// An operator has the machine run another component from here on. It has a batch to itself.
    #[prost(message, tag = "12")]
    Upgrade(Upgrade),
}

/// A command's place in a session.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Numbered {
    /// The session's id.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Which of the session's commands it is, from 1.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// The client has seen the outcomes of all up to this one.
    #[prost(uint64, tag = "3")]
    pub acknowledged: u64,
}

/// A lease is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Grant {
    /// How long it lives without being renewed, in milliseconds; at least 1.
    #[prost(uint64, tag = "1")]
    pub ttl_ms: u64,
    /// The id that the client wants; 0: any.
    #[prost(uint64, tag = "2")]
    pub id: u64,
}

/// Leases are kept alive.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Renew {
    /// Which.
    #[prost(uint64, repeated, tag = "1")]
    pub leases: Vec<u64>,
}

/// What became of a [`Renew`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Renewed {
    /// For each lease the milliseconds that it lives from now on; 0: there is no such lease, or it is the
    /// machine's own.
    #[prost(uint64, repeated, tag = "1")]
    pub ttls_ms: Vec<u64>,
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
    /// What it is to begin with, if that is not the default.
    #[prost(message, optional, tag = "3")]
    pub settings: Option<Settings>,
}

/// The machine is to run `module` from now on, which is told so.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Upgrade {
    /// The sha256 of the component, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub module: Vec<u8>,
    /// Whatever the operator gave for the migration.
    #[prost(bytes = "bytes", tag = "2")]
    pub argument: Bytes,
}

impl Upgrade {
    /// The component, if that is a digest.
    pub fn module(&self) -> Option<Digest> {
        self.module.as_slice().try_into().map(Digest).ok()
    }
}

impl Create {
    /// The component, if that is a digest.
    pub fn module(&self) -> Option<Digest> {
        self.module.as_slice().try_into().map(Digest).ok()
    }
}

/// Leases whose deadline has passed.
#[derive(Clone, PartialEq, Message)]
pub struct Expire {
    /// Those that end do so by deadline, then id.
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
        Batch { time_ms, operations, begins_term: false }
    }

    /// The component that it is to have the machine run, if it is an upgrade.
    pub fn upgrade(&self) -> Option<Digest> {
        match self.operations.as_slice() {
            [Operation { act: Some(Act::Upgrade(upgrade)), .. }] => upgrade.module(),
            _ => None,
        }
    }

    /// The component that its inputs go to, if the machine stands at `head`. None: it reaches no component,
    /// because the machine was not created.
    pub fn component(&self, head: &Head) -> Option<Digest> {
        let created = || {
            self.operations.iter().find_map(|operation| match &operation.act {
                Some(Act::Create(create)) => create.module(),
                _ => None,
            })
        };
        match head.module {
            Some(present) => Some(self.upgrade().unwrap_or(present)),
            None => created(),
        }
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
            Some(Act::Command(payload)) => {
                payload.len() + self.trace.len() + if self.numbered.is_some() { 48 } else { 16 }
            }
            _ => self.encoded_len(),
        }
    }

    /// Whether it must have a batch to itself: whatever comes with it would meet another component.
    pub fn is_alone(&self) -> bool {
        matches!(self.act, Some(Act::Upgrade(_)))
    }

    /// A client's command in a session.
    pub fn numbered(payload: Bytes, numbered: Numbered) -> Operation {
        Operation { numbered: Some(numbered), ..Operation::command(payload) }
    }

    /// The machine's first input.
    pub fn create(module: Digest, configuration: Bytes) -> Operation {
        Operation::create_settled(module, configuration, None)
    }

    /// The same for a machine that begins with settings of its own.
    pub fn create_settled(module: Digest, configuration: Bytes, settings: Option<Settings>) -> Operation {
        Act::Create(Create { module: module.0.to_vec(), configuration, settings }).into()
    }

    /// The lease that the answer to a grant names, if it is such an answer.
    pub fn granted(answer: &[u8]) -> Option<u64> {
        answer.try_into().map(u64::from_be_bytes).ok()
    }
}

impl From<Act> for Operation {
    fn from(act: Act) -> Operation {
        Operation { act: Some(act), numbered: None, trace: Vec::new() }
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
    /// What there is of leases.
    pub leases: Tally,
    /// The log's clock when the present leader's term had its first batch.
    pub term_began: LogTime,
    /// Events before this revision are not kept.
    pub history_first: Revision,
    /// Bytes of events that were ever emitted.
    pub event_bytes: u64,
    /// What was settled for this machine.
    pub settings: Settings,
}

impl Default for Head {
    fn default() -> Head {
        Head {
            index: Index(0),
            time: LogTime(0),
            revision: Revision::FIRST,
            hash: StateHash::default(),
            module: None,
            leases: Tally::default(),
            term_began: LogTime(0),
            history_first: Revision::FIRST,
            event_bytes: 0,
            settings: Settings::default(),
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
    #[prost(uint64, tag = "7")]
    leases: u64,
    #[prost(uint64, tag = "8")]
    sessions: u64,
    #[prost(uint64, tag = "9")]
    term_began_ms: u64,
    #[prost(uint64, tag = "10")]
    history_first: u64,
    #[prost(uint64, tag = "11")]
    event_bytes: u64,
    #[prost(message, optional, tag = "12")]
    settings: Option<Settings>,
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
            last_lease: self.leases.last,
            leases: self.leases.live,
            sessions: self.leases.sessions,
            term_began_ms: self.term_began.0,
            history_first: self.history_first.0,
            event_bytes: self.event_bytes,
            settings: (self.settings != Settings::default()).then_some(self.settings),
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
            leases: Tally { last: row.last_lease, live: row.leases, sessions: row.sessions },
            term_began: LogTime(row.term_began_ms),
            history_first: Revision(row.history_first),
            event_bytes: row.event_bytes,
            settings: row.settings.unwrap_or_default(),
        })
    }
}
