//! A resident guest that takes for ever to save itself: nobody else waits for it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;

use super::guests::*;

/// A resident guest whose `save` is `body`.
fn saves(body: &str) -> Vec<u8> {
    let items = format!(
        "(func (export \"statehouse:machine/snapshot@0.1.0#save\") (result i32) {body})
        (func (export \"statehouse:machine/snapshot@0.1.0#restore\") (result i32) unreachable)"
    );
    resident(&guest_text(&items, "(call $ok)", "(call $ok)"))
}

/// A stored guest that grants a lease of half a second for each command, and emits an event when one ended.
fn grants_leases() -> Vec<u8> {
    let items = r#"
        (import "statehouse:machine/leases@0.1.0" "grant" (func $grant (param i64 i32)))
        (import "statehouse:machine/events@0.1.0" "emit" (func $emit (param i32 i32 i32 i32 i32)))"#;
    let apply = "(if (i32.eq (local.get $case) (i32.const 1)) (then
            (call $grant (i64.const 500) (i32.const 128))))
        (if (i32.eq (local.get $case) (i32.const 2)) (then
            (call $emit (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0))))
        (call $ok)";
    stored(&guest_text(items, apply, "(call $ok)"))
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_end_and_the_state_is_flushed_while_a_guest_saves_slowly() {
    let directory = tempfile::tempdir().unwrap();
    let often = NodeConfig { resident_snapshot_entries: 2, flush_interval_ms: 300, ..config(&directory) };
    let node = Node::open(often).await.unwrap();
    create(&node, "leases", &grants_leases()).await;
    // The host ends it after a minute.
    create(&node, "slow", &saves("(loop (br 0)) unreachable")).await;
    for _ in 0..4 {
        node.apply("slow", Bytes::new()).await.unwrap();
    }
    let saving = || std::fs::read_dir(directory.path().join("snapshots")).unwrap().count() == 1;
    wait_until("the guest saves itself", saving).await;

    let revision = || node.machine("leases").unwrap().replica.unwrap().revision.0;
    for round in 1..=3 {
        let granted = Instant::now();
        node.apply("leases", Bytes::new()).await.unwrap();
        assert_eq!(revision(), round, "the lease has just begun");
        wait_until("the lease ends", || revision() == round + 1).await;
        let took = granted.elapsed();
        assert!(took >= Duration::from_millis(500), "it ended after {took:?}");
    }
    let checkpoints =
        || metrics(&node).lines().find(|line| line.contains("checkpoints_total ")).unwrap().to_owned();
    let before = checkpoints();
    node.apply("leases", Bytes::new()).await.unwrap();
    wait_until("a flush", || checkpoints() != before).await;
    assert!(saving(), "the guest had ended saving");

    let begun = Instant::now();
    node.shutdown_within(Duration::from_millis(100)).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "it stopped after {:?}", begun.elapsed());
    assert!(!saving(), "what was not saved to its end is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_of_a_machine_that_is_deleted_while_it_saves_itself() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(NodeConfig { resident_snapshot_entries: 2, ..config(&directory) }).await.unwrap();
    // A second or so, and then it is saved.
    let save = "(local $left i32) (local.set $left (i32.const 1000000000))
        (loop (br_if 0 (local.tee $left (i32.sub (local.get $left) (i32.const 1))))) (call $ok)";
    create(&node, "slow", &saves(save)).await;
    for _ in 0..2 {
        node.apply("slow", Bytes::new()).await.unwrap();
    }
    let snapshots = directory.path().join("snapshots");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&snapshots).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    wait_until("the guest saves itself", || !names().is_empty()).await;
    node.delete_machine("slow").await.unwrap();
    assert!(names().iter().all(|name| !name.ends_with(".snap")), "it was saved before it was deleted");
    wait_until("nothing of it is there", || names().is_empty()).await;
    node.shutdown().await;
    assert!(names().is_empty(), "{:?}", names());
}
