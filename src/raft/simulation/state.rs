//! The machine of the simulation: one number that depends on everything it was told, and in which order.
//!
//! It remembers that number for the last few entries, so that a beacon, which carries the leader's number of
//! an earlier entry, shows whether this replica went another way.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;

use crate::id::Index;
use crate::machine::batch::{Act, Batch, Operation};
use crate::raft::input::ProposalId;
use crate::storage::entry::{Entry, EntryKind};

/// For how many entries the hash is remembered.
const RECENT: usize = 32;

/// A machine that remembers everything it was told, in one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::raft) struct State {
    pub(in crate::raft) applied: Index,
    pub(in crate::raft) hash: u64,
    /// The hashes after the last entries, each at its index modulo the length.
    pub(super) recent: [u64; RECENT],
}

/// What another replica's hash was after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beacon {
    pub(super) index: Index,
    pub(super) hash: u64,
}

impl State {
    /// The state after one more entry.
    pub(in crate::raft) fn apply(&mut self, entry: &Entry) {
        assert_eq!(entry.index, self.applied.next(), "entries are applied in order");
        let mut hasher = DefaultHasher::new();
        (self.hash, entry.index.0, entry.term.0, &entry.data[..]).hash(&mut hasher);
        (self.applied, self.hash) = (entry.index, hasher.finish());
        self.recent[entry.index.0 as usize % RECENT] = self.hash;
    }

    /// The hash after an entry; none if that is too long ago.
    fn hash_at(&self, index: Index) -> Option<u64> {
        let age = self.applied.0.checked_sub(index.0)? as usize;
        (index.0 > 0 && age < RECENT).then(|| self.recent[index.0 as usize % RECENT])
    }

    /// What to tell the others of this state; none before the first entry.
    pub(super) fn beacon(&self) -> Option<Beacon> {
        (self.applied.0 > 0).then_some(Beacon { index: self.applied, hash: self.hash })
    }

    /// Whether this state came the same way as the one that sent the beacon; none if nobody can tell any
    /// more.
    pub(super) fn agrees(&self, beacon: Beacon) -> Option<bool> {
        self.hash_at(beacon.index).map(|hash| hash == beacon.hash)
    }

    /// A bit of the machine's memory or disk turns over.
    pub(super) fn flip(&mut self, bit: u64) {
        self.hash ^= 1 << (bit % 64);
        self.recent[self.applied.0 as usize % RECENT] = self.hash;
    }
}

const COMMAND: u8 = 0;
const BEACON: u8 = 1;

/// A command that says who it is.
pub(super) fn command(id: ProposalId, padding: usize) -> Operation {
    let mut bytes = id.0.to_be_bytes().to_vec();
    bytes.push(COMMAND);
    bytes.resize(bytes.len() + padding, 0);
    Operation::command(Bytes::from(bytes))
}

/// A beacon that says who it is.
pub(super) fn beacon(id: ProposalId, beacon: Beacon) -> Operation {
    let mut bytes = id.0.to_be_bytes().to_vec();
    bytes.push(BEACON);
    bytes.extend(beacon.index.0.to_be_bytes());
    bytes.extend(beacon.hash.to_be_bytes());
    Operation::command(Bytes::from(bytes))
}

/// What a plain client proposed; none for a tenant's wish, which says in its trace who it is.
fn payload(operation: &Operation) -> Option<&Bytes> {
    match &operation.act {
        Some(Act::Command(bytes)) if operation.trace.is_empty() => Some(bytes),
        _ => None,
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Who an operation says it is.
pub(super) fn id_of(operation: &Operation) -> ProposalId {
    ProposalId(number(payload(operation).map_or(&operation.trace[..], |bytes| bytes), 0))
}

/// The operations of a committed entry.
pub(super) fn operations_of(entry: &Entry) -> Vec<Operation> {
    if entry.kind != EntryKind::Batch || entry.data.is_empty() {
        return Vec::new();
    }
    Batch::read(entry.data.clone()).unwrap().operations
}

/// The beacons in a committed entry.
pub(super) fn beacons_of(entry: &Entry) -> Vec<Beacon> {
    let read = |operation: &Operation| {
        let bytes = payload(operation)?;
        (bytes[8] == BEACON).then(|| Beacon { index: Index(number(bytes, 9)), hash: number(bytes, 17) })
    };
    operations_of(entry).iter().filter_map(read).collect()
}

mod tests {
    use super::*;
    use crate::id::Term;

    fn apply(state: &mut State, count: u64) {
        for _ in 0..count {
            let (index, kind) = (state.applied.next(), EntryKind::Batch);
            state.apply(&Entry { index, term: Term(1), kind, data: Bytes::new() });
        }
    }

    #[test]
    fn a_beacon_tells_states_apart_that_went_different_ways() {
        let mut one = State::default();
        assert_eq!(one.beacon(), None);
        apply(&mut one, 5);
        let mut other = one;
        let before = one.beacon().unwrap();
        other.flip(17);
        assert_eq!((one.agrees(before), other.agrees(before)), (Some(true), Some(false)));
        apply(&mut one, RECENT as u64 - 1);
        apply(&mut other, RECENT as u64 - 1);
        let after = one.beacon().unwrap();
        assert_eq!((one.agrees(after), other.agrees(after)), (Some(true), Some(false)), "it does not heal");
        assert_eq!(one.agrees(before), Some(true));
        apply(&mut one, 1);
        assert_eq!(one.agrees(before), None, "too long ago");
    }
}
