//! Watches the drive: notices that it is gone, and that it is back.
//!
//! That a drive is gone is learned from the mount table and the list of block devices, which the
//! kernel updates at once and which do not wake a sleeping disk; and from an error of the drive,
//! after which the marker is read past the cache, because the file system of a pulled disk still
//! answers stat and statfs. Then the drive is detached: no call reaches it any more, and no
//! descriptor stays open on it (see [`crate::drive::revocable`]). How a drive that is back is found
//! is described in [`reattach`]. An ejected drive must first be gone before it counts as back.
//!
//! The state is in memory, except for the path and the file system, which are written to
//! `cache.json` once recovery has succeeded. After a crash before that the next start finds the old
//! path there, and the user names the new one. Lock order: `attaching`, then any one of the others,
//! each for a moment.

mod bell;
mod loss;
mod reattach;
mod site;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, poll};
use parking_lot::Mutex;

pub(super) use self::bell::Bell;
pub(super) use self::site::Site;
use super::flush_job::within;
use super::fsck::{self, Case, Decision};
use super::keep_clean::KeepClean;
use super::lease::Keeper;
use super::service::rfc3339;
use super::volume::CacheFacts;
use super::volume_lock::VolumeLock;
use super::{inner_mounts, verify};
use crate::control::protocol::Ejected;
use crate::core::{Exit, Failure, ForeignText, Timestamp};
use crate::drive::connection::Drive;
use crate::drive::{Backend, Look};
use crate::error::FlushError;
use crate::flush::Flusher;
use crate::index::Index;
use crate::sys::mounts::Mount;
use crate::sys::{mounts, superblock};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The same until an ejected drive is gone: it may be back within a second.
const EJECTED_INTERVAL: Duration = Duration::from_millis(200);

/// How long one wait for a change of the mount table lasts. A block device that is gone is noticed
/// after it, unless a call to the drive fails before.
const TABLE_WAIT_MS: u8 = 250;

/// How often other mounts are searched for the volume after the mount table has changed. At the
/// first time the program that mounts a drive may not have finished.
const SCANS: u8 = 3;

/// How long a command waits for a look at the path of a drive that is not attached.
const GLIMPSE: Duration = Duration::from_secs(2);

/// What the user can do when another machine has taken the drive over.
const TAKEN_OVER: &str = "nothing is lost: what waits is in the cache. When the other machine \
     releases the drive, this mount attaches it without a command";

/// Whether the drive is attached, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It is attached.
    Attached,
    /// It is gone. When it is seen again, it is attached.
    Gone,
    /// The user ejected it, and it has not been unplugged yet.
    Ejected,
}

/// The parts that a monitor works with.
pub(super) struct MonitorParts {
    pub(super) drive: Arc<Drive>,
    pub(super) flusher: Arc<Flusher>,
    pub(super) index: Arc<Index>,
    pub(super) bell: Arc<Bell>,
    pub(super) cache: PathBuf,
    pub(super) mountpoint: PathBuf,
    pub(super) facts: CacheFacts,
    /// Keeps other machines from using the attached drive.
    pub(super) lease: Arc<Keeper>,
    /// Keeps its file system read-only between batches.
    pub(super) clean: Arc<KeepClean>,
    /// Keeps other daemons on this machine from using it. A weak reference: the lock is released
    /// when the mount ends.
    pub(super) volume_lock: Weak<VolumeLock>,
    /// Called when the drive has been detached.
    pub(super) on_detach: Box<dyn Fn() + Send + Sync>,
    /// Called when the drive has been attached again.
    pub(super) on_attach: Box<dyn Fn() + Send + Sync>,
}

/// Watches one drive.
pub(super) struct Monitor {
    pub(super) parts: MonitorParts,
    pub(super) site: Mutex<Site>,
    pub(super) facts: Mutex<CacheFacts>,
    presence: Mutex<Presence>,
    /// When the drive was ejected, until it is attached again.
    ejected: Mutex<Option<Timestamp>>,
    /// Why the drive cannot be attached.
    trouble: Mutex<Option<Failure>>,
    /// A warning about the drive's file system.
    warning: Mutex<Option<String>>,
    /// Why the interrupted batch on the drive is not finished, if there is one.
    unfinished: Mutex<Option<String>>,
    /// Warnings about file systems that are mounted inside the drive's directory.
    inner_mounts: Mutex<Vec<String>>,
    /// The drive was removed without an eject, and its file system has not been found clean since.
    pub(super) vanished: AtomicBool,
    /// .ferryfs was deleted from the drive, which itself was there all the time.
    folder_deleted: AtomicBool,
    /// One attach at a time.
    pub(super) attaching: Mutex<()>,
    /// How often other mounts are still to be searched for the volume.
    scans: AtomicU8,
    /// The mount table when the drive was last seen at its place.
    before: Mutex<Vec<Mount>>,
    /// The mount table has changed since `before` was read.
    table_is_new: AtomicBool,
    /// When attaching is tried again after a failure, and the wait before it.
    retry: Mutex<(Instant, Duration)>,
    /// `/proc/self/mountinfo`, which signals a change of the mount table.
    table: Option<File>,
}

impl Monitor {
    /// A monitor of the drive at `site`, with a `warning` about its file system. With `away` the
    /// drive is not attached, for that reason.
    pub(super) fn new(
        parts: MonitorParts,
        site: Site,
        warning: Option<String>,
        away: Option<Failure>,
    ) -> Monitor {
        Monitor {
            site: Mutex::new(site),
            facts: Mutex::new(parts.facts.clone()),
            presence: Mutex::new(match away {
                None => Presence::Attached,
                Some(_) => Presence::Gone,
            }),
            ejected: Mutex::new(None),
            trouble: Mutex::new(away),
            warning: Mutex::new(warning),
            unfinished: Mutex::new(None),
            inner_mounts: Mutex::default(),
            vanished: AtomicBool::new(false),
            folder_deleted: AtomicBool::new(false),
            attaching: Mutex::new(()),
            scans: AtomicU8::new(0),
            before: Mutex::default(),
            table_is_new: AtomicBool::new(true),
            retry: Mutex::new((Instant::now(), Duration::ZERO)),
            table: File::open("/proc/self/mountinfo").ok(),
            parts,
        }
    }

    /// Asks for a look at the drive at once.
    pub(super) fn look_now(&self) {
        self.parts.bell.suspect();
    }

    /// Why the drive cannot be attached, if it cannot.
    pub(super) fn trouble(&self) -> Option<Failure> {
        self.trouble.lock().clone()
    }

    /// Why the drive is not attached, and what the user can do; the same for every command.
    pub(super) fn absence(&self) -> Failure {
        let absent = |message: String, hint: Option<String>| Failure {
            code: Exit::BackendAbsent,
            message,
            hint,
        };
        if let Some(ejected) = self.ejected() {
            let message = match ejected.mounted_at {
                Some(_) => "the drive was ejected, and is still mounted",
                None => "the drive was ejected",
            };
            return absent(message.into(), Some(ejected.advice()));
        }
        let trouble = self.trouble().or_else(|| self.look_at_its_place());
        match trouble {
            Some(trouble) => absent(trouble.message, trouble.hint),
            None => FlushError::Detached.into(),
        }
    }

    /// The problem at the drive's path, in case the watching thread has not looked there yet.
    pub(super) fn look_at_its_place(&self) -> Option<Failure> {
        let (path, facts) = (self.path(), self.facts.lock().clone());
        let begun = Instant::now();
        let look = move || verify::verify(&path, &facts, false).err();
        let refusal = within(look, || begun.elapsed() > GLIMPSE)??;
        (!refusal.is_absence()).then(|| refusal.into())
    }

    /// What the user should know of the attached drive.
    pub(super) fn warnings(&self) -> Vec<String> {
        let unfinished = self.unfinished.lock();
        let unfinished = unfinished.iter().map(|why| unfinished_line(why));
        self.warning
            .lock()
            .iter()
            .cloned()
            .chain(unfinished)
            .chain(self.inner_mounts.lock().iter().cloned())
            .chain(self.site.lock().remark.clone())
            .collect()
    }

    /// Whether an interrupted batch on the drive is not finished yet.
    pub(super) fn is_unfinished(&self) -> bool {
        self.unfinished.lock().is_some()
    }

    /// Notes why it could not be finished; `None` once it is finished.
    pub(super) fn set_unfinished(&self, why: Option<String>) {
        *self.unfinished.lock() = why;
    }

    /// The path of the volume, or where it was when it was seen last.
    pub(super) fn path(&self) -> PathBuf {
        self.site.lock().path.clone()
    }

    /// Whether the drive is attached.
    pub(super) fn presence(&self) -> Presence {
        *self.presence.lock()
    }

    /// The eject after which the drive has not been attached again, if there is one.
    pub(super) fn ejected(&self) -> Option<Ejected> {
        let time = (*self.ejected.lock())?;
        let is_there = self.presence() == Presence::Ejected;
        Some(Ejected {
            time: rfc3339(time),
            mounted_at: is_there.then(|| self.path().to_text()),
        })
    }

    /// Detaches the drive on request: other machines may use it at once.
    pub(super) fn eject(&self) {
        self.parts.lease.release();
        *self.ejected.lock() = Some(SystemTime::now().into());
        self.detach(Presence::Ejected);
    }

    /// Detaches the drive: no call reaches it any more, and no descriptor stays open on it except
    /// those of calls under way.
    pub(super) fn detach(&self, presence: Presence) {
        {
            let mut now = self.presence.lock();
            self.parts.drive.detach();
            *now = presence;
        }
        self.parts.lease.suspend();
        self.parts.clean.forget();
        let backend = self.site.lock().backend.clone();
        backend.let_go();
        (self.parts.on_detach)();
        if presence == Presence::Ejected {
            // A user who was asked to check the file system ejects the drive for that. Nothing else
            // shows that it has been checked.
            self.vanished.store(false, Ordering::Release);
        }
        self.expect_it_elsewhere();
        self.parts.bell.ring();
    }

    /// Searches other mounts for the volume at the next looks.
    fn expect_it_elsewhere(&self) {
        self.scans.store(SCANS, Ordering::Release);
        *self.retry.lock() = (Instant::now(), Duration::ZERO);
    }

    /// Waits until the next look is due: time has passed, a look is requested, the mount table has
    /// changed, the drive's block device is gone, or the lease is lost.
    pub(super) fn wait(&self) {
        let interval = match self.presence() {
            Presence::Ejected => EJECTED_INTERVAL,
            _ => INTERVAL,
        };
        let device = self.block_device();
        let end = Instant::now() + interval;
        while Instant::now() < end && !self.parts.bell.take_ring() {
            if self.table_changes() {
                self.table_is_new.store(true, Ordering::Release);
                self.expect_it_elsewhere();
                return;
            }
            if device.is_some_and(|device| !superblock::device_exists(device))
                || self.parts.lease.is_lost()
            {
                return;
            }
        }
    }

    /// The block device of the attached drive, if the kernel lists it.
    pub(in crate::daemon) fn block_device(&self) -> Option<u64> {
        if self.presence() != Presence::Attached {
            return None;
        }
        self.site.lock().mount.as_ref()?.block_device()
    }

    /// Waits a moment for a change of the mount table, which the kernel signals on its file (see
    /// proc(5), mountinfo), or for the bell. Returns whether the table has changed.
    fn table_changes(&self) -> bool {
        let bell = PollFd::new(self.parts.bell.wake(), PollFlags::POLLIN);
        let table = self.table.iter();
        let mut fds: Vec<PollFd<'_>> = table
            .map(|table| PollFd::new(table.as_fd(), PollFlags::POLLPRI))
            .chain([bell])
            .collect();
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, TABLE_WAIT_MS);
        let events = fds.iter().filter_map(PollFd::revents);
        events
            .fold(PollFlags::empty(), PollFlags::union)
            .contains(PollFlags::POLLPRI)
    }

    /// Looks at the drive once.
    pub(super) fn look(&self) {
        // A thread that attaches a drive looks at it itself.
        let Some(_one_at_a_time) = self.attaching.try_lock() else {
            return;
        };
        if let Some(loss) = self.parts.lease.take_loss() {
            self.detach(Presence::Gone);
            self.note(Failure::failed(loss).hint(TAKEN_OVER));
        }
        if self.presence() == Presence::Attached {
            self.look_for_loss();
        }
        match self.presence() {
            Presence::Attached => {}
            Presence::Ejected if self.is_still_there() => self.note_table(),
            Presence::Ejected => *self.presence.lock() = Presence::Gone,
            Presence::Gone => self.look_for_return(),
        }
    }

    /// Whether the ejected drive is still mounted.
    fn is_still_there(&self) -> bool {
        let dir = self.site.lock().dir.clone();
        dir.check_alive(Look::Glance).is_ok()
    }

    /// Remembers what else is mounted while the drive is at its place: none of that is the drive.
    fn note_table(&self) {
        if self.table_is_new.swap(false, Ordering::AcqRel)
            && let Ok(table) = mounts::mounts()
        {
            *self.before.lock() = table;
            if let Err(error) = self.look_at_inner_mounts() {
                tracing::error!(%error, "cannot note what is mounted inside the drive's directory");
                self.table_is_new.store(true, Ordering::Release);
            }
        }
    }

    /// Checks whether the drive's top directory can be changed. Waits for the drive.
    pub(super) fn look_at_top_directory(&self) {
        let dir = self.site.lock().dir.clone();
        let remark = inner_mounts::top_directory(&dir);
        self.site.lock().remark = remark;
    }

    /// Notes what is mounted inside the drive's directory.
    ///
    /// # Errors
    /// If the index fails.
    pub(super) fn look_at_inner_mounts(&self) -> Result<(), FlushError> {
        let dir = self.site.lock().dir.clone();
        let lines = inner_mounts::look(&self.parts.index, &dir, self.parts.clean.is_on())?;
        let mut said = self.inner_mounts.lock();
        for line in lines.iter().filter(|line| !said.contains(line)) {
            tracing::warn!(line, "inside the drive's directory");
        }
        *said = lines;
        Ok(())
    }
}

/// The warning about a batch that could not be finished because of `why`.
pub(super) fn unfinished_line(why: &str) -> String {
    format!(
        "an interrupted batch is not finished on the drive: {why}. Nothing is lost: the mount \
         serves the cache, and tries again until it succeeds, as does every flush"
    )
}

/// The warning about a drive that is attached in this case.
pub(super) fn warning(case: Case, mount: Option<&Mount>, path: &Path) -> Option<String> {
    match (fsck::decide(case), mount) {
        (Decision::Warn(concern), Some(mount)) => Some(concern.words(mount, path)),
        _ => None,
    }
}

/// Whether the cache has the journal of an unfinished batch.
pub(super) fn has_open_batch(cache: &Path) -> bool {
    std::fs::read_dir(cache.join("batches")).is_ok_and(|mut entries| entries.next().is_some())
}
