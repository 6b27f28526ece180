//! The numbers of a session's commands: given one by one, no more under way than the window, and acknowledged
//! in one figure as their outcomes come, in whichever order.
//!
//! Promises: a number that is under way is never acknowledged; all that are settled below the first that is
//! under way are. Whoever drops a [`Number`] settles it: nobody asks for its outcome any more.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// The numbers of one session.
pub struct Numbers {
    state: Mutex<State>,
    /// As many permits as numbers may be given: what the window leaves above those that are acknowledged.
    room: Semaphore,
}

#[derive(Default)]
struct State {
    /// The last number that was given.
    last: u64,
    /// All up to this one are settled.
    acknowledged: u64,
    /// Those above it that are settled too.
    settled: BTreeSet<u64>,
}

/// A number under way; settled when it is dropped.
pub struct Number<'n> {
    numbers: &'n Numbers,
    /// Which.
    pub number: u64,
}

/// The session has ended: it gives no numbers any more.
#[derive(Debug)]
pub struct Ended;

impl Numbers {
    /// Numbers of which `window` may be ahead of what is acknowledged.
    pub fn new(window: u64) -> Numbers {
        let room = usize::try_from(window).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        Numbers { state: Mutex::default(), room: Semaphore::new(room) }
    }

    /// The next number, once there is room: in the order in which it was asked for.
    pub async fn next(&self) -> Result<Number<'_>, Ended> {
        // Given back when numbers are acknowledged.
        self.room.acquire().await.map_err(|_| Ended)?.forget();
        let mut state = self.state.lock();
        state.last += 1;
        Ok(Number { numbers: self, number: state.last })
    }

    /// All up to this one are settled.
    pub fn acknowledged(&self) -> u64 {
        self.state.lock().acknowledged
    }

    /// Gives no numbers any more; those that wait for one are told.
    pub fn end(&self) {
        self.room.close();
    }

    /// Whether it gives none any more.
    pub fn has_ended(&self) -> bool {
        self.room.is_closed()
    }

    fn settle(&self, number: u64) {
        let mut state = self.state.lock();
        state.settled.insert(number);
        let before = state.acknowledged;
        while state.settled.first() == Some(&(state.acknowledged + 1)) {
            state.settled.pop_first();
            state.acknowledged += 1;
        }
        let freed = (state.acknowledged - before) as usize;
        drop(state);
        self.room.add_permits(freed);
    }
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        self.numbers.settle(self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_largest_number_below_which_all_are_settled_is_acknowledged() {
        let numbers = Numbers::new(10);
        let mut given = Vec::new();
        for expected in 1..=4 {
            let number = numbers.next().await.unwrap();
            assert_eq!((number.number, numbers.acknowledged()), (expected, 0));
            given.push(number);
        }
        for (settled, acknowledged) in [(2, 0), (1, 2), (4, 2), (3, 4)] {
            given.retain(|number| number.number != settled);
            assert_eq!(numbers.acknowledged(), acknowledged, "after {settled}");
        }
    }

    #[tokio::test]
    async fn no_number_is_further_ahead_than_the_window_and_those_who_wait_go_in_order() {
        let numbers = Numbers::new(2);
        let first = numbers.next().await.unwrap();
        let second = numbers.next().await.unwrap();
        let (mut third, mut fourth) = (Box::pin(numbers.next()), Box::pin(numbers.next()));
        assert!((&mut third).now_or_never().is_none() && (&mut fourth).now_or_never().is_none());
        // The first is under way still: three numbers would be one ahead of the window.
        drop(second);
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        assert_eq!(third.now_or_never().expect("there is room").unwrap().number, 3);
        assert_eq!(fourth.now_or_never().expect("there is room").unwrap().number, 4);
    }

    #[tokio::test]
    async fn who_waits_learns_of_the_end() {
        let numbers = Numbers::new(1);
        let first = numbers.next().await.unwrap();
        let mut waiting = Box::pin(numbers.next());
        assert!((&mut waiting).now_or_never().is_none());
        numbers.end();
        assert!(waiting.now_or_never().expect("it is told").is_err());
        drop(first);
        assert!(numbers.next().await.is_err() && numbers.has_ended());
    }
}
