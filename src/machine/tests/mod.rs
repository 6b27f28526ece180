//! Tests of the heart as a whole: scripts with their expected output, and properties.
//!
//! The scripts are in `tests/scripts/`. `UPDATE=1 cargo test --release machine::tests` rewrites what they
//! expect: read the difference before it is committed.

pub(crate) mod guest;
mod leases;
mod properties;
mod script;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

macro_rules! scripts {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(#[test]
        fn $name() {
            script::check(&scripts().join(concat!(stringify!($name), ".txt")));
        })*
    };
}

scripts! {
    savepoints
    traps
    exhaustion
    creation
    events
    leases
    lease_ends
    client_leases
    sessions
    limits
    reads
    clock
    queries
    resident
    resident_verdicts
    resident_snapshots
    unknown_operations
    upgrades
    resident_upgrades
}

#[test]
fn every_script_is_run() {
    let files = std::fs::read_dir(scripts()).expect("the scripts are in tests/scripts");
    let names = files.map(|file| file.expect("the directory can be listed").file_name());
    let found: BTreeSet<String> =
        names.map(|name| name.to_string_lossy().trim_end_matches(".txt").to_owned()).collect();
    assert_eq!(found, NAMES.iter().map(|name| (*name).to_owned()).collect());
}
