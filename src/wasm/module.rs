//! A loaded module: its machine code, linked with the contract, ready for instances.
//!
//! Promises: only code whose sum, digest and fingerprint are right is loaded; what is linked is the contract
//! and the allowed part of WASI, and nothing else.

use std::path::Path;
use std::sync::Arc;

use wasmtime::component::{Component, Linker};

use super::bindings::{resident, stored};
use super::data::Data;
use super::engine::Engine;
use super::instance::{GuestSettings, Live, WasmGuest};
use super::limits::INSTANTIATION_FUEL;
use super::query::QueryPool;
use super::{host, wasi};
use crate::error::Fault;
use crate::machine::guest::{Guest, World};

/// Why a module was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The compiled form is damaged or of another engine: compile the module again.
    #[error("{0}")]
    Stale(String),
    /// The module itself cannot be linked or instantiated: refuse it.
    #[error("{0}")]
    Rejected(String),
    /// This computer failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

fn unlinked(error: &wasmtime::Error) -> String {
    format!(
        "the module does not fit the contract: {error:#}; build it with the machine.wit of this version and \
         interfaces of WASI 0.2 as they are published"
    )
}

/// A module that is ready to make instances. Clones share it.
#[derive(Clone)]
pub struct Module {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    exports: Exports,
}

/// The component with its imports resolved and its exports found.
pub(super) enum Exports {
    Stored(stored::StoredPre<Data>),
    Resident(resident::ResidentPre<Data>),
}

impl Module {
    /// Loads what [`Compiler`](super::compile::Compiler) made of a component of `world`. The caller has
    /// compared the file with the sum that was kept when it was stored.
    ///
    /// # Errors
    /// `Stale` if the file must be made again; `Rejected` if the component does not fit the contract after
    /// all.
    pub fn load(engine: &Engine, artefact: &Path, world: World) -> Result<Module, LoadError> {
        // SAFETY: undefined behaviour is possible only with bytes that this wasmtime did not make, or that
        // change while they are mapped. The file is written only by this program, from what its own compiler
        // made, and replaced only by renaming; its sum was checked just now; and wasmtime compares its own
        // version and settings. Whoever can write into the data directory can replace the program as well.
        let component = unsafe { Component::deserialize_file(engine.wasmtime(), artefact) };
        let component = component.map_err(|e| {
            LoadError::Stale(format!("the compiled module {} cannot be loaded: {e:#}", artefact.display()))
        })?;
        let exports = link(engine, &component, world).map_err(|e| LoadError::Rejected(unlinked(&e)))?;
        Ok(Module { shared: Arc::new(Shared { engine: engine.clone(), exports }) })
    }

    /// Makes one instance and drops it, within the fixed budget: at upload, to refuse a module that could
    /// never run.
    pub fn try_instance(&self) -> Result<(), LoadError> {
        let live = Live::make(self, [0; 32], self.engine().settings().memory_bytes_max)?;
        match live.broken() {
            Some(why) => Err(LoadError::Rejected(format!(
                "the module cannot be used: {why}; what it does before its first input must end within \
                 {INSTANTIATION_FUEL} of fuel and without a trap: leave it to the input `created`"
            ))),
            None => Ok(()),
        }
    }

    /// The component for one machine. `seed` is the machine's own, the same on every replica; it makes the
    /// random bytes of guests that ask for them.
    pub fn guest(&self, seed: [u8; 32], settings: GuestSettings) -> Box<dyn Guest> {
        Box::new(self.wasm_guest(seed, settings))
    }

    /// The same by its own type, whose instances tell what they used.
    pub fn wasm_guest(&self, seed: [u8; 32], settings: GuestSettings) -> WasmGuest {
        WasmGuest::new(self.clone(), seed, settings)
    }

    /// Warm instances for the queries of one machine.
    pub fn queries(&self, seed: [u8; 32]) -> QueryPool {
        QueryPool::new(self.clone(), seed)
    }

    /// The world that it was made for.
    pub fn world(&self) -> World {
        match self.shared.exports {
            Exports::Stored(_) => World::Stored,
            Exports::Resident(_) => World::Resident,
        }
    }

    /// The engine that runs it.
    pub fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    pub(super) fn exports(&self) -> &Exports {
        &self.shared.exports
    }
}

/// Resolves the imports, which validation has compared with the contract.
fn link(engine: &Engine, component: &Component, world: World) -> wasmtime::Result<Exports> {
    let mut linker = Linker::new(engine.wasmtime());
    host::link_host(&mut linker)?;
    match world {
        World::Stored => host::link_store(&mut linker)?,
        World::Resident => host::link_snapshot_stream(&mut linker)?,
    }
    for (name, _) in component.component_type().imports(engine.wasmtime()) {
        if !name.starts_with("statehouse:machine/") {
            wasi::link(&mut linker, name)?;
        }
    }
    // What is left of the allowed interfaces of WASI traps when it is called.
    linker.define_unknown_imports_as_traps(component)?;
    let pre = linker.instantiate_pre(component)?;
    Ok(match world {
        World::Stored => Exports::Stored(stored::StoredPre::new(pre)?),
        World::Resident => Exports::Resident(resident::ResidentPre::new(pre)?),
    })
}
