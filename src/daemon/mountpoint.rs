//! The directory under the mount: it is protected against writes while nothing is mounted there,
//! and a dead mount on it is replaced without a gap if the system supports that.
//!
//! The cache keeps its state in `mountpoint.json`. The file is written before the mount is made, so
//! a crash at any point leaves a note that is true or harmless. `serving` is cleared at a clean
//! end; if it is set, the last daemon died, and the files in the bare directory were meant for the
//! mount.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use super::options::Protect;
use super::preflight::PreflightError;
use super::{dead_mount, first_contact};
use crate::cache::private;
use crate::control::mounts;
use crate::core::ForeignText;
use crate::sys;
use crate::sys::mounting::Spot;

/// The name of the note in the cache.
const NOTE: &str = "mountpoint.json";

/// The permission bits that allow changes of a directory.
const WRITE_BITS: u32 = 0o222;

/// The most dead mounts that may be stacked at one place.
const STACKED: usize = 8;

/// What a cache remembers of its mount point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    path: PathBuf,
    /// A daemon serves a mount there, or has died while it did, or has left files in the bare
    /// directory that it could not move.
    serving: bool,
    /// The permissions that the directory had before it was protected, if it is.
    mode: Option<u32>,
    /// Whether it was made immutable.
    immutable: bool,
}

impl Note {
    /// What the cache in `dir` remembers of the mount point `path`. A missing or damaged note, or
    /// one of another path, is empty.
    pub(super) fn read(dir: &Path, path: &Path) -> Note {
        let found: Option<Note> = private::read(&dir.join(NOTE))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        found
            .filter(|note| note.path == path)
            .unwrap_or_else(|| Note {
                path: path.into(),
                ..Note::default()
            })
    }

    /// When the cache in `dir` was last mounted or unmounted at `path`, if it was mounted nowhere
    /// else since.
    pub(super) fn last_used(dir: &Path, path: &Path) -> Option<SystemTime> {
        let bytes = fs::read(dir.join(NOTE)).ok()?;
        let note: Note = serde_json::from_slice(&bytes).ok()?;
        let written = fs::metadata(dir.join(NOTE)).ok()?.modified().ok()?;
        (note.path == path).then_some(written)
    }

    /// Whether the last daemon of this cache died while it served a mount there.
    pub(super) fn was_cut_off(&self) -> bool {
        self.serving
    }

    /// Notes that a mount is being served there, or no longer is. A failure endangers nothing.
    pub(super) fn set_serving(&mut self, dir: &Path, serving: bool) {
        self.serving = serving;
        self.write(dir);
    }

    fn write(&self, dir: &Path) {
        let path = dir.join(NOTE);
        let temporary = dir.join(format!("{NOTE}.tmp"));
        let written = serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|text| private::make_new(&temporary)?.write_all(&text))
            .and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = written {
            tracing::warn!(%error, "the state of the mount point cannot be stored");
        }
    }
}

/// Whether a dead ferryfs mount is at `path`: the kernel knows its type, and its daemon is gone.
pub(super) fn is_dead_mount(path: &Path) -> bool {
    let Ok(table) = mounts::read() else {
        return false;
    };
    let is_ours = table
        .iter()
        .any(|mount| mount.mountpoint == path && mount.is_ferryfs());
    // The kernel answers for the attributes of a dead mount from its cache; for the space it must
    // ask the daemon.
    is_ours && statvfs(path).is_err_and(|errno| is_gone(&errno.into()))
}

/// The errors of a FUSE mount whose daemon is gone or ending.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED)
    )
}

/// The mount point just before the mount.
pub(super) struct Ground {
    /// Where the mount goes.
    pub(super) spot: Spot,
    /// A dead mount is there, and the new mount replaces it.
    pub(super) is_dead: bool,
    /// The directory itself, if it could be opened before the mount.
    bare: Option<File>,
}

impl Ground {
    /// Prepares the mount at `checked`, which has been held open since it was checked. For ordinary
    /// users a dead mount is taken away here, and a protected mount point is made writable, because
    /// fusermount3 requires both. Root's stay until the new mount replaces them.
    ///
    /// # Errors
    /// If a dead mount cannot be taken away, or another directory is there than was checked.
    pub(super) fn prepare(note: &mut Note, checked: Spot) -> Result<Ground, PreflightError> {
        let path = checked.path().to_path_buf();
        let mut is_dead = is_dead_mount(&path);
        if is_dead && !Uid::effective().is_root() {
            for _ in 0..STACKED {
                dead_mount::detach(&path)?;
                is_dead = is_dead_mount(&path);
                if !is_dead {
                    break;
                }
            }
        }
        let spot = as_checked(checked, is_dead)?;
        let bare = match is_dead {
            true => None,
            false => spot.open().ok(),
        };
        if !Uid::effective().is_root()
            && let Some(bare) = &bare
        {
            unlock(bare, note);
        }
        Ok(Ground {
            spot,
            is_dead,
            bare,
        })
    }

    /// Protects the directory again if it was, because the mount failed.
    pub(super) fn give_up(self, note: &Note) {
        if let (Some(bare), Some(_)) = (&self.bare, note.mode) {
            lock(bare);
        }
    }

    /// The device number of the new mount.
    ///
    /// # Errors
    /// If it cannot be found, or another file system is there.
    pub(super) fn device(&self) -> io::Result<u64> {
        // Open for this moment only, because it keeps the mount in use.
        let device = sys::mounts::place_of(self.spot.again()?.dir())?.device;
        let is_ours = |mount: &mounts::MountEntry| mount.dev == device && mount.is_ferryfs();
        match mounts::read()?.iter().any(is_ours) {
            true => Ok(device),
            false => Err(io::Error::other(
                "another file system is at the mount point",
            )),
        }
    }

    /// Returns the directory under the new mount, if it can be opened.
    pub(super) fn covered(self) -> Option<File> {
        match self.bare {
            Some(bare) => Some(bare),
            None => sys::mounting::open_covered(&self.spot)
                .inspect_err(|error| {
                    tracing::debug!(%error, "the directory under the mount cannot be opened")
                })
                .ok(),
        }
    }
}

/// The mount point as it is now. It must be the directory that was checked, unless a dead mount
/// covered or covers it, because then none was checked.
fn as_checked(checked: Spot, is_dead: bool) -> Result<Spot, PreflightError> {
    let changed = || PreflightError::MountpointChanged(checked.path().into());
    let now = checked.again().map_err(|_| changed())?;
    let place =
        |spot: &Spot| sys::mounts::facts_of(spot.dir()).map(|facts| (facts.place, facts.inode));
    // A file system whose daemon is gone does not answer statfs.
    let was_covered = sys::file::space(checked.dir()).is_err();
    let is_same = || Some(place(&checked).ok()? == place(&now).ok()?);
    match is_dead || was_covered || is_same() == Some(true) {
        true => Ok(now),
        false => Err(changed()),
    }
}

/// Protects the bare directory against writes until it is unlocked, as `protect` says, or removes
/// the protection. Returns whether the protection is new.
pub(super) fn protect(bare: &File, note: &mut Note, dir: &Path, protect: Protect) -> bool {
    if protect == Protect::No {
        release(bare, note, dir);
        return false;
    }
    let Ok(meta) = bare.metadata() else {
        return false;
    };
    let was_noted = note.mode.is_some();
    let mode = meta.mode() & 0o7777;
    let is_ours = meta.uid() == Uid::effective().as_raw() || Uid::effective().is_root();
    if is_ours && (mode & WRITE_BITS != 0 || note.mode.is_none()) {
        note.mode.get_or_insert(mode);
        note.write(dir);
        lock(bare);
    }
    let lasting =
        protect == Protect::Immutable || first_contact::is_mounted_by_the_system(&note.path);
    if lasting && Uid::effective().is_root() && !sys::file::is_immutable(bare).unwrap_or(true) {
        note.immutable = true;
        note.write(dir);
        if let Err(error) = sys::file::set_immutable(bare, true) {
            tracing::info!(%error, "the bare mount point cannot be made immutable");
        }
    }
    !was_noted && note.mode.is_some()
}

/// Gives the bare directory back the permissions that it had.
fn release(bare: &File, note: &mut Note, dir: &Path) {
    unlock(bare, note);
    let immutable = std::mem::take(&mut note.immutable);
    if let Some(mode) = note.mode.take() {
        let _ = bare.set_permissions(Permissions::from_mode(mode));
        note.write(dir);
    } else if immutable {
        note.write(dir);
    }
}

/// Makes the directory writable for its owner, for our own work in it. Another cache may have
/// protected it, so this is done without a note, too.
pub(super) fn unlock(bare: &File, note: &Note) {
    if note.immutable {
        let _ = sys::file::set_immutable(bare, false);
    }
    let Ok(meta) = bare.metadata() else { return };
    let now = meta.mode() & 0o7777;
    let mode = note.mode.unwrap_or(now) | 0o200;
    if mode != now
        && meta.uid() == Uid::effective().as_raw()
        && let Err(error) = bare.set_permissions(Permissions::from_mode(mode))
    {
        tracing::debug!(%error, "the bare mount point stays protected");
    }
}

/// Protects it again after [`unlock`].
pub(super) fn lock_again(bare: &File, note: &Note) {
    if note.mode.is_some() {
        lock(bare);
    }
    if note.immutable {
        let _ = sys::file::set_immutable(bare, true);
    }
}

fn lock(bare: &File) {
    let locked = bare.metadata().and_then(|meta| {
        let mode = meta.mode() & 0o7777 & !WRITE_BITS;
        bare.set_permissions(Permissions::from_mode(mode))
    });
    if let Err(error) = locked {
        tracing::debug!(%error, "the bare mount point cannot be protected");
    }
}

/// Some of the names in a directory, for the user.
pub(super) fn names_in(path: &Path) -> String {
    const NAMED: usize = 3;
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().escaped().to_string())
        .collect();
    names.sort();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_bare_directory_is_protected_and_given_back_as_it_was() {
        let (cache, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::set_permissions(at.path(), Permissions::from_mode(0o2775)).unwrap();
        let bare = File::open(at.path()).unwrap();
        let mut note = Note::read(cache.path(), at.path());
        assert!(protect(&bare, &mut note, cache.path(), Protect::Auto));
        assert_eq!(mode(at.path()), 0o2555);
        // The next daemon knows the state from the note, and does not take our change for the
        // user's.
        let mut note = Note::read(cache.path(), at.path());
        assert!(!protect(&bare, &mut note, cache.path(), Protect::Auto));
        unlock(&bare, &note);
        assert_eq!(mode(at.path()), 0o2775);
        lock_again(&bare, &note);
        assert_eq!(mode(at.path()), 0o2555);
        protect(&bare, &mut note, cache.path(), Protect::Auto);
        protect(&bare, &mut note, cache.path(), Protect::No);
        assert_eq!(mode(at.path()), 0o2775);
        assert_eq!(Note::read(cache.path(), at.path()).mode, None);
    }

    #[test]
    fn a_damaged_note_or_one_of_another_place_is_none() {
        let cache = tempfile::tempdir().unwrap();
        let mut note = Note::read(cache.path(), Path::new("/a"));
        note.set_serving(cache.path(), true);
        assert!(Note::read(cache.path(), Path::new("/a")).was_cut_off());
        assert!(!Note::read(cache.path(), Path::new("/b")).was_cut_off());
        fs::write(cache.path().join(NOTE), b"{\"path\":").unwrap();
        assert!(!Note::read(cache.path(), Path::new("/a")).was_cut_off());
    }
}
