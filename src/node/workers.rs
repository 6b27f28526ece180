//! The apply workers: a few threads that take lanes in turn, so that a slow machine does not hold up the
//! others.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::lane::Lane;
use super::stage::Stage;
use crate::error::Fault;
use crate::inbox::Receiver;

/// Starts `count` workers. They end when nobody can give them lanes any more.
pub fn start(
    count: usize,
    ready: &Receiver<Option<Arc<Lane>>>,
    stage: &Arc<Stage>,
) -> Result<Vec<JoinHandle<()>>, Fault> {
    (0..count).map(|number| spawn(number, ready.clone(), stage.clone())).collect()
}

fn spawn(
    number: usize,
    ready: Receiver<Option<Arc<Lane>>>,
    stage: Arc<Stage>,
) -> Result<JoinHandle<()>, Fault> {
    let work = move || {
        while let Some(lane) = ready.next() {
            if lane.work(&stage) {
                stage.give(lane);
            }
        }
    };
    let spawned = std::thread::Builder::new().name(format!("apply-{number}")).spawn(work);
    spawned.map_err(|e| Fault::new(format!("an apply worker cannot be started: {e}")))
}
