//! The state that a batch starts from, or that a query reads: ordered tables of one machine.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::error::Fault;

/// The tables of one machine. The numbers are part of the stored format and of the hash chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// One row: the machine's [`Head`](super::batch::Head), and the host's own marks.
    Head = 0,
    /// The guest's ordered map (`store` in the contract).
    Store = 1,
    /// Events, many to a row, by the first revision in it.
    Events = 2,
    /// Leases, their deadlines and attachments.
    Leases = 3,
}

impl Table {
    /// All tables, in the order of their numbers.
    pub const ALL: [Table; 4] = [Table::Head, Table::Store, Table::Events, Table::Leases];
}

/// Keys from `start` up to, not including, `end`; without `end`, to the last key.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The first key that may be in the span.
    pub start: &'a [u8],
    /// The first key past the span.
    pub end: Option<&'a [u8]>,
}

/// The order in which a scan visits the keys of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first key on.
    Forward,
    /// From the last key back.
    Backward,
}

/// Called with each pair; `Break` ends the scan.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// One machine's tables at one point of its history. Immutable while it is held, or written only by its
/// holder.
pub trait View: Send + Sync {
    /// The value of `key`, if it is there.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault>;

    /// Visits the pairs of `span` in `direction` until the visitor breaks.
    fn scan(&self, table: Table, span: Span, direction: Direction, visit: &mut Visitor) -> Result<(), Fault>;
}

/// A view in memory: for the replay of resident machines, and for tests.
#[derive(Clone, Debug, Default)]
pub struct MemoryView {
    rows: BTreeMap<(Table, Vec<u8>), Bytes>,
}

impl MemoryView {
    /// Writes or deletes one row.
    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Option<Bytes>) {
        match value {
            Some(value) => self.rows.insert((table, key), value),
            None => self.rows.remove(&(table, key)),
        };
    }

    /// All rows, by table and key.
    pub fn rows(&self) -> impl Iterator<Item = (Table, &[u8], &[u8])> {
        self.rows.iter().map(|((table, key), value)| (*table, key.as_slice(), value.as_ref()))
    }
}

impl View for MemoryView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.rows.get(&(table, key.to_vec())).map(|value| value.to_vec()))
    }

    fn scan(&self, table: Table, span: Span, direction: Direction, visit: &mut Visitor) -> Result<(), Fault> {
        if span.end.is_some_and(|end| end <= span.start) {
            return Ok(());
        }
        let inside = |(row, _): &(&(Table, Vec<u8>), &Bytes)| {
            row.0 == table && span.end.is_none_or(|end| row.1.as_slice() < end)
        };
        let rows = self.rows.range((table, span.start.to_vec())..).take_while(inside);
        let mut rows: Vec<_> = rows.collect();
        if direction == Direction::Backward {
            rows.reverse();
        }
        for ((_, key), value) in rows {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}
