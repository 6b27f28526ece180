//! The rows of a group's log, in the project's own words: what `raft` hands to the log thread and gets back
//! at a start.

use bytes::Bytes;

use crate::id::{GroupId, Index, Term};

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A [`Batch`](crate::machine::batch::Batch), or empty: the mark of a new term.
    Batch = 0,
    /// A change of membership, in the Raft engine's own encoding.
    Membership = 1,
}

/// One entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub index: Index,
    /// The term of the leader that made it.
    pub term: Term,
    /// What `data` holds.
    pub kind: EntryKind,
    /// Its bytes.
    pub data: Bytes,
}

/// What a Raft group must remember besides its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// Whom this replica voted for in `term`: a replica's id, 0 for nobody.
    pub vote: u64,
    /// The highest index known to be committed. May lag.
    pub commit: Index,
}

/// Who is in a group: replica ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Those who vote.
    pub voters: Vec<u64>,
    /// Those who follow without a vote.
    pub learners: Vec<u64>,
    /// During a joint change: those who voted before it.
    pub voters_outgoing: Vec<u64>,
    /// During a joint change: those who become learners when it ends.
    pub learners_next: Vec<u64>,
    /// Whether the joint change ends by itself.
    pub auto_leave: bool,
}

/// One group's part of a synced write. Entries replace whatever the log holds from their first index on.
#[derive(Clone, Debug, Default)]
pub struct LogWrite {
    /// The group.
    pub group: GroupId,
    /// Reported back when the write is durable.
    pub number: u64,
    /// New entries, without gaps; may be empty.
    pub entries: Vec<Entry>,
    /// The new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// The new membership as of an applied index, if it changed.
    pub membership: Option<(Index, Membership)>,
    /// Drop everything up to and including this entry (its term goes into the log's new start).
    pub truncate: Option<(Index, Term)>,
    /// The group is gone: drop all of it.
    pub forget: bool,
}

/// What the log holds of a group when the node starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupLog {
    /// The entry before the first one kept: index and term, 0 and 0 if nothing was ever dropped.
    pub start: (Index, Term),
    /// All entries kept, without gaps.
    pub entries: Vec<Entry>,
    /// The last hard state.
    pub hard_state: HardState,
    /// The last membership and the applied index it belongs to.
    pub membership: (Index, Membership),
}
