//! Machines that are deterministic, and one of each kind that is not.

use std::cell::Cell;

use super::certificate::Subjects;
use super::course::Subject;
use super::difference::{of_replicas, of_ways};
use super::recorder::{Metered, Source};
use super::*;
use crate::error::Fault;
use crate::machine::frame::Frame;
use crate::machine::guest::{Ending, Input, Instance, QueryView};
use crate::machine::outcome::Context;
use crate::trial::Inspected;
use crate::wasm::instance::{WasmGuest, WasmInstance};
use crate::wasm::survey;
use crate::wasm::testing::{COUNTER, KV, NOTES, component_of, guest_text, resident, stored};
use crate::wasm::{Compiler, GuestSettings};

fn check(component: &[u8], deeds: &[Deed]) -> Certificate {
    let inspected = Inspected::of(component, &Compiler::InProcess).unwrap();
    certify(&inspected, &Compiler::InProcess, "".into(), deeds, 1).unwrap()
}

fn commands(texts: &[&'static str]) -> Vec<Deed> {
    texts.iter().map(|text| Deed::Command((*text).into())).collect()
}

#[track_caller]
fn holds(certificate: &Certificate) {
    for Comparison { run, difference, .. } in &certificate.comparisons {
        assert_eq!(*difference, None, "{run}");
    }
}

/// The difference of one run.
#[track_caller]
fn difference<'c>(certificate: &'c Certificate, run: &str) -> &'c Difference {
    assert!(!certificate.holds());
    let comparison = certificate.comparisons.iter().find(|comparison| comparison.run == run).unwrap();
    comparison.difference.as_ref().unwrap_or_else(|| panic!("{run} agrees: {certificate:?}"))
}

#[track_caller]
fn agrees(certificate: &Certificate, run: &str) {
    let comparison = certificate.comparisons.iter().find(|comparison| comparison.run == run).unwrap();
    assert_eq!(comparison.difference, None, "{run}");
}

#[test]
fn the_guests_of_the_gallery_are_deterministic() {
    let examples = commands(&["milk=two pints", "eggs=", "nonsense"]);
    let notes = check(NOTES, &generate(&examples, &survey::words(NOTES), 1, 300));
    holds(&notes);
    assert!(notes.tally.commands_accepted > 50 && notes.tally.refused > 5, "{:?}", notes.tally);
    assert!(notes.tally.events > 50 && notes.cost.fuel.median > 100, "{notes:?}");
    assert!(notes.cost.fuel.worst >= notes.cost.fuel.median && notes.cost.memory_bytes.median >= 65_536);
    let counter = check(COUNTER, &generate(&commands(&["5", "-7"]), &[], 2, 200));
    holds(&counter);
    assert!(counter.tally.commands_accepted > 20, "{:?}", counter.tally);
    let about = |run: &str| counter.comparisons.iter().find(|c| c.run == run).unwrap().about.clone();
    assert!(!about("failures").starts_with("0 ") && !about("snapshots").starts_with("0 "));
    let kv = check(KV, &generate(&[], &survey::words(KV), 3, 100));
    holds(&kv);
}

#[test]
fn a_counter_in_a_global_of_a_stored_machine_is_caught_in_a_long_batch() {
    let items = "(global $count (mut i32) (i32.const 0))";
    let apply = "(global.set $count (i32.add (global.get $count) (i32.const 1)))
        (i32.store8 (i32.const 128) (i32.add (i32.const 48) (global.get $count)))
        (call $answer (i32.const 128) (i32.const 1))";
    let certificate = check(&stored(&guest_text(items, apply, "(call $ok)")), &commands(&["a", "b", "c"]));
    let found = difference(&certificate, "long batches");
    // The second input of the batch is the second command: the creation is a batch of its own.
    assert_eq!((found.number, found.input.as_str()), (3, "command \"b\""));
    assert_eq!(found.what, "the answer, from byte 0 on");
    assert_eq!((found.expected.as_str(), found.found.as_str()), ("answered \"1\"", "answered \"2\""));
    agrees(&certificate, "another replica");
    agrees(&certificate, "plain code");
}

#[test]
fn a_cache_in_a_global_is_caught_by_what_is_written_and_emitted() {
    // The first input of an instance writes and emits; the others think that it is done.
    let items = r#"
        (import "statehouse:machine/store@0.1.0" "set" (func $set (param i32 i32 i32 i32)))
        (import "statehouse:machine/events@0.1.0" "emit" (func $emit (param i32 i32 i32 i32 i32)))
        (global $done (mut i32) (i32.const 0))
        (data (i32.const 512) "key")"#;
    let with = |act: &str| {
        let apply = format!(
            "(if (i32.eqz (global.get $done)) (then {act})) (global.set $done (i32.const 1)) (call $ok)"
        );
        check(&stored(&guest_text(items, &apply, "(call $ok)")), &commands(&["a", "b"]))
    };
    let set = with("(call $set (i32.const 512) (i32.const 3) (i32.const 512) (i32.const 2))");
    let found = difference(&set, "long batches");
    assert_eq!((found.number, found.what.as_str()), (3, "what it wrote to the key \"key\""));
    assert_eq!((found.expected.as_str(), found.found.as_str()), ("\"ke\"", "not written"));
    let emit = with("(call $emit (i32.const 0) (i32.const 512) (i32.const 3) (i32.const 512) (i32.const 2))");
    let found = difference(&emit, "long batches");
    assert_eq!((found.number, found.what.as_str()), (3, "its event 1"));
    assert_eq!((found.expected.as_str(), found.found.as_str()), ("put \"key\" to \"ke\"", "there is none"));
}

/// What a guest imports of WASI.
const WORLD: &str = "
package test:guest;

world guest {
  include statehouse:machine/WHICH@0.1.0;
  import wasi:clocks/wall-clock@0.2.6;
  import wasi:random/insecure-seed@0.2.6;
}

package wasi:clocks@0.2.6 {
  interface wall-clock {
    record datetime { seconds: u64, nanoseconds: u32 }
    now: func() -> datetime;
  }
}

package wasi:random@0.2.6 {
  interface insecure-seed { insecure-seed: func() -> tuple<u64, u64>; }
}
";

const ASKS: &str = r#"
    (import "wasi:clocks/wall-clock@0.2.6" "now" (func $wall (param i32)))
    (import "wasi:random/insecure-seed@0.2.6" "insecure-seed" (func $seed (param i32)))
    (global $seeded (mut i32) (i32.const 0))"#;

fn asking(world: &str, more: &str, apply: &str) -> Vec<u8> {
    let text = guest_text(&format!("{ASKS}\n{more}"), apply, "(call $ok)");
    component_of(&text, &[&WORLD.replace("WHICH", world)], "guest")
}

#[test]
fn a_clock_and_randomness_are_told_and_do_no_harm() {
    let both = asking(
        "stored",
        "",
        "(call $wall (i32.const 128)) (call $seed (i32.const 144)) (call $answer (i32.const 128) (i32.const \
         32))",
    );
    holds(&check(&both, &commands(&["a", "b", "c", "d", "e", "f"])));
    let inspected = Inspected::of(&both, &Compiler::InProcess).unwrap();
    let told: Vec<&str> = inspected.imports.iter().filter_map(|import| survey::given(import)).collect();
    assert!(told.iter().any(|told| told.contains("asks the clock: gets the log's")), "{told:?}");
    assert!(told.iter().any(|told| told.contains("asks for random bytes")), "{told:?}");
}

/// As a hash map does that draws its seed when the first one is made, and none for those that follow: the
/// order of two keys is the seed's.
const HASH_ORDER: &str = r#"
    (if (i32.eqz (global.get $seeded)) (then
        (global.set $seeded (i32.const 1)) (call $seed (i32.const 160))))
    (i32.store8 (i32.const 128) (i32.const 97))
    (i32.store8 (i32.const 129) (i32.const 98))
    (if (i32.and (i32.const 1) (i32.load (i32.const 160))) (then
        (i32.store8 (i32.const 128) (i32.const 98))
        (i32.store8 (i32.const 129) (i32.const 97))))
    (call $answer (i32.const 128) (i32.const 2))"#;

#[test]
fn the_order_of_a_hash_map_with_a_random_seed_is_caught() {
    let many: Vec<Deed> = (0..40).map(|number| Deed::Command(number.to_string().into())).collect();
    let stored = check(&asking("stored", "", HASH_ORDER), &many);
    let found = difference(&stored, "long batches");
    assert_eq!(found.what, "the answer, from byte 0 on");
    let sides = [found.expected.as_str(), found.found.as_str()];
    assert!(
        sides == ["answered \"ab\"", "answered \"ba\""] || sides == ["answered \"ba\"", "answered \"ab\""]
    );
    agrees(&stored, "another replica");

    let resident = check(&asking("resident", NO_STATE, HASH_ORDER), &many);
    agrees(&resident, "long batches");
    assert_eq!(difference(&resident, "snapshots").what, "the answer, from byte 0 on");
}

/// A resident machine that saves nothing.
const NO_STATE: &str = r#"
    (func (export "statehouse:machine/snapshot@0.1.0#save") (result i32)
        (i32.store8 (i32.const 64) (i32.const 0)) (i32.const 64))
    (func (export "statehouse:machine/snapshot@0.1.0#restore") (result i32)
        (i32.store8 (i32.const 64) (i32.const 0)) (i32.const 64))"#;

#[test]
fn a_clock_or_generator_that_is_kept_is_caught() {
    // Both are read once for each instance.
    let kept = |read: &str| {
        format!(
            "(if (i32.eqz (global.get $seeded)) (then (global.set $seeded (i32.const 1)) {read}))
            (call $answer (i32.const 160) (i32.const 8))"
        )
    };
    let mut deeds = commands(&["a", "b"]);
    deeds.push(Deed::Advance(60_000));
    deeds.extend(commands(&["c", "d"]));
    let clock = check(&asking("resident", NO_STATE, &kept("(call $wall (i32.const 160))")), &deeds);
    assert_eq!(difference(&clock, "snapshots").input, "command \"c\"");
    let generator = check(&asking("stored", "", &kept("(call $seed (i32.const 160))")), &deeds);
    let found = difference(&generator, "long batches");
    assert_eq!((found.number, found.input.as_str()), (3, "command \"b\""));
}

#[test]
fn queries_are_asked_of_the_same_states_and_one_that_keeps_something_or_writes_is_caught() {
    let items = r#"
        (import "statehouse:machine/store@0.1.0" "set" (func $set (param i32 i32 i32 i32)))
        (global $count (mut i32) (i32.const 48))"#;
    let check_query = |query: &str| {
        let mut deeds = commands(&["a", "b"]);
        deeds.push(Deed::Query("one".into()));
        deeds.extend(commands(&["c"]));
        deeds.push(Deed::Query("two".into()));
        check(&stored(&guest_text(items, "(call $ok)", query)), &deeds)
    };
    let index = check_query(
        "(i64.store (i32.const 128) (local.get $index)) (call $answer (i32.const 128) (i32.const 8))",
    );
    holds(&index);
    assert_eq!((index.tally.queries, index.tally.queries_answered), (2, 2));

    let counts = check_query(
        "(global.set $count (i32.add (global.get $count) (i32.const 1)))
        (i32.store8 (i32.const 128) (global.get $count)) (call $answer (i32.const 128) (i32.const 1))",
    );
    let found = difference(&counts, "one batch each");
    assert_eq!((found.number, found.input.as_str(), found.is_query), (4, "the query \"two\"", true));
    assert_eq!((found.expected.as_str(), found.found.as_str()), ("answered \"2\"", "answered \"3\""));
    assert!(counts.comparisons[0].hint.contains("function of the state"), "{counts:?}");

    let writes =
        check_query("(call $set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1)) (call $ok)");
    let found = difference(&writes, "one batch each");
    assert_eq!((found.input.as_str(), found.what.as_str()), ("the query \"one\"", "a query only reads"));
    assert!(found.found.contains("store.set in Query"), "{found:?}");
    assert!(writes.first_trap.unwrap().starts_with("query \"one\" after input 4"));
}

#[test]
fn a_state_that_is_not_saved_is_caught() {
    let count = "(global.set $seeded (i32.add (global.get $seeded) (i32.const 1)))
        (i32.store8 (i32.const 128) (i32.add (i32.const 48) (global.get $seeded)))
        (call $answer (i32.const 128) (i32.const 1))";
    let certificate = check(&asking("resident", NO_STATE, count), &commands(&["a", "b", "c"]));
    let found = difference(&certificate, "snapshots");
    assert_eq!((found.number, found.expected.as_str()), (3, "answered \"3\""));
}

#[test]
fn a_refusal_that_leaves_a_trace_in_memory_is_seen_and_a_failure_leaves_none() {
    // Counts in its memory before it refuses: that is its own fault, but the same everywhere.
    let items = format!("{NO_STATE} (global $count (mut i32) (i32.const 0))");
    let trap = resident(&guest_text(
        &items,
        "(if (i32.eqz (local.get $case)) (then (return (call $ok))))
        (global.set $count (i32.add (global.get $count) (i32.const 1)))
        (if (i32.eq (i32.load8_u (i32.wrap_i64 (local.get $a))) (i32.const 120)) (then unreachable))
        (call $ok)",
        "(call $ok)",
    ));
    let certificate = check(&trap, &commands(&["a", "x", "b", "x"]));
    holds(&certificate);
    assert_eq!((certificate.tally.trapped, certificate.tally.accepted), (2, 3));
    assert!(certificate.first_trap.as_ref().unwrap().contains("command \"x\""), "{certificate:?}");
}

#[test]
fn an_input_that_traps_does_not_hide_what_the_others_keep() {
    let items = "(global $count (mut i32) (i32.const 0))";
    let apply = "(if (i32.eqz (local.get $case)) (then (return (call $ok))))
        (if (i32.eq (i32.load8_u (i32.wrap_i64 (local.get $a))) (i32.const 120)) (then unreachable))
        (global.set $count (i32.add (global.get $count) (i32.const 1)))
        (i32.store8 (i32.const 128) (i32.add (i32.const 48) (global.get $count)))
        (call $answer (i32.const 128) (i32.const 1))";
    let component = stored(&guest_text(items, apply, "(call $ok)"));
    let certificate = check(&component, &commands(&["a", "x", "b", "c", "x"]));
    assert_eq!(difference(&certificate, "long batches").input, "command \"c\"");
}

#[test]
fn a_machine_may_use_its_place_in_the_log() {
    // Answers index, offset and time.
    let apply = "(i64.store (i32.const 128) (local.get $index))
        (i32.store (i32.const 136) (local.get $offset))
        (i64.store (i32.const 144) (local.get $time))
        (call $answer (i32.const 128) (i32.const 24))";
    holds(&check(&stored(&guest_text("", apply, "(call $ok)")), &commands(&["a", "b", "c", "d", "e"])));
}

#[test]
fn a_machine_that_is_not_created_gets_no_certificate() {
    let inspected = Inspected::of(COUNTER, &Compiler::InProcess).unwrap();
    let refused = certify(&inspected, &Compiler::InProcess, "many".into(), &[], 1);
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("not created") && why.contains("whole number"), "{why}");
}

#[test]
fn a_guest_that_goes_to_the_end_of_its_stack_is_caught_by_plain_code_alone() {
    // Calls itself 64 times for each byte of the command. How deep that may go is decided by the size of the
    // code's frames and of its stack: the engine's, not the guest's.
    let items = "(func $deep (param $left i32) (result i32)
        (if (result i32) (local.get $left)
            (then (i32.add (i32.const 1) (call $deep (i32.sub (local.get $left) (i32.const 1)))))
            (else (i32.const 0))))";
    let apply = "(if (i32.eqz (local.get $case)) (then (return (call $ok))))
        (i32.store (i32.const 128) (call $deep (i32.mul (local.get $b) (i32.const 64))))
        (call $answer (i32.const 128) (i32.const 4))";
    let mut lengths: Vec<usize> = (0..20).map(|step| 50 * 6_usize.pow(step) / 5_usize.pow(step)).collect();
    lengths.retain(|length| *length < 2_000);
    let deeds: Vec<Deed> = lengths.iter().map(|length| Deed::Command(vec![b'x'; *length].into())).collect();
    let certificate = check(&stored(&guest_text(items, apply, "(call $ok)")), &deeds);
    let found = difference(&certificate, "plain code");
    for run in ["one batch each", "long batches", "snapshots", "failures", "a replica", "another replica"] {
        agrees(&certificate, run);
    }
    // The first command is number 2, after the creation. Some were not deep enough, in both.
    let at = found.number as usize - 2;
    assert!(at > 0 && found.input.contains(&"x".repeat(50)), "{found:?}");
    assert_eq!(found.what, "the outcome");
    let deep = (lengths[at] as u32 * 64).to_le_bytes();
    let answered = format!("answered \"{}\"", deep.escape_ascii());
    let overflowed = |side: &str| side.starts_with("Trapped: ") && side.contains("call stack exhausted");
    let (expected, found_there) = (found.expected.as_str(), found.found.as_str());
    assert!(
        (overflowed(expected) && found_there == answered)
            || (expected == answered && overflowed(found_there)),
        "{found:?}"
    );
    let plain = certificate.comparisons.iter().find(|comparison| comparison.run == "plain code").unwrap();
    assert!(plain.hint.contains("end of its stack"), "{plain:?}");
}

#[test]
fn the_cost_of_an_input_follows_what_it_does() {
    // A guest that goes round a loop so often, and takes so many more pages of memory.
    let costly = |rounds: u32, pages: u32| {
        let items = "(func $work (param $left i32)
            (block $done (loop $more
                (br_if $done (i32.eqz (local.get $left)))
                (local.set $left (i32.sub (local.get $left) (i32.const 1)))
                (br $more))))";
        let apply =
            format!("(call $work (i32.const {rounds})) (drop (memory.grow (i32.const {pages}))) (call $ok)");
        let certificate = check(&stored(&guest_text(items, &apply, "(call $ok)")), &commands(&["a"; 9]));
        holds(&certificate);
        let Cost { fuel, took_ns, memory_bytes } = certificate.cost;
        for spread in [fuel, took_ns, memory_bytes] {
            assert!(spread.median > 0 && spread.worst >= spread.median, "{:?}", certificate.cost);
        }
        certificate.cost
    };
    let (little, more, most) = (costly(1, 0), costly(1_000, 0), costly(1_000_000, 0));
    // A round costs the same every time, so what is left without any is the same too.
    let round = (more.fuel.median - little.fuel.median) / 999;
    assert!((4..=12).contains(&round), "{round} for a round of a handful of instructions");
    assert_eq!(most.fuel.median - little.fuel.median, round * 999_999);
    assert_eq!(little.fuel, Spread { worst: little.fuel.median, ..little.fuel }, "all inputs are alike");
    // A million rounds take a fraction of a millisecond at the least; one takes some microseconds.
    assert!(most.took_ns.median > 2 * little.took_ns.median, "{most:?} {little:?}");
    let spacious = costly(1, 10);
    assert_eq!(little.memory_bytes.median, 2 << 16);
    // Instances of batches of several inputs grow with each.
    assert!(
        spacious.memory_bytes.median >= 12 << 16 && spacious.memory_bytes.worst > 22 << 16,
        "{spacious:?}"
    );
}

/// What no guest should bring about: the comparisons themselves must see it.
#[test]
fn runs_that_differ_in_anything_are_told_apart() {
    let inspected = Inspected::of(COUNTER, &Compiler::InProcess).unwrap();
    let subject = inspected.load(crate::wasm::testing::engine(), &Compiler::InProcess).unwrap().into();
    let deeds = commands(&["1", "2", "x"]);
    let plan = course::Plan {
        digest: inspected.digest,
        configuration: "".into(),
        deeds: &deeds,
        snapshots_after: [1].into(),
        seed: 1,
        ended: Default::default(),
        fuel: Default::default(),
    };
    let course = course::Course {
        name: "a run",
        places: recorder::Places::Own,
        batching: course::Batching::Each,
        snapshots: course::Snapshots::Taken,
        failures: false,
    };
    let run = || course::run(&course, &plan, &subject).unwrap();
    let good = run();
    assert_eq!((of_ways(&good, &run()), of_replicas(&good, &run())), (None, None));
    let differs = |change: &dyn Fn(&mut course::Run)| {
        let mut other = run();
        change(&mut other);
        let (ways, replicas) = (of_ways(&good, &other), of_replicas(&good, &other));
        (ways.map(|found| found.what), replicas.map(|found| found.what))
    };
    let both = |what: &str| (Some(what.to_owned()), Some(what.to_owned()));
    assert_eq!(differs(&|run| run.steps[1].fuel += 1), (None, Some("the fuel that it took".into())));
    let shorter = differs(&|run| run.steps.truncate(2));
    assert_eq!(shorter, both("how many inputs there are"));
    let hash = differs(&|run| run.hashes[2].1.0[0] ^= 1);
    assert_eq!(hash, (None, Some("the hash of the state after batch 3".into())));
    let saved = differs(&|run| drop(run.saved.insert(1, "other".into())));
    assert_eq!(saved.0.as_deref(), Some("what it saves after line 2 of the commands, from byte 0 on"));
    let halted = differs(&|run| run.halted = Some((3, "it cannot".into())));
    assert_eq!(halted, both("the machine cannot go on"));
    let event = differs(&|run| drop(run.events.remove(&3)));
    assert_eq!(event, both("its event 1"));
}

/// What an engine must never do: it keeps how many inputs were cut off on this thread, though their instances
/// are gone, and answers with that.
struct Keeping(WasmInstance);

thread_local! {
    static CUT_OFF: Cell<u32> = const { Cell::new(0) };
}

impl Instance for Keeping {
    fn apply(&mut self, frame: Frame, context: Context, input: &Input) -> (Frame, Ending) {
        let (frame, ending) = self.0.apply(frame, context, input);
        if matches!(ending, Ending::Exhausted(_)) {
            CUT_OFF.set(CUT_OFF.get() + 1);
        }
        match ending {
            Ending::Answer(_) => (frame, Ending::Answer(format!("{} cut off", CUT_OFF.get()).into())),
            ended => (frame, ended),
        }
    }

    fn scale_budget(&mut self, factor: u32) {
        self.0.scale_budget(factor);
    }

    fn query(&mut self, frame: Frame, view: QueryView, request: &[u8]) -> (Frame, Ending) {
        self.0.query(frame, view, request)
    }

    fn save(&mut self, frame: Frame) -> (Frame, Ending) {
        self.0.save(frame)
    }

    fn restore(&mut self, frame: Frame) -> (Frame, Ending) {
        self.0.restore(frame)
    }
}

impl Metered for Keeping {
    fn set_input_fuel(&mut self, fuel: u64) {
        self.0.set_input_fuel(fuel);
    }

    fn fuel_used(&self) -> u64 {
        self.0.fuel_used()
    }

    fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }
}

struct KeepingSource(WasmGuest);

impl Source for KeepingSource {
    fn fresh(&mut self) -> Result<Box<dyn Metered>, Fault> {
        Ok(Box::new(Keeping(self.0.fresh()?)))
    }

    fn prepare(&mut self) {}
}

/// The certificate of a component in engines of which each, or only the plain one, keeps something.
fn certify_keeping(component: &[u8], deeds: &[Deed], only_plain: bool) -> Certificate {
    let inspected = Inspected::of(component, &Compiler::InProcess).unwrap();
    let mut subjects = Subjects::load(&inspected, &Compiler::InProcess).unwrap();
    let keeping = |subject: &mut Subject| {
        subject.make =
            |module, seed| Box::new(KeepingSource(module.wasm_guest(seed, GuestSettings::default())));
    };
    keeping(&mut subjects.plain);
    if !only_plain {
        keeping(&mut subjects.first);
        keeping(&mut subjects.second);
    }
    certificate::certify_in(&subjects, &inspected, "".into(), deeds, 1).unwrap()
}

/// No guest has a place where something could outlive its instance, so this is the engine's doing.
#[test]
fn what_outlives_an_instance_that_failed_is_caught_by_failures_alone() {
    let deeds: Vec<Deed> = (0..60).map(|_| Deed::Command("1".into())).collect();
    let plain = stored(&guest_text("", "(call $ok)", "(call $ok)"));
    for (component, what) in [
        // Made again from all of its past, it does not do again what it did first of all.
        (COUNTER, "in a replay from the same state, the answer, from byte 0 on"),
        (&*plain, "the answer, from byte 0 on"),
    ] {
        let certificate = certify_keeping(component, &deeds, false);
        for run in
            ["one batch each", "long batches", "snapshots", "a replica", "another replica", "plain code"]
        {
            agrees(&certificate, run);
        }
        let found = difference(&certificate, "failures");
        assert_eq!((found.what.as_str(), found.number == 1), (what, component == COUNTER), "{found:?}");
        assert_eq!(found.expected, "answered \"0 cut off\"");
        let more = found.found.strip_prefix("answered \"").and_then(|rest| rest.strip_suffix(" cut off\""));
        assert!(more.is_some_and(|more| more.parse::<u32>().is_ok_and(|more| more > 0)), "{found:?}");
    }
}

#[test]
fn code_that_comes_to_something_else_is_caught_by_plain_code_alone() {
    let deeds = commands(&["1", "2"]);
    let certificate = certify_keeping(COUNTER, &deeds, true);
    let found = difference(&certificate, "plain code");
    for run in ["one batch each", "long batches", "snapshots", "failures", "a replica", "another replica"] {
        agrees(&certificate, run);
    }
    assert_eq!((found.number, found.what.as_str()), (1, "the answer, from byte 1 on"));
    let sides = ("answered \"0\"", "answered \"0 cut off\"");
    assert_eq!((found.expected.as_str(), found.found.as_str()), sides);
}
