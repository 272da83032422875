//! Copies one file out of a cache that may be damaged: holes stay holes, and unreadable parts are
//! skipped.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown,
};
use std::path::Path;

use crate::index::{Flags, Inode};
use crate::sys;

/// Bytes copied at a time.
const BUFFER: usize = 1 << 20;

/// Bytes that are skipped together after a failed read.
const SECTOR: u64 = 4096;

/// The result of copying a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    /// Its length in bytes.
    pub(super) size: u64,
    /// How many of them could not be read; they are a hole.
    pub(super) unread: u64,
}

/// The owners of the copies. The cache's owner can edit the index, so root does not give files to
/// other users because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owners {
    /// User and group of the cache.
    pub(super) cache: (u32, u32),
    /// Owners are taken from the index all the same.
    pub(super) as_in_index: bool,
}

impl Owners {
    /// Returns the owner of a copy.
    fn of(self, inode: Option<&Inode>) -> (u32, u32) {
        match inode {
            Some(inode) if self.as_in_index => (inode.uid, inode.gid),
            _ => self.cache,
        }
    }

    /// Returns whether the source of a copy is the cache's own. A link to another place may lead to
    /// files that the cache's owner could not read.
    fn owns(self, source: &fs::Metadata) -> bool {
        !source.is_file() || source.uid() == self.cache.0
    }
}

/// Returns whether the target is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS)
    )
}

/// Makes the directories above `path`.
pub(super) fn make_parents(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent),
        None => Ok(()),
    }
}

/// Copies the file `from`, which must be a regular file or /dev/null, to the new file `to`, with
/// the attributes of `inode`. A file that is not the cache's own gets a copy that belongs to the
/// caller.
///
/// # Errors
/// If the one cannot be opened, or the other cannot be made or written.
pub(super) fn copy_file(
    from: &Path,
    to: &Path,
    inode: Option<&Inode>,
    owners: Owners,
) -> io::Result<Copied> {
    let source = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(from)?;
    let meta = source.metadata()?;
    if meta.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    make_parents(to)?;
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let size = if meta.is_file() { meta.len() } else { 0 };
    let unread = copy_bytes(&source, &target, size)?;
    finish(&target, &meta, inode, owners);
    Ok(Copied { size, unread })
}

/// Copies `size` bytes and returns the number of those that could not be read.
fn copy_bytes(from: &File, to: &File, size: u64) -> io::Result<u64> {
    to.set_len(size)?;
    let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER)).max(1)];
    let (mut at, mut unread) = (0, 0);
    while at < size {
        // If the file system cannot tell, everything counts as data.
        let start = match sys::file::next_data(from, at) {
            Ok(Some(start)) => start,
            Ok(None) => break,
            Err(_) => at,
        };
        let end = match sys::file::next_hole(from, start) {
            Ok(Some(end)) if end > start => end.min(size),
            _ => size,
        };
        at = start;
        while at < end {
            let wanted = usize::try_from(end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
            match from.read_at(&mut buffer[..wanted], at) {
                Ok(0) => return Ok(unread),
                Ok(got) => {
                    to.write_all_at(&buffer[..got], at)?;
                    at += got as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Smaller pieces first; a single one that fails is skipped.
                Err(_) if wanted as u64 > SECTOR => buffer.truncate(SECTOR as usize),
                Err(_) => {
                    let next = (at / SECTOR + 1).saturating_mul(SECTOR);
                    unread += next.min(end) - at;
                    at = next.min(end);
                }
            }
        }
    }
    Ok(unread)
}

/// Sets owner, permissions and time, as far as they are known and may be set. The bytes are what
/// counts, so nothing fails here.
fn finish(target: &File, meta: &fs::Metadata, inode: Option<&Inode>, owners: Owners) {
    let mut modified = meta.modified().ok();
    let mut mode = 0o600;
    let owned = owners.owns(meta);
    if owned {
        give(target, owners.of(inode));
    }
    if let Some(inode) = inode {
        if owned {
            mode = plain_mode(inode);
        }
        // The object of a file that was being written knows its time better than the row.
        if !inode.flags.has(Flags::WRITING) || !meta.is_file() {
            modified = Some(inode.mtime.into());
        }
    }
    let _ = target.set_permissions(Permissions::from_mode(mode));
    if let Some(modified) = modified {
        let _ = target.set_times(FileTimes::new().set_modified(modified));
    }
}

/// Gives a copy to its owner. Only root can.
fn give(target: &File, (user, group): (u32, u32)) {
    let _ = fchown(target, Some(user), Some(group));
}

/// Returns the mode without set-user-ID, set-group-ID and sticky bits: the index is no reason to
/// give rights away.
fn plain_mode(inode: &Inode) -> u32 {
    inode.mode & 0o777
}

/// The same for a directory, once it has its contents.
pub(super) fn finish_dir(path: &Path, inode: Option<&Inode>, owners: Owners) {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY)
        .open(path);
    let Ok(dir) = opened else { return };
    give(&dir, owners.of(inode));
    if let Some(inode) = inode {
        let _ = dir.set_permissions(Permissions::from_mode(plain_mode(inode)));
        let _ = dir.set_times(FileTimes::new().set_modified(inode.mtime.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_keeps_holes_and_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let file = File::create(&from).unwrap();
        file.write_all_at(b"head", 0).unwrap();
        file.write_all_at(b"tail", 8 << 20).unwrap();
        file.set_len(16 << 20).unwrap();
        let to = dir.path().join("deep/er/to");
        let owners = Owners {
            cache: (0, 0),
            as_in_index: false,
        };
        let copied = copy_file(&from, &to, None, owners).unwrap();
        assert_eq!((copied.size, copied.unread), (16 << 20, 0));
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        let error = copy_file(&from, &to, None, owners).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}
