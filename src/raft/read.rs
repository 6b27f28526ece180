//! Linearizable reads: from which index on may they be served?
//!
//! A read point is the commit index of a leader that was still the leader after the read arrived. The only
//! voter needs to ask nobody. Otherwise all reads of one call share a round of heartbeats, which covers only
//! reads that arrived before it was sent; rounds that get lost are sent again, and reads that nobody confirms
//! in time are refused.

use std::collections::VecDeque;

use crate::id::{LogTime, ReplicaId, Term};
use crate::raft::input::ReadId;

/// A read and since when it waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: ReadId,
    since_ms: u64,
    /// Whether a leader's lease is good enough.
    lease: bool,
}

/// Reads that wait for the same round. None if it is only to extend a lease.
#[derive(Debug)]
pub(super) struct Round {
    number: u64,
    /// When it was sent first.
    pub(super) issued_ms: u64,
    /// The term in which this replica sent it as the leader; 0 if it asked another.
    pub(super) leads_in: Term,
    /// What the leader's log clock showed when it confirmed the round; 0 if this replica is the leader.
    pub(super) time: LogTime,
    reads: Vec<Waiting>,
}

impl Round {
    /// The reads that waited for it.
    pub(super) fn ids(&self) -> Vec<ReadId> {
        self.reads.iter().map(|read| read.id).collect()
    }
}

/// One group's reads.
#[derive(Debug)]
pub(super) struct Reads {
    /// Marks this replica's rounds: its id, and a number of this life of it, because an answer to an earlier
    /// life's round may still be under way and names an index too low for today's reads.
    life: [u64; 2],
    arrived: Vec<Waiting>,
    rounds: VecDeque<Round>,
    last_round: u64,
}

impl Reads {
    /// No reads yet. `life` tells this life of the replica from all others.
    pub(super) fn new(replica: ReplicaId, life: u64) -> Reads {
        Reads { life: [replica.0, life], arrived: Vec::new(), rounds: VecDeque::new(), last_round: 0 }
    }

    /// A read arrived.
    pub(super) fn push(&mut self, id: ReadId, lease: bool, now_ms: u64) {
        self.arrived.push(Waiting { id, since_ms: now_ms, lease });
    }

    /// How many reads wait.
    pub(super) fn len(&self) -> usize {
        self.arrived.len() + self.rounds.iter().map(|round| round.reads.len()).sum::<usize>()
    }

    /// Whether no read waits.
    pub(super) fn is_empty(&self) -> bool {
        self.arrived.is_empty() && self.rounds.is_empty()
    }

    /// Whether reads wait for a round to be issued.
    pub(super) fn waiting(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Takes all reads, those of rounds included: the only voter answers them from its own commit index.
    pub(super) fn take_all(&mut self) -> Vec<ReadId> {
        let rounds = self.rounds.drain(..).flat_map(|round| round.reads);
        rounds.chain(self.arrived.drain(..)).map(|read| read.id).collect()
    }

    /// Takes the reads that wait and for which a lease is good enough.
    pub(super) fn take_leased(&mut self) -> Vec<ReadId> {
        self.arrived.extract_if(.., |read| read.lease).map(|read| read.id).collect()
    }

    /// Whether a round is under way.
    pub(super) fn round_under_way(&self) -> bool {
        !self.rounds.is_empty()
    }

    /// Puts the reads that wait into a round; its mark goes with the question to the leader.
    pub(super) fn issue(&mut self, leads_in: Term, now_ms: u64) -> Vec<u8> {
        self.last_round += 1;
        let reads = std::mem::take(&mut self.arrived);
        self.rounds.push_back(Round {
            number: self.last_round,
            issued_ms: now_ms,
            leads_in,
            time: LogTime(0),
            reads,
        });
        [self.life[0], self.life[1], self.last_round].iter().flat_map(|part| part.to_be_bytes()).collect()
    }

    /// The leader confirmed the round with this mark. None if it was given up.
    pub(super) fn confirm(&mut self, mark: &[u8]) -> Option<Round> {
        let number = self.number_of(mark)?;
        let at = self.rounds.iter().position(|round| round.number == number)?;
        self.rounds.remove(at)
    }

    /// The leader, who is about to confirm the round with this mark, said what its log clock shows.
    pub(super) fn note_time(&mut self, mark: &[u8], time: LogTime) {
        let number = self.number_of(mark);
        if let Some(round) = self.rounds.iter_mut().find(|round| Some(round.number) == number) {
            round.time = time;
        }
    }

    fn number_of(&self, mark: &[u8]) -> Option<u64> {
        let (parts, []) = mark.as_chunks::<8>() else { return None };
        match parts {
            [replica, life, number] if [*replica, *life].map(u64::from_be_bytes) == self.life => {
                Some(u64::from_be_bytes(*number))
            }
            _ => None,
        }
    }

    /// Rounds issued before now that nobody answered wait again, for a new round: their question may be lost.
    pub(super) fn retry(&mut self, now_ms: u64, retry_ms: u64) {
        while let Some(round) = self.rounds.front()
            && now_ms.saturating_sub(round.issued_ms) >= retry_ms
        {
            self.arrived.extend(self.rounds.pop_front().into_iter().flat_map(|round| round.reads));
        }
    }

    /// Gives back the reads that have waited too long.
    pub(super) fn expire(&mut self, now_ms: u64, wait_ms: u64) -> Vec<ReadId> {
        let mut expired = Vec::new();
        let late = |read: &Waiting| now_ms.saturating_sub(read.since_ms) >= wait_ms;
        let waiting = self.rounds.iter_mut().map(|round| &mut round.reads).chain([&mut self.arrived]);
        for reads in waiting {
            expired.extend(reads.extract_if(.., |read| late(read)).map(|read| read.id));
        }
        // Those without reads from the start only extend a lease; they end with the next retry.
        self.rounds
            .retain(|round| !round.reads.is_empty() || now_ms.saturating_sub(round.issued_ms) < wait_ms);
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_reads(ids: impl IntoIterator<Item = u64>) -> Reads {
        let mut reads = Reads::new(ReplicaId(7), 99);
        ids.into_iter().for_each(|id| reads.push(ReadId(id), false, 0));
        reads
    }

    #[test]
    fn a_round_covers_only_reads_that_arrived_before_it() {
        let mut reads = with_reads([1, 2]);
        let mark = reads.issue(Term(1), 0);
        reads.push(ReadId(3), false, 1);
        assert_eq!(reads.confirm(&mark).unwrap().ids(), [ReadId(1), ReadId(2)]);
        assert!(reads.waiting());
        assert_eq!(reads.len(), 1);
    }

    #[test]
    fn an_answer_to_another_life_of_the_replica_confirms_nothing() {
        let stale = with_reads([1]).issue(Term(1), 0);
        let mut reads = Reads::new(ReplicaId(7), 100);
        reads.push(ReadId(5), false, 0);
        reads.issue(Term(1), 0);
        assert!(reads.confirm(&stale).is_none());
        assert!(reads.confirm(b"short").is_none());
        assert_eq!(reads.len(), 1);
    }

    #[test]
    fn a_lost_round_is_issued_again_under_another_mark() {
        let mut reads = with_reads([1]);
        let lost = reads.issue(Term(1), 10);
        reads.retry(59, 50);
        assert!(!reads.waiting(), "too early");
        reads.retry(60, 50);
        assert!(reads.waiting());
        let second = reads.issue(Term(1), 60);
        assert!(reads.confirm(&lost).is_none());
        assert_eq!(reads.confirm(&second).unwrap().ids(), [ReadId(1)]);
    }

    #[test]
    fn reads_that_nobody_confirms_expire_each_at_its_own_time() {
        let mut reads = with_reads([1]);
        reads.issue(Term(1), 0);
        reads.push(ReadId(2), false, 40);
        assert!(reads.expire(99, 100).is_empty());
        assert_eq!(reads.expire(100, 100), [ReadId(1)]);
        assert_eq!(reads.expire(140, 100), [ReadId(2)]);
        assert!(reads.is_empty());
    }
}
