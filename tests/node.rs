//! A node as a library: opened in a directory of its own, used, stopped, opened again.

#[path = "node/bound.rs"]
mod bound;
#[path = "node/crowd.rs"]
mod crowd;
#[path = "node/deleted.rs"]
mod deleted;
#[path = "node/guests.rs"]
mod guests;
#[path = "node/hostile.rs"]
mod hostile;
#[path = "node/interrupted.rs"]
mod interrupted;
#[path = "node/leases.rs"]
mod leases;
#[path = "node/slow_save.rs"]
mod slow_save;
#[path = "node/wasi.rs"]
mod wasi;
#[path = "node/watches.rs"]
mod watches;

use bytes::Bytes;
use statehouse::id::{Digest, Index};
use statehouse::machine::outcome::Outcome;
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::{Consistency, Push, World};
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

use guests::wait_until;

const COUNTER: &[u8] = include_bytes!("../guests/counter/counter.component.wasm");

fn config(directory: &tempfile::TempDir) -> NodeConfig {
    NodeConfig { bootstrap: true, ..NodeConfig::new(directory.path(), "test") }
}

fn put(key: &str, value: &str) -> Bytes {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }.to_envelope().into()
}

async fn get(node: &Node, key: &str) -> Option<Vec<u8>> {
    let request = RangeRequest { key: key.into(), ..Default::default() }.to_envelope();
    let answered = node.query("kv", request.into(), Consistency::Linearizable).await.unwrap();
    let Ok(answer) = answered.outcome else { panic!("an answer was expected: {answered:?}") };
    RangeRequest::answer(&answer).unwrap().kvs.pop().map(|kv| kv.value)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_is_there_after_a_stop_and_a_start() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    let kv = node.builtin("kv").await.unwrap();
    node.create_machine("kv", kv, Bytes::new()).await.unwrap();
    for number in 0..100 {
        let applied = node.apply("kv", put(&format!("k{number}"), "v")).await.unwrap();
        assert!(matches!(applied.outcome, Outcome::Ok(_)));
    }
    assert_eq!(get(&node, "k99").await.unwrap(), b"v");
    let hash = node.machine("kv").unwrap().replica.unwrap().hash;
    node.shutdown().await;
    drop(node);

    let node = Node::open(config(&directory)).await.unwrap();
    assert_eq!(get(&node, "k0").await.unwrap(), b"v");
    assert_eq!(get(&node, "k100").await, None);
    assert_eq!(node.machine("kv").unwrap().replica.unwrap().hash, hash);
    node.delete_machine("kv").await.unwrap();
    assert!(node.apply("kv", put("k", "v")).await.is_err());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resident_machine_counts_on_from_its_snapshot_and_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let config = |directory| NodeConfig { resident_snapshot_entries: 8, ..config(directory) };
    let node = Node::open(config(&directory)).await.unwrap();
    let push = Push { digest: Digest::of(COUNTER), label: "counter".into(), bytes: COUNTER.into() };
    let module = node.push_module(push).await.unwrap();
    assert_eq!(module.world, World::Resident);
    node.create_machine("counter", module.digest, Bytes::new()).await.unwrap();
    for _ in 0..10 {
        node.apply("counter", Bytes::from_static(b"2")).await.unwrap();
    }
    let refused = node.apply("counter", Bytes::from_static(b"two")).await.unwrap();
    assert!(matches!(refused.outcome, Outcome::Refused(_)), "{refused:?}");
    let snapshots = directory.path().join("snapshots");
    let is_snapshot = |name: std::ffi::OsString| name.to_string_lossy().ends_with(".snap");
    let saved = || std::fs::read_dir(&snapshots).unwrap().any(|file| is_snapshot(file.unwrap().file_name()));
    wait_until("a snapshot of the counter", saved).await;
    node.apply("counter", Bytes::from_static(b"-0")).await.unwrap();
    node.shutdown().await;
    drop(node);

    let node = Node::open(config(&directory)).await.unwrap();
    let applied = node.apply("counter", Bytes::from_static(b"1")).await.unwrap();
    let local = Consistency::Local { min_index: applied.index };
    let answered = node.query("counter", Bytes::new(), local).await.unwrap();
    assert_eq!(answered.outcome, Ok(Bytes::from_static(b"21")));
    let at_once = Consistency::Local { min_index: Index(0) };
    assert_eq!(node.query("counter", Bytes::new(), at_once).await.unwrap().outcome, answered.outcome);
    node.shutdown().await;
}

/// The error's text.
fn told<T: std::fmt::Debug>(result: Result<T, statehouse::error::Error>) -> String {
    result.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_named_and_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    let kv = node.builtin("kv").await.unwrap();
    node.create_machine("kv", kv, Bytes::new()).await.unwrap();
    let before = node.machine("kv").unwrap();

    assert!(told(node.apply("no", Bytes::new()).await).contains("\"no\""));
    let large = Bytes::from(vec![0; (2 << 20) + 1]);
    let error = told(node.apply("kv", large).await);
    assert!(error.contains("2097153") && error.contains("2097152"), "{error}");
    assert!(told(node.create_machine("kv", kv, Bytes::new()).await).contains("already"));
    assert!(told(node.create_machine("A B", kv, Bytes::new()).await).contains("\"A B\""));
    let unknown = Digest::of(b"unknown");
    assert!(told(node.create_machine("x", unknown, Bytes::new()).await).contains(&unknown.to_string()));
    let refused = told(node.create_machine("x", kv, Bytes::from_static(b"junk")).await);
    assert!(refused.contains("refused its configuration"), "{refused}");
    assert!(node.machine("x").is_err(), "a machine that refused its first input is not there");
    assert!(told(node.builtin("no").await).contains("kv"));
    assert!(told(node.delete_machine("no").await).contains("\"no\""));

    let push = |bytes: &'static [u8], digest| Push { digest, label: "bad".into(), bytes: bytes.into() };
    let error = told(node.push_module(push(b"junk", Digest::of(b"junk"))).await);
    assert!(error.contains("not a WebAssembly component"), "{error}");
    let error = told(node.push_module(push(b"junk", unknown)).await);
    assert!(error.contains("damaged"), "{error}");
    assert_eq!(node.modules().len(), 1);
    assert_eq!(node.machine("kv").unwrap(), before);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display().to_string();
    let without = NodeConfig { bootstrap: false, ..config(&directory) };
    let error = told(Node::open(without).await.map(drop));
    assert!(error.contains("--bootstrap") && error.contains(&path), "{error}");

    let node = Node::open(config(&directory)).await.unwrap();
    let error = told(Node::open(config(&directory)).await.map(drop));
    assert!(error.contains("in use") && error.contains(&path), "{error}");
    let kv = node.builtin("kv").await.unwrap();
    node.create_machine("kv", kv, Bytes::new()).await.unwrap();
    node.shutdown().await;
    drop(node);

    let other = NodeConfig { name: "other".into(), ..config(&directory) };
    let error = told(Node::open(other).await.map(drop));
    assert!(error.contains("\"other\"") || error.contains("other"), "{error}");

    let module = directory.path().join("modules").join(format!("{kv}.wasm"));
    let mut bytes = std::fs::read(&module).unwrap();
    bytes[1_000] ^= 1;
    std::fs::write(&module, bytes).unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    let error = told(node.apply("kv", put("k", "v")).await);
    assert!(error.contains(&kv.to_string()), "the damaged module is named: {error}");
    node.shutdown().await;
}
