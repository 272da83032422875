//! `ferryfs status`

use std::path::PathBuf;
use std::time::Duration;

use super::exit::{Exit, Failure};
use super::{json, mounts, reach, render, say};
use crate::control::protocol::{Answer, Request};

/// A daemon answers this from memory and the index; longer means that it is stuck.
const PATIENCE: Duration = Duration::from_secs(15);

/// Show what waits to be carried over, and whether it is safe to unplug
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct StatusArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// The mount; may be left out where there is only one
    mountpoint: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs status
  ferryfs status --json | jq .safe_to_unplug";

pub(super) fn run(args: &StatusArgs) -> Result<Exit, Failure> {
    let mount = mounts::find(args.mountpoint.as_deref())?;
    let mut client = reach::daemon_of(&mount)?;
    let answer = client.call(&Request::Status, Some(PATIENCE), &mut |_| {})?;
    let Answer::Status(status) = answer else {
        return Err(reach::unexpected());
    };
    if args.json {
        say(&json(&status)?);
    } else {
        say(&render::status(&status));
    }
    Ok(Exit::Done)
}
