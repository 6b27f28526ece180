//! All runs, their comparisons, and what is to be told of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::course::{Batching, Course, Plan, Run, Snapshots, Subject, run};
use super::deed::Deed;
use super::difference::{self, Difference};
use super::generate::Chance;
use super::recorder::Places;
use crate::error::{Error, Fault};
use crate::machine::guest::{Input, World};
use crate::machine::outcome::{HostCode, Outcome};
use crate::trial::component::{Inspected, engine};
use crate::wasm::{Codegen, Compiler};

/// Stack of a thread that runs guests: plain code has larger frames.
const STACK_BYTES: usize = 16 << 20;

/// Places at which snapshots are taken.
const SNAPSHOTS_MAX: usize = 8;

const ONE_EACH: Course = Course {
    name: "one batch each",
    places: Places::OneEach,
    batching: Batching::Each,
    snapshots: Snapshots::Taken,
    failures: false,
};
const LONG: Course =
    Course { name: "long batches", batching: Batching::Long, snapshots: Snapshots::No, ..ONE_EACH };
const SNAPSHOTS: Course =
    Course { name: "snapshots", batching: Batching::Random, snapshots: Snapshots::Restored, ..ONE_EACH };
const FAILURES: Course = Course {
    name: "failures",
    batching: Batching::Random,
    snapshots: Snapshots::No,
    failures: true,
    ..ONE_EACH
};
const REPLICA: Course = Course {
    name: "a replica",
    places: Places::Own,
    batching: Batching::Random,
    snapshots: Snapshots::No,
    failures: false,
};
const ANOTHER: Course = Course { name: "another replica", ..REPLICA };
const PLAIN: Course = Course { name: "plain code", ..REPLICA };

/// What was found.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Each run beside the one that it was compared with.
    pub comparisons: Vec<Comparison>,
    /// What became of the inputs.
    pub tally: Tally,
    /// What inputs cost, in batches of random size.
    pub cost: Cost,
    /// Why the first input or query trapped that did.
    pub first_trap: Option<String>,
}

/// One run beside another.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The run.
    pub run: &'static str,
    /// What it was compared with; nothing for the first, which can only be wrong by itself.
    pub with: Option<&'static str>,
    /// What the run had of what it is for.
    pub about: String,
    /// Where they part.
    pub difference: Option<Difference>,
    /// What such a difference comes from, most likely.
    pub hint: &'static str,
}

/// What became of the inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them, the creation and ends of leases included.
    pub inputs: usize,
    /// Those that were answered.
    pub accepted: usize,
    /// Those that the machine refused.
    pub refused: usize,
    /// Those that trapped.
    pub trapped: usize,
    /// Those that used up their budget.
    pub exhausted: usize,
    /// Of the inputs, ends of leases.
    pub lease_ends: usize,
    /// Commands that were answered.
    pub commands_accepted: usize,
    /// Events.
    pub events: usize,
    /// Queries.
    pub queries: usize,
    /// Those that were answered.
    pub queries_answered: usize,
}

/// The middle and the worst of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Half of them are not above it.
    pub median: u64,
    /// None is above it.
    pub worst: u64,
}

/// What inputs cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Fuel: the same on every computer.
    pub fuel: Spread,
    /// Time of the call, without making the instance.
    pub took_ns: Spread,
    /// Memory of the instance afterwards.
    pub memory_bytes: Spread,
}

impl Certificate {
    /// Whether no difference was found.
    pub fn holds(&self) -> bool {
        self.comparisons.iter().all(|comparison| comparison.difference.is_none())
    }
}

/// Runs `deeds` along all ways and compares them. `seed` decides where snapshots are taken, how large batches
/// are, and what fails.
///
/// # Errors
/// `Invalid` if the component cannot be run, or refuses to be created.
pub fn certify(
    inspected: &Inspected,
    compiler: &Compiler,
    configuration: Bytes,
    deeds: &[Deed],
    seed: u64,
) -> Result<Certificate, Error> {
    let subjects = Subjects::load(inspected, compiler)?;
    certify_in(&subjects, inspected, configuration, deeds, seed)
}

/// The same in engines that are there.
pub(super) fn certify_in(
    subjects: &Subjects,
    inspected: &Inspected,
    configuration: Bytes,
    deeds: &[Deed],
    seed: u64,
) -> Result<Certificate, Error> {
    let Subjects { first, second, plain } = subjects;
    let mut chance = Chance::of(seed);
    let mut plan = Plan {
        digest: inspected.digest,
        configuration,
        deeds,
        snapshots_after: some_places(deeds.len(), &mut chance),
        seed: chance.number(),
        ended: BTreeSet::new(),
        fuel: BTreeMap::new(),
    };
    let one_each = go(&ONE_EACH, &plan, first)?;
    plan.learn(&one_each);
    let long = go(&LONG, &plan, first)?;
    plan.learn(&long);
    let snapshots = go(&SNAPSHOTS, &plan, first)?;
    let failures = go(&FAILURES, &plan, first)?;
    let replica = go(&REPLICA, &plan, first)?;
    let another = go(&ANOTHER, &plan, second)?;
    let other_code = go(&PLAIN, &plan, plain)?;

    let world = inspected.world;
    let alone = |run: &Run| compared(run, None, difference::within(run), world);
    let way = |run: &Run| compared(run, Some(&one_each), difference::of_ways(&one_each, run), world);
    let same = |run: &Run| compared(run, Some(&replica), difference::of_replicas(&replica, run), world);
    Ok(Certificate {
        comparisons: vec![
            alone(&one_each),
            way(&long),
            way(&snapshots),
            way(&failures),
            alone(&replica),
            same(&another),
            same(&other_code),
        ],
        tally: tally(&one_each),
        cost: cost(&replica),
        first_trap: first_trap(&one_each),
    })
}

fn first_trap(run: &Run) -> Option<String> {
    let of_input = run.steps.iter().find_map(|step| {
        let (input, why) = (difference::shown_input(&step.input), step.why.as_ref()?);
        Some(format!("input {}, {input}: {}", step.number, difference::shown_why(why)))
    });
    of_input.or_else(|| {
        run.asked.iter().find_map(|asked| {
            let (query, why) = (asked.request.escape_ascii(), asked.why.as_ref()?);
            Some(format!("query \"{query}\" after input {}: {}", asked.after, difference::shown_why(why)))
        })
    })
}

/// The component in the engines that it is run in.
pub(super) struct Subjects {
    pub first: Subject,
    pub second: Subject,
    pub plain: Subject,
}

impl Subjects {
    pub fn load(inspected: &Inspected, compiler: &Compiler) -> Result<Subjects, Error> {
        let optimised = inspected.compile(Codegen::Optimised, compiler)?;
        let plain = inspected.compile(Codegen::Plain, compiler)?;
        Ok(Subjects {
            first: inspected.load_compiled(&engine(Codegen::Optimised)?, &optimised)?.into(),
            second: inspected.load_compiled(&engine(Codegen::Optimised)?, &optimised)?.into(),
            plain: inspected.load_compiled(&engine(Codegen::Plain)?, &plain)?.into(),
        })
    }
}

impl Plan<'_> {
    /// Keeps what later runs build on.
    fn learn(&mut self, run: &Run) {
        for step in &run.steps {
            let least = self.fuel.entry(step.number).or_insert(step.fuel);
            *least = step.fuel.min(*least);
            if matches!(step.outcome, Outcome::Host(_)) {
                self.ended.insert(step.number);
            }
        }
    }
}

/// Runs a course on a thread of its own.
fn go(course: &Course, plan: &Plan, subject: &Subject) -> Result<Run, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("trial".into()).stack_size(STACK_BYTES);
        let running = thread
            .spawn_scoped(scope, || run(course, plan, subject))
            .map_err(|e| Fault::new(format!("no thread could be started: {e}")))?;
        running.join().unwrap_or_else(|_| {
            Err(Error::Fault(Fault::new(format!("the run {:?} panicked: this is a defect", course.name))))
        })
    })
}

/// Some of so many deeds; all of them if they are few.
fn some_places(deeds: usize, chance: &mut Chance) -> BTreeSet<usize> {
    if deeds <= SNAPSHOTS_MAX {
        return (0..deeds).collect();
    }
    (0..SNAPSHOTS_MAX).map(|_| chance.below(deeds)).collect()
}

fn compared(run: &Run, with: Option<&Run>, difference: Option<Difference>, world: World) -> Comparison {
    let about = match run.name {
        "snapshots" => format!("{} snapshots restored, {} batches", run.saved.len(), run.batches),
        "failures" => format!("{} inputs cut off, {} batches", run.failures, run.batches),
        _ => format!("{} batches", run.batches),
    };
    let hint = match &difference {
        Some(Difference { is_query: true, .. }) => HINT_OF_QUERIES,
        _ => hint(run.name, world),
    };
    Comparison { run: run.name, with: with.map(|run| run.name), about, difference, hint }
}

const HINT_OF_QUERIES: &str = "a query is to be a function of the state: it must not write, and what it \
     answers must not depend on queries before it, on chance, or on an order that changes";

fn hint(run: &str, world: World) -> &'static str {
    match (run, world) {
        ("long batches", World::Stored) => {
            "what it does depends on the inputs before it in its batch: something is kept outside the store, \
             such as a counter, a cache, or a hash map's or a generator's seed"
        }
        ("long batches", World::Resident) => "the place in the log shows in what it does by some other way",
        ("snapshots", World::Resident) => {
            "it is another machine after it was restored: a part of its state is not saved, is saved in an \
             order that changes, or is made anew from a seed or the clock"
        }
        ("snapshots", World::Stored) => "something is kept outside the store",
        ("failures", World::Stored) => {
            "what it does depends on its neighbours in the batch: something is kept outside the store"
        }
        ("failures", World::Resident) => {
            "made again from its past it is another machine: what it does depends on more than its inputs"
        }
        ("plain code", _) => "it sees how its code was made: does it go to the end of its stack?",
        _ => "it cannot go on from its own past",
    }
}

fn tally(run: &Run) -> Tally {
    let answered = run.asked.iter().filter(|asked| matches!(asked.outcome, Outcome::Ok(_)));
    let mut tally = Tally {
        events: run.events.values().map(Vec::len).sum(),
        queries: run.asked.len(),
        queries_answered: answered.count(),
        ..Tally::default()
    };
    for step in &run.steps {
        tally.inputs += 1;
        match &step.outcome {
            Outcome::Ok(_) => tally.accepted += 1,
            Outcome::Refused(_) => tally.refused += 1,
            Outcome::Host(HostCode::Exhausted) => tally.exhausted += 1,
            Outcome::Host(_) => tally.trapped += 1,
        }
        let is_command = matches!(step.input, Input::Command(_));
        tally.commands_accepted += usize::from(is_command && matches!(step.outcome, Outcome::Ok(_)));
        tally.lease_ends += usize::from(matches!(step.input, Input::LeaseEnded { .. }));
    }
    tally
}

fn cost(run: &Run) -> Cost {
    let spread = |of: &dyn Fn(&super::recorder::Step) -> u64| {
        let mut all: Vec<u64> = run.steps.iter().map(of).collect();
        all.sort_unstable();
        let median = all.get(all.len() / 2).copied().unwrap_or_default();
        Spread { median, worst: all.last().copied().unwrap_or_default() }
    };
    Cost {
        fuel: spread(&|step| step.fuel),
        took_ns: spread(&|step| step.took_ns),
        memory_bytes: spread(&|step| step.memory_bytes as u64),
    }
}
