//! Help, and the answer to a wrong command line.

use clap::error::ErrorKind;

use crate::core::{Exit, Failure};

/// The result of parsing, if it is not a command: help on stdout, or a [`Failure`].
pub(super) fn answer(error: &clap::Error) -> Result<Exit, Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            Ok(Exit::Done)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Ok(Exit::Usage)
        }
        _ => Err(failure(error)),
    }
}

/// A wrong command line as one of our failures.
pub(super) fn failure(error: &clap::Error) -> Failure {
    in_one_line(&error.to_string())
}

/// The parser's message in the form of all our failures. Its first paragraph says what is wrong,
/// further ones have tips, then the usage follows.
fn in_one_line(words: &str) -> Failure {
    let mut paragraphs = words.split("\n\n");
    let first = paragraphs.next().unwrap_or_default();
    let message = joined(first.strip_prefix("error: ").unwrap_or(first));
    let tip = words
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("tip: "));
    let hint = match (
        tip,
        words.lines().find_map(|line| line.strip_prefix("Usage: ")),
    ) {
        (Some(tip), _) => tip.to_string(),
        (None, Some(usage)) => format!("usage: {usage}"),
        (None, None) => "see `ferryfs --help`".into(),
    };
    Failure::usage(message).hint(hint)
}

fn joined(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_lines_become_one_and_the_usage_becomes_the_hint() {
        let failure = in_one_line(
            "error: the following required arguments were not provided:\n  <DRIVE>\n  <MOUNTPOINT>\n\n\
             Usage: ferryfs mount <DRIVE> <MOUNTPOINT>\n\nFor more information, try '--help'.\n",
        );
        assert_eq!(failure.code, Exit::Usage);
        assert_eq!(
            failure.message,
            "the following required arguments were not provided: <DRIVE> <MOUNTPOINT>"
        );
        assert_eq!(
            failure.hint.unwrap(),
            "usage: ferryfs mount <DRIVE> <MOUNTPOINT>"
        );
    }

    #[test]
    fn a_tip_is_the_better_hint() {
        let failure = in_one_line(
            "error: unrecognized subcommand 'flsh'\n\n  tip: a similar subcommand exists: 'flush'\n\nUsage: ferryfs <COMMAND>\n",
        );
        assert_eq!(failure.message, "unrecognized subcommand 'flsh'");
        assert_eq!(
            failure.hint.unwrap(),
            "a similar subcommand exists: 'flush'"
        );
    }
}
