//! What `wasmtime` generates from `wit/machine.wit`, for the exports of the two worlds; and our own types for
//! the values that the imports of the contract pass.
//!
//! Imports are linked by hand (`host`), because a generated import cannot charge fuel and copies every list.

use wasmtime::component::{ComponentType, Lift, Lower};

/// The exports of the world `stored`.
pub mod stored {
    wasmtime::component::bindgen!({
        path: "wit",
        inline: "package statehouse:exports; world stored { export statehouse:machine/behavior@0.1.0; }",
        world: "statehouse:exports/stored",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

/// The exports of the world `resident`.
pub mod resident {
    wasmtime::component::bindgen!({
        path: "wit",
        inline: "package statehouse:exports; world resident {
            export statehouse:machine/behavior@0.1.0;
            export statehouse:machine/snapshot@0.1.0;
        }",
        world: "statehouse:exports/resident",
        ownership: Borrowing { duplicate_if_necessary: true },
        with: { "statehouse:machine/types@0.1.0": crate::wasm::bindings::stored::statehouse::machine::types },
    });
}

/// `store.pair`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub struct Pair {
    /// Its key.
    #[component(name = "key")]
    pub key: Vec<u8>,
    /// Its value.
    #[component(name = "value")]
    pub value: Vec<u8>,
}

/// `events.kind`.
#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "lifting makes the cases from their numbers")]
pub enum Kind {
    /// A new value.
    #[component(name = "put")]
    Put,
    /// Gone.
    #[component(name = "delete")]
    Delete,
}

/// `leases.failure`.
#[derive(Clone, Copy, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub enum Failure {
    /// No such lease.
    #[component(name = "unknown-lease")]
    UnknownLease,
    /// As many as there may be.
    #[component(name = "too-many")]
    TooMany,
}

/// `log.level`.
#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
pub enum Level {
    /// For whoever writes the guest.
    #[component(name = "debug")]
    Debug,
    /// For whoever runs it.
    #[component(name = "info")]
    Info,
    /// Odd.
    #[component(name = "warn")]
    Warn,
    /// Wrong.
    #[component(name = "error")]
    Error,
}
