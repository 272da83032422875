//! What stands in a tree, as another program sees it, and how two such surveys differ.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::lab::{run_for, text};

/// Some entries that show a difference, per kind of difference.
const SHOWN: usize = 6;

/// All that `lstat` and its like tell of each entry, by path (percent-encoded).
#[derive(Clone)]
pub(crate) struct Survey(BTreeMap<String, Map<String, Value>>);

/// What the same tree differs in: for each attribute the entries, in words.
#[derive(Default)]
pub(crate) struct Differences(pub(crate) BTreeMap<String, Vec<String>>);

impl Survey {
    /// Looks at all below `top`, but for the entries of `top` named in `skip`.
    #[track_caller]
    pub(crate) fn of(top: &Path, skip: &[&str]) -> Survey {
        let mut command = Command::new("python3");
        command
            .args(["-c", include_str!("record.py")])
            .arg(top)
            .args(skip);
        let done = run_for(&mut command, Duration::from_secs(300)).ok();
        let entries = done.stdout.lines().map(|line| {
            let entry: Map<String, Value> = serde_json::from_str(line).expect("a line of JSON");
            let path = entry["path"].as_str().expect("a path").to_owned();
            (path, entry)
        });
        Survey(entries.collect())
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// What differs in `other`, which should be the same tree.
    pub(crate) fn differences(&self, other: &Survey) -> Differences {
        let mut found = Differences::default();
        for (path, entry) in &self.0 {
            match other.0.get(path) {
                None => found.note("missing", path, &entry["kind"], &Value::Null),
                Some(twin) => found.compare(path, entry, twin),
            }
        }
        for (path, entry) in &other.0 {
            if !self.0.contains_key(path) {
                found.note("not there before", path, &Value::Null, &entry["kind"]);
            }
        }
        found
    }

    /// Nothing differs.
    #[track_caller]
    pub(crate) fn assert_same(&self, other: &Survey, when: &str) {
        let found = self.differences(other);
        assert!(found.0.is_empty(), "{when}:\n{}", found.table());
    }
}

impl Differences {
    fn compare(&mut self, path: &str, entry: &Map<String, Value>, twin: &Map<String, Value>) {
        if entry["kind"] != twin["kind"] {
            self.note("kind", path, &entry["kind"], &twin["kind"]);
            return;
        }
        let mut fields: Vec<&String> = entry.keys().chain(twin.keys()).collect();
        fields.sort();
        fields.dedup();
        for field in fields {
            let value = |of: &Map<String, Value>| of.get(field).cloned().unwrap_or(Value::Null);
            let (was, is) = (value(entry), value(twin));
            // Room that was set aside (fallocate) is none that a drive keeps: only what was a hole
            // must be one.
            let set_aside = field == "sparse" && was == Value::Bool(false);
            if was != is && !set_aside {
                let kind = if field == "mtime" {
                    format!("mtime of {}", entry["kind"].as_str().unwrap_or(""))
                } else {
                    field.clone()
                };
                self.note(&kind, path, &was, &is);
            }
        }
    }

    fn note(&mut self, what: &str, path: &str, was: &Value, is: &Value) {
        let short = |value: &Value| value.to_string().chars().take(160).collect::<String>();
        let path: String = path.chars().take(120).collect();
        let line = format!("{path}: {} -> {}", short(was), short(is));
        self.0.entry(what.to_owned()).or_default().push(line);
    }

    /// Nothing differs but what may.
    #[track_caller]
    pub(crate) fn assert_only(&self, open: Open, when: &str) {
        let is_open = |what: &&String| open.iter().any(|(listed, _)| listed == what);
        let closed: Vec<&String> = self.0.keys().filter(|what| !is_open(what)).collect();
        assert!(
            closed.is_empty(),
            "{when}, these should not differ: {closed:?}\n{}",
            self.table()
        );
    }

    /// One paragraph for each kind of difference, with some of the entries.
    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        for (what, lines) in &self.0 {
            table.push_str(&format!("{what}: {} differ\n", lines.len()));
            for line in lines.iter().take(SHOWN) {
                table.push_str(&format!("    {line}\n"));
            }
        }
        table
    }
}

/// What may differ, by the name of the attribute, and why.
pub(crate) type Open = &'static [(&'static str, &'static str)];

/// Builds the tree below `top`; gives what could not be made, a line of JSON each. With `only`,
/// just these parts of it.
#[track_caller]
pub(crate) fn build(top: &Path, only: &[&str]) -> Vec<String> {
    let mut command = Command::new("python3");
    command
        .args(["-c", include_str!("build.py"), &text(top)])
        .args(only);
    let done = run_for(&mut command, Duration::from_secs(300)).ok();
    done.stdout.lines().map(str::to_owned).collect()
}
