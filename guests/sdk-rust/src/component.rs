//! The real host: the imports and exports of a component, generated from the contract, and what lies between
//! them and this crate's traits. Only the macros use it.
//!
//! The worlds are generated in parts, because a crate can hold the exports of an interface only once. Which
//! of them a component is of follows from the parts that it uses: imports that it does not call are left out
//! of it.

use std::io::{self, Read, Write};
use std::marker::PhantomData;

use self::both::exports::statehouse::machine::behavior;
use self::both::statehouse::machine::{events, leases, log, types};
use crate::host::{EventKind, Host, LeaseFailure, LogLevel, Map};
use crate::machine::{Answer, LeaseEnd, Refusal, Resident, Stored, Upgrade};
use crate::{Change, Store, View};

/// What both worlds have.
#[allow(missing_docs, reason = "generated")]
pub mod both {
    wit_bindgen::generate!({
        path: "wit",
        generate_all,
        inline: "package statehouse:rust;
            world both {
                include statehouse:machine/host@0.1.0;
                export statehouse:machine/behavior@0.1.0;
            }",
        world: "statehouse:rust/both",
        pub_export_macro: true,
        export_macro_name: "export_behavior",
        default_bindings_module: "statehouse_guest::component::both",
    });
}

/// What stored components have besides.
mod stored {
    wit_bindgen::generate!({
        path: "wit",
        generate_all,
        inline: "package statehouse:rust;
            world stored-only { import statehouse:machine/store@0.1.0; }",
        world: "statehouse:rust/stored-only",
    });
}

/// What resident components have besides.
#[allow(missing_docs, reason = "generated")]
pub mod resident {
    wit_bindgen::generate!({
        path: "wit",
        generate_all,
        inline: "package statehouse:rust;
            world resident-only {
                import statehouse:machine/snapshot-stream@0.1.0;
                export statehouse:machine/snapshot@0.1.0;
            }",
        world: "statehouse:rust/resident-only",
        pub_export_macro: true,
        export_macro_name: "export_snapshot",
        default_bindings_module: "statehouse_guest::component::resident",
    });
}

/// The imports of both worlds.
struct Imports;

impl From<leases::Failure> for LeaseFailure {
    fn from(failure: leases::Failure) -> LeaseFailure {
        match failure {
            leases::Failure::UnknownLease => LeaseFailure::UnknownLease,
            leases::Failure::TooMany => LeaseFailure::TooMany,
        }
    }
}

impl Host for Imports {
    fn emit(&self, kind: EventKind, key: &[u8], value: &[u8]) {
        let kind = match kind {
            EventKind::Put => events::Kind::Put,
            EventKind::Delete => events::Kind::Delete,
        };
        events::emit(kind, key, value);
    }

    fn grant(&self, ttl_ms: u64) -> Result<u64, LeaseFailure> {
        Ok(leases::grant(ttl_ms)?)
    }

    fn revoke(&self, lease: u64) -> Result<(), LeaseFailure> {
        Ok(leases::revoke(lease)?)
    }

    fn attach(&self, lease: u64, key: &[u8]) -> Result<(), LeaseFailure> {
        Ok(leases::attach(lease, key)?)
    }

    fn detach(&self, key: &[u8]) {
        leases::detach(key);
    }

    fn remaining(&self, lease: u64) -> Result<u64, LeaseFailure> {
        Ok(leases::remaining(lease)?)
    }

    fn log(&self, level: LogLevel, message: &str) {
        let level = match level {
            LogLevel::Debug => log::Level::Debug,
            LogLevel::Info => log::Level::Info,
            LogLevel::Warn => log::Level::Warn,
            LogLevel::Error => log::Level::Error,
        };
        log::write(level, message);
    }
}

/// The import that only stored components have.
struct StoreImport;

impl Map for StoreImport {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        stored::statehouse::machine::store::get(key)
    }

    fn get_many(&self, keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
        stored::statehouse::machine::store::get_many(keys)
    }

    fn set(&self, key: &[u8], value: &[u8]) {
        stored::statehouse::machine::store::set(key, value);
    }

    fn delete(&self, key: &[u8]) {
        stored::statehouse::machine::store::delete(key);
    }

    fn delete_span(&self, start: &[u8], end: Option<&[u8]>) {
        stored::statehouse::machine::store::delete_span(start, end);
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: u32, backward: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
        let pairs = stored::statehouse::machine::store::scan(start, end, limit, backward);
        pairs.into_iter().map(|pair| (pair.key, pair.value)).collect()
    }
}

fn change(context: &types::Context) -> Change<'static> {
    Change {
        host: &Imports,
        index: context.index,
        offset: context.offset,
        time_ms: context.time,
        revision: context.revision,
    }
}

fn view(view: &types::View) -> View<'static> {
    View { host: &Imports, index: view.index, time_ms: view.time, revision: view.revision }
}

fn told(answer: Answer) -> Result<Vec<u8>, types::Refusal> {
    answer.map_err(|Refusal { code, message }| types::Refusal { code, message })
}

fn lease_end(end: types::LeaseEnd) -> LeaseEnd {
    LeaseEnd { lease: end.lease, keys: end.keys }
}

fn upgrade(upgrade: types::Upgrade) -> Upgrade {
    Upgrade { previous: upgrade.previous, argument: upgrade.argument }
}

/// The exports of a stored machine.
pub struct StoredComponent<M>(PhantomData<M>);

impl<M: Stored> behavior::Guest for StoredComponent<M> {
    fn apply(context: types::Context, input: types::Input) -> Result<Vec<u8>, types::Refusal> {
        let (change, store) = (&change(&context), &mut Store { map: &StoreImport });
        told(match input {
            types::Input::Created(configuration) => M::created(change, store, &configuration),
            types::Input::Command(command) => M::command(change, store, &command),
            types::Input::LeaseEnded(end) => M::lease_ended(change, store, &lease_end(end)),
            types::Input::Upgraded(to) => M::upgraded(change, store, &upgrade(to)),
        })
    }

    fn query(at: types::View, request: Vec<u8>) -> Result<Vec<u8>, types::Refusal> {
        told(M::query(&view(&at), &Store { map: &StoreImport }, &request))
    }
}

/// Where a resident machine's state is: the macro makes it, because it cannot be generic.
pub trait ResidentSlot {
    /// The machine.
    type Machine: Resident;
    /// Gives access to its state; none before it was first used.
    fn with<T>(use_it: impl FnOnce(&mut Option<Self::Machine>) -> T) -> T;
}

/// The exports of a resident machine.
pub struct ResidentComponent<S>(PhantomData<S>);

impl<S: ResidentSlot> behavior::Guest for ResidentComponent<S> {
    fn apply(context: types::Context, input: types::Input) -> Result<Vec<u8>, types::Refusal> {
        let change = &change(&context);
        S::with(|slot| {
            let state = slot.get_or_insert_default();
            told(match input {
                types::Input::Created(configuration) => state.created(change, &configuration),
                types::Input::Command(command) => state.command(change, &command),
                types::Input::LeaseEnded(end) => state.lease_ended(change, &lease_end(end)),
                types::Input::Upgraded(to) => state.upgraded(change, &upgrade(to)),
            })
        })
    }

    fn query(at: types::View, request: Vec<u8>) -> Result<Vec<u8>, types::Refusal> {
        S::with(|slot| told(slot.get_or_insert_default().query(&view(&at), &request)))
    }
}

impl<S: ResidentSlot> resident::exports::statehouse::machine::snapshot::Guest for ResidentComponent<S> {
    fn save() -> Result<(), String> {
        let mut stream = io::BufWriter::with_capacity(CHUNK_BYTES, SnapshotStream);
        S::with(|slot| slot.get_or_insert_default().save(&mut stream))?;
        stream.flush().map_err(|error| error.to_string())
    }

    fn restore() -> Result<(), String> {
        let mut stream = io::BufReader::with_capacity(CHUNK_BYTES, SnapshotStream);
        let state = S::Machine::restore(&mut stream)?;
        S::with(|slot| *slot = Some(state));
        Ok(())
    }
}

/// Bytes of a snapshot that cross at once.
const CHUNK_BYTES: usize = 256 << 10;

/// The import that only resident components have.
struct SnapshotStream;

impl Write for SnapshotStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(CHUNK_BYTES)];
        if !chunk.is_empty() {
            resident::statehouse::machine::snapshot_stream::write(chunk);
        }
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for SnapshotStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        // At most a chunk, so it fits.
        let limit = into.len().min(CHUNK_BYTES) as u32;
        let chunk = resident::statehouse::machine::snapshot_stream::read(limit);
        into[..chunk.len()].copy_from_slice(&chunk);
        Ok(chunk.len())
    }
}
