//! Where a resident machine's instance is rebuilt from: its last snapshot and the log.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::{Fault, REPAIR};
use crate::id::{GroupId, Index};
use crate::machine::batch::Batch;
use crate::machine::resident::{History, Saved};
use crate::machine::settled::{self, Settled};
use crate::machine::view::MemoryView;
use crate::storage::entry::EntryKind;

use super::stage::Stage;

/// Bytes of entries read from the log at a time.
const READ_BYTES_MAX: usize = 8 << 20;

/// One machine's history on this node.
pub struct LogHistory<'a> {
    stage: &'a Stage,
    group: GroupId,
}

impl LogHistory<'_> {
    /// The history of `group`.
    pub fn of(stage: &Stage, group: GroupId) -> LogHistory<'_> {
        LogHistory { stage, group }
    }
}

impl History for LogHistory<'_> {
    fn saved(&self) -> Result<Option<Saved>, Fault> {
        let Some(index) = self.stage.snapshots.latest(self.group)? else { return Ok(None) };
        let opened = self.stage.snapshots.read(self.group, index);
        let mut reader = opened.map_err(|why| Fault::new(why.to_string()))?;
        let mut rows = MemoryView::default();
        let read = reader.rows(&mut |table, key, value| {
            rows.put(table, key.to_vec(), Some(Bytes::copy_from_slice(value)));
            Ok(())
        });
        read.map_err(|why| Fault::new(why.to_string()))?;
        let head = reader.header().head;
        Ok(Some(Saved { head, rows, state: Box::new(reader.guest()) }))
    }

    fn settled(&self, after: Index) -> Result<BTreeMap<Index, Settled>, Fault> {
        settled::read(&*self.stage.state.view(self.group), after)
    }

    fn batches(&self, after: Index, up_to: Index) -> Result<Vec<(Index, Batch)>, Fault> {
        let mut batches = Vec::new();
        let mut from = after.next();
        while from <= up_to {
            let entries = self.stage.log_reader.entries(self.group, from, up_to.next(), READ_BYTES_MAX)?;
            let Some(last) = entries.last() else {
                return Err(Fault::new(format!(
                    "the log of group {} lacks entry {from}, which its snapshot does not cover. \
                     {REPAIR}",
                    self.group
                )));
            };
            let next = last.index.next();
            for entry in entries {
                if entry.index < from {
                    continue;
                }
                if entry.index != from {
                    return Err(Fault::new(format!("the log of group {} lacks entry {from}", self.group)));
                }
                from = from.next();
                if entry.kind == EntryKind::Batch && !entry.data.is_empty() {
                    batches.push((entry.index, Batch::read(entry.data)?));
                }
            }
            from = next;
        }
        Ok(batches)
    }
}
