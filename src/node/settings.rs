//! Settings of machines: changed through their logs, and told, also by nodes without a replica.
//!
//! Promises: what is told after a change has the change in it. Must never tell defaults for what is not
//! known.

use super::Node;
use super::cluster::words::{At, Question};
use super::machine::Machine;
use super::request::MachineInfo;
use crate::error::Error;
use crate::id::{GroupId, Index};
use crate::machine::batch::Act;
use crate::machine::outcome::{HostCode, Outcome};
use crate::machine::settings::Settings;

/// Settings of machines.
impl Node {
    /// Changes settings of a machine: what `change` names; a zero takes a setting back to its default.
    ///
    /// # Errors
    /// `Invalid` names the setting and what it may be; else as of [`apply`](Node::apply).
    pub async fn configure_machine(&self, name: &str, change: Settings) -> Result<MachineInfo, Error> {
        change.check().map_err(Error::Invalid)?;
        let found = self.find_ready(name).await?;
        let applied = self.propose(found.record.group(), Act::Configure(change).into()).await?;
        match applied.outcome {
            Outcome::Ok(_) => {}
            Outcome::Host(HostCode::NotCreated) => {
                return Err(Error::Unavailable(format!("the machine {name:?} is being created: try again")));
            }
            outcome => {
                return Err(Error::FailedPrecondition(format!("changing settings ended as {outcome:?}")));
            }
        }
        let settings = Some(self.settings_of(&found, applied.index).await?);
        Ok(MachineInfo { settings, ..found.info() })
    }

    /// What is settled for a machine, from `index` on: as the replica here has applied it, or one elsewhere.
    pub(super) async fn settings_of(&self, machine: &Machine, index: Index) -> Result<Settings, Error> {
        if let Some(lane) = machine.lane() {
            self.wait_applied(lane, index).await?;
            return Ok(lane.published().head.settings);
        }
        let question = Question::Settings(At { group: machine.record.group, index: index.0 });
        self.ask_any(&machine.record, question).await?.settings()
    }

    /// What is settled for the machine of a group, from `index` on, as the replica here has applied it.
    pub(super) async fn settings_here(&self, group: GroupId, index: Index) -> Result<Settings, Error> {
        let machine = self.inner.registry.by_group(group);
        let lane = machine.as_ref().and_then(|machine| machine.lane());
        let lane = lane.ok_or(Error::NotLeader { leader: None })?;
        self.wait_applied(lane, index).await?;
        Ok(lane.published().head.settings)
    }
}
