//! The nodes of a soak, in this process, each with a directory of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use statehouse_kv::Call;
use statehouse_kv::messages::RangeRequest;
use tempfile::TempDir;

use super::report::Report;
use super::writers::Writers;
use crate::error::Error;
use crate::node::Node;
use crate::node::config::{CompileIn, Join, NodeConfig, PeerConfig};
use crate::node::request::{Consistency, ReplicaLog};
use crate::time::Clock;

/// The machine that is used.
pub const MACHINE: &str = "soak";

/// How long anything may take before the soak gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often it is looked.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The log is cut so often, if there is anything to cut.
const CUT_INTERVAL_MS: u64 = 200;

/// The nodes.
pub struct Cluster {
    members: Vec<Member>,
    keep_entries: u64,
    /// Removed at the end.
    _temporary: Option<TempDir>,
}

struct Member {
    name: String,
    data_dir: std::path::PathBuf,
    /// Where it listened first: it comes back there.
    peer_address: String,
    /// None: it is down.
    node: Option<Node>,
}

impl Cluster {
    /// Starts so many nodes.
    pub async fn start(nodes: u16, keep_entries: u64, data_dir: Option<&Path>) -> anyhow::Result<Cluster> {
        let temporary = match data_dir {
            None => Some(tempfile::tempdir().context("cannot make a temporary directory")?),
            Some(directory) => {
                check_empty(directory)?;
                None
            }
        };
        let root = temporary.as_ref().map(TempDir::path).or(data_dir).unwrap_or(Path::new("."));
        let member = |number: u16| Member {
            name: format!("node-{}", number + 1),
            data_dir: root.join(format!("node-{}", number + 1)),
            peer_address: "127.0.0.1:0".into(),
            node: None,
        };
        let members = (0..nodes).map(member).collect();
        let mut cluster = Cluster { members, keep_entries, _temporary: temporary };
        for number in 0..cluster.members.len() {
            cluster.open(number).await?;
        }
        let all = cluster.members.len();
        wait("all nodes know each other", async || {
            Ok(cluster.running().all(|node| node.members().len() == all).then_some(()))
        })
        .await?;
        Ok(cluster)
    }

    /// Makes a machine with a replica on each node.
    pub async fn make_machine(&self) -> anyhow::Result<()> {
        let first = self.any(0);
        let module = first.builtin("kv").await?;
        match first.create_replicated(MACHINE, module, Bytes::new(), self.members.len() as u32).await {
            // Nodes that compile its module for longer than anybody waits go on with it.
            Ok(_) | Err(Error::Unknown(_)) => {}
            Err(why) => return Err(why).context("the machine is not made"),
        }
        wait("the machine is made", async || {
            let request = RangeRequest { key: b"any".to_vec(), ..RangeRequest::default() };
            let read = first.query(MACHINE, request.to_envelope().into(), Consistency::Linearizable).await;
            Ok(read.is_ok().then_some(()))
        })
        .await
    }

    /// Stops all nodes.
    pub async fn stop(self) {
        for node in self.running() {
            node.shutdown().await;
        }
    }

    async fn open(&mut self, number: usize) -> anyhow::Result<()> {
        let introducer = self.running().next().cloned();
        let member = &self.members[number];
        let config = NodeConfig {
            bootstrap: introducer.is_none(),
            join: introducer.map(|node| Join(Arc::new(node))),
            peer: Some(PeerConfig { listen: member.peer_address.clone(), advertise: None }),
            compile_in: CompileIn::Process(
                std::env::current_exe().context("cannot find this program's file")?,
            ),
            log_keep_entries: self.keep_entries,
            flush_interval_ms: CUT_INTERVAL_MS,
            ..NodeConfig::new(&member.data_dir, &member.name)
        };
        let node = Node::open(config).await.with_context(|| format!("{} does not start", member.name))?;
        let member = &mut self.members[number];
        member.peer_address = node.peer_address().unwrap_or_else(|| member.peer_address.clone());
        member.node = Some(node);
        Ok(())
    }

    fn running(&self) -> impl Iterator<Item = &Node> {
        self.members.iter().filter_map(|member| member.node.as_ref())
    }

    /// One of those that run: the next one for the next number.
    pub fn any(&self, number: u64) -> &Node {
        let count = self.running().count();
        let found = self.running().nth(number as usize % count.max(1));
        found.expect("a majority of the nodes is never taken down")
    }

    /// The node that leads the machine.
    async fn leader(&self) -> anyhow::Result<&Node> {
        wait("somebody leads the machine", async || {
            let leads = |node: &&Node| {
                let replica = node.machine(MACHINE).ok().and_then(|machine| machine.replica);
                replica.is_some_and(|replica| replica.leader == Some(node.status().node))
            };
            Ok(self.running().find(leads))
        })
        .await
    }

    /// Stops a node. Up to where its replica has applied the log.
    pub async fn take_down(&mut self, number: usize) -> anyhow::Result<u64> {
        let applied = self.log_of(number).await?.applied;
        if let Some(node) = self.members[number].node.take() {
            node.shutdown().await;
        }
        Ok(applied)
    }

    /// Starts a node again and waits until its replica has come as far as the others were, counting what it
    /// took.
    pub async fn bring_back(
        &mut self,
        number: usize,
        applied_before: u64,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let leader = self.leader_log().await?;
        let needs_snapshot = leader.start > applied_before;
        report.reseeds_started += u64::from(needs_snapshot);
        report.lag_max = report.lag_max.max(leader.committed.saturating_sub(applied_before));
        self.open(number).await?;
        let log = wait("a replica that was down catches up", async || {
            let log = self.log_of(number).await.ok();
            Ok(log.filter(|log| log.applied >= leader.committed && log.halted.is_none()))
        })
        .await?;
        // Nothing else moves the start of a log past entries that were never in it.
        report.reseeds_finished += u64::from(needs_snapshot && log.start > applied_before);
        Ok(())
    }

    /// Hands the leadership to another node, and has the one that led try to write.
    pub async fn change_leader(&self, writers: &Writers, report: &mut Report) -> anyhow::Result<()> {
        let deposed = self.leader().await?;
        let own = deposed.status().node;
        let Some(next) = self.running().find(|node| node.status().node != own) else { return Ok(()) };
        match deposed.transfer_leader(Some(MACHINE), &next.status().name).await {
            Ok(()) => report.leader_changes += 1,
            // Under load it may not come about in time: the next one will.
            Err(Error::Unavailable(_)) => return Ok(()),
            Err(why) => return Err(why).context("the leadership cannot be handed over"),
        }
        let (place, value, command) = writers.single();
        match deposed.apply_as_leader(MACHINE, command).await {
            Err(Error::NotLeader { .. }) => report.stale_refusals += 1,
            told => writers.note_single(place, value, told.map(|applied| applied.outcome))?,
        }
        Ok(())
    }

    /// Waits until the logs of those that run are cut.
    pub async fn cut_log(&self) -> anyhow::Result<()> {
        let leader = self.leader_log().await?;
        let keep = self.keep_entries;
        // What is kept is a floor: a log that is shorter is not cut at all.
        if leader.committed <= keep {
            return Ok(());
        }
        wait("the log is cut", async || {
            let log = self.leader_log().await?;
            Ok((log.start + 2 * keep >= leader.committed).then_some(()))
        })
        .await
    }

    /// Has all replicas compare themselves with the leader. How many differ.
    pub async fn compare(&self) -> anyhow::Result<u64> {
        wait("the replicas can be compared", async || {
            let verified = match self.any(0).verify_machine(MACHINE).await {
                Ok(verified) => verified,
                Err(Error::Unavailable(_) | Error::NotLeader { .. } | Error::Unknown(_)) => return Ok(None),
                Err(why) => return Err(why.into()),
            };
            let failures: Vec<&String> =
                verified.replicas.iter().filter_map(|replica| replica.standing.as_ref().err()).collect();
            let differing = failures.iter().filter(|why| why.contains("no longer in lockstep")).count();
            // A replica that cannot be asked yet says nothing.
            Ok((differing == failures.len()).then_some(differing as u64))
        })
        .await
    }

    async fn leader_log(&self) -> anyhow::Result<ReplicaLog> {
        let leader = self.leader().await?.status().node;
        let number = self
            .members
            .iter()
            .position(|member| member.node.as_ref().is_some_and(|node| node.status().node == leader));
        self.log_of(number.context("the leader runs")?).await
    }

    /// Where a node's replica stands in its log.
    async fn log_of(&self, number: usize) -> anyhow::Result<ReplicaLog> {
        let node = self.members[number].node.as_ref().context("the node is down")?;
        let own = node.status().node;
        let replicas = node.replicas(MACHINE).await?;
        let found = replicas.into_iter().find(|replica| replica.node == own);
        let log = found.context("the node has no replica")?.log;
        log.map_err(|why| anyhow::anyhow!("where a replica stands cannot be said: {why}"))
    }
}

fn check_empty(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut entries =
        std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    anyhow::ensure!(
        entries.next().is_none(),
        "{} is not empty: a soak begins with nothing; give it another directory",
        directory.display()
    );
    Ok(())
}

/// Looks again and again until there is something.
async fn wait<T>(what: &str, look: impl AsyncFn() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let clock = Clock::start();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        let waited = Duration::from_nanos(clock.elapsed_ns());
        anyhow::ensure!(waited < PATIENCE, "in vain for {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
