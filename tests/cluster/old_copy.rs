//! A node whose data directory is put back to an earlier copy: what it acknowledged since is not in it.

use std::fs;
use std::path::Path;

use statehouse::node::request::Consistency;

use super::harness::{Cluster, get, put};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            fs::remove_dir_all(entry.path()).unwrap();
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_old_copy_of_its_data_is_not_let_in_and_the_others_go_on() {
    let mut cluster = Cluster::of(3).await;
    cluster.create_kv("kv", 3).await;
    cluster.node(0).apply("kv", put("a", "1")).await.unwrap();
    let (old, newest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = cluster.directory(2).to_owned();
    cluster.stop(2).await;
    copy(&place, old.path());
    // The others hear of its next life, in which it acknowledges more.
    cluster.start(2).await;
    for key in ["b", "c"] {
        cluster.node(2).apply("kv", put(key, "2")).await.unwrap();
    }
    cluster.assert_lockstep("kv").await;
    cluster.stop(2).await;
    copy(&place, newest.path());
    empty(&place);
    copy(old.path(), &place);
    // However often it is started.
    for _ in 0..4 {
        let why = cluster.start_failing(2).await;
        assert!(why.contains("old copy") && why.contains("member remove"), "{why}");
    }
    // Also after the others were restarted: the catalog remembers.
    for other in [0, 1] {
        cluster.stop(other).await;
        cluster.start(other).await;
    }
    empty(&place);
    copy(old.path(), &place);
    let why = cluster.start_failing(2).await;
    assert!(why.contains("old copy"), "{why}");
    cluster.node(0).apply("kv", put("d", "3")).await.unwrap();
    // With its newest data it is one of three.
    empty(&place);
    copy(newest.path(), &place);
    cluster.start(2).await;
    cluster.assert_lockstep("kv").await;
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "2"), ("d", "3")] {
        let found = get(cluster.node(2), "kv", key, Consistency::Linearizable).await;
        assert_eq!(found.as_deref(), Some(value));
    }
    cluster.shutdown().await;
}
