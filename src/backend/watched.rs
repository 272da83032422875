//! A backend on a leash: its errors are told to whoever watches the drive, and it can be let go of at once, whoever uses it.
//!
//! State: whether it has been let go of, and the files that are open through it. After [`Watched::let_go`] every call fails
//! with ENOMEDIUM without reaching the file system, and every descriptor is closed as soon as the call that is just using it
//! has returned: so a stale mount can be unmounted, and a flush that was under way cannot go on with a drive that comes back
//! at the same place before its batch has been recovered. A call that was under way then may still take effect on the drive,
//! as it may in a yank; its answer is ENOMEDIUM unless it succeeded.
//!
//! A drive that is back is another `Watched`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::{
    Backend, BackendError, Entry, Look, Metadata, ReadFile, Result, Space, WriteFile, Xattrs,
};
use crate::base::{FileKind, RelPath, Timestamp};
use crate::rules::trust::Trust;

/// Told of errors that may mean that the drive is gone. Called from whatever thread met one: it must not wait for anything.
pub type OnTrouble = dyn Fn() + Send + Sync;

/// A backend on a leash. See the head of this file.
pub struct Watched {
    inner: Arc<dyn Backend>,
    leash: Arc<Leash>,
    open: Mutex<Vec<Weak<dyn Held>>>,
}

struct Leash {
    gone: AtomicBool,
    on_trouble: Box<OnTrouble>,
}

impl Leash {
    fn is_cut(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// An answer of the file system, as those who asked are to hear it.
    fn judge<T>(&self, answer: Result<T>) -> Result<T> {
        answer.map_err(|mut error| {
            if self.is_cut() {
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

/// Something that holds a descriptor and can be told to close it.
trait Held: Send + Sync {
    fn close(&self);
}

impl Watched {
    /// Puts `inner` on a leash; `on_trouble` is told of its errors.
    pub fn new(inner: Arc<dyn Backend>, on_trouble: Box<OnTrouble>) -> Watched {
        Watched {
            inner,
            leash: Arc::new(Leash {
                gone: AtomicBool::new(false),
                on_trouble,
            }),
            open: Mutex::default(),
        }
    }

    /// Lets go of it for good. Does not wait for calls under way.
    pub fn let_go(&self) {
        self.leash.gone.store(true, Ordering::Release);
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
        if self.leash.is_cut() {
            return Err(BackendError::new(operation, path, no_medium()));
        }
        self.leash.judge(call(&*self.inner))
    }

    /// Notes an open file. If the leash was cut meanwhile, nobody else will close it.
    fn hold(&self, held: Weak<dyn Held>) {
        let mut open = self.open.lock();
        if self.leash.is_cut() {
            drop(open);
            if let Some(held) = held.upgrade() {
                held.close();
            }
            return;
        }
        // Those that were closed in the ordinary way go when the list would grow.
        if open.len() == open.capacity() {
            open.retain(|held| held.strong_count() > 0);
        }
        open.push(held);
    }
}

impl Watched {
    fn on_a_leash(&self, file: Box<dyn ReadFile>) -> Box<dyn ReadFile> {
        let reader = Arc::new(Reader {
            file: RwLock::new(Some(file.into())),
            leash: self.leash.clone(),
        });
        let held: Arc<dyn Held> = reader.clone();
        self.hold(Arc::downgrade(&held));
        Box::new(Shared(reader))
    }
}

impl Backend for Watched {
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        self.call("read_dir", dir, |inner| inner.read_dir(dir))
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        self.call("stat", path, |inner| inner.metadata(path))
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let file = self.call("open", path, |inner| inner.open(path))?;
        Ok(self.on_a_leash(file))
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let file = self.call("open", path, |inner| inner.open_uncached(path))?;
        Ok(self.on_a_leash(file))
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        let (file, trust) = self.call("open", path, |inner| inner.open_judged(path))?;
        Ok((self.on_a_leash(file), trust))
    }

    fn trust(&self, path: &RelPath) -> Result<Trust> {
        self.call("stat", path, |inner| inner.trust(path))
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        let file = self.call("create", path, |inner| inner.create(path))?;
        let writer = Arc::new(Writer {
            file: Mutex::new(Some(file)),
            leash: self.leash.clone(),
        });
        let held: Arc<dyn Held> = writer.clone();
        self.hold(Arc::downgrade(&held));
        Ok(Box::new(Shared(writer)))
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

    fn sync(&self) -> Result<()> {
        let synced = self.call("sync", &RelPath::root(), |inner| inner.sync());
        // What was let go of while it synced may be another drive by now: nothing may be taken as written.
        match synced {
            Ok(()) if self.leash.is_cut() => {
                Err(BackendError::new("sync", &RelPath::root(), no_medium()))
            }
            answer => answer,
        }
    }

    fn space(&self) -> Result<Space> {
        self.call("statfs", &RelPath::root(), |inner| inner.space())
    }

    fn renames_atomically(&self) -> bool {
        !self.leash.is_cut() && self.inner.renames_atomically()
    }

    /// As the trait says. What it finds is for the watcher, who asked: it is not told again.
    fn check_alive(&self, look: Look) -> Result<()> {
        if self.leash.is_cut() {
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

/// What a caller holds of an open file; the list of open files holds it weakly.
struct Shared<T>(Arc<T>);

struct Reader {
    /// `None` once it was let go of. Taken out of the lock before it is used, so that a read that hangs keeps nobody waiting.
    file: RwLock<Option<Arc<dyn ReadFile>>>,
    leash: Arc<Leash>,
}

impl Reader {
    fn file(&self) -> io::Result<Arc<dyn ReadFile>> {
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
        self.0.leash.judge_io(file.read_at(buf, offset))
    }

    fn metadata(&self) -> io::Result<Metadata> {
        let file = self.0.file()?;
        self.0.leash.judge_io(file.metadata())
    }
}

struct Writer {
    /// `None` once it was let go of, and while it is being used.
    file: Mutex<Option<Box<dyn WriteFile>>>,
    leash: Arc<Leash>,
}

impl Writer {
    fn take(&self) -> io::Result<Box<dyn WriteFile>> {
        self.file.lock().take().ok_or_else(no_medium)
    }
}

impl Held for Writer {
    fn close(&self) {
        *self.file.lock() = None;
    }
}

impl WriteFile for Shared<Writer> {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let writer = &self.0;
        let mut file = writer.take()?;
        let answer = writer.leash.judge_io(file.append(data));
        let mut slot = writer.file.lock();
        // Looked at under the lock that closing takes: what is put back after the cut, nobody would close.
        if writer.leash.is_cut() {
            return Err(no_medium());
        }
        *slot = Some(file);
        answer
    }

    fn finish(self: Box<Self>, modified: Timestamp) -> io::Result<()> {
        let file = self.0.take()?;
        self.0.leash.judge_io(file.finish(modified))
    }
}

fn no_medium() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEDIUM)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::backend::faulty::{Fault, FaultyBackend};
    use crate::backend::mounted::MountedDir;

    fn watched(dir: &std::path::Path) -> Watched {
        let backend = MountedDir::open(dir).unwrap();
        Watched::new(Arc::new(backend), Box::new(|| {}))
    }

    fn errno<T>(answer: Result<T>) -> Option<i32> {
        answer.err().and_then(|error| error.source.raw_os_error())
    }

    /// Descriptors of this process that are open below `dir`.
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
        // The directory is still there: a flush that is under way must not go on with whatever is mounted there now.
        assert_eq!(errno(backend.make_dir(&RelPath::fixed("d"))), no_medium);
        assert_eq!(errno(backend.sync()), no_medium);
        assert_eq!(errno(backend.check_alive(Look::Glance)), no_medium);
        assert!(!dir.path().join("d").exists());
    }

    #[test]
    fn errors_of_a_dying_drive_are_told_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("film"), b"bytes").unwrap();
        let told = Arc::new(AtomicUsize::new(0));
        let inner = FaultyBackend::new(MountedDir::open(dir.path()).unwrap());
        let inner = Arc::new(inner);
        let faults = inner.clone();
        let count = told.clone();
        let on_trouble = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        let backend = Watched::new(inner, Box::new(on_trouble));
        let told = || told.load(Ordering::SeqCst);

        assert!(backend.metadata(&RelPath::fixed("missing")).is_err());
        assert_eq!(told(), 0, "a missing file is nothing of note");
        let reader = backend.open(&RelPath::fixed("film")).unwrap();
        faults.arm(Fault {
            stays_dead: true,
            ..Fault::at(faults.calls() + 1, libc::EIO)
        });
        assert!(reader.read_at(&mut [0; 5], 0).is_err());
        assert_eq!(told(), 1);
        assert!(backend.read_dir(&RelPath::root()).is_err());
        assert_eq!(told(), 2);
        backend.let_go();
        assert!(backend.read_dir(&RelPath::root()).is_err());
        assert_eq!(told(), 2, "it is known to be gone");
    }
}
