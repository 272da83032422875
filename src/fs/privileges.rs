//! Privileges that a file gives to who runs it: the set-user-id bit, the set-group-id bit, and file
//! capabilities. Who changes the file takes them away.
//!
//! The kernel leaves that to the daemon (`FUSE_HANDLE_KILLPRIV_V2`), because it would otherwise ask
//! for an attribute before every write. It goes by the mode that it was told last, so it has to
//! learn that a bit is gone before the change is answered. Three things see to that:
//!
//! - Before a write the kernel announces to a file with such bits a change of nothing. If the
//!   caller has the file open for writing, the bits go then, and the answer carries the new mode.
//! - The kernel is told at once that its attributes are stale, wherever bits go by a request whose
//!   answer carries no mode.
//! - Attributes of files with such bits are given for no time at all (`kernel::convert::ttl`), so
//!   that each check and each execution asks for them.

use super::{Ctx, Fs, Result};
use crate::base::Ino;
use crate::index::{Flags, Inode, State};
use crate::sys;

/// Tells the kernel that the attributes of an inode are stale, before it returns.
pub(super) type Tell = Box<dyn Fn(Ino) + Send + Sync>;

/// The attribute with a program's capabilities.
pub const CAPABILITY: &[u8] = b"security.capability";

/// What a change takes away besides the set-user-id bit and the capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetGroupId {
    /// The set-group-id bit as well.
    Goes,
    /// It stays where the group may not execute the file: then it gives no privilege, and who
    /// changes the file is in the group.
    StaysWithoutExecute,
}

impl Fs {
    /// Says how the kernel is told that attributes are stale. `tell` is called from within
    /// requests, with nothing locked.
    pub fn tell_of_stale_attributes(&self, tell: impl Fn(Ino) + Send + Sync + 'static) {
        // A second session of one file system there is not.
        let _ = self.stale.set(Box::new(tell));
    }

    /// Takes privileges away from a file that somebody changes who may not keep them.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode.
    pub fn drop_privileges(&self, ctx: &Ctx, ino: Ino) -> Result<()> {
        let inode = {
            let mut state = self.index.lock();
            let inode = self.known(&mut state, ino)?;
            if !has_any(&mut state, &inode)? {
                return Ok(());
            }
            inode
        };
        let group = self.set_group_id(ctx, &inode);
        {
            let mut state = self.index.lock();
            let mut inode = self.known(&mut state, ino)?;
            if !strip(&mut state, &mut inode, group)? {
                return Ok(());
            }
            state.note_attributes(&mut inode)?;
            state.put_inode(inode);
        }
        if let Some(tell) = self.stale.get() {
            tell(ino);
        }
        Ok(())
    }

    /// The same where the kernel does not say who may keep privileges: everybody but root is taken
    /// for one who may not.
    pub(super) fn drop_privileges_of_others(&self, ctx: &Ctx, ino: Ino) -> Result<()> {
        match ctx.uid {
            0 => Ok(()),
            _ => self.drop_privileges(ctx, ino),
        }
    }

    /// Whether a change of nothing takes privileges away. It is either the announcement of a write,
    /// or a chown(2) that leaves owner and group as they are, which only the owner and root may do.
    /// Root keeps privileges at a write.
    pub(super) fn is_stripped_by_nothing(&self, ctx: &Ctx, inode: &Inode) -> bool {
        if ctx.uid != 0 && ctx.uid == inode.uid {
            return true;
        }
        let writes = self.opens.is_written_by(inode.ino, ctx.uid);
        writes == (ctx.uid != 0)
    }

    /// Whether the kernel may take capabilities away on behalf of the caller. It asks before a
    /// write and before a chown(2) that leaves owner and group as they are; in the second case it
    /// has not looked whether the caller may do that.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode.
    pub fn may_drop_capability(&self, ctx: &Ctx, ino: Ino) -> Result<bool> {
        let owner = self.known(&mut self.index.lock(), ino)?.uid;
        let may = ctx.uid == 0 || ctx.uid == owner || self.opens.is_written_by(ino, ctx.uid);
        Ok(may)
    }

    /// What becomes of the set-group-id bit of `inode` if the caller changes it.
    pub(super) fn set_group_id(&self, ctx: &Ctx, inode: &Inode) -> SetGroupId {
        let is_bare = inode.mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID;
        match is_bare && is_in_group(ctx, inode.gid) {
            true => SetGroupId::StaysWithoutExecute,
            false => SetGroupId::Goes,
        }
    }
}

/// Whether the caller is in a group, or may do as if he were.
pub(super) fn is_in_group(ctx: &Ctx, gid: u32) -> bool {
    ctx.uid == 0 || ctx.gid == gid || sys::caller::groups(ctx.pid).contains(&gid)
}

fn has_capability(state: &mut State, inode: &Inode) -> Result<bool> {
    Ok(inode.flags.has(Flags::XATTRS) && state.xattr_length(inode.ino, CAPABILITY)?.is_some())
}

fn has_any(state: &mut State, inode: &Inode) -> Result<bool> {
    Ok(inode.mode & (libc::S_ISUID | libc::S_ISGID) != 0 || has_capability(state, inode)?)
}

/// Takes an inode's privileges away; true if there were any.
pub(super) fn strip(state: &mut State, inode: &mut Inode, group: SetGroupId) -> Result<bool> {
    let before = inode.mode;
    inode.mode &= !libc::S_ISUID;
    if group == SetGroupId::Goes || inode.mode & libc::S_IXGRP != 0 {
        inode.mode &= !libc::S_ISGID;
    }
    let has_capability = has_capability(state, inode)?;
    if has_capability {
        state.put_xattr(inode.ino, CAPABILITY, None)?;
        if !state.has_xattrs(inode.ino)? {
            inode.flags.clear(Flags::XATTRS);
        }
    }
    Ok(has_capability || inode.mode != before)
}
