//! A guest as a stock toolchain makes it: it asks WASI for clocks, random bytes and standard output. It is
//! pushed, made a machine and run like any other, and computes the same from the same log.

use bytes::Bytes;
use statehouse::machine::outcome::Outcome;
use statehouse::node::Node;
use statehouse::storage::state::{StateDb, StateSizes};

use super::guests::*;

/// What the guest imports of WASI 0.2.
const WORLD: &str = include_str!("../../src/wasm/testing/wasi.wit");

/// Answers each command with the wall clock (seconds, nanoseconds), the monotonic clock and a random number,
/// stores that, and prints a line. Before that it looks for an environment, a terminal and directories, as
/// runtimes do, and traps if there are any.
fn guest() -> Vec<u8> {
    let items = r#"
        (import "statehouse:machine/store@0.1.0" "set" (func $set (param i32 i32 i32 i32)))
        (import "wasi:clocks/wall-clock@0.2.6" "now" (func $wall (param i32)))
        (import "wasi:clocks/monotonic-clock@0.2.6" "now" (func $monotonic (result i64)))
        (import "wasi:random/random@0.2.6" "get-random-u64" (func $random (result i64)))
        (import "wasi:cli/environment@0.2.6" "get-environment" (func $environment (param i32)))
        (import "wasi:cli/stdin@0.2.6" "get-stdin" (func $stdin (result i32)))
        (import "wasi:cli/stdout@0.2.6" "get-stdout" (func $stdout (result i32)))
        (import "wasi:cli/terminal-stdout@0.2.6" "get-terminal-stdout" (func $terminal (param i32)))
        (import "wasi:clocks/monotonic-clock@0.2.6" "subscribe-duration" (func (param i64) (result i32)))
        (import "wasi:filesystem/preopens@0.2.6" "get-directories" (func $directories (param i32)))
        (import "wasi:filesystem/types@0.2.6" "[method]descriptor.read-via-stream" (func (param i32 i64 i32)))
        (import "wasi:filesystem/types@0.2.6" "[method]descriptor.append-via-stream" (func (param i32 i32)))
        (import "wasi:filesystem/types@0.2.6" "filesystem-error-code" (func (param i32 i32)))
        (import "wasi:io/poll@0.2.6" "[method]pollable.block" (func $block (param i32)))
        (import "wasi:io/poll@0.2.6" "[resource-drop]pollable" (func $forget (param i32)))
        (import "wasi:io/streams@0.2.6" "[method]output-stream.subscribe" (func $p (param i32) (result i32)))
        (import "wasi:io/streams@0.2.6" "[method]input-stream.subscribe" (func (param i32) (result i32)))
        (import "wasi:io/streams@0.2.6" "[method]output-stream.WRITE" (func $print (param i32 i32 i32 i32)))
        (import "wasi:io/streams@0.2.6" "[resource-drop]output-stream" (func $close (param i32)))
        (data (i32.const 512) "stored\n")
        "#;
    let apply = "(local $out i32) (local $pollable i32)
        (call $wall (i32.const 128))
        (i64.store (i32.const 144) (call $monotonic))
        (i64.store (i32.const 152) (call $random))
        (call $set (i32.const 512) (i32.const 6) (i32.const 128) (i32.const 32))
        (call $environment (i32.const 200))
        (call $directories (i32.const 208))
        (call $terminal (i32.const 216))
        (if (i32.or (i32.load8_u (i32.const 216)) (i32.or
            (i32.load (i32.const 204)) (i32.load (i32.const 212)))) (then unreachable))
        (drop (call $stdin))
        (local.set $out (call $stdout))
        (local.set $pollable (call $p (local.get $out)))
        (call $block (local.get $pollable))
        (call $forget (local.get $pollable))
        (call $print (local.get $out) (i32.const 512) (i32.const 7) (i32.const 256))
        (call $close (local.get $out))
        (call $answer (i32.const 128) (i32.const 32))";
    let items = items.replace("WRITE", "blocking-write-and-flush");
    component_of(&guest_text(&items, apply, "(call $ok)"), &[WORLD], "guest")
}

/// What a command was answered: the wall clock and the monotonic clock in milliseconds, and the number.
async fn apply(node: &Node) -> (u64, u64, u64) {
    let applied = node.apply("guest", Bytes::from_static(b"go")).await.unwrap();
    let Outcome::Ok(answer) = applied.outcome else { panic!("an answer was expected: {applied:?}") };
    let number = |at: usize| u64::from_le_bytes(answer[at..at + 8].try_into().unwrap());
    let nanoseconds = u32::from_le_bytes(answer[8..12].try_into().unwrap());
    (number(0) * 1_000 + u64::from(nanoseconds) / 1_000_000, number(16) / 1_000_000, number(24))
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_of_a_stock_toolchain_runs_and_replays_to_the_same_state() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    create(&node, "guest", &guest()).await;
    let (first, second) = (apply(&node).await, apply(&node).await);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    for (wall, monotonic, _) in [first, second] {
        assert!(wall.abs_diff(now) < 60_000, "the log's clock says {wall} ms, it is {now} ms");
        assert_eq!(wall, monotonic, "one clock, and it stands still during a call");
    }
    assert_ne!(first.2, second.2, "each input has random bytes of its own");

    // What a crash would leave: the whole log, and nothing of the state.
    let crashed = tempfile::tempdir().unwrap();
    copy(directory.path(), crashed.path());
    let machine = node.machine("guest").unwrap();
    node.shutdown().await;
    let state = StateDb::open(&crashed.path().join("state"), StateSizes::default()).unwrap().1;
    assert!(!state.heads.contains_key(&machine.group), "there is nothing to replay");
    let node = Node::open(config(&crashed)).await.unwrap();
    let again = || node.machine("guest").unwrap().replica.unwrap();
    wait_until("the replay", || again().applied >= machine.replica.as_ref().unwrap().applied).await;
    // A term of its own begins with an empty entry, which no hash counts.
    assert_eq!(again().hash, machine.replica.unwrap().hash, "the replay computed something else");
    node.shutdown().await;
}
