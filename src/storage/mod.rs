//! What is on disk: the data directory, the `log` and `state` databases, snapshots, module files.
//!
//! # Layout
//! - [`entry`]: the rows of a log, in the project's own words
//! - [`directory`]: the data directory: its lock, its identity, where everything is
//! - [`age`]: how old a data directory is, so that an old copy of it can be told
//! - [`log`]: the log database and its one writer
//! - [`state`]: the state database: machines' tables, as views
//! - [`modules`]: module files and what was compiled from them
//! - [`snapshot`]: machines as files
//! - `db`: the only user of RocksDB; `manifest`: what it cannot be given to read;
//!   `file`: files that are whole or not there; `large`: those with gigabytes, and how they are removed;
//!   `sealed`: of those, the small ones that say something about the directory

pub mod age;
#[cfg(test)]
mod damage;
mod db;
pub mod directory;
pub mod entry;
mod file;
mod large;
pub mod log;
mod manifest;
pub mod modules;
mod sealed;
pub mod snapshot;
pub mod state;
