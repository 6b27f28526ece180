//! The component: the contract's imports as a [`Host`], and its exports. Compiled for WebAssembly only.

use std::borrow::Cow;

use crate::arena::Arena;
use crate::host::{EventKind, Host, Input, Moment, Pair, Read, TooManyLeases, UnknownLease};
use crate::refusal::Refusal;

wit_bindgen::generate!({ world: "stored", path: "../../wit" });

use exports::statehouse::machine::behavior::Guest;
use statehouse::machine::{events, leases, store, types};

/// Enough for a batch of some hundred puts of 256 bytes.
#[global_allocator]
static MEMORY: Arena<{ 256 << 10 }> = Arena::new();

/// The imports.
struct Imports;

impl Read for Imports {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        store::get(key)
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: u32) -> Vec<Pair> {
        store::scan(start, end, limit, false).into_iter().map(|pair| (pair.key, pair.value)).collect()
    }

    fn remaining_ms(&self, lease: u64) -> Result<u64, UnknownLease> {
        leases::remaining(lease).map_err(|_| UnknownLease)
    }
}

impl Host for Imports {
    fn set(&mut self, key: &[u8], value: &[u8]) {
        store::set(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        store::delete(key);
    }

    fn emit(&mut self, kind: EventKind, key: &[u8], value: &[u8]) {
        let kind = match kind {
            EventKind::Put => events::Kind::Put,
            EventKind::Delete => events::Kind::Delete,
        };
        events::emit(kind, key, value);
    }

    fn grant(&mut self, ttl_ms: u64) -> Result<u64, TooManyLeases> {
        leases::grant(ttl_ms).map_err(|_| TooManyLeases)
    }

    fn revoke(&mut self, lease: u64) -> Result<(), UnknownLease> {
        leases::revoke(lease).map_err(|_| UnknownLease)
    }

    fn attach(&mut self, lease: u64, key: &[u8]) -> Result<(), UnknownLease> {
        leases::attach(lease, key).map_err(|_| UnknownLease)
    }

    fn detach(&mut self, key: &[u8]) {
        leases::detach(key);
    }
}

impl From<Refusal> for types::Refusal {
    fn from(refusal: Refusal) -> types::Refusal {
        types::Refusal { code: refusal.code, message: Cow::into_owned(refusal.message) }
    }
}

/// The exports.
struct Component;

impl Guest for Component {
    fn apply(context: types::Context, input: types::Input) -> Result<Vec<u8>, types::Refusal> {
        let moment = Moment { revision: context.revision, time_ms: context.time };
        let input = match &input {
            types::Input::Created(configuration) => Input::Created(configuration),
            types::Input::Command(command) => Input::Command(command),
            types::Input::LeaseEnded(end) => Input::LeaseEnded { lease: end.lease, keys: &end.keys },
            types::Input::Upgraded(_) => Input::Upgraded,
        };
        Ok(crate::apply(&mut Imports, moment, input)?)
    }

    fn query(view: types::View, request: Vec<u8>) -> Result<Vec<u8>, types::Refusal> {
        Ok(crate::query(&Imports, Moment { revision: view.revision, time_ms: view.time }, &request)?)
    }
}

export!(Component);
