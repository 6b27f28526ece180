//! What becomes of machines: made on the nodes with the fewest replicas, ready, gone.

use bytes::Bytes;
use prost::Message;

use super::placement::Load;
use super::record::{MachineRecord, MachineUpgraded, RefusalCode, ReplicaRecord};
use super::store::{Failure, Store, refuse};
use super::{check_name, check_replicas, rows};
use crate::machine::outcome::Context;

pub(super) fn create(
    store: &mut Store,
    context: Context,
    mut record: MachineRecord,
) -> Result<Bytes, Failure> {
    check_name(&record.name).or_else(|what| refuse(RefusalCode::BadName, what))?;
    check_replicas(record.replicas_wanted).or_else(|what| refuse(RefusalCode::Malformed, what))?;
    if store.machine(&record.name)?.is_some() {
        let what =
            format!("there is a machine {:?} already; choose another name or delete it first", record.name);
        return refuse(RefusalCode::NameTaken, what);
    }
    if !store.has_module(&record.module)? {
        let what = format!("no module {}; push it first", hex::encode(&record.module));
        return refuse(RefusalCode::UnknownModule, what);
    }
    record.group = store.next_id(rows::LAST_GROUP)?;
    record.created_ms = context.time;
    record.ready = false;
    record.replicas.clear();
    let mut load = Load::of(store)?;
    fill(store, &mut load, &mut record)?;
    if record.replicas.is_empty() {
        return refuse(RefusalCode::UnknownNode, "there is no node to put the machine on: add one first");
    }
    record.founders = record.replicas.iter().map(|replica| replica.replica).collect();
    store.put_machine(&record)?;
    Ok(record.encode_to_vec().into())
}

/// Gives a machine the replicas that it lacks, as far as there are nodes. Whether any was added.
pub(super) fn fill(store: &mut Store, load: &mut Load, record: &mut MachineRecord) -> Result<bool, Failure> {
    let before = record.replicas.len();
    while record.staying() < record.replicas_wanted as usize {
        let Some(node) = load.place(record) else { break };
        let replica = store.next_id(rows::LAST_REPLICA)?;
        record.replicas.push(ReplicaRecord { replica, node, leaving: false });
    }
    Ok(record.replicas.len() > before)
}

pub(super) fn ready(store: &mut Store, group: u64) -> Result<Bytes, Failure> {
    if let Some(mut record) = store.machine_of(group)? {
        record.ready = true;
        (record.configuration, record.settings) = (Bytes::new(), None);
        store.put_machine(&record)?;
    }
    Ok(Bytes::new())
}

/// The machine runs another module now.
pub(super) fn upgraded(store: &mut Store, upgraded: &MachineUpgraded) -> Result<Bytes, Failure> {
    if let Some(mut record) = store.machine_of(upgraded.group)? {
        record.module.clone_from(&upgraded.module);
        store.put_machine(&record)?;
    }
    Ok(Bytes::new())
}

pub(super) fn remove(store: &mut Store, group: u64) -> Result<Bytes, Failure> {
    if let Some(record) = store.machine_of(group)? {
        store.delete_machine(&record)?;
    }
    Ok(Bytes::new())
}

/// The group has let a replica go that was to leave.
pub(super) fn replica_gone(store: &mut Store, group: u64, replica: u64) -> Result<Bytes, Failure> {
    let Some(mut record) = store.machine_of(group)? else { return Ok(Bytes::new()) };
    let before = record.replicas.len();
    record.replicas.retain(|known| !(known.leaving && known.replica == replica));
    if record.replicas.len() < before {
        // The node it was on may take a new one.
        let mut load = Load::of(store)?;
        fill(store, &mut load, &mut record)?;
        store.put_machine(&record)?;
    }
    Ok(Bytes::new())
}
