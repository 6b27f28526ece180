//! A node: opens a data directory, serves what is in it, stops.
//!
//! # Layout
//! - [`request`]: what callers ask and are told; `commands`, `machines`, `modules`: how that is done
//! - `open`: builds a node from the parts; `stage`: what its threads share
//! - `order`: steps the shard, for whoever brings something
//! - [`cluster`]: what makes a node part of a cluster
//! - `lane`, `applier`, `workers`: from committed entries to outcomes; `log_time`: the time that queries see
//! - `lockstep`: whether a replica still is one; `halt_note`: what is kept of one that
//!   is not; `explanation`: where it left the way of the others
//! - `machine`, `registry`, `reconcile`: the machines that are open here, in step with the catalog
//! - `background`: work that gives way; `door`: lets requests in, and knows how many are inside
//! - `leases`: what clients do with them; `renewals`: many as one operation; `renewed`: those of a moment
//!   ago; `expiry`: their ends
//! - `keeper`: flushes, cutting the log; `retention`: cutting event history; `saver`: snapshots of resident
//!   machines; `rounds`: their threads; `history`: what resident machines are rebuilt from
//! - `recovery`: what a crash left of snapshots; `removal`: ends what there is of deleted machines
//! - `sessions`: exactly-once commands: opening, closing, what their errors say
//! - `settings`: of machines
//! - [`watches`]: who watches machines through this node
//! - `shelf`: modules; `components`: those of one machine; `metrics`: what is counted; `report`: how nodes
//!   and replicas are

mod applier;
mod background;
mod cluster;
mod commands;
mod components;
pub mod config;
mod door;
mod expiry;
mod explanation;
mod halt_note;
mod history;
mod keeper;
mod lane;
pub mod leases;
mod lockstep;
mod log_time;
mod machine;
mod machines;
mod metrics;
mod modules;
mod open;
mod order;
mod reconcile;
mod recovery;
mod registry;
mod removal;
mod renewals;
pub mod renewed;
mod report;
pub mod request;
mod retention;
mod rounds;
mod saver;
mod sessions;
mod settings;
mod shelf;
#[cfg(test)]
mod simulation;
mod stage;
pub mod watches;
mod workers;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use self::config::NodeConfig;
use self::door::{Door, Inside};
use self::lane::Lane;
use self::open::{Found, Opened, Threads};
use self::registry::Registry;
use self::removal::Removal;
use self::renewals::Renewals;
use self::renewed::Renewed;
use self::request::NodeStatus;
use self::shelf::Shelf;
use self::stage::Stage;
use crate::catalog::{CATALOG_MODULE, Catalog, Change, MachineRecord, NodeRecord};
use crate::error::{Error, Fault};
use crate::id::{GroupId, NodeId};
use crate::machine::batch::Operation;
use crate::net::Net;
use crate::storage::directory::Directory;
use crate::time::Clock;

/// How long a node that starts waits until it tells the catalog again what it could not tell it.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Queries that may use the full budget at the same time: each may take a thread and an instance's memory.
const LONG_QUERIES_MAX: usize = 8;

/// Of those, how many may be of one machine, so that a guest that loops leaves room for the others.
const LONG_QUERIES_OF_ONE_MAX: usize = 2;

/// How long a stopping node waits for guests at work, unless told otherwise.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// A running node. Copies are the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

/// Everything of a node.
struct Inner {
    config: NodeConfig,
    directory: Directory,
    stage: Arc<Stage>,
    shelf: Arc<Shelf>,
    registry: Arc<Registry>,
    removal: Arc<Removal>,
    /// The node's copy of the catalog, as of its last applied batch.
    catalog: Arc<ArcSwap<Catalog>>,
    catalog_changes: Arc<watch::Sender<u64>>,
    catalog_lane: Arc<Lane>,
    found: Mutex<Found>,
    threads: Mutex<Option<Threads>>,
    /// Brings the node from its start to where it serves.
    taking_up: Mutex<Option<JoinHandle<Result<(), Error>>>>,
    /// Whether the machines of the catalog were opened.
    ready: watch::Sender<bool>,
    /// The tasks that keep this node in step with the catalog, and how they are told to end.
    tasks: Mutex<Vec<JoinHandle<()>>>,
    stopping: watch::Sender<bool>,
    /// Requests that are under way here, and whether the node is about to stop.
    door: Door,
    long_queries: Semaphore,
    renewals: Renewals,
    renewed: Renewed,
}

impl Inner {
    /// This node's id.
    fn id(&self) -> NodeId {
        self.directory.node().unwrap_or_default()
    }
}

/// Opening, looking after, stopping.
impl Node {
    /// Opens the node of a data directory and has it take up its machines.
    ///
    /// # Errors
    /// `FailedPrecondition` if the directory is held by another process, or needs `bootstrap` or `join`;
    /// `Damaged` names what does not read as it was written.
    pub async fn open(config: NodeConfig) -> Result<Node, Error> {
        let node = Node::begin(config).await?;
        match node.opened().await {
            Ok(()) => Ok(node),
            Err(error) => {
                node.shutdown().await;
                Err(error)
            }
        }
    }

    /// The same without waiting for the machines, which takes as long as the other nodes of the cluster are
    /// not there: until [`opened`](Node::opened) ends, requests are answered `Unavailable`.
    ///
    /// # Errors
    /// As of [`open`](Node::open).
    pub async fn begin(mut config: NodeConfig) -> Result<Node, Error> {
        let joined = cluster::join::enter(&config).await?;
        // Who introduced it is not needed any more, and may be a node of this process.
        config.join = None;
        let net = joined.net.clone();
        let opened = tokio::task::spawn_blocking(move || open::open(config, joined)).await;
        let opened = opened.map_err(|e| Fault::new(format!("opening the node panicked: {e}")).into());
        let Opened { inner, gate, foreseen, errands } = match opened.flatten() {
            Ok(opened) => opened,
            Err(why) => {
                if let Some(net) = net {
                    net.shutdown().await;
                }
                return Err(why);
            }
        };
        let node = Node { inner: Arc::new(inner) };
        node.meet_peers(&gate, &foreseen);
        let running = tokio::spawn(cluster::run_errands(node.inner.clone(), errands));
        node.inner.tasks.lock().push(running);
        let taking_up = node.clone();
        *node.inner.taking_up.lock() = Some(tokio::spawn(async move { taking_up.take_up().await }));
        Ok(node)
    }

    /// Waits until the machines are open, once.
    ///
    /// # Errors
    /// Why they are not.
    pub async fn opened(&self) -> Result<(), Error> {
        let taking_up = self.inner.taking_up.lock().take();
        let Some(taking_up) = taking_up else { return self.ready() };
        taking_up.await.map_err(|e| Fault::new(format!("taking up the machines panicked: {e}")))?
    }

    /// Begins to hear the others, and tells the peer link where they are.
    fn meet_peers(&self, gate: &cluster::Gate, foreseen: &Catalog) {
        gate.open(&self.inner);
        if let (Some(net), Some(identity)) = (&self.inner.stage.net, self.inner.directory.identity()) {
            for contact in &identity.contacts {
                net.locate(NodeId(contact.node), Some(contact.peer_address.clone()));
            }
        }
        cluster::locate_all(&self.inner, &Catalog::default(), foreseen);
    }

    /// Brings the catalog up to date, opens its machines, ends creations that were cut short.
    async fn take_up(&self) -> Result<(), Error> {
        self.catch_up().await?;
        if self.inner.catalog_lane.published().head.module.is_none() {
            self.propose(GroupId::CATALOG, Operation::create(CATALOG_MODULE, Bytes::new())).await?;
        }
        self.register().await?;
        let mut tasks = vec![tokio::spawn(reconcile::run(self.inner.clone()))];
        tasks.push(self.spawn(self.clone().end_leases()));
        if self.inner.stage.net.is_some() {
            tasks.push(tokio::spawn(cluster::look_after_groups(self.inner.clone())));
            tasks.push(tokio::spawn(self.clone().grow_older()));
        }
        self.inner.tasks.lock().append(&mut tasks);
        let mut ready = self.inner.ready.subscribe();
        let mut failure = self.inner.stage.failure.subscribe();
        tokio::select! {
            _ = ready.wait_for(|ready| *ready) => {}
            _ = failure.wait_for(Option::is_some) => {}
        }
        self.check_alive()?;
        if self.inner.stage.net.is_none() {
            // Alone, it is this node's to end what it began. In a cluster the leader of the group does.
            let catalog = self.inner.catalog.load_full();
            for record in catalog.machines.values().filter(|record| !record.ready) {
                self.end_creation(MachineRecord::clone(record)).await;
            }
        }
        Ok(())
    }

    /// Waits until the catalog here is as of a moment after this began. Without a leader it goes on waiting:
    /// the other nodes may start later.
    async fn catch_up(&self) -> Result<(), Error> {
        loop {
            match self.read_point(GroupId::CATALOG, false).await {
                Ok(point) => return self.inner.catalog_lane.wait_applied(point.index).await,
                Err(Error::Unavailable(why)) => {
                    tracing::info!(why, "waiting for the other nodes of the cluster");
                    // What was heard meanwhile may say where more of them are.
                    cluster::locate_all(&self.inner, &Catalog::default(), &self.inner.catalog.load());
                    self.check_alive()?;
                    if *self.inner.stopping.borrow() {
                        return Err(Error::Unavailable("the node is stopping".into()));
                    }
                }
                Err(why) => return Err(why),
            }
        }
    }

    /// Has the catalog know this node as it is now, and how old its data is, at each start.
    async fn register(&self) -> Result<(), Error> {
        self.introduce_itself().await?;
        let inner = self.inner.clone();
        let noted = tokio::task::spawn_blocking(move || inner.directory.life_is_known()).await;
        noted.map_err(|e| {
            Fault::new(format!("noting in the directory that the start is known panicked: {e}"))
        })??;
        Ok(())
    }

    async fn introduce_itself(&self) -> Result<(), Error> {
        let net = self.inner.stage.net.as_deref();
        let mut own = cluster::record(cluster::join::introduction(&self.inner.config, self.id(), net));
        if let Some(age) = net.map(Net::age) {
            (own.age, own.life) = (age.age, age.life);
        }
        let known = self.inner.catalog.load().nodes.get(&self.id()).cloned();
        let told = |node: &NodeRecord| {
            let clients = (node.client_address.clone(), node.etcd_address.clone());
            (node.peer_address.clone(), clients, node.version.clone(), node.age, node.life)
        };
        if known.is_some_and(|known| told(&known) == told(&own)) {
            return Ok(());
        }
        loop {
            match self.change_catalog(Change::AddNode(own.clone())).await {
                // Done twice it is as if it was done once. A leader that goes is no reason not to start.
                Err(why @ (Error::Unavailable(_) | Error::NotLeader { .. } | Error::Unknown(_)))
                    if !*self.inner.stopping.borrow() =>
                {
                    self.check_alive()?;
                    tracing::info!(%why, "the catalog was not told of this start: again");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                told => return told.map(drop),
            }
        }
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.inner.id()
    }

    /// Runs a task that the node's stop cuts off, so that it holds nothing of the node after that.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let mut stopping = self.inner.stopping.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        })
    }

    /// Whether the node serves.
    pub fn ready(&self) -> Result<(), Error> {
        self.check_alive()?;
        if *self.inner.ready.borrow() {
            Ok(())
        } else {
            let text = "the node is starting: it replays its log, or waits for the others of its cluster";
            Err(Error::Unavailable(text.into()))
        }
    }

    /// Ends when the node has stopped serving because this computer failed.
    pub async fn failed(&self) -> Fault {
        let mut failure = self.inner.stage.failure.subscribe();
        match failure.wait_for(Option::is_some).await.map(|fault| fault.clone()) {
            Ok(Some(fault)) => fault,
            _ => Fault::new("the node was dropped"),
        }
    }

    /// Stops the node: what it leads is handed over to other nodes, requests under way end, a last checkpoint
    /// is made, and everything is closed. Later requests are told that it is stopping and that they were not
    /// done. The data directory is free when the last copy of the node is dropped, and what was asked of it
    /// has ended.
    ///
    /// Commands that are in the log are applied first, but what takes longer than five seconds is stopped
    /// where it is; the next start applies the rest. [`shutdown_within`](Node::shutdown_within) waits longer,
    /// or not at all.
    pub async fn shutdown(&self) {
        self.shutdown_within(SHUTDOWN_PATIENCE).await;
    }

    /// The same with another time for requests and guests at work.
    pub async fn shutdown_within(&self, patience: Duration) {
        let clock = Clock::start();
        let left = || patience.saturating_sub(Duration::from_nanos(clock.elapsed_ns()));
        self.hand_over_within(left()).await;
        self.close_door();
        if self.inner.stage.failure().is_none() {
            // Those that are still there when the time is over learn that their fate is unknown.
            let _ = tokio::time::timeout(left(), self.inner.door.all_gone()).await;
        }
        let patience = left();
        self.inner.stopping.send_replace(true);
        let stopped = self.stop_all();
        tokio::pin!(stopped);
        if tokio::time::timeout(patience, &mut stopped).await.is_err() {
            let waited_ms = patience.as_millis() as u64;
            tracing::warn!(
                waited_ms,
                "guests are still at work: they are stopped, and the next start goes on"
            );
            self.inner.stage.interrupted.store(true, Ordering::Release);
            self.inner.shelf.interrupt();
            stopped.await;
        }
    }

    async fn stop_all(&self) {
        let taking_up = self.inner.taking_up.lock().take();
        if let Some(taking_up) = taking_up {
            taking_up.abort();
        }
        let tasks = std::mem::take(&mut *self.inner.tasks.lock());
        for task in tasks {
            if let Err(panic) = task.await {
                tracing::error!(%panic, "a task of the node panicked");
            }
        }
        if let Some(net) = &self.inner.stage.net {
            net.shutdown().await;
        }
        let threads = self.inner.threads.lock().take();
        if let Some(threads) = threads
            && let Err(panic) = tokio::task::spawn_blocking(move || threads.stop()).await
        {
            tracing::error!(%panic, "stopping the node panicked");
        }
    }

    /// Where the node stands.
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            node: self.id(),
            name: self.inner.config.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            engine: self.inner.shelf.fingerprint().to_owned(),
            uptime: Duration::from_nanos(self.inner.stage.clock.elapsed_ns()),
            data_dir: self.inner.directory.root().to_owned(),
            machines: self.machines(),
            modules: self.inner.catalog.load().modules.len(),
        }
    }

    /// What Prometheus scrapes.
    pub async fn metrics(&self) -> String {
        let report = self.report().await;
        let queued = self.inner.stage.watches.budget().bytes();
        self.inner.stage.metrics.watch_queue_bytes.set(queued as i64);
        let peers = self.inner.stage.net.as_ref().map(|net| net.counters()).unwrap_or_default();
        self.inner.stage.metrics.text(&report, &peers)
    }

    /// Lets a request in. A node that has failed says so first.
    fn enter(&self) -> Result<Inside<'_>, Error> {
        self.check_alive()?;
        self.inner.door.enter()
    }

    fn check_alive(&self) -> Result<(), Error> {
        match self.inner.stage.failure() {
            None => Ok(()),
            Some(fault) => Err(Error::Fault(fault)),
        }
    }
}
