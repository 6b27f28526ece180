//! What groups with nothing to do cost: a tick of three nodes that have a replica each of every group.
//!
//! Ticks visit only groups that wait for time to pass, so the rows with sleeping groups must not grow with
//! their number. At ten ticks a second, a row of 2 ms would be 2 % of a core. The row "awake" is what the
//! same groups cost while they exchange heartbeats.

use std::collections::VecDeque;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use statehouse::id::{GroupId, Index, LogTime, NodeId, ReplicaId};
use statehouse::raft::{GroupStart, Input, Output, PeerOut, Shard, ShardConfig};
use statehouse::storage::entry::{GroupLog, Membership};
use statehouse::time::Now;

const NODES: u64 = 3;
const SLEEP_AFTER_TICKS: usize = 10;

/// Three nodes with disks and a network that need no time.
struct Cluster {
    shards: Vec<Shard>,
    groups: u64,
    now: Now,
    packets: VecDeque<(NodeId, PeerOut)>,
}

impl Cluster {
    /// Groups that have chosen a leader each, the nodes in turn, and have committed its first entry.
    fn new(groups: u64, sleep_after_ticks: usize) -> Cluster {
        let config = |node| ShardConfig { sleep_after_ticks, ..ShardConfig::new(NodeId(node), node) };
        let shards = (1..=NODES).map(|node| Shard::new(config(node))).collect();
        let mut cluster =
            Cluster { shards, groups, now: Now { monotonic_ms: 0, wall_ms: 1 }, packets: VecDeque::new() };
        let voters = (1..=NODES).map(replica).map(|replica| replica.0).collect();
        let membership = Membership { voters, ..Membership::default() };
        for group in (0..groups).map(GroupId) {
            for node in 1..=NODES {
                let start = GroupStart {
                    group,
                    replica: replica(node),
                    log: GroupLog { membership: (Index(0), membership.clone()), ..GroupLog::default() },
                    applied: Index(0),
                    time_floor: LogTime(0),
                    nodes: (1..=NODES).map(|node| (replica(node), NodeId(node))).collect(),
                };
                cluster.give(node, Input::Open(Box::new(start)));
            }
            cluster.give(1 + group.0 % NODES, Input::Campaign { group });
            cluster.settle();
        }
        cluster
    }

    /// One input, and all that a node's disk and workers report of it.
    fn give(&mut self, node: u64, input: Input) {
        let mut inputs = vec![input];
        while !inputs.is_empty() {
            let mut out = Output::default();
            self.shards[node as usize - 1].handle(self.now, inputs.drain(..), &mut out);
            let synced = |(group, number)| Input::Persisted { group, number };
            inputs.extend(out.log.iter().map(|write| synced((write.group, write.number))));
            for job in out.apply {
                let last = job.entries.last().expect("a job without a snapshot has entries").index;
                inputs.push(Input::Applied { group: job.group, index: last });
            }
            self.packets.extend(out.messages.into_iter().map(|out| (NodeId(node), out)));
        }
    }

    fn settle(&mut self) {
        while let Some((from, PeerOut { to, group, message })) = self.packets.pop_front() {
            self.give(to.0, Input::Message { from, group, message });
        }
    }

    fn tick(&mut self) {
        self.now.monotonic_ms += 100;
        (1..=NODES).for_each(|node| self.give(node, Input::Tick));
        self.settle();
    }

    fn awake(&self) -> usize {
        let groups = (0..self.groups).map(GroupId);
        let awake = |shard: &Shard, group| shard.group_status(group).is_some_and(|status| status.awake);
        groups.map(|group| self.shards.iter().filter(|shard| awake(shard, group)).count()).sum()
    }
}

fn replica(node: u64) -> ReplicaId {
    ReplicaId(100 + node)
}

fn tick(c: &mut Criterion) {
    let mut rows = c.benchmark_group("tick of three nodes");
    for groups in [10, 1_000, 10_000] {
        let mut cluster = Cluster::new(groups, SLEEP_AFTER_TICKS);
        (0..5 * SLEEP_AFTER_TICKS).for_each(|_| cluster.tick());
        assert_eq!(cluster.awake(), 0, "all groups sleep");
        rows.bench_function(BenchmarkId::new("asleep", groups), |bench| bench.iter(|| cluster.tick()));
        assert_eq!(cluster.awake(), 0, "and nothing woke them");
    }
    let mut cluster = Cluster::new(1_000, 0);
    rows.bench_function(BenchmarkId::new("awake", 1_000), |bench| bench.iter(|| cluster.tick()));
    rows.finish();
}

criterion_group!(benches, tick);
criterion_main!(benches);
