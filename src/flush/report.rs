//! What a flush tells: what it carried, what it left, why it failed.

use std::time::Duration;

use crate::backend::BackendError;
use crate::base::{BatchNo, RelPath};
use crate::cache::StoreError;
use crate::index::IndexError;
use crate::rules::plan::PlanError;
use crate::rules::record::RecordError;

/// What a flush did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The batch; `None` if there was nothing to carry.
    pub batch: Option<BatchNo>,
    /// Files that were carried.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// Paths in the mount that were not brought up to date, with the reason.
    pub left_behind: Vec<(String, String)>,
}

/// Why a flush failed. Everything that was dirty still is.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// No backend is attached.
    #[error("the backend is not attached")]
    Detached,
    /// The directory is there, but does not carry this volume's marker.
    #[error("{0}")]
    WrongDrive(String),
    /// The backend has no room.
    #[error(
        "the drive is full: {path} ({size} bytes) does not fit, {available} bytes are free, {needed} bytes wait"
    )]
    Full {
        /// The file that did not fit.
        path: RelPath,
        /// Its size in bytes.
        size: u64,
        /// What is free on the backend.
        available: u64,
        /// What waits to be carried, in bytes.
        needed: u64,
    },
    /// Somebody else has put something where the batch has to put a directory or to move something.
    #[error(
        "somebody else has changed {path} on the drive, where the mount has something of its own; rename one of them"
    )]
    Foreign {
        /// Where it stands.
        path: RelPath,
    },
    /// Something that ferryfs did not make stands where it keeps a file of its own.
    #[error("{path} on the drive is {found}, where ferryfs keeps a file of its own")]
    NotOurs {
        /// Where it stands.
        path: RelPath,
        /// What it is ("a symbolic link").
        found: &'static str,
    },
    /// It took longer than it was given.
    #[error("the time given was not enough; what was staged is thrown away and nothing is lost")]
    TimedOut,
    /// It is no longer waited for, and goes on by itself.
    #[error("{}", still_running(*.silent))]
    StillRunning {
        /// How long the backend has not answered, if that is why it takes so long.
        silent: Option<Duration>,
    },
    /// A batch was found on the backend that cannot be finished with what is at hand.
    #[error("batch {batch} cannot be finished: {problem}")]
    Unfinished {
        /// Which batch.
        batch: BatchNo,
        /// What is in the way.
        problem: String,
    },
    /// The backend failed.
    #[error("on the backend: {0}")]
    Backend(#[from] BackendError),
    /// An object failed.
    #[error("in the cache: {0}")]
    Store(#[from] StoreError),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// No plan could be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No record could be made, or one could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Something on the SSD failed.
    #[error("in the cache: {operation}: {source}")]
    Cache {
        /// What was being done.
        operation: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The cache could not be made durable.
    #[error("in the cache: {0}")]
    Sync(String),
}

/// The outcome of a step of a flush.
pub type Result<T> = std::result::Result<T, FlushError>;

impl FlushError {
    /// Whether the backend is away, or must be taken to be.
    pub fn is_gone(&self) -> bool {
        match self {
            FlushError::Detached => true,
            FlushError::Backend(error) => error.is_gone() || error.is_stalled(),
            _ => false,
        }
    }
}

fn still_running(silent: Option<Duration>) -> String {
    match silent {
        Some(silent) => format!(
            "the backend has not answered for {} s; the flush goes on by itself when it does, and nothing is lost",
            silent.as_secs()
        ),
        None => {
            "the time given was not enough; the flush goes on by itself, and nothing is lost".into()
        }
    }
}
