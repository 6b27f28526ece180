//! The state database: the tables of all machines on this node, as views at one point of their history.
//!
//! Promises: a machine's rows and its head are written together and come back together: after a crash every
//! machine stands at the head it has, with exactly the rows of that head, though perhaps an earlier one than
//! before, which the log replays; a view never leaves its machine; a view at a point does not change. Must
//! never answer from a damaged block, and must never call a head durable that could still be lost.
//!
//! # How
//! Writes go to memory only (no write-ahead log) and to files by flushes that take all column families as of
//! one moment, in the order of the writes: so what survives a crash is what was there after some write.
//!
//! # Keys
//! The group (8 bytes, big-endian), then the table's own key.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::db::{Changes, Db, Durability, Family, Pinned, Scan, Sizes};
use crate::error::{Error, Fault, REPAIR};
use crate::id::{GroupId, Index};
use crate::machine::batch::Head;
use crate::machine::view::{Direction, Span, Table, View, Visitor};

/// The column families, in the order of `Table::ALL`. Part of the stored format.
const FAMILIES: [Family; 4] = [Family("head"), Family("store"), Family("events"), Family("leases")];

/// A row in `Table::Head` that is there only while a machine's rows are being replaced as a whole.
const REPLACING_KEY: &[u8] = b"replacing";

/// A row in `Table::Head` that is there while a machine's state here is not to be relied on: why. It goes
/// with the rows, when they are replaced or dropped.
const HALTED_KEY: &[u8] = b"halted";

/// Rows of a replacement are written in portions of about this size.
const PORTION_BYTES: usize = 4 << 20;

/// How much memory the state database may take, and how many files it keeps open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSizes {
    /// Rows in memory before they go to files, for all machines together. Taken as it fills.
    pub write_buffer_bytes: usize,
    /// Blocks of files kept in memory. Taken as it fills.
    pub block_cache_bytes: usize,
    /// Files kept open.
    pub open_files_max: i32,
}

impl Default for StateSizes {
    fn default() -> StateSizes {
        StateSizes { write_buffer_bytes: 32 << 20, block_cache_bytes: 32 << 20, open_files_max: 512 }
    }
}

/// The state of all machines on this node.
pub struct StateDb {
    db: Arc<Db>,
    progress: Mutex<Progress>,
    /// Held while a flush runs: the heads it makes durable are noted in the order of the flushes.
    flushing: Mutex<()>,
}

/// How far each machine is.
#[derive(Default)]
struct Progress {
    /// In memory.
    written: BTreeMap<GroupId, Index>,
    /// In files, as far as is known.
    durable: BTreeMap<GroupId, Index>,
}

/// All machines at one moment. Costs little to make; while it lives, what it shows is kept on disk.
#[derive(Clone)]
pub struct StateSnapshot {
    pinned: Arc<Pinned>,
}

/// Called with each row of a machine; an error ends the visit.
pub type RowVisitor<'a> = dyn FnMut(Table, &[u8], &[u8]) -> Result<(), Fault> + 'a;

/// What the opened database holds.
#[derive(Debug, Default)]
pub struct Opened {
    /// Where each machine stands; all of it is durable.
    pub heads: BTreeMap<GroupId, Head>,
    /// Machines whose rows were being replaced when the node stopped, with the index of the snapshot they
    /// were being replaced from. They have no head and no rows: install that snapshot again.
    pub interrupted: BTreeMap<GroupId, Index>,
    /// Machines whose state is not to be relied on, with what was noted of that.
    pub halted: BTreeMap<GroupId, Vec<u8>>,
}

impl StateDb {
    /// Opens the state in `directory`, made if it is not there. A replacement that was cut short is cleared
    /// away.
    pub fn open(directory: &Path, sizes: StateSizes) -> Result<(StateDb, Opened), Error> {
        let StateSizes { write_buffer_bytes, block_cache_bytes, open_files_max } = sizes;
        let sizes = Sizes { write_buffer_bytes, block_cache_bytes, open_files_max };
        let db = Arc::new(Db::open_state(directory, &FAMILIES, sizes)?);
        let opened = read_heads(&db)?;
        let durable: BTreeMap<_, _> = opened.heads.iter().map(|(&group, head)| (group, head.index)).collect();
        let progress = Mutex::new(Progress { written: durable.clone(), durable });
        let state = StateDb { db, progress, flushing: Mutex::new(()) };
        for (&group, &index) in &opened.interrupted {
            state.begin_replacing(group, index)?;
        }
        Ok((state, opened))
    }

    /// A machine's tables as they are now and become: for the one who writes them.
    pub fn view(&self, group: GroupId) -> Arc<dyn View> {
        Arc::new(MachineView { rows: Rows::Latest(self.db.clone()), group: group.0.to_be_bytes() })
    }

    /// A machine's tables as they are now, for ever.
    pub fn snapshot_view(&self, group: GroupId) -> Arc<dyn View> {
        self.snapshot().view(group)
    }

    /// All machines as they are now.
    pub fn snapshot(&self) -> StateSnapshot {
        StateSnapshot { pinned: Arc::new(Pinned::new(self.db.clone())) }
    }

    /// Writes one batch's effects and the head after them, all or nothing. Durable after the next
    /// [`flush`](Self::flush).
    pub fn write<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        group: GroupId,
        writes: impl IntoIterator<Item = (Table, K, Option<V>)>,
        head: &Head,
    ) -> Result<(), Fault> {
        let mut changes = self.db.changes(&FAMILIES)?;
        let mut key = Vec::with_capacity(64);
        for (table, row, value) in writes {
            set_key(&mut key, group, row.as_ref());
            match value {
                Some(value) => changes.put(family(table), &key, value.as_ref()),
                None => changes.delete(family(table), &key),
            }
        }
        self.write_head(changes, group, head)
    }

    /// Removes the rows of a machine's table before `end`, which the machine does not need any more. They may
    /// come back after a crash.
    pub fn remove_before(&self, group: GroupId, table: Table, end: &[u8]) -> Result<(), Fault> {
        let mut changes = self.db.changes(&FAMILIES)?;
        let mut key = Vec::new();
        set_key(&mut key, group, end);
        changes.delete_range(family(table), &group.0.to_be_bytes(), &key);
        self.db.write(changes, Durability::Memory)
    }

    /// Flushes everything written before the call, and returns how far each machine is now durable. The log
    /// may be truncated up to there and no further.
    pub fn flush(&self) -> Result<BTreeMap<GroupId, Index>, Fault> {
        let _flushing = self.flushing.lock();
        // Taken before the flush begins: what is written while it runs may or may not be in it.
        let written = self.progress.lock().written.clone();
        self.db.flush(&FAMILIES)?;
        let mut progress = self.progress.lock();
        let Progress { written: now, durable } = &mut *progress;
        // A machine that was dropped or replaced meanwhile is not what was flushed.
        durable.extend(written.into_iter().filter(|(group, index)| now.get(group) >= Some(index)));
        Ok(durable.clone())
    }

    /// How far `group` is known to be durable: the log must be kept from the entry after it on.
    pub fn durable(&self, group: GroupId) -> Index {
        self.progress.lock().durable.get(&group).copied().unwrap_or_default()
    }

    /// Removes all of a machine. Durable after the next flush: a node that starts again must drop again the
    /// groups that its catalog does not know.
    pub fn drop_group(&self, group: GroupId) -> Result<(), Fault> {
        let mut changes = self.db.changes(&FAMILIES)?;
        delete_group(&mut changes, group);
        self.forget_progress(group);
        self.db.write(changes, Durability::Memory)
    }

    /// Begins to replace all of a machine's rows, as of the snapshot at `index`. Its views at earlier points
    /// stay as they are. Until [`Replacement::finish`] the machine has no head, also after a crash.
    pub fn replace(&self, group: GroupId, index: Index) -> Result<Replacement<'_>, Fault> {
        self.begin_replacing(group, index)?;
        Ok(Replacement { state: self, group, changes: self.db.changes(&FAMILIES)?, key: Vec::new() })
    }

    /// What the disk still takes, if that can be said.
    pub fn free_bytes(&self) -> Option<u64> {
        self.db.free_bytes()
    }

    /// Notes that a machine's state is not to be relied on, durably: a start finds it in [`Opened::halted`]
    /// until the rows are replaced. What was noted before is replaced.
    pub fn note_halted(&self, group: GroupId, note: &[u8]) -> Result<(), Fault> {
        let mut changes = self.db.changes(&FAMILIES)?;
        let mut key = Vec::new();
        set_key(&mut key, group, HALTED_KEY);
        changes.put(family(Table::Head), &key, note);
        self.db.write(changes, Durability::Memory)?;
        self.flush().map(drop)
    }

    /// What was noted of a machine whose state is not to be relied on.
    pub fn halted_note(&self, group: GroupId) -> Result<Option<Vec<u8>>, Fault> {
        self.view(group).get(Table::Head, HALTED_KEY)
    }

    /// The failure that stopped the database, if one did.
    pub fn failure(&self) -> Option<Fault> {
        self.db.failure()
    }

    /// Clears all rows and leaves the mark, in one write: whatever part of the new rows a crash leaves, the
    /// mark is there with them, because what survives is always the beginning of what was written.
    fn begin_replacing(&self, group: GroupId, index: Index) -> Result<(), Fault> {
        let mut changes = self.db.changes(&FAMILIES)?;
        delete_group(&mut changes, group);
        let mut key = Vec::new();
        set_key(&mut key, group, REPLACING_KEY);
        changes.put(family(Table::Head), &key, &index.0.to_be_bytes());
        self.forget_progress(group);
        self.db.write(changes, Durability::Memory)
    }

    fn write_head(&self, mut changes: Changes, group: GroupId, head: &Head) -> Result<(), Fault> {
        let mut key = Vec::with_capacity(16);
        set_key(&mut key, group, Head::KEY);
        changes.put(family(Table::Head), &key, &head.encode());
        self.db.write(changes, Durability::Memory)?;
        self.progress.lock().written.insert(group, head.index);
        Ok(())
    }

    fn forget_progress(&self, group: GroupId) {
        let mut progress = self.progress.lock();
        progress.written.remove(&group);
        progress.durable.remove(&group);
    }
}

/// A machine whose rows are being replaced. Dropped before it is finished, it leaves the machine without a
/// head.
pub struct Replacement<'a> {
    state: &'a StateDb,
    group: GroupId,
    changes: Changes<'a>,
    key: Vec<u8>,
}

impl Replacement<'_> {
    /// Adds a row.
    pub fn put(&mut self, table: Table, row: &[u8], value: &[u8]) -> Result<(), Fault> {
        set_key(&mut self.key, self.group, row);
        self.changes.put(family(table), &self.key, value);
        if self.changes.size_bytes() >= PORTION_BYTES {
            let portion = std::mem::replace(&mut self.changes, self.state.db.changes(&FAMILIES)?);
            self.state.db.write(portion, Durability::Memory)?;
        }
        Ok(())
    }

    /// Gives the machine its new head, and flushes, so that the log may begin after it.
    pub fn finish(mut self, head: &Head) -> Result<(), Fault> {
        set_key(&mut self.key, self.group, REPLACING_KEY);
        self.changes.delete(family(Table::Head), &self.key);
        self.state.write_head(self.changes, self.group, head)?;
        self.state.flush().map(|_| ())
    }
}

impl StateSnapshot {
    /// A machine's tables at that moment.
    pub fn view(&self, group: GroupId) -> Arc<dyn View> {
        Arc::new(MachineView { rows: Rows::Pinned(self.pinned.clone()), group: group.0.to_be_bytes() })
    }

    /// Visits all rows of a machine but its head and what is only of this replica, table by table, past the
    /// cache: for a snapshot.
    pub fn rows(&self, group: GroupId, visit: &mut RowVisitor) -> Result<(), Fault> {
        let (start, end) = (group.0.to_be_bytes(), group_end(group));
        let mut ended = Ok(());
        for table in Table::ALL {
            let all = Scan {
                family: family(table),
                start: &start,
                end: &end,
                direction: Direction::Forward,
                cache: false,
            };
            self.pinned.scan(all, &mut |key, value| {
                let row = &key[8..];
                if table == Table::Head && [Head::KEY, HALTED_KEY].contains(&row) {
                    return ControlFlow::Continue(());
                }
                ended = visit(table, row, value);
                if ended.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            std::mem::replace(&mut ended, Ok(()))?;
        }
        Ok(())
    }
}

/// Where a view reads.
enum Rows {
    Latest(Arc<Db>),
    Pinned(Arc<Pinned>),
}

struct MachineView {
    rows: Rows,
    group: [u8; 8],
}

impl View for MachineView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        // Most keys are short: those need no allocation.
        let mut short = [0; 128];
        let long;
        let key = match short.get_mut(..8 + key.len()) {
            Some(whole) => {
                whole[..8].copy_from_slice(&self.group);
                whole[8..].copy_from_slice(key);
                &*whole
            }
            None => {
                long = [&self.group, key].concat();
                &long
            }
        };
        match &self.rows {
            Rows::Latest(db) => db.get(family(table), key),
            Rows::Pinned(pinned) => pinned.get(family(table), key),
        }
    }

    fn scan(&self, table: Table, span: Span, direction: Direction, visit: &mut Visitor) -> Result<(), Fault> {
        let start = [&self.group, span.start].concat();
        let end = match span.end {
            Some(end) => [&self.group, end].concat(),
            None => group_end(GroupId(u64::from_be_bytes(self.group))).to_vec(),
        };
        let scan = Scan { family: family(table), start: &start, end: &end, direction, cache: true };
        let mut visit = |key: &[u8], value: &[u8]| visit(&key[8..], value);
        match &self.rows {
            Rows::Latest(db) => db.scan(scan, &mut visit),
            Rows::Pinned(pinned) => pinned.scan(scan, &mut visit),
        }
    }
}

fn family(table: Table) -> Family {
    FAMILIES[table as usize]
}

fn set_key(key: &mut Vec<u8>, group: GroupId, row: &[u8]) {
    key.clear();
    key.extend_from_slice(&group.0.to_be_bytes());
    key.extend_from_slice(row);
}

/// The first key past those of `group`. No group has the last number: the catalog counts from 1.
fn group_end(group: GroupId) -> [u8; 8] {
    group.0.saturating_add(1).to_be_bytes()
}

fn delete_group(changes: &mut Changes, group: GroupId) {
    for family in FAMILIES {
        changes.delete_range(family, &group.0.to_be_bytes(), &group_end(group));
    }
}

/// Reads where every machine stands.
fn read_heads(db: &Db) -> Result<Opened, Error> {
    let mut opened = Opened::default();
    let mut damaged = None;
    let scan = Scan {
        family: family(Table::Head),
        start: &[],
        end: &[0xff; 16],
        direction: Direction::Forward,
        cache: false,
    };
    let scanned = db.scan(scan, &mut |key, value| match take_head(&mut opened, key, value) {
        Ok(()) => ControlFlow::Continue(()),
        Err(what) => {
            damaged = Some(what);
            ControlFlow::Break(())
        }
    });
    let damage = match (scanned, damaged) {
        (Ok(()), None) => return Ok(opened),
        (Err(fault), _) => fault.to_string(),
        (_, Some(what)) => what,
    };
    Err(Error::Damaged(format!("{} is damaged: {damage}. {REPAIR}", db.place())))
}

fn take_head(opened: &mut Opened, key: &[u8], value: &[u8]) -> Result<(), String> {
    let (group, row) = key.split_first_chunk::<8>().ok_or("a key in it has no group")?;
    let group = GroupId(u64::from_be_bytes(*group));
    if row == Head::KEY {
        let head = Head::decode(value).map_err(|fault| format!("group {group}: {fault}"))?;
        opened.heads.insert(group, head);
    } else if row == REPLACING_KEY {
        let index = value.try_into().map_err(|_| format!("group {group} has a mark that does not read"))?;
        opened.interrupted.insert(group, Index(u64::from_be_bytes(index)));
    } else if row == HALTED_KEY {
        opened.halted.insert(group, value.to_vec());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
