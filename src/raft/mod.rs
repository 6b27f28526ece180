//! Order: which inputs a group applies, and in which sequence.
//!
//! A [`Shard`] owns many Raft groups and is stepped: inputs go in, an [`Output`] comes out, and nothing
//! happens in between. Here is no task, clock, chance, disk or socket: the same configuration and the same
//! inputs give the same outputs, so that whole clusters run from a seed (see `simulation`).
//!
//! # What the caller owes the shard
//! 0. Take the inputs first and read the clocks after that: a lease is good for a read that had arrived
//!    before the clocks were read, whenever it is answered.
//! 1. Hand over what arrived since the last call, together: what comes in one call shares batches and writes.
//! 2. Give `log` to the log thread, in order; say [`Input::Persisted`] only when a write is synced.
//! 3. Tell everyone about `roles`; after that send `messages` at once: those that had to wait for a sync were
//!    kept back until now. What a replica ceases to be is thus known here before anybody else can act on it.
//! 4. Give `apply` to the group's apply worker, in order; say [`Input::Applied`] when an index is applied.
//! 5. Remember which proposals went into which index (`proposed`), answer them when that index is applied,
//!    and drop those that come back in `refused`: each proposal is either applied at its index or refused,
//!    and its fate is told once.
//! 6. Send the snapshots that are asked for (`snapshots`). One that arrives is staged: kept whole and synced,
//!    but not in force. Say [`Input::SnapshotReceived`]; an apply job that names it puts it in force. If a
//!    group's log begins after its state at a start, the staged snapshot ends there: put it in force, then
//!    open.
//! 7. Say [`Input::Tick`] every `tick_ms`. Groups with nothing to wait for cost nothing then; they rely on
//!    [`Input::NodeSilent`]: nodes must notice each other's silence, because their groups no longer do.
//! 8. Say [`Input::Due`] when the time has come that [`Shard::due_ms`] names after a call.
//!
//! # Layout
//! - [`input`], [`output`]: everything that goes in and comes out
//! - [`shard`]: many groups, who has something to do, the fence around a broken one
//! - `group`: one group around the engine's node: what is written, sent, applied, and when; in its folder how
//!   memberships change, snapshots take the place of logs, leadership moves, groups sleep, how they stand,
//!   and when followers hear what is committed
//! - `unsynced`: what waits for the log thread
//! - `election`: when a follower loses patience
//! - `proposals`: commands from their arrival to their fate
//! - `read`: linearizable read points; `lease`: those that need no round trip, and what voters promise for it
//! - `log_cache`: the part of the log that is in memory, as the engine reads it
//! - `log_sizes`: how large the log is, from any index on
//! - `log_clock`: the stamps of batches
//! - [`message`]: what replicas tell each other
//! - `membership`: who is in a group, and how that changes
//! - `start`: whether the log and the state found at a start fit together
//!
//! The engine is the `raft` crate 0.7; only the files of this folder name it.

pub mod input;
pub mod message;
pub mod output;
pub mod shard;

#[cfg(test)]
mod cluster_tests;
mod election;
mod group;
mod lease;
mod log_cache;
mod log_clock;
mod log_sizes;
mod membership;
mod proposals;
mod read;
#[cfg(test)]
pub(crate) mod simulation;
mod start;
#[cfg(test)]
mod tests;
mod unsynced;

pub use input::{GroupStart, Input, MembershipStep, ProposalId, ReadId};
pub use message::PeerMessage;
pub use output::{
    ApplyJob, GroupStatus, LogLoad, Output, PeerOut, ProposeError, Proposed, ReadError, ReadPoint, ReadReady,
    Role, RoleChange, SnapshotHead, SnapshotWanted,
};
pub use shard::{Shard, ShardConfig};
