//! What three nodes serve over the network, disks and all: puts of 256 bytes and point reads of the kv
//! machine, one a call and many on a stream, at the node that leads it; then how long it takes until a put is
//! acknowledged after that node was killed.
//!
//! The nodes are processes of their own; they and the load share this computer, as in the tables that they
//! are compared with. `cargo bench --profile release --bench cluster -- [SECONDS] [WORDS]`, as of `serve`.

#[path = "load/mod.rs"]
mod load;
#[path = "process/mod.rs"]
mod process;

use std::time::{Duration, Instant};

use load::Kind;
use process::Node;
use statehouse::client::Client;

const NODES: usize = 3;

/// How long a cluster may take to come about.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three nodes with a kv machine, the first of which leads it.
struct Cluster {
    nodes: Vec<Node>,
}

impl load::Target for Cluster {
    fn client(&self) -> Client {
        self.nodes[0].client()
    }

    fn cpu_us(&self) -> u64 {
        self.nodes.iter().map(Node::cpu_us).sum()
    }
}

impl Cluster {
    async fn start(directory: &std::path::Path) -> Cluster {
        let mut nodes: Vec<Node> = Vec::new();
        for number in 1..=NODES {
            let join = nodes.first().map(|first| first.address().to_owned());
            nodes.push(Node::serve(&directory.join(number.to_string()), number, join.as_deref()));
        }
        let cluster = Cluster { nodes };
        let client = cluster.nodes[0].client();
        client.create_machine("kv", "builtin:kv", "").await.expect("a machine");
        let begun = Instant::now();
        loop {
            // Refused as long as the node has not caught up.
            let led = client.transfer_leader(Some("kv"), "bench-1").await;
            let replica = client.machine("kv").await.expect("it is there").replica;
            let own = client.status().await.expect("it answers").node;
            if led.is_ok() && replica.is_some_and(|replica| replica.leader == Some(own)) {
                return cluster;
            }
            assert!(begun.elapsed() < PATIENCE, "the first node does not lead: {led:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Kills the node that leads, and tells how long it took until a put was acknowledged.
    async fn kill_the_leader(&mut self) -> Duration {
        let addresses: Vec<String> = self.nodes[1..].iter().map(|node| node.address().to_owned()).collect();
        let client = Client::new(&addresses).expect("addresses");
        load::one(&client, Kind::Put, 0).await;
        let begun = Instant::now();
        drop(self.nodes.remove(0));
        load::one(&client, Kind::Put, 1).await;
        begun.elapsed()
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let (time, words) = load::arguments();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut cluster = Cluster::start(directory.path()).await;
    load::warm_up(&cluster).await;
    load::lines(&cluster, &[1, 100, 1_000], &[1, 100, 1_000], (time, words.as_deref())).await;
    if words.is_none() {
        let took = cluster.kill_the_leader().await;
        println!("put after the leader was killed, at the others {:>9.2} s", took.as_secs_f64());
    }
}
