//! Removal: what there is of deleted machines goes as soon as nobody writes to it any more.
//!
//! A guest may be at work for long when its machine is deleted, and its applier writes what it did when it
//! ends. Nobody waits for that: a machine whose applier is not free is noted, and a thread of its own looks
//! again from time to time.
//!
//! Promises: rows and snapshots are removed only while the applier of a halted lane is held, so that nothing
//! is written after them. What a stop or a crash leaves is dropped at the next start, because the catalog
//! does not know its group, and no group's id is used twice. Must never wait for a guest.

use std::sync::Arc;

use parking_lot::Mutex;

use super::lane::Lane;
use super::rounds::Rounds;
use super::stage::Stage;
use crate::error::Fault;
use crate::id::GroupId;

/// Deleted machines of which something is there.
pub struct Removal {
    stage: Arc<Stage>,
    /// Those whose appliers were not free.
    busy: Mutex<Vec<Arc<Lane>>>,
}

impl Removal {
    /// Starts the thread. Stop it after the apply workers: then its last look finds all appliers free.
    pub fn start(stage: Arc<Stage>) -> Result<(Arc<Removal>, Rounds), Fault> {
        let removal = Arc::new(Removal { stage: stage.clone(), busy: Mutex::default() });
        let looking = removal.clone();
        let rounds = Rounds::start("removal", stage, move |_| looking.look())?;
        Ok((removal, rounds))
    }

    /// Removes what there is of a machine whose lane is halted and gets no more jobs: at once, or when the
    /// batch at hand has ended.
    pub fn remove(&self, lane: Arc<Lane>) -> Result<(), Fault> {
        if !self.try_remove(&lane)? {
            tracing::info!(group = %lane.group, "a deleted machine is still at work: its state goes later");
            self.busy.lock().push(lane);
        }
        Ok(())
    }

    /// Removes what there is of a group that has no lane here.
    pub fn remove_group(&self, group: GroupId) -> Result<(), Fault> {
        self.stage.state.drop_group(group)?;
        self.stage.snapshots.drop_all_staged(group)?;
        self.stage.incoming.lock().remove(&group);
        self.stage.snapshots.remove_all(group)
    }

    fn look(&self) -> Result<(), Fault> {
        let busy = std::mem::take(&mut *self.busy.lock());
        for lane in busy {
            if !self.try_remove(&lane)? {
                self.busy.lock().push(lane);
            }
        }
        Ok(())
    }

    /// False: the applier is not free.
    fn try_remove(&self, lane: &Lane) -> Result<bool, Fault> {
        let Some(mut applier) = lane.try_applier() else { return Ok(false) };
        applier.refuse_stalled(lane);
        self.remove_group(lane.group)?;
        Ok(true)
    }
}
