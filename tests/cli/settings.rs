//! Settings of machines: given at the creation, changed, shown, refused.

use serde_json::json;

use super::process::{Node, directory};

#[test]
fn settings_are_given_changed_taken_back_and_outlive_a_crash() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    let create = ["machine", "create", "kv", "--module", "builtin:kv", "--set", "sessions_max=2"];
    let [a, b, c, d, e, f, g] = create;
    let created = node.run([a, b, c, d, e, f, g, "--set", "history_age=90m"]);
    assert!(created.ok().contains("sessions_max      2\n"), "{created:?}");
    assert!(created.ok().contains("history_age       90m\n"), "{created:?}");
    assert!(created.ok().contains("leases_max        1000000 (default)\n"), "{created:?}");

    node.run(["session", "open", "--ttl", "1h"]).ok();
    let closed = node.run(["session", "open", "--ttl", "1h"]).ok().to_owned();
    let full = node.run(["session", "open", "--ttl", "1h"]);
    full.failed(1, &["2 open sessions", "sessions_max"]);
    node.run(["session", "close", &closed]).ok();
    node.run(["session", "open", "--ttl", "1h"]).ok();

    let changed =
        node.run(["machine", "set", "kv", "sessions_max=3", "history_bytes=64MiB", "--json"]).json();
    assert_eq!(changed["settings"]["sessions_max"], json!({ "value": 3, "default": false }));
    assert_eq!(changed["settings"]["history_bytes"]["value"], 64 << 20);
    assert_eq!(changed["settings"]["history_age_ms"]["value"], 90 * 60_000);
    let session = node.run(["session", "open", "--ttl", "1h", "--json"]).json();
    assert_eq!(session["window"], 256);
    node.run(["machine", "set", "kv", "session_window=4"]).ok();
    let session = session["session"].to_string();
    let ahead = ["apply", "kv", "x", "--session", &session, "--number", "5"];
    node.run(ahead).failed(1, &["4 ahead", "session_window"]);
    node.kill();

    let node = Node::serve(directory.path(), &[]);
    node.run(["session", "open", "--ttl", "1h"]).failed(1, &["3 open sessions"]);
    let shown = node.run(["machine", "set", "kv", "sessions_max=default", "session_window=default"]);
    assert!(shown.ok().contains("sessions_max      100000 (default)\n"), "{shown:?}");
    assert!(shown.ok().contains("history_bytes     64MiB"), "{shown:?}");
    assert_eq!(node.run(["session", "open", "--json"]).json()["window"], 256);
    let shown = node.run(["machine", "show", "kv", "--json"]).json();
    assert_eq!(shown["settings"]["session_window"], json!({ "value": 256, "default": true }));
}

#[test]
fn settings_that_cannot_be_are_refused_with_those_that_can() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    node.run(["machine", "create", "kv", "--module", "builtin:kv"]).ok();
    for (assignment, words) in [
        ("leases=5", "leases_max, sessions_max, session_window"),
        ("leases_max", "NAME=VALUE"),
        ("leases_max=0", "1 to"),
        ("session_window=4097", "1 to 4096"),
        ("history_age=10", "7d"),
        ("history_bytes=-1", "64MiB"),
    ] {
        node.run(["machine", "set", "kv", assignment]).failed(2, &[words]);
        let create = ["machine", "create", "x", "--module", "builtin:kv", "--set", assignment];
        node.run(create).failed(2, &[words]);
    }
    node.run(["machine", "set", "nobody", "leases_max=5"]).failed(1, &["nobody"]);
    node.run(["machine", "show", "x"]).failed(1, &["\"x\""]);
}
