//! Keeping the cache within its space: dead objects are removed, clean ones give way, dirty ones never.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use super::{Ctx, Fs, FsError, Result};
use crate::index::Flags;

/// Objects removed under one hold of a lock.
const CHUNK: u32 = 1024;

/// Most bytes written between two looks at how full the SSD is.
const MAX_ALLOWANCE: u64 = 256 << 20;

/// What the cache may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes that objects may take together.
    pub max_bytes: u64,
    /// Bytes of the SSD that stay free for others; clean objects give way for it.
    pub keep_free: u64,
    /// Bytes of the SSD that stay free for the index and for what must still be possible when the SSD is full; writers are
    /// refused before it is touched.
    pub reserve: u64,
}

/// How full the SSD was at the last look.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Bytes that may be written before the next look.
    allowance: AtomicI64,
    full: AtomicBool,
}

impl Fs {
    /// Counts bytes that have gone to the SSD; looks at its space before they can have filled it.
    pub(super) fn count_written(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.pressure.allowance.fetch_sub(bytes, Ordering::Relaxed) <= bytes {
            self.look_at_space();
        }
    }

    /// Notes whether the SSD is so full that writers must be refused.
    pub fn look_at_space(&self) {
        if let Ok((_, free)) = self.store.space() {
            let above = free.saturating_sub(self.limits.reserve);
            let allowance = (above / 2).min(MAX_ALLOWANCE);
            self.pressure
                .allowance
                .store(allowance as i64, Ordering::Relaxed);
            self.pressure.full.store(above == 0, Ordering::Relaxed);
        }
    }

    /// Refuses bytes while the SSD is full, after clean objects have given way.
    pub(super) fn make_room(&self, ctx: &Ctx) -> Result<()> {
        if !self.is_full() {
            return Ok(());
        }
        ctx.block()?;
        self.trim()?;
        self.look_at_space();
        if self.is_full() {
            return Err(FsError::NO_SPACE);
        }
        Ok(())
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

    /// Whether the SSD is so full that writers are refused.
    pub fn is_full(&self) -> bool {
        self.pressure.full.load(Ordering::Relaxed)
    }

    /// Removes dead objects, then clean ones, least recently used first, until the cache is within its limits.
    ///
    /// # Errors
    /// If the index or an object fails.
    pub fn trim(&self) -> Result<()> {
        let _one_at_a_time = self.reaping.lock();
        self.reap()?;
        let (_, free) = self.store.space()?;
        let cached = self.index.lock().totals().cached_bytes;
        let over = cached.saturating_sub(self.limits.max_bytes);
        let short = self
            .limits
            .keep_free
            .max(2 * self.limits.reserve)
            .saturating_sub(free);
        let mut goal = over.max(short);
        while goal > 0 {
            let freed = self.evict_some(goal)?;
            if freed == 0 {
                break;
            }
            goal = goal.saturating_sub(freed);
        }
        Ok(())
    }

    /// Lets clean objects go until `goal` bytes are free, or one chunk has been looked at. Gives the bytes freed.
    fn evict_some(&self, goal: u64) -> Result<u64> {
        let candidates = self.index.lock().evictable(CHUNK)?;
        let mut freed = 0;
        for candidate in candidates {
            if freed >= goal {
                break;
            }
            let evicted = self.opens.while_closed(candidate.ino, || -> Result<bool> {
                let mut state = self.index.lock();
                let Some(mut inode) = state.inode(candidate.ino)? else {
                    return Ok(false);
                };
                let clean = !inode.flags.has(Flags::DATA_DIRTY)
                    && !inode.flags.has(Flags::TIME_DIRTY)
                    && !state.is_pinned(&inode);
                match inode.object {
                    Some(object) if clean && inode.flags.has(Flags::ON_BACKEND) => {
                        state.bury_object(&inode, object)?;
                        inode.object = None;
                        state.put_inode(inode);
                        Ok(true)
                    }
                    _ => Ok(false),
                }
            });
            if let Some(evicted) = evicted
                && evicted?
            {
                freed += candidate.blocks * 512;
            }
        }
        self.reap()?;
        Ok(freed)
    }

    /// Removes the files of objects that nothing needs any more. The rows that say so must be durable before a file goes: after
    /// a power cut an older row may be what there is, and its object must be there. Then the file goes, then the row; a crash
    /// in between finds the row and removes the file again.
    fn reap(&self) -> Result<()> {
        loop {
            let dead = self.index.lock().dead_objects(CHUNK)?;
            if dead.is_empty() {
                return Ok(());
            }
            self.sync()?;
            for object in &dead {
                self.store.remove(*object)?;
            }
            self.index.lock().forget_dead_objects(&dead)?;
        }
    }
}
