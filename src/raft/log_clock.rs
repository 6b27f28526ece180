//! The stamps of batches: the log's clock, by which leases end.
//!
//! Within a term it runs on the leader's monotonic clock, so that a stepped wall clock ends no lease. At the
//! start of a term it catches up with wall time. It never goes below the stamp before.

use crate::id::{LogTime, Term};
use crate::time::Now;

/// One group's clock, as long as this replica leads.
#[derive(Debug, Default)]
pub(super) struct LogClock {
    /// The term that the clock was started for; 0 before the first.
    term: Term,
    /// What the clock showed at the start of the term.
    start_ms: u64,
    /// What the monotonic clock showed then.
    start_monotonic_ms: u64,
    /// The last stamp given, or found in the log.
    last_ms: u64,
    /// Whether a batch of this term was stamped.
    stamped: bool,
}

impl LogClock {
    /// The term that the clock runs for.
    pub(super) fn term(&self) -> Term {
        self.term
    }

    /// Starts the clock for a term that this replica leads. `last` is the stamp of the last batch in its log.
    pub(super) fn start(&mut self, term: Term, now: Now, last: LogTime) {
        *self = LogClock {
            term,
            start_ms: now.wall_ms.max(last.0),
            start_monotonic_ms: now.monotonic_ms,
            last_ms: last.0,
            stamped: false,
        };
    }

    /// What the clock shows.
    pub(super) fn read(&self, now: Now) -> LogTime {
        let run_ms = now.monotonic_ms.saturating_sub(self.start_monotonic_ms);
        LogTime(self.last_ms.max(self.start_ms.saturating_add(run_ms)))
    }

    /// The stamp of a new batch.
    pub(super) fn stamp(&mut self, now: Now) -> LogTime {
        let stamp = self.read(now);
        self.last_ms = stamp.0;
        self.stamped = true;
        stamp
    }

    /// Whether the next stamp is the first of its term.
    pub(super) fn is_fresh(&self) -> bool {
        !self.stamped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(monotonic_ms: u64, wall_ms: u64) -> Now {
        Now { monotonic_ms, wall_ms }
    }

    #[test]
    fn within_a_term_the_wall_clock_does_not_matter() {
        let mut clock = LogClock::default();
        clock.start(Term(1), at(10, 1_000), LogTime(0));
        assert_eq!(clock.stamp(at(10, 1_000)), LogTime(1_000));
        assert_eq!(clock.stamp(at(25, 900_000)), LogTime(1_015), "a jump ahead");
        assert_eq!(clock.stamp(at(30, 3)), LogTime(1_020), "a jump back");
    }

    #[test]
    fn a_new_term_catches_up_with_wall_time() {
        let mut clock = LogClock::default();
        clock.start(Term(1), at(0, 1_000), LogTime(0));
        clock.start(Term(2), at(5, 7_000), clock.read(at(5, 7_000)));
        assert!(clock.is_fresh());
        assert_eq!(clock.stamp(at(6, 0)), LogTime(7_001));
        assert!(!clock.is_fresh());
    }

    #[test]
    fn it_never_goes_below_the_last_stamp_of_the_log() {
        let mut clock = LogClock::default();
        clock.start(Term(3), at(0, 1_000), LogTime(5_000));
        assert_eq!(clock.stamp(at(0, 1_000)), LogTime(5_000));
        assert_eq!(clock.stamp(at(9, 1_000)), LogTime(5_009));
    }
}
