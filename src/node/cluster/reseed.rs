//! Gives a replica the leader's state in place of its own: one that differs from the others, or any that does
//! not lead.
//!
//! The replica keeps its log and its vote, and goes on to acknowledge what the leader sends. It stops
//! applying first, noted on disk, and serves nothing before the leader's state is in the place of its own:
//! neither after a restart, which finds the old state and the note, or the snapshot and the mark of rows that
//! are being replaced. What was passed over meanwhile is applied from the log.

use std::time::Duration;

use tokio::sync::oneshot;

use super::courier::Errand;
use super::words::{Answer, Question, Seed};
use crate::catalog::MachineRecord;
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index, NodeId, ReplicaId};
use crate::node::Node;
use crate::node::halt_note::HaltNote;
use crate::node::lane::Lane;
use crate::raft::{Role, SnapshotWanted};

/// How long a replica may take to get another state and to come into force again.
const RESEED_PATIENCE: Duration = Duration::from_secs(3_600);

/// How long a snapshot that has arrived may take until it is installed, without being refused.
const INSTALL_PATIENCE: Duration = Duration::from_secs(600);

/// How often it is looked whether it was refused.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

impl Node {
    /// Gives the replica of a machine on a node, called by its name or id, the leader's state in place of its
    /// own. Answers up to where that state goes.
    ///
    /// # Errors
    /// `NotFound` for the machine or the node; `FailedPrecondition` if the node has no replica, leads the
    /// machine's group or has its only replica; `Unavailable` if it was not done and may be asked again. The
    /// replica stays halted then.
    pub async fn reseed_machine(&self, name: &str, node: &str) -> Result<Index, Error> {
        let (record, target) = self.replica_called(name, node).await?;
        if record.replicas.len() < 2 {
            return Err(Error::FailedPrecondition(format!(
                "{name:?} has one replica only: there is no other state to give it. Restore its node from a \
                 backup, or delete the machine"
            )));
        }
        if target == self.id() {
            return self.reseed_here(record.group()).await;
        }
        let answer = self.ask_replica(node, target, Question::Reseed(record.group), RESEED_PATIENCE).await?;
        Ok(answer.applied()?.index)
    }

    /// A machine, and the node of one of its replicas, called by its name or id.
    pub(super) async fn replica_called(
        &self,
        name: &str,
        node: &str,
    ) -> Result<(MachineRecord, NodeId), Error> {
        let record = self.find(name).await?.record.clone();
        let target = self.member(node)?.node();
        if record.replica_on(target).is_none() {
            let catalog = self.inner.catalog.load();
            let called = |node: NodeId| catalog.nodes.get(&node).map_or(node.to_string(), |n| n.name.clone());
            let nodes: Vec<String> = record.replicas.iter().map(|r| called(r.node())).collect();
            return Err(Error::FailedPrecondition(format!(
                "the node {:?} has no replica of {name:?}; its replicas are on {}",
                called(target),
                nodes.join(", ")
            )));
        }
        Ok((record, target))
    }

    /// Asks a node about its replica. `called` is what the client calls the node.
    pub(super) async fn ask_replica(
        &self,
        called: &str,
        node: NodeId,
        question: Question,
        patience: Duration,
    ) -> Result<Answer, Error> {
        match self.ask(node, question, patience).await {
            Err(Error::NotLeader { .. }) => Err(Error::Unavailable(format!(
                "the node {called:?} cannot be reached from here: try again when `statehouse member list` \
                 shows that it is"
            ))),
            told => told,
        }
    }

    /// Gives this node's replica of a group the leader's state.
    pub(in crate::node) async fn reseed_here(&self, group: GroupId) -> Result<Index, Error> {
        let missing = || Error::Unavailable("the replica is not open on its node: try again".into());
        let machine = self.inner.registry.by_group(group).ok_or_else(missing)?;
        let lane = machine.lane().ok_or_else(missing)?.clone();
        let leader = self.leader_node(group).await?;
        if leader == self.id() {
            return Err(Error::FailedPrecondition(format!(
                "this node leads {0:?}, and what the leader has is what the others are compared with. Have \
                 another lead first: statehouse member transfer-leader --machine {0} --to NODE",
                machine.record.name
            )));
        }
        let status = self.group_status(group).await.ok_or_else(missing)?;
        let mut installs = lane.installs();
        installs.mark_unchanged();
        self.stop_applying(lane.clone()).await?;
        let seed = Question::Seed(Seed { group: group.0, to: status.replica.0 });
        match self.ask(leader, seed, RESEED_PATIENCE).await {
            Ok(_) => {}
            Err(Error::NotLeader { .. }) => {
                return Err(still_halted("the leader was not reached, or leads no longer"));
            }
            Err(why) => return Err(still_halted(&why.to_string())),
        }
        let installing = async {
            loop {
                let changed = tokio::time::timeout(LOOK_INTERVAL, installs.changed()).await;
                if changed.is_ok() {
                    return true;
                }
                if !self.inner.stage.incoming.lock().contains(&group)
                    && !matches!(installs.has_changed(), Ok(true))
                {
                    return false;
                }
            }
        };
        match tokio::time::timeout(INSTALL_PATIENCE, installing).await {
            Ok(true) => Ok(lane.published().head.index),
            Ok(false) | Err(_) => Err(still_halted("the snapshot that came was not taken")),
        }
    }

    /// Has a replica apply nothing more, also after a restart. What it was halted for before stays noted.
    async fn stop_applying(&self, lane: std::sync::Arc<Lane>) -> Result<(), Error> {
        let stage = self.inner.stage.clone();
        let stopped = tokio::task::spawn_blocking(move || {
            let mut applier = lane.applier();
            if stage.state.halted_note(lane.group)?.is_some() {
                return Ok(());
            }
            let why = lane.halted().unwrap_or_else(|| {
                "it is being reseeded; if that does not come to its end, ask for it again: statehouse \
                 machine reseed"
                    .to_owned()
            });
            applier.halt(&lane, &HaltNote::new(&why), &stage)
        });
        stopped.await.map_err(|e| Fault::new(format!("halting a machine panicked: {e}")))??;
        Ok(())
    }

    /// Sends another node's replica of a group that this node leads the state as it is now. The state is that
    /// of an index that the other has certainly not applied.
    pub(in crate::node) async fn seed(
        &self,
        node: NodeId,
        group: GroupId,
        to: ReplicaId,
    ) -> Result<(), Error> {
        let missing = || Error::NotLeader { leader: None };
        let machine = self.inner.registry.by_group(group).ok_or_else(missing)?;
        let role = machine.serving()?.lane.role().filter(|role| role.role == Role::Leader);
        let term = role.ok_or_else(missing)?.term;
        let least = self.beacon_here(group).await?;
        let (waiter, told) = oneshot::channel();
        let wanted = SnapshotWanted { group, to, node, term, least };
        self.inner.stage.courier.tell(Errand::Seed(wanted, waiter));
        told.await.unwrap_or_else(|_| Err(Error::Unavailable("the leader is stopping".into())))
    }
}

fn still_halted(why: &str) -> Error {
    Error::Unavailable(format!(
        "the replica was not reseeded, and stays halted until it is: {why}. Try again"
    ))
}
