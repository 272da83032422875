//! How much space of the drive what waits will take: for `df` and `status`, by the numbers of the check before a batch.
//!
//! Sums over the inodes are kept by the index with every change. Further names of files that the drive has already, which are
//! copies on a drive without hard links, are counted now and then: the last count is told in between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Fs, Result};
use crate::rules::space::Allocation;

/// Counting takes at most this part of the time.
const SHARE: u32 = 50;

/// The copies that were counted last.
#[derive(Default)]
pub(super) struct Copies {
    bytes: AtomicU64,
    counted: Mutex<Option<Counted>>,
}

/// When it was, and as of which commit.
struct Counted {
    commits: u64,
    again: Instant,
}

impl Fs {
    /// What the drive will take for all that waits, in bytes: whole clusters, copies, new directories. Without what names
    /// and the records of a batch take, a few clusters.
    pub fn needed_on_drive(&self) -> u64 {
        let counted = self.copies.bytes.load(Ordering::Relaxed);
        let kept = self.index.lock().totals().needed_bytes;
        kept.saturating_add(counted)
    }

    /// Notes how the drive allocates space, as it was last asked, and counts copies if anything has changed. To be called now
    /// and then.
    pub fn count_needed(&self) {
        if let Err(error) = self.try_count_needed() {
            tracing::warn!(%error, "cannot count what waits will take on the drive");
        }
    }

    fn try_count_needed(&self) -> Result<()> {
        let unit = self.drive.space().unit;
        if unit == 0 {
            return Ok(());
        }
        let allocation = Allocation {
            unit,
            hard_links: self.capabilities.hard_links,
        };
        let commits = {
            let mut state = self.index.lock();
            state.set_allocation(allocation)?;
            state.commits()
        };
        let mut counted = self.copies.counted.lock();
        let is_current = |it: &Counted| it.commits == commits || Instant::now() < it.again;
        if allocation.hard_links || counted.as_ref().is_some_and(is_current) {
            return Ok(());
        }
        let begun = Instant::now();
        let bytes = self.index.snapshot()?.copies_needed(allocation)?;
        self.copies.bytes.store(bytes, Ordering::Relaxed);
        let rest = (begun.elapsed() * SHARE).min(Duration::from_secs(600));
        *counted = Some(Counted {
            commits,
            again: begun + rest,
        });
        Ok(())
    }
}
