//! Statehouse: upload a state machine as a WebAssembly component, and Raft runs it in lockstep.
//!
//! [`Node`] opens, serves and stops a node inside a program; [`Client`] talks to one elsewhere.
//!
//! # Layout
//! Arrows point one way, from the top of this list to the bottom:
//! - `id`, `error`, `time`: names, failures, the only reader of clocks
//! - `machine`: the heart, what a committed batch does; pure
//! - `storage`: what is on disk; `wasm`: running components; neither knows the other
//! - `raft`: order; pure and stepped
//! - `catalog`: modules and machines, group 0's own machine
//! - `node`: builds a node from the parts, the only place where they meet
//! - `config`, `proto`, `api`, `client`: settings, messages, the services and who calls them
//! - `cli`: one file a command

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

pub use client::Client;
pub use node::Node;
pub use node::config::NodeConfig;
