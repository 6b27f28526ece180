//! Groups with nothing to do, and what wakes them.

use super::*;

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
        let [ReadReady { point: Ok(point), .. }] = &cluster.reads[..] else {
            panic!("node {node}: {:?}", cluster.reads)
        };
        assert_eq!(point.index, cluster.applied(1), "node {node}");
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
