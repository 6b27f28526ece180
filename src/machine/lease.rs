//! Leases: time-bounded grants and the keys attached to them, as rows of `Table::Leases`.
//!
//! | row | meaning |
//! | --- | --- |
//! | `l` id | the lease |
//! | `d` time id | when it is to be looked at: never after its end |
//! | `a` id key | a key attached to the lease |
//! | `k` key | the lease that a key is attached to |
//!
//! All numbers are big-endian. [`session`] has rows of its own in the same table.
//!
//! Deadlines are log time: only the stamps of batches end a lease. A renewal moves the deadline and leaves
//! the `d` row where it is, because most leases are renewed many times for each time that row is reached;
//! then it moves to the lease's end. A lease that clients renew does not end before a third of its time to
//! live has passed in the present leader's term, because nobody could renew it while there was no leader.
//! That costs nothing at the start of a term: it is a rule about rows, not a change of them. A machine's own
//! leases are timers, which nobody renews: they end when they were to.
//!
//! Promises: what is granted, renewed or attached at a time before its end lives at that time; what has
//! reached its end is never revived.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;

use super::overlay::Overlay;
use super::session;
use super::view::{Direction, Span, Table, View};
use crate::error::{Fault, REPAIR};

/// The largest id that a client may choose: that of programs whose numbers have a sign.
pub const CHOSEN_ID_MAX: u64 = i64::MAX as u64;

/// The longest time to live that a client may ask for: a hundred years of 365 days, in milliseconds.
pub const TTL_MS_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1_000;

/// A new leader leaves a lease this part of its time to live, at least.
const GRACE_PART: u64 = 3;

/// One lease.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Lease {
    /// What it was granted for, in milliseconds.
    #[prost(uint64, tag = "1")]
    pub ttl_ms: u64,
    /// The log time at which it ends, if no new leader gives it longer.
    #[prost(uint64, tag = "2")]
    pub deadline_ms: u64,
    /// The time in its `d` row.
    #[prost(uint64, tag = "3")]
    pub due_ms: u64,
    /// Whether the machine granted it to itself: then no client renews or revokes it.
    #[prost(bool, tag = "4")]
    pub of_machine: bool,
    /// Whether it is a session.
    #[prost(bool, tag = "5")]
    pub is_session: bool,
}

impl Lease {
    /// A lease of `ttl_ms` from `now_ms` on.
    pub fn granted(now_ms: u64, ttl_ms: u64) -> Lease {
        let deadline_ms = now_ms.saturating_add(ttl_ms);
        Lease { ttl_ms, deadline_ms, due_ms: deadline_ms, of_machine: false, is_session: false }
    }

    /// The log time at which it ends, if it is not renewed and `term_began_ms` remains the start of the
    /// leader's term.
    pub fn end_ms(&self, term_began_ms: u64) -> u64 {
        if self.of_machine {
            return self.deadline_ms;
        }
        self.deadline_ms.max(term_began_ms.saturating_add(self.ttl_ms / GRACE_PART))
    }

    /// Whether it can still be used. A machine's own lives until its end comes as an input: nobody renews it,
    /// so there is nobody to revive it too late.
    pub fn lives(&self, now_ms: u64, term_began_ms: u64) -> bool {
        self.of_machine || now_ms < self.end_ms(term_began_ms)
    }
}

/// What a machine's head says of its leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The last id that was given without being chosen; those are never used twice.
    pub last: u64,
    /// How many there are.
    pub live: u64,
    /// How many of them are sessions.
    pub sessions: u64,
}

/// The lease `id`, if it was not removed. It may have reached its end.
pub fn find(overlay: &Overlay, id: u64) -> Result<Option<Lease>, Fault> {
    overlay.get(Table::Leases, &lease_key(id))?.map(|row| read(&row)).transpose()
}

/// The lease `id` in a view, if it was not removed.
pub fn find_in(view: &dyn View, id: u64) -> Result<Option<Lease>, Fault> {
    view.get(Table::Leases, &lease_key(id))?.map(|row| read(&row)).transpose()
}

/// Adds `lease` under an id that was never given before, and says which.
pub fn insert(overlay: &mut Overlay, tally: &mut Tally, lease: Lease) -> Result<u64, Fault> {
    let mut id = tally.last + 1;
    // A client may have chosen the next one.
    while find(overlay, id)?.is_some() {
        id += 1;
    }
    tally.last = id;
    insert_as(overlay, tally, id, lease);
    Ok(id)
}

/// Adds `lease` as `id`, which must not be in use.
pub fn insert_as(overlay: &mut Overlay, tally: &mut Tally, id: u64, lease: Lease) {
    tally.live += 1;
    tally.sessions += u64::from(lease.is_session);
    write(overlay, id, &lease);
    overlay.put(Table::Leases, due_key(lease.due_ms, id), Some(Bytes::new()));
    if lease.is_session {
        session::open(overlay, id);
    }
}

/// Gives a living lease its whole time to live from `now_ms` on.
pub fn renew(overlay: &mut Overlay, id: u64, lease: &Lease, now_ms: u64) {
    let deadline_ms = now_ms.saturating_add(lease.ttl_ms);
    if deadline_ms > lease.deadline_ms {
        write(overlay, id, &Lease { deadline_ms, ..*lease });
    }
}

/// Has the lease looked at again at `due_ms`.
pub fn put_off(overlay: &mut Overlay, id: u64, lease: &Lease, due_ms: u64) {
    overlay.put(Table::Leases, due_key(lease.due_ms, id), None);
    overlay.put(Table::Leases, due_key(due_ms, id), Some(Bytes::new()));
    write(overlay, id, &Lease { due_ms, ..*lease });
}

/// Removes a lease with all its rows. The keys that were attached, in key order.
pub fn remove(
    overlay: &mut Overlay,
    tally: &mut Tally,
    id: u64,
    lease: &Lease,
) -> Result<Vec<Vec<u8>>, Fault> {
    let keys = attached(overlay, id)?;
    overlay.put(Table::Leases, lease_key(id), None);
    overlay.put(Table::Leases, due_key(lease.due_ms, id), None);
    for key in &keys {
        overlay.put(Table::Leases, attachment_key(id, key), None);
        overlay.put(Table::Leases, holder_key(key), None);
    }
    if lease.is_session {
        session::remove(overlay, id)?;
    }
    tally.live -= 1;
    tally.sessions -= u64::from(lease.is_session);
    Ok(keys)
}

/// Ties `key` to the lease `id`, which must live; a key moves from its former lease.
pub fn attach(overlay: &mut Overlay, id: u64, key: &[u8]) -> Result<(), Fault> {
    detach(overlay, key)?;
    overlay.put(Table::Leases, attachment_key(id, key), Some(Bytes::new()));
    overlay.put(Table::Leases, holder_key(key), Some(id.to_be_bytes().to_vec().into()));
    Ok(())
}

/// Unties `key` from its lease, if it has one.
pub fn detach(overlay: &mut Overlay, key: &[u8]) -> Result<(), Fault> {
    let Some(row) = overlay.get(Table::Leases, &holder_key(key))? else { return Ok(()) };
    let id = u64::from_be_bytes(row[..].try_into().map_err(|_| damaged())?);
    overlay.put(Table::Leases, attachment_key(id, key), None);
    overlay.put(Table::Leases, holder_key(key), None);
    Ok(())
}

/// The leases that are to be looked at by `time_ms`, at most `limit`, those that were due first before the
/// others. Some of them may have been renewed.
pub fn due(view: &dyn View, time_ms: u64, limit: usize) -> Result<Vec<u64>, Fault> {
    due_since(view, 0, time_ms, limit)
}

/// The same of those that are to be looked at from `from_ms` on. For who knows that there are none before:
/// rows that are gone are in the way of a scan on disk until they are compacted, and here most are gone.
pub fn due_since(view: &dyn View, from_ms: u64, time_ms: u64, limit: usize) -> Result<Vec<u64>, Fault> {
    let end = due_key(time_ms.saturating_add(1), 0);
    let span = Span { start: &due_key(from_ms, 0), end: Some(&end) };
    ids_at(view, span, 9, limit)
}

/// The ids of the leases after `after`, in their order, at most `limit`.
pub fn ids_after(view: &dyn View, after: u64, limit: usize) -> Result<Vec<u64>, Fault> {
    let Some(start) = after.checked_add(1) else { return Ok(Vec::new()) };
    ids_at(view, Span { start: &lease_key(start), end: Some(b"m") }, 1, limit)
}

/// The ids that the keys of a span have at a place.
fn ids_at(view: &dyn View, span: Span, at: usize, limit: usize) -> Result<Vec<u64>, Fault> {
    let mut ids = Vec::new();
    let mut broken = false;
    view.scan(Table::Leases, span, Direction::Forward, &mut |key, _| {
        match key.get(at..at + 8).and_then(|id| id.try_into().ok()) {
            Some(id) => ids.push(u64::from_be_bytes(id)),
            None => broken = true,
        }
        if broken || ids.len() >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if broken { Err(damaged()) } else { Ok(ids) }
}

/// The keys attached to the lease `id` in a view, in key order, at most `limit`; those after a key, if there
/// is one.
pub fn attached_in(
    view: &dyn View,
    id: u64,
    after: Option<&[u8]>,
    limit: usize,
) -> Result<Vec<Vec<u8>>, Fault> {
    let mut keys = Vec::new();
    let (first, end) = attachments(id);
    let start = after.map_or_else(|| first.clone(), |after| [&*first, after, b"\0"].concat());
    view.scan(Table::Leases, Span { start: &start, end: Some(&end) }, Direction::Forward, &mut |key, _| {
        keys.push(key[first.len()..].to_vec());
        if keys.len() >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(keys)
}

/// The keys attached to the lease `id`, in key order.
fn attached(overlay: &Overlay, id: u64) -> Result<Vec<Vec<u8>>, Fault> {
    let mut keys = Vec::new();
    let (start, end) = attachments(id);
    let span = Span { start: &start, end: Some(&end) };
    overlay.scan(Table::Leases, span, Direction::Forward, &mut |key, _| {
        keys.push(key[start.len()..].to_vec());
        ControlFlow::Continue(())
    })?;
    Ok(keys)
}

/// The span of a lease's attachments.
fn attachments(id: u64) -> (Vec<u8>, Vec<u8>) {
    let end = id.checked_add(1).map_or(b"b".to_vec(), |next| attachment_key(next, b""));
    (attachment_key(id, b""), end)
}

fn write(overlay: &mut Overlay, id: u64, lease: &Lease) {
    overlay.put(Table::Leases, lease_key(id), Some(lease.encode_to_vec().into()));
}

fn read(row: &[u8]) -> Result<Lease, Fault> {
    Lease::decode(row).map_err(|_| damaged())
}

fn damaged() -> Fault {
    Fault::new(format!("a lease row is damaged. {REPAIR}"))
}

fn lease_key(id: u64) -> Vec<u8> {
    [b"l".as_slice(), &id.to_be_bytes()].concat()
}

fn due_key(time_ms: u64, id: u64) -> Vec<u8> {
    [b"d".as_slice(), &time_ms.to_be_bytes(), &id.to_be_bytes()].concat()
}

fn attachment_key(id: u64, key: &[u8]) -> Vec<u8> {
    [b"a".as_slice(), &id.to_be_bytes(), key].concat()
}

fn holder_key(key: &[u8]) -> Vec<u8> {
    [b"k".as_slice(), key].concat()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::machine::view::MemoryView;

    fn empty() -> (Overlay, Tally) {
        (Overlay::over(Arc::new(MemoryView::default())), Tally::default())
    }

    fn view_of(overlay: Overlay) -> MemoryView {
        let mut view = MemoryView::default();
        for write in overlay.into_writes() {
            view.put(write.table, write.key, write.value);
        }
        view
    }

    #[test]
    fn due_leases_come_by_time_then_id() {
        let (mut overlay, mut tally) = empty();
        for (id, deadline_ms) in [(1, 30), (2, 10), (3, 30), (4, 31)] {
            insert_as(&mut overlay, &mut tally, id, Lease::granted(0, deadline_ms));
        }
        let view = view_of(overlay);
        assert_eq!(due(&view, 30, 10).unwrap(), [2, 1, 3]);
        assert_eq!(due(&view, 30, 2).unwrap(), [2, 1]);
        assert_eq!(due(&view, 9, 10).unwrap(), [] as [u64; 0]);
        assert_eq!(due_since(&view, 11, 30, 10).unwrap(), [1, 3]);
        assert_eq!(due_since(&view, 31, 30, 10).unwrap(), [] as [u64; 0]);
        assert_eq!(ids_after(&view, 1, 2).unwrap(), [2, 3]);
    }

    #[test]
    fn a_renewed_lease_is_looked_at_when_it_was_due_and_then_at_its_end() {
        let (mut overlay, mut tally) = empty();
        insert_as(&mut overlay, &mut tally, 7, Lease::granted(0, 10));
        let lease = find(&overlay, 7).unwrap().unwrap();
        renew(&mut overlay, 7, &lease, 5);
        let renewed = find(&overlay, 7).unwrap().unwrap();
        assert_eq!((renewed.deadline_ms, renewed.due_ms), (15, 10));
        put_off(&mut overlay, 7, &renewed, 15);
        let view = view_of(overlay);
        assert_eq!(due(&view, 14, 10).unwrap(), [] as [u64; 0]);
        assert_eq!(due(&view, 15, 10).unwrap(), [7]);
    }

    #[test]
    fn a_new_term_leaves_a_client_a_third_and_a_timer_nothing() {
        let lease = Lease::granted(100, 30);
        assert_eq!((lease.end_ms(0), lease.end_ms(119), lease.end_ms(121)), (130, 130, 131));
        assert_eq!(Lease { of_machine: true, ..lease }.end_ms(500), 130);
    }

    #[test]
    fn an_ended_lease_leaves_no_row_and_is_not_counted() {
        let (mut overlay, mut tally) = empty();
        let lease = Lease { is_session: true, ..Lease::granted(0, 5) };
        insert_as(&mut overlay, &mut tally, u64::MAX, lease);
        assert_eq!(tally, Tally { last: 0, live: 1, sessions: 1 });
        attach(&mut overlay, u64::MAX, b"b").unwrap();
        attach(&mut overlay, u64::MAX, b"a").unwrap();
        let keys = remove(&mut overlay, &mut tally, u64::MAX, &lease).unwrap();
        assert_eq!(keys, [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(tally, Tally::default());
        assert_eq!(view_of(overlay).rows().count(), 0);
    }

    #[test]
    fn ids_pass_over_those_that_clients_chose() {
        let (mut overlay, mut tally) = empty();
        insert_as(&mut overlay, &mut tally, 1, Lease::granted(0, 5));
        insert_as(&mut overlay, &mut tally, 2, Lease::granted(0, 5));
        assert_eq!(insert(&mut overlay, &mut tally, Lease::granted(0, 5)).unwrap(), 3);
        assert_eq!(tally, Tally { last: 3, live: 3, sessions: 0 });
    }

    #[test]
    fn attaching_moves_a_key() {
        let (mut overlay, mut tally) = empty();
        let lease = Lease::granted(0, 5);
        let (one, two) = (
            insert(&mut overlay, &mut tally, lease).unwrap(),
            insert(&mut overlay, &mut tally, lease).unwrap(),
        );
        attach(&mut overlay, one, b"k").unwrap();
        attach(&mut overlay, two, b"k").unwrap();
        assert_eq!(remove(&mut overlay, &mut tally, one, &lease).unwrap(), [] as [Vec<u8>; 0]);
        assert_eq!(remove(&mut overlay, &mut tally, two, &lease).unwrap(), [b"k".to_vec()]);
    }
}
