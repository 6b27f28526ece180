//! The one writer of the log: everything queued since the last sync becomes one synced write.
//!
//! Promises: writes of a group are applied in the order they were queued; a number is reported only when its
//! write is as durable as Raft needs; after a failure nothing more is reported, the node is told once, and
//! every later call answers the fault. Must never report a number whose sync failed, or go on after one did.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::mark::Mark;
use super::row::{self, Own};
use super::{LogDb, Observer, SyncedWrite, Tail};
use crate::error::Fault;
use crate::id::{GroupId, Index, Term};
use crate::inbox::{self, Receiver, Sender};
use crate::storage::db::{Changes, Db, Durability, Family};
use crate::storage::entry::LogWrite;
use crate::time::Clock;

/// When this much is gathered it is written, though more is queued: bounds memory and how long the first one
/// waits.
const WRITE_BYTES_MAX: usize = 16 << 20;

/// Syncs that the mark may lag behind.
const UNMARKED_MAX: u32 = 16;

/// How long the thread sleeps when nothing is queued, before it looks again: it is woken for all that is.
const LONG: Duration = Duration::from_secs(3_600);

/// Files of the write-ahead log that are laid out: the one in use and the next.
const LAID_OUT_FILES: usize = 2;
/// Nothing is laid out unless the disk has this many times as much free: it only saves time later.
const FREE_TIMES_MIN: u64 = 16;
/// They are filled in portions of this size, so that a write never waits long for one.
const PORTION_BYTES: usize = 1 << 20;

/// The thread that writes the log. Stops when dropped, after writing what is queued.
pub struct LogThread {
    queue: LogQueue,
    handle: Option<JoinHandle<Result<(), Fault>>>,
}

/// Takes writes for the log. Copies feed one thread.
#[derive(Clone)]
pub struct LogQueue {
    sender: Sender<Order>,
    db: Arc<Db>,
}

enum Order {
    Write(Vec<LogWrite>),
    LayOut,
    Stop,
}

impl LogThread {
    /// Starts the thread. `on_done` is called on it after each write, with the group and number of all that
    /// is now durable; it must be quick, because the next write waits for it. `on_failure` is called at most
    /// once, when the database failed: the node must stop serving.
    pub fn start(
        log: LogDb,
        on_done: impl FnMut(Vec<(GroupId, u64)>) + Send + 'static,
        on_failure: impl FnOnce(Fault) + Send + 'static,
    ) -> Result<LogThread, Fault> {
        let (sender, receiver) = inbox::new();
        let queue = LogQueue { sender, db: log.db.clone() };
        let LogDb { db, mark, tails, file_bytes, observer } = log;
        let file_portions = file_bytes.div_ceil(PORTION_BYTES);
        let writer = Writer {
            db,
            mark,
            tails,
            value: Vec::new(),
            file_portions,
            portions_left: 0,
            unmarked: 0,
            observer,
            clock: Clock::start(),
        };
        let run = move || {
            let ended = writer.run(receiver, on_done);
            if let Err(fault) = &ended {
                on_failure(fault.clone());
            }
            ended
        };
        let spawned = std::thread::Builder::new().name("log".to_owned()).spawn(run);
        let handle = spawned.map_err(|e| Fault::new(format!("the log thread cannot be started: {e}")))?;
        Ok(LogThread { queue, handle: Some(handle) })
    }

    /// Where to queue writes.
    pub fn queue(&self) -> LogQueue {
        self.queue.clone()
    }

    /// Writes what is queued, flushes the database, so that the next start is quick, and ends the thread.
    pub fn stop(mut self) -> Result<(), Fault> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Fault> {
        let Some(handle) = self.handle.take() else { return Ok(()) };
        // The thread is gone already if the database failed; its own answer says so.
        let _ = self.queue.sender.send(Order::Stop);
        handle.join().unwrap_or_else(|_| Err(Fault::new("the log thread panicked")))
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        // A failure was already told through `on_failure`; nobody is left to tell it to here.
        let _ = self.end();
    }
}

impl LogQueue {
    /// Queues `writes`. How much may be queued is bounded by who queues: a Raft group has a bounded number of
    /// entries under way.
    pub fn write(&self, writes: Vec<LogWrite>) -> Result<(), Fault> {
        if let Some(fault) = self.db.failure() {
            return Err(fault);
        }
        self.sender.send(Order::Write(writes)).map_err(|_| {
            self.db.failure().unwrap_or_else(|| Fault::new("the log is closed: the node is stopping"))
        })
    }

    /// Fills files of the write-ahead log with blanks, while nothing is queued, and retires them: what is
    /// written later overwrites their blocks. A sync then has no file size to record, which halves its time.
    /// Files that were in use come to that by themselves, but not before tens of megabytes were written.
    /// Nothing is done on a disk that is nearly full.
    pub fn lay_out(&self) {
        // A log that is closed has no later writes.
        let _ = self.sender.send(Order::LayOut);
    }
}

struct Writer {
    db: Arc<Db>,
    mark: Mark,
    tails: HashMap<GroupId, Tail>,
    /// The buffer in which each row's value is made.
    value: Vec<u8>,
    /// Portions that fill a file of the write-ahead log.
    file_portions: usize,
    /// Portions still to be written until the files are laid out.
    portions_left: usize,
    /// Syncs since the mark was raised.
    unmarked: u32,
    /// Told of each synced write.
    observer: Observer,
    clock: Clock,
}

/// What one synced write gathers.
struct Gathered<'a> {
    changes: Changes<'a>,
    durability: Durability,
    done: Vec<(GroupId, u64)>,
}

impl Writer {
    fn run(
        mut self,
        queue: Receiver<Order>,
        mut on_done: impl FnMut(Vec<(GroupId, u64)>),
    ) -> Result<(), Fault> {
        let db = self.db.clone();
        let mut open = true;
        let mut orders = Vec::new();
        while open {
            let patience = if self.portions_left > 0 { Duration::ZERO } else { LONG };
            queue.take(&mut orders, usize::MAX, patience);
            if orders.is_empty() && self.portions_left > 0 {
                self.lay_out_portion()?;
            }
            let mut rest = orders.drain(..).peekable();
            while open && rest.peek().is_some() {
                let changes = db.changes(&[Family::DEFAULT])?;
                let mut gathered = Gathered { changes, durability: Durability::Buffered, done: Vec::new() };
                while open
                    && gathered.changes.size_bytes() < WRITE_BYTES_MAX
                    && let Some(order) = rest.next()
                {
                    match order {
                        Order::Write(writes) => self.gather(writes, &mut gathered)?,
                        Order::LayOut => self.begin_laying_out(),
                        Order::Stop => open = false,
                    }
                }
                self.write(gathered, &mut on_done)?;
            }
            // After those who wait were told, and not between syncs that follow each other at once: it would
            // keep all of them waiting.
            if self.unmarked >= UNMARKED_MAX || (self.unmarked > 0 && queue.is_empty()) {
                self.raise_mark()?;
            }
        }
        self.close()
    }

    fn begin_laying_out(&mut self) {
        let portions = LAID_OUT_FILES * self.file_portions;
        let free_bytes_min = (portions * PORTION_BYTES) as u64 * FREE_TIMES_MIN;
        if self.db.free_bytes().is_some_and(|free_bytes| free_bytes >= free_bytes_min) {
            self.portions_left = portions;
        } else {
            tracing::info!(free_bytes_min, "the disk is nearly full: the log's files are not laid out");
        }
    }

    /// Fills a file a little more; goes on to the next when it is full.
    fn lay_out_portion(&mut self) -> Result<(), Fault> {
        self.db.pad_log(PORTION_BYTES)?;
        self.portions_left -= 1;
        if self.portions_left.is_multiple_of(self.file_portions) {
            self.db.flush(&[Family::DEFAULT])?;
        }
        Ok(())
    }

    fn gather(&mut self, writes: Vec<LogWrite>, gathered: &mut Gathered) -> Result<(), Fault> {
        for write in writes {
            if let Err(what) = self.take(&write, gathered) {
                return Err(self.db.fail(Fault::new(format!(
                    "the log of group {} was given {what}: a mistake of this program; nothing of it was \
                     written",
                    write.group
                ))));
            }
            gathered.done.push((write.group, write.number));
        }
        Ok(())
    }

    fn write(
        &mut self,
        gathered: Gathered,
        on_done: &mut impl FnMut(Vec<(GroupId, u64)>),
    ) -> Result<(), Fault> {
        let synced = gathered.durability == Durability::Synced && !gathered.changes.is_empty();
        if !gathered.changes.is_empty() {
            let (bytes, begun_ns) = (gathered.changes.size_bytes(), self.clock.elapsed_ns());
            self.db.write(gathered.changes, gathered.durability)?;
            if synced {
                let took_ns = self.clock.elapsed_ns() - begun_ns;
                (self.observer)(SyncedWrite { bytes, took_ns });
            }
        }
        if !gathered.done.is_empty() {
            on_done(gathered.done);
        }
        self.unmarked += u32::from(synced);
        Ok(())
    }

    fn raise_mark(&mut self) -> Result<(), Fault> {
        self.unmarked = 0;
        self.mark.raise(self.db.sequence()).map_err(|e| self.mark_failed(&e))
    }

    fn mark_failed(&self, error: &std::io::Error) -> Fault {
        self.db.fail(super::mark_fault(self.mark.path(), error))
    }

    fn close(mut self) -> Result<(), Fault> {
        self.db.flush(&[Family::DEFAULT])?;
        self.raise_mark()?;
        self.mark.sync().map_err(|e| self.mark_failed(&e))
    }

    /// Adds one group's write, or says what is wrong with it.
    fn take(&mut self, write: &LogWrite, gathered: &mut Gathered) -> Result<(), String> {
        let group = write.group;
        if write.forget {
            gathered.changes.delete_range(
                Family::DEFAULT,
                &row::entry_key(group, Index(0)),
                &row::group_end(group),
            );
            gathered.durability = Durability::Synced;
            self.tails.remove(&group);
            return Ok(());
        }
        take_into(self.tails.entry(group).or_default(), write, gathered, &mut self.value)
    }
}

fn take_into(
    tail: &mut Tail,
    write: &LogWrite,
    gathered: &mut Gathered,
    value: &mut Vec<u8>,
) -> Result<(), String> {
    if let Some(start) = write.truncate {
        take_start(tail, write.group, start, &mut gathered.changes);
    }
    if !write.entries.is_empty() {
        take_entries(tail, write, &mut gathered.changes, value)?;
        gathered.durability = Durability::Synced;
    }
    if let Some(state) = write.hard_state {
        let key = row::own_key(write.group, Own::HardState);
        gathered.changes.put(Family::DEFAULT, &key, &row::write_hard_state(&key, state));
        // How far the group has committed may lag; whom it voted for may not.
        if tail.promise != (state.term, state.vote) {
            tail.promise = (state.term, state.vote);
            gathered.durability = Durability::Synced;
        }
    }
    if let Some((index, members)) = &write.membership {
        let key = row::own_key(write.group, Own::Membership);
        gathered.changes.put(Family::DEFAULT, &key, &row::write_membership(&key, *index, members));
        gathered.durability = Durability::Synced;
    }
    Ok(())
}

fn take_entries(
    tail: &mut Tail,
    write: &LogWrite,
    changes: &mut Changes,
    value: &mut Vec<u8>,
) -> Result<(), String> {
    let first = write.entries[0].index;
    if first <= tail.start.0 {
        return Err(format!("entry {first}, but its log begins after {}", tail.start.0));
    }
    if first <= tail.last {
        let (from, past) = (row::entry_key(write.group, first), row::group_end(write.group));
        changes.delete_range(Family::DEFAULT, &from, &past);
        tail.last = Index(first.0 - 1);
        tail.terms.retain(|&(run, _)| run < first);
    }
    for entry in &write.entries {
        if entry.index != tail.last.next() {
            return Err(format!("entry {} where {} was due", entry.index, tail.last.next()));
        }
        let key = row::entry_key(write.group, entry.index);
        row::write_entry(&key, entry, value);
        changes.put(Family::DEFAULT, &key, value);
        tail.push(entry.index, entry.term);
    }
    Ok(())
}

/// Drops everything up to `start`. If the log does not hold that very entry, a snapshot has replaced its
/// history: then what comes after `start` is of another history as well, and all of it goes (Raft, section
/// 7).
fn take_start(tail: &mut Tail, group: GroupId, start: (Index, Term), changes: &mut Changes) {
    if start.0 <= tail.start.0 {
        return;
    }
    let first = row::entry_key(group, Index(1));
    if tail.term(start.0) == Some(start.1) {
        changes.delete_range(Family::DEFAULT, &first, &row::entry_key(group, start.0.next()));
        tail.begin_after(start);
    } else {
        changes.delete_range(Family::DEFAULT, &first, &row::group_end(group));
        *tail = Tail { start, last: start.0, promise: tail.promise, terms: Vec::new() };
    }
    let key = row::own_key(group, Own::Start);
    changes.put(Family::DEFAULT, &key, &row::write_start(&key, start));
}
