//! The drive is back: finding it, and attaching it.
//!
//! It is looked for at its path, whatever is mounted there, and, if its file system is known for
//! certain, on every mount that is new. Its interrupted batch is recovered before anything else is
//! done with it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::site::medium_of;
use super::{INTERVAL, Monitor, Presence, Site, has_open_batch, warning};
use crate::core::{Failure, ForeignText, quoted};
use crate::daemon::drive_identity::FsIdentity;
use crate::daemon::fsck::{self, Case, FsState};
use crate::daemon::lease::{LeaseFailure, Step};
use crate::daemon::verify::{self, Found};
use crate::daemon::volume::{self, CacheFacts};
use crate::drive::Backend;
use crate::drive::connection::Withheld;
use crate::error::FlushError;
use crate::sys::mounts::Mount;

/// The longest wait before a failed recovery is tried again.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

impl Monitor {
    /// Attaches the drive if it is there again.
    pub(super) fn look_for_return(&self) {
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
                Err(refusal) => return self.note(refusal.into()),
            }
        }
        if self.scans.load(Ordering::Acquire) > 0 {
            self.scans.fetch_sub(1, Ordering::AcqRel);
            self.look_elsewhere(&facts);
        }
    }

    /// Looks for the drive on other mounts. A drive that is plugged in while its old mount still
    /// exists is mounted at another place.
    fn look_elsewhere(&self, facts: &CacheFacts) {
        let (mount, place) = {
            let site = self.site.lock();
            (site.mount.clone(), site.place.clone())
        };
        let Some(mount) = mount else { return };
        // A mount that was there before the drive was gone cannot be the drive.
        let before = self.before.lock().clone();
        for path in verify::elsewhere(&before, &mount, &place, facts) {
            match verify::verify(&path, facts, false) {
                Ok(found) if found.is_certain || self.is_same_medium(&found) => {
                    return self.come_back(&path, found);
                }
                Ok(_) => self.note(
                    Failure::failed(format!("the drive seems to be at {} now", path.escaped()))
                        .hint(format!("attach it with `ferryfs attach {}`", quoted(&path))),
                ),
                Err(refusal) => self.note(refusal.into()),
            }
        }
    }

    /// Whether what was found is on the medium that the drive was on, which has not been taken out
    /// since. This needs no right to read the file system's UUID.
    fn is_same_medium(&self, found: &Found) -> bool {
        let before = self.site.lock().medium;
        before.is_some() && before == medium_of(found)
    }

    /// Attaches what was found at `path`, if no other daemon or machine uses it.
    fn come_back(&self, path: &Path, found: Found) {
        if let Err(refused) = self.claim(&found) {
            self.retry_later();
            return self.note(refused);
        }
        match self.advance_lease(path, &found) {
            Ok(Step::Held) => {}
            // The next look continues.
            Ok(Step::Wait { .. }) => return,
            Err(failure) => {
                self.retry_later();
                return self.note(failure.into());
            }
        }
        if let Err(error) = self.adopt(path, found, false) {
            self.retry_later();
            self.note(error.into());
        }
    }

    /// Locks what was found against other daemons on this machine.
    pub(in crate::daemon) fn claim(&self, found: &Found) -> Result<(), Failure> {
        match self.parts.volume_lock.upgrade() {
            Some(lock) => Ok(lock.claim(&found.dir)?),
            None => Err(Failure::failed("the mount is ending")),
        }
    }

    fn retry_later(&self) {
        let mut retry = self.retry.lock();
        retry.1 = (retry.1 * 2).clamp(INTERVAL, MAX_BACKOFF);
        retry.0 = Instant::now() + retry.1;
    }

    /// Takes one step towards the lease of what was found at `path`. Does not wait.
    fn advance_lease(&self, path: &Path, found: &Found) -> Result<Step, LeaseFailure> {
        let backend: Arc<dyn Backend> = Arc::new(found.dir.clone());
        let lease = &self.parts.lease;
        lease.advance(&backend, crate::daemon::open_cache::is_shared(path), false)
    }

    /// Attaches what was found at `path`, and finishes its interrupted batch. With `checked` its
    /// file system has just been checked. The caller holds `attaching`.
    ///
    /// # Errors
    /// If the batch cannot be finished; the drive is then detached again.
    pub(in crate::daemon) fn adopt(
        &self,
        path: &Path,
        found: Found,
        checked: bool,
    ) -> Result<(), FlushError> {
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
        let backend = site.backend.clone();
        *self.site.lock() = site;
        self.look_at_inner_mounts()?;
        self.look_at_top_directory();
        self.parts.drive.attach(backend);
        let unfinished = match self.parts.flusher.recover() {
            Ok(()) => None,
            Err(error) if self.stays_for(&error) => Some(error.to_string()),
            Err(error) => {
                self.detach(Presence::Gone);
                // The caller decides when to try again.
                self.scans.store(0, Ordering::Release);
                return Err(error);
            }
        };
        self.set_unfinished(unfinished);
        self.remember(path, found.file_system);
        tracing::info!(path = %path.escaped(), "the drive is back");
        if let Some(warning) = &warning {
            tracing::warn!(warning, "the drive's file system");
        }
        *self.warning.lock() = warning;
        if matches!(case.state, FsState::Clean | FsState::Irrelevant) {
            self.vanished.store(false, Ordering::Release);
        }
        self.folder_deleted.store(false, Ordering::Release);
        *self.trouble.lock() = None;
        self.table_is_new.store(true, Ordering::Release);
        *self.retry.lock() = (Instant::now(), Duration::ZERO);
        *self.presence.lock() = Presence::Attached;
        *self.ejected.lock() = None;
        self.parts.drive.refresh_space();
        (self.parts.on_attach)();
        Ok(())
    }

    /// Whether the drive stays attached although its interrupted batch cannot be finished because
    /// of `error`: the drive is there, and a later attempt may succeed.
    fn stays_for(&self, error: &FlushError) -> bool {
        crate::daemon::startup::stays_for(error, &self.parts.drive)
    }

    /// The state of the file system on `mount`, for the decision whether to check it.
    pub(in crate::daemon) fn case(&self, mount: Option<&Mount>, fsck: bool) -> Case {
        Case {
            state: mount.map_or(FsState::Irrelevant, fsck::state_of),
            vanished: self.vanished.load(Ordering::Acquire),
            batch_open: has_open_batch(&self.parts.cache) && !self.was_there_all_along(mount),
            fsck,
        }
    }

    /// Whether only .ferryfs was deleted from the drive, while `mount` has not changed.
    fn was_there_all_along(&self, mount: Option<&Mount>) -> bool {
        let before = self
            .site
            .lock()
            .mount
            .as_ref()
            .map(|mount| (mount.id, mount.dev));
        self.folder_deleted.load(Ordering::Acquire)
            && before.is_some()
            && before == mount.map(|mount| (mount.id, mount.dev))
    }

    /// Stores the drive's new place for the next mount.
    fn remember(&self, path: &Path, file_system: FsIdentity) {
        let mut facts = self.facts.lock();
        let file_system = file_system.or(&facts.file_system);
        if facts.remember(path, file_system)
            && let Err(error) = facts.write(&self.parts.cache)
        {
            // The user names the place at the next mount; nothing else depends on it.
            tracing::warn!(%error, "the drive's new place is not remembered");
        }
    }

    /// Notes why the drive cannot be attached, and logs it if it is a new reason.
    pub(super) fn note(&self, problem: Failure) {
        let mut trouble = self.trouble.lock();
        if trouble.as_ref() != Some(&problem) {
            tracing::warn!(problem = problem.message, "the drive cannot be attached");
            *trouble = Some(problem);
        }
    }
}
