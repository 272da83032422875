//! Attributes: size, mode, owner, times, and extended attributes.

use crate::core::{FileKind, Ino, Timestamp, acl};
use crate::index::{Flags, IndexWriter, Inode};
use crate::vfs::{Ctx, Fs, FsError, Result, known, privileges};

/// Name of the root's virtual attribute with the path of the cache. Not listed, not writable.
const CACHE_ATTRIBUTE: &[u8] = b"user.ferryfs.cache";

/// A new time for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The current time.
    Now,
    /// The given time.
    At(Timestamp),
}

/// The attributes to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// User ID.
    pub uid: Option<u32>,
    /// Group ID.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Time of the last access.
    pub atime: Option<SetTime>,
    /// Time of the last change of the contents.
    pub mtime: Option<SetTime>,
}

/// How setting an extended attribute treats an existing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetXattr {
    /// Create or replace.
    Any,
    /// Create; fail if it exists.
    Create,
    /// Replace; fail if it does not exist.
    Replace,
}

impl Fs {
    /// Returns the attributes of `ino`.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode.
    pub fn getattr(&self, ino: Ino) -> Result<Inode> {
        let inode = known(&mut self.index.lock(), ino)?;
        self.open_files.with_current_size(inode)
    }

    /// Changes attributes and returns the new ones.
    ///
    /// # Errors
    /// As [`Fs::write`] for a change of length.
    pub fn setattr(&self, ctx: &Ctx, ino: Ino, set: &SetAttr) -> Result<Inode> {
        if let Some(size) = set.size {
            let kind = known(&mut self.index.lock(), ino)?.kind();
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
            self.open_files.set_object_time(ctx, ino, at(mtime))?;
        }
        let inode = self
            .space
            .with_reserve(|| self.set_row(ctx, ino, set, now))?;
        self.open_files.with_current_size(inode)
    }

    /// Changes the row. The next tick commits attributes. While the SSD is nearly full they are
    /// committed at once, so that the caller gets the error and no acknowledged change is rolled
    /// back.
    fn set_row(&self, ctx: &Ctx, ino: Ino, set: &SetAttr, now: Timestamp) -> Result<Inode> {
        let at = |time| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let before = known(&mut self.index.lock(), ino)?;
        let is_nothing = *set == SetAttr::default();
        let strips = match is_nothing {
            true => self.is_stripped_by_nothing(ctx, &before),
            false => set.uid.is_some() || set.gid.is_some(),
        };
        // The group lookup must not run under the index lock.
        let group = self.set_group_id(ctx, &before);
        let mut state = self.index.lock();
        let mut inode = known(&mut state, ino)?;
        if is_nothing && !strips {
            return Ok(inode);
        }
        if let Some(mode) = set.mode {
            inode.mode = (inode.mode & libc::S_IFMT) | (mode & 0o7777);
            crate::vfs::acl::follow_mode(&mut state, &mut inode)?;
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
        if self.space.is_crowded() {
            state.finish()?;
        }
        Ok(inode)
    }

    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is no attribute of that name; `EOPNOTSUPP` for an unsupported name space.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if ino == Ino::ROOT && name == CACHE_ATTRIBUTE {
            return Ok(self.cache_path.clone());
        }
        check_xattr_name(ino, name)?;
        let mut state = self.index.lock();
        if !known(&mut state, ino)?.flags.has(Flags::XATTRS) {
            return Err(FsError::Errno(libc::ENODATA));
        }
        state.xattr(ino, name)?.ok_or(FsError::Errno(libc::ENODATA))
    }

    /// Returns the names of the extended attributes, each terminated by a NUL. As on any file
    /// system, only the superuser sees names in `trusted.`: the kernel refuses other users the
    /// values, and programs that copy files would fail on the names.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode.
    pub fn listxattr(&self, ctx: &Ctx, ino: Ino) -> Result<Vec<u8>> {
        let mut state = self.index.lock();
        if !known(&mut state, ino)?.flags.has(Flags::XATTRS) {
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
    /// `EEXIST` or `ENODATA` as `how` asks; `ENOSPC` on a full SSD, or if the list of names or all
    /// attributes together would get too long; `EOPNOTSUPP` for an unsupported name space, and for
    /// POSIX ACLs, which [`Fs::set_acl`] sets; `EINVAL` for a bare name space prefix.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        check_xattr_name(ino, name)?;
        if acl::is_acl(name) {
            return Err(FsError::NOT_SUPPORTED);
        }
        if self.space.is_full() {
            return Err(FsError::NO_SPACE);
        }
        let mut state = self.index.lock();
        let mut inode = known(&mut state, ino)?;
        let exists = inode.flags.has(Flags::XATTRS) && state.xattr_length(ino, name)?.is_some();
        match how {
            SetXattr::Create if exists => return Err(FsError::EXISTS),
            SetXattr::Replace if !exists => return Err(FsError::Errno(libc::ENODATA)),
            _ => {}
        }
        check_xattr_space(&state, ino, name, value)?;
        state.put_xattr(ino, name, Some(value))?;
        inode.flags.set(Flags::XATTRS);
        state.note_attributes(&mut inode)?;
        inode.ctime = self.clock.now();
        state.put_inode(inode);
        if self.space.is_crowded() {
            state.finish()?;
        }
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is no attribute of that name. A missing ACL is no error: the permission
    /// bits express all of it.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        check_xattr_name(ino, name)?;
        let mut state = self.index.lock();
        let mut inode = known(&mut state, ino)?;
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
}

/// Checks that an attribute fits beside the others: the kernel limits the list of names, and a
/// batch writes all attributes of a file at once.
pub(super) fn check_xattr_space(
    state: &IndexWriter,
    ino: Ino,
    name: &[u8],
    value: &[u8],
) -> Result<()> {
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
