//! Running components: validation at upload, compilation in a process of its own, instances.
//!
//! # Layout
//! - [`engine`]: the only `wasmtime::Config`
//! - [`validate`]: what a module must be before anything compiles
//! - [`compile`]: compilation, bounded, in a process of its own
//! - [`module`]: a loaded module; [`instance`]: one instance of it; [`query`]: warm instances for queries
//! - `contract`: the types of the contract as they cross the boundary; `host`: its functions; `wasi`: the
//!   small deterministic part of WASI

pub mod compile;
mod contract;
pub mod engine;
mod host;
pub mod instance;
pub mod module;
pub mod query;
pub mod validate;
mod wasi;

pub use compile::Compiler;
pub use engine::{Engine, EngineSettings};
pub use instance::GuestSettings;
pub use module::Module;
pub use query::{Budget, QueryPool};
pub use validate::{Inspected, Limits, Rejected, World, inspect};

#[cfg(test)]
mod tests;
