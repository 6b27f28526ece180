//! A cluster of nodes in this process, each with a directory and a port of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use statehouse::error::Error;
use statehouse::id::StateHash;
use statehouse::node::Node;
use statehouse::node::config::{Join, NodeConfig, PeerConfig};
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

/// How long anything may take: the machines that run the tests are slow and busy.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Cluster {
    members: Vec<Member>,
    settings: fn(&mut NodeConfig),
}

struct Member {
    directory: tempfile::TempDir,
    name: String,
    /// Where it listened first: it comes back there.
    peer_address: String,
    node: Option<Node>,
}

impl Cluster {
    pub async fn of(nodes: usize) -> Cluster {
        Cluster::with(nodes, |_| {}).await
    }

    /// A cluster whose nodes have other settings.
    pub async fn with(nodes: usize, settings: fn(&mut NodeConfig)) -> Cluster {
        let mut cluster = Cluster { members: Vec::new(), settings };
        for _ in 0..nodes {
            cluster.join().await;
        }
        cluster.wait("all nodes know each other", |node| node.members().len() == nodes).await;
        cluster
    }

    /// Adds a node: the first begins the cluster, the others join it.
    pub async fn join(&mut self) {
        let name = format!("n{}", self.members.len() + 1);
        let directory = tempfile::tempdir().unwrap();
        let node = Node::open(self.config(&directory, &name, "127.0.0.1:0")).await.unwrap();
        let peer_address = node.peer_address().unwrap();
        self.members.push(Member { directory, name, peer_address, node: Some(node) });
    }

    /// Tries to add a node of a name; what it is told if that fails.
    pub async fn try_join(&self, name: &str) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        match Node::open(self.config(&directory, name, "127.0.0.1:0")).await {
            Ok(node) => {
                node.shutdown().await;
                Ok(())
            }
            Err(why) => Err(why.to_string()),
        }
    }

    fn config(&self, directory: &tempfile::TempDir, name: &str, listen: &str) -> NodeConfig {
        let introducer = self.members.iter().find_map(|member| member.node.clone());
        let mut config = NodeConfig {
            bootstrap: introducer.is_none(),
            join: introducer.map(|node| Join(Arc::new(node))),
            peer: Some(PeerConfig { listen: listen.into(), advertise: None }),
            // Clusters of several tests share this process's address space.
            instances_max: 256,
            ..NodeConfig::new(directory.path(), name)
        };
        (self.settings)(&mut config);
        config
    }

    pub fn node(&self, number: usize) -> &Node {
        self.members[number].node.as_ref().expect("it runs")
    }

    /// Those that run.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.members.iter().filter_map(|member| member.node.as_ref())
    }

    pub fn directory(&self, number: usize) -> &std::path::Path {
        self.members[number].directory.path()
    }

    /// Whether a node leads a machine's group, as far as it knows.
    pub fn leads(&self, number: usize, machine: &str) -> bool {
        let node = self.node(number);
        let replica = node.machine(machine).ok().and_then(|machine| machine.replica);
        replica.is_some_and(|replica| replica.leader == Some(node.status().node))
    }

    pub async fn stop(&mut self, number: usize) {
        let node = self.members[number].node.take().expect("it runs");
        node.shutdown().await;
    }

    /// Starts all nodes, none of which runs, at the same time: they wait for each other.
    pub async fn start_all(&mut self) {
        let configs: Vec<NodeConfig> = self
            .members
            .iter()
            .map(|member| self.config(&member.directory, &member.name, &member.peer_address))
            .collect();
        let opening = futures_util::future::join_all(configs.into_iter().map(Node::open));
        let opened = tokio::time::timeout(PATIENCE, opening).await.expect("they start in time");
        for (member, node) in self.members.iter_mut().zip(opened) {
            member.node = Some(node.unwrap());
        }
    }

    /// Starts a node that was stopped.
    pub async fn start(&mut self, number: usize) {
        let member = &self.members[number];
        let config = self.config(&member.directory, &member.name, &member.peer_address);
        let opening = async {
            loop {
                match Node::open(config.clone()).await {
                    // A client that asks it at this moment holds its directory.
                    Err(Error::FailedPrecondition(why)) if why.contains("in use by process") => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    opened => break opened.unwrap(),
                }
            }
        };
        let node = tokio::time::timeout(PATIENCE, opening).await.expect("it starts in time");
        self.members[number].node = Some(node);
    }

    /// Starts a node that was stopped and is to fail; why it does.
    pub async fn start_failing(&self, number: usize) -> String {
        let member = &self.members[number];
        let config = self.config(&member.directory, &member.name, &member.peer_address);
        let failing = async {
            match Node::open(config).await {
                Err(why) => why.to_string(),
                Ok(node) => {
                    let why = node.failed().await.to_string();
                    node.shutdown().await;
                    why
                }
            }
        };
        tokio::time::timeout(PATIENCE, failing).await.expect("it fails in time")
    }

    pub async fn create_kv(&self, name: &str, replicas: u32) {
        let kv = self.node(0).builtin("kv").await.unwrap();
        self.node(0).create_replicated(name, kv, Bytes::new(), replicas).await.unwrap();
    }

    /// Waits until something holds on all nodes that run.
    pub async fn wait(&self, what: &str, holds: impl Fn(&Node) -> bool) {
        let waiting = async {
            while !self.nodes().all(&holds) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
    }

    /// Waits until all replicas of a machine stand at the same index, and compares their hashes.
    pub async fn assert_lockstep(&self, machine: &str) {
        let stands = |node: &Node| {
            let replica = node.machine(machine).ok()?.replica?;
            Some((replica.applied, replica.hash, replica.halted))
        };
        // A node may not have heard of the machine yet, or still be opening its replica.
        let is_due = |node: &&Node| {
            self.nodes()
                .filter_map(|any| any.machine(machine).ok())
                .any(|told| told.replicas.contains(&node.id()))
        };
        let mut last = Vec::new();
        for _ in 0..PATIENCE.as_millis() / 20 {
            last = self.nodes().filter_map(stands).collect();
            let complete = self.nodes().filter(is_due).all(|node| stands(node).is_some());
            let serving = last.iter().all(|(_, _, halted)| halted.is_none());
            if complete && serving && last.windows(2).all(|pair| pair[0].0 == pair[1].0) {
                let hashes: Vec<StateHash> = last.iter().map(|(_, hash, _)| *hash).collect();
                assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{machine} differs: {last:?}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the replicas of {machine} do not come together: {last:?}");
    }

    pub async fn shutdown(self) {
        let nodes: Vec<Node> = self.members.iter().filter_map(|member| member.node.clone()).collect();
        futures_util::future::join_all(nodes.iter().map(Node::shutdown)).await;
    }
}

/// Whether a node has a replica of the machine that can serve: one that waits for its module cannot.
pub fn serves(node: &Node, machine: &str) -> bool {
    let replica = node.machine(machine).ok().and_then(|machine| machine.replica);
    replica.is_some_and(|replica| replica.halted.is_none())
}

pub fn put(key: &str, value: &str) -> Bytes {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }.to_envelope().into()
}

pub async fn get(node: &Node, machine: &str, key: &str, consistency: Consistency) -> Option<String> {
    let request = RangeRequest { key: key.into(), ..Default::default() }.to_envelope();
    let answered = node.query(machine, request.into(), consistency).await.unwrap();
    let found = RangeRequest::answer(&answered.outcome.unwrap()).unwrap().kvs.pop();
    found.map(|kv| String::from_utf8(kv.value).unwrap())
}
