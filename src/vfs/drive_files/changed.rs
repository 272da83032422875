//! A file of the drive that differs from the index: its bytes were changed by others. What is
//! concluded for one file is here; `external` finds such files by listing directories.

use crate::core::{ContentHash, FileKind, Ino, Metadata, SET_IDS, Timestamp};
use crate::format::expectations::ExpectedFile;
use crate::format::steps::PlainKind;
use crate::index::{Flags, IndexWriter, Inode, PlacedEntry};
use crate::plan::merge::{Comparison, compare};
use crate::vfs::drive_files::DriveFiles;
use crate::vfs::{Invalidation, Result, privileges};

impl DriveFiles {
    /// Updates the index after an open of a file that only the backend has, if the file differs
    /// from the index. Does nothing if the mount has bytes of its own by now, or another thread was
    /// faster. No batch may be moving names.
    pub(super) fn take_in_opened(&self, ino: Ino, meta: &Metadata) -> Result<()> {
        let mut state = self.index.lock();
        let (Some(inode), places) = (state.inode(ino)?, state.places_of(ino)?) else {
            return Ok(());
        };
        // With several names only a scan of all of them shows which have changed.
        let [(key, was)] = places.as_slice() else {
            return Ok(());
        };
        let is_file = inode.kind() == FileKind::Regular && meta.kind == FileKind::Regular;
        let granularity = self.capabilities.time_granularity_ns;
        let is_same = compare(was.kind, &expected(was), meta, granularity) == Comparison::Same;
        if is_same || !is_file || inode.object.is_some() || inode.flags.has(Flags::DATA_DIRTY) {
            return Ok(());
        }
        state.put_placed(key, Some(&seen(was, meta, None)))?;
        let is_native = self.capabilities.permissions;
        take_bytes(&mut state, inode, (meta, is_native), self.clock.now())?;
        state.finish()?;
        drop(state);
        self.invalidations.push_now(Invalidation::Inode { ino });
        Ok(())
    }
}

/// Makes the backend's current bytes those of the mount's file. Other attributes stay.
pub(crate) fn take_bytes(
    state: &mut IndexWriter,
    mut inode: Inode,
    (meta, is_native): (&Metadata, bool),
    now: Timestamp,
) -> Result<()> {
    let ino: Ino = inode.ino;
    if let Some(object) = inode.object {
        state.bury_object(&inode, object)?;
    }
    inode.object = None;
    inode.size = meta.size;
    inode.blocks = meta.size.div_ceil(512);
    inode.mtime = meta.modified;
    inode.ctime = now;
    inode.data_seq = state.next_seq()?;
    inode.flags.clear(Flags::TIME_DIRTY);
    if !(is_native && gives_the_same_rights(&inode, meta)) {
        privileges::strip(state, &mut inode, privileges::SetGroupId::Goes)?;
    }
    state.put_inode(inode);
    Ok(state.settle_dirty_inode(ino)?)
}

/// Returns whether a file on the drive gives its executing process the same rights as the mount's
/// file, so that the new bytes may keep them. Otherwise they are removed as after any change of the
/// bytes, because any user may have changed the file on the drive.
fn gives_the_same_rights(inode: &Inode, meta: &Metadata) -> bool {
    let bits = |permissions: u32| permissions & SET_IDS;
    (inode.uid, inode.gid, bits(inode.mode)) == (meta.uid, meta.gid, bits(meta.permissions))
}

/// Returns the placed entry after the change.
pub(crate) fn seen(was: &PlacedEntry, meta: &Metadata, hash: Option<ContentHash>) -> PlacedEntry {
    PlacedEntry {
        ino: was.ino,
        kind: PlainKind::File,
        size: meta.size,
        mtime: meta.modified,
        hash,
    }
}

/// Converts a placed entry to an expected file.
pub(crate) fn expected(was: &PlacedEntry) -> ExpectedFile {
    ExpectedFile {
        size: was.size,
        modified: was.mtime,
        hash: was.hash,
    }
}
