//! What the log thread has been given and has not reported, and what must wait for it.
//!
//! Promises: a message that vouches for something on this disk is given back only when the write is synced
//! that holds it; and nothing is said in a term before that term is on disk.

use std::collections::VecDeque;

use crate::id::Term;
use crate::storage::entry::HardState;

/// A write that is not synced, as far as is known.
#[derive(Debug)]
struct Write<M> {
    /// As the log thread calls it.
    number: u64,
    /// The engine's last ready that is done when this write is.
    covers: u64,
    /// The term that is on disk when this write is.
    term: Term,
    /// How many batches are in it.
    batches: usize,
    /// What may be sent only then.
    messages: Vec<M>,
}

/// What a sync made possible.
pub(super) struct Synced<M> {
    /// The engine's last ready that is done now.
    pub(super) ready: u64,
    /// What may be sent now.
    pub(super) messages: Vec<M>,
}

/// One group's writes under way; `M` is a message that may have to wait for them.
#[derive(Debug)]
pub(super) struct Unsynced<M> {
    /// In the order of their numbers.
    writes: VecDeque<Write<M>>,
    /// Batches that the engine has, but no write yet.
    batches_unwritten: usize,
    /// Changed since it was last written. Waits for a write that is needed anyway if only its commit index
    /// changed.
    hard_state: Option<HardState>,
    /// The term that is on disk.
    durable_term: Term,
}

impl<M> Unsynced<M> {
    /// Nothing under way; this term is on disk.
    pub(super) fn new(durable_term: Term) -> Unsynced<M> {
        Unsynced { writes: VecDeque::new(), batches_unwritten: 0, hard_state: None, durable_term }
    }

    /// Whether everything is synced.
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// How many batches are not synced.
    pub(super) fn batches(&self) -> usize {
        self.writes.iter().map(|write| write.batches).sum::<usize>() + self.batches_unwritten
    }

    /// The term that is on disk.
    pub(super) fn durable_term(&self) -> Term {
        self.durable_term
    }

    /// The engine took a batch.
    pub(super) fn add_batch(&mut self) {
        self.batches_unwritten += 1;
    }

    /// The engine's hard state changed.
    pub(super) fn set_hard_state(&mut self, state: HardState) {
        self.hard_state = Some(state);
    }

    /// A write goes to the log thread. Gives back the hard state that goes with it.
    pub(super) fn push(
        &mut self,
        number: u64,
        ready: u64,
        term: Term,
        messages: Vec<M>,
    ) -> Option<HardState> {
        let batches = std::mem::take(&mut self.batches_unwritten);
        self.writes.push_back(Write { number, covers: ready, term, batches, messages });
        self.hard_state.take()
    }

    /// A ready that needs no write is done with the last write under way; at once if there is none.
    pub(super) fn follow(&mut self, ready: u64, messages: Vec<M>) -> Option<Synced<M>> {
        let Some(last) = self.writes.back_mut() else { return Some(Synced { ready, messages }) };
        last.covers = ready;
        last.messages.extend(messages);
        None
    }

    /// The log thread has synced everything up to this write. None if that is no news.
    pub(super) fn synced(&mut self, number: u64) -> Option<Synced<M>> {
        let mut synced = None::<Synced<M>>;
        while let Some(write) = self.writes.pop_front_if(|write| write.number <= number) {
            self.durable_term = self.durable_term.max(write.term);
            let mut messages = synced.map_or_else(Vec::new, |earlier| earlier.messages);
            messages.extend(write.messages);
            synced = Some(Synced { ready: write.covers, messages });
        }
        synced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_write_waits_for_the_last_one_under_way() {
        let mut unsynced = Unsynced::new(Term(1));
        assert_eq!(unsynced.follow(1, vec!["a"]).unwrap().messages, ["a"], "nothing is under way");
        unsynced.push(10, 2, Term(2), vec!["b"]);
        unsynced.push(11, 3, Term(2), vec!["c"]);
        assert!(unsynced.follow(4, vec!["d"]).is_none());
        assert!(unsynced.synced(9).is_none());
        let first = unsynced.synced(10).unwrap();
        assert_eq!((first.ready, first.messages), (2, vec!["b"]));
        let second = unsynced.synced(99).unwrap();
        assert_eq!((second.ready, second.messages), (4, vec!["c", "d"]));
        assert!(unsynced.is_empty() && unsynced.durable_term() == Term(2));
    }

    #[test]
    fn a_changed_hard_state_goes_with_the_next_write_and_only_once() {
        let mut unsynced = Unsynced::<()>::new(Term(1));
        let state = HardState { term: Term(1), ..HardState::default() };
        unsynced.set_hard_state(state);
        unsynced.add_batch();
        assert_eq!(unsynced.push(1, 1, Term(1), vec![]), Some(state));
        assert_eq!(unsynced.push(2, 2, Term(1), vec![]), None);
        assert_eq!(unsynced.batches(), 1);
        unsynced.synced(2);
        assert_eq!(unsynced.batches(), 0);
    }
}
