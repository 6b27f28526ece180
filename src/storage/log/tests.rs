//! The log against a plain model, at restarts, and against damage.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::row::{Own, entry_key, group_end, own_key};
use super::*;
use crate::storage::db::Durability;
use crate::storage::entry::{EntryKind, HardState, LogWrite, Membership};

const DEADLINE: Duration = Duration::from_secs(20);

fn entry(index: u64, term: u64) -> Entry {
    let data = Bytes::from(format!("entry {index} of term {term}"));
    Entry { index: Index(index), term: Term(term), kind: EntryKind::Batch, data }
}

fn append(group: u64, number: u64, indexes: std::ops::RangeInclusive<u64>, term: u64) -> LogWrite {
    let entries = indexes.map(|index| entry(index, term)).collect();
    LogWrite { group: GroupId(group), number, entries, ..LogWrite::default() }
}

/// Opens the log, writes, waits for the last number, stops.
fn write_all(path: &Path, writes: Vec<LogWrite>) {
    let (log, _) = LogDb::open(path).unwrap();
    let (done, reports) = mpsc::channel();
    let thread =
        LogThread::start(log, move |pairs| done.send(pairs).unwrap(), |fault| panic!("{fault}")).unwrap();
    let mut awaited: Vec<_> = writes.iter().map(|write| (write.group, write.number)).collect();
    for write in writes {
        thread.queue().write(vec![write]).unwrap();
    }
    while !awaited.is_empty() {
        for pair in reports.recv_timeout(DEADLINE).unwrap() {
            assert_eq!(pair, awaited.remove(0), "reported in the order of the writes");
        }
    }
    thread.stop().unwrap();
}

fn read_all(path: &Path) -> BTreeMap<GroupId, GroupLog> {
    LogDb::open(path).unwrap().1
}

fn damage_of(path: &Path) -> String {
    match LogDb::open(path).map(|(_, groups)| groups) {
        Err(Error::Damaged(what)) => what,
        other => panic!("damage was put in, and the log opened with {other:?}"),
    }
}

#[test]
fn what_was_reported_is_there_at_the_next_open() {
    let place = tempfile::tempdir().unwrap();
    let state = HardState { term: Term(2), vote: 5, commit: Index(3) };
    let members = Membership { voters: vec![5, 6], learners: vec![7], ..Membership::default() };
    let mut last = append(1, 3, 4..=4, 2);
    last.hard_state = Some(state);
    last.membership = Some((Index(2), members.clone()));
    write_all(place.path(), vec![append(1, 1, 1..=3, 1), append(9, 2, 1..=1, 1), last]);
    let groups = read_all(place.path());
    let first = GroupLog {
        start: (Index(0), Term(0)),
        entries: vec![entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 2)],
        hard_state: state,
        membership: (Index(2), members),
    };
    let second = GroupLog { entries: vec![entry(1, 1)], ..GroupLog::default() };
    assert_eq!(groups, BTreeMap::from([(GroupId(1), first), (GroupId(9), second)]));
}

#[test]
fn new_entries_replace_the_old_end() {
    let place = tempfile::tempdir().unwrap();
    write_all(place.path(), vec![append(1, 1, 1..=9, 1), append(1, 2, 4..=5, 2), append(1, 3, 6..=6, 3)]);
    let expected = [entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 2), entry(5, 2), entry(6, 3)];
    assert_eq!(read_all(place.path())[&GroupId(1)].entries, expected);
    // Also after a restart, when the thread knows the old end only from what it read.
    write_all(place.path(), vec![append(1, 1, 2..=2, 4)]);
    assert_eq!(read_all(place.path())[&GroupId(1)].entries, [entry(1, 1), entry(2, 4)]);
}

fn truncation(group: u64, number: u64, index: u64, term: u64) -> LogWrite {
    let truncate = Some((Index(index), Term(term)));
    LogWrite { group: GroupId(group), number, truncate, ..LogWrite::default() }
}

#[test]
fn truncation_drops_the_beginning_and_keeps_its_term() {
    let place = tempfile::tempdir().unwrap();
    write_all(place.path(), vec![append(1, 1, 1..=9, 1), append(2, 2, 1..=2, 1), truncation(1, 3, 7, 1)]);
    let groups = read_all(place.path());
    assert_eq!(groups[&GroupId(1)].start, (Index(7), Term(1)));
    assert_eq!(groups[&GroupId(1)].entries, [entry(8, 1), entry(9, 1)]);
    assert_eq!(groups[&GroupId(2)].entries, [entry(1, 1), entry(2, 1)], "the neighbour is left alone");
}

#[test]
fn a_snapshot_of_another_history_drops_the_whole_log() {
    let place = tempfile::tempdir().unwrap();
    // Entry 5 is of term 1, the snapshot says term 2: what follows entry 5 here was never committed.
    write_all(place.path(), vec![append(1, 1, 1..=9, 1), truncation(1, 2, 5, 2), append(1, 3, 6..=6, 2)]);
    let log = &read_all(place.path())[&GroupId(1)];
    assert_eq!((log.start, &log.entries[..]), ((Index(5), Term(2)), &[entry(6, 2)][..]));
    // And one past the end.
    write_all(place.path(), vec![truncation(1, 1, 100, 3), append(1, 2, 101..=102, 3)]);
    let log = &read_all(place.path())[&GroupId(1)];
    assert_eq!((log.start, &log.entries[..]), ((Index(100), Term(3)), &[entry(101, 3), entry(102, 3)][..]));
}

#[test]
fn a_forgotten_group_is_gone_and_its_neighbours_stay() {
    let place = tempfile::tempdir().unwrap();
    let forget = LogWrite { group: GroupId(2), number: 9, forget: true, ..LogWrite::default() };
    let writes = vec![append(1, 1, 1..=2, 1), append(2, 2, 1..=2, 1), append(3, 3, 1..=2, 1), forget];
    write_all(place.path(), writes);
    assert_eq!(read_all(place.path()).into_keys().collect::<Vec<_>>(), [GroupId(1), GroupId(3)]);
}

#[test]
fn a_gap_is_refused_stops_the_log_and_is_told_once() {
    let place = tempfile::tempdir().unwrap();
    let (log, _) = LogDb::open(place.path()).unwrap();
    let (told, faults) = mpsc::channel();
    let (done, reports) = mpsc::channel();
    let on_failure = move |fault: Fault| told.send(fault.to_string()).unwrap();
    let thread = LogThread::start(log, move |pairs| done.send(pairs).unwrap(), on_failure).unwrap();
    thread.queue().write(vec![append(1, 1, 1..=2, 1)]).unwrap();
    assert_eq!(reports.recv_timeout(DEADLINE).unwrap(), [(GroupId(1), 1)]);
    thread.queue().write(vec![append(1, 2, 4..=4, 1)]).unwrap();
    let fault = faults.recv_timeout(DEADLINE).unwrap();
    assert!(fault.contains("group 1") && fault.contains("entry 4 where 3 was due"), "{fault}");
    let refused = thread.queue().write(vec![append(1, 3, 3..=3, 1)]).unwrap_err().to_string();
    assert_eq!(refused, fault);
    assert_eq!(thread.stop().unwrap_err().to_string(), fault);
    assert!(faults.recv().is_err(), "told once");
    assert!(reports.recv().is_err(), "nothing more was reported");
}

#[test]
fn many_writers_share_syncs_and_all_are_reported() {
    let place = tempfile::tempdir().unwrap();
    let (log, _) = LogDb::open(place.path()).unwrap();
    let (done, reports) = mpsc::channel();
    let thread =
        LogThread::start(log, move |pairs| done.send(pairs).unwrap(), |fault| panic!("{fault}")).unwrap();
    std::thread::scope(|scope| {
        for group in 1..=8 {
            let queue = thread.queue();
            scope.spawn(move || {
                for index in 1..=100 {
                    queue.write(vec![append(group, index, index..=index, 1)]).unwrap();
                }
            });
        }
    });
    let mut next = BTreeMap::<GroupId, u64>::new();
    while next.values().sum::<u64>() < 800 {
        for (group, number) in reports.recv_timeout(DEADLINE).unwrap() {
            let last = next.entry(group).or_default();
            assert_eq!(number, *last + 1);
            *last = number;
        }
    }
    thread.stop().unwrap();
    assert!(read_all(place.path()).values().all(|log| log.entries.len() == 100));
}

#[test]
fn old_entries_are_read_in_portions() {
    let place = tempfile::tempdir().unwrap();
    write_all(place.path(), vec![append(1, 1, 1..=9, 1), append(2, 2, 1..=9, 1), truncation(1, 3, 2, 1)]);
    let (log, _) = LogDb::open(place.path()).unwrap();
    let read = |from, to, bytes| {
        let entries = log.reader().entries(GroupId(1), Index(from), Index(to), bytes).unwrap();
        entries.iter().map(|entry| entry.index.0).collect::<Vec<_>>()
    };
    assert_eq!(read(3, 6, 1 << 20), [3, 4, 5]);
    assert_eq!(read(8, 100, 1 << 20), [8, 9]);
    assert_eq!(read(3, 9, 40), [3, 4], "18 bytes each");
    assert_eq!(read(3, 9, 0), [3], "one at least");
    assert_eq!(read(10, 20, 1 << 20), [0; 0]);
    assert_eq!(read(0, 5, 1 << 20), [3, 4], "the log was cut up to entry 2");
    assert_eq!(log.db.failure().map(|fault| fault.to_string()), None);
}

/// Flips one bit in every row, one after another, below the seal and above RocksDB's own checksums.
#[test]
fn a_row_that_changed_is_named_by_group_and_index() {
    let place = tempfile::tempdir().unwrap();
    let mut write = append(7, 1, 1..=2, 1);
    write.hard_state = Some(HardState { term: Term(1), vote: 1, commit: Index(1) });
    write.membership = Some((Index(1), Membership { voters: vec![1], ..Membership::default() }));
    write_all(
        place.path(),
        vec![append(7, 0, 1..=1, 1), truncation(7, 0, 1, 1), append(7, 1, 2..=3, 1), {
            LogWrite { entries: Vec::new(), ..write }
        }],
    );
    let group = GroupId(7);
    let rows: [(&[u8], &str); 4] = [
        (&entry_key(group, Index(3)), "entry 3 of group 7"),
        (&own_key(group, Own::Start), "the start of group 7"),
        (&own_key(group, Own::HardState), "the term and vote of group 7"),
        (&own_key(group, Own::Membership), "the membership of group 7"),
    ];
    for (key, name) in rows {
        let db = Db::open_log(place.path(), LogSizes::default().of_database()).unwrap();
        let whole = db.get(Family::DEFAULT, key).unwrap().expect(name);
        put(&db, key, &flip_last(&whole));
        drop(db);
        let what = damage_of(place.path());
        assert!(what.contains(name) && what.contains("not as it was written"), "{what}");
        put(&Db::open_log(place.path(), LogSizes::default().of_database()).unwrap(), key, &whole);
    }
    assert_eq!(read_all(place.path())[&group].entries, [entry(2, 1), entry(3, 1)]);
}

#[test]
fn a_missing_entry_is_named_by_group_and_index() {
    let place = tempfile::tempdir().unwrap();
    write_all(place.path(), vec![append(7, 1, 1..=5, 1)]);
    let db = Db::open_log(place.path(), LogSizes::default().of_database()).unwrap();
    let mut changes = db.changes(&[Family::DEFAULT]).unwrap();
    changes.delete(Family::DEFAULT, &entry_key(GroupId(7), Index(3)));
    db.write(changes, Durability::Synced).unwrap();
    drop(db);
    let what = damage_of(place.path());
    assert!(what.contains("entry 3 of group 7 is missing"), "{what}");
}

#[test]
fn a_flipped_byte_in_a_block_is_told_with_the_place_before_it() {
    let place = tempfile::tempdir().unwrap();
    // Stopping flushes, so the entries are in a file. Many blocks: the first ones still read.
    write_all(place.path(), vec![append(3, 1, 1..=5_000, 1)]);
    let table = files(place.path(), "sst").pop().expect("the flush made a file");
    let mut bytes = std::fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&table, bytes).unwrap();
    let what = damage_of(place.path());
    assert!(what.contains("what follows entry ") && what.contains("of group 3"), "{what}");
}

/// Writes entries one after another to `groups` groups, and vanishes.
fn write_and_vanish(path: &Path, groups: u64, entries: u64) {
    vanish_after(path, |queue, reports| {
        for index in 1..=entries {
            let writes = (1..=groups).map(|group| append(group, index, index..=index, 1)).collect();
            queue.write(writes).unwrap();
            reports.recv_timeout(DEADLINE).unwrap();
        }
    });
}

/// Writes, and then leaves everything as a killed process would: nothing flushed, all in the write-ahead log.
fn vanish_after(path: &Path, work: impl FnOnce(LogQueue, mpsc::Receiver<Vec<(GroupId, u64)>>)) {
    let (log, _) = LogDb::open(path).unwrap();
    let db = log.db.clone();
    let (done, reports) = mpsc::channel();
    // After the work nobody waits for reports.
    let thread =
        LogThread::start(log, move |pairs| drop(done.send(pairs)), |fault| panic!("{fault}")).unwrap();
    work(thread.queue(), reports);
    // The mark follows what was reported.
    let marked = || Mark::read(&path.join(MARK_FILE)).unwrap() == Reading::UpTo(db.sequence());
    let due = Instant::now() + DEADLINE;
    while !marked() {
        assert!(Instant::now() < due, "the mark does not follow");
        std::thread::yield_now();
    }
    drop(db);
    let copy = tempfile::tempdir().unwrap();
    copy_directory(path, copy.path());
    thread.stop().unwrap();
    std::fs::remove_dir_all(path).unwrap();
    copy_directory(copy.path(), path);
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The files of one kind, the largest last.
fn files(path: &Path, extension: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort_by_key(|path| std::fs::metadata(path).unwrap().len());
    files
}

#[test]
fn a_flipped_byte_in_the_write_ahead_log_is_told_with_group_and_index_and_changes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("log");
    write_and_vanish(&path, 2, 300);
    let wal = files(&path, "log").pop().expect("there is a write-ahead log");
    let mut bytes = std::fs::read(&wal).unwrap();
    let place_of = |what: &[u8]| bytes.windows(what.len()).position(|window| window == what).unwrap();
    let at = place_of(b"entry 150 of term 1");
    bytes[at] ^= 1;
    std::fs::write(&wal, &bytes).unwrap();
    let what = damage_of(&path);
    assert!(what.contains("group 1 lacks index 150") && what.contains("group 2 lacks index 150"), "{what}");
    assert_eq!(damage_of(&path), what, "opening again finds the same: nothing was changed");
}

#[test]
fn a_torn_end_is_dropped_only_behind_what_was_acknowledged() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("log");
    write_and_vanish(&path, 1, 50);
    let wal = files(&path, "log").pop().expect("there is a write-ahead log");
    let whole = std::fs::read(&wal).unwrap();
    // A write that was under way: half a record, then nothing; or a record whose middle never reached the
    // disk.
    for torn in [&whole[100..130], &[0x5a; 4_000][..], &[0; 4_000][..]] {
        std::fs::write(&wal, [&whole, torn].concat()).unwrap();
        let copy = place.path().join("copy");
        copy_directory(&path, &copy);
        assert_eq!(read_all(&copy)[&GroupId(1)].entries.len(), 50);
        std::fs::remove_dir_all(&copy).unwrap();
    }
    // The same tear within the last acknowledged record is a loss.
    std::fs::write(&wal, &whole[..whole.len() - 10]).unwrap();
    let what = damage_of(&path);
    assert!(what.contains("group 1 ends at index 49"), "{what}");
}

#[test]
fn a_missing_write_ahead_log_is_told() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("log");
    write_and_vanish(&path, 1, 50);
    for wal in files(&path, "log") {
        std::fs::remove_file(wal).unwrap();
    }
    let what = damage_of(&path);
    assert!(what.contains("were acknowledged"), "{what}");
}

#[test]
fn a_log_of_which_only_the_mark_is_left_does_not_begin_anew() {
    let place = tempfile::tempdir().unwrap();
    write_all(place.path(), vec![append(1, 1, 1..=3, 1)]);
    for entry in std::fs::read_dir(place.path()).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with(MARK_FILE) {
            std::fs::remove_file(path).unwrap();
        }
    }
    let what = damage_of(place.path());
    assert!(what.contains("is gone") && what.contains("3 changes"), "{what}");
}

/// One flipped byte at many places of every file, some entries in a table and some in the write-ahead log:
/// the log opens with exactly what was acknowledged, or says that it is damaged.
#[test]
fn a_flipped_byte_anywhere_is_told_or_does_no_harm() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("log");
    write_all(&path, vec![append(1, 1, 1..=60, 1), append(2, 2, 1..=60, 1)]);
    let more = |queue: LogQueue, reports: mpsc::Receiver<_>| {
        for index in 61..=100 {
            queue
                .write(vec![append(1, index, index..=index, 1), append(2, index, index..=index, 1)])
                .unwrap();
            let _: Vec<(GroupId, u64)> = reports.recv_timeout(DEADLINE).unwrap();
        }
    };
    vanish_after(&path, more);
    let whole = read_all_of_copy(&path, place.path()).unwrap();
    assert_eq!(whole.values().map(|log| log.entries.len()).collect::<Vec<_>>(), [100, 100]);
    let (mut told, mut flips) = (0, 0);
    for entry in std::fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        let bytes = std::fs::read(&file).unwrap();
        for at in (0..12).map(|part| bytes.len() * part / 12).filter(|&at| at < bytes.len()) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x04;
            std::fs::write(&file, flipped).unwrap();
            match read_all_of_copy(&path, place.path()) {
                Ok(groups) => assert_eq!(groups, whole, "byte {at} of {}", file.display()),
                Err(Error::Damaged(_)) => told += 1,
                Err(e) => panic!("byte {at} of {}: {e}", file.display()),
            }
            flips += 1;
        }
        std::fs::write(&file, bytes).unwrap();
    }
    assert!(told >= 24, "only {told} of {flips} flips were told");
}

fn read_all_of_copy(path: &Path, place: &Path) -> Result<BTreeMap<GroupId, GroupLog>, Error> {
    let copy = place.join("copy");
    copy_directory(path, &copy);
    let read = LogDb::open(&copy).map(|(_, groups)| groups);
    std::fs::remove_dir_all(&copy).unwrap();
    read
}

fn put(db: &Db, key: &[u8], value: &[u8]) {
    let mut changes = db.changes(&[Family::DEFAULT]).unwrap();
    changes.put(Family::DEFAULT, key, value);
    db.write(changes, Durability::Synced).unwrap();
}

fn flip_last(value: &[u8]) -> Vec<u8> {
    let mut value = value.to_vec();
    *value.last_mut().unwrap() ^= 0x40;
    value
}

/// What a group's log should hold, by the plainest means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    start: (u64, u64),
    terms: Vec<u64>,
}

impl Model {
    fn last(&self) -> u64 {
        self.start.0 + self.terms.len() as u64
    }

    fn append(&mut self, first: u64, count: u64, term: u64) {
        self.terms.truncate((first - self.start.0 - 1) as usize);
        self.terms.extend(std::iter::repeat_n(term, count as usize));
    }

    fn truncate(&mut self, index: u64, term: u64) {
        if index <= self.start.0 {
            return;
        }
        let at = (index - self.start.0 - 1) as usize;
        if self.terms.get(at) == Some(&term) {
            self.terms.drain(..=at);
        } else {
            self.terms.clear();
        }
        self.start = (index, term);
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Append this many, this far back from the end, in a term this much later.
    Append {
        back: u64,
        count: u64,
        terms: u64,
    },
    /// Truncate this far from the start; with the term kept there, or another.
    Truncate {
        on: u64,
        same: bool,
    },
    Forget,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        6 => (0..4u64, 1..5u64, 0..2u64).prop_map(|(back, count, terms)| Step::Append { back, count, terms }),
        2 => (0..8u64, any::<bool>()).prop_map(|(on, same)| Step::Truncate { on, same }),
        1 => Just(Step::Forget),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec((1..4u64, step), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_log_does_what_a_plain_model_does(steps in steps()) {
        let place = tempfile::tempdir().unwrap();
        let mut models = BTreeMap::<u64, Model>::new();
        let mut term = 1;
        let mut queued = Vec::new();
        for (group, step) in steps {
            let model = models.entry(group).or_default();
            match step {
                Step::Append { back, count, terms } => {
                    term += terms;
                    let first = (model.last() + 1).saturating_sub(back).max(model.start.0 + 1);
                    model.append(first, count, term);
                    queued.push(append(group, 0, first..=first + count - 1, term));
                }
                Step::Truncate { on, same } => {
                    let index = model.start.0 + on;
                    let position = index.checked_sub(model.start.0 + 1);
                    let kept = position.and_then(|at| model.terms.get(at as usize));
                    let term = if same { kept.copied().unwrap_or(term) } else { term + 1 };
                    model.truncate(index, term);
                    queued.push(truncation(group, 0, index, term));
                }
                Step::Forget => {
                    models.remove(&group);
                    queued.push(LogWrite { group: GroupId(group), forget: true, ..LogWrite::default() });
                }
                Step::Restart => {
                    write_all(place.path(), std::mem::take(&mut queued));
                    check(place.path(), &models);
                }
            }
        }
        write_all(place.path(), queued);
        check(place.path(), &models);
    }
}

fn check(path: &Path, models: &BTreeMap<u64, Model>) {
    let (log, groups) = LogDb::open(path).unwrap();
    for (&group, model) in models.iter().filter(|(_, model)| **model != Model::default()) {
        let found = &groups[&GroupId(group)];
        let terms: Vec<u64> = found.entries.iter().map(|entry| entry.term.0).collect();
        assert_eq!((found.start.0.0, found.start.1.0, &terms), (model.start.0, model.start.1, &model.terms));
        assert_eq!(log.tails[&GroupId(group)].last.0, model.last());
    }
    assert!(groups.keys().all(|group| models.contains_key(&group.0)));
    assert!(group_end(GroupId(3)) > entry_key(GroupId(3), Index(9)).to_vec());
}
