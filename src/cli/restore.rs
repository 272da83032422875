//! `ferryfs restore`

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::kept::restore::{Present, restore};
use super::kept::{Store, Version, When, is_below};
use super::say;
use crate::core::{Exit, Failure, ForeignText, RelPath};
use crate::format::versions::What;
use crate::sys::terminal::complain;

/// Bring an old version of a file, or what was deleted from a directory, back into the mount
///
/// The newest version is restored, or that of a TIME: the name of a version as `ferryfs versions`
/// shows it, its beginning, or the number of a batch. What is restored is a change in the mount
/// like any other; the next flush writes it, and keeps the file that it replaces.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RestoreArgs {
    /// Restore all that was deleted from this directory, and is not there again
    #[arg(long)]
    deleted: bool,
    /// Write to this directory instead, which may be outside of the mount
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Replace a file although its changes were not flushed yet, or no old version of it is kept
    #[arg(long)]
    force: bool,
    /// The path in the mount, and which version
    #[arg(value_name = "PATH[@TIME]")]
    path: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs restore ~/lab/report.odt                  # as it was before the last flush of it
  ferryfs restore ~/lab/report.odt@2026-11-28       # the newest version of that day
  ferryfs restore ~/lab/report.odt --to /tmp        # beside the present one
  ferryfs restore --deleted ~/lab/photos            # all that was deleted there";

pub(super) fn run(args: &RestoreArgs) -> Result<Exit, Failure> {
    let (path, when) = When::split(&args.path);
    let (store, below) = Store::of(&path)?;
    let found = store.versions(&below, true)?.into_iter();
    let found: Vec<Version> = found.filter(|version| when.is(version.id)).collect();
    let chosen = match args.deleted {
        true => deleted(&store, &below, found),
        false => one(&below, found),
    };
    if chosen.is_empty() {
        let what = format!("{}{}", path.escaped(), when.text());
        return match args.deleted {
            true => {
                say(&format!("nothing that was deleted from {what} is kept\n"));
                Ok(Exit::Done)
            }
            false => Err(Failure::failed(format!("no old version of {what} is kept"))
                .hint(format!("ferryfs versions {}", path.escaped()))),
        };
    }
    let may_replace = match args.force {
        true => Present::Anything,
        false => Present::OnDrive,
    };
    // What is below a directory goes to the same place below the target.
    let above = below
        .split_last()
        .map_or_else(RelPath::root, |(dir, _)| dir);
    let mut exit = Exit::Done;
    for version in &chosen {
        let in_mount = version.entry.in_mount();
        let to = match &args.to {
            None => store.in_mount(in_mount),
            Some(dir) => {
                let rest = in_mount.as_bytes().strip_prefix(above.as_bytes());
                let rest = rest.unwrap_or_default();
                let rest = rest.strip_prefix(b"/").unwrap_or(rest);
                dir.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(rest))
            }
        };
        let base = args.to.as_ref().unwrap_or(&store.mountpoint);
        match restore(&store, version, (base.as_path(), to.as_path()), may_replace) {
            Ok(()) => say(&format!(
                "restored {} ({})\n",
                to.escaped(),
                version.id.to_text()
            )),
            Err(error) => {
                complain(&format!(
                    "ferryfs: {} was not restored: {error}",
                    to.escaped()
                ));
                exit = Exit::LeftBehind;
            }
        }
    }
    Ok(exit)
}

/// Returns the newest version of `path`. If it was a directory: of all that was deleted in it by
/// the same batch.
fn one(path: &RelPath, found: Vec<Version>) -> Vec<Version> {
    let newest = found
        .iter()
        .find(|version| version.entry.in_mount() == path);
    let Some(newest) = newest.cloned() else {
        return Vec::new();
    };
    if newest.entry.what != What::Directory {
        return vec![newest];
    }
    let of_batch = found.into_iter().filter(|version| {
        let at = version.entry.in_mount();
        version.id.batch == newest.id.batch
            && version.id.secs == newest.id.secs
            && version.entry.what != What::Replaced
            && (at == path || is_below(at, path))
    });
    directories_first(of_batch.collect())
}

/// Returns the newest version of each path below `dir` that the mount does not have.
fn deleted(store: &Store, dir: &RelPath, found: Vec<Version>) -> Vec<Version> {
    let mut seen = BTreeSet::new();
    let missing = found.into_iter().filter(|version| {
        let at = version.entry.in_mount();
        let is_new = (at == dir || is_below(at, dir)) && seen.insert(at.clone());
        is_new && fs::symlink_metadata(store.in_mount(at)).is_err()
    });
    directories_first(missing.collect())
}

fn directories_first(mut versions: Vec<Version>) -> Vec<Version> {
    versions.sort_by_key(|version| {
        let at = version.entry.in_mount();
        (
            version.entry.what != What::Directory,
            at.depth(),
            at.clone(),
        )
    });
    versions
}
