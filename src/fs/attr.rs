//! Attributes: size, mode, owner, times, extended attributes, and the space of the whole.

use std::sync::atomic::Ordering;

use super::{Ctx, Fs, FsError, Result, privileges};
use crate::base::{FileKind, Ino, Timestamp};
use crate::index::{Flags, Inode, State};
use crate::rules::acl;
use crate::sys;

/// Name of the root's virtual attribute that tells where the cache is. Not listed, not writable.
const CACHE_ATTRIBUTE: &[u8] = b"user.ferryfs.cache";

/// How often the row of a file is looked at again while somebody else is about to settle it.
const SETTLING: usize = 1000;

/// A new time for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This one.
    At(Timestamp),
}

/// The attributes to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<SetTime>,
    /// Time of last change of bytes.
    pub mtime: Option<SetTime>,
}

/// How setting an extended attribute treats one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetXattr {
    /// Make it or replace it.
    Any,
    /// It must not be there.
    Create,
    /// It must be there.
    Replace,
}

/// Space, in bytes, and numbers of inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// All of the backend.
    pub total: u64,
    /// What may still be written.
    pub available: u64,
}

impl Fs {
    /// The attributes of `ino`.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode.
    pub fn getattr(&self, ino: Ino) -> Result<Inode> {
        let inode = self.known(&mut self.index.lock(), ino)?;
        self.with_current_size(inode)
    }

    /// While a file is being written, its object knows size and time better than its row. The kernel believes what it is told
    /// here, so a row that was read before the file was settled must not pass.
    pub(super) fn with_current_size(&self, mut inode: Inode) -> Result<Inode> {
        for _ in 0..SETTLING {
            if !inode.flags.has(Flags::WRITING) {
                return Ok(inode);
            }
            if let Some(open) = self.opens.find(inode.ino) {
                // Whoever holds this lock while the row says WRITING holds it for a moment only: fetches and copies come before.
                let content = open.content.read();
                if let (true, Some(object)) = (content.prepared, &content.object) {
                    super::content::measure(&*object.file()?)?.apply(&mut inode);
                    return Ok(inode);
                }
            }
            // It is just being made, or has just been settled.
            std::thread::yield_now();
            inode = self.known(&mut self.index.lock(), inode.ino)?;
        }
        // Settling it has failed, or has been undone. Its object still knows.
        if let Some(object) = inode.object {
            let file = self.store.open_object(object)?;
            super::content::measure(&file)?.apply(&mut inode);
        }
        Ok(inode)
    }

    /// Changes attributes and gives the new ones.
    ///
    /// # Errors
    /// As [`Fs::write`] for a change of length.
    pub fn setattr(&self, ctx: &Ctx, ino: Ino, set: &SetAttr) -> Result<Inode> {
        if let Some(size) = set.size {
            let kind = self.known(&mut self.index.lock(), ino)?.kind();
            match kind {
                FileKind::Regular => {
                    self.drop_privileges_of_others(ctx, ino)?;
                    self.truncate(ctx, ino, size)?;
                }
                FileKind::Directory => return Err(FsError::IS_DIR),
                _ => return Err(FsError::INVALID),
            }
        }
        let now = self.clock.now();
        let at = |time| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        if let Some(mtime) = set.mtime {
            self.set_object_time(ctx, ino, at(mtime))?;
        }
        let inode = self.with_reserve(|| self.set_row(ctx, ino, set, now))?;
        self.with_current_size(inode)
    }

    /// Changes the row. Attributes are committed by the next tick; while the SSD is nearly full at once, so that whoever sets
    /// them is told if that fails, and nothing that was answered has to be undone.
    fn set_row(&self, ctx: &Ctx, ino: Ino, set: &SetAttr, now: Timestamp) -> Result<Inode> {
        let at = |time| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let before = self.known(&mut self.index.lock(), ino)?;
        let is_nothing = *set == SetAttr::default();
        let strips = match is_nothing {
            true => self.is_stripped_by_nothing(ctx, &before),
            false => set.uid.is_some() || set.gid.is_some(),
        };
        // Looked up with nothing locked.
        let group = self.set_group_id(ctx, &before);
        let mut state = self.index.lock();
        let mut inode = self.known(&mut state, ino)?;
        if is_nothing && !strips {
            return Ok(inode);
        }
        if let Some(mode) = set.mode {
            inode.mode = (inode.mode & libc::S_IFMT) | (mode & 0o7777);
            super::acl::follow_mode(&mut state, &mut inode)?;
        }
        let mut told_of = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
        if strips && !inode.is_dir() {
            told_of |= privileges::strip(&mut state, &mut inode, group)?;
        }
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        inode.atime = set.atime.map_or(inode.atime, at);
        if let Some(mtime) = set.mtime {
            inode.mtime = at(mtime);
            if inode.kind() == FileKind::Regular {
                inode.flags.set(Flags::TIME_DIRTY);
                inode.time_seq = state.next_seq()?;
                state.mark_inode(&inode)?;
            }
        }
        if told_of || (set.mtime.is_some() && inode.kind() != FileKind::Regular) {
            state.note_attributes(&mut inode)?;
        }
        inode.ctime = now;
        state.put_inode(inode.clone());
        if self.is_crowded() {
            state.commit()?;
        }
        Ok(inode)
    }

    /// A file being written takes its time from its object, so it is set there too.
    fn set_object_time(&self, ctx: &Ctx, ino: Ino, mtime: Timestamp) -> Result<()> {
        if let Some(open) = self.opens.find(ino) {
            let content = self.share_content(ctx, &open)?;
            if content.prepared
                && let Some(object) = &content.object
            {
                sys::time::set_modified_fd(&**object.file()?, mtime)?;
                object.changed.store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is none of that name; `EOPNOTSUPP` for a name space that is not kept.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if ino == Ino::ROOT && name == CACHE_ATTRIBUTE {
            return Ok(self.cache_path.clone());
        }
        check_xattr_name(ino, name)?;
        let mut state = self.index.lock();
        if !self.known(&mut state, ino)?.flags.has(Flags::XATTRS) {
            return Err(FsError::Errno(libc::ENODATA));
        }
        state.xattr(ino, name)?.ok_or(FsError::Errno(libc::ENODATA))
    }

    /// The names of the extended attributes, each ended by a NUL. Those in `trusted.` are for the superuser alone, as on any file
    /// system: the kernel refuses everybody else their values, and their names would have copying programs fail.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode.
    pub fn listxattr(&self, ctx: &Ctx, ino: Ino) -> Result<Vec<u8>> {
        let mut state = self.index.lock();
        if !self.known(&mut state, ino)?.flags.has(Flags::XATTRS) {
            return Ok(Vec::new());
        }
        let mut list = Vec::new();
        for name in state.xattr_names(ino)? {
            if ctx.uid != 0 && name.starts_with(b"trusted.") {
                continue;
            }
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `EEXIST` or `ENODATA` as `how` asks; `ENOSPC` on a full SSD, or if the list of names or the
    /// attributes together would get too long; `EOPNOTSUPP` for a name space that is not kept, and for POSIX ACLs, which
    /// [`Fs::set_acl`] sets; `EINVAL` for a name space with no name in it.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        check_xattr_name(ino, name)?;
        if acl::is_acl(name) {
            return Err(FsError::NOT_SUPPORTED);
        }
        if self.is_full() {
            return Err(FsError::NO_SPACE);
        }
        let mut state = self.index.lock();
        let mut inode = self.known(&mut state, ino)?;
        let exists = inode.flags.has(Flags::XATTRS) && state.xattr_length(ino, name)?.is_some();
        match how {
            SetXattr::Create if exists => return Err(FsError::EXISTS),
            SetXattr::Replace if !exists => return Err(FsError::Errno(libc::ENODATA)),
            _ => {}
        }
        check_room(&state, ino, name, value)?;
        state.put_xattr(ino, name, Some(value))?;
        inode.flags.set(Flags::XATTRS);
        state.note_attributes(&mut inode)?;
        inode.ctime = self.clock.now();
        state.put_inode(inode);
        if self.is_crowded() {
            state.commit()?;
        }
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is none of that name, unless it is an ACL: then the permission bits are
    /// all there is to say.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        check_xattr_name(ino, name)?;
        let mut state = self.index.lock();
        let mut inode = self.known(&mut state, ino)?;
        if !inode.flags.has(Flags::XATTRS) || state.xattr_length(ino, name)?.is_none() {
            if acl::is_acl(name) {
                return Ok(());
            }
            return Err(FsError::Errno(libc::ENODATA));
        }
        state.put_xattr(ino, name, None)?;
        if !state.has_xattrs(ino)? {
            inode.flags.clear(Flags::XATTRS);
        }
        state.note_attributes(&mut inode)?;
        inode.ctime = self.clock.now();
        state.put_inode(inode);
        Ok(())
    }

    /// The backend's space, less what it will take for what waits. What the SSD has free does not bound it: clean copies give way.
    pub fn statfs(&self) -> StatFs {
        let space = self.drive.space();
        StatFs {
            total: space.total,
            available: space.available.saturating_sub(self.needed_on_drive()),
        }
    }
}

/// Whether an attribute can be had beside the others: the kernel passes no longer list of names on,
/// and a batch has to carry all attributes of a file at once.
pub(super) fn check_room(state: &State, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
    match state.xattr_fits(ino, name, value)? {
        true => Ok(()),
        false => Err(FsError::NO_SPACE),
    }
}

fn check_xattr_name(ino: Ino, name: &[u8]) -> Result<()> {
    if ino == Ino::ROOT && name == CACHE_ATTRIBUTE {
        return Err(FsError::Errno(libc::EPERM));
    }
    let kept: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    if kept.contains(&name) {
        Err(FsError::INVALID)
    } else if acl::is_acl(name) || kept.iter().any(|prefix| name.starts_with(prefix)) {
        Ok(())
    } else {
        Err(FsError::NOT_SUPPORTED)
    }
}
