//! New entries on the backend. Every change is made under the index lock, after the entry has been
//! compared with the index again.

use crate::core::{Entry, FileKind, Ino, RelPath};
use crate::external::compare::own_dir;
use crate::external::scan::{Differences, Parent};
use crate::external::{Taking, names};
use crate::format::steps::PlainKind;
use crate::index::{Flags, PlacedEntry};
use crate::plan::planner::NameKey;
use crate::vfs::Result;
use crate::vfs::import::Claim;

/// The result of trying to import an entry.
enum Taken {
    /// It is in the index, as this inode.
    As(Ino),
    /// It is not in the index, and need not be.
    Not,
    /// An entry of the mount has the same name.
    InTheWay,
}

impl<'a> Taking<'a> {
    /// Imports new directories without a name collision, so that entries moved into them have a
    /// parent.
    pub(super) fn appear_dirs(
        &mut self,
        found: &mut Differences,
        claims: &mut Vec<Claim<'a>>,
    ) -> Result<()> {
        for at in 0..found.appeared.len() {
            if found.appeared[at].entry.meta.kind == FileKind::Directory {
                self.appear_one(found, at, claims, false)?;
            }
        }
        Ok(())
    }

    /// Imports all other new entries.
    pub(super) fn appear_rest(
        &mut self,
        found: &mut Differences,
        claims: &mut Vec<Claim<'a>>,
    ) -> Result<()> {
        for at in 0..found.appeared.len() {
            self.appear_one(found, at, claims, true)?;
        }
        Ok(())
    }

    fn appear_one(
        &mut self,
        found: &mut Differences,
        at: usize,
        claims: &mut Vec<Claim<'a>>,
        may_keep_both: bool,
    ) -> Result<()> {
        let appeared = &found.appeared[at];
        let parent = match appeared.parent {
            Parent::Indexed(dir) => Some(dir),
            Parent::Appeared(dir) => self.made.get(&dir).copied(),
        };
        let Some(parent) = parent.filter(|_| !appeared.done) else {
            return Ok(());
        };
        let key = NameKey {
            parent,
            name: appeared.entry.name.clone(),
        };
        let (entry, path, listed) = (
            appeared.entry.clone(),
            appeared.path.clone(),
            appeared.listed,
        );
        let mut taken = self.appear_at(&key, &entry)?;
        if matches!(taken, Taken::InTheWay) && may_keep_both {
            taken = self.appear_beside(&key, &entry, &path)?;
        }
        match taken {
            Taken::InTheWay => return Ok(()),
            Taken::Not => {}
            Taken::As(ino) => {
                if listed {
                    // The claim keeps other threads from listing the directory while its entries
                    // are imported in chunks.
                    claims.push(self.fs.importer().claim(ino));
                    self.made.insert(at, ino);
                }
            }
        }
        found.appeared[at].done = true;
        self.step()
    }

    /// Sets LISTED on the directories that were imported with all their entries.
    pub(super) fn finish_dirs(&mut self, found: &Differences) -> Result<()> {
        for (at, ino) in std::mem::take(&mut self.made) {
            if found.appeared[at].entry.meta.kind != FileKind::Directory {
                continue;
            }
            let mut state = self.fs.index.lock();
            if let Some(mut inode) = state.inode(ino)? {
                inode.flags.set(Flags::LISTED);
                state.put_inode(inode);
            }
        }
        Ok(())
    }

    /// Imports an entry that replaces another one.
    pub(super) fn appear_as(&mut self, key: &NameKey, entry: &Entry, path: &RelPath) -> Result<()> {
        if matches!(self.appear_at(key, entry)?, Taken::InTheWay) {
            self.appear_beside(key, entry, path)?;
        }
        Ok(())
    }

    fn appear_at(&mut self, key: &NameKey, entry: &Entry) -> Result<Taken> {
        let mut state = self.fs.index.lock();
        if !Self::is_still(&mut state, key, None)? {
            // The previous entry is not removed yet, or the new one is known by now.
            return Ok(Taken::InTheWay);
        }
        if !self.revive(&mut state, key.parent)? {
            return Ok(Taken::Not);
        }
        let is_dir = entry.meta.kind == FileKind::Directory;
        if names::in_the_way(&mut state, key)?.is_some() {
            if !is_dir {
                return Ok(Taken::InTheWay);
            }
            let Some(own) = own_dir(&mut state, key)? else {
                return Ok(Taken::InTheWay);
            };
            // Both sides have created the directory: it becomes one, with the spelling used here,
            // which the next batch writes.
            let placed = PlacedEntry {
                ino: own,
                kind: PlainKind::Directory,
                size: 0,
                mtime: crate::core::Timestamp(0),
                hash: None,
            };
            state.put_placed(key, Some(&placed))?;
            state.mark_name(key.parent, &key.name)?;
            if let Some(mut inode) = state.inode(own)? {
                inode.flags.set(Flags::ON_BACKEND);
                state.put_inode(inode);
            }
            return Ok(Taken::As(own));
        }
        self.fs
            .importer()
            .import_found(&mut state, key.parent, entry)?;
        let Some((name, ino)) = names::at(&mut state, key)? else {
            return Ok(Taken::Not);
        };
        self.touch_parent(&mut state, key.parent, i32::from(is_dir))?;
        self.tell_entry(key.parent, &name);
        self.tell_inode(ino); // The kernel may know it under another name.
        self.changes.new += 1;
        Ok(Taken::As(ino))
    }

    /// Handles a name that the mount has an entry of its own for.
    fn appear_beside(&mut self, key: &NameKey, entry: &Entry, path: &RelPath) -> Result<Taken> {
        if entry.meta.kind == FileKind::Regular && self.adopt(key, entry, path)? {
            return Ok(Taken::Not);
        }
        let mut state = self.fs.index.lock();
        if !Self::is_still(&mut state, key, None)? {
            return Ok(Taken::Not);
        }
        let kept = self.keep_both(&mut state, key, None, entry)?;
        Ok(kept.map_or(Taken::Not, Taken::As))
    }

    /// Merges a file that both sides have created with the same bytes.
    fn adopt(&mut self, key: &NameKey, entry: &Entry, path: &RelPath) -> Result<bool> {
        let fs = self.fs;
        let known = || -> Result<Option<crate::index::Inode>> {
            let mut state = fs.index.lock();
            let Some((_, ino)) = names::at(&mut state, key)? else {
                return Ok(None);
            };
            let ours = state.inode(ino)?;
            Ok(ours.filter(|ours| {
                ours.kind() == FileKind::Regular
                    && ours.flags.has(Flags::DATA_DIRTY)
                    && !ours.flags.has(Flags::WRITING)
            }))
        };
        let Some(ours) = known()? else {
            return Ok(false);
        };
        let Some(object) = ours.object else {
            return Ok(false);
        };
        let Some(hash) = self.same_bytes(object, path, &entry.meta) else {
            return Ok(false);
        };
        let mut state = fs.index.lock();
        let at = names::at(&mut state, key)?.map(|(_, ino)| ino);
        let now = state.inode(ours.ino)?;
        let unchanged =
            now.filter(|now| (now.object, now.data_seq) == (ours.object, ours.data_seq));
        let Some(mut inode) = unchanged else {
            return Ok(false);
        };
        if at != Some(ours.ino) || !Self::is_still(&mut state, key, None)? {
            return Ok(false);
        }
        let placed = PlacedEntry {
            ino: ours.ino,
            kind: PlainKind::File,
            size: entry.meta.size,
            mtime: entry.meta.modified,
            hash: Some(hash),
        };
        state.put_placed(key, Some(&placed))?;
        inode.flags.set(Flags::ON_BACKEND);
        // The next batch writes the file all the same, over equal bytes.
        state.mark_inode(&inode)?;
        state.put_inode(inode);
        Ok(true)
    }
}
