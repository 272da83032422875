//! A backend that fails on demand, around any other. For tests: increase the number of the failing
//! call until no call fails, and check after each run that every promise held.
//!
//! Every call counts, reading or changing, also those on open files (`read_at`, `metadata`,
//! `append`, `write_at`, `finish`). Opening and creating count once. Dropping a file does not
//! count. A single counter behind one lock numbers the calls, so runs with one thread are
//! repeatable. The lock is not held while the inner backend works.
//!
//! It can also corrupt appended data while every call succeeds ([`FaultyBackend::lie`]), be full
//! from some call on ([`FaultyBackend::fill_from`]), refuse one operation for ever
//! ([`FaultyBackend::refuse_from`]), or have one directory on a file system of its own
//! ([`FaultyBackend::separate`]).

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::core::{Entry, FileKind, Metadata, Name, RelPath, Space, Timestamp, Xattrs};
use crate::drive::{
    Access, Backend, BackendError, CLOSE, KeptOpen, ModifyFile, ReadFile, Result, SYNC, WRITE,
    WriteFile, WriteOut,
};
use crate::format::layout;
use crate::plan::trust::Trust;

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Number of the failing call, counted from 1 over the life of the backend.
    pub at: u64,
    /// The `errno` of the failure.
    pub errno: i32,
    /// Every later call fails as well, as after the drive was pulled out.
    pub stays_dead: bool,
    /// The failing call takes effect before it fails, as if only its answer were lost. Later calls
    /// do not.
    pub takes_effect: bool,
}

impl Fault {
    /// Makes call number `at` fail with `errno`, without effect; later calls work.
    pub fn at(at: u64, errno: i32) -> Fault {
        Fault {
            at,
            errno,
            stays_dead: false,
            takes_effect: false,
        }
    }
}

/// The operations that may need space.
const TAKE_SPACE: [&str; 9] = [
    "create",
    WRITE,
    CLOSE,
    "mkdir",
    "rename",
    "symlink",
    "link",
    "mknod",
    "set attributes of",
];

/// One operation that is always refused.
#[derive(Debug)]
struct Refusal {
    /// The number of the call that selects the operation.
    at: u64,
    errno: i32,
    /// The operation and its path, once the call has happened.
    what: Option<(&'static str, RelPath)>,
}

/// A change by another program at a chosen moment.
struct Interlude(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Interlude {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interlude")
    }
}

#[derive(Debug, Default)]
struct Counter {
    calls: u64,
    fault: Option<Fault>,
    lie: bool,
    /// The file whose writes alone are corrupted.
    lie_in: Option<RelPath>,
    full_from: Option<u64>,
    refusal: Option<Refusal>,
    interlude: Option<(u64, Interlude)>,
    /// What is in this directory is on another file system than the rest.
    separate: Option<RelPath>,
    /// The directories that were listed.
    listed: Vec<RelPath>,
}

impl Counter {
    fn judge(&mut self, operation: &'static str, path: &RelPath) -> CallVerdict {
        let calls = self.calls;
        if self.full_from.is_some_and(|from| calls >= from) && TAKE_SPACE.contains(&operation) {
            return CallVerdict::Fail(libc::ENOSPC);
        }
        if let Some(refusal) = &mut self.refusal {
            if refusal.at == calls {
                refusal.what = Some((operation, path.clone()));
            }
            if refusal
                .what
                .as_ref()
                .is_some_and(|it| *it == (operation, path.clone()))
            {
                return CallVerdict::Fail(refusal.errno);
            }
        }
        match self.fault {
            Some(fault) if calls == fault.at && fault.takes_effect => {
                CallVerdict::WorkThenFail(fault.errno)
            }
            Some(fault) if calls == fault.at => CallVerdict::Fail(fault.errno),
            Some(fault) if calls > fault.at && fault.stays_dead => CallVerdict::Fail(fault.errno),
            _ => CallVerdict::Work,
        }
    }
}

/// The outcome of one call.
enum CallVerdict {
    Work,
    Fail(i32),
    WorkThenFail(i32),
}

#[derive(Clone, Debug, Default)]
struct Switch(Arc<Mutex<Counter>>);

impl Switch {
    fn lies_in(&self, path: &RelPath) -> bool {
        let counter = self.0.lock();
        counter.lie || counter.lie_in.as_ref() == Some(path)
    }

    fn next(&self, operation: &'static str, path: &RelPath) -> CallVerdict {
        let (verdict, interlude) = {
            let mut counter = self.0.lock();
            counter.calls += 1;
            let calls = counter.calls;
            let interlude = counter.interlude.take_if(|(at, _)| *at == calls);
            (counter.judge(operation, path), interlude)
        };
        if let Some((_, Interlude(work))) = interlude {
            work();
        }
        verdict
    }

    /// Passes if both paths are on one file system.
    fn check_separate(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let separate = self.0.lock().separate.clone();
        let is_in = |path: &RelPath| {
            let dir = separate.as_ref();
            dir.is_some_and(|dir| path != dir && path.is_in_or_at(dir))
        };
        match is_in(from) == is_in(to) {
            true => Ok(()),
            false => {
                let source = io::Error::from_raw_os_error(libc::EXDEV);
                Err(BackendError::new("rename", from, source))
            }
        }
    }

    fn io<T>(
        &self,
        operation: &'static str,
        path: &RelPath,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match self.next(operation, path) {
            CallVerdict::Work => work(),
            CallVerdict::Fail(errno) => Err(io::Error::from_raw_os_error(errno)),
            CallVerdict::WorkThenFail(errno) => {
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
        self.call_about(operation, path, path, work)
    }

    /// The same for a call that is identified by another path than its error names.
    fn call_about<T>(
        &self,
        operation: &'static str,
        path: &RelPath,
        about: &RelPath,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let failed =
            |errno| BackendError::new(operation, path, io::Error::from_raw_os_error(errno));
        match self.next(operation, about) {
            CallVerdict::Work => work(),
            CallVerdict::Fail(errno) => Err(failed(errno)),
            CallVerdict::WorkThenFail(errno) => {
                work()?;
                Err(failed(errno))
            }
        }
    }
}

/// A backend that passes calls on to `B`, except those that fail on demand. Clones share the count
/// and the fault.
#[derive(Clone, Debug)]
pub struct FaultyBackend<B> {
    inner: B,
    switch: Switch,
}

impl<B> FaultyBackend<B> {
    /// Wraps `inner`, without a fault.
    pub fn new(inner: B) -> FaultyBackend<B> {
        FaultyBackend {
            inner,
            switch: Switch::default(),
        }
    }

    /// Makes call number `n` (counted from 1 over the life of the backend) fail once with `errno`,
    /// without effect.
    pub fn fail_at(&self, n: u64, errno: i32) {
        self.arm(Fault::at(n, errno));
    }

    /// Sets the fault, in place of any other.
    pub fn arm(&self, fault: Fault) {
        self.switch.0.lock().fault = Some(fault);
    }

    /// Makes every call that may need space fail with ENOSPC, from call number `n` on.
    pub fn fill_from(&self, n: u64) {
        self.switch.0.lock().full_from = Some(n);
    }

    /// Makes call number `n` fail with `errno`, and from then on every call of the same operation
    /// on the same path.
    pub fn refuse_from(&self, n: u64, errno: i32) {
        self.switch.0.lock().refusal = Some(Refusal {
            at: n,
            errno,
            what: None,
        });
    }

    /// Makes every call of `operation` on `path` fail with `errno` from now on.
    pub fn refuse(&self, operation: &'static str, path: RelPath, errno: i32) {
        self.switch.0.lock().refusal = Some(Refusal {
            at: u64::MAX,
            errno,
            what: Some((operation, path)),
        });
    }

    /// Returns the refused operation and its path.
    pub fn refused(&self) -> Option<(&'static str, RelPath)> {
        let counter = self.switch.0.lock();
        counter.refusal.as_ref().and_then(|it| it.what.clone())
    }

    /// Runs `work` just before call number `n`, as another program might.
    pub fn before_call(&self, n: u64, work: impl FnOnce() + Send + 'static) {
        self.switch.0.lock().interlude = Some((n, Interlude(Box::new(work))));
    }

    /// Has what is below the directory `dir` be on a file system of its own from now on: moves and
    /// links into it or out of it fail with `EXDEV`. [`FaultyBackend::heal`] leaves this as it is.
    pub fn separate(&self, dir: RelPath) {
        self.switch.0.lock().separate = Some(dir);
    }

    /// Removes all faults: all further calls work.
    pub fn heal(&self) {
        let mut counter = self.switch.0.lock();
        (counter.fault, counter.full_from) = (None, None);
        (counter.refusal, counter.interlude) = (None, None);
    }

    /// Turns silent corruption on or off: the first byte of each append to a file is then changed.
    pub fn lie(&self, lie: bool) {
        self.switch.0.lock().lie = lie;
    }

    /// The same for the writes to one file only.
    pub fn lie_in(&self, path: Option<RelPath>) {
        self.switch.0.lock().lie_in = path;
    }

    /// Returns the number of calls so far, including failed ones.
    pub fn calls(&self) -> u64 {
        self.switch.0.lock().calls
    }

    /// Returns the directories that were listed since the last call of this, in order.
    pub fn take_listed(&self) -> Vec<RelPath> {
        std::mem::take(&mut self.switch.0.lock().listed)
    }

    /// Returns the inner backend.
    pub fn inner(&self) -> &B {
        &self.inner
    }
}

impl<B> FaultyBackend<B> {
    /// A file for reading whose calls this backend judges.
    fn reader(&self, path: &RelPath, inner: Box<dyn ReadFile>) -> FaultyReader {
        FaultyReader {
            inner,
            switch: self.switch.clone(),
            path: path.clone(),
        }
    }

    /// The same for writing.
    fn writer<F: ?Sized>(&self, path: &RelPath, inner: Box<F>) -> FaultyWriter<F> {
        FaultyWriter {
            inner,
            switch: self.switch.clone(),
            path: path.clone(),
        }
    }
}

impl<B: Backend> Backend for FaultyBackend<B> {
    fn remount(&self, access: Access) -> Result<bool> {
        let work = || self.inner.remount(access);
        self.switch.call("remount", &RelPath::root(), work)
    }

    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        self.switch.0.lock().listed.push(dir.clone());
        self.switch
            .call("read_dir", dir, || self.inner.read_dir(dir))
    }

    fn names_in(&self, dir: &RelPath) -> Result<Vec<Name>> {
        self.switch.0.lock().listed.push(dir.clone());
        self.switch
            .call("read_dir", dir, || self.inner.names_in(dir))
    }

    fn metadata_now(&self, path: &RelPath) -> Result<Metadata> {
        let work = || self.inner.metadata_now(path);
        self.switch.call("stat", path, work)
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        self.switch.call("stat", path, || self.inner.metadata(path))
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let inner = self.switch.call("open", path, || self.inner.open(path))?;
        Ok(Box::new(self.reader(path, inner)))
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let work = || self.inner.open_uncached(path);
        let inner = self.switch.call("open", path, work)?;
        Ok(Box::new(self.reader(path, inner)))
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        let work = || self.inner.open_judged(path);
        let (inner, trust) = self.switch.call("open", path, work)?;
        Ok((Box::new(self.reader(path, inner)), trust))
    }

    fn trust(&self, path: &RelPath) -> Result<Trust> {
        self.switch.call("stat", path, || self.inner.trust(path))
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        let inner = self
            .switch
            .call("create", path, || self.inner.create(path))?;
        Ok(Box::new(self.writer(path, inner)))
    }

    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>> {
        let work = || self.inner.modify(path);
        let inner = self.switch.call("modify", path, work)?;
        Ok(Box::new(self.writer(path, inner)))
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.switch
            .call("mkdir", path, || self.inner.make_dir(path))
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        // The slots differ in each run, so a file system's refusal is about the user's name.
        let about = if layout::is_reserved(to) { from } else { to };
        let work = || {
            self.switch.check_separate(from, to)?;
            self.inner.rename(from, to)
        };
        self.switch.call_about("rename", from, about, work)
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        let work = || {
            self.switch.check_separate(from, to)?;
            self.inner.rename_new(from, to)
        };
        self.switch.call("rename", from, work)
    }

    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        let work = || {
            self.switch.check_separate(one, other)?;
            self.inner.exchange(one, other)
        };
        self.switch.call("exchange", one, work)
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
            .call(SYNC, &RelPath::root(), || self.inner.sync())
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
        let work = || {
            self.switch.check_separate(from, to)?;
            self.inner.make_hard_link(from, to)
        };
        self.switch.call("link", to, work)
    }

    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        let work = || self.inner.set_permissions(path, mode);
        self.switch.call("set permissions of", path, work)
    }

    /// No call to the file system.
    fn keep_open(&self) -> KeptOpen {
        self.inner.keep_open()
    }

    /// A property of the file system, not a call.
    fn renames_atomically(&self) -> bool {
        self.inner.renames_atomically()
    }

    fn links_may_be_copies(&self) -> bool {
        self.switch.0.lock().separate.is_some() || self.inner.links_may_be_copies()
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
    path: RelPath,
}

impl ReadFile for FaultyReader {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.switch
            .io("read", &self.path, || self.inner.read_at(buf, offset))
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.switch
            .io("stat file", &self.path, || self.inner.metadata())
    }
}

struct FaultyWriter<F: ?Sized> {
    inner: Box<F>,
    switch: Switch,
    path: RelPath,
}

impl WriteFile for FaultyWriter<dyn WriteFile> {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let lie = self.switch.lies_in(&self.path);
        let (switch, path) = (&self.switch, &self.path);
        switch.io(WRITE, path, || match data.split_first() {
            Some((first, rest)) if lie => {
                self.inner.append(&[!first])?;
                self.inner.append(rest)
            }
            _ => self.inner.append(data),
        })
    }

    fn write_out(&mut self, how: WriteOut) -> io::Result<()> {
        let (switch, path) = (&self.switch, &self.path);
        switch.io("write out", path, || self.inner.write_out(how))
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let FaultyWriter {
            inner,
            switch,
            path,
        } = *self;
        switch.io(CLOSE, &path, || inner.finish(modified))
    }
}

impl ModifyFile for FaultyWriter<dyn ModifyFile> {
    /// As for an append; a change within the file takes no space.
    fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let lie = self.switch.lies_in(&self.path);
        let (switch, path) = (&self.switch, &self.path);
        switch.io(WRITE, path, || match data.split_first() {
            Some((first, rest)) if lie => {
                self.inner.write_at(&[!first], offset)?;
                self.inner.write_at(rest, offset + 1)
            }
            _ => self.inner.write_at(data, offset),
        })
    }

    fn set_size(&mut self, size: u64) -> io::Result<()> {
        let work = || self.inner.set_size(size);
        self.switch.io("truncate", &self.path, work)
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let FaultyWriter {
            inner,
            switch,
            path,
        } = *self;
        switch.io(CLOSE, &path, || inner.finish(modified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::memory::{MemoryBackend, MemoryOptions};

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
    fn a_full_backend_takes_nothing_and_lets_go() {
        let faulty = backend();
        let (file, dir) = (RelPath::fixed("f"), RelPath::fixed("d"));
        drop(faulty.create(&file).unwrap());
        faulty.fill_from(faulty.calls() + 1);
        assert!(faulty.make_dir(&dir).unwrap_err().is_full());
        assert!(faulty.rename(&file, &dir).unwrap_err().is_full());
        faulty.remove_file(&file).unwrap();
        faulty.heal();
        faulty.make_dir(&dir).unwrap();
    }

    #[test]
    fn what_is_refused_once_is_refused_for_ever_and_nothing_else() {
        let faulty = backend();
        faulty.refuse_from(1, libc::EPERM);
        for path in ["a", "b", "a"].map(RelPath::fixed) {
            let made = faulty.make_dir(&path);
            assert_eq!(made.is_err(), path == RelPath::fixed("a"));
        }
        assert_eq!(faulty.refused(), Some(("mkdir", RelPath::fixed("a"))));
        drop(faulty.create(&RelPath::fixed("a")).unwrap());
    }

    #[test]
    fn others_do_something_right_before_a_call() {
        let faulty = backend();
        let (inner, path) = (faulty.inner().clone(), RelPath::fixed("d"));
        faulty.before_call(2, move || inner.make_dir(&RelPath::fixed("d")).unwrap());
        assert!(faulty.metadata(&path).is_err());
        assert!(faulty.metadata(&path).is_ok());
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
