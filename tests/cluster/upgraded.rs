//! Machines that are given another module: all replicas change over at one place, or none does.

use bytes::Bytes;
use statehouse::error::Error;
use statehouse::id::{Digest, Index};
use statehouse::node::Node;
use statehouse::node::request::{Consistency, Push};

use super::harness::{Cluster, serves};

#[path = "../../src/wasm/testing/text.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
pub mod text;

use text::{guest_text, resident, stored};

/// What a component does with its first input when it takes over: what the argument's first letter says,
/// or else it answers the digest of the one before.
const TAKE_OVER: &str = "
    (if (i32.eq (local.get $case) (i32.const 3)) (then
        (if (local.get $d) (then
            (if (i32.eq (i32.load8_u (local.get $c)) (i32.const 114)) (then
                (return (call $refuse (i32.const 5) (i32.const 16) (i32.const 1)))))
            (if (i32.eq (i32.load8_u (local.get $c)) (i32.const 116)) (then unreachable))))
        (return (call $answer (i32.wrap_i64 (local.get $a)) (local.get $b)))))";

/// Keeps its version letter under the last command, and tells it to who asks.
pub fn keeps_letter(letter: char) -> Vec<u8> {
    let items = format!(
        r#"
        (import "statehouse:machine/store@0.1.0" "set" (func $set (param i32 i32 i32 i32)))
        (data (i32.const 16) "{letter}")"#
    );
    let apply = format!(
        "(if (i32.eq (local.get $case) (i32.const 1)) (then
            (call $set (i32.wrap_i64 (local.get $a)) (local.get $b) (i32.const 16) (i32.const 1))))
        {TAKE_OVER} (call $ok)"
    );
    stored(&guest_text(&items, &apply, "(call $answer (i32.const 16) (i32.const 1))"))
}

/// Counts commands in its own memory, from `0` on, and answers its letter and the count.
pub fn counts(letter: char) -> Vec<u8> {
    let items = format!(
        r#"
        (import "statehouse:machine/snapshot-stream@0.1.0" "write" (func $write (param i32 i32)))
        (import "statehouse:machine/snapshot-stream@0.1.0" "read" (func $read (param i32 i32)))
        (data (i32.const 16) "{letter}0")
        (func (export "statehouse:machine/snapshot@0.1.0#save") (result i32)
            (call $write (i32.const 17) (i32.const 1))
            (i32.store8 (i32.const 96) (i32.const 0)) (i32.const 96))
        (func (export "statehouse:machine/snapshot@0.1.0#restore") (result i32)
            (call $read (i32.const 1) (i32.const 112))
            (i32.store8 (i32.const 17) (i32.load8_u (i32.load (i32.const 112))))
            (i32.store8 (i32.const 96) (i32.const 0)) (i32.const 96))"#
    );
    let apply = format!(
        "(if (i32.eq (local.get $case) (i32.const 1)) (then
            (i32.store8 (i32.const 17) (i32.add (i32.load8_u (i32.const 17)) (i32.const 1)))))
        {TAKE_OVER} (call $ok)"
    );
    resident(&guest_text(&items, &apply, "(call $answer (i32.const 16) (i32.const 2))"))
}

pub async fn push(node: &Node, bytes: Vec<u8>) -> Digest {
    let push = Push { digest: Digest::of(&bytes), label: "test".into(), bytes: bytes.into() };
    node.push_module(push).await.unwrap().digest
}

async fn ask(node: &Node, consistency: Consistency) -> String {
    let answered = node.query("m", Bytes::new(), consistency).await.unwrap();
    String::from_utf8(answered.outcome.unwrap().to_vec()).unwrap()
}

async fn assert_all_answer(cluster: &Cluster, expected: &str) {
    for node in cluster.nodes() {
        assert_eq!(ask(node, Consistency::Linearizable).await, expected);
    }
    cluster.assert_lockstep("m").await;
}

/// Tries an upgrade that is refused, and one that traps: nothing changes.
async fn fail_to_upgrade(node: &Node, to: Digest, present: Digest) {
    let refused = node.upgrade_machine("m", to, "r".into()).await.unwrap_err();
    assert!(matches!(&refused, Error::Invalid(text) if text.contains("code 5")), "{refused:?}");
    let trapped = node.upgrade_machine("m", to, "t".into()).await.unwrap_err();
    assert!(matches!(&trapped, Error::Guest(text) if text.contains("Trapped")), "{trapped:?}");
    assert_eq!(node.machine("m").unwrap().module, present);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_machine_is_upgraded_on_all_replicas_also_on_one_that_comes_later() {
    let mut cluster = Cluster::of(3).await;
    let node = cluster.node(0);
    let (first, second) = (push(node, keeps_letter('A')).await, push(node, keeps_letter('B')).await);
    node.create_replicated("m", first, Bytes::new(), 4).await.unwrap();
    node.apply("m", "k".into()).await.unwrap();
    fail_to_upgrade(node, second, first).await;
    assert_all_answer(&cluster, "A").await;

    let (machine, answer) = cluster.node(1).upgrade_machine("m", second, Bytes::new()).await.unwrap();
    assert_eq!((machine.module, answer), (second, Bytes::from(first.to_string())));
    assert_all_answer(&cluster, "B").await;
    let known = |node: &Node| node.machine("m").unwrap().module == second;
    cluster.wait("the catalog knows of the upgrade", known).await;
    cluster.node(2).apply("m", "k".into()).await.unwrap();

    cluster.stop(1).await;
    cluster.node(0).apply("m", "l".into()).await.unwrap();
    cluster.start(1).await;
    assert_all_answer(&cluster, "B").await;

    // It goes through the whole log, which begins with a module that it has to get for that.
    cluster.join().await;
    cluster.wait("all have a replica", |node| serves(node, "m")).await;
    assert_all_answer(&cluster, "B").await;
    assert_eq!(ask(cluster.node(3), Consistency::Local { min_index: Index(0) }).await, "B");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_was_pushed_at_one_node_is_known_at_the_others_at_once() {
    let cluster = Cluster::of(3).await;
    let first = push(cluster.node(0), keeps_letter('A')).await;
    cluster.node(0).create_replicated("m", first, Bytes::new(), 3).await.unwrap();
    for (number, letter) in ('B'..='M').enumerate() {
        let module = push(cluster.node(number % 3), keeps_letter(letter)).await;
        let (other, another) = (cluster.node((number + 1) % 3), cluster.node((number + 2) % 3));
        let (known, upgraded) =
            tokio::join!(another.find_module(module), other.upgrade_machine("m", module, Bytes::new()));
        assert_eq!((known.unwrap().digest, upgraded.unwrap().0.module), (module, module));
    }
    assert_all_answer(&cluster, "M").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resident_machine_hands_its_state_over() {
    let mut cluster = Cluster::with(3, |config| config.resident_snapshot_entries = 6).await;
    let node = cluster.node(0);
    let (first, second) = (push(node, counts('A')).await, push(node, counts('B')).await);
    node.create_machine("m", first, Bytes::new()).await.unwrap();
    for _ in 0..3 {
        node.apply("m", Bytes::new()).await.unwrap();
    }
    fail_to_upgrade(node, second, first).await;
    node.apply("m", Bytes::new()).await.unwrap();
    assert_all_answer(&cluster, "A4").await;

    let (_, answer) = cluster.node(2).upgrade_machine("m", second, Bytes::new()).await.unwrap();
    assert_eq!(answer, first.to_string());
    assert_all_answer(&cluster, "B4").await;

    // What is made again goes through the upgrade, or begins after it.
    for count in 5..=9 {
        cluster.node(1).apply("m", Bytes::new()).await.unwrap();
        let stopped = count % 3;
        cluster.stop(stopped).await;
        cluster.start(stopped).await;
        assert_all_answer(&cluster, &format!("B{count}")).await;
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_refused_before_anything_happens() {
    let cluster = Cluster::of(1).await;
    let node = cluster.node(0);
    let (stored, resident) = (push(node, keeps_letter('A')).await, push(node, counts('B')).await);
    node.create_machine("m", stored, Bytes::new()).await.unwrap();
    let other_world = node.upgrade_machine("m", resident, Bytes::new()).await.unwrap_err();
    let says = |why: &Error, words: [&str; 2]| words.iter().all(|word| why.to_string().contains(word));
    assert!(says(&other_world, ["`stored`", "`resident`"]), "{other_world}");
    let unknown = node.upgrade_machine("m", Digest([1; 32]), Bytes::new()).await.unwrap_err();
    assert!(matches!(unknown, Error::NotFound(_)), "{unknown}");
    let absent = node.upgrade_machine("absent", stored, Bytes::new()).await.unwrap_err();
    assert!(says(&absent, ["\"absent\"", "machine"]), "{absent}");
    cluster.shutdown().await;
}
