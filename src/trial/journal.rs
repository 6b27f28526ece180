//! What a resident machine's instance is made again from: the last snapshot, and the batches since.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::Fault;
use crate::id::Index;
use crate::machine::batch::{Batch, Head};
use crate::machine::resident::{History, Saved};
use crate::machine::settled::{self, Settled};
use crate::machine::view::{MemoryView, Table};

/// A machine's whole state at one point of its history.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Where the machine stood.
    pub head: Head,
    /// The clock then.
    pub now_ms: u64,
    /// All rows.
    pub rows: MemoryView,
    /// What a resident machine wrote of itself; empty for a stored one.
    pub state: Bytes,
}

/// The batches of a resident machine since its last snapshot.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    saved: Option<Snapshot>,
    batches: Vec<(Index, Batch)>,
}

impl Journal {
    /// One that begins with a snapshot.
    pub fn after(saved: Snapshot) -> Journal {
        Journal { saved: Some(saved), batches: Vec::new() }
    }

    /// A batch was applied.
    pub fn push(&mut self, index: Index, batch: Batch) {
        self.batches.push((index, batch));
    }
}

/// A journal beside the machine's rows, which say what its batches passed over.
pub struct Past<'a> {
    /// The journal.
    pub journal: &'a Journal,
    /// The rows.
    pub rows: &'a MemoryView,
}

impl History for Past<'_> {
    fn saved(&self) -> Result<Option<Saved>, Fault> {
        Ok(self.journal.saved.as_ref().map(|snapshot| {
            let mut rows = MemoryView::default();
            for (table, key, value) in snapshot.rows.rows().filter(|row| row.0 == Table::Leases) {
                rows.put(table, key.to_vec(), Some(Bytes::copy_from_slice(value)));
            }
            let state = Box::new(std::io::Cursor::new(snapshot.state.clone()));
            Saved { head: snapshot.head, rows, state }
        }))
    }

    fn batches(&self, after: Index, up_to: Index) -> Result<Vec<(Index, Batch)>, Fault> {
        let first = self.journal.saved.as_ref().map_or(Index(0), |snapshot| snapshot.head.index);
        if after < first {
            return Err(Fault::new(format!("the journal begins after {first}, and {after} was asked for")));
        }
        let begin = self.journal.batches.partition_point(|(index, _)| *index <= after);
        let end = self.journal.batches.partition_point(|(index, _)| *index <= up_to);
        Ok(self.journal.batches[begin..end].to_vec())
    }

    fn settled(&self, after: Index) -> Result<BTreeMap<Index, Settled>, Fault> {
        settled::read(self.rows, after)
    }
}
