//! A backend in memory, for tests: as strict about names and kinds as a real one, and able to crash as exFAT does.
//!
//! State, behind one lock: the medium as programs see it, the medium as of the last sync (*durable*), and a log of all writes
//! between the two, from which a crash draws what has arrived (see [`Crash`]). A medium is a set of directories with
//! slots, each slot an entry with a name and the clusters it points at; names are compared folded, lower case on a backend that
//! compares without case, and kept as they were spelled. File contents are shared between the two and copied when they
//! are written to.
//!
//! Time stands still here: what is made has the time 0 until it is set.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Backend, BackendError, Entry, Metadata, ReadFile, Result, Space, WriteFile, Xattrs};
use crate::base::{FileKind, RelPath, Timestamp};
use crate::rules::trust::Trust;

mod compare;
mod crash;
mod medium;
mod open;
mod place;
mod tree;

pub use compare::differences;
pub use crash::Crash;
use medium::Medium;
use open::OpenFile;
use place::Place;
use tree::{New, Tree};

/// How a [`MemoryBackend`] behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Names that differ only in case are one name.
    pub case_insensitive: bool,
    /// Bytes that no name may hold; such a name is refused with EINVAL.
    pub forbidden: Vec<u8>,
    /// Names must be UTF-8; others are refused with EINVAL.
    pub utf8_only: bool,
    /// Dots at the end of a name are dropped, as the kernel's exFAT driver does.
    pub drops_trailing_dots: bool,
    /// Longest name in UTF-16 code units; `None` for 255 bytes.
    pub max_utf16: Option<usize>,
    /// Bytes that all files together may have; more gives ENOSPC.
    pub capacity: Option<u64>,
    /// Size of the pieces in which space is allocated, to files and directories. Without, only the bytes of files count.
    pub cluster: Option<u64>,
    /// Times are cut down to multiples of this many nanoseconds; at least 1.
    pub time_granularity_ns: u64,
    /// Symbolic links can be made.
    pub symlinks: bool,
    /// Permission bits are kept; else setting them succeeds without effect, as on exFAT.
    pub permissions: bool,
    /// Hard links, special files, owners and extended attributes are there, as on a file system made for Linux.
    pub rich: bool,
    /// Two names can be swapped in one step; only with a journal.
    pub exchanges: bool,
    /// A journal keeps names in order: a random crash leaves them as they were at one moment since the last sync.
    pub journaled: bool,
    /// Whose word all that stands on it is.
    pub trust: Trust,
}

impl Default for MemoryOptions {
    /// Like ext4, without hard links and without end.
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
    /// Like ext4 with root's rights, and without end.
    pub fn linux_like() -> MemoryOptions {
        MemoryOptions {
            rich: true,
            journaled: true,
            ..MemoryOptions::default()
        }
    }

    /// Like exFAT under the kernel's driver.
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

/// What stands at a path, for comparing trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemNode {
    /// A regular file.
    File {
        /// Its bytes.
        bytes: Arc<Vec<u8>>,
        /// Time of last change.
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
        /// What it is.
        kind: FileKind,
        /// Device number of a device.
        rdev: u32,
    },
}

#[derive(Debug, Default)]
struct State {
    tree: Tree,
    durable: Medium,
    /// With a journal: the medium after each change since the last sync.
    history: Vec<Medium>,
    /// Grows with each crash: files opened before it are dead.
    epoch: u64,
}

/// A backend in memory. Clones share one tree.
#[derive(Clone, Debug)]
pub struct MemoryBackend {
    options: Arc<MemoryOptions>,
    state: Arc<Mutex<State>>,
}

impl Default for MemoryBackend {
    fn default() -> MemoryBackend {
        MemoryBackend::new(MemoryOptions::default())
    }
}

impl MemoryBackend {
    /// An empty backend.
    pub fn new(options: MemoryOptions) -> MemoryBackend {
        MemoryBackend {
            options: Arc::new(options),
            state: Arc::default(),
        }
    }

    /// The tree as it is now, by paths as they are spelled, without the root.
    pub fn tree(&self) -> BTreeMap<RelPath, MemNode> {
        self.state.lock().tree.medium.export()
    }

    /// The tree as of the last sync: what a crash now would leave if nothing later had reached the medium.
    pub fn durable_tree(&self) -> BTreeMap<RelPath, MemNode> {
        self.state.lock().durable.export()
    }

    /// The power goes. What is left is the durable tree from then on. Files that are open fail with EIO from here on.
    /// Of a random crash it tells what became of each write since the last sync, one line each.
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

    /// Loses everything since the last sync. Files that are open fail with EIO from here on.
    pub fn crash_to_durable(&self) {
        self.crash(Crash::LoseAll);
    }

    /// What a check of the file system would complain of, one line each: names that are there twice, entries that share
    /// clusters or point at clusters that are marked free. Nothing, unless a random crash has left it.
    pub fn damage(&self) -> Vec<String> {
        self.state.lock().tree.medium.damage()
    }

    /// A backend of its own with the same tree, the same durable tree, the same log and the same options.
    pub fn snapshot(&self) -> MemoryBackend {
        let state = self.state.lock();
        let copy = State {
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

    /// The path in the form under which the tree has it, and its last name as it is to be spelled.
    ///
    /// # Errors
    /// EINVAL for a name that this backend does not take.
    fn resolve(&self, path: &RelPath) -> io::Result<Place> {
        Place::new(path, &self.options)
    }

    fn cut(&self, time: Timestamp) -> Timestamp {
        let step = i64::try_from(self.options.time_granularity_ns.max(1)).unwrap_or(i64::MAX);
        Timestamp(time.0 - time.0.rem_euclid(step))
    }

    fn add(&self, path: &RelPath, new: New, permissions: u32) -> io::Result<u64> {
        let place = self.resolve(path)?;
        self.mutate(|tree| tree.make(&place, new, permissions))
    }

    /// Makes one change to the tree; with a journal it is done as a whole or not at all.
    fn mutate<T>(&self, work: impl FnOnce(&mut Tree) -> io::Result<T>) -> io::Result<T> {
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

    /// Whether a new name may need space that there is not.
    fn is_tight(&self) -> bool {
        self.options.cluster.is_some() && self.options.capacity.is_some()
    }

    /// Without a limit some is named all the same, since a total of nothing would read as a full drive.
    fn total(&self) -> u64 {
        self.options.capacity.unwrap_or(1 << 40)
    }

    /// Changes the attributes of what stands at `path`, under all its names.
    fn change(
        &self,
        operation: &'static str,
        path: &RelPath,
        with: impl FnOnce(&mut medium::Entry),
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

impl State {
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

    /// With a journal only, as the file systems made for Linux have it.
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
