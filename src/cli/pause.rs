//! `ferryfs pause` and `ferryfs resume`

use std::path::PathBuf;
use std::time::Duration;

use super::reach::Which;
use super::units::parse_duration;
use super::{json, reach, render, say};
use crate::control::protocol::{Answer, Automatic, Request};
use crate::core::{Exit, Failure};

/// A daemon answers this at once.
const PATIENCE: Duration = Duration::from_secs(15);

/// Pause the flushes that begin by themselves, by time, schedule or amount
///
/// `ferryfs flush`, `eject` and `unmount` flush as ever. Writers get an error when the SSD is full,
/// as with --no-auto-flush. The pause outlives an unmount and a restart of the machine.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct PauseArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// The cache of the mount: reaches the daemon also if the mount is gone
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// For how long, "30m", "2h" or "1d"; until `ferryfs resume` if left out
    #[arg(value_name = "DUR")]
    time: Option<String>,
    /// The mount, as for `ferryfs status`
    mountpoint: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs pause 2h       # the film is on
  ferryfs pause hdd      # until `ferryfs resume hdd`";

/// Let flushes begin by themselves again
#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(args: &PauseArgs) -> Result<Exit, Failure> {
    let (time, mountpoint) = divided(args.time.as_deref(), args.mountpoint.clone())?;
    let which = Which {
        cache: args.cache.clone(),
        mountpoint,
    };
    let time_ms = time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    ask(&which, &Request::Pause { time_ms }, args.json)
}

pub(super) fn resume(args: &ResumeArgs) -> Result<Exit, Failure> {
    ask(&args.which, &Request::Resume, args.json)
}

/// The duration and the mount; both may be left out, so a single word may be either.
fn divided(
    first: Option<&str>,
    second: Option<PathBuf>,
) -> Result<(Option<Duration>, Option<PathBuf>), Failure> {
    let Some(first) = first else {
        return Ok((None, second));
    };
    match (parse_duration(first), second) {
        (Ok(Duration::ZERO), _) => {
            Err(Failure::usage("a pause must be longer than nothing")
                .hint("`ferryfs resume` ends one"))
        }
        (Ok(time), second) => Ok((Some(time), second)),
        (Err(_), None) => Ok((None, Some(first.into()))),
        (Err(error), Some(_)) => Err(Failure::usage(format!("{first}: {error}"))),
    }
}

fn ask(which: &Which, request: &Request, as_json: bool) -> Result<Exit, Failure> {
    let mut client = reach::reach(which)?.client;
    let answer = client.call(request, Some(PATIENCE), &mut |_| {})?;
    let Answer::Automatic(automatic) = answer else {
        return Err(reach::unexpected());
    };
    match as_json {
        true => say(&json(&automatic)?),
        false => say(&(in_words(&automatic) + "\n")),
    }
    Ok(Exit::Done)
}

fn in_words(automatic: &Automatic) -> String {
    let lines = render::automatic(automatic);
    match lines.is_empty() {
        true => "flushes begin by themselves".into(),
        false => lines.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_word_is_a_duration_or_a_mount() {
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(divided(None, None), Ok((None, None)));
        assert_eq!(divided(Some("1h"), None), Ok((hour, None)));
        assert_eq!(divided(Some("hdd"), None), Ok((None, Some("hdd".into()))));
        assert_eq!(
            divided(Some("1h"), Some("2tb".into())),
            Ok((hour, Some("2tb".into())))
        );
        assert_eq!(divided(Some("2tb"), None), Ok((None, Some("2tb".into()))));
        for (first, second) in [("0", None), ("hdd", Some("1h".into()))] {
            assert_eq!(divided(Some(first), second).unwrap_err().code, Exit::Usage);
        }
    }
}
