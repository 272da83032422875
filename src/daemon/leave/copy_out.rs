//! Copies local files out of a cache that is about to go.

use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::cache::{Store, private};
use crate::control::protocol::Amount;
use crate::core::{Failure, FileKind, ForeignText, Ino, ObjectId, RelPath};
use crate::index::{Flags, Index, Inode, Snapshot};
use crate::sys;

/// What is only in the cache, because it stays local.
#[derive(Clone, Debug)]
pub(in crate::daemon) struct LocalFile {
    /// Its path in the mount.
    pub(in crate::daemon) path: RelPath,
    inode: Inode,
}

impl LocalFile {
    pub(in crate::daemon) fn is_dir(&self) -> bool {
        self.inode.is_dir()
    }

    fn object(&self) -> Option<ObjectId> {
        self.inode.object
    }
}

/// Returns the files and links that stay local, each directory before what is in it. Pipes, sockets
/// and devices have nothing to copy.
pub(in crate::daemon) fn local_files(
    snapshot: &Snapshot,
) -> Result<Vec<LocalFile>, crate::index::IndexError> {
    let mut found = Vec::new();
    let root = (Ino::ROOT, RelPath::root());
    let mut names = Vec::new();
    snapshot.walk(root, (), &mut |name, path, _, ()| {
        if name.flags.has(Flags::LOCAL) {
            names.push((name.ino, path.clone()));
        }
        Some(())
    })?;
    for (ino, path) in names {
        let inode = snapshot.inode(ino)?;
        let kinds = [FileKind::Regular, FileKind::Directory, FileKind::Symlink];
        // What the drive still has, under its old name, stays there.
        let is_here = |it: &Inode| it.object.is_some() || !it.flags.has(Flags::ON_BACKEND);
        let inode = inode.filter(|it| it.kind() != FileKind::Regular || is_here(it));
        if let Some(inode) = inode.filter(|inode| kinds.contains(&inode.kind())) {
            found.push(LocalFile { path, inode });
        }
    }
    Ok(found)
}

/// Returns how many files and links there are, with their bytes.
pub(in crate::daemon) fn amount(files: &[LocalFile]) -> Amount {
    let mut amount = Amount::default();
    for file in files.iter().filter(|file| !file.inode.is_dir()) {
        amount.add(match file.inode.kind() {
            FileKind::Regular => file.inode.size,
            _ => 0,
        });
    }
    amount
}

/// Copies all local files into the new or empty directory `to`, durably, and compares the copies.
///
/// # Errors
/// If there are some and no directory is named, or one cannot be copied.
pub(super) fn copy_out(
    cache: &Path,
    index: &Index,
    to: Option<&Path>,
    say: &mut dyn FnMut(&str),
) -> Result<(), Failure> {
    let files = index.snapshot().and_then(|snapshot| local_files(&snapshot));
    let files = files.map_err(|error| Failure::failed(error.to_string()))?;
    let all = amount(&files);
    if all.files == 0 {
        return Ok(());
    }
    let Some(to) = to else {
        return Err(Failure::failed(format!(
            "not left: {} files are only in the cache",
            all.files
        ))
        .hint("nothing was removed; say where they are to go: --local-to DIR"));
    };
    let failed = |path: &Path, error: &io::Error| {
        Failure::failed(format!("cannot copy {}: {error}", path.escaped()))
            .hint("nothing was removed; empty the directory, or name another, and try again")
    };
    prepare(cache, to).map_err(|error| failed(to, &error))?;
    let store = Store::open(cache).map_err(|error| Failure::failed(error.to_string()))?;
    let mut dirs = Vec::new();
    for file in &files {
        let target = to.join(file.path.as_os_str());
        copy_one(&store, file, &target).map_err(|error| failed(&target, &error))?;
        if file.inode.is_dir() {
            dirs.push((file, target));
        }
    }
    // Contents change the time of a directory.
    for (file, target) in dirs.iter().rev() {
        finish(
            &File::open(target).map_err(|error| failed(target, &error))?,
            &file.inode,
        );
    }
    let synced = File::open(to).and_then(sys::file::sync_file_system);
    synced.map_err(|error| failed(to, &error))?;
    say(&format!(
        "copied {} local files to {}",
        all.files,
        to.escaped()
    ));
    Ok(())
}

fn prepare(cache: &Path, to: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    let (to, cache) = (fs::canonicalize(to)?, fs::canonicalize(cache)?);
    if to.starts_with(cache) {
        return Err(io::Error::other("it is in the cache, which is removed"));
    }
    match fs::read_dir(&to)?.next() {
        Some(_) => Err(io::Error::other("it is not empty")),
        None => Ok(()),
    }
}

fn copy_one(store: &Store, file: &LocalFile, target: &Path) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    match file.inode.kind() {
        FileKind::Directory => DirBuilder::new().recursive(true).mode(0o700).create(target),
        FileKind::Symlink => {
            let link = file.inode.target.as_deref().unwrap_or_default();
            symlink(PathBuf::from(bytes_as_path(link)), target)
        }
        _ => copy_file(store, file, target),
    }
}

fn bytes_as_path(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

fn copy_file(store: &Store, file: &LocalFile, target: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true).mode(0o600);
    let mut copy = options.open(target)?;
    match file.object() {
        Some(object) => {
            if store.damage(object).is_some() {
                return Err(io::Error::other("the SSD has failed to store a part of it"));
            }
            let mut source = private::own().read(true).open(store.path(object))?;
            let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 20]);
            loop {
                let got = source.read(&mut buffer)?;
                if got == 0 {
                    break;
                }
                hasher.update(&buffer[..got]);
                io::Write::write_all(&mut copy, &buffer[..got])?;
            }
            copy.sync_all()?;
            io::Seek::rewind(&mut copy)?;
            let mut again = blake3::Hasher::new();
            again.update_reader(&copy)?;
            if again.finalize() != hasher.finalize() {
                return Err(io::Error::other("the copy has other bytes"));
            }
        }
        None if file.inode.size == 0 => {}
        None => return Err(io::Error::other("the cache does not have its bytes")),
    }
    if copy.metadata()?.len() != file.inode.size {
        return Err(io::Error::other("it has another size than it should have"));
    }
    finish(&copy, &file.inode);
    copy.sync_all()
}

/// Sets permissions and time; the bytes are what counts.
fn finish(copy: &File, inode: &Inode) {
    let _ = copy.set_permissions(Permissions::from_mode(inode.mode & 0o777));
    let _ = copy.set_times(FileTimes::new().set_modified(inode.mtime.into()));
}
