//! Watching the backend: noticing that it is gone, and that it is back.
//!
//! Three things tell that it is gone: the mount table or the list of block devices, which the kernel changes at once and which
//! cost a sleeping disk nothing; and an error of the backend, after which the marker is read past the cache, as a file
//! system whose disk was pulled goes on answering stat and statfs. From then on nothing reaches it, and no descriptor is left
//! on it (see [`crate::backend::watched`]).
//!
//! It is back when [`super::verify`] finds the volume: at its path, whatever is stacked there; or, if its file system is known
//! for certain, where another drive has been mounted. Its batch is then recovered before anything else is done with it. After
//! an eject the drive must first be seen to be gone before it counts as having come back.
//!
//! State lives in memory, but for the path and the file system, which go to `cache.json` once recovery has succeeded: a crash
//! before that finds the old path there, and the volume again by being told its place.
//! Lock order: `attaching`, then any one of the others, each for a moment.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::poll::{PollFd, PollFlags, poll};
use parking_lot::Mutex;

use super::DaemonError;
use super::health::{self, Case, Decision, FsState};
use super::lease::{Keeper, LeaseFailure, Step};
use super::service::rfc3339;
use super::verify::{self, Found};
use super::volume::{self, CacheFacts};
use super::volume_lock::VolumeLock;
use crate::backend::drive::Drive;
use crate::backend::drive::Withheld;
use crate::backend::mounted::MountedDir;
use crate::backend::watched::Watched;
use crate::backend::{Backend, BackendError, Look};
use crate::base::{ForeignText, Timestamp, quoted};
use crate::control::protocol::Ejected;
use crate::flush::{FlushError, Flusher};
use crate::sys::mounts::{self, Mount};
use crate::sys::superblock::{self, Medium};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The same while an ejected drive is waited for to go: it may be back within a second.
const EJECTED_INTERVAL: Duration = Duration::from_millis(200);

/// How long one wait for the mount table to change lasts; requests for a look, and a block device that has gone, are noticed
/// right after that.
const TABLE_WAIT_MS: u8 = 50;

/// How long a drive that was unmounted may take to note that.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// How often other mounts are looked through for the volume after the mount table has changed: the one who mounts a drive may
/// not be done with it at the first time.
const SCANS: u8 = 3;

/// Longest wait before recovery is tried again after it failed.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Whether the backend is at hand, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It is attached.
    Attached,
    /// It is gone; when it is seen again, it is attached.
    Gone,
    /// It was let go of on request and has not been unplugged yet.
    Ejected,
}

/// What asks the watch for a look at once.
pub(super) struct Bell {
    wake: (Sender<()>, Receiver<()>),
    /// The backend has answered with an error that may mean that it is gone.
    suspicious: AtomicBool,
}

impl Bell {
    /// A bell that nobody has rung.
    pub(super) fn new() -> Arc<Bell> {
        Arc::new(Bell {
            wake: bounded(1),
            suspicious: AtomicBool::new(false),
        })
    }

    fn ring(&self) {
        // If one has been asked for already, that one serves.
        let _ = self.wake.0.try_send(());
    }

    fn suspect(&self) {
        self.suspicious.store(true, Ordering::Release);
        self.ring();
    }

    /// `dir` as it may be attached: on a leash whose other end is this bell.
    pub(super) fn leash(self: &Arc<Bell>, dir: MountedDir) -> Arc<Watched> {
        let bell = self.clone();
        Arc::new(Watched::new(
            Arc::new(dir),
            Box::new(move || bell.suspect()),
        ))
    }
}

/// Where the volume is, or was when it was there last.
pub(super) struct Site {
    /// As it was given.
    pub(super) path: PathBuf,
    /// The same without links.
    pub(super) place: PathBuf,
    /// What is mounted there.
    pub(super) mount: Option<Mount>,
    /// The medium that it is on, if that can be told.
    medium: Option<Medium>,
    /// It, off the leash: to look whether it still stands there after it was let go of.
    pub(super) dir: MountedDir,
    /// What is attached.
    pub(super) backend: Arc<Watched>,
}

impl Site {
    /// The site of what was found at `path`, with a leash to `bell`.
    pub(super) fn new(path: &Path, found: &Found, bell: &Arc<Bell>) -> Site {
        Site {
            path: path.into(),
            place: std::fs::canonicalize(path).unwrap_or_else(|_| path.into()),
            mount: found.mount.clone(),
            medium: medium_of(found),
            dir: found.dir.clone(),
            backend: bell.leash(found.dir.clone()),
        }
    }

    /// The site at `path` of a volume that has not been there since this daemon began.
    pub(super) fn absent(path: &Path, bell: &Arc<Bell>) -> Site {
        let dir = MountedDir::absent(path);
        Site {
            path: path.into(),
            place: path.into(),
            mount: None,
            medium: None,
            dir: dir.clone(),
            backend: bell.leash(dir),
        }
    }
}

/// What a monitor is given to work with.
pub(super) struct Parts {
    pub(super) drive: Arc<Drive>,
    pub(super) flusher: Arc<Flusher>,
    pub(super) bell: Arc<Bell>,
    pub(super) cache: PathBuf,
    pub(super) mountpoint: PathBuf,
    pub(super) facts: CacheFacts,
    /// Keeps other machines off what is attached.
    pub(super) lease: Arc<Keeper>,
    /// Keeps other daemons of this machine off it. Not held here: it goes when the mount ends.
    pub(super) volume_lock: Weak<VolumeLock>,
    /// Called when the backend has been let go of.
    pub(super) on_detach: Box<dyn Fn() + Send + Sync>,
    /// Called when it has been attached again.
    pub(super) on_attach: Box<dyn Fn() + Send + Sync>,
}

/// Watches one backend.
pub(super) struct Monitor {
    pub(super) parts: Parts,
    pub(super) site: Mutex<Site>,
    pub(super) facts: Mutex<CacheFacts>,
    presence: Mutex<Presence>,
    /// When it was ejected, until it is attached again.
    ejected: Mutex<Option<Timestamp>>,
    trouble: Mutex<Option<String>>,
    /// What there is to be said of the drive's file system.
    warning: Mutex<Option<String>>,
    /// Why the batch that was interrupted on the drive is not finished, if there is one.
    unfinished: Mutex<Option<String>>,
    /// The backend went away without having been ejected, and its file system has not been found clean since.
    pub(super) vanished: AtomicBool,
    /// One attach at a time.
    pub(super) attaching: Mutex<()>,
    scans: AtomicU8,
    /// The mount table when the backend was seen at its place last, and whether it has changed since it was read.
    before: Mutex<Vec<Mount>>,
    table_is_new: AtomicBool,
    retry: Mutex<(Instant, Duration)>,
    table: Option<File>,
}

impl Monitor {
    /// A monitor of what is attached at `site`, about whose file system there is `warning` to be said; or is not, because of
    /// `away`.
    pub(super) fn new(
        parts: Parts,
        site: Site,
        warning: Option<String>,
        away: Option<String>,
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
            vanished: AtomicBool::new(false),
            attaching: Mutex::new(()),
            scans: AtomicU8::new(0),
            before: Mutex::default(),
            table_is_new: AtomicBool::new(true),
            retry: Mutex::new((Instant::now(), Duration::ZERO)),
            table: File::open("/proc/self/mountinfo").ok(),
            parts,
        }
    }

    /// Asks for a look at once.
    pub(super) fn look_now(&self) {
        self.parts.bell.suspect();
    }

    /// What keeps the backend from being attached, if something does.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// What the user should know of the drive, though it is at work.
    pub(super) fn warnings(&self) -> Vec<String> {
        let unfinished = self.unfinished.lock();
        let unfinished = unfinished.iter().map(|why| unfinished_line(why));
        self.warning
            .lock()
            .iter()
            .cloned()
            .chain(unfinished)
            .collect()
    }

    /// Whether what was interrupted on the drive is still to be finished.
    pub(super) fn is_unfinished(&self) -> bool {
        self.unfinished.lock().is_some()
    }

    /// Notes why it could not be finished; `None` once it is.
    pub(super) fn set_unfinished(&self, why: Option<String>) {
        *self.unfinished.lock() = why;
    }

    /// Where the volume is, or was when it was there last.
    pub(super) fn path(&self) -> PathBuf {
        self.site.lock().path.clone()
    }

    /// Whether the backend is at hand.
    pub(super) fn presence(&self) -> Presence {
        *self.presence.lock()
    }

    /// The eject that is in force, if one is.
    pub(super) fn ejected(&self) -> Option<Ejected> {
        let time = (*self.ejected.lock())?;
        let is_there = self.presence() == Presence::Ejected;
        Some(Ejected {
            time: rfc3339(time),
            mounted_at: is_there.then(|| self.path().to_text()),
        })
    }

    /// Lets go of the backend in order: others may have it at once.
    pub(super) fn eject(&self) {
        self.parts.lease.release();
        *self.ejected.lock() = Some(SystemTime::now().into());
        self.let_go(Presence::Ejected);
    }

    /// Lets go of the backend: nothing reaches it any more, and no descriptor is left on it but those of calls under way.
    pub(super) fn let_go(&self, presence: Presence) {
        {
            let mut now = self.presence.lock();
            self.parts.drive.detach();
            *now = presence;
        }
        self.parts.lease.suspend();
        let backend = self.site.lock().backend.clone();
        backend.let_go();
        (self.parts.on_detach)();
        if presence == Presence::Ejected {
            // Whoever was told to check it by hand ejects it for that; nothing else could tell that it has been done.
            self.vanished.store(false, Ordering::Release);
        }
        self.expect_it_elsewhere();
        self.parts.bell.ring();
    }

    fn expect_it_elsewhere(&self) {
        self.scans.store(SCANS, Ordering::Release);
        *self.retry.lock() = (Instant::now(), Duration::ZERO);
    }

    /// Waits until the next look is due: some time has passed, somebody asks for it, the mount table has changed, or the
    /// drive's block device has gone.
    pub(super) fn wait(&self) {
        let interval = match self.presence() {
            Presence::Ejected => EJECTED_INTERVAL,
            _ => INTERVAL,
        };
        let device = self.block_device();
        let end = Instant::now() + interval;
        while Instant::now() < end && self.parts.bell.wake.1.try_recv().is_err() {
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

    /// The block device that is attached, if it is one that the kernel lists.
    fn block_device(&self) -> Option<u64> {
        if self.presence() != Presence::Attached {
            return None;
        }
        self.site.lock().mount.as_ref()?.block_device()
    }

    /// Waits a moment for the mount table to change. The kernel marks its file when it does (proc(5), mountinfo).
    fn table_changes(&self) -> bool {
        let Some(table) = &self.table else {
            std::thread::sleep(Duration::from_millis(TABLE_WAIT_MS.into()));
            return false;
        };
        let mut fds = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        let changed = poll(&mut fds, TABLE_WAIT_MS).is_ok_and(|count| count > 0);
        changed
            && fds[0]
                .revents()
                .is_some_and(|events| events.contains(PollFlags::POLLPRI))
    }

    /// Looks once.
    pub(super) fn look(&self) {
        // Whoever is just attaching looks himself.
        let Some(_one_at_a_time) = self.attaching.try_lock() else {
            return;
        };
        if let Some(loss) = self.parts.lease.take_loss() {
            self.let_go(Presence::Gone);
            self.note(loss);
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

    /// Whether what was ejected is still mounted as it was.
    fn is_still_there(&self) -> bool {
        let dir = self.site.lock().dir.clone();
        dir.check_alive(Look::Glance).is_ok()
    }

    /// Finds out whether what is attached is gone, and lets go of it if so. An error of it makes for a closer look.
    pub(super) fn look_for_loss(&self) {
        let look = match self.parts.bell.suspicious.swap(false, Ordering::AcqRel) {
            true => Look::Read,
            false => Look::Glance,
        };
        // By the face for readers, which answers in bounded time.
        let Some(backend) = self.parts.drive.get() else {
            return;
        };
        match backend.check_alive(look) {
            // What does not answer in time may only be slow: that is not for us to say.
            Err(error) if error.is_stalled() => {}
            // Nor does it say anything of the drive that we have nothing left to look with. Soon again.
            Err(error) if error.is_shortage() => {
                tracing::error!(%error, "cannot look at the backend");
                self.parts.bell.suspicious.store(true, Ordering::Release);
            }
            Err(error) => self.lose(&error),
            Ok(()) => self.note_table(),
        }
    }

    /// Remembers what else is mounted while the drive is at its place: none of that can be it.
    fn note_table(&self) {
        if self.table_is_new.swap(false, Ordering::AcqRel)
            && let Ok(table) = mounts::mounts()
        {
            *self.before.lock() = table;
        }
    }

    fn lose(&self, error: &BackendError) {
        let is_at_work = self.parts.flusher.is_running() || has_open_batch(&self.parts.cache);
        if !is_at_work && self.was_unmounted() {
            tracing::info!("the drive was unmounted; everything goes on from the cache");
        } else {
            tracing::warn!(%error, "the backend is gone; everything goes on from the cache");
            self.vanished.store(true, Ordering::Release);
        }
        self.let_go(Presence::Gone);
    }

    /// Whether the drive that is gone was unmounted in order: no mount shows its file system any more, while the block device that
    /// it was on is still there. A drive that is pulled takes its device along. A driver behind FUSE may have died as well, and
    /// then its flag tells, if it can be read; if it cannot, the drive was idle and not taken out.
    fn was_unmounted(&self) -> bool {
        let (mount, medium) = {
            let site = self.site.lock();
            (site.mount.clone(), site.medium)
        };
        let Some(mount) = mount else { return false };
        let is_mounted =
            mounts::mounts().is_ok_and(|table| table.iter().any(|m| m.dev == mount.dev));
        let Some(device) = mount.block_device().filter(|_| !is_mounted) else {
            return false;
        };
        // The mount leaves the table before its file system has written the flag.
        let end = Instant::now() + LAST_WRITE;
        loop {
            match superblock::read(device) {
                Ok(Some(found)) if found.dirty && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(Some(found)) => return !found.dirty,
                // Not taken out meanwhile: what was written to it is on it.
                _ => return medium.is_some() && medium == superblock::medium(device),
            }
        }
    }

    fn look_for_return(&self) {
        if Instant::now() < self.retry.lock().0 {
            return;
        }
        let facts = self.facts.lock().clone();
        let mut paths = vec![self.path(), facts.backend.clone()];
        paths.dedup();
        for path in paths {
            match verify::verify(&path, &facts, false) {
                Ok(found) => return self.come_back(&path, found),
                Err(refusal) if refusal.is_absence() => {}
                Err(refusal) => return self.note(refusal.to_string()),
            }
        }
        if self.scans.load(Ordering::Acquire) > 0 {
            self.scans.fetch_sub(1, Ordering::AcqRel);
            self.look_elsewhere(&facts);
        }
    }

    /// A drive that is plugged in while its old mount still stands is mounted at another place.
    fn look_elsewhere(&self, facts: &CacheFacts) {
        let (mount, place) = {
            let site = self.site.lock();
            (site.mount.clone(), site.place.clone())
        };
        let Some(mount) = mount else { return };
        // Whatever stands in an old directory of the machine's own file system is no drive that moved.
        let before = self.before.lock().clone();
        for path in verify::elsewhere(&before, &mount, &place, facts) {
            match verify::verify(&path, facts, false) {
                Ok(found) if found.is_certain || self.is_same_medium(&found) => {
                    return self.come_back(&path, found);
                }
                Ok(_) => self.note(format!(
                    "the volume seems to be at {} now; attach it with `ferryfs attach {}`",
                    path.escaped(),
                    quoted(&path)
                )),
                Err(refusal) => self.note(refusal.to_string()),
            }
        }
    }

    /// Whether what was found is on the medium that the drive was on, which has not been taken out meanwhile: certain also for a user
    /// who may not read the file system's UUID.
    fn is_same_medium(&self, found: &Found) -> bool {
        let before = self.site.lock().medium;
        before.is_some() && before == medium_of(found)
    }

    fn come_back(&self, path: &Path, found: Found) {
        if let Err(refused) = self.claim(&found) {
            self.retry_later();
            return self.note(refused.message);
        }
        match self.come_by_lease(path, &found) {
            Ok(Step::Held) => {}
            // The next look goes on with it.
            Ok(Step::Wait { .. }) => return,
            Err(failure) => {
                self.retry_later();
                return self.note(failure.to_string());
            }
        }
        if let Err(error) = self.adopt(path, found, false) {
            self.retry_later();
            self.note(error.to_string());
        }
    }

    /// Makes sure that no other user's daemon on this machine has what was found in use.
    pub(super) fn claim(&self, found: &Found) -> Result<(), DaemonError> {
        match self.parts.volume_lock.upgrade() {
            Some(lock) => lock.claim(&found.dir),
            None => Err(DaemonError::failed("the mount is ending")),
        }
    }

    fn retry_later(&self) {
        let mut retry = self.retry.lock();
        retry.1 = (retry.1 * 2).clamp(INTERVAL, MAX_BACKOFF);
        retry.0 = Instant::now() + retry.1;
    }

    /// One step towards having what was found at `path` to ourselves. Does not wait.
    fn come_by_lease(&self, path: &Path, found: &Found) -> Result<Step, LeaseFailure> {
        let backend: Arc<dyn Backend> = Arc::new(found.dir.clone());
        let lease = &self.parts.lease;
        lease.advance(&backend, super::opening::is_shared(path), false)
    }

    /// Attaches what was found at `path`, whose file system has just been `checked` or not, and finishes its batch. The caller
    /// holds `attaching`.
    ///
    /// # Errors
    /// If its batch could not be finished; it is not attached then.
    pub(super) fn adopt(&self, path: &Path, found: Found, checked: bool) -> Result<(), FlushError> {
        let case = self.case(found.mount.as_ref(), false);
        let warning = match checked {
            true => None,
            false => warning(case, found.mount.as_ref(), path),
        };
        let is_renewing = self.facts.lock().is_renewing();
        if is_renewing && let Ok(Some(marker)) = volume::peek(&found.dir) {
            self.settle_enrollment(marker.nonce)?;
        }
        self.parts.drive.withhold(Withheld::Everything);
        let site = Site::new(path, &found, &self.parts.bell);
        self.parts.drive.attach(site.backend.clone());
        *self.site.lock() = site;
        let unfinished = match self.parts.flusher.recover() {
            Ok(()) => None,
            Err(error) if self.stays_for(&error) => Some(error.to_string()),
            Err(error) => {
                self.let_go(Presence::Gone);
                // What failed was an attempt at it; its next one is for the caller to time.
                self.scans.store(0, Ordering::Release);
                return Err(error);
            }
        };
        self.set_unfinished(unfinished);
        self.remember(path, found.file_system);
        tracing::info!(path = %path.escaped(), "the backend is back");
        if let Some(warning) = &warning {
            tracing::warn!(warning, "the drive's file system");
        }
        *self.warning.lock() = warning;
        if matches!(case.state, FsState::Clean | FsState::Irrelevant) {
            self.vanished.store(false, Ordering::Release);
        }
        *self.trouble.lock() = None;
        self.table_is_new.store(true, Ordering::Release);
        *self.retry.lock() = (Instant::now(), Duration::ZERO);
        *self.presence.lock() = Presence::Attached;
        *self.ejected.lock() = None;
        self.parts.drive.refresh_space();
        (self.parts.on_attach)();
        Ok(())
    }

    /// Whether the drive is kept though what was interrupted on it cannot be finished for `error`: it is there, and may take it
    /// another time.
    fn stays_for(&self, error: &FlushError) -> bool {
        super::starting::stays_for(error, &self.parts.drive)
    }

    /// What is known of the file system that is about to be attached.
    pub(super) fn case(&self, mount: Option<&Mount>, fsck: bool) -> Case {
        Case {
            state: mount.map_or(FsState::Irrelevant, health::state_of),
            vanished: self.vanished.load(Ordering::Acquire),
            batch_open: has_open_batch(&self.parts.cache),
            fsck,
        }
    }

    fn remember(&self, path: &Path, file_system: super::identity::FsIdentity) {
        let mut facts = self.facts.lock();
        let file_system = file_system.or(&facts.file_system);
        if facts.remember(path, file_system)
            && let Err(error) = facts.write(&self.parts.cache)
        {
            // The next mount is told the place by its user; nothing else depends on it.
            tracing::warn!(%error, "the drive's new place is not remembered");
        }
    }

    /// Notes, and logs if it is news, what keeps the backend from being attached.
    fn note(&self, problem: String) {
        let mut trouble = self.trouble.lock();
        if trouble.as_ref() != Some(&problem) {
            tracing::warn!(problem, "the backend cannot be attached");
            *trouble = Some(problem);
        }
    }
}

/// What is said of a batch that could not be finished.
pub(super) fn unfinished_line(why: &str) -> String {
    format!(
        "a batch that was interrupted is not finished on the drive: {why}. Nothing is lost: the mount serves the cache, and it is tried again by itself and by every flush"
    )
}

fn medium_of(found: &Found) -> Option<Medium> {
    superblock::medium(found.mount.as_ref()?.block_device()?)
}

/// What is to be said of a drive that is attached in this case.
pub(super) fn warning(case: Case, mount: Option<&Mount>, path: &Path) -> Option<String> {
    match (health::decide(case), mount) {
        (Decision::Warn(concern), Some(mount)) => Some(concern.words(mount, path)),
        _ => None,
    }
}

/// Whether the cache has the journal of a batch that was not finished.
pub(super) fn has_open_batch(cache: &Path) -> bool {
    std::fs::read_dir(cache.join("batches")).is_ok_and(|mut entries| entries.next().is_some())
}
