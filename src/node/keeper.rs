//! The keeper: flushes the state, lets the log be cut behind it, drops rows that were replaced, and proposes
//! cuts of event history.
//!
//! Promises: the log is never cut beyond what `state` has flushed, nor, for a resident machine, beyond its
//! last snapshot. Must never wait for a guest: it looks after all machines.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::machine::{Machine, Queries};
use super::order::Order;
use super::registry::Registry;
use super::retention::Retention;
use super::rounds::Rounds;
use super::stage::Stage;
use crate::error::Fault;
use crate::id::Index;
use crate::raft::Input;

/// The log's files are laid out this long after the start, when the first rush is over.
const LAY_OUT_AFTER_MS: u64 = 1_000;

/// It looks this often whether event history is to be cut.
const RETENTION_ROUNDS: u32 = 5;

/// When the keeper acts.
#[derive(Clone, Copy, Debug)]
pub struct KeeperSettings {
    /// Flush after this many bytes of log entries: bounds what a restart replays.
    pub flush_bytes: u64,
    /// Flush after this long, if anything was written.
    pub flush_interval_ms: u64,
}

/// Starts the keeper's thread. When it is stopped it makes a last checkpoint.
pub fn start(settings: KeeperSettings, stage: Arc<Stage>, registry: Arc<Registry>) -> Result<Rounds, Fault> {
    let mut keeper = Keeper {
        settings,
        stage: stage.clone(),
        registry,
        flushed_ms: 0,
        laid_out: false,
        rounds: 0,
        retention: Retention::default(),
    };
    Rounds::start("keeper", stage, move |stopping| keeper.round(stopping))
}

struct Keeper {
    settings: KeeperSettings,
    stage: Arc<Stage>,
    registry: Arc<Registry>,
    /// The monotonic clock at the last flush.
    flushed_ms: u64,
    laid_out: bool,
    rounds: u32,
    retention: Retention,
}

impl Keeper {
    fn round(&mut self, stopping: bool) -> Result<(), Fault> {
        if self.rounds.is_multiple_of(RETENTION_ROUNDS) {
            self.retention.round(&self.registry.all(), &self.stage)?;
        }
        self.rounds = self.rounds.wrapping_add(1);
        self.stage.state.drop_replaced()?;
        let now_ms = self.stage.clock.now().monotonic_ms;
        if !self.laid_out && now_ms >= LAY_OUT_AFTER_MS {
            self.laid_out = true;
            self.stage.log.lay_out();
        }
        let bytes = self.stage.unflushed_bytes.load(Ordering::Relaxed);
        let old = now_ms >= self.flushed_ms + self.settings.flush_interval_ms;
        if bytes >= self.settings.flush_bytes || (bytes > 0 && (old || stopping)) {
            self.flushed_ms = now_ms;
            checkpoint(&self.stage, &self.registry)?;
        }
        Ok(())
    }
}

/// Flushes the state and lets the log be cut behind it. For any thread: two at the same time do no harm,
/// because the shard never takes back a cut.
pub(super) fn checkpoint(stage: &Stage, registry: &Registry) -> Result<(), Fault> {
    stage.unflushed_bytes.store(0, Ordering::Relaxed);
    let durable = stage.state.flush()?;
    stage.metrics.checkpoints.inc();
    for (group, index) in durable {
        let to = match registry.by_group(group).and_then(|machine| saved_index(&machine)) {
            Some(saved) => index.min(saved),
            None => index,
        };
        if to > Index(0) {
            stage.orders.send(Order::Shard(Input::Truncate { group, to }));
        }
    }
    Ok(())
}

/// Up to where a snapshot covers a resident machine; `None` for a stored one.
fn saved_index(machine: &Machine) -> Option<Index> {
    match machine.open.as_ref().map(|parts| &parts.queries) {
        Ok(Queries::Resident(resident)) => Some(resident.saved()),
        _ => None,
    }
}
