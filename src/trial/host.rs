//! The machine on trial: its state in memory, its batches applied as a node applies them.
//!
//! Promises: what a call gives is a function of the component, the seed, and the calls before it. A call that
//! fails has changed nothing, unless it says that the machine halts. Must never read a clock.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::journal::{Journal, Past, Snapshot};
use crate::error::{Error, Fault};
use crate::id::{Digest, Index, Revision};
use crate::machine::apply::{Applied, Note};
use crate::machine::batch::{Act, Batch, Expire, Head, Operation};
use crate::machine::event::{self, Event};
use crate::machine::frame::Frame;
use crate::machine::guest::{Components, Ending, Guest, QueryView, Unready, World};
use crate::machine::lease::{self, Lease};
use crate::machine::outcome::{HostCode, Outcome, OutcomeAt, Refusal};
use crate::machine::resident::{Halt, Reader, Resident, Sink};
use crate::machine::settled;
use crate::machine::stored::Stored;
use crate::machine::view::{MemoryView, Table, View};
use crate::wasm::limits::{QUERY_FUEL, QUERY_TIME};
use crate::wasm::{Budget, GuestSettings, Module, QueryPool};

/// Where clocks begin unless the caller says otherwise: the first of January 2026, so that the same commands
/// give the same answers on every day.
pub const START_MS: u64 = 1_767_225_600_000;

/// Leases whose end one operation proposes, as on a node.
const EXPIRE_MAX: usize = 1_000;

/// Batches of lease ends that one advance of the clock may take: a machine that grants itself a lease of a
/// millisecond at the end of the one before would otherwise keep its caller busy for a lifetime.
const ADVANCE_BATCHES_MAX: usize = 100_000;

/// Makes the component's instances, for a machine that begins or begins anew.
pub type MakeGuest = Arc<dyn Fn() -> Box<dyn Guest> + Send + Sync>;

/// The one component that is on trial.
struct OnTrial {
    module: Digest,
    make: MakeGuest,
}

impl Components for OnTrial {
    fn component(&mut self, module: Digest) -> Result<Box<dyn Guest>, Unready> {
        if module == self.module { Ok((self.make)()) } else { Err(Unready::Absent(module)) }
    }
}

/// A machine, alone in memory.
pub struct Host {
    module: Digest,
    world: World,
    make: MakeGuest,
    queries: QueryPool,
    behavior: Behavior,
    head: Head,
    rows: Arc<MemoryView>,
    journal: Journal,
    now_ms: u64,
}

/// How inputs and queries run.
enum Behavior {
    Stored(Stored),
    Resident(Box<(Resident, Reader)>),
}

/// What a batch did.
#[derive(Debug)]
pub struct Done {
    /// One for each operation.
    pub outcomes: Vec<OutcomeAt>,
    /// What it emitted, in order.
    pub events: Vec<Event>,
    /// What the guest logged, and why the host ended inputs.
    pub notes: Vec<Note>,
    /// Where the machine stands now.
    pub head: Head,
}

/// A query's answer.
#[derive(Debug)]
pub struct Answered {
    /// The state it was answered from.
    pub index: Index,
    /// The machine's revision there.
    pub revision: Revision,
    /// The answer, or the guest's refusal.
    pub outcome: Result<Bytes, Refusal>,
}

/// A lease that ended because its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedLease {
    /// Which.
    pub id: u64,
    /// The clock then.
    pub at_ms: u64,
}

/// A lease as it stands.
#[derive(Clone, Debug)]
pub struct LeaseLine {
    /// Its id.
    pub id: u64,
    /// What it is.
    pub lease: Lease,
    /// Milliseconds that it still lives.
    pub remaining_ms: u64,
    /// The keys that are attached to it, in key order.
    pub keys: Vec<Vec<u8>>,
}

impl Host {
    /// A machine that is to run `module`, at `now_ms` of its clock. It is not created yet.
    pub fn of_module(module: &Module, digest: Digest, now_ms: u64) -> Host {
        // What a node makes of the first machine's group.
        let seed = *blake3::hash(&1u64.to_be_bytes()).as_bytes();
        let guests = module.clone();
        let make: MakeGuest = Arc::new(move || guests.guest(seed, GuestSettings::default()));
        Host::of_guests(module.world(), digest, make, module.queries(seed), now_ms)
    }

    /// The same with guests of the caller's making.
    pub fn of_guests(world: World, module: Digest, make: MakeGuest, queries: QueryPool, now_ms: u64) -> Host {
        let behavior = Behavior::begin(world, module, &make);
        let (head, rows, journal) = (Head::default(), Arc::default(), Journal::default());
        Host { module, world, make, queries, behavior, head, rows, journal, now_ms }
    }

    /// Creates the machine with its configuration, as its first input.
    pub fn create(&mut self, configuration: Bytes) -> Result<Done, Error> {
        self.submit(vec![Operation::create(self.module, configuration)])
    }

    /// Applies one command, in a batch of its own.
    pub fn apply(&mut self, command: Bytes) -> Result<Done, Error> {
        self.submit(vec![Operation::command(command)])
    }

    /// Applies operations as one batch, at the present time.
    ///
    /// # Errors
    /// `Guest` if the machine halts here, as it would on a node: it cannot be made again from its own past.
    pub fn submit(&mut self, operations: Vec<Operation>) -> Result<Done, Error> {
        let index = self.head.index.next();
        let begins_term = self.head.index == Index(0);
        let batch = Batch { time_ms: self.now_ms, operations, begins_term };
        let Applied { outcomes, writes, head, notes } = self.run(index, &batch)?;
        let mut events = Vec::new();
        for write in writes.iter().filter(|write| write.table == Table::Events) {
            if let Some(row) = &write.value {
                events.extend(event::read_row(&write.key, row.clone())?);
            }
        }
        // Queries and batches give their views back when they end.
        let rows = Arc::get_mut(&mut self.rows)
            .ok_or_else(|| Fault::new("a guest kept its view after a call: this is a defect of the host"))?;
        for write in writes {
            rows.put(write.table, write.key, write.value);
        }
        self.head = head;
        if self.world == World::Resident {
            self.journal.push(index, batch);
        }
        Ok(Done { outcomes, events, notes, head })
    }

    fn run(&mut self, index: Index, batch: &Batch) -> Result<Applied, Error> {
        let view: Arc<dyn View> = self.rows.clone();
        let (resident, _) = match &mut self.behavior {
            Behavior::Stored(stored) => {
                let applied = stored.apply(&self.head, index, batch, view);
                stored.prepare();
                return applied.map_err(halted);
            }
            Behavior::Resident(pair) => pair.as_mut(),
        };
        let past = Past { journal: &self.journal, rows: &self.rows };
        loop {
            match resident.apply(&self.head, index, batch, view.clone(), &past) {
                Ok(applied) => return Ok(applied),
                // A leader's own experience is the verdict, and here is nobody else.
                Err(Halt::NeedsVerdict { offset }) => resident.settle(index, offset, HostCode::Exhausted),
                Err(halt) => return Err(halted(halt)),
            }
        }
    }

    /// Asks the machine, at the present time.
    ///
    /// # Errors
    /// `Guest` if it traps or uses up its budget.
    pub fn query(&mut self, request: &[u8]) -> Result<Answered, Error> {
        let Head { index, revision, .. } = self.head;
        let outcome = match self.ask(index.0, request)? {
            Ending::Answer(answer) => Ok(answer),
            Ending::Refused(refusal) => Err(refusal),
            Ending::Trapped(why) => return Err(Error::Guest(format!("the query trapped: {why}"))),
            Ending::Exhausted(why) => {
                return Err(Error::Guest(format!("the query used up its budget: {why}")));
            }
            Ending::Fault(fault) => return Err(fault.into()),
        };
        Ok(Answered { index, revision, outcome })
    }

    /// The same, whatever becomes of it. A stored machine is told that it stands at `index`.
    pub(super) fn ask(&mut self, index: u64, request: &[u8]) -> Result<Ending, Error> {
        Ok(match &mut self.behavior {
            Behavior::Stored(_) => {
                let seen = QueryView { index, time: self.now_ms, revision: self.head.revision.0 };
                let frame = Frame::for_query(self.rows.clone(), seen, &self.head);
                self.queries.query(frame, seen, request, Budget::new(QUERY_FUEL, QUERY_TIME)).1
            }
            Behavior::Resident(pair) => {
                let past = Past { journal: &self.journal, rows: &self.rows };
                pair.1.query(&past, self.head.index, self.now_ms, request).map_err(halted)?.1
            }
        })
    }

    /// Lets time pass. Leases end at their deadlines, one deadline after the other, each in a batch with the
    /// clock of that moment.
    ///
    /// # Errors
    /// `LimitReached` if more end than a caller can want; those before are ended then.
    pub fn advance(&mut self, by_ms: u64) -> Result<Vec<(EndedLease, Done)>, Error> {
        let (ended, is_there) = self.advance_at_most(by_ms, ADVANCE_BATCHES_MAX)?;
        if is_there {
            return Ok(ended);
        }
        Err(Error::LimitReached(format!(
            "more than {ADVANCE_BATCHES_MAX} times leases end within {by_ms} ms; the clock stands at {} now: \
             advance it by less",
            self.now_ms
        )))
    }

    /// The same, until leases have ended so many times: says whether the clock came to where it was to go.
    pub fn advance_at_most(
        &mut self,
        by_ms: u64,
        times_max: usize,
    ) -> Result<(Vec<(EndedLease, Done)>, bool), Error> {
        let until_ms = self.now_ms.saturating_add(by_ms);
        let mut ended = Vec::new();
        for _ in 0..times_max {
            let Some(due_ms) = self.next_due_ms(until_ms)? else {
                self.now_ms = until_ms;
                return Ok((ended, true));
            };
            self.now_ms = self.now_ms.max(due_ms);
            // Each in a batch of its own, so that what it did can be told.
            for id in lease::due(&*self.rows, self.now_ms, EXPIRE_MAX)? {
                // The machine may have revoked it at the end of the one before.
                if lease::find_in(&*self.rows, id)?.is_none() {
                    continue;
                }
                let done = self.submit(vec![Act::Expire(Expire { leases: vec![id] }).into()])?;
                if lease::find_in(&*self.rows, id)?.is_none() {
                    ended.push((EndedLease { id, at_ms: self.now_ms }, done));
                }
            }
        }
        Ok((ended, false))
    }

    /// When the next lease is to be looked at, if that is not after `until_ms`.
    fn next_due_ms(&self, until_ms: u64) -> Result<Option<u64>, Fault> {
        let first = lease::due(&*self.rows, until_ms, 1)?;
        let Some(&id) = first.first() else { return Ok(None) };
        Ok(lease::find_in(&*self.rows, id)?.map(|lease| lease.due_ms))
    }

    /// The whole state, from which this host or another one can go on.
    ///
    /// # Errors
    /// `Guest` if a resident machine cannot save itself.
    pub fn snapshot(&mut self) -> Result<Snapshot, Error> {
        let mut rows = MemoryView::clone(&self.rows);
        for key in settled::keys_up_to(&rows, self.head.index)? {
            rows.put(Table::Head, key, None);
        }
        let state = match &mut self.behavior {
            Behavior::Stored(_) => Bytes::new(),
            Behavior::Resident(pair) => {
                let past = Past { journal: &self.journal, rows: &self.rows };
                let sink = Sink::default();
                let to = sink.clone();
                let saved = pair.1.save(&past, self.head.index, |_, _| Ok(Box::new(to)));
                saved.map_err(halted)?;
                sink.take()
            }
        };
        Ok(Snapshot { head: self.head, now_ms: self.now_ms, rows, state })
    }

    /// Goes on from a snapshot, with fresh instances: what came after it is gone, its clock included.
    ///
    /// # Errors
    /// `Invalid` if it is of another module. Whether a resident machine can read it shows here, too: then
    /// this host is as it was.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        if snapshot.head.module.is_some_and(|module| module != self.module) {
            return Err(Error::Invalid(format!(
                "the snapshot is of a machine that runs {:?}, and this one runs {}",
                snapshot.head.module, self.module
            )));
        }
        let mut behavior = Behavior::begin(self.world, self.module, &self.make);
        let (rows, journal) = (Arc::new(snapshot.rows.clone()), Journal::after(snapshot.clone()));
        if let Behavior::Resident(pair) = &mut behavior {
            let past = Past { journal: &journal, rows: &rows };
            pair.0.rebuild(&past, snapshot.head.index).map_err(halted)?;
        }
        self.behavior = behavior;
        (self.head, self.now_ms) = (snapshot.head, snapshot.now_ms);
        (self.rows, self.journal) = (rows, journal);
        Ok(())
    }
}

/// What there is to see.
impl Host {
    /// Where the machine stands.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Its clock.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Its world.
    pub fn world(&self) -> World {
        self.world
    }

    /// Whether it was created.
    pub fn is_created(&self) -> bool {
        self.head.module.is_some()
    }

    /// All rows of all tables.
    pub fn rows(&self) -> &MemoryView {
        &self.rows
    }

    /// The events from a revision on, in order.
    pub fn events(&self, from: Revision) -> Result<Vec<Event>, Fault> {
        let mut events = Vec::new();
        event::visit_from(&*self.rows, from, &mut |event| {
            events.push(event);
            ControlFlow::Continue(())
        })?;
        Ok(events)
    }

    /// All leases, by id.
    pub fn leases(&self) -> Result<Vec<LeaseLine>, Fault> {
        let mut lines = Vec::new();
        for id in lease::ids_after(&*self.rows, 0, usize::MAX)? {
            let Some(lease) = lease::find_in(&*self.rows, id)? else { continue };
            let keys = lease::attached_in(&*self.rows, id, None, usize::MAX)?;
            let remaining_ms = lease.end_ms(self.head.term_began.0).saturating_sub(self.now_ms);
            lines.push(LeaseLine { id, lease, remaining_ms, keys });
        }
        Ok(lines)
    }
}

impl Done {
    /// What became of its last operation, which is the only one of most batches.
    pub fn last(&self) -> &OutcomeAt {
        self.outcomes.last().expect("a batch of a host in memory has an operation")
    }

    /// Whether its last operation was done.
    pub fn is_ok(&self) -> bool {
        matches!(self.last().outcome, Outcome::Ok(_))
    }
}

impl Behavior {
    fn begin(world: World, module: Digest, make: &MakeGuest) -> Behavior {
        let components = || Box::new(OnTrial { module, make: make.clone() });
        match world {
            World::Stored => Behavior::Stored(Stored::new(components())),
            World::Resident => {
                Behavior::Resident(Box::new((Resident::new(components()), Reader::new(components()))))
            }
        }
    }
}

fn halted(halt: Halt) -> Error {
    match halt {
        Halt::Fault(fault) => Error::Fault(fault),
        Halt::NeedsVerdict { offset } => {
            Error::Guest(format!("the machine halts: input {offset} used up its budget in a replay"))
        }
        Halt::CannotRestore(why) => {
            Error::Guest(format!("the machine halts: it cannot be made again from its past: {why}"))
        }
        Halt::Lacks(module) => {
            Error::Guest(format!("the machine halts: its component {module} is not the one on trial"))
        }
        Halt::Unfit(why) => Error::Guest(format!("its component cannot be run here: {why}")),
        Halt::CannotSave(why) => Error::Guest(format!("the machine cannot save its state: {why}")),
    }
}
