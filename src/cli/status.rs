//! `ferryfs status`

use super::reach::Which;
use super::{complain_of, config, json, reach, render, say, watch};
use crate::control::mounts;
use crate::control::mounts::MountEntry;
use crate::core::{Exit, Failure, quoted};

/// Show what waits for the next flush, and whether it is safe to unplug
///
/// Without a mount it shows the one that the working directory is in, else all of them, and the
/// drives of the configuration that are not mounted.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct StatusArgs {
    /// Print one JSON object instead of text; with --watch one a line
    #[arg(long)]
    json: bool,
    /// Print one line: "safe now", "safe in about 20 s" (as long as an eject
    /// takes that begins now), "not safe" or "does not answer"
    #[arg(long, conflicts_with_all = ["json", "watch", "all"])]
    brief: bool,
    /// Go on showing it as it changes, until Ctrl-C. Without a terminal one line for each change
    #[arg(long, short)]
    watch: bool,
    /// All mounts, also from inside of one; with --json always as an array
    #[arg(long, conflicts_with_all = ["cache", "mountpoint"])]
    all: bool,
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
    let is_open = args.which.cache.is_none() && args.which.mountpoint.is_none();
    if args.all || is_open && !args.json && !args.brief && mounts::here().is_none() {
        let mounts = mounts::commanded().unwrap_or_default();
        let away = not_mounted(&mounts);
        // One mount, or a daemon without one, is found below.
        if args.all || mounts.len() > 1 || !away.is_empty() {
            return all(mounts, &away, args.json);
        }
    }
    let status = reach::status_of(&mut reach::reach(&args.which)?.client)?;
    if args.json {
        say(&json(&status)?);
    } else if args.brief {
        say(&format!("{}\n", watch::brief(status)));
    } else {
        say(&render::status(&status));
    }
    Ok(Exit::Done)
}

/// The drives of the configuration whose mount points have no mount, a line each.
fn not_mounted(mounts: &[MountEntry]) -> Vec<String> {
    let Ok(config) = config::load() else {
        return Vec::new();
    };
    let is_away = |place: &std::path::Path| {
        let place = mounts::resolve(place).unwrap_or_else(|_| place.into());
        !mounts.iter().any(|mount| mount.mountpoint == place)
    };
    let line = |drive: &config::Drive| {
        let place = drive.mountpoint().filter(|place| is_away(place))?;
        let (name, place) = (&drive.name, quoted(place));
        Some(format!(
            "{name}: not mounted at {place}; `ferryfs mount {name}` mounts it"
        ))
    };
    config.drives.iter().filter_map(line).collect()
}

/// Shows all mounts. One that does not answer does not hide the others.
fn all(mounts: Vec<MountEntry>, away: &[String], as_json: bool) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    let mut found = Vec::new();
    for mount in mounts {
        let status = (reach::at(mount).map_err(Failure::from))
            .and_then(|reached| reach::status_of(&mut { reached.client }));
        match status {
            Ok(status) => found.push(status),
            Err(failure) => {
                complain_of(&failure);
                exit = failure.code;
            }
        }
    }
    if as_json {
        say(&json(&found)?);
        return Ok(exit);
    }
    let mut parts: Vec<String> = found.iter().map(render::status).collect();
    if !away.is_empty() {
        parts.push(away.join("\n") + "\n");
    }
    if parts.is_empty() && exit == Exit::Done {
        parts.push("nothing is mounted\n".into());
    }
    say(&parts.join("\n"));
    Ok(exit)
}
