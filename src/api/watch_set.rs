//! The watches of one stream, whatever its protocol: begun, ended, asked how far they are, and heard, all
//! from the task that the stream is driven by.
//!
//! Promises: a watch is asked for its next word only after its last one was taken, so who does not read
//! holds at most one revision for each watch; a word of a watch that was ended never comes.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::{FuturesUnordered, Stream};

use crate::error::Error;
use crate::id::Revision;
use crate::node::request::Watched;
use crate::node::watches::{Watch, WatchAsker};

/// What came of a watch.
pub enum Word {
    /// It has begun, with this revision.
    Began(Revision),
    /// What it tells.
    Told(Watched),
    /// It has ended, or did not begin.
    Ended(Error),
}

enum Turn {
    Began(Result<Watch, Error>),
    Told(Watch, Result<Watched, Error>),
}

struct Known {
    abort: AbortHandle,
    /// None until it has begun.
    asker: Option<WatchAsker>,
    /// Whether it is to be asked how far it is when it has begun.
    progress_wanted: bool,
}

/// Watches by the ids that they have on their stream.
pub struct WatchSet<Id> {
    known: HashMap<Id, Known>,
    /// The next turn of each.
    turns: FuturesUnordered<Abortable<BoxFuture<'static, (Id, Turn)>>>,
}

impl<Id: Copy + Eq + std::hash::Hash + Send + 'static> WatchSet<Id> {
    /// None yet.
    pub fn new() -> WatchSet<Id> {
        WatchSet { known: HashMap::new(), turns: FuturesUnordered::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether one has this id.
    pub fn contains(&self, id: Id) -> bool {
        self.known.contains_key(&id)
    }

    /// Their ids.
    pub fn ids(&self) -> impl Iterator<Item = Id> + '_ {
        self.known.keys().copied()
    }

    /// Takes in a watch that is about to begin, under an id that none has.
    pub fn begin(&mut self, id: Id, watch: impl Future<Output = Result<Watch, Error>> + Send + 'static) {
        let abort = self.take_turn(Box::pin(async move { (id, Turn::Began(watch.await)) }));
        self.known.insert(id, Known { abort, asker: None, progress_wanted: false });
    }

    /// Ends a watch. False: there is none of this id.
    pub fn end(&mut self, id: Id) -> bool {
        let known = self.known.remove(&id);
        known.inspect(|known| known.abort.abort()).is_some()
    }

    /// Ends all of them.
    pub fn end_all(&mut self) {
        self.known.clear();
        self.turns.clear();
    }

    /// Has a watch tell how far it is, once it has told everything before. False: there is none of this id.
    pub fn ask_progress(&mut self, id: Id) -> bool {
        match self.known.get_mut(&id) {
            Some(Known { asker: Some(asker), .. }) => asker.want_progress(),
            Some(known) => known.progress_wanted = true,
            None => return false,
        }
        true
    }

    fn take_turn(&mut self, turn: BoxFuture<'static, (Id, Turn)>) -> AbortHandle {
        let (abort, registration) = AbortHandle::new_pair();
        self.turns.push(Abortable::new(turn, registration));
        abort
    }

    fn came_to(&mut self, id: Id, turn: Turn) -> Option<Word> {
        let known = self.known.get_mut(&id)?;
        let (mut watch, word) = match turn {
            Turn::Began(Ok(watch)) => {
                let asker = watch.asker();
                if known.progress_wanted {
                    asker.want_progress();
                }
                known.asker = Some(asker);
                let first = watch.first();
                (watch, Word::Began(first))
            }
            Turn::Told(watch, Ok(told)) => (watch, Word::Told(told)),
            Turn::Began(Err(why)) | Turn::Told(_, Err(why)) => {
                self.known.remove(&id);
                return Some(Word::Ended(why));
            }
        };
        let abort = self.take_turn(Box::pin(async move {
            let told = watch.next().await;
            (id, Turn::Told(watch, told))
        }));
        if let Some(known) = self.known.get_mut(&id) {
            known.abort = abort;
        }
        Some(word)
    }

    /// The next word of any of them; none while there are no watches.
    pub fn poll_word(&mut self, context: &mut Context<'_>) -> Poll<Option<(Id, Word)>> {
        loop {
            match Pin::new(&mut self.turns).poll_next(context) {
                Poll::Ready(Some(Ok((id, turn)))) => {
                    if let Some(word) = self.came_to(id, turn) {
                        return Poll::Ready(Some((id, word)));
                    }
                }
                // It was ended.
                Poll::Ready(Some(Err(_aborted))) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
