//! What one node serves over the network, disk and all: puts of 256 bytes and point reads of the kv machine,
//! one a call and many on a stream.
//!
//! The node is a process of its own; it and the load share this computer, as in the tables that it is
//! compared with. `cargo bench --profile release --bench serve -- [SECONDS] [WORDS]`: that long for each
//! line, 5 if nothing is said, and only lines that contain the words. `STATEHOUSE_PROGRAM` names another
//! build to load.

#[path = "load/mod.rs"]
mod load;
#[path = "process/mod.rs"]
mod process;

use process::Node;
use statehouse::client::Client;

impl load::Target for Node {
    fn client(&self) -> Client {
        Node::client(self)
    }

    fn cpu_us(&self) -> u64 {
        Node::cpu_us(self)
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let (time, words) = load::arguments();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let node = Node::start(directory.path());
    load::warm_up(&node).await;
    load::lines(&node, &[1, 100], &[1, 100, 1_000], (time, words.as_deref())).await;
}
