//! What all watchers of a node may take in memory together, for what waits until they read on.
//!
//! Events that are queued are shared: what many queues hold is counted once, and given back when the last of
//! them has let go of it. What a watcher has read from disk is its own, and has a share of its own, so that
//! those who stopped reading behind take nothing from those who keep up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The part of a budget that is for what was read from disk: one in so many.
const READ_SHARE: usize = 4;

/// Bytes that may wait for watchers, and do.
#[derive(Debug)]
pub struct Budget {
    queued: Arc<Pot>,
    read: Arc<Pot>,
}

#[derive(Debug)]
struct Pot {
    bytes_max: usize,
    bytes: AtomicUsize,
}

impl Budget {
    /// So many bytes.
    pub fn new(bytes_max: usize) -> Arc<Budget> {
        let pot = |bytes_max| Arc::new(Pot { bytes_max, bytes: AtomicUsize::new(0) });
        let read_max = bytes_max / READ_SHARE;
        Arc::new(Budget { queued: pot(bytes_max - read_max), read: pot(read_max) })
    }

    /// What waits now.
    pub fn bytes(&self) -> usize {
        [&self.queued, &self.read].iter().map(|pot| pot.bytes.load(Ordering::Relaxed)).sum()
    }

    /// Takes `bytes` for queues until the answer is dropped; `None` if there are not so many.
    pub(super) fn take_to_queue(&self, bytes: usize) -> Option<Taken> {
        take(&self.queued, bytes)
    }

    /// The same for a portion of history.
    pub(super) fn take_to_read(&self, bytes: usize) -> Option<Taken> {
        take(&self.read, bytes)
    }
}

fn take(pot: &Arc<Pot>, bytes: usize) -> Option<Taken> {
    let fits = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= pot.bytes_max);
    let taken = pot.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
    taken.is_ok().then(|| Taken { bytes, of: pot.clone() })
}

/// A part of a [`Budget`], given back when it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    bytes: usize,
    of: Arc<Pot>,
}

impl Taken {
    /// Gives back what goes beyond `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let spare = self.bytes.saturating_sub(bytes);
        self.bytes -= spare;
        self.of.bytes.fetch_sub(spare, Ordering::Relaxed);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_and_never_goes_over_the_bound() {
        let budget = Budget::new(100);
        let first = budget.take_to_queue(50).unwrap();
        assert!(budget.take_to_queue(26).is_none() && budget.take_to_queue(usize::MAX).is_none());
        let second = budget.take_to_queue(25).unwrap();
        assert_eq!(budget.bytes(), 75);
        let mut read = budget.take_to_read(25).unwrap();
        assert!(budget.take_to_read(1).is_none());
        read.shrink(10);
        read.shrink(20);
        assert_eq!(budget.bytes(), 85);
        drop(budget.take_to_read(15).unwrap());
        drop(first);
        assert_eq!(budget.bytes(), 35);
        drop((second, read));
        assert_eq!(budget.bytes(), 0);
    }
}
