//! Remembers which file systems are mounted inside the drive's directory.
//!
//! A mount point inside is noted in the index when it is seen in the mount table: when the drive is
//! attached, when the table changes, and before a flush. Once its directory has an inode number,
//! the note has that number, too, so that it is found again after its parents were renamed. From
//! then on [`crate::drive::inner_mounts`] keeps every access away from the bare directory while
//! nothing is mounted there. The note is removed when the directory is removed in the mount.
//!
//! A note that a crash loses is made again when the mount is seen the next time. It is committed
//! before the files below it are imported.

use std::collections::BTreeMap;

use crate::core::{Ino, RelPath};
use crate::daemon::preflight::{self, PreflightError};
use crate::daemon::write_back;
use crate::drive::mounted::MountedDir;
use crate::error::FlushError;
use crate::format::layout;
use crate::index::{Index, IndexWriter};
use crate::sys::mounts::{self, Mount};

/// The key of the setting in the index that notes a mount point, followed by its path.
const KEY: &str = "mounted_inside/";

/// The number of a directory that the index does not know yet.
const NO_INODE: Ino = Ino(0);

/// Notes what is mounted inside `drive` now, and makes `drive` refuse accesses to mount points
/// where nothing is mounted. Returns the warnings for the user, a line each; with `kept_clean` it
/// is no news that the file system is read-only. Asks the kernel only, not the drive.
///
/// # Errors
/// If the index fails. A mount table that cannot be read changes nothing.
pub(super) fn look(
    index: &Index,
    drive: &MountedDir,
    kept_clean: bool,
) -> Result<Vec<String>, FlushError> {
    let table = mounts::mounts().inspect_err(|error| tracing::warn!(%error, "the mount table"));
    let table = table.unwrap_or_default();
    let present = inside(&table, drive);
    let known = note(&mut index.lock(), &present)?;
    let mut lines: Vec<String> = read_only(&table, drive, kept_clean).into_iter().collect();
    let mut writes_later = Vec::new();
    for (path, mount) in &present {
        if let Some(problem) = write_back::problem(mount) {
            lines.push(format!(
                "{path}: {problem}; nothing is written there. Mount it with --vfs-cache-mode off"
            ));
            writes_later.push(path.clone());
        }
    }
    for (path, _) in &known {
        if !present.iter().any(|(at, _)| at == path) {
            lines.push(format!(
                "{path}: the file system that was mounted there is not mounted; what is known of \
                 it is kept, and changes wait until it is mounted again. If it is gone for good, \
                 delete the directory in the mount"
            ));
        }
    }
    let known = known.into_iter().flat_map(|(path, to)| [Some(path), to]);
    drive.set_inner_mounts(known.flatten().collect(), writes_later);
    Ok(lines)
}

/// The warning about a drive whose top directory accepts no new names. Asks the drive, and waits
/// for it.
pub(super) fn top_directory(drive: &MountedDir) -> Option<String> {
    match preflight::check_can_write(drive.place_path()) {
        Err(PreflightError::BackendNotWritable { source, .. }) => Some(format!(
            "the top directory of the drive cannot be changed ({source}): new names there wait in \
             the cache. It may belong to another user, or be marked immutable (see lsattr)"
        )),
        _ => None,
    }
}

/// The warning about a drive that is mounted read-only.
fn read_only(table: &[Mount], drive: &MountedDir, kept_clean: bool) -> Option<String> {
    let mount = mounts::covering(table, drive.place_path())?;
    let is_read_only = match kept_clean {
        true => mount.is_read_only_itself(),
        false => mount.is_read_only(),
    };
    is_read_only.then(|| {
        "the drive is read-only: its files can be read, and what is written waits in the cache. \
         After an error the system makes a drive read-only: check it with fsck (see `dmesg`)"
            .into()
    })
}

/// The mount points in `table` inside `drive`, except for those in `.ferryfs`.
fn inside(table: &[Mount], drive: &MountedDir) -> Vec<(RelPath, Mount)> {
    let place = drive.place_path();
    let below = |mount: &&Mount| {
        let below = mount.mount_point.strip_prefix(place).ok()?;
        let path = RelPath::parse(below.as_os_str().as_encoded_bytes()).ok()?;
        let is_users = !path.is_root() && !layout::is_reserved(&path);
        is_users.then(|| (path, (*mount).clone()))
    };
    mounts::visible(table).iter().filter_map(below).collect()
}

/// A mount point: its path on the drive, and the path that the next batch gives it, if its parents
/// were renamed in the mount. An interrupted batch may have moved it already.
type Known = (RelPath, Option<RelPath>);

/// Brings the notes up to date, and returns all known mount points.
fn note(state: &mut IndexWriter, present: &[(RelPath, Mount)]) -> Result<Vec<Known>, FlushError> {
    let noted = state.metas(KEY)?;
    let mut known: BTreeMap<RelPath, Ino> = BTreeMap::new();
    for (path, ino) in noted.iter().filter_map(parsed) {
        known.extend(follow(state, path, ino)?);
    }
    for (path, _) in present {
        if !known.contains_key(path) {
            let ino = state.find_stored(path)?.unwrap_or(NO_INODE);
            known.insert(path.clone(), ino);
        }
    }
    let wanted: BTreeMap<String, String> = known.iter().map(written).collect();
    for (key, _) in noted.iter().filter(|(key, _)| !wanted.contains_key(key)) {
        state.set_meta(&format!("{KEY}{key}"), "")?;
    }
    for (key, value) in &wanted {
        if !noted.iter().any(|(at, was)| at == key && was == value) {
            state.set_meta(&format!("{KEY}{key}"), value)?;
        }
    }
    state.commit()?;
    let both = known.into_iter().map(|(path, ino)| {
        let to = match ino {
            NO_INODE => None,
            ino => state.mount_path(ino)?.filter(|to| *to != path),
        };
        Ok((path, to))
    });
    both.collect()
}

/// Where a noted mount point is now; `None` if its directory was removed in the mount.
fn follow(
    state: &mut IndexWriter,
    path: RelPath,
    ino: Ino,
) -> Result<Option<(RelPath, Ino)>, FlushError> {
    if ino == NO_INODE {
        let found = state.find_stored(&path)?;
        return Ok(Some((path, found.unwrap_or(NO_INODE))));
    }
    if state.mount_path(ino)?.is_none() {
        return Ok(None);
    }
    let path = state.backend_path(ino)?.unwrap_or(path);
    Ok(Some((path, ino)))
}

/// A note as it is stored in the index: the bytes of the path as hexadecimal digits, and the
/// number.
fn written((path, ino): (&RelPath, &Ino)) -> (String, String) {
    let digits = path.as_bytes().iter().map(|byte| format!("{byte:02x}"));
    (digits.collect(), ino.0.to_string())
}

fn parsed((digits, number): &(String, String)) -> Option<(RelPath, Ino)> {
    let bytes: Option<Vec<u8>> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
        .collect();
    let path = RelPath::parse(&bytes?).ok()?;
    Some((path, Ino(number.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let path = RelPath::parse(b"caf\xe9/\xff m").unwrap();
        let note = written((&path, &Ino(7)));
        assert_eq!(parsed(&note), Some((path, Ino(7))));
        assert_eq!(parsed(&("6".into(), "7".into())), None);
        assert_eq!(parsed(&("é".into(), "7".into())), None);
    }
}
