//! Builds a node from the parts: the only place where they meet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Inner;
use super::applier::{Applier, Behavior, OnWrites};
use super::config::NodeConfig;
use super::keeper::{self, KeeperSettings};
use super::lane::{Lane, Published};
use super::metrics::Metrics;
use super::order::{Order, Orders};
use super::registry::Registry;
use super::removal::Removal;
use super::rounds::Rounds;
use super::saver;
use super::shelf::Shelf;
use super::stage::{Stage, record_failure};
use super::workers::Workers;
use crate::catalog::{Catalog, CatalogGuest};
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index, ReplicaId, Term};
use crate::inbox;
use crate::machine::batch::Head;
use crate::raft::{GroupStart, Input, ShardConfig};
use crate::storage::directory::{Directory, Identity};
use crate::storage::entry::{GroupLog, Membership};
use crate::storage::log::{LogDb, LogThread};
use crate::storage::modules::Modules;
use crate::storage::snapshot::{self, Snapshots};
use crate::storage::state::StateDb;
use crate::time::{self, Clock};
use crate::wasm::Engine;

/// The only replica of a group on a node that is alone.
pub(super) const SOLE_REPLICA: ReplicaId = ReplicaId(1);

/// What the databases held when the node started, of groups that are not open yet.
#[derive(Default)]
pub struct Found {
    logs: BTreeMap<GroupId, GroupLog>,
    heads: BTreeMap<GroupId, Head>,
    /// Machines that are not whole: why, and what to do.
    broken: BTreeMap<GroupId, String>,
}

impl Found {
    /// Every group of which something is there, but not in `known`.
    pub fn strangers(&self, known: &BTreeSet<GroupId>) -> BTreeSet<GroupId> {
        let groups = self.logs.keys().chain(self.heads.keys()).chain(self.broken.keys());
        groups.copied().filter(|group| !known.contains(group)).collect()
    }

    /// Why what is there of a group must not be served, if that is so.
    pub fn broken(&self, group: GroupId) -> Option<&str> {
        self.broken.get(&group).map(String::as_str)
    }

    /// Takes what is there of a group.
    pub fn take(&mut self, group: GroupId) -> (GroupLog, Head) {
        (self.logs.remove(&group).unwrap_or_default(), self.heads.remove(&group).unwrap_or_default())
    }
}

/// The threads of a node, in the order in which they are ended.
pub struct Threads {
    saver: Rounds,
    keeper: Rounds,
    orders: Orders,
    order: JoinHandle<()>,
    workers: Workers,
    removal: Rounds,
    log: LogThread,
}

impl Threads {
    /// Ends them all: a last checkpoint, no more orders, what is queued applied, the log closed. Blocks.
    pub fn stop(self) {
        self.saver.stop();
        self.keeper.stop();
        self.orders.end();
        join("order", self.order);
        self.workers.stop();
        self.removal.stop();
        if let Err(fault) = self.log.stop() {
            tracing::error!(%fault, "the log did not close: the next start reads what was synced");
        }
    }
}

fn join(name: &str, thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!(name, "a thread of the node panicked");
    }
}

/// Opens the data directory and starts the threads. Blocks.
pub fn open(config: NodeConfig) -> Result<Inner, Error> {
    let directory = hold_directory(&config)?;
    let (log_db, logs) = LogDb::open(&directory.log())?;
    let (state, opened) = StateDb::open(&directory.state(), config.state_sizes())?;
    let snapshots = Snapshots::open(&directory.snapshots())?;
    let modules = Modules::open(&directory.modules(), config.limits.module_bytes_max)?;
    let engine = Engine::new(config.engine_settings())?;
    let shelf = Shelf::new(modules, engine, config.compiler(), config.limits.module_bytes_max);

    let clock = Clock::start();
    let orders = Orders::default();
    let (ready, ready_receiver) = inbox::new();
    let failure = watch::Sender::new(None);
    let log_reader = log_db.reader();
    let log = start_log(log_db, orders.clone(), failure.clone())?;
    let stage = Arc::new(Stage {
        log: log.queue(),
        log_reader,
        state: Arc::new(state),
        snapshots,
        orders: orders.clone(),
        clock,
        metrics: Metrics::default(),
        unflushed_bytes: AtomicU64::new(0),
        ready,
        failure,
        interrupted: AtomicBool::new(false),
    });
    let registry = Arc::new(Registry::default());
    let shard = ShardConfig::new(directory.node().unwrap_or_default(), time::seed());
    let order = orders.start(shard, clock, stage.clone())?;
    let workers = Workers::start(config.apply_workers, ready_receiver, stage.clone())?;
    let keeper = keeper::start(keeper_settings(&config), stage.clone(), registry.clone())?;
    let saver = saver::start(config.resident_snapshot_entries, stage.clone(), registry.clone())?;
    let (removal, removing) = Removal::start(stage.clone())?;
    let threads = Threads { saver, keeper, orders, order, workers, removal: removing, log };

    let mut found = Found { logs, heads: opened.heads, broken: BTreeMap::new() };
    finish_replacements(&stage, &opened.interrupted, &mut found)?;
    let catalog = Arc::new(ArcSwap::from_pointee(Catalog::load(&*stage.state.view(GroupId::CATALOG))?));
    let catalog_changes = Arc::new(watch::Sender::new(0));
    let catalog_lane = open_catalog(&stage, &mut found, catalog.clone(), catalog_changes.clone());
    Ok(Inner {
        config,
        directory,
        stage,
        shelf,
        registry,
        removal,
        catalog,
        catalog_changes,
        catalog_lane,
        found: Mutex::new(found),
        threads: Mutex::new(Some(threads)),
        ready: watch::Sender::new(false),
        reconciling: Mutex::new(None),
        stopping: watch::Sender::new(false),
        long_queries: tokio::sync::Semaphore::new(super::LONG_QUERIES_MAX),
    })
}

/// Takes the data directory, and gives it an identity if this is the first start of a new cluster.
fn hold_directory(config: &NodeConfig) -> Result<Directory, Error> {
    let mut directory = Directory::open(&config.data_dir, &config.name)?;
    if directory.identity().is_some() {
        return Ok(directory);
    }
    if !config.bootstrap {
        return Err(Error::FailedPrecondition(format!(
            "the data directory {} is empty: start the node once with --bootstrap to begin a new cluster",
            config.data_dir.display()
        )));
    }
    let identity = Identity { node: time::seed(), name: config.name.clone(), cluster: time::seed() };
    directory.establish(identity)?;
    Ok(directory)
}

/// Installs again the snapshots whose installation was cut short. A machine whose snapshot does not serve is
/// not whole, and is noted as broken; without the catalog there is no node.
fn finish_replacements(
    stage: &Stage,
    interrupted: &BTreeMap<GroupId, Index>,
    found: &mut Found,
) -> Result<(), Error> {
    for (&group, &index) in interrupted {
        let installed =
            stage.snapshots.read(group, index).and_then(|snapshot| snapshot::install(&stage.state, snapshot));
        match installed {
            Ok(header) => {
                tracing::warn!(%group, %index, "a snapshot is installed again: that was cut short");
                found.heads.insert(group, header.head);
            }
            Err(Error::Fault(fault)) => return Err(fault.into()),
            Err(why) => {
                let what = format!(
                    "its rows were being replaced by the snapshot at index {index} when the node stopped, \
                     and that cannot be done again: {why}"
                );
                if group == GroupId::CATALOG {
                    return Err(Error::Damaged(format!(
                        "the catalog is not whole: {what}. Restore this data directory from a backup, or \
                         remove it and let the node catch up from its peers"
                    )));
                }
                found.broken.insert(group, what);
            }
        }
    }
    Ok(())
}

fn start_log(log: LogDb, orders: Orders, failure: watch::Sender<Option<Fault>>) -> Result<LogThread, Fault> {
    let stop = orders.clone();
    let on_done = move |done: Vec<(GroupId, u64)>| {
        let persisted = |(group, number)| Order::Shard(Input::Persisted { group, number });
        orders.send_all(done.into_iter().map(persisted));
    };
    let on_failure = move |fault: Fault| record_failure(&failure, &stop, fault);
    LogThread::start(log, on_done, on_failure)
}

fn keeper_settings(config: &NodeConfig) -> KeeperSettings {
    KeeperSettings { flush_bytes: config.flush_bytes, flush_interval_ms: config.flush_interval_ms }
}

/// Opens group 0, whose applier keeps the node's copy of the catalog up to date.
fn open_catalog(
    stage: &Arc<Stage>,
    found: &mut Found,
    catalog: Arc<ArcSwap<Catalog>>,
    changes: Arc<watch::Sender<u64>>,
) -> Arc<Lane> {
    let on_writes: OnWrites = Box::new(move |writes| {
        let mut next = Catalog::clone(&catalog.load());
        next.absorb(writes)?;
        catalog.store(Arc::new(next));
        changes.send_modify(|count| *count += 1);
        Ok(())
    });
    let behavior = Behavior::Stored(Box::new(CatalogGuest));
    open_lane(stage, found, GroupId::CATALOG, behavior, Some(on_writes))
}

/// Makes a group's lane and has the shard take the group up.
pub fn open_lane(
    stage: &Arc<Stage>,
    found: &mut Found,
    group: GroupId,
    behavior: Behavior,
    on_writes: Option<OnWrites>,
) -> Arc<Lane> {
    let (mut log, head) = found.take(group);
    if log.membership.1.voters.is_empty() {
        log.membership = (Index(0), Membership { voters: vec![SOLE_REPLICA.0], ..Membership::default() });
    }
    let published = Published {
        head,
        term: Term(0),
        view: stage.state.snapshot_view(group),
        at_ms: stage.clock.now().monotonic_ms,
    };
    let applier = Applier::new(group, head, stage.state.view(group), behavior, on_writes);
    let lane = Arc::new(Lane::new(group, applier, published));
    stage.orders.send(Order::Attach(lane.clone()));
    let start = GroupStart {
        group,
        replica: SOLE_REPLICA,
        log,
        applied: head.index,
        time_floor: head.time,
        nodes: Vec::new(),
    };
    stage.orders.send(Order::Shard(Input::Open(Box::new(start))));
    lane
}
