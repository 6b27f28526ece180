//! Leases, and times to live of single keys.

use std::time::{Duration, Instant};

use serde_json::json;

use super::process::{Node, directory};

/// Asks until the answer is the one that is waited for, and says how long that took.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}

pub fn node_with_kv(directory: &tempfile::TempDir) -> Node {
    let node = Node::serve(directory.path(), &[]);
    // Compiling gives way to everything else on the computer.
    node.run(["machine", "create", "kv", "--module", "builtin:kv", "--timeout", "300"]).ok();
    node
}

#[test]
fn a_key_with_a_time_to_live_goes_by_itself_and_is_deleted_in_the_log() {
    let directory = directory();
    let node = node_with_kv(&directory);
    node.run(["kv", "put", "stays", "1"]).ok();
    let begun = Instant::now();
    assert_eq!(node.run(["kv", "put", "goes", "1", "--ttl", "2s"]).ok(), "3");
    let shown = node.run(["kv", "get", "goes", "--json"]).json();
    assert!(shown["kvs"][0]["expires_at_ms"].as_u64().is_some_and(|at| at > 0), "{shown}");
    assert_eq!(node.run(["kv", "get", "stays", "--json"]).json()["kvs"][0]["expires_at_ms"], json!(null));
    wait_for("the key is gone", || node.run(["kv", "get", "goes"]).code == 1);
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "gone after {:?}", begun.elapsed());
    // Its deletion takes a revision; the past stays.
    let revision = || node.run(["kv", "get", "", "--prefix", "--json"]).json()["revision"].clone();
    wait_for("the deletion is in the log", || revision() == json!(4));
    assert_eq!(node.run(["kv", "get", "goes", "--rev", "3"]).ok(), "1");
    assert_eq!(node.run(["kv", "get", "", "--prefix"]).ok(), "stays\t1");
}

#[test]
fn times_that_make_no_sense_are_named() {
    let directory = directory();
    let node = node_with_kv(&directory);
    for (time, words) in [("0s", "3650d"), ("3651d", "3650d"), ("30", "10s"), ("soon", "10s")] {
        node.run(["kv", "put", "k", "v", "--ttl", time]).failed(2, &[time, words]);
    }
    node.run(["kv", "put", "k", "v", "--ttl", "1s", "--lease", "1"]).failed(2, &["--lease"]);
    node.run(["kv", "put", "k", "v", "--lease", "77"]).failed(1, &["lease not found"]);
    // The lease of a time to live is nobody else's.
    node.run(["kv", "put", "k", "v", "--ttl", "1h"]).ok();
    let lease = node.run(["kv", "get", "k", "--json"]).json()["kvs"][0]["lease"].to_string();
    node.run(["kv", "put", "other", "v", "--lease", &lease]).failed(1, &["time to live", &lease]);
}

#[test]
fn a_lease_is_granted_renewed_shown_and_takes_its_keys_along() {
    let directory = directory();
    let node = node_with_kv(&directory);
    let id = node.run(["lease", "grant", "--ttl", "1h"]).ok().to_string();
    assert_eq!(node.run(["lease", "grant", "--ttl", "1h", "--id", "77", "--json"]).json()["id"], 77);
    node.run(["kv", "put", "a", "1", "--lease", "77"]).ok();
    node.run(["kv", "put", "b", "1", "--lease", "77"]).ok();
    node.run(["kv", "put", "c", "1", "--ttl", "1h"]).ok();

    let shown = node.run(["lease", "show", "77", "--json"]).json();
    assert_eq!((&shown["ttl_ms"], &shown["keys"]), (&json!(3_600_000), &json!(["a", "b"])));
    assert!(
        shown["remaining_ms"].as_u64().is_some_and(|ms| (3_500_000..=3_600_000).contains(&ms)),
        "{shown}"
    );
    let text = node.run(["lease", "show", "77"]);
    assert!(text.ok().contains("remaining") && text.ok().ends_with("key        b"), "{text:?}");
    let all = node.run(["lease", "list", "--json"]).json();
    let kinds: Vec<_> = all.as_array().expect("a list").iter().map(|lease| lease["kind"].clone()).collect();
    assert_eq!(kinds, ["client", "machine", "client"]);
    assert!(node.run(["lease", "list"]).ok().contains("machine"));

    assert!(node.run(["lease", "renew", &id, "77"]).ok().contains("3600s"));
    let renewed = node.run(["lease", "renew", &id, "5555", "--json"]);
    assert_eq!((renewed.code, &renewed.json()[1]["ttl_ms"]), (1, &json!(null)));
    node.run(["lease", "renew", "5555"]).failed(1, &["5555"]);
    // The lease of a time to live is the machine's own.
    let own = all[1]["id"].to_string();
    node.run(["lease", "renew", &own]).failed(1, &[&own]);
    node.run(["lease", "revoke", &own]).failed(1, &["no lease", &own]);

    assert_eq!(node.run(["lease", "revoke", "77"]).code, 0);
    assert_eq!(node.run(["kv", "get", "", "--prefix"]).ok(), "c\t1");
    for ended in [["lease", "show", "77"], ["lease", "revoke", "77"]] {
        node.run(ended).failed(1, &["no lease 77"]);
    }
}

#[test]
fn a_lease_that_nobody_keeps_alive_ends_and_one_that_is_kept_lives() {
    let directory = directory();
    let node = node_with_kv(&directory);
    let grant = || node.run(["lease", "grant", "--ttl", "1s"]).ok().to_string();
    let (kept, left) = (grant(), grant());
    let mut keeper = node.command(["lease", "keep-alive", &kept]);
    let mut keeper = keeper.stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    node.run(["kv", "put", "kept", "1", "--lease", &kept]).ok();
    node.run(["kv", "put", "left", "1", "--lease", &left]).ok();
    wait_for("the other one ends", || node.run(["kv", "get", "left"]).code == 1);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(node.run(["kv", "get", "kept"]).ok(), "1");
    // One that is ended under its keeper's hands ends the keeper.
    node.run(["lease", "revoke", &kept]).ok();
    assert_eq!(super::process::wait(&mut keeper).code(), Some(1));
    node.run(["kv", "get", "kept"]).failed(1, &["kept"]);
}

#[test]
fn leases_that_cannot_be_are_refused_with_what_can() {
    let directory = directory();
    let node = node_with_kv(&directory);
    node.run(["lease", "grant", "--ttl", "0s"]).failed(2, &["0s", "1ms"]);
    node.run(["lease", "grant", "--ttl", "36501d"]).failed(2, &["36501d", "36500d"]);
    node.run(["lease", "grant", "--id", "18446744073709551615"]).failed(1, &["9223372036854775807"]);
    node.run(["lease", "grant", "--id", "9"]).ok();
    node.run(["lease", "grant", "--id", "9"]).failed(1, &["lease 9", "in use"]);
    node.run(["lease", "grant", "--machine", "none"]).failed(1, &["none"]);
    node.run(["lease", "show", "1000", "--machine", "kv"]).failed(1, &["no lease 1000"]);
}

#[test]
fn one_lease_too_many_is_refused_with_the_limit_and_what_it_is_called() {
    let directory = directory();
    let node = node_with_kv(&directory);
    node.run(["machine", "set", "kv", "leases_max=2"]).ok();
    let first = node.run(["lease", "grant", "--ttl", "1h"]).ok().to_string();
    node.run(["lease", "grant", "--ttl", "1h"]).ok();
    node.run(["lease", "grant", "--ttl", "1h"]).failed(1, &["2 leases", "leases_max"]);
    // A key's own time to live is a lease too.
    assert_eq!(node.run(["kv", "put", "k", "v", "--ttl", "1h"]).code, 1);
    assert_eq!(node.run(["lease", "revoke", &first]).code, 0);
    node.run(["lease", "grant", "--ttl", "1h"]).ok();
}
