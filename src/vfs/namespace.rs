//! Operations on names: lookup, create, link, unlink. Renames are in `vfs/rename.rs`.
//!
//! Invariant: each operation on the index is finished (see [`IndexWriter::finish`]) before the
//! reply, as a whole. So a crash leaves either all of it or none. Lock order: as in [`crate::vfs`].

use crate::core::{FileKind, Ino, Name, Timestamp};
use crate::index::{Flags, IndexWriter, Inode};
use crate::plan::units::database_of_shared_memory;
use crate::vfs::object_files::ObjectFile;
use crate::vfs::{Ctx, Fs, FsError, OpenMode, Result, known, known_dir};

/// A node to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// File type and permission bits, before the umask is applied.
    pub mode: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Target of a symbolic link.
    pub target: Option<Box<[u8]>>,
}

impl Fs {
    /// Returns the inode with the name `name` in `parent`, if there is one.
    ///
    /// # Errors
    /// If `parent` cannot be listed.
    pub fn lookup(&self, ctx: &Ctx, parent: Ino, name: &Name) -> Result<Option<Inode>> {
        self.importer.ensure_listed(ctx, parent)?;
        let inode = {
            let mut state = self.index.lock();
            match state.lookup(parent, name)? {
                Some(ino) => state.expect_inode(ino)?,
                None => return Ok(None),
            }
        };
        self.open_files.with_current_size(inode).map(Some)
    }

    /// Returns the inode of a number that was kept outside of the mount, for example in an NFS file
    /// handle.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode, or the mount has no name for it any more.
    pub fn lookup_number(&self, ino: Ino) -> Result<Inode> {
        let inode = known(&mut self.index.lock(), ino)?;
        if inode.nlink == 0 {
            return Err(FsError::STALE);
        }
        self.open_files.with_current_size(inode)
    }

    /// Returns the parent of the directory `ino`; the root is its own parent.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode or it has been removed; `ENOTDIR`.
    pub fn lookup_parent(&self, ino: Ino) -> Result<Inode> {
        let mut state = self.index.lock();
        known_dir(&mut state, ino)?;
        if ino == Ino::ROOT {
            return known(&mut state, ino);
        }
        let (parent, _) = state.a_name_of(ino)?.ok_or(FsError::STALE)?;
        known(&mut state, parent)
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` if `ino` is no symbolic link; `EPERM` if the drive does not say where it points.
    pub fn readlink(&self, ino: Ino) -> Result<Box<[u8]>> {
        let inode = known(&mut self.index.lock(), ino)?;
        let is_link = inode.kind() == FileKind::Symlink;
        inode.target.ok_or(match is_link {
            true => FsError::Errno(libc::EPERM),
            false => FsError::INVALID,
        })
    }

    /// Creates a node without opening it: file, directory, symbolic link, pipe, socket, device.
    ///
    /// # Errors
    /// `EEXIST`; `ENAMETOOLONG`.
    pub fn make_node(&self, ctx: &Ctx, parent: Ino, name: &Name, node: NewNode) -> Result<Inode> {
        self.importer.ensure_listed(ctx, parent)?;
        self.space.with_space(ctx, || {
            let mut state = self.index.lock();
            let inode = self.insert_node(&mut state, ctx, parent, name, node.clone())?;
            state.finish()?;
            Ok(inode)
        })
    }

    /// Creates a regular file unless it exists, and opens it.
    ///
    /// # Errors
    /// `EEXIST` if `exclusive` and the file exists; as [`Fs::make_node`] and [`Fs::open`].
    pub fn create(
        &self,
        ctx: &Ctx,
        parent: Ino,
        name: &Name,
        permissions: u32,
        mode: OpenMode,
        exclusive: bool,
    ) -> Result<(Inode, u64)> {
        self.importer.ensure_listed(ctx, parent)?;
        let create = || self.create_once(ctx, parent, name, permissions, mode, exclusive);
        if self.space.is_full() {
            // A full SSD does not keep an existing file from being opened.
            let is_there = self.index.lock().lookup(parent, name)?.is_some();
            if is_there {
                return create();
            }
        }
        self.space.with_space(ctx, create)
    }

    fn create_once(
        &self,
        ctx: &Ctx,
        parent: Ino,
        name: &Name,
        permissions: u32,
        mode: OpenMode,
        exclusive: bool,
    ) -> Result<(Inode, u64)> {
        let object = {
            let mut state = self.index.lock();
            if let Some(ino) = state.lookup(parent, name)? {
                if exclusive {
                    return Err(FsError::EXISTS);
                }
                drop(state);
                let handle = self.open(ctx, ino, mode)?;
                let inode = known(&mut self.index.lock(), ino)?;
                return Ok((self.open_files.with_current_size(inode)?, handle));
            }
            state.new_object()?
        };
        // A file created for writing gets its object at once, so that one commit serves the name
        // and the first write.
        let file = match mode.write {
            true => Some(self.objects.create(object)?),
            false => None,
        };
        let made = self.insert_open_file(ctx, parent, name, permissions, file.as_deref());
        let inode = match made {
            Ok(inode) => inode,
            Err(error) => {
                if file.is_some() {
                    self.store.remove(object)?;
                }
                return Err(error);
            }
        };
        let open = self.open_files.acquire(inode.ino);
        if let Some(file) = file {
            self.durability.note_unsynced(&file);
            self.open_files.begin_new_file(&open, file);
        }
        Ok((inode, self.open_files.insert(ctx, open, mode, true)))
    }

    /// Inserts and commits the row of a new file; with an object, as one that is being written.
    fn insert_open_file(
        &self,
        ctx: &Ctx,
        parent: Ino,
        name: &Name,
        permissions: u32,
        file: Option<&ObjectFile>,
    ) -> Result<Inode> {
        let node = NewNode {
            mode: libc::S_IFREG | (permissions & 0o7777),
            rdev: 0,
            target: None,
        };
        let mut state = self.index.lock();
        let mut inode = self.insert_node(&mut state, ctx, parent, name, node)?;
        if let Some(file) = file {
            inode.object = Some(file.id());
            inode.flags.set(Flags::WRITING);
            state.put_inode(inode.clone());
            // Under the same lock: no cut may see the new file as empty and closed.
            state.start_changing(inode.ino);
        }
        state
            .finish()
            .inspect_err(|_| state.end_writing(inode.ino))?;
        Ok(inode)
    }

    fn insert_node(
        &self,
        state: &mut IndexWriter,
        ctx: &Ctx,
        parent: Ino,
        name: &Name,
        node: NewNode,
    ) -> Result<Inode> {
        let kind = FileKind::from_mode(node.mode).ok_or(FsError::INVALID)?;
        let mut dir = known_dir(state, parent)?;
        if dir.nlink == 0 {
            return Err(FsError::NOT_FOUND);
        }
        if state.lookup(parent, name)?.is_some() {
            return Err(FsError::EXISTS);
        }
        check_length(name)?;
        if kind == FileKind::Directory {
            check_depth(state, parent, None)?;
        }
        let now = self.clock.now();
        let mut inode = Inode::new(state.new_ino()?, node.mode, ctx.uid, ctx.gid, now);
        if dir.mode & libc::S_ISGID != 0 {
            inode.gid = dir.gid;
            if kind == FileKind::Directory {
                inode.mode |= libc::S_ISGID;
            }
        }
        inode.rdev = node.rdev;
        inode.data_seq = state.next_seq()?;
        match kind {
            FileKind::Directory => {
                inode.flags.set(Flags::LISTED);
                dir.nlink = one_more_link(dir.nlink)?;
            }
            FileKind::Regular => {
                inode.flags.set(Flags::DATA_DIRTY);
                if let Some(database) = database_of_shared_memory(name)
                    && state.lookup(parent, &database)?.is_some()
                {
                    inode.flags.set(Flags::LOCAL);
                }
            }
            _ => {}
        }
        inode.size = node.target.as_ref().map_or(0, |target| target.len() as u64);
        inode.target = node.target;
        crate::vfs::acl::inherit(state, ctx, &dir, &mut inode)?;
        if dir.flags.has(Flags::LOCAL) {
            inode.flags.set(Flags::LOCAL);
        }
        state.put_inode(inode.clone());
        match dir.flags.has(Flags::LOCAL) {
            true => state.add_local_name(parent, name, inode.ino)?,
            false => state.add_name(parent, name, &inode)?,
        }
        touch(state, &mut dir, now)?;
        state.put_inode(dir);
        Ok(inode)
    }

    /// Adds a hard link to `ino`.
    ///
    /// # Errors
    /// `EEXIST`; `EPERM` for a directory.
    pub fn link(&self, ctx: &Ctx, ino: Ino, parent: Ino, name: &Name) -> Result<Inode> {
        self.importer.ensure_listed(ctx, parent)?;
        let inode = self
            .space
            .with_space(ctx, || self.link_once(ino, parent, name))?;
        self.open_files.with_current_size(inode)
    }

    fn link_once(&self, ino: Ino, parent: Ino, name: &Name) -> Result<Inode> {
        let mut state = self.index.lock();
        let mut dir = known_dir(&mut state, parent)?;
        let mut inode = known(&mut state, ino)?;
        if inode.is_dir() {
            return Err(FsError::Errno(libc::EPERM));
        }
        if dir.nlink == 0 || inode.nlink == 0 {
            return Err(FsError::NOT_FOUND);
        }
        if state.lookup(parent, name)?.is_some() {
            return Err(FsError::EXISTS);
        }
        check_length(name)?;
        let now = self.clock.now();
        inode.nlink = one_more_link(inode.nlink)?;
        inode.flags.clear(Flags::LOCAL);
        state.note_attributes(&mut inode)?;
        inode.ctime = now;
        touch(&mut state, &mut dir, now)?;
        state.add_name(parent, name, &inode)?;
        state.put_inode(inode.clone());
        state.put_inode(dir);
        state.finish()?;
        Ok(inode)
    }

    /// Removes a name of a file that is no directory.
    ///
    /// # Errors
    /// `ENOENT`; `EISDIR`.
    pub fn unlink(&self, ctx: &Ctx, parent: Ino, name: &Name) -> Result<()> {
        self.importer.ensure_listed(ctx, parent)?;
        self.space.with_reserve(|| self.unlink_once(parent, name))
    }

    fn unlink_once(&self, parent: Ino, name: &Name) -> Result<()> {
        let mut state = self.index.lock();
        self.unlink_in(&mut state, parent, name)?;
        state.finish()?;
        Ok(())
    }

    /// Removes a name of a file; the caller finishes the operation.
    pub(super) fn unlink_in(
        &self,
        state: &mut IndexWriter,
        parent: Ino,
        name: &Name,
    ) -> Result<()> {
        let ino = state.lookup(parent, name)?.ok_or(FsError::NOT_FOUND)?;
        let inode = state.expect_inode(ino)?;
        if inode.is_dir() {
            return Err(FsError::IS_DIR);
        }
        let mut dir = known_dir(state, parent)?;
        let now = self.clock.now();
        state.remove_name(parent, name)?;
        drop_link(state, inode, now)?;
        touch(state, &mut dir, now)?;
        state.put_inode(dir);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`; `ENOTDIR`; `ENOTEMPTY`.
    pub fn rmdir(&self, ctx: &Ctx, parent: Ino, name: &Name) -> Result<()> {
        self.importer.ensure_listed(ctx, parent)?;
        let found = self.index.lock().lookup(parent, name)?;
        let ino = found.ok_or(FsError::NOT_FOUND)?;
        self.importer.ensure_listed(ctx, ino)?;
        self.space
            .with_reserve(|| self.rmdir_once(parent, name, ino))
    }

    fn rmdir_once(&self, parent: Ino, name: &Name, ino: Ino) -> Result<()> {
        let mut state = self.index.lock();
        self.rmdir_in(&mut state, parent, name, ino)?;
        state.finish()?;
        Ok(())
    }

    /// Removes a directory; the caller finishes the operation.
    pub(super) fn rmdir_in(
        &self,
        state: &mut IndexWriter,
        parent: Ino,
        name: &Name,
        ino: Ino,
    ) -> Result<()> {
        if state.lookup(parent, name)? != Some(ino) {
            return Err(FsError::NOT_FOUND);
        }
        let inode = known_dir(state, ino)?;
        if !state.is_empty_dir(ino)? {
            return Err(FsError::NOT_EMPTY);
        }
        let mut dir = known_dir(state, parent)?;
        let now = self.clock.now();
        state.remove_name(parent, name)?;
        drop_link(state, inode, now)?;
        dir.nlink = dir.nlink.saturating_sub(1);
        touch(state, &mut dir, now)?;
        state.put_inode(dir);
        Ok(())
    }
}

/// No program reaches the limit by adding links, but an edited index may contain such a count.
fn one_more_link(count: u32) -> Result<u32> {
    count.checked_add(1).ok_or(FsError::Errno(libc::EMLINK))
}

/// Checked for new names only, since names on the backend may be longer.
pub(super) fn check_length(name: &Name) -> Result<()> {
    match name.is_mountable() {
        true => Ok(()),
        false => Err(FsError::Errno(libc::ENAMETOOLONG)),
    }
}

/// A batch names each directory by its path, and the depth of paths is bounded.
pub(super) fn check_depth(state: &mut IndexWriter, parent: Ino, moved: Option<Ino>) -> Result<()> {
    match state.may_be_in(parent, moved)? {
        true => Ok(()),
        false => Err(FsError::Errno(libc::ENAMETOOLONG)),
    }
}

/// Updates the times of `dir` after a dirent was added or removed.
pub(super) fn touch(state: &mut IndexWriter, dir: &mut Inode, now: Timestamp) -> Result<()> {
    dir.mtime = now;
    dir.ctime = now;
    Ok(state.note_attributes(dir)?)
}

/// Removes one link of an inode. Without links it becomes an orphan, which is removed after its
/// last close.
pub(super) fn drop_link(state: &mut IndexWriter, mut inode: Inode, now: Timestamp) -> Result<()> {
    state.note_unlinked(inode.ino);
    inode.nlink = if inode.is_dir() {
        0
    } else {
        inode.nlink.saturating_sub(1)
    };
    inode.ctime = now;
    if inode.nlink == 0 {
        state.add_orphan(inode.ino);
    } else {
        state.note_attributes(&mut inode)?; // Their catalog entries contain the count.
    }
    state.put_inode(inode);
    Ok(())
}
