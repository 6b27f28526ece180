//! Questions and answers that go astray or come late, leaders that are gone, a restart.

use super::*;

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
    assert!(cluster.reads[0].point.is_ok(), "{:?}", cluster.reads);
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
