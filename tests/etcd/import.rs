//! From a running etcd to a machine with `import-etcd`, and from keys to an etcd with a snapshot of ours.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use serde_json::{Value, json};
use statehouse::bbolt::etcd::Lease;
use statehouse::bbolt::snapshot::{About, Snapshot};
use statehouse_kv::messages::KeyValue;

use super::process::{Done, Node, run_with};
use super::server::{Server, tool};

/// How long an etcd may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs etcdctl: what it printed.
fn ctl(endpoint: &str, arguments: &[&str], input: &str) -> Done {
    run_with(Command::new(tool("etcdctl")).args(["--endpoints", endpoint]).args(arguments), input.as_bytes())
}

fn json_of(endpoint: &str, arguments: &[&str]) -> Value {
    let done = ctl(endpoint, &[arguments, &["-w", "json"]].concat(), "");
    assert_eq!(done.code, 0, "{done:?}");
    done.json()
}

fn import(node: &Node, source: &str, more: &[&str]) -> Done {
    let arguments = ["import-etcd", source].into_iter().chain(more.iter().copied());
    run_with(&mut node.command(arguments), b"")
}

/// Keys as etcdctl prints them: names and values of both sides in one spelling.
fn pairs(endpoint: &str) -> Vec<(Value, Value)> {
    let found = json_of(endpoint, &["get", "", "--prefix"]);
    let pairs = found["kvs"].as_array().cloned().unwrap_or_default();
    pairs.into_iter().map(|pair| (pair["key"].clone(), pair["value"].clone())).collect()
}

#[test]
#[ignore = "needs etcd and its clients: make test-clients"]
fn a_running_etcd_is_brought_with_its_keys_and_leases() {
    let etcd = Server::etcd();
    let directory = tempfile::tempdir().unwrap();
    let node = Node::serve(directory.path(), &["--etcd", "127.0.0.1:0"]);
    for some in 0..40 {
        let puts: String = (0..100)
            .map(|key| {
                format!(
                    "put {:04} \
                \"{}\"\n",
                    100 * some + key,
                    "v".repeat(5 * key)
                )
            })
            .collect();
        assert_eq!(ctl(&etcd.address, &["txn"], &format!("\n{puts}\n\n")).code, 0);
    }
    assert_eq!(ctl(&etcd.address, &["del", "1", "--prefix"], "").code, 0);
    for (key, bytes) in [("large", 900_000), ("larger", 1_000_000), ("largest", 1_500_000)] {
        assert_eq!(ctl(&etcd.address, &["put", key], &"x".repeat(bytes)).code, 0);
    }
    let mut leases = Vec::new();
    for ttl in ["3600", "60"] {
        let granted = json_of(&etcd.address, &["lease", "grant", ttl]);
        let id = granted["ID"].as_i64().unwrap();
        for place in ["z", "y", "x"] {
            let (lease, key) = (format!("--lease={id:x}"), format!("queue/{place}{ttl}"));
            assert_eq!(ctl(&etcd.address, &["put", &lease, &key, "waits"], "").code, 0);
        }
        leases.push(id);
    }
    leases.sort();

    let done = import(&node, &etcd.address, &["--json"]);
    assert_eq!(done.code, 0, "{done:?}");
    let done = done.json();
    assert_eq!((&done["keys"], &done["leases"]), (&json!(3_009), &json!(2)), "{done}");
    assert_eq!(done["keys_of_ended_leases"], json!(0));
    let there = node.run(["kv", "get", "", "--prefix", "--limit", "2000", "--json"]).json();
    assert_eq!(there["count"], json!(3_009));
    let value = |key: &str| node.run(["kv", "get", key]).ok().to_owned();
    assert_eq!(value("0399"), "v".repeat(495));
    assert_eq!(value("largest").len(), 1_500_000);
    let queue = node.run(["kv", "get", "queue/", "--prefix", "--json"]).json();
    let mut queue: Vec<(i64, String)> = queue["kvs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| (pair["create_revision"].as_i64().unwrap(), pair["key"].as_str().unwrap().to_owned()))
        .collect();
    queue.sort();
    let names: Vec<&str> = queue.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["queue/z3600", "queue/y3600", "queue/x3600", "queue/z60", "queue/y60", "queue/x60"]);
    let listed = node.run(["lease", "list", "--json"]).json();
    let mut ids: Vec<i64> =
        listed.as_array().unwrap().iter().filter_map(|lease| lease["id"].as_i64()).collect();
    ids.sort();
    assert_eq!(ids, leases);

    // The same again, by the other way, and with the other spelling of the address.
    let file = directory.path().join("snapshot.db");
    let file = file.to_str().unwrap();
    assert_eq!(ctl(&etcd.address, &["snapshot", "save", file], "").code, 0);
    let of_file = import(&node, file, &["--merge", "--json"]).json();
    assert_eq!(of_file["blake3"], done["blake3"]);
    let again = import(&node, &format!("http://{}", etcd.address), &["--merge", "--json"]).json();
    assert_eq!(again["blake3"], done["blake3"]);
}

/// An etcd that was started with a data directory, ended with the value.
struct Restored(Child, String);

impl Restored {
    fn start(data: &Path) -> Restored {
        let port = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("it is bound").port()
        };
        let [client, peer] = [port(), port()].map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = Command::new(tool("etcd"));
        command.args(["--log-level", "fatal", "--data-dir"]).arg(data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("etcd starts");
        let restored = Restored(child, client);
        let begun = Instant::now();
        while ctl(&restored.1, &["endpoint", "health"], "").code != 0 {
            assert!(begun.elapsed() < PATIENCE, "the restored etcd does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
        restored
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs etcd and its clients: make test-clients"]
fn etcd_restores_a_snapshot_that_was_written_here() {
    let directory = tempfile::tempdir().unwrap();
    let (file, data) = (directory.path().join("snapshot.db"), directory.path().join("data"));
    let mut snapshot = Snapshot::new(tempfile::tempfile().unwrap());
    for number in 0..20_000 {
        // In the order of the keys, which is not that of the revisions.
        let revision = 2 + (20_000 - number) / 3;
        let pair = KeyValue {
            key: format!("key/{number:05}").into(),
            value: vec![b'v'; if number % 1_000 == 0 { 50_000 } else { number as usize % 300 }],
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: if number % 10 == 0 { 77 } else { 0 },
            ..KeyValue::default()
        };
        snapshot.add(revision, &pair.encode_to_vec()).unwrap();
    }
    let leases = [Lease { id: 77, ttl_s: 3_600, remaining_s: 0 }];
    let about = About { revision: 9_000, index: 9, term: 2, version: "3.7.0", leases: &leases };
    snapshot.write(std::fs::File::create(&file).unwrap(), &about).unwrap();

    let utl = |arguments: &[&str]| run_with(Command::new(tool("etcdutl")).args(arguments), b"");
    let status = utl(&["snapshot", "status", file.to_str().unwrap(), "-w", "json"]);
    assert_eq!(status.code, 0, "{status:?}");
    assert_eq!((&status.json()["totalKey"], &status.json()["version"]), (&json!(20_000), &json!("3.7.0")));
    let (file, folder) = (file.to_str().unwrap(), data.to_str().unwrap());
    let restored = utl(&["snapshot", "restore", file, "--skip-hash-check", "--data-dir", folder]);
    assert_eq!(restored.code, 0, "{restored:?}");

    let etcd = Restored::start(&data);
    let all = pairs(&etcd.1);
    assert_eq!(all.len(), 20_000);
    let one = json_of(&etcd.1, &["get", "key/19990"]);
    assert_eq!((&one["header"]["revision"], &one["kvs"][0]["mod_revision"]), (&json!(9_000), &json!(5)));
    assert_eq!(ctl(&etcd.1, &["get", "key/", "--prefix", "--rev", "100"], "").code, 1, "compacted");
    let lease = json_of(&etcd.1, &["lease", "timetolive", "4d", "--keys"]);
    assert_eq!((&lease["granted-ttl"], lease["keys"].as_array().map(Vec::len)), (&json!(3_600), Some(2_000)));
    assert_eq!(ctl(&etcd.1, &["lease", "revoke", "4d"], "").code, 0);
    assert_eq!(pairs(&etcd.1).len(), 18_000, "the lease took its keys along");
    assert_eq!(json_of(&etcd.1, &["put", "new", "1"])["header"]["revision"], json!(9_002));
}
