//! Commands from their arrival to their fate.
//!
//! What arrives gathers into batches; a batch goes into the log when the group's turn comes; from then on it
//! is in flight, until the entry committed at its index is its own (it will be applied) or another's (it is
//! lost). A command is held, and counts against the limits, until it is applied, refused or lost.

use std::collections::VecDeque;

use crate::id::{Index, Term};
use crate::machine::batch::Operation;
use crate::raft::input::ProposalId;
use crate::raft::output::ProposeError;
use crate::raft::shard::ShardConfig;

/// What a held operation costs besides its own bytes: ids, queues, framing. Keeps empty ones from being free.
const OVERHEAD_BYTES: usize = 64;

/// A batch that has not gone into the log yet.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Who proposed the operations, one id each.
    pub(super) ids: Vec<ProposalId>,
    /// The operations.
    pub(super) operations: Vec<Operation>,
    /// Their size.
    bytes: usize,
    /// Whether its one operation must have no other beside it.
    is_alone: bool,
}

/// A batch in the log whose fate is open.
#[derive(Debug)]
struct InFlight {
    index: Index,
    term: Term,
    ids: Vec<ProposalId>,
    /// What it holds of the budget.
    held_bytes: usize,
}

/// All of one group's commands.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    /// Full batches, and at the end the one that gathers.
    gathered: VecDeque<Gathered>,
    /// By index; after changes of leader an index may occur twice, with different terms.
    in_flight: VecDeque<InFlight>,
    /// Committed batches and what they hold, until they are applied.
    committed: VecDeque<(Index, usize)>,
    /// What all of these hold.
    held_bytes: usize,
    /// Since when this replica waits to learn what another leader made of its batches.
    doubt_since_ms: Option<u64>,
}

impl Gathered {
    /// What it holds of the budget.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes + self.ids.len() * OVERHEAD_BYTES
    }

    fn has_room_for(&self, bytes: usize, config: &ShardConfig) -> bool {
        !self.is_alone
            && self.ids.len() < config.batch_operations_max
            && self.bytes + bytes <= config.batch_bytes_max
    }
}

impl Proposals {
    /// What is held.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Batches that went into the log and are not applied, as far as is known.
    pub(super) fn unapplied(&self) -> usize {
        self.in_flight.len() + self.committed.len()
    }

    /// Whether batches of an earlier leadership await their fate.
    pub(super) fn in_doubt(&self) -> bool {
        self.doubt_since_ms.is_some()
    }

    /// Adds a command to the gathering batch, if the group may hold more.
    pub(super) fn gather(
        &mut self,
        id: ProposalId,
        operation: Operation,
        bytes: usize,
        config: &ShardConfig,
    ) -> Result<(), ProposeError> {
        if bytes > config.batch_bytes_max {
            return Err(ProposeError::TooLarge { bytes, bytes_max: config.batch_bytes_max });
        }
        let cost = bytes + OVERHEAD_BYTES;
        if self.held_bytes + cost > config.group_held_bytes_max {
            let bytes_max = config.group_held_bytes_max;
            return Err(ProposeError::Overloaded { held_bytes: self.held_bytes, bytes_max });
        }
        let is_alone = operation.is_alone();
        if is_alone || !self.gathered.back().is_some_and(|last| last.has_room_for(bytes, config)) {
            self.gathered.push_back(Gathered { is_alone, ..Gathered::default() });
        }
        if let Some(last) = self.gathered.back_mut() {
            last.ids.push(id);
            last.operations.push(operation);
            last.bytes += bytes;
        }
        self.held_bytes += cost;
        Ok(())
    }

    /// The next batch to go into the log.
    pub(super) fn next_batch(&mut self) -> Option<Gathered> {
        self.gathered.pop_front()
    }

    /// A batch taken by [`next_batch`](Self::next_batch) goes into the log at this index. Said before the
    /// engine is asked to take it, so that no command is forgotten if the engine breaks.
    pub(super) fn sent(&mut self, index: Index, term: Term, ids: Vec<ProposalId>, held_bytes: usize) {
        self.in_flight.push_back(InFlight { index, term, ids, held_bytes });
    }

    /// The batch said to be [`sent`](Self::sent) last was not taken.
    pub(super) fn not_sent(&mut self) -> Vec<ProposalId> {
        let Some(batch) = self.in_flight.pop_back() else { return Vec::new() };
        self.held_bytes -= batch.held_bytes;
        batch.ids
    }

    /// Gives back everything that has not gone into the log.
    pub(super) fn give_up_gathered(&mut self) -> Vec<ProposalId> {
        let mut ids = Vec::new();
        for batch in self.gathered.drain(..) {
            self.held_bytes -= batch.held_bytes();
            ids.extend(batch.ids);
        }
        ids
    }

    /// This entry is committed. Gives back the proposals that had hoped for its place.
    pub(super) fn commit(&mut self, index: Index, term: Term) -> Vec<ProposalId> {
        let mut lost = Vec::new();
        if self.in_flight.front().is_none_or(|front| front.index > index) && self.doubt_since_ms.is_none() {
            return lost;
        }
        // An index occurs twice, or in the wrong order, only after changes of leader: few batches, rarely.
        let mut open = VecDeque::with_capacity(self.in_flight.len());
        for batch in self.in_flight.drain(..) {
            if batch.index != index {
                open.push_back(batch);
            } else if batch.term == term {
                self.committed.push_back((index, batch.held_bytes));
            } else {
                self.held_bytes -= batch.held_bytes;
                lost.extend(batch.ids);
            }
        }
        self.in_flight = open;
        if self.in_flight.is_empty() {
            self.doubt_since_ms = None;
        }
        lost
    }

    /// Everything up to this index is applied.
    pub(super) fn applied(&mut self, index: Index) {
        while let Some(&(first, held_bytes)) = self.committed.front()
            && first <= index
        {
            self.committed.pop_front();
            self.held_bytes -= held_bytes;
        }
    }

    /// This replica no longer leads: what is in flight is another leader's to decide.
    pub(super) fn doubt(&mut self, now_ms: u64) {
        if !self.in_flight.is_empty() {
            self.doubt_since_ms.get_or_insert(now_ms);
        }
    }

    /// Gives up waiting for the fate of batches from before `term`, if it was too long.
    pub(super) fn give_up_doubt(&mut self, now_ms: u64, wait_ms: u64, term: Option<Term>) -> Vec<ProposalId> {
        match self.doubt_since_ms {
            Some(since_ms) if now_ms.saturating_sub(since_ms) >= wait_ms => self.give_up_in_flight(term),
            _ => Vec::new(),
        }
    }

    /// Gives back what is in flight, except for batches of `term`.
    pub(super) fn give_up_in_flight(&mut self, term: Option<Term>) -> Vec<ProposalId> {
        let mut ids = Vec::new();
        let (open, given_up): (VecDeque<_>, VecDeque<_>) =
            self.in_flight.drain(..).partition(|batch| Some(batch.term) == term);
        for batch in given_up {
            self.held_bytes -= batch.held_bytes;
            ids.extend(batch.ids);
        }
        self.in_flight = open;
        self.doubt_since_ms = None;
        ids
    }
}
