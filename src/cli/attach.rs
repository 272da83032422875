//! `ferryfs attach`

use std::path::PathBuf;

use super::{json, reach, render, say};
use crate::control::mounts;
use crate::control::protocol::{Answer, Request};
use crate::core::{Exit, Failure, ForeignText};

/// Tell a mount where its drive is now
///
/// For a drive that was plugged in again and mounted at another path. At its old path, and usually
/// at a new one, too, it is attached without this command. The volume's marker is checked first:
/// another drive, a copy, or an empty directory is not attached. An interrupted batch is then
/// finished, and flushing continues. Exit code 4 means: this mount's drive is not there.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct AttachArgs {
    /// Check the drive's file system first (unmount, fsck, mount again), unless it was unmounted
    /// cleanly; the daemon must run as root
    #[arg(long)]
    fsck: bool,
    /// Attach it although it looks like a copy of the drive that was enrolled: look at it first
    #[arg(long)]
    accept_copy: bool,
    /// The folder .ferryfs was deleted from the drive: write its marker again and keep the cache.
    /// Nothing that waits is lost, and changes of other machines are imported
    #[arg(long, conflicts_with_all = ["fsck", "take_over"])]
    re_enroll: bool,
    /// Take the directory over although another machine uses it; that machine continues without it
    #[arg(long)]
    take_over: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// The drive's directory
    #[arg(value_name = "DRIVE")]
    path: PathBuf,
    /// The mount; may be left out if there is only one
    mountpoint: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs attach /media/me/HDD1
  sudo ferryfs attach --fsck /media/me/HDD ~/lab   # after the drive was pulled without an eject";

pub(super) fn run(args: &AttachArgs) -> Result<Exit, Failure> {
    let path = std::path::absolute(&args.path)
        .map_err(|error| Failure::usage(format!("no usable path: {error}")))?;
    let path = path.to_str().ok_or_else(|| {
        Failure::failed(format!(
            "the path {} is not plain text (UTF-8), which `attach` needs",
            path.escaped()
        ))
        .hint("unmount, and mount again with this path")
    })?;
    let (path, accept_copy) = (path.to_owned(), args.accept_copy);
    let request = match args.re_enroll {
        true => Request::ReEnroll { path, accept_copy },
        false => Request::Attach {
            path,
            accept_copy,
            fsck: args.fsck,
            take_over: args.take_over,
        },
    };
    let mount = mounts::find(args.mountpoint.as_deref())?;
    // Checking a drive and finishing a batch have no time limit.
    let answer = reach::daemon_of(&mount)?.call(&request, None, &mut |_| {})?;
    let Answer::Attached(report) = answer else {
        return Err(reach::unexpected());
    };
    if args.json {
        say(&json(&report)?);
    } else {
        say(&render::attach_report(&report));
    }
    Ok(Exit::Done)
}
