//! The program `statehouse`: arguments in, exit code out. Everything it does is in the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    statehouse::cli::run(std::env::args_os())
}
