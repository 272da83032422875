//! The command line: one file per command; its doc comment is its help text.

pub mod attach;
pub mod changes;
pub mod config;
pub mod doctor;
pub mod eject;
pub mod flush;
mod interrupt;
mod kept;
pub mod leave;
pub mod local;
pub mod log;
mod metrics_args;
pub mod mount;
mod mount_helper;
pub mod pause;
mod power_off;
pub mod progress;
pub mod reach;
pub mod recover;
pub mod refresh;
pub mod reload;
pub mod render;
pub mod rescue;
pub mod restore;
pub mod scrub;
pub mod status;
mod times;
pub mod undo;
pub mod units;
pub mod unmount;
pub mod usage;
pub mod versions;
mod watch;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::core::{Exit, Failure, printable_json, printable_lines};
use crate::sys::terminal::complain;

/// One path for scripts: every write goes to the local SSD at once, and is flushed to the drive in
/// atomic batches.
#[derive(Debug, Parser)]
#[command(name = "ferryfs", bin_name = "ferryfs", version = VERSION, max_term_width = 100, after_help = OVERVIEW)]
#[command(arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The version, with the commit from which the program was built if it is known.
const VERSION: &str = env!("FERRYFS_VERSION");

const OVERVIEW: &str = "\
A day with it:
  ferryfs mount /media/me/HDD ~/lab   # ~/lab is the drive, at the speed of the SSD
  ferryfs status                      # what waits, and whether it is safe to unplug
  ferryfs flush                       # flush everything now; returns when it is on the drive
  ferryfs eject                       # flush and release the drive; ~/lab stays usable
  ferryfs unmount                     # flush and end the mount
Several drives, with names and schedules: see `ferryfs config --help`.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 flushed, but something was left behind (and named);
4 the drive is not there; 130 cancelled by Ctrl-C.";

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<mount::MountArgs>),
    Status(status::StatusArgs),
    Local(local::LocalArgs),
    Log(log::LogArgs),
    Changes(changes::ChangesArgs),
    Doctor(doctor::DoctorArgs),
    Flush(flush::FlushArgs),
    Eject(eject::EjectArgs),
    Attach(attach::AttachArgs),
    Refresh(refresh::RefreshArgs),
    Scrub(scrub::ScrubArgs),
    Unmount(unmount::UnmountArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Config(config::command::ConfigArgs),
    Reload(reload::ReloadArgs),
    Versions(versions::VersionsArgs),
    Restore(restore::RestoreArgs),
    Undo(undo::UndoArgs),
    Leave(leave::LeaveArgs),
    Recover(recover::RecoverArgs),
    Rescue(rescue::RescueArgs),
}

/// Runs this program as `args` say, which have its name first: also for mount(8), which has exit
/// codes of its own.
pub fn run_program(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match mount_helper::is_meant(&args) {
        true => mount_helper::run(&args),
        false => main(args).into(),
    }
}

/// The definition of the command line, also for manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command().mut_subcommand(MOUNT, config::with_opposites)
}

/// Runs the command in `args` (with the program's name first), and prints its result.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    escape_panics();
    let args: Vec<OsString> = args.into_iter().collect();
    let matches = command().try_get_matches_from(&args);
    let parsed = matches.and_then(|matches| {
        let given = matches.subcommand_matches(MOUNT).map(config::given);
        Ok((Cli::from_arg_matches(&matches)?, given.unwrap_or_default()))
    });
    let outcome = match parsed {
        Ok((cli, given)) => run(cli.command, &given, &args),
        Err(error) => usage::answer(&error),
    };
    outcome.unwrap_or_else(|failure| {
        complain_of(&failure);
        failure.code
    })
}

/// The name of the command that mounts.
const MOUNT: &str = "mount";

fn run(command: Command, given: &config::Settings, args: &[OsString]) -> Result<Exit, Failure> {
    match command {
        Command::Mount(command) => mount::run(*command, given, args),
        Command::Status(command) => status::run(&command),
        Command::Local(command) => local::run(&command),
        Command::Log(command) => log::run(&command),
        Command::Changes(command) => changes::run(&command),
        Command::Doctor(command) => doctor::run(&command),
        Command::Flush(command) => flush::run(&command),
        Command::Eject(command) => eject::run(&command),
        Command::Attach(command) => attach::run(&command),
        Command::Refresh(command) => refresh::run(&command),
        Command::Scrub(command) => scrub::run(&command),
        Command::Unmount(command) => unmount::run(&command),
        Command::Pause(command) => pause::run(&command),
        Command::Resume(command) => pause::resume(&command),
        Command::Config(command) => config::command::run(&command),
        Command::Reload(command) => reload::run(&command),
        Command::Versions(command) => versions::run(&command),
        Command::Restore(command) => restore::run(&command),
        Command::Undo(command) => undo::run(&command),
        Command::Leave(command) => leave::run(&command),
        Command::Recover(command) => recover::run(&command),
        Command::Rescue(command) => rescue::run(&command),
    }
}

/// Writes lines to stdout. A closed stdout (`| head`) is not a failure, because the command itself
/// has succeeded. Names in the lines are escaped where they are inserted; here the rest is made
/// harmless.
fn say(lines: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(printable_lines(lines).as_bytes());
    let _ = stdout.flush();
}

/// Writes to stderr why a command failed, and what the user can do.
fn complain_of(failure: &Failure) {
    // Each part is one line already.
    let _ = writeln!(io::stderr(), "{failure}");
}

/// A panic is printed like other messages, because its text may contain a name.
fn escape_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        complain(&format!("thread '{name}': {panic}"));
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            let _ = writeln!(io::stderr(), "{}", printable_lines(&trace.to_string()));
        }
    }));
}

/// `value` as JSON for stdout, with a newline at its end.
fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    match serde_json::to_string_pretty(value) {
        Ok(text) => Ok(printable_json(&text) + "\n"),
        Err(error) => Err(Failure::failed(format!(
            "cannot write this as JSON: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }
}
