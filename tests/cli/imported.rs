//! What was in an etcd is brought to a machine: from a snapshot that etcd made, and from none that it did
//! not.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use prost::Message;
use serde_json::{Value, json};
use statehouse::bbolt::etcd::Lease;
use statehouse::bbolt::snapshot::{About, Snapshot};
use statehouse_kv::messages::KeyValue;

use super::killed::{ports, serve};
use super::leases::{node_with_kv, wait_for};
use super::process::{Done, Node, directory};

/// A snapshot of etcd 3.7.3; `make` beside it says what is in it.
fn snapshot() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/etcd/fixtures/snapshot-3.7.3.db")
}

fn import(node: &Node, source: &Path, more: &[&str]) -> Done {
    let source = source.to_str().expect("paths of tests are text");
    let arguments = ["import-etcd", source].into_iter().chain(more.iter().copied());
    super::run_with(&mut node.command(arguments), b"")
}

/// The pairs of a machine, with all that is known of them.
fn pairs(node: &Node, prefix: &str) -> Vec<Value> {
    let found = node.run(["kv", "get", prefix, "--prefix", "--json"]).json();
    found["kvs"].as_array().expect("a list").clone()
}

fn count(node: &Node) -> usize {
    pairs(node, "").len()
}

#[test]
fn keys_and_leases_of_a_snapshot_are_in_the_machine_and_say_so() {
    let directory = directory();
    let node = node_with_kv(&directory);
    let done = import(&node, &snapshot(), &["--json"]).json();
    assert_eq!(
        (&done["keys"], &done["leases"], &done["etcd_revision"]),
        (&json!(128), &json!(2), &json!(16))
    );
    assert_eq!(done["blake3"].as_str().map(str::len), Some(64), "{done}");
    assert_eq!((&done["keys_without_their_lease"], &done["other_keys_of_machine"]), (&json!(0), &json!(0)));
    // One revision for each key, so none was written twice.
    assert_eq!(done["machine_revision"], json!(129));

    assert_eq!(node.run(["kv", "get", "colour"]).ok(), "blue", "the last version");
    assert_eq!(node.run(["kv", "get", "again"]).ok(), "2", "deleted and put again");
    assert_eq!(node.run(["kv", "get", "gone"]).code, 1, "deleted");
    assert_eq!(node.run(["kv", "get", "after"]).ok(), "compaction", "put after a compaction");
    assert_eq!(node.run(["kv", "get", "many/037"]).ok(), "value 037", "of a transaction");
    assert_eq!(node.run(["kv", "get", "long"]).ok(), "x".repeat(20_000), "a value that runs over pages");
    let odd = pairs(&node, "bytes");
    assert_eq!((odd.len(), &odd[0]["value"]), (1, &json!("a")));

    let locks = pairs(&node, "lock/");
    let of = |name: &str, what: &str| {
        let found = locks.iter().find(|pair| pair["key"] == name).expect("it is there");
        found[what].as_i64().expect("a number")
    };
    assert_eq!(of("lock/a", "lease"), of("lock/b", "lease"), "one lease for both");
    assert!(
        of("lock/b", "create_revision") < of("lock/a", "create_revision"),
        "b was first: it has the lock"
    );
    let leases = node.run(["lease", "list", "--json"]).json();
    let ids: Vec<i64> =
        leases.as_array().expect("a list").iter().filter_map(|lease| lease["id"].as_i64()).collect();
    assert!(ids.len() == 2 && ids.contains(&of("lock/a", "lease")), "{leases}");
    assert!(
        leases.as_array().is_some_and(|all| all.iter().any(|lease| lease["ttl_ms"] == 3_600_000)),
        "{leases}"
    );

    // A second time it needs to be told to, and leaves everything as it is.
    import(&node, &snapshot(), &[]).failed(1, &["128 keys and 2 leases already", "--merge"]);
    node.run(["kv", "put", "colour", "red"]).ok();
    node.run(["kv", "put", "other", "stays"]).ok();
    let again = import(&node, &snapshot(), &["--merge", "--json"]).json();
    assert_eq!((&again["blake3"], &again["other_keys_of_machine"]), (&done["blake3"], &json!(1)));
    assert_eq!(node.run(["kv", "get", "colour"]).ok(), "blue");
    assert_eq!(node.run(["kv", "get", "other"]).ok(), "stays");
    let told = import(&node, &snapshot(), &["--merge"]);
    assert!(told.ok().contains("128 keys and 2 leases of revision 16"), "{told:?}");
    assert!(told.stderr.contains("1 other keys"), "{told:?}");
    // The end of a lease takes its keys along, as ever.
    let lease = of("lock/a", "lease").to_string();
    node.run(["lease", "revoke", &lease]).ok();
    wait_for("the keys of the lease are gone", || pairs(&node, "lock/").is_empty());
    // What has ended since is brought again.
    assert_eq!(import(&node, &snapshot(), &["--merge", "--json"]).json()["blake3"], done["blake3"]);
    assert_eq!(pairs(&node, "lock/").len(), 2);
}

#[test]
fn a_bare_database_is_brought_as_well() {
    let directory = directory();
    let node = node_with_kv(&directory);
    let bytes = std::fs::read(snapshot()).expect("the fixture");
    let bare = directory.path().join("db");
    std::fs::write(&bare, &bytes[..bytes.len() - 32]).expect("written");
    let done = import(&node, &bare, &["--json"]).json();
    assert_eq!(done["keys"], json!(128));
}

#[test]
fn what_cannot_be_brought_is_named_and_nothing_is_written() {
    let directory = directory();
    let node = node_with_kv(&directory);
    let bytes = std::fs::read(snapshot()).expect("the fixture");
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    };
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    import(&node, &file("flipped", &damaged), &[]).failed(1, &["flipped", "checksum is wrong"]);
    let mut other_end = bytes.clone();
    other_end[bytes.len() - 1] ^= 1;
    import(&node, &file("end", &other_end), &[]).failed(1, &["checksum is wrong"]);
    import(&node, &file("cut", &bytes[..bytes.len() / 2]), &[]).failed(1, &["page", "the file ends"]);
    import(&node, &file("text", b"colour=green"), &[]).failed(1, &["text", "no database of etcd"]);
    import(&node, &file("empty", b""), &[]).failed(1, &["no database of etcd"]);
    import(&node, directory.path(), &[]).failed(1, &["not a file", "member/snap/db"]);
    import(&node, Path::new("no-such-file"), &[]).failed(1, &["no file no-such-file", "HOST:PORT"]);
    import(&node, Path::new("127.0.0.1:1"), &[]).failed(1, &["no etcd answers at 127.0.0.1:1"]);
    import(&node, Path::new("http://nonsense"), &[]).failed(2, &["nonsense", "host:port"]);
    import(&node, Path::new("https://127.0.0.1:1"), &[]).failed(2, &["TLS", "snapshot save"]);
    // Its own port is one of gRPC, and no etcd.
    import(&node, Path::new(&node.client), &[]).failed(1, &["no etcd of version 3"]);
    import(&node, &snapshot(), &["--machine", "nowhere"]).failed(1, &["nowhere"]);
    node.run(["machine", "create", "notes", "--module", &super::component("notes")]).ok();
    import(&node, &snapshot(), &["--machine", "notes"]).failed(1, &["notes", "builtin:kv"]);
    assert_eq!(count(&node), 0, "nothing was written");
}

/// Keys that take a while to import.
const KEYS: i64 = 30_000;

/// A snapshot of that many keys and a lease.
fn large(directory: &Path) -> String {
    let mut snapshot = Snapshot::new(tempfile::tempfile().expect("a file"));
    for number in 0..KEYS {
        let (key, created) = (format!("{number:05}"), KEYS + 1 - number);
        let pair = KeyValue {
            key: key.into(),
            value: vec![b'v'; 500],
            create_revision: created,
            mod_revision: created,
            version: 1,
            lease: if number % 100 == 0 { 7 } else { 0 },
            ..KeyValue::default()
        };
        snapshot.add(created, &pair.encode_to_vec()).expect("put aside");
    }
    let leases = [Lease { id: 7, ttl_s: 60, remaining_s: 0 }];
    let about = About { revision: KEYS + 1, index: 1, term: 1, version: "3.7.0", leases: &leases };
    let file = directory.join("large.db");
    snapshot.write(std::fs::File::create(&file).expect("a file"), &about).expect("written");
    file.to_str().expect("paths of tests are text").to_owned()
}

/// How many keys a machine has, without showing them.
fn counted(node: &Node) -> i64 {
    let found = node.run(["kv", "get", "", "--prefix", "--limit", "1", "--json"]);
    found.json()["count"].as_i64().unwrap_or_default()
}

/// Begins an import, and waits until some of its keys are there.
fn begin_importing(node: &Node, source: &str) -> JoinHandle<Done> {
    let mut command = node.command(["import-etcd", source, "--json"]);
    let importing = std::thread::spawn(move || super::run_with(&mut command, b""));
    wait_for("some keys are there", || counted(node) > 0);
    importing
}

#[test]
fn an_import_that_somebody_writes_into_says_so_and_fails() {
    let directory = directory();
    let node = node_with_kv(&directory);
    let importing = begin_importing(&node, &large(directory.path()));
    node.run(["kv", "put", "zz", "of somebody else"]).ok();
    assert!(!importing.is_finished(), "it was written too late for this test: give it more keys");
    let done = importing.join().expect("it does not panic");
    done.failed(
        1,
        &["the machine has the key", "zz", "and etcd has not", "written to the machine meanwhile"],
    );
}

#[test]
fn an_import_outlives_a_node_that_is_killed_under_it() {
    let directory = directory();
    let ports = [ports()];
    let node = Node::start(&mut serve(directory.path(), 0, &ports));
    node.run(["machine", "create", "kv", "--module", "builtin:kv", "--timeout", "300"]).ok();
    let importing = begin_importing(&node, &large(directory.path()));
    node.kill();
    assert!(!importing.is_finished(), "the node was killed too late for this test: give it more keys");
    let node = Node::start(&mut serve(directory.path(), 0, &ports));
    let done = importing.join().expect("it does not panic");
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!((&done.json()["keys"], &done.json()["leases"]), (&json!(KEYS), &json!(1)));
    assert_eq!(counted(&node), KEYS);
}
