//! A machine whose rows were being replaced by a snapshot when the node stopped: installed again if the
//! snapshot is there, and never served as if it were whole.

use std::path::Path;

use bytes::Bytes;
use statehouse::error::Error;
use statehouse::id::{GroupId, Index, Term};
use statehouse::machine::view::Table;
use statehouse::node::Node;
use statehouse::storage::entry::Membership;
use statehouse::storage::snapshot::{Header, Kind, Snapshots, write_rows};
use statehouse::storage::state::{StateDb, StateSizes};

use super::guests::*;

/// A node with a machine `kv`, which has a key `k`, and a machine `notes`; stopped. Returns the group of `kv`
/// and its hash.
async fn prepared(directory: &tempfile::TempDir) -> (GroupId, String) {
    let node = Node::open(config(directory)).await.unwrap();
    create_kv(&node).await;
    create(&node, "notes", NOTES).await;
    must_put(&node, "k", "whole").await;
    let kv = node.machine("kv").unwrap();
    node.shutdown().await;
    (kv.group, kv.replica.unwrap().hash.to_string())
}

fn open_state(directory: &Path) -> StateDb {
    StateDb::open(&directory.join("state"), StateSizes::default()).unwrap().0
}

/// Does what a node does that installs a snapshot and is killed in the middle of it.
fn interrupt(directory: &Path, group: GroupId, index: Index) {
    let state = open_state(directory);
    let mut replacement = state.replace(group, index).unwrap();
    replacement.put(Table::Store, b"half", &vec![0; 5 << 20]).unwrap();
    drop(replacement);
    state.flush().unwrap();
}

/// Saves a snapshot of a stopped node's machine and returns its index.
fn save(directory: &Path, group: GroupId) -> Index {
    save_as(directory, group, "")
}

/// The same as if it came from a node with another engine.
fn save_as(directory: &Path, group: GroupId, engine: &str) -> Index {
    let (state, opened) = StateDb::open(&directory.join("state"), StateSizes::default()).unwrap();
    let head = opened.heads[&group];
    let membership = Membership { voters: vec![1], ..Membership::default() };
    let engine = engine.to_owned();
    let header = Header { group, kind: Kind::Stored, head, term: Term(1), membership, engine };
    let mut writer = Snapshots::open(&directory.join("snapshots")).unwrap().create(&header).unwrap();
    write_rows(&mut writer, &state.snapshot(group)).unwrap();
    writer.finish().unwrap();
    head.index
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_was_cut_short_is_done_again_from_its_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let (group, hash) = prepared(&directory).await;
    let index = save(directory.path(), group);
    interrupt(directory.path(), group, index);

    for _ in 0..2 {
        let node = Node::open(config(&directory)).await.unwrap();
        assert_eq!(node.machine("kv").unwrap().replica.unwrap().hash.to_string(), hash);
        assert_eq!(get(&node, "k").await.unwrap(), b"whole");
        node.shutdown().await;
    }
    let node = Node::open(config(&directory)).await.unwrap();
    must_put(&node, "k", "again").await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_cut_short_without_its_snapshot_is_not_served_and_can_be_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let (group, _) = prepared(&directory).await;
    interrupt(directory.path(), group, Index(77));

    for _ in 0..2 {
        let node = Node::open(config(&directory)).await.unwrap();
        let error = put(&node, "k", "v").await.unwrap_err();
        assert!(matches!(error, Error::Damaged(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("\"kv\"") && text.contains("77") && text.contains("delete"), "{text}");
        assert!(node.query("kv", Bytes::new(), Default::default()).await.is_err());
        let halted = node.machine("kv").unwrap().replica.unwrap().halted.expect("it is halted");
        assert!(halted.contains("77"), "{halted}");
        node.apply("notes", Bytes::from_static(b"a=b")).await.expect("the neighbour is served");
        node.shutdown().await;
    }
    let node = Node::open(config(&directory)).await.unwrap();
    node.delete_machine("kv").await.unwrap();
    node.shutdown().await;
    drop(node);
    let node = Node::open(config(&directory)).await.unwrap();
    create_kv(&node).await;
    must_put(&node, "k", "new").await;
    assert_eq!(get(&node, "k").await.unwrap(), b"new");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_does_not_make_a_machine_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (group, _) = prepared(&directory).await;
    let index = save(directory.path(), group);
    interrupt(directory.path(), group, index);
    let path = directory.path().join(format!("snapshots/{group}-{index}.snap"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    let error = put(&node, "k", "v").await.unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_another_engine_is_not_installed_again() {
    const OTHER: &str = "47.0.0_0123456789abcdef";
    let directory = tempfile::tempdir().unwrap();
    let (group, _) = prepared(&directory).await;
    let index = save_as(directory.path(), group, OTHER);
    interrupt(directory.path(), group, index);
    for _ in 0..2 {
        let node = Node::open(config(&directory)).await.unwrap();
        let ours = node.machine("kv").unwrap().engine;
        let told = put(&node, "k", "v").await.unwrap_err().to_string();
        for part in [&format!("made by the engine {OTHER}"), &ours, "run the version that the others run"] {
            assert!(told.contains(part), "{part:?} is not in {told}");
        }
        assert!(node.query("kv", Bytes::new(), Default::default()).await.is_err());
        node.apply("notes", Bytes::from_static(b"a=b")).await.expect("the neighbour is served");
        node.shutdown().await;
    }
}
