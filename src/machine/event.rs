//! What watchers see: how events are numbered and stored.
//!
//! An event's key is its revision and its ordinal within the revision, both big-endian, so that the table's
//! order is the order in which they happened.

use bytes::Bytes;
use prost::Message;

use super::outcome::Context;
use super::view::Table;
use crate::error::Fault;
use crate::id::Revision;

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

#[derive(Clone, PartialEq, Message)]
struct EventRow {
    #[prost(bool, tag = "1")]
    delete: bool,
    #[prost(bytes = "bytes", tag = "2")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    value: Bytes,
    #[prost(uint64, tag = "4")]
    index: u64,
    #[prost(uint64, tag = "5")]
    time_ms: u64,
}

impl Event {
    /// The row's key in `Table::Events`.
    pub fn row_key(revision: Revision, ordinal: u32) -> Vec<u8> {
        let mut key = Vec::with_capacity(12);
        key.extend_from_slice(&revision.0.to_be_bytes());
        key.extend_from_slice(&ordinal.to_be_bytes());
        key
    }

    /// The row of an event that the input at `context` emits.
    pub fn row(context: &Context, kind: EventKind, key: Vec<u8>, value: Vec<u8>) -> Bytes {
        let row = EventRow {
            delete: kind == EventKind::Delete,
            key: key.into(),
            value: value.into(),
            index: context.index,
            time_ms: context.time,
        };
        row.encode_to_vec().into()
    }

    /// Reads a row of `Table::Events`. A failure is corruption.
    pub fn read(key: &[u8], row: &[u8]) -> Result<Event, Fault> {
        let damaged = || Fault::new(format!("the {:?} row {} is damaged", Table::Events, hex::encode(key)));
        let (revision, ordinal) = key.split_at_checked(8).ok_or_else(damaged)?;
        let row = EventRow::decode(row).map_err(|_| damaged())?;
        Ok(Event {
            revision: Revision(u64::from_be_bytes(revision.try_into().map_err(|_| damaged())?)),
            ordinal: u32::from_be_bytes(ordinal.try_into().map_err(|_| damaged())?),
            kind: if row.delete { EventKind::Delete } else { EventKind::Put },
            key: row.key,
            value: row.value,
            index: row.index,
            time_ms: row.time_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_back() {
        let context = Context { index: 7, offset: 2, time: 1_000, revision: 5 };
        let row = Event::row(&context, EventKind::Delete, b"k".to_vec(), b"v".to_vec());
        let event = Event::read(&Event::row_key(Revision(5), 3), &row).unwrap();
        assert_eq!((event.revision, event.ordinal, event.kind), (Revision(5), 3, EventKind::Delete));
        assert_eq!(
            (&event.key[..], &event.value[..], event.index, event.time_ms),
            (&b"k"[..], &b"v"[..], 7, 1_000)
        );
    }

    #[test]
    fn a_short_key_is_a_fault() {
        assert!(Event::read(b"short", b"").is_err());
    }
}
