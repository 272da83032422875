//! `ferryfs reload`

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::config::{Config, Settings, Source};
use super::{config, json, local, mount, reach, say};
use crate::control::client::Client;
use crate::control::protocol::{Answer, ConfigOrigin, LocalChange, Request};
use crate::core::{Exit, Failure};
use crate::daemon::options::LIVE;
use crate::sys::terminal::complain;

/// The key of the patterns of what stays local.
const LOCAL: &str = "local";

/// A daemon answers this at once.
const PATIENCE: Duration = Duration::from_secs(15);

/// Take up changes of the configuration without unmounting, where possible
///
/// What a running mount cannot change is named, and holds from its next mount on (exit code 3).
/// What the command line of the mount has set stays as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ReloadArgs {
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// The drive; all that are mounted if left out
    name: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs reload --dry-run
  ferryfs reload hdd";

/// One change of a drive's options.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Change {
    key: String,
    /// As before; `None` for what is built in.
    old: Option<String>,
    new: Option<String>,
    /// It holds from the next mount on.
    needs_mount: bool,
    /// What other patterns for local files mean for the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<LocalChange>,
}

pub(super) fn run(args: &ReloadArgs) -> Result<Exit, Failure> {
    let config = config::load()?;
    let names: Vec<String> = match &args.name {
        Some(name) => vec![config.drive(name)?.name.clone()],
        None => config
            .drives
            .iter()
            .map(|drive| drive.name.clone())
            .collect(),
    };
    let mut all = serde_json::Map::new();
    let mut text = String::new();
    let mut exit = Exit::Done;
    for name in &names {
        let Some((client, origin)) = running(&config, name) else {
            if args.name.is_some() {
                return Err(
                    Failure::failed(format!("{name} is not mounted by its name"))
                        .hint(format!("mount it with `ferryfs mount {name}`")),
                );
            }
            continue;
        };
        match reload(&config, name, client, &origin, args.dry_run) {
            Ok(changes) => {
                if changes.iter().any(|change| change.needs_mount) {
                    exit = Exit::LeftBehind;
                }
                text += &in_words(name, &changes, args.dry_run);
                all.insert(name.clone(), serde_json::json!(changes));
            }
            Err(failure) if args.name.is_some() => return Err(failure),
            Err(failure) => {
                complain(&failure.to_string());
                exit = Exit::Failed;
            }
        }
    }
    match args.json {
        true => say(&json(&all)?),
        false if text.is_empty() && exit == Exit::Done => {
            say("no drive of the configuration is mounted by its name\n");
        }
        false => say(&text),
    }
    Ok(exit)
}

/// The daemon of the mount that was made by this name.
fn running(config: &Config, name: &str) -> Option<(Client, ConfigOrigin)> {
    let drive = config.drives.iter().find(|drive| drive.name == name)?;
    let (client, status) = reach::named(name, drive.mountpoint())?;
    Some((client, status.config?))
}

fn reload(
    config: &Config,
    name: &str,
    mut client: Client,
    origin: &ConfigOrigin,
    dry_run: bool,
) -> Result<Vec<Change>, Failure> {
    let old: Settings = serde_json::from_value(origin.settings.clone()).map_err(|error| {
        Failure::failed(format!("the daemon's options cannot be read: {error}"))
            .hint("unmount, and mount again with this version of ferryfs")
    })?;
    let mut given = old.clone();
    given.retain(|_, setting| setting.source == Source::CommandLine);
    let new = config.settings_for(config.drive(name)?, &given)?;
    let mut changes = changes(&old, &new);
    let in_force = in_force(&old, &new);
    let options = mount::options_of(&in_force)?;
    // Before it is done.
    if let Some(change) = changes.iter_mut().find(|change| change.key == LOCAL) {
        let instead = Some(options.live.keeping.local.clone());
        change.local = local::ask(&mut client, instead)?.change;
    }
    if dry_run {
        return Ok(changes);
    }
    let failed = |error| Failure::failed(format!("the options are no JSON: {error}"));
    let request = Request::Reload {
        live: serde_json::to_value(&options.live).map_err(failed)?,
        config: ConfigOrigin {
            name: name.into(),
            settings: serde_json::to_value(&in_force).map_err(failed)?,
        },
    };
    match client.call(&request, Some(PATIENCE), &mut |_| {})? {
        Answer::Automatic(_) => Ok(changes),
        _ => Err(reach::unexpected()),
    }
}

/// What a change of the local files means, a line each.
fn of_local(name: &str, change: &LocalChange, dry_run: bool) -> String {
    let mut text = String::new();
    for line in local::would_change(change).lines() {
        // It was asked for before the change was made.
        let line = match dry_run {
            true => line.to_owned(),
            false => line.replace(" would be ", " are ").replace(" would ", " "),
        };
        let _ = writeln!(text, "{name}: {line}");
    }
    text
}

fn is_live(key: &str) -> bool {
    LIVE.contains(&key)
}

fn changes(old: &Settings, new: &Settings) -> Vec<Change> {
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    let value =
        |settings: &Settings, key: &str| settings.get(key).map(|setting| setting.value.to_string());
    let change = |key: &String| Change {
        key: key.clone(),
        old: value(old, key),
        new: value(new, key),
        needs_mount: !is_live(key),
        local: None,
    };
    keys.into_iter()
        .map(change)
        .filter(|change| change.old != change.new)
        .collect()
}

/// What holds after a reload: the new values of what a running mount can change, the old ones of
/// the rest.
fn in_force(old: &Settings, new: &Settings) -> Settings {
    let live = new.iter().filter(|(key, _)| is_live(key));
    let rest = old.iter().filter(|(key, _)| !is_live(key));
    live.chain(rest)
        .map(|(key, setting)| (key.clone(), setting.clone()))
        .collect()
}

fn in_words(name: &str, changes: &[Change], dry_run: bool) -> String {
    if changes.is_empty() {
        return format!("{name}: nothing has changed\n");
    }
    let mut text = String::new();
    for change in changes {
        let built_in = || "what is built in".to_owned();
        let new = change.new.clone().unwrap_or_else(built_in);
        let old = change.old.clone().unwrap_or_else(built_in);
        let when = match (change.needs_mount, dry_run) {
            (true, _) => "from its next mount on",
            (false, true) => "with a reload",
            (false, false) => "now",
        };
        let _ = writeln!(text, "{name}: {} = {new} {when} (was {old})", change.key);
        if let Some(local) = &change.local {
            text += &of_local(name, local, dry_run);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::config::{Setting, Value};

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let setting = |text: &str| Setting {
            value: Value::Texts(vec![text.into()]),
            source: Source::CommandLine,
        };
        pairs
            .iter()
            .map(|(key, text)| ((*key).to_owned(), setting(text)))
            .collect()
    }

    #[test]
    fn what_a_running_mount_cannot_change_keeps_its_value() {
        let old = settings(&[("cache", "/a"), ("flush_after", "1s"), ("max_age", "2m")]);
        let new = settings(&[
            ("cache", "/b"),
            ("flush_after", "2s"),
            ("verify", "after-flush"),
        ]);
        let found = changes(&old, &new);
        let keys: Vec<(&str, bool)> = (found.iter())
            .map(|change| (change.key.as_str(), change.needs_mount))
            .collect();
        assert_eq!(
            keys,
            [
                ("cache", true),
                ("flush_after", false),
                ("max_age", false),
                ("verify", false)
            ]
        );
        assert_eq!(
            in_force(&old, &new),
            settings(&[
                ("cache", "/a"),
                ("flush_after", "2s"),
                ("verify", "after-flush")
            ])
        );
        assert_eq!(changes(&old, &old), []);
    }
}
