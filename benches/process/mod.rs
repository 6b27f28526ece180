//! A node as a process of its own, for benches that load it over the network.
#![allow(dead_code, reason = "each bench uses its part")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use statehouse::client::Client;

/// The program under load: this build, unless another one is named.
pub fn program() -> Command {
    let program = std::env::var("STATEHOUSE_PROGRAM");
    Command::new(program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_statehouse")))
}

/// The node under load.
pub struct Node {
    child: Child,
    address: String,
}

impl Node {
    /// Starts a node that is alone on `data_dir`, with a kv machine, and waits until it is ready.
    pub fn start(data_dir: &std::path::Path) -> Node {
        let mut command = program();
        command.args(["dev", "--json", "--client", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"]);
        command.arg(data_dir);
        Node::spawn(command)
    }

    /// Starts a node of a cluster: the first, or one that joins the node at a client address.
    pub fn serve(data_dir: &std::path::Path, number: usize, join: Option<&str>) -> Node {
        let mut command = program();
        command.args(["serve", "--json", "--client", "127.0.0.1:0", "--peer", "127.0.0.1:0"]);
        command.args(["--name", &format!("bench-{number}"), "--data-dir"]).arg(data_dir);
        match join {
            Some(address) => command.args(["--join", address]),
            None => command.arg("--bootstrap"),
        };
        Node::spawn(command)
    }

    fn spawn(mut command: Command) -> Node {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the node starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        let ready: serde_json::Value = serde_json::from_str(&line).expect("the node is ready");
        let address = ready["ready"]["client"].as_str().expect("an address").to_string();
        Node { child, address }
    }

    /// Where clients reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A client of the node.
    pub fn client(&self) -> Client {
        Client::new([&self.address]).expect("an address")
    }

    /// Processor time that the node has used so far.
    pub fn cpu_us(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
        // The kernel's unit in /proc is a hundredth of a second on every Linux.
        ticks * 10_000
    }
}

impl Node {
    /// Memory that the node has in use now, as the system counts it.
    pub fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1_024
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The bench is over, whatever became of the node.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const NODES: usize = 3;

/// How long a cluster may take to come about.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three nodes with a kv machine, the first of which leads it.
pub struct Cluster {
    pub nodes: Vec<Node>,
}

impl Cluster {
    pub async fn start(directory: &std::path::Path) -> Cluster {
        let mut nodes: Vec<Node> = Vec::new();
        for number in 1..=NODES {
            let join = nodes.first().map(|first| first.address().to_owned());
            nodes.push(Node::serve(&directory.join(number.to_string()), number, join.as_deref()));
        }
        let cluster = Cluster { nodes };
        let client = cluster.nodes[0].client();
        // On a busy computer compiling, which gives way to all else, may take longer than the nodes wait for
        // each other; the machine is made all the same.
        let patient = client.clone().with_timeout(PATIENCE * 5);
        if let Err(why) = patient.create_machine("kv", "builtin:kv", "").await {
            println!("{why}");
        }
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
}
