//! What a flush tells: what it carried, what it left, why it failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::backend::BackendError;
use crate::base::{BatchNo, Ino, RelPath, human_bytes};
use crate::cache::StoreError;
use crate::index::IndexError;
use crate::rules::plan::PlanError;
use crate::rules::record::RecordError;

/// Lets a flush be cancelled until its batch is committed. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicU8>);

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

impl Cancel {
    /// Cancels the flush. False if its batch is committed: then it is finished all the same.
    pub fn cancel(&self) -> bool {
        let turned = self
            .0
            .compare_exchange(OPEN, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
        turned.is_ok() || turned == Err(CANCELLED)
    }

    /// Passes the point after which the flush cannot be cancelled.
    ///
    /// # Errors
    /// [`FlushError::Cancelled`].
    pub(super) fn commit(&self) -> Result<()> {
        match self
            .0
            .compare_exchange(OPEN, COMMITTED, Ordering::AcqRel, Ordering::Acquire)
        {
            Err(CANCELLED) => Err(FlushError::Cancelled),
            _ => Ok(()),
        }
    }

    /// Goes back behind that point: the batch is planned anew.
    pub(super) fn reopen(&self) {
        let _ = self
            .0
            .compare_exchange(COMMITTED, OPEN, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// How a flush is to be done.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// It gives up when this passes before the batch is committed.
    pub deadline: Option<Instant>,
    /// It gives up when this is cancelled before the batch is committed.
    pub cancel: Cancel,
    /// What was written is read back and compared before the batch is committed.
    pub verify: bool,
    /// If the backend has no room, what was removed in the mount goes first, in a batch of its own: a state that the mount never
    /// had, until the rest follows.
    pub removals_first: bool,
    /// What the backend has refused lately is tried again; else it stays in the cache for an hour without being written to the
    /// drive each time.
    pub retry_refused: bool,
}

impl Wish {
    /// Passes as long as the flush is to go on. Asked before the batch is committed.
    ///
    /// # Errors
    /// [`FlushError::TimedOut`] or [`FlushError::Cancelled`].
    pub(super) fn check(&self) -> Result<()> {
        if self.cancel.0.load(Ordering::Acquire) == CANCELLED {
            return Err(FlushError::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() > deadline => Err(FlushError::TimedOut),
            _ => Ok(()),
        }
    }
}

/// What a flush did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The batch; `None` if there was nothing to carry.
    pub batch: Option<BatchNo>,
    /// Files that were carried.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names that were removed.
    pub removed: u64,
    /// Names that were moved.
    pub moved: u64,
    /// How long it took.
    pub took: Duration,
    /// Paths in the mount that were not brought up to date, with the reason.
    pub left_behind: Vec<(String, String)>,
    /// Where both sides had changed a file: its path, and the name beside it under which the other version is kept.
    pub conflicts: Vec<(String, String)>,
    /// About how many batches more what still waits would take, because one cannot hold it.
    pub more: u64,
}

impl Report {
    /// Takes in what a later batch of the same flush did.
    pub(super) fn add(&mut self, later: Report) {
        self.batch = later.batch.or(self.batch);
        self.files = self.files.saturating_add(later.files);
        self.bytes = self.bytes.saturating_add(later.bytes);
        self.removed = self.removed.saturating_add(later.removed);
        self.moved = self.moved.saturating_add(later.moved);
        for named in later.left_behind {
            if !self.left_behind.iter().any(|(path, _)| *path == named.0) {
                self.left_behind.push(named);
            }
        }
        self.conflicts.extend(later.conflicts);
        self.more = later.more;
    }
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
    /// Another machine has it at work, or it cannot be told whether one has.
    #[error("{0}")]
    InUse(String),
    /// The backend has no room.
    #[error("{}", full(path.as_ref(), *size, *available, *needed, *freed))]
    Full {
        /// The largest of the files that do not fit together, if there are any.
        path: Option<RelPath>,
        /// Its size in bytes.
        size: u64,
        /// What is free on the backend.
        available: u64,
        /// What still has to be written, in bytes.
        needed: u64,
        /// What the removals of the same cut would free, in bytes.
        freed: u64,
    },
    /// What was written reads back as something else.
    #[error(
        "the drive has other bytes for {path} than were written to it; nothing was put in place"
    )]
    Lies {
        /// The file's place on the backend.
        path: RelPath,
    },
    /// These files cannot be read from the cache, or are not what the index says.
    #[error("in the cache: {} files cannot be read", .0.len())]
    BadObjects(Vec<(Ino, String)>),
    /// Somebody else's version of a file was moved away, and can be given no name.
    #[error("somebody else's version of {path} can be kept nowhere on the drive: {problem}")]
    NotKept {
        /// The file.
        path: RelPath,
        /// What the backend said.
        problem: String,
    },
    /// The file system that is mounted inside the backend's directory, where a name is to go, has no space.
    #[error("the file system that is mounted there has no space for {path}")]
    FullThere {
        /// The name.
        path: RelPath,
    },
    /// Others have changed the backend where the batch was to write; what they did is to be taken in first.
    #[error("the drive is being changed by others; what they did is taken in first")]
    ChangedElsewhere {
        /// The directories concerned.
        dirs: Vec<Ino>,
    },
    /// Something that ferryfs did not make stands where it keeps a file of its own.
    #[error("{path} on the drive is {found}, where ferryfs keeps a file of its own")]
    NotOurs {
        /// Where it stands.
        path: RelPath,
        /// What it is ("a symbolic link").
        found: &'static str,
    },
    /// The catalog on the drive cannot be used by this version.
    #[error("{0}")]
    Catalog(String),
    /// It took longer than it was given.
    #[error("the time given was not enough; what was staged is thrown away and nothing is lost")]
    TimedOut,
    /// It was cancelled before its batch was committed.
    #[error("the flush was cancelled; nothing was changed on the drive and nothing is lost")]
    Cancelled,
    /// It was cancelled after its batch was committed.
    #[error("the batch is committed already, and is finished in the background")]
    TooLate,
    /// The mount ended before it was done.
    #[error("the mount was ended before the flush was done{}", ended(*.committed))]
    Ended {
        /// Its batch was committed.
        committed: bool,
    },
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

/// What is missing on a full backend, for people.
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
    /// Whether the SSD has no room for the batch's own notes.
    pub fn is_cache_full(&self) -> bool {
        let is_full = |error: &std::io::Error| error.raw_os_error() == Some(libc::ENOSPC);
        match self {
            FlushError::Index(error) => error.is_full(),
            FlushError::Store(error) => is_full(&error.source),
            FlushError::Cache { source, .. } => is_full(source),
            _ => false,
        }
    }

    /// Whether the backend is away, or must be taken to be.
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
            "the backend has not answered for {} s; the flush goes on by itself when it does, and nothing is lost",
            silent.as_secs()
        ),
        None => {
            "the time given was not enough; the flush goes on by itself, and nothing is lost".into()
        }
    }
}
