//! `ferryfs refresh`

use std::path::{Path, PathBuf};

use super::{json, reach, render, say};
use crate::control::mounts;
use crate::control::protocol::{Answer, RefreshReport, Request};
use crate::core::{Exit, Failure, ForeignText};

/// Look for changes by other machines and programs on the drive, and show them in the mount
///
/// New, changed, moved and deleted files and directories are imported. If the mount has changed a
/// file, too, both versions are kept: the other one as name.sync-conflict-DATE-TIME-HOST.ext. This
/// is done without a command when a drive is plugged in, and every minute on a network share. Exit
/// code 3 means that some directories could not be read; they are named, and nothing is concluded
/// from them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RefreshArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// The mount, or a directory in it to compare with all that is below; may be left out inside a
    /// mount (all of it is compared), and if you have only one
    path: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs refresh              # everything
  ferryfs refresh ~/lab/photos # what the TV or the Mac has put there
  ferryfs refresh --json | jq .conflicts";

pub(super) fn run(args: &RefreshArgs) -> Result<Exit, Failure> {
    let (mount, below) = match &args.path {
        Some(path) => within(path)?,
        None => (mounts::find(None)?, String::new()),
    };
    let request = Request::Refresh { path: below };
    // Reading all directories of a slow drive has no time limit.
    let answer = reach::daemon_of(&mount)?.call(&request, None, &mut |_| {})?;
    let Answer::Refreshed(report) = answer else {
        return Err(reach::unexpected());
    };
    if args.json {
        say(&json(&report)?);
    } else {
        say(&render::refresh_report(&report));
    }
    Ok(verdict(&report))
}

fn verdict(report: &RefreshReport) -> Exit {
    match report.skipped.is_empty() {
        true => Exit::Done,
        false => Exit::LeftBehind,
    }
}

/// The mount that contains `path`, and the path below its root.
fn within(path: &Path) -> Result<(mounts::MountEntry, String), Failure> {
    let wanted = mounts::resolve(path)
        .map_err(|error| Failure::failed(format!("cannot look at {}: {error}", path.escaped())))?;
    let all = mounts::read()
        .map_err(|error| Failure::failed(format!("cannot read the mount table: {error}")))?;
    let Some(mount) = mounts::holding(&all, &wanted).filter(|mount| mount.is_ferryfs()) else {
        // Explains the problem.
        return mounts::find(Some(&wanted)).map(|mount| (mount, String::new()));
    };
    let below = wanted
        .strip_prefix(&mount.mountpoint)
        .unwrap_or(Path::new(""));
    let below = below.to_str().ok_or_else(|| {
        Failure::failed(format!(
            "the path {} is not plain text (UTF-8), which `refresh` needs",
            path.escaped()
        ))
        .hint("refresh the directory above it")
    })?;
    Ok((mount.clone(), below.to_owned()))
}
