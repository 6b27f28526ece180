//! The nodes of the cluster, as people and programs see and change them.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::words::{Question, Transfer};
use crate::catalog::{Change, NodeRecord};
use crate::error::Error;
use crate::id::{GroupId, LogTime, NodeId};
use crate::node::Node;
use crate::node::request::{Contact, Introducer, Introduction, Invitation, MemberInfo};
use crate::raft::Role;

/// How long a transfer of leadership may take.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(30);

impl Node {
    /// The cluster's id.
    pub fn cluster(&self) -> u64 {
        self.inner.directory.identity().map(|identity| identity.cluster).unwrap_or_default()
    }

    /// Where other nodes reach this one, if they do.
    pub fn peer_address(&self) -> Option<String> {
        self.inner.stage.net.as_ref().map(|net| net.advertised().to_owned())
    }

    /// Lets a node into the cluster, or notes where one is that has moved.
    ///
    /// # Errors
    /// `AlreadyExists` names what another node has already; `FailedPrecondition` if the node was removed.
    pub async fn introduce(&self, node: Introduction) -> Result<Invitation, Error> {
        if self.inner.stage.net.is_none() {
            return Err(Error::FailedPrecondition(
                "this node listens for no other nodes, so none can join it: start it with a peer address"
                    .into(),
            ));
        }
        let record = record(node);
        let node = record.node();
        self.change_catalog(Change::AddNode(record)).await?;
        self.catch_up().await?;
        let catalog = self.inner.catalog.load();
        let record = catalog
            .nodes
            .get(&node)
            .ok_or_else(|| Error::FailedPrecondition(format!("node {node} was removed while it joined")))?;
        let contacts = catalog.nodes.values().filter(|other| other.node() != node).map(|other| Contact {
            node: other.node(),
            replica: other.replica(),
            peer_address: other.peer_address.clone(),
        });
        Ok(Invitation { replica: record.replica(), contacts: contacts.collect() })
    }

    /// The nodes of the cluster, by name.
    pub fn members(&self) -> Vec<MemberInfo> {
        let leader = self.inner.catalog_lane.role().and_then(|role| match role.role {
            Role::Leader => Some(self.id()),
            _ => role.leader,
        });
        let heard = self.inner.stage.net.as_ref().map(|net| net.counters().peers).unwrap_or_default();
        let catalog = self.inner.catalog.load();
        let mut members: Vec<MemberInfo> = catalog
            .nodes
            .values()
            .map(|record| MemberInfo {
                node: record.node(),
                name: record.name.clone(),
                peer_address: record.peer_address.clone(),
                client_address: record.client_address.clone(),
                etcd_address: record.etcd_address.clone(),
                version: record.version.clone(),
                joined: LogTime(record.joined_ms),
                voter: record.voter,
                leaving: record.leaving,
                leader: leader == Some(record.node()),
                reachable: record.node() == self.id()
                    || heard.iter().any(|peer| peer.node == record.node() && peer.connected && !peer.silent),
            })
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        members
    }

    /// The same with every change that was acknowledged before it was asked.
    ///
    /// # Errors
    /// `Unavailable` if no leader of the cluster confirmed it in time.
    pub async fn members_confirmed(&self) -> Result<Vec<MemberInfo>, Error> {
        let _inside = self.enter()?;
        self.confirm_catalog().await?;
        Ok(self.members())
    }

    /// Has a node leave the cluster: its replicas move to other nodes, then it is let go.
    ///
    /// # Errors
    /// `NotFound` names those there are; `FailedPrecondition` for the last node.
    pub async fn remove_member(&self, name: &str) -> Result<(), Error> {
        let node = self.member(name)?.node;
        self.change_catalog(Change::RemoveNode(node)).await.map(drop)
    }

    /// Has a node vote in the catalog's group.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if as many vote as may.
    pub async fn promote_member(&self, name: &str) -> Result<(), Error> {
        let node = self.member(name)?.node;
        self.change_catalog(Change::PromoteNode(node)).await.map(drop)
    }

    /// Has a node lead a machine's group, or the catalog's.
    ///
    /// # Errors
    /// `NotFound` names the machine or the node; `Invalid` if the node's replica cannot lead; `Unavailable`
    /// if it did not take over in time.
    pub async fn transfer_leader(&self, machine: Option<&str>, to: &str) -> Result<(), Error> {
        let target = self.member(to)?;
        let (group, replica) = match machine {
            None => (GroupId::CATALOG, Some(target.replica())),
            Some(name) => {
                let record = self.find(name).await?.record.clone();
                (record.group(), record.replica_on(target.node()))
            }
        };
        let replica = replica.ok_or_else(|| {
            Error::Invalid(format!("the node {to:?} has no replica of {:?}", machine.unwrap_or_default()))
        })?;
        match self.leader_node(group).await? {
            leader if leader == target.node() => Ok(()),
            leader if leader == self.id() => self.transfer_here(group, replica).await,
            leader => {
                let question = Question::Transfer(Transfer { group: group.0, to: replica.0 });
                self.ask(leader, question, TRANSFER_PATIENCE).await.map(drop)
            }
        }
    }

    /// The node of this name, or of this id.
    pub(super) fn member(&self, name: &str) -> Result<NodeRecord, Error> {
        let catalog = self.inner.catalog.load();
        let by_id = || catalog.nodes.get(&NodeId(name.parse().ok()?));
        catalog.node_named(name).or_else(by_id).cloned().ok_or_else(|| {
            let mut names: Vec<&str> = catalog.nodes.values().map(|node| node.name.as_str()).collect();
            names.sort_unstable();
            Error::NotFound(format!("no node is called {name:?}; there are {}", names.join(", ")))
        })
    }
}

/// What the catalog keeps of a node; the rest it fills in.
pub fn record(introduction: Introduction) -> NodeRecord {
    let Introduction { node, name, peer_address, client_address, etcd_address, version } = introduction;
    let node = node.0;
    NodeRecord { node, name, peer_address, client_address, etcd_address, version, ..NodeRecord::default() }
}

/// A node of the same process can introduce another one.
impl Introducer for Node {
    fn cluster(&self) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async { Ok(Node::cluster(self)) })
    }

    fn introduce(&self, node: Introduction) -> BoxFuture<'_, Result<Invitation, Error>> {
        Box::pin(Node::introduce(self, node))
    }
}
