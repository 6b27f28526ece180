//! What leases cost a cluster of three nodes on this computer: 50,000 of 10 seconds kept alive, with many in
//! a message and with one, and 100,000 with a key each that end within the same second while a client writes.
//!
//! The nodes are processes of their own; the processor time is theirs, as a part of one core.
//! `cargo bench --profile release --bench leases -- [SECONDS]`; a minute unless told otherwise.
//!
//! Targets: all 50,000 kept alive, for less than half a core; ends through within seconds, and puts meanwhile
//! answered.

#[path = "process/mod.rs"]
mod process;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use process::{Cluster, Node};
use statehouse::client::Client;
use statehouse_kv::Call;
use statehouse_kv::messages::PutRequest;

const KEPT: usize = 50_000;
const ENDING: usize = 100_000;
const TTL: Duration = Duration::from_secs(10);
/// How often each is renewed within its time.
const RENEWALS: u32 = 3;
/// Streams on which they are kept alive, spread over the nodes.
const STREAMS: usize = 24;
const GRANTS_UNDER_WAY: usize = 500;
/// From the first grant of those that end together to their end.
const UNTIL_END: Duration = Duration::from_secs(120);
/// Grants between two renewals of those before.
const GRANTS_BETWEEN: usize = 5_000;

fn cpu_us(cluster: &Cluster) -> u64 {
    cluster.nodes.iter().map(Node::cpu_us).sum()
}

/// Grants leases, and keeps those that there are alive until it has all.
async fn grant(client: &Client, count: usize, ttl: Duration) -> Vec<u64> {
    let mut leases: Vec<u64> = Vec::new();
    while leases.len() < count {
        let part = GRANTS_BETWEEN.min(count - leases.len());
        let grants = futures_util::stream::iter(0..part).map(|_| client.grant_lease("kv", ttl, None));
        let granted: Vec<u64> =
            grants.buffer_unordered(GRANTS_UNDER_WAY).map(|id| id.expect("granted")).collect().await;
        leases.extend(granted);
        client.renew_leases("kv", &leases).await.expect("renewed");
    }
    leases
}

/// Renews each lease three times within its time, so many in a message, until the end. Answers how many of
/// the renewals came too late.
async fn keep(client: Client, leases: Vec<u64>, in_message: usize, end: Instant) -> usize {
    let (sender, mut answers) = client.keep_alive().await.expect("a stream");
    let messages: Vec<Vec<u64>> = leases.chunks(in_message).map(<[u64]>::to_vec).collect();
    let pause = TTL / RENEWALS / messages.len() as u32;
    let sending = tokio::spawn(async move {
        let begun = Instant::now();
        for number in 0_u32.. {
            if Instant::now() >= end {
                return;
            }
            let message = messages[number as usize % messages.len()].clone();
            sender.send(u64::from(number), "kv", message).await.expect("sent");
            tokio::time::sleep_until((begun + pause * (number + 1)).into()).await;
        }
    });
    let mut late = 0;
    while let Some((_, renewed)) = answers.next().await.expect("the stream goes on") {
        late += renewed.expect("renewed").into_iter().filter(|&ttl_ms| ttl_ms == 0).count();
    }
    sending.await.expect("it does not panic");
    late
}

async fn keep_all(cluster: &Cluster, leases: &[u64], in_message: usize, time: Duration) {
    let (begun, before) = (Instant::now(), cpu_us(cluster));
    let end = begun + time;
    let keepers: Vec<_> = leases
        .chunks(leases.len().div_ceil(STREAMS))
        .enumerate()
        .map(|(number, part)| {
            let client = cluster.nodes[number % cluster.nodes.len()].client();
            tokio::spawn(keep(client, part.to_vec(), in_message, end))
        })
        .collect();
    let mut late = 0;
    for keeper in keepers {
        late += keeper.await.expect("it does not panic");
    }
    let cores = (cpu_us(cluster) - before) as f64 / begun.elapsed().as_micros() as f64;
    let live = cluster.nodes[0].client().leases("kv").await.expect("a list").len();
    println!(
        "{} leases of {TTL:?} kept alive for {:.0} s, {in_message:>3} in a message: {:>5.1} % of a core on \
         three nodes, {late} late, {live} live",
        leases.len(),
        begun.elapsed().as_secs_f64(),
        cores * 100.0,
    );
}

/// Has leases with a key each end within the same second, and writes meanwhile.
async fn end_all(cluster: &Cluster) {
    let client = cluster.nodes[0].client();
    let due = Instant::now() + UNTIL_END;
    let grants = futures_util::stream::iter(0..ENDING).map(async |number| {
        let lease = client.grant_lease("kv", due - Instant::now(), None).await.expect("granted");
        let key = format!("of/{number}").into_bytes();
        let put = PutRequest { key, lease: lease as i64, ..Default::default() };
        client.apply("kv", put.to_envelope()).await.expect("applied");
    });
    grants.buffer_unordered(GRANTS_UNDER_WAY).collect::<()>().await;
    assert!(due - Instant::now() > Duration::from_secs(3), "they were not granted in time");
    tokio::time::sleep_until((due - Duration::from_secs(2)).into()).await;
    let mut took = Vec::new();
    let mut left = ENDING;
    while left > 0 {
        for _ in 0..50 {
            let begun = Instant::now();
            let put = PutRequest { key: b"k".into(), value: vec![b'v'; 256], ..Default::default() };
            client.apply("kv", put.to_envelope()).await.expect("applied");
            took.push(begun.elapsed());
        }
        left = client.leases("kv").await.expect("a list").len();
    }
    let over = due.elapsed();
    took.sort_unstable();
    println!(
        "{ENDING} leases with a key each that end together are gone {:.2} s after their deadline; of {} puts \
         meanwhile the median took {:?}, p99 {:?}, the slowest {:?}",
        over.as_secs_f64(),
        took.len(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        took.last().expect("some"),
    );
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(60);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::start(directory.path()).await;
    for in_message in [100, 1] {
        let client = cluster.nodes[0].client();
        let leases = grant(&client, KEPT, TTL).await;
        keep_all(&cluster, &leases, in_message, Duration::from_secs(seconds)).await;
        while !client.leases("kv").await.expect("a list").is_empty() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    end_all(&cluster).await;
}
