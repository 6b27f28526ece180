//! The host in memory with the guests of the gallery.

use super::*;
use crate::id::{Digest, Index, Revision};
use crate::machine::batch::{Act, Grant, Operation};
use crate::machine::outcome::{HostCode, Outcome};
use crate::machine::view::Table;
use crate::wasm::testing::{self, COUNTER, KV, NOTES, component_of, guest_text, load, stored};

pub fn host(bytes: &[u8], configuration: &'static str) -> Host {
    let mut host = Host::of_module(&load(bytes), Digest::of(bytes), START_MS);
    assert!(host.create(configuration.into()).unwrap().is_ok());
    host
}

fn ok(done: &Done) -> String {
    match &done.last().outcome {
        Outcome::Ok(answer) => String::from_utf8(answer.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn code(done: &Done) -> u32 {
    match &done.last().outcome {
        Outcome::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stored_machine_goes_back_to_its_snapshot() {
    let mut host = host(NOTES, "a=1");
    let before = host.snapshot().unwrap();
    assert_eq!(ok(&host.apply("b=2".into()).unwrap()), "2");
    assert_eq!(code(&host.apply("nonsense".into()).unwrap()), 1);
    let after = host.head().hash;
    assert_eq!(host.query(b"b").unwrap().outcome.unwrap(), "2");
    let events = host.events(Revision(1)).unwrap();
    let seen: Vec<_> = events.iter().map(|event| (event.revision.0, &event.key[..])).collect();
    assert_eq!(seen, [(2, &b"a"[..]), (3, &b"b"[..])]);

    host.restore(&before).unwrap();
    assert_eq!(host.query(b"b").unwrap().outcome.unwrap_err().code, 2);
    assert_eq!(host.head().index, Index(1));
    host.apply("b=2".into()).unwrap();
    host.apply("nonsense".into()).unwrap();
    assert_eq!(host.head().hash, after, "the same commands from the same snapshot");
}

#[test]
fn a_resident_machine_goes_on_from_its_snapshot_in_fresh_instances() {
    let mut host = host(COUNTER, "40");
    assert_eq!(ok(&host.apply("2".into()).unwrap()), "42");
    let snapshot = host.snapshot().unwrap();
    assert_eq!(snapshot.state, 42i64.to_le_bytes()[..]);
    assert_eq!(ok(&host.apply("1".into()).unwrap()), "43");
    assert_eq!(host.query(b"").unwrap().outcome.unwrap(), "43");
    let hash = host.head().hash;

    let mut other = Host::of_module(&load(COUNTER), Digest::of(COUNTER), 0);
    other.restore(&snapshot).unwrap();
    assert_eq!(other.query(b"").unwrap().outcome.unwrap(), "42");
    assert_eq!(ok(&other.apply("1".into()).unwrap()), "43");
    assert_eq!(other.head().hash, hash);
    assert_eq!(other.snapshot().unwrap().state, host.snapshot().unwrap().state);
}

#[test]
fn a_snapshot_of_another_module_is_refused() {
    let snapshot = host(COUNTER, "").snapshot().unwrap();
    let why = host(NOTES, "").restore(&snapshot).unwrap_err().to_string();
    assert!(why.contains(&Digest::of(COUNTER).to_string()), "{why}");
}

#[test]
fn what_is_no_component_is_refused_in_the_words_of_an_upload() {
    let compiler = crate::wasm::Compiler::InProcess;
    let why = Inspected::of(b"(module)", &compiler).unwrap_err().to_string();
    assert!(why.contains("text format"), "{why}");
    let never = stored(&guest_text("(func $start unreachable) (start $start)", "(call $ok)", "(call $ok)"));
    let inspected = Inspected::of(&never, &compiler).unwrap();
    let why = inspected.load(testing::engine(), &compiler).err().expect("it traps").to_string();
    for part in ["cannot be instantiated", "500000000 of fuel", "leave it to the input `created`"] {
        assert!(why.contains(part), "{part:?} is not in {why}");
    }
}

/// A clock that tells its time in another way than WASI's.
const OTHER_CLOCK: &str = "
package test:guest;

world guest {
  include statehouse:machine/stored@0.1.0;
  import wasi:clocks/wall-clock@0.2.6;
}

package wasi:clocks@0.2.6 {
  interface wall-clock { now: func() -> u64; }
}
";

#[test]
fn an_interface_of_wasi_with_other_types_is_refused_by_name_with_what_to_do() {
    let items = "(import \"wasi:clocks/wall-clock@0.2.6\" \"now\" (func $now (result i64)))";
    let text = guest_text(items, "(drop (call $now)) (call $ok)", "(call $ok)");
    let compiler = crate::wasm::Compiler::InProcess;
    let inspected = Inspected::of(&component_of(&text, &[OTHER_CLOCK], "guest"), &compiler).unwrap();
    let why = inspected.load(testing::engine(), &compiler).err().expect("it is not linked").to_string();
    for part in ["wasi:clocks/wall-clock@0.2.6", "does not fit the contract", "as they are published"] {
        assert!(why.contains(part), "{part:?} is not in {why}");
    }
}

/// Grants itself a lease of 10 s at each command and attaches the key `k`; writes down each end.
fn timer() -> Vec<u8> {
    let items = r#"
        (import "statehouse:machine/leases@0.1.0" "grant" (func $grant (param i64 i32)))
        (import "statehouse:machine/leases@0.1.0" "attach" (func $attach (param i64 i32 i32 i32)))
        (import "statehouse:machine/store@0.1.0" "set" (func $set (param i32 i32 i32 i32)))
        (data (i32.const 512) "k")
        (data (i32.const 520) "end")"#;
    let apply = "(if (i32.eq (local.get $case) (i32.const 1)) (then
            (call $grant (i64.const 10000) (i32.const 600))
            (call $attach (i64.load (i32.const 608)) (i32.const 512) (i32.const 1) (i32.const 640))))
        (if (i32.eq (local.get $case) (i32.const 2)) (then
            (i64.store (i32.const 700) (local.get $time))
            (call $set (i32.const 520) (i32.const 3) (i32.const 700) (i32.const 8))))
        (call $ok)";
    stored(&guest_text(items, apply, "(call $ok)"))
}

#[test]
fn leases_end_as_inputs_when_the_clock_passes_their_deadline() {
    let mut host = host(&timer(), "");
    host.apply("go".into()).unwrap();
    host.submit(vec![Act::Grant(Grant { ttl_ms: 15_000, id: 0 }).into()]).unwrap();
    let leases = host.leases().unwrap();
    let seen: Vec<_> = leases.iter().map(|line| (line.id, line.remaining_ms, line.keys.len())).collect();
    assert_eq!(seen, [(1, 10_000, 1), (2, 15_000, 0)]);
    assert!(host.advance(9_999).unwrap().is_empty());

    let ended: Vec<_> = host.advance(60_000).unwrap().iter().map(|(lease, _)| *lease).collect();
    let at = |id, after| EndedLease { id, at_ms: START_MS + after };
    assert_eq!(ended, [at(1, 10_000), at(2, 15_000)]);
    assert_eq!(host.now_ms(), START_MS + 69_999);
    assert!(host.leases().unwrap().is_empty());
    let mut rows = host.rows().rows().filter(|row| row.0 == Table::Store);
    let written = rows.next().unwrap();
    assert_eq!((written.1, written.2), (&b"end"[..], &(START_MS + 15_000).to_le_bytes()[..]));
}

#[test]
fn only_the_guilty_input_of_a_batch_fails() {
    let mut host = host(&testing::attacker(), "");
    let operations = ["w", "t", "w", "l"].map(|command| Operation::command(command.into())).to_vec();
    let done = host.submit(operations).unwrap();
    let codes: Vec<_> = done
        .outcomes
        .iter()
        .map(|at| match at.outcome {
            Outcome::Host(code) => Some(code),
            _ => None,
        })
        .collect();
    assert_eq!(codes, [None, Some(HostCode::Trapped), None, Some(HostCode::Exhausted)]);
}

#[test]
fn the_same_calls_give_the_same_hash_also_in_code_made_otherwise() {
    let compiler = crate::wasm::Compiler::InProcess;
    let inspected = Inspected::of(KV, &compiler).unwrap();
    let hashes = [crate::wasm::Codegen::Optimised, crate::wasm::Codegen::Plain].map(|codegen| {
        let module = inspected.load(&engine(codegen).unwrap(), &compiler).unwrap();
        let mut host = Host::of_module(&module, inspected.digest, START_MS);
        assert!(host.create("".into()).unwrap().is_ok());
        host.apply("\x0a\x00".into()).unwrap();
        host.head().hash
    });
    assert_eq!(hashes[0], hashes[1]);
}
