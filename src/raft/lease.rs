//! Reads without a round trip: what voters promise a leader, and how long it may rely on that.
//!
//! Whoever hears a leader grants nobody a vote for one election timeout, on its own monotonic clock. So after
//! a round of heartbeats that a quorum answered, no other leader can arise before that time has passed since
//! the round was *sent*: until shortly before, the leader may answer reads by itself (Ongaro: "Consensus",
//! 2014, section 6.4.1; Gray and Cheriton: "Leases", SOSP 1989). "Shortly" is what clocks may differ by.
//!
//! Promises, as long as every monotonic clock runs at most [`ShardConfig::clock_drift_percent_max`] fast or
//! slow: no other replica leads, and so nobody commits anything that this one does not know, while
//! [`Lease::holds`]. A computer that was suspended together with its clock breaks that: those who cannot rule
//! it out ask for linearizable reads, which rely on no clock.
//!
//! The engine has a check of its own, in ticks. It is not enough: a burst of ticks after a pause shortens it,
//! a message of a higher term ends it, and it is forgotten at a restart.
//!
//! [`ShardConfig::clock_drift_percent_max`]: crate::raft::ShardConfig::clock_drift_percent_max

use crate::id::Term;
use crate::storage::entry::GroupLog;

/// Readings of a clock are cut to whole milliseconds, on both sides.
const ROUNDING_MS: u64 = 2;

/// How long a lease lasts if voters are loyal for `loyal_ms` and any clock may be `drift_percent` fast or
/// slow: the leader's may be slow while a voter's is fast.
pub(super) fn lease_ms(loyal_ms: u64, drift_percent: u64) -> u64 {
    let drift_percent = drift_percent.min(100);
    (loyal_ms * (100 - drift_percent) / (100 + drift_percent)).saturating_sub(ROUNDING_MS)
}

/// What a leader was promised.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// The term in which it was promised.
    term: Term,
    /// On this node's monotonic clock.
    until_ms: u64,
    /// A term in which the leadership was offered to another. That one needs nobody's patience to be elected,
    /// not even if the offer is taken back: it may still be under way.
    offered: Term,
}

impl Lease {
    /// A quorum answered a round that was sent in this term at this time.
    pub(super) fn extend(&mut self, term: Term, sent_ms: u64, lease_ms: u64) {
        let until_ms = sent_ms + lease_ms;
        let known_ms = if self.term == term { self.until_ms } else { 0 };
        (self.term, self.until_ms) = (term, until_ms.max(known_ms));
    }

    /// Another replica is asked to take over: no lease any more in this term.
    pub(super) fn forfeit(&mut self, term: Term) {
        self.offered = term;
    }

    /// Whether nobody else can lead now. For the leader of `term`, with a time that was read after the
    /// question had arrived.
    pub(super) fn holds(&self, term: Term, now_ms: u64) -> bool {
        self.term == term && self.offered != term && now_ms < self.until_ms
    }

    /// Whether it ends so soon that it should be extended, for the sake of the reads that follow.
    pub(super) fn is_aging(&self, now_ms: u64, lease_ms: u64) -> bool {
        self.until_ms.saturating_sub(now_ms) < lease_ms / 2
    }
}

/// What a voter has promised.
#[derive(Debug)]
pub(super) struct Loyalty {
    /// On this node's monotonic clock.
    until_ms: u64,
}

impl Loyalty {
    /// At a start nobody knows what this replica had promised before it: the most there can be. A replica
    /// that never wrote anything has promised nothing: it answers no leader before that leader's term is
    /// synced.
    pub(super) fn at_start(log: &GroupLog, now_ms: u64, loyal_ms: u64) -> Loyalty {
        let is_new = log.hard_state.term == Term(0) && log.start.0.0 == 0 && log.entries.is_empty();
        Loyalty { until_ms: if is_new { 0 } else { now_ms + loyal_ms } }
    }

    /// No promise.
    #[cfg(test)]
    pub(super) fn none() -> Loyalty {
        Loyalty { until_ms: 0 }
    }

    /// The leader spoke, and will be answered.
    pub(super) fn renew(&mut self, now_ms: u64, loyal_ms: u64) {
        self.until_ms = self.until_ms.max(now_ms + loyal_ms);
    }

    /// Whether it may help no other replica to lead.
    pub(super) fn binds(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Index;
    use crate::storage::entry::HardState;

    #[test]
    fn a_slow_leaders_lease_ends_before_a_fast_voters_loyalty() {
        for (loyal_ms, drift_percent) in [(1_000, 0), (1_000, 5), (150, 5), (10_000, 20), (1_000, 99)] {
            let lease_ms = lease_ms(loyal_ms, drift_percent);
            // Real time, in hundredths of a millisecond, with each reading off by a whole one.
            let lease_at_most = (lease_ms + 1) * 10_000 / (100 - drift_percent);
            let loyal_at_least = (loyal_ms - 1) * 10_000 / (100 + drift_percent);
            assert!(lease_at_most <= loyal_at_least, "{loyal_ms} ms, {drift_percent} %");
        }
        assert_eq!(lease_ms(1_000, 5), 902);
        assert_eq!((lease_ms(1_000, 100), lease_ms(1, 0)), (0, 0), "no lease rather than a wrong one");
    }

    #[test]
    fn a_lease_counts_from_when_the_round_was_sent_and_only_in_its_term() {
        let mut lease = Lease::default();
        assert!(!lease.holds(Term(0), 0));
        lease.extend(Term(3), 100, 900);
        assert!(lease.holds(Term(3), 999) && !lease.holds(Term(3), 1_000));
        assert!(!lease.holds(Term(2), 500) && !lease.holds(Term(4), 500));
        lease.extend(Term(3), 50, 900);
        assert!(lease.holds(Term(3), 999), "an answer that was overtaken takes nothing back");
        assert!(!lease.is_aging(500, 900) && lease.is_aging(600, 900));
        lease.extend(Term(4), 60, 900);
        assert!(lease.holds(Term(4), 959) && !lease.holds(Term(4), 960));
    }

    #[test]
    fn who_offers_the_leadership_has_no_lease_until_the_next_term() {
        let mut lease = Lease::default();
        lease.extend(Term(3), 100, 900);
        lease.forfeit(Term(3));
        assert!(!lease.holds(Term(3), 200));
        lease.extend(Term(3), 300, 900);
        assert!(!lease.holds(Term(3), 400), "the offer may still be under way");
        lease.extend(Term(5), 400, 900);
        assert!(lease.holds(Term(5), 500));
    }

    #[test]
    fn a_restart_counts_as_a_promise_unless_nothing_was_ever_written() {
        let new = GroupLog::default();
        assert!(!Loyalty::at_start(&new, 10, 1_000).binds(10));
        let voted = HardState { term: Term(1), vote: 7, commit: Index(0) };
        let mut loyalty = Loyalty::at_start(&GroupLog { hard_state: voted, ..new.clone() }, 10, 1_000);
        assert!(loyalty.binds(1_009) && !loyalty.binds(1_010));
        assert!(Loyalty::at_start(&GroupLog { start: (Index(4), Term(2)), ..new }, 10, 1_000).binds(10));
        loyalty.renew(500, 1_000);
        assert!(loyalty.binds(1_499) && !loyalty.binds(1_500));
    }
}
