//! The only reader of clocks and maker of seeds in the project.
//!
//! Everything else is handed a [`Now`] or a seed, so that it can be run again from the same values.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the process began to look, never going back: for timeouts and intervals.
    pub monotonic_ms: u64,
    /// Milliseconds since the Unix epoch, as the operating system has it: may jump.
    pub wall_ms: u64,
}

/// Reads the clocks of this computer. Copies share one origin.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose monotonic side starts at zero now.
    pub fn start() -> Clock {
        Clock { origin: Instant::now() }
    }

    /// Both clocks, read together.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic_ms: self.origin.elapsed().as_millis() as u64, wall_ms: wall.as_millis() as u64 }
    }

    /// Nanoseconds since the clock was started: for measuring, never for decisions that replicas share.
    pub fn elapsed_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }
}

/// A number from the operating system's entropy: for node identities and for seeds.
///
/// # Panics
/// If the operating system has no entropy to give: nothing that needs an identity may then go on.
pub fn seed() -> u64 {
    getrandom::u64().expect("the operating system gives entropy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ() {
        assert_ne!(seed(), seed());
    }

    #[test]
    fn the_monotonic_side_never_goes_back() {
        let clock = Clock::start();
        let first = clock.now().monotonic_ms;
        assert!(clock.now().monotonic_ms >= first);
    }
}
