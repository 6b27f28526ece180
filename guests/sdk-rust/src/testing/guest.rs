//! Both kinds of machine behind one trait, so that a test host need not know which it has.

use std::fmt;
use std::marker::PhantomData;

use super::shown;
use crate::host::Map;
use crate::machine::{Answer, LeaseEnd, Resident, Stored, Upgrade};
use crate::{Change, Store, View};

/// What changes a machine.
pub enum Input<'a> {
    Created(&'a [u8]),
    Command(&'a [u8]),
    LeaseEnded(&'a LeaseEnd),
    Upgraded(&'a Upgrade),
}

impl fmt::Display for Input<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Input::Created(configuration) => write!(f, "created with {}", shown(configuration)),
            Input::Command(command) => write!(f, "the command {}", shown(command)),
            Input::LeaseEnded(end) => write!(f, "the end of lease {}", end.lease),
            Input::Upgraded(upgrade) => write!(f, "the upgrade with {}", shown(&upgrade.argument)),
        }
    }
}

pub trait Guest {
    fn apply(&mut self, change: &Change, map: &dyn Map, input: &Input) -> Answer;
    fn query(&self, view: &View, map: &dyn Map, request: &[u8]) -> Answer;
    /// What the machine keeps in its own memory: nothing, of a stored one.
    fn save(&self) -> Vec<u8>;
    fn restore(&mut self, memory: &[u8]);
}

pub struct StoredGuest<M>(PhantomData<M>);

impl<M> StoredGuest<M> {
    pub fn new() -> StoredGuest<M> {
        StoredGuest(PhantomData)
    }
}

impl<M: Stored> Guest for StoredGuest<M> {
    fn apply(&mut self, change: &Change, map: &dyn Map, input: &Input) -> Answer {
        let store = &mut Store { map };
        match input {
            Input::Created(configuration) => M::created(change, store, configuration),
            Input::Command(command) => M::command(change, store, command),
            Input::LeaseEnded(end) => M::lease_ended(change, store, end),
            Input::Upgraded(upgrade) => M::upgraded(change, store, upgrade),
        }
    }

    fn query(&self, view: &View, map: &dyn Map, request: &[u8]) -> Answer {
        M::query(view, &Store { map }, request)
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, memory: &[u8]) {
        assert!(
            memory.is_empty(),
            "a stored machine has no memory of its own: this is another machine's snapshot"
        );
    }
}

pub struct ResidentGuest<M>(M);

impl<M: Resident> ResidentGuest<M> {
    pub fn new() -> ResidentGuest<M> {
        ResidentGuest(M::default())
    }
}

impl<M: Resident> Guest for ResidentGuest<M> {
    fn apply(&mut self, change: &Change, _: &dyn Map, input: &Input) -> Answer {
        match input {
            Input::Created(configuration) => self.0.created(change, configuration),
            Input::Command(command) => self.0.command(change, command),
            Input::LeaseEnded(end) => self.0.lease_ended(change, end),
            Input::Upgraded(upgrade) => self.0.upgraded(change, upgrade),
        }
    }

    fn query(&self, view: &View, _: &dyn Map, request: &[u8]) -> Answer {
        self.0.query(view, request)
    }

    fn save(&self) -> Vec<u8> {
        let mut memory = Vec::new();
        self.0.save(&mut memory).unwrap_or_else(|why| panic!("the machine cannot be saved: {why}"));
        memory
    }

    fn restore(&mut self, memory: &[u8]) {
        self.0 =
            M::restore(&mut &*memory).unwrap_or_else(|why| panic!("the machine cannot be restored: {why}"));
    }
}
