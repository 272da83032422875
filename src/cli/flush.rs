//! `ferryfs flush`

use std::time::Duration;

use super::progress::Bar;
use super::reach::Which;
use super::units::parse_duration;
use super::{json, reach, render, say};
use crate::control::protocol::{FlushReport, FlushWish, Request};
use crate::core::{Exit, Failure};

/// The daemon keeps the timeout itself and says why; how much later the command gives up on it.
const GRACE: Duration = Duration::from_secs(10);

/// Flush everything now, and return when it is on the drive
///
/// What is written after the command began may or may not be in it. Exit code 0 means: everything
/// from before is on the drive, synced. 3 means that some files could not be flushed; they are
/// named, with the reason. Ctrl-C cancels the flush until its batch is committed; after that it is
/// finished in the background (130 in both cases).
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct FlushArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Give up waiting after this long ("90s", "10m", "2h"); exit code 1, and the daemon continues
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Read back what was written, past the kernel's memory, and compare it, before the cache may
    /// evict it
    #[arg(long)]
    verify: bool,
    /// If the drive is full, flush the deletions in the mount first. Until the rest has followed,
    /// the drive has a state that the mount never had: the old files without the deleted ones
    #[arg(long)]
    removals_first: bool,
    /// Let a flush go that was held back because it changes so much (see hold_if in the
    /// configuration)
    #[arg(long)]
    release: bool,
    /// Leave files that are open for writing behind until they are closed, instead of writing them
    /// as they are at one moment
    #[arg(long)]
    wait_closed: bool,
    /// Flush also the files that were being written when the daemon died, as they are
    #[arg(long)]
    include_interrupted: bool,
    #[command(flatten)]
    which: Which,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs flush                      # wait until everything is on the drive
  ferryfs flush --timeout 10m ~/lab  # but no longer than ten minutes
  ferryfs flush --json | jq -r '.left_behind[].path'";

pub(super) fn run(args: &FlushArgs) -> Result<Exit, Failure> {
    if args.include_interrupted {
        let mut client = reach::reach(&args.which)?.client;
        client.call(&Request::IncludeInterrupted, Some(GRACE), &mut |_| {})?;
    }
    let request = Request::Flush(FlushWish {
        timeout_ms: args.timeout.map(millis),
        verify: args.verify,
        removals_first: args.removals_first,
        release: args.release,
        wait_closed: args.wait_closed,
    });
    let patience = args.timeout.map(|timeout| timeout.saturating_add(GRACE));
    let mut bar = Bar::new(args.json);
    let report = reach::ask_for_report(&args.which, &request, patience, &mut bar)?;
    if args.json {
        say(&json(&report)?);
    } else {
        say(&render::flush_report(&report));
    }
    Ok(verdict(&report))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The exit code of a command that has flushed with this `report`.
pub(super) fn verdict(report: &FlushReport) -> Exit {
    if report.left_behind.is_empty() {
        Exit::Done
    } else {
        Exit::LeftBehind
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::LeftBehind;

    #[test]
    fn zero_is_said_only_if_nothing_was_left_behind() {
        let mut report = FlushReport {
            batch: Some(1),
            files: 1,
            bytes: 1,
            seconds: 0.0,
            left_behind: Vec::new(),
            kept_local: 3,
            ..FlushReport::default()
        };
        assert_eq!(verdict(&report), Exit::Done);
        report.left_behind.push(LeftBehind {
            path: "a".into(),
            reason: "open".into(),
        });
        assert_eq!(verdict(&report), Exit::LeftBehind);
    }
}
