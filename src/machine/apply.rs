//! One batch, applied: (batch, guest, view of the state) to (outcomes, writes, events, revision, hash).
//!
//! Inputs run one by one, each behind a savepoint. A refusal rolls its own input back. A trap poisons the
//! instance: a stored machine's batch is then run again with a fresh instance for every input, so that only
//! the guilty one fails; a resident machine is rebuilt by [`resident`](super::resident), which then passes
//! over the guilty input.

use std::sync::Arc;

use bytes::Bytes;

use super::batch::{Act, Batch, Create, Head, Numbered, Operation, Upgrade};
use super::chain;
use super::frame::{Frame, LogLine};
use super::guest::{Ending, Guest, Input, Instance};
use super::lease::Tally;
use super::outcome::{Context, HostCode, Outcome, OutcomeAt};
use super::overlay::{Overlay, Write};
use super::session::{self, Turn};
use super::settings::Settings;
use super::settled::{self, Settled};
use super::view::{Table, View};
use crate::error::Fault;
use crate::id::{Digest, Index, LogTime, Revision};

/// What a batch did. Nothing of it is on disk yet.
#[derive(Debug)]
pub struct Applied {
    /// One for each operation, in order.
    pub outcomes: Vec<OutcomeAt>,
    /// The last write to each key, by table and key; without the head.
    pub writes: Vec<Write>,
    /// Where the machine stands now.
    pub head: Head,
    /// What guests logged and why the host ended inputs: for this node's log only.
    pub notes: Vec<Note>,
}

/// Something to tell whoever reads this node's log. Never replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A guest's own line.
    Line(u32, LogLine),
    /// Why the host ended the input at this offset.
    Ended(u32, String),
}

/// Why a batch has no result.
#[derive(Debug)]
pub enum Stop {
    /// This computer failed; the batch may be applied again later.
    Fault(Fault),
    /// The resident instance died at this input and must be rebuilt.
    Died {
        /// The input.
        offset: u32,
        /// `Trapped` or `Exhausted`.
        code: HostCode,
        /// For this node's log.
        why: String,
    },
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Stop {
        Stop::Fault(fault)
    }
}

/// Applies a batch of a stored machine to its component, or, if the batch is an upgrade, to the one that it
/// is to run.
pub fn stored(
    head: &Head,
    index: Index,
    batch: &Batch,
    view: Arc<dyn View>,
    guest: &mut dyn Guest,
) -> Result<Applied, Fault> {
    let together = Runner::Together { guest, instance: None, calls: 0 };
    match Run::new(head, index, batch, view.clone(), together).all(batch) {
        Ok(applied) => Ok(applied),
        Err(Abort::Stop(Stop::Fault(fault))) => Err(fault),
        Err(Abort::Again(guest)) => {
            match Run::new(head, index, batch, view, Runner::OneByOne(guest)).all(batch) {
                Ok(applied) => Ok(applied),
                Err(Abort::Stop(Stop::Fault(fault))) => Err(fault),
                Err(_) => unreachable!(
                    "inputs that run one by one neither poison each other nor a resident instance"
                ),
            }
        }
        Err(Abort::Stop(Stop::Died { .. })) => unreachable!("a stored machine has no resident instance"),
    }
}

/// Applies a batch of a resident machine to its instance, or, if the batch is an upgrade, to one of the other
/// component that has restored its state; passes over what is `settled`.
pub fn resident(
    head: &Head,
    index: Index,
    batch: &Batch,
    view: Arc<dyn View>,
    instance: &mut dyn Instance,
    settled: &Settled,
) -> Result<Applied, Stop> {
    let runner = Runner::Resident { instance, settled };
    Run::new(head, index, batch, view, runner).all(batch).map_err(|abort| match abort {
        Abort::Stop(stop) => stop,
        Abort::Again(_) => unreachable!("a resident instance is never run one by one"),
    })
}

/// How inputs meet instances.
pub(super) enum Runner<'a> {
    /// A stored machine: all inputs of the batch in one fresh instance.
    Together { guest: &'a mut dyn Guest, instance: Option<Box<dyn Instance>>, calls: u32 },
    /// A stored machine, after a trap: a fresh instance for each input.
    OneByOne(&'a mut dyn Guest),
    /// A resident machine: its one instance.
    Resident { instance: &'a mut dyn Instance, settled: &'a Settled },
    /// Between two states, while the guest moves.
    Moving,
}

/// Why a run ended early.
pub(super) enum Abort<'a> {
    /// Run the batch again, one by one.
    Again(&'a mut dyn Guest),
    Stop(Stop),
}

impl From<Fault> for Abort<'_> {
    fn from(fault: Fault) -> Self {
        Abort::Stop(Stop::Fault(fault))
    }
}

/// An act of the host that says nothing but that it was done.
pub(super) fn done() -> Outcome {
    Outcome::Ok(Bytes::new())
}

/// A batch being applied.
pub(super) struct Run<'a> {
    before: Head,
    index: Index,
    pub(super) time_ms: u64,
    pub(super) term_began_ms: u64,
    module: Option<Digest>,
    /// Whether the batch has one operation.
    is_alone: bool,
    revision: Revision,
    pub(super) history_first: Revision,
    pub(super) settings: Settings,
    /// The offset of the next input.
    offset: u32,
    /// Taken while the guest has it.
    frame: Option<Frame>,
    runner: Runner<'a>,
    notes: Vec<Note>,
}

impl<'a> Run<'a> {
    fn new(head: &Head, index: Index, batch: &Batch, view: Arc<dyn View>, runner: Runner<'a>) -> Run<'a> {
        let time_ms = batch.time_ms.max(head.time.0);
        let term_began = if batch.begins_term { LogTime(time_ms) } else { head.term_began };
        Run {
            before: *head,
            index,
            time_ms,
            term_began_ms: term_began.0,
            module: head.module,
            is_alone: batch.operations.len() == 1,
            revision: head.revision,
            history_first: head.history_first,
            settings: head.settings,
            offset: 0,
            frame: Some(Frame::for_batch(view, &Head { term_began, ..*head })),
            runner,
            notes: Vec::new(),
        }
    }

    fn all(mut self, batch: &Batch) -> Result<Applied, Abort<'a>> {
        let mut outcomes = Vec::with_capacity(batch.operations.len());
        for operation in &batch.operations {
            outcomes.push(match &operation.numbered {
                Some(numbered) => self.numbered(operation, numbered)?,
                None => {
                    let outcome = self.operation(operation)?;
                    self.here(outcome)
                }
            });
        }
        let frame = self.frame.take().expect("the frame is back after every call");
        let (overlay, leases, event_bytes) = frame.finish();
        let writes = overlay.into_writes();
        let mut head = Head {
            index: self.index,
            time: LogTime(self.time_ms),
            revision: self.revision,
            hash: self.before.hash,
            module: self.module,
            leases,
            term_began: LogTime(self.term_began_ms),
            history_first: self.history_first,
            event_bytes,
            settings: self.settings,
        };
        head.hash = chain::next(&head, &outcomes, &writes);
        if let Runner::Together { guest, instance: Some(instance), .. } = self.runner {
            guest.retire(instance);
        }
        Ok(Applied { outcomes, writes, head, notes: self.notes })
    }

    /// What became of an operation, here and now.
    fn here(&self, outcome: Outcome) -> OutcomeAt {
        OutcomeAt { index: self.index, revision: self.revision, outcome }
    }

    /// A command of a session: applied once, however often it comes.
    fn numbered(&mut self, operation: &Operation, numbered: &Numbered) -> Result<OutcomeAt, Abort<'a>> {
        if !self.lives(numbered.session)? {
            return Ok(self.here(Outcome::Host(HostCode::UnknownSession)));
        }
        let settings = self.settings;
        match session::turn(self.host_rows().0, numbered, &settings)? {
            Turn::Refuse(code) => Ok(self.here(Outcome::Host(code))),
            Turn::Again(first) => Ok(first),
            Turn::Apply => {
                let outcome = self.operation(operation)?;
                let first = self.here(outcome);
                // The command itself may have ended its session.
                if self.lives(numbered.session)? {
                    session::keep(self.host_rows().0, numbered, &first);
                }
                Ok(first)
            }
        }
    }

    fn operation(&mut self, operation: &Operation) -> Result<Outcome, Abort<'a>> {
        match &operation.act {
            Some(Act::Create(create)) => self.create(create),
            // A verdict is obeyed before its own turn comes, by whoever waits for it; a beacon is compared
            // before its batch is applied.
            Some(Act::Verdict(_) | Act::Beacon(_)) => Ok(done()),
            None => Ok(Outcome::Host(HostCode::Invalid)),
            Some(act) => match self.module {
                Some(module) => self.act(module, act),
                None => Ok(Outcome::Host(HostCode::NotCreated)),
            },
        }
    }

    /// An act on a machine that runs `module`.
    fn act(&mut self, module: Digest, act: &Act) -> Result<Outcome, Abort<'a>> {
        match act {
            Act::Command(payload) => self.input(Input::Command(payload.clone())),
            Act::Expire(expire) => self.expire(expire),
            Act::Grant(grant) => self.grant(grant, false),
            Act::OpenSession(grant) => self.grant(grant, true),
            Act::Renew(renew) => self.renew(renew),
            Act::Revoke(id) => self.revoke(*id),
            Act::Configure(change) => Ok(self.configure(change)),
            Act::Trim(first) => Ok(self.trim(Revision(*first))),
            Act::Upgrade(upgrade) => self.upgrade(module, upgrade),
            Act::Create(_) | Act::Verdict(_) | Act::Beacon(_) => {
                unreachable!("these are seen to whether there is a machine or not")
            }
        }
    }

    fn create(&mut self, create: &Create) -> Result<Outcome, Abort<'a>> {
        if self.module.is_some() {
            return Ok(done());
        }
        let Some(module) = create.module() else {
            return Ok(Outcome::Host(HostCode::Invalid));
        };
        // The first input may grant leases already.
        self.configure(&create.settings.unwrap_or_default());
        let outcome = self.input(Input::Created(create.configuration.clone()))?;
        if matches!(outcome, Outcome::Ok(_)) {
            self.module = Some(module);
        }
        Ok(outcome)
    }

    /// The first input of another component, which whoever runs the batch has put in place of the present
    /// one. The machine runs it from here on if it agrees.
    fn upgrade(&mut self, previous: Digest, upgrade: &Upgrade) -> Result<Outcome, Abort<'a>> {
        let Some(module) = upgrade.module().filter(|_| self.is_alone) else {
            return Ok(Outcome::Host(HostCode::Invalid));
        };
        let argument = upgrade.argument.clone();
        let outcome = self.input(Input::Upgraded { previous: previous.to_string(), argument })?;
        if matches!(outcome, Outcome::Ok(_)) {
            self.module = Some(module);
        }
        Ok(outcome)
    }

    fn configure(&mut self, change: &Settings) -> Outcome {
        self.settings = self.settings.with(change);
        let leases_max = self.settings.in_force().leases_max;
        self.frame.as_mut().expect("the frame is here between calls").set_leases_max(leases_max);
        done()
    }

    /// Events before `first` are not kept any more; the rows go when each replica finds the time.
    fn trim(&mut self, first: Revision) -> Outcome {
        self.history_first = self.history_first.max(first.min(self.revision.next()));
        done()
    }

    /// The rows that the host's own operations change.
    pub(super) fn host_rows(&mut self) -> (&mut Overlay, &mut Tally) {
        self.frame.as_mut().expect("the frame is here between calls").host_rows()
    }

    /// Runs one input behind a savepoint.
    pub(super) fn input(&mut self, input: Input) -> Result<Outcome, Abort<'a>> {
        let offset = self.offset;
        self.offset += 1;
        if let Runner::Resident { settled, .. } = &self.runner
            && let Some(&code) = settled.get(&offset)
        {
            let (key, value) = settled::row(self.index, offset, code);
            self.host_rows().0.put(Table::Head, key, Some(value));
            return Ok(Outcome::Host(code));
        }
        let context =
            Context { index: self.index.0, offset, time: self.time_ms, revision: self.revision.next().0 };
        let ending = self.call(context, &input)?;
        let frame = self.frame.as_mut().expect("the frame is back after every call");
        self.notes.extend(frame.take_log_lines().into_iter().map(|line| Note::Line(offset, line)));
        match ending {
            Ending::Answer(answer) => {
                if frame.events() > 0 {
                    self.revision = self.revision.next();
                }
                Ok(Outcome::Ok(answer))
            }
            Ending::Refused(refusal) => {
                frame.rollback();
                Ok(Outcome::Refused(refusal))
            }
            Ending::Trapped(why) => self.ended(offset, HostCode::Trapped, why),
            Ending::Exhausted(why) => self.ended(offset, HostCode::Exhausted, why),
            Ending::Fault(fault) => Err(fault.into()),
        }
    }

    /// Calls the guest in the instance that the runner has for this input.
    fn call(&mut self, context: Context, input: &Input) -> Result<Ending, Abort<'a>> {
        let mut frame = self.frame.take().expect("the frame is here between calls");
        frame.begin(context);
        let (frame, ending) = match &mut self.runner {
            Runner::Together { guest, instance, calls } => {
                *calls += 1;
                let instance = match instance {
                    Some(instance) => instance,
                    None => instance.insert(guest.instance()?),
                };
                instance.apply(frame, context, input)
            }
            Runner::OneByOne(guest) => guest.instance()?.apply(frame, context, input),
            Runner::Resident { instance, .. } => instance.apply(frame, context, input),
            Runner::Moving => unreachable!("a runner moves only between two inputs"),
        };
        self.frame = Some(frame);
        Ok(ending)
    }

    /// The host ended the input: the instance is dead.
    fn ended(&mut self, offset: u32, code: HostCode, why: String) -> Result<Outcome, Abort<'a>> {
        self.frame.as_mut().expect("the frame is back after every call").rollback();
        match std::mem::replace(&mut self.runner, Runner::Moving) {
            Runner::Together { guest, calls, .. } if calls > 1 => return Err(Abort::Again(guest)),
            // The first input ran alone in a fresh instance: it is guilty, and the rest goes on as if run
            // again.
            Runner::Together { guest, .. } | Runner::OneByOne(guest) => self.runner = Runner::OneByOne(guest),
            Runner::Resident { .. } => return Err(Abort::Stop(Stop::Died { offset, code, why })),
            Runner::Moving => unreachable!("a runner moves only between two inputs"),
        }
        self.notes.push(Note::Ended(offset, why));
        Ok(Outcome::Host(code))
    }
}
