//! The `seriatim` binary. Everything is in the library; this file only calls it.

use std::process::ExitCode;

fn main() -> ExitCode {
    seriatim::cli::main()
}
