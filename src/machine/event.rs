//! What watchers see: how events are numbered, gathered and stored.
//!
//! The events of a batch share rows, because a row of its own for each event costs the state database more
//! than anything else that a small command does. A row's key is the first revision in it, big-endian, so that
//! the table's order is the order in which things happened, and the row that holds a revision is the last one
//! whose key is not past it. All events of a revision are in one row; a row that has reached
//! [`ROW_BYTES`] takes no further revision, so who reads from a revision on reads little before it.
//!
//! Promises: rows are a function of what the inputs of a batch emitted and of nothing else; what a rolled
//! back input emitted leaves no trace. Must never put two batches into one row: rows are written once.

use std::ops::ControlFlow;

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::outcome::Context;
use super::view::{Direction, Span, Table, View};
use crate::error::Fault;
use crate::id::Revision;

/// A row of this size takes no further revision. Part of the stored format and of the hash chain.
pub const ROW_BYTES: usize = 64 << 10;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It has a new value.
    Put,
    /// It is gone.
    Delete,
}

/// One event of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Shared by all events of one input.
    pub revision: Revision,
    /// Its place among the events of its revision, from 0.
    pub ordinal: u32,
    /// What happened.
    pub kind: EventKind,
    /// The key, as the guest names it.
    pub key: Bytes,
    /// The value, as the guest writes it.
    pub value: Bytes,
    /// The index of the batch it came from.
    pub index: u64,
    /// The log's clock then.
    pub time_ms: u64,
}

/// The stored form of a row.
#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    time_ms: u64,
    #[prost(message, repeated, tag = "3")]
    events: Vec<RowEvent>,
    /// Bytes of all events before the row's.
    #[prost(uint64, tag = "4")]
    bytes_before: u64,
}

#[derive(Clone, PartialEq, Message)]
struct RowEvent {
    #[prost(bool, tag = "1")]
    delete: bool,
    #[prost(bytes = "bytes", tag = "2")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    value: Bytes,
    /// Revisions since the row's first.
    #[prost(uint64, tag = "4")]
    step: u64,
}

/// The number of the events in [`Row`].
const EVENTS_TAG: u32 = 3;

/// The rows of a batch in the making.
#[derive(Debug, Default)]
pub struct EventRows {
    rows: Vec<(Revision, Vec<u8>)>,
    /// How many rows there were when the input at hand began, and the bytes of the last of them.
    saved: (usize, usize),
    /// Bytes of all events that the machine ever emitted, and as of when the input at hand began.
    bytes: u64,
    bytes_saved: u64,
}

impl EventRows {
    /// The next rows of a machine that has emitted so many bytes of events.
    pub fn after(bytes: u64) -> EventRows {
        EventRows { bytes, bytes_saved: bytes, ..EventRows::default() }
    }

    /// Bytes of all events that the machine ever emitted.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// An input begins: [`rollback`](EventRows::rollback) takes back what follows.
    pub fn savepoint(&mut self) {
        self.saved = (self.rows.len(), self.rows.last().map_or(0, |(_, row)| row.len()));
        self.bytes_saved = self.bytes;
    }

    /// Takes back everything since the savepoint.
    pub fn rollback(&mut self) {
        let (rows, bytes) = self.saved;
        self.rows.truncate(rows);
        if let Some((_, row)) = self.rows.last_mut() {
            row.truncate(bytes);
        }
        self.bytes = self.bytes_saved;
    }

    /// Adds an event of the input at `context`.
    pub fn push(&mut self, context: &Context, kind: EventKind, key: Vec<u8>, value: Vec<u8>) {
        let revision = Revision(context.revision);
        // Only an input's first event may begin a row: the later ones find its revision in the last.
        let (rows, bytes) = self.saved;
        let begins = self.rows.len() == rows && (rows == 0 || bytes >= ROW_BYTES);
        if begins {
            let row = Row {
                index: context.index,
                time_ms: context.time,
                events: Vec::new(),
                bytes_before: self.bytes,
            };
            self.rows.push((revision, row.encode_to_vec()));
        }
        let (first, row) = self.rows.last_mut().expect("there is a row: the first event begins one");
        let event = RowEvent {
            delete: kind == EventKind::Delete,
            key: key.into(),
            value: value.into(),
            step: revision.0 - first.0,
        };
        self.bytes += event.encoded_len() as u64;
        prost::encoding::message::encode(EVENTS_TAG, &event, row);
    }

    /// The rows, with their keys in `Table::Events`.
    pub fn into_rows(self) -> impl Iterator<Item = (Vec<u8>, Bytes)> {
        self.rows.into_iter().map(|(first, row)| (row_key(first).to_vec(), row.into()))
    }
}

/// The key of the row whose first revision is `first`.
pub fn row_key(first: Revision) -> [u8; 8] {
    first.0.to_be_bytes()
}

fn damaged(key: &[u8]) -> Fault {
    Fault::new(format!("the {:?} row {} is damaged", Table::Events, hex::encode(key)))
}

/// Reads a row of `Table::Events`. A failure is corruption. Of a row that is `Bytes` the events are parts:
/// nothing is copied.
pub fn read_row(key: &[u8], row: impl Buf) -> Result<Vec<Event>, Fault> {
    let damaged = || damaged(key);
    let first = u64::from_be_bytes(key.try_into().map_err(|_| damaged())?);
    let Row { index, time_ms, events, .. } = Row::decode(row).map_err(|_| damaged())?;
    let mut read: Vec<Event> = Vec::with_capacity(events.len());
    for event in events {
        let revision = Revision(first.checked_add(event.step).ok_or_else(damaged)?);
        let ordinal = match read.last() {
            Some(before) if before.revision == revision => before.ordinal + 1,
            Some(before) if before.revision > revision => return Err(damaged()),
            None if event.step != 0 => return Err(damaged()),
            _ => 0,
        };
        let kind = if event.delete { EventKind::Delete } else { EventKind::Put };
        read.push(Event { revision, ordinal, kind, key: event.key, value: event.value, index, time_ms });
    }
    Ok(read)
}

/// Visits the kind and the key of each event of a row, in order, without taking the row apart: for those who
/// seldom need more.
pub fn visit_keys(key: &[u8], row: &[u8], visit: &mut dyn FnMut(EventKind, &[u8])) -> Result<(), Fault> {
    let mut rest = row;
    while rest.has_remaining() {
        visit_field(&mut rest, visit).ok_or_else(|| damaged(key))?;
    }
    Ok(())
}

/// Takes a field of a row; `None` if it does not read.
fn visit_field(rest: &mut &[u8], visit: &mut dyn FnMut(EventKind, &[u8])) -> Option<()> {
    let (tag, wire) = decode_key(rest).ok()?;
    if (tag, wire) != (EVENTS_TAG, WireType::LengthDelimited) {
        return skip_field(wire, tag, rest, DecodeContext::default()).ok();
    }
    let mut event = take_bytes(rest)?;
    let (mut kind, mut name) = (EventKind::Put, &[][..]);
    while event.has_remaining() {
        match decode_key(&mut event).ok()? {
            (1, WireType::Varint) if decode_varint(&mut event).ok()? != 0 => kind = EventKind::Delete,
            (1, WireType::Varint) => kind = EventKind::Put,
            (2, WireType::LengthDelimited) => {
                name = take_bytes(&mut event)?;
                // Fields are written in the order of their tags: what follows is not about the key.
                break;
            }
            (tag, wire) => skip_field(wire, tag, &mut event, DecodeContext::default()).ok()?,
        }
    }
    visit(kind, name);
    Some(())
}

/// Takes bytes with their length before them.
fn take_bytes<'r>(rest: &mut &'r [u8]) -> Option<&'r [u8]> {
    let bytes = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (taken, after) = rest.split_at_checked(bytes)?;
    *rest = after;
    Some(taken)
}

/// Visits the events kept from revision `from` on, in order, until the visitor breaks.
pub fn visit_from(
    view: &dyn View,
    from: Revision,
    visit: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<(), Fault> {
    let start = match row_of(view, from)? {
        Some(key) => key,
        None => row_key(from).to_vec(),
    };
    let mut damage = None;
    let rest = Span { start: &start, end: None };
    view.scan(Table::Events, rest, Direction::Forward, &mut |key, row| match read_row(key, row) {
        Ok(events) => events.into_iter().filter(|event| event.revision >= from).try_for_each(&mut *visit),
        Err(fault) => {
            damage = Some(fault);
            ControlFlow::Break(())
        }
    })?;
    damage.map_or(Ok(()), Err)
}

/// What a row says before its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowHead {
    /// The first revision in it.
    pub first: Revision,
    /// The log's clock then.
    pub time_ms: u64,
    /// Bytes of all events before the row's.
    pub bytes_before: u64,
}

impl RowHead {
    /// Reads the beginning of a row only: its own fields stand before its events.
    fn read(key: &[u8], row: &[u8]) -> Result<RowHead, Fault> {
        let mut rest = row;
        let mut own = row.len();
        while !rest.is_empty() {
            let at = row.len() - rest.len();
            let (tag, wire) = decode_key(&mut rest).map_err(|_| damaged(key))?;
            if tag == EVENTS_TAG {
                own = at;
                break;
            }
            skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(|_| damaged(key))?;
        }
        let Row { time_ms, bytes_before, .. } = Row::decode(&row[..own]).map_err(|_| damaged(key))?;
        let first = u64::from_be_bytes(key.try_into().map_err(|_| damaged(key))?);
        Ok(RowHead { first: Revision(first), time_ms, bytes_before })
    }
}

/// The row that holds `revision`, if any does: the last one not past it.
pub fn row_holding(view: &dyn View, revision: Revision) -> Result<Option<RowHead>, Fault> {
    let end = row_key(revision.next());
    one_row(view, Span { start: &[], end: Some(&end) }, Direction::Backward)
}

/// The first row that begins after `revision`.
pub fn row_after(view: &dyn View, revision: Revision) -> Result<Option<RowHead>, Fault> {
    let start = row_key(revision.next());
    one_row(view, Span { start: &start, end: None }, Direction::Forward)
}

fn one_row(view: &dyn View, span: Span, direction: Direction) -> Result<Option<RowHead>, Fault> {
    let mut found = None;
    view.scan(Table::Events, span, direction, &mut |key, row| {
        found = Some(RowHead::read(key, row));
        ControlFlow::Break(())
    })?;
    found.transpose()
}

/// The key of the first row that must stay when events before `first` are not kept any more: the one that
/// holds it. `None`: no row may go.
pub fn rows_end(view: &dyn View, first: Revision) -> Result<Option<Vec<u8>>, Fault> {
    match row_of(view, first)? {
        Some(key) => Ok(Some(key)),
        None => Ok(row_after(view, first)?.map(|row| row_key(row.first).to_vec())),
    }
}

/// The key of the row that holds `revision` if any does: the last one not past it.
fn row_of(view: &dyn View, revision: Revision) -> Result<Option<Vec<u8>>, Fault> {
    let end = row_key(revision.next());
    let mut found = None;
    let up_to = Span { start: &[], end: Some(&end) };
    view.scan(Table::Events, up_to, Direction::Backward, &mut |key, _| {
        found = Some(key.to_vec());
        ControlFlow::Break(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::view::MemoryView;
    use proptest::prelude::*;

    fn at(index: u64, revision: u64) -> Context {
        Context { index, offset: 0, time: 1_000 + index, revision }
    }

    fn view_of(batches: impl IntoIterator<Item = EventRows>) -> MemoryView {
        let mut view = MemoryView::default();
        for (key, row) in batches.into_iter().flat_map(EventRows::into_rows) {
            view.put(Table::Events, key, Some(row));
        }
        view
    }

    fn history(view: &MemoryView, from: u64) -> Vec<Event> {
        let mut events = Vec::new();
        visit_from(view, Revision(from), &mut |event| {
            events.push(event);
            ControlFlow::Continue(())
        })
        .unwrap();
        events
    }

    #[test]
    fn an_event_reads_back_whole() {
        let mut rows = EventRows::default();
        rows.savepoint();
        rows.push(&at(7, 5), EventKind::Put, b"a".to_vec(), b"1".to_vec());
        rows.push(&at(7, 5), EventKind::Delete, b"k".to_vec(), b"v".to_vec());
        let event = history(&view_of([rows]), 5).pop().unwrap();
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
        let (revision, kind) = (Revision(5), EventKind::Delete);
        assert_eq!(event, Event { revision, ordinal: 1, kind, key, value, index: 7, time_ms: 1_007 });
    }

    #[test]
    fn a_full_row_takes_no_further_revision_but_all_of_its_last() {
        let mut rows = EventRows::default();
        for revision in 2..5 {
            rows.savepoint();
            for _ in 0..3 {
                rows.push(&at(1, revision), EventKind::Put, b"k".to_vec(), vec![0; ROW_BYTES / 4]);
            }
        }
        let keys: Vec<_> = rows.into_rows().map(|(key, row)| (key, row.len() > ROW_BYTES)).collect();
        assert_eq!(keys, [(row_key(Revision(2)).to_vec(), true), (row_key(Revision(4)).to_vec(), false)]);
    }

    #[test]
    fn a_row_that_is_not_as_it_was_written_is_a_fault() {
        let row = |steps: &[u64]| {
            let event = |&step| RowEvent { key: Bytes::from_static(b"k"), step, ..RowEvent::default() };
            Row { index: 1, time_ms: 1, events: steps.iter().map(event).collect(), bytes_before: 0 }
                .encode_to_vec()
        };
        let key = row_key(Revision(2));
        assert_eq!(read_row(&key, &*row(&[0, 0, 3])).unwrap().len(), 3);
        assert!(read_row(b"short", &*row(&[0])).is_err());
        assert!(read_row(&key, &*row(&[1])).is_err());
        assert!(read_row(&key, &*row(&[0, 2, 1])).is_err());
        assert!(read_row(&[0xff; 8], &*row(&[0, 1])).is_err());
        assert!(read_row(&key, &[0xff][..]).is_err());
        let mut view = MemoryView::default();
        view.put(Table::Events, key.to_vec(), Some(row(&[1]).into()));
        assert!(visit_from(&view, Revision(1), &mut |_| ControlFlow::Continue(())).is_err());
    }

    proptest! {
        /// Whole rows, and rows that were cut off or changed.
        #[test]
        fn keys_are_found_in_a_row_without_taking_it_apart(
            events in proptest::collection::vec((any::<bool>(), "[a-c]{0,3}", 0..300_usize), 1..20),
            cut in proptest::option::of(any::<proptest::sample::Index>()),
        ) {
            let mut rows = EventRows::default();
            for (number, (delete, key, size)) in events.iter().enumerate() {
                rows.savepoint();
                let kind = if *delete { EventKind::Delete } else { EventKind::Put };
                rows.push(&at(3, 2 + number as u64), kind, key.clone().into_bytes(), vec![b'v'; *size]);
            }
            let (key, row) = rows.into_rows().next().unwrap();
            let row = cut.map_or(row.clone(), |cut| row.slice(..cut.index(row.len())));
            let mut found = Vec::new();
            let mut visit = |kind, key: &[u8]| found.push((kind, Bytes::copy_from_slice(key)));
            let visited = visit_keys(&key, &row, &mut visit);
            match read_row(&key, row) {
                Ok(events) => {
                    prop_assert!(visited.is_ok());
                    let read: Vec<_> = events.into_iter().map(|event| (event.kind, event.key)).collect();
                    prop_assert_eq!(found, read);
                }
                Err(_) => prop_assert!(visited.is_err()),
            }
        }

        /// Batches of inputs, each of which emits a few values of random size, and may then be rolled back.
        #[test]
        fn history_is_read_from_every_revision_on(
            batches in proptest::collection::vec(
                proptest::collection::vec(
                    (proptest::collection::vec(0..ROW_BYTES, 0..3), any::<bool>()), 0..6),
                0..5),
        ) {
            let (mut written, mut expected, mut revision) = (Vec::new(), Vec::new(), 1);
            for (index, inputs) in batches.iter().enumerate() {
                let mut rows = EventRows::default();
                for (values, kept) in inputs {
                    let context = at(index as u64, revision + 1);
                    rows.savepoint();
                    for &size in values {
                        rows.push(&context, EventKind::Put, b"k".to_vec(), vec![b'v'; size]);
                    }
                    if !kept {
                        rows.rollback();
                    } else if !values.is_empty() {
                        revision += 1;
                        let told = |(ordinal, size): (usize, &usize)| (revision, ordinal as u32, *size);
                        expected.extend(values.iter().enumerate().map(told));
                    }
                }
                written.push(rows);
            }
            let view = view_of(written);
            for from in 0..revision + 2 {
                let read = history(&view, from);
                let read: Vec<_> = read.iter().map(|e| (e.revision.0, e.ordinal, e.value.len())).collect();
                let due: Vec<_> = expected.iter().copied().filter(|&(r, ..)| r >= from).collect();
                prop_assert_eq!(read, due);
            }
        }
    }
}
