//! `ferryfs doctor`

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::reach::{NotReached, Which};
use super::{json, reach, say};
use crate::core::{Exit, Failure, ForeignText, printable};
use crate::daemon::doctor;
use crate::daemon::doctor::{Finding, Level, Subject};

/// Look at the machine, the cache, the drive and the daemon, and say what is wrong
///
/// Each line is ok, a warning, or a problem with what to do. Nothing is changed, and no lock is
/// taken. Exit code 0: all is well; 3: warnings only; 1: problems.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DoctorArgs {
    /// Print one JSON array instead of text
    #[arg(long)]
    json: bool,
    /// The cache, if it is not in the default place
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The drive, or its mount; without it the only mount, or the machine alone
    #[arg(value_name = "DRIVE|MOUNT")]
    place: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs doctor                  # before the first mount: can this machine do it?
  ferryfs doctor /media/me/HDD
  ferryfs doctor --json ~/lab | jq '.[] | select(.level != \"ok\")'";

pub(super) fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    let subject = subject(args)?;
    let findings = doctor::examine(&subject);
    if args.json {
        say(&json(&findings)?);
    } else {
        say(&text(&findings));
    }
    Ok(doctor::exit(&findings))
}

/// The drive and the daemon that are meant. A drive need not have a daemon.
fn subject(args: &DoctorArgs) -> Result<Subject, Failure> {
    let cache = args.cache.as_deref().map(absolute).transpose()?;
    let which = Which {
        cache: None,
        mountpoint: args.place.clone(),
    };
    let mut subject = Subject {
        cache,
        ..Subject::default()
    };
    match reach::reach(&which) {
        Ok(mut reached) => {
            let status = reach::status_of(&mut reached.client)?;
            subject.status = Some(Box::new(status));
        }
        Err(NotReached::Dead(mount)) => {
            subject.drive = Some(mount.source);
            subject.dead_mount = Some(mount.mountpoint);
        }
        Err(NotReached::Failed(_)) => {
            subject.drive = args.place.as_deref().map(absolute).transpose()?;
        }
    }
    Ok(subject)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.escaped())))
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut area = "";
    for finding in findings {
        if finding.area != area {
            area = finding.area;
            let _ = writeln!(text, "{area}");
        }
        let level = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Problem => "PROBLEM",
        };
        let _ = writeln!(text, "  {level}  {}", printable(&finding.text));
        if let Some(advice) = finding.advice.as_ref().filter(|advice| !advice.is_empty()) {
            let _ = writeln!(text, "           {}", printable(advice));
        }
    }
    let count = |level| findings.iter().filter(|one| one.level == level).count();
    let (warnings, problems) = (count(Level::Warning), count(Level::Problem));
    let _ = writeln!(
        text,
        "\n{}",
        match (problems, warnings) {
            (0, 0) => "All is well.".into(),
            (0, warnings) => format!("It works; warnings: {warnings}."),
            (problems, warnings) => format!("Problems: {problems}; warnings: {warnings}."),
        }
    );
    text
}
