//! What a mount begins with that waits for the backend, in bounded time: it may be a share whose server is silent.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::flight::within;
use super::known_caches::{self, Place};
use super::monitor::Presence;
use super::preflight::Checked;
use super::service::Service;
use super::tasks::rest;
use super::{DaemonError, MountOptions, preflight, volume, write_back};
use crate::backend::Look;
use crate::backend::drive::Drive;
use crate::backend::mounted::MountedDir;
use crate::cli::exit::Exit;
use crate::flush::{FlushError, Flusher};
use crate::rules::marker::Marker;

/// How soon a batch that could not be finished is tried again, and how late at most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(600);

/// How the backend is once a mount has tried to bring it and the index to agree.
#[derive(Debug)]
pub(super) enum Begin {
    /// They agree.
    Settled,
    /// The backend is there, and what was interrupted on it cannot be finished yet: this is why. The mount serves the cache, and
    /// it is tried again.
    Unfinished(String),
    /// It is gone, or went away meanwhile.
    Away(DaemonError),
}

/// Brings the backend and the index to agree; not on this thread, which must not be kept by a backend that does not answer.
///
/// # Errors
/// What no later attempt can put right: it is not the volume, is another machine's, is of a newer version, or the cache fails.
pub(super) fn recover(
    flusher: &Arc<Flusher>,
    drive: &Arc<Drive>,
    patience: Duration,
) -> Result<Begin, DaemonError> {
    let theirs = flusher.clone();
    let silent = || {
        drive
            .stalled()
            .is_some_and(|stall| stall.lasts() >= patience)
    };
    match within(move || theirs.recover(), silent) {
        Some(Ok(())) => Ok(Begin::Settled),
        Some(Err(error)) => Ok(judge(error, drive)?),
        // The attempt goes on by itself when it is answered.
        None => Ok(Begin::Unfinished(no_answer().message)),
    }
}

/// What a recovery that failed of `error` leaves.
///
/// # Errors
/// `error`, if no later attempt can put it right.
fn judge(error: FlushError, drive: &Drive) -> Result<Begin, FlushError> {
    if stays_for(&error, drive) {
        tracing::warn!(%error, "what was interrupted on the drive is not finished yet");
        return Ok(Begin::Unfinished(error.to_string()));
    }
    match error.is_gone() {
        true => Ok(Begin::Away(error.into())),
        false => Err(error),
    }
}

/// Whether the drive is there, and may take another time what a recovery failed of.
pub(super) fn stays_for(error: &FlushError, drive: &Drive) -> bool {
    // One file that cannot be read, or a drive that has become read-only, is no drive that is gone.
    let is_there = || {
        drive
            .get()
            .is_some_and(|backend| backend.check_alive(Look::Read).is_ok())
    };
    may_pass(error) && (!error.is_gone() || is_there())
}

/// Tries again to finish what could not be finished on the drive, until `stop`. Every flush does so as well.
pub(super) fn retry(service: &Service, stop: &AtomicBool) {
    let mut backoff = FIRST_RETRY;
    let mut next = Instant::now() + backoff;
    while !stop.load(Ordering::Acquire) {
        rest(stop, Duration::from_millis(200));
        if !service.monitor.is_unfinished() {
            backoff = FIRST_RETRY;
            next = Instant::now() + backoff;
            continue;
        }
        let able = service.monitor.presence() == Presence::Attached
            && service.drive.stalled().is_none()
            && !service.flusher.is_running()
            && !service.ending.load(Ordering::Acquire);
        if !able || Instant::now() < next {
            continue;
        }
        match service.flusher.recover() {
            Ok(()) => {
                tracing::info!("what was interrupted on the drive is finished");
                service.monitor.set_unfinished(None);
            }
            Err(error) => {
                if error.is_gone() {
                    service.monitor.look_now();
                }
                service.monitor.set_unfinished(Some(error.to_string()));
                backoff = (backoff * 2).min(LONGEST_RETRY);
                next = Instant::now() + backoff;
            }
        }
    }
}

/// Whether what recovery failed of is the drive's doing, and may be another time.
fn may_pass(error: &FlushError) -> bool {
    match error {
        FlushError::Backend(_)
        | FlushError::Unfinished { .. }
        | FlushError::NotOurs { .. }
        | FlushError::Full { .. }
        | FlushError::FullThere { .. }
        | FlushError::NotKept { .. }
        | FlushError::Lies { .. } => true,
        FlushError::Detached
        | FlushError::WrongDrive(_)
        | FlushError::InUse(_)
        | FlushError::BadObjects(_)
        | FlushError::ChangedElsewhere { .. }
        | FlushError::Catalog(_)
        | FlushError::TimedOut
        | FlushError::Cancelled
        | FlushError::TooLate
        | FlushError::Ended { .. }
        | FlushError::StillRunning { .. }
        | FlushError::Store(_)
        | FlushError::Index(_)
        | FlushError::Plan(_)
        | FlushError::Record(_)
        | FlushError::Cache { .. }
        | FlushError::Sync(_) => false,
    }
}

pub(super) fn no_answer() -> DaemonError {
    DaemonError {
        code: Exit::BackendAbsent,
        message: "the backend does not answer".into(),
        hint: Some(
            "see whether the NAS or drive is well, and mount again when it is; nothing was changed and nothing is lost"
                .into(),
        ),
    }
}

/// The first look at the backend: in bounded time, as it may be a share whose server is silent.
pub(super) fn look(
    path: &Path,
    patience: Duration,
) -> Result<(MountedDir, Option<Marker>), DaemonError> {
    let begun = Instant::now();
    let path = path.to_path_buf();
    let look = move || {
        let backend = MountedDir::open(&path).map_err(FlushError::from)?;
        let marker = volume::peek(&backend)?;
        Ok((backend, marker))
    };
    within(look, || begun.elapsed() > patience).unwrap_or_else(|| Err(no_answer()))
}

/// The checks before a mount, in bounded time likewise.
pub(super) fn check(options: MountOptions) -> Result<Checked, DaemonError> {
    let (begun, patience) = (Instant::now(), options.io_timeout);
    let mine = options.clone();
    let check = move || {
        let checked = preflight::check(options)?;
        if checked.options.allow_write_back {
            write_back::allow();
        }
        write_back::check(&checked.options.backend)?;
        Ok(checked)
    };
    match within(check, || begun.elapsed() > patience) {
        Some(checked) => checked,
        // The mount begins without it, if its cache is known.
        None if known_caches::are_there_any(&mine, Place::Silent) => {
            Ok(preflight::check_without_backend(mine)?)
        }
        None => Err(no_answer()),
    }
}
