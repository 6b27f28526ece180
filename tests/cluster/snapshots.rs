//! Replicas that come back behind the log to a module that they have never seen: it is fetched before
//! anything is applied.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use statehouse::id::{Digest, Index};
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::Consistency;

use super::harness::{Cluster, serves};
use super::upgraded::{counts, keeps_letter, push};

/// A resident machine is saved after so many entries.
const SNAPSHOT_ENTRIES: u64 = 5;

/// Logs that are cut soon, so that who was away needs a snapshot.
fn short_logs(config: &mut NodeConfig) {
    config.flush_interval_ms = 100;
    config.log_keep_entries = 5;
    config.resident_snapshot_entries = SNAPSHOT_ENTRIES;
}

fn applied(node: &Node) -> Index {
    node.machine("m").unwrap().replica.unwrap().applied
}

/// Sends commands until no running node has the log from `needed` on.
async fn cut_logs(cluster: &Cluster, needed: Index) {
    for _ in 0..600 {
        cluster.node(0).apply("m", "k".into()).await.unwrap();
        let replicas = cluster.node(0).replicas("m").await.unwrap();
        let logs: Vec<u64> =
            replicas.iter().filter_map(|replica| replica.log.as_ref().ok()).map(|log| log.start).collect();
        if logs.len() == cluster.nodes().count() && logs.iter().all(|start| *start > needed.0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the logs are not cut: {:?}", cluster.node(0).replicas("m").await);
}

/// Where the log of a node's replica begins, as the node itself says.
async fn log_start(cluster: &Cluster, number: usize) -> u64 {
    let replicas = cluster.node(number).replicas("m").await.unwrap();
    let own = replicas.iter().find(|replica| replica.node == cluster.node(number).id()).expect("its replica");
    own.log.as_ref().expect("it is open").start
}

fn module_file(cluster: &Cluster, number: usize, module: Digest) -> PathBuf {
    cluster.directory(number).join(format!("modules/{module}.wasm"))
}

async fn answer(node: &Node, min_index: Index) -> Bytes {
    node.query("m", Bytes::new(), Consistency::Local { min_index }).await.unwrap().outcome.unwrap()
}

/// One node is away while the machine is upgraded to a module that it has never seen, and the log is cut.
async fn come_back_to_another_module(guest: fn(char) -> Vec<u8>) {
    let mut cluster = Cluster::with(3, short_logs).await;
    let first = push(cluster.node(0), guest('A')).await;
    cluster.node(0).create_replicated("m", first, Bytes::new(), 3).await.unwrap();
    cluster.node(0).apply("m", "k".into()).await.unwrap();
    cluster.assert_lockstep("m").await;
    let left_at = applied(cluster.node(2));
    cluster.stop(2).await;
    let second = push(cluster.node(0), guest('B')).await;
    cluster.node(1).upgrade_machine("m", second, Bytes::new()).await.unwrap();
    cut_logs(&cluster, left_at).await;
    assert!(module_file(&cluster, 2, first).exists() && !module_file(&cluster, 2, second).exists());

    cluster.start(2).await;
    cluster.wait("the node has what it needs", |node| serves(node, "m")).await;
    cluster.assert_lockstep("m").await;
    let at = applied(cluster.node(0));
    let expected = answer(cluster.node(0), at).await;
    assert_eq!((expected[0], &answer(cluster.node(2), at).await), (b'B', &expected));
    assert!(module_file(&cluster, 2, second).exists(), "it was fetched");
    let start = log_start(&cluster, 2).await;
    assert!(start > left_at.0, "it came by a snapshot: its log begins after {start}, it left at {left_at}");
    // It goes on by itself from there.
    let index = cluster.node(2).apply("m", "l".into()).await.unwrap().index;
    assert_eq!(answer(cluster.node(2), index).await[0], b'B');
    cluster.assert_lockstep("m").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_replica_gets_the_module_that_its_snapshot_needs() {
    come_back_to_another_module(keeps_letter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resident_replica_gets_the_module_that_its_snapshot_needs() {
    come_back_to_another_module(counts).await;
}
