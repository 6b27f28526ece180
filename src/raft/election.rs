//! When a follower loses patience with a silent leader: chance that can be repeated.
//!
//! The engine would draw its timeouts from the operating system's randomness, and two runs of one seed would
//! differ. These depend on nothing but the seed, the replica and its history, and spread as well.

/// One replica's election timeouts.
#[derive(Debug)]
pub(super) struct ElectionTimeout {
    /// Of this replica of this group, in this life.
    seed: u64,
    /// The least number of ticks; the most is one less than twice as many.
    ticks_min: usize,
    /// Term and role when the timeout was last drawn.
    standing: (u64, u8),
    /// How often these have changed.
    changes: u64,
}

impl ElectionTimeout {
    /// Timeouts for a replica that starts in this term with role 0, as a follower.
    pub(super) fn new(seed: [u64; 3], ticks_min: usize, term: u64) -> ElectionTimeout {
        let seed = seed.into_iter().fold(0, mix);
        ElectionTimeout { seed, ticks_min, standing: (term, 0), changes: 0 }
    }

    /// The timeout in ticks for a replica that now has this term and role: another after each change of them.
    pub(super) fn ticks(&mut self, term: u64, role: u8) -> usize {
        if self.standing != (term, role) {
            self.standing = (term, role);
            self.changes += 1;
        }
        let drawn = mix(mix(self.seed, term), self.changes);
        self.ticks_min + (drawn % self.ticks_min as u64) as usize
    }
}

/// A number that looks like chance and depends on both (the finalizer of Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", 2014).
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_add(b.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn timeouts_repeat_stay_in_range_and_spread_over_replicas_and_changes() {
        let draw = |replica, term| ElectionTimeout::new([7, 1, replica], 10, 0).ticks(term, 0);
        let drawn: Vec<usize> = (0..1_000).map(|replica| draw(replica, 3)).collect();
        assert_eq!(drawn, (0..1_000).map(|replica| draw(replica, 3)).collect::<Vec<_>>());
        assert_eq!(drawn.iter().copied().collect::<BTreeSet<_>>(), (10..20).collect());
        let mut one = ElectionTimeout::new([7, 1, 1], 10, 0);
        let changing = (0..100).map(|change| one.ticks(5, change % 2)).collect::<BTreeSet<_>>();
        assert!(changing.len() > 5, "{changing:?}");
    }
}
