//! What nobody here has seen yet.

use super::super::Result;
use super::super::import::Claim;
use super::compare::own_dir;
use super::gather::{Differences, Parent};
use super::{Taking, spelling};
use crate::backend::Entry;
use crate::base::{FileKind, Ino, RelPath};
use crate::index::{Flags, PlacedEntry};
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;

/// What came of trying to take something in.
enum Taken {
    /// It is in the index, as this inode.
    As(Ino),
    /// It is not, and need not be.
    Not,
    /// Something of the mount stands in its way.
    InTheWay,
}

impl<'a> Taking<'a> {
    /// Takes in directories that nothing is in the way of, so that what has moved there finds them.
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

    /// Takes in the rest.
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
            Parent::Known(dir) => Some(dir),
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
                    // Nobody else lists it while what is in it comes in, a chunk at a time.
                    claims.push(self.fs.importing.claim(ino));
                    self.made.insert(at, ino);
                }
            }
        }
        found.appeared[at].done = true;
        self.step()
    }

    /// The directories that came in with all that is in them.
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

    /// The same for something that stands where something else stood.
    pub(super) fn appear_as(&mut self, key: &NameKey, entry: &Entry, path: &RelPath) -> Result<()> {
        if matches!(self.appear_at(key, entry)?, Taken::InTheWay) {
            self.appear_beside(key, entry, path)?;
        }
        Ok(())
    }

    fn appear_at(&mut self, key: &NameKey, entry: &Entry) -> Result<Taken> {
        let mut state = self.fs.index.lock();
        if !Self::is_still(&mut state, key, None)? {
            // What stood there is yet to be taken out; or it is known by now.
            return Ok(Taken::InTheWay);
        }
        if !self.revive(&mut state, key.parent)? {
            return Ok(Taken::Not);
        }
        let is_dir = entry.meta.kind == FileKind::Directory;
        if spelling::in_the_way(&mut state, key)?.is_some() {
            if !is_dir {
                return Ok(Taken::InTheWay);
            }
            let Some(own) = own_dir(&mut state, key)? else {
                return Ok(Taken::InTheWay);
            };
            // Both sides have made it: it serves both; spelled as here, which the next batch sees to.
            let placed = PlacedEntry {
                ino: own,
                kind: PlainKind::Directory,
                size: 0,
                mtime: crate::base::Timestamp(0),
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
        self.fs.import_found(&mut state, key.parent, entry)?;
        let Some((name, ino)) = spelling::at(&mut state, key)? else {
            return Ok(Taken::Not);
        };
        self.touch_parent(&mut state, key.parent, i32::from(is_dir))?;
        self.tell_entry(key.parent, &name);
        self.tell_inode(ino); // Perhaps a further name of a file that the kernel knows.
        self.changes.new += 1;
        Ok(Taken::As(ino))
    }

    /// The mount has something of its own there.
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

    /// If both sides have made the same file, there is one.
    fn adopt(&mut self, key: &NameKey, entry: &Entry, path: &RelPath) -> Result<bool> {
        let fs = self.fs;
        let known = || -> Result<Option<crate::index::Inode>> {
            let mut state = fs.index.lock();
            let Some((_, ino)) = spelling::at(&mut state, key)? else {
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
        let at = spelling::at(&mut state, key)?.map(|(_, ino)| ino);
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
        // The next batch carries it all the same, over the same bytes.
        state.mark_inode(&inode)?;
        state.put_inode(inode);
        Ok(true)
    }
}
