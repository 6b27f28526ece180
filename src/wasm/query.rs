//! Warm instances for queries: queries owe no determinism, and a fresh instance costs as much as the rest of
//! a read.

use parking_lot::Mutex;

use super::instance::{GuestSettings, Live, make};
use super::module::Module;
use crate::machine::frame::Frame;
use crate::machine::guest::{Ending, QueryView};

/// An instance is replaced after this many queries: bounds what a leaking guest gathers.
const USES_MAX: u32 = 4_096;

/// Idle instances kept, at most.
const IDLE_MAX: usize = 8;

/// What one query may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Fuel: about one unit for each instruction of the guest, and more for host calls.
    pub fuel: u64,
}

/// The instances that run one machine's queries. Any number of threads may query at the same time.
pub struct QueryPool {
    module: Module,
    seed: [u8; 32],
    settings: GuestSettings,
    idle: Mutex<Vec<Warm>>,
}

struct Warm {
    live: Live,
    uses: u32,
}

impl QueryPool {
    pub(super) fn new(module: Module, seed: [u8; 32], settings: GuestSettings) -> QueryPool {
        QueryPool { module, seed, settings, idle: Mutex::default() }
    }

    /// Runs one query. `Exhausted`: its budget was too small; running it again with a larger one is safe.
    pub fn query(&self, frame: Frame, view: QueryView, request: &[u8], budget: Budget) -> (Frame, Ending) {
        let idle = self.idle.lock().pop();
        let mut warm = match idle {
            Some(warm) => warm,
            None => match make(&self.module, self.seed, self.settings) {
                Ok(Ok(live)) => Warm { live, uses: 0 },
                Ok(Err(ending)) => return (frame, ending),
                Err(fault) => return (frame, Ending::Fault(fault)),
            },
        };
        let (frame, ending) = warm.live.query_with(frame, view, request, budget.fuel);
        warm.uses += 1;
        if matches!(ending, Ending::Answer(_) | Ending::Refused(_)) && warm.uses < USES_MAX {
            let mut idle = self.idle.lock();
            if idle.len() < IDLE_MAX {
                idle.push(warm);
            }
        }
        (frame, ending)
    }
}
