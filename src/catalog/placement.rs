//! On which nodes the replicas of machines go. Pure, and the same on every replica of the catalog.

use std::collections::BTreeMap;

use super::record::MachineRecord;
use super::store::{Failure, Store};

/// How many replicas each node has that are to stay.
pub(super) struct Load {
    by_node: BTreeMap<u64, u64>,
}

impl Load {
    /// The load of the nodes that take replicas: those that are not leaving.
    pub(super) fn of(store: &Store) -> Result<Load, Failure> {
        let staying = store.nodes()?.into_iter().filter(|node| !node.leaving);
        let counted = staying.map(|node| Ok((node.node, store.replica_count(node.node)?)));
        Ok(Load { by_node: counted.collect::<Result<_, Failure>>()? })
    }

    /// The node for the next replica of `machine`: the one with the fewest, of those that have none of it;
    /// the one with the lower id of two. Counts it.
    pub(super) fn place(&mut self, machine: &MachineRecord) -> Option<u64> {
        let free = |node: &u64| machine.replicas.iter().all(|replica| replica.node != *node);
        let candidates = self.by_node.iter_mut().filter(|(node, _)| free(node));
        let (node, count) = candidates.min_by_key(|(node, count)| (**count, **node))?;
        *count += 1;
        Some(*node)
    }
}
