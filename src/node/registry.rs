//! The machines that are open on this node, by name and by group.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::machine::Machine;
use crate::id::GroupId;

/// Looked up on every request, changed rarely: readers never wait.
pub struct Registry {
    open: ArcSwap<Open>,
    /// Counts the changes, for those who wait for one.
    changes: watch::Sender<u64>,
}

#[derive(Clone, Default)]
struct Open {
    by_name: HashMap<String, Arc<Machine>>,
    by_group: HashMap<GroupId, Arc<Machine>>,
    /// By name: those who look after all of them do so several times a second.
    all: Arc<Vec<Arc<Machine>>>,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry { open: ArcSwap::default(), changes: watch::Sender::new(0) }
    }
}

impl Registry {
    /// The machine of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Machine>> {
        self.open.load().by_name.get(name).cloned()
    }

    /// The machine of this group.
    pub fn by_group(&self, group: GroupId) -> Option<Arc<Machine>> {
        self.open.load().by_group.get(&group).cloned()
    }

    /// All machines, by name.
    pub fn all(&self) -> Arc<Vec<Arc<Machine>>> {
        self.open.load().all.clone()
    }

    /// Adds a machine, or replaces the one of its name. Only one task changes the registry.
    pub(super) fn insert(&self, machine: Arc<Machine>) {
        let mut open = Open::clone(&self.open.load());
        open.by_group.insert(machine.record.group(), machine.clone());
        if let Some(before) = open.by_name.insert(machine.record.name.clone(), machine.clone())
            && before.record.group() != machine.record.group()
        {
            open.by_group.remove(&before.record.group());
        }
        self.swap(open);
    }

    /// Takes a machine out.
    pub(super) fn remove(&self, name: &str) {
        let mut open = Open::clone(&self.open.load());
        if let Some(machine) = open.by_name.remove(name) {
            open.by_group.remove(&machine.record.group());
        }
        self.swap(open);
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

    fn swap(&self, mut open: Open) {
        let sorted: BTreeMap<_, _> = open.by_name.iter().collect();
        open.all = Arc::new(sorted.into_values().cloned().collect());
        self.open.store(Arc::new(open));
        self.changes.send_modify(|count| *count += 1);
    }
}
