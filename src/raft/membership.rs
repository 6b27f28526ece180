//! Who is in a group: translation between the project's form and the engine's.
//!
//! Committed changes of membership are decoded here, by prost: they came over the network, and the engine's
//! own decoder must not see such bytes (see `message`).

use prost::Message as _;
use raft::eraftpb::{self, ConfChangeTransition, ConfChangeType};
use raft::{Changer, ProgressTracker};

use crate::id::ReplicaId;
use crate::raft::input::MembershipStep;
use crate::storage::entry::Membership;

/// The stored form of a change: what the engine writes, field by field.
#[derive(Clone, PartialEq, prost::Message)]
struct ChangeRow {
    #[prost(int32, tag = "1")]
    transition: i32,
    #[prost(message, repeated, tag = "2")]
    steps: Vec<StepRow>,
}

/// One step of a change.
#[derive(Clone, PartialEq, prost::Message)]
struct StepRow {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    replica: u64,
}

/// What `steps` mean to the engine. Why not, if they cannot be done, is told by `members`, the engine's own
/// rules.
pub(super) fn plan(
    steps: &[MembershipStep],
    members: &ProgressTracker,
    leader: ReplicaId,
) -> Result<eraftpb::ConfChangeV2, String> {
    if steps.is_empty() {
        return Err("there is nothing to change".to_owned());
    }
    let mut change = eraftpb::ConfChangeV2::default();
    for step in steps {
        let (kind, replica) = match *step {
            MembershipStep::AddVoter(replica) => (ConfChangeType::AddNode, replica),
            MembershipStep::AddLearner(replica) => (ConfChangeType::AddLearnerNode, replica),
            MembershipStep::Remove(replica) => (ConfChangeType::RemoveNode, replica),
        };
        if change.changes.iter().any(|other| other.node_id == replica.0) {
            return Err(format!(
                "replica {replica} is named twice: name each once, with what it shall become"
            ));
        }
        if replica.0 == 0 {
            return Err("a replica's id cannot be 0".to_owned());
        }
        if replica == leader && kind != ConfChangeType::AddNode {
            return Err(format!("replica {replica} leads the group: transfer the leadership first"));
        }
        let mut step = eraftpb::ConfChangeSingle { node_id: replica.0, ..Default::default() };
        step.set_change_type(kind);
        change.mut_changes().push(step);
    }
    let mut trial = Changer::new(members);
    let outcome = match change.enter_joint() {
        Some(auto_leave) => trial.enter_joint(auto_leave, &change.changes),
        None => trial.simple(&change.changes),
    };
    outcome.map_err(|e| e.to_string())?;
    Ok(change)
}

/// Reads a committed change. An empty one ends a joint membership.
pub(super) fn read_change(data: &[u8]) -> Result<eraftpb::ConfChangeV2, String> {
    let row = ChangeRow::decode(data).map_err(|e| format!("a change of membership does not decode: {e}"))?;
    let transition = match row.transition {
        0 => ConfChangeTransition::Auto,
        1 => ConfChangeTransition::Implicit,
        2 => ConfChangeTransition::Explicit,
        other => return Err(format!("a change of membership has the unknown transition {other}")),
    };
    let mut change = eraftpb::ConfChangeV2::default();
    change.set_transition(transition);
    for row in row.steps {
        let mut step = eraftpb::ConfChangeSingle { node_id: row.replica, ..Default::default() };
        step.set_change_type(match row.kind {
            0 => ConfChangeType::AddNode,
            1 => ConfChangeType::RemoveNode,
            2 => ConfChangeType::AddLearnerNode,
            other => return Err(format!("a change of membership has a step of the unknown kind {other}")),
        });
        change.mut_changes().push(step);
    }
    Ok(change)
}

/// The engine's form of a membership.
pub(super) fn to_engine(membership: &Membership) -> eraftpb::ConfState {
    eraftpb::ConfState {
        voters: membership.voters.clone(),
        learners: membership.learners.clone(),
        voters_outgoing: membership.voters_outgoing.clone(),
        learners_next: membership.learners_next.clone(),
        auto_leave: membership.auto_leave,
        ..eraftpb::ConfState::default()
    }
}

/// The project's form of a membership. Sorted: the engine keeps sets.
pub(super) fn from_engine(state: &eraftpb::ConfState) -> Membership {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    Membership {
        voters: sorted(&state.voters),
        learners: sorted(&state.learners),
        voters_outgoing: sorted(&state.voters_outgoing),
        learners_next: sorted(&state.learners_next),
        auto_leave: state.auto_leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message as _;

    #[test]
    fn a_change_reads_as_the_engine_wrote_it() {
        let mut change = eraftpb::ConfChangeV2::default();
        change.set_transition(ConfChangeTransition::Explicit);
        let kinds = [ConfChangeType::AddNode, ConfChangeType::RemoveNode, ConfChangeType::AddLearnerNode];
        for (replica, kind) in (u64::MAX - 2..).zip(kinds) {
            let mut step = eraftpb::ConfChangeSingle::default();
            step.set_change_type(kind);
            step.node_id = replica;
            change.mut_changes().push(step);
        }
        assert_eq!(read_change(&change.write_to_bytes().unwrap()).unwrap(), change);
        assert_eq!(read_change(&[]).unwrap(), eraftpb::ConfChangeV2::default());
    }

    #[test]
    fn unknown_changes_are_named() {
        let row = ChangeRow { transition: 0, steps: vec![StepRow { kind: 9, replica: 1 }] };
        assert!(read_change(&row.encode_to_vec()).unwrap_err().contains("kind 9"));
        let row = ChangeRow { transition: 8, steps: vec![] };
        assert!(read_change(&row.encode_to_vec()).unwrap_err().contains("transition 8"));
        assert!(read_change(&[0xff]).is_err());
    }
}
