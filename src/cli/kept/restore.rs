//! Writes a version into the mount: beside its name first, then over it in one step, so that a
//! program sees the old file or the whole restored one. A restore that is interrupted leaves a
//! file `.ferryfs-restored-PID` in the directory, or nothing.
//!
//! The copy may take minutes. What others save under the name meanwhile stays: it is compared again
//! just before the rename.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::{Store, Version};
use crate::core::{Name, SLACK_NS, Timestamp, is_time_of};
use crate::format::versions::{Entry, Special, What};
use crate::sys::xattr;

/// Permission bits that a restored file may have. The drive could have been changed by others, so
/// it gets none that give its owner's rights to who runs it.
const MODE: u32 = 0o777;

/// Why a version was not restored.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum NotRestored {
    /// Something is there that the user may want to keep.
    #[error("{0}")]
    InTheWay(&'static str),
    /// It is of a kind that this command does not make.
    #[error("it is a {0}; make it again by hand")]
    Special(&'static str),
    /// A call failed.
    #[error("{0}: {1}")]
    Failed(&'static str, io::Error),
}

type Result<T> = std::result::Result<T, NotRestored>;

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> NotRestored {
    move |error| NotRestored::Failed(what, error)
}

/// What may be in the way of a restored file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Present<'a> {
    /// Nothing.
    Nothing,
    /// What a batch has left there, as this line of its list says.
    Left(&'a Entry),
    /// Only what the drive has as well, so that the next flush keeps it as a version.
    OnDrive,
    /// Anything.
    Anything,
}

/// Restores `version` at `to`, which is below the directory `base`.
pub(in crate::cli) fn restore(
    store: &Store,
    version: &Version,
    (base, to): (&Path, &Path),
    may_replace: Present<'_>,
) -> Result<()> {
    let entry = &version.entry;
    check_way(base, to)?;
    let there = look(to)?;
    if let Some(there) = &there {
        check_present(store, entry, to, there, may_replace)?;
        if entry.what == What::Directory && there.is_dir() {
            return Ok(());
        }
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(cannot("cannot make the directory it is in"))?;
    }
    if entry.what == What::Directory {
        return make_dir(entry, to);
    }
    let beside = beside(to);
    let made = match entry.what {
        What::Special => make_special(entry, &beside),
        _ => copy(store, version, &beside),
    };
    let placed = made.and_then(|()| place(&beside, to, there.as_ref()));
    if placed.is_err() {
        // It may not be there.
        let _ = fs::remove_file(&beside);
    }
    placed
}

/// Returns what is at `path`; `None` only if nothing is.
fn look(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NotRestored::Failed("cannot look at its name", error)),
    }
}

/// Gives the file at `beside` the name `to`, if that is still as it was judged.
fn place(beside: &Path, to: &Path, judged: Option<&fs::Metadata>) -> Result<()> {
    const MEANWHILE: NotRestored =
        NotRestored::InTheWay("another program has changed the file there meanwhile");
    let Some(judged) = judged else {
        return rename_new(beside, to).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => MEANWHILE,
            _ => NotRestored::Failed("cannot rename it", error),
        });
    };
    match look(to)? {
        Some(now) if state_of(&now) == state_of(judged) => {
            fs::rename(beside, to).map_err(cannot("cannot rename it"))
        }
        _ => Err(MEANWHILE),
    }
}

/// Returns what tells whether a file was changed.
fn state_of(meta: &fs::Metadata) -> [i128; 7] {
    [
        meta.dev().into(),
        meta.ino().into(),
        meta.size().into(),
        meta.mtime().into(),
        meta.mtime_nsec().into(),
        meta.ctime().into(),
        meta.ctime_nsec().into(),
    ]
}

/// Renames a file or directory, and replaces nothing.
pub(in crate::cli) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let flags = RenameFlags::RENAME_NOREPLACE;
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) {
        // The file system does not know the flag.
        Err(Errno::EINVAL | Errno::ENOSYS) => match fs::symlink_metadata(to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
            Err(error) => Err(error),
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        },
        renamed => Ok(renamed?),
    }
}

/// Checks that no link leads from `base` to `to`: the paths come from a drive, which others may
/// have written to.
pub(in crate::cli) fn check_way(base: &Path, to: &Path) -> Result<()> {
    let below = to.strip_prefix(base).ok().and_then(Path::parent);
    let mut at = base.to_path_buf();
    for name in below.into_iter().flat_map(Path::components) {
        at.push(name);
        if fs::symlink_metadata(&at).is_ok_and(|found| found.is_symlink()) {
            return Err(NotRestored::InTheWay(
                "a symbolic link leads there now; restore it with --to",
            ));
        }
    }
    Ok(())
}

fn check_present(
    store: &Store,
    entry: &Entry,
    to: &Path,
    there: &fs::Metadata,
    may_replace: Present<'_>,
) -> Result<()> {
    if there.is_dir() != (entry.what == What::Directory) {
        return Err(NotRestored::InTheWay(match there.is_dir() {
            true => "a directory has its name now; move that away first",
            false => "a file has its name now; move that away first",
        }));
    }
    if there.is_dir() {
        return Ok(());
    }
    match may_replace {
        Present::Anything => return Ok(()),
        Present::Left(left) if is_as_left(left, there) => return Ok(()),
        Present::Nothing | Present::Left(_) => return Err(NotRestored::InTheWay(CHANGED)),
        Present::OnDrive => {}
    }
    if !to.starts_with(&store.mountpoint) {
        return Err(NotRestored::InTheWay(
            "a file is there; --force replaces it",
        ));
    }
    if !store.is_on {
        return Err(NotRestored::InTheWay(
            "a file is there, and this mount keeps no old versions of it; --force replaces it",
        ));
    }
    match is_on_drive(store, entry, there) {
        true => Ok(()),
        false => Err(NotRestored::InTheWay(
            "the file there has changes that were not flushed yet; flush first, or --force \
             replaces it",
        )),
    }
}

/// Returns whether the drive has the file that is in the mount, as far as size and time tell.
fn is_on_drive(store: &Store, entry: &Entry, there: &fs::Metadata) -> bool {
    store.metadata(&entry.path).is_ok_and(|on_drive| {
        on_drive.len() == there.len() && is_time_of(time_of(there), time_of(&on_drive), SLACK_NS)
    })
}

/// Why an undo leaves something as it is.
pub(in crate::cli) const CHANGED: &str = "it was changed since";

/// Returns whether `found` is what a batch has left there, as this line of its list says.
pub(in crate::cli) fn is_as_left(entry: &Entry, found: &fs::Metadata) -> bool {
    match entry.what {
        What::Written => {
            found.is_file()
                && found.len() == entry.size
                && is_time_of(entry.modified, time_of(found), SLACK_NS)
        }
        // A further name of a file cannot be told from a file that took its place.
        What::Made => !found.is_dir() && !found.is_file(),
        _ => false,
    }
}

/// Returns the modification time of a file.
fn time_of(meta: &fs::Metadata) -> Timestamp {
    let nanos = u32::try_from(meta.mtime_nsec()).unwrap_or(0);
    Timestamp::from_parts(meta.mtime(), nanos)
}

fn beside(to: &Path) -> PathBuf {
    to.with_file_name(format!(".ferryfs-restored-{}", std::process::id()))
}

fn make_dir(entry: &Entry, to: &Path) -> Result<()> {
    fs::create_dir(to).map_err(cannot("cannot make it"))?;
    if let Some(mode) = entry.about.as_ref().and_then(|about| about.mode) {
        // Its owner must be able to restore what is in it.
        let mode = Permissions::from_mode((mode & MODE) | 0o700);
        fs::set_permissions(to, mode).map_err(cannot("cannot set its mode"))?;
    }
    Ok(())
}

fn make_special(entry: &Entry, at: &Path) -> Result<()> {
    let about = entry.about.clone().unwrap_or_default();
    match about.kind {
        Some(Special::Symlink) => {
            let target = about.target().unwrap_or_default();
            let target = std::ffi::OsStr::from_bytes(&target);
            std::os::unix::fs::symlink(target, at).map_err(cannot("cannot make the link"))
        }
        Some(Special::Fifo) => Err(NotRestored::Special("named pipe")),
        Some(Special::Socket) => Err(NotRestored::Special("socket")),
        _ => Err(NotRestored::Special("device")),
    }
}

fn copy(store: &Store, version: &Version, at: &Path) -> Result<()> {
    let from = version.id.dir().join_path(&version.entry.path);
    let meta = store
        .metadata(&from)
        .map_err(cannot("cannot look at the old version"))?;
    if meta.is_symlink() {
        let target = store
            .target(&from)
            .map_err(cannot("cannot read the link"))?;
        return std::os::unix::fs::symlink(target, at).map_err(cannot("cannot make the link"));
    }
    let mut source = store
        .open(&from)
        .map_err(cannot("cannot open the old version"))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(at)
        .map_err(cannot("cannot make it"))?;
    io::copy(&mut source, &mut file).map_err(cannot("cannot copy its bytes"))?;
    give_attributes(&file, at, &meta, &version.entry)
}

/// Gives a restored file what is known of the version: owner where that is allowed, mode, extended
/// attributes, and the time last, because the others change it.
fn give_attributes(file: &File, at: &Path, meta: &fs::Metadata, entry: &Entry) -> Result<()> {
    let about = entry.about.clone().unwrap_or_default();
    if nix::unistd::geteuid().is_root() {
        let owner = (
            about.uid.unwrap_or(meta.uid()),
            about.gid.unwrap_or(meta.gid()),
        );
        // On a file system without owners the file stays root's.
        let _ = fchown(file, Some(owner.0), Some(owner.1));
    }
    let mode = about.mode.unwrap_or_else(|| meta.permissions().mode()) & MODE;
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(cannot("cannot set its mode"))?;
    if let (Some(dir), Some(name)) = (at.parent(), at.file_name())
        && let (Ok(dir), Ok(name)) = (File::open(dir), Name::new(name.as_bytes()))
    {
        for (key, value) in about.xattrs() {
            // Others need rights, or are the system's own.
            if key.starts_with(b"user.") {
                let _ = xattr::set_at(&dir, Some(&name), &key, &value);
            }
        }
    }
    let modified = match entry.modified {
        Timestamp(0) => time_of(meta),
        modified => modified,
    };
    file.set_times(FileTimes::new().set_modified(SystemTime::from(modified)))
        .map_err(cannot("cannot set its time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_while_a_version_was_copied_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (beside, to) = (dir.path().join("beside"), dir.path().join("to"));
        let save = |path: &Path, text: &str| fs::write(path, text).unwrap();
        save(&beside, "old version");
        save(&to, "new");
        // Nothing was there when it was judged.
        assert!(place(&beside, &to, None).is_err());
        let judged = look(&to).unwrap();
        let other = dir.path().join("other");
        save(&other, "NEW");
        fs::rename(&other, &to).unwrap();
        assert!(place(&beside, &to, judged.as_ref()).is_err());
        assert_eq!(fs::read(&to).unwrap(), b"NEW");
        let judged = look(&to).unwrap();
        place(&beside, &to, judged.as_ref()).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"old version");
        // A name that cannot be looked at does not count as free.
        assert!(look(&to.join("below")).is_err());
    }
}
