//! What a mount begins with that waits for the backend, in bounded time: it may be a share whose server is silent.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::flight::within;
use super::{DaemonError, MountOptions, preflight, volume, write_back};
use crate::backend::drive::Drive;
use crate::backend::mounted::MountedDir;
use crate::cli::exit::Exit;
use crate::flush::{FlushError, Flusher};
use crate::rules::marker::Marker;

/// Brings the backend and the index to agree; not on this thread, which must not be kept by a backend that does not answer.
pub(super) fn recover(
    flusher: &Arc<Flusher>,
    drive: &Arc<Drive>,
    patience: Duration,
) -> Result<(), DaemonError> {
    let theirs = flusher.clone();
    let silent = || {
        drive
            .stalled()
            .is_some_and(|stall| stall.lasts() >= patience)
    };
    match within(move || theirs.recover(), silent) {
        Some(outcome) => Ok(outcome?),
        None => Err(no_answer()),
    }
}

fn no_answer() -> DaemonError {
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
pub(super) fn check(options: MountOptions) -> Result<MountOptions, DaemonError> {
    let (begun, patience) = (Instant::now(), options.io_timeout);
    let check = move || {
        let options = preflight::check(options)?;
        if options.allow_write_back {
            write_back::allow();
        }
        write_back::check(&options.backend)?;
        Ok(options)
    };
    within(check, || begun.elapsed() > patience).unwrap_or_else(|| Err(no_answer()))
}
