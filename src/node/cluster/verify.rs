//! Compares the replicas of a machine now, on demand.

use std::time::Duration;

use super::words::{Answer, At, Question, Standing};
use crate::error::Error;
use crate::id::{GroupId, Index, NodeId, StateHash};
use crate::node::Node;
use crate::node::lockstep;
use crate::node::request::{Verified, VerifiedReplica};
use crate::time::Clock;

/// How often a replica that is not there yet is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How long another node may take to say how its replica stands, beyond its own patience.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

impl Node {
    /// Has the leader put its hash into the machine's log, waits until every replica has come to it, and
    /// tells how each stands. One that differs has halted.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` without a leader.
    pub async fn verify_machine(&self, name: &str) -> Result<Verified, Error> {
        let record = self.find(name).await?.record.clone();
        let group = record.group();
        let leader = self.leader_node(group).await?;
        let index = if leader == self.id() {
            self.beacon_here(group).await?
        } else {
            let asked = self.ask(leader, Question::Beacon(group.0), ANSWER_PATIENCE).await?;
            asked.applied()?.index
        };
        let standings = record.replicas.iter().map(|replica| self.standing_of(replica.node(), group, index));
        let standings = futures_util::future::join_all(standings).await;
        let replicas = record.replicas.iter().zip(standings).map(|(replica, standing)| VerifiedReplica {
            node: replica.node(),
            standing: standing.map_err(|why| why.to_string()),
        });
        Ok(Verified { index, replicas: replicas.collect() })
    }

    /// Puts this replica's hash into the log of a group that it leads, and waits until it has come to it
    /// itself.
    pub(in crate::node) async fn beacon_here(&self, group: GroupId) -> Result<Index, Error> {
        let closed = || Error::NotLeader { leader: None };
        let machine = self.inner.registry.by_group(group).ok_or_else(closed)?;
        let head = machine.serving()?.lane.published().head;
        Ok(self.propose_here(group, lockstep::beacon(&head)).await?.index)
    }

    async fn standing_of(
        &self,
        node: NodeId,
        group: GroupId,
        index: Index,
    ) -> Result<(Index, StateHash), Error> {
        let standing = if node == self.id() {
            self.standing_here(group, index).await?
        } else {
            let patience = Duration::from_millis(self.inner.config.read_wait_ms) + ANSWER_PATIENCE;
            let question = Question::Stand(At { group: group.0, index: index.0 });
            match self.ask(node, question, patience).await {
                Ok(Answer::Standing(standing)) => standing,
                Ok(_) => {
                    return Err(Error::Unknown("the node gave another answer than was asked for".into()));
                }
                Err(Error::NotLeader { .. }) => {
                    return Err(Error::Unavailable("the node cannot be reached".into()));
                }
                Err(why) => return Err(why),
            }
        };
        match standing.halted {
            Some(why) => Err(Error::FailedPrecondition(why)),
            None => Ok((Index(standing.index), standing.state_hash()?)),
        }
    }

    /// How this node's replica stands when it has come to `index`, or why it does not come to it.
    pub(in crate::node) async fn standing_here(
        &self,
        group: GroupId,
        index: Index,
    ) -> Result<Standing, Error> {
        let clock = Clock::start();
        let patience_ns = self.inner.config.read_wait_ms * 1_000_000;
        loop {
            let missing = || Error::Unavailable("the replica is not open on its node".into());
            let machine = self.inner.registry.by_group(group).ok_or_else(missing)?;
            let info = machine.info().replica.ok_or_else(missing)?;
            if info.applied >= index || info.halted.is_some() {
                return Ok(Standing::new(info.applied, info.hash, info.halted));
            }
            if clock.elapsed_ns() >= patience_ns {
                return Err(Error::DeadlineExceeded(format!(
                    "the replica has come to index {} only, not to {index}",
                    info.applied
                )));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}
