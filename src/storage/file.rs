//! Files that are either whole or not there: written under a temporary name, synced, renamed, the directory
//! synced.
//!
//! Promises: after [`NewFile::keep`] returns, the file is on the disk under its name with all its bytes, also
//! after a power failure; before that, only a temporary name can be found. Must never show a name before its
//! bytes are synced.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Ends the names of files that are not complete; [`remove_leftovers`] looks for it.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// What may be written and not synced. A sync of the log waits for what others have left unsynced on the same
/// disk: that must not be a whole snapshot.
pub const UNSYNCED_BYTES_MAX: u64 = 1 << 20;

/// A file being written. Dropped before it is kept, it is removed.
pub struct NewFile {
    file: File,
    temporary: PathBuf,
    kept: bool,
    unsynced_bytes: u64,
}

impl NewFile {
    /// Begins a file in `directory`. `label` tells apart the files that are written there at the same time.
    pub fn create(directory: &Path, label: &str) -> io::Result<NewFile> {
        let temporary = directory.join(format!("{label}{TEMPORARY_SUFFIX}"));
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        Ok(NewFile { file, temporary, kept: false, unsynced_bytes: 0 })
    }

    /// The file, if it is time to sync what was written: whoever writes much does it now and then, where it
    /// may wait.
    pub fn due_for_sync(&mut self) -> io::Result<Option<File>> {
        if self.unsynced_bytes < UNSYNCED_BYTES_MAX {
            return Ok(None);
        }
        self.unsynced_bytes = 0;
        self.file.try_clone().map(Some)
    }

    /// Makes it durable under `name`, in the same directory, replacing what had that name.
    pub fn keep(mut self, name: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, name)?;
        self.kept = true;
        sync_directory(name.parent().unwrap_or(Path::new(".")))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            // If this fails the leftover is removed at the next start.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Makes the names in `directory` durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes files that a crash left incomplete.
pub fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes `directory`, if it is not there, durably.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    match std::fs::create_dir(directory) {
        Ok(()) => sync_directory(directory.parent().unwrap_or(Path::new("."))),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}
