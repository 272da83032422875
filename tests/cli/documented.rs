//! The command lines in the documents are ones that the program understands.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;

use crate::lab::{Backend, Lab, exit};

/// The definition of the command line, global options included.
fn command() -> Command {
    let mut command = ferryfs::cli::command();
    command.build();
    command
}

/// README.md, and all below docs/.
fn documents() -> Vec<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![top.join("README.md")];
    let mut left = vec![top.join("docs")];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).expect("list") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|kind| kind == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// The command lines in a text: what follows `ferryfs` in code, to the end of the command.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let is_code = fenced || line.starts_with("    ");
        // In prose the odd pieces between backticks are code.
        let pieces = match is_code {
            true => vec![line],
            false => line.split('`').skip(1).step_by(2).collect(),
        };
        for piece in pieces {
            let code = piece.split(" #").next().unwrap_or_default();
            let commands = code.split([';', '|', '&', '(', ')', '"', '\'']);
            lines.extend(commands.filter_map(arguments));
        }
    }
    lines
}

/// What follows the word `ferryfs`, where it begins a command.
fn arguments(command: &str) -> Option<Vec<String>> {
    let mut words = command.split_whitespace().map(str::to_owned);
    let before = ["$", "sudo", "if", "then", "do", "exec", "!"];
    let first = words.find(|word| !before.contains(&word.as_str()))?;
    (first == "ferryfs").then(|| words.collect())
}

/// What `command` does not know of `words`, which follow its name.
fn unknown(command: &Command, words: &[String]) -> Option<String> {
    let (first, rest) = words.split_first()?;
    if let Some(sub) = command.find_subcommand(first) {
        return unknown(sub, rest);
    }
    let is_name = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_lowercase());
    if command.has_subcommands() && is_name && first != "help" {
        return Some(first.clone());
    }
    let known = |option: &str| {
        let mut all = command.get_arguments();
        all.any(|argument| {
            argument
                .get_long_and_visible_aliases()
                .is_some_and(|names| names.contains(&option))
        }) || ["help", "version"].contains(&option)
    };
    let options = words.iter().filter_map(|word| word.strip_prefix("--"));
    let names = options.map(|option| {
        let end = option.find(|c: char| !c.is_ascii_lowercase() && c != '-' && !c.is_ascii_digit());
        &option[..end.unwrap_or(option.len())]
    });
    names
        .filter(|name| !name.is_empty())
        .find(|name| !known(name))
        .map(|name| format!("--{name}"))
}

#[test]
fn every_command_line_in_the_documents_is_understood() {
    let command = command();
    let mut checked = 0;
    let mut wrong = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("read");
        for words in command_lines(&text) {
            checked += 1;
            if let Some(word) = unknown(&command, &words) {
                wrong.push(format!(
                    "{}: ferryfs {}: {word}",
                    document.display(),
                    words.join(" ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "not understood:\n{}", wrong.join("\n"));
    assert!(checked > 100, "only {checked} command lines were found");
}

#[test]
fn what_is_no_command_line_of_this_program_is_found() {
    let command = command();
    let text = "    ferryfs flush --verfy ~/lab\n`ferryfs flash`, `ferryfs flush --verify`\n\
                ```\nsudo ferryfs mount --no-such=1 a b  # ferryfs nothing\n```\n";
    let found: Vec<_> = command_lines(text)
        .iter()
        .filter_map(|words| unknown(&command, words))
        .collect();
    assert_eq!(found, ["--verfy", "flash", "--no-such"]);
}

#[test]
fn the_configurations_in_the_recipes_are_right() {
    let Some(lab) = Lab::new(Backend::Ext4Dir) else {
        return;
    };
    let dir = lab.root().join("config/ferryfs");
    fs::create_dir_all(&dir).expect("mkdir");
    let mut checked = 0;
    for document in documents() {
        if document.parent().is_none_or(|it| !it.ends_with("recipes")) {
            continue;
        }
        let text = fs::read_to_string(&document).expect("read");
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().expect("its end");
            fs::write(dir.join("config.toml"), block).expect("write");
            eprintln!("{}", document.display());
            lab.ferryfs(&["config", "check"]).code(exit::DONE);
            checked += 1;
        }
    }
    assert!(checked > 8, "only {checked} configurations were found");
}
