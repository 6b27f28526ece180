//! Whether a replica still is one: its hashes beside those of the leader, which come with the log as beacons.
//!
//! The rolling hash covers everything that a machine's batches did, from the first on. So replicas that have
//! the same hash at an index did the same up to there, and one that once differed differs for ever: it is
//! enough to compare now and then, and at any index that both have passed.
//!
//! What the last batches did is remembered too, so that two replicas that differ can tell where it began. A
//! leader sends a beacon long before that is forgotten: the first difference is remembered on both sides when
//! it is noticed, unless one of them was restarted between or the other lags far behind. What a replica
//! remembers when it halts stays.
//!
//! Promises: a replica never goes on past a beacon that it contradicts. An index whose hash is not known
//! here, because it is before a start or a snapshot, contradicts nothing; the next beacon will be known. What
//! is remembered is bounded for each machine and for the node; remembering copies nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::id::{Index, StateHash};
use crate::machine::apply::Applied;
use crate::machine::batch::{Act, Batch, Beacon, Head, Operation};
use crate::machine::outcome::Outcome;
use crate::machine::overlay::Write;

/// Hashes of so many batches are remembered: a beacon names an index that its leader had applied when it was
/// proposed, and a replica has it in its log right behind. Twice as many as lie between two beacons, so that
/// the one before is still among them when the next is contradicted.
const REMEMBERED: usize = 2_048;

/// A leader sends a beacon after so many batches.
const BEACON_BATCHES: u32 = 1_000;

/// What the remembered effects of one machine's batches may take in memory.
const MACHINE_BYTES_MAX: usize = 8 << 20;

/// A leader sends a beacon when so much of that was used since the last: what is left is for the time until
/// the other replica has applied the beacon and asked.
const BEACONS_REMEMBERED: usize = 4;

/// What those of all machines of a node may take. Beyond it each machine keeps to its share.
const NODE_BYTES_MAX: usize = 64 << 20;

/// A machine's share is never less than this, however many there are.
const SHARE_BYTES_MIN: usize = 16 << 10;

/// What a row costs besides its key and value, and an outcome besides its answer.
const ROW_BYTES: usize = 96;

/// What a batch costs besides its bytes, rows and outcomes.
const BATCH_BYTES: usize = 256;

/// What the remembered effects of all machines of a node take.
#[derive(Clone, Default)]
pub struct Memory {
    bytes: Arc<AtomicUsize>,
}

/// What a replica remembers of its own way.
#[derive(Default)]
pub struct Lockstep {
    passed: VecDeque<Passed>,
    memory: Memory,
    /// What the effects in `passed` take.
    bytes: usize,
    /// The first of `passed` with effects, or its end.
    first_kept: usize,
    /// Batches applied since this replica last sent a beacon, and what their effects take.
    since_beacon: u32,
    bytes_since_beacon: usize,
}

/// A batch that was applied.
struct Passed {
    index: Index,
    hash: StateHash,
    /// Apart, because effects are forgotten long before hashes are.
    did: Option<Box<Did>>,
}

/// A batch, and what it did.
pub struct Did {
    /// The entry's bytes.
    pub batch: Bytes,
    /// Its effects.
    pub applied: Applied,
    bytes: usize,
}

/// A beacon that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The index that the beacon names.
    pub at: Index,
    /// A sentence with both hashes.
    pub why: String,
}

impl Lockstep {
    /// A replica that starts at `head`: one hash is known.
    pub fn at(head: &Head, memory: Memory) -> Lockstep {
        let known =
            (head.index > Index(0)).then_some(Passed { index: head.index, hash: head.hash, did: None });
        let passed = VecDeque::from_iter(known);
        let first_kept = passed.len();
        Lockstep { passed, memory, bytes: 0, first_kept, since_beacon: 0, bytes_since_beacon: 0 }
    }

    /// A batch was applied.
    pub fn note(&mut self, head: &Head) {
        if self.passed.len() == REMEMBERED {
            self.forget_effects_up_to(1);
            self.passed.pop_front();
            self.first_kept -= 1;
        }
        self.passed.push_back(Passed { index: head.index, hash: head.hash, did: None });
        self.since_beacon = self.since_beacon.saturating_add(1);
    }

    /// What the batch noted last did. `machines` share the node's memory.
    pub fn keep(&mut self, batch: Bytes, applied: Applied, machines: usize) {
        let limit = self.limit(machines);
        let bytes = cost(&batch, &applied);
        self.bytes_since_beacon = self.bytes_since_beacon.saturating_add(bytes);
        let Some(last) = self.passed.back_mut().filter(|last| last.index == applied.head.index) else {
            return;
        };
        last.did = Some(Box::new(Did { batch, applied, bytes }));
        self.bytes += bytes;
        self.memory.bytes.fetch_add(bytes, Ordering::Relaxed);
        while self.bytes > limit && self.first_kept < self.passed.len() {
            self.forget_effects_up_to(self.first_kept + 1);
        }
    }

    /// What this machine's effects may take now.
    fn limit(&self, machines: usize) -> usize {
        if self.memory.bytes.load(Ordering::Relaxed) <= NODE_BYTES_MAX {
            return MACHINE_BYTES_MAX;
        }
        (NODE_BYTES_MAX / machines.max(1)).clamp(SHARE_BYTES_MIN, MACHINE_BYTES_MAX)
    }

    fn forget_effects_up_to(&mut self, end: usize) {
        while self.first_kept < end {
            if let Some(did) = self.passed[self.first_kept].did.take() {
                self.bytes -= did.bytes;
                self.memory.bytes.fetch_sub(did.bytes, Ordering::Relaxed);
            }
            self.first_kept += 1;
        }
    }

    /// A snapshot took the place of the state: what was passed before is another way.
    pub fn forget(&mut self) {
        self.forget_effects_up_to(self.passed.len());
        self.passed.clear();
        self.first_kept = 0;
    }

    /// Compares this replica with the beacons of a batch.
    ///
    /// # Errors
    /// The first that does not fit.
    pub fn check(&self, batch: &Batch) -> Result<(), Contradiction> {
        let beacons = batch.operations.iter().filter_map(|operation| match &operation.act {
            Some(Act::Beacon(beacon)) => Some(beacon),
            _ => None,
        });
        for beacon in beacons {
            let (at, theirs) = (Index(beacon.index), beacon.hash.as_slice());
            // Entries without a batch move the index and leave the hash.
            let after = self.passed.partition_point(|passed| passed.index <= at);
            let Some(passed) = after.checked_sub(1).map(|last| &self.passed[last]) else { continue };
            if passed.hash.0 != theirs {
                let why = format!(
                    "it is no longer in lockstep: at index {at} it has the hash {}, and its leader has {}",
                    passed.hash,
                    hex::encode(theirs)
                );
                return Err(Contradiction { at, why });
            }
        }
        Ok(())
    }

    /// For a leader: the beacon to propose, if it is time for one. `machines` share the node's memory.
    pub fn due(&mut self, head: &Head, machines: usize) -> Option<Operation> {
        let much_used = self.bytes_since_beacon >= self.limit(machines) / BEACONS_REMEMBERED;
        if self.since_beacon < BEACON_BATCHES && !much_used {
            return None;
        }
        (self.since_beacon, self.bytes_since_beacon) = (0, 0);
        Some(beacon(head))
    }

    /// The batches whose hashes are remembered: each index with the first bytes of the hash, in order.
    pub fn passed(&self) -> impl Iterator<Item = (Index, u64)> {
        self.passed.iter().map(|passed| (passed.index, first_of(&passed.hash)))
    }

    /// What the batch at an index did, if that is remembered.
    pub fn did(&self, index: Index) -> Option<&Did> {
        let at = self.passed.binary_search_by_key(&index, |passed| passed.index).ok()?;
        self.passed[at].did.as_deref()
    }
}

impl Drop for Lockstep {
    fn drop(&mut self) {
        self.memory.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where two ways part: the last index at which both have the same hash, and the first at which they do not,
/// of those that both remember.
pub fn parting(
    ours: impl Iterator<Item = (Index, u64)>,
    theirs: impl Iterator<Item = (Index, u64)>,
) -> (Option<Index>, Option<Index>) {
    let mut theirs = theirs.peekable();
    let mut agreed = None;
    for (index, hash) in ours {
        while theirs.next_if(|(other, _)| *other < index).is_some() {}
        match theirs.next_if(|(other, _)| *other == index) {
            Some((_, same)) if same == hash => agreed = Some(index),
            Some(_) => return (agreed, Some(index)),
            None => {}
        }
    }
    (agreed, None)
}

/// Eight bytes of a hash: chance makes two different ones alike once in 2^64 times.
fn first_of(hash: &StateHash) -> u64 {
    u64::from_be_bytes(hash.0.first_chunk().copied().unwrap_or_default())
}

/// What remembering a batch takes.
fn cost(batch: &Bytes, applied: &Applied) -> usize {
    let row = |row: &Write| ROW_BYTES + row.key.len() + row.value.as_ref().map_or(0, Bytes::len);
    let outcome = |outcome: &Outcome| {
        ROW_BYTES
            + match outcome {
                Outcome::Ok(answer) => answer.len(),
                Outcome::Refused(refusal) => refusal.message.len(),
                Outcome::Host(_) => 0,
            }
    };
    let rows = applied.writes.iter().map(row).sum::<usize>();
    BATCH_BYTES
        + batch.len()
        + rows
        + applied.outcomes.iter().map(|first| outcome(&first.outcome)).sum::<usize>()
}

/// The beacon of a replica that stands at `head`.
pub fn beacon(head: &Head) -> Operation {
    let beacon = Beacon { index: head.index.0, hash: head.hash.0.to_vec() };
    Act::Beacon(beacon).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Revision;
    use crate::machine::outcome::OutcomeAt;
    use crate::machine::view::Table;

    fn head(index: u64, hash: u8) -> Head {
        Head { index: Index(index), hash: StateHash([hash; 32]), ..Head::default() }
    }

    fn batch(head: &Head) -> Batch {
        Batch { time_ms: 0, operations: vec![beacon(head)], begins_term: false }
    }

    /// Applies a batch that takes so many bytes, on a node with so many machines.
    fn pass(lockstep: &mut Lockstep, index: u64, bytes: usize, machines: usize) {
        let head = head(index, 7);
        lockstep.note(&head);
        let applied = Applied { outcomes: vec![], writes: vec![], head, notes: Vec::new() };
        lockstep.keep(vec![0; bytes - BATCH_BYTES].into(), applied, machines);
    }

    #[test]
    fn a_replica_that_differs_is_told_the_index_and_both_hashes() {
        let mut lockstep = Lockstep::default();
        (1..=5).for_each(|index| lockstep.note(&head(index, 7)));
        assert_eq!(lockstep.check(&batch(&head(3, 7))), Ok(()));
        // Without a batch at 6 the hash is still that of 5.
        assert_eq!(lockstep.check(&batch(&head(6, 7))), Ok(()));
        let found = lockstep.check(&batch(&head(3, 8))).unwrap_err();
        assert_eq!(found.at, Index(3));
        let why = found.why;
        assert!(why.contains("index 3") && why.contains("0707") && why.contains("0808"), "{why}");
    }

    #[test]
    fn what_is_not_remembered_contradicts_nothing() {
        let mut lockstep = Lockstep::default();
        assert_eq!(lockstep.check(&batch(&head(3, 8))), Ok(()));
        (1..=REMEMBERED as u64 + 1).for_each(|index| lockstep.note(&head(index, 7)));
        assert_eq!(lockstep.check(&batch(&head(1, 8))), Ok(()));
        assert!(lockstep.check(&batch(&head(2, 8))).is_err());
        lockstep.forget();
        assert_eq!(lockstep.check(&batch(&head(2, 8))), Ok(()));
    }

    #[test]
    fn a_replica_that_was_started_knows_the_hash_it_started_with() {
        let lockstep = Lockstep::at(&head(3, 7), Memory::default());
        assert_eq!(lockstep.check(&batch(&head(2, 8))), Ok(()));
        assert!(lockstep.check(&batch(&head(3, 8))).is_err());
        assert!(lockstep.check(&batch(&head(4, 8))).is_err());
    }

    #[test]
    fn a_beacon_is_due_after_so_many_batches_and_long_before_their_effects_are_forgotten() {
        let mut lockstep = Lockstep::default();
        (1..u64::from(BEACON_BATCHES)).for_each(|index| lockstep.note(&head(index, 7)));
        assert_eq!(lockstep.due(&head(9, 7), 1), None);
        lockstep.note(&head(u64::from(BEACON_BATCHES), 7));
        assert_eq!(lockstep.due(&head(9, 7), 1), Some(beacon(&head(9, 7))));
        assert_eq!(lockstep.due(&head(9, 7), 1), None);

        let piece = MACHINE_BYTES_MAX / 16;
        (2_000..2_003).for_each(|index| pass(&mut lockstep, index, piece, 1));
        assert_eq!(lockstep.due(&head(9, 7), 1), None);
        pass(&mut lockstep, 2_003, piece, 1);
        assert!(lockstep.due(&head(9, 7), 1).is_some());
        assert!(lockstep.did(Index(2_000)).is_some(), "the first since the beacon before is remembered");
        assert_eq!(lockstep.due(&head(9, 7), 1), None);
    }

    #[test]
    fn effects_are_forgotten_oldest_first_when_they_take_too_much() {
        let memory = Memory::default();
        let mut lockstep = Lockstep::at(&head(1, 7), memory.clone());
        (2..=40).for_each(|index| pass(&mut lockstep, index, MACHINE_BYTES_MAX / 16, 1));
        assert!(lockstep.did(Index(24)).is_none() && lockstep.did(Index(25)).is_some());
        assert!(lockstep.did(Index(40)).is_some());
        assert_eq!(lockstep.passed().count(), 40, "hashes are remembered longer");
        assert_eq!(memory.bytes.load(Ordering::Relaxed), MACHINE_BYTES_MAX);
        // One that takes more than all may is not kept at all.
        pass(&mut lockstep, 41, MACHINE_BYTES_MAX + 1, 1);
        assert!(lockstep.did(Index(41)).is_none());
        (42..42 + REMEMBERED as u64).for_each(|index| pass(&mut lockstep, index, BATCH_BYTES, 1));
        assert!(lockstep.did(Index(42)).is_some());
        assert_eq!(memory.bytes.load(Ordering::Relaxed), REMEMBERED * BATCH_BYTES);
        drop(lockstep);
        assert_eq!(memory.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn machines_keep_to_their_share_when_the_nodes_memory_is_used_up() {
        let memory = Memory::default();
        memory.bytes.store(NODE_BYTES_MAX, Ordering::Relaxed);
        let mut lockstep = Lockstep::at(&head(1, 7), memory.clone());
        let share = NODE_BYTES_MAX / 1_000;
        (2..100).for_each(|index| pass(&mut lockstep, index, share / 4, 1_000));
        let kept = memory.bytes.load(Ordering::Relaxed) - NODE_BYTES_MAX;
        assert!(kept <= share && kept > share / 2, "{kept} of {share}");
        memory.bytes.fetch_sub(NODE_BYTES_MAX, Ordering::Relaxed);
    }

    #[test]
    fn answers_count_as_much_as_rows() {
        let long = Bytes::from(vec![0; 10_000]);
        let write = Write { table: Table::Store, key: b"k".to_vec(), value: Some(long.clone()) };
        let with = |outcomes, writes| Applied { outcomes, writes, head: head(1, 7), notes: Vec::new() };
        let none = cost(&Bytes::new(), &with(vec![], vec![]));
        let answer = cost(
            &Bytes::new(),
            &with(
                vec![OutcomeAt { index: Index(1), revision: Revision(1), outcome: Outcome::Ok(long) }],
                vec![],
            ),
        );
        let row = cost(&Bytes::new(), &with(vec![], vec![write]));
        assert_eq!((none, answer, row), (BATCH_BYTES, answer, answer + 1));
        assert!(answer >= BATCH_BYTES + 10_000);
    }

    #[test]
    fn two_ways_part_where_their_hashes_first_differ() {
        let way = |from: u64, to: u64, parts_at: u64| {
            (from..=to).map(move |index| (Index(index), if index < parts_at { index } else { 1_000 + index }))
        };
        let parted = |a, b| (Some(Index(a)), Some(Index(b)));
        assert_eq!(parting(way(1, 9, 6), way(1, 9, 99)), parted(5, 6));
        assert_eq!(parting(way(3, 9, 6), way(5, 7, 99)), parted(5, 6));
        assert_eq!(parting(way(3, 9, 4), way(6, 7, 99)), (None, Some(Index(6))));
        assert_eq!(parting(way(3, 5, 4), way(6, 7, 99)), (None, None));
        assert_eq!(parting(way(3, 5, 99), way(4, 7, 99)), (Some(Index(5)), None));
    }
}
