//! A backend that fails on command, around any other. For tests: raise the number of the failing call until nothing
//! fails any more, and check after each run that no promise was broken.
//!
//! Every call counts, reading or changing, also those on open files (`read_at`, `metadata`, `append`, `finish`); opening
//! and creating count once. Dropping a file does not count. A lone counter behind one lock gives each call its number,
//! so runs with one thread are repeatable. The lock is not held while the inner backend works.
//!
//! It can lie as well ([`FaultyBackend::lie`]): what is appended goes down changed, and every call succeeds.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Backend, BackendError, Entry, Metadata, ReadFile, Result, Space, WriteFile, Xattrs};
use crate::base::{FileKind, RelPath, Timestamp};

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Number of the failing call, counted from 1 over the life of the backend.
    pub at: u64,
    /// The error it gives, as `errno`.
    pub errno: i32,
    /// Every later call fails as well, as after a yank.
    pub stays_dead: bool,
    /// The failing call does its work before it fails, as when only the answer is lost. Later ones do not.
    pub takes_effect: bool,
}

impl Fault {
    /// Call number `at` fails with `errno`, without effect; the next ones work.
    pub fn at(at: u64, errno: i32) -> Fault {
        Fault {
            at,
            errno,
            stays_dead: false,
            takes_effect: false,
        }
    }
}

#[derive(Debug, Default)]
struct Counter {
    calls: u64,
    fault: Option<Fault>,
    lie: bool,
}

/// What is to become of one call.
enum Verdict {
    Work,
    Fail(i32),
    WorkThenFail(i32),
}

#[derive(Clone, Debug, Default)]
struct Switch(Arc<Mutex<Counter>>);

impl Switch {
    fn next(&self) -> Verdict {
        let mut counter = self.0.lock();
        counter.calls += 1;
        let calls = counter.calls;
        match counter.fault {
            Some(fault) if calls == fault.at && fault.takes_effect => {
                Verdict::WorkThenFail(fault.errno)
            }
            Some(fault) if calls == fault.at => Verdict::Fail(fault.errno),
            Some(fault) if calls > fault.at && fault.stays_dead => Verdict::Fail(fault.errno),
            _ => Verdict::Work,
        }
    }

    fn io<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.next() {
            Verdict::Work => work(),
            Verdict::Fail(errno) => Err(io::Error::from_raw_os_error(errno)),
            Verdict::WorkThenFail(errno) => {
                work()?;
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    fn call<T>(
        &self,
        operation: &'static str,
        path: &RelPath,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let failed =
            |errno| BackendError::new(operation, path, io::Error::from_raw_os_error(errno));
        match self.next() {
            Verdict::Work => work(),
            Verdict::Fail(errno) => Err(failed(errno)),
            Verdict::WorkThenFail(errno) => {
                work()?;
                Err(failed(errno))
            }
        }
    }
}

/// A backend that passes calls on to `B`, except those that are to fail. Clones share the count and the fault.
#[derive(Clone, Debug)]
pub struct FaultyBackend<B> {
    inner: B,
    switch: Switch,
}

impl<B> FaultyBackend<B> {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: B) -> FaultyBackend<B> {
        FaultyBackend {
            inner,
            switch: Switch::default(),
        }
    }

    /// Has call number `n` (counted from 1 over the life of the backend) fail once with `errno`, without effect.
    pub fn fail_at(&self, n: u64, errno: i32) {
        self.arm(Fault::at(n, errno));
    }

    /// Sets the fault, in place of any other.
    pub fn arm(&self, fault: Fault) {
        self.switch.0.lock().fault = Some(fault);
    }

    /// Takes the fault away: all further calls work.
    pub fn heal(&self) {
        self.switch.0.lock().fault = None;
    }

    /// From now on the first byte of everything that is appended to a file is changed on its way, without a word; or not.
    pub fn lie(&self, lie: bool) {
        self.switch.0.lock().lie = lie;
    }

    /// How many calls there have been, failed ones included.
    pub fn calls(&self) -> u64 {
        self.switch.0.lock().calls
    }

    /// The backend behind.
    pub fn inner(&self) -> &B {
        &self.inner
    }
}

impl<B: Backend> Backend for FaultyBackend<B> {
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        self.switch
            .call("read_dir", dir, || self.inner.read_dir(dir))
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        self.switch.call("stat", path, || self.inner.metadata(path))
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let inner = self.switch.call("open", path, || self.inner.open(path))?;
        let switch = self.switch.clone();
        Ok(Box::new(FaultyReader { inner, switch }))
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let work = || self.inner.open_uncached(path);
        let inner = self.switch.call("open", path, work)?;
        let switch = self.switch.clone();
        Ok(Box::new(FaultyReader { inner, switch }))
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        let inner = self
            .switch
            .call("create", path, || self.inner.create(path))?;
        let switch = self.switch.clone();
        Ok(Box::new(FaultyWriter { inner, switch }))
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.switch
            .call("mkdir", path, || self.inner.make_dir(path))
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.switch
            .call("rename", from, || self.inner.rename(from, to))
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.switch
            .call("rename", from, || self.inner.rename_new(from, to))
    }

    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        self.switch
            .call("exchange", one, || self.inner.exchange(one, other))
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        self.switch
            .call("remove", path, || self.inner.remove_file(path))
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        self.switch
            .call("rmdir", path, || self.inner.remove_dir(path))
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        let work = || self.inner.set_modified(path, modified);
        self.switch.call("set time of", path, work)
    }

    fn sync(&self) -> Result<()> {
        self.switch
            .call("sync", &RelPath::root(), || self.inner.sync())
    }

    fn space(&self) -> Result<Space> {
        self.switch
            .call("statfs", &RelPath::root(), || self.inner.space())
    }

    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        let work = || self.inner.make_symlink(target, path);
        self.switch.call("symlink", path, work)
    }

    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let work = || self.inner.make_hard_link(from, to);
        self.switch.call("link", to, work)
    }

    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        let work = || self.inner.set_permissions(path, mode);
        self.switch.call("set permissions of", path, work)
    }

    /// A property of the file system, not a call.
    fn renames_atomically(&self) -> bool {
        self.inner.renames_atomically()
    }

    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        let work = || self.inner.make_node(kind, rdev, path);
        self.switch.call("mknod", path, work)
    }

    fn set_owner(&self, path: &RelPath, owner: Option<u32>, group: Option<u32>) -> Result<()> {
        let work = || self.inner.set_owner(path, owner, group);
        self.switch.call("set owner of", path, work)
    }

    fn xattrs(&self, path: &RelPath) -> Result<Xattrs> {
        let work = || self.inner.xattrs(path);
        self.switch.call("read attributes of", path, work)
    }

    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        let work = || self.inner.set_xattrs(path, xattrs);
        self.switch.call("set attributes of", path, work)
    }
}

struct FaultyReader {
    inner: Box<dyn ReadFile>,
    switch: Switch,
}

impl ReadFile for FaultyReader {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.switch.io(|| self.inner.read_at(buf, offset))
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.switch.io(|| self.inner.metadata())
    }
}

struct FaultyWriter {
    inner: Box<dyn WriteFile>,
    switch: Switch,
}

impl WriteFile for FaultyWriter {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let lie = self.switch.0.lock().lie;
        self.switch.io(|| match data.split_first() {
            Some((first, rest)) if lie => {
                self.inner.append(&[!first])?;
                self.inner.append(rest)
            }
            _ => self.inner.append(data),
        })
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let FaultyWriter { inner, switch } = *self;
        switch.io(|| inner.finish(modified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory::{MemoryBackend, MemoryOptions};

    fn backend() -> FaultyBackend<MemoryBackend> {
        FaultyBackend::new(MemoryBackend::new(MemoryOptions::default()))
    }

    #[test]
    fn the_calls_on_open_files_are_counted_and_fail_like_any_other() {
        let faulty = backend();
        faulty.fail_at(3, libc::EIO);
        let path = RelPath::fixed("f");
        let mut file = faulty.create(&path).unwrap();
        file.append(b"one").unwrap();
        assert_eq!(
            file.append(b"two").unwrap_err().raw_os_error(),
            Some(libc::EIO)
        );
        file.finish(Timestamp(0)).unwrap();
        assert_eq!(faulty.metadata(&path).unwrap().size, 3);
        assert_eq!(faulty.calls(), 5);
    }

    #[test]
    fn a_call_that_takes_effect_before_failing_has_been_done() {
        let faulty = backend();
        faulty.arm(Fault {
            takes_effect: true,
            ..Fault::at(1, libc::EIO)
        });
        assert!(faulty.make_dir(&RelPath::fixed("d")).is_err());
        assert!(faulty.metadata(&RelPath::fixed("d")).is_ok());
    }

    #[test]
    fn a_dead_backend_stays_dead_until_healed() {
        let faulty = backend();
        faulty.arm(Fault {
            stays_dead: true,
            ..Fault::at(2, libc::ENOMEDIUM)
        });
        faulty.sync().unwrap();
        for _ in 0..3 {
            assert!(faulty.sync().unwrap_err().is_gone());
        }
        faulty.heal();
        faulty.sync().unwrap();
    }
}
