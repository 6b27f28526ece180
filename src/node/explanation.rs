//! Where a replica left the way of the others: what each of two replicas did in the same batch, compared.
//!
//! Replicas tell each other digests, not contents: enough to name the first thing that differs. What is told
//! is also what is kept on disk beside the note that the replica halted, and what clients are answered.
//!
//! Promises: nothing is made up. Where something is no longer known it says so, and what it says of an index
//! is what both replicas remember of it.

use prost::Message;

use crate::id::{Index, NodeId};
use crate::machine::apply::Applied;
use crate::machine::batch::{Act, Batch, Head};
use crate::machine::lease::Tally;
use crate::machine::outcome::Outcome;
use crate::machine::view::Table;

/// Bytes of rows of one batch that are told to another replica; the rest is left off and counted.
const ROWS_BYTES_MAX: usize = 1 << 20;

/// How many differences of one batch are kept: whoever looks wants the first, and an impression.
const DIFFERENCES_MAX: usize = 20;

/// Why a replica halted, and where it left the way of the others, as far as that is known.
#[derive(Clone, PartialEq, Message)]
pub struct Explanation {
    /// Why it halted.
    #[prost(string, tag = "1")]
    pub why: String,
    /// The node whose replica it was compared with; 0 if with none.
    #[prost(uint64, tag = "2")]
    with: u64,
    /// The last index at which both are known to have had the same hash.
    #[prost(uint64, optional, tag = "3")]
    agreed: Option<u64>,
    /// The first index at which their hashes are known to differ.
    #[prost(uint64, optional, tag = "4")]
    differed: Option<u64>,
    /// What differs in the effects of the batch at `differed`, the first ones.
    #[prost(message, repeated, tag = "5")]
    pub differences: Vec<Difference>,
    /// How many more differ.
    #[prost(uint64, tag = "6")]
    pub more: u64,
    /// The operations of that batch.
    #[prost(message, repeated, tag = "7")]
    pub operations: Vec<OperationInfo>,
    /// What is not known, and why; empty if the very first difference is told.
    #[prost(string, tag = "8")]
    pub unknown: String,
}

/// Something that two replicas did differently in the same batch.
#[derive(Clone, PartialEq, Message)]
pub struct Difference {
    /// What it is: `outcome`, `write`, `event`, `lease`, `mark`, `clock`, `revision`, `module` or `last
    /// lease`.
    #[prost(string, tag = "1")]
    pub what: String,
    /// The key of a row.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub key: Option<Vec<u8>>,
    /// Of an outcome: of which of the batch's operations, from 0.
    #[prost(uint32, optional, tag = "3")]
    pub offset: Option<u32>,
    /// What the halted replica has.
    #[prost(message, required, tag = "4")]
    pub here: Side,
    /// What the other one has.
    #[prost(message, required, tag = "5")]
    pub leader: Side,
}

/// What one replica has: a number, or bytes by their length and digest, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Side {
    /// The number, of a clock, a revision or a lease.
    #[prost(uint64, optional, tag = "1")]
    pub number: Option<u64>,
    /// The length of a value, if one was written.
    #[prost(uint64, optional, tag = "2")]
    pub bytes: Option<u64>,
    /// The first 8 bytes of its blake3.
    #[prost(fixed64, tag = "3")]
    pub digest: u64,
    /// Whether the row was deleted.
    #[prost(bool, tag = "4")]
    pub deleted: bool,
}

/// An operation of a batch, without its contents.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OperationInfo {
    /// `command`, `create`, `expire`, `verdict`, `beacon`, or `unknown` to this version.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Its size in the log.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// What the numbers of a machine's head are called.
const NUMBERS: [&str; 8] = [
    "clock",
    "revision",
    "last lease",
    "leases",
    "sessions",
    "start of the term",
    "first revision kept",
    "bytes of events",
];

/// What a batch did, by digests: for another replica to compare with.
#[derive(Clone, PartialEq, Message)]
pub struct Effects {
    /// What the machine's head says then, in the order of [`NUMBERS`].
    #[prost(uint64, repeated, tag = "1")]
    numbers: Vec<u64>,
    #[prost(message, required, tag = "2")]
    settings: Side,
    #[prost(message, required, tag = "4")]
    module: Side,
    #[prost(message, repeated, tag = "5")]
    outcomes: Vec<Side>,
    /// In the order of tables and keys.
    #[prost(message, repeated, tag = "6")]
    rows: Vec<Row>,
    /// Rows that were too much to tell.
    #[prost(uint64, tag = "7")]
    left_off: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(uint32, tag = "1")]
    table: u32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(message, required, tag = "3")]
    side: Side,
}

impl Explanation {
    /// Of a replica of which nothing is known but why it halted.
    pub fn unknown(why: &str, unknown: &str) -> Explanation {
        Explanation { why: why.to_owned(), unknown: unknown.to_owned(), ..Explanation::default() }
    }

    /// Of a comparison with a replica on another node.
    pub fn of(why: &str, with: NodeId, agreed: Option<Index>, differed: Option<Index>) -> Explanation {
        let (agreed, differed) = (agreed.map(|index| index.0), differed.map(|index| index.0));
        Explanation { why: why.to_owned(), with: with.0, agreed, differed, ..Explanation::default() }
    }

    /// The node whose replica it was compared with.
    pub fn with(&self) -> Option<NodeId> {
        (self.with > 0).then_some(NodeId(self.with))
    }

    /// The last index at which both are known to have had the same hash.
    pub fn agreed_index(&self) -> Option<Index> {
        self.agreed.map(Index)
    }

    /// The first index at which their hashes are known to differ.
    pub fn differed_index(&self) -> Option<Index> {
        self.differed.map(Index)
    }

    /// Adds what differs between what this replica did and what the other did in the batch at `differed`.
    pub fn compare(&mut self, here: &Effects, leader: &Effects) {
        let mut all = here.differences(leader);
        self.more = all.len().saturating_sub(DIFFERENCES_MAX) as u64;
        all.truncate(DIFFERENCES_MAX);
        self.differences = all;
        self.unknown = match (self.differences.is_empty(), self.agreed) {
            (true, Some(_)) if here.left_off + leader.left_off > 0 => format!(
                "the batch wrote more than is compared: {} rows were left off, and one of them differs",
                here.left_off.max(leader.left_off)
            ),
            (true, _) => {
                "both did the same in that batch: they differed before it, where the hashes of one of \
                          them are no longer known"
                    .into()
            }
            (false, None) => {
                "whether they differed before that batch is not known: the hashes of one of them \
                              reach back no further"
                    .into()
            }
            (false, Some(_)) => String::new(),
        };
    }

    /// Says which operations the batch at `differed` had.
    pub fn set_operations(&mut self, batch: &Batch) {
        let info = |operation: &crate::machine::batch::Operation| {
            let kind = match &operation.act {
                Some(Act::Command(_)) => "command",
                Some(Act::Create(_)) => "create",
                Some(Act::Expire(_)) => "expire",
                Some(Act::Verdict(_)) => "verdict",
                Some(Act::Beacon(_)) => "beacon",
                Some(Act::Grant(_)) => "grant",
                Some(Act::Renew(_)) => "renew",
                Some(Act::Revoke(_)) => "revoke",
                Some(Act::OpenSession(_)) => "open session",
                Some(Act::Configure(_)) => "configure",
                Some(Act::Trim(_)) => "trim",
                Some(Act::Upgrade(_)) => "upgrade",
                None => "unknown",
            };
            let bytes = match &operation.act {
                Some(Act::Command(payload)) => payload.len(),
                _ => operation.size(),
            };
            OperationInfo { kind: kind.into(), bytes: bytes as u64 }
        };
        self.operations = batch.operations.iter().map(info).collect();
    }
}

impl Side {
    fn of_number(number: u64) -> Side {
        Side { number: Some(number), ..Side::default() }
    }

    fn value(value: &[u8]) -> Side {
        let digest = blake3::hash(value);
        let first = digest.as_bytes().first_chunk().copied().unwrap_or_default();
        Side { bytes: Some(value.len() as u64), digest: u64::from_be_bytes(first), ..Side::default() }
    }

    fn row(value: Option<&[u8]>) -> Side {
        value.map_or(Side { deleted: true, ..Side::default() }, Side::value)
    }
}

impl Effects {
    /// What a batch did.
    pub fn of(applied: &Applied) -> Effects {
        let Head { time, revision, leases, term_began, history_first, event_bytes, .. } = applied.head;
        let Tally { last, live, sessions } = leases;
        let Head { settings, module, .. } = applied.head;
        let mut effects = Effects {
            numbers: vec![
                time.0,
                revision.0,
                last,
                live,
                sessions,
                term_began.0,
                history_first.0,
                event_bytes,
            ],
            settings: Side::value(&settings.encode_to_vec()),
            module: module.map_or(Side::default(), |module| Side::value(&module.0)),
            outcomes: applied.outcomes.iter().map(|first| outcome_side(&first.outcome)).collect(),
            rows: Vec::new(),
            left_off: 0,
        };
        let mut bytes = 0;
        for write in &applied.writes {
            bytes += write.key.len() + 32;
            if bytes > ROWS_BYTES_MAX {
                effects.left_off += 1;
                continue;
            }
            let side = Side::row(write.value.as_deref());
            effects.rows.push(Row { table: write.table as u32, key: write.key.clone(), side });
        }
        effects
    }

    /// What differs: what clients saw first, then rows.
    fn differences(&self, leader: &Effects) -> Vec<Difference> {
        let mut found = Vec::new();
        let outcomes = self.outcomes.len().max(leader.outcomes.len());
        for offset in 0..outcomes {
            let side = |of: &Effects| of.outcomes.get(offset).copied().unwrap_or_default();
            if side(self) != side(leader) {
                let offset = Some(offset as u32);
                found.push(Difference { offset, ..difference("outcome", side(self), side(leader)) });
            }
        }
        self.differing_rows(leader, &mut found);
        let numbers = NUMBERS.into_iter().zip(self.numbers.iter().zip(&leader.numbers));
        for (what, (&here, &there)) in numbers.filter(|(_, (here, there))| here != there) {
            found.push(difference(what, Side::of_number(here), Side::of_number(there)));
        }
        if self.settings != leader.settings {
            found.push(difference("settings", self.settings, leader.settings));
        }
        if self.module != leader.module {
            found.push(difference("module", self.module, leader.module));
        }
        found
    }

    /// Both are in the order of tables and keys. Where one of them left rows off, nothing is said of rows
    /// past its last.
    fn differing_rows(&self, leader: &Effects, found: &mut Vec<Difference>) {
        let place = |row: &Row| (row.table, row.key.clone());
        let end = |of: &Effects| of.rows.last().filter(|_| of.left_off > 0).map(place);
        let ends = [end(self), end(leader)];
        let told = |at: &(u32, Vec<u8>)| ends.iter().flatten().all(|end| at <= end);
        let (mut ours, mut theirs) = (self.rows.iter().peekable(), leader.rows.iter().peekable());
        loop {
            let at = match (ours.peek(), theirs.peek()) {
                (Some(a), Some(b)) => place(a).min(place(b)),
                (Some(row), None) | (None, Some(row)) => place(row),
                (None, None) => return,
            };
            let here = ours.next_if(|row| place(row) == at).map_or(Side::default(), |row| row.side);
            let there = theirs.next_if(|row| place(row) == at).map_or(Side::default(), |row| row.side);
            if here != there && told(&at) {
                let key = Some(at.1);
                found.push(Difference { key, ..difference(table_name(at.0), here, there) });
            }
        }
    }
}

fn difference(what: &str, here: Side, leader: Side) -> Difference {
    Difference { what: what.into(), key: None, offset: None, here, leader }
}

fn table_name(table: u32) -> &'static str {
    match Table::ALL.into_iter().find(|known| *known as u32 == table) {
        Some(Table::Store) => "write",
        Some(Table::Events) => "event",
        Some(Table::Leases) => "lease",
        Some(Table::Head) => "mark",
        None => "row of a table that this version does not know",
    }
}

fn outcome_side(outcome: &Outcome) -> Side {
    match outcome {
        Outcome::Ok(answer) => Side::value(answer),
        Outcome::Refused(refusal) => {
            Side { number: Some(u64::from(refusal.code)), ..Side::value(refusal.message.as_bytes()) }
        }
        Outcome::Host(code) => Side::of_number(*code as u64),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::LogTime;
    use crate::machine::outcome::OutcomeAt;
    use crate::machine::overlay::Write;

    fn write(table: Table, key: &str, value: Option<&str>) -> Write {
        let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
        Write { table, key: key.into(), value }
    }

    fn applied(answers: &[&str], writes: Vec<Write>) -> Applied {
        let head = Head { time: LogTime(5), ..Head::default() };
        let answer = |text: &&str| OutcomeAt {
            index: head.index,
            revision: head.revision,
            outcome: Outcome::Ok(Bytes::copy_from_slice(text.as_bytes())),
        };
        Applied { outcomes: answers.iter().map(answer).collect(), writes, head, notes: Vec::new() }
    }

    fn compared(here: &Applied, leader: &Applied, agreed: Option<u64>) -> Explanation {
        let mut explanation =
            Explanation::of("why", NodeId(1), agreed.map(Index), Some(Index(agreed.unwrap_or(6) + 1)));
        explanation.compare(&Effects::of(here), &Effects::of(leader));
        explanation
    }

    #[test]
    fn the_row_that_differs_is_named_and_nothing_else() {
        let same = write(Table::Store, "b", Some("2"));
        let ours = applied(&["x"], vec![same.clone(), write(Table::Store, "c", Some("3"))]);
        let theirs =
            applied(&["x"], vec![write(Table::Store, "a", None), same, write(Table::Store, "c", Some("30"))]);
        let told = compared(&ours, &theirs, Some(6));
        let found: Vec<_> =
            told.differences.iter().map(|d| (d.what.as_str(), d.key.clone().unwrap())).collect();
        assert_eq!(found, [("write", b"a".to_vec()), ("write", b"c".to_vec())]);
        assert_eq!(told.differences[0].here, Side::default(), "not written here");
        assert!(told.differences[0].leader.deleted);
        assert_eq!(told.differences[1].leader.bytes, Some(2));
        assert_eq!((told.agreed_index(), told.differed_index()), (Some(Index(6)), Some(Index(7))));
        assert_eq!(told.unknown, "");
    }

    #[test]
    fn outcomes_events_and_the_clock_are_told_apart() {
        let ours = applied(&["x", "y"], vec![write(Table::Events, "\u{1}", Some("e"))]);
        let mut theirs = applied(&["x", "z"], vec![write(Table::Events, "\u{1}", Some("f"))]);
        theirs.head.time = LogTime(6);
        let told = compared(&ours, &theirs, Some(6));
        let found: Vec<_> = told.differences.iter().map(|d| (d.what.as_str(), d.offset)).collect();
        assert_eq!(found, [("outcome", Some(1)), ("event", None), ("clock", None)]);
        assert_eq!(told.differences[2].leader.number, Some(6));
    }

    #[test]
    fn what_is_not_known_is_said() {
        let (one, other) = (applied(&["x"], vec![]), applied(&["y"], vec![]));
        assert!(compared(&one, &one, None).unknown.contains("they differed before it"));
        assert!(compared(&one, &other, None).unknown.contains("is not known"));
        let large = |value: &str| {
            let keys = (0..40_000).map(|number| format!("{number:05}"));
            applied(&[], keys.map(|key| write(Table::Store, &key, Some(value))).collect())
        };
        let (ours, theirs) = (large("1"), large("2"));
        let told = compared(&ours, &theirs, Some(6));
        assert_eq!(told.differences.len(), DIFFERENCES_MAX);
        assert!(told.more > 10_000 && told.unknown.is_empty(), "{} more", told.more);
        let mut late = large("1");
        late.writes.last_mut().unwrap().value = None;
        let told = compared(&ours, &late, Some(6));
        assert!(told.differences.is_empty() && told.unknown.contains("were left off"), "{}", told.unknown);
    }

    #[test]
    fn effects_come_back_as_they_went() {
        let effects = Effects::of(&applied(&["x"], vec![write(Table::Leases, "k", Some("v"))]));
        assert_eq!(Effects::decode(effects.encode_to_vec().as_slice()).unwrap(), effects);
    }
}
