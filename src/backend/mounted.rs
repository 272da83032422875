//! A directory of a mounted file system as a backend.
//!
//! State: which directory the root is (see [`super::root`]). No descriptor is held between calls, so that the drive can be
//! ejected at any time; only a [`ReadFile`] or [`WriteFile`] holds one, its own.
//!
//! Every call opens the root anew and recognizes it by its mount, its device and its number. A drive that went away leaves its
//! mount point behind, an empty directory on the root disk: the call then fails with ENOMEDIUM and has touched nothing (P6).
//! From there on the call works beneath the descriptor that was compared, so a drive that goes away in between cannot
//! redirect it. A root that is not there at all is a missing medium too, never a missing file: ENOENT means that the
//! file is gone from a drive that is present. The numbers alone do not tell two drives apart that use one node in turn;
//! that is what the volume's marker is for.
//!
//! No symbolic link below the root is followed (see [`crate::sys::path`]). Links in the path of the root itself are followed
//! once, when it is attached.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, readlinkat, renameat, renameat2};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, mkdirat, mknodat,
};
use nix::unistd::{self, Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use super::root::{Root, no_medium};
use super::unsynced::{self, Unsynced};
use super::{
    Backend, BackendError, Entry, Look, Metadata, ReadFile, Result, Space, WriteFile, Xattrs,
};
use crate::base::{FileKind, Name, RelPath, Timestamp};
use crate::rules::trust::{Holder, Trust};
use crate::rules::{given, layout};
use crate::sys;
use crate::sys::direct::DirectFile;

/// Permission bits of new files, less the umask.
const FILE_PERMISSIONS: u32 = 0o644;
/// Permission bits of new directories, less the umask.
const DIR_PERMISSIONS: u32 = 0o755;
/// How often a directory is read again when names vanish while it is being read.
const LISTING_ATTEMPTS: usize = 4;
/// What O_DIRECT wants addresses and lengths to be multiples of, at most.
const DIRECT_ALIGNMENT: usize = 4096;

/// A directory of a mounted file system.
#[derive(Clone, Debug)]
pub struct MountedDir {
    root: Root,
    /// Whether its device was a block device that the kernel knew when it was opened.
    on_block_device: bool,
    /// What one `syncfs` of the root would miss. Shared by all clones.
    unsynced: Arc<Unsynced>,
    /// In which pieces space is allocated, once it has been found out.
    unit: OnceLock<u64>,
}

impl MountedDir {
    /// Takes the directory `root` as it is now: the file system that is mounted there must stay.
    ///
    /// # Errors
    /// ENOMEDIUM if there is no such directory. A [`crate::sys::way::Exposed`] if this is root, and another user can make the path
    /// lead elsewhere. Else what the system said.
    pub fn open(root: &Path) -> Result<MountedDir> {
        let found = Root::find(root);
        let root = found.map_err(|source| BackendError::new("open", &RelPath::root(), source))?;
        Ok(MountedDir {
            on_block_device: sys::superblock::device_exists(root.device()),
            unsynced: Arc::new(Unsynced::new(root.device())),
            root,
            unit: OnceLock::new(),
        })
    }

    /// The directory `root` while nothing is there: every call answers ENOMEDIUM, whatever appears there later.
    pub fn absent(root: &Path) -> MountedDir {
        MountedDir {
            root: Root::absent(root),
            on_block_device: false,
            unsynced: Arc::new(Unsynced::new(u64::MAX)),
            unit: OnceLock::new(),
        }
    }

    /// The path of the root, absolute.
    pub fn root_path(&self) -> &Path {
        self.root.path()
    }

    /// `st_dev` of the file system.
    pub fn device(&self) -> u64 {
        self.root.device()
    }

    /// The root, if it still is the directory that was opened. Good for resolving names, not for reading.
    fn root(&self) -> io::Result<OwnedFd> {
        self.root.hold()
    }

    /// The directory that holds `path`, and its name there; `if_root` is the error for the root, which has no name.
    fn parent(&self, path: &RelPath, if_root: Errno) -> io::Result<(OwnedFd, Name)> {
        sys::path::open_parent(self.root()?.as_fd(), path)?.ok_or(if_root.into())
    }

    /// The directory that holds `path`, and its name there; the root itself and no name for the root.
    fn place(&self, path: &RelPath) -> io::Result<(OwnedFd, Option<Name>)> {
        let root = self.root()?;
        Ok(match sys::path::open_parent(root.as_fd(), path)? {
            Some((dir, name)) => (dir, Some(name)),
            None => (root, None),
        })
    }

    fn open_directory(&self, dir: &RelPath) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        sys::path::open_beneath(self.root()?.as_fd(), dir, flags, 0)
    }

    /// One attempt at a listing; `None` if a name vanished between being read and being looked at.
    fn list(&self, dir: &RelPath) -> io::Result<Option<Vec<Entry>>> {
        let dir = self.open_directory(dir)?;
        // A second descriptor, because the stream takes the first one with it.
        let stream = openat(
            &dir,
            ".",
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut entries = Vec::new();
        for bytes in sys::dir::read_names(stream)? {
            // A list without a name would pass for the whole directory.
            let name = Name::new(&bytes).map_err(|_| Errno::ENAMETOOLONG)?;
            super::guard::sign_of_life();
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

    /// The directory that holds `path`, its name there, and who holds each directory from the root to that one, as they were met.
    fn way_to(&self, path: &RelPath) -> io::Result<(OwnedFd, Option<Name>, Vec<Holder>)> {
        let mut at = self.root()?;
        let mut way = vec![holder(&fstat(&at)?)];
        let Some((dir, name)) = path.split_last() else {
            return Ok((at, None, way));
        };
        for component in dir.components() {
            at = sys::path::open_next(at.as_fd(), component)?;
            way.push(holder(&fstat(&at)?));
        }
        Ok((at, Some(name), way))
    }

    /// What the system tells of the medium without asking it. None of it proves that it is there; each shows that it is not.
    fn glance(&self) -> io::Result<()> {
        let root = self.root()?;
        if self.on_block_device && !sys::superblock::device_exists(self.device()) {
            return Err(Errno::ENODEV.into());
        }
        // A FUSE file system must be asked for this; one whose process is gone says so.
        sys::file::space(root)?;
        Ok(())
    }

    /// In which pieces space is allocated. The marker, a small file, shows it where `statfs` does not.
    fn unit(&self, root: &OwnedFd) -> io::Result<u64> {
        if let Some(unit) = self.unit.get() {
            return Ok(*unit);
        }
        let fragment = sys::file::fragment_size(root)?;
        let Some((dir, name)) = sys::path::open_parent(root.as_fd(), &layout::marker_path())
            .ok()
            .flatten()
        else {
            return Ok(allocation_unit(fragment, 0, 0));
        };
        Ok(
            match fstatat(&dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(small) => {
                    let size = u64::try_from(small.st_size).unwrap_or(0);
                    let taken = u64::try_from(small.st_blocks)
                        .unwrap_or(0)
                        .saturating_mul(512);
                    *(self.unit).get_or_init(|| allocation_unit(fragment, size, taken))
                }
                Err(_) => allocation_unit(fragment, 0, 0),
            },
        )
    }

    /// Reads the marker from the medium: around the page cache where the file system can, else after dropping it from there.
    fn read_marker_from_medium(&self) -> io::Result<()> {
        let mut buffer = vec![0; 2 * DIRECT_ALIGNMENT];
        let start = buffer.as_ptr().align_offset(DIRECT_ALIGNMENT);
        let buffer = &mut buffer[start..start + DIRECT_ALIGNMENT];
        let open = |flags| {
            let path = layout::marker_path();
            let root = self.root()?;
            sys::path::open_beneath(root.as_fd(), &path, flags, 0).map(File::from)
        };
        let direct = open(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_DIRECT)
            .and_then(|file| file.read_at(buffer, 0));
        let read = match direct {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
            {
                let file = open(OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
                // Only a hint; where it is not taken, the read is worth no less than before.
                let _ = sys::file::advise(&file, 0, 0, sys::file::Advice::DontNeed);
                file.read_at(buffer, 0)?
            }
            answer => answer?,
        };
        match read {
            // A marker is never empty: this is not the file it was.
            0 => Err(no_medium()),
            _ => Ok(()),
        }
    }

    fn rename_flagged(&self, from: &RelPath, to: &RelPath, flags: RenameFlags) -> io::Result<()> {
        let root = self.root()?;
        let parent = |path| sys::path::open_parent(root.as_fd(), path);
        let (from_dir, from_name) = parent(from)?.ok_or(Errno::EBUSY)?;
        let (to_dir, to_name) = parent(to)?.ok_or(Errno::EBUSY)?;
        let (from_name, to_name) = (from_name.as_os_str(), to_name.as_os_str());
        renameat2(&from_dir, from_name, &to_dir, to_name, flags)?;
        self.unsynced.note_moved(from, to);
        self.note_name(&from_dir, from)?;
        self.note_name(&to_dir, to)
    }

    fn sync_all(&self) -> io::Result<()> {
        let _one_at_a_time = self.unsynced.one_at_a_time();
        self.sync_unsynced()?;
        unsynced::sync_whole(self.open_directory(&RelPath::root())?)
    }

    /// Syncs what one `syncfs` of the root would miss. The caller sees to it that nobody else does meanwhile.
    fn sync_unsynced(&self) -> io::Result<()> {
        let mut pending = self.unsynced.take();
        let result = self.root().and_then(|root| pending.sync(root.as_fd()));
        self.unsynced.put_back(pending);
        result
    }

    /// Notes that the entries or the attributes of what stands at `paths` have changed, in or at `dir`.
    fn note(&self, dir: &OwnedFd, paths: &[&RelPath]) -> io::Result<()> {
        if self.unsynced.note(dir, paths)? {
            let _one_at_a_time = self.unsynced.one_at_a_time();
            self.sync_unsynced()?;
        }
        Ok(())
    }

    /// Notes that a name has come or gone at `path`, which is in `dir`.
    fn note_name(&self, dir: &OwnedFd, path: &RelPath) -> io::Result<()> {
        let parent = path.split_last().map(|(parent, _)| parent);
        self.note(dir, &[&parent.unwrap_or_else(RelPath::root)])
    }
}

impl Backend for MountedDir {
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        for _ in 0..LISTING_ATTEMPTS {
            if let Some(entries) = named("read_dir", dir, self.list(dir))? {
                return Ok(entries);
            }
        }
        // A name that is listed but cannot be found is damage, or a directory that never rests. It must not pass for
        // a deleted file, nor for a missing directory, as ENOENT would.
        named("read_dir", dir, Err(Errno::EUCLEAN.into()))
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        let answer = || match sys::path::open_parent(self.root()?.as_fd(), path)? {
            Some((dir, name)) => metadata_at(&dir, &name),
            None => metadata_from(&fstat(self.root()?)?),
        };
        named("stat", path, answer())
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let file = named("open", path, self.open_regular(path))?;
        Ok(Box::new(MountedReader { file }))
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let file = named("open", path, self.open_regular(path))?;
        Ok(Box::new(UncachedReader(DirectFile::new(file))))
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        let answer = || {
            let (dir, name, mut way) = self.way_to(path)?;
            let name = name.ok_or(Errno::EISDIR)?;
            let file = open_regular_at(&dir, &name)?;
            way.push(holder(&fstat(&file)?));
            Ok((file, judge(&way)))
        };
        let (file, trust) = named("open", path, answer())?;
        Ok((Box::new(MountedReader { file }), trust))
    }

    fn trust(&self, path: &RelPath) -> Result<Trust> {
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
        let answer = || -> io::Result<MountedWriter> {
            let (dir, name) = self.parent(path, Errno::EEXIST)?;
            let flags = OFlag::O_CREAT
                | OFlag::O_EXCL
                | OFlag::O_WRONLY
                | OFlag::O_NOFOLLOW
                | OFlag::O_CLOEXEC;
            let mode = Mode::from_bits_truncate(FILE_PERMISSIONS);
            let file = openat(&dir, name.as_os_str(), flags, mode)?.into();
            self.note_name(&dir, path)?;
            let sync_at_end = self.unsynced.is_each(&dir)?;
            Ok(MountedWriter { file, sync_at_end })
        };
        Ok(Box::new(named("create", path, answer())?))
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        let answer = || -> io::Result<()> {
            let (dir, name) = self.parent(path, Errno::EEXIST)?;
            let mode = Mode::from_bits_truncate(DIR_PERMISSIONS);
            mkdirat(&dir, name.as_os_str(), mode)?;
            self.note_name(&dir, path)
        };
        named("mkdir", path, answer())
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let answer = || -> io::Result<()> {
            let root = self.root()?;
            let parent = |path| sys::path::open_parent(root.as_fd(), path);
            let (from_dir, from_name) = parent(from)?.ok_or(Errno::EBUSY)?;
            let (to_dir, to_name) = parent(to)?.ok_or(Errno::EBUSY)?;
            let (from_name, to_name) = (from_name.as_os_str(), to_name.as_os_str());
            renameat(&from_dir, from_name, &to_dir, to_name)?;
            self.unsynced.note_moved(from, to);
            self.note_name(&from_dir, from)?;
            self.note_name(&to_dir, to)
        };
        named("rename", from, answer())
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        match self.rename_flagged(from, to, RenameFlags::RENAME_NOREPLACE) {
            Err(error) if is_unknown_flag(&error) => {}
            answer => return named("rename", from, answer),
        }
        match self.metadata(to) {
            Ok(_) => named("rename", to, Err(Errno::EEXIST.into())),
            Err(error) if error.is_not_found() => self.rename(from, to),
            Err(error) => Err(error),
        }
    }

    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        match self.rename_flagged(one, other, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => Ok(true),
            Err(error) if is_unknown_flag(&error) => Ok(false),
            Err(error) => named("exchange", one, Err(error)),
        }
    }

    fn check_changeable(&self, dir: &RelPath) -> Result<()> {
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
        let answer = || {
            let (dir, name) = self.parent(path, Errno::EBUSY)?;
            sys::changeable::check_name(&dir, name.as_os_str())
        };
        named("replace", path, answer())
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        let answer = || -> io::Result<()> {
            let (dir, name) = self.parent(path, Errno::EISDIR)?;
            unlinkat(&dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
            self.unsynced.note_gone(path);
            self.note_name(&dir, path)
        };
        named("remove", path, answer())
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        let answer = || -> io::Result<()> {
            let (dir, name) = self.parent(path, Errno::EBUSY)?;
            unlinkat(&dir, name.as_os_str(), UnlinkatFlags::RemoveDir)?;
            self.unsynced.note_gone(path);
            self.note_name(&dir, path)
        };
        named("rmdir", path, answer())
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        let answer = || {
            let (dir, name) = self.place(path)?;
            sys::time::set_modified_at(&dir, name.as_ref(), modified)?;
            self.note(&dir, &[path])
        };
        named("set time of", path, answer())
    }

    /// As the trait says. An error is told once by the kernel (see [`sys::file::sync_file_system`]): if another program's
    /// `syncfs` came first, it is the one that was told. Contents that must not be lost are therefore read back as well.
    fn sync(&self) -> Result<()> {
        named("sync", &RelPath::root(), self.sync_all())
    }

    fn renames_atomically(&self) -> bool {
        self.root().is_ok_and(sys::file::is_journaled)
    }

    fn space(&self) -> Result<Space> {
        let answer = || {
            let root = self.root()?;
            let (total, available) = sys::file::space(&root)?;
            let unit = self.unit(&root)?;
            Ok(Space {
                total,
                available,
                unit,
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
        let answer = || -> io::Result<()> {
            let (dir, name) = self.parent(path, Errno::EEXIST)?;
            symlinkat(target, &dir, name.as_os_str())?;
            self.note_name(&dir, path)
        };
        named("symlink", path, answer())
    }

    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let answer = || -> io::Result<()> {
            let root = self.root()?;
            let parent = |path| sys::path::open_parent(root.as_fd(), path);
            let (from_dir, from_name) = parent(from)?.ok_or(Errno::EPERM)?;
            let (to_dir, to_name) = parent(to)?.ok_or(Errno::EEXIST)?;
            let (from_name, to_name) = (from_name.as_os_str(), to_name.as_os_str());
            // Without AT_SYMLINK_FOLLOW a link gets the further name itself.
            linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty())?;
            self.note_name(&to_dir, to)
        };
        named("link", to, answer())
    }

    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        let answer = || -> io::Result<()> {
            let mode = Mode::from_bits_truncate(mode & 0o7777);
            let (dir, name) = self.parent(path, Errno::EPERM)?;
            let flag = FchmodatFlags::NoFollowSymlink;
            fchmodat(&dir, name.as_os_str(), mode, flag)?;
            self.note(&dir, &[path])
        };
        // The root has no name; what it is opened as serves as well.
        let root = || -> io::Result<()> {
            let root = self.open_directory(&RelPath::root())?;
            fchmod(&root, Mode::from_bits_truncate(mode & 0o7777))?;
            self.note(&root, &[path])
        };
        let answer = if path.is_root() { root() } else { answer() };
        named("set permissions of", path, answer)
    }

    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
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
        let answer = || {
            let (dir, name) = self.place(path)?;
            let mut xattrs = Xattrs::new();
            for name_of in sys::xattr::list_at(&dir, name.as_ref())? {
                if given::is_carried(&name_of)
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
        let answer = || {
            let (dir, name) = self.place(path)?;
            let there = sys::xattr::list_at(&dir, name.as_ref())?;
            for old in there.iter().filter(|old| given::is_carried(old)) {
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

/// Larger pieces than this are believed only where a small file takes as much: network file systems report the size of their
/// transfers here.
const LARGEST_FRAGMENT: u64 = 256 << 10;

/// In which pieces space is allocated, from what `statfs` says and from what a small file takes: `taken` bytes for `size`.
fn allocation_unit(fragment: u64, size: u64, taken: u64) -> u64 {
    const USUAL: u64 = 4096;
    // File systems that do not know count the size in whole sectors.
    if taken > size.next_multiple_of(512) {
        return taken;
    }
    match fragment {
        512..=LARGEST_FRAGMENT => fragment,
        _ => USUAL,
    }
}

/// A file that is open for reading; holds one descriptor.
struct MountedReader {
    file: File,
}

impl ReadFile for MountedReader {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self
                .file
                .read_at(&mut buf[filled..], offset.saturating_add(filled as u64))
            {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        metadata_from(&fstat(&self.file)?)
    }
}

/// A file that is read past the page cache; holds one descriptor.
struct UncachedReader(DirectFile);

impl ReadFile for UncachedReader {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        metadata_from(&fstat(self.0.file())?)
    }
}

/// A file that is being written; holds one descriptor. Dropping it unfinished closes it and leaves what was written.
struct MountedWriter {
    file: File,
    /// Nothing that comes later reaches its bytes: see [`super::unsynced`].
    sync_at_end: bool,
}

impl WriteFile for MountedWriter {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all(data)
    }

    /// As the trait says. Where the file system does not let us choose a time (EPERM on shares that map owners, EOPNOTSUPP
    /// and ENOSYS on those that have no such call) the file keeps its own: its bytes are whole, and `time_granularity_ns`
    /// says that times are not to be trusted there. Any other error is one.
    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let timed = match sys::time::set_modified_fd(&self.file, modified) {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
            {
                Ok(())
            }
            answer => answer,
        };
        let synced = match self.sync_at_end {
            true => sys::file::sync_all(&self.file),
            false => Ok(()),
        };
        // NFS and FUSE tell of failed writes here. EINTR is an error too: nobody knows then how the flush ended.
        unistd::close(OwnedFd::from(self.file))?;
        synced.and(timed)
    }
}

fn named<T>(operation: &'static str, path: &RelPath, answer: io::Result<T>) -> Result<T> {
    answer.map_err(|source| BackendError::new(operation, path, source))
}

/// Whether the file system does not know a flag of renameat2(2). A directory that is to move into itself gives EINVAL as
/// well; the plain call, which follows, then says so.
fn is_unknown_flag(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTTY)
    )
}

fn open_regular_at(dir: &OwnedFd, name: &Name) -> io::Result<File> {
    // Looked at first, since opening a device or a pipe can have effects.
    must_be_regular(metadata_at(dir, name)?.kind)?;
    // Non-blocking, should it have become a pipe in between; without effect on regular files.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(dir, name.as_os_str(), flags, Mode::empty())?);
    must_be_regular(metadata_from(&fstat(&file)?)?.kind)?;
    Ok(file)
}

// The width of these fields differs between platforms.
#[allow(clippy::unnecessary_cast)]
fn holder(stat: &FileStat) -> Holder {
    Holder {
        uid: stat.st_uid,
        gid: stat.st_gid,
        permissions: stat.st_mode as u32 & 0o7777,
    }
}

fn judge(way: &[Holder]) -> Trust {
    Trust::judge(Uid::effective().as_raw(), sys::behalf::is_own_group, way)
}

fn must_be_regular(kind: FileKind) -> io::Result<()> {
    match kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(Errno::EISDIR.into()),
        FileKind::Symlink => Err(Errno::ELOOP.into()),
        // Not ENXIO, which the system says of sockets: that would pass for a missing device.
        _ => Err(Errno::EINVAL.into()),
    }
}

fn metadata_at(dir: &OwnedFd, name: &Name) -> io::Result<Metadata> {
    let stat = fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mut meta = metadata_from(&stat)?;
    if meta.kind == FileKind::Symlink {
        use std::os::unix::ffi::OsStringExt;
        meta.target = Some(readlinkat(dir, name.as_os_str())?.into_vec());
    }
    Ok(meta)
}

// The width of these fields differs between platforms.
#[allow(clippy::unnecessary_cast)]
fn metadata_from(stat: &FileStat) -> io::Result<Metadata> {
    let mode = stat.st_mode as u32;
    let kind = FileKind::from_mode(mode).ok_or(Errno::EUCLEAN)?;
    let has_bytes = matches!(kind, FileKind::Regular | FileKind::Symlink);
    let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    let is_linked = kind != FileKind::Directory && stat.st_nlink > 1;
    Ok(Metadata {
        kind,
        size: if has_bytes {
            stat.st_size.max(0).cast_unsigned()
        } else {
            0
        },
        modified: Timestamp::from_parts(stat.st_mtime as i64, stat.st_mtime_nsec as u32),
        permissions: mode & 0o7777,
        target: None,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: if is_device { stat.st_rdev as u32 } else { 0 },
        nlink: if is_linked { stat.st_nlink as u32 } else { 1 },
        file: is_linked.then_some(stat.st_ino as u64),
    })
}

#[cfg(test)]
#[path = "mounted_tests.rs"]
mod tests;
