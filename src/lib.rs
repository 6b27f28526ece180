//! Statehouse: upload a state machine as a WebAssembly component, and a Raft cluster runs it in lockstep.

pub mod catalog;
pub mod error;
pub mod id;
pub mod machine;
pub mod node;
pub mod raft;
pub mod storage;
pub mod time;
pub mod wasm;
