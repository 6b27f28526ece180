//! The part of a group's log that is in memory, as the engine reads it.
//!
//! Holds every entry that is not both applied and synced: those the engine must be able to read at any
//! moment. Applied entries stay only as long as a byte limit allows, for replicas that follow closely; what
//! lags further is loaded back from the log, so memory is bounded by what is unapplied and the limit, not by
//! how seldom the log is cut. The terms of *all* entries of the log are kept, because the engine asks for
//! them at any index; they come in runs, so this costs one number pair a change of leader.

use std::cell::RefCell;
use std::collections::VecDeque;

use raft::eraftpb;
use raft::{Error, GetEntriesContext, RaftState, StorageError};

use crate::id::{Index, LogTime, Term};
use crate::raft::log_sizes::LogSizes;
use crate::storage::entry::{Entry, EntryKind};

/// What an entry in memory costs besides its data.
const OVERHEAD_BYTES: usize = 160;

/// Entries that the engine wanted to send to another replica, but that are no longer in memory.
#[derive(Debug)]
pub(super) struct Wish {
    /// The first one wanted.
    pub(super) from: Index,
    /// The last one wanted.
    pub(super) to: Index,
    /// To be given back to the engine when they are there.
    pub(super) context: GetEntriesContext,
}

/// The engine's view of the log.
pub(super) struct LogCache {
    /// What the engine reads once, when it starts.
    initial: RaftState,
    /// The entry before the first one of the log.
    start: (u64, u64),
    /// The stamp of the last batch at or before `start`.
    start_stamp: LogTime,
    /// The last entry that is not in memory.
    evicted: u64,
    /// From `evicted + 1` to the last.
    entries: VecDeque<eraftpb::Entry>,
    /// What they cost.
    bytes: usize,
    /// The sizes of all entries of the log.
    sizes: LogSizes,
    /// (first index, term) of each run of entries of a term, from `start` on; never empty.
    runs: VecDeque<(u64, u64)>,
    /// What was loaded back for the engine to send; gone after that.
    loaded: Vec<eraftpb::Entry>,
    /// Up to where the state is here: what a snapshot would hold.
    applied: u64,
    /// Filled by reads, which have the log only by shared reference.
    wishes: RefCell<Vec<Wish>>,
}

impl LogCache {
    /// A log that begins after `start` with `entries`. The caller has checked that they have no gaps.
    pub(super) fn new(
        initial: RaftState,
        start: (Index, Term),
        start_stamp: LogTime,
        entries: Vec<Entry>,
    ) -> LogCache {
        let mut cache = LogCache {
            initial,
            start: (start.0.0, start.1.0),
            start_stamp,
            evicted: start.0.0,
            entries: VecDeque::new(),
            bytes: 0,
            sizes: LogSizes::default(),
            runs: VecDeque::from([(start.0.0, start.1.0)]),
            loaded: Vec::new(),
            applied: start.0.0,
            wishes: RefCell::default(),
        };
        for entry in entries {
            cache.push(to_engine(entry));
        }
        cache
    }

    /// Adds entries, which replace everything from the first one's index on.
    pub(super) fn append(&mut self, entries: &[eraftpb::Entry]) {
        let Some(first) = entries.first() else { return };
        self.cut_from(first.index);
        for entry in entries {
            self.push(entry.clone());
        }
    }

    fn cut_from(&mut self, index: u64) {
        // Only applied entries are evicted, and they never change again.
        assert!(index > self.evicted, "entry {index} would replace applied ones up to {}", self.evicted);
        while self.last() >= index
            && let Some(entry) = self.entries.pop_back()
        {
            self.bytes -= cost(&entry);
            self.sizes.pop(entry.index, cost(&entry) as u64);
        }
        while self.runs.len() > 1 && self.runs.back().is_some_and(|run| run.0 >= index) {
            self.runs.pop_back();
        }
    }

    fn push(&mut self, entry: eraftpb::Entry) {
        assert_eq!(entry.index, self.last() + 1, "the log would have a gap");
        if self.runs.back().is_none_or(|run| run.1 != entry.term) {
            self.runs.push_back((entry.index, entry.term));
        }
        self.bytes += cost(&entry);
        self.sizes.push(entry.index, cost(&entry) as u64);
        self.entries.push_back(entry);
    }

    fn last(&self) -> u64 {
        self.evicted + self.entries.len() as u64
    }

    /// The entry before the first one of the log.
    pub(super) fn start(&self) -> Index {
        Index(self.start.0)
    }

    /// The last entry behind which the others have no more than so many bytes; 0 if the whole log has not.
    pub(super) fn end_of_rest(&self, bytes_max: u64) -> Index {
        Index(self.sizes.end_of_rest(bytes_max))
    }

    /// What the entries in memory cost.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops entries up to `to`, oldest first, until the rest costs no more than `bytes_max`.
    pub(super) fn evict(&mut self, to: Index, bytes_max: usize) {
        while self.bytes > bytes_max
            && self.evicted < to.0
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= cost(&entry);
            self.evicted = entry.index;
            if let Some(stamp) = stamp_of(&entry) {
                self.start_stamp = stamp;
            }
        }
        if self.entries.capacity() > 64 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    /// Forgets the log up to and including `to`, and gives back that entry's term.
    pub(super) fn truncate(&mut self, to: Index) -> Term {
        let term = self.run_term(to.0);
        self.evict(to, 0);
        while self.runs.get(1).is_some_and(|next| next.0 <= to.0) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.0 = to.0;
        }
        self.sizes.cut(to.0);
        self.start = (to.0, term);
        Term(term)
    }

    /// A snapshot takes the place of everything: the log begins after its entry. `stamp` is that of the last
    /// batch in it.
    pub(super) fn restart(&mut self, start: (Index, Term), stamp: LogTime) {
        let initial = std::mem::take(&mut self.initial);
        let applied = self.applied;
        *self = LogCache { applied, ..LogCache::new(initial, start, stamp, Vec::new()) };
    }

    /// The state is here up to this index.
    pub(super) fn set_applied(&mut self, index: Index) {
        self.applied = index.0;
    }

    fn run_term(&self, index: u64) -> u64 {
        let after = self.runs.partition_point(|run| run.0 <= index);
        self.runs[after - 1].1
    }

    /// The stamp of the last batch in the log.
    pub(super) fn last_stamp(&self) -> LogTime {
        self.entries.iter().rev().find_map(stamp_of).unwrap_or(self.start_stamp)
    }

    /// Takes what the engine wanted and did not find.
    pub(super) fn take_wishes(&mut self) -> Vec<Wish> {
        self.wishes.take()
    }

    /// Lends the engine entries that came back from the log.
    pub(super) fn lend(&mut self, entries: Vec<Entry>) {
        self.loaded = entries.into_iter().map(to_engine).collect();
    }

    /// Takes back what was lent.
    pub(super) fn end_loan(&mut self) {
        self.loaded = Vec::new();
    }

    fn find(&self, low: u64, high: u64, bytes_max: usize) -> Option<Vec<eraftpb::Entry>> {
        if low > self.evicted {
            let from = (low - self.evicted - 1) as usize;
            let to = (high - self.evicted - 1) as usize;
            return Some(bounded(self.entries.range(from..to), bytes_max));
        }
        let skipped = low.checked_sub(self.loaded.first()?.index)? as usize;
        let lent = self.loaded.get(skipped..).filter(|rest| !rest.is_empty())?;
        Some(bounded(lent.iter().take_while(|entry| entry.index < high), bytes_max))
    }
}

/// Clones entries until the next would exceed the limit, but at least one.
fn bounded<'a>(entries: impl Iterator<Item = &'a eraftpb::Entry>, bytes_max: usize) -> Vec<eraftpb::Entry> {
    let mut bytes = 0usize;
    let fits = |entry: &&eraftpb::Entry| {
        let first = bytes == 0;
        bytes = bytes.saturating_add(entry.data.len() + 32);
        first || bytes <= bytes_max
    };
    entries.take_while(fits).cloned().collect()
}

impl raft::Storage for LogCache {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.start.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let bytes_max = max_size.into().map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        if let Some(entries) = self.find(low, high, bytes_max) {
            return Ok(entries);
        }
        if !context.can_async() {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let (from, to) = (Index(low), Index(high.min(self.evicted + 1) - 1));
        self.wishes.borrow_mut().push(Wish { from, to, context });
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.start.0 {
            Err(Error::Store(StorageError::Compacted))
        } else if index > self.last() {
            Err(Error::Store(StorageError::Unavailable))
        } else {
            Ok(self.run_term(index))
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Only says which snapshot there is: the data goes its own way.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        // After a restart behind a snapshot the state may not be there yet.
        if self.applied < self.start.0.max(request_index) {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = eraftpb::Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.applied, self.run_term(self.applied));
        Ok(snapshot)
    }
}

fn cost(entry: &eraftpb::Entry) -> usize {
    entry.data.len() + OVERHEAD_BYTES
}

/// The stamp of a batch, without decoding the rest: it is the first field of the encoding. None for other
/// entries.
fn stamp_of(entry: &eraftpb::Entry) -> Option<LogTime> {
    const STAMP_KEY: u8 = 1 << 3;
    if entry.get_entry_type() != eraftpb::EntryType::EntryNormal {
        return None;
    }
    match entry.data.split_first() {
        None => None,
        Some((&STAMP_KEY, mut rest)) => prost::encoding::decode_varint(&mut rest).ok().map(LogTime),
        Some(_) => Some(LogTime(0)),
    }
}

/// The engine's form of an entry.
pub(super) fn to_engine(entry: Entry) -> eraftpb::Entry {
    let kind = match entry.kind {
        EntryKind::Batch => eraftpb::EntryType::EntryNormal,
        EntryKind::Membership => eraftpb::EntryType::EntryConfChangeV2,
    };
    let mut engine = eraftpb::Entry::default();
    engine.set_entry_type(kind);
    engine.index = entry.index.0;
    engine.term = entry.term.0;
    engine.data = entry.data;
    engine
}

/// The project's form of an entry.
pub(super) fn from_engine(entry: &eraftpb::Entry) -> Entry {
    let kind = match entry.get_entry_type() {
        eraftpb::EntryType::EntryNormal => EntryKind::Batch,
        eraftpb::EntryType::EntryConfChangeV2 => EntryKind::Membership,
        // The first form of membership changes is never proposed here, and messages cannot carry it.
        eraftpb::EntryType::EntryConfChange => panic!("entry {} has an unknown kind", entry.index),
    };
    Entry { index: Index(entry.index), term: Term(entry.term), kind, data: entry.data.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::batch::Batch;
    use bytes::Bytes;
    use prost::Message as _;
    use raft::Storage as _;

    fn entry(index: u64, term: u64) -> Entry {
        let data = Batch::of_commands(index * 10, [Bytes::from_static(b"x")]).encode_to_vec().into();
        Entry { index: Index(index), term: Term(term), kind: EntryKind::Batch, data }
    }

    fn log(start: (u64, u64), terms: &[u64]) -> LogCache {
        let entries = terms.iter().zip(start.0 + 1..).map(|(&term, index)| entry(index, term)).collect();
        LogCache::new(RaftState::default(), (Index(start.0), Term(start.1)), LogTime(3), entries)
    }

    fn terms(log: &LogCache) -> Vec<u64> {
        (log.start.0..=log.last()).map(|index| log.term(index).unwrap()).collect()
    }

    fn read(log: &LogCache, low: u64, high: u64) -> raft::Result<Vec<u64>> {
        let entries = log.entries(low, high, None, GetEntriesContext::empty(true))?;
        Ok(entries.iter().map(|entry| entry.index).collect())
    }

    #[test]
    fn terms_stay_known_when_entries_are_evicted() {
        let mut log = log((4, 1), &[1, 1, 2, 5, 5]);
        log.evict(Index(8), 0);
        assert_eq!(terms(&log), [1, 1, 1, 2, 5, 5]);
        assert!(matches!(log.term(3), Err(Error::Store(StorageError::Compacted))));
        assert!(matches!(log.term(10), Err(Error::Store(StorageError::Unavailable))));
    }

    #[test]
    fn a_truncated_log_keeps_the_term_of_its_start() {
        let mut log = log((0, 0), &[1, 1, 2, 5, 5]);
        assert_eq!(log.truncate(Index(3)), Term(2));
        assert_eq!(terms(&log), [2, 5, 5]);
        assert!(matches!(read(&log, 3, 4), Err(Error::Store(StorageError::Compacted))));
        assert_eq!(read(&log, 4, 6).unwrap(), [4, 5]);
        assert_eq!(log.truncate(Index(5)), Term(5));
        assert_eq!(terms(&log), [5]);
        log.append(&[to_engine(entry(6, 9))]);
        assert_eq!(terms(&log), [5, 9]);
    }

    #[test]
    fn new_entries_replace_the_tail() {
        let mut log = log((0, 0), &[1, 1, 2, 2]);
        log.append(&[to_engine(entry(2, 3)), to_engine(entry(3, 3))]);
        assert_eq!(terms(&log), [0, 1, 3, 3]);
        assert_eq!(log.bytes(), log.entries.iter().map(cost).sum::<usize>());
    }

    #[test]
    #[should_panic(expected = "would replace applied ones up to 2")]
    fn applied_entries_are_never_replaced() {
        let mut log = log((0, 0), &[1, 1, 1]);
        log.evict(Index(2), 0);
        log.append(&[to_engine(entry(2, 3))]);
    }

    #[test]
    fn what_was_evicted_is_wished_for_and_then_lent() {
        let mut log = log((0, 0), &[1, 1, 1, 1]);
        log.evict(Index(3), 0);
        assert!(matches!(read(&log, 2, 5), Err(Error::Store(StorageError::LogTemporarilyUnavailable))));
        let wishes = log.take_wishes();
        assert_eq!((wishes[0].from, wishes[0].to), (Index(2), Index(3)));
        log.lend(vec![entry(2, 1), entry(3, 1)]);
        assert_eq!(read(&log, 2, 5).unwrap(), [2, 3]);
        assert_eq!(read(&log, 3, 4).unwrap(), [3]);
        log.end_loan();
        assert!(read(&log, 2, 5).is_err());
        let now = log.entries(2, 3, None, GetEntriesContext::empty(false));
        assert!(matches!(now, Err(Error::Store(StorageError::Unavailable))));
    }

    #[test]
    fn at_least_one_entry_is_read_whatever_the_limit() {
        let log = log((0, 0), &[1, 1, 1]);
        let read = |max| log.entries(1, 4, Some(max), GetEntriesContext::empty(false)).unwrap().len();
        assert_eq!(read(0), 1);
        let each = log.entries[0].data.len() as u64 + 32;
        assert_eq!(read(2 * each), 2);
        assert_eq!(read(100 * each), 3);
    }

    #[test]
    fn the_last_stamp_survives_eviction_and_truncation_and_passes_over_empty_entries() {
        let mut log = log((0, 0), &[1, 1, 1]);
        let mut empty = eraftpb::Entry::default();
        (empty.index, empty.term) = (4, 2);
        log.append(&[empty]);
        assert_eq!(log.last_stamp(), LogTime(30));
        log.truncate(Index(2));
        log.evict(Index(4), 0);
        assert_eq!(log.last_stamp(), LogTime(30));
        assert_eq!(
            LogCache::new(RaftState::default(), (Index(9), Term(1)), LogTime(3), vec![]).last_stamp(),
            LogTime(3)
        );
    }
}
