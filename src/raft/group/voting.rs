//! When this replica stands for election, and when it may vote: not against a leader that it has promised to
//! be patient with.

use super::Group;
use crate::raft::message::{PeerBody, PeerMessage};
use crate::raft::shard::Turn;
#[cfg(test)]
use crate::raft::simulation::Bug;

impl Group {
    /// Stands for election now, unless that would be disloyal.
    pub(in crate::raft) fn campaign(&mut self, turn: &mut Turn) {
        self.wake();
        if self.alone() {
            self.campaign_alone();
        } else if !self.leads() && self.node.raft.promotable() && !self.loyalty.binds(turn.now.monotonic_ms) {
            // Refused while a committed change of membership is not applied; the next timeout tries again.
            let _ = self.node.campaign();
            self.set_election_timeout();
        }
    }

    /// The only voter leads as soon as its whole log is synced: the engine relies on that.
    pub(super) fn campaign_alone(&mut self) {
        let log = &self.node.raft.raft_log;
        if !self.leads() && self.unsynced.is_empty() && log.persisted == log.last_index() {
            // Refused while a committed change of membership is not applied; every later call tries again.
            let _ = self.node.campaign();
            self.set_election_timeout();
        }
    }

    /// Whether it asks for a vote that was promised to be given to nobody. An election that the leader itself
    /// asked for is none of that: it has given up its lease.
    pub(super) fn is_disloyal(&self, message: &PeerMessage, turn: &Turn) -> bool {
        let asks = matches!(message.body, PeerBody::RequestVote { transfer: false, .. });
        #[cfg(test)]
        let asks = asks && turn.config.bug != Some(Bug::PatienceInTicks);
        asks && self.loyalty.binds(turn.now.monotonic_ms)
    }

    /// Whether the next tick would make this replica stand for election before the time for which it has
    /// promised not to; ticks can come in bursts. A tick longer, because the others heard the leader as late
    /// as this one did: who asks them too early waits for another timeout.
    pub(super) fn is_impatient(&self, turn: &Turn) -> bool {
        let raft = &self.node.raft;
        let stands = raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        let patience_ms = turn.now.monotonic_ms.saturating_sub(turn.config.tick_ms);
        #[cfg(test)]
        let stands = stands && turn.config.bug != Some(Bug::PatienceInTicks);
        !self.leads() && stands && self.loyalty.binds(patience_ms)
    }

    /// The state is not to be relied on, or is again.
    pub(in crate::raft) fn set_halted(&mut self, halted: bool) {
        (self.halted, self.held_back_ticks) = (halted, 0);
    }

    /// Whether a replica that cannot serve as a leader leaves it to the others to stand for election. Not for
    /// ever: if only its log has all that is committed, nobody else can win, and it leads to pass that on.
    pub(super) fn holds_back(&mut self, election_ticks: usize) -> bool {
        const TIMEOUTS: usize = 5;
        let raft = &self.node.raft;
        let stands = raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        if !self.halted || self.leads() || !stands || self.held_back_ticks >= TIMEOUTS * election_ticks {
            self.held_back_ticks = 0;
            return false;
        }
        self.held_back_ticks += 1;
        true
    }

    /// Gives the engine our own election timeout in place of the one it drew by chance; after every call that
    /// can make it draw.
    pub(super) fn set_election_timeout(&mut self) {
        let ticks = self.election_timeout.ticks(self.node.raft.term, self.node.raft.state as u8);
        self.node.raft.set_randomized_election_timeout(ticks);
    }
}
