//! `ferryfs rescue`

use std::path::PathBuf;

use super::{json, render, say};
use crate::core::{Exit, Failure};

/// Copy out everything that a cache still holds, when it can no longer be mounted
///
/// For a cache whose index is damaged, or whose drive is gone for good. Needs neither the drive nor
/// a mount, and writes nothing into the cache. Files get the names that are still known; a file
/// without one is named by its number. Exit code 3 means that some files were damaged or could not
/// be copied; they are named.
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
    /// The cache's owner can put any owner into the index. Set-user-id and set-group-id bits are
    /// left out in any case.
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
    let report = crate::recovery::rescue::rescue(&args.cache, &args.to, args.keep_owners)?;
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
