//! Clocks that are wrong: a library that is loaded before the C library shifts what a process takes for the
//! time of day. The program under test knows nothing of it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Shifted clocks, each node's by so many seconds.
pub struct Clocks {
    library: PathBuf,
    pub shifts_s: [i64; super::cluster::NODES],
}

impl Clocks {
    /// Builds the library in `directory`, with the C compiler that RocksDB needs too.
    pub fn shifted(directory: &Path, shifts_s: [i64; super::cluster::NODES]) -> Clocks {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lockstep/clock.c");
        let library = directory.join("clock.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
        assert!(cc.status().expect("a C compiler").success(), "{source} does not compile");
        Clocks { library, shifts_s }
    }

    /// Has a node's command see its clock.
    pub fn show(&self, node: usize, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("CLOCK_SHIFT_S", self.shifts_s[node].to_string());
    }
}
