//! The node's door: requests come in as long as it is open, and are counted until they end, so that a node
//! that stops can let them end well.
//!
//! Promises: whoever was let in is waited for; once the door is closed nobody is let in.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

use crate::error::Error;

/// See the head of this file. Open at first.
#[derive(Default)]
pub struct Door {
    /// The node is about to stop: it hands over what it leads, and requests still come in.
    leaving: watch::Sender<bool>,
    closed: AtomicBool,
    inside: AtomicUsize,
    /// Told when the last one leaves after the door was closed.
    empty: Notify,
}

/// A request under way. It ends when this is dropped.
pub struct Inside<'d> {
    door: &'d Door,
}

impl Door {
    /// Says that the door will be closed.
    pub fn take_leave(&self) {
        self.leaving.send_replace(true);
    }

    /// Whether the door will be closed, or is.
    pub fn is_leaving(&self) -> bool {
        *self.leaving.borrow()
    }

    /// Ends when it is said that the door will be closed.
    pub async fn leaves(&self) {
        // The sender is gone only with the door.
        let _ = self.leaving.subscribe().wait_for(|leaving| *leaving).await;
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// `Unavailable` when the door is closed: the request is not done here.
    pub fn enter(&self) -> Result<Inside<'_>, Error> {
        // Counted before the look: whoever closes the door sees everyone who found it open.
        self.inside.fetch_add(1, Ordering::SeqCst);
        let inside = Inside { door: self };
        if self.is_closed() { Err(stopping()) } else { Ok(inside) }
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.take_leave();
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether nobody is let in.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Waits until the last request has ended. The door must be closed.
    pub async fn all_gone(&self) {
        loop {
            let mut empty = std::pin::pin!(self.empty.notified());
            empty.as_mut().enable();
            if self.inside.load(Ordering::SeqCst) == 0 {
                return;
            }
            empty.await;
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.door.inside.fetch_sub(1, Ordering::SeqCst) == 1 && self.door.is_closed() {
            self.door.empty.notify_waiters();
        }
    }
}

/// What is told when nobody is let in.
pub fn stopping() -> Error {
    Error::Unavailable("the node is stopping; the request was not done: try another node".into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn those_inside_are_waited_for_and_nobody_else_comes_in() {
        let door = Arc::new(Door::default());
        let (first, second) = (door.enter().unwrap(), door.enter().unwrap());
        door.close();
        assert!(matches!(door.enter().err(), Some(Error::Unavailable(text)) if text.contains("not done")));
        let waiting = door.clone();
        let gone = tokio::spawn(async move { waiting.all_gone().await });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!gone.is_finished());
        drop(second);
        gone.await.unwrap();
        door.all_gone().await;
    }
}
