//! The rows of the catalog, and the commands that change them. Part of the log's and the state's format.

use bytes::Bytes;
use prost::Message;

use crate::error::{Fault, REPAIR};
use crate::id::{Digest, GroupId, NodeId, ReplicaId};
use crate::machine::settings::Settings;

/// A module that every node can have.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ModuleRecord {
    /// The sha256 of the component.
    #[prost(bytes = "vec", tag = "1")]
    pub digest: Vec<u8>,
    /// Its size.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Whether it keeps its state in its own memory.
    #[prost(bool, tag = "3")]
    pub resident: bool,
    /// For people: the name of the file it came from.
    #[prost(string, tag = "4")]
    pub label: String,
    /// The log's clock when it was registered.
    #[prost(uint64, tag = "5")]
    pub pushed_ms: u64,
}

/// A machine.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MachineRecord {
    /// Its name, unique among those that exist.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The group that orders its inputs, never used twice.
    #[prost(uint64, tag = "2")]
    pub group: u64,
    /// What it runs: what it was created from, or last upgraded to. Its own log decides; the catalog is told.
    #[prost(bytes = "vec", tag = "3")]
    pub module: Vec<u8>,
    /// Its creator's configuration, kept until it is ready.
    #[prost(bytes = "bytes", tag = "4")]
    pub configuration: Bytes,
    /// The log's clock when it was created.
    #[prost(uint64, tag = "5")]
    pub created_ms: u64,
    /// Whether its first input was applied.
    #[prost(bool, tag = "6")]
    pub ready: bool,
    /// Fuel of each of its inputs. Decides outcomes, so it is fixed here at the creation: replicas and later
    /// starts go by the record, whatever their own settings say.
    #[prost(uint64, tag = "7")]
    pub input_fuel: u64,
    /// The fingerprint of the engine that its inputs run in. A node with another one does not apply them.
    #[prost(string, tag = "8")]
    pub engine: String,
    /// Where its replicas are, and those that are on their way out. The group's leader sees to it that the
    /// group becomes so.
    #[prost(message, repeated, tag = "9")]
    pub replicas: Vec<ReplicaRecord>,
    /// Whom its group began with: the membership before its log's first entry, for ever.
    #[prost(uint64, repeated, tag = "10")]
    pub founders: Vec<u64>,
    /// How many replicas it should have; it has fewer as long as there are fewer nodes.
    #[prost(uint32, tag = "11")]
    pub replicas_wanted: u32,
    /// The settings that it is to begin with, kept until it is ready.
    #[prost(message, optional, tag = "12")]
    pub settings: Option<Settings>,
}

/// A replica of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ReplicaRecord {
    /// Its id, never used twice in the cluster.
    #[prost(uint64, tag = "1")]
    pub replica: u64,
    /// Its node.
    #[prost(uint64, tag = "2")]
    pub node: u64,
    /// Whether the group is to let it go. It serves until then.
    #[prost(bool, tag = "3")]
    pub leaving: bool,
}

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NodeRecord {
    /// The id in its data directory.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// What people call it, unique among those that are there.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where other nodes reach it. Empty for a node without sockets, which is alone.
    #[prost(string, tag = "3")]
    pub peer_address: String,
    /// Where clients reach it.
    #[prost(string, tag = "4")]
    pub client_address: String,
    /// Its replica of the catalog's own group.
    #[prost(uint64, tag = "5")]
    pub replica: u64,
    /// The log's clock when it joined.
    #[prost(uint64, tag = "6")]
    pub joined_ms: u64,
    /// Whether it votes in the catalog's group, once it has caught up.
    #[prost(bool, tag = "7")]
    pub voter: bool,
    /// Whether it is to be let go, as soon as its replicas are.
    #[prost(bool, tag = "8")]
    pub leaving: bool,
    /// The version of the program it last started with.
    #[prost(string, tag = "9")]
    pub version: String,
    /// How old its data directory was when it last said so; 0 if it never did.
    #[prost(uint64, tag = "10")]
    pub age: u64,
    /// In which life of the node that was.
    #[prost(fixed64, tag = "11")]
    pub life: u64,
    /// Where clients of etcd reach it. Empty if it does not serve them.
    #[prost(string, tag = "12")]
    pub etcd_address: String,
}

impl ModuleRecord {
    /// Its digest. A failure is corruption.
    pub fn digest(&self) -> Result<Digest, Fault> {
        digest_of(&self.digest)
    }
}

impl MachineRecord {
    /// The group that orders its inputs.
    pub fn group(&self) -> GroupId {
        GroupId(self.group)
    }

    /// What it runs, as far as the catalog was told. A failure is corruption.
    pub fn module(&self) -> Result<Digest, Fault> {
        digest_of(&self.module)
    }

    /// Its replica on a node.
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        let found = self.replicas.iter().find(|replica| replica.node == node.0);
        found.map(|replica| ReplicaId(replica.replica))
    }

    /// How many replicas it has that are to stay.
    pub fn staying(&self) -> usize {
        self.replicas.iter().filter(|replica| !replica.leaving).count()
    }
}

impl ReplicaRecord {
    /// Its node.
    pub fn node(&self) -> NodeId {
        NodeId(self.node)
    }

    /// Its id.
    pub fn replica(&self) -> ReplicaId {
        ReplicaId(self.replica)
    }
}

impl NodeRecord {
    /// Its id.
    pub fn node(&self) -> NodeId {
        NodeId(self.node)
    }

    /// Its replica of the catalog's group.
    pub fn replica(&self) -> ReplicaId {
        ReplicaId(self.replica)
    }
}

pub(super) fn digest_of(bytes: &[u8]) -> Result<Digest, Fault> {
    let damaged = |_| Fault::new(format!("a catalog row is damaged. {REPAIR}"));
    bytes.try_into().map(Digest).map_err(damaged)
}

/// A command of the catalog.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Command {
    /// Which.
    #[prost(oneof = "Change", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub change: Option<Change>,
}

/// What a command changes.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Change {
    /// A module is on a majority of the nodes. Does nothing if the digest is known.
    #[prost(message, tag = "1")]
    RegisterModule(ModuleRecord),
    /// A machine of this name, module, configuration, fuel, engine and number of replicas; the catalog fills
    /// in the rest and answers with the record.
    #[prost(message, tag = "2")]
    CreateMachine(MachineRecord),
    /// The machine of this group has applied its first input.
    #[prost(uint64, tag = "3")]
    MachineReady(u64),
    /// The machine of this group is gone. Answers nothing if it was gone already.
    #[prost(uint64, tag = "4")]
    RemoveMachine(u64),
    /// A node of this id, name, addresses and version joins, or, if it is known, has moved. The catalog fills
    /// in the rest and answers with the record.
    #[prost(message, tag = "5")]
    AddNode(NodeRecord),
    /// This node is to leave. Its replicas get successors on other nodes, if there are any.
    #[prost(uint64, tag = "6")]
    RemoveNode(u64),
    /// This node is to vote in the catalog's group.
    #[prost(uint64, tag = "7")]
    PromoteNode(u64),
    /// A group has let a replica go.
    #[prost(message, tag = "8")]
    ReplicaGone(ReplicaGone),
    /// A machine was upgraded.
    #[prost(message, tag = "9")]
    MachineUpgraded(MachineUpgraded),
}

/// A machine runs another module than the catalog knew.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MachineUpgraded {
    /// The machine's group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The sha256 of the component.
    #[prost(bytes = "vec", tag = "2")]
    pub module: Vec<u8>,
}

/// A group has let a replica go.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ReplicaGone {
    /// The group; 0 is the catalog's own.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The replica.
    #[prost(uint64, tag = "2")]
    pub replica: u64,
}

impl Change {
    /// The bytes of the command that makes this change.
    pub fn command(self) -> Bytes {
        Command { change: Some(self) }.encode_to_vec().into()
    }
}

/// Why the catalog refuses. The numbers are part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RefusalCode {
    /// The command cannot be read.
    Malformed = 1,
    /// The name breaks the rules.
    BadName = 2,
    /// There is a machine or a node of this name.
    NameTaken = 3,
    /// There is no such module.
    UnknownModule = 4,
    /// There is no such node.
    UnknownNode = 5,
    /// The node was removed, and does not come back under its old id.
    NodeRemoved = 6,
    /// Another node has this address.
    AddressTaken = 7,
    /// The last node cannot go.
    LastNode = 8,
    /// There are as many voters as there may be.
    VotersFull = 9,
}
