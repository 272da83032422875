//! `ferryfs recover`

use std::path::PathBuf;

use super::{render, say};
use crate::core::{Exit, Failure};

/// Finish an interrupted batch on a drive, without the cache it came from
///
/// For a machine that has the drive but not the SSD. A batch that was committed is finished, one
/// that was not is discarded; in both cases the files on the drive are whole. If the cache is
/// there, `ferryfs mount` does this, too.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RecoverArgs {
    /// The drive's directory
    #[arg(value_name = "DRIVE")]
    backend: PathBuf,
}

const EXAMPLES: &str = "\
Example:
  ferryfs recover /media/me/HDD";

pub(super) fn run(args: &RecoverArgs) -> Result<Exit, Failure> {
    let backend = std::path::absolute(&args.backend)
        .map_err(|error| Failure::usage(format!("no usable path: {error}")))?;
    crate::daemon::preflight::check_recoverable(&backend).map_err(crate::core::Failure::from)?;
    let report = crate::daemon::recover(&backend)?;
    say(&render::recover_report(&report));
    if report.left_behind.is_empty() {
        Ok(Exit::Done)
    } else {
        Ok(Exit::LeftBehind)
    }
}
