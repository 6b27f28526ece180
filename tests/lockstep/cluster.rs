//! Three nodes as processes of the program under test, each on addresses of its own within 127.0.0.0/8, so
//! that a node comes back where it was and no other program of this computer can have taken its port.
//!
//! What the nodes say on standard error is kept in files, beside their data; a test that fails leaves them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use statehouse::Client;
use statehouse::error::Error;
use statehouse::id::{Index, NodeId, StateHash};
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::RangeRequest;
use tempfile::TempDir;

use super::clocks::Clocks;
use super::links::Links;
use super::process::{Node, directory, program};
use super::process_ids::ProcessIds;

/// How long anything may take: the machines that run the tests are slow and busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How many nodes there are.
pub const NODES: usize = 3;

/// The machine that is used.
pub const MACHINE: &str = "kv";

const CLIENT_PORT: u16 = 7070;
const PEER_PORT: u16 = 7071;
const HTTP_PORT: u16 = 7072;

/// Numbers the clusters of this process: each has addresses of its own.
static CLUSTERS: AtomicUsize = AtomicUsize::new(0);

pub struct Cluster {
    members: Vec<Member>,
    pub links: Links,
    ids: Arc<ProcessIds>,
    /// None: all nodes have the computer's own.
    clocks: Option<Clocks>,
    /// Kept for whoever looks for the cause when the test fails.
    directory: Option<TempDir>,
}

struct Member {
    name: String,
    data: PathBuf,
    /// Where it listens.
    host: String,
    /// Where others find it: there are the links.
    advertised: String,
    process: Option<Node>,
    id: Option<NodeId>,
}

impl Cluster {
    /// Three nodes that know each other, with a machine of three replicas.
    pub async fn start() -> Cluster {
        Cluster::start_in(directory(), None).await
    }

    /// The same with nodes whose clocks are wrong by so many seconds.
    pub async fn start_with_clocks(shifts_s: [i64; NODES]) -> Cluster {
        let directory = directory();
        let clocks = Clocks::shifted(directory.path(), shifts_s);
        Cluster::start_in(directory, Some(clocks)).await
    }

    async fn start_in(directory: TempDir, clocks: Option<Clocks>) -> Cluster {
        let cluster = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let (id, ids) = (std::process::id() as usize, Arc::new(ProcessIds::default()));
        let host = |node| format!("127.{}.{}.{}", 1 + id / 250 % 250, 1 + id % 250, 1 + cluster * 20 + node);
        let member = |node: usize| {
            let data = directory.path().join(format!("n{}", node + 1));
            Member {
                name: format!("n{}", node + 1),
                data,
                host: host(node),
                advertised: host(10 + node),
                process: None,
                id: None,
            }
        };
        let members: Vec<Member> = (0..NODES).map(member).collect();
        let links = Links::new(ids.clone());
        for (node, member) in members.iter().enumerate() {
            let listens: SocketAddr = format!("{}:{PEER_PORT}", member.host).parse().expect("an address");
            let advertised = format!("{}:{PEER_PORT}", member.advertised);
            links.open(node, &advertised, listens).await.expect("an address of our own");
        }
        let mut cluster = Cluster { members, links, ids, clocks, directory: Some(directory) };
        for node in 0..NODES {
            cluster.begin(&[node]);
        }
        cluster.settle().await;
        cluster
    }

    /// Waits until all know each other, and makes the machine.
    async fn settle(&mut self) {
        let client = self.client();
        until("all nodes are members", async || {
            client
                .members()
                .await
                .is_ok_and(|(_, members)| members.iter().filter(|m| m.voter).count() == NODES)
        })
        .await;
        for member in client.members().await.expect("they were just listed").1 {
            let known = self.members.iter_mut().find(|known| known.name == member.name);
            known.expect("one of ours").id = Some(member.node);
        }
        let create = client.create_replicated(MACHINE, "builtin:kv", "", NODES as u32);
        // An election, or compilers on a busy computer, which yield to everything else, can take the answer
        // to a creation that is done from whoever asked.
        let created = create.await;
        let done = matches!(created, Ok(_) | Err(Error::AlreadyExists(_) | Error::Unknown(_)));
        assert!(done, "{created:?}");
        until("the machine serves", async || {
            let get = RangeRequest { key: b"nothing".to_vec(), ..Default::default() }.to_envelope();
            client.query(MACHINE, get, Consistency::Linearizable).await.is_ok()
        })
        .await;
        self.together().await;
    }

    /// Starts the processes of nodes, at the same time, and waits until they are ready.
    pub fn begin(&mut self, nodes: &[usize]) {
        let start = |node| (node, self.start_process(node, program()));
        let started: Vec<(usize, Node)> = std::thread::scope(|scope| {
            let starting: Vec<_> = nodes.iter().map(|&node| scope.spawn(move || start(node))).collect();
            starting.into_iter().map(|starting| starting.join().expect("it starts")).collect()
        });
        for (node, process) in started {
            self.members[node].process = Some(process);
        }
    }

    /// Starts a node that can write no file larger than this: what an ordinary user can do to fill a disk. It
    /// may fail before it is ready.
    pub fn begin_on_full_disk(&self, node: usize, file_bytes_max: u64) -> tokio::process::Child {
        let mut command = Command::new("sh");
        let limited = format!("ulimit -f {}; trap '' XFSZ; exec \"$0\" \"$@\"", file_bytes_max / 512);
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_statehouse")]);
        self.serve(node, &mut command);
        let log = std::fs::File::create(self.members[node].data.with_extension("log")).expect("writable");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = tokio::process::Command::from(command).kill_on_drop(true).spawn();
        let child = child.expect("the program starts");
        self.ids.set(node, child.id().expect("it was just started"));
        child
    }

    fn start_process(&self, node: usize, mut command: Command) -> Node {
        let member = &self.members[node];
        assert!(member.process.is_none(), "{} runs already", member.name);
        self.serve(node, &mut command);
        let log = member.data.with_extension("log");
        let log = std::fs::File::options().create(true).append(true).open(log).expect("writable");
        Node::start_noting(&mut command, Stdio::from(log), |process| self.ids.set(node, process))
    }

    /// Adds to a command that a node is to serve.
    pub fn serve(&self, node: usize, command: &mut Command) {
        let member = &self.members[node];
        if let Some(clocks) = &self.clocks {
            clocks.show(node, command);
        }
        command.args(["serve", "--json", "--name", &member.name, "--advertise", &member.advertised]);
        command.args(["--client", &self.address(node)]);
        command.args(["--peer", &format!("{}:{PEER_PORT}", member.host)]);
        command.args(["--http", &format!("{}:{HTTP_PORT}", member.host)]);
        command.arg("--data-dir").arg(&member.data);
        if node == 0 && member.id.is_none() {
            command.arg("--bootstrap");
        } else {
            let others = (0..NODES).filter(|&other| other != node && (other == 0 || member.id.is_some()));
            let others: Vec<String> = others.map(|other| self.address(other)).collect();
            command.args(["--join", &others.join(",")]);
        }
    }

    /// Which second of the day a node's process took it for when it wrote its first line of log.
    pub fn began_s(&self, node: usize) -> i64 {
        let told = self.told(node);
        let stamp = told.split_once(r#""timestamp":""#).expect("it has logged something").1;
        let part = |from: usize| stamp[from..from + 2].parse::<i64>().expect("a time of day");
        part(11) * 3_600 + part(14) * 60 + part(17)
    }

    /// Where a node listens for clients.
    pub fn address(&self, node: usize) -> String {
        format!("{}:{CLIENT_PORT}", self.members[node].host)
    }

    /// A client of all nodes.
    pub fn client(&self) -> Client {
        self.client_from(0)
    }

    /// A client of all nodes that begins with one of them.
    pub fn client_from(&self, first: usize) -> Client {
        let addresses = (first..first + NODES).map(|node| self.address(node % NODES));
        Client::new(addresses).expect("addresses")
    }

    /// A client of one node.
    pub fn client_of(&self, node: usize) -> Client {
        Client::new([self.address(node)]).expect("an address")
    }

    pub fn data(&self, node: usize) -> &PathBuf {
        &self.members[node].data
    }

    /// Everything that a node has said.
    pub fn told(&self, node: usize) -> String {
        std::fs::read_to_string(self.members[node].data.with_extension("log")).expect("a log")
    }

    pub fn name(&self, node: usize) -> &str {
        &self.members[node].name
    }

    pub fn process(&self, node: usize) -> &Node {
        self.members[node].process.as_ref().expect("it runs")
    }

    /// The nodes that run.
    pub fn running(&self) -> Vec<usize> {
        (0..NODES).filter(|&node| self.members[node].process.is_some()).collect()
    }

    /// Ends nodes as a crash would: all get the signal before the first is waited for.
    pub fn kill(&mut self, nodes: &[usize]) {
        nodes.iter().for_each(|&node| self.process(node).signal(Signal::KILL));
        for &node in nodes {
            self.members[node].process.take().expect("it runs").kill();
        }
    }

    /// Ends a node cleanly.
    pub fn stop(&mut self, node: usize) {
        let process = self.members[node].process.take().expect("it runs");
        process.signal(Signal::TERM);
        assert_eq!(process.end().0, Some(0), "{} does not stop cleanly", self.members[node].name);
    }

    /// The node that leads the machine, as those that run believe: the newest term counts.
    pub async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut newest = None;
            for node in self.running() {
                let client = self.client_of(node).with_timeout(Duration::from_secs(1));
                let Ok(machine) = client.machine(MACHINE).await else { continue };
                let Some(replica) = machine.replica else { continue };
                let led = replica.leader.map(|leader| (replica.term, leader));
                newest = newest.max(led);
            }
            let led = newest.and_then(|(_, id)| self.members.iter().position(|m| m.id == Some(id)));
            match led {
                Some(node) if self.members[node].process.is_some() => return node,
                _ => assert!(Instant::now() < deadline, "nobody leads the machine"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every replica has come as far as the leader was: under load no two stand at the same index
    /// when they are asked one after the other.
    pub async fn together_under_load(&self) {
        let leader = self.leader().await;
        let newest = self.client_of(leader).machine(MACHINE).await.ok().and_then(|machine| machine.replica);
        let newest = newest.expect("the leader has a replica").applied;
        until("every replica has come as far as the leader was", async || {
            for node in self.running() {
                let replica = self.client_of(node).machine(MACHINE).await.ok().and_then(|m| m.replica);
                if replica.is_none_or(|replica| replica.applied < newest) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// Removes the data of a node that does not run.
    pub fn empty(&self, node: usize) {
        assert!(self.members[node].process.is_none(), "it runs");
        std::fs::remove_dir_all(&self.members[node].data).expect("ours to remove");
    }

    /// Waits until all replicas stand at the same index, and compares their hashes.
    pub async fn together(&self) -> StateHash {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut stand: Vec<(Index, StateHash)> = Vec::new();
            let mut told = Vec::new();
            for node in 0..NODES {
                let machine = self.client_of(node).machine(MACHINE).await;
                // One that halted does not count: it waits for its module, or it never comes back.
                let replica = machine.as_ref().ok().and_then(|machine| machine.replica.clone());
                let serving = replica.filter(|replica| replica.halted.is_none());
                stand.extend(serving.map(|replica| (replica.applied, replica.hash)));
                told.push(machine);
            }
            if stand.len() == NODES && stand.iter().all(|(index, _)| *index == stand[0].0) {
                assert!(stand.iter().all(|(_, hash)| *hash == stand[0].1), "the replicas differ: {stand:?}");
                return stand[0].1;
            }
            assert!(Instant::now() < deadline, "the replicas do not come together: {told:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            eprintln!("the nodes' data and what they said is left in {}", directory.keep().display());
        }
    }
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
