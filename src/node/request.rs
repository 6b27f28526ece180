//! What callers ask of a node and what they are told: plain values, the same for the library and for gRPC.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::error::Error;
use crate::id::{Digest, GroupId, Index, LogTime, NodeId, ReplicaId, Revision, StateHash, Term};
use crate::machine::outcome::{Outcome, Refusal};

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

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The index of the batch it was applied in: a `Local` read with this `min_index` sees it.
    pub index: Index,
    /// The machine's revision after it.
    pub revision: Revision,
    /// What the guest, or the host, answered.
    pub outcome: Outcome,
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

/// Which of the contract's two worlds a module implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// All state in the host's ordered map.
    Stored,
    /// State in the component's own memory.
    Resident,
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
