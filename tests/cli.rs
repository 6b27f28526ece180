//! The program from outside: real processes, real sockets, real files. What a person or a script sees of it.

#[path = "etcd/calls.rs"]
#[expect(dead_code, reason = "the comparison with etcd uses the rest of it")]
mod calls;
#[path = "cli/checked.rs"]
mod checked;
#[path = "cli/etcd.rs"]
mod etcd;
#[path = "cli/etcd_three.rs"]
mod etcd_three;
#[path = "cli/faults.rs"]
mod faults;
#[path = "cli/gallery.rs"]
mod gallery;
#[path = "cli/grpc.rs"]
mod grpc;
#[path = "cli/hinted.rs"]
mod hinted;
#[path = "cli/imported.rs"]
mod imported;
#[path = "cli/kept.rs"]
mod kept;
#[path = "cli/killed.rs"]
mod killed;
#[path = "cli/languages.rs"]
mod languages;
#[path = "cli/leases.rs"]
mod leases;
#[path = "cli/locks.rs"]
mod locks;
#[path = "cli/process.rs"]
mod process;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/sessions.rs"]
mod sessions;
#[path = "cli/settings.rs"]
mod settings;
#[path = "cli/soak.rs"]
mod soak;
#[path = "cli/stock.rs"]
mod stock;
#[path = "cli/terminal.rs"]
mod terminal;
#[path = "../src/wasm/testing/text.rs"]
#[expect(dead_code, reason = "the tests inside the crate use the rest of it")]
mod text;
#[path = "cli/traced.rs"]
mod traced;
#[path = "cli/watched.rs"]
mod watched;

use process::{Node, component, directory, program, run_with};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn the_tour_works_and_a_killed_node_has_everything() {
    let directory = directory();
    let data = directory.path().join("data");
    let node = Node::serve(&data, &["--name", "one"]);

    let digest = node.run(["module", "push", &component("notes")]).ok().to_string();
    assert_eq!(digest.len(), 64);
    assert_eq!(node.run(["machine", "create", "notes", "--module", &digest]).code, 0);
    let counter = node.run(["machine", "create", "sum", "--module", &component("counter"), "--init", "40"]);
    assert!(counter.ok().contains("world     resident"), "{counter:?}");
    assert_eq!(node.run(["machine", "create", "kv", "--module", "builtin:kv"]).code, 0);

    assert_eq!(node.run(["apply", "notes", "milk=two pints"]).code, 0);
    assert_eq!(node.run(["query", "notes", "milk"]).ok(), "two pints");
    assert_eq!(node.run(["apply", "sum", "2"]).ok(), "42");
    assert_eq!(node.run(["kv", "put", "colour", "green"]).ok(), "2");
    assert_eq!(node.run(["kv", "put", "shape", "-1"]).ok(), "3");
    assert_eq!(node.run(["kv", "get", "colour"]).ok(), "green");
    assert_eq!(node.run(["kv", "get", "", "--prefix"]).ok(), "colour\tgreen\nshape\t-1");
    let transaction = r#"{
        "compare": [{"key": "colour", "target": "value", "is": "=", "value": "green"}],
        "success": [{"put": {"key": "colour", "value": "blue"}}, {"delete": {"key": "shape"}}]
    }"#;
    let done = run_with(&mut node.command(["kv", "txn", "-"]), transaction.as_bytes()).json();
    assert_eq!((&done["succeeded"], &done["revision"]), (&json!(true), &json!(4)));
    node.kill();

    let node = Node::serve(&data, &["--name", "one"]);
    assert_eq!(node.run(["query", "notes", "milk"]).ok(), "two pints");
    assert_eq!(node.run(["apply", "sum", "0"]).ok(), "42");
    assert_eq!(node.run(["kv", "get", "colour"]).ok(), "blue");
    assert_eq!(node.run(["kv", "get", "colour", "--rev", "2"]).ok(), "green");
    assert_eq!(node.run(["kv", "del", "colour"]).ok(), "1");
    assert_eq!(node.run(["kv", "compact", "5"]).code, 0);
    node.run(["kv", "get", "colour", "--rev", "4"]).failed(1, &["compacted"]);

    let names = |done: process::Done| -> Vec<String> {
        let list = done.json().as_array().expect("a list").clone();
        list.iter().map(|machine| machine["name"].as_str().expect("a name").to_string()).collect()
    };
    assert_eq!(names(node.run(["machine", "list", "--json"])), ["kv", "notes", "sum"]);
    assert_eq!(node.run(["machine", "delete", "notes"]).code, 0);
    assert_eq!(names(node.run(["machine", "list", "--json"])), ["kv", "sum"]);
    node.run(["machine", "show", "notes"]).failed(1, &["notes"]);
    assert!(node.run(["module", "show", &digest]).ok().contains("notes.component.wasm"));
}

#[test]
fn a_development_node_has_a_machine_and_needs_no_settings() {
    let directory = directory();
    let start = || {
        let mut dev = program();
        dev.args(["dev", "--json", "--client", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        Node::start(dev.current_dir(directory.path()))
    };
    let node = start();
    assert!(directory.path().join("statehouse-data").is_dir());
    assert_eq!(node.run(["kv", "put", "a", "b"]).ok(), "2");
    node.signal(Signal::INT);
    let (code, told) = node.end();
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("statehouse kv put"), "what to try next is told: {told}");
    assert_eq!(start().run(["kv", "get", "a"]).ok(), "b");
}

#[test]
fn sigterm_stops_a_node_cleanly() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    node.run(["status"]).ok();
    node.signal(Signal::TERM);
    let (code, told) = node.end();
    assert_eq!(code, Some(0), "{told}");
    assert!(!told.contains("ERROR") && !told.contains("WARN"), "{told}");
}

#[test]
fn status_tells_how_the_node_is() {
    let directory = directory();
    let node = Node::serve(directory.path(), &["--name", "eins"]);
    node.run(["machine", "create", "k", "--module", "builtin:kv"]).ok();
    let status = node.run(["status", "--json"]).json();
    assert_eq!((&status["name"], &status["not_ready"]), (&json!("eins"), &json!(null)));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["machines"][0]["name"], "k");
    assert_eq!(status["machines"][0]["replica"]["halted"], json!(null));
    let text = node.run(["status"]);
    assert!(text.ok().contains("eins") && text.ok().contains("serving"), "{text:?}");
}

#[test]
fn the_pages_for_those_who_watch() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    assert_eq!(node.page("/healthz"), (200, "ok\n".into()));
    assert_eq!(node.page("/readyz"), (200, "ready\n".into()));
    node.run(["machine", "create", "k", "--module", "builtin:kv"]).ok();
    node.run(["kv", "--machine", "k", "put", "a", "b"]).ok();
    let (status, metrics) = node.page("/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("statehouse_commands_total 1\n"), "{metrics}");
    assert_eq!(node.page("/secrets").0, 404);
}

#[test]
fn bytes_are_given_as_text_a_file_standard_input_or_digits() {
    let directory = directory();
    let node = Node::serve(&directory.path().join("data"), &[]);
    node.run(["machine", "create", "notes", "--module", &component("notes")]).ok();
    let file = directory.path().join("command");
    std::fs::write(&file, b"file=\xff\x00").unwrap();
    let from_file = format!("@{}", file.display());
    assert_eq!(node.run(["apply", "notes", &from_file]).code, 0);
    assert_eq!(node.run(["query", "notes", "file"]).stdout, b"\xff\x00", "bytes go out as they are");
    assert_eq!(node.run(["query", "notes", "--hex", &hex::encode("file")]).ok(), "ff00");
    let shown = node.run(["query", "notes", "file", "--json"]).json();
    assert_eq!(shown["ok"], json!({ "hex": "ff00" }));

    let done = run_with(&mut node.command(["apply", "notes", "-"]), b"pipe=through");
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(node.run(["query", "notes", "pipe"]).ok(), "through");
    let done = run_with(&mut node.command(["apply", "notes", "-", "--hex"]), b"61 3d 62\n");
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(node.run(["query", "notes", "a"]).ok(), "b");
}

#[test]
fn keys_and_values_may_be_any_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    node.run(["machine", "create", "kv", "--module", "builtin:kv"]).ok();
    let key = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    let kv = |arguments: &[&std::ffi::OsStr]| run_with(node.command(["kv"]).args(arguments), b"");
    assert_eq!(kv(&["put".as_ref(), key, key]).ok(), "2");
    assert_eq!(kv(&["get".as_ref(), key]).stdout, b"\xff\xfe");
    assert_eq!(kv(&["get".as_ref(), key, "--prefix".as_ref()]).ok(), "\\xff\\xfe\t\\xff\\xfe");
    assert_eq!(kv(&["del".as_ref(), key]).ok(), "1");
    kv(&["get".as_ref(), key]).failed(1, &["\"\\xff\\xfe\""]);
}

#[test]
fn answers_carry_an_index_that_a_local_read_can_wait_for() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    node.run(["machine", "create", "notes", "--module", &component("notes")]).ok();
    let index = node.run(["apply", "notes", "a=1", "--json"]).json()["index"].to_string();
    let local = ["query", "notes", "a", "--consistency", "local", "--min-index", &index];
    assert_eq!(node.run(local).ok(), "1");
    assert_eq!(node.run(["query", "notes", "a", "--consistency", "lease"]).ok(), "1");
    node.run(["query", "notes", "a", "--min-index", &index]).failed(2, &["--min-index", "local"]);
}

#[test]
fn everything_is_json_with_json() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    let digest = node.run(["module", "push", &component("notes"), "--json"]).json()["digest"].clone();
    let digest = digest.as_str().expect("a digest").to_string();
    assert_eq!(node.run(["module", "show", &digest, "--json"]).json()["label"], "notes.component.wasm");
    assert_eq!(node.run(["module", "list", "--json"]).json()[0]["world"], "stored");
    let created = node.run(["machine", "create", "kv", "--module", "builtin:kv", "--json"]).json();
    assert_eq!(created["replica"]["revision"], 1);
    assert_eq!(node.run(["kv", "put", "a", "1", "--json"]).json(), json!({ "revision": 2 }));
    assert_eq!(node.run(["kv", "get", "a", "--json"]).json()["kvs"][0]["mod_revision"], 2);
    assert_eq!(node.run(["kv", "del", "a", "--json"]).json(), json!({ "revision": 3, "deleted": 1 }));
    assert_eq!(node.run(["kv", "compact", "3", "--json"]).json()["compacted"], 3);
    assert_eq!(node.run(["machine", "delete", "kv", "--json"]).json(), json!({ "deleted": "kv" }));
    let gone = node.run(["kv", "get", "a", "--json"]);
    assert_eq!((gone.code, gone.stdout.len()), (1, 0));
    let told: serde_json::Value = serde_json::from_str(&gone.stderr).expect("an error as JSON");
    assert_eq!(told["error"]["reason"], "NOT_FOUND");
}

#[test]
fn completions_are_scripts_for_each_shell() {
    for (shell, word) in [("bash", "complete"), ("zsh", "#compdef"), ("fish", "complete -c statehouse")] {
        let done = run_with(program().args(["completions", shell]), b"");
        assert!(done.ok().contains(word), "{shell}");
    }
}

#[test]
fn a_configuration_is_printed_that_reads_back() {
    let directory = directory();
    let path = directory.path().join("statehouse.toml");
    let printed = run_with(program().args(["serve", "--print-config"]), b"");
    let data = directory.path().join("data");
    let text = printed.ok().replace("#data_dir = \"statehouse-data\"", &format!("data_dir = {data:?}"));
    std::fs::write(&path, text.replace("#name = \"node-1\"", "name = \"from-file\"")).unwrap();
    let mut serve = program();
    serve
        .args([
            "serve",
            "--json",
            "--bootstrap",
            "--client",
            "127.0.0.1:0",
            "--peer",
            "127.0.0.1:0",
            "--config",
        ])
        .arg(&path);
    let node = Node::start(&mut serve);
    assert_eq!(node.run(["status", "--json"]).json()["name"], "from-file");
    assert!(data.is_dir());
}
