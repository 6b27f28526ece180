//! What becomes of the words of other nodes. The peer link calls; nothing here waits.

use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::age::Ages;
use super::words::{Answer, At, Propose, Question, Seed, Transfer, encode_reply};
use crate::catalog::removed;
use crate::error::{Error, Fault};
use crate::id::{Digest, GroupId, Index, NodeId, ReplicaId, Revision};
use crate::machine::outcome::Outcome;
use crate::net::{BulkName, BulkSource, DataAge, Host, NotAdmitted, Refusal};
use crate::node::machine::Machine;
use crate::node::order::Order;
use crate::node::request::Applied;
use crate::node::{Inner, Node};
use crate::raft::{Input, PeerMessage};

/// Stands between the peer link, which is there first, and the node.
#[derive(Default)]
pub struct Gate {
    inner: OnceLock<Weak<Inner>>,
    ages: Ages,
}

impl Gate {
    /// Opens the gate: from now on the node hears what others say.
    pub(in crate::node) fn open(&self, inner: &Arc<Inner>) {
        // Opened once for each link.
        let _ = self.inner.set(Arc::downgrade(inner));
    }

    fn node(&self) -> Option<Node> {
        self.inner.get().and_then(Weak::upgrade).map(|inner| Node { inner })
    }
}

impl Host for Gate {
    fn messages(&self, from: NodeId, messages: Vec<(GroupId, PeerMessage)>) {
        let Some(node) = self.node() else { return };
        let input = |(group, message)| Order::Shard(Input::Message { from, group, message });
        node.inner.stage.orders.send_all(messages.into_iter().map(input));
    }

    fn ask(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        let node = self.node();
        Box::pin(async move {
            let answer = match (node, Question::read(request)) {
                (None, _) => Err(Error::NotLeader { leader: None }),
                (_, Err(why)) => Err(why),
                (Some(node), Ok(question)) => node.answer(from, question).await,
            };
            encode_reply(answer)
        })
    }

    fn silent(&self, node: NodeId) {
        if let Some(own) = self.node() {
            own.inner.stage.orders.send(Order::Shard(Input::NodeSilent(node)));
        }
    }

    fn admit(&self, node: NodeId, age: DataAge) -> Result<(), NotAdmitted> {
        // Before that nobody is heard, and nobody knows who may come.
        let own =
            self.node().ok_or_else(|| NotAdmitted::ForNow("the node is starting or stopping".into()))?;
        let catalog = own.inner.catalog.load();
        if catalog.removed.contains(&node) {
            self.ages.forget(node);
            return Err(NotAdmitted::ForGood(removed(node)));
        }
        self.ages.admit(node, age, &catalog)
    }

    fn turned_away(&self, by: NodeId, refusal: Refusal) {
        match (refusal, self.node()) {
            (Refusal::Removed(why), Some(own)) => own.inner.stage.fail(Fault::new(why)),
            (Refusal::Busy(why), _) => {
                tracing::info!(node = %by, why, "another node is not ready for this one")
            }
            (refusal, _) => tracing::warn!(node = %by, %refusal, "another node does not let this one in"),
        }
    }

    fn open_bulk(&self, _from: NodeId, name: BulkName) -> Result<BulkSource, Error> {
        let starting = || Error::Unavailable("the node is starting".into());
        let node = self.node().ok_or_else(starting)?;
        match name {
            BulkName::Module(digest) => Ok(node.inner.shelf.bytes(digest)?.into()),
            BulkName::Snapshot { group, index } => {
                Ok(node.inner.stage.snapshots.open_outgoing(group, index)?.into())
            }
        }
    }
}

impl Node {
    /// Answers another node.
    async fn answer(&self, from: NodeId, question: Question) -> Result<Answer, Error> {
        self.check_alive()?;
        // A node that stops does not wait for a compilation.
        let _inside = match question {
            Question::CompileModule(_) => None,
            // It is not done here, and perhaps elsewhere.
            _ => Some(self.inner.door.enter().map_err(|_| Error::NotLeader { leader: None })?),
        };
        match question {
            Question::Propose(Propose { group, operation }) => {
                let halted =
                    |machine: Arc<Machine>| machine.lane().is_some_and(|lane| lane.halted().is_some());
                if self.inner.registry.by_group(GroupId(group)).is_some_and(halted) {
                    return Err(Error::NotLeader { leader: None });
                }
                match self.propose_here(GroupId(group), operation).await {
                    Ok(applied) => Ok(applied.into()),
                    // It may be opened here in a moment.
                    Err(Error::NotFound(_)) => Err(Error::NotLeader { leader: None }),
                    Err(why) => Err(why),
                }
            }
            Question::Query(query) => {
                let consistency = query.consistency();
                Ok(self.query_here(&query.machine, query.request, consistency).await?.into())
            }
            Question::TakeModule(digest) => self.take_module(from, digest_of(digest)?).await,
            Question::TakeSnapshot(offer) => {
                self.take_snapshot(from, offer).await?;
                Ok(Answer::Done(()))
            }
            Question::Beacon(group) => {
                let index = self.beacon_here(GroupId(group)).await?;
                let (revision, outcome) = (Revision::default(), Outcome::Ok(Bytes::new()));
                Ok(Applied { index, revision, outcome }.into())
            }
            Question::Stand(At { group, index }) => {
                Ok(Answer::Standing(self.standing_here(GroupId(group), Index(index)).await?))
            }
            Question::Report(()) => Ok(Answer::Report(self.report().await)),
            Question::ReplicaLog(group) => Ok(Answer::ReplicaLog(self.replica_log(GroupId(group)).await?)),
            Question::Reseed(group) => {
                let index = self.reseed_here(GroupId(group)).await?;
                let (revision, outcome) = (Revision::default(), Outcome::Ok(Bytes::new()));
                Ok(Applied { index, revision, outcome }.into())
            }
            Question::Seed(Seed { group, to }) => {
                self.seed(from, GroupId(group), ReplicaId(to)).await?;
                Ok(Answer::Done(()))
            }
            Question::Leases(words) => Ok(Answer::Leases(self.leases_here(&words).await?)),
            Question::Explain(group) => Ok(Answer::Explained(self.explain_here(GroupId(group)).await?)),
            Question::Watch(words) => self.watch_for_other(words).await,
            Question::Compare(question) => Ok(Answer::Compared(self.compare_here(question).await?)),
            Question::Settings(At { group, index }) => {
                Ok(Answer::Settings(self.settings_here(GroupId(group), Index(index)).await?))
            }
            Question::CompileModule(digest) => self.compile_module(from, digest_of(digest)?).await,
            Question::Transfer(Transfer { group, to }) => {
                self.transfer_here(GroupId(group), ReplicaId(to)).await?;
                Ok(Answer::Done(()))
            }
        }
    }
}

fn digest_of(bytes: Vec<u8>) -> Result<Digest, Error> {
    bytes.try_into().map(Digest).map_err(|_| Error::Invalid("a digest has 32 bytes".into()))
}
