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
//! The prefix of the machine's present [`Generation`] (8 bytes), then the table's own key.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use self::generation::{Generation, Place, Places};
use super::db::{Changes, Db, Durability, Family, Pinned, Scan, Sizes, SortedFile};
use super::directory::Hold;
use crate::error::{Error, Fault, REPAIR};
use crate::id::{GroupId, Index};
use crate::machine::batch::Head;
use crate::machine::view::{Direction, Span, Table, View, Visitor};

mod generation;

/// The column families: of the tables, in the order of `Table::ALL`, and the one that says where each
/// machine's rows are. Part of the stored format.
const FAMILIES: [Family; 5] =
    [Family("head"), Family("store"), Family("events"), Family("leases"), generation::FAMILY];

/// A row in `Table::Head` that is there only while a machine's rows are being replaced as a whole.
const REPLACING_KEY: &[u8] = b"replacing";

/// A row in `Table::Head` that is there while a machine's state here is not to be relied on: why. It goes
/// with the rows, when they are replaced or dropped.
const HALTED_KEY: &[u8] = b"halted";

/// Rows of a replacement come in files of about this size.
const FILE_BYTES: u64 = 64 << 20;

/// So many files are dropped at a time.
const FILES_DROPPED: usize = 2;

/// How much memory the state database may take, and how many files it keeps open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSizes {
    /// Rows in memory before they go to files, for all machines together. Taken as it fills.
    pub write_buffer_bytes: usize,
    /// Blocks of files kept in memory. Taken as it fills.
    pub block_cache_bytes: usize,
    /// Files kept open, with their filters and indexes in memory. With more of them than this, reads open
    /// files.
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
    places: Mutex<Places>,
    /// Held while a flush runs: the heads it makes durable are noted in the order of the flushes.
    flushing: Mutex<()>,
    /// Held while rows are dropped: a group that is dropped may come back under the prefix it had.
    dropping: Mutex<()>,
}

/// How far each machine is.
#[derive(Default)]
struct Progress {
    /// In memory.
    written: BTreeMap<GroupId, Index>,
    /// In files, as far as is known.
    durable: BTreeMap<GroupId, Index>,
}

/// A machine at one moment. Costs little to make; while it lives, what it shows is kept on disk.
#[derive(Clone)]
pub struct StateSnapshot {
    pinned: Arc<Pinned>,
    generation: Arc<Generation>,
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
        let families = FAMILIES.into_iter().filter(|&family| family != Family::DEFAULT);
        let db = Arc::new(Db::open_state(directory, &families.collect::<Vec<_>>(), sizes)?);
        let places = Places::read(&db)?;
        let opened = read_heads(&db, &places)?;
        let durable: BTreeMap<_, _> = opened.heads.iter().map(|(&group, head)| (group, head.index)).collect();
        let state = StateDb {
            db,
            progress: Mutex::new(Progress { written: durable.clone(), durable }),
            places: Mutex::new(places),
            flushing: Mutex::new(()),
            dropping: Mutex::new(()),
        };
        for (&group, &index) in &opened.interrupted {
            state.begin_replacing(group, index)?;
        }
        Ok((state, opened))
    }

    /// Keeps the data directory this process's until the last view is gone.
    pub fn hold(&self, hold: Hold) {
        self.db.hold(hold);
    }

    /// A machine's tables as they are now and become: for the one who writes them.
    pub fn view(&self, group: GroupId) -> Arc<dyn View> {
        Arc::new(MachineView(Rows::Latest { db: self.db.clone(), place: self.place(group) }))
    }

    /// A machine's tables as they are now, for ever.
    pub fn snapshot_view(&self, group: GroupId) -> Arc<dyn View> {
        self.snapshot(group).view()
    }

    /// A machine as it is now.
    pub fn snapshot(&self, group: GroupId) -> StateSnapshot {
        let place = self.place(group);
        // Held meanwhile: what is pinned is of this generation.
        let generation = place.generation.read();
        StateSnapshot { pinned: Arc::new(Pinned::new(self.db.clone())), generation: generation.clone() }
    }

    /// Writes one batch's effects and the head after them, all or nothing. Durable after the next
    /// [`flush`](Self::flush).
    pub fn write<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        group: GroupId,
        writes: impl IntoIterator<Item = (Table, K, Option<V>)>,
        head: &Head,
    ) -> Result<(), Fault> {
        let generation = self.place(group).now();
        let mut changes = self.db.changes(&FAMILIES)?;
        let mut key = Vec::with_capacity(64);
        for (table, row, value) in writes {
            generation.set_key(&mut key, row.as_ref());
            match value {
                Some(value) => changes.put(family(table), &key, value.as_ref()),
                None => changes.delete(family(table), &key),
            }
        }
        self.write_head(changes, group, &generation, head)
    }

    /// Removes the rows of a machine's table before `end`, which the machine does not need any more. They may
    /// come back after a crash.
    pub fn remove_before(&self, group: GroupId, table: Table, end: &[u8]) -> Result<(), Fault> {
        let generation = self.place(group).now();
        let mut changes = self.db.changes(&FAMILIES)?;
        changes.delete_range(family(table), generation.start(), &generation.key(end));
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
        let _dropping = self.dropping.lock();
        let mut changes = self.db.changes(&FAMILIES)?;
        let generations = self.places.lock().drop_group(group, &mut changes);
        for generation in generations {
            delete_rows(&mut changes, &generation);
        }
        self.forget_progress(group);
        self.db.write(changes, Durability::Memory)
    }

    /// Begins to replace all of a machine's rows, as of the snapshot at `index`. Its views at earlier points
    /// stay as they are. Until [`Replacement::finish`] the machine has no head, also after a crash.
    pub fn replace(&self, group: GroupId, index: Index) -> Result<Replacement<'_>, Fault> {
        let generation = self.begin_replacing(group, index)?;
        Ok(Replacement { state: self, group, generation, file: None, key: Vec::new() })
    }

    /// Drops rows that were replaced and that nobody reads any more: a few of their files, because a disk has
    /// others wait while it is told what is free. Whether some may be left.
    pub fn drop_replaced(&self) -> Result<bool, Fault> {
        let _dropping = self.dropping.lock();
        let Some(generation) = self.places.lock().unread() else { return Ok(false) };
        let (start, end) = (generation.start(), &generation.key(&[0xff; 16]));
        if self.db.drop_some_files(start, end, FILES_DROPPED)? {
            return Ok(true);
        }
        // What is in files together with other rows, or in memory.
        let mut changes = self.db.changes(&FAMILIES)?;
        delete_rows(&mut changes, &generation);
        generation::note_dropped(&mut changes, &generation);
        self.db.write(changes, Durability::Memory)?;
        self.places.lock().forget_former(&generation);
        Ok(true)
    }

    /// What the disk still takes, if that can be said.
    pub fn free_bytes(&self) -> Option<u64> {
        self.db.free_bytes()
    }

    /// Notes that a machine's state is not to be relied on, durably: a start finds it in [`Opened::halted`]
    /// until the rows are replaced. What was noted before is replaced.
    pub fn note_halted(&self, group: GroupId, note: &[u8]) -> Result<(), Fault> {
        let generation = self.place(group).now();
        let mut changes = self.db.changes(&FAMILIES)?;
        changes.put(family(Table::Head), &generation.key(HALTED_KEY), note);
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

    fn place(&self, group: GroupId) -> Arc<Place> {
        self.places.lock().of(group)
    }

    /// Gives the machine a new generation, which has no rows but the mark. Durable when it returns: of the
    /// rows that come next whole files are durable at once, and no crash may leave them without the mark.
    fn begin_replacing(&self, group: GroupId, index: Index) -> Result<Generation, Fault> {
        let (next, place) = {
            let mut places = self.places.lock();
            (places.next(group)?, places.of(group))
        };
        let former = {
            // Nobody begins to read the machine meanwhile.
            let mut now = place.generation.write();
            let mut changes = self.db.changes(&FAMILIES)?;
            generation::note_next(&mut changes, &now, &next);
            changes.put(family(Table::Head), &next.key(REPLACING_KEY), &index.0.to_be_bytes());
            self.forget_progress(group);
            self.db.write(changes, Durability::Memory)?;
            std::mem::replace(&mut *now, Arc::new(next))
        };
        // Held until then: a crash may yet bring the former rows back.
        self.places.lock().add_former(former.clone());
        self.flush()?;
        drop(former);
        Ok(next)
    }

    fn write_head(
        &self,
        mut changes: Changes,
        group: GroupId,
        generation: &Generation,
        head: &Head,
    ) -> Result<(), Fault> {
        changes.put(family(Table::Head), &generation.key(Head::KEY), &head.encode());
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
    generation: Generation,
    /// The rows that were added last, and their table.
    file: Option<(Table, SortedFile<'a>)>,
    key: Vec<u8>,
}

impl Replacement<'_> {
    /// Adds a row, in the order of the tables and of each table's keys.
    pub fn put(&mut self, table: Table, row: &[u8], value: &[u8]) -> Result<(), Fault> {
        if self.file.as_ref().is_some_and(|(of, file)| *of != table || file.size_bytes() >= FILE_BYTES) {
            self.take_in()?;
        }
        let (_, file) = match &mut self.file {
            Some(file) => file,
            none => none.insert((table, self.state.db.sorted_file(family(table))?)),
        };
        self.generation.set_key(&mut self.key, row);
        file.put(&self.key, value)
    }

    /// Gives the machine its new head, and flushes, so that the log may begin after it.
    pub fn finish(mut self, head: &Head) -> Result<(), Fault> {
        self.take_in()?;
        let mut changes = self.state.db.changes(&FAMILIES)?;
        changes.delete(family(Table::Head), &self.generation.key(REPLACING_KEY));
        self.state.write_head(changes, self.group, &self.generation, head)?;
        self.state.flush().map(|_| ())
    }

    fn take_in(&mut self) -> Result<(), Fault> {
        self.file.take().map_or(Ok(()), |(_, file)| file.take_in())
    }
}

impl StateSnapshot {
    /// The machine's tables at that moment.
    pub fn view(&self) -> Arc<dyn View> {
        Arc::new(MachineView(Rows::Pinned(self.clone())))
    }

    /// Visits all rows of the machine but its head and what is only of this replica, table by table, past the
    /// cache: for a snapshot.
    pub fn rows(&self, visit: &mut RowVisitor) -> Result<(), Fault> {
        let mut ended = Ok(());
        for table in Table::ALL {
            let all = Scan {
                family: family(table),
                start: self.generation.start(),
                end: &self.generation.end(),
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
    Latest { db: Arc<Db>, place: Arc<Place> },
    Pinned(StateSnapshot),
}

struct MachineView(Rows);

impl MachineView {
    fn generation(&self) -> Generation {
        match &self.0 {
            Rows::Latest { place, .. } => place.now(),
            Rows::Pinned(snapshot) => *snapshot.generation,
        }
    }
}

impl View for MachineView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        // Most keys are short: those need no allocation.
        let generation = self.generation();
        let mut short = [0; 128];
        let long;
        let key = match short.get_mut(..8 + key.len()) {
            Some(whole) => {
                whole[..8].copy_from_slice(generation.start());
                whole[8..].copy_from_slice(key);
                &*whole
            }
            None => {
                long = generation.key(key);
                &long
            }
        };
        match &self.0 {
            Rows::Latest { db, .. } => db.get(family(table), key),
            Rows::Pinned(snapshot) => snapshot.pinned.get(family(table), key),
        }
    }

    fn scan(&self, table: Table, span: Span, direction: Direction, visit: &mut Visitor) -> Result<(), Fault> {
        let generation = self.generation();
        let start = generation.key(span.start);
        let end = span.end.map_or_else(|| generation.end().to_vec(), |end| generation.key(end));
        let scan = Scan { family: family(table), start: &start, end: &end, direction, cache: true };
        let mut visit = |key: &[u8], value: &[u8]| visit(&key[8..], value);
        match &self.0 {
            Rows::Latest { db, .. } => db.scan(scan, &mut visit),
            Rows::Pinned(snapshot) => snapshot.pinned.scan(scan, &mut visit),
        }
    }
}

fn family(table: Table) -> Family {
    FAMILIES[table as usize]
}

fn delete_rows(changes: &mut Changes, generation: &Generation) {
    for table in Table::ALL {
        changes.delete_range(family(table), generation.start(), &generation.end());
    }
}

/// Reads where every machine stands.
fn read_heads(db: &Db, places: &Places) -> Result<Opened, Error> {
    let mut opened = Opened::default();
    let mut damaged = None;
    let scan = Scan {
        family: family(Table::Head),
        start: &[],
        end: &[0xff; 16],
        direction: Direction::Forward,
        cache: false,
    };
    let scanned = db.scan(scan, &mut |key, value| match take_head(&mut opened, places, key, value) {
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

fn take_head(opened: &mut Opened, places: &Places, key: &[u8], value: &[u8]) -> Result<(), String> {
    let row = key.get(8..).ok_or("a key in it has no group")?;
    let Some(group) = places.whose(key) else { return Ok(()) };
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
