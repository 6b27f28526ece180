//! One simulated node: a shard, a disk that syncs late, an apply worker, clocks that run at a speed of their
//! own, and what survives a crash or the loss of the disk.

use std::collections::{BTreeMap, VecDeque};

use crate::id::{GroupId, Index, LogTime, NodeId, ReplicaId, Term};
use crate::raft::input::{GroupStart, Input, ProposalId, ReadId};
use crate::raft::output::{ApplyJob, LogLoad};
use crate::raft::shard::{Shard, ShardConfig};
use crate::raft::simulation::disk::Disk;
use crate::raft::simulation::state::State;
use crate::storage::entry::LogWrite;
use crate::time::Now;

/// What a crash takes away.
pub(super) struct Life {
    pub(super) shard: Shard,
    /// Tells this life from others.
    pub(super) number: u64,
    /// The monotonic clock: it begins with the process.
    monotonic_us: u64,
    next_tick_ms: u64,
    pub(super) inbox: Vec<Input>,
    /// What was taken up with this reading of the clocks when the process was paused, and not done yet.
    pub(super) held: Option<(Now, Vec<Input>)>,
    /// Handed to the log thread, not synced.
    pub(super) unsynced: VecDeque<LogWrite>,
    /// Handed to the apply workers, not applied.
    pub(super) jobs: VecDeque<ApplyJob>,
    pub(super) loads: VecDeque<LogLoad>,
    pub(super) states: BTreeMap<GroupId, State>,
    /// The last entry handed out to be applied.
    pub(super) delivered: BTreeMap<GroupId, Index>,
    /// The last entry that a halted replica passed over.
    pub(super) passed_over: BTreeMap<GroupId, Index>,
    /// Proposals in the log, to be answered when their index is applied.
    pub(super) proposed: BTreeMap<(GroupId, Index, Term), Vec<ProposalId>>,
    /// Proposals without a fate.
    pub(super) open: BTreeMap<ProposalId, Option<(GroupId, Index, Term)>>,
    /// Reads that trust the clocks and were asked since the last call.
    pub(super) asked_by_lease: Vec<ReadId>,
}

pub(super) struct SimNode {
    pub(super) id: NodeId,
    /// Counts how often the node began with an empty disk.
    pub(super) incarnation: u64,
    pub(super) disk: Disk,
    pub(super) life: Option<Life>,
    pub(super) lives: u64,
    /// When a dead node comes back.
    pub(super) back_at_ms: u64,
    /// Until then the process stands still, and its clocks go on.
    pub(super) paused_until_ms: u64,
    /// Until then its disk takes its time.
    pub(super) slow_until_ms: u64,
    /// How many thousandths its monotonic clock is fast; negative: slow.
    pub(super) drift_permille: i64,
    /// How far its wall clock is off.
    pub(super) wall_offset_ms: u64,
    /// Makes the mistake [`Bug::LeaveStaged`](super::Bug).
    pub(super) leaves_staged: bool,
    /// How often a crash had come between a log's new start and the state that belongs to it.
    pub(super) installed_at_start: u64,
    /// What a disk that lies about syncs would really hold.
    pub(super) shadow: Disk,
}

/// Replicas are named by node and incarnation.
const INCARNATION: u64 = 100;

/// The node that a replica lives, or lived, on.
pub(super) fn node_of(replica: ReplicaId) -> NodeId {
    NodeId(replica.0 % INCARNATION)
}

/// The replica of a node that began with an empty disk for the first time.
pub(super) fn first_replica_of(node: NodeId) -> ReplicaId {
    ReplicaId(INCARNATION + node.0)
}

impl SimNode {
    /// A node that was never started.
    pub(super) fn new(id: NodeId, disk: Disk) -> SimNode {
        SimNode {
            id,
            incarnation: 1,
            shadow: disk.clone(),
            disk,
            life: None,
            lives: 0,
            back_at_ms: 0,
            paused_until_ms: 0,
            slow_until_ms: 0,
            drift_permille: 0,
            wall_offset_ms: 0,
            leaves_staged: false,
            installed_at_start: 0,
        }
    }

    /// Its replica of every group.
    pub(super) fn replica(&self) -> ReplicaId {
        ReplicaId(self.incarnation * INCARNATION + self.id.0)
    }

    /// Time passes.
    pub(super) fn pass(&mut self, elapsed_ms: u64) {
        if let Some(life) = &mut self.life {
            life.monotonic_us += elapsed_ms * 1_000u64.saturating_add_signed(self.drift_permille);
        }
    }

    /// The node's clocks.
    pub(super) fn now(&self, world_ms: u64) -> Now {
        let monotonic_ms = self.life.as_ref().map_or(0, |life| life.monotonic_us / 1_000);
        Now { monotonic_ms, wall_ms: world_ms + self.wall_offset_ms }
    }

    /// Says the ticks that are due, after a pause there are many, and what else has waited for its time.
    pub(super) fn tick(&mut self, tick_ms: u64) {
        let Some(life) = &mut self.life else { return };
        let now_ms = life.monotonic_us / 1_000;
        while life.next_tick_ms <= now_ms {
            life.next_tick_ms += tick_ms;
            life.inbox.push(Input::Tick);
        }
        if life.shard.due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            life.inbox.push(Input::Due);
        }
    }

    /// Whether the process stands still.
    pub(super) fn is_paused(&self, world_ms: u64) -> bool {
        self.life.is_some() && self.paused_until_ms > world_ms
    }

    /// Makes good what a crash left undone: a log that begins behind a snapshot needs its state.
    fn install_staged(&mut self) {
        for (group, staged) in std::mem::take(&mut self.disk.staged) {
            let log_start = self.disk.logs[&group].start.0;
            if self.disk.flushed[&group].applied < log_start && !self.leaves_staged {
                assert_eq!(staged.head.index, log_start, "the log begins where the staged snapshot ends");
                self.disk.flushed.insert(group, staged.state);
                self.disk.halted.remove(&group);
                self.installed_at_start += 1;
            }
        }
    }

    /// The process starts with what the disk holds.
    pub(super) fn start(
        &mut self,
        config: ShardConfig,
        replicas: &[(ReplicaId, NodeId)],
        floor: impl Fn(GroupId, Index) -> LogTime,
    ) {
        self.install_staged();
        let mut inbox = Vec::new();
        for (&group, log) in &self.disk.logs {
            let applied = self.disk.flushed[&group].applied;
            inbox.push(Input::Open(Box::new(GroupStart {
                group,
                replica: self.replica(),
                log: log.clone(),
                applied,
                time_floor: floor(group, applied),
                nodes: replicas.to_vec(),
            })));
            if self.disk.halted.contains(&group) {
                inbox.push(Input::Halted { group, halted: true });
            }
        }
        self.lives += 1;
        (self.paused_until_ms, self.slow_until_ms) = (0, 0);
        self.life = Some(Life {
            next_tick_ms: config.tick_ms,
            shard: Shard::new(config),
            number: self.lives,
            monotonic_us: 0,
            inbox,
            held: None,
            unsynced: VecDeque::new(),
            jobs: VecDeque::new(),
            loads: VecDeque::new(),
            states: self.disk.flushed.clone(),
            passed_over: BTreeMap::new(),
            delivered: self.disk.flushed.iter().map(|(group, state)| (*group, state.applied)).collect(),
            proposed: BTreeMap::new(),
            open: BTreeMap::new(),
            asked_by_lease: Vec::new(),
        });
    }
}
