//! `ferryfs log`

use std::fmt::Write;

use super::reach::Which;
use super::units::{human_bytes, human_seconds};
use super::{json, reach, say, times};
use crate::core::{Exit, Failure, ForeignText, printable};
use crate::daemon::history;
use crate::daemon::history::{Entry, Outcome};

/// Show the batches that were written to the drive
///
/// Each line is one batch: when it ended, its number, what it wrote, and how it ended. The history
/// is in the cache and has some thousand batches. With --cache it is read without a mount.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct LogArgs {
    /// How many of the last batches to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    number: usize,
    /// Print one JSON array instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs log
  ferryfs log -n 100 ~/lab
  ferryfs log --json | jq 'map(.bytes) | add'";

pub(super) fn run(args: &LogArgs) -> Result<Exit, Failure> {
    let cache = reach::cache_of(&args.which)?;
    let entries = history::read(&cache, args.number).map_err(|error| {
        let place = cache.escaped();
        Failure::failed(format!("cannot read the history in {place}: {error}"))
            .hint("run this as the user who mounted it; the history is needed for nothing else")
    })?;
    if args.json {
        say(&json(&entries)?);
    } else {
        say(&text(&entries));
    }
    Ok(Exit::Done)
}

fn text(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "no batch was written yet\n".into();
    }
    let mut text = String::new();
    for entry in entries {
        let _ = writeln!(text, "{}", line(entry));
        if let Some(problem) = &entry.problem {
            let _ = writeln!(text, "    {}", printable(problem));
        }
    }
    text
}

/// One batch in one line.
pub(super) fn line(entry: &Entry) -> String {
    let mut parts = vec![counted(entry.files, "file", "files")];
    parts.push(human_bytes(entry.bytes));
    for (count, what) in [(entry.removed, "removed"), (entry.moved, "moved")] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    if entry.conflicts > 0 {
        parts.push(counted(entry.conflicts, "conflict", "conflicts"));
    }
    parts.push(format!("{:.1} s", entry.seconds));
    if entry.seconds >= 60.0 {
        parts.pop();
        parts.push(human_seconds(entry.seconds));
    }
    let outcome = match entry.outcome {
        Outcome::Complete => "complete".into(),
        Outcome::LeftBehind => format!("{} left behind", entry.left_behind),
        Outcome::GivenUp => "given up, all of it still waits".into(),
        Outcome::Interrupted => "interrupted".to_string(),
    };
    let recovered = match entry.recovered {
        true => ", after an interruption",
        false => "",
    };
    format!(
        "{}  batch {:<5} {}: {outcome}{recovered}",
        times::date_and_time(&entry.time),
        entry.batch,
        parts.join(", ")
    )
}

fn counted(count: u64, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_batch_did_and_how_it_ended() {
        let entry = Entry {
            time: "no time".into(),
            batch: 7,
            outcome: Outcome::Complete,
            recovered: true,
            files: 1,
            bytes: 2048,
            removed: 0,
            moved: 2,
            conflicts: 1,
            left_behind: 0,
            seconds: 0.26,
            problem: None,
        };
        assert_eq!(
            line(&entry),
            "no time  batch 7     1 file, 2.00 KiB, 2 moved, 1 conflict, 0.3 s: complete, after an \
             interruption"
        );
        let given_up = Entry {
            outcome: Outcome::GivenUp,
            problem: Some("the drive\nis \x1b full".into()),
            ..entry
        };
        let text = text(&[given_up]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert_eq!(super::text(&[]), "no batch was written yet\n");
    }
}
