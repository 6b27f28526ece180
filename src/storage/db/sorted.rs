//! Rows that come in the order of their keys, written to a file beside the database, which then takes it in
//! as it is: without room in memory, and without merging it with other files.
//!
//! Must never leave a file behind: one that is dropped goes, and what a crash leaves goes when the database
//! opens.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rocksdb::{IngestExternalFileOptions, LiveFile, SstFileWriter};

use super::{Db, Family};
use crate::error::Fault;
use crate::storage::file::UNSYNCED_BYTES_MAX;

/// Where such files are written, in the database's own directory.
const PLACE: &str = "incoming";

/// A file of rows of one family, on its way into the database. Dropped before it is taken in, it leaves
/// nothing.
pub struct SortedFile<'a> {
    db: &'a Db,
    family: Family,
    path: PathBuf,
    writer: SstFileWriter<'a>,
    /// The same file, to be synced now and then.
    file: File,
    /// How much of it was synced.
    synced_bytes: u64,
}

/// Makes the directory of such files, and empties it.
pub(super) fn prepare(database: &Path) -> std::io::Result<()> {
    let place = database.join(PLACE);
    match std::fs::remove_dir_all(&place) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => std::fs::create_dir(&place),
    }
}

impl Db {
    /// Begins a file of rows of `family`.
    pub fn sorted_file(&self, family: Family) -> Result<SortedFile<'_>, Fault> {
        self.check()?;
        let number = self.sorted_files.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(PLACE).join(format!("{number}.sst"));
        let writer = SstFileWriter::create(&self.options);
        writer.open(&path).map_err(|e| self.stop("writing a file for", &e))?;
        let file = File::open(&path).map_err(|e| self.stop("writing a file for", &e))?;
        Ok(SortedFile { db: self, family, path, writer, file, synced_bytes: 0 })
    }

    /// Drops some of the files, at most so many, that have keys from `start` to `end`, inclusive, and no
    /// others; not those of the uppermost level, nor those that are just being merged. Views of former
    /// moments lose them too. Whether there were any.
    pub fn drop_some_files(&self, start: &[u8], end: &[u8], most: usize) -> Result<bool, Fault> {
        let files = self.files_between(start, end)?;
        for file in files.iter().take(most) {
            let (Some(first), Some(last)) = (&file.start_key, &file.end_key) else { continue };
            let family = self.db.cf_handle(&file.column_family_name);
            let family = family.ok_or_else(|| self.stop("dropping a file of", &"its family is unknown"))?;
            let dropped = self.db.delete_file_in_range_cf(family, first, last);
            dropped.map_err(|e| self.stop("dropping a file of", &e))?;
        }
        Ok(!files.is_empty())
    }

    /// The files below the uppermost level whose keys are all from `start` to `end`.
    pub fn files_between(&self, start: &[u8], end: &[u8]) -> Result<Vec<LiveFile>, Fault> {
        self.check()?;
        let files = self.db.live_files().map_err(|e| self.stop("listing the files of", &e))?;
        let within = files.into_iter().filter(|file| {
            let (first, last) = (file.start_key.as_deref(), file.end_key.as_deref());
            file.level > 0 && first.is_some_and(|key| key >= start) && last.is_some_and(|key| key <= end)
        });
        Ok(within.collect())
    }
}

impl SortedFile<'_> {
    /// Adds a row. Its key must be past those before.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        self.writer.put(key, value).map_err(|e| self.db.stop("writing a file for", &e))?;
        if self.size_bytes() - self.synced_bytes >= UNSYNCED_BYTES_MAX {
            self.file.sync_data().map_err(|e| self.db.stop("syncing a file for", &e))?;
            self.synced_bytes = self.size_bytes();
        }
        Ok(())
    }

    /// How long the file is.
    pub fn size_bytes(&self) -> u64 {
        self.writer.file_size()
    }

    /// Makes all rows part of the database, at once and durably. There must be one at least.
    pub fn take_in(mut self) -> Result<(), Fault> {
        let db = self.db;
        self.writer.finish().map_err(|e| db.stop("writing a file for", &e))?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let taken = db.db.ingest_external_file_cf_opts(db.family(self.family)?, &options, vec![&self.path]);
        taken.map_err(|e| db.stop("taking a file into", &e))
    }
}

impl Drop for SortedFile<'_> {
    fn drop(&mut self) {
        // It is not there if it was taken in. If this fails the next start removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}
