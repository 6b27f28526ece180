//! Guests: from uploaded bytes, which may be hostile, to instances that run and answer.
//!
//! Promises: the outcome of an input is a function of the component, the frame's state and the calls before
//! it in the same instance. No text, path, address or time of this computer is in an outcome. A guest cannot
//! take the node down. Never: a `wasmtime::Config` outside [`engine`], a clock or chance besides the log's, a
//! read of the text format.
//!
//! # Layout
//! - [`engine`]: the only `wasmtime::Config`; [`limits`]: what guests may use, and what host calls cost
//! - [`validate`]: what a module must be before anything compiles it
//! - [`survey`]: what can be told of a component by looking at it
//! - [`compile`]: compilation, bounded, in a process of its own
//! - [`module`]: a loaded module; [`instance`]: one instance of it; [`query`]: warm instances for queries
//! - `ticker`: bounds calls in time
//! - `bindings`: the types of the contract; `host`: its functions; `wasi`: the small deterministic part of
//!   WASI; `data`: what an instance's store carries for them

pub mod compile;
pub mod engine;
pub mod instance;
pub mod limits;
pub mod module;
pub mod query;
pub mod survey;
pub mod validate;

mod bindings;
mod data;
mod host;
mod ticker;
mod wasi;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use compile::Compiler;
pub use engine::{Codegen, Engine, EngineSettings};
pub use instance::{Budget, GuestSettings};
pub use module::{LoadError, Module};
pub use query::QueryPool;
pub use validate::{Inspected, Limits, Look, Rejected, inspect, look};
pub use wasi::ALLOWED as WASI_ALLOWED;
