//! Keeps the machines that are open on this node in step with the catalog: one task opens and closes them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::applier::Behavior;
use super::components::{Pools, ShelfComponents};
use super::lane::Lane;
use super::machine::{Closed, Machine, Parts, Queries, ResidentQueries};
use super::open::{ReplicaStart, open_lane};
use super::order::Order;
use super::request::World;
use super::{Inner, Node, cluster};
use crate::catalog::{MachineRecord, removed};
use crate::error::{Error, Fault, REPAIR};
use crate::id::{Digest, GroupId, Index, ReplicaId};
use crate::machine::resident::Resident;
use crate::machine::stored::Stored;
use crate::raft::Input;

/// Runs until the node stops. The catalog must be as of its last acknowledged change when this starts.
pub async fn run(inner: Arc<Inner>) {
    let mut changes = inner.catalog_changes.subscribe();
    let mut stopping = inner.stopping.subscribe();
    if let Err(fault) = forget_strangers(&inner) {
        return inner.stage.fail(fault);
    }
    let mut readying = HashMap::new();
    let mut located = Arc::default();
    loop {
        changes.mark_unchanged();
        let catalog = inner.catalog.load_full();
        if catalog.removed.contains(&inner.id()) {
            return inner.stage.fail(Fault::new(removed(inner.id())));
        }
        cluster::locate_all(&inner, &located, &catalog);
        located = catalog;
        cluster::ready_modules(&inner, &mut readying);
        let step = inner.clone();
        let stepped = tokio::task::spawn_blocking(move || reconcile(&step)).await;
        match stepped {
            Ok(Ok(())) => inner.ready.send_replace(true),
            Ok(Err(fault)) => return inner.stage.fail(fault),
            Err(panic) => {
                return inner.stage.fail(Fault::new(format!("opening the machines panicked: {panic}")));
            }
        };
        tokio::select! {
            // The sender lives as long as the node does.
            _ = changes.changed() => {}
            _ = stopping.wait_for(|stopping| *stopping) => break,
        }
    }
    readying.into_values().for_each(|task| task.abort());
}

/// Drops what a stop or a crash left of machines that were deleted.
fn forget_strangers(inner: &Inner) -> Result<(), Fault> {
    let catalog = inner.catalog.load();
    let own = inner.id();
    let here = catalog.machines.values().filter(|machine| machine.replica_on(own).is_some());
    let mut known: BTreeSet<GroupId> = here.map(|machine| machine.group()).collect();
    known.insert(GroupId::CATALOG);
    let saved = inner.stage.snapshots.list_all()?.into_iter().map(|(group, _)| group);
    let mut strangers = inner.found.lock().strangers(&known);
    strangers.extend(saved.filter(|group| !known.contains(group)));
    for group in strangers {
        tracing::info!(%group, "dropping what is left of a deleted machine");
        drop_group(inner, group);
    }
    Ok(())
}

/// Opens what the catalog has and this node has not, and closes the reverse. Blocks.
fn reconcile(inner: &Arc<Inner>) -> Result<(), Fault> {
    let catalog = inner.catalog.load_full();
    for machine in &*inner.registry.all() {
        let record = catalog.machines.get(machine.record.name.as_str());
        if record.is_none_or(|record| record.group != machine.record.group) {
            close(inner, machine);
        }
    }
    for record in catalog.machines.values() {
        match inner.registry.get(&record.name) {
            Some(machine) => follow(inner, &machine, record)?,
            None => inner.registry.insert(Arc::new(open(inner, record)?)),
        }
    }
    inner.stage.metrics.machines.set(catalog.machines.len() as i64);
    Ok(())
}

/// A machine that is known here: its record may have changed, and with it whether it has a replica here.
fn follow(inner: &Arc<Inner>, machine: &Arc<Machine>, record: &MachineRecord) -> Result<(), Fault> {
    let own = inner.id();
    let (had, has) = (machine.record.replica_on(own), record.replica_on(own));
    if had.is_some() && has.is_none() {
        close(inner, machine);
        inner.registry.insert(Arc::new(open(inner, record)?));
    } else if has != had || matches!(machine.open, Err(Closed::Waiting)) {
        inner.registry.insert(Arc::new(open(inner, record)?));
    } else if machine.record != *record {
        let (record, open) = (record.clone(), machine.open.clone());
        let (module, world) = (record.module()?, machine.world);
        inner.registry.insert(Arc::new(Machine { record, module, world, open }));
    }
    Ok(())
}

fn open(inner: &Arc<Inner>, record: &MachineRecord) -> Result<Machine, Fault> {
    let module = record.module()?;
    let world = world_of(inner, module);
    let open = match record.replica_on(inner.id()) {
        None => Err(Closed::Elsewhere),
        // Other machines need not wait for a compilation, nor this one's group: others lead it meanwhile.
        Some(_) if !inner.shelf.is_settled(module) && inner.stage.net.is_some() => Err(Closed::Waiting),
        Some(replica) => {
            open_parts(inner, record, replica, module, world).map(Arc::new).map_err(Closed::Broken)
        }
    };
    if let Err(Closed::Broken(why)) = &open {
        tracing::error!(machine = record.name, %why, "the machine cannot be opened on this node");
    }
    if let Ok(parts) = &open
        && begins_here(inner, record, &parts.lane)
    {
        let (node, lane) = (Node { inner: inner.clone() }, parts.lane.clone());
        let leading = node.clone();
        node.spawn(async move { leading.lead_soon(lane).await });
    }
    Ok(Machine { record: record.clone(), module, world, open })
}

/// Whether a group was just made, and this node is the one of its founders that is to lead it first: they
/// take turns, so that leaders spread.
fn begins_here(inner: &Inner, record: &MachineRecord, lane: &Lane) -> bool {
    let first = record.founders.get(record.group as usize % record.founders.len().max(1)).copied();
    !record.ready
        && lane.published().head.index == Index(0)
        && record.replica_on(inner.id()).map(|replica| replica.0) == first
}

fn open_parts(
    inner: &Inner,
    record: &MachineRecord,
    replica: ReplicaId,
    module: Digest,
    world: World,
) -> Result<Parts, Error> {
    if let Some(why) = inner.found.lock().broken(record.group()) {
        return Err(Error::Damaged(format!(
            "the machine {:?} is not whole on this node: {why}. {REPAIR}; or delete the machine",
            record.name
        )));
    }
    check_engine(inner, record)?;
    // Whether it can be run here at all; where the machine stands, it may be another one still.
    inner.shelf.load(module, world)?;
    let settings = inner.config.guest_settings(record.input_fuel);
    let components = ShelfComponents::new(inner.shelf.clone(), record.group(), world, settings);
    let (behavior, queries) = match world {
        World::Stored => (
            Behavior::Stored(Stored::new(Box::new(components.clone()))),
            Queries::Stored(Pools::new(components)),
        ),
        World::Resident => {
            let saved = inner.stage.snapshots.latest(record.group())?.unwrap_or_default();
            let queries = ResidentQueries::new(Box::new(components.clone()), saved);
            (Behavior::Resident(Resident::new(Box::new(components))), Queries::Resident(Box::new(queries)))
        }
    };
    let mut found = inner.found.lock();
    let start = ReplicaStart {
        group: record.group(),
        replica,
        founders: record.founders.clone(),
        nodes: cluster::replicas(record).collect(),
    };
    let lane = open_lane(&inner.stage, &mut found, start, behavior, None);
    // A resident machine answers one query at a time: more would only hold threads.
    let at_a_time = if world == World::Resident { 1 } else { super::LONG_QUERIES_OF_ONE_MAX };
    Ok(Parts { lane, queries, long_queries: Arc::new(Semaphore::new(at_a_time)) })
}

/// Another engine may give other answers to the same inputs: then this replica would no longer be one.
fn check_engine(inner: &Inner, record: &MachineRecord) -> Result<(), Error> {
    let ours = inner.shelf.fingerprint();
    if record.engine == ours {
        return Ok(());
    }
    Err(Error::FailedPrecondition(format!(
        "the machine {:?} is bound to the engine {}, and this node has {ours}: the same inputs could end \
         otherwise here. Run the node with the version and the `memory_bytes_max` that the machine was \
         created with, or delete the machine",
        record.name, record.engine
    )))
}

fn world_of(inner: &Inner, module: Digest) -> World {
    match inner.catalog.load().modules.get(&module) {
        Some(record) if record.resident => World::Resident,
        _ => World::Stored,
    }
}

fn close(inner: &Inner, machine: &Machine) {
    inner.registry.remove(&machine.record.name);
    let group = machine.record.group();
    let Ok(parts) = &machine.open else { return drop_group(inner, group) };
    // A batch at hand may take minutes, and ends when it ends; those that follow are refused.
    parts.lane.end("it was deleted");
    let_go(inner, group);
    if let Err(fault) = inner.removal.remove(parts.lane.clone()) {
        inner.stage.fail(fault);
    }
}

/// For a group without a lane here.
fn drop_group(inner: &Inner, group: GroupId) {
    let_go(inner, group);
    if let Err(fault) = inner.removal.remove_group(group) {
        inner.stage.fail(fault);
    }
}

/// No more jobs for the group, and its log is dropped.
fn let_go(inner: &Inner, group: GroupId) {
    inner.stage.orders.send_all([Order::Detach(group), Order::Shard(Input::Forget(group))]);
}
