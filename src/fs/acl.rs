//! POSIX ACLs. The kernel checks them (`FUSE_POSIX_ACL`) and reads them as extended attributes;
//! here they are kept in step with the mode, and inherited.

use super::privileges::is_in_group;
use super::{Ctx, Fs, FsError, Result};
use crate::base::{FileKind, ForeignText, Ino};
use crate::index::{Flags, Inode, State};
use crate::rules::acl::{self, Acl};
use crate::rules::given;

impl Fs {
    /// Sets an ACL. An access ACL sets the permission bits as well, and is not kept if these say
    /// all of it.
    ///
    /// # Errors
    /// `EINVAL` for what is no ACL; `EACCES` for a default ACL of what is no directory;
    /// `EOPNOTSUPP` for a symbolic link; `ENOSPC` on a full SSD, or if the list of names of
    /// attributes would get too long.
    pub fn set_acl(&self, ctx: &Ctx, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
        let new = Acl::parse(value).map_err(|_| FsError::INVALID)?;
        if self.is_full() {
            return Err(FsError::NO_SPACE);
        }
        let before = self.known(&mut self.index.lock(), ino)?;
        // As at chmod(2). Looked up with nothing locked.
        let keeps_group_id = before.mode & libc::S_ISGID == 0 || is_in_group(ctx, before.gid);
        let mut state = self.index.lock();
        let mut inode = self.known(&mut state, ino)?;
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
            super::attr::check_room(&state, ino, name, &kept.to_bytes())?;
        }
        put(&mut state, &mut inode, name, kept.as_ref())?;
        state.note_attributes(&mut inode)?;
        inode.ctime = self.clock.now();
        state.put_inode(inode);
        if self.is_crowded() {
            state.commit()?;
        }
        Ok(())
    }
}

/// Keeps an ACL, or none.
fn put(state: &mut State, inode: &mut Inode, name: &[u8], acl: Option<&Acl>) -> Result<()> {
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

/// The ACL that an inode has under `name`. What is there and is none is as good as none.
fn get(state: &mut State, inode: &Inode, name: &[u8]) -> Result<Option<Acl>> {
    if !inode.flags.has(Flags::XATTRS) {
        return Ok(None);
    }
    let value = state.xattr(inode.ino, name)?;
    Ok(value.and_then(|value| Acl::parse(&value).ok().flatten()))
}

/// Both ACLs of an inode, as they are kept.
pub(super) fn both(state: &mut State, inode: &Inode) -> Result<[Option<Acl>; 2]> {
    Ok([
        get(state, inode, acl::ACCESS)?,
        get(state, inode, acl::DEFAULT)?,
    ])
}

/// Removes both ACLs.
pub(super) fn remove_both(state: &mut State, inode: &mut Inode) -> Result<()> {
    put(state, inode, acl::ACCESS, None)?;
    put(state, inode, acl::DEFAULT, None)
}

/// The mode of `inode` has been set: its access ACL, if it has one, says the same from now on.
pub(super) fn follow_mode(state: &mut State, inode: &mut Inode) -> Result<()> {
    match get(state, inode, acl::ACCESS)? {
        Some(old) => {
            let new = old.with_mode(inode.mode);
            put(state, inode, acl::ACCESS, Some(&new))
        }
        None => Ok(()),
    }
}

/// Gives a new inode in `dir` the permissions that are left to it: by the directory's default ACL,
/// else by the caller's umask.
pub(super) fn inherit(state: &mut State, ctx: &Ctx, dir: &Inode, inode: &mut Inode) -> Result<()> {
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

/// Takes in an extended attribute of what was found on the drive or in its catalog, if it is one
/// that is carried. The kernel refuses every access to what has an ACL that it cannot read, so one
/// that is none is left out; an access ACL that says something else than the mode is brought in
/// step with it.
pub(super) fn take(state: &mut State, inode: &mut Inode, name: &[u8], value: &[u8]) -> Result<()> {
    if !given::is_carried(name) {
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
            tracing::warn!(ino = inode.ino.0, %attribute, %error, "left out");
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
