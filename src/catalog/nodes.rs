//! What becomes of nodes: they join, move, get a vote in the catalog's group, and leave.
//!
//! A node that is to leave stays until every group has let its replicas go; its own replica of the catalog's
//! group goes last, and then the node is never let in again under its id.

use bytes::Bytes;
use prost::Message;

use super::machines;
use super::placement::Load;
use super::record::{NodeRecord, RefusalCode};
use super::rows;
use super::store::{Failure, Store, refuse};
use crate::id::NodeId;
use crate::machine::outcome::Context;

/// How many nodes vote in the catalog's group; the others follow without a vote.
pub const VOTERS_MAX: usize = 7;

/// A node joins, or one that is known has moved.
pub(super) fn add(store: &mut Store, context: Context, asked: NodeRecord) -> Result<Bytes, Failure> {
    if store.is_buried(NodeId(asked.node))? {
        return refuse(RefusalCode::NodeRemoved, removed(NodeId(asked.node)));
    }
    let nodes = store.nodes()?;
    check_distinct(&nodes, &asked)?;
    let record = match nodes.iter().find(|known| known.node == asked.node) {
        Some(known) => {
            let older = asked.age > known.age;
            let (age, life) = if older { (asked.age, asked.life) } else { (known.age, known.life) };
            NodeRecord {
                replica: known.replica,
                joined_ms: known.joined_ms,
                voter: known.voter,
                leaving: known.leaving,
                age,
                life,
                ..asked
            }
        }
        None => {
            let voter = voters(&nodes) < VOTERS_MAX;
            let replica = store.next_id(rows::LAST_REPLICA)?;
            NodeRecord { replica, joined_ms: context.time, voter, leaving: false, ..asked }
        }
    };
    store.put_node(&record)?;
    // Machines that wanted more replicas than there were nodes get one here.
    fill_all(store)?;
    Ok(record.encode_to_vec().into())
}

/// What a node is told that was removed, and says as its last word.
pub fn removed(node: NodeId) -> String {
    format!(
        "node {node} was removed from the cluster and is not let in again under its id: to add this \
         computer, start it with an empty data directory and --join"
    )
}

fn check_distinct(nodes: &[NodeRecord], asked: &NodeRecord) -> Result<(), Failure> {
    for other in nodes.iter().filter(|other| other.node != asked.node) {
        if other.name == asked.name {
            let what = format!(
                "there is a node called {:?} already, with the id {}: give this one another --name. If the \
                 other one has lost its data, remove it first: statehouse member remove {}",
                asked.name, other.node, asked.name
            );
            return refuse(RefusalCode::NameTaken, what);
        }
        if !asked.peer_address.is_empty() && other.peer_address == asked.peer_address {
            let what = format!(
                "the node {:?} has the peer address {} already: give this one another --peer address, or \
                 remove the other one: statehouse member remove {}",
                other.name, asked.peer_address, other.name
            );
            return refuse(RefusalCode::AddressTaken, what);
        }
    }
    Ok(())
}

fn voters(nodes: &[NodeRecord]) -> usize {
    nodes.iter().filter(|node| node.voter && !node.leaving).count()
}

/// A node is to leave: its replicas get successors as far as there are nodes.
pub(super) fn remove(store: &mut Store, node: u64) -> Result<Bytes, Failure> {
    let Some(mut record) = store.node(node)? else {
        if store.is_buried(NodeId(node))? {
            return Ok(Bytes::new());
        }
        return refuse(RefusalCode::UnknownNode, format!("no node has the id {node}"));
    };
    let staying = store.nodes()?.iter().filter(|other| !other.leaving && other.node != node).count();
    if staying == 0 {
        let what = format!(
            "{:?} is the last node of the cluster and cannot be removed: everything would be lost",
            record.name
        );
        return refuse(RefusalCode::LastNode, what);
    }
    record.leaving = true;
    store.put_node(&record)?;
    for mut machine in store.machines()? {
        let gone = machine.replicas.iter_mut().filter(|replica| replica.node == node && !replica.leaving);
        if gone.map(|replica| replica.leaving = true).count() > 0 {
            store.put_machine(&machine)?;
        }
    }
    fill_all(store)?;
    give_free_seats(store)?;
    Ok(Bytes::new())
}

/// A node is to vote in the catalog's group.
pub(super) fn promote(store: &mut Store, node: u64) -> Result<Bytes, Failure> {
    let Some(mut record) = store.node(node)? else {
        return refuse(RefusalCode::UnknownNode, format!("no node has the id {node}"));
    };
    if record.voter {
        return Ok(Bytes::new());
    }
    if record.leaving {
        return refuse(RefusalCode::NodeRemoved, format!("the node {:?} is leaving", record.name));
    }
    if voters(&store.nodes()?) >= VOTERS_MAX {
        let what = format!("{VOTERS_MAX} nodes vote already, which is the limit: remove one of them first");
        return refuse(RefusalCode::VotersFull, what);
    }
    record.voter = true;
    store.put_node(&record)?;
    Ok(Bytes::new())
}

/// The catalog's group has let the replica of a leaving node go: so is the node.
pub(super) fn replica_gone(store: &mut Store, replica: u64) -> Result<Bytes, Failure> {
    let leaving = store.nodes()?.into_iter().find(|node| node.leaving && node.replica == replica);
    if let Some(record) = leaving {
        store.bury_node(&record)?;
    }
    Ok(Bytes::new())
}

fn fill_all(store: &mut Store) -> Result<(), Failure> {
    let mut load = Load::of(store)?;
    for mut machine in store.machines()? {
        if machines::fill(store, &mut load, &mut machine)? {
            store.put_machine(&machine)?;
        }
    }
    Ok(())
}

/// Those who joined first get the votes that are free.
fn give_free_seats(store: &mut Store) -> Result<(), Failure> {
    let nodes = store.nodes()?;
    let free = VOTERS_MAX.saturating_sub(voters(&nodes));
    let mut waiting: Vec<_> = nodes.into_iter().filter(|node| !node.voter && !node.leaving).collect();
    waiting.sort_by_key(|node| node.replica);
    for mut node in waiting.into_iter().take(free) {
        node.voter = true;
        store.put_node(&node)?;
    }
    Ok(())
}
