//! Keeping the cache within its space: dead objects are removed, clean ones give way, dirty ones never.

use std::time::{Duration, Instant};

use super::{Fs, Result};
use crate::base::Ino;
use crate::index::Flags;

/// Objects removed under one hold of a lock.
const CHUNK: u32 = 1024;

/// How often damaged objects are looked at: to find whose they are means to look through the index.
const DAMAGED_EVERY: Duration = Duration::from_secs(60);

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

impl Fs {
    /// Removes dead objects, then clean ones, least recently used first, until the cache is within its limits.
    ///
    /// # Errors
    /// If the index or an object fails.
    pub fn trim(&self) -> Result<()> {
        let mut looked = self.reaping.lock();
        self.reap()?;
        if looked.is_none_or(|looked| looked.elapsed() >= DAMAGED_EVERY) {
            self.evict_damaged()?;
            *looked = Some(Instant::now());
        }
        let (_, free) = self.store.space()?;
        let cached = self.index.lock().totals().cached_bytes;
        let over = cached.saturating_sub(self.limits.max_bytes);
        let short = self.limits.roomy().saturating_sub(free);
        let mut goal = over.max(short);
        while goal > 0 {
            let freed = self.evict_some(goal)?;
            if freed == 0 {
                break;
            }
            goal = goal.saturating_sub(freed);
        }
        self.refill_reserve();
        Ok(())
    }

    /// Lets go of clean objects that the SSD has failed to keep: the backend has their bytes.
    fn evict_damaged(&self) -> Result<()> {
        let mut evicted = false;
        for (object, _, _) in self.store.damaged() {
            let owner = self.index.lock().owner_of(object)?;
            if let Some(ino) = owner {
                evicted |= self.evict(ino)?;
            }
        }
        if evicted { self.reap() } else { Ok(()) }
    }

    /// Lets clean objects go until `goal` bytes are free, or one chunk has been looked at. Gives the bytes freed.
    fn evict_some(&self, goal: u64) -> Result<u64> {
        let candidates = self.index.lock().evictable(CHUNK)?;
        let mut freed = 0_u64;
        for candidate in candidates {
            if freed >= goal {
                break;
            }
            if self.evict(candidate.ino)? {
                freed = freed.saturating_add(candidate.blocks.saturating_mul(512));
            }
        }
        self.reap()?;
        Ok(freed)
    }

    /// Lets the object of `ino` go if it is clean and nobody uses it; true if so.
    fn evict(&self, ino: Ino) -> Result<bool> {
        let evicted = self.opens.while_closed(ino, || -> Result<bool> {
            let mut state = self.index.lock();
            let Some(mut inode) = state.inode(ino)? else {
                return Ok(false);
            };
            let clean = !inode.flags.has(Flags::DATA_DIRTY) && !inode.flags.has(Flags::TIME_DIRTY);
            match inode.object {
                Some(object)
                    if clean && !state.is_pinned(&inode) && inode.flags.has(Flags::ON_BACKEND) =>
                {
                    state.bury_object(&inode, object)?;
                    inode.object = None;
                    state.put_inode(inode);
                    Ok(true)
                }
                _ => Ok(false),
            }
        });
        evicted.unwrap_or(Ok(false))
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
                self.forget_damage(*object)?;
                self.store.remove(*object)?;
            }
            self.index.lock().forget_dead_objects(&dead)?;
        }
    }
}
