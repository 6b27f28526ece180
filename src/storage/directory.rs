//! The data directory: who may use it, whose it is, and where everything is in it.
//!
//! Promises: one process at a time; never used by another node than the one that made it, nor by a version
//! that does not know its format; each refusal has an error of its own. Must never begin anew in a directory
//! that holds something.
//!
//! # Layout
//! ```text
//! D/LOCK         held while a process uses the directory; holds its number
//! D/identity     whose the directory is: one line of JSON, one line with its blake3
//! D/age          how old the directory is, likewise with a sum (see `age`)
//! D/log/         the log database            D/state/   the state database
//! D/modules/     components, by digest       D/modules/compiled/   what was compiled from them
//! D/snapshots/   snapshots of machines
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::file::{make_directory, remove_leftovers, sync_directory};
use super::sealed;
use crate::error::{Error, Fault, REPAIR};
use crate::id::NodeId;

/// The format of everything in the directory. Raised when an older version could not read it.
///
/// 2: the events of a batch share rows. 3: rows that were replaced are under a prefix of their own.
const FORMAT: u32 = 3;
/// The oldest format that this version reads. What it then writes is in its own.
const FORMAT_MIN: u32 = 2;

const IDENTITY_FILE: &str = "identity";
const LOCK_FILE: &str = "LOCK";

/// Whose a data directory is. Written once, when the node first starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The node's number, drawn at random.
    pub node: u64,
    /// The node's name, given by its operator.
    pub name: String,
    /// The cluster the node belongs to, drawn at random by the node that began it.
    pub cluster: u64,
    /// The node's replica of the catalog's group; 0 until the cluster has let the node in.
    pub replica: u64,
    /// The nodes of the cluster when it did: as long as the catalog is not here, it comes from them.
    pub contacts: Vec<Contact>,
}

/// A data directory's lock. It is given back when the last copy is dropped, also if the process is killed.
#[derive(Clone, Debug)]
pub struct Hold(#[expect(dead_code, reason = "held for its end")] Arc<File>);

/// Another node, as a node is told of it that joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Its id.
    pub node: u64,
    /// Its replica of the catalog's group.
    pub replica: u64,
    /// Where other nodes reach it.
    pub peer_address: String,
}

/// A data directory that this process holds.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    identity: Option<Identity>,
    lock: Hold,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// Another process holds it.
    #[error(
        "the data directory {path} is in use{holder}: stop that process, or give this node another --data-dir"
    )]
    InUse {
        /// The directory.
        path: String,
        /// ` by process N`, if it is known.
        holder: String,
    },
    /// It belongs to a node of another name.
    #[error(
        "the data directory {path} belongs to node {found:?}, not {expected:?}: start with --name {found}, \
         or give this node another --data-dir"
    )]
    OtherNode {
        /// The directory.
        path: String,
        /// The name in it.
        found: String,
        /// The name that was asked for.
        expected: String,
    },
    /// A later version wrote it.
    #[error(
        "the data directory {path} has format {found}, and this version knows formats up to {FORMAT}: use \
         the newer version that wrote it"
    )]
    NewerFormat {
        /// The directory.
        path: String,
        /// The format in it.
        found: u32,
    },
    /// An earlier version wrote it, and nobody brings it up to date.
    #[error(
        "the data directory {path} has format {found}, and this version knows formats from {FORMAT_MIN} on: \
         use the version that wrote it, or remove the directory and begin anew"
    )]
    OlderFormat {
        /// The directory.
        path: String,
        /// The format in it.
        found: u32,
    },
    /// It holds data, but not whose.
    #[error(
        "the data directory {path} holds data ({what}) but no identity: the file {path}/identity was \
         removed. {REPAIR}"
    )]
    NoIdentity {
        /// The directory.
        path: String,
        /// What was found in it.
        what: String,
    },
    /// One of the files that say whose it is and how old is not as it was written.
    #[error("the file {path}/{file} is damaged ({what}). {REPAIR}")]
    Damaged {
        /// The file in it.
        file: &'static str,
        /// The directory.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The disk did not do as asked.
    #[error("the data directory {path} cannot be used: {doing}: {source}")]
    Io {
        /// The directory.
        path: String,
        /// What was tried.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

impl From<DirectoryError> for Error {
    fn from(error: DirectoryError) -> Error {
        let what = error.to_string();
        match error {
            DirectoryError::InUse { .. } => Error::FailedPrecondition(what),
            DirectoryError::Io { .. } => Error::Fault(Fault::new(what)),
            _ => Error::Damaged(what),
        }
    }
}

/// The identity's first line.
#[derive(Serialize, Deserialize)]
struct IdentityLine {
    format: u32,
    #[serde(flatten)]
    identity: Identity,
}

/// Read before the rest, because a later format may have another rest.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl Directory {
    /// Takes `root` for this process, made if it is not there, for the node called `name`.
    pub fn open(root: &Path, name: &str) -> Result<Directory, DirectoryError> {
        let failed = |doing| io_error(root, doing);
        if root.exists() && !root.is_dir() {
            return Err(failed("opening it")(io::ErrorKind::NotADirectory.into()));
        }
        std::fs::create_dir_all(root).map_err(failed("making it"))?;
        let lock = take_lock(root)?;
        remove_leftovers(root).map_err(failed("removing what a crash left"))?;
        let (format, identity) = read_identity(root)?.unzip();
        match &identity {
            None => refuse_leftover_data(root)?,
            Some(found) if found.name != name => {
                return Err(DirectoryError::OtherNode {
                    path: root.display().to_string(),
                    found: found.name.clone(),
                    expected: name.to_owned(),
                });
            }
            Some(found) if format < Some(FORMAT) => {
                write_identity(root, found).map_err(failed("writing its identity"))?;
            }
            Some(_) => {}
        }
        let directory = Directory { root: root.to_owned(), identity, lock: Hold(Arc::new(lock)) };
        if directory.identity.is_some() {
            directory.make_places()?;
        }
        Ok(directory)
    }

    /// What keeps it this process's: whoever has files open in it holds one.
    pub fn hold(&self) -> Hold {
        self.lock.clone()
    }

    /// Whose it is; `None` before [`establish`](Self::establish).
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The node's id, once there is one.
    pub fn node(&self) -> Option<NodeId> {
        self.identity.as_ref().map(|identity| NodeId(identity.node))
    }

    /// Writes whose it is, durably, and makes the places for data. Before anything else is put into it.
    ///
    /// # Errors
    /// `OtherNode` if it has an identity already.
    pub fn establish(&mut self, identity: Identity) -> Result<(), DirectoryError> {
        if let Some(found) = &self.identity {
            return Err(DirectoryError::OtherNode {
                path: self.root.display().to_string(),
                found: found.name.clone(),
                expected: identity.name,
            });
        }
        write_identity(&self.root, &identity).map_err(io_error(&self.root, "writing its identity"))?;
        self.identity = Some(identity);
        self.make_places()
    }

    /// Notes, durably, what the cluster said when it let the node in.
    ///
    /// # Errors
    /// `OtherNode` if it is of another node than the one that has the directory.
    pub fn complete(&mut self, identity: Identity) -> Result<(), DirectoryError> {
        match &self.identity {
            Some(found) if (found.node, found.cluster) == (identity.node, identity.cluster) => {}
            found => {
                return Err(DirectoryError::OtherNode {
                    path: self.root.display().to_string(),
                    found: found.as_ref().map(|found| found.name.clone()).unwrap_or_default(),
                    expected: identity.name,
                });
            }
        }
        write_identity(&self.root, &identity).map_err(io_error(&self.root, "writing its identity"))?;
        self.identity = Some(identity);
        Ok(())
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the log database is.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Where the state database is.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Where modules are.
    pub fn modules(&self) -> PathBuf {
        self.root.join("modules")
    }

    /// Where snapshots are.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn make_places(&self) -> Result<(), DirectoryError> {
        for place in [self.log(), self.state(), self.modules(), self.snapshots()] {
            make_directory(&place).map_err(io_error(&self.root, "making its parts"))?;
        }
        Ok(())
    }
}

pub(super) fn io_error(root: &Path, doing: &'static str) -> impl Fn(io::Error) -> DirectoryError {
    let path = root.display().to_string();
    move |source| DirectoryError::Io { path: path.clone(), doing, source }
}

fn take_lock(root: &Path) -> Result<File, DirectoryError> {
    let failed = |doing| io_error(root, doing);
    let path = root.join(LOCK_FILE);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let mut lock = opened.map_err(failed("opening LOCK"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only to tell the operator more: without it the refusal is the same.
            let known = lock.read_to_string(&mut holder).is_ok() && holder.trim().parse::<u32>().is_ok();
            let holder = if known { format!(" by process {}", holder.trim()) } else { String::new() };
            return Err(DirectoryError::InUse { path: root.display().to_string(), holder });
        }
        Err(TryLockError::Error(e)) => return Err(failed("locking LOCK")(e)),
    }
    lock.set_len(0).map_err(failed("writing LOCK"))?;
    writeln!(lock, "{}", std::process::id()).map_err(failed("writing LOCK"))?;
    Ok(lock)
}

/// With the format that it was written in.
fn read_identity(root: &Path) -> Result<Option<(u32, Identity)>, DirectoryError> {
    let Some(line) = sealed::read(root, IDENTITY_FILE, "reading its identity")? else { return Ok(None) };
    let damaged = |what| sealed::damaged(root, IDENTITY_FILE, what);
    let FormatOnly { format } = serde_json::from_str(&line).map_err(|_| damaged("it has no format"))?;
    let path = || root.display().to_string();
    if format > FORMAT {
        return Err(DirectoryError::NewerFormat { path: path(), found: format });
    }
    if format < FORMAT_MIN {
        return Err(DirectoryError::OlderFormat { path: path(), found: format });
    }
    let read: IdentityLine = serde_json::from_str(&line).map_err(|_| damaged("a part of it is missing"))?;
    Ok(Some((format, read.identity)))
}

fn write_identity(root: &Path, identity: &Identity) -> io::Result<()> {
    let line = serde_json::to_string(&IdentityLine { format: FORMAT, identity: identity.clone() })?;
    sealed::write(root, IDENTITY_FILE, &line)?;
    // The directory's own name, in case it was just made.
    let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_directory(parent.unwrap_or(Path::new(".")))
}

/// Without an identity the directory must be empty: data of unknown origin is not to be written over.
fn refuse_leftover_data(root: &Path) -> Result<(), DirectoryError> {
    let failed = io_error(root, "listing it");
    for entry in std::fs::read_dir(root).map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name();
        // `lost+found`: the directory may be a disk of its own.
        if name != LOCK_FILE && name != "lost+found" {
            return Err(DirectoryError::NoIdentity {
                path: root.display().to_string(),
                what: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GroupId;
    use crate::storage::damage::{cuts, flips};
    use crate::storage::log::LogDb;
    use crate::storage::state::{StateDb, StateSizes};

    fn identity() -> Identity {
        Identity { node: u64::MAX - 1, name: "n1".to_owned(), cluster: 42, replica: 1, contacts: Vec::new() }
    }

    fn established() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        Directory::open(place.path(), "n1").unwrap().establish(identity()).unwrap();
        place
    }

    #[test]
    fn an_established_directory_is_found_again_with_its_parts() {
        let place = established();
        let directory = Directory::open(place.path(), "n1").unwrap();
        assert_eq!(directory.identity(), Some(&identity()));
        for part in [directory.log(), directory.state(), directory.modules(), directory.snapshots()] {
            assert!(part.is_dir(), "{}", part.display());
        }
    }

    #[test]
    fn a_second_holder_is_refused_with_the_path_and_the_process() {
        let place = established();
        let held = Directory::open(place.path(), "n1").unwrap();
        let error = Directory::open(place.path(), "n1").unwrap_err();
        assert!(matches!(error, DirectoryError::InUse { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        assert!(text.contains(&place.path().display().to_string()), "{text}");
        drop(held);
        Directory::open(place.path(), "n1").unwrap();
    }

    #[test]
    fn it_is_free_when_the_last_who_reads_a_database_in_it_is_gone() {
        let place = established();
        let directory = Directory::open(place.path(), "n1").unwrap();
        let (log, _) = LogDb::open(&directory.log()).unwrap();
        let (state, _) = StateDb::open(&directory.state(), StateSizes::default()).unwrap();
        log.hold(directory.hold());
        state.hold(directory.hold());
        let (reader, view) = (log.reader(), state.snapshot(GroupId(1)));
        drop((directory, log, state));
        let is_free = || Directory::open(place.path(), "n1").is_ok();
        assert!(!is_free());
        drop(reader);
        assert!(!is_free());
        drop(view);
        assert!(is_free());
    }

    #[test]
    fn another_nodes_directory_is_refused_with_both_names() {
        let place = established();
        let error = Directory::open(place.path(), "n2").unwrap_err();
        assert!(matches!(&error, DirectoryError::OtherNode { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("\"n1\"") && text.contains("\"n2\""), "{text}");
    }

    /// The error that a directory of another format is refused with.
    fn refusal_of_format(format: u32) -> DirectoryError {
        let place = established();
        let line = format!(r#"{{"format":{format},"soul":"?"}}"#);
        sealed::write(place.path(), IDENTITY_FILE, &line).unwrap();
        Directory::open(place.path(), "n1").unwrap_err()
    }

    #[test]
    fn a_newer_format_is_refused_with_both_numbers() {
        let error = refusal_of_format(7);
        assert!(matches!(error, DirectoryError::NewerFormat { found: 7, .. }), "{error}");
        assert!(error.to_string().contains("format 7") && error.to_string().contains("up to 3"), "{error}");
    }

    #[test]
    fn a_format_that_is_read_is_written_as_the_present_one() {
        let place = established();
        let line = serde_json::to_string(&IdentityLine { format: FORMAT_MIN, identity: identity() }).unwrap();
        sealed::write(place.path(), IDENTITY_FILE, &line).unwrap();
        assert_eq!(Directory::open(place.path(), "n1").unwrap().identity(), Some(&identity()));
        // Before anything else is written that an older version could not read.
        assert_eq!(read_identity(place.path()).unwrap(), Some((FORMAT, identity())));
    }

    #[test]
    fn an_older_format_is_refused_with_both_numbers() {
        let error = refusal_of_format(1);
        assert!(matches!(error, DirectoryError::OlderFormat { found: 1, .. }), "{error}");
        assert!(error.to_string().contains("format 1") && error.to_string().contains("from 2"), "{error}");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_the_identity_is_refused() {
        let place = established();
        let path = place.path().join(IDENTITY_FILE);
        let whole = std::fs::read(&path).unwrap();
        for changed in flips(&whole).chain(cuts(&whole)) {
            std::fs::write(&path, &changed).unwrap();
            let error = Directory::open(place.path(), "n1").unwrap_err();
            assert!(matches!(error, DirectoryError::Damaged { .. }), "{error} for {changed:?}");
        }
    }

    #[test]
    fn data_without_an_identity_is_refused_and_left_alone() {
        let place = established();
        std::fs::remove_file(place.path().join(IDENTITY_FILE)).unwrap();
        let error = Directory::open(place.path(), "n1").unwrap_err();
        assert!(matches!(error, DirectoryError::NoIdentity { .. }), "{error}");
        assert!(place.path().join("log").is_dir());
    }

    #[test]
    fn an_identity_that_was_not_completed_does_not_count() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("identity.tmp"), "half").unwrap();
        let directory = Directory::open(place.path(), "n1").unwrap();
        assert_eq!(directory.identity(), None);
    }
}
