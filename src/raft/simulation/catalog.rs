//! What the catalog does in a real cluster: it says who is in each group, and it replaces a replica whose
//! data is lost by one with another name.

use crate::id::{GroupId, NodeId, ReplicaId};
use crate::raft::input::{Input, MembershipStep, ProposalId};
use crate::raft::output::Role;
use crate::raft::simulation::Bug;
use crate::raft::simulation::disk::Disk;
use crate::raft::simulation::faults::Plot;
use crate::raft::simulation::node::{SimNode, first_replica_of};
use crate::raft::simulation::world::World;
use crate::storage::entry::{GroupLog, Membership};

/// Who comes and goes in a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    /// Nobody.
    Nobody,
    /// Replicas, as chance wants it. Nothing is ever lost then but what was not synced.
    Anybody,
    /// Who loses its disk, for a successor on the same node.
    Successors,
}

/// A replica whose data is lost, until no group has it any more.
pub(super) struct Lost {
    node: NodeId,
    former: ReplicaId,
    /// What it had when that happened: it counted, and will not come back.
    pub(super) disk: Disk,
}

impl World {
    pub(super) fn change_members_or_lose_a_disk(&mut self, victim: NodeId) {
        match self.coming {
            Coming::Nobody => {}
            Coming::Anybody => self.change_membership(),
            // A state that cannot be relied on and a lost disk are two losses at the same time.
            Coming::Successors
                if self.lost.is_none()
                    && !self.groups.iter().any(|&group| self.is_halted_somewhere(group))
                    && self.rng.one_in(2) =>
            {
                // The disk that a snapshot is on its way to, if there is one: whom it was for is gone then.
                // It arrives at the successor.
                let receiver = self.transfers.first_mut().map(|transfer| {
                    transfer.give_up_at_ms += 10_000;
                    transfer.to
                });
                self.lose_disk(receiver.unwrap_or(victim));
            }
            Coming::Successors => {}
        }
    }

    fn change_membership(&mut self) {
        let Some((leader, group)) = self.some_leader() else { return };
        if self.is_halted_somewhere(group) {
            return;
        }
        let steps = (0..1 + self.rng.below(3)).map(|_| {
            let replica = self.some_replica();
            match self.rng.below(5) {
                0 => MembershipStep::AddLearner(replica),
                1 => MembershipStep::Remove(replica),
                _ => MembershipStep::AddVoter(replica),
            }
        });
        let steps = steps.collect();
        self.propose_change(leader, group, steps);
    }

    fn propose_change(&mut self, leader: NodeId, group: GroupId, steps: Vec<MembershipStep>) {
        let id = self.next_proposal(leader);
        self.tell(leader, Input::ChangeMembership { group, id, steps });
    }

    /// Everything on a node is gone. It comes back with an empty disk, under another name.
    fn lose_disk(&mut self, victim: NodeId) {
        if self.nodes[&victim].life.is_some() {
            let back_at_ms = self.now_ms + self.rng.below(3_000);
            self.crash(victim, back_at_ms);
        }
        let fresh = Disk::new(&self.groups, &self.first_log);
        let reuses = self.bug == Some(Bug::ReuseReplica);
        let node = self.node(victim);
        let former = node.replica();
        let disk = std::mem::replace(&mut node.disk, fresh);
        node.incarnation += u64::from(!reuses);
        self.lost = Some(Lost { node: victim, former, disk });
        self.faults.count("disk lost");
    }

    /// The catalog sees to it that the successor of a lost replica takes its place: first as a learner.
    pub(super) fn replace_lost(&mut self) {
        let Some(lost) = &self.lost else { return };
        let (node, former) = (lost.node, lost.former.0);
        let successor = self.nodes[&node].replica();
        if former == successor.0 || self.groups.iter().all(|&group| self.is_replaced(group, former)) {
            self.lost = None;
            self.faults.count("replica replaced");
        } else if self.rng.one_in(20) {
            for group in self.groups.clone() {
                let Some(leader) = self.leader_of(group) else { continue };
                let members = self.oracle.members(group);
                if members.learners.contains(&successor.0) {
                    let steps =
                        vec![MembershipStep::AddVoter(successor), MembershipStep::Remove(ReplicaId(former))];
                    self.propose_change(leader, group, steps);
                } else if !members.voters.contains(&successor.0) {
                    self.propose_change(leader, group, vec![MembershipStep::AddLearner(successor)]);
                }
            }
        }
    }

    /// Whether every disk knows that the group is rid of a replica. Were the next disk lost as soon as one
    /// node knows, the others might still count on both (found by seed 188: a joint membership that lacked
    /// two of three for ever).
    fn is_replaced(&self, group: GroupId, former: u64) -> bool {
        self.nodes.values().all(|node| {
            let members = &node.disk.logs[&group].membership.1;
            members.voters_outgoing.is_empty() && !members.voters.contains(&former)
        })
    }

    /// Whether the replica has, or had when its disk was lost, what `holds` asks of a disk.
    pub(super) fn disk_of(&self, replica: u64) -> Option<&Disk> {
        let lost = self.lost.as_ref().filter(|lost| lost.former.0 == replica).map(|lost| &lost.disk);
        let living = || self.nodes.values().find(|node| node.replica().0 == replica).map(|node| &node.disk);
        lost.or_else(living)
    }

    /// Where all replicas live.
    pub(super) fn replicas(&self) -> Vec<(ReplicaId, NodeId)> {
        self.nodes.values().map(|node| (node.replica(), node.id)).collect()
    }

    /// Nodes that run already learn of a replica that is new.
    pub(super) fn announce(&mut self, id: NodeId) {
        let replica = self.nodes[&id].replica();
        for (&other, &group) in
            self.ids.clone().iter().flat_map(|id| self.groups.iter().map(move |g| (id, g)))
        {
            if let Some(life) = self.nodes.get_mut(&other).and_then(|node| node.life.as_mut()) {
                life.inbox.push(Input::Locate { group, replica, node: id });
            }
        }
    }

    fn some_replica(&mut self) -> ReplicaId {
        let node = self.some_node();
        self.nodes[&node].replica()
    }

    /// A leader of the group, if one believes to be it: any, if several do.
    pub(super) fn leader_of(&mut self, group: GroupId) -> Option<NodeId> {
        let leads = |node: &&SimNode| {
            let status = node.life.as_ref().and_then(|life| life.shard.group_status(group));
            status.is_some_and(|status| status.standing.role == Role::Leader)
        };
        let leaders: Vec<NodeId> = self.nodes.values().filter(leads).map(|node| node.id).collect();
        let at = self.rng.below(leaders.len().max(1) as u64) as usize;
        leaders.get(at).copied()
    }

    /// A leader of some group.
    pub(super) fn some_leader(&mut self) -> Option<(NodeId, GroupId)> {
        let group = self.some_group();
        self.leader_of(group).map(|leader| (leader, group))
    }

    /// A leader is asked to let another lead. Sometimes nobody hears of it any more after that.
    pub(super) fn transfer(&mut self) {
        let to = self.some_replica();
        let Some((leader, group)) = self.some_leader() else { return };
        let id = self.next_proposal(leader);
        self.tell(leader, Input::Transfer { group, id, to });
        if self.rng.one_in(3) {
            let at_ms = self.now_ms + self.rng.below(80);
            self.plots.push((at_ms, Plot::Isolate(leader, at_ms + 3_000)));
            self.faults.count("transfer and cut");
        }
    }

    /// The number of a proposal that a living node is about to get.
    pub(super) fn next_proposal(&mut self, node: NodeId) -> ProposalId {
        self.last_id += 1;
        let id = ProposalId(self.last_id);
        self.life(node).open.insert(id, None);
        id
    }
}

/// The log of a group that was just made, with those who are in it at first.
pub(super) fn first_log(voters: &[NodeId]) -> GroupLog {
    let voters = voters.iter().map(|&node| first_replica_of(node).0).collect();
    let membership = Membership { voters, ..Membership::default() };
    GroupLog { membership: (crate::id::Index(0), membership), ..GroupLog::default() }
}
