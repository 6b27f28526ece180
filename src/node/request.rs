//! What callers ask of a node and what they are told: plain values, the same for the library and for gRPC.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message;

pub use super::explanation::{Difference, Explanation, OperationInfo, Side};
use crate::error::Error;
use crate::id::{Digest, GroupId, Index, LogTime, NodeId, ReplicaId, Revision, StateHash, Term};
use crate::machine::event::EventKind;
pub use crate::machine::guest::World;
/// What became of a command.
pub use crate::machine::outcome::OutcomeAt as Applied;
use crate::machine::outcome::Refusal;
use crate::machine::settings::Settings;
pub use crate::watch::{KeySpan, Selection};

/// How fresh a query's view must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Everything acknowledged before the query began is seen, whatever clocks do.
    #[default]
    Linearizable,
    /// The same, on the assumption that clocks run at nearly the same rate: no round trip.
    Lease,
    /// Whatever this replica has applied, but at least `min_index`.
    Local {
        /// Wait until this index is applied; 0 does not wait.
        min_index: Index,
    },
}

/// A session that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its id: that of its lease, which keeps it alive as long as it is renewed.
    pub session: u64,
    /// How long it lives without being renewed.
    pub ttl: Duration,
    /// How far its numbers may run ahead of what was acknowledged, as the machine is set now.
    pub window: u64,
}

/// A query's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The state it was read from: after the batch at this index.
    pub index: Index,
    /// The machine's revision there.
    pub revision: Revision,
    /// The guest's answer, or its refusal. A guest that failed is an [`Error::Guest`](crate::error::Error).
    pub outcome: Result<Bytes, Refusal>,
}

/// A watch of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchSpec {
    /// Which events.
    pub selection: Selection,
    /// The first revision; none: the next one.
    pub from: Option<Revision>,
    /// Whether it is to be told now and then, when there is nothing else to tell, up to where it has
    /// everything.
    pub progress: bool,
    /// Whether events are to come with the value that their key had before. For machines of `builtin:kv`.
    pub previous: bool,
}

impl WatchSpec {
    /// All events of these keys from now on.
    pub fn of(span: KeySpan) -> WatchSpec {
        WatchSpec { selection: Selection::of(span), from: None, progress: false, previous: false }
    }
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Something happened.
    Events(WatchEvents),
    /// Everything up to this revision was told.
    Progress(Revision),
}

/// The events of one revision that a watch is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvents {
    /// The revision.
    pub revision: Revision,
    /// The index of the batch that they came from.
    pub index: Index,
    /// The log's clock then.
    pub time: LogTime,
    /// In order; at least one.
    pub events: Vec<WatchEvent>,
}

/// One event that a watch is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// What happened to the key.
    pub kind: EventKind,
    /// The key, as the guest names it.
    pub key: Bytes,
    /// The value, as the guest writes it.
    pub value: Bytes,
    /// What the key had before, in the same form. Only on request.
    pub previous: Option<Bytes>,
}

/// A module of the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Its name: the sha256 of its bytes.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// Its world.
    pub world: World,
    /// What it was called when it was pushed: a file name, for people.
    pub label: String,
    /// When it was pushed.
    pub pushed: LogTime,
    /// Whether this node has its compiled artefact ready.
    pub compiled: bool,
}

/// A machine of the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineInfo {
    /// Its name.
    pub name: String,
    /// The Raft group that orders its inputs.
    pub group: GroupId,
    /// What it runs.
    pub module: Digest,
    /// Its world.
    pub world: World,
    /// When it was created.
    pub created: LogTime,
    /// Fuel of each of its inputs, fixed when it was created.
    pub input_fuel: u64,
    /// The fingerprint of the engine that it is bound to.
    pub engine: String,
    /// Where this node's replica stands; `None` if it has none.
    pub replica: Option<ReplicaInfo>,
    /// The nodes that have a replica, or are to have one.
    pub replicas: Vec<NodeId>,
    /// How many it should have.
    pub replicas_wanted: u32,
    /// What was settled for it; `None` if that is not known here.
    pub settings: Option<Settings>,
}

/// Where a replica stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// The term it knows.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// The last applied index.
    pub applied: Index,
    /// The machine's revision.
    pub revision: Revision,
    /// The rolling hash at `applied`.
    pub hash: StateHash,
    /// Why it does not serve, if it does not.
    pub halted: Option<String>,
}

/// How the replicas of a machine compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Where in the log the leader put its hash.
    pub index: Index,
    /// Each replica.
    pub replicas: Vec<VerifiedReplica>,
}

/// A replica that was compared with its leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedReplica {
    /// Its node.
    pub node: NodeId,
    /// Where it stands and with which hash, past the leader's hash and in agreement with it; or why that
    /// cannot be said.
    pub standing: Result<(Index, StateHash), String>,
}

/// What a cluster is told of a node that joins it, or has moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where other nodes reach it.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_address: String,
    /// Where clients of etcd reach it; empty if it does not serve them.
    pub etcd_address: String,
    /// The version of `statehouse` that it runs.
    pub version: String,
}

/// What a node is told that was let into a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Its replica of the catalog's group.
    pub replica: ReplicaId,
    /// The other nodes.
    pub contacts: Vec<Contact>,
}

/// Where a node is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Its id.
    pub node: NodeId,
    /// Its replica of the catalog's group.
    pub replica: ReplicaId,
    /// Where other nodes reach it.
    pub peer_address: String,
}

/// Whoever can let a node into a cluster: a client of one of its nodes, or such a node in the same process.
pub trait Introducer: Send + Sync {
    /// Which cluster it is.
    fn cluster(&self) -> BoxFuture<'_, Result<u64, Error>>;

    /// Has the cluster let a node in. The same again for one that is known.
    fn introduce(&self, node: Introduction) -> BoxFuture<'_, Result<Invitation, Error>>;
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where other nodes reach it.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_address: String,
    /// Where clients of etcd reach it; empty if it does not serve them.
    pub etcd_address: String,
    /// The version of `statehouse` that it last started with.
    pub version: String,
    /// When it joined.
    pub joined: LogTime,
    /// Whether it votes in the catalog's group, once it has caught up.
    pub voter: bool,
    /// Whether it is being let go.
    pub leaving: bool,
    /// Whether it leads the catalog's group, as far as the answering node knows.
    pub leader: bool,
    /// Whether the answering node hears of it.
    pub reachable: bool,
}

/// A node, for people and programs that look after it.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// The node's id.
    pub node: NodeId,
    /// The node's name.
    pub name: String,
    /// The version of `statehouse`.
    pub version: &'static str,
    /// The wasmtime version and settings that machines here are bound to.
    pub engine: String,
    /// How long it has been serving.
    pub uptime: Duration,
    /// Its data directory.
    pub data_dir: std::path::PathBuf,
    /// All machines, by name.
    pub machines: Vec<MachineInfo>,
    /// How many modules the catalog holds.
    pub modules: usize,
}

/// How a node is, as it tells of itself; the same among nodes.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct NodeReport {
    /// How long it has been serving, in milliseconds.
    #[prost(uint64, tag = "1")]
    pub uptime_ms: u64,
    /// Raft groups of which it has a replica: its machines and the catalog.
    #[prost(uint64, tag = "2")]
    pub groups: u64,
    /// Of those, the ones that it leads.
    #[prost(uint64, tag = "3")]
    pub leading: u64,
    /// Those that have nothing to do and cost nothing.
    #[prost(uint64, tag = "4")]
    pub asleep: u64,
    /// Machines whose replica has stopped.
    #[prost(uint64, tag = "5")]
    pub halted: u64,
    /// The largest number of entries that one of its replicas has yet to apply.
    #[prost(uint64, tag = "6")]
    pub unapplied: u64,
    /// How far other nodes are behind in the groups that it leads.
    #[prost(message, repeated, tag = "7")]
    pub behind: Vec<Behind>,
    /// What it has on its disk.
    #[prost(message, optional, tag = "8")]
    pub disk: Option<DiskUse>,
}

/// How far a node is behind a leader.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Behind {
    /// The node.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// The largest number of entries that one of its replicas lacks, as far as the leader knows.
    #[prost(uint64, tag = "2")]
    pub entries: u64,
}

/// What a data directory takes, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct DiskUse {
    /// The log database.
    #[prost(uint64, tag = "1")]
    pub log_bytes: u64,
    /// The state database.
    #[prost(uint64, tag = "2")]
    pub state_bytes: u64,
    /// Snapshots, those on their way included.
    #[prost(uint64, tag = "3")]
    pub snapshots_bytes: u64,
    /// Modules, and what was compiled from them.
    #[prost(uint64, tag = "4")]
    pub modules_bytes: u64,
    /// What the disk still takes; absent: not known.
    #[prost(uint64, optional, tag = "5")]
    pub free_bytes: Option<u64>,
}

/// Where a replica stands in its group's log; the same among nodes.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ReplicaLog {
    /// The Raft term it knows.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// `leader`, `follower`, `candidate` or `learner`.
    #[prost(string, tag = "2")]
    pub role: String,
    /// The entry before the first one that its log keeps.
    #[prost(uint64, tag = "3")]
    pub start: u64,
    /// The last entry.
    #[prost(uint64, tag = "4")]
    pub last: u64,
    /// The last entry that it knows to be committed.
    #[prost(uint64, tag = "5")]
    pub committed: u64,
    /// The last entry that it has applied.
    #[prost(uint64, tag = "6")]
    pub applied: u64,
    /// Whether it has nothing to do and costs nothing.
    #[prost(bool, tag = "7")]
    pub asleep: bool,
    /// Why it does not serve, if it does not.
    #[prost(string, optional, tag = "8")]
    pub halted: Option<String>,
}

/// A lease of a machine; the same among nodes.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct LeaseInfo {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What it was granted for, in milliseconds.
    #[prost(uint64, tag = "2")]
    pub ttl_ms: u64,
    /// How long it still lives if it is not renewed; 0: its end is on its way into the log.
    #[prost(uint64, tag = "3")]
    pub remaining_ms: u64,
    /// Whether the machine granted it to itself: then no client renews or revokes it.
    #[prost(bool, tag = "4")]
    pub of_machine: bool,
    /// Whether it is a session.
    #[prost(bool, tag = "5")]
    pub is_session: bool,
    /// The keys that are attached to it, in their order, as many as are shown; only of a lease that was asked
    /// for by its id.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub keys: Vec<Bytes>,
    /// Whether there are more keys.
    #[prost(bool, tag = "7")]
    pub more_keys: bool,
}

/// Some of a machine's leases; the same among nodes.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct LeasePage {
    /// By their ids.
    #[prost(message, repeated, tag = "1")]
    pub leases: Vec<LeaseInfo>,
    /// Whether there are more after the last one.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// A node, as the one that was asked knows it, and as it tells of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Surveyed {
    /// As the answering node knows it.
    pub member: MemberInfo,
    /// As it tells of itself, or why it does not.
    pub report: Result<NodeReport, String>,
}

/// A replica of a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaReport {
    /// Its node.
    pub node: NodeId,
    /// Where it stands, or why that cannot be said.
    pub log: Result<ReplicaLog, String>,
}

/// A module on its way in.
#[derive(Clone, Debug)]
pub struct Push {
    /// The sha256 that the client computed of the bytes it sends.
    pub digest: Digest,
    /// For people: a file name.
    pub label: String,
    /// The bytes.
    pub bytes: Bytes,
}
