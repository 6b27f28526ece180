//! What watchers of a cluster of three nodes on this computer see, and how soon: the end of a lease after its
//! deadline, and a write by a thousand watchers of a key each, over the network.
//!
//! `cargo bench --profile release --bench watchers`
//!
//! Targets: an end within 500 ms of the deadline, a write within 50 ms of being sent, both at the 99th
//! percentile.

#[path = "process/mod.rs"]
mod process;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use process::Cluster;
use statehouse::client::Client;
use statehouse::machine::event::EventKind;
use statehouse::node::request::{WatchSpec, Watched};
use statehouse::watch::KeySpan;
use statehouse_kv::Call;
use statehouse_kv::messages::PutRequest;
use tokio::sync::mpsc;

const LEASES: u64 = 600;
const WATCHERS: usize = 1_000;
/// Writes, and the time between two.
const WRITES: usize = 3_000;
const BETWEEN: Duration = Duration::from_millis(5);

/// What a watcher saw of a key, and when.
type Seen = (Bytes, EventKind, Instant);

/// Watches a span, and sends on what it sees.
async fn watch(client: Client, span: KeySpan, seen: mpsc::UnboundedSender<Seen>) {
    let mut watch = client.watch("kv", WatchSpec::of(span)).await.expect("it begins");
    tokio::spawn(async move {
        loop {
            if let Watched::Events(told) = watch.next().await.expect("it goes on") {
                let now = Instant::now();
                // Whoever listened has gone when the bench ends.
                told.events.into_iter().for_each(|event| drop(seen.send((event.key, event.kind, now))));
            }
        }
    });
}

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    println!(
        "{what}: {} seen, median {:.1?}, p99 {:.1?}, the last {:.1?}",
        took.len(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        took[took.len() - 1]
    );
}

/// Keys that are tied to leases of one to three seconds, watched at each node: from when each lease can end
/// at the earliest until its key's deletion is seen.
async fn ends(cluster: &Cluster) {
    let (send, mut seen) = mpsc::unbounded_channel();
    for node in &cluster.nodes {
        watch(node.client(), KeySpan::prefix("lease/").expect("short"), send.clone()).await;
    }
    let client = cluster.nodes[0].client();
    let mut due = HashMap::new();
    for number in 0..LEASES {
        let ttl = Duration::from_millis(1_000 + number * 2_000 / LEASES);
        let sent = Instant::now();
        let lease = client.grant_lease("kv", ttl, None).await.expect("granted");
        let key = format!("lease/{number}").into_bytes();
        due.insert(Bytes::from(key.clone()), sent + ttl);
        let put = PutRequest { key, lease: lease as i64, ..Default::default() };
        client.apply("kv", put.to_envelope()).await.expect("applied");
    }
    let mut took = Vec::new();
    while took.len() < due.len() * cluster.nodes.len() {
        let (key, kind, at) = seen.recv().await.expect("watchers are there");
        if kind == EventKind::Delete {
            took.push(at.saturating_duration_since(due[&key]));
        }
    }
    tell("ends of leases after their deadline, at each of three nodes", took);
}

/// A thousand watchers of a key each, at all nodes in turn: from when a write is sent until it is seen.
async fn writes(cluster: &Cluster) {
    let (send, mut seen) = mpsc::unbounded_channel();
    let key = |number: usize| Bytes::from(format!("key/{}", number % WATCHERS));
    for number in 0..WATCHERS {
        let client = cluster.nodes[number % cluster.nodes.len()].client();
        watch(client, KeySpan::key(key(number)).expect("short"), send.clone()).await;
    }
    let sent: Arc<Mutex<HashMap<Bytes, Instant>>> = Arc::default();
    let writing = {
        let (client, sent) = (cluster.nodes[0].client(), sent.clone());
        tokio::spawn(async move {
            let begun = Instant::now();
            for number in 0..WRITES {
                tokio::time::sleep_until((begun + BETWEEN * number as u32).into()).await;
                let put =
                    PutRequest { key: key(number).into(), value: vec![b'v'; 256], ..Default::default() };
                sent.lock().insert(key(number), Instant::now());
                client.apply("kv", put.to_envelope()).await.expect("applied");
            }
        })
    };
    let mut took = Vec::new();
    while took.len() < WRITES {
        let (key, _, at) = seen.recv().await.expect("watchers are there");
        let sent = *sent.lock().get(&key).expect("it was sent before it was seen");
        took.push(at.saturating_duration_since(sent));
    }
    writing.await.expect("it does not panic");
    tell("writes seen by the watcher of their key, 1,000 watchers at three nodes", took);
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::start(directory.path()).await;
    ends(&cluster).await;
    writes(&cluster).await;
}
