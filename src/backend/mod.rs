//! The slow side: a directory on a USB drive or a NAS share, behind a small trait.
//!
//! Whoever implements [`Backend`] promises only what exFAT can promise: no call is durable before the next
//! [`Backend::sync`] has returned, and a rename may be seen half done after a crash. Nothing here retries.

pub mod drive;
pub mod faulty;
pub mod guard;
pub mod memory;
pub mod mounted;
pub(crate) mod pass_on;
pub mod probe;
mod root;
mod unsynced;
pub mod watched;

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use crate::base::{FileKind, Name, RelPath, Timestamp};
use crate::rules::trust::{Trust, is_privileged};

/// Extended attributes: names with their values.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What stands under one name in a directory of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, as the backend spells it.
    pub name: Name,
    /// What is known of it without opening it.
    pub meta: Metadata,
}

/// What the backend tells of a file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes; 0 for what has no bytes.
    pub size: u64,
    /// Last change of its bytes, as exact as the backend keeps it.
    pub modified: Timestamp,
    /// Permission bits (`0o7777`), as far as the backend has them.
    pub permissions: u32,
    /// Where a symbolic link points, byte for byte; `None` for anything else.
    pub target: Option<Vec<u8>>,
    /// Number of the owner, as the backend tells it; often the same for all.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Device number of a device, as the kernel packs it into 32 bits; else 0.
    pub rdev: u32,
    /// How many names it has; 1 where the backend does not count them, and for directories.
    pub nlink: u32,
    /// What all names of one file have in common, while it is in use by none but these; `None` for what has one name.
    pub file: Option<u64>,
}

/// Space on the backend, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What a new file may take.
    pub available: u64,
    /// Size of the pieces in which space is allocated: a cluster of exFAT, a block. 0 if the backend does not tell.
    pub unit: u64,
}

/// What a backend can do, found by trying it. Data for the planner and for the name check, never a list of file-system names.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capabilities {
    /// Bytes below 0x80 that no name may hold.
    pub forbidden: Vec<u8>,
    /// Names that differ only in case are one name.
    pub case_insensitive: bool,
    /// Names must be UTF-8.
    pub utf8_only: bool,
    /// A trailing dot is dropped or refused.
    pub no_trailing_dot: bool,
    /// A trailing space is dropped or refused.
    pub no_trailing_space: bool,
    /// Names that differ only in their Unicode form (composed or decomposed) are one name.
    #[serde(default)]
    pub form_insensitive: bool,
    /// Longest name in UTF-16 code units, where the backend counts those rather than bytes.
    pub max_utf16: Option<usize>,
    /// Longest name in bytes, where the backend counts those.
    #[serde(default = "linux_name_max")]
    pub max_bytes: usize,
    /// Symbolic links can be made.
    pub symlinks: bool,
    /// Hard links can be made.
    pub hard_links: bool,
    /// Permission bits are kept.
    pub permissions: bool,
    /// Times are kept in steps of this many nanoseconds.
    pub time_granularity_ns: u64,
    /// Version of the probe that found all this: [`probe::VERSION`], or 0 for one that did not look for what comes below. What an
    /// older one has found is probed anew when the volume is attached next.
    #[serde(default)]
    pub probed: u32,
    /// Files can be given to other owners and groups.
    #[serde(default)]
    pub owners: bool,
    /// Owner and group of what ferryfs makes, as the backend tells them.
    #[serde(default)]
    pub own: Option<(u32, u32)>,
    /// Named pipes and sockets can be made.
    #[serde(default)]
    pub special_files: bool,
    /// Devices can be made.
    #[serde(default)]
    pub devices: bool,
    /// Files may be given bits that give the rights of their owner or group to who runs them. Always found to be so; see
    /// [`Capabilities::without_privileges`].
    #[serde(default = "yes")]
    pub set_ids: bool,
    /// Longest target of a symbolic link, in bytes.
    #[serde(default)]
    pub target_bytes: u32,
    /// Name spaces of extended attributes that are kept ("user.").
    #[serde(default)]
    pub xattrs: Vec<String>,
    /// Bytes that the extended attributes of one file may have, see [`crate::rules::given`].
    #[serde(default)]
    pub xattr_bytes: u32,
}

impl Capabilities {
    /// Those of a file system made for Linux, used with root's rights.
    pub fn everything() -> Capabilities {
        Capabilities {
            forbidden: Vec::new(),
            case_insensitive: false,
            utf8_only: false,
            no_trailing_dot: false,
            no_trailing_space: false,
            form_insensitive: false,
            max_utf16: None,
            max_bytes: linux_name_max(),
            symlinks: true,
            hard_links: true,
            permissions: true,
            time_granularity_ns: 1,
            probed: probe::VERSION,
            owners: true,
            own: Some((0, 0)),
            special_files: true,
            devices: true,
            set_ids: true,
            target_bytes: crate::rules::steps::MAX_TARGET_BYTES as u32,
            xattrs: ["user.", "trusted.", "security.", crate::rules::acl::SPACE]
                .map(String::from)
                .into(),
            xattr_bytes: crate::rules::given::XATTR_UNBOUNDED,
        }
    }

    /// These, with all that is not about names and times as it was `found` by a newer probe.
    pub fn with_attributes_of(self, found: Capabilities) -> Capabilities {
        Capabilities {
            forbidden: self.forbidden,
            case_insensitive: self.case_insensitive,
            utf8_only: self.utf8_only,
            no_trailing_dot: self.no_trailing_dot,
            no_trailing_space: self.no_trailing_space,
            form_insensitive: self.form_insensitive,
            max_utf16: self.max_utf16,
            max_bytes: self.max_bytes,
            time_granularity_ns: self.time_granularity_ns,
            ..found
        }
    }

    /// What of these a drive is given to which others may write: nothing that gives somebody's rights to who can put other bytes
    /// in a file's place. The catalog tells of the rest.
    #[must_use]
    pub fn without_privileges(&self) -> Capabilities {
        let mut left = self.clone();
        (left.devices, left.set_ids) = (false, false);
        left.xattrs.retain(|space| !is_privileged(space.as_bytes()));
        left
    }

    /// Those of a file system that has names, bytes and times and nothing else, like FAT and its kind.
    pub fn plain() -> Capabilities {
        Capabilities {
            symlinks: false,
            hard_links: false,
            permissions: false,
            owners: false,
            special_files: false,
            devices: false,
            target_bytes: 0,
            xattrs: Vec::new(),
            xattr_bytes: 0,
            ..Capabilities::everything()
        }
    }
}

fn yes() -> bool {
    true
}

fn linux_name_max() -> usize {
    crate::base::NAME_MAX
}

/// A failed call to the backend: what was tried, on which path, and what the system said.
#[derive(Debug)]
pub struct BackendError {
    /// The call, as a verb ("rename", "create").
    pub operation: &'static str,
    /// The path below the backend's root.
    pub path: RelPath,
    /// What the system said.
    pub source: io::Error,
}

impl BackendError {
    /// An error of `operation` on `path`.
    pub fn new(operation: &'static str, path: &RelPath, source: io::Error) -> BackendError {
        BackendError {
            operation,
            path: path.clone(),
            source,
        }
    }

    /// The path does not exist. Never said when the medium itself is gone.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// The backend has no space for this, and may have some later.
    pub fn is_full(&self) -> bool {
        full(&self.source)
    }

    /// The file is larger than any that the backend can hold, however much space there is.
    pub fn is_too_large(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EFBIG)
    }

    /// Something already has the name.
    pub fn is_taken(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(libc::EEXIST | libc::ENOTEMPTY | libc::EISDIR)
        )
    }

    /// The backend refuses this very name or change, and asking again does not help: what else it is asked for may work.
    ///
    /// An error of the medium ([`BackendError::is_gone`]) is none, although it may be confined to one name as well: only a
    /// look at the rest of the drive can tell.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(
                libc::EPERM
                    | libc::EACCES
                    | libc::EXDEV
                    | libc::EBUSY
                    | libc::ETXTBSY
                    | libc::EFBIG
                    | libc::EINVAL
                    | libc::ENAMETOOLONG
                    | libc::EMLINK
                    | libc::ELOOP
                    | libc::EEXIST
                    | libc::ENOTEMPTY
                    | libc::EISDIR
                    | libc::ENOTDIR
                    | libc::ENOENT
                    | libc::EOPNOTSUPP
                    | libc::ENOSYS
                    | libc::E2BIG
                    | libc::ERANGE
                    | libc::EILSEQ
                    | libc::EOVERFLOW
                    | libc::EDEADLK
                    | libc::EAGAIN
                    | libc::ENOSPC
                    | libc::EDQUOT
            )
        )
    }

    /// The medium is gone or no longer to be trusted: nothing may be concluded from it until it is attached again.
    pub fn is_gone(&self) -> bool {
        gone(&self.source)
    }

    /// This process, or the system, has no more descriptors or memory for the call. That says nothing of the backend.
    pub fn is_shortage(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
        )
    }

    /// The backend has not answered in time. It may do so later: that is no reason to let go of it, nor to conclude anything.
    pub fn is_stalled(&self) -> bool {
        self.source.raw_os_error() == Some(libc::ETIMEDOUT)
    }
}

/// What [`BackendError::is_full`] says of the system's own error.
pub(crate) fn full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// What [`BackendError::is_gone`] says of the system's own error.
pub(crate) fn gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENOMEDIUM
                | libc::ENODEV
                | libc::ENXIO
                | libc::EIO
                | libc::EROFS
                | libc::ESTALE
                | libc::ENOTCONN
                | libc::ESHUTDOWN
                | libc::EHOSTDOWN
                | libc::ECONNABORTED
        )
    )
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.operation, self.path, self.source)
    }
}

impl std::error::Error for BackendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// How closely [`Backend::check_alive`] looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At what the system knows by itself, so that a sleeping disk goes on sleeping. Finds out much, but not all.
    Glance,
    /// By reading the volume's marker from the medium, past every cache: a file system whose disk is gone still answers stat
    /// and statfs from memory.
    Read,
}

/// The outcome of a call to the backend.
pub type Result<T> = std::result::Result<T, BackendError>;

/// A file of the backend that is open for reading. Dropping it closes it.
pub trait ReadFile: Send + Sync {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// What the system said.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// What it is now: its size and time.
    ///
    /// # Errors
    /// What the system said.
    fn metadata(&self) -> io::Result<Metadata>;
}

/// A new file of the backend that is being written, front to back.
pub trait WriteFile: Send {
    /// Appends all of `data`.
    ///
    /// # Errors
    /// What the system said; the file is then of unknown length.
    fn append(&mut self, data: &[u8]) -> io::Result<()>;

    /// Sets the time of last change and closes. Not durable before the next [`Backend::sync`].
    ///
    /// # Errors
    /// What the system said, also for an error of an earlier write that shows only now.
    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()>;
}

/// A directory on the slow side. All paths are relative to its root; no symbolic link is ever followed.
pub trait Backend: Send + Sync {
    /// What stands in the directory `dir`, in the backend's order.
    ///
    /// # Errors
    /// If `dir` is no directory or cannot be read to its end.
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>>;

    /// What stands at `path`, not following a link.
    ///
    /// # Errors
    /// [`BackendError::is_not_found`] if nothing does.
    fn metadata(&self, path: &RelPath) -> Result<Metadata>;

    /// Opens the regular file at `path` for reading.
    ///
    /// # Errors
    /// If there is none, or it is something else.
    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>>;

    /// Opens the regular file at `path` for reading what the medium has, past every cache that can be got past. Everything
    /// must have been synced. A backend around another passes this on.
    ///
    /// # Errors
    /// As [`Backend::open`].
    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        self.open(path)
    }

    /// The same as [`Backend::open`], and whose word the file is: judged by what was opened and by the directories that led to it.
    /// A backend that cannot tell says anybody's. A backend around another passes this on.
    ///
    /// # Errors
    /// As [`Backend::open`].
    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        Ok((self.open(path)?, Trust::ANYBODY))
    }

    /// Whose word is what stands at `path`. If it is ours it stays so, and nobody else can put anything in its place.
    ///
    /// # Errors
    /// If it is not there, or something on the way is no directory.
    fn trust(&self, path: &RelPath) -> Result<Trust> {
        self.metadata(path).map(|_| Trust::ANYBODY)
    }

    /// Makes a new, empty regular file at `path`.
    ///
    /// # Errors
    /// `AlreadyExists` if anything stands there.
    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>>;

    /// Makes a directory.
    ///
    /// # Errors
    /// `AlreadyExists` if anything stands there.
    fn make_dir(&self, path: &RelPath) -> Result<()>;

    /// Moves a file or directory; a regular file at `to` is replaced by a regular file.
    ///
    /// # Errors
    /// If `from` is not there, or `to` cannot be replaced.
    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()>;

    /// Moves a file or directory to a name that nothing has.
    ///
    /// Where the file system cannot refuse by itself, the name is looked at first: somebody else may fill it between
    /// the two calls.
    ///
    /// # Errors
    /// `AlreadyExists` if anything stands at `to`; else as [`Backend::rename`].
    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        match self.metadata(to) {
            Ok(_) => Err(BackendError::new(
                "rename",
                to,
                io::Error::from_raw_os_error(libc::EEXIST),
            )),
            Err(error) if error.is_not_found() => self.rename(from, to),
            Err(error) => Err(error),
        }
    }

    /// Swaps what stands at two names in one step; false where the file system cannot, and nothing was done.
    ///
    /// # Errors
    /// If nothing stands at one of them.
    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        let _ = (one, other);
        Ok(false)
    }

    /// What is known in advance to keep names in the directory `dir` from being made, replaced or removed, such as a file
    /// system that is mounted read-only there.
    ///
    /// # Errors
    /// The refusal that such a change would meet.
    fn check_changeable(&self, dir: &RelPath) -> Result<()> {
        let _ = dir;
        Ok(())
    }

    /// The same for the file at `path` itself: whether it may be replaced, moved or removed.
    ///
    /// # Errors
    /// The refusal that such a change would meet.
    fn check_replaceable(&self, path: &RelPath) -> Result<()> {
        let _ = path;
        Ok(())
    }

    /// Whether a crash leaves a rename either done or not done. Where it does not, or where nobody can tell, what is renamed may
    /// be found under both names or under neither.
    fn renames_atomically(&self) -> bool {
        false
    }

    /// Removes what is no directory.
    ///
    /// # Errors
    /// [`BackendError::is_not_found`] if it is not there.
    fn remove_file(&self, path: &RelPath) -> Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`BackendError::is_not_found`] if it is not there; `DirectoryNotEmpty` if it is not empty.
    fn remove_dir(&self, path: &RelPath) -> Result<()>;

    /// Sets the time of last change of a file, a directory, or a symbolic link itself.
    ///
    /// # Errors
    /// If it is not there.
    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()>;

    /// Makes everything that was done before durable: one `syncfs` for the whole file system.
    ///
    /// # Errors
    /// Any write error since the last sync; nothing may then be taken as written.
    fn sync(&self) -> Result<()>;

    /// Space, as far as the backend tells.
    ///
    /// # Errors
    /// If it does not.
    fn space(&self) -> Result<Space>;

    /// Frees space that is held on the backend for the case that it is full, so that a call that found it full can be repeated.
    /// False if there is none, and always but for a batch that holds some.
    ///
    /// # Errors
    /// If it cannot be made sure that the space is free.
    fn relieve(&self) -> Result<bool> {
        Ok(false)
    }

    /// Answers once the slow side itself has answered something, as far as that can be had cheaply: what is in this machine's
    /// memory says nothing. What `statfs` tells comes from the server of a share each time.
    ///
    /// # Errors
    /// If it answered with an error.
    fn answers(&self) -> Result<()> {
        self.space().map(drop)
    }

    /// Looks whether the medium is there. An answer is no promise for the next moment.
    ///
    /// # Errors
    /// What shows that it is not.
    fn check_alive(&self, look: Look) -> Result<()> {
        let _ = look;
        self.metadata(&crate::rules::layout::marker_path())
            .map(drop)
    }

    /// Makes a symbolic link at `path` that points to `target`, byte for byte.
    ///
    /// # Errors
    /// EOPNOTSUPP, or another word of refusal, where the backend has none; `AlreadyExists` if anything stands there.
    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        let _ = target;
        Err(not_supported("symlink", path))
    }

    /// Gives the file at `from` the further name `to`.
    ///
    /// # Errors
    /// EOPNOTSUPP, or another word of refusal, where the backend has none; `AlreadyExists` if anything stands at `to`.
    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let _ = from;
        Err(not_supported("link", to))
    }

    /// Sets the permission bits (`0o7777`) of the file or directory at `path`. Some backends accept that and keep the old
    /// ones: see [`Capabilities::permissions`].
    ///
    /// # Errors
    /// EOPNOTSUPP, or another word of refusal, where the backend has none.
    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        let _ = mode;
        Err(not_supported("set permissions of", path))
    }

    /// Makes a special file at `path`: a named pipe, a socket, or the device `rdev`. Only its owner may use it yet.
    ///
    /// # Errors
    /// EOPNOTSUPP, or another word of refusal, where the backend has none; `AlreadyExists` if anything stands there.
    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        let _ = (kind, rdev);
        Err(not_supported("mknod", path))
    }

    /// Gives what stands at `path`, a symbolic link itself, another owner, another group, or both. Some backends accept that and
    /// keep the old ones: see [`Capabilities::owners`]. Bits that give privileges (set-user-id) may be lost by it.
    ///
    /// # Errors
    /// EPERM or another word of refusal where this is not to be had.
    fn set_owner(&self, path: &RelPath, owner: Option<u32>, group: Option<u32>) -> Result<()> {
        let _ = (owner, group);
        Err(not_supported("set owner of", path))
    }

    /// The extended attributes of what stands at `path`, a symbolic link itself, as far as they are carried
    /// ([`crate::rules::given::is_carried`]).
    ///
    /// # Errors
    /// EOPNOTSUPP, or another word of refusal, where the backend has none.
    fn xattrs(&self, path: &RelPath) -> Result<Xattrs> {
        Err(not_supported("read attributes of", path))
    }

    /// The same for many entries of one directory, those that have any. What is gone or has none is left out.
    ///
    /// # Errors
    /// If the medium is gone, or does not answer.
    fn xattrs_in(&self, dir: &RelPath, names: &[Name]) -> Result<Vec<(Name, Xattrs)>> {
        let mut found = Vec::new();
        for name in names {
            guard::sign_of_life();
            match self.xattrs(&dir.join(name)) {
                Ok(xattrs) if xattrs.is_empty() => {}
                Ok(xattrs) => found.push((name.clone(), xattrs)),
                Err(error) if error.is_gone() || error.is_stalled() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Makes the carried extended attributes of what stands at `path` exactly these. Cut short, it leaves some of them.
    ///
    /// # Errors
    /// EOPNOTSUPP, or another word of refusal, where the backend has none; ENOSPC where they are too large for it.
    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        let _ = xattrs;
        Err(not_supported("set attributes of", path))
    }
}

fn not_supported(operation: &'static str, path: &RelPath) -> BackendError {
    let source = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    BackendError::new(operation, path, source)
}
