//! What the heart makes of the committed log: the same on every node, so it is done once.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::id::{Digest, Index, LogTime, Revision, Term};
use crate::machine::apply;
use crate::machine::batch::{Act, Batch, Expire, Head, Operation};
use crate::machine::event::{self, Event};
use crate::machine::lease;
use crate::machine::outcome::OutcomeAt;
use crate::machine::tests::guest::ScriptedGuest;
use crate::machine::view::{MemoryView, Table};
use crate::node::simulation::mistake::Mistake;
use crate::raft::simulation::Rng;
use crate::raft::simulation::tenant::{Asked, Token, Wish};
use crate::storage::entry::{Entry, EntryKind};

/// Leases that one operation ends, at most: few, so that many operations are needed.
const EXPIRE_MAX: usize = 6;

/// The machine, as of the last committed entry.
pub(super) struct Truth {
    head: Head,
    rows: MemoryView,
    /// By index, and place in the batch.
    outcomes: BTreeMap<(Index, usize), OutcomeAt>,
    /// All events ever.
    events: Vec<Event>,
    /// The rows of events ever written, by the index of their batch.
    event_rows: BTreeMap<Index, Vec<EventRow>>,
    /// The revision, and the first one kept, after each entry.
    revisions: BTreeMap<Index, (Revision, Revision)>,
    expires: bool,
}

/// A row of events, with its key.
pub(super) type EventRow = (Vec<u8>, Bytes);

/// What an entry did.
pub(super) struct Done<'t> {
    pub(super) index: Index,
    pub(super) term: Term,
    pub(super) time: LogTime,
    pub(super) begins_term: bool,
    /// The tenant's operations, with their outcomes.
    pub(super) operations: Vec<(Operation, OutcomeAt)>,
    pub(super) events: &'t [Event],
    /// The leases that there are now.
    pub(super) leases: Vec<u64>,
}

impl Default for Truth {
    fn default() -> Truth {
        Truth {
            // As if it had been created before the first entry.
            head: Head { module: Some(Digest([7; 32])), ..Head::default() },
            rows: MemoryView::default(),
            outcomes: BTreeMap::new(),
            events: Vec::new(),
            event_rows: BTreeMap::new(),
            revisions: BTreeMap::new(),
            expires: true,
        }
    }
}

impl Truth {
    /// Applies the next entry. Nothing comes of one that carries no batch.
    pub(super) fn apply(&mut self, entry: &Entry, mistake: Option<Mistake>) -> Option<Done<'_>> {
        self.expires = mistake != Some(Mistake::ForgetExpiry);
        if entry.kind != EntryKind::Batch || entry.data.is_empty() {
            self.head.index = entry.index;
            self.note_revision();
            return None;
        }
        let mut batch = Batch::read(entry.data.clone()).expect("a committed batch reads");
        let begins_term = batch.begins_term;
        batch.begins_term &= mistake != Some(Mistake::ForgetTerm);
        // Plain clients say nothing that this machine understands.
        let mut places = Vec::new();
        let mut own = Vec::new();
        for (place, mut operation) in std::mem::take(&mut batch.operations).into_iter().enumerate() {
            if !operation.trace.is_empty() {
                if mistake == Some(Mistake::ApplyAgain) {
                    operation.numbered = None;
                }
                places.push(place);
                own.push(operation);
            }
        }
        batch.operations = own;
        let before = Arc::new(std::mem::take(&mut self.rows));
        let applied =
            apply::stored(&self.head, entry.index, &batch, before.clone(), &mut ScriptedGuest::default());
        let applied = applied.expect("the scripted guest has no faults");
        self.rows = Arc::into_inner(before).expect("no guest keeps its view");
        let first = self.events.len();
        for write in applied.writes {
            if write.table == Table::Events
                && let Some(row) = &write.value
            {
                self.events.extend(event::read_row(&write.key, row.clone()).expect("a row of events"));
                self.event_rows.entry(entry.index).or_default().push((write.key.clone(), row.clone()));
            }
            self.rows.put(write.table, write.key, write.value);
        }
        self.head = applied.head;
        self.note_revision();
        for (place, first) in places.into_iter().zip(&applied.outcomes) {
            self.outcomes.insert((entry.index, place), first.clone());
        }
        Some(Done {
            index: entry.index,
            term: entry.term,
            time: self.head.time,
            begins_term,
            operations: batch.operations.into_iter().zip(applied.outcomes).collect(),
            events: &self.events[first..],
            leases: lease::ids_after(&self.rows, 0, usize::MAX).expect("memory has no faults"),
        })
    }

    /// What became of an operation.
    pub(super) fn outcome(&self, index: Index, place: usize) -> &OutcomeAt {
        &self.outcomes[&(index, place)]
    }

    /// All events ever.
    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    fn note_revision(&mut self) {
        let (revision, first) = (self.head.revision, self.head.history_first);
        self.revisions.insert(self.head.index, (revision, first));
    }

    /// The last revision after an entry, and the first one that is kept.
    pub(super) fn revisions_at(&self, index: Index) -> (Revision, Revision) {
        self.revisions.get(&index).copied().unwrap_or((Revision::FIRST, Revision::FIRST))
    }

    /// The rows of events that an entry wrote.
    pub(super) fn rows_of(&self, index: Index) -> &[EventRow] {
        self.event_rows.get(&index).map_or(&[], Vec::as_slice)
    }

    /// The rows of events that a node has that has applied up to an entry.
    pub(super) fn history_at(&self, index: Index) -> MemoryView {
        let mut view = MemoryView::default();
        for (key, row) in self.event_rows.range(..=index).flat_map(|(_, rows)| rows) {
            view.put(Table::Events, key.clone(), Some(row.clone()));
        }
        view
    }

    /// What a leader wants by itself: that history is given up, and the end of leases that are due by its
    /// clock.
    pub(super) fn want(
        &self,
        asked: &Asked,
        rng: &mut Rng,
        token: &mut dyn FnMut() -> Token,
        wishes: &mut Vec<Wish>,
    ) {
        let Some(clock) = asked.leader_clock else { return };
        if asked.busy && rng.one_in(150) {
            // All but a few revisions are too much.
            let first = self.head.revision.0.saturating_sub(rng.below(12));
            wishes.push(Wish { token: token(), operation: Act::Trim(first).into() });
        }
        if !self.expires || !rng.one_in(4) {
            return;
        }
        let leases = lease::due(&self.rows, clock.0, EXPIRE_MAX).expect("memory has no faults");
        if !leases.is_empty() {
            wishes.push(Wish { token: token(), operation: Act::Expire(Expire { leases }).into() });
        }
    }
}
