//! `ferryfs config`

use std::fmt::Write;

use super::keys::{DRIVE, keys};
use super::{Config, Drive, Settings, load, reference};
use crate::cli::{json, say};
use crate::core::{Exit, Failure, ForeignText};

/// Check and show the configuration: named drives with the options of their mounts
///
/// It is ~/.config/ferryfs/config.toml ($XDG_CONFIG_HOME), or /etc/ferryfs/config.toml if you have
/// none. Each drive has a section `[drive.NAME]` with its drive, its mountpoint, and any option of
/// `ferryfs mount`, written with underscores; `[defaults]` holds for all of them.
/// docs/configuration.md describes all keys.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ConfigArgs {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
A configuration:
  [defaults]
  flush_after = \"1m\"

  [drive.hdd]
  drive = \"LABEL=HDD\"
  mountpoint = \"~/lab\"
  schedule = \"0 2 * * *\"
  on_failure = [\"notify-send\", \"ferryfs: the flush failed\"]

Then:
  ferryfs config check
  ferryfs mount hdd
  ferryfs reload hdd       # after a change; says what needs a new mount";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Report mistakes, with file, line and column; exit code 1 if there are any
    Check,
    /// Print what is in force for each drive, and where each value comes from
    Show {
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
        /// Only this drive
        name: Option<String>,
    },
    /// Print docs/configuration.md
    #[command(hide = true)]
    Reference,
}

pub(in crate::cli) fn run(args: &ConfigArgs) -> Result<Exit, Failure> {
    match &args.action {
        Action::Check => check(&load()?),
        Action::Show { json, name } => show(&load()?, name.as_deref(), *json),
        Action::Reference => {
            say(&reference::page());
            Ok(Exit::Done)
        }
    }
}

fn check(config: &Config) -> Result<Exit, Failure> {
    let mut lines: Vec<String> = config.problems.iter().map(ToString::to_string).collect();
    for drive in config
        .drives
        .iter()
        .filter(|drive| !config.is_broken(drive))
    {
        if let Err(failure) = config.settings_for(drive, &Settings::new()) {
            lines.push(format!(
                "{}:{}:{}: [drive.{}] {}",
                config.path.escaped(),
                drive.place.line,
                drive.place.column,
                drive.name,
                failure.message
            ));
        }
    }
    if lines.is_empty() {
        let drives = match config.drives.len() {
            1 => "1 drive".to_owned(),
            count => format!("{count} drives"),
        };
        say(&format!(
            "{}: {drives}, no mistakes\n",
            config.path.escaped()
        ));
        return Ok(Exit::Done);
    }
    say(&(lines.join("\n") + "\n"));
    Ok(Exit::Failed)
}

fn show(config: &Config, name: Option<&str>, as_json: bool) -> Result<Exit, Failure> {
    let drives: Vec<&Drive> = match name {
        Some(name) => vec![config.drive(name)?],
        None => config.drives.iter().collect(),
    };
    let mut text = String::new();
    let mut object = serde_json::Map::new();
    for drive in drives {
        config.drive(&drive.name)?;
        let settings = config.settings_for(drive, &Settings::new())?;
        if as_json {
            let value = serde_json::to_value(&settings)
                .map_err(|error| Failure::failed(format!("cannot write this as JSON: {error}")))?;
            object.insert(drive.name.clone(), value);
        }
        let _ = writeln!(text, "[drive.{}]", drive.name);
        text += &rows(&settings);
        text.push('\n');
    }
    match as_json {
        true => say(&json(&object)?),
        false => say(&text),
    }
    Ok(Exit::Done)
}

/// A line for each key.
fn rows(settings: &Settings) -> String {
    let rows: Vec<(String, String)> = (keys().iter())
        .filter_map(|key| match settings.get(&key.name) {
            Some(setting) => {
                let value = format!("{} = {}", key.name, setting.value);
                Some((value, setting.source.to_string()))
            }
            None if key.default.is_empty() || key.name == DRIVE => None,
            None => Some((format!("{} = {}", key.name, key.default), "built in".into())),
        })
        .collect();
    let width = rows
        .iter()
        .map(|(value, _)| value.chars().count().min(48))
        .max()
        .unwrap_or(0);
    rows.iter()
        .map(|(value, source)| format!("{value:width$}  # {source}\n"))
        .collect()
}
