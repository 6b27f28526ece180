//! Statehouse: upload a state machine as a WebAssembly component, and Raft runs it in lockstep.
//!
//! [`Node`] opens, serves and stops a node inside a program; [`Client`] talks to one elsewhere.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let data_dir = directory.path().join("data");
//! # let component = std::fs::read("guests/notes/notes.component.wasm")?;
//! use statehouse::id::Digest;
//! use statehouse::machine::outcome::Outcome;
//! use statehouse::node::request::{Consistency, Push};
//! use statehouse::{Node, NodeConfig};
//!
//! let config = || NodeConfig { bootstrap: true, ..NodeConfig::new(&data_dir, "embedded") };
//! let node = Node::open(config()).await?;
//!
//! // Upload a state machine, here `guests/notes`, and make a machine of it.
//! let push = Push { digest: Digest::of(&component), label: "notes".into(), bytes: component.into() };
//! let module = node.push_module(push).await?;
//! node.create_machine("notes", module.digest, "".into()).await?;
//!
//! // A command is durable and applied when it is answered; a query sees everything acknowledged before it.
//! let applied = node.apply("notes", "milk=two pints".into()).await?;
//! assert_eq!(applied.outcome, Outcome::Ok("two pints".into()));
//! node.shutdown().await;
//! drop(node);
//!
//! // Everything is there when the directory is opened again.
//! let node = Node::open(config()).await?;
//! let answered = node.query("notes", "milk".into(), Consistency::Linearizable).await?;
//! assert_eq!(answered.outcome, Ok("two pints".into()));
//! node.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! Such a node has no sockets. [`api::Server`] serves it over the network, as the program `statehouse` does:
//! the example of [`client`] has both ends of that.
//!
//! # Layout
//! Arrows point one way, from the top of this list to the bottom:
//! - `id`, `error`, `time`, `inbox`, `priority`, `open_files`: names, failures, the only reader of clocks,
//!   queues between threads, giving way, who gets how many files
//! - `machine`: the heart, what a committed batch does; pure
//! - `storage`: what is on disk; `wasm`: running components; neither knows the other
//! - `trial`: a host in memory for one machine, to try a component with
//! - `raft`: order; pure and stepped
//! - `net`: what nodes say to each other
//! - `watch`: who watches a machine, and how its events reach them
//! - `catalog`: modules and machines, group 0's own machine
//! - `node`: builds a node from the parts, the only place where they meet
//! - `bbolt`: the file format of etcd's snapshots; knows nothing else of the crate
//! - `config`, `proto`, `api`, `client`: settings, messages, the services and who calls them
//! - `cli`: one file a command

pub mod api;
pub mod bbolt;
pub mod catalog;
pub mod cli;
pub mod client;
pub mod config;
pub mod error;
pub mod id;
pub mod inbox;
pub mod machine;
pub mod net;
pub mod node;
mod open_files;
mod priority;
pub mod proto;
pub mod raft;
pub mod storage;
pub mod time;
pub mod trace;
pub mod trial;
pub mod wasm;
pub mod watch;

pub use client::Client;
pub use node::Node;
pub use node::config::NodeConfig;
