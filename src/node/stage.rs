//! What the threads of a node share: the databases, the queues, and whether the node has failed.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::cluster::{Courier, WaitingRoom};
use super::lane::{Job, Lane};
use super::lockstep::Memory;
use super::metrics::Metrics;
use super::order::{Order, Orders};
use super::watches::Watches;
use crate::error::Fault;
use crate::id::{GroupId, Index};
use crate::inbox::Sender;
use crate::net::Net;
use crate::raft::{Input, PeerOut};
use crate::storage::log::{LogQueue, LogReader};
use crate::storage::snapshot::Snapshots;
use crate::storage::state::StateDb;
use crate::time::Clock;

/// What the threads of a node share.
pub struct Stage {
    /// What people call the node.
    pub name: String,
    /// The fingerprint of the engine that machines run in here.
    pub engine: String,
    /// Queues writes for the log thread.
    pub log: LogQueue,
    /// Reads the log.
    pub log_reader: LogReader,
    /// All machines' rows.
    pub state: Arc<StateDb>,
    /// Saved states of resident machines.
    pub snapshots: Snapshots,
    /// Takes orders for the shard.
    pub orders: Orders,
    /// The link to other nodes; none on a node that is alone.
    pub net: Option<Arc<Net>>,
    /// Runs the errands of snapshots.
    pub courier: Courier,
    /// Counts changes of who leads what.
    pub roles: watch::Sender<u64>,
    /// Requests that wait for a leader.
    pub waiting_room: Arc<WaitingRoom>,
    /// Who watches machines through this node.
    pub watches: Watches,
    /// Groups that take in a snapshot, or have one staged.
    pub incoming: Mutex<HashSet<GroupId>>,
    /// What the last batches of all machines did.
    pub memory: Memory,
    /// The node's clock.
    pub clock: Clock,
    /// What is counted and timed.
    pub metrics: Metrics,
    /// Bytes written to the state since the last checkpoint.
    pub unflushed_bytes: AtomicU64,
    /// Lanes with something to do, for the apply workers; `None` ends one of them.
    pub(super) ready: Sender<Option<Arc<Lane>>>,
    /// Set once, by the first failure.
    pub(super) failure: watch::Sender<Option<Fault>>,
    /// Whether the node stops and no longer waits for guests.
    pub(super) interrupted: AtomicBool,
}

impl Stage {
    /// Who leads something has changed.
    pub fn roles_changed(&self) {
        self.roles.send_modify(|changes| *changes += 1);
        self.waiting_room.call();
    }

    /// How many machines there are.
    pub fn machines(&self) -> usize {
        usize::try_from(self.metrics.machines.get()).unwrap_or(0)
    }

    /// Sends words to other nodes.
    pub fn send(&self, messages: Vec<PeerOut>) {
        if let Some(net) = &self.net {
            net.send(messages);
        }
    }

    /// Gives a lane a job, and the lane to a worker if none has it.
    pub fn lend(&self, lane: &Arc<Lane>, job: Job) {
        if lane.push(job) {
            self.give(lane.clone());
        }
    }

    /// Gives a lane with something to do to a worker.
    pub(super) fn give(&self, lane: Arc<Lane>) {
        // The workers are gone only when the node stops.
        let _ = self.ready.send(Some(lane));
    }

    /// This computer failed: the node stops serving. Only the first failure counts.
    pub fn fail(&self, fault: Fault) {
        record_failure(&self.failure, &self.orders, fault);
    }

    /// Whether the node stops and no longer waits for guests: then a call that ends as a fault says nothing
    /// about this computer.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }

    /// The failure that stopped the node, if one did.
    pub fn failure(&self) -> Option<Fault> {
        self.failure.borrow().clone()
    }

    /// Notes that a batch was applied and written.
    pub fn note_written(&self, bytes: u64) {
        self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Tells the shard how far a group is applied.
    pub fn applied(&self, group: GroupId, index: Index) {
        self.orders.send(Order::Shard(Input::Applied { group, index }));
    }
}

/// Notes the first failure, and ends the orders: whoever waits for a command's fate is told at once that it
/// is unknown.
pub(super) fn record_failure(failure: &watch::Sender<Option<Fault>>, orders: &Orders, fault: Fault) {
    let first = failure.send_if_modified(|failure| {
        if failure.is_some() {
            return false;
        }
        tracing::error!(%fault, "the node stops serving");
        *failure = Some(fault);
        true
    });
    if first {
        orders.end();
    }
}
