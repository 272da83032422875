//! Keeps everybody from being held up by a backend that does not answer: a hard NFS mount whose server is silent keeps a
//! thread in the kernel for as long as that lasts, and no signal short of SIGKILL brings it back.
//!
//! There are two faces of one backend, because a call may be given up only if it changes nothing.
//!
//! [`Guard`], for readers: each call that only reads runs on a thread of its own kind, and whoever asked waits for a bounded
//! time without a sign of life from it. Then he is told ETIMEDOUT and the backend counts as *stalled*: further reads fail at
//! once, until it is known to answer again. At most [`threads::MAX_THREADS`] threads can be stuck; if all are, calls fail at once.
//!
//! [`Patient`], for the flush: each call runs on the thread that makes it, which is the flush's own, and takes as long as it
//! takes. A rename that was given up may be done by the server an hour later, when recovery has long taken the other branch;
//! so nothing that changes the backend is ever given up while this process lives, and nobody but that thread waits for it. It
//! is only noted since when it has been under way, to be told to those who ask. Nor do such calls need a thread's place
//! among those of the readers: neither can starve the other.
//!
//! A [`Guard`] passes on what changes the backend in the same patient way.

mod health;
mod patient;
mod threads;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use parking_lot::{Condvar, Mutex};

use super::{
    Backend, BackendError, Entry, Look, Metadata, ReadFile, Result, Space, WriteFile, Xattrs, gone,
};
use crate::base::{FileKind, Name, RelPath, Timestamp};
use crate::rules::trust::Trust;
use health::Health;
use threads::{GivenUp, Threads, Ticket};

pub use health::Stall;
pub use patient::Patient;
pub(crate) use threads::sign_of_life;

/// What all guards of one daemon share: the threads, and what is known of whether the backend answers. Dropping it lets the
/// threads end that are not stuck.
pub struct Watch {
    shared: Arc<Shared>,
}

struct Shared {
    health: Arc<Health>,
    threads: Arc<Threads>,
    /// Files that are being closed.
    closing: Mutex<usize>,
    closed: Condvar,
}

impl Watch {
    /// A call that only reads may go `timeout` without a sign of life.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(timeout: Duration) -> io::Result<Watch> {
        let health = Arc::new(Health::new(timeout));
        let theirs = health.clone();
        let threads = Threads::new(move |well| theirs.returned(well));
        let prober = health.clone();
        thread::Builder::new()
            .name("ferryfs-probe".into())
            .spawn(move || prober.probe_for_ever())?;
        Ok(Watch {
            shared: Arc::new(Shared {
                health,
                threads,
                closing: Mutex::new(0),
                closed: Condvar::new(),
            }),
        })
    }

    /// The two faces of `backend`, which is the one looked after from here on.
    pub fn over(&self, backend: Arc<dyn Backend>) -> (Guard, Patient) {
        self.shared.health.watch(Some(backend.clone()));
        let patient = || Patient {
            inner: backend.clone(),
            shared: self.shared.clone(),
        };
        (Guard { patient: patient() }, patient())
    }

    /// Looks after no backend until the next one.
    pub fn rest(&self) {
        self.shared.health.watch(None);
    }

    /// Since when the backend has not answered, if it does not.
    pub fn stalled(&self) -> Option<Stall> {
        self.shared.health.stalled()
    }

    /// How many threads are stuck in calls that were given up.
    pub fn stuck(&self) -> usize {
        self.shared.threads.stuck()
    }

    /// Waits until the files that were let go of are closed, at most for `patience`. False if some are not.
    pub fn wait_for_closes(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut closing = self.shared.closing.lock();
        while *closing > 0 {
            if self.shared.closed.wait_until(&mut closing, end).timed_out() {
                return *closing == 0;
            }
        }
        true
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.health.close();
        self.shared.threads.close();
    }
}

fn timed_out() -> io::Error {
    io::Error::from_raw_os_error(libc::ETIMEDOUT)
}

impl Shared {
    /// Runs `work`, which changes nothing, on one of the threads and waits for its answer as long as it gives signs of life.
    /// `well` tells of an error whether a backend that is well may give it.
    ///
    /// # Errors
    /// The outer one: ETIMEDOUT, or EIO if `work` panicked.
    fn ask<T, E>(
        self: &Arc<Self>,
        work: impl FnOnce() -> std::result::Result<T, E> + Send + 'static,
        well: fn(&E) -> bool,
    ) -> io::Result<std::result::Result<T, E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        if self.health.stalled().is_some() {
            return Err(timed_out());
        }
        let ticket = Ticket::new();
        let (answer, answered) = bounded(1);
        let work = Box::new(move || {
            let outcome = work();
            let well = outcome.as_ref().err().is_none_or(well);
            // Nobody takes it if the call was given up; it is dropped here.
            let _ = answer.send(outcome);
            well
        });
        self.threads.submit(ticket.clone(), work)?;
        loop {
            let silent_at = ticket.last_sign() + self.health.timeout();
            match answered.recv_deadline(silent_at) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::from_raw_os_error(libc::EIO));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if ticket.last_sign() + self.health.timeout() > Instant::now() {
                continue;
            }
            return match self.threads.give_up(&ticket) {
                GivenUp::Done => answered.try_recv().map_err(|_| timed_out()),
                GivenUp::NotBegun => Err(timed_out()),
                GivenUp::Stuck => {
                    self.health.gave_up(ticket.last_sign());
                    Err(timed_out())
                }
            };
        }
    }

    /// Runs `work` here, however long it takes, and has it known that it is under way.
    fn wait<T>(&self, work: impl FnOnce() -> T) -> T {
        let call = patient::UnderWay::begin(&self.health);
        let outcome = work();
        drop(call);
        outcome
    }

    /// Closes a file on one of the threads: close(2) may wait for the server as any other call.
    fn close(self: &Arc<Self>, file: Arc<dyn ReadFile>) {
        *self.closing.lock() += 1;
        let done = Closing(self.clone());
        let work = Box::new(move || {
            drop(file);
            drop(done);
            true
        });
        // Refused only if the system gives no thread at all: the file is closed here then.
        let _ = self.threads.submit_for_later(Ticket::new(), work);
    }
}

/// A file that is being closed, until it is.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        *self.0.closing.lock() -= 1;
        self.0.closed.notify_all();
    }
}

/// A backend whose reading calls end in bounded time. See the head of this file.
#[derive(Clone)]
pub struct Guard {
    patient: Patient,
}

impl Guard {
    fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        path: &RelPath,
        work: impl FnOnce(&dyn Backend) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.patient.inner.clone();
        let well = |error: &BackendError| !error.is_gone() && !error.is_stalled();
        self.patient
            .shared
            .ask(move || work(&*inner), well)
            .unwrap_or_else(|error| Err(BackendError::new(operation, path, error)))
    }
}

impl Backend for Guard {
    fn read_dir(&self, dir: &RelPath) -> Result<Vec<Entry>> {
        let theirs = dir.clone();
        self.read("read_dir", dir, move |inner| inner.read_dir(&theirs))
    }

    fn metadata(&self, path: &RelPath) -> Result<Metadata> {
        let theirs = path.clone();
        self.read("stat", path, move |inner| inner.metadata(&theirs))
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let theirs = path.clone();
        let file = self.read("open", path, move |inner| inner.open(&theirs))?;
        Ok(Box::new(GuardedFile {
            inner: Some(file.into()),
            shared: self.patient.shared.clone(),
        }))
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let theirs = path.clone();
        let file = self.read("open", path, move |inner| inner.open_uncached(&theirs))?;
        Ok(Box::new(GuardedFile {
            inner: Some(file.into()),
            shared: self.patient.shared.clone(),
        }))
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        let theirs = path.clone();
        let (file, trust) = self.read("open", path, move |inner| inner.open_judged(&theirs))?;
        let file = GuardedFile {
            inner: Some(file.into()),
            shared: self.patient.shared.clone(),
        };
        Ok((Box::new(file), trust))
    }

    fn trust(&self, path: &RelPath) -> Result<Trust> {
        let theirs = path.clone();
        self.read("stat", path, move |inner| inner.trust(&theirs))
    }

    fn space(&self) -> Result<Space> {
        self.read("statfs", &RelPath::root(), |inner| inner.space())
    }

    fn answers(&self) -> Result<()> {
        self.read("probe", &RelPath::root(), |inner| inner.answers())
    }

    fn check_alive(&self, look: Look) -> Result<()> {
        self.read("look at", &RelPath::root(), move |inner| {
            inner.check_alive(look)
        })
    }

    fn create(&self, path: &RelPath) -> Result<Box<dyn WriteFile>> {
        self.patient.create(path)
    }

    fn make_dir(&self, path: &RelPath) -> Result<()> {
        self.patient.make_dir(path)
    }

    fn rename(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.patient.rename(from, to)
    }

    fn rename_new(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.patient.rename_new(from, to)
    }

    fn exchange(&self, one: &RelPath, other: &RelPath) -> Result<bool> {
        self.patient.exchange(one, other)
    }

    fn check_changeable(&self, dir: &RelPath) -> Result<()> {
        self.patient.check_changeable(dir)
    }

    fn check_replaceable(&self, path: &RelPath) -> Result<()> {
        self.patient.check_replaceable(path)
    }

    fn renames_atomically(&self) -> bool {
        self.patient.renames_atomically()
    }

    fn remove_file(&self, path: &RelPath) -> Result<()> {
        self.patient.remove_file(path)
    }

    fn remove_dir(&self, path: &RelPath) -> Result<()> {
        self.patient.remove_dir(path)
    }

    fn set_modified(&self, path: &RelPath, modified: Timestamp) -> Result<()> {
        self.patient.set_modified(path, modified)
    }

    fn sync(&self) -> Result<()> {
        self.patient.sync()
    }

    fn make_symlink(&self, target: &[u8], path: &RelPath) -> Result<()> {
        self.patient.make_symlink(target, path)
    }

    fn make_hard_link(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        self.patient.make_hard_link(from, to)
    }

    fn set_permissions(&self, path: &RelPath, mode: u32) -> Result<()> {
        self.patient.set_permissions(path, mode)
    }

    fn make_node(&self, kind: FileKind, rdev: u32, path: &RelPath) -> Result<()> {
        self.patient.make_node(kind, rdev, path)
    }

    fn set_owner(&self, path: &RelPath, owner: Option<u32>, group: Option<u32>) -> Result<()> {
        self.patient.set_owner(path, owner, group)
    }

    fn xattrs(&self, path: &RelPath) -> Result<Xattrs> {
        let theirs = path.clone();
        self.read("read attributes of", path, move |inner| {
            inner.xattrs(&theirs)
        })
    }

    fn xattrs_in(&self, dir: &RelPath, names: &[Name]) -> Result<Vec<(Name, Xattrs)>> {
        let (theirs, names) = (dir.clone(), names.to_vec());
        self.read("read attributes in", dir, move |inner| {
            inner.xattrs_in(&theirs, &names)
        })
    }

    fn set_xattrs(&self, path: &RelPath, xattrs: &Xattrs) -> Result<()> {
        self.patient.set_xattrs(path, xattrs)
    }
}

/// A file that was opened through a [`Guard`].
struct GuardedFile {
    /// There until it is dropped.
    inner: Option<Arc<dyn ReadFile>>,
    shared: Arc<Shared>,
}

impl GuardedFile {
    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn ReadFile) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let Some(file) = self.inner.clone() else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        };
        let well =
            |error: &io::Error| !gone(error) && error.raw_os_error() != Some(libc::ETIMEDOUT);
        self.shared.ask(move || work(&*file), well)?
    }
}

impl ReadFile for GuardedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let length = buf.len();
        // The buffer is the job's own: it may be written to long after the caller has gone.
        let bytes = self.ask(move |file| {
            let mut bytes = vec![0; length];
            let got = file.read_at(&mut bytes, offset)?;
            bytes.truncate(got);
            Ok(bytes)
        })?;
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.ask(|file| file.metadata())
    }
}

impl Drop for GuardedFile {
    fn drop(&mut self) {
        if let Some(file) = self.inner.take() {
            self.shared.close(file);
        }
    }
}

#[cfg(test)]
mod tests;
