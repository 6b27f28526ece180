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
use process::{Cluster, Node};
use statehouse::client::Client;

impl load::Target for Cluster {
    fn client(&self) -> Client {
        self.nodes[0].client()
    }

    fn cpu_us(&self) -> u64 {
        self.nodes.iter().map(Node::cpu_us).sum()
    }
}

/// Kills the node that leads, and tells how long it took until a put was acknowledged.
async fn kill_the_leader(cluster: &mut Cluster) -> Duration {
    let addresses: Vec<String> = cluster.nodes[1..].iter().map(|node| node.address().to_owned()).collect();
    let client = Client::new(&addresses).expect("addresses");
    load::one(&client, Kind::Put, 0).await;
    let begun = Instant::now();
    drop(cluster.nodes.remove(0));
    load::one(&client, Kind::Put, 1).await;
    begun.elapsed()
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let (time, words) = load::arguments();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut cluster = Cluster::start(directory.path()).await;
    load::warm_up(&cluster).await;
    load::lines(&cluster, &[1, 100, 1_000], &[1, 100, 1_000], (time, words.as_deref())).await;
    if words.is_none() {
        let took = kill_the_leader(&mut cluster).await;
        println!("put after the leader was killed, at the others {:>9.2} s", took.as_secs_f64());
    }
}
