//! Refuses an `rclone mount` that uploads files some time after they were closed.
//!
//! With `--vfs-cache-mode writes` or `full` rclone keeps written files in a cache of its own and
//! uploads them later, and its fsync has no effect: no call shows when a file has reached the
//! remote. A flush would report files as done that a power cut can still lose. With `off` and
//! `minimal` a file that is written from front to back, as ferryfs does, is uploaded before its
//! close returns.
//!
//! The mount table does not have the mode; the command line of the rclone process that serves the
//! mount has it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::verify;
use crate::core::{Exit, Failure, ForeignText};
use crate::sys::mounts::Mount;

/// The user has allowed it. One process serves one mount, also when its drive is attached again.
static ALLOWED: AtomicBool = AtomicBool::new(false);

const OPTION: &str = "vfs-cache-mode";
const VARIABLE: &[u8] = b"RCLONE_VFS_CACHE_MODE=";

/// What the user can do about such a mount.
pub(super) const HINT: &str = "mount the remote with `rclone mount --vfs-cache-mode off`: ferryfs \
                               keeps a cache of its own. If you accept that a flush may be \
                               reported as done before the upload is, use `ferryfs mount \
                               --allow-write-back-drive`";

/// Allows such mounts from here on.
pub(super) fn allow() {
    ALLOWED.store(true, Ordering::Release);
}

/// Checks what is mounted at `path`.
///
/// # Errors
/// Why it is refused.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    let Some(problem) = verify::mount_of(path).as_ref().and_then(problem) else {
        return Ok(());
    };
    Err(Failure {
        code: Exit::Failed,
        message: format!("{}: {problem}", path.escaped()),
        hint: Some(HINT.into()),
    })
}

/// Why `mount` is refused as a drive; `None` if it is accepted.
pub(super) fn problem(mount: &Mount) -> Option<String> {
    if mount.fs_type != "fuse.rclone" || ALLOWED.load(Ordering::Acquire) {
        return None;
    }
    let mut modes = servers_of(&mount.mount_point).peekable();
    if modes.peek().is_none() {
        return Some(
            "this is an `rclone mount`, and the rclone process that serves it cannot be found: it \
             is unknown whether it uploads files after a flush has ended"
                .into(),
        );
    }
    let later = modes.find(|mode| mode != "off" && mode != "minimal")?;
    Some(format!(
        "this is an `rclone mount` that uploads files later (--{OPTION} {later}): a flush cannot \
         know when they are on the remote"
    ))
}

/// The cache modes of all rclone processes whose command line names `place`.
fn servers_of(place: &Path) -> impl Iterator<Item = String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let place = place.to_path_buf();
    processes.filter_map(move |entry| {
        let process = entry.path();
        let line = fs::read(process.join("cmdline")).ok()?;
        let words = words_of(&line);
        let program = Path::new(OsStr::from_bytes(words.first()?)).file_name()?;
        if !program.as_bytes().windows(6).any(|part| part == b"rclone") {
            return None;
        }
        let here = fs::read_link(process.join("cwd")).unwrap_or_default();
        let is_place = |word: &&[u8]| place_of(&here, word) == place;
        words.iter().find(|word| is_place(word))?;
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        Some(mode_of(&words, &environment))
    })
}

fn words_of(line: &[u8]) -> Vec<&[u8]> {
    line.split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .collect()
}

/// The path that a word names, without a trailing slash.
fn place_of(here: &Path, word: &[u8]) -> PathBuf {
    here.join(OsStr::from_bytes(word)).components().collect()
}

/// The mode in a command line, or else in the environment. The last word counts.
fn mode_of(words: &[&[u8]], environment: &[u8]) -> String {
    let flag = format!("--{OPTION}");
    let mut mode = None;
    for (at, word) in words.iter().enumerate() {
        let word = String::from_utf8_lossy(word);
        if word == flag {
            let next = words.get(at + 1);
            mode = next.map(|next| String::from_utf8_lossy(next).into_owned());
        }
        // `--vfs-cache-mode=full`, and as an option of mount(8): `-o rw,vfs_cache_mode=full`.
        for option in word.split(',') {
            if let Some((name, value)) = option.split_once('=')
                && name.trim_start_matches('-').replace('_', "-") == OPTION
            {
                mode = Some(value.to_string());
            }
        }
    }
    let inherited = || {
        let variables = environment.split(|byte| *byte == 0);
        let set = variables.filter_map(|it| it.strip_prefix(VARIABLE)).next();
        set.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let mode = mode.or_else(inherited).unwrap_or_else(|| "off".into());
    mode.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_the_one_that_rclone_was_told() {
        let mode = |line: &str, environment: &[u8]| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            mode_of(&words, environment)
        };
        let set = b"HOME=/root\0RCLONE_VFS_CACHE_MODE=FULL\0";
        for (line, environment, told) in [
            ("rclone mount r: /m", &b""[..], "off"),
            ("rclone mount r: /m --vfs-cache-mode writes", b"", "writes"),
            ("rclone mount --vfs-cache-mode=full r: /m", b"", "full"),
            ("mount.rclone r: /m -o rw,vfs_cache_mode=full", b"", "full"),
            (
                "rclone mount r: /m -o vfs-cache-mode=minimal",
                b"",
                "minimal",
            ),
            ("rclone mount r: /m", set, "full"),
            ("rclone mount r: /m --vfs-cache-mode off", set, "off"),
            ("rclone mount r: /m --vfs-cache-mode", b"", "off"),
        ] {
            assert_eq!(mode(line, environment), told, "{line}");
        }
        assert_eq!(
            place_of(Path::new("/home/me"), b"mnt/"),
            Path::new("/home/me/mnt")
        );
        assert_eq!(place_of(Path::new("/home/me"), b"/mnt"), Path::new("/mnt"));
    }
}
