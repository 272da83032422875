//! Errors of work between the cache and the drive: flush, recovery, scan for external changes.

use std::time::Duration;

use crate::cache::StoreError;
use crate::core::{BatchNo, Ino, RelPath, human_bytes};
use crate::drive::BackendError;
use crate::drive::sealed_file::SealedFileError;
use crate::format::record::RecordError;
use crate::index::IndexError;
use crate::plan::planner::PlanError;

/// Why a flush failed. Everything that was dirty still is.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// No backend is attached.
    #[error("the drive is not attached")]
    Detached,
    /// The directory exists, but does not have this volume's marker.
    #[error("{0}")]
    WrongDrive(String),
    /// Another machine uses it, or that is unknown.
    #[error("{0}")]
    InUse(String),
    /// The backend has no free space.
    #[error("{}", full(path.as_ref(), *size, *available, *needed, *freed))]
    Full {
        /// The largest of the files that do not fit together, if there are any.
        path: Option<RelPath>,
        /// Its size in bytes.
        size: u64,
        /// Free space on the backend in bytes.
        available: u64,
        /// Bytes still to write.
        needed: u64,
        /// Bytes that the removals of the same cut would free.
        freed: u64,
    },
    /// A written file reads back with other bytes.
    #[error(
        "the drive has other bytes for {path} than were written to it; nothing was put in place"
    )]
    Lies {
        /// The file's path on the backend.
        path: RelPath,
    },
    /// These files cannot be read from the cache, or are not what the index says.
    #[error("in the cache: {} files cannot be read", .0.len())]
    BadObjects(Vec<(Ino, String)>),
    /// Another program's version of a file was moved away, and no other name can be created for it.
    #[error("another program's version of {path} cannot be kept on the drive: {problem}")]
    NotKept {
        /// The file.
        path: RelPath,
        /// The backend's error.
        problem: String,
    },
    /// The file system that is mounted inside the backend's directory, at the target of a name, has
    /// no space.
    #[error("the file system that is mounted there has no space for {path}")]
    FullThere {
        /// The name.
        path: RelPath,
    },
    /// Others have changed the backend where the batch was to write; their changes must be imported
    /// first.
    #[error("the drive is being changed by others; what they did is taken in first")]
    ChangedElsewhere {
        /// The directories concerned.
        dirs: Vec<Ino>,
    },
    /// A file that ferryfs did not create occupies the path of one of its own files.
    #[error("{path} on the drive is {found}, where ferryfs keeps a file of its own")]
    NotOurs {
        /// The path.
        path: RelPath,
        /// The kind of the file ("a symbolic link").
        found: &'static str,
    },
    /// So much would be removed or rewritten that the user is asked first.
    #[error(
        "the flush is held back: it would remove {removed} and rewrite {rewritten} of the {total} \
         files on the drive"
    )]
    Held {
        /// Files that it would remove.
        removed: u64,
        /// Files that it would rewrite.
        rewritten: u64,
        /// Files on the drive.
        total: u64,
    },
    /// The catalog on the drive cannot be used by this version.
    #[error("{0}")]
    Catalog(String),
    /// The time limit was reached.
    #[error("the time given was not enough; what was staged is thrown away and nothing is lost")]
    TimedOut,
    /// It was cancelled before its batch was committed.
    #[error("the flush was cancelled; nothing was changed on the drive and nothing is lost")]
    Cancelled,
    /// It was cancelled after its batch was committed.
    #[error("the batch is committed already, and is finished in the background")]
    TooLate,
    /// The mount ended during the flush.
    #[error("the mount was ended before the flush was done{}", ended(*.committed))]
    Ended {
        /// The batch was committed.
        committed: bool,
    },
    /// The caller no longer waits; the flush continues.
    #[error("{}", still_running(*.silent))]
    StillRunning {
        /// How long the drive has not answered, if that is the reason.
        silent: Option<Duration>,
    },
    /// A batch on the backend cannot be finished with the available data.
    #[error("batch {batch} cannot be finished: {problem}")]
    Unfinished {
        /// The batch.
        batch: BatchNo,
        /// The obstacle.
        problem: String,
    },
    /// The backend failed.
    #[error("on the drive: {0}")]
    Backend(#[from] BackendError),
    /// An object failed.
    #[error("in the cache: {0}")]
    Store(#[from] StoreError),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The planner rejected the delta.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A record could not be made or read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// An operation on the SSD failed.
    #[error("in the cache: {operation}: {source}")]
    Cache {
        /// The operation.
        operation: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The cache could not be made durable.
    #[error("in the cache: {0}")]
    Sync(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The result of a step of a flush.
pub type Result<T> = std::result::Result<T, FlushError>;

/// Returns the message about a full backend.
fn full(path: Option<&RelPath>, size: u64, available: u64, needed: u64, freed: u64) -> String {
    let missing = needed.saturating_sub(available);
    let mut text = format!(
        "not enough space on the drive: {} have to be written, {} are free",
        human_bytes(needed),
        human_bytes(available),
    );
    match missing {
        0 => text.push_str(" by now; something else had filled the drive meanwhile: flush again"),
        _ => text.push_str(&format!(
            ", {} are missing ({missing} bytes)",
            human_bytes(missing)
        )),
    }
    if let Some(path) = path {
        text.push_str(&format!(
            "; the largest file is {path} ({})",
            human_bytes(size)
        ));
    }
    if freed > 0 {
        text.push_str(&format!(
            "; what was deleted in the mount would free {}",
            human_bytes(freed)
        ));
    }
    text
}

impl FlushError {
    /// Returns whether the SSD has no space for the batch's own notes.
    pub fn is_cache_full(&self) -> bool {
        let is_full = |error: &std::io::Error| error.raw_os_error() == Some(libc::ENOSPC);
        match self {
            FlushError::Index(error) => error.is_full(),
            FlushError::Store(error) => is_full(&error.source),
            FlushError::Cache { source, .. } => is_full(source),
            _ => false,
        }
    }

    /// Returns whether the backend is away, or must be assumed to be.
    pub fn is_gone(&self) -> bool {
        match self {
            FlushError::Detached => true,
            FlushError::Backend(error) => error.is_gone() || error.is_stalled(),
            _ => false,
        }
    }
}

fn ended(committed: bool) -> &'static str {
    match committed {
        true => "; its batch is committed, and the next mount finishes it",
        false => "; nothing was changed on the drive",
    }
}

fn still_running(silent: Option<Duration>) -> String {
    match silent {
        Some(silent) => format!(
            "the drive has not answered for {} s; the flush goes on by itself when it does, and nothing is lost",
            silent.as_secs()
        ),
        None => {
            "the time given was not enough; the flush goes on by itself, and nothing is lost".into()
        }
    }
}

impl From<SealedFileError> for FlushError {
    fn from(error: SealedFileError) -> FlushError {
        match error {
            SealedFileError::NotOurs { path, found } => FlushError::NotOurs { path, found },
            SealedFileError::Backend(error) => FlushError::Backend(error),
        }
    }
}

impl From<std::convert::Infallible> for FlushError {
    fn from(never: std::convert::Infallible) -> FlushError {
        match never {}
    }
}
