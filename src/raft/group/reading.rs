//! Reads: asked of a quorum, or answered by lease.

use super::Group;
use crate::id::{Index, Term};
use crate::raft::input::ReadId;
use crate::raft::message::{PeerBody, PeerMessage};
use crate::raft::output::{ReadError, ReadPoint, ReadReady};
use crate::raft::shard::Turn;
#[cfg(test)]
use crate::raft::simulation::Bug;
use crate::time::Now;

impl Group {
    /// A read that wants a read point.
    pub(in crate::raft) fn read(&mut self, id: ReadId, lease: bool, now: Now) {
        self.wake();
        self.reads.push(id, lease, now.monotonic_ms);
    }

    /// Answers reads, or asks the others whether this replica's leader still leads.
    pub(super) fn issue_reads(&mut self, turn: &mut Turn) {
        let extend = self.answer_by_lease(turn);
        if !self.reads.waiting() && !extend {
            return;
        }
        if self.leads() && self.alone() {
            if self.node.raft.commit_to_current_term() {
                let ids = self.reads.take_all();
                self.answer(ids, Ok(self.read_point(turn.now)), turn);
            }
        } else if self.node.raft.leader_id != raft::INVALID_ID
            // While a round is under way the next one gathers: under load a round answers many.
            && !self.reads.round_under_way()
            && (!self.leads() || self.node.raft.commit_to_current_term())
        {
            let leads_in = if self.leads() { Term(self.node.raft.term) } else { Term(0) };
            let mark = self.reads.issue(leads_in, turn.now.monotonic_ms);
            self.node.read_index(mark);
        }
    }

    /// Answers the reads that trust the clocks, if the lease holds. True if it will end soon and no round is
    /// under way that would extend it.
    pub(super) fn answer_by_lease(&mut self, turn: &mut Turn) -> bool {
        let (term, now_ms) = (Term(self.node.raft.term), turn.now.monotonic_ms);
        if !self.leads() || !self.lease.holds(term, now_ms) {
            return false;
        }
        let ids = self.reads.take_leased();
        let answered = !ids.is_empty();
        self.answer(ids, Ok(self.read_point(turn.now)), turn);
        answered && self.lease.is_aging(now_ms, turn.config.lease_ms()) && !self.reads.round_under_way()
    }

    /// The leader has confirmed a round of reads. One of this leader's own was answered by a quorum.
    pub(super) fn confirm_round(&mut self, mark: &[u8], index: Index, turn: &mut Turn) {
        let Some(round) = self.reads.confirm(mark) else { return };
        let term = Term(self.node.raft.term);
        if self.leads() && round.leads_in == term {
            self.lease.extend(term, round.issued_ms, turn.config.lease_ms());
        }
        let time = self.log_time(turn.now).unwrap_or(round.time);
        let ids = round.ids();
        #[cfg(test)]
        let ids = match turn.config.bug {
            Some(Bug::ReadCoversLater) => ids.into_iter().chain(self.reads.take_all()).collect(),
            _ => ids,
        };
        self.answer(ids, Ok(ReadPoint { index, time }), turn);
    }

    /// The read point of a leader that knows that it is one.
    fn read_point(&self, now: Now) -> ReadPoint {
        let index = Index(self.node.raft.raft_log.committed);
        ReadPoint { index, time: self.log_time(now).unwrap_or_default() }
    }

    pub(super) fn answer(&self, ids: Vec<ReadId>, point: Result<ReadPoint, ReadError>, turn: &mut Turn) {
        if !ids.is_empty() {
            turn.out.reads.push(ReadReady { group: self.id, ids, point });
        }
    }

    /// Whether a follower asks this replica for a read point though it does not lead. 0.7 would pass the
    /// question on in the follower's name, and the leader would believe that the follower lives here and talk
    /// to it no more (found by simulation, seed 3783). The follower asks again when it knows its leader.
    pub(super) fn is_question_for_another(&self, message: &PeerMessage) -> bool {
        matches!(message.body, PeerBody::ReadIndex { .. }) && !self.leads()
    }
}
