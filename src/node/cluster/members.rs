//! Sees to it that groups become what the catalog says: the leader of each group changes its membership, a
//! step at a time, and tells the catalog when a replica is gone.
//!
//! One task for all groups that this node leads. It looks at a group when the catalog changed, when the
//! group's leader did, and, as long as it is not as it should be, at an interval: groups that are at rest
//! cost nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::sync::oneshot;

use super::plan::{self, Step, Wanted};
use crate::catalog::{Catalog, Change, ReplicaGone};
use crate::error::Error;
use crate::id::{GroupId, ReplicaId};
use crate::node::lane::Lane;
use crate::node::order::Order;
use crate::node::{Inner, Node};
use crate::raft::{GroupStatus, MembershipStep, Role};

/// How long a group that is not yet as it should be is left alone.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long a step may take before it is looked at afresh.
const STEP_PATIENCE: Duration = Duration::from_secs(10);

/// How long the node that creates a machine may take before the group's leader does it.
const CREATION_PATIENCE: Duration = Duration::from_secs(15);

/// Groups that are looked after at the same time: one without a majority must not hold up the others.
const AT_A_TIME: usize = 64;

/// Runs until the node stops.
pub async fn run(inner: Arc<Inner>) {
    let node = Node { inner };
    let mut catalog = node.inner.catalog_changes.subscribe();
    let mut roles = node.inner.stage.roles.subscribe();
    let mut stopping = node.inner.stopping.subscribe();
    // Groups that were found as they should be, with the term in which this node led them, and their module.
    let mut settled = HashSet::new();
    loop {
        let changed = tokio::select! {
            changed = catalog.changed() => { changed.is_ok().then_some(true) }
            changed = roles.changed() => changed.is_ok().then_some(false),
            () = tokio::time::sleep(LOOK_INTERVAL), if settled.len() < node.led().len() => Some(false),
            _ = stopping.wait_for(|stopping| *stopping) => None,
        };
        match changed {
            None => return,
            Some(true) => settled.clear(),
            Some(false) => {}
        }
        let led = node.led();
        let known = |lane: &Lane, term: u64| (lane.group, term, lane.published().head.module);
        settled.retain(|settled| led.iter().any(|(lane, term)| known(lane, *term) == *settled));
        let unsettled: Vec<_> =
            led.into_iter().filter(|(lane, term)| !settled.contains(&known(lane, *term))).collect();
        let looking = stream::iter(unsettled).map(|(lane, term)| {
            let (node, found) = (node.clone(), known(&lane, term));
            async move { node.look_after(&lane).await.then_some(found) }
        });
        let mut looking = looking.buffer_unordered(AT_A_TIME);
        while let Some(found) = looking.next().await {
            settled.extend(found);
        }
    }
}

impl Node {
    /// The groups that this node leads, with the term.
    pub(super) fn led(&self) -> Vec<(Arc<Lane>, u64)> {
        let machines = self.inner.registry.all();
        let lanes = machines.iter().filter_map(|machine| machine.lane().cloned());
        let all = std::iter::once(self.inner.catalog_lane.clone()).chain(lanes);
        let led = |lane: Arc<Lane>| {
            let role = lane.role().filter(|role| role.role == Role::Leader)?;
            Some((lane, role.term.0))
        };
        all.filter_map(led).collect()
    }

    /// Brings a group a step further. True: it is as it should be.
    async fn look_after(&self, lane: &Lane) -> bool {
        let group = lane.group;
        let Some(status) = self.group_status(group).await else { return false };
        let catalog = self.inner.catalog.load_full();
        let Some(wanted) = wanted(&catalog, group) else { return true };
        if let Some(record) = catalog.machine_of(group).filter(|record| !record.ready) {
            // Whoever creates it is at it, unless that node is gone.
            let now_ms = {
                let catalog_lane = &self.inner.catalog_lane;
                catalog_lane.time_ms(&catalog_lane.published(), &self.inner.stage.clock)
            };
            if now_ms > record.created_ms + CREATION_PATIENCE.as_millis() as u64 {
                self.end_creation(record.clone()).await;
            }
            return false;
        }
        let published = lane.published();
        if let (Some(record), Some(module)) = (catalog.machine_of(group), published.head.module)
            && record.module != module.0
        {
            // A new leader that has not applied anything of its term may still have upgrades before it, of
            // which the catalog was told already: it waits for those.
            let is_at_its_term = lane.role().is_some_and(|role| role.term == published.term);
            if is_at_its_term && let Err(why) = self.note_upgraded(group, module).await {
                tracing::debug!(%group, %why, "the catalog was not told of an upgrade: again later");
            }
            return false;
        }
        if let Some(gone) = gone(&catalog, group, &status) {
            let change = Change::ReplicaGone(ReplicaGone { group: group.0, replica: gone.0 });
            if let Err(why) = self.change_catalog(change).await {
                tracing::debug!(%group, %why, "the catalog was not told that a replica is gone: again later");
            }
            return false;
        }
        if lane.halted().is_some() {
            if let Some(to) = plan::successor(&wanted, &status)
                && let Err(why) = self.transfer_here(group, to).await
            {
                tracing::debug!(%group, %to, %why, "a halted replica still leads: again later");
            }
            return false;
        }
        match plan::next(&wanted, &status) {
            Step::Done => true,
            Step::Wait => false,
            Step::Change(steps) => {
                self.change(group, steps).await;
                false
            }
            Step::HandOver(to) => {
                if let Err(why) = self.transfer_here(group, to).await {
                    tracing::debug!(%group, %to, %why, "the group was not handed over: again later");
                }
                false
            }
        }
    }

    async fn change(&self, group: GroupId, steps: Vec<MembershipStep>) {
        tracing::info!(%group, ?steps, "the group's membership changes");
        let (waiter, told) = oneshot::channel();
        self.inner.stage.orders.send(Order::Change { group, steps, waiter });
        match tokio::time::timeout(STEP_PATIENCE, told).await {
            Ok(Ok(Ok(_))) => {}
            Ok(Ok(Err(why))) => tracing::debug!(%group, %why, "the membership did not change: again later"),
            // The node stops, or the group has no majority at the moment.
            Ok(Err(_)) | Err(_) => tracing::debug!(%group, "the change of membership takes long"),
        }
    }

    /// Where a group stands on this node; none if it is not open.
    pub(in crate::node) async fn group_status(&self, group: GroupId) -> Option<GroupStatus> {
        let (waiter, told) = oneshot::channel();
        self.inner.stage.orders.send(Order::Status { group, waiter });
        told.await.ok().flatten()
    }

    /// Has another replica lead a group that this node leads.
    pub(in crate::node) async fn transfer_here(&self, group: GroupId, to: ReplicaId) -> Result<(), Error> {
        let (waiter, told) = oneshot::channel();
        self.inner.stage.orders.send(Order::Transfer { group, to, waiter });
        told.await.unwrap_or_else(|_| Err(Error::Unavailable("the node is stopping".into())))
    }

    /// Stands for election in a group that was just made, until somebody leads it: its other founders open it
    /// at about the same time, and an election timeout is a long time for whoever made it.
    pub(in crate::node) async fn lead_soon(&self, lane: Arc<Lane>) {
        const TRIES: u32 = 40;
        const INTERVAL: Duration = Duration::from_millis(50);
        for _ in 0..TRIES {
            if lane.role().is_some_and(|role| role.leader.is_some()) || lane.halted().is_some() {
                return;
            }
            self.inner.stage.orders.send(Order::Shard(crate::raft::Input::Campaign { group: lane.group }));
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// Who is to be in a group; none if there is no such group.
fn wanted(catalog: &Catalog, group: GroupId) -> Option<Vec<Wanted>> {
    if group != GroupId::CATALOG {
        let replicas = catalog.machine_of(group)?.replicas.iter().filter(|replica| !replica.leaving);
        return Some(replicas.map(|r| Wanted { replica: r.replica(), voter: true }).collect());
    }
    // A node that leaves follows the catalog until its machines are gone.
    let busy = |node| catalog.machines.values().any(|m| m.replicas.iter().any(|r| r.node == node));
    let nodes = catalog.nodes.values().filter(|node| !node.leaving || busy(node.node));
    Some(nodes.map(|node| Wanted { replica: node.replica(), voter: node.voter }).collect())
}

/// A replica that the catalog still has, and that the group has let go.
fn gone(catalog: &Catalog, group: GroupId, status: &GroupStatus) -> Option<ReplicaId> {
    let members = &status.membership;
    let is_member = |replica: &ReplicaId| {
        [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next]
            .into_iter()
            .any(|ids| ids.contains(&replica.0))
    };
    let leaving: Vec<ReplicaId> = if group == GroupId::CATALOG {
        let busy = |node| catalog.machines.values().any(|m| m.replicas.iter().any(|r| r.node == node));
        let nodes = catalog.nodes.values().filter(|node| node.leaving && !busy(node.node));
        nodes.map(|node| node.replica()).collect()
    } else {
        let replicas = catalog.machine_of(group)?.replicas.iter().filter(|replica| replica.leaving);
        replicas.map(|replica| replica.replica()).collect()
    };
    leaving.into_iter().find(|replica| !is_member(replica))
}
