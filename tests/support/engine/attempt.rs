//! Calls by path that may fail, for tests that break something under them, and a watch that breaks
//! the cache.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ferryfs::core::Ino;
use ferryfs::core::cache_step::{CacheStep, StepWatch};
use ferryfs::drive::faulty::{Fault, FaultyBackend};
use ferryfs::drive::memory::MemoryBackend;
use ferryfs::vfs::{FsError, NewNode, OpenMode};
use parking_lot::Mutex;

use super::script::{REWRITE, WRITE};
use super::{Engine, World, call};

/// Kills the daemon before its n-th step on the SSD: from there on all it tries fails, on the SSD
/// and on the drive.
pub struct Killer {
    at: u64,
    steps: AtomicU64,
    drive: FaultyBackend<MemoryBackend>,
    /// What was taken, for messages.
    pub taken: Mutex<Vec<CacheStep>>,
}

impl Killer {
    /// Whether the daemon has died.
    pub fn has_struck(&self) -> bool {
        self.steps.load(Ordering::Relaxed) >= self.at
    }
}

impl StepWatch for Killer {
    fn before(&self, step: CacheStep) -> io::Result<()> {
        let now = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        self.taken.lock().push(step);
        if now < self.at {
            return Ok(());
        }
        if now == self.at {
            self.drive.arm(Fault {
                stays_dead: true,
                ..Fault::at(self.drive.calls() + 1, libc::EIO)
            });
        }
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}

impl World {
    /// Has the daemon die before its n-th step on the SSD from now. Once for each life.
    pub fn kill_at(&self, engine: &Engine, n: u64) -> Arc<Killer> {
        let killer = Arc::new(Killer {
            at: n,
            steps: AtomicU64::new(0),
            drive: self.faulty.clone(),
            taken: Mutex::default(),
        });
        engine.index.steps().watch(killer.clone());
        engine.store.steps().watch(killer.clone());
        killer
    }
}

impl Engine {
    fn try_open(&self, path: &str, mode: OpenMode) -> Result<u64, FsError> {
        let (parent, name) = self.place(path);
        let made = call(|ctx| self.fs.create(ctx, parent, &name, 0o644, mode, false));
        made.map(|made| made.1)
    }

    /// As close(2) of the last descriptor; the first error counts, and the descriptor goes all the
    /// same.
    fn try_close<T>(&self, handle: u64, done: Result<T, FsError>) -> Result<T, FsError> {
        let flushed = call(|ctx| self.fs.close_descriptor(ctx, handle));
        let released = call(|ctx| self.fs.release(ctx, handle));
        let value = done?;
        flushed?;
        released.map(|()| value)
    }

    /// Gives the file these bytes, whether it is there or not.
    pub fn try_put(&self, path: &str, bytes: &[u8], fsync: bool) -> Result<(), FsError> {
        let handle = self.try_open(path, REWRITE)?;
        let mut done = call(|ctx| self.fs.write(ctx, handle, 0, bytes)).map(|_| ());
        if fsync && done.is_ok() {
            done = self.fs.sync();
        }
        self.try_close(handle, done)
    }

    /// Changes bytes in place.
    pub fn try_edit(&self, path: &str, at: u64, bytes: &[u8]) -> Result<(), FsError> {
        let handle = self.try_open(path, WRITE)?;
        let done = call(|ctx| self.fs.write(ctx, handle, at, bytes)).map(|_| ());
        self.try_close(handle, done)
    }

    /// Makes a directory, or with a target a symbolic link.
    pub fn try_make(&self, path: &str, target: Option<&[u8]>) -> Result<(), FsError> {
        let (parent, name) = self.place(path);
        let kind = target.map_or(libc::S_IFDIR | 0o755, |_| libc::S_IFLNK | 0o777);
        let node = NewNode {
            mode: kind,
            rdev: 0,
            target: target.map(Into::into),
        };
        call(|ctx| self.fs.make_node(ctx, parent, &name, node.clone())).map(|_| ())
    }

    /// Removes a name: a directory's with `dir`.
    pub fn try_remove(&self, path: &str, dir: bool) -> Result<(), FsError> {
        let (parent, name) = self.place(path);
        let ino: Ino = self.ino(path);
        match dir {
            true => call(|ctx| self.fs.rmdir(ctx, parent, &name))?,
            false => call(|ctx| self.fs.unlink(ctx, parent, &name))?,
        }
        self.fs.forget(ino)
    }

    /// Gives a file another name.
    pub fn try_link(&self, from: &str, to: &str) -> Result<(), FsError> {
        let (ino, place) = (self.ino(from), self.place(to));
        call(|ctx| self.fs.link(ctx, ino, place.0, &place.1)).map(|_| ())
    }

    /// Cuts a file to a size, or makes it longer.
    pub fn try_truncate(&self, path: &str, size: u64) -> Result<(), FsError> {
        let set = ferryfs::vfs::SetAttr {
            size: Some(size),
            ..Default::default()
        };
        call(|ctx| self.fs.setattr(ctx, self.ino(path), &set)).map(|_| ())
    }
}
