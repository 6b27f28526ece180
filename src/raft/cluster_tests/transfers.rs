//! Leadership that is handed to another replica.

use super::*;

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
