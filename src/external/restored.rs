//! Directories that the mount removed and that have new entries on the backend, and the names of
//! conflicting versions.

use crate::core::{ForeignText, Ino, Name};
use crate::external::{Taking, names};
use crate::index::{Flags, IndexWriter, Inode, PlacedEntry};
use crate::plan::merge::{NAMED_CONFLICTS, conflict_name};
use crate::plan::planner::NameKey;
use crate::vfs::Result;

/// Number of conflict names to try before the entry is left to the next scan.
const ATTEMPTS: u32 = 1000;

/// Bound on the depth of a path, against cycles.
const DEEPEST: usize = 10_000;

impl Taking<'_> {
    /// Ensures that `dir` is in the mount, with all its ancestors. Returns false if its place is
    /// unknown.
    pub(super) fn revive(&mut self, state: &mut IndexWriter, dir: Ino) -> Result<bool> {
        let mut missing = Vec::new();
        let mut at = dir;
        while at != Ino::ROOT && state.a_name_of(at)?.is_none() {
            let Some((key, _)) = state.a_place_of(at)? else {
                return Ok(false);
            };
            if missing.len() > DEEPEST {
                return Ok(false);
            }
            let parent = key.parent;
            missing.push((at, key));
            at = parent;
        }
        while let Some((ino, key)) = missing.pop() {
            self.revive_one(state, ino, &key)?;
        }
        Ok(true)
    }

    /// Restores one directory. The inode keeps its number, since it is the same directory.
    fn revive_one(&mut self, state: &mut IndexWriter, ino: Ino, key: &NameKey) -> Result<()> {
        let mut inode = match state.inode(ino)? {
            Some(inode) => inode,
            None => {
                let (uid, gid) = self.fs.owner;
                Inode::new(ino, libc::S_IFDIR | 0o755, uid, gid, self.now)
            }
        };
        inode.nlink = 2;
        // All its entries on the backend are known, and removed in the mount.
        inode.flags.set(Flags::LISTED);
        inode.flags.set(Flags::ON_BACKEND);
        state.no_orphan(ino);
        state.put_inode(inode.clone());
        let shown = state.mount_name_for(key.parent, &key.name, None)?;
        let name = match names::in_the_way(state, key)? {
            None => {
                state.add_name_as(key.parent, &shown, &key.name, &inode)?;
                shown
            }
            Some(_) => match self.free_name(state, key.parent, &shown, true)? {
                Some(name) => {
                    state.add_name(key.parent, &name, &inode)?;
                    name
                }
                None => return Ok(()),
            },
        };
        self.touch_parent(state, key.parent, 1)?;
        self.tell_entry(key.parent, &name);
        self.tell_inode(ino);
        Ok(())
    }

    /// Adds the backend's version of `key` to the mount under a conflict name, beside the mount's
    /// version. The next batch renames it on the backend. Returns its inode; `None` if the name is
    /// local, so that no batch has anything to do with it.
    pub(super) fn keep_both(
        &mut self,
        state: &mut IndexWriter,
        key: &NameKey,
        was: Option<&PlacedEntry>,
        entry: &crate::core::Entry,
    ) -> Result<Option<Ino>> {
        if !self.revive(state, key.parent)? {
            return Ok(None);
        }
        let is_dir = entry.meta.kind == crate::core::FileKind::Directory;
        let shown = state.mount_name(key)?;
        let stays_local = match names::in_the_way(state, key)? {
            Some((_, ours)) => state.stays_local(ours)?,
            None => state.is_local_name(key.parent, &shown, is_dir)?,
        };
        if stays_local {
            // Its conflict name would be local, too, so it would leave the drive. It stays there
            // instead, unknown here, and appears when ours has gone.
            if was.is_some() {
                state.replace_placed(key, was, None)?;
            }
            tracing::debug!(name = %key.name, "theirs stays on the drive; this name is local here");
            return Ok(None);
        }
        let Some(name) = self.free_name(state, key.parent, &shown, is_dir)? else {
            let why = "no name is free for the other version; rename some of them".to_string();
            self.changes.skipped.push((key.name.to_text(), why));
            return Ok(None);
        };
        let (inode, placed) = self.fs.importer().found_inode(state, entry)?;
        state.put_inode(inode.clone());
        state.replace_placed(key, was, Some(&placed))?;
        state.add_name(key.parent, &name, &inode)?;
        state.mark_name(key.parent, &key.name)?;
        state.note_conflict(inode.ino)?;
        self.touch_parent(state, key.parent, i32::from(is_dir))?;
        tracing::warn!(%name, "changed here and elsewhere; the other version is kept under this name");
        self.tell_entry(key.parent, &name);
        self.changes.conflicts += 1;
        if self.changes.named.len() < NAMED_CONFLICTS {
            let dir = state.mount_path(key.parent)?.unwrap_or_default();
            let (path, kept) = (dir.join(&shown), dir.join(&name));
            (self.changes.named).push((path.to_text(), kept.to_text()));
        }
        Ok(Some(inode.ino))
    }

    fn free_name(
        &mut self,
        state: &mut IndexWriter,
        parent: Ino,
        name: &Name,
        is_dir: bool,
    ) -> Result<Option<Name>> {
        let host = crate::sys::host::name();
        for attempt in 0..ATTEMPTS {
            let candidate = conflict_name(name, self.now, &host, attempt, is_dir);
            let Some(candidate) = candidate else {
                return Ok(None);
            };
            if state.lookup(parent, &candidate)?.is_none() {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }
}
