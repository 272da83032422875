//! `ferryfs changes`

mod fold;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use self::fold::{Folded, Place};
use super::reach::Which;
use super::{reach, say, times};
use crate::control::protocol::BackendState;
use crate::core::{Exit, Failure, ForeignText, path_of_text, printable, printable_json};
use crate::daemon::changes;
use crate::daemon::changes::{Entry, FeedError, What};
use crate::sys::terminal::complain;

/// Tell what the batches have changed on the drive
///
/// Each batch leaves a list of what it has changed on the drive; the lists are kept until they have
/// 64 MiB. With --since only batches after that one are told, so that a second copy can follow. If
/// some of them are not known any more the command fails: then copy everything once.
///
/// Changes that other programs make on the drive itself are not told.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ChangesArgs {
    /// Tell the changes after this batch [default: all that are known]
    #[arg(long, value_name = "BATCH")]
    since: Option<u64>,
    /// Tell the changes up to this batch
    #[arg(long, value_name = "BATCH")]
    until: Option<u64>,
    /// Print the number of the newest batch that has changed something, and nothing else
    #[arg(long, conflicts_with_all = ["since", "until", "json", "files", "removed", "null"])]
    newest: bool,
    /// Print one JSON object a line
    #[arg(long, conflicts_with_all = ["files", "removed", "null"])]
    json: bool,
    /// Print the files that a second copy has to copy, as paths on the drive, one a line
    #[arg(long, conflicts_with = "removed")]
    files: bool,
    /// Print the files that a second copy has to remove, as paths on the drive, one a line
    #[arg(long)]
    removed: bool,
    /// End each path with a NUL instead of a newline
    #[arg(short = '0', long)]
    null: bool,
    #[command(flatten)]
    which: Which,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs changes --since 41
  ferryfs changes --since 41 --json | jq -r 'select(.change == \"removed\") | .path'
  ferryfs changes --since 41 --files > /tmp/list
  rclone copy --files-from-raw /tmp/list /media/me/HDD second:lab";

pub(super) fn run(args: &ChangesArgs) -> Result<Exit, Failure> {
    let cache = reach::cache_of(&args.which)?;
    if args.newest {
        let newest = changes::newest(&cache)?;
        say(&format!("{newest}\n"));
        return Ok(Exit::Done);
    }
    let since = match args.since {
        Some(since) => since,
        None => changes::before_oldest(&cache)?,
    };
    let range = (since, args.until.unwrap_or(u64::MAX));
    if args.files || args.removed {
        return print_paths(args, &cache, range);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    changes::read(&cache, range.0, range.1, |entry| {
        let line = match args.json {
            true => printable_json(&serde_json::to_string(&entry).unwrap_or_default()),
            false => line(&entry),
        };
        // A closed stdout (`| head`) is not a failure.
        let _ = writeln!(out, "{line}");
        Ok::<(), FeedError>(())
    })?;
    let _ = out.flush();
    Ok(Exit::Done)
}

/// One change in one line.
fn line(entry: &Entry) -> String {
    let what = match entry.change {
        What::Written if entry.dir => "made",
        What::Written => "written",
        What::Moved => "moved",
        What::Removed => "removed",
        What::Attributes => "attributes",
    };
    let path = path_of_text(&entry.path);
    let name = match &entry.from {
        Some(from) => format!("{} to {}", path_of_text(from).escaped(), path.escaped()),
        None => path.escaped().to_string(),
    };
    format!(
        "{}  batch {:<5} {what:<10} {name}",
        times::date_and_time(&entry.time),
        entry.batch
    )
}

fn print_paths(
    args: &ChangesArgs,
    cache: &Path,
    (since, until): (u64, u64),
) -> Result<Exit, Failure> {
    let mut folded = Folded::default();
    changes::read(cache, since, until, |entry| {
        folded.take(&entry);
        Ok::<(), FeedError>(())
    })?;
    let folded = folded.finish();
    let paths = match args.removed {
        true => removed(args, &folded)?,
        false => to_copy(args, folded)?,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut exit = Exit::Done;
    for path in paths {
        let end = if args.null { b"\0" } else { b"\n" };
        if !args.null && path.contains(&b'\n') {
            complain(&format!(
                "left out: {} has a line end in its name; use --null",
                path.escaped()
            ));
            exit = Exit::LeftBehind;
            continue;
        }
        let _ = out.write_all(&path).and_then(|()| out.write_all(end));
    }
    let _ = out.flush();
    Ok(exit)
}

/// The files that a second copy has to copy: those that are still there.
fn to_copy(args: &ChangesArgs, folded: Folded) -> Result<BTreeSet<Place>, Failure> {
    let mut paths = folded.files;
    paths.extend(folded.touched);
    if paths.is_empty() && folded.moved_dirs.is_empty() {
        return Ok(paths);
    }
    let drive = drive_of(args)?;
    for dir in &folded.moved_dirs {
        let below = files_below(&drive, &dir.to)?;
        paths.extend(below.iter().map(|rest| [&dir.to[..], b"/", rest].concat()));
    }
    // Other programs may have removed some; and attributes of directories are told, too.
    paths.retain(|path| {
        let meta = drive.join(OsStr::from_bytes(path)).symlink_metadata();
        match meta {
            Ok(meta) => !meta.is_dir(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    });
    Ok(paths)
}

/// The files that a second copy has to remove. None of them is there.
fn removed(args: &ChangesArgs, folded: &Folded) -> Result<BTreeSet<Place>, Failure> {
    let mut paths = folded.gone.clone();
    if folded.moved_dirs.is_empty() {
        return Ok(paths);
    }
    let drive = drive_of(args)?;
    let mut there = folded.files.clone();
    for dir in &folded.moved_dirs {
        for rest in files_below(&drive, &dir.to)? {
            there.insert([&dir.to[..], b"/", &rest].concat());
            paths.insert([&dir.from[..], b"/", &rest].concat());
        }
    }
    paths.retain(|path| !there.contains(path));
    Ok(paths)
}

/// The drive's directory, while the drive is there.
fn drive_of(args: &ChangesArgs) -> Result<PathBuf, Failure> {
    let status = reach::status_of(&mut reach::reach(&args.which)?.client)?;
    match status.backend_state {
        BackendState::Attached => Ok(path_of_text(&status.backend)),
        BackendState::Detached => Err(Failure {
            code: Exit::BackendAbsent,
            ..Failure::failed("the drive is not there, and its files must be listed")
        }
        .hint("plug it in or attach it, and run this again; nothing was changed")),
    }
}

/// The files below a directory of the drive, relative to it. Links are not followed.
fn files_below(drive: &Path, dir: &Place) -> Result<Vec<Place>, Failure> {
    let top = drive.join(OsStr::from_bytes(dir));
    let mut files = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(at) = open.pop() {
        let place = top.join(&at);
        let failed = |error: io::Error| {
            Failure::failed(format!("cannot list {}: {error}", place.escaped()))
                .hint("attach the drive, and run this again; nothing was changed")
        };
        for entry in fs::read_dir(&place).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = at.join(entry.file_name());
            match entry.file_type().map_err(failed)?.is_dir() {
                true => open.push(path),
                false => files.push(path.as_os_str().as_bytes().to_vec()),
            }
        }
    }
    Ok(files)
}

impl From<FeedError> for Failure {
    fn from(error: FeedError) -> Failure {
        let failure = Failure::failed(printable(&error.to_string()).to_string());
        match error {
            FeedError::Gap { .. } => failure.hint(
                "copy everything once, and go on after the batch that \
                 `ferryfs changes --newest` has named before",
            ),
            FeedError::Future { .. } => {
                failure.hint("was the number noted for another drive or another cache?")
            }
            FeedError::Io { .. } => failure
                .hint("run this as the user who mounted it; if the file is damaged, delete it"),
        }
    }
}
