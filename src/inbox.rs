//! Queues between threads. A receiver sleeps until there is something, then takes all of it at once.
//!
//! Promises: what is sent arrives once, in the order in which it was sent; what nobody will receive any more
//! is dropped, and with it whoever waits for an answer. Must never spin before it sleeps, as general-purpose
//! channels do: the log, the order and the apply threads hand each command on three times, and on few cores
//! the one that spins takes the time of the one it waits for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Both ends of a new queue.
pub fn new<T>() -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(Queue {
        contents: Mutex::new(Contents { items: VecDeque::new(), sleepers: 0, receivers: 1 }),
        filled: Condvar::new(),
    });
    (Sender { queue: queue.clone() }, Receiver { queue })
}

/// Puts things in. Copies fill the same queue.
pub struct Sender<T> {
    queue: Arc<Queue<T>>,
}

/// Takes things out. Copies share the queue: each thing goes to one of them.
pub struct Receiver<T> {
    queue: Arc<Queue<T>>,
}

/// Nobody receives any more. Carries back what was to be sent.
#[derive(Debug)]
pub struct Closed<T>(pub T);

struct Queue<T> {
    contents: Mutex<Contents<T>>,
    filled: Condvar,
}

struct Contents<T> {
    items: VecDeque<T>,
    /// Receivers asleep for whom nothing was sent yet.
    sleepers: usize,
    receivers: usize,
}

impl<T> Sender<T> {
    /// Queues `item`, and wakes a receiver if one sleeps.
    pub fn send(&self, item: T) -> Result<(), Closed<T>> {
        let mut contents = self.queue.contents.lock();
        contents.push(item)?;
        if contents.sleepers > 0 {
            contents.sleepers -= 1;
            self.queue.filled.notify_one();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// How much is queued, for one who looks after those who take it.
    pub fn len(&self) -> usize {
        self.queue.contents.lock().items.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sleeps until there is something, but no longer than `patience`; then moves everything, up to
    /// `count_max`, to the end of `taken`.
    pub fn take(&self, taken: &mut Vec<T>, count_max: usize, patience: Duration) {
        let mut contents = self.queue.contents.lock();
        if contents.items.is_empty() {
            contents.sleepers += 1;
            if self.queue.filled.wait_for(&mut contents, patience).timed_out() {
                contents.sleepers -= 1;
            }
        }
        let count = contents.items.len().min(count_max);
        taken.extend(contents.items.drain(..count));
    }

    /// Sleeps until there is something, and takes the first.
    pub fn next(&self) -> T {
        let mut contents = self.queue.contents.lock();
        loop {
            if let Some(item) = contents.items.pop_front() {
                return item;
            }
            contents.sleepers += 1;
            self.queue.filled.wait(&mut contents);
        }
    }
}

impl<T> Contents<T> {
    fn push(&mut self, item: T) -> Result<(), Closed<T>> {
        if self.receivers == 0 {
            return Err(Closed(item));
        }
        self.items.push_back(item);
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender { queue: self.queue.clone() }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        self.queue.contents.lock().receivers += 1;
        Receiver { queue: self.queue.clone() }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut contents = self.queue.contents.lock();
        contents.receivers -= 1;
        if contents.receivers == 0 {
            let orphans = std::mem::take(&mut contents.items);
            // What is dropped may itself send, here or elsewhere.
            drop(contents);
            drop(orphans);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn everything_is_taken_at_once_in_order_up_to_the_count() {
        let (sender, receiver) = new();
        (0..5).for_each(|item| sender.send(item).unwrap());
        let mut taken = Vec::new();
        receiver.take(&mut taken, 3, LONG);
        assert_eq!(taken, [0, 1, 2]);
        receiver.take(&mut taken, 3, LONG);
        assert_eq!(taken, [0, 1, 2, 3, 4]);
        receiver.take(&mut taken, 3, SHORT);
        assert_eq!(taken.len(), 5);
    }

    #[test]
    fn a_sleeper_wakes_for_what_is_sent() {
        let (sender, receiver) = new();
        let thread = std::thread::spawn(move || {
            let mut taken = Vec::new();
            while taken.len() < 2 {
                receiver.take(&mut taken, 9, LONG);
            }
            taken
        });
        std::thread::sleep(SHORT);
        sender.send("first").unwrap();
        std::thread::sleep(SHORT);
        sender.send("second").unwrap();
        assert_eq!(thread.join().unwrap(), ["first", "second"]);
    }

    #[test]
    fn each_thing_goes_to_one_of_many_receivers() {
        const COUNT: usize = 10_000;
        let (sender, receiver) = new();
        let work = |receiver: Receiver<Option<usize>>| {
            std::thread::spawn(move || std::iter::from_fn(|| receiver.next()).collect::<Vec<_>>())
        };
        let threads: Vec<_> = (0..4).map(|_| work(receiver.clone())).collect();
        (0..COUNT).for_each(|item| sender.send(Some(item)).unwrap());
        (0..4).for_each(|_| sender.send(None).unwrap());
        let mut all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..COUNT));
    }

    #[test]
    fn sleepers_that_gave_up_do_not_swallow_a_wake() {
        let (sender, receiver) = new();
        let mut taken = Vec::new();
        (0..3).for_each(|_| receiver.take(&mut taken, 9, SHORT));
        assert_eq!(receiver.queue.contents.lock().sleepers, 0);
        let waiting = receiver.clone();
        let thread = std::thread::spawn(move || waiting.next());
        std::thread::sleep(SHORT);
        sender.send(7).unwrap();
        assert_eq!(thread.join().unwrap(), 7);
    }

    #[test]
    fn what_nobody_will_receive_is_dropped_and_later_sends_are_told() {
        let (sender, receiver) = new();
        let copy = receiver.clone();
        let answer = Arc::new(());
        sender.send(answer.clone()).unwrap();
        drop(receiver);
        assert_eq!(Arc::strong_count(&answer), 2);
        drop(copy);
        assert_eq!(Arc::strong_count(&answer), 1);
        assert!(sender.send(answer).is_err());
    }
}
