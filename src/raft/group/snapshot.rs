//! Followers that need what the log no longer has, and how a snapshot takes the place of a log.
//!
//! The data goes from node to node out of band; here are only its positions. A leader names who needs a
//! snapshot and waits for the end of the transfer. A follower is told of one that is staged on its disk: it
//! starts its log again behind it (synced first), and only then has the staged state installed. So a crash
//! leaves either the old log with the old state, or a log that begins where the staged snapshot ends.
//!
//! A replica whose state is to be replaced although its log is good gets a snapshot that ends within its log:
//! nothing of the log changes then, and what it acknowledged counts as before.
//!
//! Must never: let a snapshot take the place of anything newer. What this replica acknowledged stays.

use raft::eraftpb::{self, MessageType};
use raft::{ProgressState, SnapshotStatus, StateRole};

use super::Group;
use crate::id::{Index, LogTime, ReplicaId, Term};
use crate::raft::membership;
use crate::raft::output::{ApplyJob, SnapshotHead, SnapshotWanted};
use crate::raft::shard::{ShardConfig, Turn};
#[cfg(test)]
use crate::raft::simulation::Bug;
use crate::storage::entry::LogWrite;

/// A snapshot whose log write is not synced yet; after that its state is installed.
#[derive(Debug)]
pub(super) struct Staged {
    /// The number of the write that starts the log again.
    number: u64,
    head: SnapshotHead,
}

/// A snapshot that is staged on this node's disk.
#[derive(Debug)]
pub(in crate::raft) struct Received {
    /// The replica that sent it, and the term in which it was asked for.
    pub(in crate::raft) from: ReplicaId,
    pub(in crate::raft) term: Term,
    /// Where it stands in the log.
    pub(in crate::raft) head: SnapshotHead,
    /// The stamp of the last batch that it holds.
    pub(in crate::raft) time_floor: LogTime,
    /// Whether it may take the place of the state alone.
    pub(in crate::raft) reseed: bool,
}

impl Group {
    /// The log is no longer needed up to here, as far as this replica is concerned.
    pub(in crate::raft) fn truncate(&mut self, to: Index, turn: &mut Turn) {
        let to = to.min(self.applied).min(self.needed_by_others(turn.config));
        if to <= self.node.store().start() {
            return;
        }
        let term = self.node.mut_store().truncate(to);
        *turn.last_write += 1;
        let number = *turn.last_write;
        turn.out.log.push(LogWrite {
            group: self.id,
            number,
            truncate: Some((to, term)),
            ..LogWrite::default()
        });
    }

    /// The last entry that the log need not keep for others. Those who lag further than the limit will need a
    /// snapshot; to those who get one now, what follows it is kept.
    fn needed_by_others(&self, config: &ShardConfig) -> Index {
        if !self.has_peers() {
            return Index(u64::MAX);
        }
        let many = Index(self.applied.0.saturating_sub(config.lag_entries_max));
        let far = many.max(self.node.store().end_of_rest(config.lag_bytes_max));
        if !self.leads() {
            // Who lags how far is known to the leader only; tomorrow this may be the leader.
            return far;
        }
        let others = self.node.raft.prs().iter().filter(|(id, _)| **id != self.replica.0);
        others
            .map(|(_, progress)| match progress.state {
                ProgressState::Snapshot => Index(progress.pending_snapshot),
                _ => Index(progress.matched).max(far),
            })
            .min()
            .unwrap_or(Index(u64::MAX))
    }

    /// Says who needs a snapshot, in place of the engine's message.
    pub(super) fn offer_snapshot(&self, message: &eraftpb::Message, turn: &mut Turn) {
        let to = ReplicaId(message.to);
        let least = Index(message.get_snapshot().get_metadata().index);
        let (group, term) = (self.id, Term(message.term));
        // Without a known node nobody can say later how it ended; but who asked for entries has spoken.
        if let Some(&node) = self.nodes.get(&to) {
            turn.out.snapshots.push(SnapshotWanted { group, to, node, term, least });
        }
    }

    /// The transfer that was asked for has ended.
    pub(in crate::raft) fn snapshot_sent(&mut self, to: ReplicaId, arrived: bool) {
        self.wake();
        let end = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node.report_snapshot(to.0, end);
    }

    /// What goes with the state at an index that is applied here.
    pub(in crate::raft) fn snapshot_head(&self, index: Index) -> Option<SnapshotHead> {
        let known = self.node.store().start()..=self.applied;
        let term = known.contains(&index).then(|| self.node.raft.raft_log.term(index.0).ok())??;
        Some(SnapshotHead { index, term: Term(term), membership: self.membership.clone() })
    }

    /// A snapshot is staged on this node's disk. It is taken, or reported as unwanted.
    pub(in crate::raft) fn snapshot_received(&mut self, received: Received, turn: &mut Turn) {
        let Received { from, term, head, time_floor, reseed } = received;
        self.wake();
        // What came before gets its own ready, so that the snapshot's holds nothing else.
        self.take_readies(turn);
        let free = self.staged.is_none() && self.reseeding.is_none();
        let taken =
            free && self.step_snapshot(from, term, &head) && self.take_snapshot(&head, time_floor, turn);
        if free && !taken && reseed && self.halted && self.is_within_log(&head) {
            self.reseeding = Some(head);
            self.reseed_if_due(turn);
        } else if !taken {
            turn.out.unwanted.push((self.id, head.index));
        }
        self.set_election_timeout();
    }

    /// Whether the log holds the snapshot's last entry and knows it to be committed: then the state may be
    /// replaced and the log stays.
    fn is_within_log(&self, head: &SnapshotHead) -> bool {
        let log = &self.node.raft.raft_log;
        let known = self.node.store().start().0..=log.committed;
        known.contains(&head.index.0) && log.term(head.index.0).ok() == Some(head.term.0)
    }

    /// Has the state replaced once everything up to the snapshot's end was handed out: what is handed out is
    /// on this node's disk, so that a crash leaves no state that is ahead of its log.
    pub(super) fn reseed_if_due(&mut self, turn: &mut Turn) {
        let delivered = self.delivered;
        #[cfg(test)]
        let delivered = if turn.config.bug == Some(Bug::HastyReseed) { Index(u64::MAX) } else { delivered };
        if let Some(head) = self.reseeding.take_if(|head| head.index <= delivered) {
            turn.out.apply.push(ApplyJob { group: self.id, snapshot: Some(head), entries: Vec::new() });
        }
    }

    /// Shows the engine a snapshot. False if this replica has no use for it.
    fn step_snapshot(&mut self, from: ReplicaId, term: Term, head: &SnapshotHead) -> bool {
        let raft = &self.node.raft;
        if raft.state != StateRole::Follower || head.index.0 <= raft.raft_log.committed {
            return false;
        }
        // The leader may have changed since the transfer began. The snapshot is as good as before, but the
        // answer belongs to the new leader.
        let outdated = term.0 < raft.term;
        if outdated && raft.leader_id == raft::INVALID_ID {
            return false;
        }
        let (from, term) = if outdated { (raft.leader_id, raft.term) } else { (from.0, term.0) };
        let mut message = eraftpb::Message { from, term, to: self.replica.0, ..Default::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (head.index.0, head.term.0);
        metadata.set_conf_state(membership::to_engine(&head.membership.1));
        // Refused only if it came from nobody; a follower steps whatever a leader sends.
        self.node.step(message).is_ok()
    }

    /// Lets the snapshot take the log's place, if the engine took it. It does not if the log holds that entry
    /// already, or if this replica is not a member.
    fn take_snapshot(&mut self, head: &SnapshotHead, time_floor: LogTime, turn: &mut Turn) -> bool {
        if self.node.snap().is_none() {
            return false;
        }
        let SnapshotHead { index, term, membership } = head.clone();
        let mut ready = self.node.ready();
        let number = ready.number();
        assert!(ready.entries().is_empty() && ready.committed_entries().is_empty(), "a snapshot alone");
        let mut messages = ready.take_messages();
        messages.append(&mut ready.take_persisted_messages());
        if let Some(changed) = ready.hs() {
            self.unsynced.set_hard_state(crate::raft::start::from_engine(changed));
        }
        self.node.mut_store().restart((index, term), time_floor);
        self.node.advance_append_async(ready);
        // Said before it is true, because the engine, should it stand for election meanwhile, would look for
        // entries below the snapshot and break. Nothing leaves before the write is synced all the same:
        // every message of a follower waits for the last write.
        self.node.on_persist_ready(number);
        self.node.advance_apply_to(index.0);
        (self.membership, self.delivered) = (membership.clone(), index);
        let lost = self.proposals.give_up_in_flight(None).into_iter();
        turn.out.refused.extend(lost.map(|id| (id, crate::raft::ProposeError::Unknown)));
        *turn.last_write += 1;
        let number_of_write = *turn.last_write;
        let own_term = Term(self.node.raft.term);
        turn.out.log.push(LogWrite {
            group: self.id,
            number: number_of_write,
            hard_state: self.unsynced.push(number_of_write, number, own_term, messages),
            truncate: Some((index, term)),
            membership: Some(membership),
            ..LogWrite::default()
        });
        self.staged = Some(Staged { number: number_of_write, head: head.clone() });
        true
    }

    /// Has a staged snapshot installed once the log begins behind it.
    pub(super) fn install_staged(&mut self, number: u64, turn: &mut Turn) {
        if let Some(staged) = self.staged.take_if(|staged| staged.number <= number) {
            turn.out.apply.push(ApplyJob {
                group: self.id,
                snapshot: Some(staged.head),
                entries: Vec::new(),
            });
        }
    }
}
