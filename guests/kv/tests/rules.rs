//! One example for each rule of etcd's data model, told in its own words. The model checks every answer as
//! well.

mod model;

use model::Run;
use prost::Message;
use statehouse_kv::messages::*;
use statehouse_kv::{Call, Input, Kind, Moment, Refusal, apply, code, query};

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.into(), ..Default::default() }
}

fn prefix(key: &str) -> RangeRequest {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut().expect("a prefix is not empty") += 1;
    RangeRequest { key: key.into(), range_end: end, ..Default::default() }
}

fn everything() -> RangeRequest {
    RangeRequest { key: vec![0], range_end: vec![0], ..Default::default() }
}

fn delete(key: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.into(), ..Default::default() }
}

fn compare(key: &str, target: CompareTarget, result: CompareResult, with: TargetUnion) -> Compare {
    Compare {
        key: key.into(),
        target: target as i32,
        result: result as i32,
        target_union: Some(with),
        ..Default::default()
    }
}

fn ops(requests: impl IntoIterator<Item = Request>) -> Vec<RequestOp> {
    requests.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
}

/// Typed shorthands, each of them checked against the model.
trait Do {
    fn put(&mut self, request: PutRequest) -> Result<PutResponse, Refusal>;
    fn get(&self, request: RangeRequest) -> Result<RangeResponse, Refusal>;
    fn delete(&mut self, request: DeleteRangeRequest) -> DeleteRangeResponse;
    fn txn(&mut self, request: TxnRequest) -> Result<TxnResponse, Refusal>;
}

impl Do for Run {
    fn put(&mut self, request: PutRequest) -> Result<PutResponse, Refusal> {
        self.command(&Request::RequestPut(request)).map(|answer| match answer {
            Response::ResponsePut(answer) => answer,
            other => panic!("{other:?}"),
        })
    }

    fn get(&self, request: RangeRequest) -> Result<RangeResponse, Refusal> {
        self.query(&Request::RequestRange(request)).map(|answer| match answer {
            Response::ResponseRange(answer) => answer,
            other => panic!("{other:?}"),
        })
    }

    fn delete(&mut self, request: DeleteRangeRequest) -> DeleteRangeResponse {
        match self.command(&Request::RequestDeleteRange(request)) {
            Ok(Response::ResponseDeleteRange(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn txn(&mut self, request: TxnRequest) -> Result<TxnResponse, Refusal> {
        self.command(&Request::RequestTxn(request)).map(|answer| match answer {
            Response::ResponseTxn(answer) => answer,
            other => panic!("{other:?}"),
        })
    }
}

fn keys(answer: &RangeResponse) -> Vec<&str> {
    answer.kvs.iter().map(|kv| std::str::from_utf8(&kv.key).expect("text")).collect()
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.expect("a header").revision
}

#[test]
fn a_fresh_store_is_at_revision_1() {
    let run = Run::default();
    let answer = run.get(everything()).unwrap();
    assert_eq!((revision(answer.header), answer.count, answer.more), (1, 0, false));
}

#[test]
fn every_change_takes_the_next_revision_and_versions_count_from_creation() {
    let mut run = Run::default();
    assert_eq!(revision(run.put(put("a", "1")).unwrap().header), 2);
    assert_eq!(revision(run.put(put("a", "2")).unwrap().header), 3);
    let kv = &run.get(get("a")).unwrap().kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.value.as_slice()), (2, 3, 2, &b"2"[..]));
    assert_eq!(revision(run.delete(delete("a")).header), 4);
    run.put(put("a", "3")).unwrap();
    let kv = &run.get(get("a")).unwrap().kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[test]
fn what_changes_nothing_keeps_the_revision() {
    let mut run = Run::default();
    run.put(put("a", "1")).unwrap();
    let answer = run.delete(delete("absent"));
    assert_eq!((revision(answer.header), answer.deleted), (2, 0));
    let nothing =
        TxnRequest { success: ops([Request::RequestDeleteRange(delete("absent"))]), ..Default::default() };
    assert_eq!(revision(run.txn(nothing).unwrap().header), 2);
    assert_eq!(revision(run.txn(TxnRequest::default()).unwrap().header), 2);
}

#[test]
fn all_changes_of_a_transaction_share_its_revision_in_their_order() {
    let mut run = Run::default();
    let steps = [
        Request::RequestPut(put("b", "1")),
        Request::RequestPut(put("a", "1")),
        Request::RequestRange(everything()),
    ];
    let txn = TxnRequest { success: ops(steps), ..Default::default() };
    let (_, events) = run.input(Input::Command(&txn.to_envelope())).unwrap();
    let seen: Vec<_> = events.iter().map(|event| event.kv.as_ref().unwrap()).collect();
    assert_eq!(
        seen.iter().map(|kv| (kv.key.as_slice(), kv.mod_revision)).collect::<Vec<_>>(),
        [(&b"b"[..], 2), (&b"a"[..], 2)]
    );
    assert_eq!(run.revision, 2);
}

#[test]
fn steps_of_a_transaction_see_the_steps_before_them_and_their_headers_count_along() {
    let mut run = Run::default();
    let steps = [
        Request::RequestRange(get("a")),
        Request::RequestPut(put("a", "1")),
        Request::RequestRange(get("a")),
        Request::RequestTxn(TxnRequest {
            success: ops([Request::RequestRange(get("a"))]),
            ..Default::default()
        }),
    ];
    let answer = run.txn(TxnRequest { success: ops(steps), ..Default::default() }).unwrap();
    let Some(Response::ResponseRange(before)) = &answer.responses[0].response else { panic!() };
    let Some(Response::ResponseRange(after)) = &answer.responses[2].response else { panic!() };
    assert_eq!((revision(before.header), before.count), (1, 0));
    assert_eq!((revision(after.header), after.count), (2, 1));
}

#[test]
fn nested_conditions_are_judged_before_the_first_step() {
    let mut run = Run::default();
    let absent =
        |key| compare(key, CompareTarget::Create, CompareResult::Equal, TargetUnion::CreateRevision(0));
    let nested = TxnRequest {
        compare: vec![absent("a")],
        success: ops([Request::RequestPut(put("was-absent", ""))]),
        failure: ops([Request::RequestPut(put("was-there", ""))]),
    };
    let steps = [Request::RequestPut(put("a", "")), Request::RequestTxn(nested)];
    run.txn(TxnRequest { success: ops(steps), ..Default::default() }).unwrap();
    assert_eq!(keys(&run.get(everything()).unwrap()), ["a", "was-absent"]);
}

#[test]
fn range_ends_name_one_key_a_span_a_prefix_or_all_keys_from_one_on() {
    let mut run = Run::default();
    for key in ["a", "b", "ba", "bb", "c"] {
        run.put(put(key, "")).unwrap();
    }
    assert_eq!(keys(&run.get(get("b")).unwrap()), ["b"]);
    assert_eq!(keys(&run.get(prefix("b")).unwrap()), ["b", "ba", "bb"]);
    assert_eq!(keys(&run.get(RangeRequest { range_end: vec![0], ..get("bb") }).unwrap()), ["bb", "c"]);
    assert_eq!(keys(&run.get(everything()).unwrap()), ["a", "b", "ba", "bb", "c"]);
    // An end before the start is empty, as in etcd, and no error.
    assert_eq!(run.get(RangeRequest { range_end: b"a".into(), ..get("c") }).unwrap().count, 0);
}

#[test]
fn a_limit_bounds_the_keys_but_not_the_count() {
    let mut run = Run::default();
    for key in ["a1", "a2", "a3"] {
        run.put(put(key, "")).unwrap();
    }
    let answer = run.get(RangeRequest { limit: 2, ..prefix("a") }).unwrap();
    assert_eq!((keys(&answer), answer.more, answer.count), (vec!["a1", "a2"], true, 3));
    let answer = run.get(RangeRequest { limit: 3, ..prefix("a") }).unwrap();
    assert_eq!((answer.kvs.len(), answer.more, answer.count), (3, false, 3));
    let answer = run.get(RangeRequest { limit: 2, uncounted: true, ..prefix("a") }).unwrap();
    assert_eq!((keys(&answer), answer.more, answer.count), (vec!["a1", "a2"], true, 0));
}

#[test]
fn a_range_sorts_by_each_target_in_each_order() {
    let mut run = Run::default();
    for (key, value) in [("a", "2"), ("b", "3"), ("c", "1"), ("a", "2"), ("c", "1"), ("c", "1")] {
        run.put(put(key, value)).unwrap();
    }
    let sorted = |target: SortTarget, order: SortOrder| {
        let request = RangeRequest { sort_target: target as i32, sort_order: order as i32, ..everything() };
        keys(&run.get(request).unwrap()).concat()
    };
    for (target, ascending, descending) in [
        (SortTarget::Key, "abc", "cba"),
        (SortTarget::Version, "bac", "cab"),
        (SortTarget::Create, "abc", "cba"),
        (SortTarget::Mod, "bac", "cab"),
        (SortTarget::Value, "cab", "bac"),
    ] {
        assert_eq!(sorted(target, SortOrder::None), ascending, "{target:?}");
        assert_eq!(sorted(target, SortOrder::Ascend), ascending, "{target:?}");
        assert_eq!(sorted(target, SortOrder::Descend), descending, "{target:?}");
    }
}

#[test]
fn a_sorted_range_limits_after_sorting_unless_the_order_is_left_open() {
    let mut run = Run::default();
    for (key, value) in [("a", "4"), ("b", "3"), ("c", "2"), ("d", "1")] {
        run.put(put(key, value)).unwrap();
    }
    let by_value = RangeRequest { sort_target: SortTarget::Value as i32, limit: 2, ..everything() };
    let explicit = RangeRequest { sort_order: SortOrder::Ascend as i32, ..by_value.clone() };
    let answer = run.get(explicit).unwrap();
    assert_eq!((keys(&answer), answer.more, answer.count), (vec!["d", "c"], true, 4));
    // etcd fetches the limit and one before it sorts.
    let answer = run.get(by_value).unwrap();
    assert_eq!((keys(&answer), answer.more, answer.count), (vec!["c", "b"], true, 4));
}

#[test]
fn revision_filters_leave_keys_out_but_not_of_the_count() {
    let mut run = Run::default();
    for key in ["a", "b", "c", "a"] {
        run.put(put(key, "")).unwrap();
    }
    let only = |request: RangeRequest| {
        let answer = run.get(request).unwrap();
        assert_eq!(answer.count, 3);
        keys(&answer).concat()
    };
    assert_eq!(only(RangeRequest { min_mod_revision: 4, ..everything() }), "ac");
    assert_eq!(only(RangeRequest { max_mod_revision: 3, ..everything() }), "b");
    assert_eq!(only(RangeRequest { min_create_revision: 3, ..everything() }), "bc");
    assert_eq!(only(RangeRequest { max_create_revision: 2, ..everything() }), "a");
}

#[test]
fn keys_only_leaves_the_values_out_and_count_only_everything() {
    let mut run = Run::default();
    run.put(put("a", "value")).unwrap();
    let answer = run.get(RangeRequest { keys_only: true, ..everything() }).unwrap();
    assert_eq!((answer.kvs[0].value.len(), answer.kvs[0].mod_revision), (0, 2));
    let answer = run.get(RangeRequest { count_only: true, ..everything() }).unwrap();
    assert_eq!((answer.kvs.len(), answer.count), (0, 1));
}

#[test]
fn a_past_revision_shows_the_store_as_it_was() {
    let mut run = Run::default();
    run.put(put("a", "1")).unwrap();
    run.put(put("b", "1")).unwrap();
    run.delete(delete("a"));
    run.put(put("a", "2")).unwrap();
    let at = |revision| run.get(RangeRequest { revision, ..everything() }).unwrap();
    assert_eq!(keys(&at(1)), Vec::<&str>::new());
    assert_eq!(keys(&at(2)), ["a"]);
    assert_eq!(keys(&at(3)), ["a", "b"]);
    assert_eq!(keys(&at(4)), ["b"]);
    assert_eq!(at(5).kvs[0].version, 1);
    // The header tells of the present.
    assert_eq!(revision(at(2).header), 5);
}

#[test]
fn a_revision_beyond_the_present_or_before_a_compaction_is_out_of_range() {
    let mut run = Run::default();
    for _ in 0..4 {
        run.put(put("a", "")).unwrap();
    }
    assert_eq!(run.get(RangeRequest { revision: 6, ..get("a") }), Err(Refusal::FUTURE_REVISION));
    assert_eq!(run.compact(6, false), Err(Refusal::FUTURE_REVISION));
    run.compact(4, false).unwrap();
    assert_eq!(run.compact(4, false), Err(Refusal::COMPACTED));
    assert_eq!(run.get(RangeRequest { revision: 3, ..get("a") }), Err(Refusal::COMPACTED));
    assert_eq!(run.get(RangeRequest { revision: 4, ..get("a") }).unwrap().kvs[0].version, 3);
    let refusal = Refusal::COMPACTED;
    assert_eq!(
        (refusal.code, refusal.message.as_ref()),
        (11, "etcdserver: mvcc: required revision has been compacted")
    );
}

#[test]
fn a_compaction_drops_what_was_superseded_and_deleted_by_then() {
    let mut run = Run::default();
    run.put(put("kept", "")).unwrap();
    run.put(put("gone", "")).unwrap();
    run.delete(delete("gone"));
    run.put(put("kept", "2")).unwrap();
    assert_eq!(run.history_rows(), 2);
    run.compact(4, false).unwrap();
    // Until revision 5 the first version of `kept` was the current one.
    assert_eq!(run.history_rows(), 1);
    run.compact(5, false).unwrap();
    assert_eq!(run.history_rows(), 0);
    run.check_everything();
}

#[test]
fn a_compaction_takes_no_revision_and_makes_no_event() {
    let mut run = Run::default();
    run.put(put("a", "")).unwrap();
    assert_eq!(revision(run.compact(1, true).unwrap().header), 2);
    assert_eq!(run.revision, 2);
    assert_eq!(run.status().compact_revision, 1);
}

#[test]
fn a_put_can_keep_the_value_or_the_lease_and_tell_the_version_before() {
    let mut run = Run::default();
    let lease = run.grant() as i64;
    run.put(PutRequest { lease, ..put("a", "1") }).unwrap();
    let answer = run
        .put(PutRequest { ignore_value: true, ignore_lease: true, prev_kv: true, ..put("a", "") })
        .unwrap();
    assert_eq!(answer.prev_kv.unwrap().version, 1);
    let kv = run.get(get("a")).unwrap().kvs.remove(0);
    assert_eq!((kv.version, kv.value.as_slice(), kv.lease), (2, &b"1"[..], lease));
    run.put(PutRequest { ignore_value: true, ..put("a", "") }).unwrap();
    assert_eq!(run.get(get("a")).unwrap().kvs[0].lease, 0);
}

#[test]
fn a_put_that_contradicts_itself_is_refused() {
    let mut run = Run::default();
    let refused = |run: &mut Run, request| run.put(request).unwrap_err();
    assert_eq!(refused(&mut run, put("", "")), Refusal::EMPTY_KEY);
    assert_eq!(
        refused(&mut run, PutRequest { ignore_value: true, ..put("a", "1") }),
        Refusal::VALUE_PROVIDED
    );
    assert_eq!(
        refused(&mut run, PutRequest { ignore_lease: true, lease: 1, ..put("a", "") }),
        Refusal::LEASE_PROVIDED
    );
    assert_eq!(refused(&mut run, PutRequest { ignore_value: true, ..put("a", "") }), Refusal::KEY_NOT_FOUND);
    assert_eq!(refused(&mut run, PutRequest { ignore_lease: true, ..put("a", "") }), Refusal::KEY_NOT_FOUND);
    assert_eq!(refused(&mut run, PutRequest { lease: 9, ..put("a", "") }), Refusal::LEASE_NOT_FOUND);
    assert_eq!(Refusal::LEASE_NOT_FOUND.code, code::NOT_FOUND);
    assert_eq!(Refusal::LEASE_NOT_FOUND.message, "etcdserver: requested lease not found");
}

#[test]
fn a_deletion_tells_how_many_and_which() {
    let mut run = Run::default();
    for key in ["a", "b", "c"] {
        run.put(put(key, key)).unwrap();
    }
    let answer = run.delete(DeleteRangeRequest { range_end: b"c".into(), prev_kv: true, ..delete("a") });
    assert_eq!((answer.deleted, answer.prev_kvs.len(), revision(answer.header)), (2, 2, 5));
    assert_eq!(answer.prev_kvs[1].value, b"b");
}

#[test]
fn events_carry_the_new_version_or_a_tombstone_with_its_revision() {
    let mut run = Run::default();
    let (_, events) = run.input(Input::Command(&put("a", "1").to_envelope())).unwrap();
    let kv = KeyValue {
        key: b"a".into(),
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        value: b"1".into(),
        ..Default::default()
    };
    assert_eq!(events, [Event { r#type: EventType::Put as i32, kv: Some(kv), prev_kv: None }]);
    let (_, events) = run.input(Input::Command(&delete("a").to_envelope())).unwrap();
    let kv = KeyValue { key: b"a".into(), mod_revision: 3, ..Default::default() };
    assert_eq!(events, [Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: None }]);
}

#[test]
fn a_lease_holds_each_key_once_and_takes_its_keys_along_as_one_revision() {
    let mut run = Run::default();
    let (first, second) = (run.grant(), run.grant());
    for key in ["a", "b", "c", "d"] {
        run.put(PutRequest { lease: first as i64, ..put(key, "") }).unwrap();
    }
    run.put(PutRequest { lease: second as i64, ..put("b", "") }).unwrap();
    run.put(put("c", "")).unwrap();
    run.delete(delete("d"));
    run.check_everything();
    let before = run.revision;
    run.end_lease(first);
    assert_eq!(run.revision, before + 1);
    assert_eq!(keys(&run.get(everything()).unwrap()), ["b", "c"]);
}

#[test]
fn a_lease_without_keys_ends_without_a_revision() {
    let mut run = Run::default();
    let lease = run.grant();
    run.end_lease(lease);
    assert_eq!(run.revision, 1);
}

#[test]
fn a_key_with_a_clients_lease_is_there_until_the_end_of_the_lease_is_in_the_log() {
    let mut run = Run::default();
    let lease = run.grant();
    run.put(PutRequest { lease: lease as i64, ..put("a", "") }).unwrap();
    // Its time is over, but a new leader may still prolong it, or its client renew it.
    run.run_out(lease);
    run.wait(1_000_000);
    assert_eq!(keys(&run.get(everything()).unwrap()), ["a"]);
    let there = compare("a", CompareTarget::Version, CompareResult::Equal, TargetUnion::Version(1));
    let asked = Request::RequestTxn(TxnRequest { compare: vec![there], ..Default::default() });
    let Ok(Response::ResponseTxn(answer)) = run.query(&asked) else { panic!() };
    assert!(answer.succeeded);
    run.end_lease(lease);
    assert_eq!(run.get(get("a")).unwrap().count, 0);
}

#[test]
fn compares_look_at_each_target_in_each_relation() {
    let mut run = Run::default();
    let lease = run.grant() as i64;
    run.put(put("other", "")).unwrap();
    run.put(put("a", "m")).unwrap();
    run.put(PutRequest { lease, ..put("a", "m") }).unwrap();
    // create 3, mod 4, version 2, value m, lease 1
    let with = |target: CompareTarget, by: i64| match target {
        CompareTarget::Version => TargetUnion::Version(2 + by),
        CompareTarget::Create => TargetUnion::CreateRevision(3 + by),
        CompareTarget::Mod => TargetUnion::ModRevision(4 + by),
        CompareTarget::Value => TargetUnion::Value(vec![(i64::from(b'm') + by) as u8]),
        CompareTarget::Lease => TargetUnion::Lease(lease + by),
    };
    use CompareResult::*;
    for target in [
        CompareTarget::Version,
        CompareTarget::Create,
        CompareTarget::Mod,
        CompareTarget::Value,
        CompareTarget::Lease,
    ] {
        for (by, true_for) in
            [(-1, [Greater, NotEqual].as_slice()), (0, [Equal].as_slice()), (1, [Less, NotEqual].as_slice())]
        {
            for result in [Equal, Greater, Less, NotEqual] {
                let request = TxnRequest {
                    compare: vec![compare("a", target, result, with(target, by))],
                    ..Default::default()
                };
                let holds = run.txn(request).unwrap().succeeded;
                assert_eq!(holds, true_for.contains(&result), "{target:?} {result:?} {by}");
            }
        }
    }
}

#[test]
fn an_absent_key_compares_as_0_but_has_no_value() {
    let mut run = Run::default();
    let mut holds = |target, result, with| {
        let request =
            TxnRequest { compare: vec![compare("absent", target, result, with)], ..Default::default() };
        run.txn(request).unwrap().succeeded
    };
    assert!(holds(CompareTarget::Create, CompareResult::Equal, TargetUnion::CreateRevision(0)));
    assert!(holds(CompareTarget::Version, CompareResult::Less, TargetUnion::Version(1)));
    for result in [CompareResult::Equal, CompareResult::NotEqual, CompareResult::Less, CompareResult::Greater]
    {
        assert!(!holds(CompareTarget::Value, result, TargetUnion::Value(Vec::new())), "{result:?}");
    }
}

#[test]
fn a_compare_over_a_range_must_hold_for_each_of_its_keys() {
    let mut run = Run::default();
    run.put(put("a1", "x")).unwrap();
    run.put(put("a2", "x")).unwrap();
    let all_x = Compare {
        range_end: b"b".into(),
        ..compare("a", CompareTarget::Value, CompareResult::Equal, TargetUnion::Value(b"x".into()))
    };
    let request = TxnRequest { compare: vec![all_x], ..Default::default() };
    assert!(run.txn(request.clone()).unwrap().succeeded);
    run.put(put("a3", "y")).unwrap();
    assert!(!run.txn(request).unwrap().succeeded);
}

#[test]
fn no_transaction_writes_a_key_twice() {
    let mut run = Run::default();
    run.put(put("a", "")).unwrap();
    let a = || Request::RequestPut(put("a", "1"));
    let drop_a = || Request::RequestDeleteRange(delete("a"));
    let span =
        |end: &[u8]| Request::RequestDeleteRange(DeleteRangeRequest { range_end: end.into(), ..delete("A") });
    let nest = |success: Vec<Request>, failure: Vec<Request>| {
        Request::RequestTxn(TxnRequest { compare: vec![], success: ops(success), failure: ops(failure) })
    };
    let mut tried = |requests: Vec<Request>| {
        run.txn(TxnRequest { success: ops(requests), ..Default::default() }).map(drop)
    };
    let twice = Err(Refusal::DUPLICATE_KEY);
    assert_eq!(tried(vec![a(), a()]), twice);
    assert_eq!(tried(vec![a(), drop_a()]), twice);
    assert_eq!(tried(vec![span(b"b"), a()]), twice);
    assert_eq!(tried(vec![span(b"a"), a()]), Ok(()));
    assert_eq!(tried(vec![nest(vec![a()], vec![]), a()]), twice);
    assert_eq!(tried(vec![nest(vec![], vec![drop_a()]), a()]), twice);
    // Only one of two branches is taken.
    assert_eq!(tried(vec![nest(vec![a()], vec![a()])]), Ok(()));
    // Deletions may overlap, and a later nested transaction may delete what an earlier one put.
    assert_eq!(tried(vec![drop_a(), span(b"b")]), Ok(()));
    assert_eq!(tried(vec![nest(vec![a()], vec![]), nest(vec![drop_a()], vec![])]), Ok(()));
    assert_eq!(Refusal::DUPLICATE_KEY.code, code::INVALID_ARGUMENT);
}

#[test]
fn a_key_put_and_deleted_in_one_transaction_leaves_two_events_and_no_trace_in_the_past() {
    let mut run = Run::default();
    run.put(put("a", "old")).unwrap();
    let nest = |request| Request::RequestTxn(TxnRequest { success: ops([request]), ..Default::default() });
    let steps = [nest(Request::RequestPut(put("a", "new"))), nest(Request::RequestDeleteRange(delete("a")))];
    run.txn(TxnRequest { success: ops(steps), ..Default::default() }).unwrap();
    assert_eq!(run.get(get("a")).unwrap().count, 0);
    assert_eq!(run.get(RangeRequest { revision: 2, ..get("a") }).unwrap().kvs[0].value, b"old");
    run.check_everything();
}

#[test]
fn deleting_to_the_end_of_the_keys_and_putting_one_of_them_is_an_error_and_no_crash() {
    let mut run = Run::default();
    run.put(put("b", "")).unwrap();
    let steps = [
        Request::RequestDeleteRange(DeleteRangeRequest { range_end: vec![0], ..delete("a") }),
        Request::RequestPut(PutRequest { ignore_value: true, ..put("b", "") }),
    ];
    let refused = run.txn(TxnRequest { success: ops(steps), ..Default::default() }).unwrap_err();
    assert_eq!(refused, Refusal::DUPLICATE_KEY);
    assert_eq!(run.get(everything()).unwrap().count, 1);
}

#[test]
fn unknown_sort_options_and_compares_are_refused() {
    let mut run = Run::default();
    run.put(put("a", "")).unwrap();
    assert_eq!(run.get(RangeRequest { sort_order: 3, ..get("a") }), Err(Refusal::INVALID_SORT));
    assert_eq!(run.get(RangeRequest { sort_target: -1, ..get("a") }), Err(Refusal::INVALID_SORT));
    let inner = ops([Request::RequestRange(RangeRequest { sort_target: 5, ..get("a") })]);
    assert_eq!(run.txn(TxnRequest { failure: inner, ..Default::default() }), Err(Refusal::INVALID_SORT));
    for (target, result) in [(5, 0), (0, 4)] {
        let compare = vec![Compare { key: b"a".into(), target, result, ..Default::default() }];
        assert_eq!(run.txn(TxnRequest { compare, ..Default::default() }), Err(Refusal::INVALID_COMPARE));
    }
}

#[test]
fn a_transaction_has_at_most_128_operations_and_its_nested_ones_what_is_left() {
    let mut run = Run::default();
    let reads = |n: usize| ops((0..n).map(|_| Request::RequestRange(get("a"))));
    let mut tried = |success| run.txn(TxnRequest { success, ..Default::default() }).map(drop);
    assert_eq!(tried(reads(128)), Ok(()));
    assert_eq!(tried(reads(129)), Err(Refusal::TOO_MANY_OPERATIONS));
    let nested = |n| {
        Request::RequestTxn(TxnRequest {
            success: ops((0..n).map(|_| Request::RequestRange(get("a")))),
            ..Default::default()
        })
    };
    assert_eq!(tried(ops([nested(127)])), Ok(()));
    assert_eq!(tried(ops([nested(128)])), Err(Refusal::TOO_MANY_OPERATIONS));
}

#[test]
fn a_step_without_a_request_is_refused_in_etcds_words() {
    let mut run = Run::default();
    let refused = run.txn(TxnRequest { success: vec![RequestOp { request: None }], ..Default::default() });
    assert_eq!(refused, Err(Refusal::KEY_NOT_FOUND));
}

#[test]
fn a_configuration_is_refused() {
    let mut host = statehouse_kv::memory::Memory::default();
    let refusal = apply(&mut host, Moment { revision: 2, time_ms: 1 }, Input::Created(b"{}")).unwrap_err();
    assert_eq!(refusal.code, code::INVALID_ARGUMENT);
    assert!(refusal.message.contains("no configuration"), "{refusal}");
}

#[test]
fn queries_write_nothing_and_say_so() {
    let run = Run::default();
    for bytes in [
        put("a", "").to_envelope(),
        delete("a").to_envelope(),
        CompactionRequest { revision: 1, physical: false }.to_envelope(),
        TxnRequest { success: ops([Request::RequestPut(put("a", ""))]), ..Default::default() }.to_envelope(),
    ] {
        assert_eq!(query(&run.host, run.view(), &bytes), Err(Refusal::WRITE_IN_QUERY));
    }
}

#[test]
fn the_envelope_names_its_faults() {
    let mut run = Run::default();
    for (bytes, fault) in
        [(&b""[..], "empty"), (b"\x00", "first byte is 0"), (b"\x07", "first byte is 7"), (b"\x02\xff", "")]
    {
        let refusal = run.input(Input::Command(bytes)).unwrap_err();
        assert_eq!(refusal.code, code::INVALID_ARGUMENT);
        assert!(refusal.message.contains("malformed") && refusal.message.contains(fault), "{refusal}");
    }
}

/// The field numbers and wire types of etcd's `rpc.proto` and `kv.proto`, written down apart from the
/// messages.
// tidy: long function: it is one table, and reads best beside etcd's files in one piece.
#[test]
fn the_messages_have_etcds_field_numbers() {
    const INT: u64 = 0;
    const BYTES: u64 = 2;
    fn fields(message: &impl Message) -> Vec<(u64, u64)> {
        let bytes = message.encode_to_vec();
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        while !rest.is_empty() {
            let key = prost::encoding::decode_varint(&mut rest).unwrap();
            let number = prost::encoding::decode_varint(&mut rest).unwrap();
            if key & 7 == BYTES {
                rest = &rest[number as usize..];
            }
            found.push((key >> 3, key & 7));
        }
        found
    }
    let some = || b"x".to_vec();
    let header = || Some(ResponseHeader { cluster_id: 1, member_id: 1, revision: 1, raft_term: 1 });
    let kv = || KeyValue {
        key: some(),
        create_revision: 1,
        mod_revision: 1,
        version: 1,
        value: some(),
        lease: 1,
        expires_at_ms: 0,
    };
    // Ours are far from etcd's, and absent where they are not used.
    let ours = |message: &[(u64, u64)]| message.iter().filter(|(tag, _)| *tag >= 1_000).count();
    assert_eq!(ours(&fields(&KeyValue { expires_at_ms: 1, ..kv() })), 1);
    assert_eq!(ours(&fields(&PutRequest { ttl_ms: Some(1), ..Default::default() })), 1);
    assert_eq!(fields(&header().unwrap()), [(1, INT), (2, INT), (3, INT), (4, INT)]);
    assert_eq!(fields(&kv()), [(1, BYTES), (2, INT), (3, INT), (4, INT), (5, BYTES), (6, INT)]);
    assert_eq!(
        fields(&Event { r#type: 1, kv: Some(kv()), prev_kv: Some(kv()) }),
        [(1, INT), (2, BYTES), (3, BYTES)]
    );
    let range = RangeRequest {
        key: some(),
        range_end: some(),
        limit: 1,
        revision: 1,
        sort_order: 1,
        sort_target: 1,
        serializable: true,
        keys_only: true,
        count_only: true,
        min_mod_revision: 1,
        max_mod_revision: 1,
        min_create_revision: 1,
        max_create_revision: 1,
        uncounted: true,
    };
    let expected: Vec<(u64, u64)> =
        (1..=13).chain([1_000]).map(|tag| (tag, if tag <= 2 { BYTES } else { INT })).collect();
    assert_eq!(fields(&range), expected);
    let answer = RangeResponse { header: header(), kvs: vec![kv()], more: true, count: 1 };
    assert_eq!(fields(&answer), [(1, BYTES), (2, BYTES), (3, INT), (4, INT)]);
    let put = PutRequest {
        key: some(),
        value: some(),
        lease: 1,
        prev_kv: true,
        ignore_value: true,
        ignore_lease: true,
        ttl_ms: None,
    };
    assert_eq!(fields(&put), [(1, BYTES), (2, BYTES), (3, INT), (4, INT), (5, INT), (6, INT)]);
    assert_eq!(fields(&PutResponse { header: header(), prev_kv: Some(kv()) }), [(1, BYTES), (2, BYTES)]);
    let delete = DeleteRangeRequest { key: some(), range_end: some(), prev_kv: true };
    assert_eq!(fields(&delete), [(1, BYTES), (2, BYTES), (3, INT)]);
    let answer = DeleteRangeResponse { header: header(), deleted: 1, prev_kvs: vec![kv()] };
    assert_eq!(fields(&answer), [(1, BYTES), (2, INT), (3, BYTES)]);
    for (tag, with) in [
        (4, TargetUnion::Version(1)),
        (5, TargetUnion::CreateRevision(1)),
        (6, TargetUnion::ModRevision(1)),
        (7, TargetUnion::Value(some())),
        (8, TargetUnion::Lease(1)),
    ] {
        let compare =
            Compare { result: 1, target: 1, key: some(), target_union: Some(with), range_end: some() };
        let kind = if tag == 7 { BYTES } else { INT };
        assert_eq!(fields(&compare), [(1, INT), (2, INT), (3, BYTES), (tag, kind), (64, BYTES)]);
    }
    for (tag, request) in [
        (1, Request::RequestRange(range)),
        (2, Request::RequestPut(put)),
        (3, Request::RequestDeleteRange(delete)),
        (4, Request::RequestTxn(TxnRequest::default())),
    ] {
        assert_eq!(fields(&RequestOp { request: Some(request) }), [(tag, BYTES)]);
    }
    for (tag, response) in [
        (1, Response::ResponseRange(RangeResponse::default())),
        (2, Response::ResponsePut(PutResponse::default())),
        (3, Response::ResponseDeleteRange(DeleteRangeResponse::default())),
        (4, Response::ResponseTxn(TxnResponse::default())),
    ] {
        assert_eq!(fields(&ResponseOp { response: Some(response) }), [(tag, BYTES)]);
    }
    let op = || vec![RequestOp::default()];
    let txn = TxnRequest { compare: vec![Compare::default()], success: op(), failure: op() };
    assert_eq!(fields(&txn), [(1, BYTES), (2, BYTES), (3, BYTES)]);
    let answer = TxnResponse { header: header(), succeeded: true, responses: vec![ResponseOp::default()] };
    assert_eq!(fields(&answer), [(1, BYTES), (2, INT), (3, BYTES)]);
    assert_eq!(fields(&CompactionRequest { revision: 1, physical: true }), [(1, INT), (2, INT)]);
    assert_eq!(fields(&CompactionResponse { header: header() }), [(1, BYTES)]);
    assert_eq!(Kind::Txn as u8, 4);
}
