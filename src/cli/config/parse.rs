//! Reads the text of the configuration. Each mistake is reported with its line and column, and
//! costs only the section it is in.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{CACHE, DRIVE, Form, Key, METRICS, MOUNTPOINT, OPTIONS, key, keys, refused};
use super::{Config, Drive, Place, Problem, Section, Setting, Source, Value};
use crate::core::quoted;
use crate::daemon::find_drive::DriveName;
use crate::daemon::options::FuseOptions;

/// The table with what holds for all drives.
const DEFAULTS: &str = "defaults";

/// The key of files that are removed when they get old; it may be a table.
const EXPIRE: &str = "expire";

/// The fewest letters in common for a guess at what was meant.
const SIMILAR: f64 = 0.75;

/// Parses the text of the file at `path`; `home` replaces a `~/` at the beginning of a path.
pub(super) fn parse(path: &Path, text: &str, home: Option<&Path>) -> Config {
    let mut reader = Reader {
        path,
        text,
        home,
        config: Config {
            path: path.into(),
            ..Config::default()
        },
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let place = reader.place(&error.span().unwrap_or(0..0));
        reader.report(None, place, error.message().into());
    }
    // Of a text with mistakes in its syntax it is not known which section a line belongs to.
    if errors.is_empty() {
        reader.read_top(table.get_ref());
    }
    reader.config.problems.sort_by_key(|problem| problem.place);
    reader.config
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    home: Option<&'a Path>,
    config: Config,
}

type Entry<'a, 'i> = (
    &'a Spanned<std::borrow::Cow<'i, str>>,
    &'a Spanned<DeValue<'i>>,
);

/// The entries of a table in the order of the text.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Entry<'a, 'i>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

impl Reader<'_> {
    fn place(&self, span: &Range<usize>) -> Place {
        place(self.text, span.start)
    }

    fn report(&mut self, section: Option<&str>, place: Place, message: String) {
        self.config.problems.push(Problem {
            path: self.path.into(),
            place,
            section: section.map(Into::into),
            message,
            hint: None,
        });
    }

    fn hint(&mut self, hint: String) {
        if let Some(last) = self.config.problems.last_mut() {
            last.hint = Some(hint);
        }
    }

    fn read_top(&mut self, top: &DeTable<'_>) {
        for (name, value) in in_order(top) {
            let (place, text) = (self.place(&name.span()), name.get_ref().as_ref());
            match (text, value.get_ref()) {
                (DEFAULTS, DeValue::Table(table)) => {
                    self.config.defaults = self.read_section(None, table);
                }
                (DRIVE, DeValue::Table(drives)) => {
                    for (name, value) in in_order(drives) {
                        self.read_drive(name, value);
                    }
                }
                (DEFAULTS | DRIVE, other) => {
                    let form = if text == DRIVE {
                        "[drive.NAME]"
                    } else {
                        "[defaults]"
                    };
                    let kind = kind_of(other);
                    self.report(None, place, format!("{text} is {kind}, not a table {form}"));
                }
                _ => {
                    self.report(
                        None,
                        place,
                        format!("unknown key {text:?} outside of a section"),
                    );
                    match key(text) {
                        Some(_) => self.hint(format!(
                            "put it into [{DEFAULTS}] for all drives, or into [drive.NAME]"
                        )),
                        None => self.hint_nearest(text, &[DEFAULTS, DRIVE]),
                    }
                }
            }
        }
    }

    fn read_drive(
        &mut self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) {
        let (place, text) = (self.place(&name.span()), name.get_ref().as_ref());
        if !is_name(text) {
            self.report(
                Some(text),
                place,
                format!("{text:?} cannot be the name of a drive"),
            );
            self.hint(
                "use letters, digits, '-', '_' and '.', and begin with a letter or digit".into(),
            );
            return;
        }
        let DeValue::Table(table) = value.get_ref() else {
            let kind = kind_of(value.get_ref());
            self.report(
                Some(text),
                place,
                format!("{DRIVE}.{text} is {kind}, not a table [drive.{text}]"),
            );
            self.hint(format!(
                "write [drive.{text}], and below it drive = \"/media/...\""
            ));
            return;
        };
        let section = self.read_section(Some(text), table);
        for needed in [DRIVE, MOUNTPOINT] {
            // A key with a mistake is there.
            if !table
                .iter()
                .any(|(key, _)| key.get_ref().as_ref() == needed)
            {
                self.report(Some(text), place, format!("[drive.{text}] has no {needed}"));
            }
        }
        self.config.drives.push(Drive {
            name: text.into(),
            place,
            section,
        });
    }

    fn read_section(&mut self, of: Option<&str>, table: &DeTable<'_>) -> Section {
        let mut section = Section::new();
        for (name, value) in in_order(table) {
            let (place, text) = (self.place(&name.span()), name.get_ref().as_ref());
            let Some(key) = key(text) else {
                self.report(of, place, format!("unknown key {text:?}"));
                match text {
                    "foreground" => self.hint("that is for the command line only".into()),
                    _ => {
                        let names: Vec<&str> = keys().iter().map(|key| key.name.as_str()).collect();
                        self.hint_nearest(text, &names);
                    }
                }
                continue;
            };
            if key.is_for_one_mount() {
                self.report(
                    of,
                    place,
                    format!("{text} would override a check at every mount"),
                );
                self.hint("give it on the command line, the once that it is needed".into());
                continue;
            }
            if of.is_none() && key.is_of_one_drive() {
                self.report(of, place, format!("{text} is different for each drive"));
                self.hint("put it into the section [drive.NAME]".into());
                continue;
            }
            if let Some(value) = self.read_value(of, key, value) {
                let source = Source::File {
                    path: self.path.into(),
                    line: place.line,
                };
                section.insert(key.name.clone(), (Setting { value, source }, place));
            }
        }
        section
    }

    fn read_value(
        &mut self,
        of: Option<&str>,
        key: &Key,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<Value> {
        let place = self.place(&value.span());
        let texts = match (key.form, value.get_ref()) {
            (Form::Flag, DeValue::Boolean(on)) => return Some(Value::Flag(*on)),
            (Form::Text | Form::List | Form::Command, DeValue::String(text)) => {
                vec![(place, text.to_string())]
            }
            (Form::List, DeValue::Table(table)) if key.name == EXPIRE => {
                let mut texts = Vec::new();
                for (name, value) in in_order(table) {
                    let place = self.place(&value.span());
                    let DeValue::String(time) = value.get_ref() else {
                        self.wrong_type(of, place, key, value.get_ref());
                        return None;
                    };
                    texts.push((place, format!("{}={time}", name.get_ref())));
                }
                texts
            }
            (Form::List | Form::Command, DeValue::Array(array)) => {
                let mut texts = Vec::new();
                for item in array.iter() {
                    let place = self.place(&item.span());
                    match item.get_ref() {
                        DeValue::String(text) => texts.push((place, text.to_string())),
                        other => {
                            self.wrong_type(of, place, key, other);
                            return None;
                        }
                    }
                }
                texts
            }
            (_, other) => {
                self.wrong_type(of, place, key, other);
                return None;
            }
        };
        let is_array = value.get_ref().is_array();
        let texts = match key.form {
            Form::Command => vec![(place, self.command(of, key, place, &texts, is_array)?)],
            _ => texts,
        };
        let known = self.config.problems.len();
        let texts: Vec<String> = texts
            .into_iter()
            .map(|(place, text)| self.checked(of, key, place, text))
            .collect();
        (self.config.problems.len() == known).then_some(Value::Texts(texts))
    }

    /// A command as text for the shell, which runs an array as it is.
    fn command(
        &mut self,
        of: Option<&str>,
        key: &Key,
        place: Place,
        texts: &[(Place, String)],
        is_array: bool,
    ) -> Option<String> {
        if texts.first().is_none_or(|(_, text)| text.trim().is_empty()) {
            self.report(of, place, format!("{} is empty", key.name));
            self.hint("leave it out to run nothing".into());
            return None;
        }
        if !is_array {
            return texts.first().map(|(_, text)| text.clone());
        }
        let words: Vec<String> = texts
            .iter()
            .map(|(_, text)| format!("'{}'", text.replace('\'', "'\\''")))
            .collect();
        Some(format!("exec {}", words.join(" ")))
    }

    /// Checks one text, and completes a path.
    fn checked(&mut self, of: Option<&str>, key: &Key, place: Place, text: String) -> String {
        let is_path = [CACHE, MOUNTPOINT, METRICS].contains(&key.name.as_str())
            || (key.name == DRIVE && text.starts_with("~/"));
        let text = match (is_path, text.strip_prefix("~/"), self.home) {
            (true, Some(rest), Some(home)) => home.join(rest).to_string_lossy().into_owned(),
            _ => text,
        };
        if text.contains('\0') {
            self.report(of, place, format!("{} has a NUL character", key.name));
        } else if is_path && !Path::new(&text).is_absolute() {
            let path = quoted(Path::new(&text));
            self.report(
                of,
                place,
                format!("{} is a relative path: {path}", key.name),
            );
            self.hint("begin it with / or ~/: commands run in any directory".into());
        } else if key.name == DRIVE {
            if let Err(error) = text.parse::<DriveName>() {
                self.report(of, place, format!("{DRIVE} {text:?} {error}"));
            }
        } else if key.name == OPTIONS {
            if let Err(error) = FuseOptions::parse([text.as_str()]) {
                self.report(of, place, error.to_string());
                self.hint(error.hint.into());
            }
        } else if let Some(why) = refused(key, &text) {
            self.report(of, place, format!("{} = {text:?}: {why}", key.name));
        }
        text
    }

    fn wrong_type(&mut self, of: Option<&str>, place: Place, key: &Key, value: &DeValue<'_>) {
        let needed = match key.form {
            Form::Flag => "true or false".to_owned(),
            Form::Text => match key.default.as_str() {
                "" => "a string in quotes".to_owned(),
                default => format!("a string in quotes, such as {default:?}"),
            },
            Form::List if key.name == EXPIRE => "a table such as { \"tmp/\" = \"1d\" }".to_owned(),
            Form::List => "a string or an array of strings".to_owned(),
            Form::Command => {
                "a string for the shell, or an array with a program and its arguments".to_owned()
            }
        };
        let kind = kind_of(value);
        self.report(
            of,
            place,
            format!("{} is {kind}; it must be {needed}", key.name),
        );
    }

    fn hint_nearest(&mut self, text: &str, known: &[&str]) {
        // Options are often written with dashes.
        let text = text.trim_start_matches('-').replace('-', "_");
        let similar = |name: &str| strsim::jaro_winkler(&text, name);
        let nearest = known
            .iter()
            .max_by(|a, b| similar(a).total_cmp(&similar(b)));
        match nearest.filter(|name| similar(name) >= SIMILAR) {
            Some(nearest) => self.hint(format!("did you mean {nearest:?}?")),
            None => self.hint("`ferryfs config --help` says where all keys are described".into()),
        }
    }
}

/// The type of a value, with its article.
fn kind_of(value: &DeValue<'_>) -> String {
    let kind = value.type_str();
    let article = if kind.starts_with(['a', 'i']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {kind}")
}

/// Whether text can be the name of a drive. It is never a path with a directory.
fn is_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(is_plain)
}

/// Line and column of the byte at `offset`, counted from 1; columns are characters.
pub(super) fn place(text: &str, offset: usize) -> Place {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
    Place {
        line: before.matches('\n').count() + 1,
        column,
    }
}

/// Checks what two sections say together: two drives need two mount points and two caches.
pub(super) fn check_together(config: &mut Config, resolve: &dyn Fn(&Path) -> std::path::PathBuf) {
    let mut problems = Vec::new();
    let mut seen: BTreeMap<&str, Vec<(std::path::PathBuf, &Drive)>> = BTreeMap::new();
    for drive in &config.drives {
        for name in [MOUNTPOINT, CACHE] {
            let Some((setting, place)) = drive.section.get(name) else {
                continue;
            };
            let path = resolve(Path::new(setting.text().unwrap_or_default()));
            let others = seen.entry(name).or_default();
            let overlaps = |(other, _): &&(std::path::PathBuf, &Drive)| {
                path.starts_with(other) || other.starts_with(&path)
            };
            if let Some((other, of)) = others.iter().find(overlaps) {
                let what = match (name, *other == path) {
                    (MOUNTPOINT, true) => "has the same mount point as",
                    (MOUNTPOINT, false) => "has a mount point that overlaps with that of",
                    (_, true) => "has the same cache as",
                    (_, false) => "has a cache that overlaps with that of",
                };
                problems.push(Problem {
                    path: config.path.clone(),
                    place: *place,
                    section: Some(drive.name.clone()),
                    message: format!(
                        "[drive.{}] {what} [drive.{}]: {}",
                        drive.name,
                        of.name,
                        quoted(other)
                    ),
                    hint: Some("each drive needs its own".into()),
                });
            }
            others.push((path, drive));
        }
    }
    config.problems.extend(problems);
    config.problems.sort_by_key(|problem| problem.place);
}

#[cfg(test)]
mod tests;
