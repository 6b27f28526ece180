//! One run of a machine: its deeds in batches of some kind, with or without snapshots and failures.
//!
//! Promises: a run is a function of its course, the plan and the component; two courses that differ only in
//! their engine cut the same batches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::deed::Deed;
use super::generate::Chance;
use super::recorder::{Asked, Cut, Ledger, Places, RecordedGuest, Shared, Source, Step, what_became};
use crate::error::Error;
use crate::id::{Digest, Index, StateHash};
use crate::machine::batch::{Act, Grant, Operation};
use crate::machine::event::Event;
use crate::machine::guest::{Guest, World};
use crate::machine::outcome::Outcome;
use crate::machine::view::Table;
use crate::time::Clock;
use crate::trial::host::{Done, Host, MakeGuest, START_MS};
use crate::wasm::{GuestSettings, Module};

/// Operations of a long batch. A node's are bounded by their bytes.
const LONG_MAX: usize = 4_096;

/// Operations of a batch of random size.
const RANDOM_MAX: usize = 32;

/// At the end so much time passes, so that leases end.
const LAST_ADVANCE_MS: u64 = 3_600_000;

/// Lease ends of one movement of the clock. A machine that sets itself a timer at the end of the one before
/// would go on for ever; where the clock stops then is the same in all runs.
const ENDS_MAX: usize = 1_000;

/// One input in so many is made to fail first, in a run with failures.
const FAILURE_EVERY: usize = 8;

/// Failures of a resident machine: each has all of its past replayed.
const RESIDENT_FAILURES_MAX: usize = 12;

/// How inputs come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// Each in a batch of its own.
    Each,
    /// As many as possible.
    Long,
    /// Batches of random size.
    Random,
}

/// What is done with snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshots {
    /// None is taken.
    No,
    /// They are taken.
    Taken,
    /// They are taken, and the machine goes on from them.
    Restored,
}

/// How a run goes.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// Its name, for people.
    pub name: &'static str,
    /// What inputs are told of their place.
    pub places: Places,
    /// How they come together.
    pub batching: Batching,
    /// What is done with snapshots.
    pub snapshots: Snapshots,
    /// Whether inputs are made to fail.
    pub failures: bool,
}

/// What is run, the same for all courses.
pub struct Plan<'a> {
    /// The module's name.
    pub digest: Digest,
    /// What the machine is created with.
    pub configuration: Bytes,
    /// What is done to it.
    pub deeds: &'a [Deed],
    /// Snapshots are taken after these of the deeds.
    pub snapshots_after: BTreeSet<usize>,
    /// For sizes of batches and places of failures.
    pub seed: u64,
    /// The inputs that the host ended where they were run before, by number: in a long batch they would have
    /// the others run again, each alone, which hides what the others leave for each other.
    pub ended: BTreeSet<u64>,
    /// The least fuel that each input took where it was run before, by number: to cut it off in the middle.
    pub fuel: BTreeMap<u64, u64>,
}

/// What came of it.
pub struct Run {
    /// The course's name.
    pub name: &'static str,
    /// What each input did, without those that were to fail.
    pub steps: Vec<Step>,
    /// What queries were answered.
    pub asked: Vec<Asked>,
    /// The first query that was answered otherwise when it was asked again, with both answers.
    pub wavered: Option<(Asked, Asked)>,
    /// The events, by revision.
    pub events: BTreeMap<u64, Vec<Event>>,
    /// The hash chain.
    pub hashes: Vec<(Index, StateHash)>,
    /// What a resident machine saved, by the deed after which it did.
    pub saved: BTreeMap<usize, Bytes>,
    /// The rows of the machine and its leases in the end.
    pub rows: BTreeMap<(Table, Vec<u8>), Bytes>,
    /// Inputs that were made to fail.
    pub failures: usize,
    /// Batches.
    pub batches: usize,
    /// Why the machine could not go on, and the input that would have come next.
    pub halted: Option<(u64, String)>,
    /// The first input that did something else in a replay, as it was and as it is.
    pub contradiction: Option<(Step, Step)>,
}

/// The component in the engine that it is run in.
#[derive(Clone)]
pub struct Subject {
    /// The component.
    pub module: Module,
    /// Makes what its instances come from.
    pub make: MakeSource,
}

/// Makes a source of instances of a component for the machine with a seed.
pub type MakeSource = fn(&Module, [u8; 32]) -> Box<dyn Source>;

impl From<Module> for Subject {
    fn from(module: Module) -> Subject {
        Subject { module, make: |module, seed| Box::new(module.wasm_guest(seed, GuestSettings::default())) }
    }
}

/// Runs a course.
///
/// # Errors
/// `Invalid` if the machine is not created; `Fault` if this computer fails.
pub fn run(course: &Course, plan: &Plan, subject: &Subject) -> Result<Run, Error> {
    let Subject { module, make: source } = subject.clone();
    let ledger: Shared = Arc::new(Mutex::new(Ledger::new(course.places)));
    let seed = *blake3::hash(&1u64.to_be_bytes()).as_bytes();
    let (guests, notes, clock) = (module.clone(), ledger.clone(), Clock::start());
    let make: MakeGuest = Arc::new(move || -> Box<dyn Guest> {
        let inner = source(&guests, seed);
        Box::new(RecordedGuest { inner, ledger: notes.clone(), clock })
    });
    let host = Host::of_guests(module.world(), plan.digest, make, module.queries(seed), START_MS);
    let mut runner = Runner {
        course,
        plan,
        host,
        ledger,
        sizes: Chance::of(plan.seed),
        mishaps: Chance::of(plan.seed ^ 0x6d69_7368_6170),
        operations: Vec::new(),
        cuts: BTreeMap::new(),
        size_max: 1,
        queries: Vec::new(),
        asked: Vec::new(),
        wavered: None,
        events: BTreeMap::new(),
        hashes: Vec::new(),
        saved: BTreeMap::new(),
        failures: 0,
    };
    let halted = match runner.all() {
        Ok(()) => None,
        Err(Error::Guest(why)) => Some((runner.ledger.lock().next_number(), why)),
        Err(other) => return Err(other),
    };
    Ok(runner.finish(halted))
}

struct Runner<'a> {
    course: &'a Course,
    plan: &'a Plan<'a>,
    host: Host,
    ledger: Shared,
    /// Of batches: drawn alike in all runs.
    sizes: Chance,
    mishaps: Chance,
    /// The batch that is being gathered.
    operations: Vec<Operation>,
    /// Which of its inputs are to fail.
    cuts: BTreeMap<u32, Cut>,
    /// When it is full.
    size_max: usize,
    /// Queries that are to be asked.
    queries: Vec<Bytes>,
    asked: Vec<Asked>,
    wavered: Option<(Asked, Asked)>,
    events: BTreeMap<u64, Vec<Event>>,
    hashes: Vec<(Index, StateHash)>,
    saved: BTreeMap<usize, Bytes>,
    failures: usize,
}

impl Runner<'_> {
    fn all(&mut self) -> Result<(), Error> {
        self.operations.push(Operation::create(self.plan.digest, self.plan.configuration.clone()));
        let created = self.flush()?;
        if let Some(why) = created.and_then(|done| why_not(&done.last().outcome)) {
            return Err(Error::Invalid(format!("the machine was not created: {why}")));
        }
        self.draw_size();
        for (at, deed) in self.plan.deeds.iter().enumerate() {
            match deed {
                Deed::Command(command) => self.command(command)?,
                Deed::Query(request) => self.queries.push(request.clone()),
                Deed::Advance(_) | Deed::Grant { .. } | Deed::Revoke(_) => self.between(deed)?,
            }
            if self.course.snapshots != Snapshots::No && self.plan.snapshots_after.contains(&at) {
                self.snapshot(at)?;
            }
        }
        self.ask()?;
        self.advance(LAST_ADVANCE_MS)
    }

    /// A deed that ends a batch in all runs. The queries since the last one are asked before it: only here
    /// all runs have the same state.
    fn between(&mut self, deed: &Deed) -> Result<(), Error> {
        self.ask()?;
        match deed {
            Deed::Advance(ms) => self.advance(*ms),
            Deed::Grant { ttl_ms, id } => self.alone(Act::Grant(Grant { ttl_ms: *ttl_ms, id: *id })),
            Deed::Revoke(id) => self.alone(Act::Revoke(*id)),
            Deed::Command(_) | Deed::Query(_) => Ok(()),
        }
    }

    /// Asks in order, and then again from the last to the first.
    fn ask(&mut self) -> Result<(), Error> {
        self.flush()?;
        let queries = std::mem::take(&mut self.queries);
        let first = queries.iter().map(|request| self.ask_one(request)).collect::<Result<Vec<_>, _>>()?;
        for before in first.iter().rev() {
            let again = self.ask_one(&before.request)?;
            if again.outcome != before.outcome && self.wavered.is_none() {
                self.wavered = Some((before.clone(), again));
            }
        }
        self.asked.extend(first);
        Ok(())
    }

    fn ask_one(&mut self, request: &Bytes) -> Result<Asked, Error> {
        let (after, told) = {
            let ledger = self.ledger.lock();
            (ledger.next_number() - 1, ledger.told_index(self.host.head().index.0))
        };
        let (outcome, why) = what_became(&self.host.ask(told, request)?)?;
        Ok(Asked { after, request: request.clone(), outcome, why })
    }

    fn command(&mut self, command: &Bytes) -> Result<(), Error> {
        if self.course.batching == Batching::Long && self.plan.ended.contains(&self.next_number()) {
            return self.alone(Act::Command(command.clone()));
        }
        if self.is_to_fail() {
            let cut = self.some_cut();
            self.cuts.insert(self.operations.len() as u32, cut);
            self.operations.push(Operation::command(command.clone()));
            self.failures += 1;
        }
        self.operations.push(Operation::command(command.clone()));
        if self.operations.len() >= self.size_max {
            self.flush()?;
        }
        Ok(())
    }

    fn is_to_fail(&mut self) -> bool {
        let is_resident = self.host.world() == World::Resident;
        self.course.failures
            && !(is_resident && self.failures >= RESIDENT_FAILURES_MAX)
            && self.mishaps.one_in(FAILURE_EVERY)
    }

    /// Somewhere within what the input takes, or at its end.
    fn some_cut(&mut self) -> Cut {
        match self.plan.fuel.get(&self.next_number()) {
            Some(fuel) if !self.mishaps.one_in(3) => {
                Cut::Fuel((fuel * (1 + self.mishaps.below(7) as u64) / 8).max(1))
            }
            _ => Cut::AtEnd,
        }
    }

    /// The number of the input that comes next in the batch that is being gathered.
    fn next_number(&self) -> u64 {
        let before = self.operations.len() - self.cuts.len();
        self.ledger.lock().next_number() + before as u64
    }

    /// An operation in a batch of its own.
    fn alone(&mut self, act: Act) -> Result<(), Error> {
        self.flush()?;
        self.operations.push(act.into());
        self.flush().map(drop)
    }

    fn flush(&mut self) -> Result<Option<Done>, Error> {
        if self.operations.is_empty() {
            return Ok(None);
        }
        let index = self.host.head().index.next().0;
        for (offset, cut) in std::mem::take(&mut self.cuts) {
            self.ledger.lock().cut(index, offset, cut);
        }
        let done = self.host.submit(std::mem::take(&mut self.operations))?;
        self.take_in(&done);
        self.draw_size();
        Ok(Some(done))
    }

    fn advance(&mut self, by_ms: u64) -> Result<(), Error> {
        self.flush()?;
        let (ended, _) = self.host.advance_at_most(by_ms, ENDS_MAX)?;
        ended.iter().for_each(|(_, done)| self.take_in(done));
        Ok(())
    }

    fn take_in(&mut self, done: &Done) {
        self.ledger.lock().done(done.head.index.0);
        self.hashes.push((done.head.index, done.head.hash));
        for event in &done.events {
            self.events.entry(event.revision.0).or_default().push(event.clone());
        }
    }

    fn draw_size(&mut self) {
        self.size_max = match self.course.batching {
            Batching::Each => 1,
            Batching::Long => LONG_MAX,
            Batching::Random => 1 + self.sizes.below(RANDOM_MAX),
        };
    }

    fn snapshot(&mut self, at: usize) -> Result<(), Error> {
        self.flush()?;
        let snapshot = self.host.snapshot()?;
        if self.course.snapshots == Snapshots::Restored {
            self.host.restore(&snapshot)?;
        }
        self.saved.insert(at, snapshot.state);
        Ok(())
    }

    fn finish(self, halted: Option<(u64, String)>) -> Run {
        let mut rows = BTreeMap::new();
        for (table, key, value) in self.host.rows().rows() {
            if matches!(table, Table::Store | Table::Leases) {
                rows.insert((table, key.to_vec()), Bytes::copy_from_slice(value));
            }
        }
        let mut ledger = self.ledger.lock();
        let (steps, failures) = ledger.take_steps();
        Run {
            name: self.course.name,
            steps,
            asked: self.asked,
            wavered: self.wavered,
            events: self.events,
            batches: self.hashes.len(),
            hashes: self.hashes,
            saved: self.saved,
            rows,
            failures,
            halted,
            contradiction: ledger.take_contradiction(),
        }
    }
}

/// Why something was not done.
fn why_not(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Ok(_) => None,
        Outcome::Refused(refusal) => {
            Some(format!("refused with code {}: {}", refusal.code, refusal.message.as_bytes().escape_ascii()))
        }
        Outcome::Host(code) => Some(format!("{code:?}")),
    }
}
