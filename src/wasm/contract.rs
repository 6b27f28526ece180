//! The types of the contract as they cross the boundary between host and guest. Their shapes are checked
//! against the component when it is loaded.

// Guests make the values of `EventKind` and `Level`; rustc only sees that nobody here does.
#![allow(dead_code)]

use wasmtime::component::{ComponentType, Lift, Lower};

use crate::machine::frame::{LeaseFailure, LogLevel};
use crate::machine::guest::{self, QueryView};
use crate::machine::outcome;

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
pub struct Context {
    index: u64,
    offset: u32,
    time: u64,
    revision: u64,
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
pub struct View {
    index: u64,
    time: u64,
    revision: u64,
}

#[derive(ComponentType, Lower, Clone)]
#[component(record)]
pub struct LeaseEnd {
    lease: u64,
    keys: Vec<Vec<u8>>,
}

#[derive(ComponentType, Lower, Clone)]
#[component(record)]
pub struct Upgrade {
    previous: String,
    argument: Vec<u8>,
}

#[derive(ComponentType, Lower, Clone)]
#[component(variant)]
pub enum Input {
    #[component(name = "created")]
    Created(Vec<u8>),
    #[component(name = "command")]
    Command(Vec<u8>),
    #[component(name = "lease-ended")]
    LeaseEnded(LeaseEnd),
    #[component(name = "upgraded")]
    Upgraded(Upgrade),
}

#[derive(ComponentType, Lift, Clone, Debug)]
#[component(record)]
pub struct Refusal {
    pub code: u32,
    pub message: String,
}

#[derive(ComponentType, Lower, Clone)]
#[component(record)]
pub struct Pair {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub enum EventKind {
    #[component(name = "put")]
    Put,
    #[component(name = "delete")]
    Delete,
}

#[derive(ComponentType, Lower, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub enum Failure {
    #[component(name = "unknown-lease")]
    UnknownLease,
    #[component(name = "too-many")]
    TooMany,
}

#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub enum Level {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

impl From<outcome::Context> for Context {
    fn from(context: outcome::Context) -> Context {
        let outcome::Context { index, offset, time, revision } = context;
        Context { index, offset, time, revision }
    }
}

impl From<QueryView> for View {
    fn from(view: QueryView) -> View {
        View { index: view.index, time: view.time, revision: view.revision }
    }
}

impl From<&guest::Input> for Input {
    fn from(input: &guest::Input) -> Input {
        match input {
            guest::Input::Created(bytes) => Input::Created(bytes.to_vec()),
            guest::Input::Command(bytes) => Input::Command(bytes.to_vec()),
            guest::Input::LeaseEnded { lease, keys } => {
                Input::LeaseEnded(LeaseEnd { lease: *lease, keys: keys.clone() })
            }
            guest::Input::Upgraded { previous, argument } => {
                Input::Upgraded(Upgrade { previous: previous.clone(), argument: argument.to_vec() })
            }
        }
    }
}

impl From<LeaseFailure> for Failure {
    fn from(failure: LeaseFailure) -> Failure {
        match failure {
            LeaseFailure::UnknownLease => Failure::UnknownLease,
            LeaseFailure::TooMany => Failure::TooMany,
        }
    }
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> LogLevel {
        match level {
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        }
    }
}
