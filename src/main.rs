//! The program `statehouse`: arguments in, exit code out. Everything it does is in the library.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    statehouse::cli::run(std::env::args_os()).end()
}
