//! Snapshots on their way: chunk by chunk, beside the messages, with faults of their own.

use crate::id::{GroupId, Index, NodeId, ReplicaId, Term};
use crate::raft::input::Input;
use crate::raft::output::SnapshotWanted;
use crate::raft::simulation::Bug;
use crate::raft::simulation::disk::StagedState;
use crate::raft::simulation::node::node_of;
use crate::raft::simulation::world::World;

/// One snapshot on its way.
pub(super) struct Transfer {
    pub(super) group: GroupId,
    from: NodeId,
    /// The replica that sends, and which life of its node: the next one knows nothing of it.
    sender: ReplicaId,
    life: u64,
    pub(super) to: NodeId,
    receiver: ReplicaId,
    term: Term,
    staged: StagedState,
    /// Whether it is for a halted replica that asked for it.
    pub(super) reseed: bool,
    chunks_left: u64,
    pub(super) give_up_at_ms: u64,
}

impl World {
    /// A leader names a replica that needs a snapshot.
    pub(super) fn begin_transfer(&mut self, from: NodeId, wanted: SnapshotWanted) {
        self.faults.count("snapshot wanted");
        let SnapshotWanted { group, to, node, least, .. } = wanted;
        assert_eq!(node_of(to), node, "a replica is looked for where it is not");
        let life = self.nodes[&from].life.as_ref().unwrap();
        let twin = |other: &Transfer| {
            !other.reseed
                && (other.group, other.from, other.receiver, other.life) == (group, from, to, life.number)
        };
        if self.transfers.iter().any(twin) {
            return;
        }
        if self.nodes[&from].disk.halted.contains(&group) {
            return self.tell(from, Input::SnapshotSent { group, to, arrived: false });
        }
        let state = life.states[&group];
        assert!(state.applied >= least, "a snapshot at {least} is wanted, the state is at {}", state.applied);
        self.post_state(from, wanted, false);
    }

    /// Puts a node's state on its way.
    pub(super) fn post_state(&mut self, from: NodeId, wanted: SnapshotWanted, reseed: bool) {
        let SnapshotWanted { group, to, node, term, .. } = wanted;
        let sender = self.nodes[&from].replica();
        let life = self.nodes[&from].life.as_ref().unwrap();
        let state = life.states[&group];
        let head = life.shard.snapshot_head(group, state.applied).expect("the state is within the log");
        self.transfers.push(Transfer {
            group,
            from,
            sender,
            life: life.number,
            to: node,
            receiver: to,
            term,
            staged: StagedState { head, state },
            reseed,
            chunks_left: 1 + self.rng.below(20),
            give_up_at_ms: self.now_ms + 500 + self.rng.below(5_000),
        });
    }

    pub(super) fn move_snapshots(&mut self) {
        for mut transfer in std::mem::take(&mut self.transfers) {
            let sender = self.nodes[&transfer.from].life.as_ref();
            if sender.is_none_or(|life| life.number != transfer.life) {
                continue;
            }
            let (from, to) = (transfer.from, transfer.to);
            let stands =
                |id: NodeId| self.nodes[&id].life.is_none() || self.nodes[&id].is_paused(self.now_ms);
            let carries =
                self.network.carries(from, to, self.now_ms) && self.network.carries(to, from, self.now_ms);
            let receives = carries && !stands(to) && !stands(from);
            if transfer.chunks_left == 0 && receives {
                self.end_transfer(transfer);
            } else if self.now_ms >= transfer.give_up_at_ms {
                self.faults.count("snapshot given up");
                self.report_transfer(&transfer, false);
            } else {
                if !receives || (!self.calm && self.rng.one_in(4)) {
                    self.faults.count("lost chunk");
                } else {
                    transfer.chunks_left -= 1;
                }
                self.transfers.push(transfer);
            }
        }
    }

    /// The last chunk has arrived: all of it is synced, and both ends are told.
    fn end_transfer(&mut self, transfer: Transfer) {
        let receiver = self.nodes.get_mut(&transfer.to).unwrap();
        if receiver.replica() != transfer.receiver {
            self.faults.count("snapshot for a former replica");
            // Who does not look whom it is for offers it to the shard, which must know by itself.
            if self.rng.one_in(2) {
                self.report_transfer(&transfer, false);
                return;
            }
        }
        let receiver = self.nodes.get_mut(&transfer.to).unwrap();
        let newer = receiver
            .life
            .as_ref()
            .is_some_and(|life| transfer.staged.head.index > life.states[&transfer.group].applied);
        if transfer.reseed && !(newer && receiver.disk.halted.contains(&transfer.group)) {
            self.faults.count("reseed that came too late");
            return;
        }
        let receiver = self.nodes.get_mut(&transfer.to).unwrap();
        if receiver.disk.staged.contains_key(&transfer.group) {
            self.faults.count("snapshot for a busy node");
            self.report_transfer(&transfer, false);
            return;
        }
        self.faults.count("snapshot staged");
        receiver.disk.staged.insert(transfer.group, transfer.staged.clone());
        let time_floor = self.oracle.stamp_at(transfer.group, transfer.staged.state.applied);
        receiver.life.as_mut().unwrap().inbox.push(Input::SnapshotReceived {
            group: transfer.group,
            from: transfer.sender,
            term: transfer.term,
            head: transfer.staged.head.clone(),
            time_floor,
            reseed: transfer.reseed,
        });
        // The receiver's word may get lost: then the sender believes that it failed.
        let heard = self.calm || !self.rng.one_in(4);
        self.report_transfer(&transfer, heard);
    }

    fn report_transfer(&mut self, transfer: &Transfer, arrived: bool) {
        if transfer.reseed {
            return;
        }
        let input = Input::SnapshotSent { group: transfer.group, to: transfer.receiver, arrived };
        self.tell(transfer.from, input);
    }

    /// The shard has no use for a snapshot that is staged.
    pub(super) fn drop_snapshot(&mut self, id: NodeId, group: GroupId, index: Index) {
        let node = self.nodes.get_mut(&id).unwrap();
        let staged = node.disk.staged.remove(&group).expect("what is unwanted is staged");
        assert_eq!(staged.head.index, index);
        self.faults.count("snapshot unwanted");
        if self.bug == Some(Bug::InstallUnwanted) {
            self.life(id).states.insert(group, staged.state);
        }
    }
}
