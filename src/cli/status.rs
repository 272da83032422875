//! `ferryfs status`

use super::reach::Which;
use super::{json, reach, render, say, watch};
use crate::core::{Exit, Failure};

/// Show what waits for the next flush, and whether it is safe to unplug
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct StatusArgs {
    /// Print one JSON object instead of text; with --watch one a line
    #[arg(long)]
    json: bool,
    /// Go on showing it as it changes, until Ctrl-C. Without a terminal one line for each change
    #[arg(long, short)]
    watch: bool,
    #[command(flatten)]
    which: Which,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs status
  ferryfs status --watch
  ferryfs status --json | jq .safe_to_unplug";

pub(super) fn run(args: &StatusArgs) -> Result<Exit, Failure> {
    if args.watch {
        return watch::run(&args.which, args.json);
    }
    let status = reach::status_of(&mut reach::reach(&args.which)?.client)?;
    if args.json {
        say(&json(&status)?);
    } else {
        say(&render::status(&status));
    }
    Ok(Exit::Done)
}
