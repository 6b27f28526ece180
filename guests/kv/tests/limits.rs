//! What is larger than one input may be: refused with a word about the limit, or done by and by. Never a
//! trap.
//!
//! The memory host panics where the real one would trap.

mod model;

use model::Run;
use statehouse_kv::messages::*;
use statehouse_kv::{Call, Input, Refusal, code, query};

fn put(key: impl Into<Vec<u8>>, value: Vec<u8>) -> PutRequest {
    PutRequest { key: key.into(), value, ..Default::default() }
}

fn command(run: &mut Run, request: &impl Call) -> Result<Vec<u8>, Refusal> {
    run.input(Input::Command(&request.to_envelope())).map(|(answer, _)| answer)
}

fn count(run: &Run, request: RangeRequest) -> i64 {
    let request = RangeRequest { count_only: true, ..request };
    let answer = query(&run.host, run.view(), &request.to_envelope()).unwrap();
    RangeRequest::answer(&answer).unwrap().count
}

fn everything() -> RangeRequest {
    RangeRequest { key: vec![0], range_end: vec![0], ..Default::default() }
}

fn delete_everything() -> DeleteRangeRequest {
    DeleteRangeRequest { key: vec![0], range_end: vec![0], prev_kv: false }
}

/// Puts the keys `start..end`, without the model: it would copy them all for each.
fn fill(run: &mut Run, start: usize, end: usize, lease: i64, value: usize) {
    for n in start..end {
        let request = PutRequest { lease, ..put(format!("k{n:06}"), vec![b'v'; value]) };
        run.accepted(Input::Command(&request.to_envelope()));
    }
}

#[test]
fn the_longest_key_is_written_read_and_deleted_and_a_longer_one_refused() {
    let mut run = Run::default();
    for (longest, byte) in [(65_525, b'k'), (32_762, 0)] {
        let key = vec![byte; longest];
        command(&mut run, &put(key.clone(), b"1".to_vec())).unwrap();
        command(&mut run, &put(key.clone(), b"2".to_vec())).unwrap();
        let get = RangeRequest { key: key.clone(), ..Default::default() };
        assert_eq!(count(&run, get.clone()), 1);
        assert_eq!(count(&run, RangeRequest { revision: run.revision as i64 - 1, ..get }), 1);
        command(&mut run, &DeleteRangeRequest { key: key.clone(), ..Default::default() }).unwrap();

        let longer = vec![byte; longest + 1];
        let refusal = command(&mut run, &put(longer.clone(), Vec::new())).unwrap_err();
        assert_eq!(refusal.code, code::INVALID_ARGUMENT);
        assert!(refusal.message.contains("65525"), "{refusal}");
        // It cannot be there, so reading and deleting it finds nothing.
        for length in [longest + 1, 65_536, 100_000, 1_000_000] {
            let key = vec![byte; length];
            for revision in [0, 2] {
                assert_eq!(count(&run, RangeRequest { key: key.clone(), revision, ..Default::default() }), 0);
            }
            let delete = DeleteRangeRequest { key, ..Default::default() };
            let answer = command(&mut run, &delete).unwrap();
            assert_eq!(DeleteRangeRequest::answer(&answer).unwrap().deleted, 0);
        }
    }
}

#[test]
fn bounds_longer_than_any_key_still_bound() {
    let mut run = Run::default();
    for key in [vec![b'b'; 10], vec![b'b'; 65_525], b"c".to_vec()] {
        command(&mut run, &put(key, Vec::new())).unwrap();
    }
    let between = |start: Vec<u8>, end: Vec<u8>, revision| {
        count(&run, RangeRequest { key: start, range_end: end, revision, ..Default::default() })
    };
    for revision in [0, run.revision as i64, 3] {
        let with_c = i64::from(revision != 3);
        for length in [65_526, 65_536, 65_537, 200_000] {
            let long = vec![b'b'; length];
            assert_eq!(between(b"a".to_vec(), long.clone(), revision), 2, "{length}");
            assert_eq!(between(long.clone(), b"z".to_vec(), revision), with_c, "{length}");
            assert_eq!(between(long.clone(), long, revision), 0);
        }
    }
}

#[test]
fn a_value_that_no_row_can_hold_is_refused() {
    let mut run = Run::default();
    let refused = command(&mut run, &put("k", vec![0; 4 << 20])).unwrap_err();
    assert_eq!(refused, Refusal::TOO_LARGE);
    command(&mut run, &put("k", vec![0; (4 << 20) - 100])).unwrap();
}

#[test]
fn a_range_over_4_mib_is_refused_and_a_limit_helps() {
    let mut run = Run::default();
    fill(&mut run, 0, 50, 0, 100_000);
    for (request, fits) in [
        (everything(), false),
        (RangeRequest { limit: 41, ..everything() }, true),
        (RangeRequest { limit: 42, ..everything() }, false),
        (RangeRequest { keys_only: true, ..everything() }, true),
        (RangeRequest { sort_order: 2, ..everything() }, false),
        (RangeRequest { sort_order: 2, limit: 41, ..everything() }, true),
        (RangeRequest { sort_order: 2, sort_target: 4, limit: 42, ..everything() }, false),
        (RangeRequest { sort_order: 1, sort_target: 3, keys_only: true, ..everything() }, true),
    ] {
        let answer = query(&run.host, run.view(), &request.to_envelope());
        assert_eq!(answer.is_ok(), fits, "{request:?}");
        if let Err(refusal) = answer {
            assert_eq!(refusal.code, code::RESOURCE_EXHAUSTED);
            assert!(refusal.message.contains("4194304"), "{refusal}");
        }
    }
    // The same in a transaction, where two answers of 3 MB come together, and in a deletion.
    let half =
        || RequestOp { request: Some(Request::RequestRange(RangeRequest { limit: 30, ..everything() })) };
    let mut txn = TxnRequest { success: vec![half()], ..Default::default() };
    assert!(command(&mut run, &txn).is_ok());
    txn.success.push(half());
    assert_eq!(command(&mut run, &txn).unwrap_err().code, code::RESOURCE_EXHAUSTED);
    let delete = DeleteRangeRequest { prev_kv: true, ..delete_everything() };
    assert_eq!(command(&mut run, &delete).unwrap_err().code, code::RESOURCE_EXHAUSTED);
}

#[test]
fn sorting_with_a_limit_keeps_few_rows_and_the_right_ones() {
    let mut run = Run::default();
    fill(&mut run, 0, 5_000, 0, 8);
    let request = RangeRequest { sort_order: 2, sort_target: 3, limit: 3, ..everything() };
    let answer = query(&run.host, run.view(), &request.to_envelope()).unwrap();
    let answer = RangeRequest::answer(&answer).unwrap();
    let revisions: Vec<i64> = answer.kvs.iter().map(|kv| kv.mod_revision).collect();
    assert_eq!((revisions, answer.more, answer.count), (vec![5_001, 5_000, 4_999], true, 5_000));
}

#[test]
fn deleting_more_than_10_000_keys_at_once_is_refused_and_changes_nothing() {
    let mut run = Run::default();
    fill(&mut run, 0, 10_001, 0, 8);
    let before = run.host.clone();
    let refusal = command(&mut run, &delete_everything()).unwrap_err();
    assert_eq!(refusal.code, code::RESOURCE_EXHAUSTED);
    assert!(refusal.message.contains("10000"), "{refusal}");
    assert_eq!(run.host, before);
    let all_but_one = DeleteRangeRequest { key: vec![0], range_end: b"k010000".to_vec(), prev_kv: false };
    let answer = command(&mut run, &all_but_one).unwrap();
    assert_eq!(DeleteRangeRequest::answer(&answer).unwrap().deleted, 10_000);
}

#[test]
fn deleting_more_than_16_mib_at_once_is_refused() {
    let mut run = Run::default();
    fill(&mut run, 0, 200, 0, 100_000);
    let refusal = command(&mut run, &delete_everything()).unwrap_err();
    assert_eq!(refusal.code, code::RESOURCE_EXHAUSTED);
    assert!(refusal.message.contains("16777216"), "{refusal}");
}

#[test]
fn a_lease_with_30_000_keys_ends_at_once_for_queries_and_by_and_by_in_the_store() {
    let mut run = Run::default();
    let lease = run.grant();
    fill(&mut run, 0, 30_000, lease as i64, 8);
    let other = run.grant();
    fill(&mut run, 15_000, 15_010, other as i64, 8);
    command(&mut run, &put("z", Vec::new())).unwrap();

    let keys = run.host.end_lease(lease);
    assert_eq!(keys.len(), 29_990);
    let (_, events) = run.input(Input::LeaseEnded { lease, keys: &keys }).unwrap();
    assert!(events.len() >= 5_000, "{}", events.len());
    assert_eq!(count(&run, everything()), 11);
    assert!(run.status().purging);

    // A key that is taken over meanwhile is no longer the lease's.
    command(&mut run, &put("k029999", b"mine".to_vec())).unwrap();
    // A lease that is gone cannot be named anew, even by a key that still has it in the store.
    let again = PutRequest { lease: lease as i64, ..put("k029998", Vec::new()) };
    assert_eq!(command(&mut run, &again).unwrap_err(), Refusal::LEASE_NOT_FOUND);

    let mut deleted = events.len();
    let mut inputs = 0;
    while run.status().purging {
        let (_, events) = run.accepted(Input::Command(&put("z", Vec::new()).to_envelope()));
        assert!(events.len() <= 129, "a step is bounded, this one made {} events", events.len());
        deleted += events.iter().filter(|event| event.r#type() == EventType::Delete).count();
        inputs += 1;
        assert!(inputs < 5_000, "the keys are never all deleted");
    }
    assert_eq!(deleted, 29_989);
    assert_eq!(count(&run, everything()), 12);
    assert_eq!(run.host.rows.keys().filter(|row| row[0] == b'p').count(), 0);
}

#[test]
fn a_large_compaction_counts_at_once_and_frees_its_rows_by_and_by() {
    let mut run = Run::default();
    for _ in 0..3 {
        fill(&mut run, 0, 2_000, 0, 8);
    }
    let first = run.revision as i64 - 3_000;
    command(&mut run, &CompactionRequest { revision: first, physical: false }).unwrap();
    assert!(run.status().compacting);
    assert_eq!(run.status().compact_revision, first);
    let get = RangeRequest { revision: first - 1, ..everything() };
    assert_eq!(query(&run.host, run.view(), &get.to_envelope()), Err(Refusal::COMPACTED));
    assert_eq!(count(&run, RangeRequest { revision: first, ..everything() }), 2_000);

    // A second compaction comes while the first is still being done: what the pass has left behind goes in
    // another.
    fill(&mut run, 0, 100, 0, 8);
    let last = run.revision as i64;
    command(&mut run, &CompactionRequest { revision: last, physical: false }).unwrap();
    let mut inputs = 0;
    while run.status().compacting {
        run.accepted(Input::Command(&put("z", Vec::new()).to_envelope()));
        inputs += 1;
        assert!(inputs < 5_000, "the rows are never all removed");
    }
    let kept = run.host.rows.keys().filter(|row| row[0] == b'h').filter(|row| {
        i64::from_be_bytes(*row.last_chunk().expect("a history row ends with its revision")) <= last
    });
    assert_eq!(kept.count(), 0);
    assert_eq!(count(&run, RangeRequest { revision: last, ..everything() }), 2_000);
}

#[test]
fn a_physical_compaction_frees_10_000_rows_at_once() {
    let mut run = Run::default();
    for _ in 0..4 {
        fill(&mut run, 0, 2_500, 0, 8);
    }
    let revision = run.revision as i64;
    command(&mut run, &CompactionRequest { revision, physical: true }).unwrap();
    assert_eq!(run.history_rows(), 0);
    assert!(!run.status().compacting);
}

#[test]
fn a_compaction_of_large_values_reads_a_bounded_part_of_them_at_once() {
    let mut run = Run::default();
    for _ in 0..100 {
        fill(&mut run, 0, 1, 0, 1 << 20);
    }
    let revision = run.revision as i64;
    command(&mut run, &CompactionRequest { revision, physical: false }).unwrap();
    assert_eq!(run.history_rows(), 99 - 32);
    let mut inputs = 0;
    while run.status().compacting {
        fill(&mut run, 1, 2, 0, 8);
        inputs += 1;
        assert!(inputs < 100, "the rows are never all removed");
    }
    // The last pass went over the small versions too, and kept those that can still be read.
    assert_eq!(run.history_rows() + 1, inputs);
}

#[test]
fn a_key_with_many_versions_does_not_slow_its_past() {
    let mut run = Run::default();
    for n in 0..1_000u32 {
        fill(&mut run, 7, 8, 0, n as usize % 7);
    }
    fill(&mut run, 8, 9, 0, 1);
    for revision in [2, 3, 65, 66, 67, 500, 999, 1_000, 1_001, 1_002] {
        let request = RangeRequest { revision, ..everything() };
        let answer = query(&run.host, run.view(), &request.to_envelope()).unwrap();
        let answer = RangeRequest::answer(&answer).unwrap();
        assert_eq!(answer.kvs[0].mod_revision, revision.min(1_001));
        assert_eq!(answer.count, 1 + i64::from(revision == 1_002));
    }
}

#[test]
fn a_store_of_a_newer_format_is_refused_by_name() {
    let mut run = Run::default();
    run.host.rows.insert(b"m".to_vec(), vec![1 << 3, 3]);
    let refusal = run.input(Input::Upgraded).unwrap_err();
    assert_eq!(refusal.code, code::FAILED_PRECONDITION);
    assert!(refusal.message.contains("format 3"), "{refusal}");
}
