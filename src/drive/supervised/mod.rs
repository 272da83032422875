//! Bounds the waiting for a backend that does not answer. A hard NFS mount whose server is silent
//! keeps a thread in the kernel for as long as the silence lasts, and no signal but SIGKILL ends
//! the call.
//!
//! There are two interfaces of one backend, because only a call that changes nothing may be
//! abandoned.
//!
//! [`Guard`], for readers: each call that only reads runs on a thread of a pool, and the caller
//! waits for a bounded time without a sign of life from it. Then the caller gets ETIMEDOUT and the
//! backend counts as *stalled*: further reads fail at once, until it is known to answer again. At
//! most [`threads::MAX_THREADS`] threads can be stuck; if all are, calls fail at once.
//!
//! [`Patient`], for the flush: each call runs on the thread that makes it, the flush's own, without
//! a deadline. The server may execute an abandoned rename an hour later, when recovery has long
//! taken the other branch. So no call that changes the backend is ever abandoned while this process
//! lives, and only that thread waits for it. Its start time is recorded for those who ask. Such
//! calls use no thread of the readers' pool: neither side can starve the other.
//!
//! A file that a [`Guard`] has opened for a reader is read ahead of it, see [`ahead`].
//!
//! A [`Guard`] passes on calls that change the backend in the same way, without a deadline.
//!
//! Lock order: the queue of the threads, then `closing`.

mod ahead;
mod health;
mod no_deadline;
mod threads;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use parking_lot::{Condvar, Mutex};

use crate::core::{Entry, FileKind, Metadata, Name, RelPath, Space, Timestamp, Xattrs};
use crate::drive::supervised::ahead::{Ahead, Budget, Found};
use crate::drive::supervised::health::Health;
use crate::drive::supervised::threads::{GivenUp, Threads, Ticket};
use crate::drive::throttle::Throttle;
use crate::drive::{
    Access, Backend, BackendError, KeptOpen, Look, ModifyFile, Opened, ReadFile, Result, WriteFile,
    gone, open_and_read,
};
use crate::plan::trust::Trust;

pub use crate::drive::supervised::health::Stall;
pub use crate::drive::supervised::no_deadline::Patient;
pub(crate) use crate::drive::supervised::threads::sign_of_life;

/// The state that all guards of one daemon share: the threads, and whether the backend answers. Its
/// drop ends the threads that are not stuck.
pub struct Watch {
    shared: Arc<Shared>,
}

struct Shared {
    health: Arc<Health>,
    threads: Arc<Threads>,
    /// The number of files that are being closed, or read ahead.
    closing: Mutex<usize>,
    closed: Condvar,
    budget: Arc<Budget>,
    /// Counts what readers read.
    throttle: Arc<Throttle>,
}

impl Watch {
    /// Starts the supervision. A call that only reads may be silent for `timeout`.
    ///
    /// # Errors
    /// If the system cannot create a thread.
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
                budget: Arc::default(),
                throttle: Arc::default(),
            }),
        })
    }

    /// Returns the two interfaces of `backend`, which is the supervised one from now on.
    pub fn over(&self, backend: Arc<dyn Backend>) -> (Guard, Patient) {
        self.shared.health.watch(Some(backend.clone()));
        let patient = || Patient {
            inner: backend.clone(),
            shared: self.shared.clone(),
        };
        (Guard { patient: patient() }, patient())
    }

    /// Returns what slows the flush down.
    pub fn throttle(&self) -> &Arc<Throttle> {
        &self.shared.throttle
    }

    /// Supervises no backend until the next one.
    pub fn rest(&self) {
        self.shared.health.watch(None);
    }

    /// Returns the stall, if the drive does not answer.
    pub fn stalled(&self) -> Option<Stall> {
        self.shared.health.stalled()
    }

    /// Returns the number of threads that are stuck in abandoned calls.
    pub fn stuck(&self) -> usize {
        self.shared.threads.stuck()
    }

    /// Waits, for at most `patience`, until released files are closed. Returns `false` if some are
    /// not.
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
    /// Runs `work`, which changes nothing, on a thread of the pool and waits for its answer while
    /// it shows signs of life. `well` returns whether a backend that works may give this error.
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
        self.ask_and_drop(move || (work(), ()), well)
    }

    /// The same; the other part of what `work` returns is dropped on its thread, after the answer.
    fn ask_and_drop<T, E, R>(
        self: &Arc<Self>,
        work: impl FnOnce() -> (std::result::Result<T, E>, R) + Send + 'static,
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
            let (outcome, rest) = work();
            let well = outcome.as_ref().err().is_none_or(well);
            // No receiver is left if the call was abandoned; the answer is dropped here.
            let _ = answer.send(outcome);
            drop(rest);
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
            return match self.give_up(&ticket) {
                GivenUp::Done => answered.try_recv().map_err(|_| timed_out()),
                GivenUp::NotBegun | GivenUp::Stuck => Err(timed_out()),
            };
        }
    }

    /// Abandons a call that has been silent for the whole timeout.
    fn give_up(&self, ticket: &Ticket) -> GivenUp {
        let fate = self.threads.give_up(ticket);
        if fate == GivenUp::Stuck {
            self.health.gave_up(ticket.last_sign());
        }
        fate
    }

    /// Runs `work` on this thread without a deadline, registered as a call in progress.
    fn wait<T>(&self, work: impl FnOnce() -> T) -> T {
        let call = crate::drive::supervised::no_deadline::UnderWay::begin(&self.health);
        let outcome = work();
        drop(call);
        outcome
    }

    /// Closes a file on a thread of the pool: close(2) may wait for the server as any other call.
    fn close(self: &Arc<Self>, file: Arc<dyn ReadFile>) {
        let done = Closing::begin(self);
        let work = Box::new(move || {
            drop(file);
            drop(done);
            true
        });
        // Fails only if the system cannot create any thread: then the file is closed here.
        let _ = self.threads.submit_for_later(Ticket::new(), work);
    }
}

/// Counts a file that is being closed, until it is closed.
struct Closing(Arc<Shared>);

impl Closing {
    fn begin(shared: &Arc<Shared>) -> Closing {
        *shared.closing.lock() += 1;
        Closing(shared.clone())
    }
}

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
        self.patient
            .shared
            .ask(move || work(&*inner), well)
            .unwrap_or_else(|error| Err(BackendError::new(operation, path, error)))
    }

    fn guarded(&self, file: Box<dyn ReadFile>) -> GuardedFile {
        GuardedFile {
            inner: Some(file.into()),
            shared: self.patient.shared.clone(),
            ahead: None,
        }
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

    fn names_in(&self, dir: &RelPath) -> Result<Vec<Name>> {
        let theirs = dir.clone();
        self.read("read_dir", dir, move |inner| inner.names_in(&theirs))
    }

    fn metadata_now(&self, path: &RelPath) -> Result<Metadata> {
        let theirs = path.clone();
        self.read("stat", path, move |inner| inner.metadata_now(&theirs))
    }

    fn open(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let theirs = path.clone();
        let file = self.read("open", path, move |inner| inner.open(&theirs))?;
        Ok(Box::new(self.guarded(file)))
    }

    fn open_uncached(&self, path: &RelPath) -> Result<Box<dyn ReadFile>> {
        let theirs = path.clone();
        let file = self.read("open", path, move |inner| inner.open_uncached(&theirs))?;
        Ok(Box::new(self.guarded(file)))
    }

    /// As the trait says, as one call of one thread, which also closes a file that it has read as a
    /// whole.
    fn open_at(&self, path: &RelPath, offset: u64, length: usize) -> Result<Opened> {
        let shared = &self.patient.shared;
        let (inner, theirs) = (self.patient.inner.clone(), path.clone());
        let done = Closing::begin(shared);
        let work = move || {
            let opened = inner.open(&theirs);
            let opened = opened.and_then(|file| open_and_read(file, &theirs, offset, length));
            let (opened, whole) = without_whole(opened);
            (opened, (whole, done))
        };
        let answer = shared.ask_and_drop(work, well);
        let failed = |error| Err(BackendError::new("open", path, error));
        let opened = answer.unwrap_or_else(failed)?;
        let first = opened.first.as_ref().map_or(0, Vec::len);
        shared.throttle.note_read(first);
        let file = opened.file.map(|file| {
            let ahead = Ahead::new(opened.metadata.clone(), shared.budget.clone());
            if let Ok(first) = &opened.first
                && !first.is_empty()
            {
                ahead.note(offset, first.len());
            }
            let mut file = self.guarded(file);
            file.ahead = Some(Arc::new(ahead));
            Box::new(file) as Box<dyn ReadFile>
        });
        Ok(Opened { file, ..opened })
    }

    fn open_judged(&self, path: &RelPath) -> Result<(Box<dyn ReadFile>, Trust)> {
        let theirs = path.clone();
        let (file, trust) = self.read("open", path, move |inner| inner.open_judged(&theirs))?;
        Ok((Box::new(self.guarded(file)), trust))
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

    fn modify(&self, path: &RelPath) -> Result<Box<dyn ModifyFile>> {
        self.patient.modify(path)
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

    fn keep_open(&self) -> KeptOpen {
        self.patient.keep_open()
    }

    fn renames_atomically(&self) -> bool {
        self.patient.renames_atomically()
    }

    fn links_may_be_copies(&self) -> bool {
        self.patient.links_may_be_copies()
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

    fn remount(&self, access: Access) -> Result<bool> {
        self.patient.remount(access)
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

/// Returns whether a backend that works may give this error.
fn well(error: &BackendError) -> bool {
    !error.is_gone() && !error.is_stalled()
}

/// Takes the file out of `opened` if all of its bytes have been read.
fn without_whole(opened: Result<Opened>) -> (Result<Opened>, Option<Box<dyn ReadFile>>) {
    let is_whole = |opened: &Opened| {
        let got = opened.first.as_ref().map_or(0, Vec::len);
        got > 0 && got as u64 == opened.metadata.size
    };
    match opened {
        Ok(mut opened) if is_whole(&opened) => {
            let file = opened.file.take();
            (Ok(opened), file)
        }
        opened => (opened, None),
    }
}

/// A file that was opened through a [`Guard`].
struct GuardedFile {
    /// `Some` until it is dropped.
    inner: Option<Arc<dyn ReadFile>>,
    shared: Arc<Shared>,
    /// For a file that was opened by [`Backend::open_at`].
    ahead: Option<Arc<Ahead>>,
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

    /// Starts to read on ahead, if that is due and the drive answers. Does not wait for it.
    fn read_ahead(&self, ahead: &Arc<Ahead>) {
        let (Some(job), Some(file)) = (ahead.next_job(), self.inner.clone()) else {
            return;
        };
        if self.shared.health.stalled().is_some() {
            return;
        }
        let ticket = job.ticket();
        // It holds the file open, too.
        let done = Closing::begin(&self.shared);
        let work = Box::new(move || {
            let well = job.run(&*file);
            drop((file, job, done));
            well
        });
        // If it fails the reader goes on without it.
        let _ = self.shared.threads.submit(ticket, work);
    }
}

impl ReadFile for GuardedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let length = buf.len();
        // The job owns the buffer: a late read may write to it long after the caller has left.
        let bytes = self.ask(move |file| {
            let mut bytes = vec![0; length];
            let got = file.read_at(&mut bytes, offset)?;
            bytes.truncate(got);
            Ok(bytes)
        })?;
        self.shared.throttle.note_read(bytes.len());
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn read_on(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(ahead) = &self.ahead else {
            return self.read_at(buf, offset);
        };
        let wanted = ahead.within(offset, buf.len());
        if wanted == 0 {
            return Ok(0);
        }
        let buf = &mut buf[..wanted];
        let found = ahead.read(buf, offset, self.shared.health.timeout());
        match found {
            Found::Silent(job) if self.shared.give_up(&job) != GivenUp::Done => {
                return Err(timed_out());
            }
            _ => self.read_ahead(ahead),
        }
        match found {
            Found::Bytes(given) => {
                self.shared.throttle.note_read(given);
                Ok(given)
            }
            Found::Nothing | Found::Silent(_) => self.read_at(buf, offset),
        }
    }

    fn read_ready(&self, buf: &mut [u8], offset: u64) -> Option<usize> {
        let ahead = self.ahead.as_ref()?;
        let given = ahead.read_ready(buf, offset)?;
        self.shared.throttle.note_read(given);
        self.read_ahead(ahead);
        Some(given)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.ask(|file| file.metadata())
    }
}

impl Drop for GuardedFile {
    fn drop(&mut self) {
        if let Some(ahead) = &self.ahead {
            ahead.stop();
        }
        if let Some(file) = self.inner.take() {
            self.shared.close(file);
        }
    }
}

#[cfg(test)]
mod tests;
