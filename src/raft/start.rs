//! What a group finds at its start: is it what a sound node can have left behind?
//!
//! The log and the state are two databases. Each is consistent by itself; here is checked that they fit
//! together, because the engine would take wrong positions at their word.

use raft::eraftpb;

use crate::error::REPAIR;
use crate::id::{Index, Term};
use crate::raft::input::GroupStart;
use crate::storage::entry::{Entry, EntryKind, HardState};

/// Checks a start, and gives back the hard state to go on from: the commit index on disk lags behind what is
/// known.
pub(super) fn check(start: &GroupStart) -> Result<HardState, String> {
    let log = &start.log;
    if start.replica.0 == 0 {
        return Err("a replica's id cannot be 0".to_owned());
    }
    if log.membership.1.voters.is_empty() {
        return Err(format!("the log holds no membership for the group. {REPAIR}"));
    }
    let last = check_entries(start)?;
    if start.applied < log.start.0 {
        return Err(format!(
            "the state is at index {}, but the log begins after {}: what is between is lost. {REPAIR}",
            start.applied, log.start.0
        ));
    }
    // A membership is in force only when its change is committed, and is written after it; a snapshot's may
    // be newer than the log. A voter that had forgotten it would ask in vain for the vote of a new one that
    // has more entries, but does not know that it is one: it learns that from what the candidate knows to be
    // committed (found by simulation, seed 247).
    let in_force = log.membership.0.min(last.0);
    let known = log.hard_state.commit.max(start.applied).max(in_force);
    if known > last.0 {
        return Err(format!(
            "entries up to {known} were committed, but the log ends at {}: its end is lost. {REPAIR}",
            last.0
        ));
    }
    if log.hard_state.term < last.1 {
        return Err(format!(
            "the log holds an entry of term {}, its hard state only knows {}",
            last.1, log.hard_state.term
        ));
    }
    Ok(HardState { commit: known.max(log.start.0), ..log.hard_state })
}

/// Checks that the entries follow each other, and gives back the last one's index and term.
fn check_entries(start: &GroupStart) -> Result<(Index, Term), String> {
    let mut last = start.log.start;
    for entry in &start.log.entries {
        if entry.index != last.0.next() || entry.term < last.1 {
            return Err(format!(
                "in the log, entry {} of term {} follows entry {} of term {}: the log is damaged",
                entry.index, entry.term, last.0, last.1
            ));
        }
        last = (entry.index, entry.term);
    }
    Ok(last)
}

/// Changes of membership that were applied, but not yet written as the group's membership, when the node
/// stopped.
pub(super) fn late_changes(start: &GroupStart) -> Vec<Entry> {
    let late = start.log.membership.0.next()..=start.applied;
    let change = |entry: &&Entry| entry.kind == EntryKind::Membership && late.contains(&entry.index);
    start.log.entries.iter().filter(change).cloned().collect()
}

/// The engine's form of a hard state.
pub(super) fn to_engine(state: HardState) -> eraftpb::HardState {
    let mut engine = eraftpb::HardState::default();
    (engine.term, engine.vote, engine.commit) = (state.term.0, state.vote, state.commit.0);
    engine
}

/// The project's form of a hard state.
pub(super) fn from_engine(state: &eraftpb::HardState) -> HardState {
    HardState { term: Term(state.term), vote: state.vote, commit: Index(state.commit) }
}
