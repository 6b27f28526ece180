//! What survives a crash: the log and the state databases of a node, and the snapshot that is staged.
//!
//! Every write is held against what a sound log may be told: no gaps, no committed entry replaced, nothing
//! cut that the state does not hold.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{GroupId, Index, Term};
use crate::raft::output::{LogLoad, SnapshotHead};
use crate::raft::simulation::state::State;
use crate::storage::entry::{Entry, GroupLog, LogWrite};

/// A snapshot that is on disk, but not in force.
#[derive(Clone)]
pub(in crate::raft) struct StagedState {
    pub(in crate::raft) head: SnapshotHead,
    pub(in crate::raft) state: State,
}

/// What survives a crash.
#[derive(Clone, Default)]
pub(in crate::raft) struct Disk {
    /// The log database.
    pub(in crate::raft) logs: BTreeMap<GroupId, GroupLog>,
    /// What the state database holds for good.
    pub(in crate::raft) flushed: BTreeMap<GroupId, State>,
    pub(in crate::raft) staged: BTreeMap<GroupId, StagedState>,
    /// Whose state is not to be relied on.
    pub(in crate::raft) halted: BTreeSet<GroupId>,
}

impl Disk {
    /// A disk on which groups were just made, each with this log.
    pub(in crate::raft) fn new(groups: &[GroupId], log: &GroupLog) -> Disk {
        Disk {
            logs: groups.iter().map(|&group| (group, log.clone())).collect(),
            flushed: groups.iter().map(|&group| (group, State::default())).collect(),
            staged: BTreeMap::new(),
            halted: BTreeSet::new(),
        }
    }

    /// What the log holds at an index: its term, or none below the start and after the end.
    pub(in crate::raft) fn term_at(&self, group: GroupId, index: Index) -> Option<Term> {
        let log = self.logs.get(&group)?;
        if index == log.start.0 {
            return Some(log.start.1);
        }
        let at = index.0.checked_sub(log.start.0.0 + 1)?;
        log.entries.get(at as usize).map(|entry| entry.term)
    }

    /// Whether this entry is here for good: in the log, or so long applied that the log let it go.
    pub(in crate::raft) fn holds(&self, group: GroupId, index: Index, term: Term) -> bool {
        let cut = self.logs.get(&group).is_some_and(|log| index <= log.start.0);
        cut || self.term_at(group, index) == Some(term)
    }

    /// A write reaches the disk.
    pub(in crate::raft) fn sync(&mut self, write: LogWrite) {
        let log = self.logs.get_mut(&write.group).expect("a group writes only after it was made");
        if let Some(first) = write.entries.first() {
            let last = log.entries.last().map_or(log.start.0, |entry| entry.index);
            assert!(first.index > log.start.0 && first.index <= last.next(), "a gap: {first:?} after {last}");
            assert!(first.index > log.hard_state.commit, "{first:?} replaces a committed entry");
            log.entries.truncate((first.index.0 - log.start.0.0 - 1) as usize);
            for (entry, index) in write.entries.iter().zip(first.index.0..) {
                assert_eq!(entry.index.0, index, "entries of a write have no gaps");
            }
            log.entries.extend(write.entries);
        }
        if let Some(state) = write.hard_state {
            assert!(state.term >= log.hard_state.term && state.commit >= log.hard_state.commit);
            log.hard_state = state;
        }
        if let Some((index, membership)) = write.membership {
            assert!(index >= log.membership.0);
            log.membership = (index, membership);
        }
        if let Some((to, term)) = write.truncate {
            let staged = self.staged.get(&write.group).is_some_and(|staged| staged.head.index == to);
            let held = to <= self.flushed[&write.group].applied;
            assert!(held || staged, "the log is cut beyond what the state holds");
            let at = log.entries.iter().position(|entry| entry.index == to);
            match at.filter(|at| log.entries[*at].term == term) {
                Some(at) => drop(log.entries.drain(..=at)),
                None => {
                    assert!(staged, "the log is cut at an entry that it does not hold");
                    log.entries.clear();
                }
            }
            log.start = (to, term);
        }
    }

    /// Entries for a replica that lags behind.
    pub(in crate::raft) fn load(&self, load: LogLoad) -> Vec<Entry> {
        let log = &self.logs[&load.group];
        if load.from <= log.start.0 {
            return Vec::new();
        }
        let from = (load.from.0 - log.start.0.0 - 1) as usize;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.data.len();
            entry.index == load.from || (bytes <= load.bytes_max && entry.index <= load.to)
        };
        log.entries[from..].iter().take_while(fits).cloned().collect()
    }
}
