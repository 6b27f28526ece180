//! Watches of machines without a replica here: a node that has one is asked again and again what comes next.
//!
//! Each question names the next revision, and its answer the one after it; so an answer that is lost, or a
//! node that fails, costs a question and no event. The promises are those of the watches of a replica.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Notify;

use super::words::{Answer, Question, WatchWords, WatchedWords};
use crate::error::Error;
use crate::id::Revision;
use crate::machine::event::Event;
use crate::node::Node;
use crate::node::machine::Closed;
use crate::node::watches::Told;
use crate::watch::{Revised, Selection};

/// How long a node that is asked waits for something to tell.
const WAIT_MS: u64 = 5_000;

/// How much longer its answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of events in an answer, about: whole revisions, at least one.
const ANSWER_BYTES: usize = 256 << 10;

/// How long it waits when no node has answered.
const PAUSE: Duration = Duration::from_millis(200);

/// How often all nodes are asked before the watch ends.
const ROUNDS_MAX: u32 = 25;

/// A watch of a machine without a replica here.
pub(in crate::node) struct RemoteWatch {
    node: Node,
    machine: String,
    selection: Selection,
    next: Revision,
    told: VecDeque<Revised>,
    /// What comes after those.
    told_next: Revision,
    asked: Arc<Notify>,
    /// Whether it is to say how far it is.
    progress_wanted: bool,
}

impl RemoteWatch {
    /// Begins it, at a node that has a replica.
    ///
    /// # Errors
    /// As of [`Node::watch`].
    pub async fn begin(
        node: Node,
        machine: &str,
        selection: Selection,
        from: Option<Revision>,
    ) -> Result<RemoteWatch, Error> {
        let next = from.unwrap_or_default();
        let mut watch = RemoteWatch {
            node,
            machine: machine.to_owned(),
            selection,
            next,
            told: VecDeque::new(),
            told_next: next,
            asked: Arc::default(),
            progress_wanted: false,
        };
        watch.first_question().await?;
        Ok(watch)
    }

    async fn first_question(&mut self) -> Result<(), Error> {
        let answer = self.ask(0).await?;
        if self.next == Revision::default() {
            // From now on: the answer says when that was.
            self.next = answer.begun();
        }
        self.take(answer)
    }

    /// The next revision that it has not told of.
    pub fn next_revision(&self) -> Revision {
        self.next
    }

    /// Notified to have it say how far it is.
    pub fn asked(&self) -> Arc<Notify> {
        self.asked.clone()
    }

    /// Waits for what is to be told next. May be dropped while it waits, without loss.
    pub async fn next(&mut self) -> Result<Told, Error> {
        loop {
            if let Some(revised) = self.told.pop_front() {
                self.next = revised.revision.next();
                return Ok(Told::Events(revised));
            }
            self.next = self.next.max(self.told_next);
            if self.asked.notified().now_or_never().is_some() {
                self.progress_wanted = true;
            }
            let asked = self.asked.clone();
            let wait_ms = if self.progress_wanted { 0 } else { WAIT_MS };
            let answer = tokio::select! {
                answer = self.ask(wait_ms) => answer?,
                // The question is asked again, and this time it is not waited for.
                () = asked.notified() => {
                    self.progress_wanted = true;
                    continue;
                }
            };
            let complete = answer.complete;
            self.take(answer)?;
            if self.told.is_empty() && complete && std::mem::take(&mut self.progress_wanted) {
                self.next = self.next.max(self.told_next);
                return Ok(Told::Progress(Revision(self.next.0 - 1)));
            }
        }
    }

    fn take(&mut self, answer: WatchedWords) -> Result<(), Error> {
        self.told_next = self.told_next.max(answer.next());
        self.told = answer.revised().filter(|revised| revised.revision >= self.next).collect();
        Ok(())
    }

    /// Asks the nodes that have a replica, one after another.
    async fn ask(&self, wait_ms: u64) -> Result<WatchedWords, Error> {
        let mut last = Error::Unavailable(format!("no other node has a replica of {:?}", self.machine));
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let machine = self.node.find(&self.machine).await?;
            for node in self.node.replicas_elsewhere(&machine.record) {
                let words = WatchWords::new(&self.machine, &self.selection, self.next, wait_ms);
                let patience = Duration::from_millis(wait_ms) + PATIENCE;
                match self.node.ask(node, Question::Watch(words), patience).await {
                    Ok(answer) => return answer.watched(),
                    Err(
                        why @ (Error::NotLeader { .. }
                        | Error::Unavailable(_)
                        | Error::Unknown(_)
                        | Error::DeadlineExceeded(_)),
                    ) => {
                        last = why;
                    }
                    Err(why) => return Err(why),
                }
            }
        }
        Err(Error::Unavailable(format!(
            "no node with a replica of {:?} answers: {last}; watch on from the next revision",
            self.machine
        )))
    }
}

impl Node {
    /// Answers another node's question what comes next of a watch.
    pub(super) async fn watch_for_other(&self, words: WatchWords) -> Result<Answer, Error> {
        let found = self.find_ready(&words.machine).await?;
        if matches!(&found.open, Err(Closed::Elsewhere | Closed::Waiting)) {
            return Err(Error::NotLeader { leader: None });
        }
        let mut watch = self.watch_here(&found, words.selection()?, words.from()).await?;
        let begun = watch.first();
        let (mut told, mut bytes, mut next, mut complete) = (Vec::new(), 0, begun, false);
        let wait = Duration::from_millis(words.wait_ms.min(WAIT_MS));
        let mut over = std::pin::pin!(tokio::time::sleep(wait));
        let mut leaves = std::pin::pin!(self.leaves());
        while !complete && bytes < ANSWER_BYTES {
            let word = tokio::select! {
                biased;
                word = watch.next() => word?,
                () = leaves.as_mut() => return Err(Error::NotLeader { leader: None }),
                () = over.as_mut(), if told.is_empty() => {
                    over.as_mut().set(tokio::time::sleep(PATIENCE));
                    watch.asker().want_progress();
                    continue;
                }
            };
            match word {
                Told::Events(revised) => {
                    if told.is_empty() {
                        // What else is there goes along, and then how far that is.
                        watch.asker().want_progress();
                    }
                    next = revised.revision.next();
                    bytes += revised
                        .events
                        .iter()
                        .map(|event: &Event| event.key.len() + event.value.len() + 64)
                        .sum::<usize>();
                    told.push(revised);
                }
                Told::Progress(revision) => (next, complete) = (revision.next(), true),
            }
        }
        Ok(Answer::Watched(WatchedWords::new(begun, told, next, complete)))
    }
}
