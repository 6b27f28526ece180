//! How the store is laid out in the host's ordered map.
//!
//! | row | holds |
//! | --- | --- |
//! | `c` key | the current version of a key: an encoded `KeyValue` |
//! | `h` escaped key, 0, 1, revision | the version that `revision` (8 bytes, big-endian) put an end to |
//! | `p` lease (8 bytes, big-endian) | an ended lease with keys still to be deleted: their span |
//! | `t` lease (8 bytes, big-endian) | a lease that a key owns for its time to live; no other may use it |
//! | `m` | format, last compaction, and how far its removal has come |
//!
//! A history row is named by the revision that *ended* its version. So a read of a key at revision R is the
//! first history row past R, if that version was written by then, or else the current row; deletions need
//! no row of their own; and a compaction to C drops exactly the rows up to C. In escaped keys a zero byte
//! becomes 0, 255, which keeps the order and makes 0, 1 an end.

use crate::host::{Pair, Read};
use crate::messages::RangeRequest;
use crate::refusal::Refusal;
use prost::Message;

/// The longest key of a row that the contract allows.
pub(crate) const ROW_KEY_BYTES_MAX: usize = 64 << 10;

const CURRENT: u8 = b'c';
const HISTORY: u8 = b'h';
const PURGE: u8 = b'p';
const OWNED: u8 = b't';
const META: &[u8] = b"m";
const KEY_END: [u8; 2] = [0, 1];

/// A page of a scan below this many bytes was not cut for its size (the contract cuts at 1 MiB).
const PAGE_BYTES_SURELY_WHOLE: usize = 512 << 10;

/// Appends `key` so that concatenated keys still sort like keys.
fn escape(out: &mut Vec<u8>, key: &[u8]) {
    if !key.contains(&0) {
        out.extend_from_slice(key);
        return;
    }
    for &byte in key {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
}

/// Refuses a key whose rows would be longer than the contract allows.
pub(crate) fn check_key(key: &[u8]) -> Result<(), Refusal> {
    const OVERHEAD: usize = 1 + KEY_END.len() + 8;
    let short = 2 * key.len() + OVERHEAD <= ROW_KEY_BYTES_MAX;
    let stored = |key: &[u8]| key.len() + key.iter().filter(|&&byte| byte == 0).count();
    if short || stored(key) + OVERHEAD <= ROW_KEY_BYTES_MAX {
        return Ok(());
    }
    Err(Refusal::key_too_long(stored(key), ROW_KEY_BYTES_MAX - OVERHEAD))
}

/// The row of a key's current version.
#[inline]
pub(crate) fn current(key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(1 + key.len());
    row.push(CURRENT);
    row.extend_from_slice(key);
    row
}

/// The row of the version that `revision` put an end to.
pub(crate) fn history(key: &[u8], revision: i64) -> Vec<u8> {
    let mut row = Vec::with_capacity(1 + key.len() + KEY_END.len() + 8);
    row.push(HISTORY);
    escape(&mut row, key);
    row.extend_from_slice(&KEY_END);
    row.extend_from_slice(&revision.to_be_bytes());
    row
}

/// The revision at the end of a history row.
pub(crate) fn ended_by(row: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(*row.last_chunk()?))
}

/// The row of an ended lease whose keys are not all deleted yet.
pub(crate) fn purge(lease: u64) -> Vec<u8> {
    let mut row = vec![PURGE];
    row.extend_from_slice(&lease.to_be_bytes());
    row
}

/// The row that says that a key owns `lease`.
pub(crate) fn owned(lease: u64) -> [u8; 9] {
    let mut row = [OWNED; 9];
    row[1..].copy_from_slice(&lease.to_be_bytes());
    row
}

/// The lease at the end of a purge row.
pub(crate) fn purged_lease(row: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*row.last_chunk()?))
}

/// Which keys a request names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keys<'a> {
    /// One.
    One(&'a [u8]),
    /// From the first up to, not including, the second.
    Between(&'a [u8], &'a [u8]),
    /// From the first to the last there is.
    From(&'a [u8]),
}

impl<'a> Keys<'a> {
    /// etcd's reading of `key` and `range_end`.
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> Keys<'a> {
        match range_end {
            [] => Keys::One(key),
            [0] => Keys::From(key),
            end => Keys::Between(key, end),
        }
    }

    /// What a range reads.
    pub fn of(request: &'a RangeRequest) -> Keys<'a> {
        Keys::new(&request.key, &request.range_end)
    }

    /// The current rows of these keys.
    pub fn current_rows(self) -> Cursor {
        match self {
            Keys::One(key) => {
                let start = current(key);
                let mut end = start.clone();
                end.push(0);
                Cursor::new(start, end)
            }
            Keys::Between(key, end) => Cursor::new(current(key), current(end)),
            Keys::From(key) => Cursor::new(current(key), vec![CURRENT + 1]),
        }
    }

    /// The history rows of these keys.
    pub fn history_rows(self) -> Cursor {
        let bound = |key: &[u8], end: &[u8]| {
            let mut row = vec![HISTORY];
            escape(&mut row, key);
            row.extend_from_slice(end);
            row
        };
        match self {
            Keys::One(key) => Cursor::new(bound(key, &KEY_END), bound(key, &[KEY_END[0], KEY_END[1] + 1])),
            Keys::Between(key, end) => Cursor::new(bound(key, &[]), bound(end, &[])),
            Keys::From(key) => Cursor::new(bound(key, &[]), vec![HISTORY + 1]),
        }
    }
}

/// All history rows from a row on; from the first if `next` is empty.
pub(crate) fn history_rows_from(next: &[u8]) -> Cursor {
    let start = if next.is_empty() { vec![HISTORY] } else { next.to_vec() };
    Cursor::new(start, vec![HISTORY + 1])
}

/// All purge rows.
pub(crate) fn purge_rows() -> Cursor {
    Cursor::new(vec![PURGE], vec![PURGE + 1])
}

/// Walks a span of rows in key order, a page of the host's at a time. Rows behind it may be removed
/// meanwhile.
pub(crate) struct Cursor {
    next: Vec<u8>,
    end: Vec<u8>,
    page: std::vec::IntoIter<Pair>,
    page_rows_max: u32,
    exhausted: bool,
}

impl Cursor {
    fn new(start: Vec<u8>, end: Vec<u8>) -> Cursor {
        let (next, end) = (clamp(start), clamp(end));
        let exhausted = next >= end;
        Cursor { next, end, page: Vec::new().into_iter(), page_rows_max: 0, exhausted }
    }

    /// Asks the host for at most so many rows at a time.
    pub fn by(mut self, rows: u32) -> Cursor {
        self.page_rows_max = rows;
        self
    }

    /// The next row.
    #[inline]
    pub fn next<R: Read>(&mut self, host: &R) -> Option<Pair> {
        match self.page.next() {
            Some(pair) => Some(pair),
            None => self.turn(host),
        }
    }

    /// Goes on at `row`, which must not be behind.
    pub fn seek(&mut self, row: Vec<u8>) {
        self.next = clamp(row);
        self.page = Vec::new().into_iter();
        self.exhausted = self.next >= self.end;
    }

    /// Fetches the next page and gives its first row.
    fn turn<R: Read>(&mut self, host: &R) -> Option<Pair> {
        if self.exhausted {
            return None;
        }
        let pairs = host.scan(&self.next, Some(&self.end), self.page_rows_max);
        let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        let short = self.page_rows_max == 0 || pairs.len() < self.page_rows_max as usize;
        self.exhausted = pairs.is_empty() || short && bytes < PAGE_BYTES_SURELY_WHOLE;
        if let Some((last, _)) = pairs.last() {
            self.next.clone_from(last);
            self.next.push(0);
        }
        self.page = pairs.into_iter();
        self.page.next()
    }
}

/// Shortens a bound to what the contract allows. No row is longer than the limit, so a row is at or past a
/// longer bound exactly if it is past the bound's first bytes, which is: at or past them with a zero added.
fn clamp(mut bound: Vec<u8>) -> Vec<u8> {
    if bound.len() > ROW_KEY_BYTES_MAX + 1 {
        bound.truncate(ROW_KEY_BYTES_MAX);
        bound.push(0);
    }
    bound
}

/// What the store remembers of itself.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Meta {
    /// The layout of the rows.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The last compaction: the oldest revision that can be read.
    #[prost(int64, optional, tag = "2")]
    pub compacted: Option<i64>,
    /// The compaction that the removal under way began with; none: nothing is being removed.
    #[prost(int64, optional, tag = "3")]
    pub removing: Option<i64>,
    /// The row at which the removal goes on; empty: at the first.
    #[prost(bytes = "vec", tag = "4")]
    pub remove_from: Vec<u8>,
    /// Whether there are purge rows.
    #[prost(bool, tag = "5")]
    pub purging: bool,
}

impl Meta {
    /// The layout described above. Format 1 had no times to live.
    pub const FORMAT: u32 = 2;

    /// Reads the row; a store without one is new.
    pub fn read<R: Read>(host: &R) -> Result<Meta, Refusal> {
        match host.get(META) {
            Some(row) => Meta::decode(row.as_slice()).map_err(|_| Refusal::DAMAGED),
            None => Ok(Meta { format: Meta::FORMAT, ..Meta::default() }),
        }
    }

    /// The row and its bytes.
    pub fn row(&self) -> (&'static [u8], Vec<u8>) {
        (META, self.encode_to_vec())
    }

    /// The oldest revision that can be read; -1, as in etcd, if nothing was ever compacted.
    pub fn compact_revision(&self) -> i64 {
        self.compacted.unwrap_or(-1)
    }
}

/// What is left of an ended lease's keys: those from `next` to `last`, both included.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PurgeSpan {
    #[prost(bytes = "vec", tag = "1")]
    pub next: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub last: Vec<u8>,
}
