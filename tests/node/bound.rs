//! What decides outcomes is bound to the machine: a node whose settings changed ends the entries in its log
//! as before, or does not touch the machine at all.

use std::path::Path;

use bytes::Bytes;
use statehouse::error::Error;
use statehouse::machine::outcome::{HostCode, Outcome};
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::MachineInfo;

use super::guests::*;

/// A guest that counts as many millions as the first byte of a command says, and then writes that byte.
fn counts_millions() -> Vec<u8> {
    let items = r#"
        (import "statehouse:machine/store@0.1.0" "set" (func $set (param i32 i32 i32 i32)))
        (func $count (param $at i32)
            (local $left i32)
            (local.set $left (i32.mul (i32.load8_u (local.get $at)) (i32.const 1000000)))
            (loop (br_if 0 (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
            (call $set (local.get $at) (i32.const 1) (i32.const 0) (i32.const 0)))"#;
    let apply = "(if (local.get $case) (then (call $count (i32.wrap_i64 (local.get $a))))) (call $ok)";
    stored(&guest_text(items, apply, "(call $ok)"))
}

async fn count(node: &Node, millions: u8) -> Outcome {
    node.apply("counts", Bytes::from(vec![millions])).await.unwrap().outcome
}

/// Copies what a kill at this moment would leave: nobody writes, and what is only in memory is not there.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_left_in_the_log_end_as_before_whatever_the_fuel_in_the_settings_is_now() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    create(&node, "counts", &counts_millions()).await;
    assert!(matches!(count(&node, 2).await, Outcome::Ok(_)));
    assert_eq!(count(&node, 200).await, Outcome::Host(HostCode::Exhausted));
    let before = node.machine("counts").unwrap();
    assert_eq!(before.input_fuel, 100_000_000);
    assert!(node.metrics().await.contains("checkpoints_total 0\n"), "the entries were only in the log");
    let copies = [(); 2].map(|()| tempfile::tempdir().unwrap());
    copies.iter().for_each(|to| copy(directory.path(), to.path()));
    node.shutdown().await;

    // Of the two commands, each of these would end one otherwise.
    for (copied, input_fuel) in copies.iter().zip([1_000_000, 100_000_000_000]) {
        let node = Node::open(NodeConfig { input_fuel, ..config(copied) }).await.unwrap();
        let replayed = |node: &Node| applied_of(&node.machine("counts").unwrap()) >= applied_of(&before);
        wait_until("the log is applied", || replayed(&node)).await;
        let now = node.machine("counts").unwrap();
        assert_eq!(now.replica.unwrap().hash, before.replica.as_ref().unwrap().hash, "fuel {input_fuel}");
        assert!(matches!(count(&node, 2).await, Outcome::Ok(_)));
        assert_eq!(count(&node, 200).await, Outcome::Host(HostCode::Exhausted));
        // A machine that is created from now on has the fuel of now.
        create(&node, "later", &counts_millions()).await;
        assert_eq!(node.machine("later").unwrap().input_fuel, input_fuel);
        node.shutdown().await;
    }
}

fn applied_of(machine: &MachineInfo) -> u64 {
    machine.replica.as_ref().unwrap().applied.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_of_another_engine_is_refused_with_the_reason_and_the_others_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    create(&node, "notes", NOTES).await;
    node.apply("notes", Bytes::from_static(b"a=b")).await.unwrap();
    let (first, before) = (node.status().engine, node.machine("notes").unwrap());
    assert_eq!(before.engine, first);
    node.shutdown().await;
    drop(node);

    let other = NodeConfig { memory_bytes_max: 128 << 20, ..config(&directory) };
    let node = Node::open(other).await.unwrap();
    let second = node.status().engine;
    assert_ne!(first, second);
    let refused = node.apply("notes", Bytes::from_static(b"c=d")).await.unwrap_err();
    assert!(matches!(refused, Error::FailedPrecondition(_)), "{refused:?}");
    let asked = node.query("notes", Bytes::from_static(b"a"), Default::default()).await.unwrap_err();
    let halted = node.machine("notes").unwrap().replica.unwrap().halted.expect("it is halted");
    for text in [refused.to_string(), asked.to_string(), halted] {
        let named = ["\"notes\"", &first, &second, "memory_bytes_max"];
        assert!(named.iter().all(|name| text.contains(name)), "{text}");
    }
    create_kv(&node).await;
    must_put(&node, "k", "v").await;
    assert_eq!(node.machine("kv").unwrap().engine, second);
    node.shutdown().await;
    drop(node);

    // Nothing of it was touched.
    let node = Node::open(config(&directory)).await.unwrap();
    let now = node.machine("notes").unwrap().replica.unwrap();
    assert_eq!(now.hash, before.replica.unwrap().hash);
    node.apply("notes", Bytes::from_static(b"c=d")).await.unwrap();
    assert!(put(&node, "k", "v").await.unwrap_err().to_string().contains(&second));
    node.shutdown().await;
}
