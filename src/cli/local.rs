//! `ferryfs local`

use std::fmt::Write;
use std::time::Duration;

use super::reach::Which;
use super::units::human_bytes;
use super::{json, reach, say};
use crate::control::client::Client;
use crate::control::protocol::{Amount, Answer, LocalChange, LocalReport, Request};
use crate::core::{Exit, Failure, ForeignText, printable};

/// A look at all names of a large mount takes some seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The most names that are listed; `--json` has more.
const LISTED: usize = 50;

/// List what stays on this computer (--local), or say what other patterns would change
///
/// Files that match the patterns of `local` are never written to the drive, until they are renamed
/// to something that does not match. They are in the cache only: an eject or unmount keeps them,
/// and a lost cache loses them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct LocalArgs {
    /// Say what would change if these were the patterns, all of them; nothing is changed. May be
    /// given several times; '' for none
    #[arg(long = "if", value_name = "PATTERN")]
    instead: Vec<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs local
  ferryfs local --if 'tmp/' --if '*.part'   # before you change the configuration
  ferryfs reload --dry-run                  # what a changed configuration would change";

pub(super) fn run(args: &LocalArgs) -> Result<Exit, Failure> {
    let instead = (!args.instead.is_empty()).then(|| {
        let given = args.instead.iter().filter(|pattern| !pattern.is_empty());
        given.cloned().collect()
    });
    let report = ask(&mut reach::reach(&args.which)?.client, instead)?;
    match args.json {
        true => say(&json(&report)?),
        false => say(&in_words(&report)),
    }
    Ok(Exit::Done)
}

/// Asks a daemon what stays local, and what other patterns would change.
pub(super) fn ask(
    client: &mut Client,
    instead: Option<Vec<String>>,
) -> Result<LocalReport, Failure> {
    match client.call(&Request::Local { instead }, Some(PATIENCE), &mut |_| {})? {
        Answer::Local(report) => Ok(report),
        _ => Err(reach::unexpected()),
    }
}

fn in_words(report: &LocalReport) -> String {
    if let Some(change) = &report.change {
        return would_change(change);
    }
    let mut text = String::new();
    if report.patterns.is_empty() {
        text.push_str("no patterns: everything is written to the drive\n");
    } else {
        let patterns: Vec<String> = report.patterns.iter().map(|it| printable(it)).collect();
        let _ = writeln!(text, "patterns: {}", patterns.join("  "));
    }
    for entry in report.entries.iter().take(LISTED) {
        let held = match entry.held {
            true => "; the drive still has it under its old name, until its bytes are here",
            false => "",
        };
        let (path, amount) = (entry.path.escaped(), amount(&entry.amount));
        let _ = writeln!(text, "  {path}: {amount}{held}");
    }
    let listed = report.entries.len().min(LISTED) as u64;
    if report.entries_count > listed {
        let more = report.entries_count - listed;
        let _ = writeln!(text, "  and {more} more (--json has more of them)");
    }
    let _ = writeln!(text, "on this computer only: {}", amount(&report.all));
    text
}

/// What other patterns would change, a line each.
pub(super) fn would_change(change: &LocalChange) -> String {
    let mut text = String::new();
    if change.becomes_local.files > 0 {
        let _ = writeln!(
            text,
            "{} would stay on this computer from then on",
            amount(&change.becomes_local)
        );
    }
    if change.kept_on_drive.files > 0 {
        let _ = writeln!(
            text,
            "  of these the drive keeps {} as they are; their changes would not be written",
            amount(&change.kept_on_drive)
        );
    }
    if change.travels.files > 0 {
        let _ = writeln!(
            text,
            "{} would be written to the drive by the next flush",
            amount(&change.travels)
        );
    }
    if text.is_empty() {
        text.push_str("no file would change its place\n");
    }
    text
}

/// A number of files, and their bytes.
pub(super) fn amount(amount: &Amount) -> String {
    let files = match amount.files {
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    };
    format!("{files} ({})", human_bytes(amount.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_in_both_directions() {
        let some = |files, bytes| Amount { files, bytes };
        let text = would_change(&LocalChange {
            becomes_local: some(3, 2048),
            kept_on_drive: some(1, 1024),
            travels: some(2, 10),
        });
        assert!(text.contains("3 files (2.00 KiB) would stay"), "{text}");
        assert!(text.contains("keeps 1 file (1.00 KiB)"), "{text}");
        assert!(text.contains("2 files (10 B) would be written"), "{text}");
        let nothing = would_change(&LocalChange::default());
        assert_eq!(nothing, "no file would change its place\n");
    }
}
