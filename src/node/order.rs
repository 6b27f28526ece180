//! Order: feeds the shard with what arrives, and hands what comes out to those who do it.
//!
//! Whoever brings an order also works it off, with everything that has gathered, unless another thread is at
//! it: then that one does. So a command goes from the network's thread to the log's, and from there to the
//! one that applies it, with no thread between them that must be woken first (flat combining: Hendler, Incze,
//! Shavit and Tzafrir, SPAA 2010). A thread of its own says when a tick has passed, or what the shard waits
//! for is due, and reads from the disk what the shard asks for.
//!
//! Promises: orders are worked off in the order in which they came; every proposal's waiter is told its fate
//! once: the outcome, a refusal, or that the fate is unknown because the node stopped. Must never wait: the
//! log and the network run through here.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::Span;

use super::cluster::Errand;
use super::door;
use super::lane::{Job, Lane, Placed};
use super::metrics::seconds;
use super::request::Applied;
use super::stage::Stage;
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index, ReplicaId, Term};
use crate::inbox::{self, Receiver, Sender};
use crate::machine::batch::Operation;
use crate::raft::{
    ApplyJob, GroupStatus, Input, LogLoad, MembershipStep, Output, ProposalId, ProposeError, Proposed,
    ReadError, ReadId, ReadPoint, ReadReady, RoleChange, Shard, ShardConfig, SnapshotHead,
};
use crate::storage::entry::Entry;
use crate::time::Clock;
use crate::trace::TraceContext;

/// Whoever waits for a command's outcome.
pub type Waiter = oneshot::Sender<Result<Applied, Error>>;

/// Rounds that one thread works off before it leaves the rest to the order thread: it has work of its own.
const ROUNDS_MAX: usize = 16;

/// What can be asked.
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
        /// Whether the leader may trust clocks.
        lease: bool,
        /// Told the index.
        waiter: oneshot::Sender<Result<ReadPoint, Error>>,
    },
    /// Change who is in a group.
    Change {
        /// The group.
        group: GroupId,
        /// What to change.
        steps: Vec<MembershipStep>,
        /// Told when the change is applied here, or why it is not made.
        waiter: Waiter,
    },
    /// Have another replica lead a group.
    Transfer {
        /// The group.
        group: GroupId,
        /// The next leader.
        to: ReplicaId,
        /// Told when another replica leads, or why this one still does.
        waiter: oneshot::Sender<Result<(), Error>>,
    },
    /// Where does a group stand here?
    Status {
        /// The group.
        group: GroupId,
        /// Told; nothing if the group is not open.
        waiter: oneshot::Sender<Option<GroupStatus>>,
    },
    /// Where do all groups stand here?
    Survey {
        /// Told.
        waiter: oneshot::Sender<Vec<(GroupId, GroupStatus)>>,
    },
    /// What goes with a snapshot of a group's state at this index?
    SnapshotHead {
        /// The group.
        group: GroupId,
        /// Where the state stands.
        index: Index,
        /// Told; nothing if the index is not applied here, or the log begins after it.
        waiter: oneshot::Sender<Option<SnapshotHead>>,
    },
    /// From now on jobs of this group go to this lane; the group itself is opened by the input that follows.
    Attach(Arc<Lane>),
    /// No more jobs go to the group's lane.
    Detach(GroupId),
    /// Straight to the shard.
    Shard(Input),
}

impl Order {
    /// Nobody works it off: it comes after the end.
    fn refuse(self) {
        if let Order::Propose { waiter: Some(waiter), .. } | Order::Change { waiter, .. } = self {
            // Whoever asked may have gone away; those who asked something else learn it from the drop.
            let _ = waiter.send(Err(door::stopping()));
        }
    }
}

/// Where orders are given. Copies share one shard.
#[derive(Clone, Default)]
pub struct Orders {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// None before the start and after the end. Whoever holds it works off the queue.
    desk: Mutex<Option<Desk>>,
}

#[derive(Default)]
struct Queue {
    orders: Vec<Order>,
    closed: bool,
}

impl Orders {
    /// Gives an order, and works it off if nobody is at it. After [`end`](Orders::end) it is not done, and
    /// its waiter is told so.
    pub fn send(&self, order: Order) {
        self.send_all([order]);
    }

    /// Gives several orders at once.
    pub fn send_all(&self, orders: impl IntoIterator<Item = Order>) {
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            drop(queue);
            return orders.into_iter().for_each(Order::refuse);
        }
        queue.orders.extend(orders);
        drop(queue);
        self.work();
    }

    /// Takes up the work, with a thread for what must wait.
    pub fn start(
        &self,
        config: ShardConfig,
        clock: Clock,
        stage: Arc<Stage>,
    ) -> Result<JoinHandle<()>, Fault> {
        let (tasks, receiver) = inbox::new();
        let tick_ms = config.tick_ms;
        let (orders, reader) = (self.clone(), stage.clone());
        let run = move || run(&orders, &receiver, &reader, tick_ms);
        let spawned = std::thread::Builder::new().name("order".to_owned()).spawn(run);
        let thread = spawned.map_err(|e| Fault::new(format!("the order thread cannot be started: {e}")))?;
        *self.shared.desk.lock() = Some(Desk {
            shard: Shard::new(config),
            clock,
            stage,
            tasks,
            orders: Vec::new(),
            inputs: Vec::new(),
            out: Output::default(),
            lanes: HashMap::new(),
            waiting: HashMap::new(),
            spans: HashMap::new(),
            placed: HashMap::new(),
            reading: HashMap::new(),
            transferring: HashMap::new(),
            asking: Vec::new(),
            last_id: 0,
            will_call: false,
        });
        self.work();
        Ok(thread)
    }

    /// Ends the work and the thread. Whoever still waits learns that the node stopped.
    pub fn end(&self) {
        let dropped = {
            let mut queue = self.shared.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.orders)
        };
        dropped.into_iter().for_each(Order::refuse);
        let desk = self.shared.desk.lock().take();
        if let Some(desk) = desk {
            desk.task(Task::Stop);
        }
    }

    /// Works off what is queued, unless another thread is at it.
    fn work(&self) {
        for _ in 0..ROUNDS_MAX {
            let Some(mut desk) = self.shared.desk.try_lock() else { return };
            let Some(at_work) = &mut *desk else { return };
            std::mem::swap(&mut at_work.orders, &mut self.shared.queue.lock().orders);
            let stepped = at_work.step();
            let stage = at_work.stage.clone();
            drop(desk);
            if let Err(fault) = stepped {
                return stage.fail(fault);
            }
            // Who came meanwhile saw the desk taken and left.
            if self.shared.queue.lock().orders.is_empty() {
                return;
            }
        }
        if let Some(desk) = self.shared.desk.try_lock().as_deref().and_then(Option::as_ref) {
            desk.task(Task::Work);
        }
    }
}

/// What is asked about a group.
enum Question {
    Status(GroupId, oneshot::Sender<Option<GroupStatus>>),
    Survey(oneshot::Sender<Vec<(GroupId, GroupStatus)>>),
    SnapshotHead(GroupId, Index, oneshot::Sender<Option<SnapshotHead>>),
}

/// What the order thread does besides its ticks.
enum Task {
    /// Work off the queue.
    Work,
    /// Read entries that are no longer in memory.
    Load(LogLoad),
    /// Say when it is so late, by the monotonic clock.
    Call(u64),
    Stop,
}

/// The order thread: ticks, what is due between them, and whatever waits for the disk.
fn run(orders: &Orders, tasks: &Receiver<Task>, stage: &Stage, tick_ms: u64) {
    let mut taken = Vec::new();
    let mut next_tick_ms = stage.clock.now().monotonic_ms + tick_ms;
    let mut due_ms = None;
    loop {
        let next_ms = due_ms.map_or(next_tick_ms, |due_ms| next_tick_ms.min(due_ms));
        let patience_ms = next_ms.saturating_sub(stage.clock.now().monotonic_ms);
        tasks.take(&mut taken, usize::MAX, Duration::from_millis(patience_ms));
        for task in taken.drain(..) {
            match task {
                Task::Work => orders.work(),
                Task::Load(load) => match read(stage, &load) {
                    Ok(loaded) => orders.send(Order::Shard(loaded)),
                    Err(fault) => stage.fail(fault),
                },
                Task::Call(at_ms) => due_ms = Some(at_ms),
                Task::Stop => return,
            }
        }
        let now_ms = stage.clock.now().monotonic_ms;
        if due_ms.take_if(|due_ms| now_ms >= *due_ms).is_some() {
            orders.send(Order::Shard(Input::Due));
        }
        if now_ms >= next_tick_ms {
            orders.send(Order::Shard(Input::Tick));
            next_tick_ms = now_ms + tick_ms;
        }
    }
}

fn read(stage: &Stage, load: &LogLoad) -> Result<Input, Fault> {
    let entries = stage.log_reader.entries(load.group, load.from, load.to.next(), load.bytes_max)?;
    Ok(Input::Loaded { group: load.group, from: load.from, entries })
}

/// The shard, and those who wait for it.
struct Desk {
    shard: Shard,
    clock: Clock,
    stage: Arc<Stage>,
    tasks: Sender<Task>,
    /// What is worked off in one step, and what it becomes.
    orders: Vec<Order>,
    inputs: Vec<Input>,
    out: Output,
    lanes: HashMap<GroupId, Arc<Lane>>,
    /// Proposals whose fate is open.
    waiting: HashMap<ProposalId, Waiter>,
    /// The spans of those that are traced, until they are committed.
    spans: HashMap<ProposalId, Span>,
    /// Which proposals a batch in the log answers.
    placed: HashMap<(GroupId, Index), InLog>,
    /// Reads without a read point.
    reading: HashMap<ReadId, oneshot::Sender<Result<ReadPoint, Error>>>,
    /// Transfers of leadership that are under way.
    transferring: HashMap<ProposalId, oneshot::Sender<Result<(), Error>>>,
    /// Questions that are answered when what came before them was worked off.
    asking: Vec<Question>,
    /// The last id given to a proposal or a read.
    last_id: u64,
    /// Whether the order thread will say when what the shard waits for is due.
    will_call: bool,
}

/// A batch of this node's in the log.
struct InLog {
    term: Term,
    /// The proposals that it answers.
    ids: Vec<ProposalId>,
    /// When it was put there.
    since_ns: u64,
}

impl Desk {
    /// Works off the orders taken.
    fn step(&mut self) -> Result<(), Fault> {
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            let mut orders = std::mem::take(&mut self.orders);
            orders.drain(..).for_each(|order| self.take(order));
            self.orders = orders;
            self.shard.handle(self.clock.now(), self.inputs.drain(..), &mut self.out);
            self.dispatch()?;
            self.answer_questions();
            self.arrange_call();
            Ok(())
        }));
        stepped.unwrap_or_else(|_| Err(Fault::new("the order of commands broke: a mistake of this program")))
    }

    fn task(&self, task: Task) {
        // The thread is gone only after the end.
        let _ = self.tasks.send(task);
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Propose { group, operation, waiter } => {
                self.last_id += 1;
                let id = ProposalId(self.last_id);
                if let Some(waiter) = waiter {
                    self.waiting.insert(id, waiter);
                }
                if let Some(context) = TraceContext::from_bytes(&operation.trace) {
                    self.spans.insert(id, context.commit(group));
                }
                let bytes = operation.size();
                self.inputs.push(Input::Propose { group, id, operation, bytes });
            }
            Order::Read { group, lease, waiter } => {
                self.last_id += 1;
                self.reading.insert(ReadId(self.last_id), waiter);
                self.inputs.push(Input::Read { group, id: ReadId(self.last_id), lease });
            }
            Order::Change { group, steps, waiter } => {
                self.last_id += 1;
                self.waiting.insert(ProposalId(self.last_id), waiter);
                self.inputs.push(Input::ChangeMembership { group, id: ProposalId(self.last_id), steps });
            }
            Order::Transfer { group, to, waiter } => {
                self.last_id += 1;
                self.transferring.insert(ProposalId(self.last_id), waiter);
                self.inputs.push(Input::Transfer { group, id: ProposalId(self.last_id), to });
            }
            Order::Status { group, waiter } => self.asking.push(Question::Status(group, waiter)),
            Order::Survey { waiter } => self.asking.push(Question::Survey(waiter)),
            Order::SnapshotHead { group, index, waiter } => {
                self.asking.push(Question::SnapshotHead(group, index, waiter));
            }
            Order::Attach(lane) => drop(self.lanes.insert(lane.group, lane)),
            Order::Detach(group) => drop(self.lanes.remove(&group)),
            Order::Shard(input) => {
                self.will_call &= !matches!(input, Input::Due);
                self.inputs.push(input);
            }
        }
    }

    fn dispatch(&mut self) -> Result<(), Fault> {
        let mut out = std::mem::take(&mut self.out);
        // What this replica ceases to be is known here before any other hears of it: readers rely on it.
        out.roles.drain(..).for_each(|role| self.role(role));
        // A leader's words leave before it writes: the others write at the same time.
        if !out.messages.is_empty() {
            self.stage.send(std::mem::take(&mut out.messages));
        }
        if !out.log.is_empty() {
            self.stage.log.write(std::mem::take(&mut out.log))?;
        }
        out.proposed.drain(..).for_each(|proposed| self.place(proposed));
        out.refused.drain(..).for_each(|(id, why)| self.refuse(id, &why));
        out.apply.drain(..).for_each(|job| self.apply(job));
        out.reads.drain(..).for_each(|ready| self.read(ready));
        out.load.drain(..).for_each(|load| self.task(Task::Load(load)));
        for (group, why) in out.quarantined.drain(..) {
            tracing::error!(%group, why, "the group is in quarantine: it answers nothing until the node is \
                restarted");
            if let Some(lane) = self.lanes.get(&group) {
                lane.end(&format!("in quarantine: {why}"));
            }
        }
        out.transferred.drain(..).for_each(|id| self.transferred(id, Ok(())));
        out.snapshots.drain(..).for_each(|wanted| self.stage.courier.tell(Errand::Send(wanted)));
        let unwanted = out.unwanted.drain(..).map(|(group, index)| Errand::DropStaged(group, index));
        unwanted.for_each(|errand| self.stage.courier.tell(errand));
        self.out = out;
        Ok(())
    }

    /// Has the order thread say when what the shard waits for is due.
    fn arrange_call(&mut self) {
        if !self.will_call
            && let Some(due_ms) = self.shard.due_ms()
        {
            self.will_call = true;
            self.task(Task::Call(due_ms));
        }
    }

    fn transferred(&mut self, id: ProposalId, how: Result<(), Error>) {
        if let Some(waiter) = self.transferring.remove(&id) {
            // Whoever asked may have gone away.
            let _ = waiter.send(how);
        }
    }

    fn answer_questions(&mut self) {
        // Whoever asked may have gone away.
        for question in self.asking.drain(..) {
            match question {
                Question::Status(group, waiter) => drop(waiter.send(self.shard.group_status(group))),
                Question::Survey(waiter) => drop(waiter.send(self.shard.survey())),
                Question::SnapshotHead(group, index, waiter) => {
                    drop(waiter.send(self.shard.snapshot_head(group, index)));
                }
            }
        }
    }

    fn role(&mut self, role: RoleChange) {
        if let Some(lane) = self.lanes.get(&role.group) {
            let now = self.stage.clock.now();
            lane.set_role(role, self.shard.log_time(now, role.group), now);
            self.stage.roles_changed();
        }
    }

    fn place(&mut self, proposed: Proposed) {
        let Proposed { group, index, term, ids } = proposed;
        let since_ns = self.stage.clock.elapsed_ns();
        self.placed.insert((group, index), InLog { term, ids, since_ns });
    }

    fn refuse(&mut self, id: ProposalId, why: &ProposeError) {
        self.spans.remove(&id);
        if let Some(waiter) = self.waiting.remove(&id) {
            // A client that went away needs no answer.
            let _ = waiter.send(Err(propose_error(why)));
        } else {
            self.transferred(id, Err(propose_error(why)));
        }
    }

    fn apply(&mut self, job: ApplyJob) {
        let group = job.group;
        let entries = job.entries.into_iter().map(|entry| self.with_waiters(group, entry)).collect();
        match self.lanes.get(&group) {
            Some(lane) => self
                .stage
                .lend(lane, Job { snapshot: job.snapshot, entries, since_ns: self.stage.clock.elapsed_ns() }),
            None => tracing::debug!(%group, "entries of a group that was let go"),
        }
    }

    fn with_waiters(&mut self, group: GroupId, entry: Entry) -> Placed {
        let placed = self.placed.remove(&(group, entry.index));
        let ids = match placed {
            Some(InLog { term, ids, since_ns }) if term == entry.term => {
                let took_ns = self.stage.clock.elapsed_ns() - since_ns;
                self.stage.metrics.stages.commit.observe(seconds(took_ns));
                ids
            }
            // Another leader's entry: the shard has refused, or will refuse, ours.
            _ => Vec::new(),
        };
        if !self.spans.is_empty() {
            ids.iter().for_each(|id| drop(self.spans.remove(id)));
        }
        let waiters = ids.iter().map(|id| self.waiting.remove(id)).collect();
        Placed { entry, waiters }
    }

    fn read(&mut self, ready: ReadReady) {
        for id in ready.ids {
            if let Some(waiter) = self.reading.remove(&id) {
                // A reader that went away needs no answer.
                let _ = waiter.send(ready.point.clone().map_err(|why| read_error(&why)));
            }
        }
    }
}

fn propose_error(why: &ProposeError) -> Error {
    let text = why.to_string();
    match why {
        ProposeError::NotLeader { leader } => Error::NotLeader { leader: *leader },
        // Not done either: whoever leads now takes it.
        ProposeError::Lost => Error::NotLeader { leader: None },
        ProposeError::ChangePending | ProposeError::TransferFailed(_) => Error::Unavailable(text),
        ProposeError::InvalidChange(_) | ProposeError::InvalidTransfer(_) => Error::Invalid(text),
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
