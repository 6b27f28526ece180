//! The one place that makes a `wasmtime::Config`: every setting that an answer could depend on, by name.
//!
//! Promises: two engines with the same [`Engine::fingerprint`] give the same answers, and the same fuel, for
//! the same inputs. Never: a default of wasmtime that nobody chose for a WebAssembly feature; each is named
//! here, on or off.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wasmparser::WasmFeatures;
use wasmtime::{
    Config, Enabled, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, RegallocAlgorithm,
    Strategy,
};

use super::limits;
use super::ticker::{Ticker, UnderWay};
use super::wasi;
use crate::error::Fault;

/// The release that `Cargo.toml` pins: part of the fingerprint. A test compares the two.
pub const WASMTIME_VERSION: &str = "48.0.8";

/// Stack of one call into a guest, in bytes. Whoever calls needs about as much again for the host: 2 MiB of
/// thread stack, which is Rust's default.
pub const STACK_BYTES_MAX: usize = 1 << 20;

/// The same for [`Codegen::Plain`].
pub const PLAIN_STACK_BYTES_MAX: usize = 2 << 20;

/// How often an epoch ends: the grain of a query's time limit.
pub const EPOCH_MS: u64 = 10;

/// What a guest may use of WebAssembly. Everything else is off.
///
/// Plain SIMD stays on: its results are fixed to the bit (NaN patterns aside, which are made canonical), and
/// compilers emit it freely. Relaxed SIMD is off, because its results are the processor's choice.
const FEATURES: WasmFeatures = WasmFeatures::FLOATS
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::COMPONENT_MODEL);

/// What the contract leaves out, each by its name: it is off although wasmtime, or its next release, may have
/// it on.
const FEATURES_OFF: WasmFeatures = WasmFeatures::RELAXED_SIMD
    .union(WasmFeatures::THREADS)
    .union(WasmFeatures::SHARED_EVERYTHING_THREADS)
    .union(WasmFeatures::MEMORY64)
    .union(WasmFeatures::MULTI_MEMORY)
    .union(WasmFeatures::EXCEPTIONS)
    .union(WasmFeatures::LEGACY_EXCEPTIONS)
    .union(WasmFeatures::GC)
    .union(WasmFeatures::GC_TYPES)
    .union(WasmFeatures::FUNCTION_REFERENCES)
    .union(WasmFeatures::STACK_SWITCHING)
    .union(WasmFeatures::WIDE_ARITHMETIC)
    .union(WasmFeatures::CUSTOM_PAGE_SIZES)
    .union(WasmFeatures::CUSTOM_DESCRIPTORS)
    .union(WasmFeatures::MEMORY_CONTROL)
    .union(WasmFeatures::COMPACT_IMPORTS)
    .union(WasmFeatures::CM_ASYNC)
    .union(WasmFeatures::CM_ASYNC_STACKFUL)
    .union(WasmFeatures::CM_MORE_ASYNC_BUILTINS)
    .union(WasmFeatures::CM_THREADING)
    .union(WasmFeatures::CM_ERROR_CONTEXT)
    .union(WasmFeatures::CM_VALUES)
    .union(WasmFeatures::CM_NESTED_NAMES)
    .union(WasmFeatures::CM_FIXED_LENGTH_LISTS)
    .union(WasmFeatures::CM_GC)
    .union(WasmFeatures::CM_MAP)
    .union(WasmFeatures::CM64)
    .union(WasmFeatures::CM_IMPLEMENTS)
    .union(WasmFeatures::CM_CANON_NAMES);

/// The WebAssembly features of the contract: what [`validate`](super::validate) checks and the engine
/// compiles.
pub fn features() -> WasmFeatures {
    FEATURES
}

/// The features that the contract leaves out.
pub fn features_off() -> WasmFeatures {
    FEATURES_OFF
}

/// How guests become machine code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codegen {
    /// As nodes run them.
    Optimised,
    /// By other means that must come to the same: no optimisation, another allocation of registers, bounds
    /// checked by instructions instead of by the page table, memory laid out anew for each instance. Slow;
    /// for comparing, never for a node.
    Plain,
}

/// What an operator may set. Must be the same on all nodes of a cluster: the fingerprint tells if it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// Bytes of memory that one instance may have. In the fingerprint: a guest can see it.
    pub memory_bytes_max: usize,
    /// Instances alive on this node at the same time, with their memories. Not in the fingerprint. Costs
    /// address space (4 GiB each), not memory.
    pub instances_max: u32,
    /// Of those, how many may be kept warm for queries, by all machines together.
    pub query_instances_max: u32,
}

impl Default for EngineSettings {
    fn default() -> EngineSettings {
        EngineSettings { memory_bytes_max: 256 << 20, instances_max: 4_096, query_instances_max: 1_024 }
    }
}

impl EngineSettings {
    fn check(&self) -> Result<(), Fault> {
        let memory = self.memory_bytes_max;
        if !memory.is_multiple_of(64 << 10) || !(1 << 20..=4 << 30).contains(&memory) {
            return Err(Fault::new(format!(
                "memory_bytes_max = {memory}: it must be a multiple of 65536 between 1 MiB and 4 GiB"
            )));
        }
        if !(16..=10_000).contains(&self.instances_max) {
            return Err(Fault::new(format!(
                "instances_max = {}: it must be between 16 and 10000",
                self.instances_max
            )));
        }
        if self.query_instances_max > self.instances_max / 2 {
            return Err(Fault::new(format!(
                "query_instances_max = {}: at most half of instances_max = {}",
                self.query_instances_max, self.instances_max
            )));
        }
        Ok(())
    }
}

/// Runs guests. Clones share one engine, which lives as long as the last of them.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    engine: wasmtime::Engine,
    settings: EngineSettings,
    fingerprint: String,
    codegen: Codegen,
    /// Instances kept ahead for the next batch, and warm ones for queries: what may be given up, so it is
    /// bounded.
    prepared: limits::Places,
    warm: limits::Places,
    /// Whether calls are to end, whatever they are at.
    interrupted: AtomicBool,
    ticker: Ticker,
}

impl Engine {
    /// An engine that can run guests: reserves address space for its instances and starts the ticker.
    pub fn new(settings: EngineSettings) -> Result<Engine, Fault> {
        Engine::of(settings, Codegen::Optimised)
    }

    /// The same for code of either kind. Engines of different kinds have different fingerprints.
    pub fn of(settings: EngineSettings, codegen: Codegen) -> Result<Engine, Fault> {
        settings.check()?;
        let mut config = config(codegen)?;
        config.allocation_strategy(match codegen {
            Codegen::Optimised => InstanceAllocationStrategy::Pooling(pool(&settings)),
            Codegen::Plain => InstanceAllocationStrategy::OnDemand,
        });
        let engine = wasmtime::Engine::new(&config).map_err(|e| {
            Fault::new(format!(
                "cannot start the WebAssembly engine with {} instances (address space {} GiB): {e:#}; lower \
                 instances_max or lift the limit of virtual memory (ulimit -v)",
                settings.instances_max,
                u64::from(settings.instances_max) * 4
            ))
        })?;
        let ticker = Ticker::start(engine.weak())?;
        Ok(Engine {
            shared: Arc::new(Shared {
                engine,
                settings,
                fingerprint: match codegen {
                    Codegen::Optimised => fingerprint(&settings),
                    Codegen::Plain => format!("{}_plain", fingerprint(&settings)),
                },
                codegen,
                prepared: limits::Places::new(settings.instances_max / 4),
                warm: limits::Places::new(settings.query_instances_max),
                interrupted: AtomicBool::new(false),
                ticker,
            }),
        })
    }

    /// Names everything that an answer could depend on: wasmtime's version, its settings, the processor
    /// family and our own costs. A machine records it; a node with another one refuses to apply that
    /// machine's inputs.
    pub fn fingerprint(&self) -> &str {
        &self.shared.fingerprint
    }

    /// Ends all calls within some epochs, and every later one as soon: each ends as a fault, so that nothing
    /// of it is taken for the guest's doing. For a node that stops and has waited long enough; never undone.
    pub fn interrupt(&self) {
        self.shared.interrupted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.shared.interrupted.load(Ordering::Relaxed)
    }

    /// As given to [`Engine::new`].
    pub fn settings(&self) -> &EngineSettings {
        &self.shared.settings
    }

    /// A call into a guest is under way until what this returns is dropped: epochs end.
    pub(super) fn call_begins(&self) -> UnderWay<'_> {
        self.shared.ticker.call_begins()
    }

    /// The kind of code that it runs.
    pub fn codegen(&self) -> Codegen {
        self.shared.codegen
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.shared.engine
    }

    pub(super) fn prepared(&self) -> &limits::Places {
        &self.shared.prepared
    }

    pub(super) fn warm(&self) -> &limits::Places {
        &self.shared.warm
    }
}

/// An engine that can only compile: it reserves no places for instances, so it is made at once.
pub(super) fn compiler(codegen: Codegen) -> Result<wasmtime::Engine, Fault> {
    wasmtime::Engine::new(&config(codegen)?)
        .map_err(|e| Fault::new(format!("cannot start the compiler: {e:#}")))
}

/// The fingerprint that an engine with `settings` has.
pub fn fingerprint(settings: &EngineSettings) -> String {
    let arch = std::env::consts::ARCH;
    let memory = settings.memory_bytes_max;
    let features = FEATURES.bits();
    let text = format!(
        "wasmtime {WASMTIME_VERSION} {arch}; features {features:x}; stack {STACK_BYTES_MAX}; memory \
         {memory}; {}; shims {}",
        limits::description(),
        wasi::EDITION
    );
    format!("{WASMTIME_VERSION}_{}", &blake3::hash(text.as_bytes()).to_hex()[..16])
}

/// What is compiled into the code of guests, and how it runs.
fn config(codegen: Codegen) -> Result<Config, Fault> {
    let mut config = Config::new();
    fix_target(&mut config)?;
    for (_, feature) in FEATURES_OFF.iter_names() {
        config.wasm_features(feature, false);
    }
    for (_, feature) in FEATURES.iter_names() {
        config.wasm_features(feature, true);
    }
    // Off a second time by wasmtime's own switches, which are not WebAssembly features.
    config.shared_memory(false).concurrency_support(false).gc_support(false);
    // Budgets that all replicas agree on, and a bound in time for what is not replicated.
    config.consume_fuel(true).epoch_interruption(true);
    // Which of many bit patterns a NaN has is the processor's choice otherwise.
    config.cranelift_nan_canonicalization(true).relaxed_simd_deterministic(true);
    config.max_wasm_stack(STACK_BYTES_MAX);
    config.strategy(Strategy::Cranelift).cranelift_opt_level(OptLevel::Speed);
    config.cranelift_regalloc_algorithm(RegallocAlgorithm::Backtracking);
    // Memory never moves, bounds checks are the page table's, and fresh memory is a mapping of the module's
    // image.
    config.memory_reservation(4 << 30).memory_may_move(false).memory_guard_size(32 << 20);
    config.memory_init_cow(true).table_lazy_init(true);
    // A few frames for the node's log; they never enter an outcome.
    config.wasm_backtrace_max_frames(NonZeroUsize::new(16)).generate_address_map(false);
    config.parallel_compilation(true);
    if codegen == Codegen::Plain {
        make_plain(&mut config);
    }
    Ok(config)
}

/// Changes how code is made and memory is kept, and nothing that a guest may see. Only the depth of a
/// recursion shows: the frames of such code are larger, so its stack is too.
fn make_plain(config: &mut Config) {
    config.cranelift_opt_level(OptLevel::None);
    config.cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
    config.max_wasm_stack(PLAIN_STACK_BYTES_MAX);
    config.memory_reservation(0).memory_reservation_for_growth(0).memory_guard_size(0).memory_may_move(true);
    config.memory_init_cow(false).table_lazy_init(false);
}

/// Compiles for the processor family rather than for the processor at hand, so that all nodes of a family run
/// the same code: also how deep a recursion gets before its stack ends is then the same.
fn fix_target(config: &mut Config) -> Result<(), Fault> {
    let target = match (std::env::consts::ARCH, std::env::consts::OS) {
        ("x86_64", "linux") => "x86_64-unknown-linux-gnu",
        ("aarch64", "linux") => "aarch64-unknown-linux-gnu",
        ("aarch64", "macos") => "aarch64-apple-darwin",
        (arch, os) => {
            return Err(Fault::new(format!(
                "guests cannot run on {arch} {os}; x86_64 or aarch64 Linux, or macOS on Apple silicon, is \
                 needed"
            )));
        }
    };
    config.target(target).map_err(|e| Fault::new(format!("cannot compile for {target}: {e:#}")))?;
    if std::env::consts::ARCH == "x86_64" {
        // x86-64-v2: every server processor since 2011.
        for flag in ["has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt"] {
            // SAFETY: code with an instruction that the processor lacks would be undefined behaviour.
            // wasmtime compares the enabled flags with the processor at hand before it loads code, and
            // refuses; so nothing runs.
            unsafe { config.cranelift_flag_enable(flag) };
        }
    }
    Ok(())
}

/// Places for instances: address space set aside once, so that a fresh instance costs microseconds.
fn pool(settings: &EngineSettings) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    let instances = settings.instances_max;
    pool.total_component_instances(instances);
    // A component is several core instances: its module, adapters and shims.
    pool.total_core_instances(instances.saturating_mul(8));
    pool.total_memories(instances).total_tables(instances.saturating_mul(4));
    pool.max_core_instances_per_component(limits::CORE_INSTANCES_MAX);
    pool.max_memories_per_component(limits::MEMORIES_MAX);
    pool.max_tables_per_component(limits::TABLES_MAX);
    pool.max_memories_per_module(1).max_tables_per_module(limits::TABLES_PER_MODULE_MAX);
    pool.max_memory_size(settings.memory_bytes_max).table_elements(limits::TABLE_ELEMENTS_MAX);
    pool.max_core_instance_size(limits::CORE_INSTANCE_BYTES_MAX);
    pool.max_component_instance_size(limits::COMPONENT_INSTANCE_BYTES_MAX);
    // What a place keeps in memory after use, so that the next instance in it begins without page faults.
    pool.linear_memory_keep_resident(512 << 10).table_keep_resident(16 << 10).max_unused_warm_slots(64);
    // Only what was written is put back, where the kernel can tell (Linux from 6.7).
    pool.pagemap_scan(Enabled::Auto);
    pool
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_version_is_the_pinned_one() {
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains(&format!("wasmtime = {{ version = \"={WASMTIME_VERSION}\"")));
        let lock = include_str!("../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"wasmtime\"\nversion = \"{WASMTIME_VERSION}\"")));
    }

    #[test]
    fn every_feature_is_named_on_or_off() {
        assert_eq!(FEATURES.union(FEATURES_OFF), WasmFeatures::all());
        assert!(FEATURES.intersection(FEATURES_OFF).is_empty());
    }

    #[test]
    fn wasmtime_takes_the_settings_as_given() {
        let running =
            Engine::new(EngineSettings { instances_max: 16, query_instances_max: 8, ..Default::default() });
        for engine in [running.unwrap().wasmtime().clone(), compiler(Codegen::Optimised).unwrap()] {
            assert_eq!(engine.get_wasm_features(), FEATURES);
            assert!(engine.get_consume_fuel() && engine.get_epoch_interruption());
            assert_eq!(engine.get_cranelift_nan_canonicalization(), Some(true));
            assert!(!engine.get_shared_memory() && !engine.get_concurrency_support());
            assert!(!engine.get_memory_may_move());
            assert_eq!(engine.get_max_wasm_stack(), STACK_BYTES_MAX);
        }
    }

    #[test]
    fn the_fingerprint_names_what_a_guest_can_see_and_nothing_else() {
        let default = EngineSettings::default();
        let more_memory = EngineSettings { memory_bytes_max: 512 << 20, ..default };
        let more_places = EngineSettings { instances_max: 8_192, ..default };
        assert_ne!(fingerprint(&default), fingerprint(&more_memory));
        assert_eq!(fingerprint(&default), fingerprint(&more_places));
    }

    #[test]
    fn wrong_settings_are_named() {
        for (settings, word) in [
            (EngineSettings { memory_bytes_max: 100, ..Default::default() }, "memory_bytes_max"),
            (EngineSettings { instances_max: 1, ..Default::default() }, "instances_max"),
            (EngineSettings { query_instances_max: 4_000, ..Default::default() }, "query_instances_max"),
        ] {
            let error = Engine::new(settings).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(word), "{error}");
        }
    }
}
