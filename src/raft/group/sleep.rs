//! Groups with nothing to do fall asleep: no ticks, no heartbeats, until something happens.
//!
//! A leader sends its group to sleep when every replica has everything, knows that it is committed, and
//! nothing is under way. What wakes a replica: a command or read, any message that asks for something, and
//! word that a node is silent on which the group has a replica. A leader's sleep grants it nothing: reads ask
//! the others as before. A word to sleep that gets lost costs an idle trial election, which wakes all; then
//! they try again.

use raft::{ProgressState, StateRole};

use super::Group;
use crate::id::{Index, NodeId, ReplicaId, Term};
use crate::raft::message::{PeerBody, PeerMessage};
use crate::raft::output::PeerOut;
use crate::raft::shard::Turn;

impl Group {
    /// Something happens: ticks are needed again.
    pub(in crate::raft) fn wake(&mut self) {
        self.idle_ticks = 0;
        if !std::mem::take(&mut self.asleep) || !self.leads() {
            return;
        }
        // The engine would find that nobody spoke for an election timeout, and step down.
        for (_, progress) in self.node.raft.mut_prs().iter_mut() {
            progress.recent_active = true;
        }
    }

    /// A node with a replica of this group no longer speaks. Its word was what everyone relied on.
    pub(in crate::raft) fn wake_for(&mut self, silent: NodeId) {
        let lives_there = |id: &u64| self.nodes.get(&ReplicaId(*id)) == Some(&silent);
        if self.node.raft.prs().iter().any(|(id, _)| lives_there(id)) {
            self.wake();
        }
    }

    /// Counts the ticks without anything to do.
    pub(super) fn rest(&mut self) {
        self.idle_ticks = if self.is_idle() { self.idle_ticks + 1 } else { 0 };
    }

    /// Sends the group to sleep after enough such ticks. Said when all else is sent: a heartbeat that came
    /// after it would wake its receiver.
    pub(super) fn fall_asleep(&mut self, turn: &mut Turn) {
        let due = turn.config.sleep_after_ticks;
        if due == 0 || self.asleep || self.idle_ticks < due || !self.is_idle() {
            return;
        }
        self.asleep = true;
        let (term, body) = (Term(self.node.raft.term), PeerBody::Sleep { last: self.last() });
        for (&to, _) in self.node.raft.prs().iter().filter(|(id, _)| **id != self.replica.0) {
            let to = ReplicaId(to);
            let message = PeerMessage { from: self.replica, to, term, body: body.clone() };
            if let Some(&to) = self.nodes.get(&to) {
                turn.out.messages.push(PeerOut { to, group: self.id, message });
            }
        }
    }

    fn last(&self) -> Index {
        Index(self.node.raft.raft_log.last_index())
    }

    /// Whether this replica leads a group in which everything is done.
    fn is_idle(&self) -> bool {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        let done = |progress: &raft::Progress| {
            progress.state != ProgressState::Snapshot
                && progress.matched == last
                && progress.committed_index == last
        };
        self.leads()
            && self.has_peers()
            && self.own_work_is_done()
            && self.applied.0 == last
            && self.held_bytes() == 0
            && raft.raft_log.committed == last
            && raft.pending_read_count() == 0
            && self.membership.1.voters_outgoing.is_empty()
            && raft.prs().iter().all(|(_, progress)| done(progress))
    }

    fn own_work_is_done(&self) -> bool {
        self.reads.is_empty()
            && !self.proposals.in_doubt()
            && self.unsynced.is_empty()
            && self.transferring.is_none()
    }

    /// The leader says that everything is done. Whoever knows better stays awake.
    pub(super) fn sleep_with(&mut self, leader: ReplicaId, term: Term, last: Index) {
        let raft = &self.node.raft;
        let follows = raft.state == StateRole::Follower && (raft.term, raft.leader_id) == (term.0, leader.0);
        let complete = self.last() == last && raft.raft_log.committed == last.0;
        if follows && complete && self.own_work_is_done() {
            self.asleep = true;
        }
    }

    /// Whether a message wakes its receiver. Answers do not: they were under way when the group fell asleep.
    /// Nor does what the leader that is followed says, if it is nothing new: it may be late, and who it wakes
    /// would be alone.
    pub(super) fn wakes(&self, message: &PeerMessage) -> bool {
        let raft = &self.node.raft;
        let of_leader = (raft.term, raft.leader_id) == (message.term.0, message.from.0);
        match &message.body {
            PeerBody::Appended { .. }
            | PeerBody::HeartbeatReply { .. }
            | PeerBody::ReadIndexReply { .. }
            | PeerBody::Vote { .. }
            | PeerBody::Sleep { .. } => false,
            PeerBody::Heartbeat { .. } => !of_leader,
            PeerBody::Append { previous, entries, commit } => {
                let end = previous.0.0 + entries.len() as u64;
                !of_leader || end > self.last().0 || commit.0 > raft.raft_log.committed
            }
            _ => true,
        }
    }
}
