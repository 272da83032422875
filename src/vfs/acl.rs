//! POSIX ACLs. The kernel checks them (`FUSE_POSIX_ACL`) and reads them as extended attributes;
//! this file keeps them consistent with the mode and implements inheritance.

use crate::core::acl::Acl;
use crate::core::{FileKind, ForeignText, Ino, acl};
use crate::index::{Flags, IndexWriter, Inode};
use crate::plan::representable;
use crate::vfs::privileges::is_in_group;
use crate::vfs::{Ctx, Fs, FsError, Result, known};

impl Fs {
    /// Sets an ACL. An access ACL also sets the permission bits; it is not stored if the bits
    /// express all of it.
    ///
    /// # Errors
    /// `EINVAL` for a malformed ACL; `EACCES` for a default ACL of a file that is no directory;
    /// `EOPNOTSUPP` for a symbolic link; `ENOSPC` on a full SSD, or if the list of attribute names
    /// would get too long.
    pub fn set_acl(&self, ctx: &Ctx, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
        let new = Acl::parse(value).map_err(|_| FsError::INVALID)?;
        if self.space.is_full() {
            return Err(FsError::NO_SPACE);
        }
        let before = known(&mut self.index.lock(), ino)?;
        // The rule of chmod(2). The group lookup must not run under the index lock.
        let keeps_group_id = before.mode & libc::S_ISGID == 0 || is_in_group(ctx, before.gid);
        let mut state = self.index.lock();
        let mut inode = known(&mut state, ino)?;
        match inode.kind() {
            FileKind::Symlink => return Err(FsError::NOT_SUPPORTED),
            FileKind::Directory => {}
            _ if name == acl::DEFAULT => return Err(FsError::Errno(libc::EACCES)),
            _ => {}
        }
        if let (Some(new), acl::ACCESS) = (&new, name) {
            inode.mode = (inode.mode & !0o777) | new.mode();
            if !keeps_group_id {
                inode.mode &= !libc::S_ISGID;
            }
        }
        let kept = new.filter(|new| name == acl::DEFAULT || !new.is_mode_only());
        if let Some(kept) = &kept {
            crate::vfs::attributes::check_xattr_space(&state, ino, name, &kept.to_bytes())?;
        }
        put(&mut state, &mut inode, name, kept.as_ref())?;
        state.note_attributes(&mut inode)?;
        inode.ctime = self.clock.now();
        state.put_inode(inode);
        if self.space.is_crowded() {
            state.finish()?;
        }
        Ok(())
    }
}

/// Stores an ACL, or removes the stored one.
fn put(state: &mut IndexWriter, inode: &mut Inode, name: &[u8], acl: Option<&Acl>) -> Result<()> {
    if let Some(acl) = acl {
        state.put_xattr(inode.ino, name, Some(&acl.to_bytes()))?;
        inode.flags.set(Flags::XATTRS);
    } else if inode.flags.has(Flags::XATTRS) {
        state.put_xattr(inode.ino, name, None)?;
        if !state.has_xattrs(inode.ino)? {
            inode.flags.clear(Flags::XATTRS);
        }
    }
    Ok(())
}

/// Returns the ACL that an inode has under `name`. A malformed value counts as no ACL.
fn get(state: &mut IndexWriter, inode: &Inode, name: &[u8]) -> Result<Option<Acl>> {
    if !inode.flags.has(Flags::XATTRS) {
        return Ok(None);
    }
    let value = state.xattr(inode.ino, name)?;
    Ok(value.and_then(|value| Acl::parse(&value).ok().flatten()))
}

/// Returns the stored access and default ACL of an inode.
pub(crate) fn both(state: &mut IndexWriter, inode: &Inode) -> Result<[Option<Acl>; 2]> {
    Ok([
        get(state, inode, acl::ACCESS)?,
        get(state, inode, acl::DEFAULT)?,
    ])
}

/// Removes both ACLs.
pub(crate) fn remove_both(state: &mut IndexWriter, inode: &mut Inode) -> Result<()> {
    put(state, inode, acl::ACCESS, None)?;
    put(state, inode, acl::DEFAULT, None)
}

/// Updates the access ACL of `inode`, if it has one, after the mode has been set.
pub(super) fn follow_mode(state: &mut IndexWriter, inode: &mut Inode) -> Result<()> {
    match get(state, inode, acl::ACCESS)? {
        Some(old) => {
            let new = old.with_mode(inode.mode);
            put(state, inode, acl::ACCESS, Some(&new))
        }
        None => Ok(()),
    }
}

/// Sets the permissions of a new inode in `dir`: by the directory's default ACL, otherwise by the
/// caller's umask.
pub(super) fn inherit(
    state: &mut IndexWriter,
    ctx: &Ctx,
    dir: &Inode,
    inode: &mut Inode,
) -> Result<()> {
    if inode.kind() == FileKind::Symlink {
        return Ok(());
    }
    let Some(default) = get(state, dir, acl::DEFAULT)? else {
        inode.mode &= !(ctx.umask & 0o777);
        return Ok(());
    };
    let (access, permissions) = default.inherited(inode.mode);
    inode.mode = (inode.mode & !0o777) | permissions;
    put(state, inode, acl::ACCESS, access.as_ref())?;
    if inode.is_dir() {
        put(state, inode, acl::DEFAULT, Some(&default))?;
    }
    Ok(())
}

/// Imports an extended attribute from the drive or its catalog, if attributes of this name are
/// kept. A malformed ACL is left out, because the kernel refuses every access to a file with an ACL
/// that it cannot read. An access ACL that contradicts the mode is adapted to the mode.
pub(crate) fn take(
    state: &mut IndexWriter,
    inode: &mut Inode,
    name: &[u8],
    value: &[u8],
) -> Result<()> {
    if !representable::is_carried(name) {
        return Ok(());
    }
    if !state.xattr_fits(inode.ino, name, value)? {
        let attribute = String::from_utf8_lossy(name);
        tracing::warn!(ino = inode.ino.0, %attribute, "left out: the attributes of one file have more than 1 MiB");
        return Ok(());
    }
    if !acl::is_acl(name) {
        state.put_xattr(inode.ino, name, Some(value))?;
        inode.flags.set(Flags::XATTRS);
        return Ok(());
    }
    let has_place = match inode.kind() {
        FileKind::Symlink => false,
        FileKind::Directory => true,
        _ => name == acl::ACCESS,
    };
    let found = match Acl::parse(value) {
        Ok(found) => found.filter(|_| has_place),
        Err(error) => {
            let attribute = name.escaped();
            tracing::warn!(ino = inode.ino.0, %attribute, %error, "left out: not a valid ACL");
            None
        }
    };
    let Some(mut found) = found else {
        return Ok(());
    };
    if name == acl::ACCESS {
        if found.is_mode_only() {
            return Ok(());
        }
        found = found.with_mode(inode.mode);
    }
    put(state, inode, name, Some(&found))
}
