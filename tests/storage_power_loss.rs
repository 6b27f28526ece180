//! What is left of each store when the power fails, and what each does when the disk fails.
//!
//! This binary defines `fsync`, `fdatasync` and `write` itself, so that RocksDB and the standard library call
//! these instead of the C library's. A [`Disk`] keeps, for one directory, what those calls have made durable:
//! the bytes of a file as of its last sync, the names of a directory as of its last sync, and nothing else.
//! From that the directory is made again as a power failure would leave it: strictly, with nothing that was
//! not synced, or torn, with a random part of the later bytes. Or it answers an error in place of the disk.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use statehouse::error::{Error, Fault};
use statehouse::id::{Digest, GroupId, Index, Term};
use statehouse::machine::batch::Head;
use statehouse::machine::view::{Direction, Span, Table};
use statehouse::storage::directory::{Directory, Identity};
use statehouse::storage::entry::{Entry, EntryKind, GroupLog, HardState, LogWrite, Membership};
use statehouse::storage::log::{LogDb, LogSizes, LogThread};
use statehouse::storage::modules::{Artefact, Modules};
use statehouse::storage::snapshot::{Header, Kind, SnapshotReader, Snapshots};
use statehouse::storage::state::{Replacement, StateDb, StateSizes};

const DEADLINE: Duration = Duration::from_secs(60);
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// A file, whatever its name is at the moment: inode numbers are used again, birth times are not.
type FileId = (u64, SystemTime);

/// What is durable.
#[derive(Clone, Default)]
struct Durable {
    /// The bytes of files, as of their last sync.
    bytes: BTreeMap<FileId, Arc<Vec<u8>>>,
    /// The names in directories, as of the directory's last sync. Without a file: a directory.
    names: BTreeMap<PathBuf, BTreeMap<PathBuf, Option<FileId>>>,
}

#[derive(Default)]
struct DiskState {
    durable: Durable,
    /// What was durable after each sync, if that is asked for.
    history: Option<Vec<Durable>>,
    /// Errors to answer with: part of a file's name, whether to a sync or to a write, and the number.
    broken: Option<(&'static str, Call, i32)>,
    /// How often it was answered.
    errors: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Call {
    Sync,
    Write,
}

/// The disk under one directory.
struct Disk {
    root: PathBuf,
    state: Mutex<DiskState>,
}

static DISKS: Mutex<Vec<Arc<Disk>>> = Mutex::new(Vec::new());
/// So that writes cost nothing while no disk is broken.
static BROKEN_DISKS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: glibc's and musl's own declaration.
unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// Answers a call on a file with what its disk says, if it is under one.
fn intercept(fd: c_int, call: Call) -> c_int {
    let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{fd}")) else { return 0 };
    let disk = DISKS.lock().unwrap().iter().find(|disk| path.starts_with(&disk.root)).cloned();
    let error = disk.map_or(0, |disk| disk.call(&path, fd, call));
    if error == 0 {
        return 0;
    }
    // SAFETY: the C library's place for this thread's error number, valid for as long as the thread.
    unsafe { *__errno_location() = error };
    -1
}

// SAFETY of the three: the signatures are POSIX's; nothing else in this binary defines these names but the C
// library, whose definitions give way to the program's own.
#[unsafe(no_mangle)]
extern "C" fn fsync(fd: c_int) -> c_int {
    intercept(fd, Call::Sync)
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: c_int) -> c_int {
    intercept(fd, Call::Sync)
}

#[unsafe(no_mangle)]
extern "C" fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize {
    if BROKEN_DISKS.load(Ordering::Relaxed) > 0 && intercept(fd, Call::Write) != 0 {
        return -1;
    }
    // SAFETY: the caller of `write` promises an open file and `count` readable bytes.
    let (file, bytes) =
        unsafe { (BorrowedFd::borrow_raw(fd), std::slice::from_raw_parts(bytes.cast(), count)) };
    match rustix::io::write(file, bytes) {
        Ok(written) => written as isize,
        Err(error) => {
            // SAFETY: as in `intercept`.
            unsafe { *__errno_location() = error.raw_os_error() };
            -1
        }
    }
}

impl Disk {
    /// A disk under a new directory `name` of `place`.
    fn under(place: &Path, name: &str) -> Arc<Disk> {
        let root = place.canonicalize().unwrap().join(name);
        std::fs::create_dir(&root).unwrap();
        let disk = Arc::new(Disk { root, state: Mutex::default() });
        DISKS.lock().unwrap().push(disk.clone());
        disk
    }

    fn call(&self, path: &Path, fd: c_int, call: Call) -> c_int {
        let mut state = self.state.lock().unwrap();
        if let Some((part, broken, error)) = state.broken
            && broken == call
            && path.to_string_lossy().contains(part)
        {
            state.errors += 1;
            return error;
        }
        if call == Call::Sync {
            state.durable.sync(path, fd);
            let now = state.durable.clone();
            if let Some(history) = &mut state.history {
                history.push(now);
            }
        }
        0
    }

    /// From now on each sync or write of files whose path has `part` in it answers `error`.
    fn break_down(&self, part: &'static str, call: Call, error: i32) {
        self.state.lock().unwrap().broken = Some((part, call, error));
        BROKEN_DISKS.fetch_add(1, Ordering::Relaxed);
    }

    /// Works again; returns how often an error was answered.
    fn mend(&self) -> usize {
        let mut state = self.state.lock().unwrap();
        state.broken = None;
        BROKEN_DISKS.fetch_sub(1, Ordering::Relaxed);
        state.errors
    }

    /// What a power failure now would leave, of a torn kind: with what is in the files at the moment beside
    /// what is durable.
    fn freeze(&self) -> Frozen {
        // While this is held no sync counts; so nothing that waits for one can be in what is read here.
        let state = self.state.lock().unwrap();
        let durable = state.durable.clone();
        let latest = durable.names.iter().flat_map(|(directory, names)| {
            names.iter().filter_map(|(name, id)| Some(((*id)?, std::fs::read(directory.join(name)).ok()?)))
        });
        let latest = latest.collect();
        Frozen { root: self.root.clone(), durable, latest }
    }

    fn record_history(&self) {
        self.state.lock().unwrap().history = Some(Vec::new());
    }

    fn history(&self) -> Vec<Frozen> {
        let history = self.state.lock().unwrap().history.take().unwrap();
        let frozen = |durable| Frozen { root: self.root.clone(), durable, latest: BTreeMap::new() };
        history.into_iter().map(frozen).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        assert!(self.state.get_mut().unwrap().broken.is_none(), "a broken disk is mended");
    }
}

impl Durable {
    fn sync(&mut self, path: &Path, fd: c_int) {
        let Ok(found) = std::fs::metadata(format!("/proc/self/fd/{fd}")) else { return };
        if found.is_dir() {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            let named = entries.filter_map(|entry| {
                let found = entry.metadata().ok()?;
                Some((entry.file_name().into(), (!found.is_dir()).then(|| file_id(&found))))
            });
            self.names.insert(path.to_owned(), named.collect());
        } else if let Ok(bytes) = std::fs::read(format!("/proc/self/fd/{fd}")) {
            self.bytes.insert(file_id(&found), Arc::new(bytes));
        }
    }
}

fn file_id(found: &std::fs::Metadata) -> FileId {
    (
        found.ino(),
        found.created().expect("this test needs a file system that keeps birth times, as ext4 and xfs do"),
    )
}

/// What a power failure leaves.
struct Frozen {
    root: PathBuf,
    durable: Durable,
    latest: BTreeMap<FileId, Vec<u8>>,
}

impl Frozen {
    /// Makes the directory again at `to`. With a `seed`, torn. Of a file that is written over or into space
    /// set aside (the write-ahead log, its mark) some blocks of 512 bytes are new and some old or zero. Of a
    /// file that only grows a part of what was added is there: so ext4 (in its ordered mode) and xfs do, and
    /// RocksDB relies on it.
    fn restore(&self, to: &Path, seed: Option<u64>) {
        std::fs::create_dir_all(to).unwrap();
        for (directory, names) in &self.durable.names {
            let Ok(inner) = directory.strip_prefix(&self.root) else { continue };
            for (name, id) in names {
                let place = to.join(inner).join(name);
                match id {
                    None => std::fs::create_dir_all(place).unwrap(),
                    Some(id) => {
                        std::fs::create_dir_all(to.join(inner)).unwrap();
                        let log = name.extension().is_some_and(|extension| extension == "log");
                        let overwrites = log || name.ends_with("ACKNOWLEDGED");
                        std::fs::write(place, self.bytes_of(id, overwrites, seed)).unwrap();
                    }
                }
            }
        }
    }

    fn bytes_of(&self, id: &FileId, overwrites: bool, seed: Option<u64>) -> Vec<u8> {
        let mut bytes = self.durable.bytes.get(id).map(|bytes| bytes.to_vec()).unwrap_or_default();
        let (Some(seed), Some(latest)) = (seed, self.latest.get(id)) else { return bytes };
        let mut random = Random(seed ^ id.0);
        let synced = bytes.len();
        let length = synced + random.below(latest.len().saturating_sub(synced) as u64 + 1) as usize;
        if !overwrites {
            bytes.extend_from_slice(&latest[synced.min(latest.len())..length.min(latest.len())]);
            return bytes;
        }
        bytes.resize(length, 0);
        for at in (0..length.min(latest.len())).step_by(512) {
            let end = (at + 512).min(length).min(latest.len());
            if random.below(2) == 0 {
                bytes[at..end].copy_from_slice(&latest[at..end]);
            }
        }
        bytes
    }
}

/// splitmix64: enough to choose by, the same from the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// Opens what each power failure left, strictly and torn, and calls `check` with the directory.
fn each_outcome<T>(place: &Path, frozen: &[(Frozen, T)], mut check: impl FnMut(&Path, &T, String)) {
    for (number, (frozen, known)) in frozen.iter().enumerate() {
        for seed in [None, Some(number as u64), Some(number as u64 + 1_000)] {
            let restored = place.join("restored");
            frozen.restore(&restored, seed);
            check(&restored, known, format!("power failure {number}, seed {seed:?}"));
            std::fs::remove_dir_all(&restored).unwrap();
        }
    }
}

const SMALL_LOG: LogSizes = LogSizes { write_buffer_bytes: 128 << 10 };

fn log_entry(group: u64, index: u64) -> Entry {
    let mut data = vec![0; 100 + (index % 7) as usize * 300];
    blake3::Hasher::new().update(&[group as u8]).update(&index.to_le_bytes()).finalize_xof().fill(&mut data);
    Entry {
        index: Index(index),
        term: Term(1 + index / 500),
        kind: EntryKind::Batch,
        data: Bytes::from(data),
    }
}

/// What was acknowledged of the log: for each group the last entry, and the last hard state's vote.
type Acknowledged = BTreeMap<u64, (u64, u64)>;

/// Checks a log against what had been acknowledged: nothing of it is missing, and nothing is there that was
/// not written.
fn check_log(groups: &BTreeMap<GroupId, GroupLog>, acknowledged: &Acknowledged, what: &str) {
    for (&group, &(last, vote)) in acknowledged {
        let log = groups.get(&GroupId(group)).unwrap_or_else(|| panic!("{what}: group {group} is gone"));
        let end = log.entries.last().map_or(log.start.0, |entry| entry.index);
        assert!(end.0 >= last, "{what}: group {group} ends at {end}, {last} was acknowledged");
        assert!(log.hard_state.vote >= vote, "{what}: group {group} forgot its vote {vote}");
        for entry in &log.entries {
            assert_eq!(entry, &log_entry(group, entry.index.0), "{what}");
        }
        assert!(log.start.0.0 <= last, "{what}: group {group} lost what was acknowledged to a cut");
    }
}

#[test]
fn every_acknowledged_entry_survives_a_power_failure_at_any_moment() {
    const GROUPS: u64 = 4;
    const ROUNDS: u64 = 1_200;
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::under(place.path(), "disk");
    let (log, _) = LogDb::open_sized(&disk.root.join("log"), SMALL_LOG).unwrap();
    let (done, reports) = mpsc::channel();
    let on_done = move |pairs| done.send(pairs).unwrap();
    let thread = LogThread::start(log, on_done, |fault| panic!("{fault}")).unwrap();
    let (mut frozen, mut acknowledged) = (Vec::new(), Acknowledged::new());
    for round in 1..=ROUNDS {
        let write = |group| LogWrite {
            group: GroupId(group),
            number: round,
            entries: vec![log_entry(group, round)],
            hard_state: Some(HardState { term: Term(1), vote: round / 50, commit: Index(round - 1) }),
            truncate: (round % 200 == 0).then(|| (Index(round - 50), log_entry(group, round - 50).term)),
            ..LogWrite::default()
        };
        thread.queue().write((1..=GROUPS).map(write).collect()).unwrap();
        // Its files are laid out while it is used, now and then; the writes after that overwrite.
        if round % 300 == 150 {
            thread.queue().lay_out();
        }
        // A moment when the write is under way, and then one when it is acknowledged.
        if round % 100 == 7 {
            frozen.push((disk.freeze(), acknowledged.clone()));
        }
        for (group, number) in reports.recv_timeout(DEADLINE).unwrap() {
            acknowledged.insert(group.0, (number, number / 50));
        }
        if round % 100 == 0 {
            frozen.push((disk.freeze(), acknowledged.clone()));
        }
    }
    thread.stop().unwrap();
    assert_eq!(acknowledged.len() as u64, GROUPS);
    let mut behind_the_sync = 0;
    each_outcome(place.path(), &frozen, |restored, acknowledged, what| {
        let opened = LogDb::open_sized(&restored.join("log"), SMALL_LOG);
        let (_, groups) = opened.unwrap_or_else(|e| panic!("{what}: {e}"));
        check_log(&groups, acknowledged, &what);
        behind_the_sync += usize::from(acknowledged.values().any(|&(last, _)| last > 0));
    });
    assert!(behind_the_sync >= 3 * 23, "only {behind_the_sync} failures came after an acknowledgement");
}

#[test]
fn a_log_cut_below_its_last_sync_does_not_open() {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::under(place.path(), "disk");
    let (log, _) = LogDb::open(&disk.root.join("log")).unwrap();
    let (done, reports) = mpsc::channel();
    let thread = LogThread::start(log, move |p| done.send(p).unwrap(), |fault| panic!("{fault}")).unwrap();
    for index in 1..=20 {
        let entries = vec![log_entry(1, index)];
        thread.queue().write(vec![LogWrite { group: GroupId(1), entries, ..LogWrite::default() }]).unwrap();
        reports.recv_timeout(DEADLINE).unwrap();
    }
    let mut frozen = disk.freeze();
    // The mark follows the report; when the log has stopped, it is there.
    thread.stop().unwrap();
    let stopped = disk.freeze();
    // The mark has reached the disk, and the disk lost the end of what it had called synced.
    let named = |part: &str| {
        let names = &frozen.durable.names[&disk.root.join("log")];
        names.iter().find(|(name, _)| name.to_string_lossy().ends_with(part)).unwrap().1.unwrap()
    };
    let (mark, wal) = (named("ACKNOWLEDGED"), named(".log"));
    frozen.durable.bytes.insert(mark, stopped.durable.bytes[&mark].clone());
    let cut = frozen.durable.bytes[&wal].len() - 3;
    frozen.durable.bytes.insert(wal, Arc::new(frozen.durable.bytes[&wal][..cut].to_vec()));
    frozen.restore(&place.path().join("restored"), None);
    match LogDb::open(&place.path().join("restored/log")) {
        Err(Error::Damaged(what)) => assert!(what.contains("group 1 ends at index 19"), "{what}"),
        other => panic!("a lost entry was not noticed: {:?}", other.map(|(_, groups)| groups)),
    }
}

#[test]
fn after_a_sync_failed_the_log_reports_nothing_more_and_tells_the_node_once() {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::under(place.path(), "disk");
    let (log, _) = LogDb::open(&disk.root.join("log")).unwrap();
    let ((done, reports), (told, faults)) = (mpsc::channel(), mpsc::channel());
    let on_failure = move |fault: Fault| told.send(fault.to_string()).unwrap();
    let thread = LogThread::start(log, move |pairs| done.send(pairs).unwrap(), on_failure).unwrap();
    let write = |index| {
        let entries = vec![log_entry(1, index)];
        thread.queue().write(vec![LogWrite {
            group: GroupId(1),
            number: index,
            entries,
            ..LogWrite::default()
        }])
    };
    write(1).unwrap();
    assert_eq!(reports.recv_timeout(DEADLINE).unwrap(), [(GroupId(1), 1)]);
    disk.break_down(".log", Call::Sync, EIO);
    write(2).unwrap();
    let fault = faults.recv_timeout(DEADLINE).unwrap();
    assert!(disk.mend() > 0, "no error was injected");
    assert!(fault.contains("Input/output error"), "{fault}");
    // The disk works again, and still nothing is taken: what was under way may be lost.
    assert_eq!(write(3).unwrap_err().to_string(), fault);
    assert_eq!(thread.stop().unwrap_err().to_string(), fault);
    assert!(faults.recv().is_err(), "told once");
    assert!(reports.recv().is_err(), "nothing was reported after the failure");
}

#[test]
fn a_full_disk_stops_the_state_and_a_restart_finds_what_was_durable() {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::under(place.path(), "disk");
    let path = disk.root.join("state");
    let (state, _) = StateDb::open(&path, StateSizes::default()).unwrap();
    write_batch(&state, 1, 1);
    state.flush().unwrap();
    write_batch(&state, 1, 2);
    let (view, head) = (state.view(GroupId(1)), Head { index: Index(3), ..Head::default() });
    disk.break_down(".sst", Call::Write, ENOSPC);
    let fault = state.flush().unwrap_err().to_string();
    assert!(disk.mend() > 0, "no error was injected");
    assert!(fault.contains("No space left on device"), "{fault}");
    assert_eq!(state.durable(GroupId(1)), Index(1), "what failed to be flushed is not durable");
    assert_eq!(view.get(Table::Head, Head::KEY).unwrap_err().to_string(), fault);
    assert_eq!(
        state.write(GroupId(1), [(Table::Store, b"k", Some(b"v"))], &head).unwrap_err().to_string(),
        fault
    );
    assert_eq!(state.flush().unwrap_err().to_string(), fault);
    drop((view, state));
    let (state, opened) = StateDb::open(&path, StateSizes::default()).unwrap();
    assert_eq!(opened.heads[&GroupId(1)].index, Index(1));
    check_machine(&state, 1, 1, "after the restart");
}

/// The batch at `index` of a machine: rows in every table, all of which say so.
fn write_batch(state: &StateDb, group: u64, index: u64) {
    let now = index.to_be_bytes().to_vec();
    let mut filler = vec![0; 2_000];
    blake3::Hasher::new().update(&now).finalize_xof().fill(&mut filler);
    let rows = [
        (Table::Store, b"last".to_vec(), Some(now.clone())),
        (Table::Store, format!("filler {}", index % 40).into_bytes(), Some(filler)),
        (Table::Events, now.clone(), Some(now.clone())),
        (Table::Leases, b"last".to_vec(), (!index.is_multiple_of(3)).then_some(now)),
    ];
    let head = Head { index: Index(index), ..Head::default() };
    state.write(GroupId(group), rows, &head).unwrap();
}

/// The machine has exactly the rows of its head.
fn check_machine(state: &StateDb, group: u64, index: u64, what: &str) {
    let view = state.view(GroupId(group));
    let now = index.to_be_bytes().to_vec();
    assert_eq!(
        view.get(Table::Store, b"last").unwrap().as_ref(),
        Some(&now),
        "{what}: the store of group {group}"
    );
    let lease = (!index.is_multiple_of(3)).then_some(now);
    assert_eq!(view.get(Table::Leases, b"last").unwrap(), lease, "{what}: the leases of group {group}");
    let mut events = 0;
    let all = Span { start: b"", end: None };
    let visit = &mut |key: &[u8], value: &[u8]| {
        events += 1;
        assert_eq!((key, value), (&u64::to_be_bytes(events)[..], &u64::to_be_bytes(events)[..]), "{what}");
        ControlFlow::Continue(())
    };
    view.scan(Table::Events, all, Direction::Forward, visit).unwrap();
    assert_eq!(events, index, "{what}: the events of group {group}");
}

/// Small, so that files are written and merged all the time, at moments that nobody chose.
const SMALL_STATE: StateSizes =
    StateSizes { write_buffer_bytes: 256 << 10, block_cache_bytes: 1 << 20, open_files_max: 64 };

#[test]
fn after_a_power_failure_each_machine_has_exactly_the_rows_of_a_head_no_older_than_the_last_flush() {
    const GROUPS: u64 = 3;
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::under(place.path(), "disk");
    let (state, _) = StateDb::open(&disk.root.join("state"), SMALL_STATE).unwrap();
    let mut frozen = Vec::new();
    let mut durable = BTreeMap::new();
    for index in 1..=1_000 {
        (1..=GROUPS).for_each(|group| write_batch(&state, group, index));
        if index % 150 == 0 {
            durable = state.flush().unwrap();
        }
        if index % 50 == 10 {
            frozen.push((disk.freeze(), durable.clone()));
        }
    }
    drop(state);
    let mut beyond_the_flush = 0;
    each_outcome(place.path(), &frozen, |restored, durable, what| {
        let opened = StateDb::open(&restored.join("state"), SMALL_STATE);
        let (state, opened) = opened.unwrap_or_else(|e| panic!("{what}: {e}"));
        for (group, head) in &opened.heads {
            check_machine(&state, group.0, head.index.0, &what);
            beyond_the_flush += usize::from(Some(&head.index) > durable.get(group));
        }
        for (group, index) in durable {
            assert!(
                opened.heads[group].index >= *index,
                "{what}: group {group} is behind its flush at {index}"
            );
        }
    });
    assert!(
        beyond_the_flush > 0,
        "no file was written but by a flush that was asked for: the cuts prove little"
    );
}

/// Adds the rows of a machine at `index`, some megabytes in two files. Calls `meanwhile` now and then.
fn put_rows(replacement: &mut Replacement, index: u64, mut meanwhile: impl FnMut()) {
    let mut filler = vec![0; 50_000];
    for row in 1..=index {
        blake3::Hasher::new().update(&row.to_le_bytes()).finalize_xof().fill(&mut filler);
        replacement.put(Table::Store, format!("filler {row:02}").as_bytes(), &filler).unwrap();
    }
    replacement.put(Table::Store, b"last", &index.to_be_bytes()).unwrap();
    for row in 1..=index {
        replacement.put(Table::Events, &row.to_be_bytes(), &row.to_be_bytes()).unwrap();
        if row % 10 == 0 {
            meanwhile();
        }
    }
}

#[test]
fn a_power_failure_while_rows_are_replaced_leaves_the_old_the_new_or_a_mark() {
    replace_under_power_failures(|state| {
        (1..=21).for_each(|index| write_batch(state, 1, index));
        state.flush().unwrap();
    });
}

/// These are in files that are dropped as soon as that may be.
#[test]
fn a_power_failure_while_rows_are_replaced_again_leaves_the_old_the_new_or_a_mark() {
    replace_under_power_failures(|state| {
        let mut first = state.replace(GroupId(1), Index(21)).unwrap();
        put_rows(&mut first, 21, || {});
        first.finish(&Head { index: Index(21), ..Head::default() }).unwrap();
        while state.drop_replaced().unwrap() {}
    });
}

/// Replaces the rows at index 21 that `make` makes by those at 90.
fn replace_under_power_failures(make: impl FnOnce(&StateDb)) {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::under(place.path(), "disk");
    let (state, _) = StateDb::open(&disk.root.join("state"), SMALL_STATE).unwrap();
    make(&state);
    let mut frozen = Vec::new();
    disk.record_history();
    // What is replaced is dropped as soon as that may be: not before the mark is durable.
    let begun = AtomicBool::new(false);
    let mut replacement = std::thread::scope(|scope| {
        scope.spawn(|| while state.drop_replaced().unwrap() || !begun.load(Ordering::Acquire) {});
        let replacement = state.replace(GroupId(1), Index(90)).unwrap();
        begun.store(true, Ordering::Release);
        replacement
    });
    put_rows(&mut replacement, 90, || frozen.push((disk.freeze(), false)));
    replacement.finish(&Head { index: Index(90), ..Head::default() }).unwrap();
    // Each sync there was: of the files of rows, and of those that say what there is.
    frozen.extend(disk.history().into_iter().map(|frozen| (frozen, false)));
    frozen.push((disk.freeze(), true));
    drop(state);
    let mut interrupted = 0;
    each_outcome(place.path(), &frozen, |restored, &finished, what| {
        let (state, opened) = StateDb::open(&restored.join("state"), SMALL_STATE).unwrap();
        match opened.heads.get(&GroupId(1)).map(|head| head.index.0) {
            Some(index @ 90) => check_machine(&state, 1, index, &what),
            Some(index) => {
                assert!(index == 21 && !finished, "{what}: head {index}");
                check_machine(&state, 1, index, &what);
            }
            None => {
                assert!(!finished, "{what}: a finished replacement is gone");
                assert_eq!(opened.interrupted, BTreeMap::from([(GroupId(1), Index(90))]), "{what}");
                interrupted += 1;
            }
        }
    });
    assert!(interrupted > 0, "no power failure came in the middle");
}

#[test]
fn at_every_sync_files_are_whole_or_not_there() {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::under(place.path(), "disk");
    disk.record_history();
    let data = disk.root.join("data");
    let identity = Identity { node: 7, name: "n1".to_owned(), cluster: 9, replica: 1, contacts: Vec::new() };
    let mut directory = Directory::open(&data, "n1").unwrap();
    directory.establish(identity.clone()).unwrap();
    let modules = Modules::open(&directory.modules(), 1 << 20).unwrap();
    let mut upload = modules.upload().unwrap();
    upload.write(b"a component").unwrap();
    let digest = upload.finish(None).unwrap();
    modules.store_artefact(digest, "1", b"native code").unwrap();
    let snapshots = Snapshots::open(&directory.snapshots()).unwrap();
    let head = Head { index: Index(5), ..Head::default() };
    let (group, term) = (GroupId(3), Term(1));
    let header = Header {
        group,
        kind: Kind::Resident,
        head,
        term,
        membership: Membership::default(),
        engine: String::new(),
    };
    let writer = snapshots.create(&header).unwrap();
    writer.guest().write_all(b"the guest's state").unwrap();
    writer.finish().unwrap();
    drop(directory);
    let history: Vec<_> = disk.history().into_iter().map(|frozen| (frozen, ())).collect();
    assert!(history.len() > 10, "only {} syncs were seen", history.len());
    let mut last = [false; 4];
    each_outcome(place.path(), &history, |restored, (), what| {
        let data = restored.join("data");
        let directory = Directory::open(&data, "n1").unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(directory.identity().is_none_or(|found| *found == identity), "{what}");
        let mut there = [directory.identity().is_some(), false, false, false];
        if there[0] {
            (there[1], there[2], there[3]) = check_files(&directory, digest, &what);
        }
        let lost = last.iter().zip(&there).any(|(before, now)| *before && !now);
        assert!(!lost, "{what}: what was durable is gone again: {last:?}, {there:?}");
        last = there;
    });
    assert_eq!(last, [true; 4], "all of it was durable in the end");
}

/// Whether module, artefact and snapshot are there; if they are, they are whole.
fn check_files(directory: &Directory, digest: Digest, what: &str) -> (bool, bool, bool) {
    let modules = Modules::open(&directory.modules(), 1 << 20).unwrap();
    let module = match modules.load(digest) {
        Ok(bytes) => bytes == b"a component",
        Err(Error::NotFound(_)) => false,
        Err(e) => panic!("{what}: {e}"),
    };
    let artefact = match modules.artefact(digest, "1").unwrap() {
        Artefact::Ready(path) => std::fs::read(path).unwrap() == b"native code",
        Artefact::Absent => false,
        Artefact::Removed(why) => panic!("{what}: {why}"),
    };
    let snapshot = match Snapshots::open(&directory.snapshots()).unwrap().read(GroupId(3), Index(5)) {
        Ok(snapshot) => {
            let mut guest = Vec::new();
            snapshot.guest().read_to_end(&mut guest).unwrap_or_else(|e| panic!("{what}: {e}"));
            guest == b"the guest's state"
        }
        Err(Error::NotFound(_)) => false,
        Err(e) => panic!("{what}: {e}"),
    };
    (module, artefact, snapshot)
}

#[test]
fn a_disk_that_fails_leaves_no_half_file() {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::under(place.path(), "disk");
    let modules = Modules::open(&disk.root.join("modules"), 1 << 20).unwrap();
    let snapshots = Snapshots::open(&disk.root.join("snapshots")).unwrap();
    for (call, error, expected) in
        [(Call::Write, ENOSPC, "No space left"), (Call::Sync, EIO, "Input/output error")]
    {
        disk.break_down("/", call, error);
        let mut upload = modules.upload().unwrap();
        let failed = upload.write(b"a component").and_then(|()| upload.finish(None)).unwrap_err();
        assert!(matches!(&failed, Error::Fault(fault) if fault.to_string().contains(expected)), "{failed}");
        let header = Header {
            group: GroupId(1),
            kind: Kind::Stored,
            head: Head::default(),
            term: Term(0),
            membership: Membership::default(),
            engine: String::new(),
        };
        let failed = snapshots.create(&header).and_then(|writer| writer.finish()).unwrap_err().to_string();
        assert!(failed.contains(expected), "{failed}");
        assert!(disk.mend() >= 2, "no error was injected");
        assert_eq!(modules.list().unwrap(), []);
        assert_eq!(snapshots.list_all().unwrap(), []);
        assert!(matches!(
            snapshots.read(GroupId(1), Index(0)).and_then(SnapshotReader::verify),
            Err(Error::NotFound(_))
        ));
    }
    assert_eq!(std::fs::read_dir(disk.root.join("snapshots")).unwrap().count(), 0);
}
