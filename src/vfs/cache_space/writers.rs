//! Writers on a nearly full SSD: they are delayed, wait for a flush, or are refused.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::vfs::cache_space::CacheSpace;
use crate::vfs::{Ctx, FsError, Result};

/// Shorter delays, in microseconds, are added up until a sleep is worth it.
const WORTHWHILE: i64 = 2_000;

/// Longest single sleep.
const MAX_SLEEP: Duration = Duration::from_millis(100);

/// Longest wait of one request for a flush to free space.
const PATIENCE: Duration = Duration::from_secs(30);

/// Number of writers that may wait at once.
const WAITERS: u32 = 4;

/// Interval at which a waiting writer checks the free space.
const POLL: Duration = Duration::from_millis(200);

impl CacheSpace {
    /// Delays a writer of `bytes` while dirty data nears the limit. Called before the operation
    /// changes anything.
    pub(in crate::vfs) fn hold_back(&self, ctx: &Ctx, bytes: usize) -> Result<()> {
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

    /// Refuses writes while the SSD is full, after evicting clean objects and waiting for a flush
    /// that may help.
    fn make_space(&self, ctx: &Ctx) -> Result<()> {
        if !self.is_full() {
            return Ok(());
        }
        ctx.block()?;
        if !self.evict_for_space()? && !self.wait_for_relief()? {
            self.note_refusal();
            return Err(FsError::NO_SPACE);
        }
        Ok(())
    }

    /// Evicts clean objects as far as the SSD needs it. Returns whether there is space.
    fn evict_for_space(&self) -> Result<bool> {
        self.trim()?;
        self.look();
        Ok(!self.is_full())
    }

    /// Waits until the SSD is not full any more. Returns false if that cannot be expected, or takes
    /// too long.
    ///
    /// # Errors
    /// If evicting fails.
    fn wait_for_relief(&self) -> Result<bool> {
        let p = &self.pressure;
        let place = |n: u32| (n < WAITERS).then_some(n + 1);
        if p.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, place)
            .is_err()
        {
            return Ok(false);
        }
        let end = Instant::now() + PATIENCE;
        let relieved = loop {
            // Asked before the eviction: what a flush has written meanwhile does not wait for the
            // drive any more, but still fills the SSD.
            let hope = self.may_be_relieved() && Instant::now() < end;
            match self.evict_for_space() {
                Ok(false) if hope => std::thread::sleep(POLL),
                other => break other,
            }
        };
        p.waiting.fetch_sub(1, Ordering::Relaxed);
        relieved
    }

    /// Runs `write`, which needs space. If the SSD has none, evicts clean objects and runs it once
    /// more.
    pub(in crate::vfs) fn with_space<T>(
        &self,
        ctx: &Ctx,
        write: impl Fn() -> Result<T>,
    ) -> Result<T> {
        self.make_space(ctx)?;
        match write() {
            Err(error) if error.errno() == libc::ENOSPC => {
                self.pressure.full.store(true, Ordering::Relaxed);
                self.make_space(ctx)?;
                write()
            }
            result => result,
        }
    }
}
