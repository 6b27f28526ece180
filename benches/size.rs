//! What a node costs by the size of its state: memory when idle, a restart after SIGKILL, and a put beside
//! one to a node with little state.
//!
//! `cargo bench --profile release --bench size -- [KEYS] [VALUE_BYTES]`: fills the kv machine with so many
//! keys, a million of 256 bytes if nothing is said; `655360 16384` are 10 GiB. The disk must have three times
//! that free.

#[path = "process/mod.rs"]
mod process;

use std::time::{Duration, Instant};

use bytes::Bytes;
use process::Node;
use statehouse::client::Client;
use statehouse::machine::outcome::Outcome;
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

/// Bytes of values under way on the stream that fills the machine.
const UNDER_WAY_BYTES: usize = 16 << 20;
/// Puts that are timed, each to a key of its own, in so many rounds.
const TIMED_PUTS: u64 = 20_000;
const ROUNDS: u64 = 9;
/// Keys of the machine that the large one is compared with, before the first round.
const FEW: u64 = 10_000;
/// A node that takes less in a second has nothing to do.
const IDLE_CPU_US: u64 = 30_000;
/// A new node has nothing more to do after this.
const SETTLE: Duration = Duration::from_secs(5);

fn key(number: u64) -> Vec<u8> {
    format!("key{:012}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1_000_000_000_000).into_bytes()
}

fn put(number: u64, value_bytes: usize) -> Bytes {
    // Bytes that do not compress.
    let mut value = vec![0; value_bytes];
    blake3::Hasher::new().update(&number.to_be_bytes()).finalize_xof().fill(&mut value);
    PutRequest { key: key(number), value, ..Default::default() }.to_envelope().into()
}

/// Puts the keys `from..to` through one stream.
async fn fill(client: &Client, from: u64, to: u64, value_bytes: usize) {
    let under_way = (UNDER_WAY_BYTES / value_bytes.max(1)).clamp(1, 1_000) as u64;
    let (sender, mut answers) = client.apply_stream().await.expect("a stream");
    let (mut sent, mut answered) = (from, from);
    while answered < to {
        while sent < to && sent - answered < under_way {
            sender.send(sent, "kv", put(sent, value_bytes)).await.expect("sent");
            sent += 1;
        }
        let (_, result) = answers.next().await.expect("the stream goes on").expect("an answer for each");
        assert!(matches!(result.expect("done").outcome, Outcome::Ok(_)));
        answered += 1;
    }
}

/// Waits until the node has put away in the background what it was given.
async fn rest(node: &Node) {
    loop {
        let before = node.cpu_us();
        tokio::time::sleep(Duration::from_secs(1)).await;
        if node.cpu_us() - before < IDLE_CPU_US {
            return;
        }
    }
}

/// The rested node's own time for each of one round of puts of 256 bytes to new keys, in microseconds.
async fn round_us(node: &Node, first: u64) -> f64 {
    rest(node).await;
    let before = node.cpu_us();
    fill(&node.client(), first, first + TIMED_PUTS, 256).await;
    (node.cpu_us() - before) as f64 / TIMED_PUTS as f64
}

/// What a put costs two nodes, measured in turn: the middle one of the rounds of each.
async fn compare_us(nodes: [&Node; 2], first: u64) -> [f64; 2] {
    let mut costs = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for (node, costs) in nodes.iter().zip(&mut costs) {
            costs.push(round_us(node, first + round * TIMED_PUTS).await);
        }
    }
    costs.map(|mut costs| {
        costs.sort_by(f64::total_cmp);
        costs[costs.len() / 2]
    })
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let keys = numbers.first().copied().unwrap_or(1_000_000);
    let value_bytes = numbers.get(1).copied().unwrap_or(256) as usize;
    let place = tempfile::tempdir().expect("a temporary directory");
    let (small_directory, directory) = (place.path().join("small"), place.path().join("large"));

    let node = Node::start(&directory);
    tokio::time::sleep(SETTLE).await;
    println!("idle and empty: {} MiB", mib(node.memory_bytes()));
    let begun = Instant::now();
    fill(&node.client(), 0, keys, value_bytes).await;
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{keys} keys of {value_bytes} bytes in {seconds:.1} s ({:.0}/s); memory {} MiB",
        keys as f64 / seconds,
        mib(node.memory_bytes())
    );
    let small_node = Node::start(&small_directory);
    fill(&small_node.client(), 0, FEW, 256).await;
    let [large, small] = compare_us([&node, &small_node], keys).await;
    println!(
        "a put: with {} MiB of values {large:.1} us of the node's CPU, with {} to {} MiB {small:.1} us: \
         {:.2} times",
        mib(keys * value_bytes as u64),
        mib(FEW * 256),
        mib((FEW + ROUNDS * TIMED_PUTS) * 256),
        large / small
    );
    drop(small_node);
    // As SIGKILL leaves it.
    drop(node);

    let begun = Instant::now();
    let node = Node::start(&directory);
    let started = begun.elapsed();
    let request = RangeRequest { key: key(keys / 2), ..Default::default() }.to_envelope();
    let read = node.client().query("kv", request, Consistency::Linearizable).await.expect("answered");
    assert!(matches!(Outcome::from(read.outcome), Outcome::Ok(answer) if answer.len() > 100));
    println!(
        "killed and started again: ready after {:.2} s, first read after {:.2} s",
        started.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
    tokio::time::sleep(SETTLE).await;
    println!("idle after that: {} MiB", mib(node.memory_bytes()));
}
