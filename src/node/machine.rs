//! A machine that is open on this node: its lane, and how its queries run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;

use super::components::Pools;
use super::history::LogHistory;
use super::lane::{Lane, Published};
use super::request::{Answered, MachineInfo, ReplicaInfo, World};
use super::stage::Stage;
use crate::catalog::MachineRecord;
use crate::error::Error;
use crate::id::{Digest, Index, LogTime};
use crate::machine::batch::Head;
use crate::machine::frame::Frame;
use crate::machine::guest::{Components, Ending, QueryView};
use crate::machine::resident::{Halt, Reader};
use crate::storage::entry::Membership;
use crate::storage::snapshot::{Header, Kind, SnapshotWriter};
use crate::wasm::{Budget, QueryPool};

/// How queries of a machine run.
pub enum Queries {
    /// In parallel, in warm instances, on the published view.
    Stored(Pools),
    /// One after another, in a second instance that is fed the same inputs.
    Resident(Box<ResidentQueries>),
}

/// A machine that is open on this node, or whose module cannot be run here.
pub struct Machine {
    /// What the catalog says of it.
    pub record: MachineRecord,
    /// What it runs, as far as the catalog was told.
    pub module: Digest,
    /// Its world.
    pub world: World,
    /// Its parts, or why there are none.
    pub open: Result<Arc<Parts>, Closed>,
}

/// Why a machine of the catalog is not open on this node.
#[derive(Clone, Debug)]
pub enum Closed {
    /// Its replicas are on other nodes.
    Elsewhere,
    /// It will be: its module's bytes are on their way, or being compiled.
    Waiting,
    /// It cannot be.
    Broken(Error),
}

/// What an open machine consists of.
pub struct Parts {
    /// Its place on this node.
    pub lane: Arc<Lane>,
    /// How its queries run.
    pub queries: Queries,
    /// Its queries that may use the full budget at the same time.
    pub long_queries: Arc<Semaphore>,
}

impl Machine {
    /// Its parts, unless it cannot serve.
    pub fn serving(&self) -> Result<&Parts, Error> {
        let parts = match &self.open {
            Ok(parts) => parts,
            Err(closed) => return Err(self.closed(closed)),
        };
        match parts.lane.halted() {
            None => Ok(parts),
            Some(why) => Err(Error::FailedPrecondition(format!(
                "the machine {:?} is halted on this node: {why}",
                self.record.name
            ))),
        }
    }

    /// Its place on this node, if it is open here.
    pub fn lane(&self) -> Option<&Arc<Lane>> {
        self.open.as_ref().ok().map(|parts| &parts.lane)
    }

    /// Whether clients may use it: from the moment its first input was applied.
    pub fn check_ready(&self) -> Result<(), Error> {
        if self.record.ready {
            return Ok(());
        }
        Err(Error::Unavailable(format!("the machine {:?} is being created: try again", self.record.name)))
    }

    fn closed(&self, closed: &Closed) -> Error {
        let name = &self.record.name;
        match closed {
            Closed::Elsewhere => Error::NotLeader { leader: None },
            Closed::Waiting => Error::Unavailable(format!(
                "the module of {name:?} is on its way to this node, or being compiled: try again, or ask \
                 another one"
            )),
            Closed::Broken(why) => why.clone(),
        }
    }

    /// For people and programs that look after it.
    pub fn info(&self) -> MachineInfo {
        MachineInfo {
            name: self.record.name.clone(),
            group: self.record.group(),
            module: self.module,
            world: self.world,
            created: LogTime(self.record.created_ms),
            input_fuel: self.record.input_fuel,
            engine: self.record.engine.clone(),
            replica: self.replica(),
            replicas: self.record.replicas.iter().map(|replica| replica.node()).collect(),
            replicas_wanted: self.record.replicas_wanted,
            settings: self.lane().map(|lane| lane.published().head.settings),
        }
    }

    /// Where this node's replica stands, if it is to have one.
    pub fn replica(&self) -> Option<ReplicaInfo> {
        if matches!(self.open, Err(Closed::Elsewhere)) {
            return None;
        }
        let lane = self.open.as_ref().map(|parts| &parts.lane);
        let head = lane.as_ref().map_or(Head::default(), |lane| lane.published().head);
        let role = lane.as_ref().ok().and_then(|lane| lane.role());
        let halted = match &self.open {
            Ok(parts) => parts.lane.halted().or_else(|| parts.lane.lacks().map(on_its_way)),
            Err(closed) => Some(self.closed(closed).to_string()),
        };
        Some(ReplicaInfo {
            term: role.map(|role| role.term).unwrap_or_default(),
            leader: role.and_then(|role| role.leader),
            applied: head.index,
            revision: head.revision,
            hash: head.hash,
            halted,
        })
    }
}

/// Runs a query of a stored machine on the published view, with `budget`, if its component was asked before.
/// `None`: it was not, or the budget was too small.
pub fn query_stored(
    lane: &Lane,
    pools: &Pools,
    stage: &Stage,
    request: &[u8],
    budget: Budget,
) -> Result<Option<Answered>, Error> {
    let published = lane.published();
    let pool = published.head.module.and_then(|module| pools.present(module));
    let time_ms = lane.time_ms(&published, &stage.clock);
    pool.map_or(Ok(None), |pool| query_in(&pool.1, &published, time_ms, request, budget))
}

/// The same for whichever component. Blocks.
pub fn query_stored_long(
    lane: &Lane,
    pools: &Pools,
    stage: &Stage,
    request: &[u8],
    budget: Budget,
) -> Result<Answered, Error> {
    let published = lane.published();
    let module =
        published.head.module.ok_or_else(|| Error::Unavailable("the machine is being created".into()))?;
    let pool = pools.ready(module)?;
    let time_ms = lane.time_ms(&published, &stage.clock);
    query_in(&pool.1, &published, time_ms, request, budget)?.ok_or_else(exhausted)
}

fn query_in(
    pool: &QueryPool,
    published: &Published,
    time_ms: u64,
    request: &[u8],
    budget: Budget,
) -> Result<Option<Answered>, Error> {
    let head = published.head;
    let seen = QueryView { index: head.index.0, time: time_ms, revision: head.revision.0 };
    let frame = Frame::for_query(published.view.clone(), seen, &head);
    match pool.query(frame, seen, request, budget).1 {
        Ending::Exhausted(_) => Ok(None),
        ending => answered(&head, ending).map(Some),
    }
}

/// A resident machine's second instance, and how far it was saved.
pub struct ResidentQueries {
    reader: Mutex<Reader>,
    /// The index of the last snapshot; 0 without one.
    saved: AtomicU64,
    /// Held while a snapshot is made and takes effect.
    saving: Mutex<()>,
    /// How often a snapshot had taken the place of the state when the reader was last used: it knows nothing
    /// of that.
    installs: AtomicU64,
}

impl ResidentQueries {
    /// A second instance of a machine whose last snapshot is at `saved`.
    pub fn new(components: Box<dyn Components>, saved: Index) -> ResidentQueries {
        let (reader, saved) = (Mutex::new(Reader::new(components)), AtomicU64::new(saved.0));
        ResidentQueries { reader, saved, saving: Mutex::new(()), installs: AtomicU64::new(0) }
    }

    /// The turn to save.
    pub fn saving(&self) -> MutexGuard<'_, ()> {
        self.saving.lock()
    }

    /// The reader, which stands where the machine stood, unless that was replaced meanwhile.
    fn reader(&self, lane: &Lane) -> MutexGuard<'_, Reader> {
        let mut reader = self.reader.lock();
        let installs = *lane.installs().borrow();
        if self.installs.swap(installs, Ordering::AcqRel) != installs {
            reader.forget();
        }
        reader
    }

    /// Up to where a snapshot covers the machine.
    pub fn saved(&self) -> Index {
        Index(self.saved.load(Ordering::Acquire))
    }

    /// A snapshot at `index` took effect.
    pub fn set_saved(&self, index: Index) {
        self.saved.store(index.0, Ordering::Release);
    }

    /// Runs a query. Blocks: for a thread that may.
    pub fn query(&self, lane: &Lane, stage: &Stage, request: &[u8]) -> Result<Answered, Error> {
        let mut reader = self.reader(lane);
        let published = lane.published();
        let time_ms = lane.time_ms(&published, &stage.clock);
        let history = LogHistory::of(stage, lane.group);
        match reader.query(&history, published.head.index, time_ms, request) {
            Ok((_, ending)) => answered(&published.head, ending),
            Err(halt) => Err(halt_error(halt)),
        }
    }

    /// Has the guest write its state as of `published` to a snapshot, which takes effect when it is finished.
    pub fn save(&self, lane: &Lane, stage: &Stage, published: &Published) -> Result<SnapshotWriter, Error> {
        let group = lane.group;
        let history = LogHistory::of(stage, group);
        let mut writer = None;
        let saved = self.reader(lane).save(&history, published.head.index, |_, rows| {
            // Who is in the group is told when it is sent: that may have changed by then.
            let membership = Membership::default();
            let (kind, head, term) = (Kind::Resident, published.head, published.term);
            let engine = stage.engine.clone();
            let header = Header { group, kind, head, term, membership, engine };
            let mut begun = stage.snapshots.create(&header)?;
            for (table, key, value) in rows.rows() {
                begun.put(table, key, value)?;
            }
            let sink = begun.guest();
            writer = Some(begun);
            Ok(Box::new(sink))
        });
        match (saved, writer) {
            (Ok(_), Some(writer)) => Ok(writer),
            (Err(halt), _) => Err(halt_error(halt)),
            (Ok(_), None) => unreachable!("a save that succeeded asked for its sink"),
        }
    }
}

/// Why a resident machine's second instance cannot be used.
pub fn halt_error(halt: Halt) -> Error {
    match halt {
        Halt::Fault(fault) => Error::Fault(fault),
        Halt::NeedsVerdict { offset } => {
            Error::Unavailable(format!("the input {offset} waits for a verdict: try again"))
        }
        Halt::CannotRestore(why) => Error::Guest(format!("the machine cannot be restored: {why}")),
        Halt::CannotSave(why) => Error::Guest(format!("the machine cannot be saved: {why}")),
        Halt::Lacks(module) => Error::Unavailable(on_its_way(module)),
        Halt::Unfit(why) => {
            Error::Unavailable(format!("this node cannot run the machine's component: {why}"))
        }
    }
}

fn answered(head: &Head, ending: Ending) -> Result<Answered, Error> {
    let outcome = match ending {
        Ending::Answer(answer) => Ok(answer),
        Ending::Refused(refusal) => Err(refusal),
        Ending::Trapped(why) => return Err(Error::Guest(format!("the query trapped: {why}"))),
        Ending::Exhausted(_) => return Err(exhausted()),
        Ending::Fault(fault) => return Err(Error::Fault(fault)),
    };
    Ok(Answered { index: head.index, revision: head.revision, outcome })
}

/// What is said of a machine that waits for a module's bytes.
fn on_its_way(module: Digest) -> String {
    format!("the module {module} is on its way to this node: try again, or ask another one")
}

/// A query that used up what it may.
fn exhausted() -> Error {
    Error::Guest(
        "the query used up its budget and was stopped: ask for less, or raise `query_fuel` and \
        `query_time_ms`"
            .into(),
    )
}
