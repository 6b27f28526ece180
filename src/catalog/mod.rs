//! The catalog: which modules, machines and nodes there are, and on which nodes each machine is. Group 0
//! orders it, and a machine written in Rust applies it through the same heart as every uploaded one.
//!
//! It says what shall be. The leader of each group sees to it that the group's membership becomes so, and
//! tells the catalog when a replica is gone.
//!
//! # Layout
//! - [`record`](self): the rows, and the commands that change them; `rows`: where they are
//! - `guest`: what the commands do; `nodes`, `machines`: to what; `placement`: on which nodes replicas go
//! - `copy`: what a node keeps of the catalog in memory

mod copy;
mod guest;
mod machines;
mod nodes;
mod placement;
mod record;
mod rows;
mod store;
#[cfg(test)]
mod tests;

pub use self::copy::Catalog;
pub use self::guest::CatalogGuest;
pub use self::nodes::{VOTERS_MAX, removed};
pub use self::record::{
    Change, MachineRecord, MachineUpgraded, ModuleRecord, NodeRecord, RefusalCode, ReplicaGone, ReplicaRecord,
};
use crate::id::{Digest, ReplicaId};

/// Stands for the catalog's own code in its head: no component has this digest.
pub const CATALOG_MODULE: Digest = Digest([0; 32]);

/// The replica that the catalog's group began with, on the node that began the cluster.
pub const FOUNDER: ReplicaId = ReplicaId(1);

/// Bytes of a machine's name, at most.
pub const NAME_BYTES_MAX: usize = 63;

/// How many replicas a machine has, unless its creator wants another number.
pub const REPLICAS_DEFAULT: u32 = 3;

/// How many replicas a machine may have.
pub const REPLICAS_MAX: u32 = 7;

/// Whether `name` can name a machine; otherwise why not.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if name.len() <= NAME_BYTES_MAX && begins_well && name.chars().all(allowed) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_BYTES_MAX + 1).collect();
    Err(format!(
        "{shown:?} cannot name a machine: 1 to {NAME_BYTES_MAX} of a-z, 0-9, '-', '_' and '.', the first a \
         letter or digit"
    ))
}

/// Whether a machine can have this many replicas; otherwise why not.
pub fn check_replicas(replicas: u32) -> Result<(), String> {
    if (1..=REPLICAS_MAX).contains(&replicas) {
        return Ok(());
    }
    Err(format!("a machine cannot have {replicas} replicas: 1 to {REPLICAS_MAX} are possible"))
}
