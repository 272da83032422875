//! Copying one file out of a cache that may be damaged: holes stay holes, and what cannot be read is passed over.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use crate::index::{Flags, Inode};
use crate::sys;

/// Bytes copied at a time.
const BUFFER: usize = 1 << 20;

/// Bytes that are given up together where reading fails.
const SECTOR: u64 = 4096;

/// What came of copying a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    /// Its length in bytes.
    pub(super) size: u64,
    /// How many of them could not be read; they are a hole.
    pub(super) unread: u64,
}

/// Whether there is no room left to copy to.
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

/// Copies the file `from`, which must be a plain one or /dev/null, to the new file `to`, with the attributes of `inode`.
///
/// # Errors
/// If the one cannot be opened or the other not be made or written.
pub(super) fn copy_file(from: &Path, to: &Path, inode: Option<&Inode>) -> io::Result<Copied> {
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
    finish(&target, &meta, inode);
    Ok(Copied { size, unread })
}

/// Copies `size` bytes and gives the number of those that could not be read.
fn copy_bytes(from: &File, to: &File, size: u64) -> io::Result<u64> {
    to.set_len(size)?;
    let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER)).max(1)];
    let (mut at, mut unread) = (0, 0);
    while at < size {
        // Where the file system cannot tell, all is taken for data.
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
                // Smaller pieces first; a single one that fails is passed over.
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

/// Owner, permissions and time, as far as they are known and may be set: the bytes are what counts, so nothing fails here.
fn finish(target: &File, meta: &fs::Metadata, inode: Option<&Inode>) {
    let mut modified = meta.modified().ok();
    let mut mode = 0o600;
    if let Some(inode) = inode {
        mode = mode_for(
            inode,
            fchown(target, Some(inode.uid), Some(inode.gid)).is_ok(),
        );
        // A file that was being written knows its time better than its row.
        if !inode.flags.has(Flags::WRITING) || !meta.is_file() {
            modified = Some(inode.mtime.into());
        }
    }
    let _ = target.set_permissions(Permissions::from_mode(mode));
    if let Some(modified) = modified {
        let _ = target.set_times(FileTimes::new().set_modified(modified));
    }
}

/// The bits that give somebody's rights away are kept only where the owner is right.
fn mode_for(inode: &Inode, owned: bool) -> u32 {
    match owned {
        true => inode.mode & 0o7777,
        false => inode.mode & 0o777,
    }
}

/// The same for a directory, once all is in it.
pub(super) fn finish_dir(path: &Path, inode: &Inode) {
    let Ok(dir) = File::open(path) else { return };
    let owned = fchown(&dir, Some(inode.uid), Some(inode.gid)).is_ok();
    let _ = dir.set_permissions(Permissions::from_mode(mode_for(inode, owned)));
    let _ = dir.set_times(FileTimes::new().set_modified(inode.mtime.into()));
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
        let copied = copy_file(&from, &to, None).unwrap();
        assert_eq!((copied.size, copied.unread), (16 << 20, 0));
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        let error = copy_file(&from, &to, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}
