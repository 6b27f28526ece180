//! The machine does what the model does, on random histories; and no bytes whatever make it panic.

mod model;

use model::Run;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use statehouse_kv::memory::Memory;
use statehouse_kv::messages::*;
use statehouse_kv::{Input, Kind, Moment, TTL_MS_MAX, apply, query};

/// Keys that are near each other in every way the layout must tell apart.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let keys: [&[u8]; 14] = [
        b"\0",
        b"\0\0",
        b"\0\x01",
        b"\0\xff",
        b"a",
        b"a\0",
        b"a\0\0",
        b"a\0\x01",
        b"a\x01",
        b"a\xff",
        b"ab",
        b"b",
        b"\xff",
        b"\xff\xff",
    ];
    prop_oneof![30 => select(keys.to_vec()).prop_map(<[u8]>::to_vec), 1 => Just(Vec::new())]
}

fn range_end() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![3 => Just(Vec::new()), 2 => Just(vec![0]), 4 => key()]
}

fn revision() -> impl Strategy<Value = i64> {
    prop_oneof![10 => Just(0), 10 => 1..40i64, 1 => Just(-1)]
}

fn lease() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0), 5 => 1..12i64, 1 => Just(-7)]
}

/// Some end while the acts go on, some never; few are none.
fn ttl() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        12 => Just(None),
        6 => (1..60u64).prop_map(Some),
        2 => Just(Some(TTL_MS_MAX)),
        1 => select(vec![0, TTL_MS_MAX + 1, u64::MAX]).prop_map(Some),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(Vec::new()), select(vec!["x", "y", "longer"]).prop_map(|text| text.into())]
}

prop_compose! {
    fn range()(
        key in key(), range_end in range_end(), revision in revision(),
        limit in prop_oneof![2 => Just(0), 3 => 1..4i64, 1 => Just(-1)],
        sort in (0..3i32, 0..5i32), wrong in prop::bool::weighted(0.02), keys_only in any::<bool>(),
        count_only in prop::bool::weighted(0.2), filters in vec(prop_oneof![5 => Just(0), 1 => 1..40i64], 4),
        uncounted in prop::bool::weighted(0.2),
    ) -> RangeRequest {
        RangeRequest {
            key,
            range_end,
            limit,
            revision,
            sort_order: sort.0 + if wrong { 7 } else { 0 },
            sort_target: sort.1,
            serializable: false,
            keys_only,
            count_only,
            min_mod_revision: filters[0],
            max_mod_revision: filters[1],
            min_create_revision: filters[2],
            max_create_revision: filters[3],
            uncounted,
        }
    }
}

prop_compose! {
    fn put()(
        key in key(), value in value(), lease in lease(), prev_kv in any::<bool>(),
        ignore_value in prop::bool::weighted(0.15), ignore_lease in prop::bool::weighted(0.15),
        consistent in prop::bool::weighted(0.9), ttl_ms in ttl(),
    ) -> PutRequest {
        let value = if ignore_value && consistent { Vec::new() } else { value };
        let lease = if (ignore_lease || ttl_ms.is_some()) && consistent { 0 } else { lease };
        let ttl_ms = ttl_ms.filter(|_| !(ignore_lease && consistent));
        PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease, ttl_ms }
    }
}

prop_compose! {
    fn delete()(key in key(), range_end in range_end(), prev_kv in any::<bool>()) -> DeleteRangeRequest {
        DeleteRangeRequest { key, range_end, prev_kv }
    }
}

prop_compose! {
    fn compare()(
        key in key(), range_end in range_end(), result in 0..4i32, target in 0..5i32, number in 0..6i64,
        value in value(), other in prop::bool::weighted(0.1), wrong in prop::bool::weighted(0.01),
    ) -> Compare {
        let target_union = match (target + i32::from(other)) % 5 {
            0 => TargetUnion::Version(number),
            1 => TargetUnion::CreateRevision(number * 5),
            2 => TargetUnion::ModRevision(number * 5),
            3 => TargetUnion::Value(value),
            _ => TargetUnion::Lease(number),
        };
        let result = result + if wrong { 9 } else { 0 };
        Compare { result, target, key, target_union: Some(target_union), range_end }
    }
}

fn simple() -> impl Strategy<Value = Request> {
    prop_oneof![
        range().prop_map(Request::RequestRange),
        put().prop_map(Request::RequestPut),
        delete().prop_map(Request::RequestDeleteRange),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let txn = simple().prop_recursive(3, 12, 3, |inner| {
        let steps = || {
            let step = prop_oneof![40 => inner.clone().prop_map(Some), 1 => Just(None)];
            vec(step.prop_map(|request| RequestOp { request }), 0..4)
        };
        (vec(compare(), 0..3), steps(), steps()).prop_map(|(compare, success, failure)| {
            Request::RequestTxn(TxnRequest { compare, success, failure })
        })
    });
    prop_oneof![4 => put().prop_map(Request::RequestPut), 2 => simple(), 3 => txn]
}

#[derive(Clone, Debug)]
enum Act {
    Command(Request),
    Query(Request),
    Compact(i64, bool),
    Grant,
    RunOut(u64),
    EndLease(u64),
    Wait(u64),
    Upgrade,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        30 => request().prop_map(Act::Command),
        10 => request().prop_map(Act::Query),
        1 => (0..40i64, any::<bool>()).prop_map(|(revision, physical)| Act::Compact(revision, physical)),
        3 => Just(Act::Grant),
        2 => (1..12u64).prop_map(Act::RunOut),
        2 => (1..12u64).prop_map(Act::EndLease),
        6 => (1..30u64).prop_map(Act::Wait),
        1 => Just(Act::Upgrade),
    ]
}

/// Whether it is for the model to say: the machine refuses writes in queries before it looks at anything
/// else.
fn reads(request: &Request) -> bool {
    match request {
        Request::RequestRange(_) => true,
        Request::RequestTxn(txn) => {
            txn.success.iter().chain(&txn.failure).all(|op| op.request.as_ref().is_some_and(reads))
        }
        _ => false,
    }
}

fn perform(run: &mut Run, act: &Act) {
    match act {
        Act::Command(request) => drop(run.command(request)),
        Act::Query(request) if reads(request) => drop(run.query(request)),
        Act::Query(request) => {
            assert!(query(&run.host, run.view(), &model::envelope(request)).is_err(), "{request:?}");
        }
        Act::Compact(revision, physical) => drop(run.compact(*revision, *physical)),
        Act::Grant => _ = run.grant(),
        Act::RunOut(lease) => run.run_out(*lease),
        Act::EndLease(lease) => run.end_lease(*lease),
        Act::Wait(ms) => run.wait(*ms),
        Act::Upgrade => assert_eq!(run.input(Input::Upgraded), Ok((Vec::new(), Vec::new()))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_500, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Answers, refusals, events, every readable revision, attachments and kept rows: as the model has them.
    #[test]
    fn the_machine_does_what_the_model_does(acts in vec(act(), 1..80)) {
        let mut run = Run::default();
        run.grant();
        run.grant();
        for act in &acts {
            perform(&mut run, act);
            if !matches!(act, Act::Query(_)) {
                run.check_everything();
            }
        }
    }

    /// Two machines fed the same inputs hold the same rows, whatever one of them was asked in between.
    #[test]
    fn queries_change_nothing(acts in vec(act(), 1..40)) {
        let (mut asked, mut quiet) = (Run::default(), Run::default());
        for act in &acts {
            perform(&mut asked, act);
            if !matches!(act, Act::Query(_)) {
                perform(&mut quiet, act);
            }
        }
        prop_assert_eq!(asked.host, quiet.host);
    }

    /// The memory host panics where the real one would trap, so this holds for traps as well.
    #[test]
    fn no_bytes_make_it_panic(
        kind in 0..9u8,
        bytes in vec(any::<u8>(), 0..200),
        cut in any::<Index>(),
        good in request(),
    ) {
        let mut host = Memory::default();
        let mut garbage = vec![kind];
        garbage.extend_from_slice(&bytes);
        let mut damaged = model::envelope(&good);
        let at = cut.index(damaged.len());
        damaged[at] ^= bytes.first().copied().unwrap_or(1);
        let short = damaged[..at].to_vec();
        for input in [garbage, damaged, short] {
            let moment = Moment { revision: 2, time_ms: 1_000 };
            let _ = apply(&mut host, moment, Input::Command(&input));
            let _ = host.next_input();
            let _ = query(&host, moment, &input);
        }
    }

    /// Rows that the machine did not write are refused as damaged, or read as what they are; never a panic.
    #[test]
    fn no_damaged_row_makes_it_panic(
        acts in vec(act(), 1..20),
        at in any::<Index>(),
        flip in 1..=255u8,
        probe in request(),
    ) {
        let mut run = Run::default();
        for act in &acts {
            perform(&mut run, act);
        }
        let row = at.get(&run.host.rows.keys().cloned().collect::<Vec<_>>()).clone();
        for byte in 0..run.host.rows[&row].len() {
            let mut host = run.host.clone();
            host.rows.get_mut(&row).expect("the row")[byte] ^= flip;
            let _ = query(&host, run.view(), &model::envelope(&probe));
            let _ = apply(&mut host, run.context(), Input::Command(&model::envelope(&probe)));
        }
    }
}

/// Deep nesting ends in a refusal long before a stack would.
#[test]
fn nesting_without_end_is_refused() {
    let mut txn = TxnRequest::default();
    for _ in 0..5_000 {
        txn = TxnRequest {
            success: vec![RequestOp { request: Some(Request::RequestTxn(txn)) }],
            ..Default::default()
        };
    }
    // Encoding recurses, so the test needs the stack that the machine must not.
    let encode = std::thread::Builder::new().stack_size(256 << 20).spawn(move || {
        let bytes = prost::Message::encode_to_vec(&txn);
        std::mem::forget(txn);
        bytes
    });
    let bytes = Kind::Txn.envelope(&encode.expect("a thread").join().expect("bytes"));
    let refusal = apply(&mut Memory::default(), Moment { revision: 2, time_ms: 0 }, Input::Command(&bytes))
        .expect_err("too deep");
    assert_eq!(refusal.code, statehouse_kv::code::INVALID_ARGUMENT);
}
