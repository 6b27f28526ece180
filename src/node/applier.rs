//! Applies a machine's committed entries: the heart, the state write, the view, the answers, in this order.
//!
//! Promises: outcomes are told only after the state that holds them is published; a machine that cannot go on
//! halts and says why, and never goes past an entry it did not apply.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tracing::Span;

use super::background;
use super::cluster::Errand;
use super::halt_note::HaltNote;
use super::history::LogHistory;
use super::lane::{Lane, Placed, Published};
use super::lockstep::{Contradiction, Lockstep, Memory};
use super::order::{Order, Waiter};
use super::stage::Stage;
use crate::error::{Error, Fault};
use crate::id::{Digest, GroupId, Index, Term};
use crate::machine::apply::{Applied, Note};
use crate::machine::batch::{Act, Batch, Head, Verdict};
use crate::machine::event;
use crate::machine::frame::LogLevel;
use crate::machine::outcome::{HostCode, Outcome, OutcomeAt};
use crate::machine::overlay::Write;
use crate::machine::resident::{Halt, Resident};
use crate::machine::settled;
use crate::machine::stored::Stored;
use crate::machine::view::{Table, View};
use crate::raft::{Input, Role, SnapshotHead};
use crate::storage::entry::{Entry, EntryKind};
use crate::storage::snapshot;
use crate::trace::TraceContext;

/// Bytes of entries that are read at a time when a machine catches up.
const CATCH_UP_BYTES_MAX: usize = 8 << 20;

/// What has changed in a machine's rows.
pub enum Changed<'a> {
    /// A batch wrote these.
    Rows(&'a [Write]),
    /// All may have: a snapshot took their place.
    All,
}

/// Called with what has changed, before anybody is told of outcomes.
pub type OnChange = Box<dyn Fn(Changed) -> Result<(), Fault> + Send>;

/// How a machine's inputs are run.
pub enum Behavior {
    /// A fresh instance for every batch.
    Stored(Stored),
    /// One instance that lives on.
    Resident(Resident),
}

/// Applies one machine's entries.
pub struct Applier {
    group: GroupId,
    head: Head,
    view: Arc<dyn View>,
    behavior: Behavior,
    on_change: Option<OnChange>,
    lockstep: Lockstep,
    /// Entries that wait for a verdict on an input of the first of them, or for a module that it needs.
    stalled: VecDeque<Placed>,
    /// The last entry that was not applied because the machine is halted.
    passed_over: Index,
}

/// Why an entry was not applied.
enum Obstacle {
    NeedsVerdict(u32),
    /// The bytes of this module are not here yet.
    Lacks(Digest),
    Halt(String),
    /// The state is not what the leader has.
    Differs(Contradiction),
}

impl From<Fault> for Obstacle {
    fn from(fault: Fault) -> Obstacle {
        Obstacle::Halt(fault.to_string())
    }
}

impl Applier {
    /// A machine that stands at `head`, with `view` as its current tables.
    pub fn new(
        group: GroupId,
        head: Head,
        view: Arc<dyn View>,
        behavior: Behavior,
        on_change: Option<OnChange>,
        memory: Memory,
    ) -> Applier {
        Applier {
            group,
            head,
            view,
            behavior,
            on_change,
            lockstep: Lockstep::at(&head, memory),
            stalled: VecDeque::new(),
            passed_over: Index(0),
        }
    }

    /// Up to where entries are applied, or passed over: the log must hand out none of them again before a
    /// restart.
    pub fn passed(&self) -> Index {
        self.head.index.max(self.passed_over)
    }

    /// Makes the next batch's instance ready.
    pub fn prepare(&mut self) {
        if let Behavior::Stored(stored) = &mut self.behavior {
            stored.prepare();
        }
    }

    /// The machine was deleted: what waits for a verdict will not get it.
    pub fn refuse_stalled(&mut self, lane: &Lane) {
        for placed in self.stalled.drain(..) {
            refuse(placed.waiters, &halted_here(&lane.halted().unwrap_or_default()));
        }
    }

    /// A snapshot covers everything up to `index`: no replay passes over an input there again.
    pub fn forget_settled(&self, index: Index, stage: &Stage) -> Result<(), Fault> {
        let keys = settled::keys_up_to(&*self.view, index)?;
        if keys.is_empty() {
            return Ok(());
        }
        let rows = keys.into_iter().map(|key| (Table::Head, key, None::<&[u8]>));
        stage.state.write(self.group, rows, &self.head)
    }

    /// Puts a staged snapshot in the place of the state, and applies what was passed over since.
    pub fn install(&mut self, lane: &Lane, snapshot: &SnapshotHead, stage: &Stage) {
        let (group, index) = (self.group, snapshot.index);
        if !lane.ended() {
            match self.try_install(lane, snapshot, stage).and_then(|()| self.catch_up(lane, stage)) {
                Ok(()) => tracing::info!(%group, %index, "a snapshot was installed"),
                Err(why) => {
                    tracing::error!(%group, %index, %why, "a snapshot was not installed: the machine halts \
                        here");
                    lane.halt(&format!("the snapshot at index {index} was not installed: {why}"));
                    if let Error::Fault(fault) = why {
                        stage.fail(fault);
                    }
                }
            }
        }
        stage.incoming.lock().remove(&group);
    }

    /// Applies what was passed over while the machine was halted. It is in the log: that is not cut beyond
    /// the state.
    fn catch_up(&mut self, lane: &Lane, stage: &Stage) -> Result<(), Error> {
        let to = std::mem::take(&mut self.passed_over);
        let mut at = self.head.index;
        while at < to {
            let entries = stage.log_reader.entries(self.group, at.next(), to.next(), CATCH_UP_BYTES_MAX)?;
            let lacks = || Fault::new(format!("the log of group {} lacks entry {}", self.group, at.next()));
            at = entries.last().ok_or_else(lacks)?.index;
            for entry in entries {
                self.take(lane, Placed { entry, waiters: Vec::new() }, stage);
            }
        }
        Ok(())
    }

    /// The state is not to be relied on from now on, also after a restart. `note` says why to whoever asks.
    pub fn halt(&mut self, lane: &Lane, note: &HaltNote, stage: &Stage) -> Result<(), Fault> {
        let group = self.group;
        lane.halt(&note.why);
        // The catalog is what the node itself goes by: without it there would be no way back.
        if group != GroupId::CATALOG {
            stage.state.note_halted(group, &note.encode())?;
        }
        for placed in self.stalled.drain(..) {
            self.passed_over = placed.entry.index;
            refuse(placed.waiters, &halted_here(&note.why));
        }
        stage.orders.send(Order::Shard(Input::Halted { group, halted: true }));
        Ok(())
    }

    fn try_install(&mut self, lane: &Lane, snapshot: &SnapshotHead, stage: &Stage) -> Result<(), Error> {
        // What waited for a verdict or a module is in the snapshot.
        lane.set_lacks(None);
        for placed in self.stalled.drain(..) {
            refuse(placed.waiters, &Error::Unknown("a snapshot took the place of the command".into()));
        }
        stage.snapshots.put_in_force(self.group, snapshot.index)?;
        let read = stage.snapshots.read(self.group, snapshot.index)?;
        read.header().check_engine(&stage.engine)?;
        // Others' commands come first: to check and to write a gigabyte takes a core for seconds.
        let install = || snapshot::install(&stage.state, read);
        self.head = background::run_and_wait("snapshot install", install)??.head;
        match &mut self.behavior {
            // Its rows are all there is.
            Behavior::Stored(_) => stage.snapshots.remove_all(self.group)?,
            Behavior::Resident(resident) => {
                resident.forget();
                stage.snapshots.remove_before(self.group, snapshot.index)?;
            }
        }
        self.lockstep.forget();
        if let Some(on_change) = &self.on_change {
            on_change(Changed::All)?;
        }
        self.publish_at(lane, snapshot.term, stage);
        lane.installed();
        stage.orders.send(Order::Shard(Input::Halted { group: self.group, halted: false }));
        Ok(())
    }

    /// Applies the next entry, and those that waited for it.
    pub fn take(&mut self, lane: &Lane, placed: Placed, stage: &Stage) {
        if !self.stalled.is_empty() {
            self.obey_verdicts(&placed.entry);
        }
        self.stalled.push_back(placed);
        if lane.lacks().is_none() || lane.halted().is_some() {
            self.go_on(lane, stage);
        }
    }

    /// Applies those that waited, as far as that is possible now.
    pub fn go_on(&mut self, lane: &Lane, stage: &Stage) {
        lane.set_lacks(None);
        while let Some(placed) = self.stalled.pop_front() {
            if let Some(why) = lane.halted() {
                self.passed_over = placed.entry.index;
                refuse(placed.waiters, &halted_here(&why));
                continue;
            }
            match self.apply(lane, &placed.entry, stage) {
                Ok(Some(applied)) => {
                    answer(placed.waiters, &applied);
                    tell_watchers(lane, &applied);
                    self.remember(placed.entry.data, applied, stage);
                }
                Ok(None) => self.answer_empty(placed),
                Err(Obstacle::NeedsVerdict(offset)) => {
                    self.ask_for_verdict(lane, placed.entry.index, offset, stage);
                    self.stalled.push_front(placed);
                    return;
                }
                Err(Obstacle::Lacks(module)) => {
                    let (group, index) = (self.group, placed.entry.index);
                    tracing::warn!(%group, %index, %module, "the machine waits for a module's bytes");
                    self.stalled.push_front(placed);
                    lane.set_lacks(Some(module));
                    stage.courier.tell(Errand::Fetch(group, module));
                    return;
                }
                Err(Obstacle::Halt(why)) => self.stop_at(lane, placed, &why, stage),
                Err(Obstacle::Differs(found)) => self.differ_at(lane, placed, &found, stage),
            }
        }
    }

    /// The machine cannot go on. The next start tries again.
    fn stop_at(&mut self, lane: &Lane, placed: Placed, why: &str, stage: &Stage) {
        let (group, index) = (self.group, placed.entry.index);
        self.passed_over = index;
        if stage.is_interrupted() {
            tracing::warn!(%group, %index, why, "the next start applies this");
            lane.end(why);
            let why = "the node stopped before this command was applied; the next start applies it";
            return refuse(placed.waiters, &Error::Unknown(why.into()));
        }
        tracing::error!(%group, %index, why, "the machine halts here");
        lane.halt(why);
        if let Some(fault) = stage.state.failure() {
            stage.fail(fault);
        }
        refuse(placed.waiters, &Error::Unknown(format!("the machine halted at this command: {why}")));
    }

    /// The state is not what the leader has.
    fn differ_at(&mut self, lane: &Lane, placed: Placed, found: &Contradiction, stage: &Stage) {
        let (group, index, why) = (self.group, placed.entry.index, found.why.as_str());
        tracing::error!(%group, %index, why, "the machine halts here until it is reseeded");
        self.passed_over = index;
        if let Err(fault) = self.halt(lane, &HaltNote::differs(found), stage) {
            stage.fail(fault);
        }
        stage.courier.tell(Errand::Explain(group));
        refuse(placed.waiters, &halted_here(why));
    }

    /// Keeps what a batch did for a while, so that replicas that differ can tell where it began.
    fn remember(&mut self, batch: Bytes, applied: Applied, stage: &Stage) {
        if stage.net.is_some() {
            self.lockstep.keep(batch, Applied { notes: Vec::new(), ..applied }, stage.machines());
        }
    }

    /// What this replica remembers of its way.
    pub fn lockstep(&self) -> &Lockstep {
        &self.lockstep
    }

    /// `None`: the entry carries no batch and only moves the index.
    fn apply(&mut self, lane: &Lane, entry: &Entry, stage: &Stage) -> Result<Option<Applied>, Obstacle> {
        if entry.kind != EntryKind::Batch || entry.data.is_empty() {
            self.head.index = entry.index;
            stage.state.write(self.group, no_rows(), &self.head)?;
            self.publish(lane, entry, stage);
            return Ok(None);
        }
        let begun_ns = stage.clock.elapsed_ns();
        let batch = Batch::read(entry.data.clone())?;
        self.lockstep.check(&batch).map_err(Obstacle::Differs)?;
        let spans = self.spans(entry.index, &batch, stage);
        let applied = self.run(entry.index, &batch, stage)?;
        let rows = applied.writes.iter().map(|w| (w.table, &w.key, w.value.as_ref()));
        stage.state.write(self.group, rows, &applied.head)?;
        let trimmed = applied.head.history_first > self.head.history_first;
        self.head = applied.head;
        if trimmed {
            self.forget_events(stage)?;
        }
        if let Some(on_change) = &self.on_change {
            on_change(Changed::Rows(&applied.writes))?;
        }
        self.tell(entry.index, &applied.notes);
        self.publish(lane, entry, stage);
        drop(spans);
        self.send_beacon(lane, stage);
        stage.note_written(entry.data.len() as u64);
        stage.metrics.batch_applied(batch.operations.len(), stage.clock.elapsed_ns() - begun_ns);
        Ok(Some(applied))
    }

    /// The spans of those of its operations that are traced.
    fn spans(&self, index: Index, batch: &Batch, stage: &Stage) -> Vec<Span> {
        let traced = batch.operations.iter().filter(|operation| !operation.trace.is_empty());
        let contexts = traced.filter_map(|operation| TraceContext::from_bytes(&operation.trace));
        contexts.map(|context| context.apply(&stage.name, self.group, index)).collect()
    }

    fn run(&mut self, index: Index, batch: &Batch, stage: &Stage) -> Result<Applied, Obstacle> {
        let view = self.view.clone();
        let applied = match &mut self.behavior {
            Behavior::Stored(stored) => stored.apply(&self.head, index, batch, view),
            Behavior::Resident(resident) => {
                resident.apply(&self.head, index, batch, view, &LogHistory::of(stage, self.group))
            }
        };
        applied.map_err(|halt| match halt {
            Halt::Fault(fault) => fault.into(),
            Halt::NeedsVerdict { offset } => Obstacle::NeedsVerdict(offset),
            Halt::Lacks(module) => Obstacle::Lacks(module),
            Halt::Unfit(why) => Obstacle::Halt(format!("this node cannot run its component: {why}")),
            Halt::CannotRestore(why) | Halt::CannotSave(why) => {
                Obstacle::Halt(format!("its instance cannot be made again: {why}"))
            }
        })
    }

    /// Events before the head's first revision are not kept any more. What a crash leaves of them goes the
    /// next time.
    fn forget_events(&self, stage: &Stage) -> Result<(), Fault> {
        match event::rows_end(&*self.view, self.head.history_first)? {
            Some(end) => stage.state.remove_before(self.group, Table::Events, &end),
            None => Ok(()),
        }
    }

    /// Who waits for a change of membership has what was asked for.
    fn answer_empty(&self, placed: Placed) {
        for waiter in placed.waiters.into_iter().flatten() {
            let (index, revision) = (self.head.index, self.head.revision);
            // Whoever asked may have gone away.
            let _ = waiter.send(Ok(OutcomeAt { index, revision, outcome: Outcome::Ok(Bytes::new()) }));
        }
    }

    fn publish(&self, lane: &Lane, entry: &Entry, stage: &Stage) {
        self.publish_at(lane, entry.term, stage);
    }

    fn publish_at(&self, lane: &Lane, term: Term, stage: &Stage) {
        let published = Published {
            head: self.head,
            term,
            view: stage.state.snapshot_view(self.group),
            at_ms: stage.clock.now().monotonic_ms,
        };
        lane.publish(published);
    }

    /// Now and then a leader says where it stood, so that the others compare.
    fn send_beacon(&mut self, lane: &Lane, stage: &Stage) {
        self.lockstep.note(&self.head);
        let leads = stage.net.is_some() && lane.role().is_some_and(|role| role.role == Role::Leader);
        if leads && let Some(operation) = self.lockstep.due(&self.head, stage.machines()) {
            stage.orders.send(Order::Propose { group: self.group, operation, waiter: None });
        }
    }

    /// The leader's own experience becomes the verdict that all replicas obey.
    fn ask_for_verdict(&self, lane: &Lane, index: Index, offset: u32, stage: &Stage) {
        tracing::warn!(group = %self.group, %index, offset, "an input ran out of budget and waits for a \
            verdict");
        if lane.role().is_some_and(|role| role.role == Role::Leader) {
            let verdict = Verdict { index: index.0, offset, exhausted: true };
            let operation = Act::Verdict(verdict).into();
            stage.orders.send(Order::Propose { group: self.group, operation, waiter: None });
        }
    }

    fn obey_verdicts(&mut self, entry: &Entry) {
        let Behavior::Resident(resident) = &mut self.behavior else { return };
        // An entry that does not decode halts the machine when its own turn comes.
        let Ok(batch) = Batch::read(entry.data.clone()) else { return };
        for act in batch.operations.into_iter().filter_map(|operation| operation.act) {
            if let Act::Verdict(Verdict { index, offset, exhausted: true }) = act {
                resident.settle(Index(index), offset, HostCode::Exhausted);
            }
        }
    }

    fn tell(&self, index: Index, notes: &[Note]) {
        let group = self.group;
        for note in notes {
            match note {
                Note::Ended(offset, why) => {
                    tracing::warn!(%group, %index, offset, why, "the host ended an input");
                }
                Note::Line(offset, line) => match line.level {
                    LogLevel::Debug => tracing::debug!(%group, %index, offset, "{}", line.message),
                    LogLevel::Info => tracing::info!(%group, %index, offset, "{}", line.message),
                    LogLevel::Warn => tracing::warn!(%group, %index, offset, "{}", line.message),
                    LogLevel::Error => tracing::error!(%group, %index, offset, "{}", line.message),
                },
            }
        }
    }
}

/// No rows, of the type that a state write takes.
fn no_rows() -> impl Iterator<Item = (Table, &'static [u8], Option<&'static [u8]>)> {
    std::iter::empty()
}

fn answer(waiters: Vec<Option<Waiter>>, applied: &Applied) {
    for (offset, waiter) in waiters.into_iter().enumerate() {
        let Some(waiter) = waiter else { continue };
        // A client that went away needs no answer.
        let _ = waiter.send(Ok(applied.outcomes[offset].clone()));
    }
}

/// After the state is published: who falls behind reads on there.
fn tell_watchers(lane: &Lane, applied: &Applied) {
    let rows = applied.writes.iter().filter(|write| write.table == Table::Events);
    let rows = rows.filter_map(|write| Some((&write.key[..], write.value.as_ref()?)));
    lane.hub().publish(applied.head.revision, rows);
}

fn halted_here(why: &str) -> Error {
    // It is in the log: replicas that are not halted apply it, and so may this one after a restart.
    Error::Unknown(format!(
        "the machine is halted here, and whether the command is applied is unknown: {why}"
    ))
}

fn refuse(waiters: Vec<Option<Waiter>>, why: &Error) {
    for waiter in waiters.into_iter().flatten() {
        // A client that went away needs no answer.
        let _ = waiter.send(Err(why.clone()));
    }
}
