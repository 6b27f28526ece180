//! What goes into a shard.

use crate::id::{GroupId, Index, LogTime, NodeId, ReplicaId, Term};
use crate::machine::batch::Operation;
use crate::raft::message::PeerMessage;
use crate::raft::output::SnapshotHead;
use crate::storage::entry::{Entry, GroupLog};

/// A proposal, as the node calls it: unique in the process, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId(pub u64);

/// A read that waits for its read point, as the node calls it: unique in the process, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// Something that happened, for the shard to act on.
#[derive(Debug)]
pub enum Input {
    /// Take up a group from what the log and the state hold of it. A group that cannot go on is quarantined.
    Open(Box<GroupStart>),
    /// Let go of a group; its log stays. Open it again only when its writes and apply jobs have been
    /// reported.
    Close(GroupId),
    /// Let go of a group for ever and drop its log.
    Forget(GroupId),
    /// Put an operation into the group's next batch.
    Propose {
        /// The group.
        group: GroupId,
        /// What `proposed` or `refused` will call it.
        id: ProposalId,
        /// The operation.
        operation: Operation,
        /// Its size, for the limits on batches and on what is held.
        bytes: usize,
    },
    /// The log thread has synced this group's writes up to this number.
    Persisted {
        /// The group.
        group: GroupId,
        /// `LogWrite::number`.
        number: u64,
    },
    /// The apply worker has applied everything up to this index.
    Applied {
        /// The group.
        group: GroupId,
        /// The index.
        index: Index,
    },
    /// The state holds everything up to this index for good: the log may be cut there. The shard keeps what
    /// others need.
    Truncate {
        /// The group.
        group: GroupId,
        /// The last index no longer needed here.
        to: Index,
    },
    /// From which index on may a read that arrived now be served, so that it sees everything acknowledged
    /// before?
    Read {
        /// The group.
        group: GroupId,
        /// What `reads` will call it.
        id: ReadId,
        /// Whether this node's leader may trust the clocks: with a lease that holds it is answered in this
        /// call. Without one, as every other read, when a quorum has confirmed the leader.
        lease: bool,
    },
    /// What another node's replica has to say.
    Message {
        /// The node it came from.
        from: NodeId,
        /// The group.
        group: GroupId,
        /// The message.
        message: PeerMessage,
    },
    /// Change who is in the group. Several steps come into force together, through a joint membership.
    /// Reported in `proposed` under this id, like a batch of one operation; it is done when its index is
    /// applied.
    ChangeMembership {
        /// The group.
        group: GroupId,
        /// What `proposed` or `refused` will call it.
        id: ProposalId,
        /// What to change.
        steps: Vec<MembershipStep>,
    },
    /// On which node another replica lives. Needed before anything can be sent to a replica that never spoke.
    Locate {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
        /// Its node.
        node: NodeId,
    },
    /// Let this voter lead instead. Commands gather meanwhile; after an election timeout it is given up.
    Transfer {
        /// The group.
        group: GroupId,
        /// What `transferred` or `refused` will call it.
        id: ProposalId,
        /// The next leader.
        to: ReplicaId,
    },
    /// Entries that the shard asked for in `Output::load`. None: the log no longer has them.
    Loaded {
        /// The group.
        group: GroupId,
        /// The first index asked for.
        from: Index,
        /// The entries from there on, without gaps; at least one unless the log was cut meanwhile.
        entries: Vec<Entry>,
    },
    /// A transfer that `Output::snapshots` asked for has ended. Say it always, also when it was given up: the
    /// replica gets nothing else until then.
    SnapshotSent {
        /// The group.
        group: GroupId,
        /// The replica it was for.
        to: ReplicaId,
        /// Whether all of it is on the other node's disk.
        arrived: bool,
    },
    /// All of a snapshot has arrived and is on this node's disk for good, but is not in force. Keep it until
    /// an apply job installs it or `Output::unwanted` names it; take no other for this group meanwhile.
    SnapshotReceived {
        /// The group.
        group: GroupId,
        /// The replica that sent it.
        from: ReplicaId,
        /// The term in which it was asked for.
        term: Term,
        /// Where it stands in the log.
        head: SnapshotHead,
        /// The stamp of the last batch that it holds.
        time_floor: LogTime,
        /// Whether it may take the place of the state of a halted replica, although the log needs none. The
        /// caller has stopped applying before `head`, so that nothing newer is lost.
        reseed: bool,
    },
    /// This replica's state is not to be relied on, or is again. Its log and its vote are as good as before;
    /// but it stands for election only when nobody else does. Say [`Input::Applied`] of what is passed over.
    Halted {
        /// The group.
        group: GroupId,
        /// Whether it is so.
        halted: bool,
    },
    /// Stand for election now, without waiting for a timeout.
    Campaign {
        /// The group.
        group: GroupId,
    },
    /// Nothing was heard of a node for a while. Groups asleep that rely on it wake and see for themselves,
    /// each in its own time. Say it once each time a node falls silent.
    NodeSilent(NodeId),
    /// `tick_ms` have passed.
    Tick,
    /// The time has come that [`Shard::due_ms`](crate::raft::Shard::due_ms) named. A little late does no
    /// harm.
    Due,
}

/// A step of a change of membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipStep {
    /// Make it a voter, whatever it was before. A new one should be a learner first, until it has caught up.
    AddVoter(ReplicaId),
    /// Make it a learner, whatever it was before.
    AddLearner(ReplicaId),
    /// Let it go. Drop its data only when the others have applied the change: until then its vote may be
    /// needed.
    Remove(ReplicaId),
}

/// A group as the node finds it when it starts, or makes it.
#[derive(Clone, Debug)]
pub struct GroupStart {
    /// The group.
    pub group: GroupId,
    /// This node's replica. Not 0.
    pub replica: ReplicaId,
    /// What the log holds. A new group has nothing but its first membership, at index 0. If the log begins
    /// after what the state holds, a staged snapshot ends there: install it first.
    pub log: GroupLog,
    /// Up to where the state has applied the log. What comes after is handed out to be applied again.
    pub applied: Index,
    /// The stamp of the last applied batch.
    pub time_floor: LogTime,
    /// On which nodes the other replicas live. More are learned from their messages.
    pub nodes: Vec<(ReplicaId, NodeId)>,
}
