//! A directory of a mounted file system as a backend.
//!
//! State: the identity of the root directory (see [`crate::drive::root`]). No descriptor stays open
//! between calls, so that the drive can be ejected at any time; only a [`ReadFile`] or
//! [`WriteFile`] holds one, its own, and a phase of a batch two ([`crate::drive::kept`]).
//!
//! Invariant: no call touches any other directory (P6). Every call outside a phase opens the root
//! again and identifies it by its mount, its device and its inode number. A drive that was removed
//! leaves its mount point behind, an empty directory on the root disk: the call then fails with
//! ENOMEDIUM and has touched nothing. After this check the call works beneath the checked
//! descriptor, so a drive that disappears in between cannot redirect it. A missing root is a
//! missing medium too, never a missing file: ENOENT means that the file is gone from a drive that
//! is present. The numbers alone do not distinguish two drives that use one device node in turn;
//! the volume's marker does.
//!
//! No call follows a symbolic link below the root (see [`crate::sys::path`]). Links in the path of
//! the root itself are followed once, when it is attached.
//!
//! Lock order: the sync lock of [`Unsynced`] comes before its other locks.

mod alive;
mod files;
mod metadata;
mod remount;
mod sync;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, mkdirat, mknodat,
};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use crate::core::{Entry, FileKind, Metadata, Name, RelPath, Space, Timestamp, Xattrs};
use crate::drive::inner_mounts::InnerMounts;
use crate::drive::kept::{Kept, KeptOpen, OpenDir};
use crate::drive::mounted::files::{
    MountedReader, MountedWriter, UncachedReader, open_regular_at, open_to_modify_at,
};
use crate::drive::mounted::metadata::{
    holder, judge, metadata_at, metadata_from, metadata_with_target,
};
use crate::drive::root::Root;
use crate::drive::unsynced::Unsynced;
use crate::drive::{
    Access, Backend, BackendError, Look, ModifyFile, ReadFile, Result, SYNC, WriteFile,
};
use crate::format::layout;
use crate::plan::representable;
use crate::plan::trust::{Ownership, Trust};
use crate::sys;

/// Permission bits of new files, less the umask.
const FILE_PERMISSIONS: u32 = 0o644;
/// Permission bits of new directories, less the umask.
const DIR_PERMISSIONS: u32 = 0o755;
/// The most attempts to read a directory whose names disappear meanwhile.
const LISTING_ATTEMPTS: usize = 4;
/// The largest alignment that O_DIRECT needs for addresses and lengths.
const DIRECT_ALIGNMENT: usize = 4096;

/// Whether this process changes nothing on any drive. For the whole process, so that no way of
/// opening a directory can miss it.
static CHANGES_NOTHING: AtomicBool = AtomicBool::new(false);

/// Makes every change that this process tries on a mounted directory fail with `EROFS` from here
/// on, as if the file system were mounted read-only.
pub fn forbid_changes() {
    CHANGES_NOTHING.store(true, Ordering::Release);
}

/// A directory of a mounted file system.
#[derive(Clone, Debug)]
pub struct MountedDir {
    root: Root,
    /// Whether its device was a block device known to the kernel when it was opened.
    on_block_device: bool,
    /// The changes that one `syncfs` of the root would miss. All clones share it.
    unsynced: Arc<Unsynced>,
    /// The allocation unit, once it is known.
    unit: OnceLock<u64>,
    /// Whether its renames are atomic across a crash, once that is known.
    is_journaled: OnceLock<bool>,
    /// What is, or was, mounted inside. Shared by all clones.
    inner: Arc<InnerMounts>,
    /// The descriptors of a phase under way. Shared by all clones.
    kept: Arc<Kept>,
    /// Its file system has no call that moves to a new name only. Shared by all clones.
    has_no_flags: Arc<AtomicBool>,
}

impl MountedDir {
    /// Opens the directory `root` as it is now: the file system that is mounted there must stay.
    ///
    /// # Errors
    /// ENOMEDIUM if there is no such directory. A [`crate::sys::way::Exposed`] if this is root, and
    /// another user can redirect the path. Else what the system said.
    pub fn open(root: &Path) -> Result<MountedDir> {
        let found = Root::find(root);
        let root = found.map_err(|source| BackendError::new("open", &RelPath::root(), source))?;
        Ok(MountedDir {
            on_block_device: sys::superblock::device_exists(root.device()),
            unsynced: Arc::new(Unsynced::new(root.device())),
            root,
            unit: OnceLock::new(),
            is_journaled: OnceLock::new(),
            inner: Arc::default(),
            kept: Arc::default(),
            has_no_flags: Arc::default(),
        })
    }

    /// Returns a backend for the directory `root` while nothing is there: every call fails with
    /// ENOMEDIUM, even if something appears there later.
    pub fn absent(root: &Path) -> MountedDir {
        MountedDir {
            root: Root::absent(root),
            on_block_device: false,
            unsynced: Arc::new(Unsynced::new(u64::MAX)),
            unit: OnceLock::new(),
            is_journaled: OnceLock::new(),
            inner: Arc::default(),
            kept: Arc::default(),
            has_no_flags: Arc::default(),
        }
    }

    /// Returns the path of the root, absolute.
    pub fn root_path(&self) -> &Path {
        self.root.path()
    }

    /// The same without links, as it was when it was opened.
    pub(crate) fn place_path(&self) -> &Path {
        self.root.place()
    }

    /// Sets the mount points that are `known` inside the directory, and those of them whose file
    /// systems write later than they say; see [`crate::drive::inner_mounts`].
    pub(crate) fn set_inner_mounts(&self, known: Vec<RelPath>, writes_later: Vec<RelPath>) {
        self.inner.set(known, writes_later);
    }

    fn check_use(&self, operation: &'static str, path: &RelPath) -> Result<()> {
        if self.inner.is_empty() {
            return Ok(());
        }
        let answer = || self.inner.check_use(self.root()?.as_fd(), path);
        named(operation, path, answer())
    }

    /// Called before every change.
    fn check_change(&self, operation: &'static str, path: &RelPath) -> Result<()> {
        if CHANGES_NOTHING.load(Ordering::Acquire) {
            return Err(BackendError::new(operation, path, Errno::EROFS.into()));
        }
        if self.inner.is_empty() {
            return Ok(());
        }
        let answer = || self.inner.check_change(self.root()?.as_fd(), path);
        named(operation, path, answer())
    }

    fn check_both(&self, operation: &'static str, one: &RelPath, other: &RelPath) -> Result<()> {
        self.check_change(operation, one)?;
        self.check_change(operation, other)
    }

    /// Converts "not found" for a directory that was, or held, a mount point.
    fn unless_unmounted(&self, path: &RelPath, error: BackendError) -> BackendError {
        match error.is_not_found() && self.inner.were_below(path) {
            true => BackendError::new("stat", path, Errno::ENOLINK.into()),
            false => error,
        }
    }

    /// Returns the `st_dev` of the file system.
    pub fn device(&self) -> u64 {
        self.root.device()
    }

    /// Opens the root, if it still is the directory that was found, or returns the one that a phase
    /// keeps. The descriptor serves to resolve names, not for reading.
    fn root(&self) -> io::Result<Arc<OpenDir>> {
        self.kept.root(|| self.root.hold().map(OpenDir::root))
    }

    /// Opens the directory that holds `path`, and returns it with the name there; `if_root` is the
    /// error for the root, which has no name.
    fn parent(&self, path: &RelPath, if_root: Errno) -> io::Result<(Arc<OpenDir>, Name)> {
        self.parent_in(&self.root()?, path)?.ok_or(if_root.into())
    }

    /// The same below `root`; `None` for the root.
    fn parent_in(
        &self,
        root: &Arc<OpenDir>,
        path: &RelPath,
    ) -> io::Result<Option<(Arc<OpenDir>, Name)>> {
        let Some((parent, name)) = path.split_last() else {
            return Ok(None);
        };
        let open = || sys::path::open_dir(root.as_fd(), &parent).map(OpenDir::below);
        Ok(Some((self.kept.staging(&parent, open)?, name)))
    }

    /// Opens the directory that holds `path`, and returns it with the name there; for the root, the
    /// root itself without a name.
    fn place(&self, path: &RelPath) -> io::Result<(Arc<OpenDir>, Option<Name>)> {
        let root = self.root()?;
        Ok(match self.parent_in(&root, path)? {
            Some((dir, name)) => (dir, Some(name)),
            None => (root, None),
        })
    }

    fn open_directory(&self, dir: &RelPath) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        sys::path::open_beneath(self.root()?.as_fd(), dir, flags, 0)
    }

    /// Makes one attempt at a listing; `None` if a name disappeared between its listing and its
    /// stat.
    fn list(&self, dir: &RelPath) -> io::Result<Option<Vec<Entry>>> {
        let dir = self.open_directory(dir)?;
        // A second descriptor, because the stream closes the one it gets.
        let stream = openat(
            &dir,
            ".",
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut entries = Vec::new();
        for bytes in sys::dir::read_names(stream)? {
            // A list that lacks a name would count as the whole directory.
            let name = Name::new(&bytes).map_err(|_| Errno::ENAMETOOLONG)?;
            crate::drive::supervised::sign_of_life();
            match metadata_at(&dir, &name) {
                Ok(meta) => entries.push(Entry { name, meta }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(entries))
    }

    fn open_regular(&self, path: &RelPath) -> io::Result<File> {
        let (dir, name) = self.parent(path, Errno::EISDIR)?;
        open_regular_at(&dir, &name)
    }

    /// Opens the directory that holds `path`, and returns it with the name there and the owners of
    /// all directories from the root to that one, as they were passed.
    fn way_to(&self, path: &RelPath) -> io::Result<(Arc<OpenDir>, Option<Name>, Vec<Ownership>)> {
        let mut at = self.root()?;
        let mut way = vec![holder(&fstat(&at)?)];
        let Some((dir, name)) = path.split_last() else {
            return Ok((at, None, way));
        };
        for component in dir.components() {
            let next = sys::path::open_next(at.as_fd(), component)?;
            at = Arc::new(OpenDir::below((next, false)));
            way.push(holder(&fstat(&at)?));
        }
        Ok((at, Some(name), way))
    }

    /// Moves or exchanges names. Each of the two directories is opened once.
    fn move_name(&self, from: &RelPath, to: &RelPath, how: Moving) -> io::Result<()> {
        self.kept.forget(from);
        self.kept.forget(to);
        let root = self.root()?;
        let parent = |path| self.parent_in(&root, path);
        let (from_dir, from_name) = parent(from)?.ok_or(Errno::EBUSY)?;
        let (to_dir, to_name) = parent(to)?.ok_or(Errno::EBUSY)?;
        let names = ((&*from_dir, &from_name), (&*to_dir, &to_name));
        match how {
            Moving::Over => move_over(names)?,
            Moving::ToNew => self.move_to_new(names)?,
            Moving::Exchanging => move_flagged(names, RenameFlags::RENAME_EXCHANGE)?,
        }
        match how {
            Moving::Exchanging => self.inner.note_exchanged(from, to),
            Moving::Over | Moving::ToNew => self.inner.note_moved(from, to),
        }
        self.unsynced.note_moved(from, to);
        self.note_name(&from_dir, from)?;
        self.note_name(&to_dir, to)
    }

    /// Moves to a name that does not exist. Where the file system has no such call, the name is
    /// looked for first.
    fn move_to_new(&self, names: TwoNames<'_>) -> io::Result<()> {
        let (_, (dir, name)) = names;
        // Other file systems may be mounted inside.
        let may_know = dir.is_on_root_mount;
        if !(may_know && self.has_no_flags.load(Ordering::Relaxed)) {
            match move_flagged(names, RenameFlags::RENAME_NOREPLACE) {
                Err(error) if is_unknown_flag(&error) => {}
                answer => return answer,
            }
        }
        match metadata_at(dir, name) {
            Ok(_) => return Err(Errno::EEXIST.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => move_over(names)?,
            Err(error) => return Err(error),
        }
        // The same error has other reasons, for which this call fails as well.
        self.has_no_flags.fetch_or(may_know, Ordering::Relaxed);
        Ok(())
    }
}

/// What becomes of the names of a rename.
#[derive(Clone, Copy)]
enum Moving {
    /// The second may exist, and is replaced.
    Over,
    /// The second must not exist.
    ToNew,
    /// Both exist.
    Exchanging,
}

/// Two names, each in its directory.
type TwoNames<'a> = ((&'a OpenDir, &'a Name), (&'a OpenDir, &'a Name));

fn move_over(((from_dir, from), (to_dir, to)): TwoNames<'_>) -> io::Result<()> {
    Ok(renameat(
        from_dir,
        from.as_os_str(),
        to_dir,
        to.as_os_str(),
    )?)
}

fn move_flagged(
    ((from_dir, from), (to_dir, to)): TwoNames<'_>,
    flags: RenameFlags,
) -> io::Result<()> {
    let (from, to) = (from.as_os_str(), to.as_os_str());
    Ok(renameat2(from_dir, from, to_dir, to, flags)?)
}

impl Backend for MountedDir {
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        self.check_use("read_dir", dir)?;
        for _ in 0..LISTING_ATTEMPTS {
            if let Some(entries) = named("read_dir", dir, self.list(dir))? {
                return Ok(entries);
            }
        }
        // A name that is listed but cannot be found is damage, or a directory that changes all the
        // time. It must not look like a deleted file, nor like a missing directory, as ENOENT
        // would.
        named("read_dir", dir, Err(Errno::EUCLEAN.into()))
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        self.check_use("stat", path)?;
        let answer = || match self.place(path)? {
            (dir, Some(name)) => metadata_at(&dir, &name),
            (root, None) => metadata_from(&fstat(&root)?),
        };
        named("stat", path, answer()).map_err(|error| self.unless_unmounted(path, error))
    }

    fn names_in(&self, dir: &RelPath) -> Result<Vec<Name>> {
        self.check_use("read_dir", dir)?;
        let answer = || {
            let names = sys::dir::read_names(self.open_directory(dir)?)?;
            // A list that lacks a name would count as the whole directory.
            let name = |bytes: &Vec<u8>| Name::new(bytes).map_err(|_| Errno::ENAMETOOLONG.into());
            names.iter().map(name).collect()
        };
        named("read_dir", dir, answer())
    }

    fn metadata_now(&self, path: &RelPath) -> Result<Metadata> {
        self.check_use("stat", path)?;
        let answer = || {
            let (dir, name) = self.place(path)?;
            let stat = sys::file::stat_now(&dir, name.as_ref().map(Name::as_os_str))?;
            metadata_with_target(&dir, name.as_ref(), &stat)
        };
        named("stat", path, answer()).map_err(|error| self.unless_unmounted(path, error))
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.check_use("open", path)?;
        let file = named("open", path, self.open_regular(path))?;
        Ok(Box::new(MountedReader::new(file)))
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.check_use("open", path)?;
        let file = named("open", path, self.open_regular(path))?;
        Ok(Box::new(UncachedReader::new(file)))
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        self.check_use("open", path)?;
        let answer = || {
            let (dir, name, mut way) = self.way_to(path)?;
            let name = name.ok_or(Errno::EISDIR)?;
            let file = open_regular_at(&dir, &name)?;
            way.push(holder(&fstat(&file)?));
            Ok((file, judge(&way)))
        };
        let (file, trust) = named("open", path, answer())?;
        Ok((Box::new(MountedReader::new(file)), trust))
    }

    fn trust(&self, path: &RelPath) -> Result<Trust> {
        self.check_use("stat", path)?;
        let answer = || {
            let (dir, name, mut way) = self.way_to(path)?;
            if let Some(name) = name {
                let flag = AtFlags::AT_SYMLINK_NOFOLLOW;
                way.push(holder(&fstatat(&dir, name.as_os_str(), flag)?));
            }
            Ok(judge(&way))
        };
        named("stat", path, answer())
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        self.check_change("create", path)?;
        let answer = || -> io::Result<MountedWriter> {
            let (dir, name) = self.parent(path, Errno::EEXIST)?;
            let flags = OFlag::O_CREAT
                | OFlag::O_EXCL
                | OFlag::O_WRONLY
                | OFlag::O_NOFOLLOW
                | OFlag::O_CLOEXEC;
            let mode = Mode::from_bits_truncate(FILE_PERMISSIONS);
            let file = openat(&dir, name.as_os_str(), flags, mode)?.into();
            let sync_at_end = self.note_new(&dir, path)?;
            Ok(MountedWriter::new(file, sync_at_end))
        };
        Ok(Box::new(named("create", path, answer())?))
    }

    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>> {
        self.check_change("open", path)?;
        let answer = || -> io::Result<MountedWriter> {
            let (dir, name) = self.parent(path, Errno::EISDIR)?;
            let file = open_to_modify_at(&dir, &name)?;
            // The name stays, but its time and size may be kept in its directory.
            let sync_at_end = self.note_new(&dir, path)?;
            Ok(MountedWriter::new(file, sync_at_end))
        };
        Ok(Box::new(named("open", path, answer())?))
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.check_change("mkdir", path)?;
        let answer = || -> io::Result<()> {
            let (dir, name) = self.parent(path, Errno::EEXIST)?;
            let mode = Mode::from_bits_truncate(DIR_PERMISSIONS);
            mkdirat(&dir, name.as_os_str(), mode)?;
            self.note_name(&dir, path)
        };
        named("mkdir", path, answer())
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.check_both("rename", from, to)?;
        named("rename", from, self.move_name(from, to, Moving::Over))
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.check_both("rename", from, to)?;
        named("rename", from, self.move_name(from, to, Moving::ToNew))
    }

    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        self.check_both("exchange", one, other)?;
        match self.move_name(one, other, Moving::Exchanging) {
            Ok(()) => Ok(true),
            Err(error) if is_unknown_flag(&error) => Ok(false),
            Err(error) => named("exchange", one, Err(error)),
        }
    }

    fn check_changeable(&self, dir: &RelPath) -> Result<()> {
        self.check_change("change", dir)?;
        let answer = || {
            let opened = sys::path::open_beneath(
                self.root()?.as_fd(),
                dir,
                OFlag::O_PATH | OFlag::O_DIRECTORY,
                0,
            )?;
            sys::changeable::check_dir(&opened)
        };
        named("change", dir, answer())
    }

    fn check_replaceable(&self, path: &RelPath) -> Result<()> {
        self.check_change("replace", path)?;
        let answer = || {
            let (dir, name) = self.parent(path, Errno::EBUSY)?;
            sys::changeable::check_name(&dir, name.as_os_str())
        };
        named("replace", path, answer())
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        self.check_change("remove", path)?;
        let answer = || -> io::Result<()> {
            let (dir, name) = self.parent(path, Errno::EISDIR)?;
            unlinkat(&dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
            self.unsynced.note_gone(path);
            self.note_name(&dir, path)
        };
        named("remove", path, answer())
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        self.check_change("rmdir", path)?;
        let answer = || -> io::Result<()> {
            self.kept.forget(path);
            let (dir, name) = self.parent(path, Errno::EBUSY)?;
            unlinkat(&dir, name.as_os_str(), UnlinkatFlags::RemoveDir)?;
            self.unsynced.note_gone(path);
            self.note_name(&dir, path)
        };
        named("rmdir", path, answer())
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        self.check_change("set time of", path)?;
        let answer = || {
            let (dir, name) = self.place(path)?;
            sys::time::set_modified_at(&dir, name.as_ref(), modified)?;
            self.note(&dir, &[path])
        };
        named("set time of", path, answer())
    }

    /// As the trait says. The kernel reports an error only once (see
    /// [`sys::file::sync_file_system`]): if another program's `syncfs` came first, that program got
    /// it. Important contents are therefore read back as well.
    fn remount(&self, access: Access) -> Result<bool> {
        named("remount", &RelPath::root(), self.remount_as(access))
    }

    fn sync(&self) -> Result<()> {
        named(SYNC, &RelPath::root(), self.sync_all())
    }

    fn keep_open(&self) -> KeptOpen {
        self.kept.begin()
    }

    fn renames_atomically(&self) -> bool {
        // What file system it is stays the same: the root is this one directory or none.
        if let Some(is_atomic) = self.is_journaled.get() {
            return *is_atomic;
        }
        self.root().is_ok_and(|root| {
            *self
                .is_journaled
                .get_or_init(|| sys::file::is_journaled(root))
        })
    }

    /// As the trait says. FUSE file systems without a block device may be pools of several.
    fn links_may_be_copies(&self) -> bool {
        let is_pool = || self.root().and_then(|root| self.unsynced.is_each(&root));
        !self.inner.is_empty() || is_pool().unwrap_or(true)
    }

    fn space(&self) -> Result<Space> {
        let answer = || {
            let root = self.root()?;
            let unit = self.unit(&root)?;
            Ok(Space {
                unit,
                ..sys::file::space(&root)?
            })
        };
        named("statfs", &RelPath::root(), answer())
    }

    fn check_alive(&self, look: Look) -> Result<()> {
        let marker = layout::marker_path();
        named("look for", &marker, self.glance())?;
        self.metadata(&marker)?;
        match look {
            Look::Glance => Ok(()),
            Look::Read => named("read", &marker, self.read_marker_from_medium()),
        }
    }

    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        self.check_change("symlink", path)?;
        let answer = || -> io::Result<()> {
            let (dir, name) = self.parent(path, Errno::EEXIST)?;
            symlinkat(target, &dir, name.as_os_str())?;
            self.note_name(&dir, path)
        };
        named("symlink", path, answer())
    }

    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.check_both("link", from, to)?;
        let answer = || -> io::Result<()> {
            let root = self.root()?;
            let parent = |path| self.parent_in(&root, path);
            let (from_dir, from_name) = parent(from)?.ok_or(Errno::EPERM)?;
            let (to_dir, to_name) = parent(to)?.ok_or(Errno::EEXIST)?;
            let (from_name, to_name) = (from_name.as_os_str(), to_name.as_os_str());
            // Without AT_SYMLINK_FOLLOW the link itself gets the further name.
            linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty())?;
            self.note_name(&to_dir, to)
        };
        named("link", to, answer())
    }

    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        self.check_change("set permissions of", path)?;
        let answer = || -> io::Result<()> {
            let mode = Mode::from_bits_truncate(mode & 0o7777);
            let (dir, name) = self.parent(path, Errno::EPERM)?;
            let flag = FchmodatFlags::NoFollowSymlink;
            fchmodat(&dir, name.as_os_str(), mode, flag)?;
            self.note(&dir, &[path])
        };
        // The root has no name; a descriptor of it serves as well.
        let root = || -> io::Result<()> {
            let root = OpenDir::root(self.open_directory(&RelPath::root())?);
            fchmod(&root, Mode::from_bits_truncate(mode & 0o7777))?;
            self.note(&root, &[path])
        };
        let answer = if path.is_root() { root() } else { answer() };
        named("set permissions of", path, answer)
    }

    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        self.check_change("mknod", path)?;
        let answer = || -> io::Result<()> {
            let (dir, name) = self.parent(path, Errno::EEXIST)?;
            let kind = match kind {
                FileKind::Fifo => SFlag::S_IFIFO,
                FileKind::Socket => SFlag::S_IFSOCK,
                FileKind::CharDevice => SFlag::S_IFCHR,
                FileKind::BlockDevice => SFlag::S_IFBLK,
                _ => return Err(Errno::EINVAL.into()),
            };
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            mknodat(&dir, name.as_os_str(), kind, mode, rdev.into())?;
            self.note_name(&dir, path)
        };
        named("mknod", path, answer())
    }

    fn set_owner(&self, path: &RelPath, owner: Option<u32>, group: Option<u32>) -> Result<()> {
        self.check_change("set owner of", path)?;
        let answer = || -> io::Result<()> {
            let (owner, group) = (owner.map(Uid::from_raw), group.map(Gid::from_raw));
            let (dir, name) = self.place(path)?;
            let name = name.as_ref().map_or(".".as_ref(), Name::as_os_str);
            let flag = AtFlags::AT_SYMLINK_NOFOLLOW;
            fchownat(&dir, name, owner, group, flag)?;
            self.note(&dir, &[path])
        };
        named("set owner of", path, answer())
    }

    fn xattrs(&self, path: &RelPath) -> Result<Xattrs> {
        self.check_use("read attributes of", path)?;
        let answer = || {
            let (dir, name) = self.place(path)?;
            let mut xattrs = Xattrs::new();
            for name_of in sys::xattr::list_at(&dir, name.as_ref())? {
                if representable::is_carried(&name_of)
                    && let Some(value) = sys::xattr::get_at(&dir, name.as_ref(), &name_of)?
                {
                    xattrs.insert(name_of.into(), value.into());
                }
            }
            Ok(xattrs)
        };
        named("read attributes of", path, answer())
    }

    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        self.check_change("set attributes of", path)?;
        let answer = || {
            let (dir, name) = self.place(path)?;
            let there = sys::xattr::list_at(&dir, name.as_ref())?;
            for old in there.iter().filter(|old| representable::is_carried(old)) {
                if !xattrs.contains_key(old.as_slice()) {
                    sys::xattr::remove_at(&dir, name.as_ref(), old)?;
                }
            }
            for (key, value) in xattrs {
                sys::xattr::set_at(&dir, name.as_ref(), key, value)?;
            }
            self.note(&dir, &[path])
        };
        named("set attributes of", path, answer())
    }
}

fn named<T>(operation: &'static str, path: &RelPath, answer: io::Result<T>) -> Result<T> {
    answer.map_err(|source| BackendError::new(operation, path, source))
}

/// Returns whether the file system does not know a flag of renameat2(2). A move of a directory into
/// itself also gives EINVAL; the plain call, which follows, then reports it.
fn is_unknown_flag(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTTY)
    )
}

#[cfg(test)]
mod tests;
