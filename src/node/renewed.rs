//! Leases that were renewed through this node a moment ago: renewing such a one again needs no place in the
//! log.
//!
//! A lease that was renewed lives for its whole time from when that renewal began, under whichever leader. So
//! a client that asks again a moment later can be told what is left of that time, if the lease is still
//! there, and has lost next to nothing.
//!
//! Promises: nobody is told of a longer time than the log gives the lease.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::Node;
use super::machine::Machine;
use super::request::Consistency;
use crate::id::GroupId;
use crate::machine::lease;

/// A moment is this part of a lease's time to live,
const MOMENT_PART: u64 = 100;

/// and at most so many milliseconds.
const MOMENT_MS_MAX: u64 = 250;

/// For how many milliseconds after its renewal a lease is not renewed again.
pub fn moment_ms(ttl_ms: u64) -> u64 {
    (ttl_ms / MOMENT_PART).min(MOMENT_MS_MAX)
}

/// A renewal that the log has.
#[derive(Clone, Copy)]
struct Renewal {
    /// When it began here, on the node's monotonic clock: before the log's stamp for it.
    began_ms: u64,
    /// How long the lease lives from then on.
    ttl_ms: u64,
}

impl Renewal {
    /// What is left of the lease's time, if the renewal was a moment ago.
    fn left_ms(&self, now_ms: u64) -> Option<u64> {
        // Both readings are cut to the millisecond; and who asks may have read the clock before another's
        // renewal began.
        let elapsed_ms = now_ms.saturating_sub(self.began_ms) + 1;
        (elapsed_ms <= moment_ms(self.ttl_ms)).then(|| self.ttl_ms - elapsed_ms)
    }
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Renewed {
    renewals: Mutex<Renewals>,
}

#[derive(Default)]
struct Renewals {
    of: HashMap<(GroupId, u64), Renewal>,
    /// When those of too long ago were last removed.
    swept_ms: u64,
}

impl Renewed {
    /// Notes renewals that the log has, and that began at `began_ms`: for each lease the milliseconds that
    /// it was given, 0 if it was not there.
    pub(super) fn note(&self, group: GroupId, began_ms: u64, leases: &[u64], ttls_ms: &[u64]) {
        let mut renewals = self.renewals.lock();
        for (&lease, &ttl_ms) in leases.iter().zip(ttls_ms) {
            if moment_ms(ttl_ms) > 0 {
                renewals.of.insert((group, lease), Renewal { began_ms, ttl_ms });
            }
        }
        if began_ms >= renewals.swept_ms + MOMENT_MS_MAX {
            renewals.of.retain(|_, renewal| renewal.left_ms(began_ms).is_some());
            renewals.swept_ms = began_ms;
        }
    }

    /// What is left of the time of each lease, if all were renewed a moment ago.
    fn left_ms(&self, group: GroupId, leases: &[u64], now_ms: u64) -> Option<Vec<u64>> {
        let renewals = self.renewals.lock();
        let left_ms = |lease: &u64| renewals.of.get(&(group, *lease))?.left_ms(now_ms);
        leases.iter().map(left_ms).collect()
    }
}

impl Node {
    /// What is left of the time of each lease, if all were renewed through this node a moment ago and are
    /// there.
    pub(super) async fn renewed_lately(&self, machine: &Machine, leases: &[u64]) -> Option<Vec<u64>> {
        let group = machine.record.group();
        let clock = &self.inner.stage.clock;
        self.inner.renewed.left_ms(group, leases, clock.now().monotonic_ms)?;
        // A lease may have been revoked meanwhile, through another node. Whatever is wrong here is told by
        // the renewal that follows.
        let lane = &machine.serving().ok()?.lane;
        self.wait_fresh(lane, Consistency::Lease).await.ok()?;
        let view = &lane.published().view;
        let mut found = None;
        for &id in leases {
            if found != Some(id) {
                found = lease::find_in(&**view, id).ok()?.map(|_| id);
                found?;
            }
        }
        self.inner.renewed.left_ms(group, leases, clock.now().monotonic_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(7);

    #[test]
    fn what_was_renewed_a_moment_ago_is_told_what_is_left() {
        let renewed = Renewed::default();
        renewed.note(GROUP, 1_000, &[1, 2, 3], &[10_000, 60_000, 0]);
        assert_eq!(renewed.left_ms(GROUP, &[1, 2], 1_000), Some(vec![9_999, 59_999]));
        assert_eq!(renewed.left_ms(GROUP, &[1], 999), Some(vec![9_999]), "renewed after the clock was read");
        assert_eq!(renewed.left_ms(GROUP, &[1, 1], 1_099), Some(vec![9_900, 9_900]));
        assert_eq!(renewed.left_ms(GROUP, &[1], 1_100), None, "a hundredth of its time is over");
        assert_eq!(renewed.left_ms(GROUP, &[2], 1_249), Some(vec![59_750]));
        assert_eq!(renewed.left_ms(GROUP, &[2], 1_250), None, "a quarter of a second is over");
        assert_eq!(renewed.left_ms(GROUP, &[2, 3], 1_000), None, "a lease that is not there");
        assert_eq!(renewed.left_ms(GroupId(8), &[1], 1_000), None, "another machine's lease");
    }

    #[test]
    fn a_later_renewal_counts_and_old_ones_are_forgotten() {
        let renewed = Renewed::default();
        renewed.note(GROUP, 0, &[1], &[10_000]);
        renewed.note(GROUP, 90, &[1, 2], &[10_000, 10_000]);
        assert_eq!(renewed.left_ms(GROUP, &[1], 150), Some(vec![9_939]));
        renewed.note(GROUP, 10_000, &[3], &[10_000]);
        assert_eq!(renewed.renewals.lock().of.len(), 1);
    }

    #[test]
    fn a_lease_of_a_short_time_is_always_renewed() {
        let renewed = Renewed::default();
        renewed.note(GROUP, 0, &[1], &[99]);
        assert_eq!(renewed.left_ms(GROUP, &[1], 0), None);
    }
}
