//! Builds a node from the parts: the only place where they meet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use super::Inner;
use super::applier::{Applier, Behavior, Changed, OnChange};
use super::cluster::join::Joined;
use super::cluster::{Courier, Errand, Gate, WaitingRoom, foresee, of_catalog};
use super::config::NodeConfig;
use super::door::Door;
use super::halt_note::HaltNote;
use super::keeper::{self, KeeperSettings};
use super::lane::{Lane, Published};
use super::lockstep::Memory;
use super::metrics::{Metrics, Stages};
use super::order::{Order, Orders};
use super::recovery;
use super::registry::Registry;
use super::removal::Removal;
use super::renewals::Renewals;
use super::renewed::Renewed;
use super::rounds::Rounds;
use super::saver;
use super::shelf::Shelf;
use super::stage::{Stage, record_failure};
use super::watches::Watches;
use super::workers::Workers;
use crate::catalog::{Catalog, CatalogGuest, FOUNDER};
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index, NodeId, ReplicaId, Term};
use crate::inbox;
use crate::machine::batch::Head;
use crate::machine::stored::Stored;
use crate::machine::view::View;
use crate::raft::{GroupStart, Input, ShardConfig};
use crate::storage::directory::Directory;
use crate::storage::entry::{GroupLog, Membership};
use crate::storage::log::{LogDb, LogThread};
use crate::storage::modules::Modules;
use crate::storage::snapshot::Snapshots;
use crate::storage::state::{self, StateDb};
use crate::time::{self, Clock};
use crate::wasm::Engine;
use crate::watch::{Bounds, Hub};

/// What the databases held when the node started, of groups that are not open yet.
#[derive(Default)]
pub struct Found {
    pub(super) logs: BTreeMap<GroupId, GroupLog>,
    pub(super) heads: BTreeMap<GroupId, Head>,
    /// Machines that are not whole: why, and what to do.
    pub(super) broken: BTreeMap<GroupId, String>,
    /// What was noted of machines whose state is not to be relied on.
    pub(super) halted: BTreeMap<GroupId, HaltNote>,
}

impl Found {
    /// What the databases hold, after a snapshot that was being installed is made good.
    fn of(
        logs: BTreeMap<GroupId, GroupLog>,
        opened: state::Opened,
        state: &StateDb,
        snapshots: &Snapshots,
        engine: &str,
    ) -> Result<Found, Error> {
        let halted = opened.halted.iter().map(|(group, note)| (*group, HaltNote::read(note))).collect();
        let mut found = Found { logs, heads: opened.heads, broken: BTreeMap::new(), halted };
        recovery::finish(state, snapshots, engine, &opened.interrupted, &mut found)?;
        Ok(found)
    }

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

/// What an open node consists of, and what its tasks are to run.
pub struct Opened {
    pub inner: Inner,
    pub gate: Arc<Gate>,
    /// The catalog as it will be if all of the log comes into force: where the other nodes may be.
    pub foreseen: Catalog,
    pub errands: UnboundedReceiver<Errand>,
}

/// Opens what is in the data directory and starts the threads. Blocks.
pub fn open(config: NodeConfig, joined: Joined) -> Result<Opened, Error> {
    let Joined { directory, gate, net } = joined;
    let ((log_db, logs), (state, opened)) = open_databases(&config, &directory)?;
    let snapshots = Snapshots::open(&directory.snapshots())?;
    let shelf = Arc::new(open_shelf(&config, &directory)?);
    let mut found = Found::of(logs, opened, &state, &snapshots, shelf.fingerprint())?;

    let (clock, orders) = (Clock::start(), Orders::default());
    let (ready, ready_receiver) = inbox::new();
    let (courier, errands) = Courier::new();
    let (failure, log_reader) = (watch::Sender::new(None), log_db.reader());
    let metrics = Metrics::default();
    let log = start_log(log_db, metrics.stages.clone(), orders.clone(), failure.clone())?;
    let stage = Arc::new(Stage {
        name: config.name.clone(),
        engine: shelf.fingerprint().to_owned(),
        log: log.queue(),
        log_reader,
        state: Arc::new(state),
        snapshots,
        orders: orders.clone(),
        net,
        courier,
        roles: watch::Sender::new(0),
        waiting_room: Arc::new(WaitingRoom::new(config.leader_wait_bytes_max, metrics.routed.clone())),
        watches: Watches::new(config.watch_queue_bytes_max),
        incoming: Mutex::default(),
        memory: Memory::default(),
        clock,
        metrics,
        unflushed_bytes: AtomicU64::new(0),
        ready,
        failure,
        interrupted: AtomicBool::new(false),
    });
    let registry = Arc::new(Registry::default());
    let order = orders.start(shard_config(&config, &directory), clock, stage.clone())?;
    let workers = Workers::start(config.apply_workers, ready_receiver, stage.clone())?;
    let keeper = keeper::start(keeper_settings(&config), stage.clone(), registry.clone())?;
    let saver = saver::start(config.resident_snapshot_entries, stage.clone(), registry.clone())?;
    let (removal, removing) = Removal::start(stage.clone())?;
    let threads = Threads { saver, keeper, orders, order, workers, removal: removing, log };

    let OpenCatalog { catalog, catalog_changes, catalog_lane, foreseen } =
        open_catalog(&stage, &directory, &mut found)?;
    let inner = Inner {
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
        taking_up: Mutex::default(),
        ready: watch::Sender::new(false),
        tasks: Mutex::default(),
        stopping: watch::Sender::new(false),
        door: Door::default(),
        long_queries: tokio::sync::Semaphore::new(super::LONG_QUERIES_MAX),
        renewals: Renewals::default(),
        renewed: Renewed::default(),
    };
    Ok(Opened { inner, gate, foreseen, errands })
}

type Databases = ((LogDb, BTreeMap<GroupId, GroupLog>), (StateDb, state::Opened));

/// Both with what is in them. They keep the directory from others for as long as somebody reads them.
fn open_databases(config: &NodeConfig, directory: &Directory) -> Result<Databases, Error> {
    let log = LogDb::open(&directory.log())?;
    let state = StateDb::open(&directory.state(), config.state_sizes())?;
    log.0.hold(directory.hold());
    state.0.hold(directory.hold());
    Ok((log, state))
}

fn open_shelf(config: &NodeConfig, directory: &Directory) -> Result<Shelf, Error> {
    let bytes_max = config.limits.module_bytes_max;
    let modules = Modules::open(&directory.modules(), bytes_max)?;
    Ok(Shelf::new(modules, Engine::new(config.engine_settings())?, config.compiler(), bytes_max))
}

/// Groups with nothing to do fall asleep after so many ticks.
const SLEEP_AFTER_TICKS: usize = 50;

fn shard_config(config: &NodeConfig, directory: &Directory) -> ShardConfig {
    let mut shard = ShardConfig::new(directory.node().unwrap_or_default(), time::seed());
    shard.tick_ms = config.tick_ms;
    shard.lag_entries_max = config.log_keep_entries;
    shard.lag_bytes_max = config.log_keep_bytes;
    // The peer link tells when a node falls silent: those asleep need not watch each other.
    shard.sleep_after_ticks = if config.peer.is_some() { SLEEP_AFTER_TICKS } else { 0 };
    shard
}

fn start_log(
    log: LogDb,
    stages: Stages,
    orders: Orders,
    failure: watch::Sender<Option<Fault>>,
) -> Result<LogThread, Fault> {
    let log = log.observed_by(move |write| stages.log_written(write.bytes, write.took_ns));
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

/// The catalog as it will be if all of the log comes into force.
fn foreseen(found: &Found, view: &dyn View) -> Result<Catalog, Fault> {
    let head = found.heads.get(&GroupId::CATALOG).copied().unwrap_or_default();
    let entries = found.logs.get(&GroupId::CATALOG).map_or(&[][..], |log| &log.entries);
    foresee(&head, view, entries)
}

/// The catalog on this node.
struct OpenCatalog {
    catalog: Arc<ArcSwap<Catalog>>,
    catalog_changes: Arc<watch::Sender<u64>>,
    catalog_lane: Arc<Lane>,
    foreseen: Catalog,
}

/// Opens group 0, the catalog's.
fn open_catalog(stage: &Arc<Stage>, directory: &Directory, found: &mut Found) -> Result<OpenCatalog, Fault> {
    let view = stage.state.view(GroupId::CATALOG);
    let catalog = Arc::new(ArcSwap::from_pointee(Catalog::load(&*view)?));
    let catalog_changes = Arc::new(watch::Sender::new(0));
    let foreseen = foreseen(found, &*view)?;
    let contacts = directory.identity().map_or(&[][..], |identity| &identity.contacts);
    let replica = ReplicaStart {
        group: GroupId::CATALOG,
        replica: directory.identity().map_or(FOUNDER, |identity| ReplicaId(identity.replica)),
        founders: vec![FOUNDER.0],
        nodes: of_catalog(&foreseen, contacts),
    };
    let on_change = keep_catalog(view, catalog.clone(), catalog_changes.clone());
    let behavior = Behavior::Stored(Stored::new(Box::new(CatalogGuest)));
    let catalog_lane = open_lane(stage, found, replica, behavior, Some(on_change));
    Ok(OpenCatalog { catalog, catalog_changes, catalog_lane, foreseen })
}

/// Keeps the node's copy of the catalog up to date.
fn keep_catalog(
    view: Arc<dyn View>,
    catalog: Arc<ArcSwap<Catalog>>,
    changes: Arc<watch::Sender<u64>>,
) -> OnChange {
    Box::new(move |changed| {
        let next = match changed {
            Changed::Rows(writes) => {
                let mut next = Catalog::clone(&catalog.load());
                next.absorb(writes)?;
                next
            }
            Changed::All => Catalog::load(&*view)?,
        };
        catalog.store(Arc::new(next));
        changes.send_modify(|count| *count += 1);
        Ok(())
    })
}

/// A replica that is to be opened.
pub struct ReplicaStart {
    /// Its group.
    pub group: GroupId,
    /// Its id.
    pub replica: ReplicaId,
    /// Whom the group began with.
    pub founders: Vec<u64>,
    /// Where the group's replicas are.
    pub nodes: Vec<(ReplicaId, NodeId)>,
}

/// Makes a group's lane and has the shard take the group up.
pub fn open_lane(
    stage: &Arc<Stage>,
    found: &mut Found,
    start: ReplicaStart,
    behavior: Behavior,
    on_change: Option<OnChange>,
) -> Arc<Lane> {
    let ReplicaStart { group, replica, founders, nodes } = start;
    let (mut log, head) = found.take(group);
    let note = found.halted.remove(&group);
    if log.membership.1.voters.is_empty() {
        // It joins with the membership that the group began with, and learns of the changes from the log.
        log.membership = (Index(0), Membership { voters: founders, ..Membership::default() });
    }
    let published = Published {
        head,
        term: Term(0),
        view: stage.state.snapshot_view(group),
        at_ms: stage.clock.now().monotonic_ms,
    };
    let applier =
        Applier::new(group, head, stage.state.view(group), behavior, on_change, stage.memory.clone());
    let hub = Hub::new(head.revision, stage.watches.budget(), Bounds::default(), time::seed());
    let lane = Arc::new(Lane::new(group, applier, published, Arc::new(hub)));
    let mut orders = vec![Order::Attach(lane.clone())];
    let start = GroupStart { group, replica, log, applied: head.index, time_floor: head.time, nodes };
    orders.push(Order::Shard(Input::Open(Box::new(start))));
    if let Some(note) = note {
        tracing::warn!(%group, why = note.why, "the machine stays halted here");
        lane.halt(&note.why);
        orders.push(Order::Shard(Input::Halted { group, halted: true }));
    }
    stage.orders.send_all(orders);
    lane
}
