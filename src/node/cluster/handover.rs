//! How a node goes: it hands over what it leads while it still serves, so that its stop costs nobody a
//! request, nor the time of an election.
//!
//! Commands that came before the other took over are in its log, and are answered here when it commits them;
//! those that come later are passed on to it. A group that nobody else can lead stays with this node until
//! its end: requests are then held where they come in, as always while there is no leader.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use super::plan::{self, Wanted};
use crate::id::{GroupId, NodeId, ReplicaId};
use crate::node::Node;
use crate::node::lane::Lane;
use crate::raft::Role;

/// How often a group is handed over if the one that was to lead does not take over, or gives it back.
const TRIES: u32 = 3;

/// How long a group is left alone between two tries.
const REST: Duration = Duration::from_millis(50);

/// Groups that are handed over at the same time.
const AT_A_TIME: usize = 64;

impl Node {
    /// Says that the node is about to stop, and hands over what it leads, as far as others can lead it. It
    /// goes on to serve: what it does not lead it passes on.
    pub async fn hand_over_within(&self, patience: Duration) {
        self.inner.door.take_leave();
        if self.inner.stage.net.is_none() || self.inner.stage.failure().is_some() {
            return;
        }
        let handing_over = async {
            for _ in 0..TRIES {
                let led = stream::iter(self.led()).map(|(lane, _)| self.hand_over(lane));
                let handed =
                    led.buffer_unordered(AT_A_TIME).fold(Handed::Nothing, async |all, one| all.max(one));
                if handed.await == Handed::Nothing {
                    return;
                }
                tokio::time::sleep(REST).await;
            }
        };
        if tokio::time::timeout(patience, handing_over).await.is_err() {
            let waited_ms = patience.as_millis() as u64;
            tracing::warn!(waited_ms, "not all groups that this node leads could be handed over");
        }
    }

    /// Lets no request in any more: from now on they are told that they were not done.
    pub fn close_door(&self) {
        self.inner.door.close();
        // Those who wait for a leader are done.
        self.inner.stage.waiting_room.call();
    }

    /// Whether the node is about to stop.
    pub fn is_leaving(&self) -> bool {
        self.inner.door.is_leaving()
    }

    /// Ends when the node is about to stop.
    pub async fn leaves(&self) {
        self.inner.door.leaves().await;
    }

    async fn hand_over(&self, lane: Arc<Lane>) -> Handed {
        let group = lane.group;
        let Some(status) = self.group_status(group).await else { return Handed::Nothing };
        if status.standing.role != Role::Leader {
            return Handed::Nothing;
        }
        let Some(to) = plan::successor(&self.heirs(group), &status) else {
            tracing::debug!(%group, "nobody else can lead the group at the moment");
            return Handed::Nothing;
        };
        if let Err(why) = self.transfer_here(group, to).await {
            tracing::debug!(%group, %to, %why, "the group was not handed over");
        }
        // It is looked at again in any case: the other may be about to stop too.
        Handed::Something
    }

    /// The replicas of a group on other nodes that can be reached.
    fn heirs(&self, group: GroupId) -> Vec<Wanted> {
        let Some(net) = &self.inner.stage.net else { return Vec::new() };
        let heard = net.counters().peers.into_iter().filter(|peer| peer.connected && !peer.silent);
        let heard: Vec<NodeId> = heard.map(|peer| peer.node).collect();
        let catalog = self.inner.catalog.load();
        let replicas: Vec<(NodeId, ReplicaId)> = match catalog.machine_of(group) {
            None => catalog.nodes.values().map(|node| (node.node(), node.replica())).collect(),
            Some(record) => {
                record.replicas.iter().map(|replica| (replica.node(), replica.replica())).collect()
            }
        };
        let reachable = replicas.into_iter().filter(|(node, _)| heard.contains(node));
        reachable.map(|(_, replica)| Wanted { replica, voter: true }).collect()
    }
}

/// What came of looking at the groups once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Handed {
    /// There was nothing to hand over, or nobody to take it.
    Nothing,
    /// A group was on its way to another leader.
    Something,
}
