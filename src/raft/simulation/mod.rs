//! Whole clusters from a seed: shards, with fake disks, apply workers and a network that loses, delays,
//! doubles and reorders. Nodes crash and come back with what was synced, and sometimes a little more, or with
//! nothing at all; they pause; disks are slow and fail; clocks drift and jump.
//!
//! The [`oracle`] sees every output and holds it against what a replicated log owes its users. A failure
//! prints the one command that repeats it.
//!
//! # Layout
//! - [`world`]: time and chance; a run is trouble, then peace, then rest
//! - [`faults`]: what goes wrong, counted
//! - [`network`]: messages on their way; [`transfer`]: snapshots on theirs
//! - [`clients`]: what is wanted of nodes; [`catalog`]: who is in a group, and who succeeds a lost replica
//! - [`node`]: a shard's life and its clocks; [`machinery`]: the threads around it; [`disk`]: what survives;
//!   [`state`]: the machine
//! - [`tenant`]: what runs on a cluster besides
//! - [`divergence`]: replicas that went different ways; [`halted`]: those that wait for another state
//! - [`oracle`]: what must never be; [`bug`]: mistakes made on purpose, to see that it notices

mod bug;
mod catalog;
mod clients;
pub(in crate::raft) mod disk;
mod divergence;
mod faults;
mod halted;
mod machinery;
mod network;
mod node;
mod oracle;
pub(in crate::raft) mod state;
pub(crate) mod tenant;
mod transfer;
mod world;

pub(in crate::raft) use bug::Bug;

use crate::id::NodeId;
use divergence::Damage;
use faults::Faults;
use world::World;

/// Chance that can be repeated (splitmix64).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// How many thousandths a clock is fast, or slow: often as much as it may.
    pub(super) fn drift_permille(&mut self, percent_max: u64) -> i64 {
        let most = percent_max as i64 * 10;
        match self.below(4) {
            0 => most,
            1 => -most,
            _ => self.below(2 * most as u64 + 1) as i64 - most,
        }
    }

    /// True once in `every` times.
    pub(crate) fn one_in(&mut self, every: u64) -> bool {
        self.below(every) == 0
    }
}

/// Prints how to repeat a run that panics.
pub(crate) struct Repeat(pub(crate) u64);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with: SIMULATION_SEED={} cargo test --release --lib simulation", self.0);
        }
    }
}

fn run(seed: u64, record: bool) -> World {
    let _repeat = Repeat(seed);
    run_with(seed, None, record)
}

fn run_with(seed: u64, bug: Option<Bug>, record: bool) -> World {
    let mut world = World::new(seed, bug, record);
    world.trouble(4_000);
    world.heal();
    world.rest_and_wake();
    world
}

/// One seed, or the first so many. `SIMULATION_SEEDS=100000` is for a night.
pub(crate) fn seeds(count: u64) -> Vec<u64> {
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
    println!("{}", total.describe());
    if seeds.len() > 1 {
        total.assert_all_happened();
    }
}

#[test]
fn a_replica_that_differs_is_found_by_the_next_beacon() {
    let (mut leaders, mut followers) = (0, 0);
    for seed in seeds(100) {
        let _repeat = Repeat(seed);
        let mut world = World::new(seed, None, false);
        if !world.is_full() {
            continue;
        }
        world.trouble(200);
        world.heal();
        let Damage { group, victim, leader } = world.damage_and_send_beacon();
        let found: Vec<NodeId> = world.diverged.iter().map(|(node, _)| *node).collect();
        assert!(world.diverged.iter().all(|(_, other)| *other == group), "{:?}", world.diverged);
        if victim == leader {
            // Nobody can tell who is wrong, but nobody goes on as if nothing were.
            let others: Vec<NodeId> = world.ids.iter().copied().filter(|id| *id != victim).collect();
            assert_eq!(found, others);
            leaders += 1;
        } else {
            assert_eq!(found, [victim]);
            followers += 1;
        }
    }
    assert!(std::env::var("SIMULATION_SEED").is_ok() || (leaders > 5 && followers > 5));
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
const FOUND: [u64; 7] = [2, 17, 227, 247, 608, 1012, 3783];

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
        (Bug::ForgetHalt, "is not that of its index"),
        (Bug::HastyReseed, "entries are applied in order"),
        (Bug::KeepLeaseInTransfer, "acknowledged before it was asked"),
        (Bug::VoteAfterRestart, "acknowledged before it was asked"),
        (Bug::PatienceInTicks, "acknowledged before it was asked"),
        (Bug::IgnoreDrift, "acknowledged before it was asked"),
        (Bug::ReuseReplica, "votes twice"),
    ];
    const SEEDS_MAX: u64 = 1_000;
    for (bug, expected) in cases {
        let finds = |seed: &u64| said_with(bug, *seed).is_some_and(|said| said.contains(expected));
        let seed = (1..=SEEDS_MAX).find(finds);
        assert!(seed.is_some(), "{bug:?} is not found in {SEEDS_MAX} seeds");
        println!("{bug:?} is found by seed {}", seed.unwrap_or_default());
    }
}
