//! Where the nodes are that only the log knows of.
//!
//! A node that crashed has entries of the catalog's group that its state lacks, and it does not know which of
//! them are committed before it has heard of a leader. But to hear of one it must reach the others, and where
//! they are stands in these entries. So it looks ahead: what the catalog will be if all of the log comes into
//! force.
//!
//! Promises: what is foreseen only says where to look for others. It is never served, stored or answered, and
//! an address that does not come into force is one that nobody answers at.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::catalog::{Catalog, CatalogGuest};
use crate::error::Fault;
use crate::machine::apply;
use crate::machine::batch::{Batch, Head};
use crate::machine::view::{Direction, MemoryView, Span, Table, View};
use crate::storage::entry::{Entry, EntryKind};

/// The catalog as it will be after `entries`, from `view` on, which stands at `head`.
pub fn foresee(head: &Head, view: &dyn View, entries: &[Entry]) -> Result<Catalog, Fault> {
    let (mut head, mut rows) = (*head, copy(view)?);
    let known = head.index;
    for entry in entries.iter().filter(|entry| entry.index > known) {
        if entry.kind == EntryKind::Batch && !entry.data.is_empty() {
            let batch = Batch::read(entry.data.clone())?;
            let view = Arc::new(rows.clone());
            let applied = apply::stored(&head, entry.index, &batch, view, &mut CatalogGuest)?;
            for write in applied.writes {
                rows.put(write.table, write.key, write.value);
            }
            head = applied.head;
        }
    }
    Catalog::load(&rows)
}

/// All of a catalog's rows: its tables are small.
fn copy(view: &dyn View) -> Result<MemoryView, Fault> {
    let mut rows: BTreeMap<(Table, Vec<u8>), Vec<u8>> = BTreeMap::new();
    for table in Table::ALL {
        let all = Span { start: &[], end: None };
        view.scan(table, all, Direction::Forward, &mut |key, value| {
            rows.insert((table, key.to_vec()), value.to_vec());
            ControlFlow::Continue(())
        })?;
    }
    let mut copy = MemoryView::default();
    for ((table, key), value) in rows {
        copy.put(table, key, Some(value.into()));
    }
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::catalog::{CATALOG_MODULE, Change, NodeRecord};
    use crate::id::{Index, NodeId, Term};

    fn entry(index: u64, node: u64) -> Entry {
        let (name, peer_address) = (format!("n{node}"), format!("host:{node}"));
        let record = NodeRecord { node, name, peer_address, ..NodeRecord::default() };
        let batch = Batch::of_commands(1, [Change::AddNode(record).command()]);
        let data = batch.encode_to_vec().into();
        Entry { index: Index(index), term: Term(1), kind: EntryKind::Batch, data }
    }

    /// Of a catalog that was created.
    fn head(index: u64) -> Head {
        Head { index: Index(index), module: Some(CATALOG_MODULE), ..Head::default() }
    }

    #[test]
    fn nodes_that_only_the_log_names_are_found_with_their_replicas() {
        let entries = [entry(1, 7), entry(2, 8), entry(3, 9)];
        let catalog = foresee(&head(0), &MemoryView::default(), &entries).unwrap();
        let found: Vec<_> = catalog.nodes.values().map(|n| (n.node(), n.replica().0)).collect();
        assert_eq!(found, [(NodeId(7), 1), (NodeId(8), 2), (NodeId(9), 3)]);
    }

    #[test]
    fn what_the_state_has_already_is_not_done_again() {
        let entries = [entry(1, 7), entry(2, 8), entry(3, 9)];
        let catalog = foresee(&head(2), &MemoryView::default(), &entries).unwrap();
        assert_eq!(catalog.nodes.len(), 1, "only the third is new: {catalog:?}");
    }
}
