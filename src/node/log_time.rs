//! What the log's clock shows, as far as a replica knows it: the time that queries see.
//!
//! A leader knows it. Another replica takes the stamp of the last batch and the time since that was applied
//! here, which is behind, but never below what was shown here before: what has ended for a reader has ended
//! for all who read here later. A linearizable read brings what the leader's clock showed (see
//! [`ReadPoint`](crate::raft::ReadPoint)), so that it holds from one replica to the next. A new leader whose
//! wall clock is behind may show less than the one before, until its own has made up for it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::LogTime;
use crate::time::Now;

/// One machine's on this node.
#[derive(Debug, Default)]
pub struct ShownTime {
    /// The latest that was shown here, or that a leader said.
    latest_ms: AtomicU64,
    /// While this replica leads: what the log's clock is ahead of the monotonic one; else 0.
    ahead_ms: AtomicU64,
}

impl ShownTime {
    /// This replica leads, and the log's clock shows `time` now; or, without one, it does not lead.
    pub fn set_leading(&self, time: Option<LogTime>, now: Now) {
        let ahead_ms = time.map_or(0, |time| time.0.saturating_sub(now.monotonic_ms));
        self.ahead_ms.store(ahead_ms, Ordering::Release);
    }

    /// A leader says that the log's clock shows this.
    pub fn note(&self, time: LogTime) {
        self.latest_ms.fetch_max(time.0, Ordering::AcqRel);
    }

    /// What a query sees, in milliseconds since the Unix epoch, of a state whose last batch has the stamp
    /// `stamp` and was applied here at `applied_ms` of the monotonic clock.
    pub fn read(&self, stamp: LogTime, applied_ms: u64, now: Now) -> u64 {
        let since_ms = now.monotonic_ms.saturating_sub(applied_ms);
        let leading_ms = match self.ahead_ms.load(Ordering::Acquire) {
            0 => 0,
            ahead_ms => ahead_ms.saturating_add(now.monotonic_ms),
        };
        let time_ms = stamp.0.saturating_add(since_ms).max(leading_ms);
        // Most reads find the millisecond noted already, and leave the others' cache lines alone.
        let latest_ms = self.latest_ms.load(Ordering::Acquire);
        if time_ms <= latest_ms {
            return latest_ms;
        }
        self.latest_ms.fetch_max(time_ms, Ordering::AcqRel).max(time_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(monotonic_ms: u64) -> Now {
        Now { monotonic_ms, wall_ms: 0 }
    }

    #[test]
    fn it_is_the_last_stamp_and_the_time_since() {
        let time = ShownTime::default();
        assert_eq!(time.read(LogTime(1_000), 50, at(50)), 1_000);
        assert_eq!(time.read(LogTime(1_000), 50, at(57)), 1_007);
    }

    #[test]
    fn a_batch_that_took_longer_to_apply_takes_nothing_back() {
        let time = ShownTime::default();
        assert_eq!(time.read(LogTime(1_000), 50, at(80)), 1_030);
        // Stamped 25 ms after the one before, applied 31 ms after it.
        assert_eq!(time.read(LogTime(1_025), 81, at(81)), 1_030);
        assert_eq!(time.read(LogTime(1_025), 81, at(85)), 1_030, "it stands until the log has caught up");
        assert_eq!(time.read(LogTime(1_025), 81, at(90)), 1_034);
    }

    #[test]
    fn what_the_leader_said_holds_here_too() {
        let time = ShownTime::default();
        time.note(LogTime(1_500));
        assert_eq!(time.read(LogTime(1_000), 50, at(60)), 1_500);
        time.note(LogTime(0));
        assert_eq!(time.read(LogTime(1_000), 50, at(600)), 1_550);
    }

    #[test]
    fn a_leader_shows_the_logs_clock() {
        let time = ShownTime::default();
        time.set_leading(Some(LogTime(2_000)), at(100));
        assert_eq!(time.read(LogTime(1_000), 50, at(130)), 2_030);
        time.set_leading(None, at(140));
        assert_eq!(time.read(LogTime(1_000), 50, at(150)), 2_030, "it goes on from its estimate");
        assert_eq!(time.read(LogTime(2_060), 150, at(160)), 2_070);
    }
}
