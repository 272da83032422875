//! `--keep-clean`: the drive's file system is read-only, and so clean, except while something of
//! ours writes to it.
//!
//! Everything that writes asks first ([`KeepClean::begin`]) and says when it is done
//! ([`KeepClean::end`]): each turn of the flusher, and the attach commands that write the marker.
//! What forgets to ask gets EROFS, so a mistake costs an error and never a file system that is not
//! clean. Whether the file system is read-only is read from the mount table each time, because a
//! user may remount it at any moment. Memory has only what the table does not say: whether we have
//! made it read-only, and whether that is still to be done.
//!
//! | is | found | then |
//! |---|---|---|
//! | a batch begins | writable | nothing to do |
//! | | read-only by us, or by another and clean | writable |
//! | | read-only, not by us, and marked as not clean | stays so, as after an error; the batch fails |
//! | | this very mount is read-only | stays so, as its user wants it; the batch fails |
//! | a batch has ended | writable | read-only; if another program writes (EBUSY): synced, and tried again |
//! | between batches | writable, by another | left until the end of the next batch |
//! | the mount ends | read-only, by us | writable, as it was found |
//!
//! A crash leaves the file system writable (in a batch) or read-only (between batches); the next
//! mount with the option begins with a recovery, which makes it writable and then read-only.
//!
//! Locks: `state` is held during a remount, which waits for the drive. `problem` is taken last, for
//! moments.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::flush_job::within;
use super::options::{LeaseMode, MountOptions};
use super::service::Service;
use super::stop::Stop;
use crate::core::{Failure, ForeignText, quoted};
use crate::drive::connection::Drive;
use crate::drive::mounted::MountedDir;
use crate::drive::{Access, Backend, BackendError, exists};
use crate::error::FlushError;
use crate::format::layout;

/// How often a drive that another program keeps writable is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// How often the retrying thread looks whether the mount ends.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The directories of the system, whose file system must stay writable.
const OF_THE_SYSTEM: [&str; 10] = [
    "/", "/boot", "/etc", "/home", "/opt", "/root", "/run", "/tmp", "/usr", "/var",
];

/// Keeps the file system of the drive read-only between batches.
#[derive(Default)]
pub(super) struct KeepClean {
    is_on: bool,
    state: Mutex<State>,
    /// The drive has been detached: what `state` says of it is over.
    is_forgotten: AtomicBool,
    problem: Mutex<Option<Problem>>,
}

#[derive(Default)]
struct State {
    /// How many are writing now.
    writers: usize,
    /// We have made it read-only.
    is_ours: bool,
    /// It is to be made read-only as soon as that works.
    is_due: bool,
}

/// Why the drive is not as it should be, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    /// It cannot be written to.
    ReadOnly(String),
    /// Another program keeps it writable between batches.
    Busy,
    /// It stays writable between batches for another reason.
    Writable(String),
}

impl KeepClean {
    /// What `options` want. A mount that only reads leaves the drive as it is.
    pub(super) fn new(options: &MountOptions) -> KeepClean {
        KeepClean {
            is_on: options.keep_clean && !options.read_only,
            ..KeepClean::default()
        }
    }

    /// Whether the drive is kept clean.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Makes `backend` writable for a caller that is about to write. If that fails each write
    /// fails, with the error of the drive.
    pub(super) fn begin(&self, backend: &dyn Backend) {
        if !self.is_on {
            return;
        }
        let mut state = self.state();
        state.writers += 1;
        if state.writers > 1 {
            return;
        }
        let access = match state.is_ours {
            true => Access::Writable,
            false => Access::WritableIfClean,
        };
        match backend.remount(access) {
            Ok(_) => {
                state.is_ours = false;
                *self.problem.lock() = None;
            }
            Err(error) if is_away(&error) => {}
            Err(error) => self.note(Problem::ReadOnly(words(&error))),
        }
    }

    /// The caller of [`KeepClean::begin`] has written all that it wanted to.
    pub(super) fn end(&self, backend: &dyn Backend) {
        if !self.is_on {
            return;
        }
        let mut state = self.state();
        state.writers = state.writers.saturating_sub(1);
        if state.writers == 0 {
            self.make_clean(&mut state, backend);
        }
    }

    /// Makes `backend` read-only. If another program keeps it writable, it is synced at least,
    /// which clears the mark of exFAT until that program writes.
    fn make_clean(&self, state: &mut State, backend: &dyn Backend) {
        match backend.remount(Access::ReadOnly) {
            Ok(is_new) => {
                // What has become read-only by itself, as after an error, is not ours.
                state.is_ours |= is_new;
                state.is_due = false;
                let mut problem = self.problem.lock();
                if !matches!(*problem, Some(Problem::ReadOnly(_))) {
                    *problem = None;
                }
            }
            Err(error) if is_away(&error) => state.is_due = false,
            Err(error) => {
                // Only another program's use of the drive passes by itself.
                let is_busy = error.source.raw_os_error() == Some(libc::EBUSY);
                let is_retry = std::mem::replace(&mut state.is_due, is_busy);
                // Once: a disk must not be kept awake.
                if !is_retry && let Err(error) = backend.sync() {
                    tracing::warn!(%error, "the drive cannot be synced");
                }
                self.note(match is_busy {
                    true => Problem::Busy,
                    false => Problem::Writable(words(&error)),
                });
            }
        }
    }

    /// Tries again what another program has kept from happening. Not while something is written:
    /// its end tries as well.
    fn retry(&self, backend: &dyn Backend) {
        let mut state = self.state();
        if state.is_due && state.writers == 0 {
            self.make_clean(&mut state, backend);
        }
    }

    /// The drive is detached: nothing that is known of it counts for the next one.
    pub(super) fn forget(&self) {
        self.is_forgotten.store(true, Ordering::Release);
        *self.problem.lock() = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        if self.is_forgotten.swap(false, Ordering::AcqRel) {
            state.is_ours = false;
            state.is_due = false;
        }
        state
    }

    /// Makes the attached drive writable again at the end of the mount, as it was found, and waits
    /// no longer than `patience`.
    pub(super) fn restore(self: Arc<Self>, drive: &Drive, patience: Duration) {
        let Some(backend) = drive.get_patient().filter(|_| self.is_on) else {
            return;
        };
        let begun = Instant::now();
        let restore = move || {
            let mut state = self.state();
            if std::mem::take(&mut state.is_ours)
                && let Err(error) = backend.remount(Access::Writable)
            {
                tracing::warn!(%error, "the drive's file system stays read-only");
            }
        };
        let _ = within(restore, || begun.elapsed() > patience);
    }

    /// Whether the drive is writable although nothing of ours writes, because it could not be made
    /// read-only.
    pub(super) fn is_held_writable(&self) -> bool {
        matches!(
            *self.problem.lock(),
            Some(Problem::Busy | Problem::Writable(_))
        )
    }

    /// What the user should know of the drive at `path`.
    pub(super) fn line(&self, path: &Path) -> Option<String> {
        Some(match self.problem.lock().clone()? {
            Problem::ReadOnly(why) => format!(
                "the drive's file system was not made writable for a flush: {why}. Nothing is \
                 lost: what waits is in the cache, and each flush tries again"
            ),
            Problem::Busy => format!(
                "the drive's file system is not read-only between flushes, because another program \
                 has a file on it open for writing, or has one open that was deleted: `fuser -vm \
                 {}` lists them. What was flushed is synced; it is tried again every few seconds",
                quoted(path)
            ),
            Problem::Writable(why) => format!(
                "the drive's file system is not read-only between flushes: {why}. What was flushed \
                 is synced; each flush tries again"
            ),
        })
    }

    fn note(&self, problem: Problem) {
        let mut now = self.problem.lock();
        if now.as_ref() != Some(&problem) {
            tracing::warn!(?problem, "the drive is not kept clean");
            *now = Some(problem);
        }
    }
}

/// Tries again, until `stop`, to make a drive read-only that another program has kept writable.
pub(super) fn run(service: &Service, stop: &Stop) {
    let mut next = Instant::now() + RETRY_EVERY;
    while !stop.is_given() {
        stop.rest(LOOK_EVERY);
        if Instant::now() < next || !service.clean.is_held_writable() {
            continue;
        }
        next = Instant::now() + RETRY_EVERY;
        if service.drive.stalled().is_none()
            && let Some(backend) = service.drive.get_patient()
        {
            service.clean.retry(&*backend);
        }
    }
}

/// Whether the error only says that the drive is not there any more.
fn is_away(error: &BackendError) -> bool {
    error.is_gone() && error.source.raw_os_error() != Some(libc::EROFS)
}

fn words(error: &BackendError) -> String {
    error.source.to_string()
}

/// Checks at a mount with `--keep-clean` that the drive at `path` can be kept clean, and makes it
/// writable for the start, as an earlier daemon may have left it read-only. Nothing has been
/// written before.
///
/// # Errors
/// Why it cannot be kept clean.
pub(super) fn prepare(
    options: &MountOptions,
    path: &Path,
    backend: &MountedDir,
) -> Result<(), Failure> {
    let clean = KeepClean::new(options);
    if !clean.is_on() {
        return Ok(());
    }
    if options.lease == LeaseMode::Always
        || exists(backend, &layout::lease_path()).map_err(FlushError::from)?
    {
        return Err(refused(
            path,
            "several machines or containers use it (it has a lease, which is written all the time)",
        ));
    }
    if let Some(other) = shared_with(options, backend) {
        let why = format!("{} is on the same file system", other.escaped());
        return Err(refused(path, &why));
    }
    backend
        .check_remountable()
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => {
                let message = format!(
                    "cannot keep {} clean: only root (CAP_SYS_ADMIN) may make a file system \
                     read-only and writable",
                    path.escaped()
                );
                Failure::failed(message).hint(
                    "nothing was changed. Mount as root (the system's unit: systemctl enable --now \
                     ferryfs@NAME), or leave keep_clean out",
                )
            }
            _ => refused(path, &error.to_string()),
        })?;
    clean.begin(backend);
    Ok(())
}

fn refused(path: &Path, why: &str) -> Failure {
    let message = format!("cannot keep {} clean: {why}", path.escaped());
    Failure::failed(message).hint("nothing was changed; mount it without keep_clean")
}

/// A directory that must stay writable and is on the file system of the drive.
fn shared_with(options: &MountOptions, backend: &MountedDir) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let above = options.mountpoint.parent().map(Path::to_path_buf);
    let program = std::env::current_exe().ok();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    (OF_THE_SYSTEM.iter().map(PathBuf::from))
        .chain(options.cache.clone())
        .chain(super::volume::default_caches().ok())
        .chain(options.metrics.file.clone())
        .chain([above, program, home].into_iter().flatten())
        .find(|place| {
            // What does not exist yet is made in a directory above it.
            let there = place.ancestors().find_map(|at| at.metadata().ok());
            there.is_some_and(|meta| meta.dev() == backend.device())
        })
}
