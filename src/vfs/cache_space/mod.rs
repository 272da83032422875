//! Space on the SSD: measures how full it is, evicts what the drive has too, and slows down or
//! refuses writers.
//!
//! [`CacheSpace`] owns the last measurement, the debt of delayed writers, the lock of evictions,
//! and the use of the reserve. All of it is in memory and is measured again after a start, except
//! the reserve, which is space on the SSD.
//!
//! Three marks, from the largest free space to the smallest:
//! - less than [`CacheLimits::roomy`] free: the cache is *crowded*. Clean objects are evicted at
//!   once rather than at the next tick.
//! - less than that even without any clean object: dirty data fills the SSD. A flush is due
//!   ([`CacheSpace::wants_flush`]). As long as a flush may help, writers are delayed. The delay
//!   grows as the square, from nothing at this mark to [`MAX_BRAKE`] per MiB at the next one.
//! - less than the reserve free: the SSD is *full*. Writes and new names fail with ENOSPC. If a
//!   flush may help, a writer waits for it first, 30 seconds at most. Operations that free space or
//!   need hardly any still work: rename, unlink, truncate, fsync. If other programs use up the rest
//!   of the SSD too, these operations use the space that is held for them, see
//!   [`CacheSpace::with_reserve`].
//!
//! Invariant: no writer is delayed on an event thread. The operation returns `WouldBlock` there
//! before it has changed anything, and is repeated on a worker. Waiting writers occupy workers that
//! readers of the backend need too, so at most four wait at once, and further ones fail.
//! [`CacheSpace::expect_relief`] says whether a flush may help; the caller is the code that starts
//! flushes. Without it, or without an attached backend, a delay would gain nothing, and ENOSPC
//! comes at once. The same applies if all dirty data is still being written (one file larger than
//! the SSD, say), or was left behind by the last flush: no flush writes that data, and none is due
//! for it until another file is closed.
//!
//! Lock order: the lock of evictions; then as a sync ([`crate::vfs::durability`]); then the table
//! of open inodes; then the index. The report of a refused file is locked before the index.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::cache::Store;
use crate::core::{Clock, Ino};
use crate::drive::connection::Drive;
use crate::index::Index;
use crate::vfs::durability::Durability;
use crate::vfs::open_files::OpenFiles;
use crate::vfs::{FsParts, Result};

mod evict;
mod refusal;
mod reserve;
mod writers;

use refusal::Refused;

/// Most bytes written between two measurements of the SSD.
const MAX_ALLOWANCE: u64 = 256 << 20;

/// Delay of a writer in microseconds per MiB when the SSD is almost full: 10 MiB/s, about the speed
/// of a slow drive.
const MAX_BRAKE: u64 = 100_000;

/// Limits of the cache's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes that all objects together may use.
    pub max_bytes: u64,
    /// Bytes of the SSD to keep free for other programs; clean objects are evicted for it.
    pub keep_free: u64,
    /// Bytes of the SSD to keep free for the index, and for the operations that must still work on
    /// a full SSD. Writes are refused before they use it.
    pub reserve: u64,
}

impl CacheLimits {
    /// Bytes of the SSD that trimming keeps free.
    fn roomy(&self) -> u64 {
        self.keep_free.max(self.reserve.saturating_mul(2))
    }
}

/// The space of the SSD.
pub(crate) struct CacheSpace {
    index: Arc<Index>,
    store: Arc<Store>,
    drive: Arc<Drive>,
    open_files: Arc<OpenFiles>,
    durability: Arc<Durability>,
    clock: Arc<dyn Clock>,
    limits: CacheLimits,
    pinned: Mutex<Pinned>,
    pressure: Pressure,
    /// Held during an eviction; contains the time of the last search for damaged objects.
    evicting: Mutex<Option<Instant>>,
}

/// Files that are not evicted.
#[derive(Debug, Default)]
struct Pinned {
    files: HashSet<Ino>,
    /// Their bytes in the cache that would be evicted otherwise, at least.
    bytes: u64,
}

/// The last measurement of the SSD.
#[derive(Debug, Default)]
struct Pressure {
    /// Bytes that may be written before the next measurement.
    allowance: AtomicI64,
    full: AtomicBool,
    crowded: AtomicBool,
    wants_flush: AtomicBool,
    /// Delay in microseconds per MiB.
    brake: AtomicU64,
    /// Delay in microseconds that writers have not slept yet.
    debt: AtomicI64,
    relief_expected: AtomicBool,
    waiting: AtomicU32,
    /// Bytes that a flush could write: dirty files without a writer.
    flushable: AtomicU64,
    /// Those of them that the last flush left behind, if it wrote nothing.
    stuck: AtomicU64,
    refused: Mutex<Option<Refused>>,
}

/// Returns the delay of a writer in microseconds per MiB, with `left` of `roomy` bytes left before
/// the SSD is full.
fn brake(left: u64, roomy: u64) -> u64 {
    if left >= roomy {
        return 0;
    }
    let missing = u128::from(roomy - left);
    let whole = u128::from(roomy);
    // Divided twice, since the square of the largest sizes times the delay exceeds 128 bits.
    let brake = u128::from(MAX_BRAKE) * missing / whole * missing / whole;
    u64::try_from(brake).unwrap_or(MAX_BRAKE)
}

impl CacheSpace {
    pub(super) fn new(
        parts: &FsParts,
        open_files: Arc<OpenFiles>,
        durability: Arc<Durability>,
    ) -> CacheSpace {
        CacheSpace {
            index: parts.index.clone(),
            store: parts.store.clone(),
            drive: parts.drive.clone(),
            open_files,
            durability,
            clock: parts.clock.clone(),
            limits: parts.limits,
            pinned: Mutex::default(),
            pressure: Pressure::default(),
            evicting: Mutex::new(None),
        }
    }

    /// Counts bytes written to the SSD, and measures its space before they can have filled it.
    pub(in crate::vfs) fn count_written(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.pressure.allowance.fetch_sub(bytes, Ordering::Relaxed) <= bytes {
            self.look();
        }
    }

    /// Measures how full the SSD is, and updates the marks.
    pub(in crate::vfs) fn look(&self) {
        let Ok((_, free)) = self.store.space() else {
            return;
        };
        let (totals, written) = {
            let mut state = self.index.lock();
            state.commit_each(free < self.limits.reserve.saturating_mul(2));
            let written = state.dirty_in_writing().map_or(0, |(bytes, _)| bytes);
            (state.totals(), written)
        };
        let stays = totals.dirty_bytes.saturating_add(totals.local_bytes);
        let clean = totals.cached_bytes.saturating_sub(stays);
        let roomy = self.limits.roomy();
        let above = free.saturating_sub(self.limits.reserve);
        let left = free.saturating_add(clean);
        let allowance = if left < roomy {
            (above / 2).min((roomy / 16).max(1 << 20))
        } else {
            (above / 2).min(MAX_ALLOWANCE)
        };
        let p = &self.pressure;
        p.allowance.store(allowance as i64, Ordering::Relaxed);
        p.full.store(above == 0, Ordering::Relaxed);
        p.crowded.store(free < roomy, Ordering::Relaxed);
        let flushable = totals.dirty_bytes.saturating_sub(written);
        p.flushable.store(flushable, Ordering::Relaxed);
        // Data that was removed is not stuck any more.
        p.stuck.fetch_min(flushable, Ordering::Relaxed);
        p.wants_flush.store(
            (above == 0 || left < roomy) && self.flush_may_help(),
            Ordering::Relaxed,
        );
        let held_back = match self.may_be_relieved() {
            true => brake(
                left.saturating_sub(self.limits.reserve),
                roomy.saturating_sub(self.limits.reserve),
            ),
            false => 0,
        };
        p.brake.store(held_back, Ordering::Relaxed);
    }

    /// Sets whether flushes start automatically, so that waiting for one makes sense.
    pub(in crate::vfs) fn expect_relief(&self, expected: bool) {
        self.pressure
            .relief_expected
            .store(expected, Ordering::Relaxed);
    }

    /// Returns whether there is data that a flush could write and has not left behind before.
    fn flush_may_help(&self) -> bool {
        let p = &self.pressure;
        p.flushable.load(Ordering::Relaxed) > p.stuck.load(Ordering::Relaxed)
    }

    fn may_be_relieved(&self) -> bool {
        self.pressure.relief_expected.load(Ordering::Relaxed)
            && self.drive.is_attached()
            && self.flush_may_help()
    }

    /// Returns the bytes of dirty files without a writer, as of the last measurement.
    pub(in crate::vfs) fn flushable(&self) -> u64 {
        self.pressure.flushable.load(Ordering::Relaxed)
    }

    /// Records the result of a flush that found `flushable` bytes to write. If it wrote none of
    /// them, the next one will not either.
    pub(in crate::vfs) fn note_flushed(&self, flushable: u64, written: u64) {
        let stuck = if written == 0 { flushable } else { 0 };
        self.pressure.stuck.store(stuck, Ordering::Relaxed);
        self.look();
    }

    /// Returns whether `bytes` can be brought into the cache without an eviction for it.
    pub(in crate::vfs) fn has_space_for(&self, bytes: u64) -> Result<bool> {
        let (_, free) = self.store.space()?;
        let cached = self.index.lock().totals().cached_bytes;
        Ok(cached.saturating_add(bytes) <= self.limits.max_bytes
            && free.saturating_sub(bytes) >= self.limits.roomy())
    }

    /// Returns whether the SSD is so full that writes are refused.
    pub(in crate::vfs) fn is_full(&self) -> bool {
        self.pressure.full.load(Ordering::Relaxed)
    }

    /// Returns whether clean objects should be evicted now.
    pub(in crate::vfs) fn is_crowded(&self) -> bool {
        self.pressure.crowded.load(Ordering::Relaxed)
    }

    /// Returns whether data that waits for the backend fills the SSD.
    pub(in crate::vfs) fn wants_flush(&self) -> bool {
        self.pressure.wants_flush.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brake_grows_smoothly_from_nothing_to_its_most() {
        assert_eq!(brake(100, 100), 0);
        assert_eq!(brake(u64::MAX, 0), 0);
        assert_eq!(brake(0, 100), MAX_BRAKE);
        assert_eq!(brake(50, 100), MAX_BRAKE / 4);
        let steps: Vec<u64> = (0..=100).rev().map(|left| brake(left, 100)).collect();
        assert!(steps.is_sorted(), "{steps:?}");
        assert_eq!(brake(0, u64::MAX), MAX_BRAKE, "no size is too large for it");
    }
}
