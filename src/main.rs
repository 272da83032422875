//! The `ferryfs` command: parse, run, exit code. Everything else is in the library, so that tests
//! reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ferryfs::cli::run_program(std::env::args_os())
}
