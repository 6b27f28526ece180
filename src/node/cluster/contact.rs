//! Where the other nodes are: what the catalog says goes to the peer link and to the groups.

use crate::catalog::{Catalog, MachineRecord};
use crate::id::{GroupId, NodeId, ReplicaId};
use crate::node::Inner;
use crate::node::order::Order;
use crate::raft::Input;
use crate::storage::directory::Contact;

/// Tells the peer link where the nodes of the catalog are, and which of them are gone, and the groups that
/// are open here on which node each replica is.
pub fn locate_all(inner: &Inner, before: &Catalog, now: &Catalog) {
    let Some(net) = &inner.stage.net else { return };
    for gone in before.nodes.keys().filter(|node| !now.nodes.contains_key(node)) {
        net.locate(*gone, None);
    }
    for node in now.nodes.values().filter(|node| !node.peer_address.is_empty()) {
        net.locate(node.node(), Some(node.peer_address.clone()));
    }
    let mut orders: Vec<Order> = Vec::new();
    for node in now.nodes.values().filter(|node| before.nodes.get(&node.node()) != Some(*node)) {
        orders.push(locate(GroupId::CATALOG, node.replica(), node.node()));
    }
    for machine in now.machines.values() {
        let known =
            before.machines.get(machine.name.as_str()).is_some_and(|b| b.replicas == machine.replicas);
        if !known && machine.replica_on(inner.id()).is_some() {
            orders.extend(replicas(machine).map(|(replica, node)| locate(machine.group(), replica, node)));
        }
    }
    if !orders.is_empty() {
        inner.stage.orders.send_all(orders);
    }
}

fn locate(group: GroupId, replica: ReplicaId, node: NodeId) -> Order {
    Order::Shard(Input::Locate { group, replica, node })
}

/// A machine's replicas with their nodes.
pub fn replicas(machine: &MachineRecord) -> impl Iterator<Item = (ReplicaId, NodeId)> {
    machine.replicas.iter().map(|replica| (replica.replica(), replica.node()))
}

/// Where the replicas of the catalog's group are: by the catalog, or, as long as there is none here, by what
/// this node was told when it joined.
pub fn of_catalog(catalog: &Catalog, contacts: &[Contact]) -> Vec<(ReplicaId, NodeId)> {
    if catalog.nodes.is_empty() {
        return contacts.iter().map(|contact| (ReplicaId(contact.replica), NodeId(contact.node))).collect();
    }
    catalog.nodes.values().map(|node| (node.replica(), node.node())).collect()
}
