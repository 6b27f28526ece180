//! The heart: what a committed batch does to a machine.
//!
//! A pure function from (batch, guest, view of the state) to (outcomes, writes, events, revision, hash).
//! Nothing here reads a clock, a disk, a socket or chance: the same inputs give the same bytes on every
//! replica.
//!
//! # Layout
//! - [`batch`]: what a Raft entry carries, and the head that a machine has after it
//! - [`apply`]: one batch, applied, with `grants` for what clients and the clock do to leases
//! - [`stored`], [`resident`]: the same for machines of either world, with the component that each batch is
//!   for
//! - [`settled`]: the inputs that a resident machine passes over
//! - [`overlay`]: what a batch has written so far; [`chain`]: the rolling hash over it
//! - [`event`], [`lease`], [`session`]: how these are kept as rows; [`settings`]: what an operator settles;
//!   [`retention`]: how much history is kept
//! - [`guest`]: what the heart asks of a running component; `wasm` implements it, tests have their own
//! - [`view`]: the state a batch starts from; `storage` implements it
//! - [`frame`]: everything one call into a guest may do to the state, with its limits
//! - [`outcome`]: what clients are told

pub mod apply;
pub mod batch;
pub mod chain;
pub mod event;
pub mod frame;
mod grants;
pub mod guest;
pub mod lease;
pub mod outcome;
pub mod overlay;
pub mod resident;
pub mod retention;
pub mod session;
pub mod settings;
pub mod settled;
pub mod stored;
pub mod view;

#[cfg(test)]
pub(crate) mod tests;
