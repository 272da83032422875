//! How a flush is requested and cancelled, and the report of what it did.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::core::{BatchNo, Ino, Timestamp, WhileOpen};
use crate::drive::throttle::Manner;
use crate::error::{FlushError, Result};

/// Cancels a flush until its batch is committed. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicU8>);

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

impl Cancel {
    /// Cancels the flush. Returns false if its batch is committed, which is then finished.
    pub fn cancel(&self) -> bool {
        let turned = self
            .0
            .compare_exchange(OPEN, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
        turned.is_ok() || turned == Err(CANCELLED)
    }

    /// Makes the flush uncancellable.
    ///
    /// # Errors
    /// [`FlushError::Cancelled`].
    pub(crate) fn commit(&self) -> Result<()> {
        match self
            .0
            .compare_exchange(OPEN, COMMITTED, Ordering::AcqRel, Ordering::Acquire)
        {
            Err(CANCELLED) => Err(FlushError::Cancelled),
            _ => Ok(()),
        }
    }

    /// Makes it cancellable again, because the batch is planned again.
    pub(crate) fn reopen(&self) {
        let _ = self
            .0
            .compare_exchange(COMMITTED, OPEN, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// The options of a flush.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// It gives up when this passes before the batch is committed.
    pub deadline: Option<Instant>,
    /// It gives up when this is cancelled before the batch is committed.
    pub cancel: Cancel,
    /// It reads back and compares what it has written before the batch is committed.
    pub verify: bool,
    /// If the backend is full, the removals are flushed first, in a batch of their own. Until the
    /// rest follows, the backend has a state that the mount never had.
    pub removals_first: bool,
    /// It tries again what the backend has refused in the last hour. Otherwise such files stay in
    /// the cache and are not written to the drive each time.
    pub retry_refused: bool,
    /// It goes although it would be held back, see [`HoldIf`](crate::flush::HoldIf).
    pub release: bool,
    /// What it does with files that are open for writing.
    pub while_open: WhileOpen,
    /// Whether it may be slowed down.
    pub manner: Manner,
}

impl Wish {
    /// The options of a flush on request or at the end of the mount: it also tries what the backend
    /// has refused, because the reason may be gone.
    pub fn asked_for() -> Wish {
        Wish {
            retry_refused: true,
            ..Wish::default()
        }
    }

    /// Checks, before the batch is committed, that the flush may continue.
    ///
    /// # Errors
    /// [`FlushError::TimedOut`] or [`FlushError::Cancelled`].
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.0.load(Ordering::Acquire) == CANCELLED {
            return Err(FlushError::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() > deadline => Err(FlushError::TimedOut),
            _ => Ok(()),
        }
    }
}

/// A file that was written to the drive while it was open for writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenCopy {
    /// Its path in the mount.
    pub path: String,
    /// The moment of which the copy is.
    pub as_of: Timestamp,
    /// It is a database or a journal of one; the copies of both are of the same moment.
    pub is_database: bool,
}

/// What a flush did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The batch; `None` if there was nothing to write.
    pub batch: Option<BatchNo>,
    /// Files that were written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names that were removed.
    pub removed: u64,
    /// Names that were moved.
    pub moved: u64,
    /// How long it took.
    pub took: Duration,
    /// Paths in the mount that were left behind, with the reason.
    pub left_behind: Vec<(String, String)>,
    /// Those of them that the backend has refused, and that the next batch tries again.
    pub(crate) refused: BTreeSet<String>,
    /// Directories that the backend cannot move to where the mount has them, because two file
    /// systems are concerned. The flush copies them next.
    pub(crate) not_movable: BTreeSet<Ino>,
    /// Files that were written as they were at the cut, while programs had them open for writing.
    pub copied_open: Vec<OpenCopy>,
    /// Files that both sides have changed: the path, and the conflict name of the other version.
    pub conflicts: Vec<(String, String)>,
    /// About how many more batches it takes to write what did not fit into this one.
    pub more: u64,
}

impl Report {
    /// Adds what a later batch of the same flush did.
    pub(crate) fn add(&mut self, later: Report) {
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
        for copy in later.copied_open {
            self.copied_open.retain(|known| known.path != copy.path);
            self.copied_open.push(copy);
        }
        self.refused.extend(later.refused);
        self.not_movable.extend(later.not_movable);
        self.conflicts.extend(later.conflicts);
        self.more = later.more;
    }

    /// Forgets what was refused: a batch that is about to begin tries it again, and names it again
    /// if it must.
    pub(crate) fn forget_refused(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        self.left_behind.retain(|(path, _)| !refused.contains(path));
    }
}
