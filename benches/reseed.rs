//! What it costs the others when a follower gets the state of a large machine: three nodes, a kv machine of
//! so many values of 1 KiB, and puts of 256 bytes at a steady rate, in turn as usual and while a follower is
//! reseeded.
//!
//! The nodes are processes of their own; they and the load share this computer. Puts are begun when they are
//! due, whether or not those before are done, and their time counts from when they were due.
//! `cargo bench --profile release --bench reseed -- [VALUES] [PUTS_PER_SECOND]`, a million and a thousand
//! unless told.

#[path = "process/mod.rs"]
mod process;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use process::{Cluster, Node};
use statehouse::client::Client;
use statehouse::machine::outcome::Outcome;
use statehouse_kv::Call;
use statehouse_kv::messages::PutRequest;

/// The values of the machine.
const VALUE_BYTES: usize = 1 << 10;
/// The values that are put meanwhile.
const PUT_BYTES: usize = 256;
const UNDER_WAY: usize = 200;
/// A follower is reseeded so many times.
const ROUNDS: u32 = 3;
/// Puts are measured so long before each: about as long as the reseeding takes, so that as much of what a
/// node does at times, flushes and compactions, is in both.
const USUAL: Duration = Duration::from_secs(60);
/// What is left from the filling, or from the reseeding before, gets so long.
const SETTLING: Duration = Duration::from_secs(20);
const CONNECTIONS: usize = 8;

fn put(number: u64, value_bytes: usize) -> Bytes {
    let key = format!("key{number:08}").into_bytes();
    // Not all alike, or compression would make it small.
    let mut value = vec![0; value_bytes];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut value);
    PutRequest { key, value, ..Default::default() }.to_envelope().into()
}

/// Puts all values once, over one stream.
async fn fill(client: &Client, values: u64) {
    let (sender, mut answers) = client.apply_stream().await.expect("a stream");
    let mut sent = 0;
    for done in 0..values {
        while sent < values && sent - done < UNDER_WAY as u64 {
            sender.send(sent, "kv", put(sent, VALUE_BYTES)).await.expect("sent");
            sent += 1;
        }
        let (_, result) = answers.next().await.expect("the stream goes on").expect("an answer");
        assert!(matches!(result.expect("done").outcome, Outcome::Ok(_)));
    }
}

/// Puts at a rate for as long as `during` takes. Tells how long each took, and what came of `during`.
async fn measure<T>(
    what: &str,
    cluster: &Cluster,
    (values, rate): (u64, u64),
    during: impl Future<Output = T>,
) -> T {
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let until = async {
        let result = during.await;
        stop.store(true, Ordering::Release);
        (result, begun.elapsed())
    };
    let (took_us, (result, time)) = tokio::join!(load(cluster, values, rate, &stop), until);
    report(what, time, took_us);
    result
}

/// Puts at a rate until told to stop. Gives back how long each took, in microseconds.
async fn load(cluster: &Cluster, values: u64, rate: u64, stop: &AtomicBool) -> Vec<u32> {
    let clients: Vec<Client> = (0..CONNECTIONS).map(|_| cluster.nodes[0].client()).collect();
    let (begun, mut tasks) = (Instant::now(), Vec::new());
    for number in 0.. {
        let due = begun + Duration::from_nanos(1_000_000_000 / rate * number);
        tokio::time::sleep_until(due.into()).await;
        if stop.load(Ordering::Acquire) {
            break;
        }
        let client = clients[number as usize % clients.len()].clone();
        tasks.push(tokio::spawn(async move {
            let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % values;
            let outcome = client.apply("kv", put(spread, PUT_BYTES)).await.expect("applied").outcome;
            assert!(matches!(outcome, Outcome::Ok(_)), "{outcome:?}");
            due.elapsed().as_micros() as u32
        }));
    }
    let mut took_us = Vec::new();
    for task in tasks {
        took_us.push(task.await.expect("a put does not panic"));
    }
    took_us
}

fn report(what: &str, time: Duration, mut took_us: Vec<u32>) {
    took_us.sort_unstable();
    let at = |share: f64| f64::from(took_us[(share * (took_us.len() - 1) as f64) as usize]) / 1_000.0;
    println!(
        "{what:<12} {:>7.0} puts/s   p50 {:>7.2} ms   p99 {:>8.2} ms   p99.9 {:>8.2} ms   slowest {:>8.2} ms",
        took_us.len() as f64 / time.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
}

fn memory(cluster: &Cluster) -> Vec<u64> {
    cluster.nodes.iter().map(|node| Node::memory_bytes(node) >> 20).collect()
}

/// Reseeds the third node's replica, and tells the most memory that each node had meanwhile, in MiB.
async fn reseed(cluster: &Cluster) -> Vec<u64> {
    let client = cluster.nodes[0].client();
    let reseeding = tokio::spawn(async move { client.reseed_machine("kv", "bench-3").await });
    let mut most = memory(cluster);
    while !reseeding.is_finished() {
        most = most.into_iter().zip(memory(cluster)).map(|(most, now)| most.max(now)).collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    reseeding.await.expect("it does not panic").expect("it is reseeded");
    most
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u64>().ok());
    let (values, rate) = (numbers.next().unwrap_or(1_000_000), numbers.next().unwrap_or(1_000));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::start(directory.path()).await;
    let begun = Instant::now();
    fill(&cluster.nodes[0].client(), values).await;
    println!("{values} values of {VALUE_BYTES} bytes in {:.0} s", begun.elapsed().as_secs_f64());
    for round in 1..=ROUNDS {
        println!("round {round}");
        measure("settling", &cluster, (values, rate), tokio::time::sleep(SETTLING)).await;
        measure("usual", &cluster, (values, rate), tokio::time::sleep(USUAL)).await;
        println!("memory of the leader, a follower and the one to be reseeded: {:?} MiB", memory(&cluster));
        let begun = Instant::now();
        let most = measure("meanwhile", &cluster, (values, rate), reseed(&cluster)).await;
        println!("reseeded in {:.1} s; at most {most:?} MiB", begun.elapsed().as_secs_f64());
    }
}
