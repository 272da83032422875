//! `ferryfs rescue`

use std::path::PathBuf;

use super::exit::{Exit, Failure};
use super::{json, render, say};

/// Copy out everything that a cache still holds, when it cannot be mounted any more
///
/// For a cache whose index is damaged, or whose drive is gone for good. Needs neither the drive nor a mount, and writes nothing
/// into the cache. Files get the names that are still known; what has none is copied by number. Exit code 3 means that something
/// was damaged or could not be copied, and was named.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RescueArgs {
    /// The cache directory
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
    /// Where to copy to: a new or empty directory, not in the cache
    #[arg(long, value_name = "OUT")]
    to: PathBuf,
    /// As root: give the copies the owners that the index names, not the cache's owner
    ///
    /// The cache's owner can make the index say anything. Set-user-id and set-group-id bits are left out in any case.
    #[arg(long)]
    keep_owners: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Example:
  ferryfs rescue --cache ~/.local/share/ferryfs/0b9c... --to /mnt/big/rescued";

pub(super) fn run(args: &RescueArgs) -> Result<Exit, Failure> {
    let report = crate::daemon::rescue::rescue(&args.cache, &args.to, args.keep_owners)?;
    if args.json {
        say(&json(&report)?);
    } else {
        say(&render::rescue_report(&report, &args.to));
    }
    Ok(match report.is_whole() {
        true => Exit::Done,
        false => Exit::LeftBehind,
    })
}
