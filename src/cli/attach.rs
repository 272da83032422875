//! `ferryfs attach`

use std::path::PathBuf;

use super::exit::{Exit, Failure};
use super::{json, mounts, reach, render, say};
use crate::base::ForeignText;
use crate::control::protocol::{Answer, Request};

/// Tell a mount where its drive is now
///
/// For a drive that was plugged in again and mounted at another place; at its old place, and usually at another one too, it
/// is found without this. The volume's marker is looked at first: another drive, a copy, or an empty directory is not taken.
/// A batch that was interrupted is then finished, and flushing goes on. Exit code 4 means: this mount's drive is not there.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct AttachArgs {
    /// Have the drive's file system checked first (unmount, fsck, mount again), unless it says that it was unmounted in
    /// order; the daemon must run as root for it
    #[arg(long)]
    fsck: bool,
    /// Take it though it looks like a copy of the drive that was enrolled: look at it first
    #[arg(long)]
    accept_copy: bool,
    /// The folder .ferryfs was deleted from the drive: write its marker anew and go on with the same cache. Nothing that waits is
    /// lost; what others have changed meanwhile is taken in
    #[arg(long, conflicts_with_all = ["fsck", "take_over"])]
    re_enroll: bool,
    /// Take the directory over, though another machine has it in use; that one goes on without it
    #[arg(long)]
    take_over: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// The drive's directory
    path: PathBuf,
    /// The mount; may be left out where there is only one
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
    // Checking a drive and finishing a batch take as long as they take.
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
