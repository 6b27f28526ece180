//! The determinism certificate: the same inputs along different ways, which must come to the same.
//!
//! # What is compared with what
//! Replicas of a machine get the same batches, so for them it is enough that a batch is a function of
//! component, state and batch. But a machine is wrong, too, if what it does depends on *how inputs came
//! together in batches*: that is chance, which nobody can repeat. And it must do the same from a snapshot as
//! without, with neighbours that fail, and in other machine code. So there are two families of runs.
//!
//! **Ways of one machine**, where inputs come in different batches. A machine may well use its place in the
//! log: the index and the offset are in the context of each input, and the random bytes of WASI are made of
//! them. They differ between batchings, rightly. So in this family each input is *told* the place that it has
//! in the run of one batch each, however it is run: index n and offset 0 for the n-th input. Revision and
//! time are the same by themselves, because batches are also cut wherever time passes. With the same context
//! and the same state each input must have the same outcome, write the same rows, attach the same leases,
//! emit the same events:
//! - *one batch each*: what the others are compared with; each input of a stored machine in a fresh instance
//! - *long batches*: all inputs between two movements of the clock in one batch, and so in one instance
//! - *snapshots*: batches of random size; at random places the machine is saved, and goes on from the
//!   snapshot in fresh instances. What a resident machine saves must be what the machine of the first run
//!   saves there.
//! - *failures*: batches of random size, with inputs between the others that are cut off: by a budget that
//!   ends in the middle, or by a trap at the very end. Of them nothing may be left, and their neighbours must
//!   not notice.
//!
//! **Replicas**, where the batches are the same, of random size, with the context that a node gives. Here all
//! must be the same in every bit, the fuel and the hash chain included:
//! - *a replica*: the one that the others are compared with, and whose cost is told
//! - *another replica*: later, on another thread, in another engine: the host's own clock, entropy and
//!   addresses are others, and nothing of them may be seen
//! - *plain code*: made without optimisation, with another allocation of registers, bounds checked by
//!   instructions
//!
//! Queries are asked where batches end in all runs, each twice, and must be answered alike everywhere; one
//! that tries to write is a difference by itself.
//!
//! A difference is told at the first input that has one, with both sides. What the deterministic part of WASI
//! makes harmless (a clock, randomness) cannot differ here, and is told by name instead.
//!
//! What this cannot show: that a machine is right; and anything about inputs that were not tried. So the
//! certificate says how many inputs were accepted.
//!
//! # Layout
//! - [`deed`]: what is done to the machine; [`mod@generate`]: more of it, from examples and a seed
//! - `recorder`: between the heart and an instance: notes each input, tells its place, cuts it off
//! - `course`: one run; [`difference`]: two of them compared; [`certificate`]: all of it

pub mod certificate;
pub mod deed;
pub mod difference;
pub mod generate;

mod course;
mod recorder;

#[cfg(test)]
mod tests;

pub use certificate::{Certificate, Comparison, Cost, Spread, Tally, certify};
pub use deed::Deed;
pub use difference::Difference;
pub use generate::{Chance, generate};
