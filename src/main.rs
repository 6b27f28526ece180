//! The program `statehouse`: arguments in, exit code out. Everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    statehouse::cli::run(std::env::args_os())
}
