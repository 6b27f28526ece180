//! Ends leases whose time is over, of the machines that this node leads.
//!
//! Whether a lease ends is decided by the stamp of the batch that says so; here it is only found and
//! proposed, so asking too early or twice does no harm. When very many end together they go in operations of
//! bounded size, the next as soon as the one before is applied: commands get in between.
//!
//! Must never let a machine whose guest is slow hold up the ends of other machines' leases.

use std::collections::HashSet;
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

/// The groups whose leases are being ended.
type Busy = Arc<Mutex<HashSet<GroupId>>>;

impl Node {
    /// Ends leases whose time is over, until it is cut off.
    pub(super) async fn end_leases(self) {
        let busy = Busy::default();
        loop {
            let machines = self.inner.registry.all();
            let leasing: Vec<_> = machines.iter().filter(|machine| has_leases(machine)).cloned().collect();
            for _ in 0..SEARCH_LOOKS {
                for machine in leasing.iter().filter(|machine| !busy.lock().contains(&machine.record.group()))
                {
                    self.end_leases_of(machine, &busy);
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
                if leasing.is_empty() {
                    // An idle node wakes as seldom as it can.
                    tokio::time::sleep(LOOK_INTERVAL * (SEARCH_LOOKS - 1)).await;
                    break;
                }
            }
        }
    }

    /// Begins to end the leases of a machine that are due, if there are any.
    fn end_leases_of(&self, machine: &Arc<Machine>, busy: &Busy) {
        let due = match self.due_leases(machine) {
            Ok(due) if due.is_empty() => return,
            Ok(due) => due,
            Err(fault) => return self.inner.stage.fail(fault),
        };
        let (node, machine, busy) = (self.clone(), machine.clone(), busy.clone());
        busy.lock().insert(machine.record.group());
        // It ends by itself, at the latest when the node stops.
        drop(self.spawn(async move {
            let group = machine.record.group();
            match node.end_due(&machine, due).await {
                Ok(()) => {}
                Err(Error::Fault(fault)) => node.inner.stage.fail(fault),
                // Whoever leads now sees to it, or this node in a moment.
                Err(why) => tracing::debug!(%group, %why, "leases were not ended"),
            }
            busy.lock().remove(&group);
        }));
    }

    async fn end_due(&self, machine: &Machine, mut due: Vec<u64>) -> Result<(), Error> {
        while !due.is_empty() {
            let operation = Act::Expire(Expire { leases: due.clone() }).into();
            self.propose_here(machine.record.group(), operation).await?;
            let next = self.due_leases(machine)?;
            // The clock of the log may be a moment behind the one that found them.
            if next == due {
                return Ok(());
            }
            due = next;
        }
        Ok(())
    }

    /// The leases of a machine that are to be looked at now; none if another node leads it.
    fn due_leases(&self, machine: &Machine) -> Result<Vec<u64>, Fault> {
        let Ok(parts) = machine.serving() else { return Ok(Vec::new()) };
        if parts.lane.role().is_none_or(|role| role.role != Role::Leader) {
            return Ok(Vec::new());
        }
        let published = parts.lane.published();
        lease::due(&*published.view, published.time_ms(&self.inner.stage.clock), EXPIRE_MAX)
    }
}

fn has_leases(machine: &Machine) -> bool {
    machine.lane().is_some_and(|lane| lane.published().head.leases.live > 0)
}
