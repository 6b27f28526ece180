//! What etcd keeps in a file of this format: its keys, its leases, and what it knows of itself.
//!
//! Only facts of etcd's storage are here: names of buckets, how revisions are spelled, which version of a key
//! is the living one, and the checksum at the end of a saved snapshot. What is made of them is for others.

use std::collections::BTreeMap;
use std::io;

use prost::Message;
use sha2::{Digest, Sha256};
use statehouse_kv::messages::KeyValue;

use super::{Bucket, Cursor, Database, Error, Source};

/// The bucket of all versions of all keys, by revision.
pub const KEYS: &[u8] = b"key";
/// The bucket of leases, by id.
pub const LEASES: &[u8] = b"lease";
/// The bucket of what etcd knows of itself.
pub const META: &[u8] = b"meta";
/// All buckets of etcd 3.7, in the order of their names.
pub const BUCKETS: [&[u8]; 10] = [
    b"alarm",
    b"auth",
    b"authRoles",
    b"authUsers",
    b"cluster",
    KEYS,
    LEASES,
    b"members",
    b"members_removed",
    META,
];
/// A snapshot that was saved over the network ends with a sha256 of all before it. What is before it are
/// whole pages; and they are never smaller than this.
const CHECKSUM_BYTES: u64 = 32;
const PAGES_BYTES: u64 = 512;
/// How much is read at once to compute it.
const STEP_BYTES: usize = 1 << 20;

/// Where a version of a key stands in etcd's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision {
    /// The revision of the request.
    pub main: i64,
    /// Which of the request's changes, from 0.
    pub sub: i64,
}

impl Revision {
    /// How the bucket [`KEYS`] spells it: its keys sort as revisions do. `ends` marks a version that ends its
    /// key.
    pub fn spelled(self, ends: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(18);
        bytes.extend_from_slice(&self.main.to_be_bytes());
        bytes.push(b'_');
        bytes.extend_from_slice(&self.sub.to_be_bytes());
        if ends {
            bytes.push(b't');
        }
        bytes
    }

    /// The revision, and whether its version ends its key.
    fn parse(bytes: &[u8]) -> Option<(Revision, bool)> {
        let ends = match bytes.len() {
            17 => false,
            18 if bytes[17] == b't' => true,
            _ => return None,
        };
        let number = |place: &[u8]| place.first_chunk().map(|chunk| i64::from_be_bytes(*chunk));
        let (main, sub) = (number(&bytes[..8])?, number(&bytes[9..])?);
        (bytes[8] == b'_' && main >= 0 && sub >= 0).then_some((Revision { main, sub }, ends))
    }
}

/// A lease as etcd stores it (`leasepb.Lease`).
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Lease {
    /// Its id.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// The seconds that it was granted, and gets again with every keep-alive.
    #[prost(int64, tag = "2")]
    pub ttl_s: i64,
    /// The seconds it had left at a checkpoint; 0: there was none.
    #[prost(int64, tag = "3")]
    pub remaining_s: i64,
}

/// What the index is made of: a `KeyValue` without its value, which is skipped.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(int64, tag = "2")]
    create_revision: i64,
    #[prost(int64, tag = "6")]
    lease: i64,
}

/// Where the living version of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Living {
    /// The revision that created the key.
    pub created: i64,
    /// The revision that wrote this version.
    pub written: Revision,
    /// The lease that it is attached to; 0: none.
    pub lease: i64,
    /// The bytes of this version, with its key.
    pub bytes: usize,
}

/// What lives, and how far its history went.
#[derive(Debug, Default)]
pub struct Index {
    /// By key.
    pub keys: BTreeMap<Vec<u8>, Living>,
    /// The last revision of all versions, those included that ended a key.
    pub revision: i64,
    /// How many versions there were.
    pub versions: u64,
}

/// An open file of etcd.
#[derive(Debug)]
pub struct EtcdFile<S> {
    database: Database<S>,
    keys: Bucket,
    leases: Option<Bucket>,
}

impl<S: Source> EtcdFile<S> {
    /// Opens a database or a snapshot of etcd.
    ///
    /// # Errors
    /// `Foreign` if it is none, or one of another program.
    pub fn open(source: S) -> Result<EtcdFile<S>, Error> {
        let database = Database::open(source)?;
        let Some(keys) = database.bucket(KEYS)? else {
            return Err(Error::Foreign("it has no bucket of keys, so another program made it".into()));
        };
        let leases = database.bucket(LEASES)?;
        Ok(EtcdFile { database, keys, leases })
    }

    /// Finds the living version of each key. Holds the keys in memory, as etcd does, without their values.
    /// Tells `progress` after each version how many there were.
    ///
    /// # Errors
    /// The file is damaged, or a version is not what etcd writes.
    pub fn index(&self, mut progress: impl FnMut(u64)) -> Result<Index, Error> {
        let mut index = Index::default();
        let mut cursor = self.database.walk(&self.keys);
        while let Some(entry) = cursor.next_entry()? {
            let (written, ends) = Revision::parse(entry.key).ok_or_else(|| odd("revision", entry.key))?;
            index.revision = index.revision.max(written.main);
            index.versions += 1;
            progress(index.versions);
            if entry.value.is_empty() {
                // `etcdutl snapshot restore --bump-revision` leaves one, for its revision only.
                continue;
            }
            let head = Head::decode(entry.value).map_err(|_| odd("version of a key at", entry.key))?;
            if head.key.is_empty() {
                return Err(odd("version without a key at", entry.key));
            }
            if ends {
                index.keys.remove(&head.key);
            } else {
                let (created, bytes) = (head.create_revision, entry.value.len());
                index.keys.insert(head.key, Living { created, written, lease: head.lease, bytes });
            }
        }
        Ok(index)
    }

    /// A reader of versions.
    pub fn versions(&self) -> Versions<'_, S> {
        Versions { cursor: self.database.walk(&self.keys) }
    }

    /// All leases, by id. Some may have ended since.
    ///
    /// # Errors
    /// The file is damaged, or a lease is not what etcd writes.
    pub fn leases(&self) -> Result<Vec<Lease>, Error> {
        let mut leases = Vec::new();
        let Some(bucket) = &self.leases else { return Ok(leases) };
        let mut cursor = self.database.walk(bucket);
        while let Some(entry) = cursor.next_entry()? {
            leases.push(Lease::decode(entry.value).map_err(|_| odd("lease", entry.key))?);
        }
        Ok(leases)
    }
}

/// Reads versions of keys by their revisions; quick if they ascend.
pub struct Versions<'f, S> {
    cursor: Cursor<'f, S>,
}

impl<S: Source> Versions<'_, S> {
    /// The version that was written at a revision.
    ///
    /// # Errors
    /// The file is damaged, or there is none.
    pub fn read(&mut self, written: Revision) -> Result<KeyValue, Error> {
        let spelled = written.spelled(false);
        self.cursor.seek(&spelled)?;
        let entry = self.cursor.next_entry()?.filter(|entry| entry.key == spelled);
        let decoded = entry.and_then(|entry| KeyValue::decode(entry.value).ok());
        decoded.ok_or_else(|| odd("version at", &spelled))
    }
}

fn odd(what: &str, bytes: &[u8]) -> Error {
    Error::Content(format!("this is no {what} as etcd writes it: {}", bytes.escape_ascii()))
}

/// What there is to say about the checksum of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// It has none: a database that was copied rather than saved.
    None,
    /// It is right.
    Right,
    /// It is not: the file is damaged or was cut off.
    Wrong,
}

/// Compares the checksum at the end of a saved snapshot. Reads the whole file, and tells `progress` how many
/// bytes of it.
///
/// # Errors
/// The file cannot be read.
pub fn checksum<S: Source>(source: &S, mut progress: impl FnMut(u64)) -> io::Result<Checksum> {
    let size = source.size();
    if size % PAGES_BYTES != CHECKSUM_BYTES {
        return Ok(Checksum::None);
    }
    let content = size - CHECKSUM_BYTES;
    let (mut hash, mut at, mut step) = (Sha256::new(), 0, vec![0; STEP_BYTES]);
    while at < content {
        let length = (content - at).min(STEP_BYTES as u64);
        // No more than the step's length.
        let bytes = &mut step[..length as usize];
        source.read_at(at, bytes)?;
        hash.update(&*bytes);
        at += length;
        progress(at);
    }
    let mut stored = [0; CHECKSUM_BYTES as usize];
    source.read_at(content, &mut stored)?;
    Ok(if hash.finalize()[..] == stored { Checksum::Right } else { Checksum::Wrong })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_spelled_as_etcd_does_and_read_back() {
        let revision = Revision { main: 258, sub: 1 };
        assert_eq!(revision.spelled(false), b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x01");
        assert_eq!(Revision::parse(&revision.spelled(false)), Some((revision, false)));
        assert_eq!(Revision::parse(&revision.spelled(true)), Some((revision, true)));
        for odd in [&b""[..], b"\0\0\0\0\0\0\x01\x02-\0\0\0\0\0\0\0\x01", &[0xff; 17], &[b'_'; 19]] {
            assert_eq!(Revision::parse(odd), None, "{odd:?}");
        }
    }
}
