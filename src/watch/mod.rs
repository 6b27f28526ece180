//! The hub: who watches a machine, and how its events reach them.
//!
//! Promises: a watcher gets exactly the events of its span from its first revision on, in order, without gap
//! or duplicate, all events of a revision together; publishing costs by the watchers that match, not by those
//! there are, and never waits for one. Must never hold more for a watcher that does not read than its queue,
//! nor for all of them together more than the node allows: who is behind reads on from disk.
//!
//! # How
//! A watcher reads history from a view of the disk, in portions. Once it has read a view to its end it joins
//! the hub: from the revision at which it joined on, events are queued for it, and it reads from disk what
//! lies before that. A queue that is full is dropped, and the watcher goes back to reading from disk at the
//! first revision that it lacks. So memory is needed only for those who keep up.
//!
//! Nothing here waits, reads a clock or knows of tasks: a watcher that has nothing to tell leaves a
//! [`Waker`](std::task::Waker).
//!
//! # Layout
//! - [`selection`]: which events a watch is about
//! - `matcher`: which watchers a key concerns; `spans`: those that watch neither a key nor a
//!   prefix
//! - [`hub`]: the watchers of one machine that keep up; `seat`: what is queued for one of them
//! - [`watcher`]: one watcher, from its first revision on
//! - `budget`: what waits for all watchers of a node, together

mod budget;
pub mod hub;
mod matcher;
mod seat;
pub mod selection;
mod spans;
pub mod watcher;

#[cfg(test)]
mod tests;

pub use self::budget::Budget;
pub use self::hub::{Bounds, Hub};
pub use self::selection::{KeySpan, Selection};
pub use self::watcher::{Standing, Step, Watcher};

use crate::id::Revision;
use crate::machine::event::Event;

/// The events of one revision that a watch is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revised {
    /// The revision.
    pub revision: Revision,
    /// The index of the batch it came from.
    pub index: u64,
    /// The log's clock then.
    pub time_ms: u64,
    /// The events, in order; at least one.
    pub events: Vec<Event>,
}

impl Revised {
    /// Adds an event to those of its revision, or begins the next one.
    fn gather(into: &mut Vec<Revised>, event: Event) {
        match into.last_mut() {
            Some(last) if last.revision == event.revision => last.events.push(event),
            _ => {
                let Event { revision, index, time_ms, .. } = event;
                into.push(Revised { revision, index, time_ms, events: vec![event] });
            }
        }
    }

    /// About what it takes in memory.
    fn bytes(&self) -> usize {
        self.events.iter().map(event_bytes).sum()
    }
}

/// About what an event takes in memory.
fn event_bytes(event: &Event) -> usize {
    size_of::<Event>() + event.key.len() + event.value.len()
}
