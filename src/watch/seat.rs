//! What is queued for one watcher, and how it stands with its hub.
//!
//! Promises: the queue is bounded in number and bytes; a watcher whose queue was dropped knows from which
//! revision on it must read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;

use super::Revised;
use super::budget::Taken;
use super::hub::Bounds;
use super::selection::Selection;
use crate::error::Error;
use crate::id::Revision;

/// One watcher's place at a hub.
pub struct Seat {
    /// In the order in which watchers came.
    pub number: u64,
    /// What it watches.
    pub selection: Selection,
    pub place: Mutex<Place>,
}

/// How a watcher stands.
pub struct Place {
    pub standing: Standing,
    /// Whether it was asked how far it is.
    pub progress_wanted: bool,
    /// Whom to wake when there is something for it.
    pub waker: Option<Waker>,
}

pub enum Standing {
    /// It is not at the hub: it reads from disk, from this revision on if it did not know better.
    Away(Revision),
    /// It is, and this is queued for it.
    Present(Queue),
    /// It will get no more.
    Ended(Error),
}

/// Revisions on their way to a watcher.
#[derive(Default)]
pub struct Queue {
    revisions: VecDeque<Queued>,
    bytes: usize,
}

struct Queued {
    revised: Revised,
    bytes: usize,
    /// The memory of the events, which many queues share.
    _taken: Arc<Taken>,
}

impl Queue {
    /// Adds a revision, if there is room.
    fn push(&mut self, revised: Revised, taken: &Arc<Taken>, bounds: &Bounds) -> bool {
        let bytes = revised.bytes();
        if self.revisions.len() >= bounds.queue_revisions_max || self.bytes + bytes > bounds.queue_bytes_max {
            return false;
        }
        self.bytes += bytes;
        self.revisions.push_back(Queued { revised, bytes, _taken: taken.clone() });
        true
    }

    pub fn pop(&mut self) -> Option<Revised> {
        let Queued { revised, bytes, .. } = self.revisions.pop_front()?;
        self.bytes -= bytes;
        Some(revised)
    }

    pub fn is_empty(&self) -> bool {
        self.revisions.is_empty()
    }

    fn first(&self) -> Option<Revision> {
        self.revisions.front().map(|queued| queued.revised.revision)
    }
}

impl Seat {
    pub fn new(number: u64, selection: Selection) -> Seat {
        let standing = Standing::Away(Revision::default());
        Seat { number, selection, place: Mutex::new(Place { standing, progress_wanted: false, waker: None }) }
    }

    /// Asks the watcher how far it is: it answers when it has told everything up to there.
    pub fn want_progress(&self) {
        let mut place = self.place.lock();
        place.progress_wanted = true;
        let waker = place.waker.take();
        drop(place);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Place {
    /// Queues revisions that belong together. False: there was no room, `taken` or not, and the watcher is
    /// away now.
    pub fn offer(&mut self, offered: Vec<Revised>, taken: Option<&Arc<Taken>>, bounds: &Bounds) -> bool {
        let Standing::Present(queue) = &mut self.standing else { return false };
        for revised in offered {
            let revision = revised.revision;
            if !taken.is_some_and(|taken| queue.push(revised, taken, bounds)) {
                self.send_away(revision);
                return false;
            }
        }
        true
    }

    /// Drops the queue: the watcher must read what was in it, and everything from `next` on.
    pub fn send_away(&mut self, next: Revision) {
        if let Standing::Present(queue) = &self.standing {
            self.standing = Standing::Away(queue.first().unwrap_or(next));
        }
    }
}
