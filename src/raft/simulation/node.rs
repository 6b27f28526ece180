//! One simulated node: a shard, a disk that syncs late, an apply worker, and what survives a crash.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::id::{GroupId, Index, LogTime, NodeId, ReplicaId, Term};
use crate::raft::input::{GroupStart, Input, ProposalId};
use crate::raft::output::{ApplyJob, LogLoad, SnapshotHead};
use crate::raft::shard::{Shard, ShardConfig};
use crate::storage::entry::{Entry, GroupLog, LogWrite};
use crate::time::Now;

/// A machine that remembers everything it was told, in one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::raft) struct State {
    pub(in crate::raft) applied: Index,
    pub(in crate::raft) hash: u64,
}

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
}

/// What a crash takes away.
pub(in crate::raft) struct Life {
    pub(in crate::raft) shard: Shard,
    pub(in crate::raft) started_ms: u64,
    pub(in crate::raft) next_tick_ms: u64,
    pub(in crate::raft) inbox: Vec<Input>,
    /// Handed to the log thread, not synced.
    pub(in crate::raft) unsynced: VecDeque<LogWrite>,
    /// Handed to the apply workers, not applied.
    pub(in crate::raft) jobs: VecDeque<ApplyJob>,
    pub(in crate::raft) loads: VecDeque<LogLoad>,
    pub(in crate::raft) states: BTreeMap<GroupId, State>,
    /// The last entry handed out to be applied.
    pub(in crate::raft) delivered: BTreeMap<GroupId, Index>,
    /// Proposals in the log, to be answered when their index is applied.
    pub(in crate::raft) proposed: BTreeMap<(GroupId, Index, Term), Vec<ProposalId>>,
    /// Proposals without a fate.
    pub(in crate::raft) open: BTreeMap<ProposalId, Option<(GroupId, Index, Term)>>,
}

pub(in crate::raft) struct SimNode {
    pub(in crate::raft) id: NodeId,
    pub(in crate::raft) disk: Disk,
    pub(in crate::raft) life: Option<Life>,
    /// When a dead node comes back.
    pub(in crate::raft) back_at_ms: u64,
    /// This node's idea of a tick: clocks run at different speeds.
    pub(in crate::raft) tick_ms: u64,
    /// How far its wall clock is off.
    pub(in crate::raft) wall_offset_ms: u64,
    /// Makes the mistake [`Bug::LeaveStaged`](super::Bug).
    pub(in crate::raft) leaves_staged: bool,
    /// How often a crash had come between a log's new start and the state that belongs to it.
    pub(in crate::raft) installed_at_start: u64,
    /// What a disk that lies about syncs would really hold.
    pub(in crate::raft) shadow: Disk,
}

/// The replica of the group on the node.
pub(in crate::raft) fn replica_of(node: NodeId) -> ReplicaId {
    ReplicaId(node.0 + 100)
}

impl State {
    /// The state after one more entry.
    pub(in crate::raft) fn apply(&mut self, entry: &Entry) {
        assert_eq!(entry.index, self.applied.next(), "entries are applied in order");
        let mut hasher = DefaultHasher::new();
        (self.hash, entry.index.0, entry.term.0, &entry.data[..]).hash(&mut hasher);
        *self = State { applied: entry.index, hash: hasher.finish() };
    }
}

impl Disk {
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

impl SimNode {
    /// The node's clocks.
    pub(in crate::raft) fn now(&self, world_ms: u64) -> Now {
        let started_ms = self.life.as_ref().map_or(0, |life| life.started_ms);
        Now { monotonic_ms: world_ms - started_ms, wall_ms: world_ms + self.wall_offset_ms }
    }

    /// Makes good what a crash left undone: a log that begins behind a snapshot needs its state.
    fn install_staged(&mut self) {
        for (group, staged) in std::mem::take(&mut self.disk.staged) {
            let log_start = self.disk.logs[&group].start.0;
            if self.disk.flushed[&group].applied < log_start && !self.leaves_staged {
                assert_eq!(staged.head.index, log_start, "the log begins where the staged snapshot ends");
                self.disk.flushed.insert(group, staged.state);
                self.installed_at_start += 1;
            }
        }
    }

    /// The process starts with what the disk holds.
    pub(in crate::raft) fn start(
        &mut self,
        world_ms: u64,
        config: ShardConfig,
        nodes: &[NodeId],
        floor: impl Fn(GroupId, Index) -> LogTime,
    ) {
        self.install_staged();
        let mut inbox = Vec::new();
        for (&group, log) in &self.disk.logs {
            let applied = self.disk.flushed[&group].applied;
            inbox.push(Input::Open(Box::new(GroupStart {
                group,
                replica: replica_of(self.id),
                log: log.clone(),
                applied,
                time_floor: floor(group, applied),
                nodes: nodes.iter().map(|&node| (replica_of(node), node)).collect(),
            })));
        }
        self.life = Some(Life {
            shard: Shard::new(config),
            started_ms: world_ms,
            next_tick_ms: world_ms + self.tick_ms,
            inbox,
            unsynced: VecDeque::new(),
            jobs: VecDeque::new(),
            loads: VecDeque::new(),
            states: self.disk.flushed.clone(),
            delivered: self.disk.flushed.iter().map(|(group, state)| (*group, state.applied)).collect(),
            proposed: BTreeMap::new(),
            open: BTreeMap::new(),
        });
    }
}
