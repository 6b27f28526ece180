//! What is to be brought: keys in order, where their values are, and leases.
//!
//! The keys are in memory, as etcd has them; values stay in the file until they are asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use prost::Message;
use statehouse_kv::messages::KeyValue;

use super::bar;
use crate::bbolt::Source as _;
use crate::bbolt::etcd::{Checksum, EtcdFile, Revision, Versions, checksum};

/// Everything that is to be brought.
pub struct Source {
    /// The revision of etcd that this is.
    pub revision: i64,
    /// In the order of the keys.
    pub keys: Vec<Key>,
    /// By id.
    pub leases: BTreeMap<u64, Duration>,
    /// Keys that are left out, because their lease ended while they were read.
    pub ended: usize,
    /// Keys whose lease is nowhere to be found, and which come without it.
    pub unleased: usize,
    values: Values,
}

/// A key, and where its value is.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub key: Vec<u8>,
    /// The revision that created it.
    pub created: i64,
    /// Its lease; 0: none.
    pub lease: u64,
    /// The bytes of key and value, with some room.
    pub bytes: usize,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Version(Revision),
    Spooled { offset: u64 },
}

enum Values {
    File(EtcdFile<File>),
    /// Key-values one behind the other, in a file without a name.
    Spool(File),
}

impl Key {
    /// A key whose `length` bytes of encoded key-value are in a spool.
    pub fn spooled(key: Vec<u8>, (created, lease): (i64, u64), (offset, bytes): (u64, usize)) -> Key {
        Key { key, created, lease, bytes, place: Place::Spooled { offset } }
    }
}

impl Source {
    /// All of a snapshot, or of a database.
    pub fn of_file(path: &Path) -> anyhow::Result<Source> {
        let file = File::open(path).context("it cannot be opened")?;
        if !file.metadata()?.is_file() {
            bail!("it is not a file; a database of etcd is in its data directory, at member/snap/db");
        }
        // What it is comes first: a checksum of gigabytes of something else would tell nothing.
        let etcd = EtcdFile::open(file.try_clone()?)?;
        let progress = bar(usize::try_from(file.size())?, "bytes", "checking the checksum")?;
        let found = checksum(&file, |bytes| progress.set_position(bytes))?;
        progress.finish_and_clear();
        if found == Checksum::Wrong {
            bail!("its checksum is wrong: the snapshot is damaged, or was cut off; save it again");
        }
        let progress = bar(0, "versions", "looking for the keys that there are")?;
        let index = etcd.index(|versions| progress.set_position(versions))?;
        progress.finish_and_clear();
        let mut leases = BTreeMap::new();
        for lease in etcd.leases()? {
            // An id is the same 64 bits on both sides.
            leases.insert(lease.id as u64, granted(lease.id, lease.ttl_s)?);
        }
        let mut unleased = 0;
        let mut keys = Vec::with_capacity(index.keys.len());
        for (key, living) in index.keys {
            let mut lease = living.lease as u64;
            if lease != 0 && !leases.contains_key(&lease) {
                (lease, unleased) = (0, unleased + 1);
            }
            let (created, bytes, place) = (living.created, living.bytes, Place::Version(living.written));
            keys.push(Key { key, created, lease, bytes, place });
        }
        let revision = index.revision;
        Ok(Source { revision, keys, leases, ended: 0, unleased, values: Values::File(etcd) })
    }

    /// What was read from a running etcd. Keys whose lease is not among `leases` ended with it.
    pub fn of_spool(
        revision: i64,
        mut keys: Vec<Key>,
        leases: BTreeMap<u64, Duration>,
        spool: File,
    ) -> Source {
        let all = keys.len();
        keys.retain(|key| key.lease == 0 || leases.contains_key(&key.lease));
        let ended = all - keys.len();
        Source { revision, keys, leases, ended, unleased: 0, values: Values::Spool(spool) }
    }

    /// The places of the keys in the order in which etcd created them; those of one request by name.
    pub fn in_order_of_creation(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.keys.len()).collect();
        order.sort_by_key(|&place| (self.keys[place].created, place));
        order
    }

    /// Reads values.
    pub fn reader(&self) -> Reader<'_> {
        match &self.values {
            Values::File(file) => Reader::Versions(file.versions()),
            Values::Spool(file) => Reader::Spool(file),
        }
    }
}

/// The time that a lease was granted.
pub fn granted(id: i64, seconds: i64) -> anyhow::Result<Duration> {
    match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 && id > 0 => Ok(Duration::from_secs(seconds)),
        _ => bail!("etcd has a lease {id:x} of {seconds} seconds, which is none"),
    }
}

/// Reads values, quickly if it is asked for them in the order of revisions.
pub enum Reader<'s> {
    /// Of a file.
    Versions(Versions<'s, File>),
    /// Of a spool.
    Spool(&'s File),
}

impl Reader<'_> {
    /// The value of a key.
    pub fn value(&mut self, key: &Key) -> anyhow::Result<Vec<u8>> {
        let pair = match (self, key.place) {
            (Reader::Versions(versions), Place::Version(revision)) => versions.read(revision)?,
            (Reader::Spool(file), Place::Spooled { offset }) => {
                let mut bytes = vec![0; key.bytes];
                file.read_exact_at(&mut bytes, offset).context("cannot read what was put aside")?;
                KeyValue::decode(&*bytes).context("what was put aside is damaged")?
            }
            (Reader::Versions(_), Place::Spooled { .. }) | (Reader::Spool(_), Place::Version(_)) => {
                unreachable!("a source makes its keys and its reader of one kind")
            }
        };
        if pair.key != key.key {
            bail!("etcd has another key where \"{}\" should be", key.key.escape_ascii());
        }
        Ok(pair.value)
    }
}
