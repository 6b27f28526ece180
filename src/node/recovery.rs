//! What a crash left of snapshots that were being installed: done again, or cleared away.
//!
//! A snapshot that another node sent is in force when the group's log begins behind it, or when it lies there
//! as one that is in force. The machine's rows may not have been touched by then, or may be half replaced.
//! Either way it is installed again, from the file, unless another engine made it.

use std::collections::BTreeMap;

use super::open::Found;
use crate::error::{Error, REPAIR};
use crate::id::{GroupId, Index};
use crate::storage::snapshot::{self, Header, Kind, Snapshots};
use crate::storage::state::StateDb;

/// Installs what is to be installed. A machine whose snapshot does not serve is not whole, and is noted as
/// broken; without the catalog there is no node.
pub fn finish(
    state: &StateDb,
    snapshots: &Snapshots,
    engine: &str,
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
        let installed = install(state, snapshots, engine, (group, index));
        match installed {
            Ok(header) => {
                tracing::warn!(%group, %index, "a snapshot is installed again: that was cut short");
                found.heads.insert(group, header.head);
                found.halted.remove(&group);
                if header.kind == Kind::Stored {
                    snapshots.remove_all(group)?;
                }
            }
            Err(Error::Fault(fault)) => return Err(fault.into()),
            Err(why) => not_whole(group, index, &why, found)?,
        }
    }
    Ok(())
}

fn install(
    state: &StateDb,
    snapshots: &Snapshots,
    engine: &str,
    (group, index): (GroupId, Index),
) -> Result<Header, Error> {
    let snapshot = snapshots.read(group, index)?;
    snapshot.header().check_engine(engine)?;
    snapshot::install(state, snapshot)
}

fn not_whole(group: GroupId, index: Index, why: &Error, found: &mut Found) -> Result<(), Error> {
    let what = format!(
        "its rows were to be replaced by the snapshot at index {index} when the node stopped, and that \
         cannot be done again: {why}"
    );
    if group == GroupId::CATALOG {
        return Err(Error::Damaged(format!("the catalog is not whole: {what}. {REPAIR}")));
    }
    found.broken.insert(group, what);
    Ok(())
}
