//! A backend that reports its errors to the drive's monitor and can be revoked at once, even while
//! it is in use.
//!
//! State: whether it is revoked, and its open files. After [`Watched::let_go`] every call fails
//! with ENOMEDIUM without reaching the file system. Every descriptor is closed as soon as the call
//! that is using it has returned. So a stale mount can be unmounted. Also, a flush in progress
//! cannot continue with a drive that comes back at the same path before its batch has been
//! recovered. A call in progress at the revocation may still take effect on the drive, as it may
//! when a drive is pulled out; it fails with ENOMEDIUM unless it succeeded.
//!
//! A drive that was exchanged while the machine slept is revoked by the first call after the sleep,
//! which does not reach it ([`crate::drive::exchanged`]).
//!
//! A drive that comes back gets another `Watched`.
//!
//! Locks: `open`, and one for each open file. None is held while another one is taken. During a
//! call to the file system all are free, except that a revoked file is closed under its own lock.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::core::{Entry, FileKind, Metadata, Name, RelPath, Space, Timestamp, Xattrs};
use crate::drive::exchanged::{AfterSleep, Asleep, Verdict};
use crate::drive::{
    Access, Backend, BackendError, KeptOpen, Look, ModifyFile, ReadFile, Result, SYNC, WriteFile,
    WriteOut,
};
use crate::plan::trust::Trust;

/// Called for errors that may mean that the drive is gone, on the thread that got the error. It
/// must not wait for anything.
pub type OnTrouble = dyn Fn() + Send + Sync;

/// A revocable backend. See the head of this file.
pub struct Watched {
    inner: Arc<dyn Backend>,
    revocation: Arc<Revocation>,
    open: Mutex<Vec<Weak<dyn Held>>>,
}

struct Revocation {
    revoked: AtomicBool,
    on_trouble: Box<OnTrouble>,
    /// `None` where the drive has no marker yet.
    after_sleep: Option<AfterSleep>,
}

impl Revocation {
    fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Checks that a call may reach the file system. After a sleep of the machine this reads from
    /// the drive.
    fn admit(&self) -> io::Result<()> {
        if self.is_revoked() {
            return Err(no_medium());
        }
        match self.after_sleep.as_ref().map(AfterSleep::verdict) {
            None | Some(Verdict::Same) => return Ok(()),
            Some(Verdict::Exchanged) => {
                tracing::error!(
                    "another drive is at the place of the drive since the machine slept: nothing \
                     is written to it"
                );
                self.revoked.store(true, Ordering::Release);
            }
            Some(Verdict::Unknown) => {}
        }
        (self.on_trouble)();
        Err(no_medium())
    }

    /// Converts an answer of the file system into the answer for the caller, and reports errors.
    fn judge<T>(&self, answer: Result<T>) -> Result<T> {
        answer.map_err(|mut error| {
            if self.is_revoked() {
                error.source = no_medium();
            } else if error.is_gone() {
                (self.on_trouble)();
            }
            error
        })
    }

    /// The same for an open file, whose errors do not name it.
    fn judge_io<T>(&self, answer: io::Result<T>) -> io::Result<T> {
        self.judge(answer.map_err(|source| BackendError::new("use", &RelPath::root(), source)))
            .map_err(|error| error.source)
    }
}

/// An object that holds a descriptor and can close it.
trait Held: Send + Sync {
    fn close(&self);
}

impl Watched {
    /// Wraps `inner`; calls `on_trouble` for its errors.
    pub fn new(inner: Arc<dyn Backend>, on_trouble: Box<OnTrouble>) -> Watched {
        Watched {
            inner,
            revocation: Arc::new(Revocation {
                revoked: AtomicBool::new(false),
                on_trouble,
                after_sleep: None,
            }),
            open: Mutex::default(),
        }
    }

    /// The same, and after each sleep of the machine checks first that the drive still is the one
    /// that it is now. `asleep` returns how long the machine has slept since its boot.
    pub fn with_sleep(
        inner: Arc<dyn Backend>,
        on_trouble: Box<OnTrouble>,
        asleep: Box<Asleep>,
    ) -> Watched {
        Watched {
            revocation: Arc::new(Revocation {
                revoked: AtomicBool::new(false),
                on_trouble,
                after_sleep: AfterSleep::new(inner.clone(), asleep),
            }),
            inner,
            open: Mutex::default(),
        }
    }

    /// Revokes the backend for good. Does not wait for calls in progress.
    pub fn let_go(&self) {
        self.revocation.revoked.store(true, Ordering::Release);
        let open = std::mem::take(&mut *self.open.lock());
        for held in open.iter().filter_map(Weak::upgrade) {
            held.close();
        }
    }

    fn call<T>(
        &self,
        operation: &'static str,
        path: &RelPath,
        call: impl FnOnce(&dyn Backend) -> Result<T>,
    ) -> Result<T> {
        (self.revocation.admit()).map_err(|error| BackendError::new(operation, path, error))?;
        self.revocation.judge(call(&*self.inner))
    }

    /// Registers an open file. If the backend was revoked meanwhile, this closes the file, since no
    /// other code would.
    fn hold(&self, held: Weak<dyn Held>) {
        let mut open = self.open.lock();
        if self.revocation.is_revoked() {
            drop(open);
            if let Some(held) = held.upgrade() {
                held.close();
            }
            return;
        }
        // Entries of files that were closed normally are removed when the list would grow.
        if open.len() == open.capacity() {
            open.retain(|held| held.strong_count() > 0);
        }
        open.push(held);
    }
}

impl Watched {
    fn register_reader(&self, file: Box<dyn ReadFile>) -> Box<dyn ReadFile> {
        let reader = Arc::new(Reader {
            file: RwLock::new(Some(file.into())),
            revocation: self.revocation.clone(),
        });
        let held: Arc<dyn Held> = reader.clone();
        self.hold(Arc::downgrade(&held));
        Box::new(Shared(reader))
    }
}

impl Watched {
    fn register_writer<F: ?Sized + Send + 'static>(&self, file: Box<F>) -> Shared<Writer<F>> {
        let writer = Arc::new(Writer {
            file: Mutex::new(Some(file)),
            revocation: self.revocation.clone(),
        });
        let held: Arc<dyn Held> = writer.clone();
        self.hold(Arc::downgrade(&held));
        Shared(writer)
    }
}

impl Backend for Watched {
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        self.call("read_dir", dir, |inner| inner.read_dir(dir))
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        self.call("stat", path, |inner| inner.metadata(path))
    }

    fn names_in(&self, dir: &RelPath) -> Result<Vec<Name>> {
        self.call("read_dir", dir, |inner| inner.names_in(dir))
    }

    fn metadata_now(&self, path: &RelPath) -> Result<Metadata> {
        self.call("stat", path, |inner| inner.metadata_now(path))
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let file = self.call("open", path, |inner| inner.open(path))?;
        Ok(self.register_reader(file))
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let file = self.call("open", path, |inner| inner.open_uncached(path))?;
        Ok(self.register_reader(file))
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        let (file, trust) = self.call("open", path, |inner| inner.open_judged(path))?;
        Ok((self.register_reader(file), trust))
    }

    fn trust(&self, path: &RelPath) -> Result<Trust> {
        self.call("stat", path, |inner| inner.trust(path))
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        let file = self.call("create", path, |inner| inner.create(path))?;
        Ok(Box::new(self.register_writer(file)))
    }

    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>> {
        let file = self.call("open", path, |inner| inner.modify(path))?;
        Ok(Box::new(self.register_writer(file)))
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.call("mkdir", path, |inner| inner.make_dir(path))
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.call("rename", from, |inner| inner.rename(from, to))
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.call("rename", from, |inner| inner.rename_new(from, to))
    }

    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        self.call("exchange", one, |inner| inner.exchange(one, other))
    }

    fn check_changeable(&self, dir: &RelPath) -> Result<()> {
        self.call("check", dir, |inner| inner.check_changeable(dir))
    }

    fn check_replaceable(&self, path: &RelPath) -> Result<()> {
        self.call("check", path, |inner| inner.check_replaceable(path))
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        self.call("remove", path, |inner| inner.remove_file(path))
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        self.call("rmdir", path, |inner| inner.remove_dir(path))
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        self.call("set time of", path, |inner| {
            inner.set_modified(path, modified)
        })
    }

    fn remount(&self, access: Access) -> Result<bool> {
        self.call("remount", &RelPath::root(), |inner| inner.remount(access))
    }

    fn sync(&self) -> Result<()> {
        let synced = self.call(SYNC, &RelPath::root(), |inner| inner.sync());
        // After a revocation during the sync the path may lead to another drive, so nothing counts
        // as written.
        match synced {
            Ok(()) if self.revocation.is_revoked() => {
                Err(BackendError::new(SYNC, &RelPath::root(), no_medium()))
            }
            answer => answer,
        }
    }

    fn space(&self) -> Result<Space> {
        self.call("statfs", &RelPath::root(), |inner| inner.space())
    }

    fn keep_open(&self) -> KeptOpen {
        let phase = Arc::new(Phase(Mutex::new(Some(self.inner.keep_open()))));
        let held: Arc<dyn Held> = phase.clone();
        self.hold(Arc::downgrade(&held));
        Box::new(phase)
    }

    fn renames_atomically(&self) -> bool {
        !self.revocation.is_revoked() && self.inner.renames_atomically()
    }

    fn links_may_be_copies(&self) -> bool {
        !self.revocation.is_revoked() && self.inner.links_may_be_copies()
    }

    /// As the trait says. The monitor itself asks here, so errors are not reported to it again.
    fn check_alive(&self, look: Look) -> Result<()> {
        if self.revocation.is_revoked() {
            return Err(BackendError::new("look for", &RelPath::root(), no_medium()));
        }
        self.inner.check_alive(look)
    }

    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        self.call("symlink", path, |inner| inner.make_symlink(target, path))
    }

    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.call("link", to, |inner| inner.make_hard_link(from, to))
    }

    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        self.call("set permissions of", path, |inner| {
            inner.set_permissions(path, mode)
        })
    }

    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        self.call("mknod", path, |inner| inner.make_node(kind, rdev, path))
    }

    fn set_owner(&self, path: &RelPath, owner: Option<u32>, group: Option<u32>) -> Result<()> {
        self.call("set owner of", path, |inner| {
            inner.set_owner(path, owner, group)
        })
    }

    fn xattrs(&self, path: &RelPath) -> Result<Xattrs> {
        self.call("read attributes of", path, |inner| inner.xattrs(path))
    }

    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        self.call("set attributes of", path, |inner| {
            inner.set_xattrs(path, xattrs)
        })
    }
}

/// The caller's reference to an open file; the list of open files has a weak one.
struct Shared<T>(Arc<T>);

/// A phase of a batch; `None` once it is revoked.
struct Phase(Mutex<Option<KeptOpen>>);

impl Held for Phase {
    fn close(&self) {
        *self.0.lock() = None;
    }
}

struct Reader {
    /// `None` once it is revoked. It is cloned out of the lock before use, so that a read that
    /// hangs blocks no other thread.
    file: RwLock<Option<Arc<dyn ReadFile>>>,
    revocation: Arc<Revocation>,
}

impl Reader {
    fn file(&self) -> io::Result<Arc<dyn ReadFile>> {
        self.revocation.admit()?;
        self.file.read().clone().ok_or_else(no_medium)
    }
}

impl Held for Reader {
    fn close(&self) {
        *self.file.write() = None;
    }
}

impl ReadFile for Shared<Reader> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let file = self.0.file()?;
        self.0.revocation.judge_io(file.read_at(buf, offset))
    }

    fn metadata(&self) -> io::Result<Metadata> {
        let file = self.0.file()?;
        self.0.revocation.judge_io(file.metadata())
    }
}

struct Writer<F: ?Sized> {
    /// `None` once it is revoked, and while it is in use.
    file: Mutex<Option<Box<F>>>,
    revocation: Arc<Revocation>,
}

impl<F: ?Sized> Writer<F> {
    fn take(&self) -> io::Result<Box<F>> {
        self.revocation.admit()?;
        self.file.lock().take().ok_or_else(no_medium)
    }

    fn change(&self, change: impl FnOnce(&mut F) -> io::Result<()>) -> io::Result<()> {
        let mut file = self.take()?;
        let answer = self.revocation.judge_io(change(&mut file));
        let mut slot = self.file.lock();
        // Checked under the lock that `close` takes: a file that is put back after the revocation
        // would never be closed.
        if self.revocation.is_revoked() {
            return Err(no_medium());
        }
        *slot = Some(file);
        answer
    }
}

impl<F: ?Sized + Send> Held for Writer<F> {
    fn close(&self) {
        *self.file.lock() = None;
    }
}

impl WriteFile for Shared<Writer<dyn WriteFile>> {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.0.change(|file| file.append(data))
    }

    fn write_out(&mut self, how: WriteOut) -> io::Result<()> {
        self.0.change(|file| file.write_out(how))
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let file = self.0.take()?;
        self.0.revocation.judge_io(file.finish(modified))
    }
}

impl ModifyFile for Shared<Writer<dyn ModifyFile>> {
    fn write_at(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.change(|file| file.write_at(data, offset))
    }

    fn set_size(&mut self, size: u64) -> io::Result<()> {
        self.0.change(|file| file.set_size(size))
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let file = self.0.take()?;
        self.0.revocation.judge_io(file.finish(modified))
    }
}

fn no_medium() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEDIUM)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize};
    use std::time::Duration;

    use super::*;
    use crate::drive::faulty::{Fault, FaultyBackend};
    use crate::drive::mounted::MountedDir;

    fn watched(dir: &std::path::Path) -> Watched {
        let backend = MountedDir::open(dir).unwrap();
        Watched::new(Arc::new(backend), Box::new(|| {}))
    }

    fn errno<T>(answer: Result<T>) -> Option<i32> {
        answer.err().and_then(|error| error.source.raw_os_error())
    }

    /// Returns the number of descriptors of this process that are open below `dir`.
    fn open_below(dir: &std::path::Path) -> usize {
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .filter(|target| target.starts_with(dir))
            .count()
    }

    #[test]
    fn letting_go_closes_every_descriptor_and_ends_every_use_with_no_medium() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap();
        std::fs::write(dir.path().join("film"), b"bytes").unwrap();
        let backend = watched(dir.path());
        let reader = backend.open(&RelPath::fixed("film")).unwrap();
        let mut writer = backend.create(&RelPath::fixed("new")).unwrap();
        writer.append(b"half").unwrap();
        assert_eq!(open_below(&place), 2);

        backend.let_go();
        assert_eq!(open_below(&place), 0);
        let no_medium = Some(libc::ENOMEDIUM);
        assert_eq!(
            reader.read_at(&mut [0; 5], 0).unwrap_err().raw_os_error(),
            no_medium
        );
        assert_eq!(writer.append(b"x").unwrap_err().raw_os_error(), no_medium);
        assert_eq!(
            writer.finish(Timestamp(0)).unwrap_err().raw_os_error(),
            no_medium
        );
        // The directory is still there: a flush in progress must not continue with another file
        // system that is mounted there now.
        assert_eq!(errno(backend.make_dir(&RelPath::fixed("d"))), no_medium);
        assert_eq!(errno(backend.sync()), no_medium);
        assert_eq!(errno(backend.check_alive(Look::Glance)), no_medium);
        assert!(!dir.path().join("d").exists());
    }

    #[test]
    fn letting_go_closes_what_a_phase_keeps_open() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap();
        let backend = watched(dir.path());
        let phase = backend.keep_open();
        backend.metadata(&RelPath::root()).unwrap();
        assert_eq!(open_below(&place), 1);
        backend.let_go();
        assert_eq!(open_below(&place), 0);
        drop(phase);
        drop(backend.keep_open());
        assert!(backend.metadata(&RelPath::root()).is_err());
        assert_eq!(open_below(&place), 0);
    }

    #[test]
    fn a_drive_that_was_exchanged_during_a_sleep_gets_no_byte() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join(".ferryfs/volume.json");
        std::fs::create_dir(dir.path().join(".ferryfs")).unwrap();
        std::fs::write(&marker, b"this drive").unwrap();
        let slept = Arc::new(AtomicU64::new(7000));
        let reported = Arc::new(AtomicUsize::new(0));
        let (clock, count) = (slept.clone(), reported.clone());
        let backend = Watched::with_sleep(
            Arc::new(MountedDir::open(dir.path()).unwrap()),
            Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }),
            Box::new(move || Duration::from_millis(clock.load(Ordering::SeqCst))),
        );
        let sleep = |ms| slept.fetch_add(ms, Ordering::SeqCst);
        let mut half = backend.create(&RelPath::fixed("half")).unwrap();
        half.append(b"before").unwrap();
        // The same drive after a sleep.
        sleep(60_000);
        half.append(b" after").unwrap();
        backend.make_dir(&RelPath::fixed("d")).unwrap();
        // While nothing can be read, nothing is written, and nothing is concluded.
        sleep(60_000);
        let away = dir.path().join("away");
        std::fs::rename(&marker, &away).unwrap();
        std::os::unix::fs::symlink(&away, &marker).unwrap();
        let no_medium = Some(libc::ENOMEDIUM);
        assert_eq!(errno(backend.make_dir(&RelPath::fixed("no"))), no_medium);
        assert_eq!(reported.load(Ordering::SeqCst), 1);
        std::fs::rename(&away, &marker).unwrap();
        backend.make_dir(&RelPath::fixed("e")).unwrap();
        // Another one.
        sleep(60_000);
        std::fs::write(&marker, b"another one").unwrap();
        assert_eq!(half.append(b"x").unwrap_err().raw_os_error(), no_medium);
        assert_eq!(errno(backend.make_dir(&RelPath::fixed("f"))), no_medium);
        assert_eq!(errno(backend.read_dir(&RelPath::root())), no_medium);
        assert_eq!(reported.load(Ordering::SeqCst), 2);
        std::fs::write(&marker, b"this drive").unwrap();
        assert_eq!(errno(backend.make_dir(&RelPath::fixed("g"))), no_medium);
        assert_eq!(
            std::fs::read(dir.path().join("half")).unwrap(),
            b"before after"
        );
        assert!(!dir.path().join("f").exists() && !dir.path().join("no").exists());
    }

    #[test]
    fn errors_of_a_dying_drive_are_told_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("film"), b"bytes").unwrap();
        let reported = Arc::new(AtomicUsize::new(0));
        let inner = FaultyBackend::new(MountedDir::open(dir.path()).unwrap());
        let inner = Arc::new(inner);
        let faults = inner.clone();
        let count = reported.clone();
        let on_trouble = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        let backend = Watched::new(inner, Box::new(on_trouble));
        let reported = || reported.load(Ordering::SeqCst);

        assert!(backend.metadata(&RelPath::fixed("missing")).is_err());
        assert_eq!(reported(), 0, "a missing file is nothing of note");
        let reader = backend.open(&RelPath::fixed("film")).unwrap();
        faults.arm(Fault {
            stays_dead: true,
            ..Fault::at(faults.calls() + 1, libc::EIO)
        });
        assert!(reader.read_at(&mut [0; 5], 0).is_err());
        assert_eq!(reported(), 1);
        assert!(backend.read_dir(&RelPath::root()).is_err());
        assert_eq!(reported(), 2);
        backend.let_go();
        assert!(backend.read_dir(&RelPath::root()).is_err());
        assert_eq!(reported(), 2, "it is known to be gone");
    }
}
