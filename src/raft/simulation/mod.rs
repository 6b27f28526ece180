//! Whole clusters from a seed: shards, with fake disks, apply workers and a network that loses, delays,
//! doubles and reorders. Nodes crash and come back with what was synced, and sometimes a little more; clocks
//! drift and jump.
//!
//! The [`oracle`] sees every output and holds it against what a replicated log owes its users. A failure
//! prints the one command that repeats it.

mod bug;
pub(in crate::raft) mod node;
mod oracle;
mod world;

pub(in crate::raft) use bug::Bug;

use world::{Faults, World};

/// Chance that can be repeated (splitmix64).
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `every` times.
    pub(super) fn one_in(&mut self, every: u64) -> bool {
        self.below(every) == 0
    }
}

/// Prints how to repeat a run that panics.
struct Repeat(u64);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with: SIMULATION_SEED={} cargo test --release --lib raft::simulation", self.0);
        }
    }
}

fn run(seed: u64, record: bool) -> World {
    let _repeat = Repeat(seed);
    run_with(seed, None, record)
}

fn run_with(seed: u64, bug: Option<Bug>, record: bool) -> World {
    let mut world = World::new(seed, bug, record);
    world.trouble(1_500);
    world.heal();
    world.rest_and_wake();
    world
}

/// One seed, or the first so many. `SIMULATION_SEEDS=100000` is for a night.
fn seeds(count: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number("SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("SIMULATION_SEEDS").unwrap_or(count)).collect(),
    }
}

#[test]
fn acknowledged_commands_survive_whatever_happens_to_nodes_disks_and_messages() {
    let seeds = seeds(500);
    let mut total = Faults::default();
    for &seed in &seeds {
        let world = run(seed, false);
        total.add(&world.faults);
    }
    if seeds.len() > 1 {
        total.assert_all_happened();
    }
}

#[test]
fn a_seed_repeats_output_for_output() {
    for seed in seeds(12) {
        let (first, second) = (run(seed, true), run(seed, true));
        assert!(!first.record.is_empty(), "the run was recorded");
        let differs = first.record.iter().zip(&second.record).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.record.len(), second.record.len());
    }
}

/// Seeds that found something once. The runs behind them change whenever the simulation does; each fault has
/// a test of its own besides.
const FOUND: [u64; 6] = [2, 17, 227, 608, 1012, 3783];

#[test]
fn seeds_that_once_found_a_fault_find_it_no_more() {
    FOUND.iter().for_each(|&seed| drop(run(seed, false)));
}

/// What a run with a mistake in it says, if it finds it.
fn said_with(bug: Bug, seed: u64) -> Option<String> {
    let panic = std::panic::catch_unwind(|| drop(run_with(seed, Some(bug), false))).err()?;
    let text = panic.downcast_ref::<String>().map(String::as_str);
    Some(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("").to_owned())
}

#[test]
fn the_simulation_finds_known_mistakes() {
    let cases = [
        (Bug::AcknowledgeBeforeSync, "acknowledged up to"),
        (Bug::VoteBeforeSync, "the vote on disk is"),
        (Bug::ReadCoversLater, "acknowledged before it was asked"),
        (Bug::SpeakInUnsyncedTerm, "speaks in a term that it may forget"),
        (Bug::BatchAppends, "acknowledged up to"),
        (Bug::PassQuestionsOn, "a replica speaks only for itself"),
        (Bug::ForgetVote, "votes twice"),
        (Bug::LoseSynced, "different entries"),
        (Bug::TearState, "is not that of its index"),
        (Bug::InstallUnwanted, "entries are applied in order"),
        (Bug::LeaveStaged, "the log begins after"),
    ];
    const SEEDS_MAX: u64 = 1_000;
    for (bug, expected) in cases {
        let finds = |seed: &u64| said_with(bug, *seed).is_some_and(|said| said.contains(expected));
        let seed = (1..=SEEDS_MAX).find(finds);
        assert!(seed.is_some(), "{bug:?} is not found in {SEEDS_MAX} seeds");
        println!("{bug:?} is found by seed {}", seed.unwrap_or_default());
    }
}
