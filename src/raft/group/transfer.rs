//! The leader steps back for another voter.
//!
//! Commands gather meanwhile, and the lease for reads is gone until the next term. Whoever asked is told once
//! how it ended: another replica leads, or it failed and this one leads on.

use super::Group;
use crate::id::{ReplicaId, Term};
use crate::raft::input::ProposalId;
use crate::raft::output::ProposeError;
use crate::raft::shard::Turn;
#[cfg(test)]
use crate::raft::simulation::Bug;

impl Group {
    /// Another voter is to lead.
    pub(in crate::raft) fn transfer(&mut self, id: ProposalId, to: ReplicaId, turn: &mut Turn) {
        self.wake();
        let voters = &self.membership.1.voters;
        let refusal = if !self.leads() {
            ProposeError::NotLeader { leader: self.leader_node() }
        } else if to == self.replica {
            ProposeError::InvalidTransfer(format!("replica {to} leads already"))
        } else if !voters.contains(&to.0) {
            ProposeError::InvalidTransfer(format!(
                "replica {to} is not a voter of the group; its voters are {voters:?}"
            ))
        } else if let Some((_, other)) = self.transferring {
            ProposeError::TransferFailed(format!("it is on its way to replica {other} already"))
        } else {
            let term = Term(self.node.raft.term);
            #[cfg(test)]
            let term = if turn.config.bug == Some(Bug::KeepLeaseInTransfer) { Term(0) } else { term };
            self.lease.forfeit(term);
            self.node.transfer_leader(to.0);
            self.transferring = Some((id, to));
            return;
        };
        turn.out.refused.push((id, refusal));
    }

    /// Tells how a transfer ended, when it has.
    pub(super) fn end_transfer(&mut self, turn: &mut Turn) {
        let Some((id, to)) = self.transferring else { return };
        if !self.leads() {
            turn.out.transferred.push(id);
        } else if self.node.raft.lead_transferee.is_none() {
            // The engine gives it up after an election timeout, or when that voter is removed.
            let reason = format!("replica {to} did not take over within an election timeout");
            turn.out.refused.push((id, ProposeError::TransferFailed(reason)));
        } else {
            return;
        }
        self.transferring = None;
    }
}
