//! A resident machine's instance, and how it is made again from a snapshot and the log.
//!
//! The instance that applies sees inputs and nothing else. When it dies at an input, it is rebuilt: a fresh
//! instance restores the last snapshot and replays the log up to where the machine stands, passing over the
//! inputs whose fate is settled. A trap is the same on every replica and settles itself; exhaustion is not,
//! and waits for a verdict in the log.
//!
//! An upgrade hands the state over: the present component saves it, the other one restores it and is told. If
//! it refuses, an instance of the present component restores the same bytes: so whichever instance a replica
//! had, all go on from one that was made at this index.

mod handover;
mod sink;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

pub use self::sink::Sink;
use super::apply::{self, Applied, Stop};
use super::batch::{Batch, Head};
use super::frame::Frame;
use super::guest::{Components, Ending, Instance, Nobody, QueryView, Unready};
use super::outcome::{HostCode, Outcome, OutcomeAt};
use super::settled::Settled;
use super::view::{MemoryView, Table, View};
use crate::error::Fault;
use crate::id::{Digest, Index};

/// Replays run with this many times the usual budget: an input that once ended within its budget, wherever
/// its instance had been restored then, ends within this one.
const REPLAY_BUDGET_FACTOR: u32 = 16;

/// A snapshot of a resident machine.
pub struct Saved {
    /// Where the machine stood.
    pub head: Head,
    /// The host's rows of the machine then: its leases.
    pub rows: MemoryView,
    /// What the guest wrote.
    pub state: Box<dyn Read + Send>,
}

/// Where an instance is rebuilt from. `storage` implements it.
pub trait History {
    /// The last snapshot, if there is one.
    fn saved(&self) -> Result<Option<Saved>, Fault>;

    /// The batches after `after`, up to and including `up_to`, in order. Entries that carry no batch are left
    /// out.
    fn batches(&self, after: Index, up_to: Index) -> Result<Vec<(Index, Batch)>, Fault>;

    /// The inputs that the batches after `after` passed over: [`settled::read`](super::settled::read) of the
    /// machine's rows.
    fn settled(&self, after: Index) -> Result<BTreeMap<Index, Settled>, Fault>;
}

/// Why a resident machine cannot go on.
#[derive(Debug)]
pub enum Halt {
    /// This computer failed.
    Fault(Fault),
    /// The instance ran out of budget at an input: only a verdict in the log decides what becomes of it.
    NeedsVerdict {
        /// The input's offset in the batch.
        offset: u32,
    },
    /// The guest cannot restore what it saved.
    CannotRestore(String),
    /// The guest cannot save its state.
    CannotSave(String),
    /// The bytes of a component that it runs are not here yet.
    Lacks(Digest),
    /// This node cannot run one of its components.
    Unfit(String),
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Halt {
        Halt::Fault(fault)
    }
}

impl From<Unready> for Halt {
    fn from(unready: Unready) -> Halt {
        match unready {
            Unready::Absent(module) => Halt::Lacks(module),
            Unready::Unfit(why) => Halt::Unfit(why),
            Unready::Fault(fault) => Halt::Fault(fault),
        }
    }
}

/// Why a batch was not applied to an instance, which is gone.
enum Broken {
    /// It died at an input.
    Died {
        offset: u32,
        code: HostCode,
        why: String,
    },
    Halt(Halt),
}

impl From<Stop> for Broken {
    fn from(stop: Stop) -> Broken {
        match stop {
            Stop::Fault(fault) => Broken::Halt(Halt::Fault(fault)),
            Stop::Died { offset, code, why } => Broken::Died { offset, code, why },
        }
    }
}

impl From<Halt> for Broken {
    fn from(halt: Halt) -> Broken {
        Broken::Halt(halt)
    }
}

/// An instance with where it stands.
struct Standing<'h> {
    instance: Box<dyn Instance>,
    head: &'h Head,
    /// So many times the usual budget has each of its inputs.
    budget_factor: u32,
}

/// An instance, where it stands, and the host's rows that calls can see there.
pub type Rebuilt = (Box<dyn Instance>, Head, MemoryView);

/// A resident machine's instance with what is known of its inputs.
pub struct Resident {
    components: Box<dyn Components>,
    instance: Option<Box<dyn Instance>>,
    /// Inputs of batches that are still to be applied, and will be passed over.
    settled: BTreeMap<Index, Settled>,
}

impl Resident {
    /// A machine whose instance is made when first needed.
    pub fn new(components: Box<dyn Components>) -> Resident {
        Resident { components, instance: None, settled: BTreeMap::new() }
    }

    /// A snapshot took the place of the machine's state: the instance is made anew from it when next needed.
    pub fn forget(&mut self) {
        self.instance = None;
        self.settled.clear();
    }

    /// Obeys a verdict on an input that waits for one: it is passed over, with `code` as its outcome.
    pub fn settle(&mut self, index: Index, offset: u32, code: HostCode) {
        self.settled.entry(index).or_default().insert(offset, code);
    }

    /// Applies the batch at `index`, rebuilding the instance as often as it dies.
    pub fn apply(
        &mut self,
        head: &Head,
        index: Index,
        batch: &Batch,
        view: Arc<dyn View>,
        history: &dyn History,
    ) -> Result<Applied, Halt> {
        loop {
            let instance = match self.instance.take() {
                Some(instance) => instance,
                None => self.rebuild_as(head, history)?,
            };
            let settled = self.settled.get(&index).cloned().unwrap_or_default();
            let at = Standing { instance, head, budget_factor: 1 };
            match self.step(at, index, batch, view.clone(), &settled) {
                Ok((applied, instance)) => {
                    self.instance = Some(instance);
                    // What was settled of this batch is among its writes now.
                    self.settled = self.settled.split_off(&index.next());
                    return Ok(applied);
                }
                Err(Broken::Halt(halt)) => return Err(halt),
                Err(Broken::Died { offset, code: HostCode::Exhausted, .. }) => {
                    return Err(Halt::NeedsVerdict { offset });
                }
                Err(Broken::Died { offset, code, .. }) => self.settle(index, offset, code),
            }
        }
    }

    /// Applies a batch to an instance, and gives the one that the next batch is for.
    fn step(
        &mut self,
        at: Standing,
        index: Index,
        batch: &Batch,
        view: Arc<dyn View>,
        settled: &Settled,
    ) -> Result<(Applied, Box<dyn Instance>), Broken> {
        let Standing { mut instance, head, budget_factor } = at;
        match (head.module, batch.upgrade()) {
            (Some(present), Some(next)) if !settled.contains_key(&0) => {
                let state = handover::save(instance.as_mut(), view.clone())?;
                drop(instance);
                let mut upgraded = self.made(next)?;
                handover::restore(upgraded.as_mut(), &state, view.clone())?;
                upgraded.scale_budget(budget_factor);
                let applied = apply::resident(head, index, batch, view.clone(), upgraded.as_mut(), settled)?;
                if matches!(applied.outcomes[..], [OutcomeAt { outcome: Outcome::Ok(_), .. }]) {
                    return Ok((applied, upgraded));
                }
                let mut back = self.made(present)?;
                handover::go_back(back.as_mut(), &state, view)?;
                back.scale_budget(budget_factor);
                Ok((applied, back))
            }
            (None, _) => {
                // The instance that is created is the first one.
                instance = match batch.component(head) {
                    Some(module) => self.made(module)?,
                    None => Box::new(Nobody),
                };
                instance.scale_budget(budget_factor);
                let applied = apply::resident(head, index, batch, view, instance.as_mut(), settled)?;
                Ok((applied, instance))
            }
            _ => {
                let applied = apply::resident(head, index, batch, view, instance.as_mut(), settled)?;
                Ok((applied, instance))
            }
        }
    }

    /// A fresh instance of a component.
    fn made(&mut self, module: Digest) -> Result<Box<dyn Instance>, Halt> {
        Ok(self.components.component(module)?.instance()?)
    }

    /// An instance that stands where the machine stands, by the same path.
    fn rebuild_as(&mut self, head: &Head, history: &dyn History) -> Result<Box<dyn Instance>, Halt> {
        let (instance, rebuilt, _) = self.rebuild(history, head.index)?;
        if rebuilt.hash != head.hash {
            return Err(Halt::CannotRestore(format!(
                "replaying its log up to index {} gives the hash {}, but the machine has {}: its guest does \
                 not compute the same from the same inputs",
                head.index, rebuilt.hash, head.hash
            )));
        }
        Ok(instance)
    }

    /// A second instance that stands at `up_to`, with the host's rows as of then: for queries and saves.
    pub fn rebuild(&mut self, history: &dyn History, up_to: Index) -> Result<Rebuilt, Halt> {
        let (mut instance, mut head, mut rows) = self.restore(history)?;
        instance.scale_budget(REPLAY_BUDGET_FACTOR);
        for (index, batch, settled) in replay(history, head.index, up_to)? {
            let view = Arc::new(std::mem::take(&mut rows));
            let at = Standing { instance, head: &head, budget_factor: REPLAY_BUDGET_FACTOR };
            let applied = match self.step(at, index, &batch, view.clone(), &settled) {
                Ok((applied, next)) => {
                    instance = next;
                    applied
                }
                Err(Broken::Halt(halt)) => return Err(halt),
                Err(Broken::Died { offset, why, .. }) => {
                    let what = "which ended well when it was first applied, failed in a replay";
                    return Err(Halt::CannotRestore(format!(
                        "input {offset} of batch {index}, {what}: {why}"
                    )));
                }
            };
            rows = alone(view)?;
            head = applied.head;
            keep_host_rows(&mut rows, applied);
        }
        instance.scale_budget(1);
        Ok((instance, head, rows))
    }

    fn restore(&mut self, history: &dyn History) -> Result<Rebuilt, Halt> {
        let Some(Saved { head, rows, state }) = history.saved()? else {
            return Ok((Box::new(Nobody), Head::default(), MemoryView::default()));
        };
        let mut instance = match head.module {
            Some(module) => self.made(module)?,
            None => Box::new(Nobody),
        };
        let view = Arc::new(rows);
        let (frame, ending) = instance.restore(Frame::for_restore(view.clone(), state));
        drop(frame);
        match ending {
            Ending::Answer(_) => Ok((instance, head, alone(view)?)),
            Ending::Fault(fault) => Err(Halt::Fault(fault)),
            Ending::Refused(refusal) => Err(Halt::CannotRestore(refusal.message)),
            Ending::Trapped(why) | Ending::Exhausted(why) => Err(Halt::CannotRestore(why)),
        }
    }
}

/// The rows that a call had a view of.
fn alone(view: Arc<MemoryView>) -> Result<MemoryView, Fault> {
    Arc::into_inner(view).ok_or_else(|| Fault::new("a guest kept its view after a call"))
}

/// The batches after `after` with their settled inputs.
fn replay(
    history: &dyn History,
    after: Index,
    up_to: Index,
) -> Result<impl Iterator<Item = (Index, Batch, Settled)>, Fault> {
    let batches = history.batches(after, up_to)?;
    let mut settled = history.settled(after)?;
    Ok(batches.into_iter().map(move |(index, batch)| {
        let settled = settled.remove(&index).unwrap_or_default();
        (index, batch, settled)
    }))
}

/// A second instance, fed the same inputs as the one that applies: queries and saves run in it, because they
/// can change its memory and its fuel, and are not replicated.
pub struct Reader {
    resident: Resident,
    at: Option<At>,
}

/// Where a reader stands.
struct At {
    instance: Box<dyn Instance>,
    head: Head,
    rows: MemoryView,
    /// Whether a query or save ran in it: they may have changed its memory.
    touched: bool,
}

impl Reader {
    /// A reader whose instance is made when first needed.
    pub fn new(components: Box<dyn Components>) -> Reader {
        Reader { resident: Resident::new(components), at: None }
    }

    /// A snapshot took the place of the machine's state: what the instance saw before was another way.
    pub fn forget(&mut self) {
        self.at = None;
    }

    /// Answers a query from the state after `up_to`. `time_ms` is what the guest takes for now.
    pub fn query(
        &mut self,
        history: &dyn History,
        up_to: Index,
        time_ms: u64,
        request: &[u8],
    ) -> Result<(Head, Ending), Halt> {
        let mut at = self.catch_up(history, up_to)?;
        let seen = QueryView {
            index: at.head.index.0,
            time: time_ms.max(at.head.time.0),
            revision: at.head.revision.0,
        };
        let view = Arc::new(std::mem::take(&mut at.rows));
        let (frame, ending) =
            at.instance.query(Frame::for_query(view.clone(), seen, &at.head), seen, request);
        drop(frame);
        let head = at.head;
        if matches!(ending, Ending::Answer(_) | Ending::Refused(_))
            && let Some(rows) = Arc::into_inner(view)
        {
            self.at = Some(At { rows, touched: true, ..at });
        }
        Ok((head, ending))
    }

    /// Has the guest write its state as of `up_to` to a sink, which `sink_of` makes from the head and the
    /// host's rows. It is written by an instance that saw inputs and nothing else, because it is what
    /// replicas restore.
    pub fn save(
        &mut self,
        history: &dyn History,
        up_to: Index,
        sink_of: impl FnOnce(&Head, &MemoryView) -> Result<Box<dyn std::io::Write + Send>, Fault>,
    ) -> Result<Head, Halt> {
        self.at = self.at.take().filter(|at| !at.touched);
        let mut at = self.catch_up(history, up_to)?;
        let sink = sink_of(&at.head, &at.rows)?;
        let view = Arc::new(std::mem::take(&mut at.rows));
        let (mut frame, ending) = at.instance.save(Frame::for_save(view.clone(), sink));
        frame.finish_save()?;
        drop(frame);
        let head = at.head;
        match ending {
            Ending::Answer(_) => {}
            Ending::Fault(fault) => return Err(Halt::Fault(fault)),
            Ending::Refused(refusal) => return Err(Halt::CannotSave(refusal.message)),
            Ending::Trapped(why) | Ending::Exhausted(why) => return Err(Halt::CannotSave(why)),
        }
        if let Some(rows) = Arc::into_inner(view) {
            self.at = Some(At { rows, touched: true, ..at });
        }
        Ok(head)
    }

    /// Brings the instance to `up_to`, making it anew if it died or stands too far on or back.
    fn catch_up(&mut self, history: &dyn History, up_to: Index) -> Result<At, Halt> {
        if let Some(at) = self.at.take().filter(|at| at.head.index <= up_to)
            && let Some(at) = self.feed(at, history, up_to)?
        {
            return Ok(at);
        }
        let (instance, head, rows) = self.resident.rebuild(history, up_to)?;
        Ok(At { instance, head, rows, touched: false })
    }

    /// `None`: the instance died, or the log no longer reaches back to where it stood.
    fn feed(&mut self, mut at: At, history: &dyn History, up_to: Index) -> Result<Option<At>, Halt> {
        let Ok(batches) = replay(history, at.head.index, up_to) else { return Ok(None) };
        for (index, batch, settled) in batches {
            let view = Arc::new(std::mem::take(&mut at.rows));
            let standing = Standing { instance: at.instance, head: &at.head, budget_factor: 1 };
            let (applied, instance) =
                match self.resident.step(standing, index, &batch, view.clone(), &settled) {
                    Ok(stepped) => stepped,
                    Err(Broken::Halt(lacks @ Halt::Lacks(_))) => return Err(lacks),
                    Err(_) => return Ok(None),
                };
            let Some(mut rows) = Arc::into_inner(view) else { return Ok(None) };
            let head = applied.head;
            keep_host_rows(&mut rows, applied);
            at = At { instance, head, rows, touched: at.touched };
        }
        Ok(Some(at))
    }
}

/// Keeps what later calls can see: leases. Events are on disk already.
pub fn keep_host_rows(rows: &mut MemoryView, applied: Applied) {
    for write in applied.writes {
        if write.table == Table::Leases {
            rows.put(write.table, write.key, write.value);
        }
    }
}
