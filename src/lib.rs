//! Statehouse: upload a state machine as a WebAssembly component, and a Raft cluster runs it in lockstep.

pub mod api;
pub mod catalog;
pub mod cli;
pub mod client;
pub mod config;
pub mod error;
pub mod id;
pub mod machine;
pub mod node;
pub mod proto;
pub mod raft;
pub mod storage;
pub mod time;
pub mod wasm;
