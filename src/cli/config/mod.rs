//! The configuration: named drives with the options of their mounts.
//!
//! One file is in force: `$XDG_CONFIG_HOME/ferryfs/config.toml` (else `~/.config/...`), or
//! `/etc/ferryfs/config.toml` if the user has none. It is read by the commands, never by the
//! daemon, which gets the options on its command line. A value of the command line counts more than
//! one of the drive's section, that more than one of the defaults, and that more than what is built
//! in.

pub mod command;
mod file;
mod keys;
mod parse;
mod reference;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(super) use self::file::load;
pub(super) use self::keys::{CACHE, DRIVE, MOUNTPOINT, arguments, given, with_opposites};
use crate::core::{Failure, ForeignText, printable};

/// A value of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Value {
    /// Of an option without a value.
    Flag(bool),
    /// Of another option; more than one only if it may be given several times.
    Texts(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Flag(on) => write!(f, "{on}"),
            Value::Texts(texts) => match texts.as_slice() {
                [one] => write!(f, "{one:?}"),
                several => write!(f, "{several:?}"),
            },
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    /// The command that mounted.
    CommandLine,
    /// The configuration.
    File {
        /// The file.
        path: PathBuf,
        /// The line in it.
        line: usize,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::CommandLine => f.write_str("the command line"),
            Source::File { path, line } => write!(f, "{}:{line}", path.escaped()),
        }
    }
}

/// A value, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) source: Source,
}

impl Setting {
    /// The value of an option that has one.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Texts(texts) => texts.first().map(String::as_str),
            Value::Flag(_) => None,
        }
    }
}

/// What is set, by key.
pub(super) type Settings = BTreeMap<String, Setting>;

/// A place in the file, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// What a section says, and where.
type Section = BTreeMap<String, (Setting, Place)>;

/// A drive of the configuration.
#[derive(Clone, Debug)]
pub(super) struct Drive {
    pub(super) name: String,
    place: Place,
    section: Section,
}

impl Drive {
    /// Its mount point, if the configuration has one.
    pub(super) fn mountpoint(&self) -> Option<&Path> {
        let (setting, _) = self.section.get(MOUNTPOINT)?;
        setting.text().map(Path::new)
    }
}

/// A mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    path: PathBuf,
    place: Place,
    /// The drive whose section it is in; `None` if it concerns all of them.
    section: Option<String>,
    message: String,
    hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        let message = printable(&self.message);
        write!(f, "{}:{line}:{column}: {message}", self.path.escaped())?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {}", printable(hint)),
            None => Ok(()),
        }
    }
}

/// The configuration, as far as it could be understood.
#[derive(Clone, Debug, Default)]
pub(super) struct Config {
    /// The file.
    pub(super) path: PathBuf,
    defaults: Section,
    /// In the order of the file.
    pub(super) drives: Vec<Drive>,
    /// The mistakes, in the order of the file.
    pub(super) problems: Vec<Problem>,
}

impl Config {
    /// The drive with this name.
    ///
    /// # Errors
    /// If there is none, or its section or the defaults have a mistake. Mistakes in the sections of
    /// other drives do no harm.
    pub(super) fn drive(&self, name: &str) -> Result<&Drive, Failure> {
        let found = self.drives.iter().find(|drive| drive.name == name);
        let of_it = |problem: &&Problem| {
            problem.section.is_none() || problem.section.as_deref() == Some(name)
        };
        if let Some(problem) = self.problems.iter().find(of_it) {
            return Err(
                Failure::failed(problem.to_string().replace("\n  hint: ", "; "))
                    .hint("nothing was changed; `ferryfs config check` shows all mistakes"),
            );
        }
        found.ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Failure {
        let failure = Failure::usage(format!(
            "{} has no drive {}",
            self.path.escaped(),
            printable(&format!("{name:?}"))
        ));
        let names: Vec<&str> = self
            .drives
            .iter()
            .map(|drive| drive.name.as_str())
            .collect();
        match names.is_empty() {
            true => failure.hint("add a section [drive.NAME], or name a drive and a mount point"),
            false => failure.hint(format!(
                "it has: {}. Without the configuration: `ferryfs mount DRIVE MOUNTPOINT`",
                names.join(", ")
            )),
        }
    }

    /// Whether a mistake keeps the drive from being mounted.
    pub(super) fn is_broken(&self, drive: &Drive) -> bool {
        self.drive(&drive.name).is_err()
    }

    /// What is set for a drive, if the command line has set `given`.
    ///
    /// # Errors
    /// If the values do not go together.
    pub(super) fn settings_for(
        &self,
        drive: &Drive,
        given: &Settings,
    ) -> Result<Settings, Failure> {
        let mut settings = Settings::new();
        for section in [&self.defaults, &drive.section] {
            for (key, (setting, _)) in section {
                settings.insert(key.clone(), setting.clone());
            }
        }
        settings.extend(given.clone());
        super::mount::options_of(&settings)?;
        Ok(settings)
    }
}
