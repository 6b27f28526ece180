//! The watchers of one machine that keep up with it.
//!
//! Promises: what is published reaches the queue of everyone it concerns, whole revisions at a time, before
//! [`publish`](Hub::publish) returns; publishing waits for no watcher, and costs next to nothing when there
//! are none. Must be called after the state with the events is published: whoever is away reads it there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::Revised;
use super::budget::{Budget, Taken};
use super::matcher::Matcher;
use super::seat::{Queue, Seat, Standing};
use super::selection::Selection;
use crate::error::{Error, Fault};
use crate::id::Revision;
use crate::machine::event::{self, Event};

/// What a watcher may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Revisions in its queue.
    pub queue_revisions_max: usize,
    /// Bytes in its queue, about.
    pub queue_bytes_max: usize,
    /// Bytes of a portion of history that it reads from disk, about: whole revisions, at least one. One it
    /// is if the budget has no room for more.
    pub portion_bytes: usize,
    /// Bytes of history that it looks through at a time, about, however little of that it watches.
    pub scan_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            queue_revisions_max: 256,
            queue_bytes_max: 256 << 10,
            portion_bytes: 64 << 10,
            scan_bytes: 4 << 20,
        }
    }
}

/// The watchers of one machine that keep up with it.
pub struct Hub {
    /// Up to here the machine's events were published, or are about to be.
    revision: AtomicU64,
    /// How many watchers are present. Written under the lock of `present`, before `revision` is read;
    /// publishing writes `revision` before it reads this. So either the one who publishes sees a watcher that
    /// comes, or that one sees the new revision and reads it from disk.
    present_count: AtomicUsize,
    present: Mutex<Present>,
    /// The number of the next watcher.
    next_number: AtomicU64,
    budget: Arc<Budget>,
    bounds: Bounds,
}

/// Those who are present.
pub(super) struct Present {
    matcher: Matcher<Arc<Seat>>,
    /// Everything up to here is in the queues of those whom it concerns.
    delivered: Revision,
    /// Why nobody can watch here, if that is so.
    ended: Option<Error>,
}

impl Present {
    /// Up to where everybody present has everything, or finds it in the queue.
    pub fn delivered(&self) -> Revision {
        self.delivered
    }
}

/// An event of a row, and somebody whom it concerns.
struct Hit<'m> {
    seat: &'m Arc<Seat>,
    event: usize,
}

impl Hub {
    /// The hub of a machine that stands at `revision`. `seed` keeps watchers who choose their keys from
    /// costing more than others.
    pub fn new(revision: Revision, budget: Arc<Budget>, bounds: Bounds, seed: u64) -> Hub {
        Hub {
            revision: AtomicU64::new(revision.0),
            present_count: AtomicUsize::new(0),
            present: Mutex::new(Present { matcher: Matcher::new(seed), delivered: revision, ended: None }),
            next_number: AtomicU64::new(0),
            budget,
            bounds,
        }
    }

    /// How many watchers keep up.
    pub fn present(&self) -> usize {
        self.present_count.load(Ordering::Relaxed)
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(super) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// The events of a batch that left the machine at `revision`: the rows that it wrote, with their keys.
    /// Called by one thread at a time.
    pub fn publish<'r>(&self, revision: Revision, rows: impl Iterator<Item = (&'r [u8], &'r Bytes)>) {
        if self.revision.load(Ordering::Relaxed) == revision.0 {
            return;
        }
        self.revision.store(revision.0, Ordering::SeqCst);
        if self.present_count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut wakers = Vec::new();
        let mut present = self.present.lock();
        for (key, row) in rows {
            let sent_away = match self.deliver(&present.matcher, key, row, &mut wakers) {
                Ok(sent_away) => sent_away,
                Err(_) => {
                    // It was written a moment ago as it is. Whoever reads it from disk is told what is wrong.
                    self.send_all_away(&mut present, &mut wakers);
                    break;
                }
            };
            for seat in sent_away {
                self.take_out(&mut present, &seat);
            }
        }
        present.delivered = revision;
        drop(present);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Puts the events of a row into the queues of those whom they concern; answers who had no room for them.
    fn deliver(
        &self,
        matcher: &Matcher<Arc<Seat>>,
        key: &[u8],
        row: &Bytes,
        wakers: &mut Vec<Waker>,
    ) -> Result<Vec<Arc<Seat>>, Fault> {
        let mut hits: Vec<Hit> = Vec::new();
        let mut number = 0;
        event::visit_keys(key, row, &mut |kind, key| {
            matcher.visit(key, &mut |seat: &Arc<Seat>| {
                if seat.selection.takes(kind) {
                    hits.push(Hit { seat, event: number });
                }
            });
            number += 1;
        })?;
        if hits.is_empty() {
            return Ok(Vec::new());
        }
        let events = event::read_row(key, row.clone())?;
        // The sort is stable: each watcher's events stay in their order.
        hits.sort_by_key(|hit| hit.seat.number);
        let taken = self.budget.take_to_queue(row.len()).map(Arc::new);
        let mut sent_away = Vec::new();
        for hits in hits.chunk_by(|a, b| a.seat.number == b.seat.number) {
            if !self.offer(hits, &events, taken.as_ref(), wakers) {
                sent_away.push(hits[0].seat.clone());
            }
        }
        Ok(sent_away)
    }

    /// Offers one watcher its events of a row. It sees all of them or, as yet, none: no revision is in two
    /// rows.
    fn offer(
        &self,
        hits: &[Hit],
        events: &[Event],
        taken: Option<&Arc<Taken>>,
        wakers: &mut Vec<Waker>,
    ) -> bool {
        let mut offered = Vec::with_capacity(1);
        for hit in hits {
            Revised::gather(&mut offered, events[hit.event].clone());
        }
        let mut place = hits[0].seat.place.lock();
        let kept = place.offer(offered, taken, &self.bounds);
        wakers.extend(place.waker.take());
        kept
    }

    /// A snapshot took the place of the state, which is at `revision` now: what happened between is to be
    /// read there, and nothing is in the way of watching.
    pub fn reset(&self, revision: Revision) {
        let mut wakers = Vec::new();
        self.revision.store(revision.0, Ordering::SeqCst);
        let mut present = self.present.lock();
        self.send_all_away(&mut present, &mut wakers);
        present.delivered = revision;
        present.ended = None;
        drop(present);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Nobody can watch here, until [`reset`](Hub::reset).
    pub fn end(&self, why: &Error) {
        let mut present = self.present.lock();
        let mut wakers = Vec::new();
        for seat in present.matcher.iter() {
            let mut place = seat.place.lock();
            place.standing = Standing::Ended(why.clone());
            wakers.extend(place.waker.take());
        }
        self.forget_all(&mut present);
        present.ended = Some(why.clone());
        drop(present);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn send_all_away(&self, present: &mut Present, wakers: &mut Vec<Waker>) {
        let next = present.delivered.next();
        for seat in present.matcher.iter() {
            let mut place = seat.place.lock();
            place.send_away(next);
            wakers.extend(place.waker.take());
        }
        self.forget_all(present);
    }

    fn forget_all(&self, present: &mut Present) {
        present.matcher.clear();
        self.present_count.store(0, Ordering::SeqCst);
    }

    /// The seat of a new watcher, which is not present yet.
    pub(super) fn seat(&self, selection: Selection) -> Arc<Seat> {
        Arc::new(Seat::new(self.next_number.fetch_add(1, Ordering::Relaxed), selection))
    }

    /// From the revision in the answer on, everything that concerns the watcher is queued for it; all before
    /// that is in the published state.
    ///
    /// # Errors
    /// Why nobody can watch here.
    pub(super) fn join(&self, seat: &Arc<Seat>) -> Result<Revision, Error> {
        let mut present = self.present.lock();
        if let Some(why) = &present.ended {
            return Err(why.clone());
        }
        let before = self.present_count.fetch_add(1, Ordering::SeqCst);
        let revision = Revision(self.revision.load(Ordering::SeqCst));
        if before == 0 {
            // It is not kept while nobody is here. With others here it may lack what somebody is about to
            // queue for them.
            present.delivered = revision;
        }
        present.matcher.insert(&seat.selection.span, seat.number, seat.clone());
        seat.place.lock().standing = Standing::Present(Queue::default());
        Ok(revision.next())
    }

    /// The watcher goes.
    pub(super) fn leave(&self, seat: &Arc<Seat>) {
        self.take_out(&mut self.present.lock(), seat);
    }

    fn take_out(&self, present: &mut Present, seat: &Arc<Seat>) {
        if present.matcher.remove(&seat.selection.span, seat.number).is_some() {
            self.present_count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Present> {
        self.present.lock()
    }
}
