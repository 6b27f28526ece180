//! Whether a replica still is one: its hashes beside those of the leader, which come with the log as beacons.
//!
//! The rolling hash covers everything that a machine's batches did, from the first on. So replicas that have
//! the same hash at an index did the same up to there, and one that once differed differs for ever: it is
//! enough to compare now and then, and at any index that both have passed.
//!
//! Promises: a replica never goes on past a beacon that it contradicts. An index whose hash is not known
//! here, because it is before a start or a snapshot, contradicts nothing; the next beacon will be known.

use std::collections::VecDeque;

use crate::id::{Index, StateHash};
use crate::machine::batch::{Act, Batch, Beacon, Head, Operation};

/// Hashes of so many batches are remembered: a beacon names an index that its leader had applied when it was
/// proposed, and a replica has it in its log right behind.
const REMEMBERED: usize = 4_096;

/// A leader sends a beacon after so many batches.
const BEACON_BATCHES: u32 = 1_000;

/// What a replica remembers of its own way.
#[derive(Default)]
pub struct Lockstep {
    passed: VecDeque<(Index, StateHash)>,
    /// Batches applied since this replica last sent a beacon.
    since_beacon: u32,
}

impl Lockstep {
    /// A replica that starts at `head`: one hash is known.
    pub fn at(head: &Head) -> Lockstep {
        let mut lockstep = Lockstep::default();
        if head.index > Index(0) {
            lockstep.passed.push_back((head.index, head.hash));
        }
        lockstep
    }

    /// A batch was applied.
    pub fn note(&mut self, head: &Head) {
        if self.passed.len() == REMEMBERED {
            self.passed.pop_front();
        }
        self.passed.push_back((head.index, head.hash));
        self.since_beacon = self.since_beacon.saturating_add(1);
    }

    /// A snapshot took the place of the state: what was passed before is another way.
    pub fn forget(&mut self) {
        self.passed.clear();
    }

    /// Compares this replica with the beacons of a batch.
    ///
    /// # Errors
    /// A sentence with both hashes, if they differ.
    pub fn check(&self, batch: &Batch) -> Result<(), String> {
        let beacons = batch.operations.iter().filter_map(|operation| match &operation.act {
            Some(Act::Beacon(beacon)) => Some(beacon),
            _ => None,
        });
        for beacon in beacons {
            let (at, theirs) = (Index(beacon.index), beacon.hash.as_slice());
            // Entries without a batch move the index and leave the hash.
            let after = self.passed.partition_point(|(index, _)| *index <= at);
            let Some((_, ours)) = after.checked_sub(1).map(|last| self.passed[last]) else { continue };
            if ours.0 != theirs {
                return Err(format!(
                    "it is no longer in lockstep: at index {at} it has the hash {ours}, and its leader has \
                     {}",
                    hex::encode(theirs)
                ));
            }
        }
        Ok(())
    }

    /// For a leader: the beacon to propose, if it is time for one.
    pub fn due(&mut self, head: &Head) -> Option<Operation> {
        if self.since_beacon < BEACON_BATCHES {
            return None;
        }
        self.since_beacon = 0;
        Some(beacon(head))
    }
}

/// The beacon of a replica that stands at `head`.
pub fn beacon(head: &Head) -> Operation {
    let beacon = Beacon { index: head.index.0, hash: head.hash.0.to_vec() };
    Act::Beacon(beacon).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(index: u64, hash: u8) -> Head {
        Head { index: Index(index), hash: StateHash([hash; 32]), ..Head::default() }
    }

    fn batch(head: &Head) -> Batch {
        Batch { time_ms: 0, operations: vec![beacon(head)] }
    }

    #[test]
    fn a_replica_that_differs_is_told_the_index_and_both_hashes() {
        let mut lockstep = Lockstep::default();
        (1..=5).for_each(|index| lockstep.note(&head(index, 7)));
        assert_eq!(lockstep.check(&batch(&head(3, 7))), Ok(()));
        // Without a batch at 6 the hash is still that of 5.
        assert_eq!(lockstep.check(&batch(&head(6, 7))), Ok(()));
        let why = lockstep.check(&batch(&head(3, 8))).unwrap_err();
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
    fn a_beacon_is_due_after_so_many_batches() {
        let mut lockstep = Lockstep::default();
        (1..u64::from(BEACON_BATCHES)).for_each(|index| lockstep.note(&head(index, 7)));
        assert_eq!(lockstep.due(&head(9, 7)), None);
        lockstep.note(&head(u64::from(BEACON_BATCHES), 7));
        assert_eq!(lockstep.due(&head(9, 7)), Some(beacon(&head(9, 7))));
        assert_eq!(lockstep.due(&head(9, 7)), None);
    }
}
