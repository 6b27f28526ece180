//! Ends leases whose time is over, of the machines that this node leads.
//!
//! Whether a lease ends is decided by the stamp of the batch that says so; here it is only found and
//! proposed, so asking too early or twice does no harm. When very many end together they go in operations of
//! bounded size, the next as soon as the one before is applied: commands get in between.
//!
//! What was once seen to hold no lease is not looked at again while this node leads: a machine's clock never
//! goes back, so a state without leases to be looked at before its own time is followed by none that has
//! some.
//!
//! Must never let a machine whose guest is slow hold up the ends of other machines' leases.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Node;
use super::machine::Machine;
use crate::error::{Error, Fault};
use crate::id::GroupId;
use crate::machine::batch::{Act, Expire};
use crate::machine::lease;
use crate::raft::Role;

/// How often machines that have leases are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How many such looks later it is looked for machines that have leases now.
const SEARCH_LOOKS: u32 = 3;

/// Leases whose end one operation proposes: each is an input of its guest.
const EXPIRE_MAX: usize = 1_000;

/// What is known of machines with leases.
type Known = Arc<Mutex<HashMap<GroupId, Looked>>>;

/// What is known of one.
#[derive(Clone, Copy, Default)]
struct Looked {
    /// Whether its leases are being ended.
    busy: bool,
    /// None of its leases is to be looked at before this time.
    none_before_ms: u64,
}

/// Leases that are due.
struct Due {
    ids: Vec<u64>,
    /// When the last of them was: the others that there are come after it.
    last_ms: u64,
    /// If there are none: none is, or will be, to be looked at before this time.
    none_before_ms: u64,
}

impl Node {
    /// Ends leases whose time is over, until it is cut off.
    pub(super) async fn end_leases(self) {
        let known = Known::default();
        loop {
            let machines = self.inner.registry.all();
            let leasing: Vec<_> = machines.iter().filter(|machine| has_leases(machine)).cloned().collect();
            let groups: Vec<GroupId> = leasing.iter().map(|machine| machine.record.group()).collect();
            known.lock().retain(|group, looked| looked.busy || groups.contains(group));
            for _ in 0..SEARCH_LOOKS {
                leasing.iter().for_each(|machine| self.end_leases_of(machine, &known));
                tokio::time::sleep(LOOK_INTERVAL).await;
                if leasing.is_empty() {
                    // An idle node wakes as seldom as it can.
                    tokio::time::sleep(LOOK_INTERVAL * (SEARCH_LOOKS - 1)).await;
                    break;
                }
            }
        }
    }

    /// Begins to end the leases of a machine that are due, if there are any and it has not begun already.
    fn end_leases_of(&self, machine: &Arc<Machine>, known: &Known) {
        let group = machine.record.group();
        let looked = *known.lock().entry(group).or_default();
        if looked.busy {
            return;
        }
        let due = match self.due_leases(machine, looked.none_before_ms) {
            Ok(Some(due)) => due,
            Ok(None) => {
                // When it leads again, its state may have been replaced.
                known.lock().remove(&group);
                return;
            }
            Err(fault) => return self.inner.stage.fail(fault),
        };
        if due.ids.is_empty() {
            known.lock().insert(group, Looked { busy: false, none_before_ms: due.none_before_ms });
            return;
        }
        known.lock().insert(group, Looked { busy: true, ..looked });
        let (node, machine, known) = (self.clone(), machine.clone(), known.clone());
        // It ends by itself, at the latest when the node stops.
        drop(self.spawn(async move {
            match node.end_due(&machine, due).await {
                Ok(()) => {}
                Err(Error::Fault(fault)) => node.inner.stage.fail(fault),
                // Whoever leads now sees to it, or this node in a moment.
                Err(why) => tracing::debug!(%group, %why, "leases were not ended"),
            }
            known.lock().insert(group, looked);
        }));
    }

    /// Ends these leases and those that are due after them.
    async fn end_due(&self, machine: &Machine, mut due: Due) -> Result<(), Error> {
        while !due.ids.is_empty() {
            let Due { ids, last_ms, .. } = due;
            let operation = Act::Expire(Expire { leases: ids.clone() }).into();
            self.propose_here(machine.record.group(), operation).await?;
            due = match self.due_leases(machine, last_ms)? {
                // The clock of the log may be a moment behind the one that found them.
                Some(next) if next.ids != ids => next,
                _ => return Ok(()),
            };
        }
        Ok(())
    }

    /// The leases of a machine that are to be looked at now; nothing if another node leads it.
    fn due_leases(&self, machine: &Machine, none_before_ms: u64) -> Result<Option<Due>, Fault> {
        let Ok(parts) = machine.serving() else { return Ok(None) };
        if parts.lane.role().is_none_or(|role| role.role != Role::Leader) {
            return Ok(None);
        }
        let published = parts.lane.published();
        let (view, now_ms) = (&*published.view, parts.lane.time_ms(&published, &self.inner.stage.clock));
        let ids = lease::due_since(view, none_before_ms, now_ms, EXPIRE_MAX)?;
        let last = ids.last().map(|&id| lease::find_in(view, id)).transpose()?.flatten();
        let last_ms = last.map_or(none_before_ms, |lease| lease.due_ms);
        // By the log's own time: this node's clock may be ahead of the next stamp.
        Ok(Some(Due { ids, last_ms, none_before_ms: published.head.time.0 }))
    }
}

fn has_leases(machine: &Machine) -> bool {
    machine.lane().is_some_and(|lane| lane.published().head.leases.live > 0)
}
