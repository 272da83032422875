//! How full the SSD is, and what follows from it for those who write.
//!
//! Three marks, from the roomy end:
//! - less than [`CacheLimits::roomy`] free: the cache is *crowded*. Clean objects give way at once rather than at the next tick.
//! - less than that even if all clean objects went: what is dirty fills the SSD. A flush is due ([`Fs::wants_flush`]), and as long
//!   as one may help, writers are held back: from nothing at this mark to [`MAX_BRAKE`] a MiB at the next, as the square.
//! - less than the reserve free: the SSD is *full*. Bytes, and new names, are refused with ENOSPC; with a flush that may help, a
//!   writer waits for it first, [`PATIENCE`] at most. Whatever gives space back, or needs next to none, goes on: rename, unlink,
//!   truncate, fsync. Should others have taken the rest of the SSD too, it runs on what is held for it: room in the WAL, then
//!   the reserve file ([`crate::cache::Reserve`]), see [`Fs::with_reserve`].
//!
//! Nobody is held back on an event thread: there the operation answers `WouldBlock` before it has done anything, and runs again on
//! a worker. Waiting writers hold workers, which readers of the backend need too: at most [`WAITERS`] wait at once, further
//! ones are refused. Whether a flush may help is told by whoever starts flushes ([`Fs::expect_relief`]); told by nobody, or with no
//! backend attached, nobody is held back, as that would gain nothing: ENOSPC comes at once. So it does where all that is dirty is
//! still being written (one file that is larger than the SSD, say), or was left behind by the last flush: no flush carries that, and
//! none is due for it until something else is closed.
//!
//! All of this lives in memory and is looked up again after a start.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{CacheLimits, Ctx, Fs, FsError, Result};
use crate::base::Ino;
use crate::base::human_bytes;
use crate::index::Flags;

/// Most bytes written between two looks at how full the SSD is.
const MAX_ALLOWANCE: u64 = 256 << 20;

/// Microseconds that a writer is held back for a MiB when the SSD is all but full: 10 MiB/s, about what a slow drive takes.
const MAX_BRAKE: u64 = 100_000;

/// Less than this, in microseconds, is not worth a sleep: it is saved up.
const WORTHWHILE: i64 = 2_000;

/// Longest single sleep.
const MAX_SLEEP: Duration = Duration::from_millis(100);

/// Longest wait of one request for a flush to make room.
const PATIENCE: Duration = Duration::from_secs(30);

/// Writers that may wait at once.
const WAITERS: u32 = 4;

/// For how long it is told that a file did not fit, once it does not wait any more.
const REFUSAL_TOLD: Duration = Duration::from_secs(600);

/// How often a waiting writer looks.
const POLL: Duration = Duration::from_millis(200);

/// How full the SSD was at the last look.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Bytes that may be written before the next look.
    allowance: AtomicI64,
    full: AtomicBool,
    crowded: AtomicBool,
    wants_flush: AtomicBool,
    /// Microseconds for a MiB.
    brake: AtomicU64,
    /// Microseconds that writers owe.
    debt: AtomicI64,
    relief_expected: AtomicBool,
    waiting: AtomicU32,
    /// Bytes that a flush could carry: those of dirty files that nobody is writing.
    carriable: AtomicU64,
    /// How many of these the last flush that carried nothing has left behind.
    stuck: AtomicU64,
    refused: Mutex<Option<Refused>>,
}

/// A file that was refused bytes, because the SSD was full of what is being written.
#[derive(Debug)]
struct Refused {
    ino: Ino,
    size: u64,
    at: Instant,
}

impl CacheLimits {
    /// Bytes of the SSD that trimming keeps free.
    pub(super) fn roomy(&self) -> u64 {
        self.keep_free.max(self.reserve.saturating_mul(2))
    }
}

/// How long to hold a writer back for a MiB, in microseconds, with so many bytes left before the SSD is full, of `roomy`.
fn brake(left: u64, roomy: u64) -> u64 {
    if left >= roomy {
        return 0;
    }
    let missing = u128::from(roomy - left);
    let whole = u128::from(roomy);
    // Divided twice, as the square of the largest sizes times the brake exceeds 128 bits.
    let brake = u128::from(MAX_BRAKE) * missing / whole * missing / whole;
    u64::try_from(brake).unwrap_or(MAX_BRAKE)
}

impl Fs {
    /// Counts bytes that have gone to the SSD; looks at its space before they can have filled it.
    pub(super) fn count_written(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.pressure.allowance.fetch_sub(bytes, Ordering::Relaxed) <= bytes {
            self.look_at_space();
        }
    }

    /// Notes how full the SSD is, and what follows.
    pub fn look_at_space(&self) {
        let Ok((_, free)) = self.store.space() else {
            return;
        };
        let (totals, written) = {
            let mut state = self.index.lock();
            let written = state.dirty_in_writing().map_or(0, |(bytes, _)| bytes);
            (state.totals(), written)
        };
        let clean = totals.cached_bytes.saturating_sub(totals.dirty_bytes);
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
        let carriable = totals.dirty_bytes.saturating_sub(written);
        p.carriable.store(carriable, Ordering::Relaxed);
        // What is gone is not stuck any more.
        p.stuck.fetch_min(carriable, Ordering::Relaxed);
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

    /// Tells whether flushes begin by themselves now, so that waiting for one makes sense.
    pub fn expect_relief(&self, expected: bool) {
        self.pressure
            .relief_expected
            .store(expected, Ordering::Relaxed);
    }

    /// Whether there is anything that a flush could carry and has not left behind before.
    fn flush_may_help(&self) -> bool {
        let p = &self.pressure;
        p.carriable.load(Ordering::Relaxed) > p.stuck.load(Ordering::Relaxed)
    }

    fn may_be_relieved(&self) -> bool {
        self.pressure.relief_expected.load(Ordering::Relaxed)
            && self.drive.is_attached()
            && self.flush_may_help()
    }

    /// Bytes of dirty files that nobody is writing, as of the last look.
    pub fn carriable(&self) -> u64 {
        self.pressure.carriable.load(Ordering::Relaxed)
    }

    /// Takes note of what a flush has come to, before which `carriable` bytes were to be carried: if it carried none of them, the
    /// next will not either.
    pub fn note_flushed(&self, carriable: u64, carried: u64) {
        let stuck = if carried == 0 { carriable } else { 0 };
        self.pressure.stuck.store(stuck, Ordering::Relaxed);
        self.look_at_space();
    }

    /// Notes which file fills the SSD, where no flush can help.
    fn note_refusal(&self) {
        if self.flush_may_help() {
            return;
        }
        let largest = self.index.lock().dirty_in_writing();
        let Ok((_, Some(largest))) = largest else {
            return;
        };
        // The row may lag behind by a moment.
        let size = self
            .with_current_size(largest.clone())
            .map_or(largest.size, |inode| inode.size);
        let mut refused = self.pressure.refused.lock();
        if refused
            .as_ref()
            .is_none_or(|known| known.ino != largest.ino)
        {
            tracing::warn!(
                ino = largest.ino.0,
                size,
                "the SSD is full of what is being written; no flush can help"
            );
        }
        *refused = Some(Refused {
            ino: largest.ino,
            size,
            at: Instant::now(),
        });
    }

    /// What is to be told of a file that the SSD has no room for, as long as it waits, and a while longer.
    pub fn refusal(&self) -> Option<String> {
        let mut noted = self.pressure.refused.lock();
        let refused = noted.as_ref()?;
        let mut state = self.index.lock();
        let inode = state.inode(refused.ino).ok()?;
        let told = inode.filter(|inode| {
            let waits = inode.flags.has(Flags::DATA_DIRTY) || refused.at.elapsed() < REFUSAL_TOLD;
            inode.nlink > 0 && waits
        });
        let Some(inode) = told else {
            *noted = None;
            return None;
        };
        let path = state.mount_path(inode.ino).ok()??;
        let open = if state.is_writing(inode.ino) {
            "still open"
        } else {
            "closed since"
        };
        Some(format!(
            "{path} ({} so far, {open}) does not fit on the SSD: it was refused more bytes, as the SSD is full and a file can be \
             carried to the drive only once it is closed. What is there of it is cut short: delete it; then copy it to the drive \
             itself after `ferryfs eject`, or use a cache on a larger disk (--cache)",
            human_bytes(refused.size)
        ))
    }

    /// Holds a writer of `bytes` back while dirty data nears the limit. To be called before anything has been done.
    pub(super) fn hold_back(&self, ctx: &Ctx, bytes: usize) -> Result<()> {
        let brake = self.pressure.brake.load(Ordering::Relaxed);
        if brake == 0 {
            return Ok(());
        }
        let cost = (brake.saturating_mul(bytes as u64) >> 20) as i64;
        if self.pressure.debt.load(Ordering::Relaxed) + cost < WORTHWHILE {
            self.pressure.debt.fetch_add(cost, Ordering::Relaxed);
            return Ok(());
        }
        ctx.block()?;
        let owed = self.pressure.debt.swap(0, Ordering::Relaxed).max(0) + cost;
        std::thread::sleep(Duration::from_micros(owed.unsigned_abs()).min(MAX_SLEEP));
        Ok(())
    }

    /// Refuses bytes while the SSD is full, after clean objects have given way and a flush that may help has been waited for.
    pub(super) fn make_room(&self, ctx: &Ctx) -> Result<()> {
        if !self.is_full() {
            return Ok(());
        }
        ctx.block()?;
        self.trim()?;
        self.look_at_space();
        if self.is_full() && !self.wait_for_relief() {
            self.note_refusal();
            return Err(FsError::NO_SPACE);
        }
        Ok(())
    }

    /// Waits until the SSD is not full any more; false if that cannot be expected, or takes too long.
    fn wait_for_relief(&self) -> bool {
        let p = &self.pressure;
        let place = |n: u32| (n < WAITERS).then_some(n + 1);
        if !self.may_be_relieved()
            || p.waiting
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, place)
                .is_err()
        {
            return false;
        }
        let end = Instant::now() + PATIENCE;
        while self.is_full() && self.may_be_relieved() && Instant::now() < end {
            std::thread::sleep(POLL);
            self.look_at_space();
        }
        p.waiting.fetch_sub(1, Ordering::Relaxed);
        !self.is_full()
    }

    /// Runs `write`, which takes space. If the SSD has none, clean objects give way and it runs once more.
    pub(super) fn with_room<T>(&self, ctx: &Ctx, write: impl Fn() -> Result<T>) -> Result<T> {
        self.make_room(ctx)?;
        match write() {
            Err(error) if error.errno() == libc::ENOSPC => {
                self.pressure.full.store(true, Ordering::Relaxed);
                self.make_room(ctx)?;
                write()
            }
            result => result,
        }
    }

    /// Runs `work`, which gives space back or needs next to none. If the SSD has none at all, parts of the reserve are given up for
    /// it, and it runs again from its start.
    pub(super) fn with_reserve<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            match work() {
                Err(error) if error.errno() == libc::ENOSPC => {
                    self.pressure.full.store(true, Ordering::Relaxed);
                    if !self.store.reserve().give_up() {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Holds anew what has been given up, when there is room for it.
    pub(super) fn refill_reserve(&self) {
        if let Ok((_, free)) = self.store.space() {
            self.store
                .reserve()
                .refill(free, self.limits.reserve.saturating_mul(2));
        }
        self.index.top_up();
    }

    /// Frees a part of the reserve for a flush; false if there is none.
    pub fn give_up_reserve(&self) -> bool {
        self.store.reserve().give_up()
    }

    /// Whether the SSD is so full that writers are refused.
    pub fn is_full(&self) -> bool {
        self.pressure.full.load(Ordering::Relaxed)
    }

    /// Whether clean objects should go now.
    pub fn is_crowded(&self) -> bool {
        self.pressure.crowded.load(Ordering::Relaxed)
    }

    /// Whether what waits for the backend fills the SSD.
    pub fn wants_flush(&self) -> bool {
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
