//! Makes a database that etcd takes for a snapshot of its own.
//!
//! etcd keeps versions of keys in the order of their revisions; whoever has keys usually has them in the
//! order of the keys. So they are put aside first, and written when all are there: in memory is only where
//! each is. Promises a database that `etcdutl snapshot restore` takes, whose etcd begins at the revision of
//! the snapshot and has the keys and leases as they were, without older versions.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::FileExt;

use prost::Message;

use super::etcd::{BUCKETS, KEYS, LEASES, Lease, META, Revision};
use super::{Error, Writer};

/// The bucket of what the members of a cluster have in common.
const CLUSTER: &[u8] = b"cluster";
/// How much is gathered before it is put aside.
const SPOOL_BYTES: usize = 1 << 20;

/// What a snapshot says besides the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About<'a> {
    /// The revision that the keys are of. Older ones are marked as compacted.
    pub revision: i64,
    /// The position in the log, and its term; neither is 0 in an etcd that has begun.
    pub index: u64,
    /// The term of that position.
    pub term: u64,
    /// The version of etcd whose schema this is, such as `3.7.0`.
    pub version: &'a str,
    /// By id.
    pub leases: &'a [Lease],
}

/// Versions of keys on their way into a snapshot.
pub struct Snapshot {
    spool: BufWriter<File>,
    bytes: u64,
    places: Vec<Place>,
}

/// Where a version is put aside.
struct Place {
    revision: i64,
    offset: u64,
    length: usize,
}

impl Snapshot {
    /// One that puts versions aside in `spool`, an empty file that can be read and written.
    pub fn new(spool: File) -> Snapshot {
        Snapshot { spool: BufWriter::with_capacity(SPOOL_BYTES, spool), bytes: 0, places: Vec::new() }
    }

    /// Adds the living version of a key: an encoded `KeyValue`, and the revision that wrote it. In any order;
    /// those of one revision become its changes in the order in which they are added.
    ///
    /// # Errors
    /// The spool cannot be written.
    pub fn add(&mut self, revision: i64, version: &[u8]) -> io::Result<()> {
        self.spool.write_all(version)?;
        self.places.push(Place { revision, offset: self.bytes, length: version.len() });
        self.bytes += version.len() as u64;
        Ok(())
    }

    /// Writes the database to the beginning of `out`.
    ///
    /// # Errors
    /// `Io` if either file fails; `Unfit` if leases are not in the order of their ids.
    pub fn write<W: Write + Seek>(self, out: W, about: &About<'_>) -> Result<W, Error> {
        let spooled = |source: io::Error| Error::Content(format!("what was put aside is lost: {source}"));
        let spool = self.spool.into_inner().map_err(|e| spooled(e.into_error()))?;
        let mut places = self.places;
        places.sort_by_key(|place| place.revision);
        let mut writer = Writer::new(out)?;
        for name in BUCKETS {
            writer.bucket(name)?;
            match name {
                KEYS => write_versions(&mut writer, &spool, &places).map_err(|why| match why {
                    Failed::Spool(source) => spooled(source),
                    Failed::Out(why) => why,
                })?,
                LEASES => write_leases(&mut writer, about.leases)?,
                META => write_meta(&mut writer, about)?,
                CLUSTER => writer.put(b"clusterVersion", about.version.as_bytes())?,
                _ => {}
            }
        }
        writer.finish()
    }
}

/// Which side failed.
enum Failed {
    Spool(io::Error),
    Out(Error),
}

fn write_versions<W: Write + Seek>(
    writer: &mut Writer<W>,
    spool: &File,
    places: &[Place],
) -> Result<(), Failed> {
    let mut at = Revision { main: -1, sub: 0 };
    let mut version = Vec::new();
    for place in places {
        let sub = if place.revision == at.main { at.sub + 1 } else { 0 };
        at = Revision { main: place.revision, sub };
        version.resize(place.length, 0);
        spool.read_exact_at(&mut version, place.offset).map_err(Failed::Spool)?;
        writer.put(&at.spelled(false), &version).map_err(Failed::Out)?;
    }
    Ok(())
}

fn write_leases<W: Write + Seek>(writer: &mut Writer<W>, leases: &[Lease]) -> Result<(), Error> {
    leases.iter().try_for_each(|lease| writer.put(&lease.id.to_be_bytes(), &lease.encode_to_vec()))
}

/// In the order of the names.
fn write_meta<W: Write + Seek>(writer: &mut Writer<W>, about: &About<'_>) -> Result<(), Error> {
    let compacted = Revision { main: about.revision, sub: 0 }.spelled(false);
    writer.put(b"consistent_index", &about.index.to_be_bytes())?;
    writer.put(b"finishedCompactRev", &compacted)?;
    writer.put(b"scheduledCompactRev", &compacted)?;
    writer.put(b"storageVersion", about.version.as_bytes())?;
    writer.put(b"term", &about.term.to_be_bytes())
}
