//! The command line: one file per command; its doc comment is its help text.

pub mod attach;
pub mod eject;
pub mod exit;
pub mod flush;
mod interrupt;
pub mod mount;
pub mod mounts;
pub mod progress;
pub mod reach;
pub mod recover;
pub mod refresh;
pub mod render;
pub mod rescue;
pub mod status;
mod times;
pub mod units;
pub mod unmount;
pub mod usage;

use std::ffi::OsString;
use std::io::{self, Write};

use clap::{Parser, Subcommand};

use exit::{Exit, Failure};

/// One path for scripts: every write lands on the local SSD at once, and is carried over to the drive in atomic batches.
#[derive(Debug, Parser)]
#[command(name = "ferryfs", version, max_term_width = 100, after_help = OVERVIEW)]
#[command(arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const OVERVIEW: &str = "\
A day with it:
  ferryfs mount /media/me/HDD ~/lab   # ~/lab is the drive, at the speed of the SSD
  ferryfs status                      # what waits, and whether it is safe to unplug
  ferryfs flush                       # carry everything over now; returns when it is on the drive
  ferryfs eject                       # flush and let go of the drive; ~/lab goes on without it
  ferryfs unmount                     # flush and end the mount

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 flushed, but something was left behind (and named);
4 the backend is not there; 130 cancelled by Ctrl-C.";

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::MountArgs),
    Status(status::StatusArgs),
    Flush(flush::FlushArgs),
    Eject(eject::EjectArgs),
    Attach(attach::AttachArgs),
    Refresh(refresh::RefreshArgs),
    Unmount(unmount::UnmountArgs),
    Recover(recover::RecoverArgs),
    Rescue(rescue::RescueArgs),
}

/// Runs the command that `args` (with the program's name in front) spell, and says what came of it.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    let args: Vec<OsString> = args.into_iter().collect();
    let outcome = match Cli::try_parse_from(&args) {
        Ok(cli) => run(cli.command, &args),
        Err(error) => usage::answer(&error),
    };
    outcome.unwrap_or_else(|failure| {
        complain(&failure.to_string());
        failure.code
    })
}

fn run(command: Command, args: &[OsString]) -> Result<Exit, Failure> {
    match command {
        Command::Mount(command) => mount::run(command, args),
        Command::Status(command) => status::run(&command),
        Command::Flush(command) => flush::run(&command),
        Command::Eject(command) => eject::run(&command),
        Command::Attach(command) => attach::run(&command),
        Command::Refresh(command) => refresh::run(&command),
        Command::Unmount(command) => unmount::run(&command),
        Command::Recover(command) => recover::run(&command),
        Command::Rescue(command) => rescue::run(&command),
    }
}

/// Writes to stdout. That nobody reads it (`| head`) changes nothing about what was done, so it is no failure.
fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}

/// Writes a line to stderr.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// `value` as JSON for stdout, with a newline at its end.
fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    match serde_json::to_string_pretty(value) {
        Ok(text) => Ok(text + "\n"),
        Err(error) => Err(Failure::failed(format!(
            "cannot write this as JSON: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
