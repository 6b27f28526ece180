//! What a crash left of snapshots that were being installed: done again, or cleared away.
//!
//! A snapshot that another node sent is in force when the group's log begins behind it, or when it lies there
//! as one that is in force. The machine's rows may not have been touched by then, or may be half replaced.
//! Either way it is installed again, from the file.

use std::collections::BTreeMap;

use super::open::Found;
use crate::error::{Error, REPAIR};
use crate::id::{GroupId, Index};
use crate::storage::snapshot::{self, Kind, Snapshots};
use crate::storage::state::StateDb;

/// Installs what is to be installed. A machine whose snapshot does not serve is not whole, and is noted as
/// broken; without the catalog there is no node.
pub fn finish(
    state: &StateDb,
    snapshots: &Snapshots,
    interrupted: &BTreeMap<GroupId, Index>,
    found: &mut Found,
) -> Result<(), Error> {
    let mut due = interrupted.clone();
    for (group, log) in &found.logs {
        let at = found.heads.get(group).map_or(Index(0), |head| head.index);
        if log.start.0 > at {
            due.entry(*group).or_insert(log.start.0);
        }
    }
    // One that was to replace a state whose log is good. Snapshots are never ahead of the state otherwise.
    for (group, index) in snapshots.list_all()? {
        if found.heads.get(&group).is_some_and(|head| head.index < index) {
            due.insert(group, index);
        }
    }
    for (group, index) in snapshots.staged()? {
        if due.get(&group) == Some(&index) {
            snapshots.put_in_force(group, index)?;
        } else {
            snapshots.drop_staged(group, index)?;
        }
    }
    for (group, index) in due {
        install(state, snapshots, group, index, found)?;
    }
    Ok(())
}

fn install(
    state: &StateDb,
    snapshots: &Snapshots,
    group: GroupId,
    index: Index,
    found: &mut Found,
) -> Result<(), Error> {
    match snapshots.read(group, index).and_then(|snapshot| snapshot::install(state, snapshot)) {
        Ok(header) => {
            tracing::warn!(%group, %index, "a snapshot is installed again: that was cut short");
            found.heads.insert(group, header.head);
            found.halted.remove(&group);
            if header.kind == Kind::Stored {
                snapshots.remove_all(group)?;
            }
            Ok(())
        }
        Err(Error::Fault(fault)) => Err(fault.into()),
        Err(why) => not_whole(group, index, &why, found),
    }
}

fn not_whole(group: GroupId, index: Index, why: &Error, found: &mut Found) -> Result<(), Error> {
    let what = format!(
        "its rows were being replaced by the snapshot at index {index} when the node stopped, and that \
         cannot be done again: {why}"
    );
    if group == GroupId::CATALOG {
        return Err(Error::Damaged(format!("the catalog is not whole: {what}. {REPAIR}")));
    }
    found.broken.insert(group, what);
    Ok(())
}
