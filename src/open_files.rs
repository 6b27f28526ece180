//! How many files and connections this process may have open, and who gets them.
//!
//! A database that cannot open a file stops the node. So clients never get what the databases need: each
//! connection has a place, and there are places for half of what the system allows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Files of the state that are open all the time. More are of use only to states of hundreds of gigabytes.
const STATE_FILES_MAX: u64 = 4_096;
/// With fewer the database has hardly a file at hand.
const STATE_FILES_MIN: u64 = 64;

/// Asks for as many as the system gives this process at most: shells and services start programs with a
/// small part of that.
pub fn ask_for_all() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(why) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%why, ?limit, "the limit on open files stays as it is");
    }
}

/// Files that the state of one node may keep open.
pub fn for_state() -> i32 {
    state_share(allowed()) as i32
}

fn allowed() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A quarter: the log, other nodes and what is read and written at times get the last one.
fn state_share(allowed: u64) -> u64 {
    (allowed / 4).clamp(STATE_FILES_MIN, STATE_FILES_MAX)
}

/// Places for connections.
#[derive(Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    max: usize,
    /// What to do for more.
    remedy: &'static str,
    /// Whether it was told that there is none.
    is_told: Arc<AtomicBool>,
}

/// A place of a connection, free again when it is dropped.
pub struct Place(#[expect(dead_code, reason = "held for its end")] OwnedSemaphorePermit);

impl Places {
    /// As many as `max`.
    pub fn new(max: usize, remedy: &'static str) -> Places {
        Places { free: Arc::new(Semaphore::new(max)), max, remedy, is_told: Arc::default() }
    }

    /// Those of the clients of this process, however many nodes it has.
    pub fn of_clients() -> Places {
        static SHARED: OnceLock<Places> = OnceLock::new();
        let places = SHARED.get_or_init(|| {
            let max = (allowed() / 2).min(Semaphore::MAX_PERMITS as u64) as usize;
            Places::new(max, "clients get half of the open files: raise that limit (ulimit -n, LimitNOFILE=)")
        });
        places.clone()
    }

    /// None if all are taken, which is told in the log, once until there is one again.
    pub fn take(&self) -> Option<Place> {
        let place = self.free.clone().try_acquire_owned().ok().map(Place);
        let was_told = self.is_told.swap(place.is_none(), Ordering::Relaxed);
        if place.is_none() && !was_told {
            let Places { max, remedy, .. } = self;
            tracing::warn!("there are {max} connections: more are closed at once; {remedy}");
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_free_again_when_they_are_left() {
        let places = Places::new(2, "");
        let (first, second) = (places.take(), places.clone().take());
        assert!(first.is_some() && second.is_some() && places.take().is_none());
        drop(first);
        assert!(places.take().is_some());
    }

    #[test]
    fn the_state_gets_a_quarter_within_bounds() {
        assert_eq!([100, 1_024, 8_192, u64::MAX].map(state_share), [64, 256, 2_048, 4_096]);
    }

    #[test]
    fn all_that_the_system_gives_is_asked_for() {
        ask_for_all();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
