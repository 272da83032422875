//! Writing a file again whose bytes on the drive have been damaged.
//!
//! The right bytes are in the object of the file, or are copied into a new one. Then the file is
//! marked as dirty, so the next batch writes it like any change: nothing here writes to the drive.
//! The row of the drive's version gets the hash of the bytes that are there now. So the batch
//! expects these, makes no patch of them, and a replay does not take them for those of others.
//!
//! An object in the cache with other bytes than the known ones is buried: it has rotted on the SSD,
//! or was read from the drive after the damage.
//!
//! Failure order: the bytes of a new object are synced, then one record of the redo log has the
//! object, the mark and the hash. A crash before it leaves an object without a row, which goes to
//! lost+found, and the damage is found by the next scrub. After it the file waits like any other.
//!
//! Lock order: one open inode's content; the index.

use crate::core::{ContentHash, Ino, ObjectId};
use crate::drive::ReadFile;
use crate::index::{Flags, Inode, PlacedEntry};
use crate::plan::planner::NameKey;
use crate::sys;
use crate::vfs::bring::CTX;
use crate::vfs::import::holes::described_holes;
use crate::vfs::measured::measure;
use crate::vfs::prepare::copy_in;
use crate::vfs::{Fs, Invalidation, Result};

/// A file on the drive with other bytes than ferryfs knows it to have, of the same size and time.
#[derive(Clone, Debug)]
pub struct Damage {
    /// Its name on the drive.
    pub key: NameKey,
    /// What the index says of it.
    pub was: PlacedEntry,
    /// The hash of the bytes that it has now; `None` if they cannot be read.
    pub found: Option<ContentHash>,
}

/// What became of a file that was to be written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// It waits for the next flush.
    Waits,
    /// This is no copy of it.
    NoCopy,
    /// The copy does not fit on the SSD.
    NoSpace,
    /// The cache has other bytes, and a program has them open.
    InUse,
    /// A batch is under way: it must be tried again.
    NotNow,
    /// The file was changed meanwhile.
    Changed,
    /// The drive keeps it as it is: it stays local here.
    Local,
}

impl Fs {
    /// Marks a damaged file as dirty if the cache has the right bytes.
    ///
    /// # Errors
    /// If the object cannot be read, or the index fails.
    pub fn rewrite_cached(&self, damage: &Damage) -> Result<Rewritten> {
        let Some(inode) = self.index.lock().inode(damage.was.ino)? else {
            return Ok(Rewritten::Changed);
        };
        let Some(object) = inode.object else {
            return Ok(Rewritten::NoCopy);
        };
        let Some((size, hash)) = self.hash_object(object) else {
            return Ok(Rewritten::NoCopy);
        };
        // Without a hash the object of a clean file is what was read from the drive once.
        if size != damage.was.size || damage.was.hash.is_some_and(|was| was != hash) {
            return Ok(Rewritten::NoCopy);
        }
        self.mark_damaged(damage, &inode, None)
    }

    /// Returns the size and the hash of an object; `None` if it is damaged or cannot be read.
    fn hash_object(&self, object: ObjectId) -> Option<(u64, ContentHash)> {
        if self.store.damage(object).is_some() {
            return None;
        }
        let file = self.store.open_object(object).ok()?;
        let size = file.metadata().ok()?.len();
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).ok()?;
        Some((size, ContentHash(*hasher.finalize().as_bytes())))
    }

    /// Copies `source` into the cache and marks the damaged file as dirty, if `source` has the
    /// bytes that it had. They must be known by their hash. An object that the cache has is
    /// replaced; it must not have the right bytes, see [`Fs::rewrite_cached`].
    ///
    /// # Errors
    /// If `source` cannot be read, or the SSD or the index fails. The file is as before.
    pub fn rewrite_from(&self, damage: &Damage, source: &dyn ReadFile) -> Result<Rewritten> {
        let ino = damage.was.ino;
        let Some(inode) = self.index.lock().inode(ino)? else {
            return Ok(Rewritten::Changed);
        };
        if damage.was.hash.is_none() {
            return Ok(Rewritten::NoCopy);
        }
        if !self.space.make_space_for(inode.size)? {
            return Ok(Rewritten::NoSpace);
        }
        let object = self.index.lock().new_object()?;
        let rewritten = self.copy_and_mark(damage, &inode, source, object);
        if !matches!(rewritten, Ok(Rewritten::Waits)) {
            self.store.remove(object)?;
        }
        if matches!(rewritten, Ok(Rewritten::Waits)) {
            self.space
                .count_written(usize::try_from(inode.size).unwrap_or(usize::MAX));
            // Readers may have the damaged bytes.
            self.invalidations.push_now(Invalidation::Inode { ino });
        }
        rewritten
    }

    fn copy_and_mark(
        &self,
        damage: &Damage,
        inode: &Inode,
        source: &dyn ReadFile,
        object: ObjectId,
    ) -> Result<Rewritten> {
        let holes = described_holes(&self.index, inode)?;
        let target = self.objects.create(object)?;
        let file = target.file()?;
        let (size, hash) = copy_in(source, &file, &holes)?;
        if size != inode.size || Some(hash) != damage.was.hash {
            return Ok(Rewritten::NoCopy);
        }
        sys::time::set_modified_fd(&**file, inode.mtime)?;
        // Before the row: after a power cut it must not name an object that is not whole.
        self.store.sync_object(object, &file)?;
        let blocks = measure(&file)?.blocks();
        let mark = || self.mark_damaged(damage, inode, Some((object, blocks)));
        if inode.object.is_some() {
            // Handles may have the old object open.
            let marked = self.open_files.while_closed(inode.ino, mark);
            return marked.unwrap_or(Ok(Rewritten::InUse));
        }
        let open = self.open_files.acquire(inode.ino);
        let marked = open.lock(&CTX).and_then(|_content| mark());
        if let Err(error) = self.open_files.put(&open) {
            // The row may name the new object by now, so this must not say that it has failed.
            tracing::warn!(ino = inode.ino.0, %error, "a file that was not open is not closed");
        }
        marked
    }

    /// Marks the file as dirty, with a `new` object and its blocks, if all is as it was `seen`.
    fn mark_damaged(
        &self,
        damage: &Damage,
        seen: &Inode,
        new: Option<(ObjectId, u64)>,
    ) -> Result<Rewritten> {
        let (key, was) = (&damage.key, &damage.was);
        let mut state = self.index.lock();
        if state.active_batch().is_some() {
            return Ok(Rewritten::NotNow);
        }
        let (placed, inode) = (state.placed(key.parent, &key.name)?, state.inode(was.ino)?);
        let Some(mut inode) = inode.filter(|_| placed.as_ref() == Some(was)) else {
            return Ok(Rewritten::Changed);
        };
        let is_same = (inode.object, inode.data_seq) == (seen.object, seen.data_seq);
        if !is_same || is_in_work(&inode) {
            return Ok(Rewritten::Changed);
        }
        // Also what becomes local with its first change, by a pattern that was added later.
        if state.stays_local(was.ino)? {
            return Ok(Rewritten::Local);
        }
        for (place, entry) in state.places_of(was.ino)? {
            // On a drive with hard links all names lead to the same bytes.
            if place == *key || (self.capabilities.hard_links && entry.hash == was.hash) {
                let hash = damage.found;
                state.put_placed(&place, Some(&PlacedEntry { hash, ..entry }))?;
            }
        }
        let seq = state.next_seq()?;
        state.follow_replaced(was.ino, inode.data_seq, seq)?;
        inode.data_seq = seq;
        if let Some((object, blocks)) = new {
            if let Some(old) = inode.object {
                state.bury_object(&inode, old)?;
            }
            (inode.object, inode.blocks) = (Some(object), blocks);
            inode.used = self.clock.now().parts().0;
        }
        inode.flags.set(Flags::DATA_DIRTY);
        state.mark_inode(&inode)?;
        state.put_inode(inode);
        state.finish()?;
        Ok(Rewritten::Waits)
    }

    /// Returns whether the drive's version of `ino` is worth a look: no other one waits or is being
    /// written, and it is a regular file.
    ///
    /// # Errors
    /// If the index fails.
    pub fn is_at_rest(&self, ino: Ino) -> Result<Option<bool>> {
        let inode = self.index.lock().inode(ino)?;
        let inode = inode.filter(|it| it.kind() == crate::core::FileKind::Regular);
        Ok(inode.map(|inode| !is_in_work(&inode)))
    }

    /// Notes the hash of a file of the drive of which none was known, if the cache has the same
    /// bytes or none. Returns false if it has others, so that it is unknown which are right.
    ///
    /// # Errors
    /// If the index fails.
    pub fn note_hash(&self, key: &NameKey, was: &PlacedEntry, hash: ContentHash) -> Result<bool> {
        let object = self.index.lock().inode(was.ino)?;
        let object = object.and_then(|inode| inode.object);
        let ours = object.and_then(|object| self.hash_object(object));
        if ours.is_some_and(|(_, ours)| ours != hash) {
            // A program may have written to it since.
            return Ok(self.is_at_rest(was.ino)? != Some(true));
        }
        let mut state = self.index.lock();
        let is_known = state.inode(was.ino)?.is_some_and(|it| !is_in_work(&it));
        if is_known && state.placed(key.parent, &key.name)?.as_ref() == Some(was) {
            let hash = Some(hash);
            state.put_placed(key, Some(&PlacedEntry { hash, ..*was }))?;
            state.finish()?;
        }
        Ok(true)
    }
}

/// Returns whether other bytes than those on the drive wait, or are being written.
fn is_in_work(inode: &Inode) -> bool {
    let states = [Flags::DATA_DIRTY, Flags::WRITING, Flags::INTERRUPTED];
    states.into_iter().any(|state| inode.flags.has(state))
}
