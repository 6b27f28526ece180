//! Watches: who sees the events of a machine through this node, whether it has a replica or not.
//!
//! Promises: a watch gets exactly the events of its selection from its first revision on, in order, without
//! gap or duplicate, all events of a revision together, until it ends with an error; after one that is
//! passing it can go on from its next revision at any node. Watches of one node are bounded in number, and
//! their queues in bytes. Must never hold up the node's end: a watch is no request under way.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use statehouse_kv::Call;
use statehouse_kv::messages::RangeRequest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use super::Node;
use super::cluster::RemoteWatch;
use super::lane::Lane;
use super::machine::{Closed, Machine};
use super::request::{Consistency, WatchEvent, WatchEvents, WatchSpec, Watched};
use crate::error::{Error, Fault};
use crate::id::{Index, LogTime, Revision};
use crate::machine::event::Event;
use crate::watch::watcher::Asker;
use crate::watch::{Budget, Revised, Selection, Step, Watcher};

/// Watches that read history from disk at the same time: each takes a thread and a portion in memory.
const HISTORY_READS_MAX: usize = 4;

/// The module whose machines can tell what a key was before.
const KEEPS_HISTORY: &str = "builtin:kv";

/// Who watches machines through this node.
pub struct Watches {
    here: AtomicUsize,
    elsewhere: AtomicUsize,
    reads: Arc<Semaphore>,
    budget: Arc<Budget>,
}

impl Watches {
    /// None yet. So many bytes may wait for all together.
    pub(super) fn new(queue_bytes_max: usize) -> Watches {
        Watches {
            here: AtomicUsize::new(0),
            elsewhere: AtomicUsize::new(0),
            reads: Arc::new(Semaphore::new(HISTORY_READS_MAX)),
            budget: Budget::new(queue_bytes_max),
        }
    }

    /// What may wait for the watchers of all hubs.
    pub(super) fn budget(&self) -> Arc<Budget> {
        self.budget.clone()
    }
}

/// A watch's place among those of the node; free again when this is dropped.
struct Place {
    node: Node,
    elsewhere: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.node.inner.stage.metrics.watches.dec();
        self.node.inner.stage.watches.here.fetch_sub(1, Ordering::Relaxed);
        if self.elsewhere {
            self.node.inner.stage.watches.elsewhere.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A watch of a machine. Dropping it ends it.
pub struct Watch {
    node: Node,
    machine: String,
    source: Source,
    first: Revision,
    /// Told how far it is after so long without a word.
    idle: Option<Duration>,
    previous: bool,
    /// Events whose previous values are being asked for.
    told: Option<Revised>,
    stopping: watch::Receiver<bool>,
    _place: Place,
}

/// Where the events come from.
enum Source {
    Here(Box<LocalWatch>),
    Elsewhere(Box<RemoteWatch>),
}

/// What a source tells.
#[derive(Debug)]
pub(super) enum Told {
    /// The events of a revision.
    Events(Revised),
    /// It was asked how far it is, and has told everything up to here.
    Progress(Revision),
}

/// Asks a watch something while somebody waits for its next word.
#[derive(Clone)]
pub struct WatchAsker(Ask);

#[derive(Clone)]
enum Ask {
    Here(Asker),
    Elsewhere(Arc<tokio::sync::Notify>),
}

impl WatchAsker {
    /// Has the watch say how far it is, as soon as it has told everything that there is.
    pub fn want_progress(&self) {
        match &self.0 {
            Ask::Here(asker) => asker.want_progress(),
            Ask::Elsewhere(asked) => asked.notify_one(),
        }
    }
}

/// Watches.
impl Node {
    /// Watches a machine.
    ///
    /// # Errors
    /// `Compacted` if the events from its first revision on are not kept any more, `Invalid` for a revision
    /// of the future, or if previous values are asked for that the machine cannot tell, `Overloaded` over the
    /// limit on watches; `NotFound`, `Unavailable`.
    pub async fn watch(&self, machine: &str, spec: WatchSpec) -> Result<Watch, Error> {
        let _inside = self.enter()?;
        let mut place = self.take_watch_place()?;
        let found = self.find_ready(machine).await?;
        if spec.previous {
            self.check_keeps_history(&found)?;
        }
        let from = spec.from.map(|from| from.max(Revision::FIRST.next()));
        let source = match &found.open {
            Err(Closed::Elsewhere | Closed::Waiting) => {
                self.move_elsewhere(&mut place)?;
                let begun = RemoteWatch::begin(self.clone(), machine, spec.selection, from).await?;
                Source::Elsewhere(Box::new(begun))
            }
            _ => Source::Here(Box::new(self.watch_here(&found, spec.selection, from).await?)),
        };
        let first = match &source {
            Source::Here(watch) => watch.first,
            Source::Elsewhere(watch) => watch.next_revision(),
        };
        Ok(Watch {
            node: self.clone(),
            machine: machine.to_owned(),
            source,
            first,
            idle: spec.progress.then(|| Duration::from_millis(self.inner.config.watch_progress_ms)),
            previous: spec.previous,
            told: None,
            stopping: self.inner.stopping.subscribe(),
            _place: place,
        })
    }

    /// Watches a machine that has a replica here.
    pub(super) async fn watch_here(
        &self,
        machine: &Machine,
        selection: Selection,
        from: Option<Revision>,
    ) -> Result<LocalWatch, Error> {
        let lane = machine.serving()?.lane.clone();
        let first = self.first_revision(&lane, from).await?;
        let watcher = Watcher::new(lane.hub().clone(), selection, first);
        let asker = watcher.asker();
        let (watcher, reading) = (Some(watcher), None);
        Ok(LocalWatch { node: self.clone(), lane, watcher, reading, asker, first })
    }

    /// Where a watch begins that asks for `from`.
    async fn first_revision(&self, lane: &Lane, from: Option<Revision>) -> Result<Revision, Error> {
        let next = || lane.published().head.revision.next();
        let Some(from) = from else { return Ok(next()) };
        if from > next() {
            // Another replica may have told it of revisions that this one has yet to apply.
            let point = self.read_point(lane.group, false).await?;
            self.wait_applied(lane, point.index).await?;
        }
        let (published, next) = (lane.published(), next());
        if from > next {
            return Err(Error::Invalid(format!(
                "revision {from} is in the future: the machine is at {}, so a watch can begin at {next} at \
                 the latest; leave the revision out to watch from now on",
                published.head.revision
            )));
        }
        match published.first_kept() {
            first if from < first => Err(Error::Compacted { asked: from, first }),
            _ => Ok(from),
        }
    }

    fn take_watch_place(&self) -> Result<Place, Error> {
        let max = self.inner.config.watches_max;
        self.inner.stage.metrics.watches.inc();
        let before = self.inner.stage.watches.here.fetch_add(1, Ordering::Relaxed);
        let place = Place { node: self.clone(), elsewhere: false };
        if before < max {
            return Ok(place);
        }
        Err(Error::Overloaded(format!(
            "{before} watches run through this node, and {max} may: end some, use another node, or raise \
             `limits.watches_max`"
        )))
    }

    fn move_elsewhere(&self, place: &mut Place) -> Result<(), Error> {
        let before = self.inner.stage.watches.elsewhere.fetch_add(1, Ordering::Relaxed);
        place.elsewhere = true;
        let max = self.inner.config.remote_watches_max;
        if before < max {
            return Ok(());
        }
        Err(Error::Overloaded(format!(
            "{before} watches of machines without a replica here run through this node, and {max} may: watch \
             at a node with a replica (`statehouse machine show`), or raise `limits.remote_watches_max`"
        )))
    }

    fn check_keeps_history(&self, machine: &Machine) -> Result<(), Error> {
        let catalog = self.inner.catalog.load();
        let label = catalog.modules.get(&machine.module).map(|module| module.label.clone());
        if label.as_deref() == Some(KEEPS_HISTORY) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "previous values are told of machines of {KEEPS_HISTORY} only, and {:?} runs {}: watch it \
             without them",
            machine.record.name,
            label.unwrap_or_else(|| machine.module.to_string())
        )))
    }

    /// What a key was before an event, as the machine itself keeps it; `None` if it was not there, or that is
    /// not kept any more.
    async fn value_before(&self, machine: &str, event: &Event) -> Result<Option<Bytes>, Error> {
        let revision = i64::try_from(event.revision.0 - 1).map_err(|_| {
            Error::Invalid(format!("revision {} is past what {KEEPS_HISTORY} counts", event.revision))
        })?;
        if revision < 1 {
            return Ok(None);
        }
        let request = RangeRequest { key: event.key.to_vec(), revision, ..RangeRequest::default() };
        let consistency = Consistency::Local { min_index: Index(event.index) };
        let answered = self.query(machine, request.to_envelope().into(), consistency).await?;
        // It refuses revisions that were compacted.
        let Ok(answer) = answered.outcome else { return Ok(None) };
        let found = RangeRequest::answer(&answer)
            .map_err(|why| Error::Guest(format!("the answer of {machine:?} does not read: {why}")))?;
        Ok(found.kvs.first().map(|pair| prost::Message::encode_to_vec(pair).into()))
    }
}

impl Watch {
    /// The revision that it began with.
    pub fn first(&self) -> Revision {
        self.first
    }

    /// For who wants to ask it something while somebody waits for its next word.
    pub fn asker(&self) -> WatchAsker {
        WatchAsker(match &self.source {
            Source::Here(watch) => Ask::Here(watch.asker.clone()),
            Source::Elsewhere(watch) => Ask::Elsewhere(watch.asked()),
        })
    }

    /// Waits for what is to be told next. May be dropped while it waits, without loss.
    ///
    /// # Errors
    /// Why the watch has ended. `Unavailable`: it can go on from its next revision, perhaps at another node.
    pub async fn next(&mut self) -> Result<Watched, Error> {
        while self.told.is_none() {
            let idle = self.idle;
            let told = tokio::select! {
                told = self.source.next_within(idle) => told?,
                _ = self.stopping.wait_for(|stopping| *stopping) => return Err(stopped()),
            };
            match told {
                Some(Told::Events(revised)) => self.told = Some(revised),
                Some(Told::Progress(revision)) => return Ok(Watched::Progress(revision)),
                None => self.asker().want_progress(),
            }
        }
        let previous = self.values_before().await?;
        let revised =
            self.told.take().ok_or_else(|| Fault::new("the events are there until they are told"))?;
        Ok(Watched::Events(watch_events(revised, previous)))
    }

    /// What the keys of the events were before them; nothing, if that is not asked for.
    async fn values_before(&self) -> Result<Vec<Option<Bytes>>, Error> {
        let mut previous = Vec::new();
        if self.previous {
            for event in self.told.iter().flat_map(|revised| &revised.events) {
                previous.push(self.node.value_before(&self.machine, event).await?);
            }
        }
        Ok(previous)
    }
}

/// Events with what their keys were before, as far as that is known.
fn watch_events(revised: Revised, previous: Vec<Option<Bytes>>) -> WatchEvents {
    let Revised { revision, index, time_ms, events } = revised;
    let previous = previous.into_iter().chain(std::iter::repeat(None));
    let told = events.into_iter().zip(previous).map(|(event, previous)| {
        let Event { kind, key, value, .. } = event;
        WatchEvent { kind, key, value, previous }
    });
    WatchEvents { revision, index: Index(index), time: LogTime(time_ms), events: told.collect() }
}

fn stopped() -> Error {
    Error::Unavailable("the node is stopping: watch on from the next revision at another node".into())
}

impl Source {
    /// `None`: nothing was told for so long.
    async fn next_within(&mut self, idle: Option<Duration>) -> Result<Option<Told>, Error> {
        let next = async {
            match self {
                Source::Here(watch) => watch.next().await,
                Source::Elsewhere(watch) => watch.next().await,
            }
        };
        match idle {
            None => next.await.map(Some),
            Some(idle) => tokio::time::timeout(idle, next).await.ok().transpose(),
        }
    }
}

/// A watch of a machine that has a replica here.
pub(super) struct LocalWatch {
    node: Node,
    lane: Arc<Lane>,
    /// None while it reads from disk, on another thread.
    watcher: Option<Watcher>,
    reading: Option<JoinHandle<(Watcher, Result<(), Error>)>>,
    asker: Asker,
    first: Revision,
}

impl LocalWatch {
    /// The revision that it began with.
    pub fn first(&self) -> Revision {
        self.first
    }

    /// Asks it something while it is at work elsewhere.
    pub fn asker(&self) -> &Asker {
        &self.asker
    }

    /// Waits for what is to be told next. May be dropped while it waits, without loss.
    pub async fn next(&mut self) -> Result<Told, Error> {
        loop {
            if let Some(reading) = &mut self.reading {
                let ended = reading.await;
                self.reading = None;
                let (watcher, read) =
                    ended.map_err(|e| Fault::new(format!("reading history panicked: {e}")))?;
                self.watcher = Some(watcher);
                read.map_err(|why| self.node.noticed(why))?;
            }
            let Some(watcher) = &mut self.watcher else {
                return Err(Fault::new("the watch has ended: reading history panicked").into());
            };
            match poll_fn(|context| watcher.poll(context.waker())).await? {
                Step::Events(revised) => return Ok(Told::Events(revised)),
                Step::Progress(revision) => return Ok(Told::Progress(revision)),
                Step::Read => self.read().await?,
            }
        }
    }

    /// Reads history, on a thread that may block if the disk is needed.
    async fn read(&mut self) -> Result<(), Error> {
        let published = self.lane.published();
        if let Some(watcher) = self.watcher.as_mut().filter(|watcher| !watcher.reads(&published.standing())) {
            return watcher.read(published.standing());
        }
        let permit = self.node.inner.stage.watches.reads.clone().acquire_owned().await;
        let permit: OwnedSemaphorePermit = permit.map_err(|_| stopped())?;
        if let Some(mut watcher) = self.watcher.take() {
            let lane = self.lane.clone();
            self.reading = Some(tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let read = watcher.read(lane.published().standing());
                (watcher, read)
            }));
        }
        Ok(())
    }
}
