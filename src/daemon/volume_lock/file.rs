//! Lock files, which keep a user's daemons apart in all network namespaces.
//!
//! Each is in a directory to which only this user can write, which is checked on its descriptor: so
//! no other user can hold the lock, or replace the file by another one. The file is removed while
//! it is locked. A process that has opened it before that finds that its name is gone, and starts
//! again. The file of a killed daemon stays until the next one.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Uid, UnlinkatFlags, unlinkat};
use uuid::Uuid;

use crate::core::ForeignText;
use crate::daemon::volume;
use crate::sys::mounts::facts_of;

/// The directory, below one of this user's.
const DIRS: [&str; 2] = ["ferryfs", "locks"];

/// How often a file is opened again that was removed just before it was locked.
const ATTEMPTS: usize = 100;

/// A locked file. The lock ends with it.
#[derive(Debug)]
pub(super) struct LockFile {
    dir: OwnedFd,
    name: String,
    _file: File,
}

/// Another daemon of this user holds the lock.
#[derive(Debug)]
pub(super) struct Held {
    /// Its process, if the file names it.
    pub(super) pid: Option<String>,
}

impl LockFile {
    /// Locks the files of `volume` in each directory that exists: which ones exist changes when a
    /// user logs in and out. If this user has none, a warning is logged, and other daemons are seen
    /// by their claims only.
    ///
    /// # Errors
    /// If another daemon holds one.
    pub(super) fn acquire(volume: Uuid) -> Result<Vec<LockFile>, Held> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        let (mut files, mut seen) = (Vec::new(), Vec::new());
        for base in bases() {
            let locked = private_dir(&base)
                .and_then(|dir| Ok((facts_of(&dir)?, dir)))
                .map_err(Failure::Io)
                .and_then(|(facts, dir)| {
                    // Two of the directories may be the same.
                    let place = (facts.place.device, facts.inode);
                    if seen.contains(&place) {
                        return Ok(None);
                    }
                    seen.push(place);
                    LockFile::lock(dir, volume).map(Some)
                });
            match locked {
                Ok(file) => files.extend(file),
                Err(Failure::Held(held)) => return Err(held),
                Err(Failure::Io(error)) => last = error,
            }
        }
        if files.is_empty() {
            tracing::warn!(error = %last, "there is no directory for a lock file of the volume");
        }
        Ok(files)
    }

    fn lock(dir: OwnedFd, volume: Uuid) -> Result<LockFile, Failure> {
        let name = volume.to_string();
        for _ in 0..ATTEMPTS {
            let mut file = open_in(&dir, &name).map_err(Failure::Io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Failure::Held(Held {
                        pid: pid_in(&mut file),
                    }));
                }
                Err(TryLockError::Error(error)) => return Err(Failure::Io(error)),
            }
            if is_named(&dir, &name, &file).map_err(Failure::Io)? {
                note_pid(&mut file);
                return Ok(LockFile {
                    dir,
                    name,
                    _file: file,
                });
            }
        }
        Err(Failure::Io(io::ErrorKind::ResourceBusy.into()))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let _ = unlinkat(&self.dir, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
    }
}

/// Why a file is not locked.
enum Failure {
    Held(Held),
    Io(io::Error),
}

/// Whether `name` is still the name of `file`.
fn is_named(dir: &OwnedFd, name: &str, file: &File) -> io::Result<bool> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(dir, name, flags, Mode::empty()) {
        Ok(there) => Ok(facts_of(&there)?.inode == facts_of(file)?.inode),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Writes this process's number into `file`. The lock holds without it, too.
fn note_pid(file: &mut File) {
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = noted {
        tracing::debug!(%error, "the lock file does not name its process");
    }
}

fn pid_in(file: &mut File) -> Option<String> {
    let mut pid = String::new();
    file.take(32).read_to_string(&mut pid).ok()?;
    let pid = pid.trim();
    pid.parse::<u32>().ok().map(|pid| pid.to_string())
}

/// The directories below which it may be. Root has one, whatever the environment says.
fn bases() -> Vec<PathBuf> {
    let own = Uid::effective();
    let mut bases: Vec<PathBuf> = Vec::new();
    if own.is_root() {
        return vec!["/run".into()];
    }
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    bases.extend(named.filter(|dir| dir.is_absolute()));
    bases.push(format!("/run/user/{own}").into());
    // The caches are in a directory of the same name.
    let caches = volume::default_caches().ok();
    let data = caches.and_then(|caches| Some(caches.parent()?.to_path_buf()));
    if let Some(data) = data {
        bases.push(data);
    }
    bases
}

/// The directory below `base`; made if it does not exist.
fn private_dir(base: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mode = match Uid::effective().is_root() {
        true => Mode::from_bits_truncate(0o755),
        false => Mode::S_IRWXU,
    };
    let mut dir = match open(base, flags, Mode::empty()) {
        // The system makes runtime directories; the first process that needs the directory of the
        // caches makes it.
        Err(Errno::ENOENT) if !base.starts_with("/run") => {
            DirBuilder::new().recursive(true).mode(0o700).create(base)?;
            open(base, flags, Mode::empty())?
        }
        dir => dir?,
    };
    for name in DIRS {
        match mkdirat(&dir, name, mode) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        dir = openat(&dir, name, flags | OFlag::O_NOFOLLOW, Mode::empty())?;
        let facts = facts_of(&dir)?;
        if facts.uid != Uid::effective().as_raw() || facts.mode & 0o022 != 0 {
            let words = format!("other users can access {name} in {}", base.escaped());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, words));
        }
    }
    Ok(dir)
}

fn open_in(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    Ok(openat(dir, name, flags | OFlag::O_CLOEXEC, mode)?.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn lock_in(base: &Path, volume: Uuid) -> Result<LockFile, Held> {
        match LockFile::lock(private_dir(base).unwrap(), volume) {
            Ok(file) => Ok(file),
            Err(Failure::Held(held)) => Err(held),
            Err(Failure::Io(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn one_at_a_time_has_a_volume_and_the_other_is_told_who() {
        let base = tempfile::tempdir().unwrap();
        let volume = Uuid::new_v4();
        let first = lock_in(base.path(), volume).unwrap();
        let held = lock_in(base.path(), volume).unwrap_err();
        assert_eq!(held.pid, Some(std::process::id().to_string()));
        lock_in(base.path(), Uuid::new_v4()).unwrap();
        drop(first);
        lock_in(base.path(), volume).unwrap();
        let locks = base.path().join("ferryfs/locks");
        assert_eq!(fs::read_dir(locks).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_was_removed_meanwhile_is_no_lock() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let base = tempfile::tempdir().unwrap();
        let (volume, inside) = (Uuid::new_v4(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut turns = 0;
                    while turns < 200 {
                        let Ok(lock) = lock_in(base.path(), volume) else {
                            continue;
                        };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        turns += 1;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
    }

    #[test]
    fn a_directory_in_which_others_could_put_something_is_not_used() {
        let base = tempfile::tempdir().unwrap();
        let (ferryfs, elsewhere) = (base.path().join("ferryfs"), base.path().join("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, &ferryfs).unwrap();
        private_dir(base.path()).unwrap_err();
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        fs::remove_file(&ferryfs).unwrap();
        fs::create_dir(&ferryfs).unwrap();
        fs::set_permissions(&ferryfs, fs::Permissions::from_mode(0o777)).unwrap();
        private_dir(base.path()).unwrap_err();
        fs::set_permissions(&ferryfs, fs::Permissions::from_mode(0o755)).unwrap();
        let dir = private_dir(base.path()).unwrap();
        let volume = Uuid::new_v4();
        symlink(
            "/etc/passwd",
            ferryfs.join("locks").join(volume.to_string()),
        )
        .unwrap();
        open_in(&dir, &volume.to_string()).unwrap_err();
        if Uid::effective().is_root() {
            chown(ferryfs.join("locks"), Some(12_345), None).unwrap();
            private_dir(base.path()).unwrap_err();
        }
    }
}
