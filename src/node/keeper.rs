//! The keeper: flushes the state, has resident machines saved, and lets the log be cut behind both.
//!
//! Promises: the log is never cut beyond what `state` has flushed, nor, for a resident machine, beyond its
//! last snapshot; a snapshot takes effect only when the state is flushed up to it, so that a restart never
//! finds rows older than it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::machine::{Machine, Queries};
use super::order::Order;
use super::registry::Registry;
use super::stage::Stage;
use crate::error::Fault;
use crate::id::Index;
use crate::raft::Input;

/// How often the keeper looks whether there is something to do.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// When the keeper acts.
#[derive(Clone, Copy, Debug)]
pub struct KeeperSettings {
    /// Flush after this many bytes of log entries: bounds what a restart replays.
    pub flush_bytes: u64,
    /// Flush after this long, if anything was written.
    pub flush_interval_ms: u64,
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
        let (stop, stopped) = crossbeam_channel::bounded(1);
        let rounds = Rounds { settings, stage, registry, flushed_ms: 0 };
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
}

impl Rounds {
    fn run(mut self, stopped: &Receiver<()>) {
        loop {
            let stopping = !matches!(stopped.recv_timeout(LOOK_INTERVAL), Err(RecvTimeoutError::Timeout));
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
        let now_ms = self.stage.clock.now().monotonic_ms;
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
            let to = match self.registry.by_group(group) {
                Some(machine) if is_resident(&machine) => Index(0),
                _ => index,
            };
            if to > Index(0) {
                self.stage.orders.send(Order::Shard(Input::Truncate { group, to }));
            }
        }
        Ok(())
    }
}

fn is_resident(machine: &Machine) -> bool {
    matches!(machine.open.as_ref().map(|parts| &parts.queries), Ok(Queries::Resident(_)))
}
