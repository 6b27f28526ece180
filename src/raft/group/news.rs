//! When the others hear that something is committed.
//!
//! The next append says it in passing, and while commands keep coming the next one is never far. A message of
//! its own for each commit, with the answer to it, is half of what replicas say to each other. So a busy
//! leader keeps the news back for a moment, in the hope of an append; one whose commands are rare, or who has
//! hoped in vain, tells it at once. Who asks for a read point need not wait: the round of heartbeats that
//! confirms it says it as well.

use super::Group;
use crate::id::Index;
use crate::raft::shard::Turn;

/// What a leader has told of its commits.
#[derive(Default)]
pub(super) struct News {
    /// What was committed when something that says so last went to all others.
    told: Index,
    /// The latest commit, and when it was noticed.
    latest: (Index, u64),
    /// How many appends in a row came soon after a commit.
    soon: u32,
    /// Since when something is kept back.
    kept_since_ms: Option<u64>,
    /// Whether the shard will visit the group for that.
    visit_due: bool,
}

/// So many appends must have come soon after a commit before the next is hoped for.
const SOON_MIN: u32 = 8;

impl News {
    /// A new leader's first append says what is committed.
    pub(super) fn lead(&mut self, committed: Index) {
        (self.told, self.soon, self.kept_since_ms) = (committed, 0, None);
    }

    /// An append goes to all others and says what is committed.
    pub(super) fn appended(&mut self, committed: Index, now_ms: u64, delay_ms: u64) {
        let soon = now_ms.saturating_sub(self.latest.1) < delay_ms;
        self.soon = if soon { self.soon.saturating_add(1) } else { 0 };
        (self.told, self.kept_since_ms) = (committed, None);
    }
}

impl Group {
    /// Tells the others what is committed, or keeps it back.
    pub(super) fn spread_news(&mut self, turn: &mut Turn) {
        let committed = self.committed();
        if committed <= self.news.told || !self.leads() || !self.has_peers() {
            return;
        }
        let (now_ms, delay_ms) = (turn.now.monotonic_ms, turn.config.news_delay_ms);
        if committed > self.news.latest.0 {
            self.news.latest = (committed, now_ms);
        }
        match self.news.kept_since_ms {
            None if self.news.soon < SOON_MIN => self.tell_news(committed),
            Some(since_ms) if now_ms >= since_ms + delay_ms => {
                self.news.soon = 0;
                self.tell_news(committed);
            }
            _ => {
                let since_ms = *self.news.kept_since_ms.get_or_insert(now_ms);
                if !std::mem::replace(&mut self.news.visit_due, true) {
                    turn.dues.insert((since_ms + delay_ms, self.id));
                }
            }
        }
    }

    fn tell_news(&mut self, committed: Index) {
        self.node.raft.bcast_append();
        (self.news.told, self.news.kept_since_ms) = (committed, None);
    }

    /// The time has come for which this was asked for.
    pub(in crate::raft) fn visited(&mut self) {
        self.news.visit_due = false;
    }

    pub(super) fn committed(&self) -> Index {
        Index(self.node.raft.raft_log.committed)
    }
}
