//! The counter's tests, on a host in this process.

use statehouse_guest::TestHost;

use super::Counter;

fn counter(start: &[u8]) -> TestHost {
    TestHost::stored::<Counter>(start).unwrap()
}

#[test]
fn what_is_added_is_answered_and_seen_by_watchers() {
    let mut host = counter(b"40");
    assert_eq!(host.apply(b"2").unwrap(), b"42");
    assert_eq!(host.query(b"").unwrap(), b"42");
    let seen: Vec<_> = host.events().into_iter().map(|event| (event.revision, event.value)).collect();
    assert_eq!(seen, [(2, b"40".to_vec()), (3, b"42".to_vec())]);
}

#[test]
fn what_is_not_understood_is_refused_and_changes_nothing() {
    let mut host = counter(b"9223372036854775807");
    for (command, code) in [("two", 1), ("", 1), ("9223372036854775808", 1), ("1", 2), ("-1 for 0", 3)] {
        assert_eq!(host.apply(command.as_bytes()).unwrap_err().code, code, "{command}");
    }
    assert_eq!((host.query(b"").unwrap(), host.revision()), (b"9223372036854775807".to_vec(), 2));
}

#[test]
fn what_is_held_is_taken_back_when_its_time_is_over() {
    let mut host = counter(b"");
    assert_eq!(host.apply(b"5 for 1500").unwrap(), b"5");
    assert_eq!(host.apply(b"-2 for 3000").unwrap(), b"3");
    assert!(host.advance(1499).is_empty());
    assert_eq!(host.advance(1)[0].answer, Ok(b"-2".to_vec()));
    let snapshot = host.snapshot();
    assert_eq!(host.advance(1500)[0].answer, Ok(b"0".to_vec()));
    host.restore(&snapshot);
    assert_eq!(host.query(b"").unwrap(), b"-2");
}

#[test]
fn the_end_of_a_lease_that_held_nothing_is_not_told() {
    let mut host = counter(b"40");
    host.grant(500);
    assert_eq!(host.advance(500)[0].answer, Ok(Vec::new()));
    assert_eq!((host.query(b"").unwrap(), host.revision()), (b"40".to_vec(), 2));
}
