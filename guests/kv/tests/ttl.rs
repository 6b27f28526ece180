//! Times to live of single keys: one example for each rule. The model checks every answer as well.
//!
//! The clock of a run stands still until a test lets it go on.

mod model;

use model::Run;
use statehouse_kv::messages::*;
use statehouse_kv::{Call, Input, Refusal, TTL_MS_MAX, apply, code};

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

fn put_for(key: &str, value: &str, ttl_ms: u64) -> PutRequest {
    PutRequest { ttl_ms: Some(ttl_ms), ..put(key, value) }
}

fn everything() -> RangeRequest {
    RangeRequest { key: vec![0], range_end: vec![0], ..Default::default() }
}

fn absent(key: &str) -> Compare {
    Compare {
        key: key.into(),
        target: CompareTarget::Create as i32,
        result: CompareResult::Equal as i32,
        target_union: Some(TargetUnion::CreateRevision(0)),
        ..Default::default()
    }
}

fn ops(requests: impl IntoIterator<Item = Request>) -> Vec<RequestOp> {
    requests.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
}

fn do_put(run: &mut Run, request: PutRequest) -> Result<PutResponse, Refusal> {
    run.command(&Request::RequestPut(request)).map(|answer| match answer {
        Response::ResponsePut(answer) => answer,
        other => panic!("{other:?}"),
    })
}

fn delete(run: &mut Run, request: DeleteRangeRequest) -> DeleteRangeResponse {
    match run.command(&Request::RequestDeleteRange(request)) {
        Ok(Response::ResponseDeleteRange(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

fn txn(run: &mut Run, request: TxnRequest) -> TxnResponse {
    match run.command(&Request::RequestTxn(request)) {
        Ok(Response::ResponseTxn(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

/// What a query finds, and what a command does at the same moment: they must agree.
fn read(run: &mut Run, request: RangeRequest) -> Vec<KeyValue> {
    let request = Request::RequestRange(request);
    let (asked, told) = (run.query(&request), run.command(&request));
    assert_eq!(asked, told);
    match asked {
        Ok(Response::ResponseRange(answer)) => answer.kvs,
        other => panic!("{other:?}"),
    }
}

fn keys(run: &mut Run) -> String {
    read(run, everything()).into_iter().map(|kv| String::from_utf8(kv.key).expect("text")).collect()
}

fn find(run: &mut Run, key: &str) -> Option<KeyValue> {
    read(run, RangeRequest { key: key.into(), ..Default::default() }).pop()
}

#[test]
fn a_key_is_gone_from_every_read_of_the_present_from_its_deadline_on_and_not_before() {
    let mut run = Run::default();
    do_put(&mut run, put("a", "")).unwrap();
    do_put(&mut run, put_for("b", "", 500)).unwrap();
    do_put(&mut run, put_for("c", "", 501)).unwrap();
    run.wait(499);
    assert_eq!(keys(&mut run), "abc");
    run.wait(1);
    assert_eq!(keys(&mut run), "ac");
    assert_eq!(find(&mut run, "b"), None);
    let count = RangeRequest { count_only: true, ..everything() };
    let Ok(Response::ResponseRange(answer)) = run.query(&Request::RequestRange(count)) else { panic!() };
    assert_eq!(answer.count, 2);
    // Comparisons agree, in commands and in queries.
    let request = TxnRequest { compare: vec![absent("b")], ..Default::default() };
    assert!(txn(&mut run, request.clone()).succeeded);
    let Ok(Response::ResponseTxn(asked)) = run.query(&Request::RequestTxn(request)) else { panic!() };
    assert!(asked.succeeded);
    run.wait(1);
    assert_eq!(keys(&mut run), "a");
}

#[test]
fn an_expired_key_is_removed_and_announced_when_the_end_of_its_lease_arrives() {
    let mut run = Run::default();
    do_put(&mut run, put_for("a", "", 500)).unwrap();
    let lease = find(&mut run, "a").expect("the key").lease as u64;
    run.wait(500);
    assert_eq!((run.host.rows.len(), run.revision), (3, 2), "the row is there until then");
    let ended = run.host.end_lease(lease);
    run.model.end_lease(lease as i64);
    let (_, events) = run.input(Input::LeaseEnded { lease, keys: &ended }).unwrap();
    let kv = KeyValue { key: b"a".into(), mod_revision: 3, ..Default::default() };
    assert_eq!(events, [Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: None }]);
    run.check_everything();
    assert_eq!(run.history_rows(), 1);
}

#[test]
fn clients_of_etcd_see_an_ordinary_key_with_a_lease() {
    let mut run = Run::default();
    run.grant();
    do_put(&mut run, put_for("a", "v", 500)).unwrap();
    let kv = find(&mut run, "a").expect("the key");
    assert_eq!((kv.lease, kv.expires_at_ms), (2, run.model.time_ms + 500));
    let (lease, ttl_ms) = (&run.host.leases[&2], 500);
    assert_eq!((lease.remaining_ms, lease.keys.len()), (ttl_ms, 1));
    // Take the deadline away, and it is what etcd would send.
    let theirs = KeyValue { expires_at_ms: 0, ..kv };
    let (_, events) = run.input(Input::Command(&put("b", "v").to_envelope())).unwrap();
    let b = events[0].kv.clone().expect("a KeyValue");
    assert_eq!(theirs, KeyValue { key: b"a".into(), create_revision: 2, mod_revision: 2, lease: 2, ..b });
}

#[test]
fn a_put_over_an_expired_key_finds_it_absent() {
    let mut run = Run::default();
    do_put(&mut run, put("a", "0")).unwrap();
    do_put(&mut run, put_for("a", "1", 500)).unwrap();
    run.wait(500);
    for request in
        [PutRequest { ignore_value: true, ..put("a", "") }, PutRequest { ignore_lease: true, ..put("a", "") }]
    {
        assert_eq!(do_put(&mut run, request), Err(Refusal::KEY_NOT_FOUND));
    }
    let answer = do_put(&mut run, PutRequest { prev_kv: true, ..put("a", "2") }).unwrap();
    assert_eq!(answer.prev_kv, None);
    let kv = find(&mut run, "a").expect("the key");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (4, 4, 1, 0));
    run.check_everything();
}

#[test]
fn a_deletion_does_not_count_an_expired_key_and_leaves_it_to_its_lease() {
    let mut run = Run::default();
    do_put(&mut run, put_for("a", "", 500)).unwrap();
    do_put(&mut run, put_for("b", "", 900)).unwrap();
    run.wait(500);
    let all = DeleteRangeRequest { key: vec![0], range_end: vec![0], prev_kv: true };
    let answer = delete(&mut run, all);
    assert_eq!((answer.deleted, answer.prev_kvs.len()), (1, 1));
    let one = DeleteRangeRequest { key: b"a".into(), ..Default::default() };
    assert_eq!(delete(&mut run, one).deleted, 0);
    assert_eq!(run.revision, 4);
    run.end_lease(1);
    assert_eq!(run.revision, 5);
    run.check_everything();
}

#[test]
fn a_named_revision_shows_the_store_as_it_was_also_what_has_expired() {
    let mut run = Run::default();
    do_put(&mut run, put_for("a", "", 500)).unwrap();
    let at = |run: &Run, revision| {
        let request = Request::RequestRange(RangeRequest { revision, ..everything() });
        let Ok(Response::ResponseRange(answer)) = run.query(&request) else { panic!() };
        answer.count
    };
    run.wait(500);
    assert_eq!(at(&run, 2), 1);
    run.end_lease(1);
    assert_eq!((at(&run, 2), at(&run, 3)), (1, 0));
}

#[test]
fn another_put_a_deletion_and_a_new_time_to_live_give_the_former_lease_up() {
    let mut run = Run::default();
    let live = |run: &Run| run.host.leases.keys().copied().collect::<Vec<_>>();
    do_put(&mut run, put_for("a", "", 500)).unwrap();
    do_put(&mut run, put_for("a", "", 600)).unwrap();
    assert_eq!(live(&run), [2]);
    do_put(&mut run, put("a", "")).unwrap();
    assert_eq!(live(&run), [] as [u64; 0]);
    do_put(&mut run, put_for("a", "", 700)).unwrap();
    delete(&mut run, DeleteRangeRequest { key: b"a".into(), ..Default::default() });
    assert_eq!(live(&run), [] as [u64; 0]);
    do_put(&mut run, put_for("a", "", 800)).unwrap();
    let clients = run.grant();
    do_put(&mut run, PutRequest { lease: clients as i64, ..put("a", "") }).unwrap();
    assert_eq!(live(&run), [clients]);
    // And from a client's lease to its own.
    do_put(&mut run, put_for("a", "", 900)).unwrap();
    assert_eq!(run.host.leases[&clients].keys.len(), 0);
    run.wait(10_000);
    assert_eq!(keys(&mut run), "");
    run.check_everything();
}

#[test]
fn a_put_that_keeps_the_lease_keeps_the_deadline() {
    let mut run = Run::default();
    do_put(&mut run, put_for("a", "1", 500)).unwrap();
    run.wait(300);
    do_put(&mut run, PutRequest { ignore_lease: true, ..put("a", "2") }).unwrap();
    assert_eq!(find(&mut run, "a").expect("the key").value, b"2");
    run.wait(200);
    assert_eq!(find(&mut run, "a"), None);
    run.check_everything();
}

#[test]
fn a_transaction_puts_with_a_time_to_live() {
    let mut run = Run::default();
    let take = |owner: &str| TxnRequest {
        compare: vec![absent("lock")],
        success: ops([Request::RequestPut(put_for("lock", owner, 500))]),
        ..Default::default()
    };
    assert!(txn(&mut run, take("first")).succeeded);
    assert!(!txn(&mut run, take("second")).succeeded);
    run.wait(500);
    assert!(txn(&mut run, take("second")).succeeded);
    let kv = find(&mut run, "lock").expect("the lock");
    assert_eq!((kv.value.as_slice(), kv.create_revision, kv.version), (&b"second"[..], 3, 1));
    run.check_everything();
}

#[test]
fn nobody_else_uses_the_lease_of_a_time_to_live() {
    let mut run = Run::default();
    do_put(&mut run, put_for("a", "", 500)).unwrap();
    for key in ["a", "b"] {
        let refused = do_put(&mut run, PutRequest { lease: 1, ..put(key, "") }).unwrap_err();
        assert_eq!(refused.code, code::FAILED_PRECONDITION);
        assert!(refused.message.contains("lease 1 "), "{refused}");
    }
    // What a client does to it at the host: revoking deletes the key.
    run.end_lease(1);
    assert_eq!(keys(&mut run), "");
    run.check_everything();
}

#[test]
fn a_time_to_live_of_nothing_or_too_much_or_with_a_lease_is_refused() {
    let mut run = Run::default();
    let lease = run.grant() as i64;
    for ttl_ms in [0, TTL_MS_MAX + 1, u64::MAX] {
        let refused = do_put(&mut run, put_for("a", "", ttl_ms)).unwrap_err();
        assert_eq!(refused.code, code::INVALID_ARGUMENT);
        let named = [format!(" {ttl_ms} ms"), format!("1 to {TTL_MS_MAX} ms")];
        assert!(named.iter().all(|part| refused.message.contains(part)), "{refused}");
    }
    for request in [
        PutRequest { lease, ..put_for("a", "", 1) },
        PutRequest { ignore_lease: true, ..put_for("a", "", 1) },
    ] {
        assert_eq!(do_put(&mut run, request), Err(Refusal::TTL_AND_LEASE));
    }
    // The longest there is ends late, not early.
    do_put(&mut run, put_for("a", "", TTL_MS_MAX)).unwrap();
    run.wait(TTL_MS_MAX - 1);
    assert_eq!(keys(&mut run), "a");
}

#[test]
fn a_time_to_live_without_a_lease_to_be_had_is_refused_and_changes_nothing() {
    let mut run = Run::default();
    run.host.leases_max = Some(1);
    do_put(&mut run, put_for("a", "", 500)).unwrap();
    let before = run.host.clone();
    let refused = run.input(Input::Command(&put_for("b", "", 500).to_envelope())).unwrap_err();
    assert_eq!(refused, Refusal::too_many_leases());
    assert_eq!(run.host, before);
    // A key that has one may have another in its place.
    do_put(&mut run, put_for("a", "", 900)).unwrap();
}

#[test]
fn an_upgrade_from_format_1_keeps_older_components_away() {
    let mut run = Run::default();
    run.host.rows.insert(b"m".to_vec(), vec![1 << 3, 1]);
    let moment = run.context();
    apply(&mut run.host, moment, Input::Upgraded).unwrap();
    assert_eq!(run.host.rows[&b"m"[..]], [1 << 3, 2]);
}

#[test]
fn ten_thousand_keys_with_times_to_live_are_deleted_at_once() {
    let mut run = Run::default();
    for n in 0..10_000 {
        run.accepted(Input::Command(&put_for(&format!("k{n:05}"), "", 500).to_envelope()));
    }
    let all = DeleteRangeRequest { key: vec![0], range_end: vec![0], prev_kv: false };
    let (answer, events) = run.accepted(Input::Command(&all.to_envelope()));
    assert_eq!(DeleteRangeRequest::answer(&answer).expect("an answer").deleted, 10_000);
    assert_eq!((events.len(), run.host.leases.len()), (10_000, 0));
}
