//! A machine's place on this node: its queue of committed entries, the one worker that applies them, and the
//! view that queries read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::applier::Applier;
use super::log_time::ShownTime;
use super::metrics::seconds;
use super::order::Waiter;
use super::stage::Stage;
use crate::error::Error;
use crate::id::{Digest, GroupId, Index, LogTime, Revision, Term};
use crate::machine::batch::Head;
use crate::machine::view::View;
use crate::raft::{Role, RoleChange, SnapshotHead};
use crate::storage::entry::Entry;
use crate::time::{Clock, Now};
use crate::watch::{Hub, Standing};

/// A committed entry with those who wait for its outcomes, by operation.
pub struct Placed {
    /// The entry.
    pub entry: Entry,
    /// One for each operation; none if nobody here waits.
    pub waiters: Vec<Option<Waiter>>,
}

/// Committed entries to apply, in order.
pub struct Job {
    /// Install this staged snapshot first, in place of the state.
    pub snapshot: Option<SnapshotHead>,
    /// The entries; if there are none, what the machine waited for may be here.
    pub entries: Vec<Placed>,
    /// When it was given to the lane, by the node's clock.
    pub since_ns: u64,
}

/// The state after an applied batch, for queries.
pub struct Published {
    /// Where the machine stood.
    pub head: Head,
    /// The term of the entry at its index; 0 at a start, before anything is applied.
    pub term: Term,
    /// Its tables then, for ever.
    pub view: Arc<dyn View>,
    /// The node's monotonic clock when it was applied.
    pub at_ms: u64,
}

impl Published {
    /// For watchers, who read history here.
    pub fn standing(&self) -> Standing<'_> {
        Standing { revision: self.head.revision, first: self.first_kept(), view: &*self.view }
    }

    /// The first revision whose events are kept.
    pub fn first_kept(&self) -> Revision {
        // No event has the first revision.
        self.head.history_first.max(Revision::FIRST.next())
    }
}

/// A machine's place on this node.
pub struct Lane {
    /// The group that orders the machine's inputs.
    pub group: GroupId,
    queue: Mutex<VecDeque<Job>>,
    /// Whether a worker has the lane, or will.
    taken: AtomicBool,
    applier: Mutex<Applier>,
    published: ArcSwap<Published>,
    applied: watch::Sender<Index>,
    role: ArcSwap<Option<RoleChange>>,
    time: ShownTime,
    /// The highest term of which an entry was applied.
    applied_term: AtomicU64,
    halted: ArcSwap<Option<Halted>>,
    /// The module whose bytes the next entry waits for.
    lacks: ArcSwapOption<Digest>,
    /// How often a snapshot took the place of the state.
    installs: watch::Sender<u64>,
    /// Those who watch the machine here.
    hub: Arc<Hub>,
}

/// Why a machine is not served here.
#[derive(Clone)]
struct Halted {
    why: String,
    /// Whether nothing changes that: it is closed, not only unfit.
    ended: bool,
}

impl Lane {
    /// A lane whose machine stands where `published` says.
    pub fn new(group: GroupId, applier: Applier, published: Published, hub: Arc<Hub>) -> Lane {
        let applied = watch::Sender::new(published.head.index);
        Lane {
            group,
            queue: Mutex::default(),
            taken: AtomicBool::new(false),
            applier: Mutex::new(applier),
            published: ArcSwap::from_pointee(published),
            applied,
            role: ArcSwap::from_pointee(None),
            time: ShownTime::default(),
            applied_term: AtomicU64::new(0),
            halted: ArcSwap::from_pointee(None),
            lacks: ArcSwapOption::empty(),
            installs: watch::Sender::new(0),
            hub,
        }
    }

    /// Queues a job. True: no worker has the lane, so it must be given to one.
    pub(super) fn push(&self, job: Job) -> bool {
        self.queue.lock().push_back(job);
        !self.taken.swap(true, Ordering::AcqRel)
    }

    /// Applies what is queued. True: more has come meanwhile, and the lane must go to a worker again.
    pub(super) fn work(&self, stage: &Stage) -> bool {
        let mut applier = self.applier.lock();
        let jobs = std::mem::take(&mut *self.queue.lock());
        for job in jobs {
            let waited_ns = stage.clock.elapsed_ns() - job.since_ns;
            stage.metrics.stages.apply_wait.observe(seconds(waited_ns));
            if let Some(snapshot) = job.snapshot {
                applier.install(self, &snapshot, stage);
            }
            if job.entries.is_empty() {
                applier.go_on(self, stage);
            }
            job.entries.into_iter().for_each(|placed| applier.take(self, placed, stage));
        }
        // Whoever was answered goes first, should it have been woken on this core.
        std::thread::yield_now();
        stage.applied(self.group, applier.passed());
        applier.prepare();
        drop(applier);
        self.taken.store(false, Ordering::Release);
        // Whoever pushed between the last look and the store saw `taken` and left the lane to this worker.
        !self.queue.lock().is_empty() && !self.taken.swap(true, Ordering::AcqRel)
    }

    /// The applier, for who is not its worker: snapshots. Waits for the batch at hand.
    pub(super) fn applier(&self) -> parking_lot::MutexGuard<'_, Applier> {
        self.applier.lock()
    }

    /// The applier, if no batch is at hand.
    pub(super) fn try_applier(&self) -> Option<parking_lot::MutexGuard<'_, Applier>> {
        self.applier.try_lock()
    }

    /// Makes the state after a batch visible to queries.
    pub(super) fn publish(&self, published: Published) {
        let (index, term) = (published.head.index, published.term);
        self.published.store(Arc::new(published));
        self.applied_term.fetch_max(term.0, Ordering::Release);
        self.applied.send_replace(index);
    }

    /// The state that queries read.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// What this replica is in its group.
    pub fn role(&self) -> Option<RoleChange> {
        **self.role.load()
    }

    /// What queries of `published` take for now, in milliseconds since the Unix epoch.
    pub fn time_ms(&self, published: &Published, clock: &Clock) -> u64 {
        self.time.read(published.head.time, published.at_ms, clock.now())
    }

    /// A leader says what the log's clock shows.
    pub(super) fn note_time(&self, time: LogTime) {
        self.time.note(time);
    }

    /// `time`: what the log's clock shows `now`, if this replica leads.
    pub(super) fn set_role(&self, role: RoleChange, time: Option<LogTime>, now: Now) {
        self.time.set_leading(time, now);
        self.role.store(Arc::new(Some(role)));
    }

    /// Whether the published state holds everything ever acknowledged: this replica leads, nobody else can,
    /// and it has applied an entry of its own term, hence all before it. Acknowledgements leave after their
    /// state is published.
    pub fn reads_at_once(&self) -> bool {
        let role = self.role.load();
        role.as_ref().is_some_and(|role| {
            role.sole_voter
                && role.role == Role::Leader
                && self.applied_term.load(Ordering::Acquire) >= role.term.0
        })
    }

    /// The module whose bytes the next entry waits for.
    pub fn lacks(&self) -> Option<Digest> {
        self.lacks.load().as_deref().copied()
    }

    pub(super) fn set_lacks(&self, module: Option<Digest>) {
        self.lacks.store(module.map(Arc::new));
    }

    /// Those who watch the machine here.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Waits until `index` is applied here.
    ///
    /// # Errors
    /// `FailedPrecondition` as soon as the machine is halted here: it will not get there.
    pub async fn wait_applied(&self, index: Index) -> Result<(), Error> {
        if self.published.load().head.index >= index {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        loop {
            let told = applied.wait_for(|applied| *applied >= index || self.halted.load().is_some()).await;
            match told.map(|applied| *applied >= index) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(_) => {
                    let text = "the machine was closed on this node: try again";
                    return Err(Error::Unavailable(text.into()));
                }
            }
            // Unless a snapshot has taken the place of the state since.
            if let Some(why) = self.halted() {
                return Err(Error::FailedPrecondition(format!(
                    "the machine is halted on this node, before index {index}: {why}"
                )));
            }
        }
    }

    /// Stops serving this machine on this node, until a snapshot takes the place of its state.
    pub fn halt(&self, why: &str) {
        self.set_halted(Some(Halted { why: why.to_owned(), ended: false }));
    }

    /// Stops serving this machine on this node for good: it is closed.
    pub fn end(&self, why: &str) {
        self.set_halted(Some(Halted { why: why.to_owned(), ended: true }));
    }

    /// A snapshot took the place of the state: it is served again, unless it was closed.
    pub(super) fn installed(&self) {
        self.set_halted(None);
        if !self.ended() {
            self.hub.reset(self.published.load().head.revision);
        }
        self.installs.send_modify(|count| *count += 1);
    }

    /// What was closed stays so.
    fn set_halted(&self, halted: Option<Halted>) {
        if let Some(Halted { why, .. }) = &halted {
            self.hub.end(&Error::Unavailable(format!(
                "the machine is not served on this node: {why}; watch on from the next revision at another"
            )));
        }
        let halted = Arc::new(halted);
        self.halted.rcu(|now| match now.as_ref() {
            Some(Halted { ended: true, .. }) => now.clone(),
            _ => halted.clone(),
        });
        // Those who wait for an index look again.
        self.applied.send_modify(|_| {});
    }

    /// How often a snapshot took the place of the state, for who waits for it or must forget what it knew.
    pub fn installs(&self) -> watch::Receiver<u64> {
        self.installs.subscribe()
    }

    /// Why the machine is not served here, if it is not.
    pub fn halted(&self) -> Option<String> {
        self.halted.load().as_ref().as_ref().map(|halted| halted.why.clone())
    }

    /// Whether it is closed for good.
    pub(super) fn ended(&self) -> bool {
        self.halted.load().as_ref().as_ref().is_some_and(|halted| halted.ended)
    }
}
