//! The machines that are open on this node, by name and by group.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::machine::Machine;
use crate::id::GroupId;

/// Looked up on every request, changed rarely and in no time, however many there are: readers hardly wait.
pub struct Registry {
    open: RwLock<Open>,
    /// Counts the changes, for those who wait for one.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Open {
    by_name: HashMap<String, Arc<Machine>>,
    by_group: HashMap<GroupId, Arc<Machine>>,
    /// By name: those who look after all of them do so several times a second. None after a change, until one
    /// does.
    all: Option<Arc<Vec<Arc<Machine>>>>,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry { open: RwLock::default(), changes: watch::Sender::new(0) }
    }
}

impl Registry {
    /// The machine of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Machine>> {
        self.open.read().by_name.get(name).cloned()
    }

    /// The machine of this group.
    pub fn by_group(&self, group: GroupId) -> Option<Arc<Machine>> {
        self.open.read().by_group.get(&group).cloned()
    }

    /// All machines, by name.
    pub fn all(&self) -> Arc<Vec<Arc<Machine>>> {
        if let Some(all) = &self.open.read().all {
            return all.clone();
        }
        let mut open = self.open.write();
        let mut all: Vec<Arc<Machine>> = open.by_name.values().cloned().collect();
        all.sort_unstable_by(|a, b| a.record.name.cmp(&b.record.name));
        open.all.insert(Arc::new(all)).clone()
    }

    /// Adds a machine, or replaces the one of its name.
    pub(super) fn insert(&self, machine: Arc<Machine>) {
        let mut open = self.open.write();
        open.by_group.insert(machine.record.group(), machine.clone());
        if let Some(before) = open.by_name.insert(machine.record.name.clone(), machine.clone())
            && before.record.group() != machine.record.group()
        {
            open.by_group.remove(&before.record.group());
        }
        open.all = None;
        drop(open);
        self.tell();
    }

    /// Takes a machine out.
    pub(super) fn remove(&self, name: &str) {
        let mut open = self.open.write();
        if let Some(machine) = open.by_name.remove(name) {
            open.by_group.remove(&machine.record.group());
        }
        open.all = None;
        drop(open);
        self.tell();
    }

    /// Waits until `found` finds something.
    pub(super) async fn wait<T>(&self, mut found: impl FnMut(&Registry) -> Option<T>) -> T {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            changes.changed().await.expect("the registry holds the sender");
        }
    }

    fn tell(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}
