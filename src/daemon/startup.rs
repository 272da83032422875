//! The first accesses to the drive at the start of a mount, all in bounded time: the drive may be a
//! share whose server does not answer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::core::{Exit, Failure};
use crate::daemon::flush_job::within;
use crate::daemon::known_caches::Place;
use crate::daemon::monitor::Presence;
use crate::daemon::preflight::Checked;
use crate::daemon::service::Service;
use crate::daemon::stop::Stop;
use crate::daemon::{MountOptions, known_caches, metrics, preflight, volume, write_back};
use crate::drive::Look;
use crate::drive::connection::Drive;
use crate::drive::mounted::MountedDir;
use crate::error::FlushError;
use crate::flush::Flusher;
use crate::format::marker::Marker;

/// The shortest and the longest wait before an unfinished batch is tried again.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// How often it is considered whether to try.
const RETRY_EVERY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(600);

/// The state of the drive after the recovery at a start.
#[derive(Debug)]
pub(super) enum Begin {
    /// The drive and the index agree.
    Settled,
    /// The drive is there, but its interrupted batch cannot be finished yet, for this reason. The
    /// mount serves the cache, and recovery is tried again.
    Unfinished(String),
    /// The drive is not there.
    Away(Failure),
}

/// Recovers the drive, on a thread of its own, because a drive that does not answer must not block
/// the start.
///
/// # Errors
/// If no later attempt can succeed: it is not the volume, another machine uses it, it is of a newer
/// version, or the cache fails.
pub(super) fn recover(
    flusher: &Arc<Flusher>,
    drive: &Arc<Drive>,
    patience: Duration,
) -> Result<Begin, Failure> {
    let theirs = flusher.clone();
    let silent = || {
        drive
            .stalled()
            .is_some_and(|stall| stall.lasts() >= patience)
    };
    match within(move || theirs.recover(), silent) {
        Some(Ok(())) => Ok(Begin::Settled),
        Some(Err(error)) => Ok(judge(error, drive)?),
        // The attempt continues when the drive answers.
        None => Ok(Begin::Unfinished(no_answer().message)),
    }
}

/// The state of the drive after a recovery that failed with `error`.
///
/// # Errors
/// `error`, if no later attempt can succeed.
fn judge(error: FlushError, drive: &Drive) -> Result<Begin, FlushError> {
    if stays_for(&error, drive) {
        tracing::warn!(%error, "the interrupted batch on the drive is not finished yet");
        return Ok(Begin::Unfinished(error.to_string()));
    }
    match error.is_gone() {
        true => Ok(Begin::Away(error.into())),
        false => Err(error),
    }
}

/// Whether the drive is there, and a later recovery may succeed where one failed with `error`.
pub(super) fn stays_for(error: &FlushError, drive: &Drive) -> bool {
    // An unreadable file or a read-only drive does not mean that the drive is gone.
    let is_there = || {
        drive
            .get()
            .is_some_and(|backend| backend.check_alive(Look::Read).is_ok())
    };
    may_pass(error) && (!error.is_gone() || is_there())
}

/// Tries again to finish the interrupted batch on the drive, until `stop`. Every flush tries as
/// well.
pub(super) fn retry(service: &Service, stop: &Stop) {
    let mut backoff = FIRST_RETRY;
    let mut next = Instant::now() + backoff;
    while !stop.is_given() {
        stop.rest(RETRY_EVERY);
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
                tracing::info!("the interrupted batch on the drive is finished");
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

/// Whether the drive caused `error`, so that a later recovery may succeed.
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
        | FlushError::Held { .. }
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

pub(super) fn no_answer() -> Failure {
    Failure {
        code: Exit::BackendAbsent,
        message: "the drive does not answer".into(),
        hint: Some(
            "check the NAS or drive, and mount again when it answers; nothing was changed and \
             nothing is lost"
                .into(),
        ),
    }
}

/// Opens the drive's directory and reads its marker, in bounded time.
pub(super) fn look(
    path: &Path,
    patience: Duration,
) -> Result<(MountedDir, Option<Marker>), Failure> {
    let begun = Instant::now();
    let path = path.to_path_buf();
    let look = move || {
        let backend = MountedDir::open(&path).map_err(FlushError::from)?;
        let marker = volume::peek(&backend)?;
        Ok((backend, marker))
    };
    within(look, || begun.elapsed() > patience).unwrap_or_else(|| Err(no_answer()))
}

/// Makes the checks before a mount, in bounded time.
pub(super) fn check(options: MountOptions) -> Result<Checked, Failure> {
    let (begun, patience) = (Instant::now(), options.io_timeout);
    let mine = options.clone();
    let check = move || {
        let checked = preflight::check(options)?;
        if checked.options.allow_write_back {
            write_back::allow();
        }
        write_back::check(&checked.options.backend)?;
        check_metrics(&checked.options, Some(&checked.options.backend))?;
        Ok(checked)
    };
    match within(check, || begun.elapsed() > patience) {
        Some(checked) => checked,
        // The mount starts without the drive, if its cache is known.
        None if known_caches::are_there_any(&mine, Place::Silent) => {
            let checked = preflight::check_without_backend(mine)?;
            check_metrics(&checked.options, None)?;
            Ok(checked)
        }
        None => Err(no_answer()),
    }
}

/// Checks the file for the metrics, if there is to be one.
fn check_metrics(options: &MountOptions, backend: Option<&Path>) -> Result<(), Failure> {
    match &options.metrics.file {
        Some(file) => metrics::check_file(file, &options.mountpoint, backend),
        None => Ok(()),
    }
}
