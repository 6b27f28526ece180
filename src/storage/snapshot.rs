//! Snapshots of machines as files, one form for both kinds: the host's rows, then what the guest wrote.
//!
//! Promises: a snapshot is there whole or not at all; every byte is covered by a checksum that is looked at
//! before the byte is used, and the file as a whole by another, so that a missing part is noticed as well; a
//! damaged file is told by name. Must never hand out bytes of a block whose checksum does not match.
//!
//! # Form
//! `snapshots/<group>-<index>.snap`: 8 bytes of magic, then blocks. A block: length of its payload (4 bytes,
//! little-endian), crc32 over section and payload (4 bytes), section (1 byte), payload. Sections come in this
//! order:
//! 1. header: one block, a protobuf message, among it the machine's head
//! 2. rows: a stream, cut into blocks of up to 1 MiB, each compressed with zstd. A row: table (1 byte),
//!    length of the key, length of the value (4 bytes each, little-endian), key, value
//! 3. guest: the guest's own bytes, cut and compressed likewise
//! 4. end: one block, the blake3 of all before it
//!
//! Nothing follows. On the way between nodes a file has another ending; see `staged`.

mod read;
mod staged;
mod write;

use std::path::{Path, PathBuf};

use prost::Message;

pub use self::read::{GuestSource, SnapshotReader};
pub use self::staged::Staging;
pub use self::write::{GuestSink, SnapshotWriter};
use super::entry::Membership;
use super::file::{make_directory, remove_leftovers, sync_directory};
use super::large;
use super::log::MembershipRow;
use super::state::{StateDb, StateSnapshot};
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index, Term};
use crate::machine::batch::Head;

/// How the files of snapshots end that a machine can be restored from.
const IN_FORCE: &str = "snap";
const MAGIC: [u8; 8] = *b"shsnap\x00\x01";
/// The form of the rest. Raised when an older version could not read it.
const FORMAT: u32 = 1;
/// A block's bytes before they are compressed.
const BLOCK_BYTES: usize = 1 << 20;
/// What a block's payload may take: room for bytes that zstd makes longer.
const PAYLOAD_BYTES_MAX: usize = BLOCK_BYTES + BLOCK_BYTES / 64;
/// A row's key, and its value: far over what a machine may write, far under what memory holds.
const ROW_PART_BYTES_MAX: usize = 64 << 20;
/// zstd's own default: quick, and three times smaller for most state.
const COMPRESSION_LEVEL: i32 = 3;

/// Which part of a snapshot a block belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Section {
    Header = 1,
    Rows = 2,
    Guest = 3,
    End = 4,
}

impl Section {
    fn read(byte: u8) -> Option<Section> {
        [Section::Header, Section::Rows, Section::Guest, Section::End].into_iter().find(|&s| s as u8 == byte)
    }
}

/// What kind of machine a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All state is in the rows.
    Stored,
    /// The guest wrote its own state.
    Resident,
}

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The machine's group.
    pub group: GroupId,
    /// The kind of machine.
    pub kind: Kind,
    /// Where the machine stood.
    pub head: Head,
    /// The term of the entry at the head's index.
    pub term: Term,
    /// Who was in the group then.
    pub membership: Membership,
    /// The fingerprint of the engine that the machine ran in; empty if that does not matter to it.
    pub engine: String,
}

/// The stored form of [`Header`].
#[derive(Clone, PartialEq, Message)]
struct HeaderRow {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    group: u64,
    #[prost(bool, tag = "3")]
    resident: bool,
    #[prost(bytes = "vec", tag = "4")]
    head: Vec<u8>,
    #[prost(uint64, tag = "5")]
    term: u64,
    #[prost(message, required, tag = "6")]
    membership: MembershipRow,
    #[prost(string, tag = "7")]
    engine: String,
}

impl Header {
    /// Whether a node may go on from it whose machines run in the engine with this fingerprint.
    ///
    /// # Errors
    /// `FailedPrecondition`, with both fingerprints.
    pub fn check_engine(&self, ours: &str) -> Result<(), Error> {
        if self.engine.is_empty() || self.engine == ours {
            return Ok(());
        }
        Err(Error::FailedPrecondition(format!(
            "it was made by the engine {}, and this node has {ours}: run the version that the others run",
            self.engine
        )))
    }

    fn encode(&self) -> Vec<u8> {
        HeaderRow {
            format: FORMAT,
            group: self.group.0,
            resident: self.kind == Kind::Resident,
            head: self.head.encode(),
            term: self.term.0,
            membership: MembershipRow::new(self.head.index, &self.membership),
            engine: self.engine.clone(),
        }
        .encode_to_vec()
    }

    /// Reads a header, or says what is wrong with it.
    fn decode(bytes: &[u8]) -> Result<Header, String> {
        let row = HeaderRow::decode(bytes).map_err(|e| format!("its header does not decode: {e}"))?;
        if row.format > FORMAT {
            return Err(format!(
                "it has format {}, and this version knows formats up to {FORMAT}",
                row.format
            ));
        }
        Ok(Header {
            group: GroupId(row.group),
            kind: if row.resident { Kind::Resident } else { Kind::Stored },
            head: Head::decode(&row.head).map_err(|fault| fault.to_string())?,
            term: Term(row.term),
            membership: row.membership.read().1,
            engine: row.engine,
        })
    }
}

/// The snapshots of a node.
pub struct Snapshots {
    directory: PathBuf,
}

impl Snapshots {
    /// The snapshots in `directory`, made if it is not there. What a crash left incomplete is removed.
    pub fn open(directory: &Path) -> Result<Snapshots, Fault> {
        let prepared = make_directory(directory).and_then(|()| remove_leftovers(directory));
        prepared.map_err(|e| Fault::new(format!("preparing {} failed: {e}", directory.display())))?;
        let snapshots = Snapshots { directory: directory.to_owned() };
        snapshots.drop_all_outgoing()?;
        Ok(snapshots)
    }

    /// Begins a snapshot. One at a time for a group.
    pub fn create(&self, header: &Header) -> Result<SnapshotWriter, Fault> {
        SnapshotWriter::create(&self.directory, self.path(header.group, header.head.index), header)
    }

    /// Opens the snapshot of `group` at `index`.
    ///
    /// # Errors
    /// `NotFound` without such a snapshot; `Damaged` if the beginning does not read.
    pub fn read(&self, group: GroupId, index: Index) -> Result<SnapshotReader, Error> {
        let reader = SnapshotReader::open(&self.path(group, index))?;
        let header = reader.header();
        if (header.group, header.head.index) != (group, index) {
            return Err(Error::Damaged(format!(
                "the snapshot file {} is of group {} at index {}: it was renamed; remove it",
                self.path(group, index).display(),
                header.group,
                header.head.index
            )));
        }
        Ok(reader)
    }

    /// The indexes of the snapshots of `group`, the latest last.
    pub fn list(&self, group: GroupId) -> Result<Vec<Index>, Fault> {
        let mut all = self.list_all()?;
        all.retain(|&(found, _)| found == group);
        Ok(all.into_iter().map(|(_, index)| index).collect())
    }

    /// Groups and indexes of all snapshots, in order.
    pub fn list_all(&self) -> Result<Vec<(GroupId, Index)>, Fault> {
        self.files(IN_FORCE)
    }

    /// Groups and indexes of the files that end like this, in order.
    fn files(&self, ending: &str) -> Result<Vec<(GroupId, Index)>, Fault> {
        let failed = |e| Fault::new(format!("listing {} failed: {e}", self.directory.display()));
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let parts =
                name.to_str().and_then(|name| name.strip_suffix(ending)?.strip_suffix('.')?.split_once('-'));
            if let Some((group, index)) = parts
                && let (Ok(group), Ok(index)) = (group.parse(), index.parse())
            {
                found.push((GroupId(group), Index(index)));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The latest snapshot of `group`.
    pub fn latest(&self, group: GroupId) -> Result<Option<Index>, Fault> {
        Ok(self.list(group)?.pop())
    }

    /// Removes the snapshots of `group` before the one at `keep`.
    pub fn remove_before(&self, group: GroupId, keep: Index) -> Result<(), Fault> {
        self.remove(group, |index| index < keep)
    }

    /// Removes all snapshots of `group`.
    pub fn remove_all(&self, group: GroupId) -> Result<(), Fault> {
        self.remove(group, |_| true)
    }

    fn remove(&self, group: GroupId, which: impl Fn(Index) -> bool) -> Result<(), Fault> {
        let failed =
            |e| Fault::new(format!("removing a snapshot from {} failed: {e}", self.directory.display()));
        let mut removed = false;
        for index in self.list(group)? {
            if which(index) {
                match large::remove(&self.path(group, index)) {
                    // Two may remove at the same time: the saver, and who drops the machine.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    result => result.map_err(failed)?,
                }
                removed = true;
            }
        }
        if removed { sync_directory(&self.directory).map_err(failed) } else { Ok(()) }
    }

    fn path(&self, group: GroupId, index: Index) -> PathBuf {
        self.path_of(group, index, IN_FORCE)
    }

    fn path_of(&self, group: GroupId, index: Index, ending: &str) -> PathBuf {
        self.directory.join(format!("{group}-{index}.{ending}"))
    }
}

/// Writes the rows of a machine, as they are in `state`, into a snapshot of it. All that a stored machine's
/// snapshot needs; a resident machine's guest writes its part afterwards.
pub fn write_rows(writer: &mut SnapshotWriter, state: &StateSnapshot) -> Result<(), Fault> {
    state.rows(&mut |table, key, value| writer.put(table, key, value))
}

/// Replaces a machine's rows by those of a snapshot, whose every byte is looked at before the first row is
/// replaced. When it returns, the rows and the head are durable. After a crash in the middle
/// [`StateDb::open`] names the group among the interrupted.
pub fn install(state: &StateDb, mut snapshot: SnapshotReader) -> Result<Header, Error> {
    SnapshotReader::open(snapshot.path())?.verify()?;
    let header = snapshot.header().clone();
    let mut replacement = state.replace(header.group, header.head.index)?;
    snapshot.rows(&mut |table, key, value| replacement.put(table, key, value))?;
    replacement.finish(&header.head)?;
    Ok(header)
}

#[cfg(test)]
mod tests;
