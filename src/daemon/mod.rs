//! The process behind a mount: how it is told what to do, what it checks first, and how it goes to the background.

mod attach;
pub mod background;
mod below;
pub mod dead_mount;
mod ending;
mod first_contact;
mod flight;
mod health;
mod hooks;
mod identity;
mod known_caches;
mod lease;
mod log;
mod monitor;
mod mountpoint;
mod opening;
pub mod options;
pub mod preflight;
mod re_enroll;
mod refresh;
pub mod rescue;
mod run;
mod running;
mod service;
mod starting;
mod tasks;
mod verify;
mod volume;
mod volume_lock;
mod write_back;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use self::lease::Keeper;
use self::options::LeaseMode;
use crate::backend::Backend;
use crate::backend::mounted::MountedDir;
use crate::base::Clock;
use crate::flush::FlushError;

use crate::cli::exit::Exit;
use crate::control::protocol::LeftBehind;
use crate::sys::time::CoarseClock;

pub use background::Ready;
pub use options::MountOptions;
pub use preflight::Checked;

/// How long a recovery may be silent before another machine goes on.
const RECOVERY_SILENCE: Duration = Duration::from_secs(60);

/// Why the daemon could not do what it was started for, in words for the person who started it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DaemonError {
    /// What the process is to end with.
    pub code: Exit,
    /// What is wrong, in one line without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What `ferryfs recover` found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoverReport {
    /// What became of an interrupted batch.
    pub recovery: Recovery,
    /// What could not be brought to the state it should have, and why.
    pub left_behind: Vec<LeftBehind>,
}

/// What became of an interrupted batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// There was none.
    NothingToDo,
    /// It had been committed, and has been applied to its end.
    Finished {
        /// Its number.
        batch: u64,
        /// How many files it carried.
        files: u64,
        /// How many bytes it carried.
        bytes: u64,
    },
    /// It had not been committed: what was staged has been removed, the tree is the one from before.
    Discarded {
        /// Its number.
        batch: u64,
    },
}

impl DaemonError {
    fn failed(message: impl Into<String>) -> DaemonError {
        DaemonError {
            code: Exit::Failed,
            message: message.into(),
            hint: None,
        }
    }

    fn hint(self, hint: impl Into<String>) -> DaemonError {
        DaemonError {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl From<FlushError> for DaemonError {
    fn from(error: FlushError) -> DaemonError {
        let code = if error.is_gone() {
            Exit::BackendAbsent
        } else {
            Exit::Failed
        };
        DaemonError {
            code,
            message: error.to_string(),
            hint: service::hint(&error).map(str::to_string),
        }
    }
}

/// Looks whether the mount that `options` describe can be made, completes them, and takes hold of the mount point.
///
/// # Errors
/// Why not; also if the backend does not answer.
pub fn check(options: MountOptions) -> Result<Checked, DaemonError> {
    starting::check(options)
}

/// Serves the mount that was `checked` until it is unmounted; `ready` is signalled once it can be used.
///
/// # Errors
/// Why it could not begin, or why it ended.
pub fn run(checked: Checked, ready: Ready) -> Result<(), DaemonError> {
    run::run(checked, ready)
}

/// Keeps other machines off while a batch is finished by one that has no cache of the volume.
fn lease_for_recovery(
    path: &Path,
    opened: &MountedDir,
    volume: Uuid,
) -> Result<Arc<Keeper>, DaemonError> {
    let now = CoarseClock.now();
    let of = (volume, Uuid::new_v4());
    let keeper = Keeper::start(LeaseMode::Auto, RECOVERY_SILENCE, of, now)
        .map_err(|error| DaemonError::failed(format!("cannot start a thread: {error}")))?;
    let backend: Arc<dyn Backend> = Arc::new(opened.clone());
    keeper.take(&backend, opening::is_shared(path), false, |holder, left| {
        opening::say_that_we_wait(path, holder, left)
    })?;
    Ok(keeper)
}

/// Finishes, or takes back, a batch that was interrupted on the backend at `backend`.
///
/// # Errors
/// Why it could not.
pub fn recover(backend: &Path) -> Result<RecoverReport, DaemonError> {
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
    let recovered = crate::flush::recover_without_cache(&opened);
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
