//! How fast files leave this node, all of them together.
//!
//! A bucket that fills at a steady rate: whoever wants to send takes out what it needs at once, and waits for
//! what was not there. So places in the queue are given in the order in which they were asked for (the
//! generic cell rate algorithm of ITU-T I.371). Pure: the clock is the caller's.

/// See the head of this file.
pub(super) struct Throttle {
    /// 0: no limit.
    bytes_per_s: u64,
    burst_ns: u64,
    /// When all that was taken will have been filled in again.
    even_at_ns: u64,
}

impl Throttle {
    /// A full bucket that holds `burst_bytes`.
    pub(super) fn new(bytes_per_s: u64, burst_bytes: u64) -> Throttle {
        let mut throttle = Throttle { bytes_per_s, burst_ns: 0, even_at_ns: 0 };
        throttle.burst_ns = throttle.time_for(burst_bytes);
        throttle
    }

    /// Takes out so many bytes, and says for how many nanoseconds to wait before they are sent.
    pub(super) fn take(&mut self, now_ns: u64, bytes: u64) -> u64 {
        let even_at_ns = self.even_at_ns.max(now_ns) + self.time_for(bytes);
        self.even_at_ns = even_at_ns;
        even_at_ns.saturating_sub(now_ns).saturating_sub(self.burst_ns)
    }

    fn time_for(&self, bytes: u64) -> u64 {
        match self.bytes_per_s {
            0 => 0,
            rate => {
                let ns = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
                u64::try_from(ns).unwrap_or(u64::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn a_full_bucket_goes_at_once_and_what_follows_at_the_rate() {
        let mut throttle = Throttle::new(1_000, 500);
        assert_eq!(throttle.take(0, 500), 0);
        assert_eq!(throttle.take(0, 1_000), SECOND_NS);
        assert_eq!(throttle.take(0, 1_000), 2 * SECOND_NS);
        // What nobody took meanwhile is not saved up beyond the bucket.
        assert_eq!(throttle.take(100 * SECOND_NS, 500), 0);
        assert_eq!(throttle.take(100 * SECOND_NS, 500), SECOND_NS / 2);
    }

    #[test]
    fn no_limit_never_waits() {
        let mut throttle = Throttle::new(0, 500);
        assert!((0..100).all(|_| throttle.take(0, u64::MAX / 200) == 0));
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_carries_more_than_the_rate_and_one_bucket(
            takes in prop::collection::vec((0..SECOND_NS, 1..5_000u64), 1..40)
        ) {
            let (rate, burst) = (1_000, 5_000);
            let mut throttle = Throttle::new(rate, burst);
            let (mut now, mut sent) = (0, Vec::new());
            for (pause, bytes) in takes {
                now += pause;
                sent.push((now + throttle.take(now, bytes), bytes));
            }
            for first in 0..sent.len() {
                let mut bytes = 0;
                for (at, more) in &sent[first..] {
                    bytes += more;
                    let filled = (at - sent[first].0) * rate / SECOND_NS + 1;
                    prop_assert!(bytes <= filled + burst, "{bytes} bytes, {filled} filled in");
                }
            }
        }
    }
}
