//! What guests may use, and what host calls cost: all of it part of the engine's fingerprint.
//!
//! Promises: a guest that is denied memory or table elements learns so at the same point on every replica.
//! What this computer cannot give (address space, memory of its own) is never told to a guest: it ends the
//! call as a fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use wasmtime::ResourceLimiter;

use crate::error::Fault;
use crate::machine::frame::limits as contract;

/// Fuel for making an instance, whatever it is made for. About half a second.
pub const INSTANTIATION_FUEL: u64 = 500_000_000;
/// Fuel of one input, unless the machine's settings say otherwise. About a second of a loop that does nothing
/// else.
pub const INPUT_FUEL: u64 = 1_000_000_000;
/// Fuel of one query, unless the node's settings say otherwise. Not part of the fingerprint.
pub const QUERY_FUEL: u64 = 5_000_000_000;
/// Time of one query. Not part of the fingerprint.
pub const QUERY_TIME: Duration = Duration::from_secs(5);
/// Fuel of any host call. About what the shortest of them takes, as wasm instructions go.
pub const CALL_FUEL: u64 = 500;
/// Fuel of each byte that goes through a host call, either way.
pub const BYTE_FUEL: u64 = 1;
/// Fuel of each pair, key or value in a call that handles many.
pub const ITEM_FUEL: u64 = 300;
/// Bytes that the arguments of one host call may have in the host's memory. Only `get-many` with very long
/// keys can come near: a value of 4 MiB and its key are the largest arguments otherwise.
pub const HOSTCALL_BYTES_MAX: usize = 8 << 20;

/// Core modules instantiated by one component. Python's runtime has about twenty.
pub const CORE_INSTANCES_MAX: u32 = 64;
/// Memories of one component.
pub const MEMORIES_MAX: u32 = 4;
/// Tables of one component.
pub const TABLES_MAX: u32 = 16;
/// Tables of one core module.
pub const TABLES_PER_MODULE_MAX: u32 = 4;
/// Elements of one table. A JavaScript engine has about 20,000.
pub const TABLE_ELEMENTS_MAX: usize = 100_000;
/// Bytes of wasmtime's own record of a core instance: globals, imports, functions that have their address
/// taken.
pub const CORE_INSTANCE_BYTES_MAX: usize = 4 << 20;
/// The same for a component, its core instances included.
pub const COMPONENT_INSTANCE_BYTES_MAX: usize = 8 << 20;
/// Handles to WASI resources that an instance may hold.
pub const HANDLES_MAX: usize = 1_024;

/// Everything above that an answer can depend on, for the fingerprint.
pub fn description() -> String {
    format!(
        "instantiation {INSTANTIATION_FUEL}; call {CALL_FUEL}; byte {BYTE_FUEL}; item {ITEM_FUEL}; arguments \
         {HOSTCALL_BYTES_MAX}; memories {MEMORIES_MAX}; tables {TABLES_MAX} {TABLES_PER_MODULE_MAX} \
         {TABLE_ELEMENTS_MAX}; handles {HANDLES_MAX}; contract {:?}",
        [
            contract::KEY_BYTES_MAX,
            contract::VALUE_BYTES_MAX,
            contract::ANSWER_BYTES_MAX,
            contract::REFUSAL_BYTES_MAX,
            contract::EVENTS_MAX as usize,
            contract::LEASE_CHANGES_MAX as usize,
            contract::LOG_LINES_MAX,
            contract::LOG_LINE_BYTES_MAX,
            contract::WRITE_BYTES_MAX,
            contract::GET_MANY_KEYS_MAX,
            contract::GET_MANY_BYTES_MAX,
            contract::SCAN_BYTES,
            contract::CHUNK_BYTES_MAX,
        ]
    )
}

/// Counts what may be alive at a time. Never waits.
#[derive(Clone)]
pub struct Places {
    free: Arc<AtomicU32>,
}

/// One of the [`Places`], given back when dropped.
pub struct Place {
    free: Arc<AtomicU32>,
}

impl Places {
    /// `count` free places.
    pub fn new(count: u32) -> Places {
        Places { free: Arc::new(AtomicU32::new(count)) }
    }

    /// A place, if one is free.
    pub fn take(&self) -> Option<Place> {
        let less = |free: u32| free.checked_sub(1);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        Some(Place { free: self.free.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.free.fetch_add(1, Ordering::Relaxed);
    }
}

/// Grants or denies an instance memory and table elements.
#[derive(Debug)]
pub struct Limiter {
    memory_bytes_max: usize,
    /// Of all memories of the instance together.
    memory_bytes: usize,
    /// Whether memory was denied since [`begin`](Limiter::begin): why a query then failed.
    denied: bool,
    /// What this computer could not give. The call's ending is then this.
    fault: Option<Fault>,
}

impl Limiter {
    /// Grants at most `memory_bytes_max` bytes.
    pub fn new(memory_bytes_max: usize) -> Limiter {
        Limiter { memory_bytes_max, memory_bytes: 0, denied: false, fault: None }
    }

    /// Begins a call.
    pub fn begin(&mut self) {
        self.denied = false;
    }

    /// Whether memory was denied since [`begin`](Limiter::begin).
    pub fn denied(&self) -> bool {
        self.denied
    }

    /// What was granted, all memories of the instance together.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// What this computer could not give, if anything.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = (self.memory_bytes - current.min(self.memory_bytes)).saturating_add(desired);
        if total > self.memory_bytes_max {
            self.denied = true;
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    /// Called for two reasons: the type allows no such size, which is the guest's own fact; or the operating
    /// system gave no memory, which is not, and must not reach the guest.
    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        if error.to_string() == "memory growth exceeds memory type's limits" {
            return Ok(());
        }
        self.fault = Some(Fault::new(format!(
            "no memory for a guest, which has {} bytes of its {}: {error:#}. Give the node more memory or \
             raise vm.max_map_count",
            self.memory_bytes, self.memory_bytes_max
        )));
        Err(error)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX && maximum.is_none_or(|maximum| desired <= maximum))
    }

    /// Only for sizes beyond the type's: the elements of a table were set aside with its place.
    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        Ok(())
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX as usize
    }

    fn tables(&self) -> usize {
        TABLES_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_run_out_and_come_back() {
        let places = Places::new(2);
        let first = places.take().unwrap();
        let _second = places.take().unwrap();
        assert!(places.take().is_none());
        drop(first);
        assert!(places.take().is_some());
    }

    #[test]
    fn all_memories_of_an_instance_count_together() {
        let mut limiter = Limiter::new(300);
        assert!(limiter.memory_growing(0, 100, None).unwrap());
        assert!(limiter.memory_growing(0, 100, None).unwrap());
        assert!(limiter.memory_growing(100, 200, None).unwrap());
        assert!(!limiter.memory_growing(100, 101, None).unwrap());
        assert!(limiter.denied());
    }
}
