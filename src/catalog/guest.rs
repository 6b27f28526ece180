//! The catalog's own machine: what its commands do.

use bytes::Bytes;
use prost::Message;

use super::record::{Change, Command, ModuleRecord, RefusalCode};
use super::store::{Failure, Store, refuse};
use super::{machines, nodes, rows};
use crate::error::Fault;
use crate::id::{Digest, GroupId};
use crate::machine::frame::{CallError, Frame};
use crate::machine::guest::{Components, Ending, Guest, Input, Instance, QueryView, Unready};
use crate::machine::outcome::{Context, Refusal};

/// The catalog's own machine.
pub struct CatalogGuest;

impl Components for CatalogGuest {
    fn component(&mut self, _: Digest) -> Result<Box<dyn Guest>, Unready> {
        Ok(Box::new(CatalogGuest))
    }
}

impl Guest for CatalogGuest {
    fn instance(&mut self) -> Result<Box<dyn Instance>, Fault> {
        Ok(Box::new(CatalogInstance))
    }
}

struct CatalogInstance;

impl Instance for CatalogInstance {
    fn apply(&mut self, mut frame: Frame, context: Context, input: &Input) -> (Frame, Ending) {
        let result = match input {
            Input::Command(bytes) => change(&mut frame, context, bytes),
            Input::Created(_) | Input::LeaseEnded { .. } | Input::Upgraded { .. } => Ok(Bytes::new()),
        };
        let ending = match result {
            Ok(answer) => Ending::Answer(answer),
            Err(Failure::Refused(code, message)) => Ending::Refused(Refusal { code: code as u32, message }),
            Err(Failure::Call(CallError::Limit(what))) => Ending::Trapped(what),
            Err(Failure::Call(CallError::Fault(fault))) => Ending::Fault(fault),
        };
        (frame, ending)
    }

    fn scale_budget(&mut self, _factor: u32) {
        // Native code has no fuel.
    }

    fn query(&mut self, frame: Frame, _view: QueryView, _request: &[u8]) -> (Frame, Ending) {
        (frame, Ending::Trapped("the catalog is read from the node's copy".into()))
    }

    fn save(&mut self, frame: Frame) -> (Frame, Ending) {
        (frame, Ending::Trapped("the catalog keeps its state in the store".into()))
    }

    fn restore(&mut self, frame: Frame) -> (Frame, Ending) {
        (frame, Ending::Trapped("the catalog keeps its state in the store".into()))
    }
}

fn change(frame: &mut Frame, context: Context, bytes: &Bytes) -> Result<Bytes, Failure> {
    let command = Command::decode(bytes.clone()).ok().and_then(|command| command.change);
    let store = &mut Store { frame };
    store.index_once()?;
    match command {
        Some(Change::RegisterModule(record)) => register_module(store, context, record),
        Some(Change::CreateMachine(record)) => machines::create(store, context, record),
        Some(Change::MachineReady(group)) => machines::ready(store, group),
        Some(Change::MachineUpgraded(upgraded)) => machines::upgraded(store, &upgraded),
        Some(Change::RemoveMachine(group)) => machines::remove(store, group),
        Some(Change::AddNode(record)) => nodes::add(store, context, record),
        Some(Change::RemoveNode(node)) => nodes::remove(store, node),
        Some(Change::PromoteNode(node)) => nodes::promote(store, node),
        Some(Change::ReplicaGone(gone)) if gone.group == GroupId::CATALOG.0 => {
            nodes::replica_gone(store, gone.replica)
        }
        Some(Change::ReplicaGone(gone)) => machines::replica_gone(store, gone.group, gone.replica),
        None => refuse(RefusalCode::Malformed, "not a command of the catalog"),
    }
}

fn register_module(store: &mut Store, context: Context, mut record: ModuleRecord) -> Result<Bytes, Failure> {
    if record.digest.len() != 32 {
        let what = format!("a digest of {} bytes; 32 are needed", record.digest.len());
        return refuse(RefusalCode::Malformed, what);
    }
    if !store.has_module(&record.digest)? {
        record.pushed_ms = context.time;
        store.frame.set(rows::key(rows::MODULES, &record.digest), record.encode_to_vec())?;
    }
    Ok(Bytes::new())
}
