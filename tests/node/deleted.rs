//! Deleting a machine whose guest is at work: nobody waits for it, and nothing of it stays.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse::error::Error;
use statehouse::id::{GroupId, Index, Term};
use statehouse::machine::batch::Head;
use statehouse::machine::outcome::{HostCode, Outcome};
use statehouse::machine::view::Table;
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::Applied;
use statehouse::storage::entry::Membership;
use statehouse::storage::log::LogDb;
use statehouse::storage::snapshot::{Header, Kind, Snapshots};
use statehouse::storage::state::{StateDb, StateSizes};
use tokio::task::JoinHandle;

use super::guests::*;

/// Fuel with which a guest loops for some seconds.
const SECONDS: u64 = 6_000_000_000;
/// Fuel with which it loops for many minutes.
const FOR_EVER: u64 = 1_000_000_000_000;

fn fuel(directory: &tempfile::TempDir, input_fuel: u64) -> NodeConfig {
    NodeConfig { input_fuel, flush_interval_ms: 100, ..config(directory) }
}

/// A node with a machine `attacker` that has a row and loops; and a machine `kv`.
async fn looping(config: NodeConfig) -> (Node, GroupId, JoinHandle<Result<Applied, Error>>) {
    let node = Node::open(config).await.unwrap();
    create_kv(&node).await;
    create(&node, "attacker", &attacker()).await;
    node.apply("attacker", Bytes::from_static(b"write")).await.unwrap();
    let command = tokio::spawn({
        let node = node.clone();
        async move { node.apply("attacker", Bytes::from_static(b"loop")).await }
    });
    // It is in the log and at its applier: a put that came later is done.
    must_put(&node, "k", "before").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    (node.clone(), node.machine("attacker").unwrap().group, command)
}

/// What is on the disk of a stopped node: whether the group has rows or a head, a log, a snapshot.
fn left(directory: &Path, group: GroupId) -> [bool; 3] {
    let (state, opened) = StateDb::open(&directory.join("state"), StateSizes::default()).unwrap();
    let mut rows = opened.heads.contains_key(&group);
    let note = &mut |_: Table, _: &[u8], _: &[u8]| {
        rows = true;
        Ok(())
    };
    state.snapshot(group).rows(note).unwrap();
    let (_, logs) = LogDb::open(&directory.join("log")).unwrap();
    let snapshots = Snapshots::open(&directory.join("snapshots")).unwrap();
    [rows, logs.contains_key(&group), !snapshots.list(group).unwrap().is_empty()]
}

/// Puts, and stops when it and all before it is flushed.
async fn flush_and_stop(node: Node) {
    must_put(&node, "k", "last").await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_looping_machine_that_is_deleted_and_nothing_of_it_stays() {
    let directory = tempfile::tempdir().unwrap();
    let (node, group, command) = looping(fuel(&directory, SECONDS)).await;
    node.delete_machine("attacker").await.unwrap();
    assert!(matches!(node.machine("attacker"), Err(Error::NotFound(_))));
    // The same name, another machine: it is not the one that loops.
    create(&node, "attacker", NOTES).await;
    node.apply("attacker", Bytes::from_static(b"a=b")).await.unwrap();
    node.delete_machine("kv").await.unwrap();
    create_kv(&node).await;
    must_put(&node, "k", "after").await;
    node.delete_machine("attacker").await.unwrap();
    create(&node, "attacker", &attacker()).await;
    let heir = node.machine("attacker").unwrap().group;
    assert!(!command.is_finished(), "the guest did not loop meanwhile: this shows nothing");

    let ended = command.await.unwrap().unwrap();
    assert_eq!(ended.outcome, Outcome::Host(HostCode::Exhausted), "it went on to its end");
    // Longer than the look at what is to be removed takes to come.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(node.ready().is_ok());
    flush_and_stop(node).await;
    assert_eq!(left(directory.path(), group), [false; 3]);
    assert_eq!(left(directory.path(), heir), [true, true, false], "its name's heir is whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_and_starts_while_a_deleted_machine_loops() {
    let directory = tempfile::tempdir().unwrap();
    let (node, group, command) = looping(fuel(&directory, FOR_EVER)).await;
    node.delete_machine("attacker").await.unwrap();
    must_put(&node, "k", "kept").await;
    let begun = Instant::now();
    node.shutdown_within(Duration::from_millis(100)).await;
    assert!(begun.elapsed() < Duration::from_secs(4), "it stopped after {:?}", begun.elapsed());
    assert!(command.await.unwrap().is_err());
    drop(node);

    let node = Node::open(config(&directory)).await.unwrap();
    assert!(node.machine("attacker").is_err());
    assert_eq!(get(&node, "k").await.unwrap(), b"kept");
    create(&node, "attacker", NOTES).await;
    flush_and_stop(node).await;
    assert_eq!(left(directory.path(), group), [false; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_drops_rows_and_snapshots_of_groups_that_the_catalog_does_not_know() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    create_kv(&node).await;
    let kv = node.machine("kv").unwrap().group;
    node.shutdown().await;
    drop(node);
    // What a crash leaves between the end of a group's log and that of its rows, or of its snapshots.
    let (with_rows, with_snapshot) = (GroupId(70), GroupId(71));
    let head = Head { index: Index(9), ..Head::default() };
    let (state, _) = StateDb::open(&directory.path().join("state"), StateSizes::default()).unwrap();
    state.write(with_rows, [(Table::Store, b"row", Some(b"value"))], &head).unwrap();
    state.flush().unwrap();
    drop(state);
    let membership = Membership { voters: vec![1], ..Membership::default() };
    let header = Header {
        group: with_snapshot,
        kind: Kind::Resident,
        head,
        term: Term(1),
        membership,
        engine: String::new(),
    };
    let snapshots = Snapshots::open(&directory.path().join("snapshots")).unwrap();
    snapshots.create(&header).unwrap().finish().unwrap();
    assert_eq!(left(directory.path(), with_rows), [true, false, false]);
    assert_eq!(left(directory.path(), with_snapshot), [false, false, true]);

    let node = Node::open(config(&directory)).await.unwrap();
    flush_and_stop(node).await;
    assert_eq!(left(directory.path(), with_rows), [false; 3]);
    assert_eq!(left(directory.path(), with_snapshot), [false; 3]);
    assert_eq!(left(directory.path(), kv), [true, true, false], "what the catalog knows stays");
}
