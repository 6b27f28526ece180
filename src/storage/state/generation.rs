//! Under which prefix a machine's rows are.
//!
//! The rows of a machine that was made here have its group's number before them. Each replacement writes a
//! new generation of rows beside those that it replaces, under a prefix past all that there are: so whole
//! files of sorted rows find their place below everything else, and need not be merged with anything. Former
//! generations stay for the views that read them. Then their files are dropped.
//!
//! Promises: a prefix is never in use for two generations at a time, and what was replaced is known until it
//! is gone, also after a crash.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::error::{Error, Fault, REPAIR};
use crate::id::GroupId;
use crate::machine::view::Direction;
use crate::storage::db::{Changes, Db, Family, Scan};

/// The family that says where each machine's rows are.
///
/// `[PRESENT, group]` has the prefix of a machine's generation, if that is not the first;
/// `[FORMER, prefix]` is there while rows that were replaced may be.
pub const FAMILY: Family = Family::DEFAULT;

const PRESENT: u8 = b'p';
const FORMER: u8 = b'f';

/// So many bits of a prefix are the group's.
const GROUP_BITS: u32 = 40;

/// A machine's rows as of one replacement: their prefix. In it, above the group's number, is the number of
/// the replacement, of all that this node has done; 0 for rows that were made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation([u8; 8]);

impl Generation {
    fn first(group: GroupId) -> Generation {
        Generation(group.0.to_be_bytes())
    }

    fn read(key: &[u8]) -> Option<Generation> {
        key.first_chunk().copied().map(Generation)
    }

    fn number(self) -> u64 {
        u64::from_be_bytes(self.0) >> GROUP_BITS
    }

    fn group(self) -> GroupId {
        GroupId(u64::from_be_bytes(self.0) & ((1 << GROUP_BITS) - 1))
    }

    /// What each key begins with; no key is before it.
    pub fn start(&self) -> &[u8; 8] {
        &self.0
    }

    /// The first prefix past this one. No group has the last number: the catalog counts from 1.
    pub fn end(&self) -> [u8; 8] {
        u64::from_be_bytes(self.0).saturating_add(1).to_be_bytes()
    }

    /// The key of a row.
    pub fn key(&self, row: &[u8]) -> Vec<u8> {
        [&self.0, row].concat()
    }

    /// Makes `key` that of a row.
    pub fn set_key(&self, key: &mut Vec<u8>, row: &[u8]) {
        key.clear();
        key.extend_from_slice(&self.0);
        key.extend_from_slice(row);
    }
}

/// Where one machine's rows are at present.
pub struct Place {
    /// Held by each view of a moment, so that it is known when nobody reads a generation any more.
    pub generation: RwLock<Arc<Generation>>,
}

impl Place {
    /// The present generation.
    pub fn now(&self) -> Generation {
        **self.generation.read()
    }
}

/// Where the rows of all machines are, and those that were replaced.
#[derive(Default)]
pub struct Places {
    places: BTreeMap<GroupId, Arc<Place>>,
    former: Vec<Arc<Generation>>,
    /// The greatest number that was given to a generation.
    last: u64,
}

impl Places {
    /// Reads what the database has noted of them.
    pub fn read(db: &Db) -> Result<Places, Error> {
        let mut places = Places::default();
        let mut strange = false;
        let all =
            Scan { family: FAMILY, start: &[], end: &[0xff], direction: Direction::Forward, cache: false };
        db.scan(all, &mut |key, value| {
            match (key.split_first(), Generation::read(value)) {
                (Some((&PRESENT, group)), Some(now)) if *group == now.group().0.to_be_bytes() => {
                    places.last = places.last.max(now.number());
                    let place = Place { generation: RwLock::new(Arc::new(now)) };
                    places.places.insert(now.group(), Arc::new(place));
                }
                (Some((&FORMER, prefix)), None) if prefix.len() == 8 => {
                    let former = Generation::read(prefix).map(Arc::new);
                    places.last = former.iter().map(|former| former.number()).fold(places.last, u64::max);
                    places.former.extend(former);
                }
                _ => strange = true,
            }
            ControlFlow::Continue(())
        })?;
        if strange {
            let what = "a note of where rows are does not read";
            return Err(Error::Damaged(format!("{} is damaged: {what}. {REPAIR}", db.place())));
        }
        Ok(places)
    }

    /// Where a machine's rows are.
    pub fn of(&mut self, group: GroupId) -> Arc<Place> {
        let first = || Arc::new(Place { generation: RwLock::new(Arc::new(Generation::first(group))) });
        self.places.entry(group).or_insert_with(first).clone()
    }

    /// The machine whose rows these are, if they are its present ones.
    pub fn whose(&self, key: &[u8]) -> Option<GroupId> {
        let generation = Generation::read(key)?;
        let group = generation.group();
        let now = self.places.get(&group).map_or(Generation::first(group), |place| place.now());
        (now == generation).then_some(group)
    }

    /// A new generation for a machine, past all that there are.
    pub fn next(&mut self, group: GroupId) -> Result<Generation, Fault> {
        let number = self.last + 1;
        if number >> (u64::BITS - GROUP_BITS) != 0 || group.0 >> GROUP_BITS != 0 {
            let most = u64::MAX >> GROUP_BITS;
            return Err(Fault::new(format!(
                "group {group} cannot be replaced: this node has done {} replacements of at most {most}, and \
                 numbers groups up to {}. Let it leave the cluster, and join again with a new data directory",
                number - 1,
                (1_u64 << GROUP_BITS) - 1
            )));
        }
        self.last = number;
        Ok(Generation((number << GROUP_BITS | group.0).to_be_bytes()))
    }

    /// A machine has another generation now than this one.
    pub fn add_former(&mut self, former: Arc<Generation>) {
        self.former.push(former);
    }

    /// A former generation that nobody reads any more, and nobody can begin to.
    pub fn unread(&self) -> Option<Generation> {
        self.former.iter().find(|former| Arc::strong_count(former) == 1).map(|former| **former)
    }

    /// Nothing is left of a former generation.
    pub fn forget_former(&mut self, gone: &Generation) {
        self.former.retain(|former| **former != *gone);
    }

    /// Forgets a machine. Gives back all its generations, whose rows are to be deleted with `changes`.
    pub fn drop_group(&mut self, group: GroupId, changes: &mut Changes) -> Vec<Generation> {
        let place = self.of(group);
        let mut now = place.generation.write();
        let former = self.former.extract_if(.., |former| former.group() == group).map(|former| *former);
        let mut all: Vec<_> = former.collect();
        for former in &all {
            note_dropped(changes, former);
        }
        all.push(**now);
        changes.delete(FAMILY, &present_key(group));
        *now = Arc::new(Generation::first(group));
        all
    }
}

/// Notes that `next` takes the place of `former`.
pub fn note_next(changes: &mut Changes, former: &Generation, next: &Generation) {
    changes.put(FAMILY, &former_key(former), &[]);
    changes.put(FAMILY, &present_key(next.group()), next.start());
}

/// Notes that nothing is left of `former`.
pub fn note_dropped(changes: &mut Changes, former: &Generation) {
    changes.delete(FAMILY, &former_key(former));
}

fn present_key(group: GroupId) -> Vec<u8> {
    [&[PRESENT][..], &group.0.to_be_bytes()].concat()
}

fn former_key(former: &Generation) -> Vec<u8> {
    [&[FORMER][..], former.start()].concat()
}
