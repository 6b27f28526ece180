//! What comes out of a shard.

use crate::id::{GroupId, Index, LogTime, NodeId, ReplicaId, Term};
use crate::raft::input::{ProposalId, ReadId};
use crate::raft::message::PeerMessage;
use crate::storage::entry::{Entry, LogWrite, Membership};

/// What the caller has to do after a call. The shard appends; the caller takes out.
#[derive(Debug, Default)]
pub struct Output {
    /// For the log thread, in this order, as one synced write.
    pub log: Vec<LogWrite>,
    /// For the apply workers, in this order.
    pub apply: Vec<ApplyJob>,
    /// Operations that went into the log.
    pub proposed: Vec<Proposed>,
    /// Operations that did not, or whose fate is another than to be applied at the index told before.
    pub refused: Vec<(ProposalId, ProposeError)>,
    /// Transfers of leadership that ended with another replica leading. Those that failed are in `refused`.
    pub transferred: Vec<ProposalId>,
    /// Answers to reads.
    pub reads: Vec<ReadReady>,
    /// For other nodes, in this order for each. May be lost or late, never changed.
    pub messages: Vec<PeerOut>,
    /// Entries wanted back from the log: answered by `Input::Loaded`.
    pub load: Vec<LogLoad>,
    /// Replicas that need what the log no longer has: send each a snapshot, and say `Input::SnapshotSent`
    /// when the transfer has ended, however it did.
    pub snapshots: Vec<SnapshotWanted>,
    /// Staged snapshots (group, index) that have no use: drop them.
    pub unwanted: Vec<(GroupId, Index)>,
    /// Who leads what.
    pub roles: Vec<RoleChange>,
    /// Groups that broke, with the reason. They answer nothing until they are closed and opened again.
    pub quarantined: Vec<(GroupId, String)>,
}

impl Output {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
            && self.apply.is_empty()
            && self.proposed.is_empty()
            && self.refused.is_empty()
            && self.transferred.is_empty()
            && self.reads.is_empty()
            && self.messages.is_empty()
            && self.load.is_empty()
            && self.snapshots.is_empty()
            && self.unwanted.is_empty()
            && self.roles.is_empty()
            && self.quarantined.is_empty()
    }
}

/// Committed entries to apply, without gaps, following those of the group's job before.
#[derive(Debug)]
pub struct ApplyJob {
    /// The group.
    pub group: GroupId,
    /// Install this staged snapshot first, in place of the state. The log begins after it already, so that
    /// after a crash this must be made good before the group is opened. Or, if it reseeds a replica, it ends
    /// within the log: what was passed over after it is applied from there.
    pub snapshot: Option<SnapshotHead>,
    /// The entries. Empty ones and changes of membership move the applied index and do nothing else.
    pub entries: Vec<Entry>,
}

/// Where a snapshot of a group's state stands in the group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The last entry whose effects the state holds.
    pub index: Index,
    /// That entry's term.
    pub term: Term,
    /// Who is in the group, and since which index: that of `index`, or a later one that is committed.
    pub membership: (Index, Membership),
}

/// A replica needs a snapshot. Ask [`Shard::snapshot_head`](crate::raft::Shard::snapshot_head) what goes with
/// the state that is sent. If one is under way to that replica already, let it go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotWanted {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub to: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// The leader's term; comes back in `Input::SnapshotReceived`.
    pub term: Term,
    /// The state at this index or later.
    pub least: Index,
}

/// A batch went into the log. It is applied at this index, or its proposals come back in `refused`.
#[derive(Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The group.
    pub group: GroupId,
    /// The batch's index.
    pub index: Index,
    /// The leader's term.
    pub term: Term,
    /// The proposal of the batch's first operation, its second, and so on.
    pub ids: Vec<ProposalId>,
}

/// Why a proposal will not be answered by its index being applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not done. This replica does not lead; the leader's node, if known, may be asked.
    #[error("this node does not lead the group; {}", match .leader {
        Some(node) => format!("node {node} does"),
        None => "no leader is known at the moment".to_owned(),
    })]
    NotLeader {
        /// Where the leader is.
        leader: Option<NodeId>,
    },
    /// Not done. The group is not open on this node.
    #[error("the group is not on this node")]
    UnknownGroup,
    /// Not done. Too much waits already.
    #[error("{held_bytes} bytes of commands wait already, the limit is {bytes_max}: try again later")]
    Overloaded {
        /// What waits.
        held_bytes: usize,
        /// The limit it would exceed.
        bytes_max: usize,
    },
    /// Not done, and never will be: larger than a batch.
    #[error("the command has {bytes} bytes, a batch holds {bytes_max}")]
    TooLarge {
        /// The operation's size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Not done. A change of membership is under way, or this leader is new and does not know yet; try again.
    #[error("another change of the group's membership is under way: try again when it is done")]
    ChangePending,
    /// Not done, and never will be.
    #[error("the group's membership cannot change like that: {0}")]
    InvalidChange(String),
    /// Not done, and never will be: that replica cannot lead, or leads already.
    #[error("the leadership cannot move like that: {0}")]
    InvalidTransfer(String),
    /// Not done: this replica leads on. It may be tried again.
    #[error("the leadership stays where it is: {0}")]
    TransferFailed(String),
    /// Not done: another leader's entry took its place. It may be proposed again.
    #[error("the leader changed and the command was not kept: send it again")]
    Lost,
    /// Perhaps done: the leader changed, or the group was closed, before the outcome was known.
    #[error("the command is in the log, but it is unknown whether it will be applied")]
    Unknown,
    /// Not done, or unknown if it was reported in `proposed` before: the group broke.
    #[error("the group is in quarantine on this node: {0}")]
    Quarantined(String),
}

/// The answer to one or several reads of a group.
#[derive(Debug, PartialEq, Eq)]
pub struct ReadReady {
    /// The group.
    pub group: GroupId,
    /// The reads.
    pub ids: Vec<ReadId>,
    /// From where on they may be served.
    pub point: Result<ReadPoint, ReadError>,
}

/// From where on a linearizable read may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadPoint {
    /// Serve it once this index is applied.
    pub index: Index,
    /// What the leader's log clock showed after the read had arrived: what ends by then is over for the read,
    /// as it may be for an earlier one on another replica. 0: an older version's leader did not say.
    pub time: LogTime,
}

/// Why a read has no read point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader answered in time.
    #[error("no leader confirmed the read within {waited_ms} ms: try again, perhaps at another node")]
    NoLeader {
        /// How long it waited.
        waited_ms: u64,
    },
    /// The group is not open on this node.
    #[error("the group is not on this node")]
    UnknownGroup,
    /// Too many reads wait already.
    #[error("{held} reads wait already, which is the limit: try again later")]
    Overloaded {
        /// The limit.
        held: usize,
    },
    /// The group broke.
    #[error("the group is in quarantine on this node: {0}")]
    Quarantined(String),
}

/// A message for a replica on another node.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerOut {
    /// The node.
    pub to: NodeId,
    /// The group.
    pub group: GroupId,
    /// The message.
    pub message: PeerMessage,
}

/// Entries wanted back from the log, for a replica that lags further behind than what is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLoad {
    /// The group.
    pub group: GroupId,
    /// The first entry wanted.
    pub from: Index,
    /// The last entry wanted.
    pub to: Index,
    /// How much to read: stop before the entry that exceeds it, but read at least one.
    pub bytes_max: usize,
}

/// What a replica is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Orders the group's inputs.
    Leader,
    /// Follows a leader, and votes.
    Follower,
    /// Stands for election.
    Candidate,
    /// Follows a leader without a vote.
    Learner,
}

/// A replica's standing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleChange {
    /// The group.
    pub group: GroupId,
    /// The term.
    pub term: Term,
    /// What this replica is now.
    pub role: Role,
    /// The node of the leader, if known.
    pub leader: Option<NodeId>,
    /// Whether this replica is the group's only voter.
    pub sole_voter: bool,
}

/// Where a group stands on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// This node's replica.
    pub replica: ReplicaId,
    /// Role, term and leader.
    pub standing: RoleChange,
    /// Whether this replica leads and has committed an entry of its own term, so that it can serve reads.
    pub serving: bool,
    /// The entry before the first one kept in the log.
    pub start: Index,
    /// The last entry.
    pub last: Index,
    /// The last entry known to be committed.
    pub committed: Index,
    /// The last entry reported as applied.
    pub applied: Index,
    /// Who is in the group.
    pub membership: Membership,
    /// Bytes of commands from their arrival until they are applied.
    pub held_bytes: usize,
    /// Bytes of entries in memory.
    pub cache_bytes: usize,
    /// Whether ticks visit the group.
    pub awake: bool,
    /// Of a leader: up to where it knows the others to have its log, synced. Empty on those who do not lead.
    pub matched: Vec<(ReplicaId, Index)>,
}
