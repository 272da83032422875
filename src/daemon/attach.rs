//! `ferryfs attach`: attaches the drive at the path that the user names.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::monitor::{Monitor, Presence};
use super::re_enroll::re_enroll;
use super::verify::Found;
use super::{preflight, verify};
use crate::control::protocol::{AttachReport, ControlError, ErrorCode};
use crate::core::{Clock, Exit, Failure, ForeignText, quoted};
use crate::daemon::fsck;
use crate::daemon::fsck::{CheckError, Decision};
use crate::drive::Backend;
use crate::drive::mounted::MountedDir;
use crate::error::FlushError;
use crate::sys::time::CoarseClock;

impl Monitor {
    /// Attaches the volume at `path`, an absolute path, and finishes its interrupted batch. With
    /// `accept_copy` it may be on another file system than before; with `fsck` its file system is
    /// checked first, unless its dirty flag is clear; with `take_over` it is attached even if
    /// another machine uses it.
    ///
    /// # Errors
    /// If the volume is attached at another path and answers there, if `path` is not the volume, if
    /// the check fails, or if the interrupted batch cannot be finished.
    pub(super) fn attach(
        &self,
        path: &Path,
        accept_copy: bool,
        fsck: bool,
        take_over: bool,
    ) -> Result<AttachReport, ControlError> {
        let _one_at_a_time = self.attaching.lock();
        preflight::check_attachable(path, &self.parts.cache, &self.parts.mountpoint)
            .map_err(|error| control(error.into()))?;
        if self.presence() == Presence::Attached {
            self.look_now();
            self.look_for_loss();
        }
        let facts = self.facts.lock().clone();
        let is_attached = self.presence() == Presence::Attached;
        if is_attached && !self.is_at(path) {
            return Err(attached_elsewhere(&self.path()));
        }
        let mut found =
            verify::verify(path, &facts, accept_copy).map_err(|refusal| control(refusal.into()))?;
        let check = fsck::decide(self.case(found.mount.as_ref(), fsck)) == Decision::Check;
        if is_attached && !check {
            return Ok(self.report(path, true, false));
        }
        self.claim(&found).map_err(control)?;
        if check {
            if is_attached {
                // Calls under way fail; a batch under way is then finished from its journal.
                self.detach(Presence::Gone);
            }
            found = self.checked(path, found, accept_copy)?;
        }
        self.take_lease(path, &found, take_over)?;
        self.adopt(path, found, check).map_err(|error| {
            let mut control = super::service::control_error(&error);
            control.message = format!(
                "the interrupted batch on {} cannot be finished: {}",
                path.escaped(),
                control.message
            );
            control
        })?;
        Ok(self.report(path, false, check))
    }

    /// Attaches the volume at `path`, where its marker was deleted, after writing the marker again.
    ///
    /// # Errors
    /// As [`Monitor::attach`], or if the directory may not be the volume.
    pub(super) fn re_enroll(
        &self,
        path: &Path,
        accept_copy: bool,
    ) -> Result<AttachReport, ControlError> {
        {
            let _one_at_a_time = self.attaching.lock();
            let cache = &self.parts.cache;
            preflight::check_attachable(path, cache, &self.parts.mountpoint)
                .map_err(|error| control(error.into()))?;
            if self.presence() == Presence::Attached {
                self.look_now();
                self.look_for_loss();
            }
            if self.presence() == Presence::Attached && !self.is_at(path) {
                return Err(attached_elsewhere(&self.path()));
            }
            let mut facts = self.facts.lock().clone();
            let dir =
                MountedDir::open(path).map_err(|error| control(FlushError::from(error).into()))?;
            self.parts.clean.begin(&dir);
            let written = re_enroll(path, &mut facts, cache, accept_copy, CoarseClock.now());
            self.parts.clean.end(&dir);
            let nonce = written.map_err(control)?;
            *self.facts.lock() = facts;
            self.settle_enrollment(nonce)
                .map_err(|error| control(error.into()))?;
        }
        self.attach(path, accept_copy, false, false)
    }

    /// Makes `nonce`, which the marker has, the only valid one. Before that the index notes that
    /// the next batch writes the whole catalog. A crash in between leaves both nonces valid.
    pub(super) fn settle_enrollment(&self, nonce: [u8; 16]) -> Result<(), FlushError> {
        let mut facts = self.facts.lock();
        if !facts.settle_enrollment(nonce) {
            return Ok(());
        }
        let noted = self.parts.flusher.renewed(nonce);
        if noted.is_err() {
            facts.renew_enrollment(nonce);
        }
        noted?;
        if let Err(error) = facts.write(&self.parts.cache) {
            tracing::warn!(
                %error,
                "the new nonce of the volume is not stored; the next attach tries again"
            );
        }
        Ok(())
    }

    /// Takes the lease of what was found at `path`, and waits as long as that takes.
    fn take_lease(&self, path: &Path, found: &Found, take_over: bool) -> Result<(), ControlError> {
        let dir: Arc<dyn Backend> = Arc::new(found.dir.clone());
        let shared = crate::daemon::open_cache::is_shared(path);
        let taken = self.parts.lease.take(&dir, shared, take_over, |_, _| {});
        taken.map_err(|failure| control(failure.into()))
    }

    /// Whether `path` is the attached directory, perhaps by another path or another mount.
    fn is_at(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let attached = self.path();
        let number = |path: &Path| {
            std::fs::metadata(path)
                .map(|dir| (dir.dev(), dir.ino()))
                .ok()
        };
        attached == path || number(&attached).is_some_and(|n| Some(n) == number(path))
    }

    /// Checks the file system at `path`, and verifies the volume again.
    fn checked(&self, path: &Path, found: Found, accept_copy: bool) -> Result<Found, ControlError> {
        let mount = found.mount.as_ref().ok_or_else(|| {
            control(refused(&CheckError::NotPossible(
                "the mount table does not have it".into(),
            )))
        })?;
        fsck::check(mount).map_err(|error| control(refused(&error)))?;
        self.vanished.store(false, Ordering::Release);
        let facts = self.facts.lock().clone();
        verify::verify(path, &facts, accept_copy).map_err(|refusal| control(refusal.into()))
    }

    fn report(&self, path: &Path, already: bool, checked: bool) -> AttachReport {
        AttachReport {
            backend: path.to_text(),
            already,
            checked,
            warnings: self.warnings(),
        }
    }
}

/// The failure of a command whose file-system check was refused or failed.
pub(super) fn refused(error: &CheckError) -> Failure {
    Failure::failed(error.to_string()).hint(error.hint())
}

fn attached_elsewhere(path: &Path) -> ControlError {
    ControlError::new(
        ErrorCode::Busy,
        format!(
            "the volume is attached at {}, and answers there",
            path.escaped()
        ),
    )
    .with_hint(format!(
        "run `ferryfs eject` first; its files are at {}",
        quoted(path)
    ))
}

fn control(error: Failure) -> ControlError {
    let code = match error.code {
        Exit::BackendAbsent => ErrorCode::BackendAbsent,
        _ => ErrorCode::Failed,
    };
    ControlError {
        code,
        message: error.message,
        hint: error.hint,
    }
}
