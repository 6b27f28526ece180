//! Files that may have gigabytes, read by some when others have done with them.
//!
//! A file system that tells the disk what is free (`discard`) has each sync wait meanwhile: a quarter of a
//! second for a gigabyte, also the log's. So what such a file took is given back a piece at a time.
//!
//! Promises: a removed file is gone from under its name at once; whoever has opened it by [`open`] reads it
//! to its end. Must never cut a file that somebody reads, or that has another name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::file::TEMPORARY_SUFFIX;
use crate::priority::give_way;

/// So much is given back at a time, which takes a few milliseconds,
const PIECE_BYTES: u64 = 8 << 20;
/// and so long others have the disk then.
const PIECE_INTERVAL: Duration = Duration::from_millis(20);

/// Opens a file that may be removed by [`remove`] at any time.
///
/// # Errors
/// `NotFound` if it just is.
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    match file.try_lock_shared() {
        // It may have been removed before it was locked.
        Ok(()) if file.metadata()?.nlink() > 0 => Ok(file),
        Ok(()) | Err(TryLockError::WouldBlock) => Err(io::ErrorKind::NotFound.into()),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Removes a file from under its name, and gives back what it took on a thread of its own. A node that stops
/// before that is done removes the rest when it starts.
pub fn remove(path: &Path) -> io::Result<()> {
    static REMOVED: AtomicU64 = AtomicU64::new(0);
    let number = REMOVED.fetch_add(1, Ordering::Relaxed);
    let doomed = path.with_extension(format!("{number}{TEMPORARY_SUFFIX}"));
    std::fs::rename(path, &doomed)?;
    let file = OpenOptions::new().write(true).open(&doomed)?;
    let found = file.metadata()?;
    let alone = found.nlink() == 1 && file.try_lock().is_ok();
    if !alone || found.len() <= PIECE_BYTES {
        return std::fs::remove_file(&doomed);
    }
    let mut left = found.len();
    let by_pieces = {
        let doomed = doomed.clone();
        move || {
            give_way();
            while left > 0 {
                left = left.saturating_sub(PIECE_BYTES);
                // If this fails it is all given back at once.
                let _ = file.set_len(left);
                std::thread::sleep(PIECE_INTERVAL);
            }
            if let Err(why) = std::fs::remove_file(&doomed) {
                tracing::warn!(file = %doomed.display(), %why, "the next start removes this file");
            }
        }
    };
    match std::thread::Builder::new().name("file removal".into()).spawn(by_pieces) {
        Ok(_) => Ok(()),
        Err(why) => {
            tracing::warn!(file = %doomed.display(), %why, "it is removed at once: syncs wait meanwhile");
            std::fs::remove_file(&doomed)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::PathBuf;

    use super::*;

    const LARGE: u64 = 3 * PIECE_BYTES;

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
        remove(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(remove(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
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
        remove(&path).unwrap();
        let mut reader = open(&other).unwrap();
        remove(&other).unwrap();
        assert_eq!(left(place.path()), 0);
        let mut whole = Vec::new();
        reader.read_to_end(&mut whole).unwrap();
        assert_eq!(whole.len() as u64, LARGE);
        assert_eq!(open(&other).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_is_just_being_removed_cannot_be_opened() {
        let place = tempfile::tempdir().unwrap();
        let path = large_file(place.path());
        let remover = OpenOptions::new().write(true).open(&path).unwrap();
        remover.try_lock().unwrap();
        assert_eq!(open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
