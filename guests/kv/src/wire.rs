//! Protobuf by hand, where it is hot: the row of a key, and answers that carry rows without decoding them.
//!
//! A row *is* an encoded `mvccpb.KeyValue`, so a read copies it into its answer as it is. Reading never
//! panics: every function gives `None` on bytes that are not what they should be.

const VARINT: u32 = 0;
const BYTES: u32 = 2;

/// Appends a base-128 number.
#[inline]
pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The bytes that [`varint`] takes: 7 bits each, one at least.
#[inline]
pub(crate) fn varint_len(value: u64) -> usize {
    ((70 - (value | 1).leading_zeros()) / 7) as usize
}

/// Appends a number's field, unless it is 0.
#[inline]
pub(crate) fn int_field(out: &mut Vec<u8>, tag: u32, value: i64) {
    if value != 0 {
        varint(out, u64::from(tag << 3 | VARINT));
        varint(out, value as u64);
    }
}

/// Appends a flag's field, unless it is false.
pub(crate) fn bool_field(out: &mut Vec<u8>, tag: u32, value: bool) {
    int_field(out, tag, i64::from(value));
}

/// Appends a field of bytes or of an encoded message, empty ones included.
#[inline]
pub(crate) fn message_field(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    varint(out, u64::from(tag << 3 | BYTES));
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a field of bytes, unless they are empty.
#[inline]
pub(crate) fn bytes_field(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        message_field(out, tag, bytes);
    }
}

/// Appends field 1 of every answer: a `ResponseHeader` with nothing but the revision.
pub(crate) fn header(out: &mut Vec<u8>, revision: i64) {
    let length = if revision == 0 { 0 } else { 1 + varint_len(revision as u64) };
    varint(out, u64::from(1 << 3 | BYTES));
    varint(out, length as u64);
    int_field(out, 3, revision);
}

/// A field's content.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Reads fields one after the other.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    #[inline]
    fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    #[inline]
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.number()?;
        let content = match (key & 7) as u32 {
            VARINT => Field::Number(self.number()?),
            BYTES => {
                let length = usize::try_from(self.number()?).ok()?;
                let (bytes, rest) = self.rest.split_at_checked(length)?;
                self.rest = rest;
                Field::Bytes(bytes)
            }
            _ => return None,
        };
        Some((key >> 3, content))
    }
}

/// A `KeyValue` that borrows its key and value: from a row, or from a request on its way to one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version<'a> {
    pub key: &'a [u8],
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub value: &'a [u8],
    pub lease: i64,
    pub expires_at_ms: u64,
}

/// The number of `expires_at_ms` in a `KeyValue`.
const EXPIRES: u32 = 1000;

impl<'a> Version<'a> {
    /// Reads a row that [`Version::encode`] wrote; anything else is `None`.
    pub fn parse(row: &'a [u8]) -> Option<Version<'a>> {
        let mut version = Version::default();
        let mut fields = Fields { rest: row };
        while !fields.rest.is_empty() {
            match fields.field()? {
                (1, Field::Bytes(key)) => version.key = key,
                (2, Field::Number(revision)) => version.create_revision = revision as i64,
                (3, Field::Number(revision)) => version.mod_revision = revision as i64,
                (4, Field::Number(count)) => version.version = count as i64,
                (5, Field::Bytes(value)) => version.value = value,
                (6, Field::Number(lease)) => version.lease = lease as i64,
                (tag, Field::Number(time_ms)) if tag == u64::from(EXPIRES) => version.expires_at_ms = time_ms,
                _ => return None,
            }
        }
        Some(version)
    }

    /// Whether its own time to live has ended by `time_ms`.
    #[inline]
    pub fn expired(&self, time_ms: u64) -> bool {
        self.expires_at_ms != 0 && self.expires_at_ms <= time_ms
    }

    /// Whether its lease is its own: granted for its time to live, and for nothing else.
    #[inline]
    pub fn owns_lease(&self) -> bool {
        self.expires_at_ms != 0
    }

    /// The bytes of the message, fields in the order of their numbers as every encoder of etcd writes them.
    pub fn encode(&self) -> Vec<u8> {
        // Two lengths of at most 5 bytes, five numbers of at most 10, six tags of one byte and one of two.
        let mut out = Vec::with_capacity(self.key.len() + self.value.len() + 68);
        bytes_field(&mut out, 1, self.key);
        int_field(&mut out, 2, self.create_revision);
        int_field(&mut out, 3, self.mod_revision);
        int_field(&mut out, 4, self.version);
        bytes_field(&mut out, 5, self.value);
        int_field(&mut out, 6, self.lease);
        int_field(&mut out, EXPIRES, self.expires_at_ms as i64);
        out
    }
}
