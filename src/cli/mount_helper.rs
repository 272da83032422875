//! `mount -t ferryfs DRIVE DIR -o OPTIONS`, and lines in fstab(5): mount(8) starts this program
//! under the name `mount.ferryfs` or `mount.fuse.ferryfs`.
//!
//! The options of `ferryfs mount` are words of `-o`, with `_` or `-`: `cache=DIR`,
//! `flush_after=1m`, `no_auto_flush`. All other words go to its own `-o`, which ignores those for
//! mount(8), fstab(5) and systemd. The exit codes are those that mount(8) wants of a helper.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;

use super::Cli;
use crate::core::{Exit, Failure};

/// The names that mount(8) uses.
const NAMES: [&str; 2] = ["mount.ferryfs", "mount.fuse.ferryfs"];

/// What mount(8) makes of a wrong command line, and of a mount that failed.
const WRONG: u8 = 1;
const FAILED: u8 = 32;

/// Options of `ferryfs mount` that make no sense in a line of fstab(5).
const NOT_THERE: [&str; 3] = ["foreground", "help", "background-child"];

/// Whether mount(8) has started this program.
pub(super) fn is_meant(args: &[OsString]) -> bool {
    let name = args.first().map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| NAMES.iter().any(|helper| name == *helper))
}

/// Mounts as `args` say.
pub(super) fn run(args: &[OsString]) -> ExitCode {
    let words = match translated(&args[1..]) {
        Ok(Some(words)) => words,
        Ok(None) => return ExitCode::SUCCESS,
        Err(failure) => {
            super::complain_of(&failure);
            return ExitCode::from(WRONG);
        }
    };
    match super::main(words) {
        Exit::Done => ExitCode::SUCCESS,
        Exit::Usage => ExitCode::from(WRONG),
        _ => ExitCode::from(FAILED),
    }
}

/// The same as a command line of `ferryfs mount`; `None` if nothing is to be done (`mount -f`).
fn translated(args: &[OsString]) -> Result<Option<Vec<OsString>>, Failure> {
    let mut places = Vec::new();
    let mut lists: Vec<OsString> = Vec::new();
    let mut fake = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_bytes() {
            b"-o" => lists.extend(args.next().cloned()),
            // The type, and a namespace that mount(8) has entered already.
            b"-t" | b"-N" => drop(args.next()),
            [b'-', b'o', list @ ..] => lists.push(OsString::from_vec(list.to_vec())),
            // Be quiet about unknown options; make no entry in mtab; be verbose; do nothing.
            [b'-', flags @ ..] if !flags.is_empty() && is_flags(flags) => {
                fake |= flags.contains(&b'f');
            }
            [b'-', ..] => return Err(wrong(arg)),
            _ => places.push(arg.clone()),
        }
    }
    let [drive, dir] = <[OsString; 2]>::try_from(places).map_err(|_| {
        Failure::usage("mount.ferryfs takes a drive and a directory")
            .hint("use: mount -t ferryfs DRIVE DIR -o OPTIONS; DRIVE is the drive's directory")
    })?;
    if fake {
        return Ok(None);
    }
    let (mut words, rest) = own_options(&lists);
    if !rest.is_empty() {
        words.extend(["-o".into(), OsString::from_vec(rest.join(&b","[..]))]);
    }
    let mut command: Vec<OsString> = vec!["ferryfs".into(), "mount".into()];
    command.extend(words);
    command.extend(["--".into(), drive, dir]);
    Ok(Some(command))
}

fn is_flags(flags: &[u8]) -> bool {
    flags.iter().all(|flag| b"sfnvrw".contains(flag))
}

fn wrong(arg: &OsStr) -> Failure {
    Failure::usage(format!(
        "mount.ferryfs does not know {}",
        arg.to_string_lossy()
    ))
    .hint("options of ferryfs are words after -o, such as -o cache=DIR")
}

/// The words of all lists that are options of `ferryfs mount`, as options, and the rest.
fn own_options(lists: &[OsString]) -> (Vec<OsString>, Vec<Vec<u8>>) {
    let command = Cli::command();
    let mount = command.find_subcommand("mount");
    let known = |name: &str| {
        let all = mount.into_iter().flat_map(clap::Command::get_arguments);
        let mut named = all.filter(|one| one.get_long() == Some(name));
        named
            .next()
            .filter(|_| !NOT_THERE.contains(&name))
            .map(|one| one.get_action().takes_values())
    };
    let (mut own, mut rest) = (Vec::new(), Vec::new());
    for word in lists
        .iter()
        .flat_map(|list| list.as_bytes().split(|&byte| byte == b','))
    {
        let at = word.iter().position(|&byte| byte == b'=');
        let (key, value) = match at {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        };
        let name = String::from_utf8_lossy(key).replace('_', "-");
        match (known(&name), value) {
            (Some(true), Some(value)) => {
                let mut option = format!("--{name}=").into_bytes();
                option.extend_from_slice(value);
                own.push(OsString::from_vec(option));
            }
            (Some(false), None) => own.push(format!("--{name}").into()),
            _ if word.is_empty() => {}
            _ => rest.push(word.to_vec()),
        }
    }
    (own, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Option<String>, Failure> {
        let args: Vec<OsString> = text.split_whitespace().map(OsString::from).collect();
        let words = translated(&args)?;
        Ok(words.map(|words| {
            let words: Vec<String> = words
                .into_iter()
                .map(|it| it.into_string().unwrap())
                .collect();
            words.join(" ")
        }))
    }

    #[test]
    fn a_line_of_fstab_becomes_a_command() {
        for (given, made) in [
            ("/d /m", "ferryfs mount -- /d /m"),
            ("/d /m -o rw", "ferryfs mount -o rw -- /d /m"),
            (
                "/d /m -o rw,noauto,nofail,_netdev,x-systemd.automount,cache=/c,flush_after=1m",
                "ferryfs mount --cache=/c --flush-after=1m -o \
                 rw,noauto,nofail,_netdev,x-systemd.automount -- /d /m",
            ),
            (
                "/d /m -sn -v -o no_auto_flush,uid=1000 -o allow_other,adopt",
                "ferryfs mount --no-auto-flush --adopt -o uid=1000,allow_other -- /d /m",
            ),
            ("-t fuse.ferryfs -- /d /m", ""),
            ("/d /m -oexec", "ferryfs mount -o exec -- /d /m"),
            // Not for fstab: what is unknown is refused by `ferryfs mount`.
            (
                "/d /m -o foreground,background-child,cache,adopt=1",
                "ferryfs mount -o foreground,background-child,cache,adopt=1 -- /d /m",
            ),
        ] {
            match line(given) {
                Ok(command) => assert_eq!(command.as_deref(), Some(made), "{given}"),
                Err(failure) => assert_eq!(made, "", "{given}: {failure}"),
            }
        }
    }

    #[test]
    fn a_fake_mount_does_nothing_and_a_wrong_line_says_what_is_right() {
        assert_eq!(line("-f /d /m").unwrap(), None);
        for wrong in ["", "/d", "/d /m /x", "/d /m --cache /c", "/d /m -x"] {
            let failure = line(wrong).unwrap_err();
            assert_eq!(failure.code, Exit::Usage, "{wrong}");
            assert!(failure.hint.is_some(), "{wrong}");
        }
    }

    #[test]
    fn only_the_names_that_mount_uses_are_meant() {
        let is = |name: &str| is_meant(&[OsString::from(name)]);
        assert!(is("/sbin/mount.ferryfs") && is("mount.fuse.ferryfs"));
        assert!(!is("ferryfs") && !is("/usr/bin/ferryfs") && !is_meant(&[]));
    }
}
