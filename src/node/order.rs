//! The order thread: feeds the shard with what arrives, and hands what comes out to those who do it.
//!
//! Promises: every proposal's waiter is told its fate once: the outcome, a refusal, or that the fate is
//! unknown because the node stopped. Must never wait for anything but its own queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::oneshot;

use super::lane::{Job, Lane, Placed};
use super::request::Applied;
use super::stage::Stage;
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index, Term};
use crate::machine::batch::Operation;
use crate::raft::{
    ApplyJob, Input, Output, ProposalId, ProposeError, Proposed, ReadError, ReadId, ReadReady, RoleChange,
    Shard, ShardConfig,
};
use crate::storage::entry::{Entry, EntryKind};
use crate::time::Clock;

/// Whoever waits for a command's outcome.
pub type Waiter = oneshot::Sender<Result<Applied, Error>>;

/// Inputs taken from the queue for one step of the shard, at most: bounds how long a tick can be late.
const INPUTS_PER_STEP_MAX: usize = 4_096;

/// What can be asked of the order thread.
pub enum Order {
    /// Put an operation into a group's log.
    Propose {
        /// The group.
        group: GroupId,
        /// The operation.
        operation: Operation,
        /// Told the outcome; none for the host's own acts.
        waiter: Option<Waiter>,
    },
    /// From which index on may a linearizable read be served?
    Read {
        /// The group.
        group: GroupId,
        /// Told the index.
        waiter: oneshot::Sender<Result<Index, Error>>,
    },
    /// From now on jobs of this group go to this lane; the group itself is opened by the input that follows.
    Attach(Arc<Lane>),
    /// No more jobs go to the group's lane.
    Detach(GroupId),
    /// Straight to the shard.
    Shard(Input),
    /// End the thread.
    Stop,
}

/// Where orders are queued. Copies feed one thread.
#[derive(Clone)]
pub struct OrderQueue {
    sender: Sender<Order>,
}

impl OrderQueue {
    /// Queues an order. After the thread has ended it is dropped, and with it its waiter, who learns of it
    /// that way.
    pub fn send(&self, order: Order) {
        // The only failure is that the node has stopped: dropping the order tells its waiter.
        let _ = self.sender.send(order);
    }

    /// Both ends of a new queue.
    pub fn new() -> (OrderQueue, Receiver<Order>) {
        let (sender, receiver) = crossbeam_channel::unbounded();
        (OrderQueue { sender }, receiver)
    }
}

/// Starts the thread.
pub fn start(
    config: ShardConfig,
    clock: Clock,
    orders: Receiver<Order>,
    stage: Arc<Stage>,
) -> Result<JoinHandle<()>, Fault> {
    let thread = OrderThread {
        tick_ms: config.tick_ms,
        shard: Shard::new(config),
        clock,
        orders,
        stage,
        lanes: HashMap::new(),
        waiting: HashMap::new(),
        placed: HashMap::new(),
        reading: HashMap::new(),
        last_id: 0,
    };
    let spawned = std::thread::Builder::new().name("order".to_owned()).spawn(move || thread.run());
    spawned.map_err(|e| Fault::new(format!("the order thread cannot be started: {e}")))
}

struct OrderThread {
    shard: Shard,
    clock: Clock,
    tick_ms: u64,
    orders: Receiver<Order>,
    stage: Arc<Stage>,
    lanes: HashMap<GroupId, Arc<Lane>>,
    /// Proposals whose fate is open.
    waiting: HashMap<ProposalId, Waiter>,
    /// Which proposals a batch in the log answers.
    placed: HashMap<(GroupId, Index), (Term, Vec<ProposalId>)>,
    /// Reads without a read point.
    reading: HashMap<ReadId, oneshot::Sender<Result<Index, Error>>>,
    /// The last id given to a proposal or a read.
    last_id: u64,
}

impl OrderThread {
    fn run(mut self) {
        let mut inputs = Vec::new();
        let mut out = Output::default();
        let mut next_tick_ms = self.clock.now().monotonic_ms + self.tick_ms;
        loop {
            let patience = next_tick_ms.saturating_sub(self.clock.now().monotonic_ms);
            match self.orders.recv_timeout(Duration::from_millis(patience)) {
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(order) => self.take(order, &mut inputs),
                Err(RecvTimeoutError::Timeout) => {}
            }
            while inputs.len() < INPUTS_PER_STEP_MAX {
                match self.orders.try_recv() {
                    Ok(Order::Stop) => return,
                    Ok(order) => self.take(order, &mut inputs),
                    Err(_) => break,
                }
            }
            let now = self.clock.now();
            if now.monotonic_ms >= next_tick_ms {
                inputs.push(Input::Tick);
                next_tick_ms = now.monotonic_ms + self.tick_ms;
            }
            self.shard.handle(now, inputs.drain(..), &mut out);
            if let Err(fault) = self.dispatch(&mut out) {
                self.stage.fail(fault);
                return;
            }
        }
    }

    fn take(&mut self, order: Order, inputs: &mut Vec<Input>) {
        match order {
            Order::Propose { group, operation, waiter } => {
                self.last_id += 1;
                let id = ProposalId(self.last_id);
                if let Some(waiter) = waiter {
                    self.waiting.insert(id, waiter);
                }
                let bytes = operation.size();
                inputs.push(Input::Propose { group, id, operation, bytes });
            }
            Order::Read { group, waiter } => {
                self.last_id += 1;
                self.reading.insert(ReadId(self.last_id), waiter);
                inputs.push(Input::Read { group, id: ReadId(self.last_id) });
            }
            Order::Attach(lane) => drop(self.lanes.insert(lane.group, lane)),
            Order::Detach(group) => drop(self.lanes.remove(&group)),
            Order::Shard(input) => inputs.push(input),
            Order::Stop => unreachable!("the loop ends before it takes a stop"),
        }
    }

    fn dispatch(&mut self, out: &mut Output) -> Result<(), Fault> {
        if !out.log.is_empty() {
            self.stage.log.write(std::mem::take(&mut out.log))?;
        }
        out.roles.drain(..).for_each(|role| self.role(role));
        out.proposed.drain(..).for_each(|proposed| self.place(proposed));
        out.refused.drain(..).for_each(|(id, why)| self.refuse(id, &why));
        out.apply.drain(..).for_each(|job| self.apply(job));
        out.reads.drain(..).for_each(|ready| self.read(ready));
        for load in out.load.drain(..) {
            let entries =
                self.stage.log_reader.entries(load.group, load.from, load.to.next(), load.bytes_max)?;
            let loaded = Input::Loaded { group: load.group, from: load.from, entries };
            self.stage.orders.send(Order::Shard(loaded));
        }
        for (group, why) in out.quarantined.drain(..) {
            tracing::error!(%group, why, "the group is in quarantine: it answers nothing until the node is \
                restarted");
            if let Some(lane) = self.lanes.get(&group) {
                lane.halt(&format!("in quarantine: {why}"));
            }
        }
        // One voter: nobody to send to. The peer link of the cluster takes them from here.
        out.messages.clear();
        Ok(())
    }

    fn role(&mut self, role: RoleChange) {
        if let Some(lane) = self.lanes.get(&role.group) {
            lane.set_role(role);
        }
    }

    fn place(&mut self, proposed: Proposed) {
        self.placed.insert((proposed.group, proposed.index), (proposed.term, proposed.ids));
    }

    fn refuse(&mut self, id: ProposalId, why: &ProposeError) {
        if let Some(waiter) = self.waiting.remove(&id) {
            // A client that went away needs no answer.
            let _ = waiter.send(Err(propose_error(why)));
        }
    }

    fn apply(&mut self, job: ApplyJob) {
        let group = job.group;
        let entries = job.entries.into_iter().map(|entry| self.with_waiters(group, entry)).collect();
        match self.lanes.get(&group) {
            Some(lane) => self.stage.lend(lane, Job { entries }),
            None => tracing::debug!(%group, "entries of a group that was let go"),
        }
    }

    fn with_waiters(&mut self, group: GroupId, entry: Entry) -> Placed {
        let placed = self.placed.remove(&(group, entry.index));
        let ids = match placed {
            Some((term, ids)) if term == entry.term && entry.kind == EntryKind::Batch => ids,
            // Another leader's entry: the shard has refused, or will refuse, ours.
            _ => Vec::new(),
        };
        let waiters = ids.iter().map(|id| self.waiting.remove(id)).collect();
        Placed { entry, waiters }
    }

    fn read(&mut self, ready: ReadReady) {
        for id in ready.ids {
            if let Some(waiter) = self.reading.remove(&id) {
                // A reader that went away needs no answer.
                let _ = waiter.send(ready.index.clone().map_err(|why| read_error(&why)));
            }
        }
    }
}

fn propose_error(why: &ProposeError) -> Error {
    let text = why.to_string();
    match why {
        ProposeError::NotLeader { .. } | ProposeError::Lost | ProposeError::ChangePending => {
            Error::Unavailable(text)
        }
        ProposeError::InvalidChange(_) => Error::Invalid(text),
        ProposeError::UnknownGroup => Error::NotFound(text),
        ProposeError::Overloaded { .. } => Error::Overloaded(text),
        ProposeError::TooLarge { .. } => Error::TooLarge(text),
        ProposeError::Unknown => Error::Unknown(text),
        ProposeError::Quarantined(_) => Error::FailedPrecondition(text),
    }
}

fn read_error(why: &ReadError) -> Error {
    let text = why.to_string();
    match why {
        ReadError::NoLeader { .. } => Error::Unavailable(text),
        ReadError::UnknownGroup => Error::NotFound(text),
        ReadError::Overloaded { .. } => Error::Overloaded(text),
        ReadError::Quarantined(_) => Error::FailedPrecondition(text),
    }
}
