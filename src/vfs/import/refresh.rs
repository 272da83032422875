//! New descriptions in the catalog: applies them to files that are in the index already. Local
//! changes stay.
//!
//! Failure order: the names of a directory are committed in chunks. A crash in between leaves the
//! earlier descriptions on the other names, until the catalog changes again.

use crate::core::{FileKind, Ino, Name, acl};
use crate::index::{Flags, IndexWriter, Inode};
use crate::plan::planner::NameKey;
use crate::vfs::Result;
use crate::vfs::import::Importer;
use crate::vfs::import::descriptions::{CHUNK, Described, Descriptions, Found};
use crate::vfs::invalidation::Invalidation;

impl Importer {
    /// Applies the catalog's current descriptions to files that are in the index already; local
    /// changes stay.
    ///
    /// # Errors
    /// If the index fails.
    pub(in crate::vfs) fn believe_anew(&self) -> Result<()> {
        self.refresh_root()?;
        let mut after = Ino(0);
        loop {
            let next = self.index.lock().a_listed_dir(after)?;
            let Some(dir) = next else { return Ok(()) };
            self.refresh_dir(dir)?;
            after = dir;
        }
    }

    /// Applies its description to the root, which programs see before it is listed.
    fn refresh_root(&self) -> Result<()> {
        let descriptions = Descriptions::of_root(self.root_description()?);
        let mut state = self.index.lock();
        self.apply_root_description(&mut state, &descriptions)?;
        state.commit()?;
        Ok(())
    }

    /// Applies the current descriptions of one directory.
    ///
    /// # Errors
    /// If the index fails.
    pub(in crate::vfs) fn refresh_dir(&self, dir: Ino) -> Result<()> {
        let Some(path) = self.index.lock().backend_path(dir)? else {
            return Ok(());
        };
        let descriptions = self.descriptions_in(&path)?;
        let names: Vec<_> = descriptions.names().collect();
        // Invalidations are sent without a lock, see [`crate::vfs::Invalidations`].
        let mut invalidations = Vec::new();
        for chunk in names.chunks(CHUNK) {
            {
                let mut state = self.index.lock();
                for (name, described) in chunk {
                    self.refresh_name(
                        &mut state,
                        dir,
                        (name, described),
                        &descriptions,
                        &mut invalidations,
                    )?;
                }
                state.commit()?;
            }
            self.invalidations.push(std::mem::take(&mut invalidations));
        }
        self.forget_removed_specials(dir, &descriptions, &mut invalidations)?;
        self.invalidations.push(invalidations);
        Ok(())
    }

    fn refresh_name(
        &self,
        state: &mut IndexWriter,
        dir: Ino,
        (name, described): (&Name, &Described),
        descriptions: &Descriptions,
        invalidations: &mut Vec<Invalidation>,
    ) -> Result<()> {
        let placed = state.placed(dir, name)?;
        let Some(entry) = placed else {
            if described.it.kind.is_plain() {
                return Ok(()); // Not on the drive, according to the index.
            }
            if let Some(inode) = special_at(state, dir, name)? {
                return self.refresh_inode(state, inode, described, None, invalidations);
            }
            if described.is_withheld() {
                return Ok(());
            }
            self.import_special(state, dir, name, described, descriptions)?;
            let key = NameKey {
                parent: dir,
                name: name.clone(),
            };
            let name = state.mount_name(&key)?;
            self.note_other_entries(state, dir)?;
            invalidations.push(Invalidation::Entry { parent: dir, name });
            invalidations.push(Invalidation::Inode { ino: dir });
            return Ok(());
        };
        let Some(inode) = state.inode(entry.ino)? else {
            return Ok(());
        };
        let found = Found::placed(inode.kind(), &entry);
        self.refresh_inode(state, inode, described, Some(found), invalidations)
    }

    /// Notes that a directory has other entries than before, so that the kernel keeps no copy of a
    /// listing that was under way ([`crate::vfs::directories`]).
    fn note_other_entries(&self, state: &mut IndexWriter, dir: Ino) -> Result<()> {
        if let Some(mut inode) = state.inode(dir)? {
            inode.ctime = self.clock.now();
            state.put_inode(inode);
        }
        Ok(())
    }

    fn refresh_inode(
        &self,
        state: &mut IndexWriter,
        mut inode: Inode,
        described: &Described,
        found: Option<Found>,
        invalidations: &mut Vec<Invalidation>,
    ) -> Result<()> {
        if inode.kind() != described.it.kind || inode.flags.any(Flags::DIRTY) {
            return Ok(());
        }
        let before = inode.clone();
        let acls = crate::vfs::acl::both(state, &inode)?;
        for name in state.xattr_names(inode.ino)? {
            let stays = acl::is_acl(&name) && self.is_native(described);
            if !stays && !described.it.xattrs.contains_key(&name[..]) {
                state.put_xattr(inode.ino, &name, None)?;
            }
        }
        // The ACLs that remain are replaced or removed here.
        let blocks = inode.blocks;
        self.apply_description(state, &mut inode, described, found)?;
        if inode.object.is_some() {
            inode.blocks = blocks; // The allocation of the object is known.
        }
        if described.it.kind == FileKind::Symlink {
            inode.target.clone_from(&described.it.target);
            inode.size = inode
                .target
                .as_ref()
                .map_or(0, |target| target.len() as u64);
        }
        inode.ctime = match (&inode.mtime, inode.mode, inode.uid, inode.gid)
            == (&before.mtime, before.mode, before.uid, before.gid)
        {
            true => before.ctime,
            false => self.clock.now(),
        };
        // The kernel caches ACLs with the inode.
        if inode != before || crate::vfs::acl::both(state, &inode)? != acls {
            invalidations.push(Invalidation::Inode { ino: inode.ino });
        }
        state.put_inode(inode);
        Ok(())
    }

    /// Removes links and special files that are no longer in the catalog: they were removed
    /// elsewhere.
    fn forget_removed_specials(
        &self,
        dir: Ino,
        descriptions: &Descriptions,
        invalidations: &mut Vec<Invalidation>,
    ) -> Result<()> {
        let mut after = 0;
        loop {
            let mut state = self.index.lock();
            let names = state.list(dir, after, u64::MAX, CHUNK as u32)?;
            let Some(last) = names.last() else {
                return Ok(());
            };
            after = last.cookie;
            for dirent in names {
                let inode = state.expect_inode(dirent.ino)?;
                let is_clean = inode.flags.has(Flags::ON_BACKEND) && !inode.flags.any(Flags::DIRTY);
                if inode.kind().is_plain() || !is_clean {
                    continue;
                }
                let Some(stored) = state.stored_name(dir, &dirent.name)? else {
                    continue;
                };
                if descriptions.has(&stored)
                    || state.placed(dir, &stored)?.is_some()
                    || state.is_marked(dir, &stored)?
                {
                    continue;
                }
                state.remove_clean_name(dir, &dirent.name)?;
                self.note_other_entries(&mut state, dir)?;
                invalidations.push(Invalidation::Entry {
                    parent: dir,
                    name: dirent.name.clone(),
                });
                invalidations.push(Invalidation::Inode { ino: dir });
                let mut inode = inode;
                inode.nlink = inode.nlink.saturating_sub(1);
                if inode.nlink == 0 {
                    state.add_orphan(inode.ino);
                }
                state.put_inode(inode);
            }
            state.commit()?;
        }
    }
}

/// Returns the link or special file with a stored name that the drive has no entry for.
fn special_at(state: &mut IndexWriter, dir: Ino, name: &Name) -> Result<Option<Inode>> {
    let found = match state.lookup_stored(dir, name)? {
        Some(ino) => state.inode(ino)?,
        None => None,
    };
    Ok(found.filter(|inode| !inode.kind().is_plain()))
}
