//! Three nodes as three processes: one is killed, then all of them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::process::{Node, directory, program};

/// Addresses that nothing listens on. A node comes back to its own after it was killed.
pub struct Ports {
    client: SocketAddr,
    peer: SocketAddr,
}

/// Ports that the system chooses, and that stay free until the node takes them: they are on a loopback
/// address that nobody else uses, where there is more than one.
pub fn ports() -> Ports {
    static TAKEN: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, high | 128, low, TAKEN.fetch_add(1, Ordering::Relaxed));
    let free = || TcpListener::bind((own, 0)).or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let (client, peer) = (free().expect("a free port"), free().expect("a free port"));
    let address = |listener: TcpListener| listener.local_addr().expect("it is bound");
    Ports { client: address(client), peer: address(peer) }
}

pub fn serve(root: &Path, number: usize, ports: &[Ports]) -> Command {
    let mut command = program();
    command.args(["serve", "--json", "--name", &format!("n{number}"), "--data-dir"]);
    command.arg(root.join(format!("n{number}")));
    command.args(["--client", &ports[number].client.to_string()]);
    command.args(["--peer", &ports[number].peer.to_string()]);
    match number {
        0 => command.arg("--bootstrap"),
        _ => command.args(["--join", &ports[0].client.to_string()]),
    };
    command
}

/// Starts nodes at the same time: none is ready before a majority is there.
pub fn start(root: &Path, numbers: impl IntoIterator<Item = usize>, ports: &[Ports]) -> Vec<Node> {
    let numbers: Vec<usize> = numbers.into_iter().collect();
    std::thread::scope(|scope| {
        let starting: Vec<_> = numbers
            .iter()
            .map(|&number| scope.spawn(move || Node::start(&mut serve(root, number, ports))))
            .collect();
        starting.into_iter().map(|node| node.join().expect("it starts")).collect()
    })
}

/// Waits until a machine has a replica on each of three nodes.
pub fn wait_for_replicas(node: &Node, machine: &str) {
    let begun = Instant::now();
    // A replica whose module is still being compiled is in the list, but does not stand anywhere yet.
    loop {
        let verified = node.run(["machine", "verify", machine]);
        if verified.code == 0 && verified.text().matches("in lockstep").count() == 3 {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(180),
            "{machine} does not come to three replicas: {}",
            verified.text()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Has a node lead a machine: refused as long as its replica has no vote, or has not caught up.
pub fn lead(node: &Node, machine: &str, to: &str) {
    let begun = Instant::now();
    while node.run(["member", "transfer-leader", "--machine", machine, "--to", to]).code != 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{to} does not come to lead {machine}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Three nodes, each with a replica of `kv`, and places for those that were killed.
pub struct ThreeNodes {
    directory: TempDir,
    ports: [Ports; 3],
    nodes: [Option<Node>; 3],
}

impl ThreeNodes {
    /// All three, when each replica has a vote: any one of them may be killed.
    pub fn start() -> ThreeNodes {
        let ports = [ports(), ports(), ports()];
        let mut three = ThreeNodes { directory: directory(), ports, nodes: [None, None, None] };
        (0..3).for_each(|number| three.restart(number));
        let first = three.node(0);
        first.run(["machine", "create", "kv", "--module", "builtin:kv", "--timeout", "120"]).ok();
        wait_for_replicas(first, "kv");
        ["n1", "n2", "n0"].into_iter().for_each(|to| lead(first, "kv", to));
        three
    }

    pub fn node(&self, number: usize) -> &Node {
        self.nodes[number].as_ref().expect("it runs")
    }

    /// Where clients find them.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().flatten().map(|node| node.client.clone()).collect()
    }

    pub fn kill(&mut self, number: usize) {
        self.nodes[number].take().expect("it runs").kill();
    }

    /// Starts a node, for the first time or after it was killed.
    pub fn restart(&mut self, number: usize) {
        self.nodes[number] = Some(Node::start(&mut serve(self.directory.path(), number, &self.ports)));
    }
}

#[test]
fn a_killed_node_is_missed_by_nobody_and_a_killed_cluster_comes_back() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (root, ports) = (directory.path(), [ports(), ports(), ports()]);
    let mut nodes = start(root, 0..1, &ports);
    nodes.append(&mut start(root, 1..3, &ports));
    nodes[2].run(["machine", "create", "kv", "--module", "builtin:kv"]).ok();
    wait_for_replicas(&nodes[0], "kv");
    nodes[1].run(["kv", "put", "a", "1"]).ok();

    // The one that began the cluster, and leads the catalog.
    nodes.remove(0).kill();
    nodes[0].run(["kv", "put", "b", "2"]).ok();
    assert_eq!(nodes[1].run(["kv", "get", "a"]).ok(), "1");
    nodes.insert(0, start(root, 0..1, &ports).remove(0));
    assert_eq!(nodes[0].run(["kv", "get", "b"]).ok(), "2");

    // Soon after they were made, nothing of it is in the state's files yet: where the others are is in the
    // log.
    nodes.into_iter().for_each(Node::kill);
    let nodes = start(root, 0..3, &ports);
    for node in &nodes {
        assert_eq!(node.run(["kv", "get", "b"]).ok(), "2");
    }
    assert!(nodes[1].run(["machine", "verify", "kv"]).ok().matches("in lockstep").count() == 3);
}
