//! A node: opens a data directory, serves what is in it, stops.
//!
//! # Layout
//! - [`request`]: what callers ask and are told
//! - `open`: builds a node from the parts; `stage`: what its threads share
//! - `order`: steps the shard, for whoever brings something
//! - `lane`, `applier`, `workers`: from committed entries to outcomes
//! - `machine`, `registry`, `reconcile`: the machines that are open here, in step with the catalog
//! - `keeper`: flushes, cutting the log, ends of leases; `saver`: snapshots of resident machines; `rounds`:
//!   their threads; `history`: what resident machines are rebuilt from
//! - `removal`: ends what there is of deleted machines
//! - `shelf`: modules; `metrics`: what is counted

mod applier;
pub mod config;
mod history;
mod keeper;
mod lane;
mod machine;
mod metrics;
mod open;
mod order;
mod reconcile;
mod registry;
mod removal;
pub mod request;
mod rounds;
mod saver;
mod shelf;
mod stage;
mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

use self::config::NodeConfig;
use self::lane::Lane;
use self::machine::{Machine, Queries};
use self::open::{Found, Threads};
use self::order::Order;
use self::registry::Registry;
use self::removal::Removal;
use self::request::{Answered, Applied, Consistency, MachineInfo, ModuleInfo, NodeStatus, Push, World};
use self::shelf::Shelf;
use self::stage::Stage;
use crate::catalog::{CATALOG_MODULE, Catalog, Change, MachineRecord, ModuleRecord, RefusalCode};
use crate::error::{Error, Fault};
use crate::id::{Digest, GroupId, Index, LogTime};
use crate::machine::batch::Operation;
use crate::machine::outcome::{HostCode, Outcome, Refusal};
use crate::storage::directory::Directory;

/// Queries that may use the full budget at the same time: each may take a thread and an instance's memory.
const LONG_QUERIES_MAX: usize = 8;

/// Of those, how many may be of one machine, so that a guest that loops leaves room for the others.
const LONG_QUERIES_OF_ONE_MAX: usize = 2;

/// How long a stopping node waits for guests at work, unless told otherwise.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// The component of `builtin:kv`.
const BUILTIN_KV: &[u8] = include_bytes!("../../guests/kv/kv.component.wasm");

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
    shelf: Shelf,
    registry: Arc<Registry>,
    removal: Arc<Removal>,
    /// The node's copy of the catalog, as of its last applied batch.
    catalog: Arc<ArcSwap<Catalog>>,
    catalog_changes: Arc<watch::Sender<u64>>,
    catalog_lane: Arc<Lane>,
    found: Mutex<Found>,
    threads: Mutex<Option<Threads>>,
    /// Whether the machines of the catalog were opened.
    ready: watch::Sender<bool>,
    /// The task that opens and closes machines, and how it is told to end.
    reconciling: Mutex<Option<JoinHandle<()>>>,
    stopping: watch::Sender<bool>,
    long_queries: Semaphore,
}

/// Opening, looking after, stopping.
impl Node {
    /// Opens the node of a data directory and has it take up its machines.
    ///
    /// # Errors
    /// `FailedPrecondition` if the directory is held by another process or needs `bootstrap`; `Damaged` names
    /// what does not read as it was written.
    pub async fn open(config: NodeConfig) -> Result<Node, Error> {
        let opened = tokio::task::spawn_blocking(move || open::open(config)).await;
        let inner = Arc::new(opened.map_err(|e| Fault::new(format!("opening the node panicked: {e}")))??);
        let node = Node { inner };
        match node.take_up().await {
            Ok(()) => Ok(node),
            Err(error) => {
                node.shutdown().await;
                Err(error)
            }
        }
    }

    /// Brings the catalog up to date, opens its machines, ends creations that were cut short.
    async fn take_up(&self) -> Result<(), Error> {
        let index = self.read_point(GroupId::CATALOG).await?;
        self.inner.catalog_lane.wait_applied(index).await?;
        if self.inner.catalog_lane.published().head.module.is_none() {
            self.propose(GroupId::CATALOG, Operation::create(CATALOG_MODULE, Bytes::new())).await?;
        }
        let reconciling = tokio::spawn(reconcile::run(self.inner.clone()));
        *self.inner.reconciling.lock() = Some(reconciling);
        let mut ready = self.inner.ready.subscribe();
        let mut failure = self.inner.stage.failure.subscribe();
        tokio::select! {
            _ = ready.wait_for(|ready| *ready) => {}
            _ = failure.wait_for(Option::is_some) => {}
        }
        self.check_alive()?;
        let catalog = self.inner.catalog.load_full();
        for record in catalog.machines.values().filter(|record| !record.ready) {
            if let Err(why) = self.finish_creation(record.clone()).await {
                tracing::warn!(machine = record.name, %why, "a creation that was cut short did not end well");
            }
        }
        Ok(())
    }

    /// Whether the node serves.
    pub fn ready(&self) -> Result<(), Error> {
        self.check_alive()?;
        if *self.inner.ready.borrow() {
            Ok(())
        } else {
            Err(Error::Unavailable("the node is starting: it replays its log".into()))
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

    /// Stops the node: a last checkpoint, and everything closed. Later calls answer that it is stopping. The
    /// data directory is free when the last copy of the node is dropped.
    ///
    /// Commands that are in the log are applied first, but guests that take longer than five seconds are
    /// stopped where they are; the next start applies the rest. [`shutdown_within`](Node::shutdown_within)
    /// waits longer, or not at all.
    pub async fn shutdown(&self) {
        self.shutdown_within(SHUTDOWN_PATIENCE).await;
    }

    /// The same with another time for guests at work.
    pub async fn shutdown_within(&self, patience: Duration) {
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
        let reconciling = self.inner.reconciling.lock().take();
        if let Some(reconciling) = reconciling
            && let Err(panic) = reconciling.await
        {
            tracing::error!(%panic, "opening the machines panicked");
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
            node: self.inner.directory.node().unwrap_or_default(),
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
    pub fn metrics(&self) -> String {
        self.inner.stage.metrics.text()
    }

    fn check_alive(&self) -> Result<(), Error> {
        match self.inner.stage.failure() {
            None => Ok(()),
            Some(fault) => Err(Error::Fault(fault)),
        }
    }
}

/// Commands and queries.
impl Node {
    /// Sends a command to a machine and waits for its outcome.
    ///
    /// # Errors
    /// `NotFound`, `TooLarge`, `Overloaded`, `Unavailable`: it was not done. `Unknown`: it may have been.
    pub async fn apply(&self, machine: &str, command: Bytes) -> Result<Applied, Error> {
        let found = self.find(machine)?;
        let parts = found.created()?;
        let bytes_max = self.inner.config.limits.command_bytes_max as usize;
        if command.len() > bytes_max {
            return Err(Error::TooLarge(format!(
                "the command has {} bytes, the limit is {bytes_max}: split it, or raise `command_bytes_max`",
                command.len()
            )));
        }
        self.inner.stage.metrics.commands.inc();
        self.propose(parts.lane.group, Operation::command(command)).await
    }

    /// Asks a machine a question.
    ///
    /// # Errors
    /// As of [`apply`](Node::apply); `Guest` if the query trapped or used up its budget.
    pub async fn query(
        &self,
        machine: &str,
        request: Bytes,
        consistency: Consistency,
    ) -> Result<Answered, Error> {
        let found = self.find(machine)?;
        let parts = found.created()?;
        self.inner.stage.metrics.queries.inc();
        self.wait_fresh(&parts.lane, consistency).await?;
        if let Queries::Stored(pool) = &parts.queries {
            let short = self.inner.config.short_query_budget();
            let answered = machine::query_stored(&parts.lane, pool, &self.inner.stage, &request, short);
            if let Some(answered) = answered.map_err(|why| self.noticed(why))? {
                return Ok(answered);
            }
            // It has had this thread for a while; those who wait behind it come first.
            step_aside().await;
        }
        self.query_long(found, request).await.map_err(|why| self.noticed(why))
    }

    /// A read that found the state database failed is the first to know: the node stops serving.
    fn noticed(&self, why: Error) -> Error {
        if matches!(why, Error::Fault(_))
            && let Some(fault) = self.inner.stage.state.failure()
        {
            self.inner.stage.fail(fault);
        }
        why
    }

    /// Runs a query with the full budget, on a thread that may block.
    async fn query_long(&self, machine: Arc<Machine>, request: Bytes) -> Result<Answered, Error> {
        let own = machine.serving()?.long_queries.clone();
        let _of_machine = own.acquire().await;
        let _of_node = self.inner.long_queries.acquire().await;
        self.inner.stage.metrics.queries_long.inc();
        let (stage, budget) = (self.inner.stage.clone(), self.inner.config.query_budget());
        let run = move || {
            let parts = machine.serving()?;
            match &parts.queries {
                Queries::Stored(pool) => {
                    let answered = machine::query_stored(&parts.lane, pool, &stage, &request, budget)?;
                    answered.ok_or_else(machine::exhausted)
                }
                Queries::Resident(resident) => resident.query(&parts.lane, &stage, &request),
            }
        };
        let ran = tokio::task::spawn_blocking(run).await;
        match ran.map_err(|e| Fault::new(format!("a query panicked: {e}")))? {
            Err(Error::Fault(_)) if self.inner.stage.is_interrupted() => {
                Err(Error::Unavailable("the node is stopping; the query was not answered".into()))
            }
            answered => answered,
        }
    }

    async fn wait_fresh(&self, lane: &Lane, consistency: Consistency) -> Result<(), Error> {
        match consistency {
            Consistency::Linearizable | Consistency::Lease if lane.reads_at_once() => Ok(()),
            Consistency::Linearizable | Consistency::Lease => {
                let index = self.read_point(lane.group).await?;
                self.wait_applied(lane, index).await
            }
            Consistency::Local { min_index } => self.wait_applied(lane, min_index).await,
        }
    }

    async fn wait_applied(&self, lane: &Lane, index: Index) -> Result<(), Error> {
        if lane.published().head.index >= index {
            return Ok(());
        }
        let patience = Duration::from_millis(self.inner.config.read_wait_ms);
        match tokio::time::timeout(patience, lane.wait_applied(index)).await {
            Ok(reached) => reached,
            Err(_) => Err(Error::DeadlineExceeded(format!(
                "index {index} was not applied here within {} ms; this replica stands at {}: try again or \
                 ask for less",
                patience.as_millis(),
                lane.published().head.index
            ))),
        }
    }

    async fn read_point(&self, group: GroupId) -> Result<Index, Error> {
        let (waiter, told) = oneshot::channel();
        self.inner.stage.orders.send(Order::Read { group, waiter });
        match told.await {
            Ok(answer) => answer,
            Err(_) => Err(self.stopped("the read was not done")),
        }
    }

    async fn propose(&self, group: GroupId, operation: Operation) -> Result<Applied, Error> {
        let (waiter, told) = oneshot::channel();
        self.inner.stage.orders.send(Order::Propose { group, operation, waiter: Some(waiter) });
        match told.await {
            Ok(answer) => answer,
            Err(_) => Err(self.stopped("it is unknown whether the command was applied")),
        }
    }

    fn stopped(&self, consequence: &str) -> Error {
        match self.inner.stage.failure() {
            Some(fault) => Error::Unknown(format!("the node failed ({fault}); {consequence}")),
            None => Error::Unknown(format!("the node is stopping; {consequence}")),
        }
    }

    fn find(&self, name: &str) -> Result<Arc<Machine>, Error> {
        self.check_alive()?;
        self.inner.registry.get(name).ok_or_else(|| {
            Error::NotFound(format!(
                "no machine is called {name:?}; `statehouse machine list` shows those there are"
            ))
        })
    }
}

/// Modules.
impl Node {
    /// Takes in a module: checked, made durable, compiled, and known to the catalog. The digest in the answer
    /// is that of the component, which differs from the one sent if that was of a core module.
    pub async fn push_module(&self, push: Push) -> Result<ModuleInfo, Error> {
        self.check_alive()?;
        let (inner, label) = (self.inner.clone(), push.label);
        let taken = tokio::task::spawn_blocking(move || inner.shelf.take(push.digest, push.bytes)).await;
        let taken = taken.map_err(|e| Fault::new(format!("taking in a module panicked: {e}")))??;
        let record = ModuleRecord {
            digest: taken.digest.0.to_vec(),
            bytes: taken.bytes,
            resident: taken.world == World::Resident,
            label,
            pushed_ms: 0,
        };
        self.change_catalog(Change::RegisterModule(record)).await?;
        self.module(taken.digest)
    }

    /// The digest of a built-in module, which is taken in if this is its first use. There is `kv`.
    pub async fn builtin(&self, name: &str) -> Result<Digest, Error> {
        if name != "kv" {
            return Err(Error::NotFound(format!("no built-in module is called {name:?}; there is `kv`")));
        }
        let digest = Digest::of(BUILTIN_KV);
        if self.inner.catalog.load().modules.contains_key(&digest) {
            return Ok(digest);
        }
        let push = Push { digest, label: "builtin:kv".into(), bytes: Bytes::from_static(BUILTIN_KV) };
        Ok(self.push_module(push).await?.digest)
    }

    /// All modules, by digest.
    pub fn modules(&self) -> Vec<ModuleInfo> {
        self.inner
            .catalog
            .load()
            .modules
            .iter()
            .map(|(digest, record)| self.module_info(*digest, record))
            .collect()
    }

    /// One module.
    pub fn module(&self, digest: Digest) -> Result<ModuleInfo, Error> {
        let catalog = self.inner.catalog.load();
        let record = catalog.modules.get(&digest).ok_or_else(|| {
            Error::NotFound(format!("no module {digest}; `statehouse module list` shows those there are"))
        })?;
        Ok(self.module_info(digest, record))
    }

    fn module_info(&self, digest: Digest, record: &ModuleRecord) -> ModuleInfo {
        ModuleInfo {
            digest,
            bytes: record.bytes,
            world: if record.resident { World::Resident } else { World::Stored },
            label: record.label.clone(),
            pushed: LogTime(record.pushed_ms),
            compiled: self.inner.shelf.is_compiled(digest),
        }
    }
}

/// Machines.
impl Node {
    /// Creates a machine from a module and has it apply its first input, `created`. If the machine refuses
    /// that, there is no machine.
    pub async fn create_machine(
        &self,
        name: &str,
        module: Digest,
        configuration: Bytes,
    ) -> Result<MachineInfo, Error> {
        crate::catalog::check_name(name).map_err(Error::Invalid)?;
        let record = MachineRecord {
            name: name.to_owned(),
            module: module.0.to_vec(),
            configuration,
            input_fuel: self.inner.config.input_fuel,
            engine: self.inner.shelf.fingerprint().to_owned(),
            ..MachineRecord::default()
        };
        let node = self.clone();
        // Once begun it is ended, also if the caller goes away.
        let created = tokio::spawn(async move {
            let answer = node.change_catalog(Change::CreateMachine(record)).await?;
            let record = MachineRecord::decode(answer)
                .map_err(|e| Fault::new(format!("the catalog's answer does not decode: {e}")))?;
            node.finish_creation(record).await
        });
        created.await.map_err(|e| Fault::new(format!("creating a machine panicked: {e}")))?
    }

    /// Proposes the machine's first input and tells the catalog how it went.
    async fn finish_creation(&self, record: MachineRecord) -> Result<MachineInfo, Error> {
        let (group, module) = (record.group(), record.module()?);
        let opened = self.inner.registry.wait(|registry| registry.by_group(group)).await;
        let created = match opened.serving() {
            Ok(_) => self.propose(group, Operation::create(module, record.configuration)).await,
            Err(why) => Err(why),
        };
        let failure = match created.map(|applied| applied.outcome) {
            Ok(Outcome::Ok(_)) => {
                self.change_catalog(Change::MachineReady(record.group)).await?;
                // Served from here on; or deleted meanwhile, and then the look-up says so.
                let settled = |registry: &Registry| match registry.by_group(group) {
                    Some(machine) => machine.record.ready.then_some(()),
                    None => Some(()),
                };
                self.inner.registry.wait(settled).await;
                return self.machine(&record.name);
            }
            Ok(Outcome::Refused(refusal)) => Error::Invalid(format!(
                "the machine refused its configuration with code {}: {}",
                refusal.code, refusal.message
            )),
            Ok(Outcome::Host(code)) => Error::Guest(format!(
                "the machine could not be created: its first input ended as {code:?}; the node's log has more"
            )),
            Err(unknown @ Error::Unknown(_)) => return Err(unknown),
            Err(why) => why,
        };
        self.remove(group).await?;
        Err(failure)
    }

    /// All machines, by name.
    pub fn machines(&self) -> Vec<MachineInfo> {
        self.inner.registry.all().iter().map(|machine| machine.info()).collect()
    }

    /// One machine.
    pub fn machine(&self, name: &str) -> Result<MachineInfo, Error> {
        Ok(self.find(name)?.info())
    }

    /// Deletes a machine with all its state.
    pub async fn delete_machine(&self, name: &str) -> Result<(), Error> {
        let group = self.find(name)?.record.group();
        self.remove(group).await
    }

    /// Takes a machine out of the catalog and waits until it is closed here.
    async fn remove(&self, group: GroupId) -> Result<(), Error> {
        self.change_catalog(Change::RemoveMachine(group.0)).await?;
        let gone = |registry: &Registry| registry.by_group(group).is_none().then_some(());
        self.inner.registry.wait(gone).await;
        Ok(())
    }

    async fn change_catalog(&self, change: Change) -> Result<Bytes, Error> {
        let applied = self.propose(GroupId::CATALOG, Operation::command(change.command())).await?;
        match applied.outcome {
            Outcome::Ok(answer) => Ok(answer),
            Outcome::Refused(refusal) => Err(catalog_refusal(refusal)),
            Outcome::Host(HostCode::NotCreated) => {
                Err(Error::Unavailable("the catalog is being made".into()))
            }
            Outcome::Host(code) => Err(Fault::new(format!("the catalog ended a change as {code:?}")).into()),
        }
    }
}

fn catalog_refusal(refusal: Refusal) -> Error {
    let codes: BTreeMap<u32, fn(String) -> Error> = BTreeMap::from([
        (RefusalCode::BadName as u32, Error::Invalid as fn(String) -> Error),
        (RefusalCode::NameTaken as u32, Error::AlreadyExists),
        (RefusalCode::UnknownModule as u32, Error::NotFound),
    ]);
    codes.get(&refusal.code).copied().unwrap_or(Error::Invalid)(refusal.message)
}

/// Lets other tasks of this thread go first. Wakes itself within the poll, which those who drive many futures
/// in one task take as the word to give way; tokio's own `yield_now` wakes only later.
async fn step_aside() {
    let mut stepped = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut stepped, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
