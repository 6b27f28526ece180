//! What becomes of a replica that is behind the log.

use super::*;

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
