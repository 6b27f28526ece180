//! Three nodes of Statehouse as three processes, that etcd's clients can talk to: one is killed, and comes
//! back to its own addresses.

use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::etcdctl::etcdctl;
use super::process::{Node, program};

/// How long replicas, and nodes that came back, may take. A new replica compiles the machine, which gives way
/// to everything else on the computer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where a node listens: for its clients, for nodes, for etcd's clients.
struct Ports([u16; 3]);

impl Ports {
    /// Ports that nothing listens on.
    fn free() -> Ports {
        // All at a time, so that they differ.
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        Ports(listeners.map(|listener| listener.local_addr().expect("it is bound").port()))
    }

    fn address(&self, of: usize) -> String {
        format!("127.0.0.1:{}", self.0[of])
    }
}

/// The nodes, with a machine `kv` on each of them.
pub struct Three {
    directory: TempDir,
    ports: Vec<Ports>,
    nodes: Vec<Option<Node>>,
}

impl Three {
    pub fn start() -> Three {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let ports = (0..3).map(|_| Ports::free()).collect();
        let mut three = Three { directory, ports, nodes: vec![None, None, None] };
        for node in 0..3 {
            three.come_back(node);
        }
        let replicas = || Some(three.machine(0)["replicas"].as_array()?.len());
        wait_until("kv has three replicas", || replicas() == Some(3));
        three.agree();
        for endpoint in three.endpoints() {
            wait_until("it answers", || {
                etcdctl(std::slice::from_ref(&endpoint), &["endpoint", "health"]).code == 0
            });
        }
        three
    }

    fn serve(&self, node: usize) -> Command {
        let (mut command, ports) = (program(), &self.ports[node]);
        command.args(["serve", "--json", "--name", &format!("n{node}"), "--data-dir"]);
        command.arg(self.directory.path().join(format!("n{node}")));
        command.args(["--client", &ports.address(0), "--peer", &ports.address(1)]);
        command.args(["--etcd", &ports.address(2)]);
        match node {
            0 => command.arg("--bootstrap"),
            _ => command.args(["--join", &self.ports[0].address(0)]),
        };
        command
    }

    /// Starts a node that is not there.
    pub fn come_back(&mut self, node: usize) {
        assert!(self.nodes[node].is_none(), "n{node} is there");
        self.nodes[node] = Some(Node::start(&mut self.serve(node)));
    }

    /// Ends a node as a power cut would.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].take().expect("it is there").kill();
    }

    /// Where etcd's clients find a node.
    pub fn etcd(&self, node: usize) -> String {
        self.ports[node].address(2)
    }

    /// Where etcd's clients find all of them.
    pub fn endpoints(&self) -> Vec<String> {
        (0..3).map(|node| self.etcd(node)).collect()
    }

    /// What a node knows of the machine.
    fn machine(&self, node: usize) -> Value {
        let node = self.nodes[node].as_ref().expect("it is there");
        node.run(["machine", "show", "kv", "--json"]).json()
    }

    /// Waits until every replica has what was written, and that is the same.
    pub fn agree(&self) {
        let node = self.nodes.iter().flatten().next().expect("a node is there");
        let same = || node.run(["machine", "verify", "kv"]).text().matches("in lockstep").count();
        wait_until("three replicas in lockstep", || same() == 3);
    }
}

/// Waits for a condition, with a deadline.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "after {PATIENCE:?} still not: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
