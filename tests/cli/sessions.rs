//! Sessions by hand: commands that are applied once, however often they are sent.

use std::time::{Duration, Instant};

use serde_json::json;

use super::process::{Done, Node, component, directory};

fn node_with_counter(directory: &tempfile::TempDir) -> Node {
    let node = Node::serve(directory.path(), &[]);
    node.run(["machine", "create", "sum", "--module", &component("counter")]).ok();
    node
}

fn open(node: &Node, ttl: &str) -> String {
    node.run(["session", "open", "--machine", "sum", "--ttl", ttl]).ok().to_owned()
}

/// Adds `step` as a command of a session; `place` is its number and what is acknowledged.
fn add(node: &Node, session: &str, step: &str, place: [&str; 2]) -> Done {
    let [number, acknowledged] = place;
    let place = ["--session", session, "--number", number, "--acknowledged", acknowledged, "--json"];
    let [a, b, c, d, e, f, g] = place;
    node.run(["apply", "sum", step, a, b, c, d, e, f, g])
}

/// The reason of an error told as JSON.
fn reason(done: &Done) -> serde_json::Value {
    assert_eq!((done.code, done.stdout.len()), (1, 0), "{done:?}");
    let told: serde_json::Value = serde_json::from_str(&done.stderr).expect("an error as JSON");
    told["error"]["reason"].clone()
}

#[test]
fn a_command_sent_again_has_its_first_outcome_and_is_applied_once_also_after_a_crash() {
    let directory = directory();
    let node = node_with_counter(&directory);
    let session = open(&node, "1h");
    let first = add(&node, &session, "5", ["1", "0"]).json();
    assert_eq!(first["ok"], "5");
    node.run(["apply", "sum", "100"]).ok();
    let refused = add(&node, &session, "many", ["2", "0"]).json();
    assert_eq!(refused["refused"]["code"], 1);
    for _ in 0..3 {
        assert_eq!(add(&node, &session, "5", ["1", "0"]).json(), first, "index and revision too");
        assert_eq!(add(&node, &session, "many", ["2", "0"]).json(), refused);
    }
    node.kill();
    let node = Node::serve(directory.path(), &[]);
    assert_eq!(add(&node, &session, "5", ["1", "0"]).json(), first);
    assert_eq!(add(&node, &session, "7", ["3", "2"]).json()["ok"], "112");
    assert_eq!(node.run(["query", "sum", ""]).ok(), "112");
    assert_eq!(reason(&add(&node, &session, "5", ["1", "0"])), "NUMBER_PASSED");
    assert_eq!(node.run(["query", "sum", ""]).ok(), "112");
}

#[test]
fn numbers_that_cannot_be_are_told_apart() {
    let directory = directory();
    let node = node_with_counter(&directory);
    let opened = node.run(["session", "open", "--machine", "sum", "--ttl", "1h", "--json"]).json();
    assert_eq!((&opened["ttl_ms"], &opened["window"]), (&json!(3_600_000), &json!(256)));
    let session = opened["session"].to_string();
    for place in [["0", "0"], ["1", "1"], ["3", "7"]] {
        assert_eq!(reason(&add(&node, &session, "5", place)), "INVALID", "{place:?}");
    }
    assert_eq!(reason(&add(&node, "0", "5", ["1", "0"])), "INVALID");
    let ahead = add(&node, &session, "5", ["257", "0"]);
    assert_eq!(reason(&ahead), "NUMBER_AHEAD");
    assert!(ahead.stderr.contains("256") && ahead.stderr.contains("session_window"), "{ahead:?}");
    assert_eq!(add(&node, &session, "5", ["257", "1"]).json()["ok"], "5");
    assert_eq!(add(&node, &session, "6", ["256", "0"]).json()["ok"], "11");
    assert_eq!(node.run(["query", "sum", ""]).ok(), "11");
    node.run(["session", "open", "--machine", "nobody"]).failed(1, &["nobody"]);
    node.run(["session", "open", "--machine", "sum", "--ttl", "0s"]).failed(2, &["0s", "1ms"]);
}

#[test]
fn a_session_that_has_ended_is_an_error_of_its_own_and_nothing_is_applied_again() {
    let directory = directory();
    let node = node_with_counter(&directory);
    let (closed, expires, kept) = (open(&node, "1h"), open(&node, "1s"), open(&node, "3s"));
    let begun = Instant::now();
    for session in [&closed, &expires, &kept] {
        add(&node, session, "1", ["1", "0"]).ok();
    }
    node.run(["session", "close", &closed, "--machine", "sum"]).ok();
    node.run(["session", "close", &closed, "--machine", "sum"]).failed(1, &[&closed, "has ended"]);
    for session in [closed.as_str(), "999999"] {
        let done = add(&node, session, "1", ["1", "0"]);
        assert_eq!(reason(&done), "SESSION_EXPIRED");
        assert!(done.stderr.contains("was not applied now") && done.stderr.contains("unknown"), "{done:?}");
    }
    while begun.elapsed() < Duration::from_secs(5) {
        let told = node.run(["session", "keep-alive", &kept, "--machine", "sum"]);
        assert_eq!(told.ok(), "3000 ms");
        std::thread::sleep(Duration::from_millis(250));
    }
    assert_eq!(reason(&add(&node, &expires, "1", ["1", "0"])), "SESSION_EXPIRED");
    assert_eq!(reason(&add(&node, &expires, "1", ["2", "1"])), "SESSION_EXPIRED");
    let again = node.run(["session", "keep-alive", &expires, "--machine", "sum", "--json"]);
    assert_eq!(reason(&again), "SESSION_EXPIRED");
    assert_eq!(add(&node, &kept, "1", ["1", "0"]).json()["ok"], "3");
    assert_eq!(node.run(["query", "sum", ""]).ok(), "3");
}
