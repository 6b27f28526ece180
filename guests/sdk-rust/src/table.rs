//! Typed rows in the store: a [`Table`] is a prefix, a type of key and a type of value.
//!
//! Keys are written so that the order of their bytes is the order of their values; a scan then gives rows in
//! the order one would expect. Two tables must not have prefixes of which one begins with the other.

use std::marker::PhantomData;

use crate::store::{Store, after_prefix};

/// A key of a table. `a < b` exactly if the bytes of `a` come before those of `b`.
pub trait Key: Sized {
    /// Appends the bytes.
    fn write(&self, to: &mut Vec<u8>);
    /// Takes the key from the front of `bytes`; none if it is not one.
    fn read(bytes: &mut &[u8]) -> Option<Self>;
}

/// A value of a table.
pub trait Value: Sized {
    /// Its bytes.
    fn to_bytes(&self) -> Vec<u8>;
    /// The value; none if these are not its bytes.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

/// Rows of one kind, by their prefix.
pub struct Table<K, V> {
    prefix: &'static [u8],
    rows: PhantomData<fn(K) -> V>,
}

/// Rows of a scan, in order.
pub type Rows<K, V> = Vec<(K, V)>;

impl<K: Key, V: Value> Table<K, V> {
    /// The table whose rows' keys begin with `prefix`.
    pub const fn new(prefix: &'static [u8]) -> Table<K, V> {
        assert!(!prefix.is_empty(), "a table needs a prefix");
        Table { prefix, rows: PhantomData }
    }

    /// The key of a row as it is in the store, for events and leases.
    pub fn key(&self, key: &K) -> Vec<u8> {
        let mut bytes = self.prefix.to_vec();
        key.write(&mut bytes);
        bytes
    }

    /// The key of a row of this table; none if it is not one.
    pub fn parse(&self, key: &[u8]) -> Option<K> {
        let mut rest = key.strip_prefix(self.prefix)?;
        K::read(&mut rest).filter(|_| rest.is_empty())
    }

    /// The row's value.
    ///
    /// # Panics
    /// If what is stored is not a value of this table: better to trap than to compute with it.
    pub fn get(&self, store: &Store, key: &K) -> Option<V> {
        store.get(&self.key(key)).map(|bytes| self.value(&bytes))
    }

    /// Keeps a row.
    pub fn set(&self, store: &mut Store, key: &K, value: &V) {
        store.set(&self.key(key), &value.to_bytes());
    }

    /// Forgets a row.
    pub fn delete(&self, store: &mut Store, key: &K) {
        store.delete(&self.key(key));
    }

    /// The first rows: at most `limit` (0: as many as one scan gives, about 1 MiB).
    ///
    /// # Panics
    /// If a stored row is not of this table.
    pub fn first(&self, store: &Store, limit: u32) -> Rows<K, V> {
        self.rows(store.scan(self.prefix, after_prefix(self.prefix).as_deref(), limit))
    }

    /// The last rows, the last one first.
    ///
    /// # Panics
    /// If a stored row is not of this table.
    pub fn last(&self, store: &Store, limit: u32) -> Rows<K, V> {
        self.rows(store.scan_back(self.prefix, after_prefix(self.prefix).as_deref(), limit))
    }

    /// The rows from `key` on.
    ///
    /// # Panics
    /// If a stored row is not of this table.
    pub fn from(&self, store: &Store, key: &K, limit: u32) -> Rows<K, V> {
        self.rows(store.scan(&self.key(key), after_prefix(self.prefix).as_deref(), limit))
    }

    fn rows(&self, pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Rows<K, V> {
        let row = |(key, value): (Vec<u8>, Vec<u8>)| {
            let key = self.parse(&key).expect("keys with this table's prefix are its own");
            (key, self.value(&value))
        };
        pairs.into_iter().map(row).collect()
    }

    fn value(&self, bytes: &[u8]) -> V {
        V::from_bytes(bytes).expect("the rows of this table hold its values")
    }
}

macro_rules! whole_numbers {
    ($($number:ty),*) => {$(
        impl Key for $number {
            fn write(&self, to: &mut Vec<u8>) {
                to.extend(self.to_be_bytes());
            }

            fn read(bytes: &mut &[u8]) -> Option<Self> {
                let (first, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(Self::from_be_bytes(*first))
            }
        }

        impl Value for $number {
            fn to_bytes(&self) -> Vec<u8> {
                self.to_be_bytes().to_vec()
            }

            fn from_bytes(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self::from_be_bytes)
            }
        }
    )*};
}

whole_numbers!(u8, u16, u32, u64, u128);

/// The sign is turned round, so that negative numbers come first.
impl Key for i64 {
    fn write(&self, to: &mut Vec<u8>) {
        (self.cast_unsigned() ^ (1 << 63)).write(to);
    }

    fn read(bytes: &mut &[u8]) -> Option<i64> {
        u64::read(bytes).map(|number| (number ^ (1 << 63)).cast_signed())
    }
}

impl Value for i64 {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<i64> {
        bytes.try_into().ok().map(i64::from_be_bytes)
    }
}

/// Bytes end with `00 00`, and a zero among them is written `00 01`: so keys of different lengths are in
/// order, and something may follow.
impl Key for Vec<u8> {
    fn write(&self, to: &mut Vec<u8>) {
        for byte in self {
            to.push(*byte);
            if *byte == 0 {
                to.push(1);
            }
        }
        to.extend([0, 0]);
    }

    fn read(bytes: &mut &[u8]) -> Option<Vec<u8>> {
        let mut key = Vec::new();
        loop {
            let (byte, rest) = bytes.split_first()?;
            *bytes = rest;
            if *byte == 0 {
                let (mark, rest) = bytes.split_first()?;
                *bytes = rest;
                match mark {
                    0 => return Some(key),
                    1 => {}
                    _ => return None,
                }
            }
            key.push(*byte);
        }
    }
}

impl Value for Vec<u8> {
    fn to_bytes(&self) -> Vec<u8> {
        self.clone()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Vec<u8>> {
        Some(bytes.to_vec())
    }
}

impl Key for String {
    fn write(&self, to: &mut Vec<u8>) {
        self.as_bytes().to_vec().write(to);
    }

    fn read(bytes: &mut &[u8]) -> Option<String> {
        String::from_utf8(Vec::read(bytes)?).ok()
    }
}

impl Value for String {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<String> {
        String::from_utf8(bytes.to_vec()).ok()
    }
}

/// Nothing: for tables that are sets.
impl Value for () {
    fn to_bytes(&self) -> Vec<u8> {
        Vec::new()
    }

    fn from_bytes(bytes: &[u8]) -> Option<()> {
        bytes.is_empty().then_some(())
    }
}

impl<A: Key, B: Key> Key for (A, B) {
    fn write(&self, to: &mut Vec<u8>) {
        self.0.write(to);
        self.1.write(to);
    }

    fn read(bytes: &mut &[u8]) -> Option<(A, B)> {
        Some((A::read(bytes)?, B::read(bytes)?))
    }
}

impl<A: Key, B: Key, C: Key> Key for (A, B, C) {
    fn write(&self, to: &mut Vec<u8>) {
        self.0.write(to);
        self.1.write(to);
        self.2.write(to);
    }

    fn read(bytes: &mut &[u8]) -> Option<(A, B, C)> {
        Some((A::read(bytes)?, B::read(bytes)?, C::read(bytes)?))
    }
}

/// The only row of a table of one.
impl Key for () {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut &[u8]) -> Option<()> {
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(key: &impl Key) -> Vec<u8> {
        let mut bytes = Vec::new();
        key.write(&mut bytes);
        bytes
    }

    fn in_order<K: Key + PartialEq + std::fmt::Debug>(keys: &[K]) {
        for pair in keys.windows(2) {
            assert!(bytes(&pair[0]) < bytes(&pair[1]), "{pair:?}");
        }
        for key in keys {
            assert_eq!(K::read(&mut bytes(key).as_slice()).as_ref(), Some(key));
        }
    }

    #[test]
    fn the_order_of_bytes_is_the_order_of_keys() {
        in_order(&[i64::MIN, -256, -1, 0, 1, 255, 256, i64::MAX]);
        in_order(&[0u64, 1, 255, 256, u64::MAX]);
        in_order(&["", "a", "a\0", "a\0b", "a\u{1}", "aa", "b"].map(String::from));
        in_order(&[
            ("a".to_string(), 9u64),
            ("a".to_string(), 10),
            ("a\0".to_string(), 0),
            ("b".to_string(), 0),
        ]);
    }

    #[test]
    fn what_is_no_key_is_not_taken_for_one() {
        const TABLE: Table<u32, ()> = Table::new(b"t/");
        assert_eq!(TABLE.parse(b"t/\0\0\0\x07"), Some(7));
        for key in [&b"t/\0\0\0"[..], b"t/\0\0\0\x07\0", b"u/\0\0\0\x07", b""] {
            assert_eq!(TABLE.parse(key), None);
        }
        assert_eq!(Vec::<u8>::read(&mut &b"a\0\x02"[..]), None);
        assert_eq!(Vec::<u8>::read(&mut &b"a"[..]), None);
    }
}
