//! Changes of membership: when one may be proposed, and what follows when it is committed.
//!
//! A change comes into force when it is handed out to be applied, on every replica at the same index. There
//! is never more than one under way; several steps come into force together, through a joint membership.

use raft::{StateRole, eraftpb};

use super::Group;
use crate::id::{Index, Term};
use crate::raft::input::{MembershipStep, ProposalId};
use crate::raft::membership;
use crate::raft::output::{ProposeError, Proposed};
use crate::raft::shard::Turn;

impl Group {
    /// A change of membership is wanted. The engine would make an empty entry of one that comes at the wrong
    /// time.
    pub(in crate::raft) fn change(&mut self, id: ProposalId, steps: &[MembershipStep], turn: &mut Turn) {
        self.wake();
        let raft = &self.node.raft;
        let refusal = if !self.leads() || raft.lead_transferee.is_some() {
            ProposeError::NotLeader { leader: self.leader_node() }
        } else if raft.has_pending_conf() || !self.membership.1.voters_outgoing.is_empty() {
            ProposeError::ChangePending
        } else {
            match membership::plan(steps, raft.prs(), self.replica) {
                Err(reason) => ProposeError::InvalidChange(reason),
                Ok(change) => return self.propose_change(id, change, turn),
            }
        };
        turn.out.refused.push((id, refusal));
    }

    fn propose_change(&mut self, id: ProposalId, change: eraftpb::ConfChangeV2, turn: &mut Turn) {
        let (index, term) = (Index(self.node.raft.raft_log.last_index() + 1), Term(self.node.raft.term));
        self.proposals.sent(index, term, vec![id], 0);
        if self.node.propose_conf_change(Vec::new(), change).is_ok() {
            turn.out.proposed.push(Proposed { group: self.id, index, term, ids: vec![id] });
        } else {
            let refuse = |id| (id, ProposeError::NotLeader { leader: None });
            turn.out.refused.extend(self.proposals.not_sent().into_iter().map(refuse));
        }
    }

    /// Puts a committed change of membership into force; false if it is in force already, or against the
    /// rules, which it then is on every replica.
    pub(super) fn change_membership(&mut self, index: Index, data: &[u8]) -> bool {
        if index <= self.membership.0 {
            return false;
        }
        let change = membership::read_change(data).unwrap_or_else(|reason| panic!("entry {index}: {reason}"));
        let Ok(state) = self.node.apply_conf_change(&change) else { return false };
        self.membership = (index, membership::from_engine(&state));
        if !self.node.raft.promotable() && self.node.raft.state != StateRole::Follower {
            // No longer a voter. The engine would go on to lead, or to stand for election, and break when it
            // wins.
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, raft::INVALID_ID);
        }
        self.set_election_timeout();
        true
    }
}
