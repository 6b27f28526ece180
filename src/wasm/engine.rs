//! The engine that all machines of a node run on: the only place that makes a `wasmtime::Config`.
//!
//! What is set here decides what bytes machines compute, so it is part of the fingerprint that each machine
//! records. Features are switched by name, also those that are off by default today, because defaults change
//! between versions.

use wasmtime::{Config, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Strategy};

use crate::error::Fault;

/// The wasmtime version that is pinned in `Cargo.toml`.
const WASMTIME_VERSION: &str = "48.0.8";

/// Raised when a setting here, or a price in `host`, changes what machines compute.
const SETTINGS_VERSION: u32 = 1;

/// Bytes of stack that a guest may use. Fuel reaches its end first in all but the deepest recursions, and
/// both trap.
const STACK_BYTES_MAX: usize = 512 << 10;

/// Elements of a table, at most.
pub const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Core instances and memories within one component instance, at most.
pub const CORE_INSTANCES_MAX: u32 = 64;

/// What an operator may choose. The memory limit is part of the fingerprint: whether a guest's memory may
/// grow is part of what it computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// Linear memory of one instance, at most.
    pub memory_bytes_max: usize,
    /// Instances at the same time, of all modules together.
    pub instances_max: u32,
}

impl Default for EngineSettings {
    fn default() -> EngineSettings {
        EngineSettings { memory_bytes_max: 256 << 20, instances_max: 1_000 }
    }
}

/// A configured engine. Copies share one.
#[derive(Clone)]
pub struct Engine {
    pub(super) engine: wasmtime::Engine,
    pub(super) settings: EngineSettings,
    fingerprint: String,
}

impl Engine {
    /// The engine of a node.
    pub fn new(settings: EngineSettings) -> Result<Engine, Fault> {
        let engine = wasmtime::Engine::new(&config(settings)).map_err(|e| {
            Fault::new(format!("the WebAssembly engine cannot be set up on this computer: {e:#}"))
        })?;
        let text = format!(
            "wasmtime {WASMTIME_VERSION} settings {SETTINGS_VERSION} memory {} stack {STACK_BYTES_MAX} table \
             {TABLE_ELEMENTS_MAX}",
            settings.memory_bytes_max
        );
        let hash = blake3::hash(text.as_bytes()).to_hex();
        let fingerprint = format!("{WASMTIME_VERSION}_{}", &hash[..16]);
        Ok(Engine { engine, settings, fingerprint })
    }

    /// Names the version and the settings: machines that ran under one fingerprint are never run under
    /// another.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn config(settings: EngineSettings) -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_nan_canonicalization(true)
        .consume_fuel(true)
        .epoch_interruption(false)
        .max_wasm_stack(STACK_BYTES_MAX)
        .wasm_backtrace_max_frames(None)
        .memory_init_cow(true)
        .concurrency_support(false)
        .shared_memory(false);
    on(&mut config);
    off(&mut config);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pooling(settings)));
    config
}

/// What guests may use: what compilers emit by default today, all of it deterministic.
fn on(config: &mut Config) {
    config
        .wasm_component_model(true)
        .wasm_simd(true)
        .wasm_bulk_memory(true)
        .wasm_multi_value(true)
        .wasm_features(wasmtime::WasmFeatures::REFERENCE_TYPES, true)
        .wasm_tail_call(true)
        .wasm_extended_const(true);
}

/// What they may not: chance, threads, or simply not needed yet. Features whose code is not compiled in have
/// no switch.
fn off(config: &mut Config) {
    config
        .wasm_relaxed_simd(false)
        .relaxed_simd_deterministic(true)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_wide_arithmetic(false)
        .wasm_custom_page_sizes(false)
        .wasm_features(wasmtime::WasmFeatures::THREADS, false)
        .wasm_features(wasmtime::WasmFeatures::SHARED_EVERYTHING_THREADS, false)
        .wasm_features(wasmtime::WasmFeatures::EXCEPTIONS, false)
        .wasm_features(wasmtime::WasmFeatures::LEGACY_EXCEPTIONS, false)
        .wasm_features(wasmtime::WasmFeatures::FUNCTION_REFERENCES, false)
        .wasm_features(wasmtime::WasmFeatures::GC, false)
        .wasm_features(wasmtime::WasmFeatures::STACK_SWITCHING, false)
        .wasm_features(wasmtime::WasmFeatures::CM_ASYNC, false)
        .wasm_features(wasmtime::WasmFeatures::CM_THREADING, false)
        .wasm_features(wasmtime::WasmFeatures::CM_ERROR_CONTEXT, false)
        .wasm_features(wasmtime::WasmFeatures::CM_GC, false);
}

fn pooling(settings: EngineSettings) -> PoolingAllocationConfig {
    let mut pooling = PoolingAllocationConfig::new();
    pooling
        .total_component_instances(settings.instances_max)
        .total_core_instances(settings.instances_max * 4)
        .total_memories(settings.instances_max)
        .total_tables(settings.instances_max * 2)
        .max_memory_size(settings.memory_bytes_max)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(1)
        .max_tables_per_component(8)
        .max_unused_warm_slots(16)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(16 << 10);
    pooling
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_tells_settings_apart() {
        let one = Engine::new(EngineSettings::default()).unwrap();
        let other =
            Engine::new(EngineSettings { memory_bytes_max: 64 << 20, ..EngineSettings::default() }).unwrap();
        assert_ne!(one.fingerprint(), other.fingerprint());
        assert!(one.fingerprint().starts_with(WASMTIME_VERSION));
    }

    #[test]
    fn the_version_is_the_one_in_the_manifest() {
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains(&format!("wasmtime = {{ version = \"={WASMTIME_VERSION}\"")));
    }
}
