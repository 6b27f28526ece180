//! How a group stands on this node: what others ask about it.

use raft::StateRole;

use super::Group;
use crate::id::{Index, LogTime, NodeId, ReplicaId, Term};
use crate::raft::output::{GroupStatus, Role, RoleChange};
use crate::time::Now;

impl Group {
    pub(super) fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether this replica is the only voter.
    pub(super) fn alone(&self) -> bool {
        self.node.raft.prs().is_singleton() && self.node.raft.promotable()
    }

    pub(super) fn has_peers(&self) -> bool {
        self.node.raft.prs().iter().len() > 1
    }

    pub(super) fn leader_node(&self) -> Option<NodeId> {
        match self.node.raft.leader_id {
            raft::INVALID_ID => None,
            own if own == self.replica.0 => Some(self.own_node),
            other => self.nodes.get(&ReplicaId(other)).copied(),
        }
    }

    pub(super) fn standing(&self) -> RoleChange {
        let role = match self.node.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if self.node.raft.promotable() => Role::Follower,
            StateRole::Follower => Role::Learner,
        };
        RoleChange {
            group: self.id,
            term: Term(self.node.raft.term),
            role,
            leader: self.leader_node(),
            sole_voter: self.alone(),
        }
    }

    /// Whether the group waits for time to pass. The only replica does not, once it leads, unless something
    /// is stuck; nor does one that sleeps, or that has no vote and hears of no leader: it will not stand for
    /// election, and owes the leader it had no loyalty any more.
    pub(in crate::raft) fn needs_ticks(&self) -> bool {
        if self.proposals.in_doubt() || !self.reads.is_empty() || self.transferring.is_some() {
            return true;
        }
        let settled = self.alone() && self.leads() && !self.has_peers();
        let raft = &self.node.raft;
        let unled = raft.leader_id == raft::INVALID_ID || raft.election_elapsed >= raft.election_timeout();
        let outside = unled && !raft.promotable();
        !(self.asleep || settled || outside)
    }

    /// What the group holds of commands that are not applied yet.
    pub(in crate::raft) fn held_bytes(&self) -> usize {
        self.proposals.held_bytes()
    }

    /// How many reads wait for a read point.
    pub(in crate::raft) fn reads_waiting(&self) -> usize {
        self.reads.len()
    }

    /// The last index reported as applied.
    pub(in crate::raft) fn applied(&self) -> Index {
        self.applied
    }

    /// What the log's clock shows, if this replica leads.
    pub(in crate::raft) fn log_time(&self, now: Now) -> Option<LogTime> {
        (self.leads() && self.clock.term().0 == self.node.raft.term).then(|| self.clock.read(now))
    }

    /// Everything about the group.
    pub(in crate::raft) fn status(&self) -> GroupStatus {
        let log = &self.node.raft.raft_log;
        GroupStatus {
            replica: self.replica,
            standing: self.standing(),
            serving: self.leads() && self.node.raft.commit_to_current_term(),
            start: log.store.start(),
            last: Index(log.last_index()),
            committed: Index(log.committed),
            applied: self.applied,
            membership: self.membership.1.clone(),
            held_bytes: self.held_bytes(),
            cache_bytes: log.store.bytes(),
            awake: self.awake,
            matched: if self.leads() { self.matched() } else { Vec::new() },
        }
    }

    fn matched(&self) -> Vec<(ReplicaId, Index)> {
        let others = self.node.raft.prs().iter().filter(|(id, _)| **id != self.replica.0);
        let mut matched: Vec<_> = others.map(|(id, p)| (ReplicaId(*id), Index(p.matched))).collect();
        matched.sort_unstable();
        matched
    }
}
