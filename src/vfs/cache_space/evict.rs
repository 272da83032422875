//! Keeps the cache within its limits: removes dead objects, evicts clean ones, never dirty ones.
//!
//! Invariant: an object's file is removed only after the row that no longer names it is durable.
//! Order of a removal: row, sync, file, note of the dead object. A crash in between leaves the
//! note, and the next run removes the file again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::core::Ino;
use crate::index::{self, Flags, IndexWriter, Inode};
use crate::vfs::Result;
use crate::vfs::cache_space::{CacheSpace, Pinned};

/// Objects removed under one hold of a lock.
const CHUNK: u32 = 1024;

/// How often damaged objects are evicted: finding their owners is a scan of the index.
const DAMAGED_EVERY: Duration = Duration::from_secs(60);

impl CacheSpace {
    /// Removes dead objects, then clean ones, least recently used first, until the cache is within
    /// its limits.
    pub(in crate::vfs) fn trim(&self) -> Result<()> {
        let mut looked = self.evicting.lock();
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

    /// Evicts clean objects that are damaged: the backend has their bytes.
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

    /// Evicts clean objects until `goal` bytes are free, or one chunk has been examined. Returns
    /// the bytes freed.
    fn evict_some(&self, goal: u64) -> Result<u64> {
        let candidates = self.unpinned(|state, limit| state.evictable(limit))?;
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

    /// Sets the files that the user wants in the cache at all times. Damaged objects of them are
    /// evicted all the same.
    /// `bytes` is how many of their bytes are in the cache and clean.
    pub(in crate::vfs) fn set_pinned(&self, pinned: HashSet<Ino>, bytes: u64) {
        *self.pinned.lock() = Pinned {
            files: pinned,
            bytes,
        };
    }

    /// Counts the bytes of a file that was brought into the cache, if it is pinned.
    pub(in crate::vfs) fn count_brought(&self, ino: Ino, bytes: u64) {
        let mut pinned = self.pinned.lock();
        if pinned.files.contains(&ino) {
            pinned.bytes = pinned.bytes.saturating_add(bytes);
        }
    }

    /// Returns whether `bytes` of clean files would fit into the cache if all that can be evicted
    /// were.
    pub(in crate::vfs) fn could_hold(&self, bytes: u64) -> Result<bool> {
        let pinned = self.pinned.lock().bytes;
        let (_, free) = self.store.space()?;
        let totals = self.index.lock().totals();
        let stays = totals
            .dirty_bytes
            .saturating_add(totals.local_bytes)
            .saturating_add(pinned);
        let clean = totals.cached_bytes.saturating_sub(stays);
        let left = free.saturating_add(clean);
        Ok(stays.saturating_add(bytes) <= self.limits.max_bytes
            && left.saturating_sub(bytes) >= self.limits.roomy())
    }

    /// Evicts clean objects that were not used since `before`, in seconds since 1970. Returns their
    /// number.
    pub(in crate::vfs) fn evict_unused(&self, before: i64) -> Result<u64> {
        let _looked = self.evicting.lock();
        let mut count = 0;
        loop {
            let unused = self.unpinned(|state, limit| state.unused_since(before, limit))?;
            let mut evicted = 0;
            for candidate in unused {
                evicted += u64::from(self.evict(candidate.ino)?);
            }
            if evicted == 0 {
                break;
            }
            count += evicted;
        }
        if count > 0 {
            self.reap()?;
        }
        Ok(count)
    }

    /// Evicts clean objects until `bytes` more can be brought into the cache. Returns whether they
    /// can; if not even the eviction of all would do, none is evicted.
    pub(in crate::vfs) fn make_space_for(&self, bytes: u64) -> Result<bool> {
        if !self.could_hold(bytes)? {
            return Ok(false);
        }
        let _looked = self.evicting.lock();
        self.reap()?;
        while !self.has_space_for(bytes)? {
            if self.evict_some(bytes)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns candidates from a list that begins with the least recently used; those that are
    /// pinned, or were brought for a directory that is not ready to stay here, count as used now,
    /// so that they are behind all others.
    fn unpinned(
        &self,
        list: impl Fn(&mut IndexWriter, u32) -> index::Result<Vec<Inode>>,
    ) -> Result<Vec<Inode>> {
        let pinned = self.pinned.lock().files.clone();
        let mut state = self.index.lock();
        let mut seen = HashSet::new();
        loop {
            let found = list(&mut state, CHUNK)?;
            let now = self.clock.now().parts().0;
            let (kept, rest): (Vec<Inode>, Vec<Inode>) = found
                .into_iter()
                .partition(|inode| pinned.contains(&inode.ino) || state.is_brought(inode.ino));
            let mut any_new = false;
            for inode in kept {
                any_new |= seen.insert(inode.ino);
                if let Some(mut inode) = state.inode(inode.ino)? {
                    inode.used = now;
                    state.put_inode(inode);
                }
            }
            if !rest.is_empty() || !any_new {
                return Ok(rest);
            }
        }
    }

    /// Evicts the object of `ino` if it is clean and not in use. Returns whether it did.
    fn evict(&self, ino: Ino) -> Result<bool> {
        let evicted = self.open_files.while_closed(ino, || -> Result<bool> {
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

    /// Removes the files of dead objects. The rows must be durable before a file is removed: after
    /// a power cut the index may have an older row, and that row needs its object. Then the file
    /// goes, then the note of the dead object; after a crash in between the note is found and the
    /// file removed again.
    fn reap(&self) -> Result<()> {
        loop {
            let dead = self.index.lock().dead_objects(CHUNK)?;
            if dead.is_empty() {
                return Ok(());
            }
            self.durability.sync()?;
            for object in &dead {
                self.durability.forget_damage(*object)?;
                self.store.remove(*object)?;
            }
            self.index.lock().forget_dead_objects(&dead)?;
        }
    }
}
