//! Privileges that a file gives to its executing process: the set-user-id bit, the set-group-id
//! bit, and file capabilities. A change of the file removes them.
//!
//! The kernel leaves the removal to the daemon (`FUSE_HANDLE_KILLPRIV_V2`), because otherwise it
//! would ask for an attribute before every write. It uses the mode that it received last, so it
//! must learn that a bit is gone before the change is answered. Three mechanisms ensure that:
//!
//! - Before a write to a file with such bits the kernel sends a setattr without changes. If the
//!   caller has the file open for writing, the bits are removed then, and the reply contains the
//!   new mode.
//! - The kernel's attributes are invalidated at once where a request removes bits and its reply
//!   contains no mode.
//! - Attributes of files with such bits have a time to live of zero (`fuse::convert::ttl`), so that
//!   each check and each execution requests them.

use crate::core::Ino;
use crate::index::{Flags, IndexWriter, Inode};
use crate::sys;
use crate::vfs::{Ctx, Fs, Result, known};

/// The extended attribute with a program's capabilities.
pub const CAPABILITY: &[u8] = b"security.capability";

/// Treatment of the set-group-id bit by a change that removes the set-user-id bit and the
/// capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetGroupId {
    /// The bit is removed as well.
    Goes,
    /// The bit stays if the group may not execute the file: it gives no privilege then, and the
    /// caller is in the group.
    StaysWithoutExecute,
}

impl Fs {
    /// Sets the function that invalidates the kernel's attributes. Requests call `invalidate`
    /// without holding a lock.
    pub fn on_stale_attributes(&self, invalidate: impl Fn(Ino) + Send + Sync + 'static) {
        self.invalidations.on_attributes(invalidate);
    }

    /// Removes the privileges of a file that is changed by a caller without the right to keep them.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode.
    pub fn drop_privileges(&self, ctx: &Ctx, ino: Ino) -> Result<()> {
        let inode = {
            let mut state = self.index.lock();
            let inode = known(&mut state, ino)?;
            if !has_any(&mut state, &inode)? {
                return Ok(());
            }
            inode
        };
        let group = self.set_group_id(ctx, &inode);
        {
            let mut state = self.index.lock();
            let mut inode = known(&mut state, ino)?;
            if !strip(&mut state, &mut inode, group)? {
                return Ok(());
            }
            state.note_attributes(&mut inode)?;
            state.put_inode(inode);
        }
        self.invalidations.attributes_now(ino);
        Ok(())
    }

    /// Removes privileges where the kernel does not say whether the caller may keep them: only root
    /// may.
    pub(super) fn drop_privileges_of_others(&self, ctx: &Ctx, ino: Ino) -> Result<()> {
        match ctx.uid {
            0 => Ok(()),
            _ => self.drop_privileges(ctx, ino),
        }
    }

    /// Returns whether a setattr without changes removes privileges. The kernel sends it before a
    /// write, or for a chown(2) that keeps owner and group, which only the owner and root may do.
    /// Root keeps privileges at a write.
    pub(super) fn is_stripped_by_nothing(&self, ctx: &Ctx, inode: &Inode) -> bool {
        if ctx.uid != 0 && ctx.uid == inode.uid {
            return true;
        }
        let writes = self.open_files.is_written_by(inode.ino, ctx.uid);
        writes == (ctx.uid != 0)
    }

    /// Returns whether the kernel may remove capabilities on behalf of the caller. It asks before a
    /// write, and before a chown(2) that keeps owner and group; in the second case it has not
    /// checked the caller's permission.
    ///
    /// # Errors
    /// `ESTALE` if there is no such inode.
    pub fn may_drop_capability(&self, ctx: &Ctx, ino: Ino) -> Result<bool> {
        let owner = known(&mut self.index.lock(), ino)?.uid;
        let may = ctx.uid == 0 || ctx.uid == owner || self.open_files.is_written_by(ino, ctx.uid);
        Ok(may)
    }

    /// Returns the treatment of the set-group-id bit of `inode` if the caller changes the file.
    pub(super) fn set_group_id(&self, ctx: &Ctx, inode: &Inode) -> SetGroupId {
        let is_bare = inode.mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID;
        match is_bare && is_in_group(ctx, inode.gid) {
            true => SetGroupId::StaysWithoutExecute,
            false => SetGroupId::Goes,
        }
    }
}

/// Returns whether the caller is in a group, or has the same rights.
pub(super) fn is_in_group(ctx: &Ctx, gid: u32) -> bool {
    ctx.uid == 0 || ctx.gid == gid || sys::caller::groups(ctx.pid).contains(&gid)
}

fn has_capability(state: &mut IndexWriter, inode: &Inode) -> Result<bool> {
    Ok(inode.flags.has(Flags::XATTRS) && state.xattr_length(inode.ino, CAPABILITY)?.is_some())
}

fn has_any(state: &mut IndexWriter, inode: &Inode) -> Result<bool> {
    Ok(inode.mode & (libc::S_ISUID | libc::S_ISGID) != 0 || has_capability(state, inode)?)
}

/// Removes the privileges of an inode; returns true if there were any.
pub(crate) fn strip(state: &mut IndexWriter, inode: &mut Inode, group: SetGroupId) -> Result<bool> {
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
