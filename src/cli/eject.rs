//! `ferryfs eject`

use super::flush::verdict;
use super::power_off::power_off;
use super::progress::Bar;
use super::reach::Which;
use super::{reach, render, say};
use crate::control::protocol::Request;
use crate::core::{Exit, Failure, path_of_text};

/// Flush, then release the drive, so that it can be unplugged; the mount stays usable without it
///
/// Names, and files in the cache, stay usable, and so do new writes, which wait on the SSD. When
/// the drive is back, it is attached without a command. Exit code 0 means: everything is on the
/// drive, synced, and nothing keeps it in use. After Ctrl-C (130) the drive stays attached.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct EjectArgs {
    /// Then unmount the drive and switch it off: by udisks2 (udisksctl) if it is there, else as
    /// root
    #[arg(long)]
    power_off: bool,
    #[command(flatten)]
    which: Which,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs eject && udisksctl unmount -b /dev/disk/by-label/HDD
  ferryfs eject --power-off";

pub(super) fn run(args: &EjectArgs) -> Result<Exit, Failure> {
    let drive = match args.power_off {
        true => Some(reach::status_of(&mut reach::reach(&args.which)?.client)?.backend),
        false => None,
    };
    let mut bar = Bar::new(false);
    let report = reach::ask_for_report(&args.which, &Request::Eject, None, &mut bar)?;
    say(&render::eject_report(&report));
    if let Some(drive) = drive {
        say(&power_off(&path_of_text(&drive))?);
    }
    Ok(verdict(&report))
}
