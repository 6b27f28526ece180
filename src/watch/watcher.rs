//! One watcher of a machine on this node, from its first revision on.
//!
//! Promises what the [`watch`](super) room promises; and that it says of no revision that the watcher has
//! everything up to there before it has. Must never read from disk by itself: a read blocks, and only who
//! owns the watcher knows where that may be.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Poll, Waker};

use super::budget::Taken;
use super::hub::Hub;
use super::seat::{Seat, Standing as Place};
use super::selection::Selection;
use super::{Revised, event_bytes};
use crate::error::Error;
use crate::id::Revision;
use crate::machine::event;
use crate::machine::view::View;

/// A machine's published state, to read history from.
#[derive(Clone, Copy)]
pub struct Standing<'v> {
    /// The last revision.
    pub revision: Revision,
    /// The first revision whose events are kept.
    pub first: Revision,
    /// Its tables.
    pub view: &'v dyn View,
}

/// What a watcher does next.
#[derive(Debug)]
pub enum Step {
    /// It has this to tell.
    Events(Revised),
    /// It has told everything up to this revision. Only when it was asked.
    Progress(Revision),
    /// It must read from disk: call [`Watcher::read`] where that may block.
    Read,
}

/// One watcher of a machine on this node.
pub struct Watcher {
    hub: Arc<Hub>,
    seat: Arc<Seat>,
    /// The next revision that it has not told of.
    next: Revision,
    /// From here on the hub queues for it. None: it reads all from disk.
    joined: Option<Revision>,
    /// Read from disk, and not told yet.
    read: VecDeque<Revised>,
    /// What that takes of the budget, if it is more than a revision.
    read_room: Option<Taken>,
    /// What comes after those.
    read_next: Revision,
}

/// Asks a watcher something while it is at work elsewhere.
#[derive(Clone)]
pub struct Asker {
    seat: Arc<Seat>,
}

impl Asker {
    /// Has the watcher say how far it is, as soon as it has told everything that there was.
    pub fn want_progress(&self) {
        self.seat.want_progress();
    }
}

impl Watcher {
    /// A watcher that has everything before `next`.
    pub fn new(hub: Arc<Hub>, selection: Selection, next: Revision) -> Watcher {
        let seat = hub.seat(selection);
        Watcher { hub, seat, next, joined: None, read: VecDeque::new(), read_room: None, read_next: next }
    }

    /// Asks it something while it is at work elsewhere.
    pub fn asker(&self) -> Asker {
        Asker { seat: self.seat.clone() }
    }

    /// The next revision that it has not told of.
    pub fn next(&self) -> Revision {
        self.next
    }

    /// What is to be done next. `Pending`: nothing until `waker` is woken.
    ///
    /// # Errors
    /// Why it will get no more.
    pub fn poll(&mut self, waker: &Waker) -> Poll<Result<Step, Error>> {
        loop {
            if let Some(revised) = self.read.pop_front() {
                self.next = revised.revision.next();
                return Poll::Ready(Ok(Step::Events(revised)));
            }
            self.read_room = None;
            self.next = self.next.max(self.read_next);
            let Some(joined) = self.joined else { return Poll::Ready(Ok(Step::Read)) };
            if let Some(step) = self.look(joined, waker) {
                return step;
            }
            if let Some(revision) = self.progress() {
                return Poll::Ready(Ok(Step::Progress(revision)));
            }
        }
    }

    /// What is at its seat. `None`: nothing, and it is asked how far it is.
    fn look(&mut self, joined: Revision, waker: &Waker) -> Option<Poll<Result<Step, Error>>> {
        let mut place = self.seat.place.lock();
        match &mut place.standing {
            // What lies before the queue comes first.
            Place::Present(_) if self.next < joined => return Some(Poll::Ready(Ok(Step::Read))),
            Place::Present(queue) => {
                while let Some(revised) = queue.pop() {
                    // It may have been read from disk, or have been told elsewhere before it came here.
                    if revised.revision >= self.next {
                        self.next = revised.revision.next();
                        return Some(Poll::Ready(Ok(Step::Events(revised))));
                    }
                }
            }
            Place::Away(from) => {
                self.joined = None;
                if self.next >= joined {
                    self.next = self.next.max(*from);
                }
                return Some(Poll::Ready(Ok(Step::Read)));
            }
            Place::Ended(why) => return Some(Poll::Ready(Err(why.clone()))),
        }
        if place.progress_wanted {
            return None;
        }
        if !place.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            place.waker = Some(waker.clone());
        }
        Some(Poll::Pending)
    }

    /// Up to where it has told everything, if nothing came in between.
    fn progress(&mut self) -> Option<Revision> {
        let present = self.hub.lock();
        let mut place = self.seat.place.lock();
        if !matches!(&place.standing, Place::Present(queue) if queue.is_empty()) {
            return None;
        }
        place.progress_wanted = false;
        self.next = self.next.max(present.delivered().next());
        Some(Revision(self.next.0 - 1))
    }

    /// Whether [`read`](Watcher::read) would go to the disk. Else it does not block.
    pub fn reads(&self, state: &Standing) -> bool {
        self.next >= state.first && self.next < self.read_end(state)
    }

    /// The first revision that it need not, or cannot, read from disk.
    fn read_end(&self, state: &Standing) -> Revision {
        let known = state.revision.next();
        self.joined.map_or(known, |joined| joined.min(known))
    }

    /// Reads the next portion of history from a state that was published after the last
    /// [`Step::Read`]. Blocks.
    ///
    /// # Errors
    /// `Compacted` if the next revision's events are gone, `Fault` if they do not read.
    pub fn read(&mut self, state: Standing) -> Result<(), Error> {
        if self.next < state.first {
            return Err(Error::Compacted { asked: self.next, first: state.first });
        }
        let end = self.read_end(&state);
        if self.next < end {
            self.read_next = self.read_portion(state.view, end)?;
        }
        if self.joined.is_none() && self.next.max(self.read_next) >= end {
            self.joined = Some(self.hub.join(&self.seat)?);
        }
        Ok(())
    }

    /// Reads from the next revision on, at most up to `end`; answers which comes next.
    fn read_portion(&mut self, view: &dyn View, end: Revision) -> Result<Revision, Error> {
        let bounds = self.hub.bounds();
        let mut room = self.hub.budget().take_to_read(bounds.portion_bytes);
        let portion_bytes = if room.is_some() { bounds.portion_bytes } else { 1 };
        let scan_bytes = bounds.scan_bytes;
        let mut portion = Vec::new();
        let (mut taken, mut scanned, mut last, mut stopped) = (0, 0, None, end);
        event::visit_from(view, self.next, &mut |event| {
            let begins = last.replace(event.revision) != Some(event.revision);
            if begins && (event.revision >= end || taken >= portion_bytes || scanned >= scan_bytes) {
                stopped = event.revision.min(end);
                return ControlFlow::Break(());
            }
            scanned += event_bytes(&event);
            if self.seat.selection.matches(&event) {
                taken += event_bytes(&event);
                Revised::gather(&mut portion, event);
            }
            ControlFlow::Continue(())
        })?;
        if let Some(room) = &mut room {
            room.shrink(taken);
        }
        self.read_room = room;
        self.read = portion.into();
        Ok(stopped)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.leave(&self.seat);
    }
}
