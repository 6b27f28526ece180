//! Changes of who is in a group.

use super::*;

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
