//! The calls into an instance, with guests that keep to the contract and guests that attack it.

use super::*;
use crate::machine::frame::limits;
use crate::machine::resident::Sink;
use crate::wasm::testing::*;

#[test]
fn the_gallery_runs() {
    for (bytes, world) in [(KV, "stored"), (NOTES, "stored"), (COUNTER, "resident")] {
        let module = load(bytes);
        assert_eq!(module.world().name(), world);
        module.try_instance().unwrap();
    }
}

#[test]
fn a_note_is_kept_and_read_back() {
    let mut guest = guest(NOTES);
    let mut instance = guest.instance().unwrap();
    let (mut frame, ending) = apply_once(instance.as_mut(), b"a=first");
    assert_eq!(answer(ending), b"first");
    assert_eq!(frame.events(), 1);
    assert_eq!(frame.get(b"a").unwrap().unwrap(), b"first".as_slice());
    frame.begin(context(1));
    let (frame, ending) = instance.apply(frame, context(1), &command(b"a="));
    assert_eq!(answer(ending), b"");
    assert_eq!(frame.get(b"a").unwrap(), None);
}

#[test]
fn a_refusal_has_the_guests_code_and_words() {
    let (_, ending) = apply_once(guest(NOTES).instance().unwrap().as_mut(), b"nothing");
    let Ending::Refused(refusal) = ending else { panic!("{ending:?}") };
    assert_eq!(refusal.code, 1);
    assert!(refusal.message.contains("NAME=TEXT"), "{}", refusal.message);
}

#[test]
fn a_fresh_instance_gives_the_same_answer_for_the_same_fuel() {
    let mut guest = guest(NOTES);
    let mut runs = Vec::new();
    for _ in 0..3 {
        let mut instance = guest.fresh().unwrap();
        let (_, ending) = apply_once(&mut instance, b"name=text");
        runs.push((format!("{ending:?}"), instance.fuel_used()));
        // The third is one that was prepared ahead.
        guest.prepare();
    }
    assert!(runs[0].1 > 0);
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0], runs[2]);
}

#[test]
fn a_resident_machine_goes_on_from_its_snapshot() {
    let mut guest = guest(COUNTER);
    let mut first = guest.instance().unwrap();
    assert_eq!(answer(apply_once(first.as_mut(), b"41").1), b"41");
    let sink = Sink::default();
    let (mut frame, ending) = first.save(Frame::for_save(empty_view(), Box::new(sink.clone())));
    assert_eq!(answer(ending), b"");
    frame.finish_save().unwrap();
    let saved = sink.take();
    assert_eq!(*saved, 41i64.to_le_bytes());

    let mut second = guest.instance().unwrap();
    let source = Box::new(std::io::Cursor::new(saved));
    assert_eq!(answer(second.restore(Frame::for_restore(empty_view(), source)).1), b"");
    assert_eq!(answer(second.query(query_frame(), VIEW, b"").1), b"41");
    assert_eq!(answer(apply_once(second.as_mut(), b"1").1), b"42");
}

#[test]
fn a_restore_that_the_guest_refuses_is_reported() {
    let mut instance = guest(COUNTER).instance().unwrap();
    let source = Box::new(std::io::Cursor::new(b"abc".to_vec()));
    let (_, ending) = instance.restore(Frame::for_restore(empty_view(), source));
    let Ending::Refused(refusal) = ending else { panic!("{ending:?}") };
    assert!(refusal.message.contains("3 bytes"), "{}", refusal.message);
}

const UNREACHABLE: &str = "unreachable";

/// How a guest ends that does `apply`.
fn ending_with(items: &str, apply: &str) -> (Frame, Ending, u64) {
    let mut guest = guest(&stored(&guest_text(items, apply, "(call $ok)")));
    let mut instance = guest.fresh().unwrap();
    let (frame, ending) = apply_once(&mut instance, b"input");
    let used = instance.fuel_used();
    if !matches!(ending, Ending::Answer(_) | Ending::Refused(_)) {
        let (_, again) = apply_once(&mut instance, b"input");
        assert!(matches!(again, Ending::Fault(_)), "a dead instance was called: {again:?}");
    }
    (frame, ending, used)
}

/// The guest must trap, for a reason that names `word`.
fn assert_traps(items: &str, apply: &str, word: &str) {
    let (_, ending, _) = ending_with(items, apply);
    let Ending::Trapped(why) = ending else { panic!("{apply}: {ending:?}") };
    assert!(why.contains(word), "{why}");
}

#[test]
fn the_text_guest_answers() {
    let (_, ending, _) = ending_with("", "(call $answer (local.get $b) (i32.const 3))");
    assert!(matches!(ending, Ending::Answer(_)), "{ending:?}");
}

#[test]
fn a_guest_that_traps_is_trapped() {
    assert_traps("", UNREACHABLE, "unreachable");
}

#[test]
fn a_guest_that_loops_is_exhausted() {
    let (_, ending, used) = ending_with("", "(loop (br 0)) unreachable");
    assert!(matches!(ending, Ending::Exhausted(_)), "{ending:?}");
    assert_eq!(used, INPUT_FUEL);
}

#[test]
fn a_guest_that_recurses_without_end_is_trapped() {
    let items = "(func $down (param i32) (result i32) (i32.add (call $down (local.get 0)) (i32.const 1)))";
    assert_traps(items, "(call $down (i32.const 0))", "stack");
}

#[test]
fn a_guest_learns_that_memory_is_denied_and_how_much_it_has() {
    // Grows by 64 pages until it cannot, and answers by how often: 2 pages and 63 times 64 fit into 256 MiB.
    let apply = "(local $n i32)
        (block $end (loop $more
            (br_if $end (i32.eq (i32.const -1) (memory.grow (i32.const 64))))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br $more)))
        (drop (memory.grow (i32.const 65535)))
        (i32.store (i32.const 128) (local.get $n))
        (call $answer (i32.const 128) (i32.const 4))";
    let (_, ending, _) = ending_with("", apply);
    assert_eq!(answer(ending), 63i32.to_le_bytes());
}

#[test]
fn tables_grow_to_their_limit_and_no_further() {
    let apply = "
        (i32.store (i32.const 128) (table.grow $t (ref.null func) (i32.const 99999)))
        (i32.store (i32.const 132) (table.grow $t (ref.null func) (i32.const 1)))
        (call $answer (i32.const 128) (i32.const 8))";
    let (_, ending, _) = ending_with("(table $t 1 funcref)", apply);
    assert_eq!(answer(ending), [1i32.to_le_bytes(), (-1i32).to_le_bytes()].concat());
}

#[test]
fn a_refusal_with_code_0_counts_as_a_trap() {
    assert_traps("", "(call $refuse (i32.const 0) (i32.const 0) (i32.const 0))", "code 0");
}

#[test]
fn a_refusal_or_answer_over_its_limit_counts_as_a_trap() {
    let long = limits::REFUSAL_BYTES_MAX;
    let refuse =
        |length: usize| format!("(call $refuse (i32.const 9) (i32.const 1024) (i32.const {length}))");
    assert_traps("", &refuse(long + 1), "at most 4096");
    assert!(matches!(ending_with("", &refuse(long)).1, Ending::Refused(_)));
    let answer = |length: usize| {
        format!("(drop (memory.grow (i32.const 100))) (call $answer (i32.const 0) (i32.const {length}))")
    };
    assert_traps("", &answer(limits::ANSWER_BYTES_MAX + 1), "at most 4194304");
    assert!(matches!(ending_with("", &answer(limits::ANSWER_BYTES_MAX)).1, Ending::Answer(_)));
}

#[test]
fn lists_whose_lengths_lie_trap() {
    assert_traps("", "(call $answer (i32.const 0) (i32.const -1))", "out of bounds");
    assert_traps("", "(call $answer (i32.const -1) (i32.const 2))", "out of bounds");
    assert_traps("", "(i32.const -4)", "out of bounds");
    assert_traps("", "(i32.const 65)", "align");
    let set = "(import \"statehouse:machine/store@0.1.0\" \"set\" (func $set (param i32 i32 i32 i32)))";
    let call = "(call $set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0x7fffffff)) (call $ok)";
    assert_traps(set, call, "out of bounds");
    let get_many = "(import \"statehouse:machine/store@0.1.0\" \"get-many\" (func $get (param i32 i32 i32)))";
    let call = "(call $get (i32.const 0) (i32.const 0x1fffffff) (i32.const 0)) (call $ok)";
    assert_traps(get_many, call, "out of bounds");
}

#[test]
fn arguments_are_copied_only_up_to_a_limit() {
    let get_many = "(import \"statehouse:machine/store@0.1.0\" \"get-many\" (func $get (param i32 i32 i32)))";
    // A million empty keys: eight bytes each in the guest, 24 in the host.
    let call = "(drop (memory.grow (i32.const 200)))
        (call $get (i32.const 0) (i32.const 1000000) (i32.const 0)) (call $ok)";
    assert_traps(get_many, call, "hostcalls");
}

#[test]
fn a_message_that_is_no_text_traps() {
    let apply = "(i32.store8 (i32.const 1024) (i32.const 0xff))
        (call $refuse (i32.const 9) (i32.const 1024) (i32.const 1))";
    assert_traps("", apply, "utf-8");
}

const SET: &str = "(import \"statehouse:machine/store@0.1.0\" \"set\" (func $set (param i32 i32 i32 i32)))";
const EMIT: &str =
    "(import \"statehouse:machine/events@0.1.0\" \"emit\" (func $emit (param i32 i32 i32 i32 i32)))";
const LOG: &str = "(import \"statehouse:machine/log@0.1.0\" \"write\" (func $log (param i32 i32 i32)))";

#[test]
fn floods_trap_at_the_contracts_limits() {
    let forever = |call: &str| format!("(loop {call} (br 0)) unreachable");
    let emit = "(call $emit (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0))";
    assert_traps(EMIT, &forever(emit), "events of one input: 10001");
    let set = "(call $set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 65536))";
    assert_traps(SET, &forever(set), "bytes written by one input");
    assert_traps(
        LOG,
        &forever("(call $log (i32.const 1) (i32.const 0) (i32.const 5))"),
        "log lines of one call: 65",
    );
}

#[test]
fn a_guest_that_only_calls_the_host_is_exhausted() {
    let get = "(import \"statehouse:machine/store@0.1.0\" \"get\" (func $get (param i32 i32 i32)))";
    let (_, ending, _) =
        ending_with(get, "(loop (call $get (i32.const 0) (i32.const 1) (i32.const 64)) (br 0)) unreachable");
    assert!(matches!(ending, Ending::Exhausted(_)), "{ending:?}");
}

#[test]
fn host_functions_cost_fuel_by_their_bytes() {
    let used = |length: u32| {
        let apply =
            format!("(call $set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const {length})) (call $ok)");
        ending_with(SET, &apply).2
    };
    assert_eq!(used(5_000) - used(1_000), 4_000);
}

#[test]
fn what_a_trapped_input_wrote_comes_back_for_the_rollback() {
    let set = "(i32.store8 (i32.const 0) (i32.const 107))
        (call $set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 5)) unreachable";
    let (mut frame, ending, _) = ending_with(SET, set);
    assert!(matches!(ending, Ending::Trapped(_)));
    assert!(frame.get(b"k").unwrap().is_some());
    frame.rollback();
    assert!(frame.get(b"k").unwrap().is_none());
}

#[test]
fn a_write_in_a_query_traps() {
    let set = "(call $set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 5)) (call $ok)";
    let mut instance = guest(&stored(&guest_text(SET, "(call $ok)", set))).instance().unwrap();
    let (_, ending) = instance.query(query_frame(), VIEW, b"");
    let Ending::Trapped(why) = ending else { panic!("{ending:?}") };
    assert!(why.contains("only apply may change the state"), "{why}");
}

#[test]
fn a_start_function_that_loops_traps_every_call() {
    let items = "(func $forever (loop (br 0))) (start $forever)";
    let module = load(&stored(&guest_text(items, "(call $ok)", "(call $ok)")));
    let error = module.try_instance().unwrap_err().to_string();
    assert!(error.contains("fuel"), "{error}");
    let mut instance = module.guest([0; 32], GuestSettings::default()).instance().unwrap();
    for _ in 0..2 {
        let (_, ending) = apply_once(instance.as_mut(), b"");
        assert!(matches!(ending, Ending::Trapped(_)), "{ending:?}");
    }
}

#[test]
fn an_instance_being_made_cannot_use_the_host() {
    let items = format!(
        "{SET}
        (func (export \"_initialize\") (call $set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 5)))"
    );
    let module = load(&stored(&guest_text(&items, "(call $ok)", "(call $ok)")));
    let error = module.try_instance().unwrap_err().to_string();
    assert!(error.contains("while the instance was being made"), "{error}");
}

#[test]
fn post_return_must_end_before_a_result_counts() {
    let items =
        "(func (export \"cabi_post_statehouse:machine/behavior@0.1.0#apply\") (param i32) unreachable)";
    assert_traps(items, "(call $ok)", "unreachable");
}

#[test]
fn the_budget_can_be_scaled() {
    let spin = "(local $n i32)
        (loop $more
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if $more (i32.lt_u (local.get $n) (i32.const 1000))))
        (call $ok)";
    let settings = GuestSettings { input_fuel: 5_000, ..Default::default() };
    let mut guest = load(&stored(&guest_text("", spin, "(call $ok)"))).guest([0; 32], settings);
    let mut instance = guest.instance().unwrap();
    assert!(matches!(apply_once(instance.as_mut(), b"").1, Ending::Exhausted(_)));
    let mut instance = guest.instance().unwrap();
    instance.scale_budget(10);
    assert!(matches!(apply_once(instance.as_mut(), b"").1, Ending::Answer(_)));
}

#[test]
fn a_save_that_never_ends_is_stopped_by_time() {
    let items =
        "(func (export \"statehouse:machine/snapshot@0.1.0#save\") (result i32) (loop (br 0)) unreachable)
        (func (export \"statehouse:machine/snapshot@0.1.0#restore\") (result i32) unreachable)";
    let bytes = resident(&guest_text(items, "(call $ok)", "(call $ok)"));
    let settings = GuestSettings { snapshot: Duration::from_millis(50), ..Default::default() };
    let mut instance = load(&bytes).guest([0; 32], settings).instance().unwrap();
    let (_, ending) = instance.save(Frame::for_save(empty_view(), Box::new(std::io::sink())));
    let Ending::Exhausted(why) = ending else { panic!("{ending:?}") };
    assert!(why.contains("time"), "{why}");
}

#[test]
fn what_this_computer_fails_at_is_a_fault_and_not_a_trap() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut instance = guest(COUNTER).instance().unwrap();
    let (_, ending) = instance.save(Frame::for_save(empty_view(), Box::new(Full)));
    let Ending::Fault(fault) = ending else { panic!("{ending:?}") };
    assert!(fault.to_string().contains("snapshot"), "{fault}");
}
