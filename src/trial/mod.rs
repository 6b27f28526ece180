//! A host in memory for one machine, without a cluster: to try a component before it is shipped.
//!
//! It does with a component what a node does, by the same heart and the same instances: a fresh instance for
//! each batch of a stored machine, inputs after a trap run again one by one, a resident machine restored and
//! replayed, leases that end as inputs when the clock passes their deadline. What is left out is everything
//! around that: Raft, disks, sockets, other nodes.
//!
//! Promises: the same calls give the same answers, hashes and snapshots, wherever and whenever they are made:
//! the clock is the caller's. Never: a file that outlives the call, a socket, a clock of this computer
//! (except to measure), a result that a node would not give.
//!
//! ```
//! use statehouse::trial::{Host, Inspected, START_MS, engine};
//! use statehouse::wasm::{Codegen, Compiler};
//!
//! # fn main() -> Result<(), statehouse::error::Error> {
//! let bytes = std::fs::read("guests/notes/notes.component.wasm").expect("it is in the repository");
//! let inspected = Inspected::of(&bytes, &Compiler::InProcess)?;
//! let module = inspected.load(&engine(Codegen::Optimised)?, &Compiler::InProcess)?;
//! let mut host = Host::of_module(&module, inspected.digest, START_MS);
//! host.create("".into())?;
//! host.apply("milk=two pints".into())?;
//! let snapshot = host.snapshot()?;
//! host.apply("milk=".into())?;
//! assert!(host.query(b"milk")?.outcome.is_err());
//! host.restore(&snapshot)?;
//! assert_eq!(host.query(b"milk")?.outcome.expect("it is back"), "two pints");
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//! - [`component`]: a file's bytes, inspected, compiled and loaded
//! - [`host`]: the machine; `journal`: what a resident one is made again from
//! - [`script`]: the lines of a script, with what a machine is to say
//! - [`check`]: the determinism certificate

pub mod check;
pub mod component;
pub mod host;
pub mod script;

mod journal;

#[cfg(test)]
mod tests;

pub use component::{Inspected, engine};
pub use host::{Done, EndedLease, Host, LeaseLine, MakeGuest, START_MS};
pub use journal::Snapshot;
