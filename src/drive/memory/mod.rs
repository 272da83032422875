//! A backend in memory, for tests: as strict about names and kinds as a real one, and able to crash
//! as exFAT does.
//!
//! State, behind one lock: the medium as programs see it, the medium as of the last sync
//! (*durable*), and a log of all writes between the two. A crash chooses from the log which writes
//! have reached the medium (see [`Crash`]). A medium is a set of directories with slots. Each slot
//! is an entry with a name and the clusters it points at. Names are compared folded, in lower case
//! on a backend that ignores case, and keep their spelling. The two media share file contents and
//! copy them on write.
//!
//! There is no clock: a new file has the time 0 until it is set, and one that is changed in place
//! has [`CHANGED`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::core::{Entry, FileKind, Metadata, RelPath, Space, Timestamp, Xattrs};
use crate::drive::{Backend, BackendError, ModifyFile, ReadFile, Result, WriteFile};
use crate::plan::trust::Trust;

mod compare;
mod crash;
mod medium;
mod open;
mod place;
mod tree;

pub use crate::drive::memory::compare::differences;
pub use crate::drive::memory::crash::Crash;
use crate::drive::memory::medium::Medium;
use crate::drive::memory::open::OpenFile;
use crate::drive::memory::place::FoldedPath;
use crate::drive::memory::tree::{MemoryTree, New};

/// The time of a file that was changed in place, until it is set: 2100-01-01.
pub const CHANGED: Timestamp = Timestamp(4_102_444_800_000_000_000);

/// The properties of a [`MemoryBackend`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Names that differ only in case are one name.
    pub case_insensitive: bool,
    /// Bytes that are forbidden in names; such a name is refused with EINVAL.
    pub forbidden: Vec<u8>,
    /// Names must be UTF-8; others are refused with EINVAL.
    pub utf8_only: bool,
    /// Dots at the end of a name are dropped, as in the kernel's exFAT driver.
    pub drops_trailing_dots: bool,
    /// The longest name in UTF-16 code units; `None` for 255 bytes.
    pub max_utf16: Option<usize>,
    /// The space for all files in bytes; beyond it writes fail with ENOSPC.
    pub capacity: Option<u64>,
    /// The allocation unit for files and directories. Without it only the bytes of files count.
    pub cluster: Option<u64>,
    /// Times are truncated to multiples of this many nanoseconds; at least 1.
    pub time_granularity_ns: u64,
    /// Symbolic links are supported.
    pub symlinks: bool,
    /// Permission bits are stored; else setting them succeeds without effect, as on exFAT.
    pub permissions: bool,
    /// Hard links, special files, owners and extended attributes are supported, as on a file system
    /// made for Linux.
    pub rich: bool,
    /// Two names can be exchanged in one step; only with a journal.
    pub exchanges: bool,
    /// A journal keeps names in order: a random crash leaves them as at one moment since the last
    /// sync.
    pub journaled: bool,
    /// The trust in all its files.
    pub trust: Trust,
}

impl Default for MemoryOptions {
    /// Like ext4, without hard links and without a size limit.
    fn default() -> MemoryOptions {
        MemoryOptions {
            case_insensitive: false,
            forbidden: Vec::new(),
            utf8_only: false,
            drops_trailing_dots: false,
            max_utf16: None,
            capacity: None,
            cluster: None,
            time_granularity_ns: 1,
            symlinks: true,
            permissions: true,
            rich: false,
            exchanges: true,
            journaled: false,
            trust: Trust::Ours,
        }
    }
}

impl MemoryOptions {
    /// Returns options like ext4 with root's rights, and without a size limit.
    pub fn linux_like() -> MemoryOptions {
        MemoryOptions {
            rich: true,
            journaled: true,
            ..MemoryOptions::default()
        }
    }

    /// Returns options like exFAT with the kernel's driver.
    pub fn exfat_like() -> MemoryOptions {
        let controls = 0x01..=0x1f;
        MemoryOptions {
            case_insensitive: true,
            forbidden: controls.chain(*b"\"*:<>?\\|").collect(),
            utf8_only: true,
            drops_trailing_dots: true,
            max_utf16: Some(255),
            capacity: None,
            cluster: None,
            time_granularity_ns: 10_000_000,
            symlinks: false,
            permissions: false,
            rich: false,
            exchanges: true,
            journaled: false,
            trust: Trust::Ours,
        }
    }
}

/// A node of a tree, for comparisons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemNode {
    /// A regular file.
    File {
        /// Its bytes.
        bytes: Arc<Vec<u8>>,
        /// Modification time.
        modified: Timestamp,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A special file.
    Special {
        /// Its type.
        kind: FileKind,
        /// Device number of a device.
        rdev: u32,
    },
}

#[derive(Debug, Default)]
struct MemoryState {
    tree: MemoryTree,
    durable: Medium,
    /// With a journal: the medium after each change since the last sync.
    history: Vec<Medium>,
    /// Incremented by each crash: files opened before it are dead.
    epoch: u64,
}

/// A backend in memory. Clones share one tree.
#[derive(Clone, Debug)]
pub struct MemoryBackend {
    options: Arc<MemoryOptions>,
    state: Arc<Mutex<MemoryState>>,
}

impl Default for MemoryBackend {
    fn default() -> MemoryBackend {
        MemoryBackend::new(MemoryOptions::default())
    }
}

impl MemoryBackend {
    /// Returns an empty backend.
    pub fn new(options: MemoryOptions) -> MemoryBackend {
        MemoryBackend {
            options: Arc::new(options),
            state: Arc::default(),
        }
    }

    /// Returns the current tree, by paths as they are spelled, without the root.
    pub fn tree(&self) -> BTreeMap<RelPath, MemNode> {
        self.state.lock().tree.medium.export()
    }

    /// Returns the tree as of the last sync: the result of a crash if no later write had reached
    /// the medium.
    pub fn durable_tree(&self) -> BTreeMap<RelPath, MemNode> {
        self.state.lock().durable.export()
    }

    /// Simulates a power failure. The remaining tree becomes the durable one. Open files fail with
    /// EIO from then on. For a random crash it returns the fate of each write since the last sync,
    /// one line each.
    pub fn crash(&self, crash: Crash) -> Vec<String> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let story = match crash {
            Crash::Random(seed) if self.options.journaled => {
                let moments = std::mem::take(&mut state.history);
                state.tree.crash_journaled(&state.durable, &moments, seed)
            }
            crash => state.tree.crash(&state.durable, crash),
        };
        state.history.clear();
        state.durable = state.tree.medium.clone();
        state.epoch += 1;
        story
    }

    /// Loses everything since the last sync. Open files fail with EIO from then on.
    pub fn crash_to_durable(&self) {
        self.crash(Crash::LoseAll);
    }

    /// Returns the problems that a check of the file system would report, one line each: duplicate
    /// names, entries that share clusters or point at clusters that are marked free. Only a random
    /// crash causes them.
    pub fn damage(&self) -> Vec<String> {
        self.state.lock().tree.medium.damage()
    }

    /// Returns an independent backend with the same tree, durable tree, log and options.
    pub fn snapshot(&self) -> MemoryBackend {
        let state = self.state.lock();
        let copy = MemoryState {
            tree: state.tree.clone(),
            durable: state.durable.clone(),
            history: state.history.clone(),
            epoch: 0,
        };
        MemoryBackend {
            options: Arc::clone(&self.options),
            state: Arc::new(Mutex::new(copy)),
        }
    }

    /// Returns the path in the form that the tree uses, and the spelling of its last name.
    ///
    /// # Errors
    /// EINVAL for a name that this backend refuses.
    fn resolve(&self, path: &RelPath) -> io::Result<FoldedPath> {
        FoldedPath::new(path, &self.options)
    }

    fn cut(&self, time: Timestamp) -> Timestamp {
        let step = i64::try_from(self.options.time_granularity_ns.max(1)).unwrap_or(i64::MAX);
        Timestamp(time.0 - time.0.rem_euclid(step))
    }

    fn add(&self, path: &RelPath, new: New, permissions: u32) -> io::Result<u64> {
        let place = self.resolve(path)?;
        self.mutate(|tree| tree.make(&place, new, permissions))
    }

    /// Makes one change to the tree. With a journal it happens as a whole or not at all.
    fn mutate<T>(&self, work: impl FnOnce(&mut MemoryTree) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        let before = self.is_tight().then(|| state.tree.clone());
        let mut done = work(&mut state.tree);
        if let Some(before) = before
            && done.is_ok()
            && state.tree.medium.used(&self.options) > self.total()
            && state.tree.medium.used(&self.options) > before.medium.used(&self.options)
        {
            state.tree = before;
            done = Err(errno(libc::ENOSPC));
        }
        state.note_moment(&self.options);
        done
    }

    /// Returns whether a new name may need more space than there is.
    fn is_tight(&self) -> bool {
        self.options.cluster.is_some() && self.options.capacity.is_some()
    }

    /// Without a limit it returns a large total, because a total of 0 would read as a full drive.
    fn total(&self) -> u64 {
        self.options.capacity.unwrap_or(1 << 40)
    }

    /// Changes the attributes of `path`, under all its names.
    fn change(
        &self,
        operation: &'static str,
        path: &RelPath,
        with: impl FnOnce(&mut medium::DirEntry),
    ) -> Result<()> {
        let answer = || {
            let place = self.resolve(path)?;
            self.mutate(|tree| tree.change(&place, with))
        };
        named(operation, path, answer())
    }

    fn must_be_rich(&self, operation: &'static str, path: &RelPath) -> Result<()> {
        let refused = match self.options.rich {
            true => Ok(()),
            false => Err(errno(libc::EPERM)),
        };
        named(operation, path, refused)
    }
}

impl MemoryState {
    fn note_moment(&mut self, options: &MemoryOptions) {
        if options.journaled {
            self.history.push(self.tree.medium.clone());
        }
    }
}

impl Backend for MemoryBackend {
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        let answer = || self.state.lock().tree.children(&self.resolve(dir)?);
        named("read_dir", dir, answer())
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        let answer = || self.state.lock().tree.metadata(&self.resolve(path)?);
        named("stat", path, answer())
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let answer = || -> io::Result<OpenFile> {
            let place = self.resolve(path)?;
            let state = self.state.lock();
            let id = state.tree.regular_file(&place)?;
            Ok(self.handle(id, state.epoch))
        };
        Ok(Box::new(named("open", path, answer())?))
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        Ok((self.open(path)?, self.options.trust))
    }

    fn trust(&self, path: &RelPath) -> Result<Trust> {
        self.metadata(path).map(|_| self.options.trust)
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        let id = named("create", path, self.add(path, New::File, 0o644))?;
        let epoch = self.state.lock().epoch;
        Ok(Box::new(self.handle(id, epoch)))
    }

    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>> {
        let answer = || -> io::Result<OpenFile> {
            let place = self.resolve(path)?;
            let state = self.state.lock();
            let id = state.tree.regular_file(&place)?;
            match state.tree.open_metadata(id)?.nlink > 1 {
                true => Err(errno(libc::EMLINK)),
                false => Ok(self.handle(id, state.epoch)),
            }
        };
        Ok(Box::new(named("open", path, answer())?))
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        named("mkdir", path, self.add(path, New::Directory, 0o755))?;
        Ok(())
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let answer = || {
            let (from, to) = (self.resolve(from)?, self.resolve(to)?);
            self.mutate(|tree| tree.rename(&from, &to))
        };
        named("rename", from, answer())
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let answer = || {
            let (from, to) = (self.resolve(from)?, self.resolve(to)?);
            self.mutate(|tree| match tree.metadata(&to) {
                Ok(_) if !tree.is_same(&from, &to) => Err(errno(libc::EEXIST)),
                Ok(_) => tree.rename(&from, &to),
                Err(error) if error.kind() == io::ErrorKind::NotFound => tree.rename(&from, &to),
                Err(error) => Err(error),
            })
        };
        named("rename", from, answer())
    }

    /// Only with a journal, as on file systems made for Linux.
    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        if !self.options.journaled || !self.options.exchanges {
            return Ok(false);
        }
        let answer = || {
            let (one, other) = (self.resolve(one)?, self.resolve(other)?);
            self.mutate(|tree| tree.exchange(&one, &other))
        };
        named("exchange", one, answer())?;
        Ok(true)
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        let answer = || {
            let place = self.resolve(path)?;
            self.mutate(|tree| tree.remove_file(&place))
        };
        named("remove", path, answer())
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        let answer = || {
            let place = self.resolve(path)?;
            self.mutate(|tree| tree.remove_dir(&place))
        };
        named("rmdir", path, answer())
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        let modified = self.cut(modified);
        self.change("set time of", path, |entry| entry.modified = modified)
    }

    fn renames_atomically(&self) -> bool {
        self.options.journaled
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.durable = state.tree.medium.clone();
        state.tree.log.clear();
        state.history.clear();
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        let total = self.total();
        let used = self.state.lock().tree.medium.used(&self.options);
        Ok(Space {
            total,
            available: total.saturating_sub(used),
            usable: total.saturating_sub(used),
            unit: self.options.cluster.unwrap_or(0),
        })
    }

    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        if !self.options.symlinks {
            return named("symlink", path, Err(errno(libc::EPERM)));
        }
        let link = New::Symlink(target.to_vec());
        named("symlink", path, self.add(path, link, 0o777))?;
        Ok(())
    }

    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        let kept = self.options.permissions;
        self.change("set permissions of", path, |entry| {
            if kept {
                entry.permissions = mode & 0o7777;
            }
        })
    }

    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.must_be_rich("link", to)?;
        let answer = || {
            let (from, to) = (self.resolve(from)?, self.resolve(to)?);
            self.mutate(|tree| tree.link(&from, &to))
        };
        named("link", to, answer())
    }

    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        self.must_be_rich("mknod", path)?;
        let special = New::Special(kind, rdev);
        named("mknod", path, self.add(path, special, 0o600))?;
        Ok(())
    }

    fn set_owner(&self, path: &RelPath, owner: Option<u32>, group: Option<u32>) -> Result<()> {
        self.must_be_rich("set owner of", path)?;
        self.change("set owner of", path, |entry| {
            entry.owner.0 = owner.unwrap_or(entry.owner.0);
            entry.owner.1 = group.unwrap_or(entry.owner.1);
            entry.permissions &= !0o6000;
        })
    }

    fn xattrs(&self, path: &RelPath) -> Result<Xattrs> {
        self.must_be_rich("read attributes of", path)?;
        let answer = || self.state.lock().tree.xattrs(&self.resolve(path)?);
        named("read attributes of", path, answer())
    }

    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        self.must_be_rich("set attributes of", path)?;
        self.change("set attributes of", path, |entry| {
            entry.xattrs = xattrs.clone();
        })
    }
}

fn named<T>(operation: &'static str, path: &RelPath, answer: io::Result<T>) -> Result<T> {
    answer.map_err(|source| BackendError::new(operation, path, source))
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
