//! The daemon, the process that serves a mount: it enrolls or opens the drive, serves the mount,
//! watches the drive, runs the background threads, and stops them at the end.

mod already_running;
mod attach;
pub mod background;
pub mod changes;
pub mod dead_mount;
pub mod doctor;
mod drive_identity;
mod external_changes;
pub mod find_drive;
mod first_contact;
mod flush_hooks;
mod flush_job;
mod fsck;
pub mod history;
mod hooks;
mod inhibit;
mod inner_mounts;
mod keep_clean;
mod keeping;
mod known_caches;
mod lease;
pub mod leave;
mod log;
pub mod metrics;
mod monitor;
mod mountpoint;
mod notify;
mod open_cache;
mod open_index;
pub mod options;
pub mod preflight;
mod process;
mod re_enroll;
mod run;
mod scrub;
mod serve;
mod service;
mod shutdown;
mod startup;
mod stop;
mod tasks;
mod under_mount;
mod verify;
mod volume;
mod volume_lock;
pub mod when;
mod write_back;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use self::lease::Keeper;
use self::options::LeaseMode;
use crate::core::Clock;
use crate::drive::Backend;
use crate::drive::mounted::MountedDir;
use crate::error::FlushError;

use crate::control::protocol::LeftBehind;
use crate::core::{Exit, Failure};
use crate::sys::time::CoarseClock;

pub use background::Ready;
pub use options::MountOptions;
pub use preflight::Checked;

/// How long a recovery may be silent before another machine may take the directory over.
const RECOVERY_SILENCE: Duration = Duration::from_secs(60);

/// What `ferryfs recover` found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoverReport {
    /// What became of an interrupted batch.
    pub recovery: Recovery,
    /// What was left behind, and why.
    pub left_behind: Vec<LeftBehind>,
}

/// What became of an interrupted batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// There was none.
    NothingToDo,
    /// It was committed, and has been finished.
    Finished {
        /// Its number.
        batch: u64,
        /// How many files it has written.
        files: u64,
        /// How many bytes it has written.
        bytes: u64,
    },
    /// It was not committed. Its staged files have been removed, and the tree is as before it.
    Discarded {
        /// Its number.
        batch: u64,
    },
}

impl From<FlushError> for Failure {
    fn from(error: FlushError) -> Failure {
        let code = if error.is_gone() {
            Exit::BackendAbsent
        } else {
            Exit::Failed
        };
        Failure {
            code,
            message: error.to_string(),
            hint: service::hint(&error).map(str::to_string),
        }
    }
}

/// Checks whether the mount that `options` describe can be made, completes them, and opens the
/// mount point.
///
/// # Errors
/// Why not; also if the drive does not answer.
pub fn check(options: MountOptions) -> Result<Checked, Failure> {
    crate::daemon::startup::check(options)
}

/// Serves the mount that was `checked` until it is unmounted. Signals `ready` once it can be used.
///
/// # Errors
/// Why it could not start, or why it did not end cleanly.
pub fn run(checked: Checked, ready: Ready) -> Result<(), Failure> {
    run::run(checked, ready)
}

/// Takes the lease of the volume for a recovery without its cache.
fn lease_for_recovery(
    path: &Path,
    opened: &MountedDir,
    volume: Uuid,
) -> Result<Arc<Keeper>, Failure> {
    let now = CoarseClock.now();
    let of = (volume, Uuid::new_v4());
    let keeper = Keeper::start(LeaseMode::Auto, RECOVERY_SILENCE, of, now)
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
    let backend: Arc<dyn Backend> = Arc::new(opened.clone());
    keeper.take(
        &backend,
        crate::daemon::open_cache::is_shared(path),
        false,
        |holder, left| crate::daemon::open_cache::say_that_we_wait(path, holder, left),
    )?;
    Ok(keeper)
}

/// Finishes or discards an interrupted batch on the drive at `backend`.
///
/// # Errors
/// If the batch can be neither finished nor discarded.
pub fn recover(backend: &Path) -> Result<RecoverReport, Failure> {
    write_back::check(backend)?;
    let opened = MountedDir::open(backend).map_err(FlushError::from)?;
    let marker = volume::peek(&opened)?;
    let lock = marker
        .as_ref()
        .map(|marker| volume_lock::VolumeLock::acquire(marker.id, &opened))
        .transpose()?;
    let lease = marker
        .map(|marker| lease_for_recovery(backend, &opened, marker.id))
        .transpose()?;
    let recovered = crate::recovery::interrupted::recover_without_cache(&opened);
    if let Some(lease) = lease {
        lease.release();
    }
    drop(lock);
    let recovered = recovered?;
    let recovery = match recovered
        .iter()
        .rfind(|batch| batch.finished)
        .or(recovered.last())
    {
        None => Recovery::NothingToDo,
        Some(last) if last.finished => Recovery::Finished {
            batch: last.batch.0,
            files: last.files,
            bytes: last.bytes,
        },
        Some(last) => Recovery::Discarded {
            batch: last.batch.0,
        },
    };
    let left_behind = recovered.iter().flat_map(|batch| batch.left_behind.clone());
    Ok(RecoverReport {
        recovery,
        left_behind: left_behind
            .map(|(path, reason)| LeftBehind { path, reason })
            .collect(),
    })
}
