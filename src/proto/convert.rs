//! The library's values as messages, and messages as values.
//!
//! Messages come from anywhere: reading one checks it and names what is wrong. A node's own answers are read
//! with the same care, because the node may be a newer one.

use std::path::PathBuf;
use std::time::Duration;

use super::v1::{self, apply_response, query_response};
use crate::error::Error;
use crate::id::{Digest, GroupId, Index, LogTime, NodeId, Revision, StateHash, Term};
use crate::machine::batch::Numbered;
use crate::machine::outcome::{HostCode, Outcome, Refusal};
use crate::machine::settings::{Setting, Settings};
use crate::node::request::{
    Answered, Applied, Consistency, MachineInfo, ModuleInfo, NodeStatus, Opened, ReplicaInfo, World,
};

/// A message that does not say what it must.
pub(super) fn odd(what: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("unexpected message: {what}; client and node may be of different versions"))
}

fn digest(text: &str) -> Result<Digest, Error> {
    text.parse().map_err(|e: crate::id::NotADigest| Error::Invalid(e.to_string()))
}

impl From<HostCode> for v1::HostCode {
    fn from(code: HostCode) -> v1::HostCode {
        match code {
            HostCode::Trapped => v1::HostCode::Trapped,
            HostCode::Exhausted => v1::HostCode::Exhausted,
            HostCode::NotCreated => v1::HostCode::NotCreated,
            HostCode::UnknownLease => v1::HostCode::UnknownLease,
            HostCode::Invalid => v1::HostCode::Invalid,
            HostCode::LeaseInUse => v1::HostCode::LeaseInUse,
            HostCode::TooManyLeases => v1::HostCode::TooManyLeases,
            HostCode::UnknownSession => v1::HostCode::UnknownSession,
            HostCode::TooManySessions => v1::HostCode::TooManySessions,
            HostCode::NumberPassed => v1::HostCode::NumberPassed,
            HostCode::NumberAhead => v1::HostCode::NumberAhead,
        }
    }
}

fn host_code(code: i32) -> Result<HostCode, Error> {
    match v1::HostCode::try_from(code) {
        Ok(v1::HostCode::Trapped) => Ok(HostCode::Trapped),
        Ok(v1::HostCode::Exhausted) => Ok(HostCode::Exhausted),
        Ok(v1::HostCode::NotCreated) => Ok(HostCode::NotCreated),
        Ok(v1::HostCode::UnknownLease) => Ok(HostCode::UnknownLease),
        Ok(v1::HostCode::Invalid) => Ok(HostCode::Invalid),
        Ok(v1::HostCode::LeaseInUse) => Ok(HostCode::LeaseInUse),
        Ok(v1::HostCode::TooManyLeases) => Ok(HostCode::TooManyLeases),
        Ok(v1::HostCode::UnknownSession) => Ok(HostCode::UnknownSession),
        Ok(v1::HostCode::TooManySessions) => Ok(HostCode::TooManySessions),
        Ok(v1::HostCode::NumberPassed) => Ok(HostCode::NumberPassed),
        Ok(v1::HostCode::NumberAhead) => Ok(HostCode::NumberAhead),
        Ok(v1::HostCode::Unspecified) | Err(_) => Err(odd(format_args!("host code {code}"))),
    }
}

impl From<Refusal> for v1::Refusal {
    fn from(refusal: Refusal) -> v1::Refusal {
        v1::Refusal { code: refusal.code, message: refusal.message }
    }
}

impl From<v1::Refusal> for Refusal {
    fn from(refusal: v1::Refusal) -> Refusal {
        Refusal { code: refusal.code, message: refusal.message }
    }
}

impl From<Applied> for v1::ApplyResponse {
    fn from(applied: Applied) -> v1::ApplyResponse {
        let outcome = match applied.outcome {
            Outcome::Ok(answer) => apply_response::Outcome::Ok(answer),
            Outcome::Refused(refusal) => apply_response::Outcome::Refused(refusal.into()),
            Outcome::Host(code) => apply_response::Outcome::Failed(v1::HostCode::from(code).into()),
        };
        v1::ApplyResponse { index: applied.index.0, revision: applied.revision.0, outcome: Some(outcome) }
    }
}

impl TryFrom<v1::ApplyResponse> for Applied {
    type Error = Error;

    fn try_from(message: v1::ApplyResponse) -> Result<Applied, Error> {
        let outcome = match message.outcome.ok_or_else(|| odd("an answer without an outcome"))? {
            apply_response::Outcome::Ok(answer) => Outcome::Ok(answer),
            apply_response::Outcome::Refused(refusal) => Outcome::Refused(refusal.into()),
            apply_response::Outcome::Failed(code) => Outcome::Host(host_code(code)?),
        };
        Ok(Applied { index: Index(message.index), revision: Revision(message.revision), outcome })
    }
}

impl From<v1::Numbered> for Numbered {
    fn from(message: v1::Numbered) -> Numbered {
        let v1::Numbered { session, number, acknowledged } = message;
        Numbered { session, number, acknowledged }
    }
}

impl From<Numbered> for v1::Numbered {
    fn from(numbered: Numbered) -> v1::Numbered {
        let Numbered { session, number, acknowledged } = numbered;
        v1::Numbered { session, number, acknowledged }
    }
}

impl From<Opened> for v1::OpenSessionResponse {
    fn from(opened: Opened) -> v1::OpenSessionResponse {
        let ttl_ms = opened.ttl.as_millis() as u64;
        v1::OpenSessionResponse { session: opened.session, ttl_ms, window: opened.window }
    }
}

impl From<v1::OpenSessionResponse> for Opened {
    fn from(message: v1::OpenSessionResponse) -> Opened {
        let v1::OpenSessionResponse { session, ttl_ms, window } = message;
        Opened { session, ttl: Duration::from_millis(ttl_ms), window }
    }
}

impl From<Answered> for v1::QueryResponse {
    fn from(answered: Answered) -> v1::QueryResponse {
        let outcome = match answered.outcome {
            Ok(answer) => query_response::Outcome::Ok(answer),
            Err(refusal) => query_response::Outcome::Refused(refusal.into()),
        };
        v1::QueryResponse { index: answered.index.0, revision: answered.revision.0, outcome: Some(outcome) }
    }
}

impl TryFrom<v1::QueryResponse> for Answered {
    type Error = Error;

    fn try_from(message: v1::QueryResponse) -> Result<Answered, Error> {
        let outcome = match message.outcome.ok_or_else(|| odd("an answer without an outcome"))? {
            query_response::Outcome::Ok(answer) => Ok(answer),
            query_response::Outcome::Refused(refusal) => Err(refusal.into()),
        };
        Ok(Answered { index: Index(message.index), revision: Revision(message.revision), outcome })
    }
}

/// The consistency that a query asks for.
pub fn consistency(query: &v1::QueryRequest) -> Result<Consistency, Error> {
    let consistency = match v1::Consistency::try_from(query.consistency) {
        Ok(v1::Consistency::Unspecified | v1::Consistency::Linearizable) => Consistency::Linearizable,
        Ok(v1::Consistency::Lease) => Consistency::Lease,
        Ok(v1::Consistency::Local) => {
            return Ok(Consistency::Local { min_index: Index(query.min_index) });
        }
        Err(_) => {
            let text = format!("consistency {} is not one of 1, 2, 3", query.consistency);
            return Err(Error::Invalid(text));
        }
    };
    if query.min_index != 0 {
        let text = format!("min_index {} goes with consistency local only", query.min_index);
        return Err(Error::Invalid(text));
    }
    Ok(consistency)
}

/// A consistency as the two fields of a query.
pub fn consistency_fields(consistency: Consistency) -> (v1::Consistency, u64) {
    match consistency {
        Consistency::Linearizable => (v1::Consistency::Linearizable, 0),
        Consistency::Lease => (v1::Consistency::Lease, 0),
        Consistency::Local { min_index } => (v1::Consistency::Local, min_index.0),
    }
}

impl From<World> for v1::World {
    fn from(world: World) -> v1::World {
        match world {
            World::Stored => v1::World::Stored,
            World::Resident => v1::World::Resident,
        }
    }
}

fn world(number: i32) -> Result<World, Error> {
    match v1::World::try_from(number) {
        Ok(v1::World::Stored) => Ok(World::Stored),
        Ok(v1::World::Resident) => Ok(World::Resident),
        Ok(v1::World::Unspecified) | Err(_) => Err(odd(format_args!("world {number}"))),
    }
}

impl From<ModuleInfo> for v1::Module {
    fn from(module: ModuleInfo) -> v1::Module {
        v1::Module {
            digest: module.digest.to_string(),
            total_bytes: module.bytes,
            world: v1::World::from(module.world).into(),
            label: module.label,
            pushed_at_ms: module.pushed.0,
            compiled: module.compiled,
        }
    }
}

impl TryFrom<v1::Module> for ModuleInfo {
    type Error = Error;

    fn try_from(message: v1::Module) -> Result<ModuleInfo, Error> {
        Ok(ModuleInfo {
            digest: digest(&message.digest)?,
            bytes: message.total_bytes,
            world: world(message.world)?,
            label: message.label,
            pushed: LogTime(message.pushed_at_ms),
            compiled: message.compiled,
        })
    }
}

impl From<ReplicaInfo> for v1::Replica {
    fn from(replica: ReplicaInfo) -> v1::Replica {
        v1::Replica {
            term: replica.term.0,
            leader: replica.leader.map(|node| node.0),
            applied_index: replica.applied.0,
            revision: replica.revision.0,
            state_hash: replica.hash.to_string(),
            halted: replica.halted,
        }
    }
}

/// Reads a state's hash.
pub(super) fn state_hash(digits: &str) -> Result<StateHash, Error> {
    let mut hash = StateHash::default();
    hex::decode_to_slice(digits, &mut hash.0).map_err(|_| odd(format_args!("state hash {digits:?}")))?;
    Ok(hash)
}

impl TryFrom<v1::Replica> for ReplicaInfo {
    type Error = Error;

    fn try_from(message: v1::Replica) -> Result<ReplicaInfo, Error> {
        let hash = state_hash(&message.state_hash)?;
        Ok(ReplicaInfo {
            term: Term(message.term),
            leader: message.leader.map(NodeId),
            applied: Index(message.applied_index),
            revision: Revision(message.revision),
            hash,
            halted: message.halted,
        })
    }
}

impl From<MachineInfo> for v1::Machine {
    fn from(machine: MachineInfo) -> v1::Machine {
        v1::Machine {
            name: machine.name,
            module: machine.module.to_string(),
            world: v1::World::from(machine.world).into(),
            created_at_ms: machine.created.0,
            input_fuel: machine.input_fuel,
            engine: machine.engine,
            group: machine.group.0,
            replica: machine.replica.map(Into::into),
            replicas: machine.replicas.into_iter().map(|node| node.0).collect(),
            replicas_wanted: machine.replicas_wanted,
            settings: machine.settings.map(Into::into),
            in_force: machine.settings.map(in_force),
        }
    }
}

impl From<Settings> for v1::MachineSettings {
    fn from(settings: Settings) -> v1::MachineSettings {
        v1::MachineSettings {
            leases_max: settings.leases_max,
            sessions_max: settings.sessions_max,
            session_window: settings.session_window,
            history_revisions: settings.history_revisions,
            history_age_ms: settings.history_ms,
            history_bytes: settings.history_bytes,
        }
    }
}

impl From<v1::MachineSettings> for Settings {
    fn from(message: v1::MachineSettings) -> Settings {
        Settings {
            leases_max: message.leases_max,
            sessions_max: message.sessions_max,
            session_window: message.session_window,
            history_revisions: message.history_revisions,
            history_ms: message.history_age_ms,
            history_bytes: message.history_bytes,
        }
    }
}

/// What goes with settings, defaults included.
fn in_force(settings: Settings) -> v1::MachineSettings {
    let mut all = Settings::default();
    Setting::ALL.iter().for_each(|setting| setting.settle(&mut all, setting.in_force(&settings)));
    all.into()
}

impl TryFrom<v1::Machine> for MachineInfo {
    type Error = Error;

    fn try_from(message: v1::Machine) -> Result<MachineInfo, Error> {
        Ok(MachineInfo {
            name: message.name,
            group: GroupId(message.group),
            module: digest(&message.module)?,
            world: world(message.world)?,
            created: LogTime(message.created_at_ms),
            input_fuel: message.input_fuel,
            engine: message.engine,
            replica: message.replica.map(TryInto::try_into).transpose()?,
            replicas: message.replicas.into_iter().map(NodeId).collect(),
            replicas_wanted: message.replicas_wanted,
            settings: message.settings.map(Into::into),
        })
    }
}

/// A node's status as a message; `not_ready` is why it takes no requests.
pub fn status(status: NodeStatus, not_ready: Option<String>) -> v1::StatusResponse {
    let halted = |machine: &MachineInfo| machine.replica.as_ref().is_some_and(|r| r.halted.is_some());
    v1::StatusResponse {
        node: status.node.0,
        name: status.name,
        version: status.version.to_string(),
        engine: status.engine,
        uptime_ms: status.uptime.as_millis() as u64,
        data_dir: status.data_dir.display().to_string(),
        machines: status.machines.len() as u64,
        modules: status.modules as u64,
        halted_machines: status.machines.iter().filter(|m| halted(m)).map(|m| m.name.clone()).collect(),
        not_ready,
    }
}

/// What a client knows of a node.
#[derive(Clone, Debug)]
pub struct RemoteStatus {
    /// The node's id.
    pub node: NodeId,
    /// The node's name.
    pub name: String,
    /// The version of `statehouse` that it runs.
    pub version: String,
    /// The WebAssembly engine and its settings, to which machines are bound.
    pub engine: String,
    /// How long it has been serving.
    pub uptime: Duration,
    /// Where its data is, on its own computer.
    pub data_dir: PathBuf,
    /// How many machines there are.
    pub machines: u64,
    /// How many modules there are.
    pub modules: u64,
    /// Machines whose replica there has stopped after a fault.
    pub halted_machines: Vec<String>,
    /// Why the node takes no requests, if it does not.
    pub not_ready: Option<String>,
}

impl From<v1::StatusResponse> for RemoteStatus {
    fn from(message: v1::StatusResponse) -> RemoteStatus {
        RemoteStatus {
            node: NodeId(message.node),
            name: message.name,
            version: message.version,
            engine: message.engine,
            uptime: Duration::from_millis(message.uptime_ms),
            data_dir: message.data_dir.into(),
            machines: message.machines,
            modules: message.modules,
            halted_machines: message.halted_machines,
            not_ready: message.not_ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn every_outcome_of_a_command_crosses_the_wire() {
        let mut outcomes: Vec<Outcome> = HostCode::ALL.into_iter().map(Outcome::Host).collect();
        outcomes.push(Outcome::Ok(Bytes::from_static(b"answer")));
        outcomes.push(Outcome::Ok(Bytes::new()));
        outcomes.push(Outcome::Refused(Refusal { code: 7, message: "no".into() }));
        for outcome in outcomes {
            let applied = Applied { index: Index(3), revision: Revision(9), outcome };
            let message = v1::ApplyResponse::from(applied.clone());
            assert_eq!(Applied::try_from(message).unwrap(), applied);
        }
    }

    #[test]
    fn every_outcome_of_a_query_crosses_the_wire() {
        let refused = Refusal { code: 7, message: "no".into() };
        for outcome in [Ok(Bytes::from_static(b"answer")), Ok(Bytes::new()), Err(refused)] {
            let answered = Answered { index: Index(3), revision: Revision(9), outcome };
            let message = v1::QueryResponse::from(answered.clone());
            assert_eq!(Answered::try_from(message).unwrap(), answered);
        }
    }

    #[test]
    fn an_answer_without_an_outcome_is_an_error() {
        assert!(Applied::try_from(v1::ApplyResponse::default()).is_err());
        assert!(Answered::try_from(v1::QueryResponse::default()).is_err());
    }

    #[test]
    fn a_consistency_crosses_the_wire() {
        let all = [Consistency::Linearizable, Consistency::Lease, Consistency::Local { min_index: Index(5) }];
        for asked in all {
            let (mode, min_index) = consistency_fields(asked);
            let query = v1::QueryRequest { consistency: mode.into(), min_index, ..Default::default() };
            assert_eq!(consistency(&query).unwrap(), asked);
        }
    }

    #[test]
    fn a_consistency_that_contradicts_itself_is_refused() {
        let query = v1::QueryRequest { min_index: 5, ..Default::default() };
        assert!(consistency(&query).unwrap_err().to_string().contains("min_index 5"));
        let query = v1::QueryRequest { consistency: 17, ..Default::default() };
        assert!(consistency(&query).unwrap_err().to_string().contains("17"));
    }

    #[test]
    fn a_machine_crosses_the_wire() {
        let machine = MachineInfo {
            name: "orders".into(),
            group: GroupId(4),
            module: Digest::of(b"m"),
            world: World::Resident,
            created: LogTime(12),
            input_fuel: 1_000,
            engine: "48.0.8_00ff".into(),
            replica: Some(ReplicaInfo {
                term: Term(2),
                leader: Some(NodeId(8)),
                applied: Index(100),
                revision: Revision(50),
                hash: StateHash([7; 32]),
                halted: Some("a flipped byte".into()),
            }),
            replicas: vec![NodeId(8), NodeId(u64::MAX)],
            replicas_wanted: 3,
            settings: Some(Settings { session_window: Some(9), history_ms: Some(7), ..Settings::default() }),
        };
        assert_eq!(MachineInfo::try_from(v1::Machine::from(machine.clone())).unwrap(), machine);
    }
}
