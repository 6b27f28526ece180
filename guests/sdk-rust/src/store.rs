//! The host's ordered map, as a machine sees it. A query gets it behind `&`, so it cannot write.

use crate::host::Map;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// The machine's own ordered map: keys of 1 byte to 64 KiB, values up to 4 MiB. Reads see the writes of the
/// input at hand; a refused input leaves no trace.
pub struct Store<'a> {
    pub(crate) map: &'a dyn Map,
}

impl Store<'_> {
    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.map.get(key)
    }

    /// The values of up to 1,024 keys, 4 MiB together: one call of the host.
    pub fn get_many(&self, keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
        self.map.get_many(keys)
    }

    /// Keeps a value.
    pub fn set(&mut self, key: &[u8], value: &[u8]) {
        self.map.set(key, value);
    }

    /// Forgets a key, whether it is there or not.
    pub fn delete(&mut self, key: &[u8]) {
        self.map.delete(key);
    }

    /// Forgets the keys from `start` up to, not including, `end`; without an end, to the last.
    pub fn delete_span(&mut self, start: &[u8], end: Option<&[u8]>) {
        self.map.delete_span(start, end);
    }

    /// The pairs of a span in key order: at most `limit` (0: no limit), and about 1 MiB. Ask again from
    /// behind the last key for more.
    pub fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: u32) -> Vec<Pair> {
        self.map.scan(start, end, limit, false)
    }

    /// The same from the last key of the span back.
    pub fn scan_back(&self, start: &[u8], end: Option<&[u8]>, limit: u32) -> Vec<Pair> {
        self.map.scan(start, end, limit, true)
    }
}

/// The first key behind all those that begin with `prefix`; none if there is no such key.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}
