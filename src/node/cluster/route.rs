//! To the leader, wherever it is: a request is done here if this node leads the group, passed on to the node
//! that does, and held while nobody does.
//!
//! Promises: a request that was perhaps done is never sent again, unless it is a session's command, which is
//! applied once however often it comes; one that was certainly not done is, until its deadline. Whoever asked
//! is never told that something was not done that was sent before with an unknown fate.

use std::time::Duration;

use super::words::{Answer, Propose, Query, Question, decode_reply};
use crate::catalog::MachineRecord;
use crate::error::Error;
use crate::id::{GroupId, NodeId};
use crate::machine::batch::Operation;
use crate::net::AskError;
use crate::node::metrics::seconds;
use crate::node::request::{Answered, Applied, Consistency};
use crate::node::{Node, door};
use crate::raft::Role;
use crate::time::Clock;
use crate::trace::TraceContext;
use bytes::Bytes;

/// How long another node may take for an answer before its fate counts as unknown. Guests may take long.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// From how many nodes in a row a hint is followed at once: those who point at each other are asked again
/// later.
const HOPS_MAX: u32 = 3;

/// Who leads a group, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leader {
    Here,
    At(NodeId),
    Unknown,
}

impl Node {
    /// Puts an operation into a group's log, wherever its leader is, and waits for what becomes of it.
    pub(in crate::node) async fn propose(
        &self,
        group: GroupId,
        operation: Operation,
    ) -> Result<Applied, Error> {
        let _inside = self.enter()?;
        if self.inner.stage.net.is_none() {
            return self.propose_here(group, operation).await;
        }
        let mut doubt = None;
        let ended = self.propose_until_told(group, operation, &mut doubt).await;
        match doubt {
            Some(doubt) => ended.map_err(|why| in_doubt(why, &doubt)),
            None => ended,
        }
    }

    /// The same; `doubt` is why the fate of an earlier sending is unknown, if it is.
    async fn propose_until_told(
        &self,
        group: GroupId,
        operation: Operation,
        doubt: &mut Option<Error>,
    ) -> Result<Applied, Error> {
        let clock = Clock::start();
        let patience = Duration::from_millis(self.inner.config.leader_wait_ms);
        let (mut place, mut hint, mut hops) = (None, None, 0);
        loop {
            let leader = self.leader_of(group, hint.take());
            let tried = match leader {
                Leader::Here => self.propose_here(group, operation.clone()).await,
                Leader::At(node) => self.propose_at(node, group, operation.clone()).await,
                Leader::Unknown => Err(Error::NotLeader { leader: None }),
            };
            match tried {
                Err(Error::NotLeader { leader: told }) => {
                    let elsewhere = |node: &NodeId| leader != Leader::At(*node) && *node != self.id();
                    hint = told.filter(elsewhere).filter(|_| hops < HOPS_MAX);
                    hops = if hint.is_some() { hops + 1 } else { 0 };
                }
                Err(why @ Error::Unknown(_)) if operation.numbered.is_some() => {
                    self.inner.stage.waiting_room.count_repeated();
                    *doubt = Some(why);
                }
                ended => return ended,
            }
            if group != GroupId::CATALOG && self.inner.catalog.load().machine_of(group).is_none() {
                return Err(Error::NotFound("the machine was deleted".into()));
            }
            if self.inner.door.is_closed() {
                return Err(door::stopping());
            }
            let used = Duration::from_nanos(clock.elapsed_ns());
            if used >= patience {
                self.inner.stage.waiting_room.count_expired();
                return Err(Error::Unavailable(format!(
                    "no leader of the machine's group was found within {} ms; the request was not done: try \
                     again",
                    patience.as_millis()
                )));
            }
            if hint.is_none() {
                if place.is_none() {
                    place = Some(self.inner.stage.waiting_room.enter(operation.size())?);
                }
                self.inner.stage.waiting_room.wait(patience - used).await;
                self.check_alive()?;
            }
        }
    }

    /// Where clients reach the node that leads a machine, if that is another one and known here: it saves
    /// them the way through this node.
    pub fn leader_elsewhere(&self, machine: &str) -> Option<String> {
        let machine = self.inner.registry.get(machine)?;
        let role = machine.lane()?.role().filter(|role| role.role != Role::Leader)?;
        let catalog = self.inner.catalog.load();
        Some(catalog.nodes.get(&role.leader?)?.client_address.clone())
    }

    /// The node that leads a group, once one does.
    pub(in crate::node) async fn leader_node(&self, group: GroupId) -> Result<NodeId, Error> {
        let clock = Clock::start();
        let patience = Duration::from_millis(self.inner.config.leader_wait_ms);
        loop {
            match self.leader_of(group, None) {
                Leader::Here => return Ok(self.id()),
                Leader::At(node) => return Ok(node),
                Leader::Unknown => {}
            }
            let used = Duration::from_nanos(clock.elapsed_ns());
            if used >= patience {
                return Err(Error::NotLeader { leader: None });
            }
            self.inner.stage.waiting_room.wait(patience - used).await;
        }
    }

    /// `hint` is what was just heard; it goes before what this node believes.
    fn leader_of(&self, group: GroupId, hint: Option<NodeId>) -> Leader {
        let own = self.id();
        let lane = match group {
            GroupId::CATALOG => Some(self.inner.catalog_lane.clone()),
            group => self.inner.registry.by_group(group).and_then(|machine| machine.lane().cloned()),
        };
        let role = lane.as_ref().and_then(|lane| lane.role());
        if lane.as_ref().is_some_and(|lane| lane.halted().is_some()) && self.inner.stage.net.is_some() {
            // It would order what it cannot apply: another replica is about to lead.
            let known = hint.or_else(|| role.and_then(|role| role.leader));
            return known.filter(|node| *node != own).map_or(Leader::Unknown, Leader::At);
        }
        if role.is_some_and(|role| role.role == Role::Leader) {
            return Leader::Here;
        }
        let known = hint.or_else(|| role.and_then(|role| role.leader)).filter(|node| *node != own);
        match known {
            Some(node) => Leader::At(node),
            None if lane.is_none() => self.some_replica(group),
            None => Leader::Unknown,
        }
    }

    /// A node that has a replica of a group of which there is none here: it knows more.
    fn some_replica(&self, group: GroupId) -> Leader {
        let catalog = self.inner.catalog.load();
        let Some(record) = catalog.machine_of(group) else { return Leader::Unknown };
        self.replicas_elsewhere(record).first().map_or(Leader::Unknown, |node| Leader::At(*node))
    }

    /// The nodes of a machine's replicas that can be reached first, then the others.
    pub(in crate::node) fn replicas_elsewhere(&self, record: &MachineRecord) -> Vec<NodeId> {
        let own = self.id();
        let mut nodes: Vec<NodeId> =
            record.replicas.iter().map(|replica| replica.node()).filter(|node| *node != own).collect();
        if let Some(net) = &self.inner.stage.net {
            let silent = net.counters().peers.into_iter().filter(|peer| !peer.connected || peer.silent);
            let silent: Vec<NodeId> = silent.map(|peer| peer.node).collect();
            nodes.sort_by_key(|node| silent.contains(node));
        }
        nodes
    }

    async fn propose_at(
        &self,
        node: NodeId,
        group: GroupId,
        mut operation: Operation,
    ) -> Result<Applied, Error> {
        self.inner.stage.waiting_room.count_forwarded();
        let traced = TraceContext::from_bytes(&operation.trace).map(|context| context.forward(node));
        let span = traced.map(|(span, within)| {
            operation.trace = within.to_bytes();
            span
        });
        let question = Question::Propose(Propose { group: group.0, operation });
        let clock = self.inner.stage.clock;
        let begun_ns = clock.elapsed_ns();
        let answer = self.ask(node, question, ANSWER_PATIENCE).await;
        self.inner.stage.metrics.stages.forward.observe(seconds(clock.elapsed_ns() - begun_ns));
        drop(span);
        answer?.applied()
    }

    /// Has a node that has a replica of the machine answer a query.
    pub(in crate::node) async fn query_elsewhere(
        &self,
        record: &MachineRecord,
        request: Bytes,
        consistency: Consistency,
    ) -> Result<Answered, Error> {
        let query = Query::new(&record.name, request, consistency);
        self.ask_any(record, Question::Query(query)).await?.answered()
    }

    /// Asks a node that has a replica of the machine something that changes nothing.
    pub(in crate::node) async fn ask_any(
        &self,
        record: &MachineRecord,
        question: Question,
    ) -> Result<Answer, Error> {
        let mut last = Error::Unavailable(format!("no other node has a replica of {:?}", record.name));
        // The next node may be asked whatever came of the first.
        for node in self.replicas_elsewhere(record) {
            match self.ask(node, question.clone(), ANSWER_PATIENCE).await {
                Ok(answer) => return Ok(answer),
                Err(why @ (Error::NotLeader { .. } | Error::Unavailable(_) | Error::Unknown(_))) => {
                    last = why;
                }
                Err(why) => return Err(why),
            }
        }
        match last {
            Error::NotLeader { .. } | Error::Unknown(_) => Err(Error::Unavailable(format!(
                "no node with a replica of {:?} answered the query: {last}",
                record.name
            ))),
            other => Err(other),
        }
    }

    /// Asks another node. What certainly did not reach it is `NotLeader`: it may be asked again, or another.
    pub(in crate::node) async fn ask(
        &self,
        node: NodeId,
        question: Question,
        patience: Duration,
    ) -> Result<Answer, Error> {
        let net = self.inner.stage.net.as_ref().ok_or_else(alone)?;
        match net.ask(node, question.into_bytes(), patience).await {
            Ok(reply) => decode_reply(reply),
            Err(AskError::NotSent(why) | AskError::Refused(why)) => {
                tracing::debug!(%node, why, "a question did not reach another node");
                Err(Error::NotLeader { leader: None })
            }
            Err(AskError::Unknown(why)) => Err(Error::Unknown(format!(
                "the request was passed on to node {node}, and whether it was done is unknown: {why}"
            ))),
        }
    }
}

/// What is told of a session's command that was sent again, of which an earlier sending may have been
/// applied: what a later one ended with says nothing about that.
fn in_doubt(why: Error, doubt: &Error) -> Error {
    match why {
        // They say so themselves.
        Error::SessionExpired(_) | Error::NumberPassed(_) | Error::Unknown(_) | Error::Fault(_) => why,
        why => Error::Unknown(format!("{doubt}; it was sent again, and that ended so: {why}")),
    }
}

fn alone() -> Error {
    Error::FailedPrecondition("this node has no peer address: it is alone".into())
}
