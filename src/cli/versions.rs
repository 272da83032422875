//! `ferryfs versions`

use std::path::PathBuf;

use serde::Serialize;

use super::kept::{Store, Version};
use super::{json, say, times};
use crate::core::{Exit, Failure, ForeignText, human_bytes};
use crate::format::versions::What;

/// List the old versions of a file, or of all that was in a directory
///
/// A mount with --versions keeps what its flushes replace and delete on the drive, in
/// .ferryfs/versions. They are plain files there, which can also be copied by hand. A version is
/// the file as it was until the flush at that time.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct VersionsArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// A path in a mount; it need not exist any more
    #[arg(default_value = ".")]
    path: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs versions ~/lab/report.odt
  ferryfs versions ~/lab/photos        # of all that is or was there
  ferryfs restore ~/lab/report.odt     # brings the newest one back";

/// A line of the output.
#[derive(Serialize)]
struct Line {
    path: String,
    /// The name of the version, for `restore`.
    version: String,
    batch: u64,
    what: What,
    bytes: u64,
}

pub(super) fn run(args: &VersionsArgs) -> Result<Exit, Failure> {
    let (store, below) = Store::of(&args.path)?;
    let found = store.versions(&below, true)?;
    if args.json {
        let lines: Vec<Line> = found.iter().map(line).collect();
        say(&json(&serde_json::json!({ "versions": lines }))?);
        return Ok(Exit::Done);
    }
    if found.is_empty() {
        let why = match store.is_on {
            true => "no flush has replaced or deleted anything there, or it was too long ago",
            false => "this mount keeps none; see `versions` in the configuration",
        };
        say(&format!(
            "no old versions of {}: {why}\n",
            args.path.escaped()
        ));
        return Ok(Exit::Done);
    }
    say(&found.iter().map(text).collect::<String>());
    Ok(Exit::Done)
}

fn line(version: &Version) -> Line {
    Line {
        path: version.entry.in_mount().to_text(),
        version: version.id.to_text(),
        batch: version.id.batch.0,
        what: version.entry.what,
        bytes: version.entry.size,
    }
}

fn text(version: &Version) -> String {
    let at = version.id.to_text();
    // The first 20 bytes are a time in UTC.
    let (time, _) = at.split_at_checked(20).unwrap_or((&at, ""));
    let time = times::date_and_time(&time.replacen('-', ":", 4).replacen(':', "-", 2));
    let what = match version.entry.what {
        What::Replaced => "replaced",
        What::Directory => "deleted directory",
        What::Special => "deleted link",
        _ => "deleted",
    };
    format!(
        "{at}  {time}  {what}  {}  {}\n",
        human_bytes(version.entry.size),
        version.entry.in_mount().escaped()
    )
}
