//! A compiled component, linked with the host: ready to be instantiated.

use std::path::Path;

use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};

use super::engine::Engine;
use super::instance::{Data, GuestSettings, ModuleGuest};
use super::query::QueryPool;
use super::validate::World;
use super::{host, wasi};
use crate::error::Fault;
use crate::machine::guest::Guest;

/// A loaded module. Copies share its code.
#[derive(Clone)]
pub struct Module {
    pub(super) pre: InstancePre<Data>,
    pub(super) exports: Exports,
    pub(super) memory_bytes_max: usize,
}

/// Where the contract's functions are among the component's exports.
#[derive(Clone, Copy)]
pub struct Exports {
    pub(super) apply: ComponentExportIndex,
    pub(super) query: ComponentExportIndex,
    pub(super) snapshot: Option<(ComponentExportIndex, ComponentExportIndex)>,
}

impl Module {
    /// Loads what [`compile`](super::compile) made. The caller has verified that the file is what was stored.
    pub fn load(engine: &Engine, artefact: &Path, world: World) -> Result<Module, Fault> {
        // SAFETY: the file was made by this program's own compiler process and is compared, every byte, with
        // the sum that was kept when it was stored; wasmtime compares its version and settings itself.
        let component = unsafe { Component::deserialize_file(&engine.engine, artefact) };
        let component = component.map_err(|e| {
            Fault::new(format!(
                "the compiled module {} cannot be loaded: {e:#}; remove it",
                artefact.display()
            ))
        })?;
        let unfit = |e: wasmtime::Error| Fault::new(format!("the module does not fit the contract: {e:#}"));
        let mut linker = Linker::new(&engine.engine);
        host::link(&mut linker, world).map_err(unfit)?;
        wasi::link(&mut linker, &component).map_err(unfit)?;
        let exports = exports(&component, world)?;
        let pre = linker.instantiate_pre(&component).map_err(unfit)?;
        Ok(Module { pre, exports, memory_bytes_max: engine.settings.memory_bytes_max })
    }

    /// A maker of instances for one machine.
    pub fn guest(&self, seed: [u8; 32], settings: GuestSettings) -> Box<dyn Guest> {
        Box::new(ModuleGuest::new(self.clone(), seed, settings))
    }

    /// Warm instances for the queries of one machine.
    pub fn queries(&self, seed: [u8; 32], settings: GuestSettings) -> QueryPool {
        QueryPool::new(self.clone(), seed, settings)
    }
}

fn exports(component: &Component, world: World) -> Result<Exports, Fault> {
    let find = |interface: &str, function: &str| {
        let instance = component.get_export_index(None, interface);
        let index = instance.and_then(|instance| component.get_export_index(Some(&instance), function));
        index.ok_or_else(|| Fault::new(format!("the module does not export {interface} {function}")))
    };
    const BEHAVIOR: &str = "statehouse:machine/behavior@0.1.0";
    const SNAPSHOT: &str = "statehouse:machine/snapshot@0.1.0";
    let snapshot = match world {
        World::Stored => None,
        World::Resident => Some((find(SNAPSHOT, "save")?, find(SNAPSHOT, "restore")?)),
    };
    Ok(Exports { apply: find(BEHAVIOR, "apply")?, query: find(BEHAVIOR, "query")?, snapshot })
}
