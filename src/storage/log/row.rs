//! The stored form of a log's rows: keys that sort by group and index, values sealed with a checksum of our
//! own.
//!
//! RocksDB checks its blocks; the seal also covers what happens to a row before it is in a block and after it
//! has left one, and ties a value to its key, so that a row in the wrong place is noticed too. Must never
//! change the form of a row without a new format number in `directory`.
//!
//! # Form
//! - keys: group (8 bytes, big-endian), index (8 bytes, big-endian); index 0 has a third part, which of the
//!   group's own rows it is (1 byte). So all of a group is one range: first its own rows, then its entries in
//!   order.
//! - values: crc32 over key and rest (4 bytes, little-endian), rest.

use bytes::Bytes;
use prost::Message;

use crate::id::{GroupId, Index, Term};
use crate::storage::entry::{Entry, EntryKind, HardState, Membership};

const SEAL_BYTES: usize = 4;
/// Seal, kind, term.
const ENTRY_HEADER_BYTES: usize = SEAL_BYTES + 1 + 8;

/// Which of a group's own rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Own {
    /// The entry before the first one kept.
    Start = 1,
    /// Term, vote, commit.
    HardState = 2,
    /// Who is in the group.
    Membership = 3,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// One of the group's own rows.
    Own(GroupId, Own),
    /// An entry.
    Entry(GroupId, Index),
}

impl Key {
    /// Reads a stored key; `None` if it is none of ours.
    pub fn read(bytes: &[u8]) -> Option<Key> {
        let (group, rest) = bytes.split_first_chunk::<8>()?;
        let (index, rest) = rest.split_first_chunk::<8>()?;
        let group = GroupId(u64::from_be_bytes(*group));
        match (u64::from_be_bytes(*index), rest) {
            (0, [1]) => Some(Key::Own(group, Own::Start)),
            (0, [2]) => Some(Key::Own(group, Own::HardState)),
            (0, [3]) => Some(Key::Own(group, Own::Membership)),
            (0, _) => None,
            (index, []) => Some(Key::Entry(group, Index(index))),
            _ => None,
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Own(group, Own::Start) => write!(f, "the start of group {group}"),
            Key::Own(group, Own::HardState) => write!(f, "the term and vote of group {group}"),
            Key::Own(group, Own::Membership) => write!(f, "the membership of group {group}"),
            Key::Entry(group, index) => write!(f, "entry {index} of group {group}"),
        }
    }
}

/// The key of an entry.
pub fn entry_key(group: GroupId, index: Index) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key[8..].copy_from_slice(&index.0.to_be_bytes());
    key
}

/// The key of one of the group's own rows.
pub fn own_key(group: GroupId, own: Own) -> [u8; 17] {
    let mut key = [0; 17];
    key[..16].copy_from_slice(&entry_key(group, Index(0)));
    key[16] = own as u8;
    key
}

/// The first key past everything of `group`: longer than any key, where no next group exists.
pub fn group_end(group: GroupId) -> Vec<u8> {
    match group.0.checked_add(1) {
        Some(next) => entry_key(GroupId(next), Index(0)).to_vec(),
        None => vec![0xff; 18],
    }
}

/// Writes the stored form of `entry` into `value`, which is emptied first: the caller's buffer serves many
/// entries.
pub fn write_entry(key: &[u8; 16], entry: &Entry, value: &mut Vec<u8>) {
    value.clear();
    value.reserve(ENTRY_HEADER_BYTES + entry.data.len());
    value.extend_from_slice(&[0; SEAL_BYTES]);
    value.push(entry.kind as u8);
    value.extend_from_slice(&entry.term.0.to_be_bytes());
    value.extend_from_slice(&entry.data);
    seal(key, value);
}

/// Reads an entry; `None` if it is damaged.
pub fn read_entry(key: &[u8], index: Index, value: &[u8]) -> Option<Entry> {
    let (&kind, rest) = unseal(key, value)?.split_first()?;
    let (term, data) = rest.split_first_chunk::<8>()?;
    let kind = match kind {
        0 => EntryKind::Batch,
        1 => EntryKind::Membership,
        _ => return None,
    };
    let term = Term(u64::from_be_bytes(*term));
    Some(Entry { index, term, kind, data: Bytes::copy_from_slice(data) })
}

/// The stored form of [`Own::Start`].
#[derive(Clone, PartialEq, Message)]
struct StartRow {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
}

/// The stored form of [`Own::HardState`].
#[derive(Clone, PartialEq, Message)]
struct HardStateRow {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    vote: u64,
    #[prost(uint64, tag = "3")]
    commit: u64,
}

/// The stored form of [`Own::Membership`]: who was in a group as of an index. Snapshots keep it in the same
/// form.
#[derive(Clone, PartialEq, Message)]
pub struct MembershipRow {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, repeated, tag = "2")]
    voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "5")]
    learners_next: Vec<u64>,
    #[prost(bool, tag = "6")]
    auto_leave: bool,
}

/// The value of [`Own::Start`].
pub fn write_start(key: &[u8], start: (Index, Term)) -> Vec<u8> {
    sealed(key, &StartRow { index: start.0.0, term: start.1.0 })
}

/// Reads [`Own::Start`]; `None` if it is damaged.
pub fn read_start(key: &[u8], value: &[u8]) -> Option<(Index, Term)> {
    let row = StartRow::decode(unseal(key, value)?).ok()?;
    Some((Index(row.index), Term(row.term)))
}

/// The value of [`Own::HardState`].
pub fn write_hard_state(key: &[u8], state: HardState) -> Vec<u8> {
    sealed(key, &HardStateRow { term: state.term.0, vote: state.vote, commit: state.commit.0 })
}

/// Reads [`Own::HardState`]; `None` if it is damaged.
pub fn read_hard_state(key: &[u8], value: &[u8]) -> Option<HardState> {
    let row = HardStateRow::decode(unseal(key, value)?).ok()?;
    Some(HardState { term: Term(row.term), vote: row.vote, commit: Index(row.commit) })
}

impl MembershipRow {
    /// The stored form of `members` as of `index`.
    pub fn new(index: Index, members: &Membership) -> MembershipRow {
        let Membership { voters, learners, voters_outgoing, learners_next, auto_leave } = members.clone();
        MembershipRow { index: index.0, voters, learners, voters_outgoing, learners_next, auto_leave }
    }

    /// What is stored.
    pub fn read(self) -> (Index, Membership) {
        let MembershipRow { index, voters, learners, voters_outgoing, learners_next, auto_leave } = self;
        (Index(index), Membership { voters, learners, voters_outgoing, learners_next, auto_leave })
    }
}

/// The value of [`Own::Membership`].
pub fn write_membership(key: &[u8], index: Index, members: &Membership) -> Vec<u8> {
    sealed(key, &MembershipRow::new(index, members))
}

/// Reads [`Own::Membership`]; `None` if it is damaged.
pub fn read_membership(key: &[u8], value: &[u8]) -> Option<(Index, Membership)> {
    Some(MembershipRow::decode(unseal(key, value)?).ok()?.read())
}

fn sealed(key: &[u8], row: &impl Message) -> Vec<u8> {
    let mut value = vec![0; SEAL_BYTES];
    row.encode_raw(&mut value);
    seal(key, &mut value);
    value
}

/// Puts the checksum into the first bytes of `value`, which are kept free for it.
fn seal(key: &[u8], value: &mut [u8]) {
    let sum = checksum(key, &value[SEAL_BYTES..]);
    value[..SEAL_BYTES].copy_from_slice(&sum.to_le_bytes());
}

/// What was sealed; `None` if key or value changed since.
fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, rest) = value.split_first_chunk::<SEAL_BYTES>()?;
    (u32::from_le_bytes(*sum) == checksum(key, rest)).then_some(rest)
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key);
    sum.update(rest);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::damage::{cuts, flips};

    #[test]
    fn keys_sort_by_group_then_own_rows_then_index() {
        let mut keys = [
            entry_key(GroupId(2), Index(1)).to_vec(),
            entry_key(GroupId(1), Index(256)).to_vec(),
            own_key(GroupId(2), Own::Membership).to_vec(),
            entry_key(GroupId(1), Index(1)).to_vec(),
            own_key(GroupId(1), Own::Start).to_vec(),
            group_end(GroupId(1)),
        ];
        keys.sort();
        let read: Vec<_> = keys.iter().map(|key| Key::read(key)).collect();
        assert_eq!(
            read,
            [
                Some(Key::Own(GroupId(1), Own::Start)),
                Some(Key::Entry(GroupId(1), Index(1))),
                Some(Key::Entry(GroupId(1), Index(256))),
                None, // the end of group 1
                Some(Key::Own(GroupId(2), Own::Membership)),
                Some(Key::Entry(GroupId(2), Index(1))),
            ]
        );
    }

    #[test]
    fn the_last_group_that_can_be_named_has_an_end_too() {
        assert!(group_end(GroupId(u64::MAX))[..] > entry_key(GroupId(u64::MAX), Index(u64::MAX))[..]);
    }

    #[test]
    fn every_flipped_bit_of_an_entry_is_noticed() {
        let entry = Entry {
            index: Index(7),
            term: Term(3),
            kind: EntryKind::Batch,
            data: Bytes::from_static(b"put a 1"),
        };
        let key = entry_key(GroupId(5), entry.index);
        let mut value = Vec::new();
        write_entry(&key, &entry, &mut value);
        assert_eq!(read_entry(&key, entry.index, &value), Some(entry.clone()));
        for (bit, flipped) in flips(&value).enumerate() {
            assert_eq!(read_entry(&key, entry.index, &flipped), None, "bit {bit}");
        }
        assert_eq!(
            read_entry(&entry_key(GroupId(6), entry.index), entry.index, &value),
            None,
            "another group's key"
        );
        for cut in cuts(&value) {
            assert_eq!(read_entry(&key, entry.index, &cut), None, "cut to {} bytes", cut.len());
        }
    }

    #[test]
    fn own_rows_read_back_and_notice_another_rows_place() {
        let (start, hard) = (own_key(GroupId(1), Own::Start), own_key(GroupId(1), Own::HardState));
        let state = HardState { term: Term(4), vote: 9, commit: Index(88) };
        let value = write_hard_state(&hard, state);
        assert_eq!(read_hard_state(&hard, &value), Some(state));
        assert_eq!(read_start(&start, &value), None);
        let members =
            Membership { voters: vec![1, 2], learners: vec![3], auto_leave: true, ..Default::default() };
        let key = own_key(GroupId(1), Own::Membership);
        let value = write_membership(&key, Index(12), &members);
        assert_eq!(read_membership(&key, &value), Some((Index(12), members)));
    }
}
