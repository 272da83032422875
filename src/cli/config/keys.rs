//! The keys of the configuration, made from the options of `ferryfs mount`: an option and its key
//! have one description, one syntax and one default.
//!
//! `--cache-size` has the key `cache_size`. An option without a value is `true` or `false`; one
//! that begins with `no-` has the key without it, and the opposite meaning. Each such option gets a
//! hidden opposite on the command line, so that the command line can say more than the
//! configuration.

use std::ffi::OsString;
use std::sync::OnceLock;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory};

use super::{Setting, Settings, Source, Value};
use crate::cli::mount;

/// The key of the drive.
pub(in crate::cli) const DRIVE: &str = "drive";
/// The key of the mount point.
pub(in crate::cli) const MOUNTPOINT: &str = "mountpoint";
/// The key of the cache directory.
pub(in crate::cli) const CACHE: &str = "cache";
/// The key of the file of metrics.
pub(super) const METRICS: &str = "metrics";
/// The key of the address for metrics.
const METRICS_LISTEN: &str = "metrics_listen";
/// The key of the mount options.
pub(super) const OPTIONS: &str = "options";

/// Options that are about one run of the command, and have no key.
const NOT_KEYS: [&str; 3] = ["all", "foreground", "help"];

/// Options that override a check once. In a file they would do so at every mount.
const ONCE: [&str; 5] = ["accept_copy", "adopt", "enroll", "re_enroll", "take_over"];

/// The placeholder of options that are a command.
const COMMAND: &str = "COMMAND";

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `true` or `false`.
    Flag,
    /// One string.
    Text,
    /// A string, or an array of strings.
    List,
    /// A string for the shell, or an array with a program and its arguments.
    Command,
}

/// A key of the configuration.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) form: Form,
    /// The option of a value, or of `true`.
    pub(super) option: Option<String>,
    /// The option of `false`.
    pub(super) opposite: Option<String>,
    /// Its description, from the help of the command.
    pub(super) help: String,
    /// What holds if nothing sets it.
    pub(super) default: String,
    /// The placeholder of its value.
    pub(super) placeholder: String,
    /// The only values it may have, if there are few.
    pub(super) possible: Vec<String>,
    /// The name of the hidden opposite of its option, and the id of the option.
    hidden: Option<(String, String)>,
}

impl Key {
    /// Whether only the command line may have it.
    pub(super) fn is_for_one_mount(&self) -> bool {
        ONCE.contains(&self.name.as_str())
    }

    /// Whether only a drive's own section may have it.
    pub(super) fn is_of_one_drive(&self) -> bool {
        [DRIVE, MOUNTPOINT, CACHE, METRICS, METRICS_LISTEN].contains(&self.name.as_str())
    }
}

/// All keys, in the order of the command's help; first those that name the drive.
pub(super) fn keys() -> &'static [Key] {
    static KEYS: OnceLock<Vec<Key>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let mut keys = vec![drive_key(), mountpoint_key()];
        let command = mount::Line::command();
        for arg in command.get_arguments().filter(|arg| is_option(arg)) {
            add(arg, &mut keys);
        }
        for key in keys.iter_mut().filter(|key| key.form == Form::Flag) {
            key.hidden = hidden(key);
        }
        keys
    })
}

/// The key of this name.
pub(super) fn key(name: &str) -> Option<&'static Key> {
    keys().iter().find(|key| key.name == name)
}

/// The name of the opposite that an option lacks, and the id of the option.
fn hidden(key: &Key) -> Option<(String, String)> {
    let dashed = key.name.replace('_', "-");
    match (&key.option, &key.opposite) {
        (Some(_), None) => Some((format!("no-{dashed}"), key.name.clone())),
        (None, Some(_)) => Some((dashed, format!("no_{}", key.name))),
        _ => None,
    }
}

fn drive_key() -> Key {
    Key {
        name: DRIVE.into(),
        form: Form::Text,
        option: None,
        opposite: None,
        help:
            "The drive: the absolute path of its directory; \"LABEL=...\", the label of its file \
               system, as in fstab(5); or the id of its volume, which `ferryfs status --json` has. \
               It must be mounted by the system; by label or id it is found wherever that is"
                .into(),
        default: String::new(),
        placeholder: "DRIVE".into(),
        possible: Vec::new(),
        hidden: None,
    }
}

fn mountpoint_key() -> Key {
    Key {
        name: MOUNTPOINT.into(),
        help: "Where to mount it: the absolute path of an empty directory".into(),
        placeholder: "DIR".into(),
        ..drive_key()
    }
}

fn is_option(arg: &Arg) -> bool {
    let is_named = arg.get_long().is_some() || arg.get_short().is_some();
    is_named && !arg.is_hide_set() && !NOT_KEYS.contains(&arg.get_id().as_str())
}

fn is_flag(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// The key of an option, and whether the option means its opposite.
fn name_of(arg: &Arg) -> (String, bool) {
    let id = arg.get_id().as_str();
    match id.strip_prefix("no_").filter(|_| is_flag(arg)) {
        Some(name) => (name.into(), true),
        None => (id.into(), false),
    }
}

fn add(arg: &Arg, keys: &mut Vec<Key>) {
    let (name, is_opposite) = name_of(arg);
    let option = match (arg.get_long(), arg.get_short()) {
        (Some(long), _) => format!("--{long}"),
        (None, short) => format!("-{}", short.unwrap_or_default()),
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    // Two options may have one key, which then has three states.
    if let Some(known) = keys.iter_mut().find(|key| key.name == name) {
        known.help = format!("true: {}. false: {help}", known.help);
        known.default = "neither".into();
        match is_opposite {
            true => known.opposite = Some(option),
            false => known.option = Some(option),
        }
        return;
    }
    let placeholder = (arg.get_value_names())
        .and_then(|names| names.first().map(ToString::to_string))
        .unwrap_or_default();
    let form = match arg.get_action() {
        ArgAction::SetTrue => Form::Flag,
        ArgAction::Append => Form::List,
        _ if placeholder == COMMAND => Form::Command,
        _ => Form::Text,
    };
    let (help, said) = without_default(&help);
    let help = match is_opposite {
        true => format!("false: {help}"),
        false => help,
    };
    let default = match (form, is_opposite) {
        (Form::Flag, false) => "false".into(),
        (Form::Flag, true) => "true".into(),
        _ => said.unwrap_or_else(|| default_of(arg)),
    };
    let possible = match form {
        Form::Flag => Vec::new(),
        _ => arg
            .get_possible_values()
            .iter()
            .map(|value| value.get_name().into())
            .collect(),
    };
    let (option, opposite) = match is_opposite {
        true => (None, Some(option)),
        false => (Some(option), None),
    };
    keys.push(Key {
        name,
        form,
        option,
        opposite,
        help,
        default,
        placeholder,
        possible,
        hidden: None,
    });
}

fn default_of(arg: &Arg) -> String {
    let values = arg.get_default_values().iter();
    values
        .map(|value| value.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Separates `[default: ...]` from the end of a description.
fn without_default(help: &str) -> (String, Option<String>) {
    let parts = help.split_once(" [default: ");
    match parts.and_then(|(help, rest)| Some((help, rest.strip_suffix(']')?))) {
        Some((help, default)) => (help.into(), Some(default.into())),
        None => (help.into(), None),
    }
}

/// Adds the hidden opposites of options without a value to the command `mount`.
pub(in crate::cli) fn with_opposites(mut command: Command) -> Command {
    for (hidden, known) in keys().iter().filter_map(|key| key.hidden.as_ref()) {
        let arg = Arg::new(hidden.as_str()).long(hidden.as_str()).hide(true);
        let arg = arg
            .action(ArgAction::SetTrue)
            .conflicts_with(known.as_str());
        command = command.arg(arg);
    }
    command
}

/// What a command line with these matches has set itself.
pub(in crate::cli) fn given(matches: &ArgMatches) -> Settings {
    let is_given = |id: &str| {
        matches.try_contains_id(id).is_ok()
            && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    let mut settings = Settings::new();
    for key in keys() {
        let value = match key.form {
            Form::Flag => {
                let dashed = key.name.replace('_', "-");
                let no = (format!("no_{}", key.name), format!("no-{dashed}"));
                match (
                    is_given(&key.name),
                    is_given(&dashed),
                    is_given(&no.0),
                    is_given(&no.1),
                ) {
                    (true, ..) | (_, true, ..) => Some(Value::Flag(true)),
                    (_, _, true, _) | (_, _, _, true) => Some(Value::Flag(false)),
                    _ => None,
                }
            }
            _ if key.option.is_some() && is_given(&key.name) => {
                let raw = matches.get_raw(&key.name).into_iter().flatten();
                let texts = raw
                    .map(|text| text.to_string_lossy().into_owned())
                    .collect();
                Some(Value::Texts(texts))
            }
            _ => None,
        };
        if let Some(value) = value {
            let source = Source::CommandLine;
            settings.insert(key.name.clone(), Setting { value, source });
        }
    }
    settings
}

/// The options that say the same as `settings`, without drive and mount point.
pub(in crate::cli) fn arguments(settings: &Settings) -> Vec<OsString> {
    let mut arguments = Vec::new();
    for (name, setting) in settings {
        let Some(key) = key(name) else { continue };
        match &setting.value {
            Value::Flag(on) => {
                let option = if *on { &key.option } else { &key.opposite };
                arguments.extend(option.as_ref().map(OsString::from));
            }
            Value::Texts(texts) => {
                for text in texts {
                    arguments.extend(with_value(key, text));
                }
            }
        }
    }
    arguments
}

fn with_value(key: &Key, text: &str) -> Vec<OsString> {
    match &key.option {
        Some(option) if option.starts_with("--") => vec![format!("{option}={text}").into()],
        Some(option) => vec![format!("{option}{text}").into()],
        None => Vec::new(),
    }
}

/// Why `text` is not accepted as the value of the key.
pub(super) fn refused(key: &Key, text: &str) -> Option<String> {
    let mut line = vec!["mount".into()];
    line.extend(with_value(key, text));
    line.extend(["--", "/", "/"].map(OsString::from));
    let error = mount::Line::command().try_get_matches_from(line).err()?;
    if let Some(cause) = std::error::Error::source(&error) {
        return Some(cause.to_string());
    }
    Some(match key.possible.is_empty() {
        true => "not accepted".into(),
        false => format!("must be one of: {}", key.possible.join(", ")),
    })
}
