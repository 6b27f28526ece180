//! What replicas tell each other, as bytes.
//!
//! The payload of a frame of messages is a sequence of rows, each with its length before it: one small
//! protobuf message for each [`PeerMessage`], and after the row of an append one for each of its entries. A
//! row has plain numbers and leaves out what is zero, so the heartbeat of a group is about fifteen bytes; all
//! groups' share a frame. Entries carry no index: they follow the one before them, and gaps cannot be said.
//!
//! Pure. Promises: what is read is what was put, in its order, or an error that says what was wrong. Must
//! never panic or take much memory for little input, whatever the bytes are: what a frame may hold is
//! counted, because a row takes many times more memory than bytes.
//!
//! Both ends have the same [`VERSION`](super::greeting::VERSION), so an unknown kind is an error here.

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

use crate::id::{GroupId, Index, LogTime, ReplicaId, Term};
use crate::raft::message::{PeerBody, PeerMessage};
use crate::storage::entry::{Entry, EntryKind};

/// Messages and entries in one frame, at most. In memory each takes less than 200 bytes besides its data.
pub(super) const ROWS_MAX: usize = 65_536;
/// What a message besides its entries and its mark takes as a row, at most.
const ROW_BYTES_MAX: usize = 128;
/// What an entry besides its data takes as a row, at most.
const ENTRY_ROW_BYTES_MAX: usize = 32;
/// An entry of this size, and of a quarter of its frame, keeps the frame's memory; others are copied out of
/// it, or a few small ones would hold all of it as long as they are cached.
const SHARED_BYTES_MIN: usize = 16 << 10;

/// A message, or the head of one with entries.
#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint64, tag = "2")]
    group: u64,
    #[prost(uint64, tag = "3")]
    from: u64,
    #[prost(uint64, tag = "4")]
    to: u64,
    #[prost(uint64, tag = "5")]
    term: u64,
    #[prost(uint64, tag = "6")]
    commit: u64,
    #[prost(uint64, tag = "7")]
    index: u64,
    /// The term of an entry that the message names.
    #[prost(uint64, tag = "8")]
    entry_term: u64,
    #[prost(uint64, tag = "9")]
    commit_term: u64,
    #[prost(uint64, tag = "10")]
    hint: u64,
    #[prost(bool, tag = "11")]
    trial: bool,
    /// Granted, or at the leader's wish.
    #[prost(bool, tag = "12")]
    yes: bool,
    #[prost(bytes = "bytes", tag = "13")]
    context: Bytes,
    /// How many entry rows follow.
    #[prost(uint32, tag = "14")]
    entries: u32,
    #[prost(uint64, tag = "15")]
    time: u64,
}

/// An entry; its index follows from its place.
#[derive(Clone, PartialEq, Message)]
struct EntryRow {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

const APPEND: u32 = 1;
const APPENDED: u32 = 2;
const REJECTED: u32 = 3;
const HEARTBEAT: u32 = 4;
const HEARTBEAT_REPLY: u32 = 5;
const REQUEST_VOTE: u32 = 6;
const VOTE: u32 = 7;
const TIMEOUT_NOW: u32 = 8;
const SLEEP: u32 = 9;
const READ_INDEX: u32 = 10;
const READ_INDEX_REPLY: u32 = 11;

/// A payload that holds no messages of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("a message that does not decode: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("a message of the unknown kind {0}")]
    UnknownMessage(u32),
    #[error("an entry of the unknown kind {0}")]
    UnknownEntry(u32),
    #[error("entries in a message of kind {0}, which has none")]
    StrayEntries(u32),
    #[error("more than {ROWS_MAX} messages and entries in one frame")]
    TooMany,
    #[error("{count} entries after index {previous}, which is beyond all indexes")]
    BeyondIndexes { previous: u64, count: u32 },
}

/// A message that cannot be sent: a mistake in this program or its settings, told in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsendable {
    #[error("one entry or mark of {bytes} bytes, a frame holds {bytes_max}: raise `frame_bytes_max` there")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("entry {found} stands where {expected} belongs")]
    Gap { expected: Index, found: Index },
}

/// What a message takes as rows, at most.
pub(super) fn bytes_of(message: &PeerMessage) -> usize {
    ROW_BYTES_MAX
        + match &message.body {
            PeerBody::Append { entries, .. } => entries.iter().map(entry_bytes).sum(),
            PeerBody::Heartbeat { context, .. }
            | PeerBody::HeartbeatReply { context, .. }
            | PeerBody::ReadIndex { context }
            | PeerBody::ReadIndexReply { context, .. } => context.len(),
            _ => 0,
        }
}

fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_ROW_BYTES_MAX + entry.data.len()
}

/// How many rows a message takes.
pub(super) fn rows_of(message: &PeerMessage) -> usize {
    match &message.body {
        PeerBody::Append { entries, .. } => 1 + entries.len(),
        _ => 1,
    }
}

/// Cuts an append into several, so that each fits into a frame with payloads up to `bytes_max`. Any other
/// message comes back as it is.
pub(super) fn cut(message: PeerMessage, bytes_max: usize) -> Result<Vec<PeerMessage>, Unsendable> {
    let fits = |message: &PeerMessage| bytes_of(message) <= bytes_max && rows_of(message) <= ROWS_MAX;
    let PeerMessage { from, to, term, body } = message;
    let (mut previous, entries, commit) = match body {
        PeerBody::Append { previous, entries, commit } if entries.len() > 1 => (previous, entries, commit),
        body => {
            let message = PeerMessage { from, to, term, body };
            if !fits(&message) {
                return Err(Unsendable::TooLarge { bytes: bytes_of(&message), bytes_max });
            }
            return Ok(vec![message]);
        }
    };
    let append = |previous, entries| PeerMessage {
        from,
        to,
        term,
        body: PeerBody::Append { previous, entries, commit },
    };
    let (mut pieces, mut piece, mut bytes, mut last) = (Vec::new(), Vec::new(), ROW_BYTES_MAX, previous);
    for entry in entries {
        let more = entry_bytes(&entry);
        if ROW_BYTES_MAX + more > bytes_max {
            return Err(Unsendable::TooLarge { bytes: more, bytes_max });
        }
        if bytes + more > bytes_max || piece.len() + 1 >= ROWS_MAX {
            pieces.push(append(previous, std::mem::take(&mut piece)));
            (previous, bytes) = (last, ROW_BYTES_MAX);
        }
        (last, bytes) = ((entry.index, entry.term), bytes + more);
        piece.push(entry);
    }
    pieces.push(append(previous, piece));
    Ok(pieces)
}

/// Appends a message to the payload of a frame. Nothing is written if it cannot be sent.
pub(super) fn put(out: &mut BytesMut, group: GroupId, message: PeerMessage) -> Result<(), Unsendable> {
    let PeerMessage { from, to, term, body } = message;
    let row = Row { group: group.0, from: from.0, to: to.0, term: term.0, ..Row::default() };
    let (row, entries) = fill(row, body)?;
    row.encode_length_delimited(out).expect("the buffer grows");
    for entry in entries {
        EntryRow { term: entry.term.0, kind: entry.kind as u32, data: entry.data }
            .encode_length_delimited(out)
            .expect("the buffer grows");
    }
    Ok(())
}

/// Puts what a message says into its row.
fn fill(row: Row, body: PeerBody) -> Result<(Row, Vec<Entry>), Unsendable> {
    let filled = match body {
        PeerBody::Append { previous: (index, term), entries, commit } => {
            check_order(index, &entries)?;
            let (index, entry_term, count) = (index.0, term.0, entries.len() as u32);
            let row = Row { kind: APPEND, index, entry_term, commit: commit.0, entries: count, ..row };
            return Ok((row, entries));
        }
        PeerBody::Appended { index, commit } => {
            Row { kind: APPENDED, index: index.0, commit: commit.0, ..row }
        }
        PeerBody::Rejected { index, hint: (hint, term), commit } => {
            Row { kind: REJECTED, index: index.0, hint: hint.0, entry_term: term.0, commit: commit.0, ..row }
        }
        PeerBody::Heartbeat { commit, context } => Row { kind: HEARTBEAT, commit: commit.0, context, ..row },
        PeerBody::HeartbeatReply { commit, context } => {
            Row { kind: HEARTBEAT_REPLY, commit: commit.0, context, ..row }
        }
        PeerBody::RequestVote { trial, last: (index, term), commit, transfer } => Row {
            kind: REQUEST_VOTE,
            trial,
            index: index.0,
            entry_term: term.0,
            commit: commit.0.0,
            commit_term: commit.1.0,
            yes: transfer,
            ..row
        },
        PeerBody::Vote { trial, granted, commit } => {
            Row { kind: VOTE, trial, yes: granted, commit: commit.0.0, commit_term: commit.1.0, ..row }
        }
        PeerBody::TimeoutNow => Row { kind: TIMEOUT_NOW, ..row },
        PeerBody::Sleep { last } => Row { kind: SLEEP, index: last.0, ..row },
        PeerBody::ReadIndex { context } => Row { kind: READ_INDEX, context, ..row },
        PeerBody::ReadIndexReply { index, time, context } => {
            Row { kind: READ_INDEX_REPLY, index: index.0, time: time.0, context, ..row }
        }
    };
    Ok((filled, Vec::new()))
}

/// Entries are told by their places, so they must be where they say they are.
fn check_order(previous: Index, entries: &[Entry]) -> Result<(), Unsendable> {
    let mut expected = previous;
    for entry in entries {
        expected = Index(expected.0.wrapping_add(1));
        if entry.index != expected {
            return Err(Unsendable::Gap { expected, found: entry.index });
        }
    }
    Ok(())
}

/// Reads the payload of a frame of messages, to the end of `messages`. After an error some may be there.
pub(super) fn read(mut payload: Bytes, messages: &mut Vec<(GroupId, PeerMessage)>) -> Result<(), WireError> {
    let frame_bytes = payload.len();
    let mut rows = 0;
    while payload.has_remaining() {
        let row = Row::decode_length_delimited(&mut payload)?;
        rows += 1 + row.entries as usize;
        if rows > ROWS_MAX {
            return Err(WireError::TooMany);
        }
        let entries = read_entries(&mut payload, &row, frame_bytes)?;
        let (group, from, to) = (GroupId(row.group), ReplicaId(row.from), ReplicaId(row.to));
        let term = Term(row.term);
        messages.push((group, PeerMessage { from, to, term, body: body_of(row, entries, frame_bytes)? }));
    }
    Ok(())
}

fn read_entries(payload: &mut Bytes, row: &Row, frame_bytes: usize) -> Result<Vec<Entry>, WireError> {
    let beyond = || WireError::BeyondIndexes { previous: row.index, count: row.entries };
    row.index.checked_add(u64::from(row.entries)).ok_or_else(beyond)?;
    if row.kind != APPEND && row.entries > 0 {
        return Err(WireError::StrayEntries(row.kind));
    }
    let mut entries = Vec::with_capacity(row.entries as usize);
    for place in 1..=u64::from(row.entries) {
        let entry = EntryRow::decode_length_delimited(&mut *payload)?;
        let kind = match entry.kind {
            0 => EntryKind::Batch,
            1 => EntryKind::Membership,
            unknown => return Err(WireError::UnknownEntry(unknown)),
        };
        let data = kept(entry.data, frame_bytes);
        entries.push(Entry { index: Index(row.index + place), term: Term(entry.term), kind, data });
    }
    Ok(entries)
}

/// The other direction of `fill`.
fn body_of(row: Row, entries: Vec<Entry>, frame_bytes: usize) -> Result<PeerBody, WireError> {
    let context = kept(row.context, frame_bytes);
    let (index, commit) = (Index(row.index), Index(row.commit));
    let commit_at = (commit, Term(row.commit_term));
    let entry_term = Term(row.entry_term);
    Ok(match row.kind {
        APPEND => PeerBody::Append { previous: (index, entry_term), entries, commit },
        APPENDED => PeerBody::Appended { index, commit },
        REJECTED => PeerBody::Rejected { index, hint: (Index(row.hint), entry_term), commit },
        HEARTBEAT => PeerBody::Heartbeat { commit, context },
        HEARTBEAT_REPLY => PeerBody::HeartbeatReply { commit, context },
        REQUEST_VOTE => PeerBody::RequestVote {
            trial: row.trial,
            last: (index, entry_term),
            commit: commit_at,
            transfer: row.yes,
        },
        VOTE => PeerBody::Vote { trial: row.trial, granted: row.yes, commit: commit_at },
        TIMEOUT_NOW => PeerBody::TimeoutNow,
        SLEEP => PeerBody::Sleep { last: index },
        READ_INDEX => PeerBody::ReadIndex { context },
        READ_INDEX_REPLY => PeerBody::ReadIndexReply { index, time: LogTime(row.time), context },
        unknown => return Err(WireError::UnknownMessage(unknown)),
    })
}

/// The bytes as they will be kept: in the frame's memory if they are a good part of it, else in their own.
fn kept(data: Bytes, frame_bytes: usize) -> Bytes {
    let shared = data.len() >= SHARED_BYTES_MIN && data.len() >= frame_bytes / 4;
    if shared { data } else { Bytes::copy_from_slice(&data) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers small and large: both ends of what their encoding takes.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..300u64, any::<u64>(), Just(u64::MAX)]
    }

    fn at() -> impl Strategy<Value = (Index, Term)> {
        (number(), number()).prop_map(|(index, term)| (Index(index), Term(term)))
    }

    fn mark() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn append() -> impl Strategy<Value = PeerBody> {
        let data = prop_oneof![
            9 => prop::collection::vec(any::<u8>(), 0..60),
            1 => (0..60_000usize).prop_map(|bytes| vec![bytes as u8; bytes]),
        ];
        let kind = prop_oneof![Just(EntryKind::Batch), Just(EntryKind::Membership)];
        let entries = prop::collection::vec((number(), kind, data.prop_map(Bytes::from)), 0..20);
        (0..u64::MAX - 20, number(), number(), entries).prop_map(|(previous, term, commit, entries)| {
            let entries = (previous + 1..).zip(entries).map(|(index, (term, kind, data))| Entry {
                index: Index(index),
                term: Term(term),
                kind,
                data,
            });
            PeerBody::Append {
                previous: (Index(previous), Term(term)),
                entries: entries.collect(),
                commit: Index(commit),
            }
        })
    }

    /// Every kind of message.
    fn body() -> impl Strategy<Value = PeerBody> {
        let index = || number().prop_map(Index);
        prop_oneof![
            append(),
            (index(), index()).prop_map(|(index, commit)| PeerBody::Appended { index, commit }),
            (index(), at(), index())
                .prop_map(|(index, hint, commit)| { PeerBody::Rejected { index, hint, commit } }),
            (index(), mark()).prop_map(|(commit, context)| PeerBody::Heartbeat { commit, context }),
            (index(), mark()).prop_map(|(commit, context)| PeerBody::HeartbeatReply { commit, context }),
            (any::<bool>(), at(), at(), any::<bool>()).prop_map(|(trial, last, commit, transfer)| {
                PeerBody::RequestVote { trial, last, commit, transfer }
            }),
            (any::<bool>(), any::<bool>(), at())
                .prop_map(|(trial, granted, commit)| { PeerBody::Vote { trial, granted, commit } }),
            Just(PeerBody::TimeoutNow),
            index().prop_map(|last| PeerBody::Sleep { last }),
            mark().prop_map(|context| PeerBody::ReadIndex { context }),
            (index(), number().prop_map(LogTime), mark())
                .prop_map(|(index, time, context)| PeerBody::ReadIndexReply { index, time, context }),
        ]
    }

    fn messages() -> impl Strategy<Value = Vec<(GroupId, PeerMessage)>> {
        let message =
            (number(), number(), number(), number(), body()).prop_map(|(group, from, to, term, body)| {
                let (from, to, term) = (ReplicaId(from), ReplicaId(to), Term(term));
                (GroupId(group), PeerMessage { from, to, term, body })
            });
        prop::collection::vec(message, 0..12)
    }

    fn payload_of(messages: &[(GroupId, PeerMessage)]) -> BytesMut {
        let mut out = BytesMut::new();
        for (group, message) in messages {
            let before = out.len();
            put(&mut out, *group, message.clone()).unwrap();
            assert!(out.len() - before <= bytes_of(message), "{message:?}");
        }
        out
    }

    fn read_all(payload: Bytes) -> Result<Vec<(GroupId, PeerMessage)>, WireError> {
        let mut messages = Vec::new();
        read(payload, &mut messages).map(|()| messages)
    }

    fn entries(count: u64, bytes: usize) -> Vec<Entry> {
        let data = Bytes::from(vec![1; bytes]);
        (8..8 + count)
            .map(|index| Entry {
                index: Index(index),
                term: Term(index / 3),
                kind: EntryKind::Batch,
                data: data.clone(),
            })
            .collect()
    }

    fn append_of(entries: Vec<Entry>) -> PeerMessage {
        let body = PeerBody::Append { previous: (Index(7), Term(2)), entries, commit: Index(5) };
        PeerMessage { from: ReplicaId(1), to: ReplicaId(2), term: Term(9_000), body }
    }

    proptest! {
        #[test]
        fn every_message_arrives_as_it_was_put(messages in messages()) {
            prop_assert_eq!(read_all(payload_of(&messages).freeze()).unwrap(), messages);
        }

        #[test]
        fn damaged_rows_are_read_or_refused_but_never_break_the_reader(
            messages in messages(), at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<bool>()
        ) {
            let mut payload = payload_of(&messages);
            prop_assume!(!payload.is_empty());
            let at = at.index(payload.len());
            if cut {
                payload.truncate(at);
            } else {
                payload[at] ^= 1 << bit;
            }
            if let Ok(found) = read_all(payload.freeze()) {
                prop_assert!(found.iter().map(|(_, message)| rows_of(message)).sum::<usize>() <= ROWS_MAX);
            }
        }

        #[test]
        fn garbage_never_breaks_the_reader(garbage in prop::collection::vec(any::<u8>(), 0..2_000)) {
            let _ = read_all(garbage.into());
        }

        #[test]
        fn a_cut_append_says_the_same_in_pieces_that_fit(
            body in append(), room in 0..40_000usize
        ) {
            let PeerBody::Append { previous, entries, .. } = &body else { unreachable!() };
            let (previous, entries) = (*previous, entries.clone());
            let largest = entries.iter().map(entry_bytes).max().unwrap_or_default();
            let bytes_max = ROW_BYTES_MAX + largest + room;
            let message = PeerMessage { from: ReplicaId(1), to: ReplicaId(2), term: Term(3), body };
            let mut last = previous;
            let mut joined = Vec::new();
            for piece in cut(message, bytes_max).unwrap() {
                prop_assert!(payload_of(&[(GroupId(1), piece.clone())]).len() <= bytes_max);
                let PeerBody::Append { previous, entries, .. } = piece.body else { unreachable!() };
                prop_assert_eq!(previous, last);
                last = entries.last().map_or(last, |entry| (entry.index, entry.term));
                joined.extend(entries);
            }
            prop_assert_eq!(joined, entries);
        }
    }

    #[test]
    fn a_heartbeat_is_small() {
        let body = PeerBody::Heartbeat { commit: Index(1_000_000), context: Bytes::new() };
        let message = PeerMessage { from: ReplicaId(3_001), to: ReplicaId(3_002), term: Term(12), body };
        assert!(payload_of(&[(GroupId(1_000), message)]).len() <= 20);
    }

    #[test]
    fn an_append_of_more_entries_than_a_frame_may_hold_is_cut() {
        let message = append_of(entries(ROWS_MAX as u64 * 2, 0));
        let pieces = cut(message, usize::MAX).unwrap();
        assert_eq!(pieces.len(), 3);
        let counts = |piece: &PeerMessage| read_all(payload_of(&[(GroupId(1), piece.clone())]).freeze());
        assert!(pieces.iter().all(|piece| counts(piece).is_ok()));
    }

    #[test]
    fn more_rows_than_a_frame_may_hold_are_refused_before_they_take_memory() {
        // Two bytes a message: kind and value are all there is.
        let mut payload = BytesMut::new();
        for _ in 0..=ROWS_MAX {
            payload.extend_from_slice(&[2, 8, TIMEOUT_NOW as u8]);
        }
        assert_eq!(read_all(payload.freeze()), Err(WireError::TooMany));
        let mut payload = BytesMut::new();
        Row { kind: APPEND, entries: u32::MAX, ..Row::default() }
            .encode_length_delimited(&mut payload)
            .unwrap();
        assert_eq!(read_all(payload.freeze()), Err(WireError::TooMany));
    }

    #[test]
    fn what_this_version_does_not_know_is_refused_by_its_number() {
        let refused = |row: Row, entry: Option<EntryRow>| {
            let mut payload = BytesMut::new();
            row.encode_length_delimited(&mut payload).unwrap();
            if let Some(entry) = entry {
                entry.encode_length_delimited(&mut payload).unwrap();
            }
            read_all(payload.freeze()).unwrap_err()
        };
        assert_eq!(refused(Row { kind: 99, ..Row::default() }, None), WireError::UnknownMessage(99));
        let append = Row { kind: APPEND, entries: 1, ..Row::default() };
        let entry = EntryRow { kind: 2, ..EntryRow::default() };
        assert_eq!(refused(append.clone(), Some(entry)), WireError::UnknownEntry(2));
        let beyond = Row { index: u64::MAX, ..append };
        let told = WireError::BeyondIndexes { previous: u64::MAX, count: 1 };
        assert_eq!(refused(beyond, None), told);
        let stray = Row { kind: SLEEP, entries: 1, ..Row::default() };
        assert_eq!(refused(stray, Some(EntryRow::default())), WireError::StrayEntries(SLEEP));
    }

    #[test]
    fn what_cannot_be_sent_is_told_with_its_size_or_place() {
        let told = cut(append_of(entries(1, 1_000)), 900).unwrap_err();
        assert_eq!(told, Unsendable::TooLarge { bytes: 1_000 + 128 + 32, bytes_max: 900 });
        let told = cut(append_of(entries(3, 1_000)), 900).unwrap_err();
        assert_eq!(told, Unsendable::TooLarge { bytes: 1_000 + 32, bytes_max: 900 });
        let mut gapped = entries(3, 1);
        gapped.remove(1);
        let mut out = BytesMut::new();
        let told = put(&mut out, GroupId(1), append_of(gapped)).unwrap_err();
        assert_eq!(told, Unsendable::Gap { expected: Index(9), found: Index(10) });
        assert!(out.is_empty());
    }

    #[test]
    fn small_entries_do_not_hold_the_memory_of_their_frame() {
        let inside = |payload: &Bytes, data: &Bytes| payload.as_ptr_range().contains(&data.as_ptr());
        let found = |message: PeerMessage| {
            let payload = payload_of(&[(GroupId(1), message)]).freeze();
            let messages = read_all(payload.clone()).unwrap();
            let PeerBody::Append { entries, .. } = messages[0].1.body.clone() else { unreachable!() };
            (payload, entries)
        };
        let (payload, small) = found(append_of(entries(100, 1_000)));
        assert!(small.iter().all(|entry| !inside(&payload, &entry.data)));
        let (payload, large) = found(append_of(entries(2, 100_000)));
        assert!(large.iter().all(|entry| inside(&payload, &entry.data)));
    }
}
