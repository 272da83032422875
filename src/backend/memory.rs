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

use super::{Backend, BackendError, Entry, Metadata, ReadFile, Result, Space, WriteFile};
use crate::base::{RelPath, Timestamp};

mod compare;
mod crash;
mod medium;
mod place;
mod tree;

pub use compare::differences;
pub use crash::Crash;
use medium::Medium;
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
    /// Times are cut down to multiples of this many nanoseconds; at least 1.
    pub time_granularity_ns: u64,
    /// Symbolic links can be made.
    pub symlinks: bool,
    /// Permission bits are kept; else setting them succeeds without effect, as on exFAT.
    pub permissions: bool,
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
            time_granularity_ns: 1,
            symlinks: true,
            permissions: true,
        }
    }
}

impl MemoryOptions {
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
            time_granularity_ns: 10_000_000,
            symlinks: false,
            permissions: false,
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
}

#[derive(Debug, Default)]
struct State {
    tree: Tree,
    durable: Medium,
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
        let story = state.tree.crash(&state.durable, crash);
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
        self.state.lock().tree.make(&place, new, permissions)
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
            self.state.lock().tree.rename(&from, &to)
        };
        named("rename", from, answer())
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        let answer = || self.state.lock().tree.remove_file(&self.resolve(path)?);
        named("remove", path, answer())
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        let answer = || self.state.lock().tree.remove_dir(&self.resolve(path)?);
        named("rmdir", path, answer())
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        let answer = || -> io::Result<()> {
            let place = self.resolve(path)?;
            let modified = self.cut(modified);
            let change = |entry: &mut medium::Entry| entry.modified = modified;
            self.state.lock().tree.change(&place, change)
        };
        named("set time of", path, answer())
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.durable = state.tree.medium.clone();
        state.tree.log.clear();
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        // Without a limit some is named all the same, since a total of nothing would read as a full drive.
        let total = self.options.capacity.unwrap_or(1 << 40);
        let available = total.saturating_sub(self.state.lock().tree.medium.used());
        Ok(Space { total, available })
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
        let answer = || -> io::Result<()> {
            let place = self.resolve(path)?;
            let kept = self.options.permissions;
            self.state.lock().tree.change(&place, |entry| {
                if kept {
                    entry.permissions = mode & 0o7777;
                }
            })
        };
        named("set permissions of", path, answer())
    }
}

/// A file that is open. It is found by its number, so it may be renamed meanwhile; once removed, or lost in a crash, it
/// is gone (EIO), which is stricter than Linux and what a yanked drive does.
struct OpenFile {
    backend: MemoryBackend,
    id: u64,
    epoch: u64,
}

impl MemoryBackend {
    fn handle(&self, id: u64, epoch: u64) -> OpenFile {
        OpenFile {
            backend: self.clone(),
            id,
            epoch,
        }
    }
}

impl OpenFile {
    fn with<T>(&self, work: impl FnOnce(&mut Tree) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.backend.state.lock();
        if state.epoch != self.epoch {
            return Err(errno(libc::EIO));
        }
        work(&mut state.tree)
    }
}

impl ReadFile for OpenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|tree| {
            let bytes = tree.bytes(self.id)?;
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let length = buf.len().min(bytes.len() - start);
            buf[..length].copy_from_slice(&bytes[start..start + length]);
            Ok(length)
        })
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.with(|tree| tree.open_metadata(self.id))
    }
}

impl WriteFile for OpenFile {
    /// As the trait says; on a full backend what still fits is written.
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let capacity = self.backend.options.capacity;
        self.with(|tree| {
            let room = capacity.map_or(u64::MAX, |all| all.saturating_sub(tree.medium.used()));
            let fits = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
            tree.append(self.id, &data[..fits])?;
            if fits < data.len() {
                return Err(errno(libc::ENOSPC));
            }
            Ok(())
        })
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let modified = self.backend.cut(modified);
        self.with(|tree| tree.set_open_time(self.id, modified))
    }
}

fn named<T>(operation: &'static str, path: &RelPath, answer: io::Result<T>) -> Result<T> {
    answer.map_err(|source| BackendError::new(operation, path, source))
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
