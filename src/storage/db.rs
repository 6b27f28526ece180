//! The only user of RocksDB: opens the two databases with the settings each needs, and reads, writes and
//! flushes them.
//!
//! Promises: every write is one atomic batch; a block whose checksum does not match is an error and never an
//! answer; after the first error every call answers that error (fail-stop), because a database that failed
//! once may have lost what it acknowledged, and trying again can hide it. Must never retry, skip a damaged
//! record, or answer from a database that failed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    ErrorKind, FlushOptions, LogLevel, Options, ReadOptions, WriteBatch, WriteOptions,
};

pub use self::sorted::SortedFile;
use super::directory::Hold;
use super::manifest;
use crate::error::{Error, Fault, REPAIR};
use crate::machine::view::{Direction, Visitor};
use crate::priority::threads_give_way;

mod sorted;

/// A column family, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Family(pub &'static str);

impl Family {
    /// The family that every RocksDB database has; the only one of the log database.
    pub const DEFAULT: Family = Family("default");
}

/// How far a write goes before it counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// In memory only, until the next flush: for what the log can replay.
    Memory,
    /// In the operating system's cache: survives this process, not the computer.
    Buffered,
    /// On the disk.
    Synced,
}

/// Sizes that decide how much memory and disk a database takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows kept in memory before they go to a file, over all column families. Allocated as it fills.
    pub write_buffer_bytes: usize,
    /// Blocks of files kept in memory, indexes and filters among them. Allocated as it fills.
    pub block_cache_bytes: usize,
    /// Files kept open.
    pub open_files_max: i32,
}

/// A RocksDB database with fail-stop.
pub struct Db {
    /// Said in errors: `log` or `state`.
    name: &'static str,
    path: PathBuf,
    /// The first failure. Once set, no call reaches the database again.
    failed: OnceLock<Fault>,
    /// Reads of the latest rows; made once because making one costs an allocation on the far side.
    latest: ReadOptions,
    /// What it was opened with: for files that are to be like its own.
    options: Options,
    /// How many files of sorted rows were begun: each gets a name of its own.
    sorted_files: AtomicU64,
    db: DB,
    /// Dropped last: nobody else may open the directory before this one is closed.
    hold: OnceLock<Hold>,
}

/// A set of changes that are applied together or not at all.
pub struct Changes<'a> {
    batch: WriteBatch,
    /// A handful at most: a search through them beats a hash table.
    families: Vec<(Family, &'a ColumnFamily)>,
}

/// The database as it was at one moment. Keeps the database open, and its rows from being dropped, while it
/// lives.
pub struct Pinned {
    // Fields are dropped in this order: the options that point at the snapshot, the snapshot, the database.
    read: ReadOptions,
    snapshot: rocksdb::Snapshot<'static>,
    db: Arc<Db>,
}

/// A range of keys of one family, and how to visit it.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// The family.
    pub family: Family,
    /// The first key that may be visited.
    pub start: &'a [u8],
    /// The first key past the range.
    pub end: &'a [u8],
    /// The order.
    pub direction: Direction,
    /// Whether the blocks read are worth keeping: not those of a scan over everything.
    pub cache: bool,
}

/// Seen read-only, before a database is opened for good.
pub struct Preview {
    db: DB,
}

impl Db {
    /// Opens the log database, made if it is not there.
    ///
    /// Its write-ahead log is replayed up to the first record that does not hold together: after a power
    /// failure that is the write that was under way. Whether it was one that had been acknowledged is for the
    /// caller to check, by [`Preview`], before this.
    pub fn open_log(path: &Path, sizes: Sizes) -> Result<Db, Error> {
        let options = log_options(sizes);
        let families = vec![ColumnFamilyDescriptor::new("default", options.clone())];
        Db::open("log", path, options, families)
    }

    /// Opens the state database with `families`, made if they are not there.
    pub fn open_state(path: &Path, families: &[Family], sizes: Sizes) -> Result<Db, Error> {
        let options = state_options(sizes);
        let described = std::iter::once(Family::DEFAULT).chain(families.iter().copied());
        let described =
            described.map(|family| ColumnFamilyDescriptor::new(family.0, options.clone())).collect();
        let db = Db::open("state", path, options, described)?;
        let failed = |e| Fault::new(format!("preparing {} failed: {e}", db.place()));
        sorted::prepare(path).map_err(failed)?;
        // Who reads and writes comes first. If compaction cannot keep up, RocksDB has writes wait for it.
        threads_give_way("rocksdb:low");
        Ok(db)
    }

    fn open(
        name: &'static str,
        path: &Path,
        options: Options,
        families: Vec<ColumnFamilyDescriptor>,
    ) -> Result<Db, Error> {
        check_list(name, path)?;
        let db = DB::open_cf_descriptors(&options, path, families).map_err(|e| open_error(name, path, &e))?;
        Ok(Db {
            name,
            path: path.to_owned(),
            failed: OnceLock::new(),
            latest: ReadOptions::default(),
            options,
            sorted_files: AtomicU64::new(0),
            db,
            hold: OnceLock::new(),
        })
    }

    /// Keeps the directory from others for as long as the database is open, whoever still reads it.
    pub fn hold(&self, hold: Hold) {
        self.hold.get_or_init(|| hold);
    }

    /// The database's name and place, for errors.
    pub fn place(&self) -> String {
        format!("the {} database in {}", self.name, self.path.display())
    }

    /// The failure that stopped the database, if one did.
    pub fn failure(&self) -> Option<Fault> {
        self.failed.get().cloned()
    }

    /// Stops the database for good: from now on every call answers with `fault`, or an earlier one.
    pub fn fail(&self, fault: Fault) -> Fault {
        self.failed.get_or_init(|| fault).clone()
    }

    /// An empty set of changes.
    pub fn changes(&self, families: &[Family]) -> Result<Changes<'_>, Fault> {
        let families = families.iter().map(|&family| Ok((family, self.family(family)?)));
        Ok(Changes { batch: WriteBatch::default(), families: families.collect::<Result<_, Fault>>()? })
    }

    /// Applies `changes`, all or none, and returns when they are as durable as asked.
    pub fn write(&self, changes: Changes, durability: Durability) -> Result<(), Fault> {
        self.check()?;
        let mut options = WriteOptions::default();
        options.disable_wal(durability == Durability::Memory);
        options.set_sync(durability == Durability::Synced);
        self.db.write_opt(changes.batch, &options).map_err(|e| self.stop("writing", &e))
    }

    /// The number of changes ever written. After a synced write: how many are on the disk.
    pub fn sequence(&self) -> u64 {
        self.db.latest_sequence_number()
    }

    /// Brings everything written so far to files on the disk, all `families` as of one moment.
    pub fn flush(&self, families: &[Family]) -> Result<(), Fault> {
        self.check()?;
        let handles = families.iter().map(|&f| self.family(f)).collect::<Result<Vec<_>, _>>()?;
        let handles: Vec<&&ColumnFamily> = handles.iter().collect();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_cfs_opt(&handles, &options).map_err(|e| self.stop("flushing", &e))
    }

    /// What the disk still takes. An answer of `None` is no answer.
    pub fn free_bytes(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&self.path).ok()?;
        disk.f_bavail.checked_mul(disk.f_frsize)
    }

    /// Writes so many blank bytes to the write-ahead log, which mean nothing and are not synced.
    pub fn pad_log(&self, bytes: usize) -> Result<(), Fault> {
        self.check()?;
        let mut batch = WriteBatch::default();
        batch.put_log_data(vec![0; bytes]);
        // A flush that finds no row to write would not go on to the next file of the log. This key is
        // nobody's.
        batch.delete([]);
        self.db.write(batch).map_err(|e| self.stop("writing", &e))
    }

    /// The value of `key` now.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.get_with(family, key, &self.latest)
    }

    /// Visits the rows of `scan` as they are now.
    pub fn scan(&self, scan: Scan, visit: &mut Visitor) -> Result<(), Fault> {
        self.scan_with(scan, ReadOptions::default(), visit)
    }

    fn get_with(&self, family: Family, key: &[u8], options: &ReadOptions) -> Result<Option<Vec<u8>>, Fault> {
        self.check()?;
        let found = self.db.get_pinned_cf_opt(self.family(family)?, key, options);
        found.map(|row| row.map(|value| value.to_vec())).map_err(|e| self.stop("reading", &e))
    }

    fn scan_with(&self, scan: Scan, mut options: ReadOptions, visit: &mut Visitor) -> Result<(), Fault> {
        self.check()?;
        if scan.start >= scan.end {
            return Ok(());
        }
        options.set_iterate_lower_bound(scan.start);
        options.set_iterate_upper_bound(scan.end);
        options.fill_cache(scan.cache);
        let mut rows = self.db.raw_iterator_cf_opt(self.family(scan.family)?, options);
        match scan.direction {
            Direction::Forward => rows.seek_to_first(),
            Direction::Backward => rows.seek_to_last(),
        }
        while let Some((key, value)) = rows.item() {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
            match scan.direction {
                Direction::Forward => rows.next(),
                Direction::Backward => rows.prev(),
            }
        }
        rows.status().map_err(|e| self.stop("reading", &e))
    }

    fn family(&self, family: Family) -> Result<&ColumnFamily, Fault> {
        let missing = || Fault::new(format!("{} has no column family {}", self.place(), family.0));
        self.db.cf_handle(family.0).ok_or_else(missing)
    }

    fn check(&self) -> Result<(), Fault> {
        match self.failed.get() {
            None => Ok(()),
            Some(fault) => Err(fault.clone()),
        }
    }

    /// Turns the database off after `error`.
    fn stop(&self, doing: &str, error: &dyn std::fmt::Display) -> Fault {
        self.fail(Fault::new(format!(
            "{doing} {} failed: {error}. It answers nothing more: see to the disk (space, health), then \
             start the node again",
            self.place()
        )))
    }
}

impl<'a> Changes<'a> {
    /// Sets `key` to `value`.
    pub fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        let family = self.family(family);
        self.batch.put_cf(family, key, value);
    }

    /// Removes `key`.
    pub fn delete(&mut self, family: Family, key: &[u8]) {
        let family = self.family(family);
        self.batch.delete_cf(family, key);
    }

    /// Removes all keys from `start` up to, not including, `end`.
    pub fn delete_range(&mut self, family: Family, start: &[u8], end: &[u8]) {
        let family = self.family(family);
        self.batch.delete_range_cf(family, start, end);
    }

    /// How much there is to write.
    pub fn size_bytes(&self) -> usize {
        self.batch.size_in_bytes()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    fn family(&self, family: Family) -> &'a ColumnFamily {
        let found = self.families.iter().find(|(known, _)| *known == family);
        found.expect("changes are made with every family they touch; if not, storage/ has a mistake").1
    }
}

impl Pinned {
    /// The database as it is now.
    pub fn new(db: Arc<Db>) -> Pinned {
        // SAFETY: `Arc` keeps the `Db` at one address for as long as `self.db` lives; the reference is only
        // given to the snapshot in this struct, which is private to it and dropped before `self.db` (fields
        // drop in order).
        let alive: &'static DB = unsafe { &*std::ptr::from_ref(&db.db) };
        let snapshot = alive.snapshot();
        let mut read = ReadOptions::default();
        read.set_snapshot(&snapshot);
        Pinned { read, snapshot, db }
    }

    /// The value of `key` then.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.db.get_with(family, key, &self.read)
    }

    /// Visits the rows of `scan` as they were then.
    pub fn scan(&self, scan: Scan, visit: &mut Visitor) -> Result<(), Fault> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        self.db.scan_with(scan, options, visit)
    }
}

impl Preview {
    /// Looks into the log database without changing it. `whole`: end at the first damaged record of the
    /// write-ahead log, as [`Db::open_log`] would; otherwise skip damaged records, to find out what they
    /// held.
    pub fn of_log(path: &Path, sizes: Sizes, whole: bool) -> Result<Preview, Error> {
        let mut options = log_options(sizes);
        if !whole {
            options.set_wal_recovery_mode(DBRecoveryMode::SkipAnyCorruptedRecord);
        }
        check_list("log", path)?;
        let db = DB::open_for_read_only(&options, path, false).map_err(|e| open_error("log", path, &e))?;
        Ok(Preview { db })
    }

    /// The number of changes that can be read.
    pub fn sequence(&self) -> u64 {
        self.db.latest_sequence_number()
    }

    /// All keys that can be read, in order, with damaged files skipped.
    pub fn keys(&self, visit: &mut dyn FnMut(&[u8])) {
        let mut rows = self.db.raw_iterator();
        rows.seek_to_first();
        while let Some(key) = rows.key() {
            visit(key);
            rows.next();
        }
    }
}

fn check_list(name: &str, path: &Path) -> Result<(), Error> {
    match manifest::damage(path) {
        Ok(None) => Ok(()),
        Ok(Some(what)) => {
            Err(damaged(&format!("the {name} database in {} does not open: {what}", path.display())))
        }
        Err(e) => {
            Err(Fault::new(format!("reading the {name} database in {} failed: {e}", path.display())).into())
        }
    }
}

fn damaged(what: &str) -> Error {
    Error::Damaged(format!("{what}. It is damaged. {REPAIR}"))
}

fn open_error(name: &str, path: &Path, error: &rocksdb::Error) -> Error {
    let text = error.to_string();
    // RocksDB ends some of its messages with a full stop, and some not.
    let text = text.trim_end_matches('.');
    let what = format!("the {name} database in {} does not open: {text}", path.display());
    match error.kind() {
        ErrorKind::Corruption => damaged(&what),
        _ => Error::Fault(Fault::new(format!(
            "{what}. See to the disk (space, rights, health), then start again"
        ))),
    }
}

/// What both databases share.
fn base_options(sizes: Sizes) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_max_open_files(sizes.open_files_max);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    // The list of files is then never longer than what was written of it, not even after a power failure:
    // RocksDB has no patience with a list that ends in zeros where a change was under way.
    options.set_manifest_preallocation_size(0);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    // RocksDB's own diary: enough to understand a failure, bounded in size.
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(4 << 20);
    options.set_keep_log_file_num(2);
    options
}

/// Blocks of 16 KiB with a filter of 16 bits a key: of a thousand missing keys one costs a disk read, in each
/// file that could have it.
fn block_options(cache: &Cache) -> BlockBasedOptions {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_block_size(16 << 10);
    blocks.set_bloom_filter(16.0, false);
    blocks.set_optimize_filters_for_memory(true);
    // Filters and indexes are in memory, whole, as long as their files are open: three bytes for a key, or
    // less. A key that is not there is looked up in some five files. In the cache and in parts they would
    // have a bound, but to find each part costs as much as to ask it, and one that is not in the cache a
    // hundred times that.
    blocks.set_cache_index_and_filter_blocks(false);
    blocks.set_format_version(6);
    blocks
}

/// The log: one thread that appends and syncs, hardly a read after the start.
fn log_options(sizes: Sizes) -> Options {
    let mut options = base_options(sizes);
    options.set_block_based_table_factory(&block_options(&Cache::new_lru_cache(sizes.block_cache_bytes)));
    options.set_write_buffer_size(sizes.write_buffer_bytes / 2);
    options.set_max_write_buffer_number(4);
    // A sync that overwrites the blocks of an old file has no file size to record: half the time of one that
    // appends.
    options.set_recycle_log_file_num(4);
    // The disk begins early with what is not synced at once.
    options.set_wal_bytes_per_sync(1 << 20);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // There is one writer: nothing to gain from the machinery for many.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_write_thread_adaptive_yield(false);
    options
}

/// The state: no write-ahead log, all families flushed as of one moment, fast point reads.
fn state_options(sizes: Sizes) -> Options {
    let mut options = base_options(sizes);
    // Many threads look up blocks: without a lock. The size of what is in it is found out.
    let cache = Cache::new_hyper_clock_cache(sizes.block_cache_bytes, 0);
    let mut blocks = block_options(&cache);
    blocks.set_data_block_index_type(rocksdb::DataBlockIndexType::BinaryAndHash);
    options.set_block_based_table_factory(&blocks);
    options.set_atomic_flush(true);
    // Rows of a batch come sorted: one writer at a time finds each row's place from the place of the one
    // before.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_write_thread_adaptive_yield(false);
    options.set_write_buffer_size(sizes.write_buffer_bytes / 2);
    options.set_db_write_buffer_size(sizes.write_buffer_bytes);
    options.set_max_write_buffer_number(4);
    // A missing key is answered without a walk through the rows still in memory.
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(0.02);
    options
}
