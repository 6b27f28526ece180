//! What the replicas of a group tell each other, in the project's own words.
//!
//! `net` puts these on the wire in its own encoding. Bytes from the network never reach the engine's protobuf
//! decoder, which can be made to overflow the stack (RUSTSEC-2024-0437); nor can a peer send what only this
//! process may say (proposals, campaigns, reports), because there are no words for it here.

use bytes::Bytes;
use raft::eraftpb::{self, MessageType};

use crate::id::{Index, LogTime, ReplicaId, Term};
use crate::raft::log_cache::{from_engine, to_engine};
use crate::storage::entry::Entry;

/// Marks a request for a vote in an election that the leader itself asked for: it overrides the leader's
/// lease.
const TRANSFER: &[u8] = b"CampaignTransfer";

/// A message from one replica of a group to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMessage {
    /// Who sends it.
    pub from: ReplicaId,
    /// Whom it is for. A replica of an earlier life does not read its successor's messages.
    pub to: ReplicaId,
    /// The sender's term, or the term it stands for. 0 in questions about reads, which are good in any term.
    pub term: Term,
    /// What it says.
    pub body: PeerBody,
}

/// The kinds of message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerBody {
    /// Leader to follower: these entries come after that one.
    Append {
        /// The entry before them.
        previous: (Index, Term),
        /// The entries, without gaps; may be empty.
        entries: Vec<Entry>,
        /// What the leader knows to be committed.
        commit: Index,
    },
    /// Follower to leader: everything up to `index` is here and synced.
    Appended {
        /// The last entry that matches the leader's.
        index: Index,
        /// What the follower knows to be committed.
        commit: Index,
    },
    /// Follower to leader: the entry before those sent is not here.
    Rejected {
        /// The entry that was asked for.
        index: Index,
        /// An entry that may match, and its term here.
        hint: (Index, Term),
        /// What the follower knows to be committed.
        commit: Index,
    },
    /// Leader to follower: still leading.
    Heartbeat {
        /// What the follower may take as committed.
        commit: Index,
        /// The mark of a round of reads; may be empty.
        context: Bytes,
    },
    /// Follower to leader: still following.
    HeartbeatReply {
        /// What the follower knows to be committed.
        commit: Index,
        /// The mark that came with the heartbeat.
        context: Bytes,
    },
    /// Candidate to voter.
    RequestVote {
        /// Only a question whether a real request would find support.
        trial: bool,
        /// The candidate's last entry.
        last: (Index, Term),
        /// What the candidate knows to be committed.
        commit: (Index, Term),
        /// The leader asked for this election.
        transfer: bool,
    },
    /// Voter to candidate.
    Vote {
        /// The answer to a trial.
        trial: bool,
        /// Yes or no.
        granted: bool,
        /// What the voter knows to be committed, if it said no.
        commit: (Index, Term),
    },
    /// Leader to follower: stand for election now, I step back.
    TimeoutNow,
    /// Leader to follower: all have everything up to `last` and know that it is committed; nothing is heard
    /// of me until something happens.
    Sleep {
        /// The last entry.
        last: Index,
    },
    /// Follower to leader: from which index on may reads be served?
    ReadIndex {
        /// The mark of the round of reads.
        context: Bytes,
    },
    /// Leader to follower: from this one.
    ReadIndexReply {
        /// The read point's index.
        index: Index,
        /// What the leader's log clock shows. The engine does not carry it.
        time: LogTime,
        /// The mark that came with the question.
        context: Bytes,
    },
}

impl PeerBody {
    /// Whether it asks for a vote, on trial or in earnest.
    pub fn asks_for_vote(&self) -> bool {
        matches!(self, PeerBody::RequestVote { .. })
    }

    /// Whether only a leader says such things, to those who follow it.
    pub(super) fn is_of_leader(&self) -> bool {
        matches!(self, PeerBody::Append { .. } | PeerBody::Heartbeat { .. })
    }
}

/// The engine's form of a message; none for what the engine does not know.
pub(super) fn to_engine_message(message: PeerMessage) -> Option<eraftpb::Message> {
    let (from, to, term) = (message.from.0, message.to.0, message.term.0);
    let mut out = eraftpb::Message { from, to, term, ..eraftpb::Message::default() };
    out.set_msg_type(type_of(&message.body)?);
    match message.body {
        PeerBody::Append { previous, entries, commit } => {
            (out.index, out.log_term, out.commit) = (previous.0.0, previous.1.0, commit.0);
            out.set_entries(entries.into_iter().map(to_engine).collect());
        }
        PeerBody::Appended { index, commit } => (out.index, out.commit) = (index.0, commit.0),
        PeerBody::Rejected { index, hint, commit } => {
            (out.index, out.commit, out.reject) = (index.0, commit.0, true);
            (out.reject_hint, out.log_term) = (hint.0.0, hint.1.0);
        }
        PeerBody::Heartbeat { commit, context } | PeerBody::HeartbeatReply { commit, context } => {
            out.commit = commit.0;
            out.context = context;
        }
        PeerBody::RequestVote { last, commit, transfer, .. } => {
            (out.index, out.log_term) = (last.0.0, last.1.0);
            (out.commit, out.commit_term) = (commit.0.0, commit.1.0);
            if transfer {
                out.context = Bytes::from_static(TRANSFER);
            }
        }
        PeerBody::Vote { granted, commit, .. } => {
            out.reject = !granted;
            (out.commit, out.commit_term) = (commit.0.0, commit.1.0);
        }
        PeerBody::TimeoutNow | PeerBody::Sleep { .. } => {}
        PeerBody::ReadIndex { context } => out.set_entries(vec![marked(context)].into()),
        PeerBody::ReadIndexReply { index, context, .. } => {
            out.index = index.0;
            out.set_entries(vec![marked(context)].into());
        }
    }
    Some(out)
}

fn marked(context: Bytes) -> eraftpb::Entry {
    eraftpb::Entry { data: context, ..eraftpb::Entry::default() }
}

fn type_of(body: &PeerBody) -> Option<MessageType> {
    Some(match body {
        PeerBody::Append { .. } => MessageType::MsgAppend,
        PeerBody::Appended { .. } | PeerBody::Rejected { .. } => MessageType::MsgAppendResponse,
        PeerBody::Heartbeat { .. } => MessageType::MsgHeartbeat,
        PeerBody::HeartbeatReply { .. } => MessageType::MsgHeartbeatResponse,
        PeerBody::RequestVote { trial: true, .. } => MessageType::MsgRequestPreVote,
        PeerBody::RequestVote { trial: false, .. } => MessageType::MsgRequestVote,
        PeerBody::Vote { trial: true, .. } => MessageType::MsgRequestPreVoteResponse,
        PeerBody::Vote { trial: false, .. } => MessageType::MsgRequestVoteResponse,
        PeerBody::TimeoutNow => MessageType::MsgTimeoutNow,
        PeerBody::ReadIndex { .. } => MessageType::MsgReadIndex,
        PeerBody::ReadIndexReply { .. } => MessageType::MsgReadIndexResp,
        PeerBody::Sleep { .. } => return None,
    })
}

/// The project's form of a message; none for what replicas do not tell each other here.
pub(super) fn from_engine_message(mut message: eraftpb::Message) -> Option<PeerMessage> {
    let commit = Index(message.commit);
    let commit_at = (commit, Term(message.commit_term));
    let at = (Index(message.index), Term(message.log_term));
    let body = match message.get_msg_type() {
        MessageType::MsgAppend => {
            let entries = message.entries.iter().map(from_engine).collect();
            PeerBody::Append { previous: at, entries, commit }
        }
        MessageType::MsgAppendResponse if message.reject => {
            PeerBody::Rejected { index: at.0, hint: (Index(message.reject_hint), at.1), commit }
        }
        MessageType::MsgAppendResponse => PeerBody::Appended { index: at.0, commit },
        MessageType::MsgHeartbeat => PeerBody::Heartbeat { commit, context: message.take_context() },
        MessageType::MsgHeartbeatResponse => {
            PeerBody::HeartbeatReply { commit, context: message.take_context() }
        }
        kind @ (MessageType::MsgRequestVote | MessageType::MsgRequestPreVote) => PeerBody::RequestVote {
            trial: kind == MessageType::MsgRequestPreVote,
            last: at,
            commit: commit_at,
            transfer: message.context == TRANSFER,
        },
        kind @ (MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse) => {
            PeerBody::Vote {
                trial: kind == MessageType::MsgRequestPreVoteResponse,
                granted: !message.reject,
                commit: commit_at,
            }
        }
        MessageType::MsgTimeoutNow => PeerBody::TimeoutNow,
        MessageType::MsgReadIndex => PeerBody::ReadIndex { context: mark_of(&message)? },
        MessageType::MsgReadIndexResp => {
            PeerBody::ReadIndexReply { index: at.0, time: LogTime(0), context: mark_of(&message)? }
        }
        _ => return None,
    };
    let (from, to) = (ReplicaId(message.from), ReplicaId(message.to));
    Some(PeerMessage { from, to, term: Term(message.term), body })
}

fn mark_of(message: &eraftpb::Message) -> Option<Bytes> {
    message.entries.first().map(|entry| entry.data.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::entry::EntryKind;

    #[test]
    fn every_message_survives_the_way_through_the_engines_form() {
        let at = (Index(7), Term(2));
        let data = Bytes::from_static(b"data");
        let entry = |kind| Entry { index: Index(8), term: Term(3), kind, data: data.clone() };
        let context = Bytes::from_static(b"mark");
        let bodies = [
            PeerBody::Append {
                previous: at,
                entries: vec![entry(EntryKind::Batch), entry(EntryKind::Membership)],
                commit: Index(5),
            },
            PeerBody::Appended { index: Index(8), commit: Index(5) },
            PeerBody::Rejected { index: Index(8), hint: at, commit: Index(5) },
            PeerBody::Heartbeat { commit: Index(5), context: context.clone() },
            PeerBody::HeartbeatReply { commit: Index(5), context: Bytes::new() },
            PeerBody::RequestVote { trial: true, last: at, commit: at, transfer: false },
            PeerBody::RequestVote { trial: false, last: at, commit: at, transfer: true },
            PeerBody::Vote { trial: true, granted: true, commit: (Index(0), Term(0)) },
            PeerBody::Vote { trial: false, granted: false, commit: at },
            PeerBody::TimeoutNow,
            PeerBody::ReadIndex { context: context.clone() },
            PeerBody::ReadIndexReply { index: Index(9), time: LogTime(0), context },
        ];
        for body in bodies {
            let message = PeerMessage { from: ReplicaId(1), to: ReplicaId(2), term: Term(4), body };
            assert_eq!(from_engine_message(to_engine_message(message.clone()).unwrap()), Some(message));
        }
    }

    #[test]
    fn what_only_this_process_may_say_has_no_words() {
        for local in [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgSnapStatus] {
            let mut message = eraftpb::Message::default();
            message.set_msg_type(local);
            assert_eq!(from_engine_message(message), None);
        }
    }
}
