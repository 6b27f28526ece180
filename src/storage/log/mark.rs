//! The mark: how far the log was acknowledged, kept in a small file beside the database.
//!
//! After a power failure the write-ahead log ends somewhere, and a damaged record can look like the write
//! that was under way. The mark tells them apart: a log that ends before it has lost acknowledged writes. It
//! is written after each sync and not synced itself, so after a power failure it may be older than the log
//! and then proves less; it is never ahead. Must never be written before the sync it stands for.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::storage::file::sync_directory;

/// "statehouse log mark, form 1".
const MAGIC: [u8; 8] = *b"shlogmk1";
const MARK_BYTES: usize = MAGIC.len() + 8 + 4;

/// The mark's file, open for writing.
pub struct Mark {
    file: File,
    path: PathBuf,
}

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// No log was acknowledged yet, as far as is known.
    Nothing,
    /// The log held at least this many changes.
    UpTo(u64),
    /// The file is not what was written.
    Damaged,
}

impl Mark {
    /// Reads the mark at `path`.
    pub fn read(path: &Path) -> io::Result<Reading> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Reading::Nothing),
            Err(e) => return Err(e),
        };
        // An empty file, or zeros, is what a power failure leaves of a file just made: before anything was
        // acknowledged.
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(Reading::Nothing);
        }
        let Ok(bytes) = <[u8; MARK_BYTES]>::try_from(bytes) else { return Ok(Reading::Damaged) };
        let sequence =
            u64::from_le_bytes(*bytes[8..].first_chunk().expect("a mark has 8 bytes after its magic"));
        Ok(if bytes == form(sequence) { Reading::UpTo(sequence) } else { Reading::Damaged })
    }

    /// Opens the mark at `path` for writing, made if it is not there, for a log that holds `sequence`
    /// durably. Synced, so that the file has its length from now on: what is written later replaces it within
    /// one sector, and a power failure leaves the one or the other.
    pub fn open(path: &Path, sequence: u64) -> io::Result<Mark> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        let mark = Mark { file, path: path.to_owned() };
        mark.raise(sequence)?;
        mark.file.sync_all()?;
        sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        Ok(mark)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The log is synced up to `sequence`.
    pub fn raise(&self, sequence: u64) -> io::Result<()> {
        self.file.write_all_at(&form(sequence), 0)
    }

    /// Brings the mark to the disk: when the node stops.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn form(sequence: u64) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..16]);
    bytes[16..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::damage::flips;

    #[test]
    fn a_mark_reads_back_and_every_flipped_bit_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mark");
        assert_eq!(Mark::read(&path).unwrap(), Reading::Nothing);
        let mark = Mark::open(&path, 7).unwrap();
        assert_eq!(Mark::read(&path).unwrap(), Reading::UpTo(7));
        mark.raise(1_000).unwrap();
        mark.raise(70_000).unwrap();
        assert_eq!(Mark::read(&path).unwrap(), Reading::UpTo(70_000));
        let whole = std::fs::read(&path).unwrap();
        for (bit, flipped) in flips(&whole).enumerate() {
            std::fs::write(&path, flipped).unwrap();
            assert_eq!(Mark::read(&path).unwrap(), Reading::Damaged, "bit {bit}");
        }
    }
}
