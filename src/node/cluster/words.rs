//! What nodes ask each other beside Raft's messages, and how it is answered: our own protobuf, inside the
//! peer link's frames.

use bytes::Bytes;
use prost::Message;

pub use super::watch_words::{WatchWords, WatchedWords};
use crate::error::Error;
use crate::id::{GroupId, Index, LogTime, NodeId, ReplicaId, Revision, StateHash, Term};
use crate::machine::batch::Operation;
use crate::machine::outcome::{Outcome, OutcomeRow};
use crate::machine::settings::Settings;
use crate::node::explanation::{Effects, Explanation};
use crate::node::request::{Answered, Applied, Consistency, LeasePage, NodeReport, ReplicaLog};
use crate::raft::SnapshotHead;
use crate::storage::entry::Membership;

/// A question to another node.
#[derive(Clone, PartialEq, Message)]
pub struct Ask {
    /// Which; none: a newer version asks.
    #[prost(oneof = "Question", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17")]
    pub question: Option<Question>,
}

/// The kinds of question.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Question {
    /// Put an operation into a group's log, if you lead it.
    #[prost(message, tag = "1")]
    Propose(Propose),
    /// Answer a query of a machine of which the asker has no replica.
    #[prost(message, tag = "2")]
    Query(Query),
    /// Take in a module, by fetching it from the asker: its digest.
    #[prost(bytes = "vec", tag = "3")]
    TakeModule(Vec<u8>),
    /// Take a snapshot, by fetching it from the asker.
    #[prost(message, tag = "4")]
    TakeSnapshot(SnapshotOffer),
    /// Have another replica lead a group that you lead.
    #[prost(message, tag = "5")]
    Transfer(Transfer),
    /// Put your hash into the log of this group, if you lead it.
    #[prost(uint64, tag = "6")]
    Beacon(u64),
    /// How does your replica stand when it has come to this index?
    #[prost(message, tag = "7")]
    Stand(At),
    /// How are you?
    #[prost(message, tag = "8")]
    Report(()),
    /// Where does your replica of this group stand in its log?
    #[prost(uint64, tag = "9")]
    ReplicaLog(u64),
    /// Give your replica of this group the leader's state in place of its own.
    #[prost(uint64, tag = "10")]
    Reseed(u64),
    /// Send my replica of a group that you lead your state.
    #[prost(message, tag = "11")]
    Seed(Seed),
    /// Why has your replica of this group halted?
    #[prost(uint64, tag = "12")]
    Explain(u64),
    /// You lead this group: where do our replicas' ways part?
    #[prost(message, tag = "13")]
    Compare(Compare),
    /// What comes next of a watch of a machine of which the asker has no replica?
    #[prost(message, tag = "14")]
    Watch(WatchWords),
    /// Which leases has a machine of which the asker has no replica?
    #[prost(message, tag = "15")]
    Leases(LeasesWords),
    /// What is settled for the machine of this group when your replica has come to this index?
    #[prost(message, tag = "16")]
    Settings(At),
    /// Tell when you have compiled a module that you took in: its digest.
    #[prost(bytes = "vec", tag = "17")]
    CompileModule(Vec<u8>),
}

/// See [`Question::Leases`].
#[derive(Clone, PartialEq, Message)]
pub struct LeasesWords {
    /// The machine's name.
    #[prost(string, tag = "1")]
    pub machine: String,
    /// This one, with its keys; none: those that follow.
    #[prost(uint64, optional, tag = "2")]
    pub id: Option<u64>,
    /// Those after this id.
    #[prost(uint64, tag = "3")]
    pub after: u64,
    /// At most so many; 0: a page.
    #[prost(uint32, tag = "4")]
    pub limit: u32,
    /// Of the one that is asked for by its id, the keys after this one; none: the first.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub keys_after: Option<Bytes>,
}

/// See [`Question::Compare`].
#[derive(Clone, PartialEq, Message)]
pub struct Compare {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The batches that this replica remembers, in order, and the first bytes of the hash after each.
    #[prost(uint64, repeated, tag = "2")]
    indexes: Vec<u64>,
    #[prost(fixed64, repeated, tag = "3")]
    hashes: Vec<u64>,
}

impl Compare {
    /// Of a replica that remembers these.
    pub fn new(group: GroupId, passed: impl Iterator<Item = (Index, u64)>) -> Compare {
        let (indexes, hashes) = passed.map(|(index, hash)| (index.0, hash)).unzip();
        Compare { group: group.0, indexes, hashes }
    }

    /// What it remembers.
    pub fn passed(&self) -> impl Iterator<Item = (Index, u64)> {
        self.indexes.iter().copied().map(Index).zip(self.hashes.iter().copied())
    }
}

/// The answer to [`Question::Compare`].
#[derive(Clone, PartialEq, Message)]
pub struct Compared {
    #[prost(uint64, optional, tag = "1")]
    agreed: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    differed: Option<u64>,
    /// What the leader's batch at `differed` did, if it remembers.
    #[prost(message, optional, tag = "3")]
    pub effects: Option<Effects>,
}

impl Compared {
    /// The last index at which both have the same hash, and the first at which they do not.
    pub fn new(agreed: Option<Index>, differed: Option<Index>, effects: Option<Effects>) -> Compared {
        Compared { agreed: agreed.map(|index| index.0), differed: differed.map(|index| index.0), effects }
    }

    /// The last index at which both have the same hash, and the first at which they do not.
    pub fn parting(&self) -> (Option<Index>, Option<Index>) {
        (self.agreed.map(Index), self.differed.map(Index))
    }
}

/// See [`Question::Seed`].
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Seed {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The replica that is to get it.
    #[prost(uint64, tag = "2")]
    pub to: u64,
}

/// See [`Question::Propose`].
#[derive(Clone, PartialEq, Message)]
pub struct Propose {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// What to do.
    #[prost(message, required, tag = "2")]
    pub operation: Operation,
}

/// See [`Question::Query`].
#[derive(Clone, PartialEq, Message)]
pub struct Query {
    /// The machine's name.
    #[prost(string, tag = "1")]
    pub machine: String,
    /// What is asked of it.
    #[prost(bytes = "bytes", tag = "2")]
    pub request: Bytes,
    /// 0: linearizable, 1: lease, 2: local.
    #[prost(uint32, tag = "3")]
    pub consistency: u32,
    /// For a local one.
    #[prost(uint64, tag = "4")]
    pub min_index: u64,
}

/// See [`Question::Transfer`].
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Transfer {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The next leader's replica.
    #[prost(uint64, tag = "2")]
    pub to: u64,
}

/// A place in a group's log.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct At {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The index.
    #[prost(uint64, tag = "2")]
    pub index: u64,
}

/// How a replica stands.
#[derive(Clone, PartialEq, Message)]
pub struct Standing {
    /// The last applied index.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// The rolling hash there.
    #[prost(bytes = "vec", tag = "2")]
    hash: Vec<u8>,
    /// Why it does not serve, if it does not.
    #[prost(string, optional, tag = "3")]
    pub halted: Option<String>,
}

impl Standing {
    /// A replica that stands there.
    pub fn new(index: Index, hash: StateHash, halted: Option<String>) -> Standing {
        Standing { index: index.0, hash: hash.0.to_vec(), halted }
    }

    /// Its hash.
    pub fn state_hash(&self) -> Result<StateHash, Error> {
        self.hash.as_slice().try_into().map(StateHash).map_err(|_| not_understood())
    }
}

/// A snapshot that a leader has for a replica that is behind the log.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotOffer {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The leader's replica.
    #[prost(uint64, tag = "2")]
    pub from: u64,
    /// The term in which it was asked for.
    #[prost(uint64, tag = "3")]
    pub term: u64,
    /// Where the state stands in the log.
    #[prost(uint64, tag = "4")]
    pub index: u64,
    /// The term of that entry.
    #[prost(uint64, tag = "5")]
    pub index_term: u64,
    /// Since which index the membership holds.
    #[prost(uint64, tag = "6")]
    pub membership_since: u64,
    /// Who is in the group.
    #[prost(message, required, tag = "7")]
    pub membership: MembershipWords,
    /// The stamp of the last batch in the state.
    #[prost(uint64, tag = "8")]
    pub time_ms: u64,
    /// The replica that it is for.
    #[prost(uint64, tag = "9")]
    pub to: u64,
    /// Whether it is to take the place of a state whose log is good.
    #[prost(bool, tag = "10")]
    pub reseed: bool,
}

/// A group's membership.
#[derive(Clone, PartialEq, Message)]
pub struct MembershipWords {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    auto_leave: bool,
}

impl SnapshotOffer {
    /// The offer of a state that stands at `head` in its group's log.
    pub fn new(
        group: GroupId,
        (from, to): (ReplicaId, ReplicaId),
        term: Term,
        head: &SnapshotHead,
        time: LogTime,
    ) -> SnapshotOffer {
        let Membership { voters, learners, voters_outgoing, learners_next, auto_leave } =
            head.membership.1.clone();
        SnapshotOffer {
            group: group.0,
            from: from.0,
            term: term.0,
            index: head.index.0,
            index_term: head.term.0,
            membership_since: head.membership.0.0,
            membership: MembershipWords { voters, learners, voters_outgoing, learners_next, auto_leave },
            time_ms: time.0,
            to: to.0,
            reseed: false,
        }
    }

    /// Where the state stands in the group's log.
    pub fn head(&self) -> SnapshotHead {
        let MembershipWords { voters, learners, voters_outgoing, learners_next, auto_leave } =
            self.membership.clone();
        let membership = Membership { voters, learners, voters_outgoing, learners_next, auto_leave };
        SnapshotHead {
            index: Index(self.index),
            term: Term(self.index_term),
            membership: (Index(self.membership_since), membership),
        }
    }
}

/// The answer to a question.
#[derive(Clone, PartialEq, Message)]
pub struct Reply {
    /// Which; none: a newer version answers.
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub answer: Option<Answer>,
}

/// The kinds of answer.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    /// It was done, and there is nothing to tell.
    #[prost(message, tag = "1")]
    Done(()),
    /// What became of an operation or a query.
    #[prost(message, tag = "2")]
    Outcome(OutcomeRow),
    /// It failed.
    #[prost(message, tag = "3")]
    Failed(Failure),
    /// How a replica stands.
    #[prost(message, tag = "4")]
    Standing(Standing),
    /// How a node is.
    #[prost(message, tag = "5")]
    Report(NodeReport),
    /// Where a replica stands in its log.
    #[prost(message, tag = "6")]
    ReplicaLog(ReplicaLog),
    /// Why a replica halted.
    #[prost(message, tag = "7")]
    Explained(Explanation),
    /// Where two replicas' ways part.
    #[prost(message, tag = "8")]
    Compared(Compared),
    /// What was settled for a machine.
    #[prost(message, tag = "11")]
    Settings(Settings),
    /// What comes next of a watch.
    #[prost(message, tag = "9")]
    Watched(WatchedWords),
    /// Leases of a machine.
    #[prost(message, tag = "10")]
    Leases(LeasePage),
}

/// Why something failed.
#[derive(Clone, PartialEq, Message)]
pub struct Failure {
    /// The error's kind, see `KINDS`.
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    text: String,
    /// Of `NotLeader`.
    #[prost(uint64, optional, tag = "3")]
    leader: Option<u64>,
    /// Of `Compacted`: what was asked for, and the first revision that is kept.
    #[prost(uint64, tag = "4")]
    asked: u64,
    #[prost(uint64, tag = "5")]
    first: u64,
}

impl Question {
    /// The bytes of the question.
    pub fn into_bytes(self) -> Bytes {
        Ask { question: Some(self) }.encode_to_vec().into()
    }

    /// Reads a question.
    pub fn read(bytes: Bytes) -> Result<Question, Error> {
        let ask = Ask::decode(bytes)
            .map_err(|e| Error::Invalid(format!("a question of another node does not decode: {e}")))?;
        let unknown = "this node does not know what it is asked: the other one has a newer version";
        ask.question.ok_or_else(|| Error::Invalid(unknown.into()))
    }
}

impl Query {
    /// The words of a query.
    pub fn new(machine: &str, request: Bytes, consistency: Consistency) -> Query {
        let (consistency, min_index) = match consistency {
            Consistency::Linearizable => (0, 0),
            Consistency::Lease => (1, 0),
            Consistency::Local { min_index } => (2, min_index.0),
        };
        Query { machine: machine.to_owned(), request, consistency, min_index }
    }

    /// How fresh the view must be. What is not known is answered in the strictest way.
    pub fn consistency(&self) -> Consistency {
        match self.consistency {
            1 => Consistency::Lease,
            2 => Consistency::Local { min_index: Index(self.min_index) },
            _ => Consistency::Linearizable,
        }
    }
}

/// The answer's bytes.
pub fn encode_reply(answer: Result<Answer, Error>) -> Bytes {
    let answer = answer.unwrap_or_else(|error| Answer::Failed(Failure::of(&error)));
    Reply { answer: Some(answer) }.encode_to_vec().into()
}

/// Reads an answer. What does not read leaves open whether the thing was done.
pub fn decode_reply(bytes: Bytes) -> Result<Answer, Error> {
    let reply = Reply::decode(bytes)
        .map_err(|e| Error::Unknown(format!("the answer of another node does not decode: {e}")))?;
    match reply.answer {
        Some(Answer::Failed(failure)) => Err(failure.error()),
        Some(answer) => Ok(answer),
        None => Err(not_understood()),
    }
}

fn not_understood() -> Error {
    Error::Unknown("the answer of another node is not one that was expected".into())
}

impl From<Applied> for Answer {
    fn from(applied: Applied) -> Answer {
        Answer::Outcome(OutcomeRow::of(&applied))
    }
}

impl From<Answered> for Answer {
    fn from(answered: Answered) -> Answer {
        let Answered { index, revision, outcome } = answered;
        Applied { index, revision, outcome: outcome.into() }.into()
    }
}

impl Answer {
    /// What became of an operation.
    pub fn applied(self) -> Result<Applied, Error> {
        let Answer::Outcome(row) = self else { return Err(not_understood()) };
        row.outcome().ok_or_else(not_understood)
    }

    /// What comes next of a watch.
    pub fn watched(self) -> Result<WatchedWords, Error> {
        match self {
            Answer::Watched(words) => Ok(words),
            _ => Err(not_understood()),
        }
    }

    /// Leases of a machine.
    pub fn leases(self) -> Result<LeasePage, Error> {
        match self {
            Answer::Leases(page) => Ok(page),
            _ => Err(not_understood()),
        }
    }

    /// What was settled for a machine.
    pub fn settings(self) -> Result<Settings, Error> {
        if let Answer::Settings(settings) = self { Ok(settings) } else { Err(not_understood()) }
    }

    /// The answer to a query.
    pub fn answered(self) -> Result<Answered, Error> {
        let Applied { index, revision, outcome } = self.applied()?;
        let outcome = match outcome {
            Outcome::Ok(answer) => Ok(answer),
            Outcome::Refused(refusal) => Err(refusal),
            Outcome::Host(_) => return Err(not_understood()),
        };
        Ok(Answered { index, revision, outcome })
    }
}

/// Makes an error that has nothing but a text.
type OfText = fn(String) -> Error;

/// The kinds of error that have nothing but a text, by their number on the wire.
const KINDS: [(u32, OfText); 15] = [
    (1, Error::Invalid),
    (2, Error::NotFound),
    (3, Error::AlreadyExists),
    (4, Error::TooLarge),
    (5, Error::FailedPrecondition),
    (6, Error::Overloaded),
    (7, Error::Unavailable),
    (8, Error::Unknown),
    (9, Error::DeadlineExceeded),
    (10, Error::Guest),
    (11, Error::Damaged),
    (15, Error::LimitReached),
    (16, Error::SessionExpired),
    (17, Error::NumberPassed),
    (18, Error::NumberAhead),
];
const NOT_LEADER: u32 = 12;
const FAULT: u32 = 13;
const COMPACTED: u32 = 14;

impl Failure {
    fn of(error: &Error) -> Failure {
        let (kind, leader) = match error {
            Error::Invalid(_) => (1, None),
            Error::NotFound(_) => (2, None),
            Error::AlreadyExists(_) => (3, None),
            Error::TooLarge(_) => (4, None),
            Error::FailedPrecondition(_) => (5, None),
            Error::Overloaded(_) => (6, None),
            Error::Unavailable(_) => (7, None),
            Error::Unknown(_) => (8, None),
            Error::DeadlineExceeded(_) => (9, None),
            Error::Guest(_) => (10, None),
            Error::Damaged(_) => (11, None),
            Error::LimitReached(_) => (15, None),
            Error::SessionExpired(_) => (16, None),
            Error::NumberPassed(_) => (17, None),
            Error::NumberAhead(_) => (18, None),
            Error::NotLeader { leader } => (NOT_LEADER, leader.map(|node| node.0)),
            Error::Fault(_) => (FAULT, None),
            Error::Compacted { .. } => (COMPACTED, None),
        };
        let (asked, first) = match error {
            Error::Compacted { asked, first } => (asked.0, first.0),
            _ => (0, 0),
        };
        Failure { kind, text: error.to_string(), leader, asked, first }
    }

    fn error(self) -> Error {
        let known = KINDS.into_iter().find(|(kind, _)| *kind == self.kind);
        match (known, self.kind) {
            (Some((_, error)), _) => error(self.text),
            (None, NOT_LEADER) => Error::NotLeader { leader: self.leader.map(NodeId) },
            (None, COMPACTED) => {
                Error::Compacted { asked: Revision(self.asked), first: Revision(self.first) }
            }
            // The other computer's, not this one's.
            (None, FAULT) => Error::Unknown(format!("the node that was asked failed: {}", self.text)),
            (None, _) => Error::Unknown(self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Revision;
    use crate::machine::outcome::{HostCode, Refusal};

    #[test]
    fn outcomes_come_back_as_they_went() {
        let refusal = Refusal { code: 7, message: "no".into() };
        let outcomes = [
            Outcome::Ok(Bytes::from_static(b"x")),
            Outcome::Ok(Bytes::new()),
            Outcome::Refused(refusal),
            Outcome::Host(HostCode::Exhausted),
        ];
        for outcome in outcomes {
            let applied = Applied { index: Index(3), revision: Revision(2), outcome };
            let bytes = encode_reply(Ok(applied.clone().into()));
            assert_eq!(decode_reply(bytes).unwrap().applied().unwrap(), applied);
        }
    }

    #[test]
    fn errors_come_back_as_they_went_but_for_faults() {
        for (kind, error) in KINDS {
            let bytes = encode_reply(Err(error("why".into())));
            let back = decode_reply(bytes).unwrap_err();
            assert_eq!(Failure::of(&back), Failure { kind, text: "why".into(), ..Failure::default() });
        }
        let not_leader = encode_reply(Err(Error::NotLeader { leader: Some(NodeId(4)) }));
        let back = decode_reply(not_leader).unwrap_err();
        assert!(matches!(back, Error::NotLeader { leader: Some(NodeId(4)) }), "{back:?}");
        let compacted = Error::Compacted { asked: Revision(2), first: Revision(5) };
        let back = decode_reply(encode_reply(Err(compacted))).unwrap_err();
        assert!(matches!(back, Error::Compacted { asked: Revision(2), first: Revision(5) }), "{back:?}");
        let fault = encode_reply(Err(crate::error::Fault::new("disk").into()));
        assert!(matches!(decode_reply(fault).unwrap_err(), Error::Unknown(text) if text.contains("disk")));
    }

    #[test]
    fn what_does_not_read_is_told() {
        assert!(matches!(decode_reply(Bytes::from_static(b"\xff")), Err(Error::Unknown(_))));
        assert!(matches!(decode_reply(Bytes::new()), Err(Error::Unknown(_))));
        assert!(matches!(Question::read(Bytes::from_static(b"\xff")), Err(Error::Invalid(_))));
        assert!(matches!(Question::read(Bytes::new()), Err(Error::Invalid(_))));
    }

    #[test]
    fn an_offer_says_where_the_state_stands() {
        let membership = Membership { voters: vec![1, 2], learners: vec![3], ..Membership::default() };
        let head = SnapshotHead { index: Index(9), term: Term(2), membership: (Index(4), membership) };
        let replicas = (ReplicaId(2), ReplicaId(5));
        let offer = SnapshotOffer::new(GroupId(1), replicas, Term(3), &head, LogTime(8));
        let bytes = Question::TakeSnapshot(offer.clone()).into_bytes();
        assert_eq!(Question::read(bytes).unwrap(), Question::TakeSnapshot(offer.clone()));
        assert_eq!(offer.head(), head);
    }

    #[test]
    fn queries_keep_their_consistency() {
        let all = [Consistency::Linearizable, Consistency::Lease, Consistency::Local { min_index: Index(5) }];
        for consistency in all {
            assert_eq!(Query::new("m", Bytes::new(), consistency).consistency(), consistency);
        }
    }
}
