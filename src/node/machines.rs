//! Machines: created, looked up, deleted; and changes of the catalog in general.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use super::Node;
use super::machine::Closed;
use super::registry::Registry;
use super::request::{MachineInfo, ReplicaInfo};
use crate::catalog::{Change, MachineRecord, MachineUpgraded, RefusalCode};
use crate::error::{Error, Fault};
use crate::id::{Digest, GroupId, Index};
use crate::machine::batch::{Act, Operation, Upgrade};
use crate::machine::outcome::{HostCode, Outcome, Refusal};
use crate::machine::settings::Settings;

/// Machines.
impl Node {
    /// Creates a machine from a module and has it apply its first input, `created`. If the machine refuses
    /// that, there is no machine.
    pub async fn create_machine(
        &self,
        name: &str,
        module: Digest,
        configuration: Bytes,
    ) -> Result<MachineInfo, Error> {
        self.create_replicated(name, module, configuration, crate::catalog::REPLICAS_DEFAULT).await
    }

    /// The same with another number of replicas than three. As long as there are fewer nodes, it has fewer.
    pub async fn create_replicated(
        &self,
        name: &str,
        module: Digest,
        configuration: Bytes,
        replicas: u32,
    ) -> Result<MachineInfo, Error> {
        self.create_settled(name, module, configuration, replicas, None).await
    }

    /// The same with settings that are not the defaults.
    pub async fn create_settled(
        &self,
        name: &str,
        module: Digest,
        configuration: Bytes,
        replicas: u32,
        settings: Option<Settings>,
    ) -> Result<MachineInfo, Error> {
        settings.unwrap_or_default().check().map_err(Error::Invalid)?;
        crate::catalog::check_name(name).map_err(Error::Invalid)?;
        crate::catalog::check_replicas(replicas).map_err(Error::Invalid)?;
        let record = MachineRecord {
            replicas_wanted: replicas,
            name: name.to_owned(),
            module: module.0.to_vec(),
            configuration,
            input_fuel: self.inner.config.input_fuel,
            engine: self.inner.shelf.fingerprint().to_owned(),
            settings,
            ..MachineRecord::default()
        };
        let node = self.clone();
        // Once begun it is ended, also if the caller goes away.
        let created = tokio::spawn(async move {
            let answer = node.change_catalog(Change::CreateMachine(record)).await?;
            let record = MachineRecord::decode(answer)
                .map_err(|e| Fault::new(format!("the catalog's answer does not decode: {e}")))?;
            node.finish_creation(record).await.map_err(begun)
        });
        created.await.map_err(|e| Fault::new(format!("creating a machine panicked: {e}")))?
    }

    /// Ends a creation that was cut short.
    pub(super) async fn end_creation(&self, record: MachineRecord) {
        let name = record.name.clone();
        if let Err(why) = self.finish_creation(record).await {
            tracing::warn!(machine = name, %why, "a creation that was cut short did not end well");
        }
    }

    /// Proposes the machine's first input and tells the catalog how it went.
    async fn finish_creation(&self, record: MachineRecord) -> Result<MachineInfo, Error> {
        let (group, module) = (record.group(), record.module()?);
        let known = self.inner.registry.wait(|registry| registry.by_group(group)).await;
        let created = match &known.open {
            // If nobody else can open it either, it would be tried for ever.
            Err(Closed::Broken(why)) if record.replicas.len() == 1 => Err(why.clone()),
            _ => {
                self.propose(group, Operation::create_settled(module, record.configuration, record.settings))
                    .await
            }
        };
        let failure = match created.map(|applied| applied.outcome) {
            Ok(Outcome::Ok(_)) => {
                self.change_catalog(Change::MachineReady(record.group)).await?;
                // Served from here on; or deleted meanwhile, and then the look-up says so.
                let settled = |registry: &Registry| match registry.by_group(group) {
                    Some(machine) => machine.record.ready.then_some(()),
                    None => Some(()),
                };
                self.inner.registry.wait(settled).await;
                return Ok(self.known(&record.name)?.info());
            }
            Ok(Outcome::Refused(refusal)) => Error::Invalid(format!(
                "the machine refused its configuration with code {}: {}",
                refusal.code, refusal.message
            )),
            Ok(Outcome::Host(code)) => Error::Guest(format!(
                "the machine could not be created: its first input ended as {code:?}; the node's log has more"
            )),
            Err(unknown @ (Error::Unknown(_) | Error::Unavailable(_))) => return Err(unknown),
            Err(why) => why,
        };
        self.remove(group).await?;
        Err(failure)
    }

    /// Has a machine run another module, on every replica from one index of its log on. The new component is
    /// told, with `argument`, and its answer is given. If it refuses or fails, the machine goes on with the
    /// present one, and nothing has changed.
    ///
    /// # Errors
    /// `NotFound` for the machine or the module; `Invalid` if the module is of another world, or refuses;
    /// `Guest` if it traps or uses up its budget; `Unknown`: it may have been done, which the machine's
    /// module tells.
    pub async fn upgrade_machine(
        &self,
        name: &str,
        module: Digest,
        argument: Bytes,
    ) -> Result<(MachineInfo, Bytes), Error> {
        let info = self.find_module(module).await?;
        let found = self.find_ready(name).await?;
        if info.world != found.world {
            return Err(Error::Invalid(format!(
                "the machine {name:?} is of the world `{}`, and the module {module} of `{}`: a machine stays \
                                  in its world; create another one",
                found.world.name(),
                info.world.name()
            )));
        }
        let (node, group, name) = (self.clone(), found.record.group(), name.to_owned());
        // Once begun it is ended, also if the caller goes away.
        let upgraded = tokio::spawn(async move {
            let upgrade = Upgrade { module: module.0.to_vec(), argument };
            let applied = node.propose(group, Act::Upgrade(upgrade).into()).await?;
            let answer = match applied.outcome {
                Outcome::Ok(answer) => answer,
                failed => return Err(not_upgraded(&name, failed)),
            };
            match node.note_upgraded(group, module).await {
                Ok(()) => {
                    let known = |registry: &Registry| match registry.by_group(group) {
                        Some(machine) => (machine.module == module).then_some(()),
                        None => Some(()),
                    };
                    node.inner.registry.wait(known).await;
                }
                // Whoever leads the machine tells it, too.
                Err(why) => tracing::debug!(%group, %why, "the catalog was not told of an upgrade"),
            }
            Ok((MachineInfo { module, ..node.find_machine(&name).await? }, answer))
        });
        upgraded.await.map_err(|e| Fault::new(format!("upgrading a machine panicked: {e}")))?
    }

    /// Tells the catalog which module a machine runs now.
    pub(super) async fn note_upgraded(&self, group: GroupId, module: Digest) -> Result<(), Error> {
        let upgraded = MachineUpgraded { group: group.0, module: module.0.to_vec() };
        self.change_catalog(Change::MachineUpgraded(upgraded)).await.map(drop)
    }

    /// All machines, by name.
    pub fn machines(&self) -> Vec<MachineInfo> {
        self.inner.registry.all().iter().map(|machine| machine.info()).collect()
    }

    /// One machine, as of a moment after this was asked.
    pub async fn find_machine(&self, name: &str) -> Result<MachineInfo, Error> {
        let found = self.find(name).await?;
        let info = found.info();
        if info.settings.is_some() || !found.record.ready {
            return Ok(info);
        }
        // Nobody who can tell is no reason not to tell the rest.
        Ok(MachineInfo { settings: self.settings_of(&found, Index(0)).await.ok(), ..info })
    }

    /// One machine, as far as this node knows.
    pub fn machine(&self, name: &str) -> Result<MachineInfo, Error> {
        self.check_alive()?;
        Ok(self.known(name)?.info())
    }

    /// Where this node's replica of a machine stands; `None` if it has none.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn replica(&self, name: &str) -> Result<Option<ReplicaInfo>, Error> {
        Ok(self.known(name)?.replica())
    }

    /// Deletes a machine with all its state.
    pub async fn delete_machine(&self, name: &str) -> Result<(), Error> {
        let group = self.find(name).await?.record.group();
        self.remove(group).await
    }

    /// Takes a machine out of the catalog and waits until it is closed here.
    async fn remove(&self, group: GroupId) -> Result<(), Error> {
        self.change_catalog(Change::RemoveMachine(group.0)).await?;
        let gone = |registry: &Registry| registry.by_group(group).is_none().then_some(());
        self.inner.registry.wait(gone).await;
        Ok(())
    }

    pub(super) async fn change_catalog(&self, change: Change) -> Result<Bytes, Error> {
        let applied = self.propose(GroupId::CATALOG, Operation::command(change.command())).await?;
        match applied.outcome {
            Outcome::Ok(answer) => Ok(answer),
            Outcome::Refused(refusal) => Err(catalog_refusal(refusal)),
            Outcome::Host(HostCode::NotCreated) => {
                Err(Error::Unavailable("the catalog is being made".into()))
            }
            Outcome::Host(code) => Err(Fault::new(format!("the catalog ended a change as {code:?}")).into()),
        }
    }
}

/// What is told of a creation that the catalog knows already and that did not come to its end: it goes on by
/// itself, so nobody may be told that it was not done.
fn begun(why: Error) -> Error {
    match why {
        Error::Unavailable(_) | Error::NotLeader { .. } | Error::Overloaded(_) => Error::Unknown(format!(
            "the machine is in the catalog, and is being created as soon as that can be done: see \
             `statehouse machine show`. For now: {why}"
        )),
        why => why,
    }
}

/// What is told of an upgrade that did not come about.
fn not_upgraded(name: &str, outcome: Outcome) -> Error {
    match outcome {
        Outcome::Refused(refusal) => Error::Invalid(format!(
            "the new component refused with code {}: {}; the machine {name:?} goes on with the present one",
            refusal.code, refusal.message
        )),
        Outcome::Host(HostCode::NotCreated) => Error::NotFound(format!("machine {name:?} was not created")),
        other => Error::Guest(format!(
            "the upgrade ended as {other:?}; the machine {name:?} goes on with the present component; the \
             node's log has more"
        )),
    }
}

fn catalog_refusal(refusal: Refusal) -> Error {
    let codes: BTreeMap<u32, fn(String) -> Error> = BTreeMap::from([
        (RefusalCode::BadName as u32, Error::Invalid as fn(String) -> Error),
        (RefusalCode::NameTaken as u32, Error::AlreadyExists),
        (RefusalCode::UnknownModule as u32, Error::NotFound),
        (RefusalCode::UnknownNode as u32, Error::NotFound),
        (RefusalCode::NodeRemoved as u32, Error::FailedPrecondition),
        (RefusalCode::AddressTaken as u32, Error::AlreadyExists),
        (RefusalCode::LastNode as u32, Error::FailedPrecondition),
        (RefusalCode::VotersFull as u32, Error::FailedPrecondition),
    ]);
    codes.get(&refusal.code).copied().unwrap_or(Error::Invalid)(refusal.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_creation_that_goes_on_is_never_told_as_not_done() {
        let passing = [
            Error::Unavailable("no leader".into()),
            Error::NotLeader { leader: None },
            Error::Overloaded("full".into()),
        ];
        for why in passing {
            let told = begun(why.clone());
            assert!(matches!(&told, Error::Unknown(text) if text.contains(&why.to_string())), "{told:?}");
        }
        let refused = begun(Error::Invalid("its configuration".into()));
        assert!(matches!(refused, Error::Invalid(_)), "{refused:?}");
    }
}
