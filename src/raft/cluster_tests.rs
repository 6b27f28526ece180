//! Several replicas of one group, a perfect network, and disks that sync at once: what changes of membership,
//! snapshots and transfers do when nothing goes wrong, and when one thing does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::id::{GroupId, Index, LogTime, NodeId, ReplicaId, Term};
use crate::machine::batch::Operation;
use crate::raft::input::{GroupStart, Input, MembershipStep, ProposalId, ReadId};
use crate::raft::message::{PeerBody, PeerMessage};
use crate::raft::output::{
    GroupStatus, Output, PeerOut, ProposeError, ReadReady, Role, SnapshotHead, SnapshotWanted,
};
use crate::raft::shard::{Shard, ShardConfig};
use crate::raft::simulation::disk::{Disk, StagedState};
use crate::raft::simulation::state::State;
use crate::storage::entry::{GroupLog, Membership};
use crate::time::Now;

mod leases;
mod membership;
mod mishaps;
mod news;
mod sleep;
mod snapshots;
mod transfers;

const G: GroupId = GroupId(3);
const SLEEP_AFTER: usize = 20;

/// Node `n` has replica `100 + n`.
fn replica(node: u64) -> ReplicaId {
    ReplicaId(100 + node)
}

fn config(node: u64) -> ShardConfig {
    ShardConfig { lag_entries_max: 3, sleep_after_ticks: SLEEP_AFTER, ..ShardConfig::new(NodeId(node), node) }
}

struct Member {
    shard: Shard,
    disk: Disk,
    state: State,
}

struct Cluster {
    members: BTreeMap<u64, Member>,
    now: Now,
    /// Nodes that hear and say nothing.
    down: BTreeSet<u64>,
    packets: VecDeque<(u64, PeerOut)>,
    /// Every message sent, with the node it came from.
    sent: Vec<(u64, PeerOut)>,
    refused: Vec<(ProposalId, ProposeError)>,
    reads: Vec<ReadReady>,
    wanted: Vec<SnapshotWanted>,
    unwanted: Vec<(GroupId, Index)>,
    transferred: Vec<ProposalId>,
}

impl Cluster {
    /// Nodes 1 to `size`; the first `voters` of them have voters of the group. Node 1 leads.
    fn new(size: u64, voters: u64) -> Cluster {
        Cluster::with(size, voters, config)
    }

    /// The same with other settings.
    fn with(size: u64, voters: u64, config: fn(u64) -> ShardConfig) -> Cluster {
        let membership =
            Membership { voters: (1..=voters).map(|n| replica(n).0).collect(), ..Membership::default() };
        let log = GroupLog { membership: (Index(0), membership), ..GroupLog::default() };
        let mut cluster = Cluster {
            members: BTreeMap::new(),
            now: Now { monotonic_ms: 0, wall_ms: 1_000 },
            down: BTreeSet::new(),
            packets: VecDeque::new(),
            sent: Vec::new(),
            refused: Vec::new(),
            reads: Vec::new(),
            wanted: Vec::new(),
            unwanted: Vec::new(),
            transferred: Vec::new(),
        };
        for node in 1..=size {
            let disk = Disk {
                logs: [(G, log.clone())].into(),
                flushed: [(G, State::default())].into(),
                ..Disk::default()
            };
            let shard = Shard::new(config(node));
            cluster.members.insert(node, Member { shard, disk, state: State::default() });
            let start = GroupStart {
                group: G,
                replica: replica(node),
                log: log.clone(),
                applied: Index(0),
                time_floor: LogTime(0),
                nodes: (1..=size).map(|other| (replica(other), NodeId(other))).collect(),
            };
            cluster.give(node, Input::Open(Box::new(start)));
        }
        cluster.give(1, Input::Campaign { group: G });
        cluster.settle();
        assert_eq!(cluster.status(1).standing.role, Role::Leader);
        cluster
    }

    /// One input, and what follows from it on that node.
    fn give(&mut self, node: u64, input: Input) {
        let mut inputs = vec![input];
        while !inputs.is_empty() {
            let member = self.members.get_mut(&node).unwrap();
            let mut out = Output::default();
            member.shard.handle(self.now, inputs, &mut out);
            assert!(out.quarantined.is_empty(), "{:?}", out.quarantined);
            inputs = self.follow(node, out);
        }
    }

    /// Does what an output asks for, at once; what it reports is the next input.
    fn follow(&mut self, node: u64, out: Output) -> Vec<Input> {
        let member = self.members.get_mut(&node).unwrap();
        let mut inputs = Vec::new();
        for write in out.log {
            inputs.push(Input::Persisted { group: G, number: write.number });
            member.disk.sync(write);
        }
        for job in out.apply {
            if job.snapshot.is_some() {
                member.state = member.disk.staged.remove(&G).unwrap().state;
            }
            job.entries.iter().for_each(|entry| member.state.apply(entry));
            member.disk.flushed.insert(G, member.state);
            inputs.push(Input::Applied { group: G, index: member.state.applied });
        }
        for load in out.load {
            let entries = member.disk.load(load);
            inputs.push(Input::Loaded { group: G, from: load.from, entries });
        }
        for message in out.messages {
            self.sent.push((node, message.clone()));
            if !self.down.contains(&node) && !self.down.contains(&message.to.0) {
                self.packets.push_back((node, message));
            }
        }
        self.refused.extend(out.refused);
        self.reads.extend(out.reads);
        self.wanted.extend(out.snapshots);
        self.unwanted.extend(out.unwanted);
        self.transferred.extend(out.transferred);
        inputs
    }

    /// Delivers messages, and lets so much time pass as nodes wait for, until there are none and none does.
    fn settle(&mut self) {
        self.deliver();
        while let Some(due_ms) = self.due_ms() {
            self.now.monotonic_ms = self.now.monotonic_ms.max(due_ms);
            for node in self.members.keys().copied().collect::<Vec<_>>() {
                self.give(node, Input::Due);
            }
            self.deliver();
        }
    }

    fn due_ms(&self) -> Option<u64> {
        self.members.values().filter_map(|member| member.shard.due_ms()).min()
    }

    /// Delivers messages until there are none.
    fn deliver(&mut self) {
        while let Some((from, PeerOut { to, group, message })) = self.packets.pop_front() {
            self.give(to.0, Input::Message { from: NodeId(from), group, message });
        }
    }

    fn tick(&mut self, times: u64) {
        for _ in 0..times {
            self.now.monotonic_ms += 100;
            for node in self.members.keys().copied().collect::<Vec<_>>() {
                if !self.down.contains(&node) {
                    self.give(node, Input::Tick);
                }
            }
            self.settle();
        }
    }

    fn propose(&mut self, node: u64, id: u64) {
        self.begin_proposing(node, id);
        self.settle();
    }

    /// Does not wait for what follows.
    fn begin_proposing(&mut self, node: u64, id: u64) {
        let operation = Operation::command(Bytes::from(format!("command {id}")));
        self.give(node, Input::Propose { group: G, id: ProposalId(id), operation, bytes: 20 });
    }

    fn propose_bytes(&mut self, node: u64, id: u64, bytes: usize) {
        let operation = Operation::command(vec![0; bytes].into());
        self.give(node, Input::Propose { group: G, id: ProposalId(id), operation, bytes });
        self.settle();
    }

    fn change(&mut self, id: u64, steps: &[MembershipStep]) {
        let (id, steps) = (ProposalId(id), steps.to_vec());
        self.give(1, Input::ChangeMembership { group: G, id, steps });
        self.settle();
    }

    fn read(&mut self, node: u64, id: u64, lease: bool) {
        self.give(node, Input::Read { group: G, id: ReadId(id), lease });
    }

    /// The reads answered since the last look.
    fn answered(&mut self) -> Vec<u64> {
        let answered = std::mem::take(&mut self.reads).into_iter().filter(|ready| ready.point.is_ok());
        answered.flat_map(|ready| ready.ids).map(|id| id.0).collect()
    }

    /// The process ends and starts again, with what the disk holds.
    fn restart(&mut self, node: u64) {
        let nodes = self.members.keys().map(|&other| (replica(other), NodeId(other))).collect();
        let member = self.members.get_mut(&node).unwrap();
        member.shard = Shard::new(config(node));
        let (log, applied) = (member.disk.logs[&G].clone(), member.state.applied);
        let time_floor = LogTime(0);
        let start = GroupStart { group: G, replica: replica(node), log, applied, time_floor, nodes };
        self.give(node, Input::Open(Box::new(start)));
    }

    /// What a node says to a message from another's replica in this term.
    fn said_to(&mut self, node: u64, (from, term): (u64, u64), body: PeerBody) -> Vec<PeerBody> {
        self.sent.clear();
        let message = PeerMessage { from: replica(from), to: replica(node), term: Term(term), body };
        self.give(node, Input::Message { from: NodeId(from), group: G, message });
        self.sent.iter().map(|(_, out)| out.message.body.clone()).collect()
    }

    fn refusal(&mut self) -> ProposeError {
        let refused = std::mem::take(&mut self.refused);
        let [(_, error)] = &refused[..] else { panic!("one refusal: {refused:?}") };
        error.clone()
    }

    fn status(&self, node: u64) -> GroupStatus {
        self.members[&node].shard.group_status(G).unwrap()
    }

    fn applied(&self, node: u64) -> Index {
        self.status(node).applied
    }

    /// Voters and learners by node, as a node sees them.
    fn membership(&self, node: u64) -> (Vec<u64>, Vec<u64>) {
        let Membership { voters, learners, voters_outgoing, learners_next, .. } =
            self.status(node).membership;
        assert!(voters_outgoing.is_empty() && learners_next.is_empty(), "no change is half done");
        let nodes = |replicas: Vec<u64>| replicas.into_iter().map(|id| id - 100).collect();
        (nodes(voters), nodes(learners))
    }
}

fn transfer(cluster: &mut Cluster, id: u64, to: ReplicaId) {
    cluster.give(1, Input::Transfer { group: G, id: ProposalId(id), to });
}
