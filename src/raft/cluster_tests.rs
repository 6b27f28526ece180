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

    /// Delivers messages until there are none.
    fn settle(&mut self) {
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
        let operation = Operation::command(Bytes::from(format!("command {id}")));
        self.give(node, Input::Propose { group: G, id: ProposalId(id), operation, bytes: 20 });
        self.settle();
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
        let answered = std::mem::take(&mut self.reads).into_iter().filter(|ready| ready.index.is_ok());
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

#[test]
fn a_voter_is_added_and_counts_from_then_on() {
    let mut cluster = Cluster::new(2, 1);
    cluster.change(1, &[MembershipStep::AddVoter(replica(2))]);
    cluster.tick(3);
    assert_eq!(cluster.membership(1), (vec![1, 2], vec![]));
    assert_eq!(cluster.membership(2), (vec![1, 2], vec![]));
    assert_eq!(cluster.status(2).standing.role, Role::Follower);
    cluster.down.insert(2);
    let before = cluster.applied(1);
    cluster.propose(1, 2);
    assert_eq!(cluster.applied(1), before, "one of two voters commits nothing");
}

#[test]
fn a_learner_follows_without_a_vote_and_is_promoted() {
    let mut cluster = Cluster::new(2, 1);
    cluster.change(1, &[MembershipStep::AddLearner(replica(2))]);
    cluster.tick(3);
    assert_eq!(cluster.membership(2), (vec![1], vec![2]));
    assert_eq!(cluster.status(2).standing.role, Role::Learner);
    cluster.propose(1, 2);
    cluster.tick(3);
    assert_eq!(cluster.applied(2), cluster.applied(1), "it has caught up");
    cluster.down.insert(2);
    let before = cluster.applied(1);
    cluster.propose(1, 3);
    assert_eq!(cluster.applied(1), before.next(), "it is not needed to commit");
    cluster.down.clear();
    cluster.change(4, &[MembershipStep::AddVoter(replica(2))]);
    cluster.tick(3);
    assert_eq!(cluster.membership(2), (vec![1, 2], vec![]));
    assert_eq!(cluster.status(2).standing.role, Role::Follower);
}

#[test]
fn a_replica_is_replaced_in_one_joint_step_that_ends_by_itself() {
    let mut cluster = Cluster::new(4, 3);
    cluster.change(1, &[MembershipStep::AddVoter(replica(4)), MembershipStep::Remove(replica(3))]);
    cluster.tick(5);
    for node in [1, 2, 4] {
        assert_eq!(cluster.membership(node), (vec![1, 2, 4], vec![]), "node {node}");
    }
    cluster.down.extend([3, 2]);
    let before = cluster.applied(1);
    cluster.propose(1, 2);
    assert_eq!(cluster.applied(1), before.next(), "1 and 4 are a majority");
}

#[test]
fn a_leader_does_not_remove_itself() {
    let mut cluster = Cluster::new(2, 2);
    for step in [MembershipStep::Remove(replica(1)), MembershipStep::AddLearner(replica(1))] {
        cluster.change(1, &[step]);
        let refusal = cluster.refusal();
        let ProposeError::InvalidChange(reason) = &refusal else { panic!("{refusal:?}") };
        assert!(reason.contains("transfer the leadership first"), "{reason}");
    }
    assert_eq!(cluster.membership(1), (vec![1, 2], vec![]));
}

#[test]
fn a_change_is_refused_while_another_is_under_way() {
    let mut cluster = Cluster::new(4, 2);
    cluster.down.insert(2);
    cluster.change(1, &[MembershipStep::AddLearner(replica(3))]);
    assert_eq!(cluster.refused, []);
    cluster.change(2, &[MembershipStep::AddLearner(replica(4))]);
    assert_eq!(cluster.refused, [(ProposalId(2), ProposeError::ChangePending)]);
    cluster.refused.clear();
    cluster.down.clear();
    cluster.tick(3);
    cluster.change(3, &[MembershipStep::AddLearner(replica(4))]);
    cluster.tick(3);
    assert_eq!((cluster.membership(1), cluster.refused.len()), ((vec![1, 2], vec![3, 4]), 0));
}

#[test]
fn changes_that_cannot_be_are_refused_with_their_reason() {
    let mut cluster = Cluster::new(3, 2);
    let twice = [MembershipStep::AddLearner(replica(3)), MembershipStep::AddVoter(replica(3))];
    let cases: [(&[MembershipStep], &str); 3] = [
        (&twice, "replica 103 is named twice"),
        (&[], "nothing to change"),
        (&[MembershipStep::AddVoter(ReplicaId(0))], "cannot be 0"),
    ];
    for (steps, expected) in cases {
        cluster.change(1, steps);
        let refusal = cluster.refusal();
        assert!(
            matches!(&refusal, ProposeError::InvalidChange(why) if why.contains(expected)),
            "{refusal:?}"
        );
    }
    cluster.give(
        2,
        Input::ChangeMembership {
            group: G,
            id: ProposalId(9),
            steps: vec![MembershipStep::AddVoter(replica(3))],
        },
    );
    assert_eq!(cluster.refusal(), ProposeError::NotLeader { leader: Some(NodeId(1)) });
}

#[test]
fn nobody_passes_on_anothers_question_and_a_replica_stays_where_it_is() {
    let mut cluster = Cluster::new(3, 3);
    // A question from 3 to 2, as if 2 still led.
    let body = PeerBody::ReadIndex { context: Bytes::from_static(b"mark") };
    let message = PeerMessage { from: replica(3), to: replica(2), term: Term(0), body: body.clone() };
    cluster.sent.clear();
    cluster.give(2, Input::Message { from: NodeId(3), group: G, message });
    assert_eq!(cluster.sent, []);
    // And were it passed on, the leader would not look for 3 on node 2 from then on.
    let message = PeerMessage { from: replica(3), to: replica(1), term: Term(0), body };
    cluster.give(1, Input::Message { from: NodeId(2), group: G, message });
    assert!(cluster.sent.iter().all(|(_, out)| replica(out.to.0) == out.message.to), "{:?}", cluster.sent);
    assert!(cluster.sent.iter().any(|(_, out)| out.to == NodeId(3)));
}

#[test]
fn a_rejection_that_was_overtaken_changes_nothing() {
    let mut cluster = Cluster::new(2, 2);
    (1..9).for_each(|id| cluster.propose(1, id));
    cluster.tick(3);
    let term = cluster.status(1).standing.term;
    let hint = (Index(0), Term(0));
    let body = PeerBody::Rejected { index: Index(1), hint, commit: Index(0) };
    let message = PeerMessage { from: replica(2), to: replica(1), term, body };
    cluster.sent.clear();
    cluster.give(1, Input::Message { from: NodeId(2), group: G, message });
    assert_eq!(cluster.sent, []);
}

#[test]
fn a_read_whose_leader_is_gone_is_asked_again_as_soon_as_there_is_another() {
    let mut cluster = Cluster::new(3, 3);
    cluster.down.insert(1);
    cluster.give(3, Input::Read { group: G, id: ReadId(1), lease: false });
    cluster.settle();
    cluster.give(2, Input::Campaign { group: G });
    cluster.settle();
    // The others believe in the old leader until they have not heard of it for an election timeout.
    let ticks = (1..60).find(|_| {
        cluster.tick(1);
        !cluster.reads.is_empty()
    });
    assert!(ticks.is_some(), "no answer");
    assert!(cluster.reads[0].index.is_ok(), "{:?}", cluster.reads);
}

/// Whom node `n` would vote for: the candidate has everything.
fn request(cluster: &Cluster, trial: bool, transfer: bool) -> PeerBody {
    let GroupStatus { last, standing, .. } = cluster.status(1);
    let at = (last, standing.term);
    PeerBody::RequestVote { trial, last: at, commit: at, transfer }
}

fn grants(said: &[PeerBody]) -> bool {
    said.iter().any(|body| matches!(body, PeerBody::Vote { granted: true, .. }))
}

#[test]
fn a_leader_with_a_lease_answers_at_once_until_the_lease_ends() {
    let mut cluster = Cluster::new(3, 3);
    cluster.propose(1, 1);
    cluster.read(1, 1, true);
    assert!(cluster.answered().is_empty(), "nobody has confirmed the leader yet");
    cluster.settle();
    assert_eq!(cluster.answered(), [1]);
    cluster.down.extend([2, 3]);
    cluster.now.monotonic_ms += 901;
    cluster.read(1, 2, true);
    assert_eq!(cluster.reads[0].index, Ok(cluster.applied(1)));
    assert_eq!(cluster.answered(), [2]);
    cluster.read(1, 3, false);
    cluster.now.monotonic_ms += 1;
    cluster.read(1, 4, true);
    cluster.settle();
    assert!(cluster.answered().is_empty(), "one trusts no clock, for the other the lease has ended");
}

#[test]
fn a_lease_counts_from_the_question_and_not_from_the_answer() {
    let mut cluster = Cluster::new(3, 3);
    cluster.read(1, 1, false);
    cluster.now.monotonic_ms += 500;
    cluster.settle();
    assert_eq!(cluster.answered(), [1]);
    cluster.now.monotonic_ms += 401;
    cluster.read(1, 2, true);
    assert_eq!(cluster.answered(), [2]);
    cluster.now.monotonic_ms += 1;
    cluster.read(1, 3, true);
    assert!(cluster.answered().is_empty());
}

#[test]
fn reads_by_lease_extend_the_lease_before_it_ends() {
    let mut cluster = Cluster::new(3, 3);
    cluster.read(1, 1, true);
    cluster.settle();
    for id in 2..100 {
        cluster.now.monotonic_ms += 100;
        cluster.answered();
        cluster.read(1, id, true);
        assert_eq!(cluster.answered(), [id], "without waiting for anybody");
        cluster.settle();
    }
    let asks = |body: &PeerBody| matches!(body, PeerBody::Heartbeat { context, .. } if !context.is_empty());
    let rounds = cluster.sent.iter().filter(|(_, out)| asks(&out.message.body)).count() / 2;
    assert!((10..=25).contains(&rounds), "{rounds} rounds in ten seconds");
}

#[test]
fn a_follower_asked_for_a_read_by_lease_asks_the_leader() {
    let mut cluster = Cluster::new(3, 3);
    cluster.read(1, 1, true);
    cluster.settle();
    cluster.answered();
    cluster.read(2, 2, true);
    assert!(cluster.answered().is_empty());
    cluster.settle();
    assert_eq!(cluster.answered(), [2]);
}

#[test]
fn a_leader_that_offered_its_place_has_no_lease_even_if_nobody_took_it() {
    let mut cluster = Cluster::new(3, 3);
    cluster.read(1, 1, true);
    cluster.settle();
    cluster.down.insert(3);
    transfer(&mut cluster, 1, replica(3));
    cluster.answered();
    cluster.read(1, 2, true);
    assert!(cluster.answered().is_empty(), "the offer is under way");
    cluster.tick(11);
    assert!(matches!(cluster.refusal(), ProposeError::TransferFailed(_)));
    cluster.tick(3);
    cluster.answered();
    cluster.read(1, 3, true);
    assert!(cluster.answered().is_empty(), "it may still arrive");
    cluster.settle();
    assert_eq!(cluster.answered(), [3]);
}

#[test]
fn a_voter_that_hears_its_leader_votes_for_nobody_but_whom_the_leader_named() {
    let mut cluster = Cluster::new(3, 3);
    cluster.tick(3);
    let term = cluster.status(1).standing.term.0;
    for trial in [true, false] {
        let body = request(&cluster, trial, false);
        assert_eq!(cluster.said_to(2, (3, term + 1), body), []);
    }
    // A later term would make the engine forget its leader, and with it whom it was loyal to.
    let late = PeerBody::HeartbeatReply { commit: Index(0), context: Bytes::new() };
    cluster.said_to(2, (3, term + 1), late);
    assert_eq!(cluster.status(2).standing.term, Term(term + 1));
    let body = request(&cluster, false, false);
    assert_eq!(cluster.said_to(2, (3, term + 1), body.clone()), []);
    cluster.now.monotonic_ms += 1_000;
    assert!(grants(&cluster.said_to(2, (3, term + 1), body)), "its patience is at an end");
    let mut cluster = Cluster::new(3, 3);
    let body = request(&cluster, false, true);
    assert!(grants(&cluster.said_to(2, (3, term + 1), body)), "the leader asked for it");
}

#[test]
fn a_voter_that_was_restarted_waits_an_election_timeout_before_it_votes() {
    for trial in [true, false] {
        let mut cluster = Cluster::new(3, 3);
        let term = cluster.status(1).standing.term.0;
        cluster.tick(20);
        cluster.restart(2);
        let body = request(&cluster, trial, false);
        cluster.now.monotonic_ms += 999;
        assert_eq!(cluster.said_to(2, (3, term + 1), body.clone()), []);
        cluster.give(2, Input::Campaign { group: G });
        assert_eq!(cluster.status(2).standing.role, Role::Follower, "nor does it stand for election itself");
        cluster.now.monotonic_ms += 1;
        assert!(grants(&cluster.said_to(2, (3, term + 1), body)));
    }
    let mut cluster = Cluster::new(3, 3);
    cluster.restart(2);
    let body = request(&cluster, false, true);
    assert!(grants(&cluster.said_to(2, (3, 2), body)), "the leader asked for it");
}

#[test]
fn a_burst_of_ticks_makes_nobody_stand_for_election_early() {
    let mut cluster = Cluster::new(3, 3);
    cluster.tick(3);
    (0..100).for_each(|_| cluster.give(2, Input::Tick));
    assert_eq!(cluster.status(2).standing.role, Role::Follower);
    cluster.now.monotonic_ms += 1_100;
    cluster.give(2, Input::Tick);
    assert_eq!(cluster.status(2).standing.role, Role::Candidate);
}

#[test]
fn the_only_voter_leads_at_once_after_a_restart() {
    let mut cluster = Cluster::new(1, 1);
    cluster.propose(1, 1);
    cluster.restart(1);
    assert_eq!(cluster.status(1).standing.role, Role::Leader);
    cluster.read(1, 1, true);
    assert_eq!(cluster.answered(), [1]);
}

/// A cluster whose node 3 lags behind the start of node 1's log.
fn with_laggard() -> Cluster {
    let mut cluster = Cluster::new(3, 3);
    cluster.down.insert(3);
    (1..20).for_each(|id| cluster.propose(1, id));
    let applied = cluster.applied(1);
    cluster.give(1, Input::Truncate { group: G, to: applied });
    assert_eq!(cluster.status(1).start, Index(applied.0 - 3), "kept for those who lag a little");
    cluster.down.clear();
    cluster
}

/// Stages the state of node 1 on node 3, as the transfer would.
fn stage(cluster: &mut Cluster, wanted: SnapshotWanted) -> SnapshotHead {
    let state = cluster.members[&1].state;
    let head = cluster.members[&1].shard.snapshot_head(G, state.applied).unwrap();
    let staged = StagedState { head: head.clone(), state };
    cluster.members.get_mut(&3).unwrap().disk.staged.insert(G, staged);
    let (from, term, time_floor) = (replica(1), wanted.term, LogTime(1_000));
    let input =
        Input::SnapshotReceived { group: G, from, term, head: head.clone(), time_floor, reseed: false };
    cluster.give(3, input);
    cluster.settle();
    head
}

#[test]
fn the_log_is_kept_for_those_who_lag_by_its_bytes_as_well_as_by_its_entries() {
    let by_bytes = |node| ShardConfig { lag_entries_max: 1_000, lag_bytes_max: 250_000, ..config(node) };
    let mut cluster = Cluster::with(3, 3, by_bytes);
    cluster.down.insert(3);
    (1..20).for_each(|id| cluster.propose_bytes(1, id, 100_000));
    let applied = cluster.applied(1);
    cluster.give(1, Input::Truncate { group: G, to: Index(5) });
    assert_eq!(cluster.status(1).start, Index(5), "no further than the state is durable");
    cluster.give(1, Input::Truncate { group: G, to: applied });
    assert_eq!(cluster.status(1).start, Index(applied.0 - 2), "two of 100,000 bytes fit, three do not");
}

#[test]
fn a_replica_behind_the_log_gets_a_snapshot_and_follows_from_there() {
    let mut cluster = with_laggard();
    cluster.tick(5);
    let wanted = cluster.wanted[0];
    assert_eq!((wanted.to, wanted.node, wanted.least), (replica(3), NodeId(3), cluster.applied(1)));
    assert_eq!(cluster.wanted.len(), 1, "it is asked for once, however long it takes");
    cluster.propose(1, 50);
    let head = stage(&mut cluster, wanted);
    assert_eq!(cluster.status(3).start, head.index, "the log begins behind the snapshot");
    cluster.give(1, Input::SnapshotSent { group: G, to: replica(3), arrived: true });
    cluster.propose(1, 51);
    cluster.tick(5);
    assert_eq!(cluster.members[&3].state, cluster.members[&1].state);
    assert_eq!(cluster.unwanted, []);
    cluster.down.insert(2);
    let before = cluster.applied(1);
    cluster.propose(1, 52);
    assert_eq!(cluster.applied(1), before.next(), "its copies count again");
}

#[test]
fn a_snapshot_that_failed_is_asked_for_again() {
    let mut cluster = with_laggard();
    cluster.tick(5);
    for times in 2..4 {
        cluster.give(1, Input::SnapshotSent { group: G, to: replica(3), arrived: false });
        cluster.tick(5);
        assert_eq!(cluster.wanted.len(), times);
    }
    let wanted = cluster.wanted[2];
    stage(&mut cluster, wanted);
    cluster.tick(5);
    assert_eq!(cluster.members[&3].state, cluster.members[&1].state, "without a word of the transfer's end");
}

#[test]
fn a_snapshot_takes_the_place_of_nothing_newer() {
    let mut cluster = with_laggard();
    cluster.tick(5);
    let wanted = cluster.wanted[0];
    let old = stage(&mut cluster, wanted);
    cluster.propose(1, 60);
    cluster.tick(5);
    let state = cluster.members[&3].state;
    assert!(state.applied > old.index);
    // The same snapshot comes once more, late.
    let (from, term, time_floor) = (replica(1), wanted.term, LogTime(1_000));
    let input =
        Input::SnapshotReceived { group: G, from, term, head: old.clone(), time_floor, reseed: false };
    cluster.give(3, input);
    assert_eq!(cluster.unwanted, [(G, old.index)]);
    assert_eq!(cluster.status(3).applied, state.applied);
    let head = SnapshotHead { index: Index(9_999), ..old };
    let input = Input::SnapshotReceived { group: GroupId(77), from, term, head, time_floor, reseed: false };
    cluster.give(3, input);
    assert_eq!(cluster.unwanted[1], (GroupId(77), Index(9_999)), "a group that is not here");
}

#[test]
fn positions_that_no_snapshot_can_have_get_no_head() {
    let cluster = with_laggard();
    let (shard, applied) = (&cluster.members[&1].shard, cluster.applied(1));
    assert_eq!(shard.snapshot_head(G, applied).unwrap().index, applied);
    assert_eq!(shard.snapshot_head(G, applied.next()), None, "not applied");
    assert_eq!(shard.snapshot_head(G, Index(1)), None, "no longer in the log");
    assert_eq!(shard.snapshot_head(GroupId(77), applied), None);
}

fn transfer(cluster: &mut Cluster, id: u64, to: ReplicaId) {
    cluster.give(1, Input::Transfer { group: G, id: ProposalId(id), to });
}

#[test]
fn leadership_moves_to_the_voter_that_was_named() {
    let mut cluster = Cluster::new(3, 3);
    cluster.tick(3);
    transfer(&mut cluster, 1, replica(3));
    let operation = Operation::command(Bytes::from_static(b"meanwhile"));
    cluster.give(1, Input::Propose { group: G, id: ProposalId(2), operation, bytes: 20 });
    assert_eq!(cluster.refused, [], "it gathers");
    cluster.settle();
    assert_eq!(cluster.status(3).standing.role, Role::Leader);
    assert_eq!(cluster.transferred, [ProposalId(1)]);
    let refused = std::mem::take(&mut cluster.refused);
    let [(ProposalId(2), ProposeError::NotLeader { .. })] = refused[..] else { panic!("{refused:?}") };
    cluster.propose(3, 3);
    cluster.tick(3);
    assert_eq!(cluster.applied(1), cluster.applied(3));
}

#[test]
fn a_transfer_to_a_silent_voter_is_given_up_and_commands_go_on() {
    let mut cluster = Cluster::new(3, 3);
    cluster.tick(3);
    cluster.down.insert(3);
    transfer(&mut cluster, 1, replica(3));
    let before = cluster.applied(1);
    cluster.propose(1, 2);
    assert_eq!(cluster.applied(1), before, "it gathers");
    transfer(&mut cluster, 3, replica(2));
    let refusal = cluster.refusal();
    assert!(
        matches!(&refusal, ProposeError::TransferFailed(why) if why.contains("103 already")),
        "{refusal:?}"
    );
    cluster.tick(11);
    let refusal = cluster.refusal();
    assert!(matches!(&refusal, ProposeError::TransferFailed(why) if why.contains("did not take over")));
    assert_eq!((cluster.applied(1), cluster.transferred.len()), (before.next(), 0));
}

#[test]
fn who_cannot_lead_is_named_in_the_refusal() {
    let mut cluster = Cluster::new(3, 2);
    for (to, expected) in [(replica(1), "leads already"), (replica(3), "not a voter")] {
        transfer(&mut cluster, 1, to);
        let refusal = cluster.refusal();
        assert!(
            matches!(&refusal, ProposeError::InvalidTransfer(why) if why.contains(expected)),
            "{refusal:?}"
        );
    }
    cluster.give(2, Input::Transfer { group: G, id: ProposalId(2), to: replica(2) });
    assert_eq!(cluster.refusal(), ProposeError::NotLeader { leader: Some(NodeId(1)) });
    cluster.give(2, Input::Transfer { group: GroupId(77), id: ProposalId(2), to: replica(2) });
    assert_eq!(cluster.refusal(), ProposeError::UnknownGroup);
}

#[test]
fn a_group_that_is_closed_during_a_transfer_answers_it() {
    let mut cluster = Cluster::new(2, 2);
    cluster.down.insert(2);
    transfer(&mut cluster, 1, replica(2));
    cluster.give(1, Input::Close(G));
    assert_eq!(cluster.refusal(), ProposeError::UnknownGroup);
}

/// Three replicas, one of them a learner, that sleep.
fn asleep() -> Cluster {
    let mut cluster = Cluster::new(4, 3);
    cluster.change(1, &[MembershipStep::AddLearner(replica(4))]);
    cluster.propose(1, 2);
    cluster.tick(SLEEP_AFTER as u64 + 10);
    for node in 1..=4 {
        assert!(!cluster.status(node).awake, "node {node}");
    }
    cluster.sent.clear();
    cluster
}

#[test]
fn a_group_with_nothing_to_do_says_nothing_until_a_command_wakes_it() {
    let mut cluster = asleep();
    cluster.tick(200);
    assert_eq!(cluster.sent, []);
    assert_eq!(cluster.status(1).standing.role, Role::Leader);
    let before = cluster.applied(1);
    cluster.propose(1, 3);
    assert_eq!(cluster.applied(1), before.next(), "at once");
    cluster.tick(3);
    assert!((1..=4).all(|node| cluster.applied(node) == before.next() && cluster.status(node).awake));
    let term = cluster.status(1).standing.term;
    cluster.tick(15);
    assert_eq!(cluster.status(1).standing.term, term, "nobody doubted the leader");
    assert_eq!(cluster.status(1).standing.role, Role::Leader);
    cluster.tick(SLEEP_AFTER as u64);
    assert!((1..=4).all(|node| !cluster.status(node).awake), "and asleep again");
}

#[test]
fn a_read_on_any_replica_wakes_the_group() {
    for node in 1..=4 {
        let mut cluster = asleep();
        cluster.give(node, Input::Read { group: G, id: ReadId(1), lease: false });
        cluster.settle();
        let [ReadReady { index, .. }] = &cluster.reads[..] else {
            panic!("node {node}: {:?}", cluster.reads)
        };
        assert_eq!(*index, Ok(cluster.applied(1)), "node {node}");
    }
}

#[test]
fn those_asleep_choose_another_leader_when_its_node_falls_silent() {
    let mut cluster = asleep();
    cluster.down.insert(1);
    cluster.tick(100);
    assert_eq!(cluster.sent, [], "they do not notice by themselves");
    for node in 2..=4 {
        cluster.give(node, Input::NodeSilent(NodeId(9)));
        assert!(!cluster.status(node).awake, "nobody of the group is there");
        cluster.give(node, Input::NodeSilent(NodeId(1)));
    }
    cluster.tick(60);
    let leaders = (2..=4).filter(|&node| cluster.status(node).standing.role == Role::Leader).count();
    assert_eq!(leaders, 1);
}

#[test]
fn what_the_leader_said_before_it_fell_asleep_wakes_nobody() {
    let mut cluster = asleep();
    let GroupStatus { last, standing, .. } = cluster.status(1);
    let (commit, term) = (last, standing.term);
    let at = (last, term);
    let late = [
        (PeerBody::Heartbeat { commit, context: Bytes::new() }, false),
        (PeerBody::Append { previous: at, entries: Vec::new(), commit }, false),
        (PeerBody::Append { previous: (last.next(), term), entries: Vec::new(), commit }, true),
    ];
    for (body, wakes) in late {
        let message = PeerMessage { from: replica(1), to: replica(4), term, body };
        cluster.give(4, Input::Message { from: NodeId(1), group: G, message });
        assert_eq!(cluster.status(4).awake, wakes);
    }
}

#[test]
fn a_replica_that_lags_keeps_the_group_awake() {
    let mut cluster = Cluster::new(3, 3);
    cluster.down.insert(3);
    cluster.propose(1, 1);
    cluster.tick(SLEEP_AFTER as u64 * 3);
    assert!(cluster.status(1).awake && cluster.status(2).awake);
    // And a word to sleep that does not fit is not obeyed.
    let term = cluster.status(1).standing.term;
    for last in [Index(1), Index(99)] {
        let body = PeerBody::Sleep { last };
        let message = PeerMessage { from: replica(1), to: replica(2), term, body };
        cluster.give(2, Input::Message { from: NodeId(1), group: G, message });
        assert!(cluster.status(2).awake, "{last}");
    }
}
