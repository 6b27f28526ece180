//! A thread that looks at intervals whether there is something to do.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::stage::Stage;
use crate::error::Fault;
use crate::inbox::{self, Receiver, Sender};

/// How often such a thread looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The thread. Ends when told to, or when the node has failed.
pub struct Rounds {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    name: &'static str,
}

impl Rounds {
    /// Starts a thread called `name` that calls `round` again and again, the last time with `true`. A fault
    /// stops the node.
    pub fn start(
        name: &'static str,
        stage: Arc<Stage>,
        round: impl FnMut(bool) -> Result<(), Fault> + Send + 'static,
    ) -> Result<Rounds, Fault> {
        let (stop, stopped) = inbox::new();
        let run = move || run(&stopped, &stage, round);
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = spawned.map_err(|e| Fault::new(format!("the {name} cannot be started: {e}")))?;
        Ok(Rounds { stop, thread, name })
    }

    /// Ends the thread, after a last round if the node has not failed. Waits for the round at hand.
    pub fn stop(self) {
        // The thread is gone already only if the node failed or it panicked: then there is nothing to stop.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!(thread = self.name, "it panicked: the next start replays more of the log");
        }
    }
}

fn run(stopped: &Receiver<()>, stage: &Stage, mut round: impl FnMut(bool) -> Result<(), Fault>) {
    let mut words = Vec::new();
    loop {
        stopped.take(&mut words, 1, LOOK_INTERVAL);
        let stopping = !words.is_empty();
        if stage.failure().is_some() {
            return;
        }
        if let Err(fault) = round(stopping) {
            return stage.fail(fault);
        }
        if stopping {
            return;
        }
    }
}
