//! Operations on names: look up, make, link, move, remove.
//!
//! Each changes the index in one transaction that is committed before it is answered.

use super::files::ObjectFile;
use super::open::Content;
use super::{Ctx, Fs, FsError, OpenMode, Result};
use crate::base::{FileKind, Ino, Name, Timestamp};
use crate::index::{Flags, Inode, State};
use crate::rules::plan::NameKey;

/// How a rename treats what stands at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It is an error.
    NoReplace,
    /// It takes the source's name.
    Exchange,
}

/// A node to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// File type and permission bits, before the umask.
    pub mode: u32,
    /// Device number, for a device.
    pub rdev: u32,
    /// Where it points, for a symbolic link.
    pub target: Option<Box<[u8]>>,
}

impl Fs {
    /// What stands under `name` in `parent`; `None` for nothing.
    ///
    /// # Errors
    /// If `parent` cannot be listed.
    pub fn lookup(&self, ctx: &Ctx, parent: Ino, name: &Name) -> Result<Option<Inode>> {
        self.ensure_listed(ctx, parent)?;
        let inode = {
            let mut state = self.index.lock();
            match state.lookup(parent, name)? {
                Some(ino) => state.expect_inode(ino)?,
                None => return Ok(None),
            }
        };
        self.with_current_size(inode).map(Some)
    }

    /// Makes a node other than an open file: file, directory, link, pipe, socket, device.
    ///
    /// # Errors
    /// `EEXIST`; `ENAMETOOLONG`.
    pub fn make_node(&self, ctx: &Ctx, parent: Ino, name: &Name, node: NewNode) -> Result<Inode> {
        self.ensure_listed(ctx, parent)?;
        self.with_room(ctx, || {
            let mut state = self.index.lock();
            let inode = self.insert_node(&mut state, ctx, parent, name, node.clone())?;
            state.commit()?;
            Ok(inode)
        })
    }

    /// Makes a regular file, or takes the one that is there, and opens it.
    ///
    /// # Errors
    /// `EEXIST` if `exclusive` and it is there; as [`Fs::make_node`] and [`Fs::open`].
    pub fn create(
        &self,
        ctx: &Ctx,
        parent: Ino,
        name: &Name,
        permissions: u32,
        mode: OpenMode,
        exclusive: bool,
    ) -> Result<(Inode, u64)> {
        self.ensure_listed(ctx, parent)?;
        let create = || self.create_once(ctx, parent, name, permissions, mode, exclusive);
        if self.is_full() {
            // What is there can be opened all the same.
            let is_there = self.index.lock().lookup(parent, name)?.is_some();
            if is_there {
                return create();
            }
        }
        self.with_room(ctx, create)
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
                let inode = self.known(&mut self.index.lock(), ino)?;
                return Ok((self.with_current_size(inode)?, handle));
            }
            state.new_object()?
        };
        // Whoever makes a file to write it gets its object at once: one commit then serves for the name and the first write.
        let file = match mode.write {
            true => Some(self.files.create(object)?),
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
        let open = self.opens.acquire(inode.ino);
        if let Some(file) = file {
            self.note_unsynced(&file);
            // Nobody else knows the inode yet, so this cannot wait.
            *open.content.write() = Content {
                object: Some(file),
                prepared: true,
                writers: 1,
            };
        }
        Ok((inode, self.insert_handle(ctx, open, mode, true)))
    }

    /// Makes the row of a new file, committed; with an object, as one that is being written.
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
            inode.object = Some(file.object);
            inode.flags.set(Flags::WRITING);
            state.put_inode(inode.clone());
            // Under the same lock: no cut may see the new file as empty and closed.
            state.start_writing(inode.ino);
        }
        state
            .commit()
            .inspect_err(|_| state.end_writing(inode.ino))?;
        Ok(inode)
    }

    fn insert_node(
        &self,
        state: &mut State,
        ctx: &Ctx,
        parent: Ino,
        name: &Name,
        node: NewNode,
    ) -> Result<Inode> {
        let kind = FileKind::from_mode(node.mode).ok_or(FsError::INVALID)?;
        let mut dir = self.known_dir(state, parent)?;
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
            FileKind::Regular => inode.flags.set(Flags::DATA_DIRTY),
            _ => {}
        }
        inode.size = node.target.as_ref().map_or(0, |target| target.len() as u64);
        inode.target = node.target;
        super::acl::inherit(state, ctx, &dir, &mut inode)?;
        state.put_inode(inode.clone());
        state.add_name(parent, name, &inode)?;
        touch(state, &mut dir, now)?;
        state.put_inode(dir);
        Ok(inode)
    }

    /// What an inode number stands for that was kept outside of the mount, as a file handle of NFS
    /// is.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode, or nothing in the mount is called by it any more.
    pub fn lookup_number(&self, ino: Ino) -> Result<Inode> {
        let inode = self.known(&mut self.index.lock(), ino)?;
        if inode.nlink == 0 {
            return Err(FsError::STALE);
        }
        self.with_current_size(inode)
    }

    /// The directory that the directory `ino` is in; of the root, itself.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode or it has been removed; `ENOTDIR`.
    pub fn lookup_parent(&self, ino: Ino) -> Result<Inode> {
        let mut state = self.index.lock();
        self.known_dir(&mut state, ino)?;
        if ino == Ino::ROOT {
            return self.known(&mut state, ino);
        }
        let (parent, _) = state.a_name_of(ino)?.ok_or(FsError::STALE)?;
        self.known(&mut state, parent)
    }

    /// Gives `ino` one more name.
    ///
    /// # Errors
    /// `EEXIST`; `EPERM` for a directory.
    pub fn link(&self, ctx: &Ctx, ino: Ino, parent: Ino, name: &Name) -> Result<Inode> {
        self.ensure_listed(ctx, parent)?;
        let inode = self.with_room(ctx, || self.link_once(ino, parent, name))?;
        self.with_current_size(inode)
    }

    fn link_once(&self, ino: Ino, parent: Ino, name: &Name) -> Result<Inode> {
        let mut state = self.index.lock();
        let mut dir = self.known_dir(&mut state, parent)?;
        let mut inode = self.known(&mut state, ino)?;
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
        state.note_attributes(&mut inode)?;
        inode.ctime = now;
        touch(&mut state, &mut dir, now)?;
        state.add_name(parent, name, &inode)?;
        state.put_inode(inode.clone());
        state.put_inode(dir);
        state.commit()?;
        Ok(inode)
    }

    /// Removes a name of what is no directory.
    ///
    /// # Errors
    /// `ENOENT`; `EISDIR`.
    pub fn unlink(&self, ctx: &Ctx, parent: Ino, name: &Name) -> Result<()> {
        self.ensure_listed(ctx, parent)?;
        self.with_reserve(|| self.unlink_once(parent, name))
    }

    fn unlink_once(&self, parent: Ino, name: &Name) -> Result<()> {
        let mut state = self.index.lock();
        let ino = state.lookup(parent, name)?.ok_or(FsError::NOT_FOUND)?;
        let inode = state.expect_inode(ino)?;
        if inode.is_dir() {
            return Err(FsError::IS_DIR);
        }
        let mut dir = self.known_dir(&mut state, parent)?;
        let now = self.clock.now();
        state.remove_name(parent, name)?;
        drop_link(&mut state, inode, now)?;
        touch(&mut state, &mut dir, now)?;
        state.put_inode(dir);
        state.commit()?;
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`; `ENOTDIR`; `ENOTEMPTY`.
    pub fn rmdir(&self, ctx: &Ctx, parent: Ino, name: &Name) -> Result<()> {
        self.ensure_listed(ctx, parent)?;
        let found = self.index.lock().lookup(parent, name)?;
        let ino = found.ok_or(FsError::NOT_FOUND)?;
        self.ensure_listed(ctx, ino)?;
        self.with_reserve(|| self.rmdir_once(parent, name, ino))
    }

    fn rmdir_once(&self, parent: Ino, name: &Name, ino: Ino) -> Result<()> {
        let mut state = self.index.lock();
        if state.lookup(parent, name)? != Some(ino) {
            return Err(FsError::NOT_FOUND);
        }
        let inode = self.known_dir(&mut state, ino)?;
        if !state.is_empty_dir(ino)? {
            return Err(FsError::NOT_EMPTY);
        }
        let mut dir = self.known_dir(&mut state, parent)?;
        let now = self.clock.now();
        state.remove_name(parent, name)?;
        drop_link(&mut state, inode, now)?;
        dir.nlink = dir.nlink.saturating_sub(1);
        touch(&mut state, &mut dir, now)?;
        state.put_inode(dir);
        state.commit()?;
        Ok(())
    }

    /// Moves a name.
    ///
    /// # Errors
    /// As rename(2).
    pub fn rename(
        &self,
        ctx: &Ctx,
        from: (Ino, &Name),
        to: (Ino, &Name),
        mode: RenameMode,
    ) -> Result<()> {
        self.ensure_listed(ctx, from.0)?;
        self.ensure_listed(ctx, to.0)?;
        let replaced = self.index.lock().lookup(to.0, to.1)?;
        if let (Some(ino), RenameMode::Replace) = (replaced, mode) {
            self.ensure_listed(ctx, ino)?;
        }
        let moved = self.with_reserve(|| self.rename_once(from, to, mode))?;
        if mode == RenameMode::Replace {
            self.start_writeback(moved);
        }
        Ok(())
    }

    /// Gives the inode that was moved.
    fn rename_once(&self, from: (Ino, &Name), to: (Ino, &Name), mode: RenameMode) -> Result<Ino> {
        let mut state = self.index.lock();
        let moved = state.lookup(from.0, from.1)?.ok_or(FsError::NOT_FOUND)?;
        let moved = state.expect_inode(moved)?;
        let moved_ino = moved.ino;
        let replaced = match state.lookup(to.0, to.1)? {
            Some(ino) => Some(state.expect_inode(ino)?),
            None => None,
        };
        let now = self.clock.now();
        match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::EXISTS),
            (RenameMode::Exchange, None) => return Err(FsError::NOT_FOUND),
            (RenameMode::Exchange, Some(other)) => {
                self.exchange(&mut state, (from, moved), (to, other), now)?;
            }
            (_, Some(other)) if other.ino == moved.ino => return Ok(moved_ino),
            (_, replaced) => self.move_name(&mut state, from, to, moved, replaced, now)?,
        }
        state.commit()?;
        Ok(moved_ino)
    }

    fn move_name(
        &self,
        state: &mut State,
        from: (Ino, &Name),
        to: (Ino, &Name),
        mut moved: Inode,
        replaced: Option<Inode>,
        now: Timestamp,
    ) -> Result<()> {
        if let Some(other) = &replaced {
            match (moved.is_dir(), other.is_dir()) {
                (true, false) => return Err(FsError::NOT_DIR),
                (false, true) => return Err(FsError::IS_DIR),
                (true, true) if !state.is_empty_dir(other.ino)? => return Err(FsError::NOT_EMPTY),
                _ => {}
            }
        } else {
            check_length(to.1)?;
        }
        if self.known_dir(state, to.0)?.nlink == 0 {
            return Err(FsError::NOT_FOUND);
        }
        if moved.is_dir() && from.0 != to.0 {
            check_depth(state, to.0, Some(moved.ino))?;
        }
        // Taken away first: what only changes its case is not in its own way.
        state.remove_name(from.0, from.1)?;
        moved.ctime = now;
        if let Some(other) = replaced {
            self.note_replaced(state, to, &moved, &other)?;
            let stored = state.remove_name(to.0, to.1)?;
            if other.is_dir() {
                self.add_links(state, to.0, -1)?;
            }
            drop_link(state, other, now)?;
            state.add_name_as(to.0, to.1, &stored, &moved)?;
        } else {
            state.add_name(to.0, to.1, &moved)?;
        }
        if moved.is_dir() && from.0 != to.0 {
            self.add_links(state, from.0, -1)?;
            self.add_links(state, to.0, 1)?;
        }
        state.put_inode(moved);
        self.touch_dir(state, from.0, now)?;
        self.touch_dir(state, to.0, now)
    }

    /// Should the power go before the bytes of `moved` are durable, the name is to have `other` again.
    fn note_replaced(
        &self,
        state: &mut State,
        to: (Ino, &Name),
        moved: &Inode,
        other: &Inode,
    ) -> Result<()> {
        let files = [moved, other].map(Inode::kind) == [FileKind::Regular; 2];
        let open = moved.flags.has(Flags::WRITING);
        if !files
            || !(open
                || moved
                    .object
                    .is_some_and(|object| self.may_be_unsynced(object)))
        {
            return Ok(());
        }
        let key = NameKey {
            parent: to.0,
            name: to.1.clone(),
        };
        Ok(state.note_replaced(Some(&key), (moved.ino, moved.data_seq), other)?)
    }

    fn exchange(
        &self,
        state: &mut State,
        (at, mut one): ((Ino, &Name), Inode),
        (there, mut other): ((Ino, &Name), Inode),
        now: Timestamp,
    ) -> Result<()> {
        if one.ino == other.ino {
            return Ok(());
        }
        for (inode, to) in [(&one, there.0), (&other, at.0)] {
            if inode.is_dir() {
                check_depth(state, to, Some(inode.ino))?;
            }
        }
        let here = state.remove_name(at.0, at.1)?;
        let beyond = state.remove_name(there.0, there.1)?;
        state.add_name_as(at.0, at.1, &here, &other)?;
        state.add_name_as(there.0, there.1, &beyond, &one)?;
        if at.0 != there.0 && one.is_dir() != other.is_dir() {
            let (loses, gains) = if one.is_dir() {
                (at.0, there.0)
            } else {
                (there.0, at.0)
            };
            self.add_links(state, loses, -1)?;
            self.add_links(state, gains, 1)?;
        }
        one.ctime = now;
        other.ctime = now;
        state.put_inode(one);
        state.put_inode(other);
        self.touch_dir(state, at.0, now)?;
        self.touch_dir(state, there.0, now)
    }

    fn add_links(&self, state: &mut State, dir: Ino, change: i32) -> Result<()> {
        let mut dir = self.known_dir(state, dir)?;
        dir.nlink = dir.nlink.saturating_add_signed(change);
        state.put_inode(dir);
        Ok(())
    }

    fn touch_dir(&self, state: &mut State, dir: Ino, now: Timestamp) -> Result<()> {
        let mut dir = self.known_dir(state, dir)?;
        touch(state, &mut dir, now)?;
        state.put_inode(dir);
        Ok(())
    }

    /// Where a symbolic link points.
    ///
    /// # Errors
    /// `EINVAL` if it is none.
    pub fn readlink(&self, ino: Ino) -> Result<Box<[u8]>> {
        self.known(&mut self.index.lock(), ino)?
            .target
            .ok_or(FsError::INVALID)
    }
}

/// No program gets there by counting, but the index of a cache that was edited may say so.
fn one_more_link(count: u32) -> Result<u32> {
    count.checked_add(1).ok_or(FsError::Errno(libc::EMLINK))
}

/// Names of the backend may be longer.
fn check_length(name: &Name) -> Result<()> {
    match name.is_mountable() {
        true => Ok(()),
        false => Err(FsError::Errno(libc::ENAMETOOLONG)),
    }
}

/// A batch names each directory by its path, and there is a bound on how deep these are.
fn check_depth(state: &mut State, parent: Ino, moved: Option<Ino>) -> Result<()> {
    match state.may_be_in(parent, moved)? {
        true => Ok(()),
        false => Err(FsError::Errno(libc::ENAMETOOLONG)),
    }
}

/// A name has come or gone in `dir`.
fn touch(state: &mut State, dir: &mut Inode, now: Timestamp) -> Result<()> {
    dir.mtime = now;
    dir.ctime = now;
    Ok(state.note_attributes(dir)?)
}

/// Takes one name off an inode. The last one leaves it an orphan, which goes when nobody uses it any more.
fn drop_link(state: &mut State, mut inode: Inode, now: Timestamp) -> Result<()> {
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
        state.note_attributes(&mut inode)?; // The other names tell how many there are.
    }
    state.put_inode(inode);
    Ok(())
}
