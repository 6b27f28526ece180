//! The catalog's rows as records, for the commands that change them.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use super::record::{MachineRecord, NodeRecord, RefusalCode};
use super::rows;
use crate::error::Fault;
use crate::id::NodeId;
use crate::machine::frame::{CallError, Frame};
use crate::machine::view::Direction;

/// Why a change was not made.
pub(super) enum Failure {
    Refused(RefusalCode, String),
    Call(CallError),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        Failure::Call(error)
    }
}

/// A refusal.
pub(super) fn refuse<T>(code: RefusalCode, what: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Refused(code, what.into()))
}

/// The rows that a command sees and changes.
pub(super) struct Store<'f> {
    pub(super) frame: &'f mut Frame,
}

impl Store<'_> {
    pub(super) fn has_module(&self, digest: &[u8]) -> Result<bool, Failure> {
        Ok(self.frame.get(&rows::key(rows::MODULES, digest))?.is_some())
    }

    pub(super) fn machine(&self, name: &str) -> Result<Option<MachineRecord>, Failure> {
        read(self.frame.get(&rows::key(rows::MACHINES, name.as_bytes()))?)
    }

    pub(super) fn put_machine(&mut self, record: &MachineRecord) -> Result<(), Failure> {
        let before = self.machine(&record.name)?;
        self.count_replicas(before.as_ref(), Some(record))?;
        if before.is_none() {
            self.frame
                .set(rows::key(rows::NAMES, &record.group.to_be_bytes()), record.name.clone().into())?;
        }
        Ok(self.frame.set(rows::key(rows::MACHINES, record.name.as_bytes()), record.encode_to_vec())?)
    }

    pub(super) fn delete_machine(&mut self, record: &MachineRecord) -> Result<(), Failure> {
        self.count_replicas(Some(record), None)?;
        self.frame.delete(rows::key(rows::NAMES, &record.group.to_be_bytes()))?;
        Ok(self.frame.delete(rows::key(rows::MACHINES, record.name.as_bytes()))?)
    }

    /// All machines, by name. There may be ten thousand: for changes of nodes only, which are rare.
    pub(super) fn machines(&self) -> Result<Vec<MachineRecord>, Failure> {
        self.all(rows::MACHINES)
    }

    pub(super) fn machine_of(&self, group: u64) -> Result<Option<MachineRecord>, Failure> {
        let Some(name) = self.frame.get(&rows::key(rows::NAMES, &group.to_be_bytes()))? else {
            return Ok(None);
        };
        read(self.frame.get(&rows::key(rows::MACHINES, &name))?)
    }

    /// How many replicas a node has that are to stay.
    pub(super) fn replica_count(&self, node: u64) -> Result<u64, Failure> {
        let row = self.frame.get(&rows::key(rows::REPLICA_COUNTS, &node.to_be_bytes()))?;
        Ok(row.map_or(Ok(0), |count| count[..].try_into().map(u64::from_be_bytes)).map_err(|_| damaged())?)
    }

    /// Keeps the counts when a machine's record changes.
    fn count_replicas(
        &mut self,
        before: Option<&MachineRecord>,
        after: Option<&MachineRecord>,
    ) -> Result<(), Failure> {
        let staying = |record: Option<&MachineRecord>| -> BTreeSet<u64> {
            let replicas = record.into_iter().flat_map(|record| &record.replicas);
            replicas.filter(|replica| !replica.leaving).map(|replica| replica.node).collect()
        };
        let (before, after) = (staying(before), staying(after));
        for node in before.symmetric_difference(&after) {
            let count = self.replica_count(*node)?;
            let count = if after.contains(node) { Some(count + 1) } else { count.checked_sub(1) };
            let key = rows::key(rows::REPLICA_COUNTS, &node.to_be_bytes());
            match count.ok_or_else(damaged)? {
                0 => self.frame.delete(key)?,
                count => self.frame.set(key, count.to_be_bytes().to_vec())?,
            }
        }
        Ok(())
    }

    /// Counts and names once what a version before this one has not.
    pub(super) fn index_once(&mut self) -> Result<(), Failure> {
        if self.frame.get(rows::INDEXED)?.is_some() {
            return Ok(());
        }
        for record in self.machines()? {
            self.count_replicas(None, Some(&record))?;
            self.frame.set(rows::key(rows::NAMES, &record.group.to_be_bytes()), record.name.into())?;
        }
        Ok(self.frame.set(rows::INDEXED.to_vec(), vec![1])?)
    }

    /// All nodes, by id.
    pub(super) fn nodes(&self) -> Result<Vec<NodeRecord>, Failure> {
        self.all(rows::NODES)
    }

    pub(super) fn node(&self, node: u64) -> Result<Option<NodeRecord>, Failure> {
        read(self.frame.get(&rows::key(rows::NODES, &node.to_be_bytes()))?)
    }

    pub(super) fn put_node(&mut self, record: &NodeRecord) -> Result<(), Failure> {
        Ok(self.frame.set(rows::key(rows::NODES, &record.node.to_be_bytes()), record.encode_to_vec())?)
    }

    /// Takes a node out for ever.
    pub(super) fn bury_node(&mut self, record: &NodeRecord) -> Result<(), Failure> {
        let id = record.node.to_be_bytes();
        self.frame.delete(rows::key(rows::NODES, &id))?;
        Ok(self.frame.set(rows::key(rows::REMOVED_NODES, &id), record.name.clone().into_bytes())?)
    }

    pub(super) fn is_buried(&self, node: NodeId) -> Result<bool, Failure> {
        Ok(self.frame.get(&rows::key(rows::REMOVED_NODES, &node.0.to_be_bytes()))?.is_some())
    }

    /// The next id of a row that counts.
    pub(super) fn next_id(&mut self, row: &[u8]) -> Result<u64, Failure> {
        let last = self.frame.get(row)?;
        let next = 1 + last.and_then(|b| b[..].try_into().ok()).map_or(0, u64::from_be_bytes);
        self.frame.set(row.to_vec(), next.to_be_bytes().to_vec())?;
        Ok(next)
    }

    fn all<R: Message + Default>(&self, prefix: u8) -> Result<Vec<R>, Failure> {
        let (mut records, mut start) = (Vec::new(), vec![prefix]);
        loop {
            let pairs = self.frame.scan(&start, Some(&[prefix + 1]), 0, Direction::Forward)?;
            let Some((last, _)) = pairs.last() else { return Ok(records) };
            start = [last.as_slice(), &[0]].concat();
            for (_, bytes) in pairs {
                records.extend(read(Some(bytes))?);
            }
        }
    }
}

fn read<R: Message + Default>(bytes: Option<impl Into<Bytes>>) -> Result<Option<R>, Failure> {
    let record = bytes.map(|bytes| R::decode(bytes.into())).transpose();
    record.map_err(|_| damaged().into())
}

fn damaged() -> CallError {
    CallError::Fault(Fault::new("a row of the catalog is damaged"))
}
