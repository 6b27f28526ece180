//! The machines that are open on this node, by name and by group.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::machine::Machine;
use crate::id::GroupId;

/// Looked up on every request, changed rarely: readers never wait.
pub struct Registry {
    by_name: ArcSwap<HashMap<String, Arc<Machine>>>,
    /// Counts the changes, for those who wait for one.
    changes: watch::Sender<u64>,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry { by_name: ArcSwap::default(), changes: watch::Sender::new(0) }
    }
}

impl Registry {
    /// The machine of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Machine>> {
        self.by_name.load().get(name).cloned()
    }

    /// The machine of this group.
    pub fn by_group(&self, group: GroupId) -> Option<Arc<Machine>> {
        self.by_name.load().values().find(|machine| machine.record.group() == group).cloned()
    }

    /// All machines, by name.
    pub fn all(&self) -> Vec<Arc<Machine>> {
        let by_name = self.by_name.load();
        let sorted: BTreeMap<_, _> = by_name.iter().collect();
        sorted.into_values().cloned().collect()
    }

    /// Adds a machine, or replaces the one of its name. Only one task changes the registry.
    pub(super) fn insert(&self, machine: Arc<Machine>) {
        let mut by_name = HashMap::clone(&self.by_name.load());
        by_name.insert(machine.record.name.clone(), machine);
        self.swap(by_name);
    }

    /// Takes a machine out.
    pub(super) fn remove(&self, name: &str) {
        let mut by_name = HashMap::clone(&self.by_name.load());
        by_name.remove(name);
        self.swap(by_name);
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

    fn swap(&self, by_name: HashMap<String, Arc<Machine>>) {
        self.by_name.store(Arc::new(by_name));
        self.changes.send_modify(|count| *count += 1);
    }
}
