//! Space on the drive that waiting changes will take, for `df` and `status`, computed as the check
//! before a batch does.
//!
//! The index updates the sums over inodes with every change. On a drive without hard links each
//! further name of a file becomes a copy. These copies are counted from time to time, and the last
//! count is reported in between.
//!
//! [`DriveSpace`] owns that count. It is in memory and made again after a start. Lock order: the
//! count, then the index.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::drive::connection::Drive;
use crate::index::Index;
use crate::plan::space::Allocation;
use crate::vfs::{FsParts, Result};

/// Size of the file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Size of the backend.
    pub total: u64,
    /// Space available for new data.
    pub available: u64,
}

/// Divisor: share of the time that counting may use.
const SHARE: u32 = 50;

/// The space that waiting changes need on the drive.
pub(super) struct DriveSpace {
    index: Arc<Index>,
    drive: Arc<Drive>,
    hard_links: bool,
    /// The last count of the copies, in bytes.
    copies: AtomicU64,
    counted: Mutex<Option<Counted>>,
}

/// The commit that the count reflects, and the time of the next count.
struct Counted {
    commits: u64,
    again: Instant,
}

impl DriveSpace {
    pub(super) fn new(parts: &FsParts) -> DriveSpace {
        DriveSpace {
            index: parts.index.clone(),
            drive: parts.drive.clone(),
            hard_links: parts.capabilities.hard_links,
            copies: AtomicU64::new(0),
            counted: Mutex::new(None),
        }
    }

    /// Returns the bytes that all waiting changes will take on the drive: whole clusters, copies,
    /// new directories. Names and the records of a batch are not included; they take a few
    /// clusters.
    pub(super) fn needed(&self) -> u64 {
        let counted = self.copies.load(Ordering::Relaxed);
        let kept = self.index.lock().totals().needed_bytes;
        kept.saturating_add(counted)
    }

    /// Updates the allocation unit of the drive, and counts copies if anything has changed. Called
    /// from time to time.
    pub(super) fn count(&self) {
        if let Err(error) = self.try_count() {
            tracing::warn!(%error, "cannot count the space that waiting changes need on the drive");
        }
    }

    fn try_count(&self) -> Result<()> {
        let unit = self.drive.space().unit;
        if unit == 0 {
            return Ok(());
        }
        let allocation = Allocation {
            unit,
            hard_links: self.hard_links,
        };
        let commits = {
            let mut state = self.index.lock();
            state.set_allocation(allocation)?;
            state.commits()
        };
        let mut counted = self.counted.lock();
        let is_current = |it: &Counted| it.commits == commits || Instant::now() < it.again;
        if allocation.hard_links || counted.as_ref().is_some_and(is_current) {
            return Ok(());
        }
        let begun = Instant::now();
        self.index.commit()?;
        let bytes = self.index.snapshot()?.copies_needed(allocation)?;
        self.copies.store(bytes, Ordering::Relaxed);
        let rest = (begun.elapsed() * SHARE).min(Duration::from_secs(600));
        *counted = Some(Counted {
            commits,
            again: begun + rest,
        });
        Ok(())
    }
    /// Returns the backend's space, less the space that waiting changes will take.
    pub(super) fn statfs(&self) -> StatFs {
        let space = self.drive.space();
        StatFs {
            total: space.total,
            available: space.available.saturating_sub(self.needed()),
        }
    }
}
