//! Replicas whose state is not to be relied on: they keep their log and their vote, pass over what they would
//! apply, and get the state of another replica in place of their own.

use crate::id::{GroupId, NodeId, ReplicaId};
use crate::raft::input::Input;
use crate::raft::output::{ProposeError, Role, SnapshotHead, SnapshotWanted};
use crate::raft::simulation::Bug;
use crate::raft::simulation::catalog::Coming;
use crate::raft::simulation::disk::Disk;
use crate::raft::simulation::tenant::Fate;
use crate::raft::simulation::world::World;
use crate::storage::entry::Entry;

impl World {
    /// A replica's state goes wrong, and its node notices: durably, before anything else. One at a time in
    /// each group, because somebody must have the state.
    pub(super) fn halt(&mut self, victim: NodeId) {
        let (group, bit) = (self.some_group(), self.rng.next());
        let members = self.oracle.members(group);
        let replica = self.nodes[&victim].replica();
        let is_member = members.voters.contains(&replica.0) || members.learners.contains(&replica.0);
        if !is_member
            || members.voters.len() < 2
            || !members.voters_outgoing.is_empty()
            || self.lost.is_some()
            || self.is_halted_somewhere(group)
            // Chance makes voters of replicas that have nothing yet, and then nobody else has the state
            // (found by seed 274). The catalog never does.
            || self.coming == Coming::Anybody
        {
            return;
        }
        let Some(applied) = self.nodes[&victim].life.as_ref().map(|life| life.states[&group].applied) else {
            return;
        };
        // Somebody else must be able to go on from there: a new voter may have nothing yet (found by seed
        // 131).
        let others = members.voters.iter().filter(|voter| **voter != replica.0);
        let has_log = |disk: &Disk| disk.term_at(group, applied).is_some();
        if applied.0 == 0 || !others.filter_map(|voter| self.disk_of(*voter)).any(has_log) {
            return;
        }
        let node = self.nodes.get_mut(&victim).unwrap();
        let Some(life) = node.life.as_mut() else { return };
        let state = life.states.get_mut(&group).unwrap();
        state.flip(bit);
        node.disk.flushed.insert(group, *state);
        node.disk.halted.insert(group);
        life.inbox.push(Input::Halted { group, halted: true });
        self.faults.count("halted");
    }

    /// Whether some replica of the group waits for another state.
    pub(super) fn is_halted_somewhere(&self, group: GroupId) -> bool {
        self.nodes.values().any(|node| node.disk.halted.contains(&group))
    }

    /// What a node does for its halted replicas: those that lead hand over, the others ask the leader for its
    /// state.
    pub(super) fn tend_halted(&mut self) {
        let halted = |id: &NodeId| {
            let node = &self.nodes[id];
            let awake = node.life.is_some() && !node.is_paused(self.now_ms);
            let groups = node.disk.halted.iter().filter(move |_| awake);
            groups.map(|group| (node.id, *group)).collect::<Vec<_>>()
        };
        let all: Vec<(NodeId, GroupId)> = self.ids.iter().flat_map(halted).collect();
        for (id, group) in all {
            if self.rng.one_in(20) {
                let status = self.life(id).shard.group_status(group);
                match status.map(|status| status.standing.role) {
                    Some(Role::Leader) => self.hand_over(id, group),
                    Some(_) => self.reseed(id, group),
                    None => {}
                }
            }
        }
    }

    fn hand_over(&mut self, from: NodeId, group: GroupId) {
        self.faults.count("halted leader");
        let own = self.nodes[&from].replica();
        let voters = &self.oracle.members(group).voters;
        let other = |replica: &ReplicaId| *replica != own && voters.contains(&replica.0);
        let others: Vec<ReplicaId> =
            self.replicas().into_iter().map(|(replica, _)| replica).filter(other).collect();
        if !others.is_empty() {
            let to = others[self.rng.below(others.len() as u64) as usize];
            let id = self.next_proposal(from);
            self.tell(from, Input::Transfer { group, id, to });
        }
    }

    /// The leader's state goes to a replica that wants it, if it is newer than where that one stopped.
    fn reseed(&mut self, to: NodeId, group: GroupId) {
        let under_way =
            self.transfers.iter().any(|other| other.reseed && (other.to, other.group) == (to, group));
        let Some(from) = self.leader_of(group).filter(|from| *from != to && !under_way) else { return };
        let stopped = self.life(to).states[&group].applied;
        let leader = self.life(from);
        let Some(status) = leader.shard.group_status(group) else { return };
        if leader.states[&group].applied > stopped {
            let (receiver, term) = (self.nodes[&to].replica(), status.standing.term);
            let wanted = SnapshotWanted { group, to: receiver, node: to, term, least: stopped };
            self.post_state(from, wanted, true);
        }
    }

    /// A staged state takes the place of the one there is, and what was passed over since is applied to it.
    pub(super) fn install(&mut self, id: NodeId, group: GroupId, head: &SnapshotHead) {
        let hasty = self.bug == Some(Bug::HastyReseed);
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life.as_mut().unwrap();
        let state = life.states.get_mut(&group).unwrap();
        let staged = node.disk.staged.remove(&group).expect("what is to be installed is staged");
        assert_eq!(staged.head, *head);
        assert!(head.index > state.applied, "a snapshot takes the place of a newer state");
        *state = staged.state;
        node.disk.flushed.insert(group, staged.state);
        let passed_over = life.passed_over.remove(&group).unwrap_or_default();
        for entry in &node.disk.logs[&group].entries {
            if state.applied < entry.index && entry.index <= passed_over {
                state.apply(entry);
            }
        }
        assert!(state.applied >= passed_over || hasty, "entries that were passed over are not in the log");
        if node.disk.halted.remove(&group) {
            life.inbox.push(Input::Halted { group, halted: false });
            self.faults.count("reseeded");
        }
        let state = *state;
        life.inbox.push(Input::Applied { group, index: state.applied });
        self.oracle.state(id, group, state);
        self.faults.count("snapshot installed");
    }

    /// Entries are not applied: whoever waits here for what becomes of them learns that it is unknown.
    pub(super) fn pass_over(&mut self, id: NodeId, group: GroupId, entries: &[Entry]) {
        let mut unknown = Vec::new();
        let life = self.nodes.get_mut(&id).unwrap().life.as_mut().unwrap();
        for entry in entries {
            let key = (group, entry.index, entry.term);
            for id in life.proposed.remove(&key).unwrap_or_default() {
                assert_eq!(life.open.remove(&id), Some(Some(key)), "{id:?}");
                self.oracle.refuse(id, &ProposeError::Unknown);
                if let Some(token) = self.wishes.remove(&id) {
                    unknown.push(token);
                }
            }
            life.passed_over.insert(group, entry.index);
            life.inbox.push(Input::Applied { group, index: entry.index });
            self.faults.count("passed over");
        }
        self.tell_tenant(|tenant| unknown.into_iter().for_each(|token| tenant.told(token, Fate::Unknown)));
    }
}
