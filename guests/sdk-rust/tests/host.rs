//! What a test host promises: it keeps the contract's rules, and tells who breaks them.

use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use statehouse_guest::{
    Answer, Change, LeaseEnd, LeaseFailure, Refusal, Resident, Store, Stored, TestHost, Upgrade, View,
    after_prefix,
};

/// Does what the command's first letter says.
struct Script;

impl Stored for Script {
    fn command(change: &Change, store: &mut Store, command: &[u8]) -> Answer {
        let (what, rest) = command.split_at(1);
        match what {
            b"s" => store.set(rest, b"value"),
            b"e" => change.put(rest, b"value"),
            b"l" => {
                let lease = change.grant(100).map_err(|_| Refusal::new(9, "no lease"))?;
                change.attach(lease, rest).map_err(|_| Refusal::new(9, "not attached"))?;
            }
            b"r" => {
                store.set(b"trace", b"of a refusal");
                change.put(b"trace", b"");
                change.grant(1).map_err(|_| Refusal::new(9, "no lease"))?;
                return Err(Refusal::new(7, "as asked"));
            }
            b"k" => store.set(&vec![b'k'; 65_537], b""),
            _ => return Err(Refusal::new(1, "not understood")),
        }
        Ok(change.revision().to_string().into_bytes())
    }

    fn lease_ended(change: &Change, store: &mut Store, ended: &LeaseEnd) -> Answer {
        assert_eq!(change.remaining_ms(ended.lease), Err(LeaseFailure::UnknownLease), "it is gone already");
        for key in &ended.keys {
            store.delete(key);
        }
        if ended.keys.iter().any(|key| key == b"stubborn") {
            return Err(Refusal::new(8, "not now"));
        }
        Ok(Vec::new())
    }

    fn query(_: &View, store: &Store, request: &[u8]) -> Answer {
        store.get(request).ok_or_else(|| Refusal::new(2, "not there"))
    }
}

/// The same state, another component: it refuses to take over when the argument says so.
struct Next;

impl Stored for Next {
    fn command(_: &Change, _: &mut Store, _: &[u8]) -> Answer {
        Ok(b"next".to_vec())
    }

    fn upgraded(_: &Change, store: &mut Store, upgrade: &Upgrade) -> Answer {
        store.set(b"migrated", &upgrade.argument);
        if upgrade.argument == b"no" { Err(Refusal::new(3, "not from there")) } else { Ok(Vec::new()) }
    }

    fn query(_: &View, store: &Store, request: &[u8]) -> Answer {
        Script::query_of(store, request)
    }
}

impl Script {
    fn query_of(store: &Store, request: &[u8]) -> Answer {
        store.get(request).ok_or_else(|| Refusal::new(2, "not there"))
    }
}

fn host() -> TestHost {
    TestHost::stored::<Script>(b"").unwrap()
}

/// What a panic said.
fn panics(run: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("it should panic");
    panic
        .downcast_ref::<String>()
        .cloned()
        .unwrap_or_else(|| (*panic.downcast_ref::<&str>().unwrap()).to_owned())
}

#[test]
fn a_refused_input_leaves_no_trace_but_its_place_in_the_log() {
    let mut host = host();
    host.apply(b"ea").unwrap();
    assert_eq!(host.apply(b"r").unwrap_err().code, 7);
    assert!(host.pairs().is_empty());
    assert!(host.leases().is_empty());
    assert_eq!((host.events().len(), host.revision()), (1, 2));
    assert_eq!(host.apply(b"eb").unwrap(), b"3", "the revision that the refused one did not use");
}

#[test]
fn leases_end_by_deadline_and_id_and_a_refusal_does_not_bring_them_back() {
    let mut host = host();
    for key in ["a", "stubborn"] {
        host.apply(format!("s{key}").as_bytes()).unwrap();
        host.apply(format!("l{key}").as_bytes()).unwrap();
    }
    let of_client = host.grant(50);
    host.advance(40);
    assert!(host.renew(of_client));
    let ended = host.advance(60);
    let order: Vec<_> = ended.iter().map(|ended| (ended.end.lease, ended.answer.is_ok())).collect();
    assert_eq!(order, [(3, true), (1, true), (2, false)]);
    assert_eq!(host.pairs(), [(b"stubborn".to_vec(), b"value".to_vec())]);
    assert!(host.leases().is_empty() && !host.renew(of_client) && host.revoke(of_client).is_none());
}

#[test]
fn a_key_that_is_attached_again_moves() {
    let mut host = host();
    host.apply(b"la").unwrap();
    host.apply(b"la").unwrap();
    let keys: Vec<_> = host.leases().into_iter().map(|lease| lease.keys.len()).collect();
    assert_eq!(keys, [0, 1]);
}

#[test]
fn going_over_a_limit_panics_with_the_limit() {
    assert!(panics(|| drop(host().apply(b"k"))).contains("65537, the contract allows 65536"));
    assert!(panics(|| drop(host().apply(b"s"))).contains("1 byte at least"));
    assert!(panics(|| drop(Refusal::new(0, "nothing"))).contains("never 0"));
}

#[test]
fn an_upgrade_that_is_refused_changes_nothing() {
    let mut host = host();
    assert_eq!(host.upgrade_stored::<Next>(b"no").unwrap_err().code, 3);
    assert!(host.pairs().is_empty());
    assert_eq!(host.apply(b"what").unwrap_err().code, 1, "the former one answers");
    host.upgrade_stored::<Next>(b"yes").unwrap();
    assert_eq!(host.query(b"migrated").unwrap(), b"yes");
    assert_eq!(host.apply(b"what").unwrap(), b"next");
}

/// A resident machine that does wrong on request.
#[derive(Default)]
struct Careless(Vec<u8>);

impl Resident for Careless {
    fn command(&mut self, _: &Change, command: &[u8]) -> Answer {
        self.0.extend(command);
        if command == b"bad" { Err(Refusal::new(1, "but changed")) } else { Ok(self.0.clone()) }
    }

    fn query(&self, _: &View, _: &[u8]) -> Answer {
        Ok(self.0.clone())
    }

    fn save(&self, snapshot: &mut dyn Write) -> Result<(), String> {
        snapshot.write_all(&self.0).map_err(|error| error.to_string())
    }

    fn restore(snapshot: &mut dyn Read) -> Result<Careless, String> {
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        // It forgets what it should not.
        bytes.retain(|byte| *byte != b'x');
        Ok(Careless(bytes))
    }
}

#[test]
fn a_resident_machine_that_changes_and_refuses_or_forgets_is_found_out() {
    let host = || TestHost::resident::<Careless>(b"").unwrap();
    assert!(
        panics(|| drop(host().apply(b"bad"))).contains("the machine refused, but changed: the command bad")
    );
    let mut forgetful = host();
    forgetful.apply(b"axb").unwrap();
    assert!(panics(|| drop(forgetful.snapshot())).contains("does not restore what it saved"));
    let mut fine = host();
    fine.apply(b"ab").unwrap();
    let snapshot = fine.snapshot();
    fine.apply(b"c").unwrap();
    fine.restore(&snapshot);
    assert_eq!(fine.query(b"").unwrap(), b"ab");
}

#[test]
fn the_key_behind_a_prefix_is_the_first_that_does_not_have_it() {
    assert_eq!(after_prefix(b"a/"), Some(b"a0".to_vec()));
    assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
    assert_eq!(after_prefix(b"\xff"), None);
    assert_eq!(after_prefix(b""), None);
}

#[test]
fn a_script_is_played_up_to_the_first_line_that_does_not_come_out() {
    let play = |script: &str| {
        let mut host = TestHost::stored::<Script>(b"").unwrap();
        let played = catch_unwind(AssertUnwindSafe(|| host.play(script)));
        played.map_err(|why| why.downcast_ref::<String>().expect("a message").clone())
    };
    let good = "
        # All words.
        apply --hex 6561
        = 32
        !apply r
        !7 apply r
        = refused with code 7: as asked
        grant 10s
        = 1
        apply lkey
        advance 100ms
        revoke 1
        events
        = 2 put a value
        events 3";
    assert_eq!(play(good), Ok(()));
    for (script, parts) in [
        ("apply sa\n= b", ["line 2", "it said \"2\""]),
        ("apply sa\n= 2\n= b", ["line 3", "nothing more"]),
        ("!8 apply r", ["line 1", "as asked"]),
        ("!apply sa", ["line 1", "to be refused"]),
        ("apply --hex 0", ["line 1", "hexadecimal"]),
        ("advance 10", ["line 1", "10s"]),
        ("revoke 3", ["line 1", "no such lease"]),
        ("leases", ["line 1", "not understood"]),
        ("= a", ["line 1", "no line comes before"]),
    ] {
        let why = play(script).unwrap_err();
        assert!(parts.iter().all(|part| why.contains(part)), "{script:?}: {why}");
    }
}
