//! The log database: every group's entries and Raft state, synced before anybody is told.
//!
//! Promises: [`LogDb::open`] returns everything that was ever reported done and not dropped since, or an
//! error that names what is damaged; a write that was under way when the power failed is wholly there or not
//! at all, with all of a group's later writes gone as well. Must never drop an entry that was reported
//! durable, nor start over a log that lost some.
//!
//! # Layout
//! - [`row`]: keys and sealed values
//! - [`mark`]: how far the log was acknowledged
//! - [`thread`]: the one writer

mod mark;
mod row;
#[cfg(test)]
mod tests;
mod thread;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use self::mark::{Mark, Reading};
use self::row::{Key, Own};
use super::db::{Db, Family, Preview, Scan, Sizes};
use super::directory::Hold;
use super::entry::{Entry, GroupLog};
use crate::error::{Error, Fault, REPAIR};
use crate::id::{GroupId, Index, Term};
use crate::machine::view::Direction;

pub use self::row::MembershipRow;
pub use self::thread::{LogQueue, LogThread};

/// The log database, open, with what its writer must know of each group.
pub struct LogDb {
    db: Arc<Db>,
    mark: Mark,
    tails: HashMap<GroupId, Tail>,
    /// What one file of the write-ahead log grows to.
    file_bytes: usize,
    observer: Observer,
}

/// A write to the log, and its sync.
#[derive(Clone, Copy, Debug)]
pub struct SyncedWrite {
    /// Its size.
    pub bytes: usize,
    /// How long both took.
    pub took_ns: u64,
}

type Observer = Box<dyn FnMut(SyncedWrite) + Send>;

/// The shape of one group's log: enough to write to it without reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tail {
    /// The entry before the first one kept.
    start: (Index, Term),
    /// The last entry; the start if none is kept.
    last: Index,
    /// Where each run of entries of one term begins, in order. Few: one for each election.
    terms: Vec<(Index, Term)>,
    /// Term and vote as last written: whoever changes them must be synced.
    promise: (Term, u64),
}

/// The log's file beside RocksDB's own; no name of theirs has this form.
const MARK_FILE: &str = "ACKNOWLEDGED";

/// How much memory and disk the log takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSizes {
    /// Entries in memory before they go to files, and about as much in each file of the write-ahead log.
    /// Taken as it fills. Entries that are dropped within that much of the log are never written a second
    /// time.
    pub write_buffer_bytes: usize,
}

impl Default for LogSizes {
    fn default() -> LogSizes {
        LogSizes { write_buffer_bytes: 64 << 20 }
    }
}

impl LogSizes {
    fn of_database(self) -> Sizes {
        let LogSizes { write_buffer_bytes } = self;
        Sizes { write_buffer_bytes, block_cache_bytes: 4 << 20, open_files_max: 256 }
    }
}

impl LogDb {
    /// Opens the log in `directory`, made if it is not there, and reads all of it.
    ///
    /// # Errors
    /// `Damaged` names the group and index of what does not read as it was written.
    pub fn open(directory: &Path) -> Result<(LogDb, BTreeMap<GroupId, GroupLog>), Error> {
        LogDb::open_sized(directory, LogSizes::default())
    }

    /// As [`open`](Self::open), with sizes of the caller's choice.
    pub fn open_sized(
        directory: &Path,
        sizes: LogSizes,
    ) -> Result<(LogDb, BTreeMap<GroupId, GroupLog>), Error> {
        let mark_path = directory.join(MARK_FILE);
        let sizes = sizes.of_database();
        check_mark(directory, &mark_path, sizes)?;
        let db = Arc::new(Db::open_log(directory, sizes)?);
        let groups = read_groups(&db)?;
        let mark = Mark::open(&mark_path, db.sequence()).map_err(|e| mark_fault(&mark_path, &e))?;
        let tails = groups.iter().map(|(&group, log)| (group, Tail::of(log))).collect();
        let file_bytes = sizes.write_buffer_bytes / 2;
        Ok((LogDb { db, mark, tails, file_bytes, observer: Box::new(|_| ()) }, groups))
    }

    /// Keeps the data directory this process's until the last reader is gone.
    pub fn hold(&self, hold: Hold) {
        self.db.hold(hold);
    }

    /// Has each synced write told to `observer`, on the log's thread: it must be quick.
    pub fn observed_by(mut self, observer: impl FnMut(SyncedWrite) + Send + 'static) -> LogDb {
        self.observer = Box::new(observer);
        self
    }

    /// Reads entries later, for followers so far behind that the entries have left memory.
    pub fn reader(&self) -> LogReader {
        LogReader { db: self.db.clone() }
    }
}

/// Reads entries that left memory. Copies share one database.
#[derive(Clone)]
pub struct LogReader {
    db: Arc<Db>,
}

impl LogReader {
    /// The entries of `group` from `from` up to, not including, `to`: as many as fit in `bytes_max`, but at
    /// least one if there is one. Without gaps, but the first may be a later one than `from`, where the log
    /// was cut, and the last an earlier one than asked for, where it ends.
    pub fn entries(
        &self,
        group: GroupId,
        from: Index,
        to: Index,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, Fault> {
        let (start, end) = (row::entry_key(group, Index(from.0.max(1))), row::entry_key(group, to));
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut damaged = None;
        self.db.scan(Scan::forward(&start, &end), &mut |key, value| {
            let due = entries.last().map(|last| last.index.next());
            let entry = match Key::read(key) {
                Some(Key::Entry(_, index)) if due.is_none_or(|due| due == index) => {
                    row::read_entry(key, index, value)
                }
                _ => None,
            };
            let Some(entry) = entry else {
                damaged = Some(due.unwrap_or(from));
                return ControlFlow::Break(());
            };
            bytes += entry.data.len();
            if bytes > bytes_max && !entries.is_empty() {
                return ControlFlow::Break(());
            }
            entries.push(entry);
            ControlFlow::Continue(())
        })?;
        match damaged {
            None => Ok(entries),
            Some(index) => Err(self.db.fail(Fault::new(format!(
                "{} is damaged: entry {index} of group {group}, or the first after it, is missing or not as \
                 it was written",
                self.db.place()
            )))),
        }
    }
}

impl Tail {
    fn of(log: &GroupLog) -> Tail {
        let mut tail = Tail { start: log.start, last: log.start.0, ..Tail::default() };
        for entry in &log.entries {
            tail.push(entry.index, entry.term);
        }
        tail.promise = (log.hard_state.term, log.hard_state.vote);
        tail
    }

    /// The log got an entry; what it held from there on is gone.
    fn push(&mut self, index: Index, term: Term) {
        if index <= self.last {
            self.terms.retain(|&(first, _)| first < index);
        }
        if self.terms.last().is_none_or(|&(_, last)| last != term) {
            self.terms.push((index, term));
        }
        self.last = index;
    }

    /// The term of the entry at `index`, if it is kept.
    fn term(&self, index: Index) -> Option<Term> {
        if index <= self.start.0 || index > self.last {
            return None;
        }
        self.terms.iter().rev().find(|&&(first, _)| first <= index).map(|&(_, term)| term)
    }

    /// Everything up to and including `start` is gone.
    fn begin_after(&mut self, start: (Index, Term)) {
        let next = self.term(start.0.next());
        self.terms.retain(|&(first, _)| first > start.0.next());
        if let Some(term) = next {
            self.terms.insert(0, (start.0.next(), term));
        }
        self.start = start;
        self.last = self.last.max(start.0);
    }
}

/// Compares the log with its mark, before anything is changed.
fn check_mark(directory: &Path, mark_path: &Path, sizes: Sizes) -> Result<(), Error> {
    let acknowledged = match Mark::read(mark_path).map_err(|e| mark_fault(mark_path, &e))? {
        Reading::Nothing => return Ok(()),
        Reading::UpTo(sequence) => sequence,
        Reading::Damaged => {
            return Err(Error::Damaged(format!(
                "{} is damaged. It tells whether the log has lost anything that was acknowledged; remove it \
                 to start without that check",
                mark_path.display()
            )));
        }
    };
    if !directory.join("CURRENT").is_file() {
        return Err(Error::Damaged(format!(
            "the log database in {} is gone: it held {acknowledged} changes that were acknowledged, and only \
             its mark is left. {REPAIR}",
            directory.display()
        )));
    }
    let there = Preview::of_log(directory, sizes, true)?.sequence();
    if there >= acknowledged {
        return Ok(());
    }
    Err(Error::Damaged(format!(
        "the log database in {} is damaged: it held {acknowledged} changes that were acknowledged, of which \
         only the first {there} can be read; {}. {REPAIR}. Nothing was changed",
        directory.display(),
        first_loss(directory, sizes)?
    )))
}

/// Says which entries a damaged write-ahead log lost, as far as what comes after the damage shows it.
fn first_loss(directory: &Path, sizes: Sizes) -> Result<String, Error> {
    let (whole, rest) = (last_entries(directory, sizes, true)?, last_entries(directory, sizes, false)?);
    let mut lost = Vec::new();
    for (group, (last, hole)) in rest {
        let read = whole.get(&group).map(|&(last, _)| last).unwrap_or_default();
        if let Some(hole) = hole {
            lost.push(format!("group {group} lacks index {hole}"));
        } else if last > read {
            lost.push(format!("group {group} ends at index {read}"));
        }
    }
    if lost.is_empty() {
        lost = whole.iter().map(|(group, (last, _))| format!("group {group} ends at index {last}")).collect();
    }
    const TOLD_MAX: usize = 8;
    let more = lost.len().saturating_sub(TOLD_MAX);
    lost.truncate(TOLD_MAX);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    Ok(format!("{}{more}", lost.join(", ")))
}

/// For each group the last index and the first hole in its entries.
fn last_entries(
    directory: &Path,
    sizes: Sizes,
    whole: bool,
) -> Result<BTreeMap<GroupId, (Index, Option<Index>)>, Error> {
    let mut groups = BTreeMap::<GroupId, (Index, Option<Index>)>::new();
    Preview::of_log(directory, sizes, whole)?.keys(&mut |key| {
        let Some(Key::Entry(group, index)) = Key::read(key) else { return };
        let (last, hole) = groups.entry(group).or_insert((Index(index.0 - 1), None));
        if index != last.next() && hole.is_none() {
            *hole = Some(last.next());
        }
        *last = index;
    });
    Ok(groups)
}

/// Reads everything, checking each row.
fn read_groups(db: &Db) -> Result<BTreeMap<GroupId, GroupLog>, Error> {
    let mut reading = ReadingLog::default();
    let end = [0xff; 18];
    let scanned = db.scan(Scan { cache: false, ..Scan::forward(&[], &end) }, &mut |key, value| match reading
        .take(key, value)
    {
        Ok(()) => ControlFlow::Continue(()),
        Err(what) => {
            reading.damaged = Some(what);
            ControlFlow::Break(())
        }
    });
    let damage = match (scanned, reading.damaged) {
        (Ok(()), None) => return Ok(reading.groups),
        (Ok(()), Some(what)) => what,
        (Err(fault), _) => match reading.last {
            Some(last) => format!("what follows {last} cannot be read ({fault})"),
            None => format!("its first row cannot be read ({fault})"),
        },
    };
    Err(Error::Damaged(format!("{} is damaged: {damage}. {REPAIR}", db.place())))
}

/// What was read so far.
#[derive(Default)]
struct ReadingLog {
    groups: BTreeMap<GroupId, GroupLog>,
    last: Option<Key>,
    damaged: Option<String>,
}

impl ReadingLog {
    /// Takes the next row, or says what is wrong with it.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let Some(what) = Key::read(key) else {
            return Err(format!("it has a row with a key that is none of ours, {}", hex::encode(key)));
        };
        self.last = Some(what);
        let changed = || format!("{what} is not as it was written");
        match what {
            Key::Own(group, Own::Start) => {
                self.group(group).start = row::read_start(key, value).ok_or_else(changed)?;
            }
            Key::Own(group, Own::HardState) => {
                self.group(group).hard_state = row::read_hard_state(key, value).ok_or_else(changed)?;
            }
            Key::Own(group, Own::Membership) => {
                self.group(group).membership = row::read_membership(key, value).ok_or_else(changed)?;
            }
            Key::Entry(group, index) => {
                let log = self.group(group);
                let due = log.entries.last().map_or(log.start.0, |entry| entry.index).next();
                if index != due {
                    return Err(format!("entry {due} of group {group} is missing, the next one is {index}"));
                }
                log.entries.push(row::read_entry(key, index, value).ok_or_else(changed)?);
            }
        }
        Ok(())
    }

    fn group(&mut self, group: GroupId) -> &mut GroupLog {
        self.groups.entry(group).or_default()
    }
}

impl<'a> Scan<'a> {
    /// The rows of the log from `start` up to, not including, `end`, in order.
    fn forward(start: &'a [u8], end: &'a [u8]) -> Scan<'a> {
        Scan { family: Family::DEFAULT, start, end, direction: Direction::Forward, cache: true }
    }
}

fn mark_fault(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(format!("{} cannot be read or written: {error}", path.display()))
}
