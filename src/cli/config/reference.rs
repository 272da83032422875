//! The reference page of the configuration, `docs/configuration.md`, from the descriptions of the
//! options.

use std::fmt::Write;

use super::keys::{Form, Key, keys};

/// What precedes the table of keys.
const BEFORE: &str = include_str!("reference/before.md");

/// What follows it.
const AFTER: &str = include_str!("reference/after.md");

/// The whole page.
pub(super) fn page() -> String {
    let mut page = BEFORE.to_owned();
    for key in keys().iter().filter(|key| !key.is_for_one_mount()) {
        let _ = write!(page, "\n### `{}`\n\n{}.\n\n", key.name, folded(&key.help));
        let _ = writeln!(page, "- Value: {}", value(key));
        if !key.default.is_empty() {
            let _ = writeln!(page, "- Default: `{}`", key.default);
        }
        if let Some(options) = options(key) {
            let _ = writeln!(page, "- On the command line: {options}");
        }
    }
    page + AFTER
}

fn value(key: &Key) -> String {
    if !key.possible.is_empty() {
        let words: Vec<String> = key
            .possible
            .iter()
            .map(|word| format!("`\"{word}\"`"))
            .collect();
        return words.join(" or ");
    }
    match key.form {
        Form::Flag => "`true` or `false`".into(),
        Form::Text => format!("a string, {}", key.placeholder),
        Form::List => format!("a string or an array of strings, {}", key.placeholder),
        Form::Command => {
            "a string for `/bin/sh`, or an array with a program and its arguments".into()
        }
    }
}

fn options(key: &Key) -> Option<String> {
    let with_value = |option: &String| match key.form {
        Form::Flag => format!("`{option}`"),
        _ => format!("`{option} {}`", key.placeholder),
    };
    let flags = match (&key.option, &key.opposite, key.form) {
        (Some(option), None, Form::Flag) => {
            vec![option.clone(), option.replacen("--", "--no-", 1)]
        }
        (None, Some(opposite), Form::Flag) => {
            vec![opposite.replacen("--no-", "--", 1), opposite.clone()]
        }
        (option, opposite, _) => option.iter().chain(opposite).cloned().collect(),
    };
    let words: Vec<String> = flags.iter().map(with_value).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// Text in lines of at most 100 columns.
fn folded(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        // Placeholders such as <volume id> would be tags.
        let word = word.replace('<', "&lt;").replace('>', "&gt;");
        let last = lines.last().map_or(0, |line| line.chars().count());
        if last > 0 && last + 1 + word.chars().count() > 99 {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&word);
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_the_documents_is_the_one_that_is_made() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        let page = page();
        let shown = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            shown == page,
            "update it: ferryfs config reference > docs/configuration.md"
        );
    }
}
