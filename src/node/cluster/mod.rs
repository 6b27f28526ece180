//! What makes a node part of a cluster.
//!
//! # Layout
//! - [`join`]: how a data directory comes to belong to a cluster; `contact`: where the other nodes are
//! - `age`: whether a node comes with an old copy of its data
//! - `foreseen`: where those are that only the log knows of
//! - `host`: what becomes of the words of other nodes; `words`: what nodes ask each other
//! - `route`: to the leader, wherever it is; `waiting_room`: what is held while nobody leads
//! - `watch`: what another node's replica tells of a machine; `watch_words`: in which words
//! - `roster`: the nodes, as people see and change them
//! - `members`: sees to it that groups become what the catalog says; `plan`: the next step to that
//! - `verify`: compares the replicas of a machine; `reseed`: gives one the leader's state;
//!   `explain`: where one left the way of the others
//! - `handover`: how a node goes without anybody missing it
//! - `modules`: the bytes of modules, on a majority before the catalog names them, and from peers
//! - `courier`: snapshots for replicas that are behind the log

mod age;
mod contact;
mod courier;
mod explain;
mod foreseen;
mod handover;
mod host;
pub(super) mod join;
mod members;
mod modules;
mod plan;
mod reseed;
mod roster;
mod route;
mod verify;
mod waiting_room;
mod watch;
mod watch_words;
pub(super) mod words;

pub(super) use self::contact::{locate_all, of_catalog, replicas};
pub(super) use self::courier::{Courier, Errand, run as run_errands};
pub(super) use self::foreseen::foresee;
pub(super) use self::host::Gate;
pub(super) use self::members::run as look_after_groups;
pub(super) use self::modules::ready_modules;
pub(super) use self::roster::record;
pub(super) use self::waiting_room::{Counts, WaitingRoom};
pub(super) use self::watch::RemoteWatch;
