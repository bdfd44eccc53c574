//! The `hallway` program: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    hallway::cli::main()
}
