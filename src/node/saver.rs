//! The saver: has resident machines write their snapshots, on a thread of its own, because a guest may take a
//! minute for one and nobody else is to wait for it.
//!
//! Promises: a snapshot takes effect only when the state is flushed up to it, so that a restart never finds
//! rows older than it; only then is the log cut behind it. Nothing stays of a machine that was deleted while
//! it was saved.

use std::collections::HashMap;
use std::sync::Arc;

use super::keeper::checkpoint;
use super::machine::{Machine, Parts, Queries, ResidentQueries};
use super::order::Order;
use super::registry::Registry;
use super::rounds::Rounds;
use super::stage::Stage;
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index};
use crate::raft::Input;

/// Starts the thread. A resident machine is saved after `entries` entries.
pub fn start(entries: u64, stage: Arc<Stage>, registry: Arc<Registry>) -> Result<Rounds, Fault> {
    let mut saver = Saver {
        entries,
        stage: stage.clone(),
        registry,
        machines: Arc::default(),
        resident: Vec::new(),
        tried: HashMap::new(),
    };
    Rounds::start("saver", stage, move |_| saver.round())
}

struct Saver {
    entries: u64,
    stage: Arc<Stage>,
    registry: Arc<Registry>,
    /// All machines when the resident ones were last picked out.
    machines: Arc<Vec<Arc<Machine>>>,
    resident: Vec<Arc<Machine>>,
    /// The index at which each resident machine was last asked to save.
    tried: HashMap<GroupId, Index>,
}

fn is_resident(machine: &Machine) -> bool {
    machine.open.as_ref().is_ok_and(|parts| matches!(parts.queries, Queries::Resident(_)))
}

impl Saver {
    fn round(&mut self) -> Result<(), Fault> {
        let machines = self.registry.all();
        if !Arc::ptr_eq(&machines, &self.machines) {
            self.resident = machines.iter().filter(|machine| is_resident(machine)).cloned().collect();
            let resident = &self.resident;
            self.tried.retain(|group, _| resident.iter().any(|machine| machine.record.group() == *group));
            self.machines = machines;
        }
        self.resident.clone().iter().try_for_each(|machine| self.save_if_due(machine))
    }

    /// Saves a resident machine that has come far enough since its last snapshot.
    fn save_if_due(&mut self, machine: &Machine) -> Result<(), Fault> {
        let Ok(parts) = machine.serving() else { return Ok(()) };
        let Queries::Resident(resident) = &parts.queries else { return Ok(()) };
        let (group, published) = (parts.lane.group, parts.lane.published());
        // A guest that cannot save is asked again only after as many entries.
        let tried = self.tried.get(&group).copied().unwrap_or_default().max(resident.saved());
        if published.head.index.0.saturating_sub(tried.0) < self.entries {
            return Ok(());
        }
        self.tried.insert(group, published.head.index);
        match save(&self.stage, &self.registry, parts, resident) {
            Ok(_) => Ok(()),
            // The former snapshot stays, and the log behind it.
            Err(Error::Fault(_)) if self.stage.is_interrupted() => Ok(()),
            // It was deleted meanwhile, and its log with it: that it cannot be read says nothing of the disk.
            Err(Error::Fault(_)) if parts.lane.halted().is_some() => Ok(()),
            Err(Error::Fault(fault)) => Err(fault),
            Err(why) => {
                let name = &machine.record.name;
                tracing::error!(machine = name, %why, "no snapshot: the former one stays, and the log grows");
                Ok(())
            }
        }
    }
}

/// Has a resident machine write a snapshot of what it is now, unless the last one is that already, and lets
/// it take effect. Blocks, for as long as the guest takes.
pub(super) fn save(
    stage: &Stage,
    registry: &Registry,
    parts: &Parts,
    resident: &ResidentQueries,
) -> Result<Index, Error> {
    let _one_at_a_time = resident.saving();
    let (group, published) = (parts.lane.group, parts.lane.published());
    let index = published.head.index;
    if resident.saved() >= index {
        return Ok(resident.saved());
    }
    let pending = resident.save(&parts.lane, stage, &published)?;
    // Only then may a restart find the snapshot: the rows on disk are at least as new.
    checkpoint(stage, registry)?;
    pending.finish()?;
    // A machine is taken out of the registry before what there is of it is dropped. So either it is seen
    // here that it is gone, or the drop that follows finds the new snapshot too.
    if registry.by_group(group).is_none() {
        stage.snapshots.remove_all(group)?;
        return Err(Error::NotFound("the machine was deleted".into()));
    }
    resident.set_saved(index);
    stage.snapshots.remove_before(group, index)?;
    let applier = parts.lane.applier();
    // A machine that is being closed is halted first, and its rows are dropped after its applier is free.
    if parts.lane.halted().is_none() {
        applier.forget_settled(index, stage)?;
    }
    drop(applier);
    stage.orders.send(Order::Shard(Input::Truncate { group, to: index }));
    Ok(index)
}
