//! Replicas that come back behind the log: the module that a snapshot needs is fetched before anything is
//! applied, and a snapshot of another engine is refused, also after a restart.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use statehouse::id::{Digest, GroupId, Index};
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::Consistency;
use statehouse::storage::snapshot::{Header, Snapshots};

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

/// Waits until a node has saved what it is to save of the machine: the next snapshot comes after more
/// commands.
async fn wait_saved(cluster: &Cluster, number: usize, group: GroupId) {
    let prefix = format!("{group}-");
    let saved = || {
        let files = std::fs::read_dir(cluster.directory(number).join("snapshots")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned());
        let index = |name: String| name.strip_prefix(&prefix)?.strip_suffix(".snap")?.parse().ok();
        let indexes: Vec<u64> = names.filter_map(index).collect();
        indexes.len() == 1 && applied(cluster.node(number)).0 < indexes[0] + SNAPSHOT_ENTRIES
    };
    for _ in 0..600 {
        if saved() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the node {number} does not save");
}

/// Makes a node's latest snapshot of a resident machine one that the engine `engine` made.
fn forge(cluster: &Cluster, number: usize, group: GroupId, engine: &str) {
    let directory = cluster.directory(number).join("snapshots");
    let elsewhere = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|end| end == "snap") {
            std::fs::copy(&file, elsewhere.path().join(file.file_name().unwrap())).unwrap();
        }
    }
    let forged = Snapshots::open(elsewhere.path()).unwrap();
    let index = forged.latest(group).unwrap().expect("a snapshot of the machine");
    let mut reader = forged.read(group, index).unwrap();
    let header = Header { engine: engine.to_owned(), ..reader.header().clone() };
    let mut writer = forged.create(&header).unwrap();
    reader.rows(&mut |table, key, value| writer.put(table, key, value)).unwrap();
    std::io::copy(&mut reader.guest(), &mut writer.guest()).unwrap();
    writer.finish().unwrap();
    let (name, beside) = (format!("{group}-{index}.snap"), directory.with_file_name("forged"));
    std::fs::copy(elsewhere.path().join(&name), &beside).unwrap();
    std::fs::rename(&beside, directory.join(&name)).unwrap();
}

fn halted(node: &Node) -> Option<String> {
    node.machine("m").ok()?.replica?.halted
}

/// Waits until the replica is halted because of the snapshot's engine.
async fn assert_refused(cluster: &Cluster, number: usize, [other, ours]: [&str; 2], when: &str) {
    let node = cluster.node(number);
    for _ in 0..3_000 {
        if let Some(why) = halted(node).filter(|why| why.contains("snapshot")) {
            for part in [&format!("made by the engine {other}"), ours, "run the version that the others run"]
            {
                assert!(why.contains(part), "{part:?} is not in {why}");
            }
            let local = Consistency::Local { min_index: Index(0) };
            let told = node.query("m", Bytes::new(), local).await.unwrap_err().to_string();
            assert!(told.contains(other), "{told}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the snapshot was not refused {when}: {:?}", node.machine("m"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_another_engine_is_refused_and_stays_so_after_a_restart() {
    const OTHER: &str = "47.0.0_0123456789abcdef";
    let mut cluster = Cluster::with(3, short_logs).await;
    let module = push(cluster.node(0), counts('A')).await;
    cluster.node(0).create_replicated("m", module, Bytes::new(), 3).await.unwrap();
    cluster.node(0).apply("m", "k".into()).await.unwrap();
    cluster.assert_lockstep("m").await;
    let (left_at, group) = (applied(cluster.node(2)), cluster.node(0).machine("m").unwrap().group);
    let ours = cluster.node(0).machine("m").unwrap().engine;
    cluster.stop(2).await;
    cut_logs(&cluster, left_at).await;
    cluster.assert_lockstep("m").await;
    for number in 0..2 {
        wait_saved(&cluster, number, group).await;
        forge(&cluster, number, group, OTHER);
    }

    cluster.start(2).await;
    assert_refused(&cluster, 2, [OTHER, &ours], "when it came").await;
    // It lies there as one in force, and the log begins behind it.
    cluster.stop(2).await;
    cluster.start(2).await;
    assert_refused(&cluster, 2, [OTHER, &ours], "after a restart").await;

    // With the engine that it was made by, the same snapshot is good.
    cluster.stop(2).await;
    forge(&cluster, 2, group, &ours);
    cluster.start(2).await;
    cluster.assert_lockstep("m").await;
    let at = applied(cluster.node(0));
    assert_eq!(answer(cluster.node(2), at).await, answer(cluster.node(0), at).await);
    cluster.shutdown().await;
}
