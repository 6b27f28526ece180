//! Each part of WASI that machines are given, on three replicas, in commands and in queries of machines of
//! both worlds: what a guest is told is the same on all, and what it must not have traps on all.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use statehouse::error::Error;
use statehouse::id::{Digest, Index};
use statehouse::machine::guest::World;
use statehouse::machine::outcome::{HostCode, Outcome};
use statehouse::node::Node;
use statehouse::node::request::{Answered, Consistency, Push};

use super::harness::{Cluster, serves};
use super::upgraded::text;

const WORLD: &str = include_str!("../../src/wasm/testing/wasi.wit");

/// Where a shim leaves what it was told; the time of the input or query is in the 8 bytes before.
const TOLD: usize = 128;

/// Where a resident machine keeps what its last command was told: queries leave what they are told at
/// [`TOLD`].
const KEPT: usize = 1_024;

/// What a query says that is to use the shim itself. An empty one gets what the last command was told.
const USE: &[u8] = b"use";

/// Commands to each machine before a replica is away, and again after that.
const COMMANDS: usize = 3;

/// One part of WASI, in use.
struct Shim {
    name: &'static str,
    /// Imports and functions, a line each. `IN.`, `OUT.` and `FILE.` stand for the methods of three
    /// resources.
    items: &'static str,
    /// What the guest does with a command: leaves what it was told at 128.
    act: &'static str,
    /// How many bytes that are.
    bytes: usize,
    expected: Expected,
}

enum Expected {
    /// What was told holds, given the log's time in milliseconds.
    Told(fn(u64, &[u8]) -> bool),
    /// That, and it differs from command to command.
    Chance(fn(u64, &[u8]) -> bool),
    /// The command is ended by the host.
    Trap,
}

fn number(told: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(told[at..at + 8].try_into().expect("eight bytes"))
}

fn none(told: &[u8]) -> bool {
    told.iter().all(|byte| *byte == 0)
}

/// Of a result of a stream: it is the error `closed`.
fn is_closed(told: &[u8]) -> bool {
    told[0] == 1 && told[4] == 1
}

const CLOCKS: &[Shim] = &[
    Shim {
        name: "wall-clock",
        items: r#"
        (import "wasi:clocks/wall-clock@0.2.6" "now" (func $now (param i32)))
        (import "wasi:clocks/wall-clock@0.2.6" "resolution" (func $resolution (param i32)))"#,
        act: "(call $now (i32.const 128)) (call $resolution (i32.const 144))",
        bytes: 28,
        expected: Expected::Told(|time_ms, told| {
            let nanoseconds = |at: usize| u64::from(u32::from_le_bytes(told[at..at + 4].try_into().unwrap()));
            let now_ms = number(told, 0) * 1_000 + nanoseconds(8) / 1_000_000;
            now_ms == time_ms && number(told, 16) == 0 && nanoseconds(24) == 1_000_000
        }),
    },
    Shim {
        name: "monotonic-clock",
        items: r#"
        (import "wasi:clocks/monotonic-clock@0.2.6" "now" (func $now (result i64)))
        (import "wasi:clocks/monotonic-clock@0.2.6" "resolution" (func $resolution (result i64)))"#,
        act: "(i64.store (i32.const 128) (call $now)) (i64.store (i32.const 136) (call $resolution))
            ;; It stands still during a call.
            (if (i64.ne (i64.load (i32.const 128)) (call $now)) (then unreachable))",
        bytes: 16,
        expected: Expected::Told(|time_ms, told| {
            number(told, 0) == time_ms * 1_000_000 && number(told, 8) == 1_000_000
        }),
    },
    Shim {
        name: "monotonic-clock-wait",
        items: r#"
    (import "wasi:clocks/monotonic-clock@0.2.6" "subscribe-duration" (func $in (param i64) (result i32)))"#,
        act: "(drop (call $in (i64.const 1000000)))",
        bytes: 0,
        expected: Expected::Trap,
    },
];

/// Two numbers by chance, of which one is made of bytes that are asked for.
const DRAW_TWICE: &str = "(i64.store (i32.const 128) (call $number))
    (call $bytes (i64.const 8) (i32.const 256))
    (i64.store (i32.const 136) (i64.load (i32.load (i32.const 256))))";

/// A shim that tells two numbers by chance.
const fn chance(name: &'static str, items: &'static str, act: &'static str) -> Shim {
    let expected = Expected::Chance(|_, told| number(told, 0) != number(told, 8));
    Shim { name, items, act, bytes: 16, expected }
}

const CHANCE: &[Shim] = &[
    chance(
        "random",
        r#"
        (import "wasi:random/random@0.2.6" "get-random-u64" (func $number (result i64)))
        (import "wasi:random/random@0.2.6" "get-random-bytes" (func $bytes (param i64 i32)))"#,
        DRAW_TWICE,
    ),
    chance(
        "insecure-random",
        r#"
        (import "wasi:random/insecure@0.2.6" "get-insecure-random-u64" (func $number (result i64)))
        (import "wasi:random/insecure@0.2.6" "get-insecure-random-bytes" (func $bytes (param i64 i32)))"#,
        DRAW_TWICE,
    ),
    chance(
        "insecure-seed",
        r#"
        (import "wasi:random/insecure-seed@0.2.6" "insecure-seed" (func $seed (param i32)))"#,
        "(call $seed (i32.const 128))",
    ),
];

const SURROUNDINGS: &[Shim] = &[
    Shim {
        name: "environment",
        items: r#"
        (import "wasi:cli/environment@0.2.6" "get-environment" (func $variables (param i32)))
        (import "wasi:cli/environment@0.2.6" "get-arguments" (func $arguments (param i32)))
        (import "wasi:cli/environment@0.2.6" "initial-cwd" (func $directory (param i32)))"#,
        act: "(call $variables (i32.const 256)) (i32.store (i32.const 128) (i32.load (i32.const 260)))
            (call $arguments (i32.const 256)) (i32.store (i32.const 132) (i32.load (i32.const 260)))
            (call $directory (i32.const 256)) (i32.store8 (i32.const 136) (i32.load8_u (i32.const 256)))",
        bytes: 9,
        expected: Expected::Told(|_, told| none(told)),
    },
    Shim {
        name: "exit",
        items: r#"
        (import "wasi:cli/exit@0.2.6" "exit" (func $exit (param i32)))"#,
        act: "(call $exit (i32.const 0))",
        bytes: 0,
        expected: Expected::Trap,
    },
    Shim {
        name: "terminals",
        items: r#"
        (import "wasi:cli/terminal-stdin@0.2.6" "get-terminal-stdin" (func $in (param i32)))
        (import "wasi:cli/terminal-stdout@0.2.6" "get-terminal-stdout" (func $out (param i32)))
        (import "wasi:cli/terminal-stderr@0.2.6" "get-terminal-stderr" (func $err (param i32)))"#,
        act: "(call $in (i32.const 128)) (call $out (i32.const 136)) (call $err (i32.const 144))",
        bytes: 24,
        expected: Expected::Told(|_, told| [0, 8, 16].iter().all(|at| told[*at] == 0)),
    },
    Shim {
        name: "preopens",
        items: r#"
        (import "wasi:filesystem/preopens@0.2.6" "get-directories" (func $directories (param i32)))"#,
        act: "(call $directories (i32.const 256)) (i32.store (i32.const 128) (i32.load (i32.const 260)))",
        bytes: 4,
        expected: Expected::Told(|_, told| none(told)),
    },
    Shim {
        name: "files",
        items: r#"
        (import "wasi:filesystem/types@0.2.6" "FILE.read-via-stream" (func $read (param i32 i64 i32)))"#,
        act: "(call $read (i32.const 1) (i64.const 0) (i32.const 128))",
        bytes: 0,
        expected: Expected::Trap,
    },
    // What shared libraries bring, asked for or not.
    Shim {
        name: "network",
        items: r#"
        (import "wasi:sockets/instance-network@0.2.6" "instance-network" (func (result i32)))
        (import "wasi:sockets/tcp-create-socket@0.2.6" "create-tcp-socket" (func $open (param i32 i32)))
        (import "wasi:sockets/tcp@0.2.6" "[method]tcp-socket.subscribe" (func (param i32) (result i32)))
        (@custom "dylink.0" "")"#,
        act: "(call $open (i32.const 0) (i32.const 128))",
        bytes: 0,
        expected: Expected::Trap,
    },
];

const STREAMS: &[Shim] = &[
    Shim {
        name: "stdin",
        items: r#"
        (import "wasi:cli/stdin@0.2.6" "get-stdin" (func $stdin (result i32)))
        (import "wasi:io/streams@0.2.6" "IN.read" (func $read (param i32 i64 i32)))
        (import "wasi:io/streams@0.2.6" "IN.blocking-read" (func $wait-and-read (param i32 i64 i32)))
        (import "wasi:io/streams@0.2.6" "IN.subscribe" (func $wait (param i32) (result i32)))
        (import "wasi:io/poll@0.2.6" "[method]pollable.ready" (func $ready (param i32) (result i32)))
        (global $in (mut i32) (i32.const 0))"#,
        act: "(global.set $in (call $stdin))
            (call $read (global.get $in) (i64.const 100) (i32.const 128))
            (call $wait-and-read (global.get $in) (i64.const 100) (i32.const 140))
            (i32.store (i32.const 152) (call $ready (call $wait (global.get $in))))",
        bytes: 28,
        expected: Expected::Told(|_, told| {
            is_closed(told) && is_closed(&told[12..]) && told[24..] == [1, 0, 0, 0]
        }),
    },
    Shim {
        name: "stdout",
        items: r#"
        (import "wasi:cli/stdout@0.2.6" "get-stdout" (func $stdout (result i32)))
        (import "wasi:io/streams@0.2.6" "OUT.check-write" (func $room (param i32 i32)))
        (import "wasi:io/streams@0.2.6" "OUT.write" (func $write (param i32 i32 i32 i32)))
        (import "wasi:io/streams@0.2.6" "OUT.flush" (func $flush (param i32 i32)))
        (import "wasi:io/streams@0.2.6" "OUT.blocking-flush" (func $flush-and-wait (param i32 i32)))
        (global $out (mut i32) (i32.const 0))"#,
        act: "(global.set $out (call $stdout)) (call $room (global.get $out) (i32.const 128))
            (call $write (global.get $out) (i32.const 520) (i32.const 8) (i32.const 144))
            (call $flush (global.get $out) (i32.const 156))
            (call $flush-and-wait (global.get $out) (i32.const 168))",
        bytes: 41,
        expected: Expected::Told(|_, told| {
            told[0] == 0 && number(told, 8) == 64 << 10 && [16, 28, 40].iter().all(|at| told[*at] == 0)
        }),
    },
    Shim {
        name: "stderr",
        items: r#"
        (import "wasi:cli/stderr@0.2.6" "get-stderr" (func $stderr (result i32)))
        (import "wasi:io/streams@0.2.6" "OUT.blocking-write-and-flush" (func $put (param i32 i32 i32 i32)))"#,
        act: "(call $put (call $stderr) (i32.const 520) (i32.const 8) (i32.const 128))",
        bytes: 1,
        expected: Expected::Told(|_, told| none(told)),
    },
    Shim {
        name: "poll",
        items: r#"
        (import "wasi:cli/stdout@0.2.6" "get-stdout" (func $stdout (result i32)))
        (import "wasi:io/streams@0.2.6" "OUT.subscribe" (func $wait (param i32) (result i32)))
        (import "wasi:io/poll@0.2.6" "[method]pollable.ready" (func $ready (param i32) (result i32)))
        (import "wasi:io/poll@0.2.6" "[method]pollable.block" (func $block (param i32)))
        (import "wasi:io/poll@0.2.6" "poll" (func $poll (param i32 i32 i32)))"#,
        act: "(i32.store (i32.const 256) (call $wait (call $stdout)))
            (i32.store (i32.const 128) (call $ready (i32.load (i32.const 256))))
            (call $block (i32.load (i32.const 256)))
            (call $poll (i32.const 256) (i32.const 1) (i32.const 264))
            (i32.store (i32.const 132) (i32.load (i32.const 268)))
            (i32.store (i32.const 136) (i32.load (i32.load (i32.const 264))))",
        bytes: 12,
        expected: Expected::Told(|_, told| told == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
    },
    Shim {
        name: "io-error",
        items: r#"
        (import "wasi:io/error@0.2.6" "[method]error.to-debug-string" (func $text (param i32 i32)))"#,
        act: "(call $text (i32.const 1) (i32.const 128))",
        bytes: 0,
        expected: Expected::Trap,
    },
];

fn shims() -> impl Iterator<Item = &'static Shim> {
    [CLOCKS, CHANCE, SURROUNDINGS, STREAMS].into_iter().flatten()
}

/// A guest that answers each command with the log's time and what the shim told, and keeps that for queries.
fn guest(shim: &Shim, world: World) -> Vec<u8> {
    let (from, length) = (TOLD - 8, shim.bytes + 8);
    let Kept { items, keep, answer } = kept(world, length);
    let imports =
        shim.items.replace("OUT.", "[method]output-stream.").replace("IN.", "[method]input-stream.");
    let imports = imports.replace("FILE.", "[method]descriptor.");
    let items = format!("{imports}\n{items}\n(data (i32.const 520) \"printed\\n\")");
    let told = format!(
        "(i64.store (i32.const {from}) (local.get $time)) {} KEEP
        (call $answer (i32.const {from}) (i32.const {length}))",
        shim.act
    );
    let apply = format!(
        "(if (i32.eqz (local.get $case)) (then (return (call $ok)))) {}",
        told.replace("KEEP", &keep)
    );
    let query = format!(
        "(if (local.get $length) (then (return {}))) \
        {answer}",
        block(&told.replace("KEEP", ""))
    );
    let wit = WORLD.replace("machine/stored@", &format!("machine/{}@", world.name()));
    text::component_of(&text::guest_text(&items, &apply, &query), &[&wit], "guest")
}

/// Instructions of which the last leaves a number, as one.
fn block(instructions: &str) -> String {
    format!("(block (result i32) {instructions})")
}

/// How a guest keeps what a command was told.
struct Kept {
    items: String,
    /// Keeps `length` bytes from before [`TOLD`] on.
    keep: String,
    /// Answers with them, or with nothing if there was no command.
    answer: String,
}

fn kept(world: World, length: usize) -> Kept {
    let from = TOLD - 8;
    let (items, keep, answer) = match world {
        World::Stored => (
            r#"
            (import "statehouse:machine/store@0.1.0" "set" (func $set (param i32 i32 i32 i32)))
            (import "statehouse:machine/store@0.1.0" "get" (func $get (param i32 i32 i32)))
            (data (i32.const 512) "k")"#
                .to_owned(),
            format!("(call $set (i32.const 512) (i32.const 1) (i32.const {from}) (i32.const {length}))"),
            "(call $get (i32.const 512) (i32.const 1) (i32.const 300))
            (if (i32.eqz (i32.load8_u (i32.const 300))) (then (return (call $ok))))
            (call $answer (i32.load (i32.const 304)) (i32.load (i32.const 308)))"
                .to_owned(),
        ),
        // Before what is kept stands how long it is: nothing at first.
        World::Resident => (
            format!(
                r#"
            (import "statehouse:machine/snapshot-stream@0.1.0" "write" (func $save (param i32 i32)))
            (import "statehouse:machine/snapshot-stream@0.1.0" "read" (func $load (param i32 i32)))
            (func (export "statehouse:machine/snapshot@0.1.0#save") (result i32)
                (call $save (i32.const {at}) (i32.const {all}))
                (i32.store8 (i32.const 96) (i32.const 0)) (i32.const 96))
            (func (export "statehouse:machine/snapshot@0.1.0#restore") (result i32)
                (call $load (i32.const {all}) (i32.const 300))
                (memory.copy (i32.const {at}) (i32.load (i32.const 300)) (i32.const {all}))
                (i32.store8 (i32.const 96) (i32.const 0)) (i32.const 96))"#,
                at = KEPT - 4,
                all = length + 4
            ),
            format!(
                "(i32.store (i32.const {}) (i32.const {length}))
                (memory.copy (i32.const {KEPT}) (i32.const {from}) (i32.const {length}))",
                KEPT - 4
            ),
            format!("(call $answer (i32.const {KEPT}) (i32.load (i32.const {})))", KEPT - 4),
        ),
    };
    Kept { items, keep, answer }
}

/// Sends a command through one node after the other, checks what it comes to, and that all replicas say the
/// same afterwards. What was told is added to `seen`.
async fn use_shim(cluster: &Cluster, shim: &Shim, seen: &mut Vec<Vec<u8>>) {
    static TURN: AtomicU64 = AtomicU64::new(0);
    let nodes: Vec<&Node> = cluster.nodes().collect();
    let node = nodes[TURN.fetch_add(1, Ordering::Relaxed) as usize % nodes.len()];
    let applied = node.apply(shim.name, Bytes::from_static(b"go")).await.unwrap();
    let kept = match (&shim.expected, &applied.outcome) {
        (Expected::Trap, Outcome::Host(HostCode::Trapped)) => Bytes::new(),
        (Expected::Told(holds) | Expected::Chance(holds), Outcome::Ok(answer)) => {
            let (time, told) = answer.split_at(8);
            assert!(holds(number(time, 0), told), "{} told {told:?}", shim.name);
            seen.push(told.to_vec());
            answer.clone()
        }
        (_, outcome) => panic!("{} came to {outcome:?}", shim.name),
    };
    query_shim(cluster, shim, applied.index, seen).await;
    for node in nodes {
        let local = Consistency::Local { min_index: applied.index };
        let answered = node.query(shim.name, Bytes::new(), local).await.unwrap();
        assert_eq!(answered.outcome, Ok(kept.clone()), "{} on a replica", shim.name);
    }
}

/// Has each replica use the shim in a query of its own, twice. What chance tells is added to `seen`.
async fn query_shim(cluster: &Cluster, shim: &Shim, min_index: Index, seen: &mut Vec<Vec<u8>>) {
    let ask = |node: &Node| {
        let node = node.clone();
        async move { node.query(shim.name, USE.into(), Consistency::Local { min_index }).await }
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let mut answers = Vec::new();
        for node in cluster.nodes().chain(cluster.nodes()) {
            match (&shim.expected, ask(node).await) {
                (Expected::Trap, Err(Error::Guest(why))) if why.contains("trapped") => {}
                (Expected::Told(holds) | Expected::Chance(holds), Ok(Answered { index, outcome, .. })) => {
                    let answer = outcome.expect("it is no refusal");
                    let (time, told) = answer.split_at(8);
                    assert!(holds(number(time, 0), told), "{} told {told:?} in a query", shim.name);
                    answers.push((index, told.to_vec()));
                }
                (_, answered) => panic!("{} came to {answered:?} in a query", shim.name),
            }
        }
        // A beacon of the host may come in between: then they stood at different places.
        let is_same_place = answers.windows(2).all(|pair| pair[0].0 == pair[1].0);
        if is_same_place {
            // Each replica has a clock of its own for queries, which goes on since the last input.
            let is_clock = CLOCKS.iter().any(|clock| clock.name == shim.name);
            let agree = answers.windows(2).all(|pair| pair[0].1 == pair[1].1);
            assert!(is_clock || agree, "{}: queries of one state are told {answers:?}", shim.name);
            seen.extend(answers.into_iter().map(|(_, told)| told).take(1));
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}: never at one place: {answers:?}", shim.name);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn create(node: &Node, shim: &Shim, world: World) {
    let bytes = guest(shim, world);
    let push = Push { digest: Digest::of(&bytes), label: shim.name.into(), bytes: bytes.into() };
    let module = node.push_module(push).await.unwrap();
    assert_eq!(module.world, world);
    node.create_replicated(shim.name, module.digest, Bytes::new(), 3).await.unwrap();
}

/// Has all replicas compare their hashes, as `machine verify` does.
async fn verify(cluster: &Cluster, shim: &Shim) {
    let verified = cluster.node(1).verify_machine(shim.name).await.unwrap();
    let standing = verified.replicas.iter().filter(|replica| replica.standing.is_ok()).count();
    assert_eq!(standing, 3, "{}: {verified:?}", shim.name);
    cluster.assert_lockstep(shim.name).await;
}

/// Waits until a node has a snapshot of every resident machine, from which it makes it anew when it starts.
async fn wait_saved(cluster: &Cluster, number: usize) {
    let saved = || {
        let files = std::fs::read_dir(cluster.directory(number).join("snapshots")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned());
        let groups: BTreeSet<String> = names
            .filter(|name| name.ends_with(".snap"))
            .filter_map(|name| Some(name.split_once('-')?.0.to_owned()))
            .collect();
        groups.len()
    };
    for _ in 0..3_000 {
        if saved() == shims().count() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} of {} machines are saved", saved(), shims().count());
}

async fn all_are_told_the_same(world: World) {
    let mut cluster = Cluster::with(3, |config| config.resident_snapshot_entries = 3).await;
    let mut seen: Vec<Vec<Vec<u8>>> = shims().map(|_| Vec::new()).collect();
    for shim in shims() {
        create(cluster.node(0), shim, world).await;
    }
    let all_serve = |node: &Node| shims().all(|shim| serves(node, shim.name));
    cluster.wait("all nodes serve all machines", all_serve).await;
    for (shim, seen) in shims().zip(&mut seen) {
        for _ in 0..COMMANDS {
            use_shim(&cluster, shim, seen).await;
        }
        verify(&cluster, shim).await;
    }
    if world == World::Resident {
        wait_saved(&cluster, 2).await;
    }
    // One that was away applies by itself what the others have applied meanwhile.
    cluster.stop(2).await;
    for (shim, seen) in shims().zip(&mut seen) {
        use_shim(&cluster, shim, seen).await;
    }
    cluster.start(2).await;
    cluster.wait("all nodes serve all machines again", all_serve).await;
    for (shim, seen) in shims().zip(&mut seen) {
        use_shim(&cluster, shim, seen).await;
        verify(&cluster, shim).await;
        if let Expected::Chance(_) = shim.expected {
            let all = seen.len();
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), all, "{}: each command and state has bytes of its own", shim.name);
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shim_tells_all_replicas_of_a_stored_machine_the_same() {
    all_are_told_the_same(World::Stored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shim_tells_all_replicas_of_a_resident_machine_the_same() {
    all_are_told_the_same(World::Resident).await;
}

#[test]
fn every_interface_that_is_allowed_is_used_by_a_shim() {
    let used: String = shims().map(|shim| shim.items).collect();
    // These have types that others use, and no function of their own.
    let types = ["wasi:cli/terminal-input", "wasi:cli/terminal-output"];
    for interface in statehouse::wasm::WASI_ALLOWED.iter().filter(|name| !types.contains(name)) {
        assert!(used.contains(&format!("\"{interface}@0.2.6\"")), "no shim uses {interface}");
    }
}
