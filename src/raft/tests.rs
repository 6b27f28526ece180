//! A shard with groups of one voter, step by step.

use bytes::Bytes;

use crate::id::{GroupId, Index, LogTime, NodeId, ReplicaId, Term};
use crate::machine::batch::{Batch, Operation};
use crate::raft::input::{GroupStart, Input, ProposalId, ReadId};
use crate::raft::output::{Output, ProposeError, ReadError, ReadReady, Role};
use crate::raft::shard::{Shard, ShardConfig};
use crate::storage::entry::{Entry, EntryKind, GroupLog, HardState, Membership};
use crate::time::Now;

const G: GroupId = GroupId(7);

fn config() -> ShardConfig {
    ShardConfig::new(NodeId(1), 42)
}

fn new_group(group: GroupId) -> GroupStart {
    let membership = Membership { voters: vec![5], ..Membership::default() };
    let log = GroupLog { membership: (Index(0), membership), ..GroupLog::default() };
    GroupStart {
        group,
        replica: ReplicaId(5),
        log,
        applied: Index(0),
        time_floor: LogTime(0),
        nodes: Vec::new(),
    }
}

fn propose(group: GroupId, id: u64) -> Input {
    let operation = Operation::command(Bytes::from(format!("command {id}")));
    Input::Propose { group, id: ProposalId(id), operation, bytes: 20 }
}

fn read(id: u64) -> Input {
    Input::Read { group: G, id: ReadId(id), lease: false }
}

/// A shard and the time of day.
struct Bench {
    shard: Shard,
    now: Now,
}

impl Bench {
    fn new(config: ShardConfig) -> Bench {
        Bench { shard: Shard::new(config), now: Now { monotonic_ms: 0, wall_ms: 1_000 } }
    }

    fn with_group() -> (Bench, Output) {
        let mut bench = Bench::new(config());
        let out = bench.handle([Input::Open(Box::new(new_group(G)))]);
        (bench, out)
    }

    /// A group that has committed and applied its first entry.
    fn serving() -> Bench {
        let (mut bench, out) = Bench::with_group();
        let out = bench.sync(&out);
        bench.apply(&out);
        bench
    }

    fn handle(&mut self, inputs: impl IntoIterator<Item = Input>) -> Output {
        let mut out = Output::default();
        self.shard.handle(self.now, inputs, &mut out);
        out
    }

    fn sync(&mut self, out: &Output) -> Output {
        self.handle(persisted(out))
    }

    fn apply(&mut self, out: &Output) -> Output {
        let last = |job: &crate::raft::ApplyJob| (job.group, job.entries.last().unwrap().index);
        self.handle(out.apply.iter().map(last).map(|(group, index)| Input::Applied { group, index }))
    }

    fn propose(&mut self, ids: std::ops::Range<u64>) -> Output {
        self.handle(ids.map(|id| propose(G, id)))
    }
}

fn persisted(out: &Output) -> Vec<Input> {
    out.log.iter().map(|write| Input::Persisted { group: write.group, number: write.number }).collect()
}

fn ids(ids: std::ops::Range<u64>) -> Vec<ProposalId> {
    ids.map(ProposalId).collect()
}

fn batch_of(entry: &Entry) -> Batch {
    Batch::read(entry.data.clone()).unwrap()
}

#[test]
fn the_only_voter_leads_at_once_and_begins_its_term_with_an_empty_entry() {
    let (mut bench, out) = Bench::with_group();
    let role = out.roles.last().unwrap();
    assert_eq!(
        (role.role, role.term, role.leader, role.sole_voter),
        (Role::Leader, Term(1), Some(NodeId(1)), true)
    );
    let [write] = &out.log[..] else { panic!("one write: {:?}", out.log) };
    assert_eq!(
        write.entries,
        [Entry { index: Index(1), term: Term(1), kind: EntryKind::Batch, data: Bytes::new() }]
    );
    assert_eq!(write.hard_state.unwrap(), HardState { term: Term(1), vote: 5, commit: Index(0) });
    assert!(out.apply.is_empty(), "nothing is applied before it is synced");
    let out = bench.sync(&out);
    assert_eq!(out.apply[0].entries.len(), 1);
    assert!(out.log.is_empty(), "a commit index alone is not worth a write");
}

#[test]
fn commands_of_one_call_share_a_batch_and_those_that_come_during_its_sync_the_next() {
    let mut bench = Bench::serving();
    let first = bench.propose(0..100);
    assert_eq!(first.log.len(), 1);
    assert_eq!(first.log[0].entries.len(), 1);
    assert_eq!((first.proposed[0].index, &first.proposed[0].ids), (Index(2), &ids(0..100)));
    assert_eq!(batch_of(&first.log[0].entries[0]).operations.len(), 100);
    for id in 100..103 {
        assert!(bench.propose(id..id + 1).is_empty(), "the sync of the batch before is under way");
    }
    let second = bench.sync(&first);
    assert_eq!(second.apply[0].entries, first.log[0].entries);
    assert_eq!((second.proposed[0].index, &second.proposed[0].ids), (Index(3), &ids(100..103)));
    let commit = second.log[0].hard_state.unwrap().commit;
    assert_eq!(commit, Index(2), "the commit index rides along");
}

#[test]
fn batches_respect_their_limits_and_the_order_of_commands() {
    let limits = ShardConfig {
        batch_operations_max: 10,
        batch_bytes_max: 100,
        batches_in_flight_max: 99,
        batches_unapplied_max: 99,
        ..config()
    };
    let mut bench = Bench::new(limits);
    bench.handle([Input::Open(Box::new(new_group(G)))]);
    let out = bench.handle((0..12).map(|id| propose(G, id)));
    let sizes: Vec<usize> = out.proposed.iter().map(|batch| batch.ids.len()).collect();
    assert_eq!(sizes, [5, 5, 2], "20 bytes each");
    assert_eq!(out.proposed.iter().flat_map(|batch| batch.ids.clone()).collect::<Vec<_>>(), ids(0..12));
    assert_eq!(out.log.iter().map(|write| write.entries.len()).sum::<usize>(), 3, "in one write");
    assert_eq!(out.log.len(), 1);
    let operation = Operation::command(Bytes::new());
    let out = bench.handle([Input::Propose { group: G, id: ProposalId(50), operation, bytes: 101 }]);
    assert_eq!(out.refused, [(ProposalId(50), ProposeError::TooLarge { bytes: 101, bytes_max: 100 })]);
}

#[test]
fn what_is_held_is_bounded_until_it_is_applied() {
    let limits = ShardConfig { group_held_bytes_max: 3 * 84, ..config() };
    let mut bench = Bench::new(limits);
    let out = bench.handle([Input::Open(Box::new(new_group(G)))]);
    bench.sync(&out);
    let out = bench.propose(0..4);
    assert_eq!(out.refused, [(ProposalId(3), ProposeError::Overloaded { held_bytes: 252, bytes_max: 252 })]);
    let out = bench.sync(&out);
    assert_eq!(bench.propose(4..5).refused.len(), 1, "committed, not applied");
    bench.apply(&out);
    assert_eq!(bench.shard.held_bytes(), 0);
    assert!(bench.propose(5..6).refused.is_empty());
}

#[test]
fn all_groups_together_are_bounded_too() {
    let limits = ShardConfig { held_bytes_max: 100, ..config() };
    let mut bench = Bench::new(limits);
    let other = GroupId(8);
    bench.handle([G, other].map(|group| Input::Open(Box::new(new_group(group)))));
    let out = bench.handle([propose(G, 1), propose(other, 2)]);
    assert_eq!(out.refused, [(ProposalId(2), ProposeError::Overloaded { held_bytes: 84, bytes_max: 100 })]);
    let out = bench.handle([Input::Close(G), propose(other, 3)]);
    assert_eq!(out.refused, [(ProposalId(1), ProposeError::Unknown)], "its bytes are free again");
}

#[test]
fn a_restart_recommits_what_the_log_kept() {
    let mut bench = Bench::serving();
    let out = bench.propose(0..1);
    // The batch reaches the disk, its commit index does not.
    let entries = vec![
        Entry { index: Index(1), term: Term(1), kind: EntryKind::Batch, data: Bytes::new() },
        out.log[0].entries[0].clone(),
    ];
    let stamp = batch_of(&entries[1]).time_ms;
    let mut start = new_group(G);
    start.log.entries = entries.clone();
    start.log.hard_state = HardState { term: Term(1), vote: 5, commit: Index(1) };
    let mut bench = Bench::new(config());
    bench.now.wall_ms = 3;
    let out = bench.handle([Input::Open(Box::new(start)), propose(G, 9)]);
    assert_eq!(out.roles.last().unwrap().term, Term(2));
    assert_eq!(out.apply[0].entries, entries[..1], "known to be committed");
    assert_eq!(out.log[0].entries[0].index, Index(3));
    assert_eq!(out.proposed[0].index, Index(4));
    assert!(batch_of(&out.log[0].entries[1]).time_ms >= stamp, "the wall clock went back, stamps do not");
    let out = bench.sync(&out);
    let applied: Vec<u64> =
        out.apply.iter().flat_map(|job| &job.entries).map(|entry| entry.index.0).collect();
    assert_eq!(applied, [2, 3, 4]);
}

#[test]
fn a_membership_that_was_in_force_tells_what_is_committed() {
    let mut start = new_group(G);
    let empty =
        |index| Entry { index: Index(index), term: Term(1), kind: EntryKind::Batch, data: Bytes::new() };
    start.log.entries = (1..=4).map(empty).collect();
    start.log.hard_state = HardState { term: Term(1), vote: 5, commit: Index(1) };
    start.log.membership = (Index(3), Membership { voters: vec![5, 6], ..Membership::default() });
    let committed = |start: &GroupStart| {
        let mut bench = Bench::new(config());
        bench.handle([Input::Open(Box::new(start.clone()))]);
        bench.shard.group_status(G).unwrap().committed
    };
    assert_eq!(committed(&start), Index(3));
    // A snapshot may come with a membership that is newer than the log that begins behind it.
    start.log.membership.0 = Index(9);
    assert_eq!(committed(&start), Index(4));
}

#[test]
fn a_restart_applies_nothing_twice() {
    let mut start = new_group(G);
    let data = Bytes::from_static(b"\x08\x05");
    start.log.entries = (1..=4)
        .map(|i| Entry { index: Index(i), term: Term(1), kind: EntryKind::Batch, data: data.clone() })
        .collect();
    start.log.hard_state = HardState { term: Term(1), vote: 5, commit: Index(2) };
    start.applied = Index(3);
    let mut bench = Bench::new(config());
    let out = bench.handle([Input::Open(Box::new(start))]);
    assert!(out.apply.is_empty());
    let out = bench.sync(&out);
    assert_eq!(out.apply[0].entries[0].index, Index(4));
}

fn answered(reads: &[ReadReady]) -> Vec<(Vec<ReadId>, Result<Index, ReadError>)> {
    let index = |ready: &ReadReady| ready.point.clone().map(|point| point.index);
    reads.iter().map(|ready| (ready.ids.clone(), index(ready))).collect()
}

#[test]
fn reads_wait_for_the_first_commit_of_the_term_and_then_for_nothing() {
    let (mut bench, first) = Bench::with_group();
    assert!(bench.handle([read(1)]).reads.is_empty());
    let out = bench.sync(&first);
    assert_eq!(answered(&out.reads), [(vec![ReadId(1)], Ok(Index(1)))]);
    let batch = bench.propose(0..1);
    let out = bench.handle([read(2), read(3)]);
    assert_eq!(answered(&out.reads), [(vec![ReadId(2), ReadId(3)], Ok(Index(1)))]);
    bench.sync(&batch);
    assert_eq!(answered(&bench.handle([read(4)]).reads), [(vec![ReadId(4)], Ok(Index(2)))]);
}

#[test]
fn reads_that_cannot_be_served_are_refused_in_time() {
    let (mut bench, _) = Bench::with_group();
    bench.handle([read(1)]);
    bench.now.monotonic_ms = config().wait_ms - 1;
    assert!(bench.handle([Input::Tick]).reads.is_empty());
    bench.now.monotonic_ms += 1;
    let out = bench.handle([Input::Tick]);
    assert_eq!(out.reads[0].point, Err(ReadError::NoLeader { waited_ms: config().wait_ms }));
    let out = bench.handle([Input::Read { group: GroupId(99), id: ReadId(2), lease: false }]);
    assert_eq!(out.reads[0].point, Err(ReadError::UnknownGroup));
}

#[test]
fn an_idle_group_of_one_sleeps_and_keeps_nothing_in_memory() {
    let mut bench = Bench::serving();
    let out = bench.propose(0..10);
    let out = bench.sync(&out);
    bench.apply(&out);
    let status = bench.shard.group_status(G).unwrap();
    assert!(!status.awake && status.serving);
    assert_eq!((status.cache_bytes, status.held_bytes), (0, 0));
    assert_eq!((status.last, status.applied, status.start), (Index(2), Index(2), Index(0)));
    assert!(bench.handle([Input::Tick]).is_empty());
}

#[test]
fn the_log_is_cut_where_it_is_applied_and_no_further() {
    let mut bench = Bench::serving();
    let out = bench.propose(0..1);
    let out = bench.sync(&out);
    let cut = bench.handle([Input::Truncate { group: G, to: Index(9) }]);
    assert_eq!(cut.log[0].truncate, Some((Index(1), Term(1))), "2 is not applied yet");
    bench.apply(&out);
    let cut = bench.handle([Input::Truncate { group: G, to: Index(2) }]);
    assert_eq!(cut.log[0].truncate, Some((Index(2), Term(1))));
    assert!(bench.handle([Input::Truncate { group: G, to: Index(1) }]).is_empty());
    let out = bench.propose(1..2);
    assert_eq!(out.proposed[0].index, Index(3));
}

#[test]
fn a_group_that_breaks_is_fenced_in_and_its_callers_are_told() {
    let mut bench = Bench::serving();
    let other = GroupId(8);
    let out = bench.handle([Input::Open(Box::new(new_group(other)))]);
    bench.sync(&out);
    bench.propose(0..1);
    bench.handle([propose(G, 1)]);
    let lie = Input::Applied { group: G, index: Index(77) };
    let out = bench.handle([propose(G, 2), lie, propose(G, 3), propose(other, 4)]);
    let [(group, reason)] = &out.quarantined[..] else { panic!("{out:?}") };
    assert!(*group == G && reason.contains("77"), "{reason}");
    let refused: Vec<u64> = out.refused.iter().map(|(id, _)| id.0).collect();
    assert_eq!(refused, [1, 2, 0, 3]);
    assert!(
        out.refused.iter().all(|(_, error)| matches!(error, ProposeError::Quarantined(why) if why == reason))
    );
    assert_eq!(out.proposed[0].ids, ids(4..5), "the other group goes on");
    assert_eq!(out.log.len(), 1);
    assert!(bench.shard.group_status(G).is_none());
    let out = bench.handle([read(1), Input::Tick]);
    assert!(matches!(&out.reads[0].point, Err(ReadError::Quarantined(_))));
    let out = bench.handle([Input::Open(Box::new(new_group(G)))]);
    assert_eq!(out.roles.len(), 1, "it can be opened again");
}

#[test]
fn a_start_that_no_sound_node_leaves_behind_is_refused_with_its_reason() {
    let entry = |index, term| Entry {
        index: Index(index),
        term: Term(term),
        kind: EntryKind::Batch,
        data: Bytes::new(),
    };
    let good = || {
        let mut start = new_group(G);
        start.log.start = (Index(2), Term(1));
        start.log.entries = vec![entry(3, 1), entry(4, 2)];
        start.log.hard_state = HardState { term: Term(2), vote: 0, commit: Index(3) };
        start.applied = Index(3);
        start
    };
    type Damage = fn(&mut GroupStart);
    let cases: [(Damage, &str); 8] = [
        (|_| {}, ""),
        (|start| start.replica = ReplicaId(0), "cannot be 0"),
        (|start| start.log.membership.1.voters.clear(), "no membership"),
        (|start| drop(start.log.entries.remove(0)), "entry 4 of term 2 follows entry 2 of term 1"),
        (|start| start.log.entries[0].term = Term(0), "the log is damaged"),
        (|start| start.applied = Index(1), "the state is at index 1, but the log begins after 2"),
        (|start| start.applied = Index(5), "up to 5 were committed, but the log ends at 4"),
        (|start| start.log.hard_state.term = Term(1), "its hard state only knows 1"),
    ];
    for (damage, expected) in cases {
        let mut start = good();
        damage(&mut start);
        let mut bench = Bench::new(config());
        let out = bench.handle([Input::Open(Box::new(start))]);
        let reason = out.quarantined.first().map_or("", |(_, reason)| reason);
        assert!(
            reason.contains(expected) && reason.is_empty() == expected.is_empty(),
            "{reason} / {expected}"
        );
    }
}

#[test]
fn a_group_that_is_closed_answers_everyone_and_ignores_late_reports() {
    let mut bench = Bench::serving();
    let write = bench.propose(0..1);
    bench.propose(1..2);
    let out = bench.handle([Input::Close(G)]);
    assert_eq!(
        out.refused,
        [(ProposalId(1), ProposeError::UnknownGroup), (ProposalId(0), ProposeError::Unknown)]
    );
    let out = bench.handle([Input::Open(Box::new(new_group(G)))]);
    let late = bench.sync(&write);
    assert!(late.is_empty(), "a write of the former life");
    assert!(!bench.sync(&out).apply.is_empty());
}

#[test]
fn a_forgotten_groups_log_is_dropped() {
    let mut bench = Bench::serving();
    let out = bench.handle([Input::Forget(G), propose(G, 1)]);
    assert!(out.log[0].forget);
    assert_eq!(out.refused, [(ProposalId(1), ProposeError::UnknownGroup)]);
}

#[test]
fn the_clock_of_a_group_is_the_stamp_of_its_next_batch() {
    let mut bench = Bench::serving();
    bench.now = Now { monotonic_ms: 250, wall_ms: 77_000_000 };
    assert_eq!(bench.shard.log_time(bench.now, G), Some(LogTime(1_250)));
    let out = bench.propose(0..1);
    assert_eq!(batch_of(&out.log[0].entries[0]).time_ms, 1_250);
}
