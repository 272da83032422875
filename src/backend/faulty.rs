//! A backend that fails on command, around any other. For tests: raise the number of the failing call until nothing
//! fails any more, and check after each run that no promise was broken.
//!
//! Every call counts, reading or changing, also those on open files (`read_at`, `metadata`, `append`, `finish`); opening
//! and creating count once. Dropping a file does not count. A lone counter behind one lock gives each call its number,
//! so runs with one thread are repeatable. The lock is not held while the inner backend works.
//!
//! It can lie as well ([`FaultyBackend::lie`]): what is appended goes down changed, and every call succeeds. It can be full from
//! some call on ([`FaultyBackend::fill_from`]), or refuse one thing for ever ([`FaultyBackend::refuse_from`]).

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Backend, BackendError, Entry, Metadata, ReadFile, Result, Space, WriteFile, Xattrs};
use crate::base::{FileKind, RelPath, Timestamp};
use crate::rules::layout;
use crate::rules::trust::Trust;

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

/// The operations that may need space.
const TAKE_SPACE: [&str; 9] = [
    "create",
    "write",
    "close",
    "mkdir",
    "rename",
    "symlink",
    "link",
    "mknod",
    "set attributes of",
];

/// One call, which is refused whenever it is made.
#[derive(Debug)]
struct Refusal {
    /// The number of the call that shows which.
    at: u64,
    errno: i32,
    /// Operation and path, once it has been made.
    what: Option<(&'static str, RelPath)>,
}

/// What somebody else does at some moment.
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
    full_from: Option<u64>,
    refusal: Option<Refusal>,
    interlude: Option<(u64, Interlude)>,
}

impl Counter {
    fn judge(&mut self, operation: &'static str, path: &RelPath) -> Verdict {
        let calls = self.calls;
        if self.full_from.is_some_and(|from| calls >= from) && TAKE_SPACE.contains(&operation) {
            return Verdict::Fail(libc::ENOSPC);
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
                return Verdict::Fail(refusal.errno);
            }
        }
        match self.fault {
            Some(fault) if calls == fault.at && fault.takes_effect => {
                Verdict::WorkThenFail(fault.errno)
            }
            Some(fault) if calls == fault.at => Verdict::Fail(fault.errno),
            Some(fault) if calls > fault.at && fault.stays_dead => Verdict::Fail(fault.errno),
            _ => Verdict::Work,
        }
    }
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
    fn next(&self, operation: &'static str, path: &RelPath) -> Verdict {
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

    fn io<T>(
        &self,
        operation: &'static str,
        path: &RelPath,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match self.next(operation, path) {
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
        self.call_about(operation, path, path, work)
    }

    /// The same for a call that is known by another path than its error names.
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

    /// From call number `n` on every call that may need space fails with ENOSPC.
    pub fn fill_from(&self, n: u64) {
        self.switch.0.lock().full_from = Some(n);
    }

    /// Call number `n` fails with `errno`, and from then on every call of the same operation on the same path.
    pub fn refuse_from(&self, n: u64, errno: i32) {
        self.switch.0.lock().refusal = Some(Refusal {
            at: n,
            errno,
            what: None,
        });
    }

    /// What is refused: operation and path.
    pub fn refused(&self) -> Option<(&'static str, RelPath)> {
        let counter = self.switch.0.lock();
        counter.refusal.as_ref().and_then(|it| it.what.clone())
    }

    /// Does `work` just before call number `n`, as somebody else might.
    pub fn before_call(&self, n: u64, work: impl FnOnce() + Send + 'static) {
        self.switch.0.lock().interlude = Some((n, Interlude(Box::new(work))));
    }

    /// Takes all faults away: all further calls work.
    pub fn heal(&self) {
        let mut counter = self.switch.0.lock();
        (counter.fault, counter.full_from) = (None, None);
        (counter.refusal, counter.interlude) = (None, None);
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
        let (switch, path) = (self.switch.clone(), path.clone());
        Ok(Box::new(FaultyReader {
            inner,
            switch,
            path,
        }))
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let work = || self.inner.open_uncached(path);
        let inner = self.switch.call("open", path, work)?;
        let (switch, path) = (self.switch.clone(), path.clone());
        Ok(Box::new(FaultyReader {
            inner,
            switch,
            path,
        }))
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        let work = || self.inner.open_judged(path);
        let (inner, trust) = self.switch.call("open", path, work)?;
        let (switch, path) = (self.switch.clone(), path.clone());
        let file = FaultyReader {
            inner,
            switch,
            path,
        };
        Ok((Box::new(file), trust))
    }

    fn trust(&self, path: &RelPath) -> Result<Trust> {
        self.switch.call("stat", path, || self.inner.trust(path))
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        let inner = self
            .switch
            .call("create", path, || self.inner.create(path))?;
        let (switch, path) = (self.switch.clone(), path.clone());
        Ok(Box::new(FaultyWriter {
            inner,
            switch,
            path,
        }))
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.switch
            .call("mkdir", path, || self.inner.make_dir(path))
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        // Slots are other ones each time; what a file system refuses is somebody's name.
        let about = if layout::is_reserved(to) { from } else { to };
        let work = || self.inner.rename(from, to);
        self.switch.call_about("rename", from, about, work)
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

struct FaultyWriter {
    inner: Box<dyn WriteFile>,
    switch: Switch,
    path: RelPath,
}

impl WriteFile for FaultyWriter {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let lie = self.switch.0.lock().lie;
        let (switch, path) = (&self.switch, &self.path);
        switch.io("write", path, || match data.split_first() {
            Some((first, rest)) if lie => {
                self.inner.append(&[!first])?;
                self.inner.append(rest)
            }
            _ => self.inner.append(data),
        })
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let FaultyWriter {
            inner,
            switch,
            path,
        } = *self;
        switch.io("close", &path, || inner.finish(modified))
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
