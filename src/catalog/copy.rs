//! What a node keeps of the catalog in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use prost::Message;

use super::record::{MachineRecord, ModuleRecord, NodeRecord, digest_of};
use super::rows;
use crate::error::Fault;
use crate::id::{Digest, GroupId, NodeId};
use crate::machine::overlay::Write;
use crate::machine::view::{Direction, Span, Table, View};

/// What a node keeps of the catalog in memory: always as of an applied batch. Each batch makes a new one out
/// of the last, so what there are many of is shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    /// By digest.
    pub modules: BTreeMap<Digest, ModuleRecord>,
    /// By name.
    pub machines: BTreeMap<Arc<str>, Arc<MachineRecord>>,
    /// The same by group.
    groups: BTreeMap<GroupId, Arc<MachineRecord>>,
    /// By id.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Nodes that are not let in any more.
    pub removed: BTreeSet<NodeId>,
}

impl Catalog {
    /// Reads all of it.
    pub fn load(view: &dyn View) -> Result<Catalog, Fault> {
        let mut catalog = Catalog::default();
        let mut result = Ok(());
        let span = Span { start: &[], end: None };
        view.scan(Table::Store, span, Direction::Forward, &mut |key, value| {
            result = catalog.row(key, Some(value));
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result.map(|()| catalog)
    }

    /// Takes over what a batch wrote.
    pub fn absorb(&mut self, writes: &[Write]) -> Result<(), Fault> {
        let mut own = writes.iter().filter(|write| write.table == Table::Store);
        own.try_for_each(|write| self.row(&write.key, write.value.as_deref()))
    }

    fn row(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Fault> {
        let damaged = || Fault::new(format!("the catalog row {} is damaged", hex::encode(key)));
        let node_of =
            |name: &[u8]| name.try_into().map(|id| NodeId(u64::from_be_bytes(id))).map_err(|_| damaged());
        let Some((prefix, name)) = key.split_first() else { return Err(damaged()) };
        match (*prefix, value) {
            (rows::MODULES, Some(value)) => {
                let record = ModuleRecord::decode(value).map_err(|_| damaged())?;
                self.modules.insert(record.digest()?, record);
            }
            (rows::MODULES, None) => drop(self.modules.remove(&digest_of(name)?)),
            (rows::MACHINES, Some(value)) => {
                self.insert_machine(MachineRecord::decode(value).map_err(|_| damaged())?);
            }
            (rows::MACHINES, None) => {
                let name = std::str::from_utf8(name).map_err(|_| damaged())?;
                if let Some(record) = self.machines.remove(name) {
                    self.groups.remove(&record.group());
                }
            }
            (rows::NODES, Some(value)) => {
                let record = NodeRecord::decode(value).map_err(|_| damaged())?;
                self.nodes.insert(node_of(name)?, record);
            }
            (rows::NODES, None) => drop(self.nodes.remove(&node_of(name)?)),
            (rows::REMOVED_NODES, Some(_)) => drop(self.removed.insert(node_of(name)?)),
            _ => {}
        }
        Ok(())
    }

    /// Adds a machine, or puts it in the place of the one of its name.
    pub fn insert_machine(&mut self, record: MachineRecord) {
        let record = Arc::new(record);
        self.groups.insert(record.group(), record.clone());
        if let Some(before) = self.machines.insert(record.name.as_str().into(), record.clone())
            && before.group() != record.group()
        {
            self.groups.remove(&before.group());
        }
    }

    /// The machine of a group.
    pub fn machine_of(&self, group: GroupId) -> Option<&MachineRecord> {
        self.groups.get(&group).map(AsRef::as_ref)
    }

    /// The node of this name.
    pub fn node_named(&self, name: &str) -> Option<&NodeRecord> {
        self.nodes.values().find(|record| record.name == name)
    }
}
