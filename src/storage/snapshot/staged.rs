//! Snapshots on their way from node to node.
//!
//! One that is sent is a file of its own (`.out`), so that nothing else removes it. One that is received is
//! staged (`.staged`): whole, checked and durable, but not in force until the group's log begins behind it.
//! Then it becomes a snapshot like others.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Header, SnapshotReader, SnapshotWriter, Snapshots};
use crate::error::{Error, Fault};
use crate::id::{GroupId, Index};
use crate::storage::file::{NewFile, sync_directory};
use crate::storage::large;

const OUTGOING: &str = "out";
const STAGED: &str = "staged";

/// A snapshot that is being received. Dropped before it is finished, it leaves nothing.
pub struct Staging {
    file: NewFile,
    path: PathBuf,
    group: GroupId,
    index: Index,
    bytes: u64,
}

impl Staging {
    /// The group and index that it is of.
    pub fn of(&self) -> (GroupId, Index) {
        (self.group, self.index)
    }

    /// How much has been received: where to go on.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the next piece. Now and then it answers the file, which is to be synced then: that takes a
    /// while.
    pub fn write(&mut self, piece: &[u8]) -> Result<Option<File>, Fault> {
        let written = self.file.write_all(piece).and_then(|()| self.file.due_for_sync());
        self.bytes += piece.len() as u64;
        written.map_err(|e| Fault::new(format!("writing {} failed: {e}", self.path.display())))
    }

    /// Makes it durable and looks at every byte.
    ///
    /// # Errors
    /// `Damaged` if a checksum does not match, or if it is of another group or index: then nothing is staged.
    pub fn finish(self) -> Result<Header, Error> {
        let Staging { file, path, group, index, .. } = self;
        file.keep(&path).map_err(|e| Fault::new(format!("writing {} failed: {e}", path.display())))?;
        let read = SnapshotReader::open(&path).and_then(|reader| {
            let header = reader.header().clone();
            reader.verify().map(|()| header)
        });
        match read {
            Ok(header) if (header.group, header.head.index) == (group, index) => Ok(header),
            Ok(header) => {
                remove(&path)?;
                Err(Error::Damaged(format!(
                    "a snapshot of group {group} at index {index} was expected, and one of group {} at index \
                     {} came",
                    header.group, header.head.index
                )))
            }
            Err(why) => {
                remove(&path)?;
                Err(why)
            }
        }
    }
}

impl Snapshots {
    /// Begins to receive a snapshot. One at a time for a group.
    pub fn begin_staging(&self, group: GroupId, index: Index) -> Result<Staging, Fault> {
        let path = self.path_of(group, index, STAGED);
        let file = NewFile::create(&self.directory, &format!("{STAGED}-{group}-{index}"));
        let file = file.map_err(|e| Fault::new(format!("making {} failed: {e}", path.display())))?;
        Ok(Staging { file, path, group, index, bytes: 0 })
    }

    /// Groups and indexes of all staged snapshots.
    pub fn staged(&self) -> Result<Vec<(GroupId, Index)>, Fault> {
        self.files(STAGED)
    }

    /// Makes a staged snapshot one like others, durably: the group's log begins behind it. Nothing if it is
    /// one already.
    pub fn put_in_force(&self, group: GroupId, index: Index) -> Result<(), Fault> {
        let (staged, path) = (self.path_of(group, index, STAGED), self.path(group, index));
        let renamed = match std::fs::rename(&staged, &path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && path.exists() => Ok(()),
            renamed => renamed.and_then(|()| sync_directory(&self.directory)),
        };
        renamed.map_err(|e| Fault::new(format!("renaming {} failed: {e}", staged.display())))
    }

    /// Drops a staged snapshot that nobody has a use for.
    pub fn drop_staged(&self, group: GroupId, index: Index) -> Result<(), Fault> {
        remove(&self.path_of(group, index, STAGED))
    }

    /// Drops all that is staged of a group.
    pub fn drop_all_staged(&self, group: GroupId) -> Result<(), Fault> {
        let staged = self.staged()?.into_iter().filter(|(other, _)| *other == group);
        staged.into_iter().try_for_each(|(group, index)| self.drop_staged(group, index))
    }

    /// Begins a snapshot that is only made to be sent.
    pub fn create_outgoing(&self, header: &Header) -> Result<SnapshotWriter, Fault> {
        let path = self.path_of(header.group, header.head.index, OUTGOING);
        SnapshotWriter::create(&self.directory, path, header)
    }

    /// Makes a snapshot that is there one that can be sent, whatever becomes of it here.
    pub fn copy_outgoing(&self, group: GroupId, index: Index) -> Result<(), Fault> {
        let (path, out) = (self.path(group, index), self.path_of(group, index, OUTGOING));
        match std::fs::hard_link(&path, &out) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked.map_err(|e| Fault::new(format!("linking {} failed: {e}", out.display()))),
        }
    }

    /// Opens a snapshot that is being sent.
    ///
    /// # Errors
    /// `NotFound` if there is none: the transfer was given up.
    pub fn open_outgoing(&self, group: GroupId, index: Index) -> Result<File, Error> {
        let path = self.path_of(group, index, OUTGOING);
        match large::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::NotFound(format!(
                "no snapshot of group {group} at index {index} is being sent from here"
            ))),
            opened => {
                opened.map_err(|e| Fault::new(format!("reading {} failed: {e}", path.display())).into())
            }
        }
    }

    /// The transfer of a snapshot has ended.
    pub fn drop_outgoing(&self, group: GroupId, index: Index) -> Result<(), Fault> {
        remove(&self.path_of(group, index, OUTGOING))
    }

    /// Drops what was being sent when the node stopped: whoever wants it asks again.
    pub(super) fn drop_all_outgoing(&self) -> Result<(), Fault> {
        self.files(OUTGOING)?.into_iter().try_for_each(|(group, index)| self.drop_outgoing(group, index))
    }
}

fn remove(path: &Path) -> Result<(), Fault> {
    match large::remove(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|e| Fault::new(format!("removing {} failed: {e}", path.display()))),
    }
}
