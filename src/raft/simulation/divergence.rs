//! Replicas that went different ways, and the beacons that show it.

use crate::id::{GroupId, NodeId};
use crate::raft::simulation::catalog::Coming;
use crate::raft::simulation::state::{State, beacons_of};
use crate::raft::simulation::world::World;
use crate::storage::entry::Entry;

/// What was done to whom, and who took notice.
pub(super) struct Damage {
    pub(super) group: GroupId,
    /// Whose state was damaged.
    pub(super) victim: NodeId,
    /// Who sent the beacon.
    pub(super) leader: NodeId,
}

impl World {
    /// An entry may hold what another replica's state was: is it what this one's was?
    pub(super) fn compare(&mut self, id: NodeId, group: GroupId, state: State, entry: &Entry) {
        for beacon in beacons_of(entry) {
            match state.agrees(beacon) {
                Some(true) => self.faults.count("beacon agreed"),
                Some(false) => drop(self.diverged.insert((id, group))),
                None => self.faults.count("beacon too old"),
            }
        }
        assert!(self.flipped || self.diverged.is_empty(), "replicas differ: {:?}", self.diverged);
    }

    /// Whether every node has a replica of every group, and another to compare it with.
    pub(super) fn is_full(&self) -> bool {
        self.ids.len() > 1 && self.coming != Coming::Anybody
    }

    /// One replica's state is damaged, in memory and on disk, when all is done; the next thing that happens
    /// is a beacon.
    pub(super) fn damage_and_send_beacon(&mut self) -> Damage {
        self.lull_until_ms = u64::MAX;
        let group = self.some_group();
        self.step_until("all is applied", |world| {
            world.oracle.committed(group) > 0 && world.all_applied(group)
        });
        let (victim, bit) = (self.some_node(), self.rng.next());
        self.flipped = true;
        let node = self.node(victim);
        node.disk.flushed.get_mut(&group).unwrap().flip(bit);
        node.life.as_mut().unwrap().states.get_mut(&group).unwrap().flip(bit);
        let leader = self.deliver_beacon(group);
        Damage { group, victim, leader }
    }

    /// Sends beacons until one is applied everywhere, and gives back who sent that one: they are commands,
    /// and get lost like others when the leader changes.
    fn deliver_beacon(&mut self, group: GroupId) -> NodeId {
        loop {
            self.step_until("somebody leads", |world| world.leader_of(group).is_some());
            let leader = self.leader_of(group).unwrap();
            let id = self.send_beacon(leader, group).expect("something is applied");
            self.step_until("the beacon has a fate", |world| !world.life(leader).open.contains_key(&id));
            if self.oracle.acknowledged.contains_key(&id) {
                self.step_until("the beacon is applied", |world| world.all_applied(group));
                return leader;
            }
        }
    }

    fn all_applied(&self, group: GroupId) -> bool {
        let committed = self.oracle.committed(group);
        let mut lives = self.nodes.values().map(|node| node.life.as_ref());
        lives.all(|life| life.is_some_and(|life| life.states[&group].applied.0 == committed))
    }

    fn step_until(&mut self, what: &str, done: impl Fn(&mut World) -> bool) {
        let end_ms = self.now_ms + 20_000;
        while !done(self) {
            self.step();
            assert!(self.now_ms < end_ms, "not within 20 seconds: {what}: {}", self.describe());
        }
    }
}
