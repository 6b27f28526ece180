//! How nodes and replicas are: for those who look after them. Each node tells of itself; the one that is
//! asked asks the others.
//!
//! Promises: a node that does not answer in time holds nobody up, and is told as such, not left out.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::Node;
use super::cluster::words::{Answer, Question};
use super::order::Order;
use super::request::{Behind, DiskUse, NodeReport, ReplicaLog, ReplicaReport, Surveyed};
use crate::catalog::Catalog;
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index, NodeId, ReplicaId};
use crate::raft::{GroupStatus, Role};

/// How long another node may take to tell of itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the disk may take to be looked at: one that hangs must not hold up the rest.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

impl Node {
    /// All nodes of the cluster, by name, each as it tells of itself.
    pub async fn survey(&self) -> Vec<Surveyed> {
        let asked = self.members().into_iter().map(|member| async move {
            let report = self.report_of(member.node).await.map_err(|why| why.to_string());
            Surveyed { member, report }
        });
        join_all(asked).await
    }

    /// All replicas of a machine, by node, each as it tells of itself.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn replicas(&self, machine: &str) -> Result<Vec<ReplicaReport>, Error> {
        let record = self.find(machine).await?.record.clone();
        let asked = record.replicas.iter().map(|replica| async {
            let node = replica.node();
            let log = self.replica_log_of(node, record.group()).await.map_err(|why| why.to_string());
            ReplicaReport { node, log }
        });
        Ok(join_all(asked).await)
    }

    async fn report_of(&self, node: NodeId) -> Result<NodeReport, Error> {
        if node == self.id() {
            return Ok(self.report().await);
        }
        match self.ask_for_report(node, Question::Report(())).await? {
            Answer::Report(report) => Ok(report),
            _ => Err(odd()),
        }
    }

    async fn replica_log_of(&self, node: NodeId, group: GroupId) -> Result<ReplicaLog, Error> {
        if node == self.id() {
            return self.replica_log(group).await;
        }
        match self.ask_for_report(node, Question::ReplicaLog(group.0)).await? {
            Answer::ReplicaLog(log) => Ok(log),
            _ => Err(odd()),
        }
    }

    async fn ask_for_report(&self, node: NodeId, question: Question) -> Result<Answer, Error> {
        self.ask(node, question, PATIENCE).await.map_err(|why| match why {
            Error::NotLeader { .. } => Error::Unavailable("it cannot be reached".into()),
            Error::Unknown(_) => Error::Unavailable("it does not answer".into()),
            why => why,
        })
    }

    /// How this node is.
    pub async fn report(&self) -> NodeReport {
        let (waiter, told) = oneshot::channel();
        self.inner.stage.orders.send(Order::Survey { waiter });
        // A node that has failed has no order any more, and leads nothing.
        let groups = told.await.unwrap_or_default();
        let leading = groups.iter().filter(|(_, status)| status.standing.role == Role::Leader);
        let unapplied = groups.iter().map(|(_, status)| status.committed.0.saturating_sub(status.applied.0));
        let machines = self.inner.registry.all();
        let lanes = machines.iter().filter_map(|machine| machine.lane());
        NodeReport {
            uptime_ms: self.inner.stage.clock.elapsed_ns() / 1_000_000,
            groups: groups.len() as u64,
            leading: leading.count() as u64,
            asleep: groups.iter().filter(|(_, status)| !status.awake).count() as u64,
            halted: lanes.filter(|lane| lane.halted().is_some()).count() as u64,
            unapplied: unapplied.max().unwrap_or(0),
            behind: behind(&self.inner.catalog.load(), &groups),
            disk: Some(self.disk_use().await),
        }
    }

    /// Where this node's replica of a group stands.
    ///
    /// # Errors
    /// `Unavailable` if it has none that is open.
    pub async fn replica_log(&self, group: GroupId) -> Result<ReplicaLog, Error> {
        let machine = self.inner.registry.by_group(group);
        let halted = machine.and_then(|machine| machine.info().replica).and_then(|replica| replica.halted);
        let Some(status) = self.group_status(group).await else {
            let why = halted.unwrap_or_else(|| "it is not open there yet".into());
            return Err(Error::Unavailable(why));
        };
        Ok(ReplicaLog {
            term: status.standing.term.0,
            role: role(&status).into(),
            start: status.start.0,
            last: status.last.0,
            committed: status.committed.0,
            applied: status.applied.0,
            asleep: !status.awake,
            halted,
        })
    }

    async fn disk_use(&self) -> DiskUse {
        let directory = &self.inner.directory;
        let (log, state) = (directory.log(), directory.state());
        let (snapshots, modules) = (directory.snapshots(), directory.modules());
        let free_bytes = self.inner.stage.state.free_bytes();
        let look = tokio::task::spawn_blocking(move || DiskUse {
            log_bytes: size(&log),
            state_bytes: size(&state),
            snapshots_bytes: size(&snapshots),
            modules_bytes: size(&modules),
            free_bytes,
        });
        match tokio::time::timeout(DISK_PATIENCE, look).await {
            Ok(Ok(used)) => used,
            Ok(Err(_)) | Err(_) => DiskUse { free_bytes, ..DiskUse::default() },
        }
    }
}

fn odd() -> Error {
    Fault::new("it gave another answer than was asked for").into()
}

fn role(status: &GroupStatus) -> &'static str {
    match status.standing.role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
    }
}

/// For each other node the largest number of entries that one of its replicas lacks, of the groups led here.
fn behind(catalog: &Catalog, groups: &[(GroupId, GroupStatus)]) -> Vec<Behind> {
    let records: HashMap<GroupId, _> = catalog.machines.values().map(|r| (r.group(), r)).collect();
    let node_of = |group: GroupId, replica: ReplicaId| match group {
        GroupId::CATALOG => catalog.nodes.values().find(|n| n.replica() == replica).map(|n| n.node()),
        group => records.get(&group)?.replicas.iter().find(|r| r.replica() == replica).map(|r| r.node()),
    };
    let mut most: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (group, status) in groups {
        for (replica, Index(matched)) in &status.matched {
            let Some(node) = node_of(*group, *replica) else { continue };
            let lacks = status.last.0.saturating_sub(*matched);
            most.entry(node).and_modify(|most| *most = lacks.max(*most)).or_insert(lacks);
        }
    }
    most.into_iter().map(|(node, entries)| Behind { node: node.0, entries }).collect()
}

/// The bytes of the files in a directory and below. What cannot be read, or goes away meanwhile, counts for
/// nothing.
fn size(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = entries.filter_map(|entry| {
        let found = entry.metadata().ok()?;
        Some(if found.is_dir() { size(&entry.path()) } else { found.len() })
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{MachineRecord, NodeRecord, ReplicaRecord};
    use crate::id::Term;
    use crate::raft::RoleChange;
    use crate::storage::entry::Membership;

    fn leads(group: GroupId, last: u64, matched: &[(u64, u64)]) -> (GroupId, GroupStatus) {
        let standing =
            RoleChange { group, term: Term(1), role: Role::Leader, leader: None, sole_voter: false };
        let status = GroupStatus {
            replica: ReplicaId(1),
            standing,
            serving: true,
            start: Index(0),
            last: Index(last),
            committed: Index(last),
            applied: Index(last),
            membership: Membership::default(),
            held_bytes: 0,
            cache_bytes: 0,
            awake: true,
            matched: matched.iter().map(|(replica, index)| (ReplicaId(*replica), Index(*index))).collect(),
        };
        (group, status)
    }

    #[test]
    fn a_node_is_as_far_behind_as_the_last_of_its_replicas() {
        let mut catalog = Catalog::default();
        for (node, replica) in [(10, 1), (20, 2)] {
            let record = NodeRecord { node, replica, ..NodeRecord::default() };
            catalog.nodes.insert(NodeId(node), record);
        }
        let replicas = [(10, 5), (20, 6), (30, 7)].map(|(node, replica)| ReplicaRecord {
            node,
            replica,
            ..ReplicaRecord::default()
        });
        let record = MachineRecord { group: 3, replicas: replicas.into(), ..MachineRecord::default() };
        catalog.insert_machine(record);
        let groups =
            [leads(GroupId::CATALOG, 9, &[(2, 9)]), leads(GroupId(3), 100, &[(6, 40), (7, 99), (8, 0)])];
        let told = behind(&catalog, &groups);
        assert_eq!(told, [Behind { node: 20, entries: 60 }, Behind { node: 30, entries: 1 }]);
    }

    #[test]
    fn a_directory_has_the_bytes_of_all_files_below() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("a"), [0; 10]).unwrap();
        std::fs::create_dir(place.path().join("b")).unwrap();
        std::fs::write(place.path().join("b/c"), [0; 5]).unwrap();
        assert_eq!(size(place.path()), 15);
        assert_eq!(size(&place.path().join("none")), 0);
    }
}
