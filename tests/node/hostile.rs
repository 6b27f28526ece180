//! Guests that attack the node: what is refused at upload, what is ended when it runs; and that the other
//! machines do not notice.

use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse::error::Error;
use statehouse::machine::outcome::{HostCode, Outcome};
use statehouse::node::Node;
use statehouse::node::config::NodeConfig;
use statehouse::node::request::Consistency;

use super::guests::*;

/// Each attack by its byte, and how the host ends a command that tries it.
const ATTACKS: [(&str, HostCode); 7] = [
    ("loop", HostCode::Exhausted),
    ("trap", HostCode::Trapped),
    ("recurse", HostCode::Trapped),
    ("memory", HostCode::Trapped),
    ("outcome of more than 4 MiB", HostCode::Trapped),
    ("events without end", HostCode::Trapped),
    ("negative length of a list", HostCode::Trapped),
];

async fn attack(node: &Node, what: &'static str) -> Outcome {
    node.apply("attacker", Bytes::from_static(what.as_bytes())).await.unwrap().outcome
}

async fn ask(node: &Node, what: &'static str) -> Result<(), Error> {
    let asked = node.query("attacker", Bytes::from_static(what.as_bytes()), Consistency::Linearizable).await;
    asked.map(|answered| drop(answered.outcome.unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_modules_are_refused_at_upload_and_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    let loops = "(func $forever (loop (br 0))) (start $forever)";
    let with_memory = |memory: &str| {
        let text = guest_text_with_memory(memory, "", "(call $ok)", "(call $ok)");
        core_module_of(wat::parse_str(text).unwrap())
    };
    let mut lying = b"\0asm\x0d\0\x01\0".to_vec();
    // A core module whose list of types says that it has 268,435,455 of them.
    section(&mut lying, 1, b"\0asm\x01\0\0\0\x01\x05\xff\xff\xff\x7f\x60");
    for (what, bytes, words) in [
        ("a start function that loops", stored(&guest_text(loops, "(call $ok)", "(call $ok)")), "fuel"),
        ("memory over the limit", with_memory("(memory (export \"memory\") 4097)"), "at most 268435456"),
        ("shared memory", with_memory("(memory (export \"memory\") 1 2 shared)"), "shared"),
        ("a compile bomb", wrapped(&many_functions(100_001, "")), "at most 100000 are allowed"),
        ("a list whose length lies", lying, "268435455 core types"),
    ] {
        let error = push(&node, &bytes).await.expect_err(what);
        assert!(matches!(error, Error::Invalid(_)), "{what}: {error:?}");
        assert!(error.to_string().contains(words), "{what}: {error}");
    }
    assert!(node.modules().is_empty());
    let left = std::fs::read_dir(directory.path().join("modules")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["compiled"], "files of modules that were refused");
    let compiled = std::fs::read_dir(directory.path().join("modules/compiled")).unwrap();
    assert_eq!(compiled.count(), 0, "compiled forms of modules that were refused");
    create_kv(&node).await;
    must_put(&node, "after", "all").await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_end_with_a_code_and_leave_the_machine_and_its_neighbour_whole() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(config(&directory)).await.unwrap();
    create_kv(&node).await;
    create(&node, "attacker", &attacker()).await;
    for (what, code) in ATTACKS {
        assert_eq!(attack(&node, what).await, Outcome::Host(code), "{what}");
        let error = ask(&node, what).await.expect_err(what);
        assert!(matches!(error, Error::Guest(_)), "{what}: {error:?}");
        must_put(&node, what, "v").await;
    }
    assert!(matches!(attack(&node, "write").await, Outcome::Ok(_)), "a command may write");
    let error = ask(&node, "write").await.expect_err("a write in a query").to_string();
    assert!(error.contains("only apply may change the state"), "{error}");
    ask(&node, "x").await.expect("the machine answers on");
    let hash = node.machine("attacker").unwrap().replica.unwrap().hash;
    node.shutdown().await;
    drop(node);

    let node = Node::open(config(&directory)).await.unwrap();
    assert_eq!(node.machine("attacker").unwrap().replica.unwrap().hash, hash, "the same after a replay");
    assert!(matches!(attack(&node, "x").await, Outcome::Ok(_)));
    assert!(get(&node, "loop").await.is_some());
    node.shutdown().await;
}

/// How long the slowest of some puts and gets takes.
async fn slowest_of(node: &Node, rounds: usize) -> Duration {
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let begun = Instant::now();
        must_put(node, "k", &round.to_string()).await;
        assert_eq!(get(node, "k").await.unwrap(), round.to_string().into_bytes());
        slowest = slowest.max(begun.elapsed());
    }
    slowest
}

/// A guest that loops holds a thread for so long, at the least: what the neighbours must not wait for.
const LOOP: Duration = Duration::from_secs(4);

fn patient_config(directory: &tempfile::TempDir) -> NodeConfig {
    let forever = 1_000_000_000_000;
    let time = LOOP.as_millis() as u64;
    NodeConfig { input_fuel: forever, query_fuel: forever, query_time_ms: time, ..config(directory) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_looping_command_and_many_looping_queries_do_not_hold_up_the_neighbours() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::open(patient_config(&directory)).await.unwrap();
    create_kv(&node).await;
    create(&node, "attacker", &attacker()).await;
    let counter = include_bytes!("../../guests/counter/counter.component.wasm");
    create(&node, "counter", counter).await;

    let command = tokio::spawn({
        let node = node.clone();
        async move { node.apply("attacker", Bytes::from_static(b"loop")).await }
    });
    let queries: Vec<_> = (0..20)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move { ask(&node, "loop").await })
        })
        .collect();
    let begun = Instant::now();
    let slowest = slowest_of(&node, 20).await;
    // A resident machine's queries need a thread that may block: there must be one left.
    let counted = node.query("counter", Bytes::new(), Consistency::Linearizable).await.unwrap();
    assert_eq!(counted.outcome.unwrap(), Bytes::from_static(b"0"));
    let took = begun.elapsed();
    assert!(took < LOOP, "the neighbours took {took:?}, a put and a get up to {slowest:?}");
    assert!(!command.is_finished(), "the command did not loop while the neighbours worked");
    assert!(queries.iter().all(|query| !query.is_finished()), "the queries did not loop meanwhile");

    // The node stops although the guest would go on for minutes.
    let begun = Instant::now();
    node.shutdown_within(Duration::from_millis(100)).await;
    assert!(begun.elapsed() < LOOP, "it stopped after {:?}", begun.elapsed());
    let error = command.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Unknown(_)), "{error:?}");
    for query in queries {
        assert!(query.await.unwrap().is_err());
    }
    drop(node);

    // The command is in the log, and the machine keeps the fuel it was created with: the next start is as
    // busy with it, and serves the neighbours.
    let node = Node::open(config(&directory)).await.unwrap();
    assert_eq!(get(&node, "k").await.unwrap(), b"19");
    must_put(&node, "k", "20").await;
    node.shutdown_within(Duration::from_millis(100)).await;
}
