//! Starts the relay: everything else is in the library.

use std::process::ExitCode;

/// Messages are many small blocks, freed by other threads than allocated them: with glibc's allocator a quarter of the
/// relay's CPU went into it.
#[cfg(target_arch = "x86_64")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    outbox_relay::cli::main()
}
