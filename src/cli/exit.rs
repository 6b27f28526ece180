//! How the process ends.

use std::io::Write;

/// As [`std::process::ExitCode`], which ends a process in one way only.
#[derive(Clone, Copy, Debug)]
pub struct ExitCode(u8);

impl ExitCode {
    /// What was asked for is done.
    pub const SUCCESS: ExitCode = ExitCode(0);
    /// It is not.
    pub const FAILURE: ExitCode = ExitCode(1);

    /// Ends the process at once. Threads may still be at work, as they are when a node is told twice to stop:
    /// RocksDB's static data must not be taken away under them, as an ordinary end would do, which ends in a
    /// crash then. What has to be on disk is there before anybody is told so.
    pub fn end(self) -> ! {
        // Nothing is left to tell if the terminal is gone.
        let _ = std::io::stdout().flush();
        // SAFETY: it takes a number, has no preconditions and does not return.
        unsafe { libc::_exit(i32::from(self.0)) }
    }
}

impl From<u8> for ExitCode {
    fn from(code: u8) -> ExitCode {
        ExitCode(code)
    }
}
