//! Leases: time-bounded grants and the keys attached to them, as rows of `Table::Leases`.
//!
//! | row | meaning |
//! | --- | --- |
//! | `l` id | the lease: its time to live and its deadline |
//! | `d` deadline id | the order in which leases end |
//! | `a` id key | a key attached to the lease |
//! | `k` key | the lease that a key is attached to |
//!
//! All numbers are big-endian. Deadlines are log time: only the stamps of batches end a lease.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;

use super::overlay::Overlay;
use super::view::{Direction, Span, Table, View};
use crate::error::{Fault, REPAIR};

/// One lease.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Lease {
    /// What it was granted for, in milliseconds.
    #[prost(uint64, tag = "1")]
    pub ttl_ms: u64,
    /// The log time at which it ends.
    #[prost(uint64, tag = "2")]
    pub deadline_ms: u64,
}

/// The lease `id`, if it has not ended.
pub fn find(overlay: &Overlay, id: u64) -> Result<Option<Lease>, Fault> {
    overlay.get(Table::Leases, &lease_key(id))?.map(|row| read(&row)).transpose()
}

/// Makes the lease `id`, which must be new.
pub fn insert(overlay: &mut Overlay, id: u64, lease: Lease) {
    overlay.put(Table::Leases, lease_key(id), Some(lease.encode_to_vec().into()));
    overlay.put(Table::Leases, deadline_key(lease.deadline_ms, id), Some(Bytes::new()));
}

/// Ends the lease `id`: it, its place in the order of deadlines and its attachments. The keys, in key order.
pub fn remove(overlay: &mut Overlay, id: u64, lease: Lease) -> Result<Vec<Vec<u8>>, Fault> {
    let keys = attached(overlay, id)?;
    overlay.put(Table::Leases, lease_key(id), None);
    overlay.put(Table::Leases, deadline_key(lease.deadline_ms, id), None);
    for key in &keys {
        overlay.put(Table::Leases, attachment_key(id, key), None);
        overlay.put(Table::Leases, holder_key(key), None);
    }
    Ok(keys)
}

/// Ties `key` to the lease `id`, which must exist; a key moves from its former lease.
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

/// The leases whose deadline is at or before `time_ms`, at most `limit`, in the order in which they end.
pub fn due(view: &dyn View, time_ms: u64, limit: usize) -> Result<Vec<u64>, Fault> {
    let mut ids = Vec::new();
    let mut broken = false;
    let end = deadline_key(time_ms.saturating_add(1), 0);
    let span = Span { start: &deadline_key(0, 0), end: Some(&end) };
    view.scan(Table::Leases, span, Direction::Forward, &mut |key, _| {
        match key.get(9..17).and_then(|id| id.try_into().ok()) {
            Some(id) => ids.push(u64::from_be_bytes(id)),
            None => broken = true,
        }
        if broken || ids.len() >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if broken { Err(damaged()) } else { Ok(ids) }
}

/// The keys attached to the lease `id`, in key order.
fn attached(overlay: &Overlay, id: u64) -> Result<Vec<Vec<u8>>, Fault> {
    let start = attachment_key(id, b"");
    let end = id.checked_add(1).map_or(b"b".to_vec(), |next| attachment_key(next, b""));
    let mut keys = Vec::new();
    let span = Span { start: &start, end: Some(&end) };
    overlay.scan(Table::Leases, span, Direction::Forward, &mut |key, _| {
        keys.push(key[start.len()..].to_vec());
        ControlFlow::Continue(())
    })?;
    Ok(keys)
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

fn deadline_key(deadline_ms: u64, id: u64) -> Vec<u8> {
    [b"d".as_slice(), &deadline_ms.to_be_bytes(), &id.to_be_bytes()].concat()
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

    fn view_of(overlay: Overlay) -> MemoryView {
        let mut view = MemoryView::default();
        for write in overlay.into_writes() {
            view.put(write.table, write.key, write.value);
        }
        view
    }

    #[test]
    fn due_leases_come_by_deadline_then_id() {
        let mut overlay = Overlay::over(Arc::new(MemoryView::default()));
        for (id, deadline_ms) in [(1, 30), (2, 10), (3, 30), (4, 31)] {
            insert(&mut overlay, id, Lease { ttl_ms: 1, deadline_ms });
        }
        let view = view_of(overlay);
        assert_eq!(due(&view, 30, 10).unwrap(), [2, 1, 3]);
        assert_eq!(due(&view, 30, 2).unwrap(), [2, 1]);
        assert_eq!(due(&view, 9, 10).unwrap(), [] as [u64; 0]);
    }

    #[test]
    fn an_ended_lease_leaves_no_row() {
        let mut overlay = Overlay::over(Arc::new(MemoryView::default()));
        let lease = Lease { ttl_ms: 5, deadline_ms: 5 };
        insert(&mut overlay, u64::MAX, lease);
        attach(&mut overlay, u64::MAX, b"b").unwrap();
        attach(&mut overlay, u64::MAX, b"a").unwrap();
        assert_eq!(remove(&mut overlay, u64::MAX, lease).unwrap(), [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(view_of(overlay).rows().count(), 0);
    }

    #[test]
    fn attaching_moves_a_key() {
        let mut overlay = Overlay::over(Arc::new(MemoryView::default()));
        let lease = Lease { ttl_ms: 5, deadline_ms: 5 };
        insert(&mut overlay, 1, lease);
        insert(&mut overlay, 2, lease);
        attach(&mut overlay, 1, b"k").unwrap();
        attach(&mut overlay, 2, b"k").unwrap();
        assert_eq!(remove(&mut overlay, 1, lease).unwrap(), [] as [Vec<u8>; 0]);
        assert_eq!(remove(&mut overlay, 2, lease).unwrap(), [b"k".to_vec()]);
    }
}
