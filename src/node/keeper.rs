//! The keeper: flushes the state, has resident machines saved, lets the log be cut behind both, and proposes
//! the end of leases.
//!
//! Promises: the log is never cut beyond what `state` has flushed, nor, for a resident machine, beyond its
//! last snapshot; a snapshot takes effect only when the state is flushed up to it, so that a restart never
//! finds rows older than it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::machine::{Machine, Queries};
use super::order::Order;
use super::registry::Registry;
use super::stage::Stage;
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index};
use crate::inbox::{self, Receiver, Sender};
use crate::machine::batch::{Act, Expire, Operation};
use crate::machine::lease;
use crate::raft::Input;

/// How often the keeper looks whether there is something to do.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The log's files are laid out this long after the start, when the first rush is over.
const LAY_OUT_AFTER_MS: u64 = 1_000;

/// Leases whose end one operation proposes: bounds the batch when very many end together.
const EXPIRE_MAX: usize = 1_000;

/// When the keeper acts.
#[derive(Clone, Copy, Debug)]
pub struct KeeperSettings {
    /// Flush after this many bytes of log entries: bounds what a restart replays.
    pub flush_bytes: u64,
    /// Flush after this long, if anything was written.
    pub flush_interval_ms: u64,
    /// Have a resident machine saved after this many entries.
    pub resident_snapshot_entries: u64,
}

/// The keeper's thread. Ends when told to.
pub struct Keeper {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Starts the thread.
    pub fn start(
        settings: KeeperSettings,
        stage: Arc<Stage>,
        registry: Arc<Registry>,
    ) -> Result<Keeper, Fault> {
        let (stop, stopped) = inbox::new();
        let rounds =
            Rounds { settings, stage, registry, flushed_ms: 0, tried: HashMap::new(), laid_out: false };
        let spawned =
            std::thread::Builder::new().name("keeper".to_owned()).spawn(move || rounds.run(&stopped));
        let thread = spawned.map_err(|e| Fault::new(format!("the keeper cannot be started: {e}")))?;
        Ok(Keeper { stop, thread })
    }

    /// Ends the thread, after a last checkpoint if the node has not failed.
    pub fn stop(self) {
        // The thread is gone already only if it panicked, and then there is nothing to stop.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the keeper panicked: the next start replays more of the log");
        }
    }
}

struct Rounds {
    settings: KeeperSettings,
    stage: Arc<Stage>,
    registry: Arc<Registry>,
    /// The monotonic clock at the last flush.
    flushed_ms: u64,
    /// The index at which each resident machine was last asked to save.
    tried: HashMap<GroupId, Index>,
    laid_out: bool,
}

impl Rounds {
    fn run(mut self, stopped: &Receiver<()>) {
        let mut words = Vec::new();
        loop {
            stopped.take(&mut words, 1, LOOK_INTERVAL);
            let stopping = !words.is_empty();
            if self.stage.failure().is_some() {
                return;
            }
            if let Err(fault) = self.round(stopping) {
                self.stage.fail(fault);
                return;
            }
            if stopping {
                return;
            }
        }
    }

    fn round(&mut self, stopping: bool) -> Result<(), Fault> {
        for machine in self.registry.all() {
            self.save_if_due(&machine)?;
            self.end_due_leases(&machine)?;
        }
        let now_ms = self.stage.clock.now().monotonic_ms;
        if !self.laid_out && now_ms >= LAY_OUT_AFTER_MS {
            self.laid_out = true;
            self.stage.log.lay_out();
        }
        let bytes = self.stage.unflushed_bytes.load(Ordering::Relaxed);
        let old = now_ms >= self.flushed_ms + self.settings.flush_interval_ms;
        if bytes >= self.settings.flush_bytes || (bytes > 0 && (old || stopping)) {
            self.flush(now_ms)?;
        }
        Ok(())
    }

    fn flush(&mut self, now_ms: u64) -> Result<(), Fault> {
        self.stage.unflushed_bytes.store(0, Ordering::Relaxed);
        self.flushed_ms = now_ms;
        let durable = self.stage.state.flush()?;
        self.stage.metrics.checkpoints.inc();
        for (group, index) in durable {
            let to = match self.registry.by_group(group).and_then(|machine| saved_index(&machine)) {
                Some(saved) => index.min(saved),
                None => index,
            };
            if to > Index(0) {
                self.stage.orders.send(Order::Shard(Input::Truncate { group, to }));
            }
        }
        Ok(())
    }

    /// Proposes the end of leases whose deadline has passed by the log's clock, where this node leads.
    /// Whether they end is decided by the stamp of the batch, so asking too early or twice does no harm.
    fn end_due_leases(&self, machine: &Machine) -> Result<(), Fault> {
        let Ok(parts) = machine.serving() else { return Ok(()) };
        if !parts.lane.reads_at_once() {
            return Ok(());
        }
        let published = parts.lane.published();
        let leases = lease::due(&*published.view, published.time_ms(&self.stage.clock), EXPIRE_MAX)?;
        if !leases.is_empty() {
            let operation = Operation { act: Some(Act::Expire(Expire { leases })) };
            self.stage.orders.send(Order::Propose { group: parts.lane.group, operation, waiter: None });
        }
        Ok(())
    }

    /// Saves a resident machine that has come far enough since its last snapshot.
    fn save_if_due(&mut self, machine: &Machine) -> Result<(), Fault> {
        let Ok(parts) = machine.serving() else { return Ok(()) };
        let Queries::Resident(resident) = &parts.queries else { return Ok(()) };
        let (group, published) = (parts.lane.group, parts.lane.published());
        // A guest that cannot save is asked again only after as many entries.
        let tried = self.tried.get(&group).copied().unwrap_or_default().max(resident.saved());
        let since = published.head.index.0.saturating_sub(tried.0);
        if since < self.settings.resident_snapshot_entries {
            return Ok(());
        }
        self.tried.insert(group, published.head.index);
        match resident.save(&self.stage, group, &published) {
            Ok(pending) => {
                // Only now may a restart find the snapshot: the rows on disk are at least as new.
                self.flush(self.stage.clock.now().monotonic_ms)?;
                pending.finish()?;
                resident.set_saved(published.head.index);
                self.stage.snapshots.remove_before(group, published.head.index)?;
                parts.lane.applier().forget_settled(published.head.index, &self.stage)?;
                let truncate = Input::Truncate { group, to: published.head.index };
                self.stage.orders.send(Order::Shard(truncate));
                Ok(())
            }
            // The former snapshot stays, and the log behind it.
            Err(Error::Fault(_)) if self.stage.is_interrupted() => Ok(()),
            Err(Error::Fault(fault)) => Err(fault),
            Err(why) => {
                let name = &machine.record.name;
                tracing::error!(machine = name, %why, "no snapshot: the former one stays, and the log grows");
                Ok(())
            }
        }
    }
}

/// Up to where a snapshot covers a resident machine; `None` for a stored one.
fn saved_index(machine: &Machine) -> Option<Index> {
    match machine.open.as_ref().map(|parts| &parts.queries) {
        Ok(Queries::Resident(resident)) => Some(resident.saved()),
        _ => None,
    }
}
