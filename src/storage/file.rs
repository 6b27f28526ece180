//! Files that are either whole or not there: written under a temporary name, synced, renamed, the directory
//! synced.
//!
//! Promises: after [`NewFile::keep`] returns, the file is on the disk under its name with all its bytes, also
//! after a power failure; before that, only a temporary name can be found. Must never show a name before its
//! bytes are synced.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::priority::give_way;

/// Ends the names of files that are not complete; [`remove_leftovers`] looks for it.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// What may be written and not synced. A sync of the log waits for what others have left unsynced on the same
/// disk: that must not be a whole snapshot.
pub const UNSYNCED_BYTES_MAX: u64 = 1 << 20;

/// So much of a large file is given back at a time, which takes a few milliseconds,
const GIVEN_BACK_BYTES: u64 = 8 << 20;
/// and so long others have the disk then.
const GIVEN_BACK_INTERVAL: Duration = Duration::from_millis(20);

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

/// Opens a file that may be removed by [`remove_large`] at any time: whoever has it open reads it to its end.
pub fn open_large(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    match file.try_lock_shared() {
        // It may have been removed before it was locked.
        Ok(()) if file.metadata()?.nlink() > 0 => Ok(file),
        Ok(()) | Err(TryLockError::WouldBlock) => Err(io::ErrorKind::NotFound.into()),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Removes a file from under its name. What it took is given back a piece at a time: a file system that tells
/// the disk what is free (`discard`) has each sync wait meanwhile, a quarter of a second for a gigabyte.
pub fn remove_large(path: &Path) -> io::Result<()> {
    static REMOVED: AtomicU64 = AtomicU64::new(0);
    let number = REMOVED.fetch_add(1, Ordering::Relaxed);
    let doomed = path.with_extension(format!("{number}{TEMPORARY_SUFFIX}"));
    std::fs::rename(path, &doomed)?;
    let file = OpenOptions::new().write(true).open(&doomed)?;
    let found = file.metadata()?;
    // Not if it has another name, or is being read.
    let alone = found.nlink() == 1 && file.try_lock().is_ok();
    if !alone || found.len() <= GIVEN_BACK_BYTES {
        return std::fs::remove_file(&doomed);
    }
    let remove = move || {
        give_way();
        if let Err(why) = give_back(&file).and_then(|()| std::fs::remove_file(&doomed)) {
            tracing::warn!(file = %doomed.display(), %why, "the next start removes this file");
        }
    };
    std::thread::Builder::new().name("file removal".into()).spawn(remove).map(drop)
}

fn give_back(file: &File) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    while left > 0 {
        left = left.saturating_sub(GIVEN_BACK_BYTES);
        file.set_len(left)?;
        std::thread::sleep(GIVEN_BACK_INTERVAL);
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const LARGE: u64 = 3 * GIVEN_BACK_BYTES;

    fn large_file(place: &Path) -> PathBuf {
        let path = place.join("large");
        File::create(&path).unwrap().set_len(LARGE).unwrap();
        path
    }

    fn left(place: &Path) -> usize {
        std::fs::read_dir(place).unwrap().count()
    }

    #[test]
    fn a_large_file_is_gone_at_once_from_under_its_name_and_soon_from_the_disk() {
        let place = tempfile::tempdir().unwrap();
        let path = large_file(place.path());
        remove_large(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(remove_large(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        // One of the same name has nothing to do with it.
        std::fs::write(&path, "new").unwrap();
        while left(place.path()) > 1 {
            std::thread::yield_now();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_somebody_reads_or_has_another_name_stays_whole() {
        let place = tempfile::tempdir().unwrap();
        let path = large_file(place.path());
        let other = place.path().join("other");
        std::fs::hard_link(&path, &other).unwrap();
        remove_large(&path).unwrap();
        let mut reader = open_large(&other).unwrap();
        remove_large(&other).unwrap();
        assert_eq!(left(place.path()), 0);
        let mut whole = Vec::new();
        reader.read_to_end(&mut whole).unwrap();
        assert_eq!(whole.len() as u64, LARGE);
        assert_eq!(open_large(&other).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_is_just_being_removed_cannot_be_opened() {
        let place = tempfile::tempdir().unwrap();
        let path = large_file(place.path());
        let remover = OpenOptions::new().write(true).open(&path).unwrap();
        remover.try_lock().unwrap();
        assert_eq!(open_large(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
