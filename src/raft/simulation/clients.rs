//! What clients want of a node, and what it tells them.

use crate::id::{GroupId, NodeId};
use crate::machine::batch::Operation;
use crate::raft::input::{Input, ProposalId, ReadId};
use crate::raft::output::{ProposeError, Proposed, ReadReady, Role};
use crate::raft::simulation::state::{beacon, command};
use crate::raft::simulation::tenant::fate_of;
use crate::raft::simulation::world::World;

impl World {
    /// Clients ask this node for something; most ask the leader.
    pub(super) fn clients_ask(&mut self, id: NodeId) {
        for group in self.groups.clone() {
            let led = self.life(id).shard.group_status(group);
            let led = led.filter(|group| group.standing.role == Role::Leader);
            let leads = led.is_some();
            if led.is_some_and(|group| !group.awake && !group.standing.sole_voter) {
                self.faults.count("asleep");
            }
            self.tenant_asks(id, group, leads);
            if self.now_ms < self.lull_until_ms {
                continue;
            }
            let only_reads =
                self.only_read.is_some_and(|(node, until_ms)| node == id && self.now_ms < until_ms);
            if !only_reads && self.rng.one_in(if leads { 3 } else { 40 }) {
                for _ in 0..1 + self.rng.below(8) {
                    let padding = self.rng.below(200) as usize;
                    self.propose(id, group, |id| command(id, padding));
                }
            }
            if !only_reads && leads && self.rng.one_in(30) && !self.nodes[&id].disk.halted.contains(&group) {
                self.send_beacon(id, group);
            }
            if self.rng.one_in(if leads { 5 } else { 20 }) {
                self.read(id, group);
            }
        }
    }

    pub(super) fn propose(
        &mut self,
        node: NodeId,
        group: GroupId,
        operation: impl FnOnce(ProposalId) -> Operation,
    ) -> ProposalId {
        self.last_id += 1;
        let id = ProposalId(self.last_id);
        let operation = operation(id);
        let life = self.life(node);
        life.open.insert(id, None);
        let bytes = operation.size();
        life.inbox.push(Input::Propose { group, id, operation, bytes });
        id
    }

    /// The leader tells the others what its state looks like.
    pub(super) fn send_beacon(&mut self, node: NodeId, group: GroupId) -> Option<ProposalId> {
        let seen = self.life(node).states[&group].beacon()?;
        Some(self.propose(node, group, |id| beacon(id, seen)))
    }

    fn read(&mut self, node: NodeId, group: GroupId) {
        self.last_id += 1;
        let id = ReadId(self.last_id);
        let lease = self.rng.one_in(2);
        self.oracle.ask(id, group);
        let life = self.life(node);
        life.inbox.push(Input::Read { group, id, lease });
        if lease {
            life.asked_by_lease.push(id);
            self.faults.count("read by lease asked");
        }
    }

    /// Reads got their read points, or were refused.
    pub(super) fn note_reads(&mut self, node: NodeId, reads: Vec<ReadReady>) {
        let asked = std::mem::take(&mut self.life(node).asked_by_lease);
        for read in reads {
            let index = read.point.as_ref().ok().map(|point| point.index);
            let status = self.life(node).shard.group_status(read.group);
            let alone = status.is_none_or(|status| status.standing.sole_voter);
            for id in read.ids {
                self.oracle.answer(id, index);
                if index.is_some() && !alone && asked.contains(&id) {
                    self.faults.count("read answered by lease");
                }
            }
        }
    }

    /// Proposals went into the log, or did not, or are not to be applied where they are.
    pub(super) fn note_fates(
        &mut self,
        node: NodeId,
        proposed: Vec<Proposed>,
        refused: Vec<(ProposalId, ProposeError)>,
    ) {
        let life = self.life(node);
        for batch in proposed {
            let key = (batch.group, batch.index, batch.term);
            for id in &batch.ids {
                life.open.insert(*id, Some(key));
            }
            assert!(life.proposed.insert(key, batch.ids).is_none(), "two batches at {key:?}");
        }
        for (id, error) in refused {
            self.oracle.refuse(id, &error);
            self.tell_fate(id, fate_of(&error));
            match error {
                ProposeError::Lost => self.faults.count("lost proposal"),
                ProposeError::ChangePending | ProposeError::InvalidChange(_) => {
                    self.faults.count("membership refused");
                }
                ProposeError::TransferFailed(_) => self.faults.count("transfer failed"),
                ProposeError::Unknown => self.faults.count("unknown fate"),
                _ => {}
            }
            let place = self
                .life(node)
                .open
                .remove(&id)
                .unwrap_or_else(|| panic!("{id:?} has a second fate: {error}"));
            if let Some(key) = place {
                self.life(node).proposed.remove(&key);
            }
        }
    }
}
