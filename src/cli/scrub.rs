//! `ferryfs scrub`

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use super::progress::Bar;
use super::reach::Which;
use super::units::parse_rate;
use super::{complain_of, json, reach, say, times};
use crate::control::client::Client;
use crate::control::protocol::{Answer, Request, ScrubReport, ScrubStatus, ScrubWish};
use crate::core::{Exit, Failure, ForeignText, human_bytes, printable};

/// A daemon answers this at once.
const PATIENCE: Duration = Duration::from_secs(15);

/// The most damaged files that are listed one by one; `--json` has more.
const LISTED: usize = 100;

/// Read all files of the drive, compare them with their hashes, and repair what is damaged
///
/// A drive can lose bits, and controllers write to the wrong place; size and time stay. ferryfs
/// knows the hash of every file that it has written, and notes those of others the first time. A
/// file with wrong bytes, or with bytes that cannot be read, is written again by the next flush if
/// its right bytes are known by their hash: from the cache, from another file, or from a version
/// that was kept (--versions). One that is read twice with the same other bytes is only named, if
/// no version of it would be kept: see --repair-steady. What others have changed is no damage. The
/// drive is read slowly, and programs come first.
///
/// Exit code 3 means that damaged or unreadable files are left; they are named. Ctrl-C stops the
/// scrub (130); the next one goes on where it was. Without Ctrl-C the daemon goes on when this
/// command is gone, and after a pause for the drive or a restart.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ScrubArgs {
    /// Print one JSON object instead of text; an array if several mounts are named
    #[arg(long)]
    json: bool,
    /// How many bytes a second are read: "20M" [default: scrub_rate of the configuration]
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    rate: Option<u64>,
    /// Begin with the first file, also if an earlier scrub was stopped in the middle
    #[arg(long)]
    restart: bool,
    /// Only look: repair nothing
    #[arg(long)]
    no_repair: bool,
    /// Repair also files that somebody may have changed and kept the time of, without --versions
    ///
    /// A file that is read twice with the same other bytes may be rotten, or changed on purpose by
    /// a program that keeps the time (exiftool -P, VeraCrypt, touch -r). With --versions it is
    /// repaired, as the replaced bytes are kept as a version; otherwise only with this option.
    #[arg(long, conflicts_with = "no_repair")]
    repair_steady: bool,
    /// Stop the scrub under way, also one that the schedule has begun
    #[arg(long, conflicts_with_all = ["rate", "restart", "no_repair", "repair_steady"])]
    stop: bool,
    /// The cache of the mount: reaches the daemon also if the mount is gone
    #[arg(long, value_name = "DIR", conflicts_with = "mounts")]
    cache: Option<PathBuf>,
    /// The mounts, as for `ferryfs status`; one after another
    #[arg(value_name = "MOUNT")]
    mounts: Vec<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs scrub                   # all of it, some day and night for a large drive
  ferryfs scrub --rate 200M hdd   # as fast as the drive can
  ferryfs scrub --stop hdd
  ferryfs scrub --json | jq .last.problems
In the configuration, once a month: scrub = \"0 3 1 * *\"";

pub(super) fn run(args: &ScrubArgs) -> Result<Exit, Failure> {
    let mut all: Vec<Which> = (args.mounts.iter())
        .map(|mount| Which {
            cache: None,
            mountpoint: Some(mount.clone()),
        })
        .collect();
    if all.len() < 2 {
        let mountpoint = all.pop().and_then(|which| which.mountpoint);
        let cache = args.cache.clone();
        let status = one(&Which { cache, mountpoint }, args)?;
        match args.json {
            true => say(&json(&status)?),
            false => say(&in_words(&status, args.stop)),
        }
        return Ok(verdict(&status, args.stop));
    }
    let mut outcome = Exit::Done;
    let mut found = Vec::new();
    // One that fails does not keep the others from being read. The first failure is the exit code.
    for which in &all {
        let exit = match one(which, args) {
            Ok(status) => {
                if !args.json {
                    let mount = which.mountpoint.as_deref().unwrap_or_else(|| "".as_ref());
                    let words = in_words(&status, args.stop);
                    say(&format!("{}:\n{words}", mount.escaped()));
                }
                let exit = verdict(&status, args.stop);
                found.push(status);
                exit
            }
            Err(failure) if failure.code == Exit::Cancelled => return Err(failure),
            Err(failure) => {
                complain_of(&failure);
                failure.code
            }
        };
        if outcome == Exit::Done {
            outcome = exit;
        }
    }
    if args.json {
        say(&json(&found)?);
    }
    Ok(outcome)
}

/// Scrubs one mount, or stops that.
fn one(which: &Which, args: &ScrubArgs) -> Result<ScrubStatus, Failure> {
    let mut client = reach::reach(which)?.client;
    if args.stop {
        return ask(client.call(&Request::StopScrub, Some(PATIENCE), &mut |_| {}));
    }
    let request = Request::Scrub(ScrubWish {
        rate: args.rate,
        restart: args.restart,
        only_look: args.no_repair,
        repair_steady: args.repair_steady,
    });
    wait_for(&mut client, &request, args.json)
}

fn wait_for(client: &mut Client, request: &Request, quiet: bool) -> Result<ScrubStatus, Failure> {
    let mut bar = Bar::new(quiet);
    ask(reach::call_until_interrupted(
        client, request, None, &mut bar,
    ))
}

fn ask(
    answer: Result<Answer, crate::control::client::ClientError>,
) -> Result<ScrubStatus, Failure> {
    match answer? {
        Answer::Scrubbed(status) => Ok(status),
        _ => Err(reach::unexpected()),
    }
}

fn verdict(status: &ScrubStatus, stopped: bool) -> Exit {
    match &status.last {
        Some(last) if !stopped && last.unresolved() > 0 => Exit::LeftBehind,
        _ => Exit::Done,
    }
}

fn in_words(status: &ScrubStatus, stopped: bool) -> String {
    if stopped {
        return match &status.current {
            Some(_) => "stopped; `ferryfs scrub` goes on where it was\n".into(),
            None => "no scrub was under way\n".into(),
        };
    }
    match &status.last {
        Some(last) => found(last),
        None => "no scrub has come to its end yet\n".into(),
    }
}

/// What a scrub has found, a line for each problem.
fn found(report: &ScrubReport) -> String {
    let mut text = format!("{}\n", summary(report));
    for problem in report.problems.iter().take(LISTED) {
        let (path, problem) = (problem.path.escaped(), printable(&problem.problem));
        let _ = writeln!(text, "  {path}: {problem}");
    }
    if report.problems.len() > LISTED {
        let more = report.problems.len() - LISTED;
        let _ = writeln!(text, "  and {more} more (--json has more of them)");
    }
    text
}

/// What a scrub has found, in one line.
pub(super) fn summary(report: &ScrubReport) -> String {
    let files = |count| super::render::files(count);
    let mut parts = vec![format!(
        "read {} ({})",
        files(report.read.files),
        human_bytes(report.read.bytes)
    )];
    match report.damaged {
        0 => parts.push("none damaged".into()),
        damaged => {
            let written = report.repaired.saturating_sub(report.waiting);
            let mut text = format!("{damaged} damaged");
            if report.waiting > 0 {
                let _ = write!(
                    text,
                    ", {} for the next flush to write again",
                    report.waiting
                );
            }
            if written > 0 || report.repaired == 0 {
                let _ = write!(text, ", {written} of them written again");
            }
            parts.push(text);
        }
    }
    for (count, what) in [
        (report.unsteady, "read wrongly once, then rightly"),
        (report.unreadable, "cannot be read"),
        (report.recorded, "without a hash until now"),
        (report.left_out, "left out, as they wait or were changed"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join("; ")
}

/// The lines of `status`.
pub(super) fn rows(status: &ScrubStatus) -> Vec<String> {
    let mut rows = Vec::new();
    if let Some(current) = &status.current {
        let total = human_bytes(status.total.bytes);
        let state = match (status.running, &status.waits_for) {
            (false, _) => "stopped; `ferryfs scrub` goes on".into(),
            (true, Some(reason)) => format!("waits for {}", printable(reason)),
            (true, None) => "under way".into(),
        };
        let of = match status.total.bytes {
            0 => String::new(),
            _ => format!(" of {total}"),
        };
        rows.push(format!("{state}{of}: {}", summary(current)));
    }
    if let Some(last) = &status.last {
        let ended = last.ended.as_deref().unwrap_or_default();
        let time = times::date_and_time(ended);
        rows.push(format!("ended at {time}: {}", summary(last)));
    }
    if let Some(next) = &status.next_run {
        rows.push(format!("scheduled for {}", times::date_and_time(next)));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::Amount;

    #[test]
    fn only_files_that_are_left_make_the_exit_code_3() {
        let report = |damaged, repaired, unreadable| ScrubStatus {
            last: Some(ScrubReport {
                read: Amount {
                    files: 9,
                    bytes: 2048,
                },
                damaged,
                repaired,
                unreadable,
                ..ScrubReport::default()
            }),
            ..ScrubStatus::default()
        };
        let exit = |status: &ScrubStatus| verdict(status, false);
        assert_eq!(exit(&ScrubStatus::default()), Exit::Done);
        assert_eq!(exit(&report(0, 0, 0)), Exit::Done);
        assert_eq!(exit(&report(2, 2, 0)), Exit::Done);
        assert_eq!(exit(&report(2, 1, 0)), Exit::LeftBehind);
        assert_eq!(exit(&report(0, 0, 1)), Exit::LeftBehind);
        assert_eq!(verdict(&report(2, 1, 0), true), Exit::Done);
        let text = in_words(&report(2, 1, 1), false);
        let wanted =
            "read 9 files (2.00 KiB); 2 damaged, 1 of them written again; 1 cannot be read\n";
        assert_eq!(text, wanted);
        let mut waits = report(2, 2, 0);
        let last = waits.last.as_mut().expect("a report");
        (last.waiting, last.unsteady) = (2, 1);
        let wanted = "read 9 files (2.00 KiB); 2 damaged, 2 for the next flush to write again; \
                      1 read wrongly once, then rightly\n";
        assert_eq!(in_words(&waits, false), wanted);
    }
}
