//! Leases, and times to live of single keys.

use std::time::{Duration, Instant};

use serde_json::json;

use super::process::{Node, directory};

/// Asks until the answer is the one that is waited for, and says how long that took.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}

fn node_with_kv(directory: &tempfile::TempDir) -> Node {
    let node = Node::serve(directory.path(), &[]);
    node.run(["machine", "create", "kv", "--module", "builtin:kv"]).ok();
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
