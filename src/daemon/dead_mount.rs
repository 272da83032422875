//! Takes a mount away: a dead one at once, a living one if it is not in use.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::MntFlags;
use nix::unistd::Uid;

use crate::control::mounts;
use crate::core::{ForeignText, printable};
use crate::sys::mounting;

/// Why a mount could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The system call failed; this process is root.
    #[error("cannot unmount {}: {source}", path.escaped())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The set-user-id helper of FUSE is not installed.
    #[error("cannot run fusermount3 to unmount {}: {source}", path.escaped())]
    Helper {
        /// The mount point.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The helper refused.
    #[error("fusermount3 cannot unmount {}: {words}", path.escaped())]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// Its message.
        words: String,
    },
}

/// Detaches the ferryfs mount at `path` at once. A program that has a file of it open keeps a dead
/// file system until it closes the file.
///
/// # Errors
/// [`DetachError`]; the mount is still there.
pub fn detach(path: &Path) -> Result<(), DetachError> {
    detach_device(path, None)
}

/// As [`detach`], if the file system at `path` has the number `device`, or no number is given.
///
/// # Errors
/// As [`detach`].
pub fn detach_device(path: &Path, device: Option<u64>) -> Result<(), DetachError> {
    take_away(path, device, MntFlags::MNT_DETACH, &["-u", "-z", "--"])
}

/// Unmounts `path` if it is not in use, and if the file system there has the number `device` or no
/// number is given.
///
/// # Errors
/// [`DetachError`]; the mount is still there and works.
pub fn unmount(path: &Path, device: Option<u64>) -> Result<(), DetachError> {
    take_away(path, device, MntFlags::empty(), &["-u", "--"])
}

/// The owner of a directory in the path could lead root to another mount, so the mount is checked
/// to be one of ours first. fusermount3 itself checks whether the user may take the mount away.
fn take_away(
    path: &Path,
    device: Option<u64>,
    flags: MntFlags,
    words: &[&str],
) -> Result<(), DetachError> {
    if Uid::effective().is_root() {
        let is_ours = |found| match device {
            Some(device) => found == device,
            None => is_ferryfs(found),
        };
        return mounting::unmount(path, flags, is_ours).map_err(|source| DetachError::Unmount {
            path: path.into(),
            source,
        });
    }
    match helper("fusermount3", words, path) {
        Err(DetachError::Helper { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            helper("fusermount", words, path)
        }
        outcome => outcome,
    }
}

/// Whether the file system with the number `device` is a ferryfs mount.
fn is_ferryfs(device: u64) -> bool {
    let is_it = |mount: &mounts::MountEntry| mount.dev == device && mount.is_ferryfs();
    mounts::read().is_ok_and(|table| table.iter().any(is_it))
}

fn helper(program: &str, words: &[&str], path: &Path) -> Result<(), DetachError> {
    let run = Command::new(program)
        .args(words)
        .arg(path)
        .stdin(Stdio::null())
        .output();
    match run {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(DetachError::Refused {
            path: path.into(),
            words: one_line(&output.stderr),
        }),
        Err(source) => Err(DetachError::Helper {
            path: path.into(),
            source,
        }),
    }
}

fn one_line(words: &[u8]) -> String {
    let words = words.to_text();
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    printable(&words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_mount_is_refused_rather_than_called_done() {
        let dir = tempfile::tempdir().unwrap();
        let error = detach(dir.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&dir.path().display().to_string()),
            "{error}"
        );
    }
}
