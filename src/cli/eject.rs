//! `ferryfs eject`

use std::path::PathBuf;

use super::exit::{Exit, Failure};
use super::flush::verdict;
use super::progress::Bar;
use super::{reach, render, say};
use crate::control::protocol::Request;

/// Flush, then let go of the drive, so that it can be unplugged; the mount goes on without it
///
/// Names, and files that are in the cache, stay usable, and so do new writes: they wait on the SSD. When the drive is
/// back, work resumes by itself. Exit code 0 means: everything is on the drive, synced, and nothing holds it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct EjectArgs {
    /// The mount; may be left out where there is only one
    mountpoint: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Example:
  ferryfs eject && udisksctl unmount -b /dev/disk/by-label/HDD";

pub(super) fn run(args: &EjectArgs) -> Result<Exit, Failure> {
    let mut bar = Bar::new(false);
    let wanted = args.mountpoint.as_deref();
    let report = reach::ask_for_report(wanted, &Request::Eject, None, &mut bar)?;
    say(&render::eject_report(&report));
    Ok(verdict(&report))
}
