//! `ferryfs attach`: the user says where the drive is.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::health::{self, CheckError, Decision};
use super::monitor::{Monitor, Presence};
use super::re_enroll::re_enroll;
use super::verify::{self, Found};
use super::{DaemonError, preflight};
use crate::backend::Backend;
use crate::base::{Clock, ForeignText};
use crate::cli::exit::Exit;
use crate::cli::render::quoted;
use crate::control::protocol::{AttachReport, ControlError, ErrorCode};
use crate::flush::FlushError;
use crate::sys::time::CoarseClock;

impl Monitor {
    /// Attaches the volume at `path`, an absolute path, and finishes what was interrupted on it. With `accept_copy` the file
    /// system that it is on may be another than before; with `fsck` it is checked first, unless it says that it is clean; with
    /// `take_over` it is taken though another machine has it in use.
    ///
    /// # Errors
    /// If the volume is attached at another place and answers there, if `path` is not it, if the check fails, or if the batch
    /// that was interrupted cannot be finished.
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
        let check = health::decide(self.case(found.mount.as_ref(), fsck)) == Decision::Check;
        if is_attached && !check {
            return Ok(self.report(path, true, false));
        }
        self.claim(&found).map_err(control)?;
        if check {
            if is_attached {
                // Its calls end with an error; a batch under way is finished afterwards, from its journal.
                self.let_go(Presence::Gone);
            }
            found = self.checked(path, found, accept_copy)?;
        }
        self.take_lease(path, &found, take_over)?;
        self.adopt(path, found, check).map_err(|error| {
            let mut control = super::service::control_error(&error);
            control.message = format!(
                "what was interrupted cannot be finished on {}: {}",
                path.escaped(),
                control.message
            );
            control
        })?;
        Ok(self.report(path, false, check))
    }

    /// Attaches the volume at `path`, whose marker has been deleted there: it is written anew first.
    ///
    /// # Errors
    /// As [`Monitor::attach`], or if the directory cannot be taken for the volume.
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
            let nonce = re_enroll(path, &mut facts, cache, accept_copy, CoarseClock.now())
                .map_err(control)?;
            *self.facts.lock() = facts;
            self.settle_enrollment(nonce)
                .map_err(|error| control(error.into()))?;
        }
        self.attach(path, accept_copy, false, false)
    }

    /// Takes `nonce`, which the marker has, for the one that counts. The index notes first that the
    /// catalog is to be written as a whole: a crash in between leaves both nonces.
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
            tracing::warn!(%error, "the next attach settles it again");
        }
        Ok(())
    }

    /// Makes sure that no other machine has what was found at `path` in use. Whoever asked waits as long as it takes to know.
    fn take_lease(&self, path: &Path, found: &Found, take_over: bool) -> Result<(), ControlError> {
        let dir: Arc<dyn Backend> = Arc::new(found.dir.clone());
        let shared = super::opening::is_shared(path);
        let taken = self.parts.lease.take(&dir, shared, take_over, |_, _| {});
        taken.map_err(|failure| control(failure.into()))
    }

    /// Whether `path` is what is attached, perhaps by another spelling or another mount of it.
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

    /// What was found at `path` once its file system has been checked.
    fn checked(&self, path: &Path, found: Found, accept_copy: bool) -> Result<Found, ControlError> {
        let mount = found.mount.as_ref().ok_or_else(|| {
            control(refused(&CheckError::NotPossible(
                "the mount table does not have it".into(),
            )))
        })?;
        health::check(mount).map_err(|error| control(refused(&error)))?;
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

/// A check that was not made, for the person who asked for it.
pub(super) fn refused(error: &CheckError) -> DaemonError {
    DaemonError::failed(error.to_string()).hint(error.hint())
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

fn control(error: DaemonError) -> ControlError {
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
