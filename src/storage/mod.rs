//! What is on disk: the `log` and `state` databases, snapshots, module files.

pub mod entry;
