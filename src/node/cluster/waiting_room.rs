//! Where requests wait while nobody leads their group, so that an election costs them time and not an error.
//!
//! Promises: bounded in bytes; each leaves at its deadline at the latest; those who wait go on in the order
//! in which they came. Everything that happens here is counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use crate::error::Error;

/// How long those who wait look again without having been called: the leader may be known elsewhere only.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Requests that wait for a leader.
pub struct WaitingRoom {
    bytes_max: usize,
    bytes: AtomicUsize,
    /// In the order in which they came.
    called: Mutex<VecDeque<oneshot::Sender<()>>>,
    counts: Counts,
}

/// What happened to requests whose leader is not here.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Had to wait.
    pub held: Counter,
    /// Were passed on to another node.
    pub forwarded: Counter,
    /// Commands of sessions that were sent again because their fate was unknown.
    pub repeated: Counter,
    /// Found no leader until their deadline.
    pub expired: Counter,
    /// Were refused because too much waited already.
    pub refused: Counter,
}

/// A place in the room; given back when it is dropped.
pub struct Place<'r> {
    room: &'r WaitingRoom,
    bytes: usize,
}

impl WaitingRoom {
    /// A room for requests of `bytes_max` bytes together.
    pub fn new(bytes_max: usize, counts: Counts) -> WaitingRoom {
        WaitingRoom { bytes_max, bytes: AtomicUsize::new(0), called: Mutex::default(), counts }
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// `Overloaded` names what waits and the limit. The request was not done.
    pub fn enter(&self, bytes: usize) -> Result<Place<'_>, Error> {
        let held = self.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let place = Place { room: self, bytes };
        if held > self.bytes_max {
            self.counts.refused.inc();
            return Err(Error::Overloaded(format!(
                "no leader is known at the moment, and requests of {} bytes wait for one already (the limit \
                 is {}): try again later",
                held - bytes,
                self.bytes_max
            )));
        }
        self.counts.held.inc();
        Ok(place)
    }

    /// Waits until something may have changed, at most for `patience`.
    pub async fn wait(&self, patience: Duration) {
        let (call, called) = oneshot::channel();
        self.called.lock().push_back(call);
        // A call, or the time: either way it is time to look.
        let _ = tokio::time::timeout(patience.min(LOOK_INTERVAL), called).await;
    }

    /// Who leads some group has changed: those who wait look again, in the order in which they came.
    pub fn call(&self) {
        let called = std::mem::take(&mut *self.called.lock());
        for call in called {
            // Those who went away need no call.
            let _ = call.send(());
        }
    }

    /// A request was passed on.
    pub fn count_forwarded(&self) {
        self.counts.forwarded.inc();
    }

    /// A command of a session is sent again.
    pub fn count_repeated(&self) {
        self.counts.repeated.inc();
    }

    /// A request found no leader in time.
    pub fn count_expired(&self) {
        self.counts.expired.inc();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_over_the_bound_is_refused_and_places_are_given_back() {
        let room = WaitingRoom::new(100, Counts::default());
        let first = room.enter(60).unwrap();
        let error = room.enter(60).err().expect("it is over the bound");
        assert!(matches!(&error, Error::Overloaded(text) if text.contains("60") && text.contains("100")));
        assert_eq!(room.bytes.load(Ordering::Acquire), 60);
        drop(first);
        drop(room.enter(100).unwrap());
        assert_eq!(room.bytes.load(Ordering::Acquire), 0);
        assert_eq!((room.counts.refused.get(), room.counts.held.get()), (1, 2));
    }

    #[tokio::test]
    async fn a_call_ends_the_wait_and_so_does_the_time() {
        let room = std::sync::Arc::new(WaitingRoom::new(100, Counts::default()));
        let waiting = room.clone();
        let long = tokio::spawn(async move { waiting.wait(Duration::from_secs(60)).await });
        while room.called.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        room.call();
        long.await.unwrap();
        room.wait(Duration::from_millis(1)).await;
    }
}
