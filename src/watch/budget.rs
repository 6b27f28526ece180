//! What the queues of all watchers of a node may take in memory together.
//!
//! Events are shared: what many queues hold is counted once, and given back when the last of them has let go
//! of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may be queued for watchers, and are.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    bytes: AtomicUsize,
}

impl Budget {
    /// So many bytes.
    pub fn new(bytes_max: usize) -> Arc<Budget> {
        Arc::new(Budget { bytes_max, bytes: AtomicUsize::new(0) })
    }

    /// What is queued now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes `bytes` of it until the answer is dropped; `None` if there are not so many.
    pub(super) fn take(self: &Arc<Budget>, bytes: usize) -> Option<Taken> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        let taken = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.is_ok().then(|| Taken { bytes, of: self.clone() })
    }
}

/// A part of a [`Budget`], given back when it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    bytes: usize,
    of: Arc<Budget>,
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
        let first = budget.take(60).unwrap();
        assert!(budget.take(41).is_none() && budget.take(usize::MAX).is_none());
        let second = budget.take(40).unwrap();
        assert_eq!(budget.bytes(), 100);
        drop(first);
        assert_eq!(budget.bytes(), 40);
        drop(second);
        assert_eq!(budget.bytes(), 0);
    }
}
