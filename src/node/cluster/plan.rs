//! The next step from the membership that a group has to the one that the catalog wants. Pure.
//!
//! Learners first, voters when they have caught up, and nobody is let go before those who are to stay have
//! their votes: so a group that works goes on working at every step.

use crate::id::{Index, ReplicaId};
use crate::raft::{GroupStatus, MembershipStep};

/// A learner that lacks no more entries than this becomes a voter.
const CAUGHT_UP_ENTRIES: u64 = 100;

/// A replica as the catalog wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its id.
    pub replica: ReplicaId,
    /// Whether it is to vote.
    pub voter: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the group is as it should be.
    Done,
    /// Nothing now: somebody has to catch up first, or a change is under way.
    Wait,
    /// Change the membership like this.
    Change(Vec<MembershipStep>),
    /// Have this replica lead, so that the leader can be let go.
    HandOver(ReplicaId),
}

/// The next step for the leader of a group that stands as `status` says.
pub fn next(wanted: &[Wanted], status: &GroupStatus) -> Step {
    let members = &status.membership;
    if !members.voters_outgoing.is_empty() || !members.learners_next.is_empty() {
        return Step::Wait;
    }
    let votes = |replica: ReplicaId| members.voters.contains(&replica.0);
    let follows = |replica: ReplicaId| members.learners.contains(&replica.0);
    let new: Vec<_> = wanted
        .iter()
        .filter(|wanted| !votes(wanted.replica) && !follows(wanted.replica))
        .map(|wanted| MembershipStep::AddLearner(wanted.replica))
        .collect();
    if !new.is_empty() {
        return Step::Change(new);
    }
    let waiting: Vec<ReplicaId> = wanted
        .iter()
        .filter(|wanted| wanted.voter && !votes(wanted.replica))
        .map(|wanted| wanted.replica)
        .collect();
    if let Some(ready) = waiting.iter().find(|replica| lacks(status, **replica) <= CAUGHT_UP_ENTRIES) {
        return Step::Change(vec![MembershipStep::AddVoter(*ready)]);
    }
    if !waiting.is_empty() {
        return Step::Wait;
    }
    let all = members.voters.iter().chain(&members.learners).map(|&id| ReplicaId(id));
    let unwanted: Vec<ReplicaId> =
        all.filter(|replica| wanted.iter().all(|wanted| wanted.replica != *replica)).collect();
    match unwanted.iter().find(|replica| **replica != status.replica) {
        Some(other) => Step::Change(vec![MembershipStep::Remove(*other)]),
        None if unwanted.is_empty() => Step::Done,
        None => successor(wanted, status).map_or(Step::Wait, Step::HandOver),
    }
}

/// Of the voters that are to stay, the one that lacks least of the leader's log.
pub fn successor(wanted: &[Wanted], status: &GroupStatus) -> Option<ReplicaId> {
    let votes = |replica: ReplicaId| status.membership.voters.contains(&replica.0);
    let others = wanted.iter().map(|wanted| wanted.replica);
    let others = others.filter(|replica| *replica != status.replica && votes(*replica));
    others.min_by_key(|replica| lacks(status, *replica))
}

/// How many entries of the leader's log a replica lacks, as far as the leader knows.
fn lacks(status: &GroupStatus, replica: ReplicaId) -> u64 {
    let matched = status.matched.iter().find(|(id, _)| *id == replica).map_or(Index(0), |(_, index)| *index);
    status.last.0.saturating_sub(matched.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{GroupId, Term};
    use crate::raft::{Role, RoleChange};
    use crate::storage::entry::Membership;

    /// Replica 1 leads and has 1,000 entries.
    fn status(voters: &[u64], learners: &[u64], matched: &[(u64, u64)]) -> GroupStatus {
        let standing = RoleChange {
            group: GroupId(1),
            term: Term(1),
            role: Role::Leader,
            leader: None,
            sole_voter: false,
        };
        let membership =
            Membership { voters: voters.to_vec(), learners: learners.to_vec(), ..Membership::default() };
        GroupStatus {
            replica: ReplicaId(1),
            standing,
            serving: true,
            start: Index(0),
            last: Index(1_000),
            committed: Index(1_000),
            applied: Index(1_000),
            membership,
            held_bytes: 0,
            cache_bytes: 0,
            awake: true,
            matched: matched.iter().map(|&(id, index)| (ReplicaId(id), Index(index))).collect(),
        }
    }

    fn wanted(voters: &[u64], learners: &[u64]) -> Vec<Wanted> {
        let of = |voter| move |&id: &u64| Wanted { replica: ReplicaId(id), voter };
        voters.iter().map(of(true)).chain(learners.iter().map(of(false))).collect()
    }

    #[test]
    fn a_new_replica_learns_before_it_votes() {
        let wanted = wanted(&[1, 2], &[]);
        let step = next(&wanted, &status(&[1], &[], &[]));
        assert_eq!(step, Step::Change(vec![MembershipStep::AddLearner(ReplicaId(2))]));
        assert_eq!(next(&wanted, &status(&[1], &[2], &[(2, 10)])), Step::Wait);
        let step = next(&wanted, &status(&[1], &[2], &[(2, 950)]));
        assert_eq!(step, Step::Change(vec![MembershipStep::AddVoter(ReplicaId(2))]));
        assert_eq!(next(&wanted, &status(&[1, 2], &[], &[(2, 1_000)])), Step::Done);
    }

    #[test]
    fn nobody_is_let_go_before_the_others_have_their_votes() {
        let wanted = wanted(&[1, 3], &[]);
        assert_eq!(next(&wanted, &status(&[1, 2], &[3], &[(2, 1_000), (3, 0)])), Step::Wait);
        let step = next(&wanted, &status(&[1, 2, 3], &[], &[]));
        assert_eq!(step, Step::Change(vec![MembershipStep::Remove(ReplicaId(2))]));
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_to_the_one_that_lacks_least() {
        let wanted = wanted(&[2, 3], &[]);
        let step = next(&wanted, &status(&[1, 2, 3], &[], &[(2, 10), (3, 999)]));
        assert_eq!(step, Step::HandOver(ReplicaId(3)));
    }

    #[test]
    fn those_without_a_vote_stay_without() {
        let wanted = wanted(&[1], &[2]);
        assert_eq!(next(&wanted, &status(&[1], &[2], &[(2, 1_000)])), Step::Done);
    }

    #[test]
    fn a_change_that_is_under_way_is_waited_for() {
        let mut joint = status(&[1, 2], &[], &[]);
        joint.membership.voters_outgoing = vec![1];
        assert_eq!(next(&wanted(&[1], &[]), &joint), Step::Wait);
    }

    #[test]
    fn many_new_ones_come_in_one_change() {
        let step = next(&wanted(&[1, 2, 3], &[4]), &status(&[1], &[], &[]));
        let learners = [2, 3, 4].map(|id| MembershipStep::AddLearner(ReplicaId(id)));
        assert_eq!(step, Step::Change(learners.to_vec()));
    }
}
