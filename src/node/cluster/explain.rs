//! Finds out where a replica that halted left the way of the others, and keeps that.
//!
//! It is found out at the moment of the halt: what this replica remembers stays as it was, because it applies
//! nothing more, and the leader still remembers as much. Where they part is found by the hashes of all
//! batches that both remember; what that batch did on either side is compared by digests. The result goes to
//! disk beside the note that the replica halted, so that it is told later and after restarts too.

use std::sync::Arc;
use std::time::Duration;

use super::words::{Answer, Compare, Compared, Question};
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index, NodeId};
use crate::machine::batch::Batch;
use crate::node::Node;
use crate::node::explanation::{Effects, Explanation};
use crate::node::halt_note::HaltNote;
use crate::node::lane::Lane;
use crate::node::lockstep::{self, Did};

/// How long the leader may take to compare.
const COMPARE_PATIENCE: Duration = Duration::from_secs(5);

/// How often, and at which interval, a leader is looked for right after the halt. What the others remember
/// lasts as long as it takes to fill it again.
const TRIES: u32 = 30;
const TRY_INTERVAL: Duration = Duration::from_millis(500);

impl Node {
    /// Why the replica of a machine on a node, called by its name or id, has halted, and where it left the
    /// way of the others.
    ///
    /// # Errors
    /// `NotFound` for the machine or the node; `FailedPrecondition` if the node has no replica, or it is not
    /// halted; `Unavailable` if the node or the leader cannot be asked now.
    pub async fn explain_machine(&self, name: &str, node: &str) -> Result<Explanation, Error> {
        let (record, target) = self.replica_called(name, node).await?;
        if target == self.id() {
            return self.explain_here(record.group()).await;
        }
        let patience = COMPARE_PATIENCE + Duration::from_millis(self.inner.config.leader_wait_ms);
        match self.ask_replica(node, target, Question::Explain(record.group), patience).await? {
            Answer::Explained(explanation) => Ok(explanation),
            _ => Err(Error::Unknown("the node gave another answer than was asked for".into())),
        }
    }

    /// The same of this node's replica of a group.
    pub(in crate::node) async fn explain_here(&self, group: GroupId) -> Result<Explanation, Error> {
        let missing = || Error::Unavailable("the replica is not open on its node: try again".into());
        let machine = self.inner.registry.by_group(group).ok_or_else(missing)?;
        let lane = machine.lane().ok_or_else(missing)?.clone();
        let Some(why) = lane.halted() else {
            return Err(Error::FailedPrecondition(format!(
                "the replica of {0:?} on this node is not halted: there is nothing to explain. `statehouse \
                 machine verify {0}` compares it with the others now",
                machine.record.name
            )));
        };
        let note = self.halt_note(&lane).await?;
        match note {
            Some(HaltNote { explanation: Some(explanation), .. }) => Ok(explanation),
            Some(HaltNote { why, contradicted: Some(at), .. }) => {
                // What is told once is told later too.
                let found = self.compare_with_leader(&lane, &why, Index(at)).await?;
                self.keep_explanation(lane, found.clone()).await?;
                Ok(found)
            }
            _ => Ok(Explanation::unknown(
                &why,
                "it did not halt because it differs from the others: it was not compared",
            )),
        }
    }

    /// Finds out why a replica differs that has just halted, and keeps it.
    pub(super) async fn explain_halt(self, group: GroupId) {
        let machine = self.inner.registry.by_group(group);
        let Some(lane) = machine.as_ref().and_then(|machine| machine.lane()).cloned() else { return };
        for _ in 0..TRIES {
            let note = match self.halt_note(&lane).await {
                Ok(Some(note)) => note,
                // It was reseeded meanwhile.
                Ok(None) => return,
                Err(why) => {
                    return tracing::warn!(%group, %why, "why the machine differs was not found out");
                }
            };
            let Some(at) = note.contradicted.filter(|_| note.explanation.is_none()) else { return };
            match self.compare_with_leader(&lane, &note.why, Index(at)).await {
                Ok(explanation) => {
                    tracing::warn!(%group, differed = ?explanation.differed_index(), "where the machine left \
                        the way of the others: see `statehouse machine explain`");
                    if let Err(fault) = self.keep_explanation(lane, explanation).await {
                        self.inner.stage.fail(fault);
                    }
                    return;
                }
                Err(why) => tracing::debug!(%group, %why, "the leader was not asked why: again later"),
            }
            tokio::time::sleep(TRY_INTERVAL).await;
        }
        tracing::warn!(%group, "no leader was found to compare the halted machine with");
    }

    async fn halt_note(&self, lane: &Lane) -> Result<Option<HaltNote>, Error> {
        let (stage, group) = (self.inner.stage.clone(), lane.group);
        let read = tokio::task::spawn_blocking(move || stage.state.halted_note(group)).await;
        let read = read.map_err(|e| Fault::new(format!("reading a note panicked: {e}")))??;
        Ok(read.map(|bytes| HaltNote::read(&bytes)))
    }

    /// Only beside the note of the same halt: a snapshot may have taken its place meanwhile.
    async fn keep_explanation(&self, lane: Arc<Lane>, explanation: Explanation) -> Result<(), Fault> {
        let stage = self.inner.stage.clone();
        let kept = tokio::task::spawn_blocking(move || {
            // Held, so that no snapshot is installed between.
            let _applier = lane.applier();
            match stage.state.halted_note(lane.group)? {
                None => Ok(()),
                Some(bytes) => {
                    let note = HaltNote { explanation: Some(explanation), ..HaltNote::read(&bytes) };
                    stage.state.note_halted(lane.group, &note.encode())
                }
            }
        });
        kept.await.map_err(|e| Fault::new(format!("keeping an explanation panicked: {e}")))?
    }

    /// Compares what this replica remembers with what the leader does. `at` is an index at which they differ.
    async fn compare_with_leader(
        &self,
        lane: &Arc<Lane>,
        why: &str,
        at: Index,
    ) -> Result<Explanation, Error> {
        let group = lane.group;
        let leader = self.leader_node(group).await?;
        if leader == self.id() {
            return Err(Error::Unavailable("the replica still leads: another one is about to".into()));
        }
        let ours =
            blocking(lane.clone(), |lane| Compare::new(lane.group, lane.applier().lockstep().passed()))
                .await?;
        let compared = match self.ask(leader, Question::Compare(ours), COMPARE_PATIENCE).await {
            Ok(Answer::Compared(compared)) => compared,
            Ok(_) => return Err(Error::Unknown("the leader gave another answer than was asked for".into())),
            Err(Error::NotLeader { .. }) => {
                return Err(Error::Unavailable("the leader cannot be asked now: try again".into()));
            }
            Err(why) => return Err(why),
        };
        let why = why.to_owned();
        blocking(lane.clone(), move |lane| explain(&lane, &why, at, leader, compared)).await
    }

    /// For another replica of a group that this node leads: where their ways part, and what this one did
    /// there.
    pub(in crate::node) async fn compare_here(&self, question: Compare) -> Result<Compared, Error> {
        let missing = || Error::NotLeader { leader: None };
        let machine = self.inner.registry.by_group(GroupId(question.group)).ok_or_else(missing)?;
        let lane = machine.serving()?.lane.clone();
        blocking(lane, move |lane| {
            let applier = lane.applier();
            let ours = applier.lockstep();
            let (agreed, differed) = lockstep::parting(question.passed(), ours.passed());
            let effects = differed.and_then(|at| ours.did(at)).map(|did| Effects::of(&did.applied));
            Compared::new(agreed, differed, effects)
        })
        .await
    }
}

/// What follows from the leader's side.
fn explain(lane: &Lane, why: &str, at: Index, leader: NodeId, compared: Compared) -> Explanation {
    let (agreed, differed) = compared.parting();
    let mut explanation = Explanation::of(why, leader, agreed, Some(differed.unwrap_or(at)));
    let applier = lane.applier();
    let here = differed.and_then(|at| applier.lockstep().did(at));
    if let Some(Did { batch, .. }) = here
        && let Ok(batch) = Batch::read(batch.clone())
    {
        explanation.set_operations(&batch);
    }
    match (here, compared.effects) {
        (Some(did), Some(theirs)) => explanation.compare(&Effects::of(&did.applied), &theirs),
        (None, _) => explanation.unknown = forgotten("this replica", differed),
        (_, None) => explanation.unknown = forgotten("the leader", differed),
    }
    explanation
}

fn forgotten(who: &str, differed: Option<Index>) -> String {
    match differed {
        Some(index) => format!(
            "what {who} did at index {index} is no longer known: its node was restarted since, or much was \
             written"
        ),
        None => {
            "none of the batches whose hashes both remember differs: they parted before that, or one of the \
                 nodes was restarted since"
                .into()
        }
    }
}

/// Waits for the batch at hand, on a thread that may.
async fn blocking<T: Send + 'static>(
    lane: Arc<Lane>,
    work: impl FnOnce(Arc<Lane>) -> T + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(move || work(lane)).await;
    done.map_err(|e| Fault::new(format!("comparing replicas panicked: {e}")).into())
}
