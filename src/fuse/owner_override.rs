//! One owner and one mode for all files: the options `uid=`, `gid=`, `umask=`.
//!
//! The stored attributes of a file are kept and flushed as usual; programs and the kernel see the
//! overrides. Overridden attributes cannot be changed. With `umask=` chmod succeeds and changes
//! nothing. With `uid=` or `gid=` chown to the visible owner does the same, and chown to another
//! owner fails with EPERM, as on vfat and exFAT.

use crate::index::Inode;
use crate::vfs::{FsError, Result, SetAttr};

/// Overrides of attributes; `None` for the file's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// Permission bits removed from all files; all files have all others.
    pub umask: Option<u32>,
}

impl Shown {
    /// Returns `inode` with the overrides.
    pub(super) fn of(&self, inode: &Inode) -> Inode {
        let mut shown = inode.clone();
        shown.uid = self.uid.unwrap_or(shown.uid);
        shown.gid = self.gid.unwrap_or(shown.gid);
        if let Some(umask) = self.umask
            && shown.mode & libc::S_IFMT != libc::S_IFLNK
        {
            shown.mode = (shown.mode & libc::S_IFMT) | (0o777 & !umask);
        }
        shown
    }

    /// Removes from `set` changes that would not be visible.
    ///
    /// # Errors
    /// `EPERM` for an owner or a group other than the visible one.
    pub(super) fn allow(&self, set: &mut SetAttr) -> Result<()> {
        for (wanted, shown) in [(&mut set.uid, self.uid), (&mut set.gid, self.gid)] {
            if let (Some(to), Some(shown)) = (*wanted, shown) {
                if to != shown {
                    return Err(FsError::Errno(libc::EPERM));
                }
                *wanted = None;
            }
        }
        if self.umask.is_some() {
            set.mode = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Ino, Timestamp};

    fn inode(mode: u32) -> Inode {
        Inode::new(Ino(2), mode, 1000, 1000, Timestamp(0))
    }

    #[test]
    fn what_is_not_asked_for_is_shown_as_it_is() {
        let file = inode(libc::S_IFREG | 0o4751);
        assert_eq!(Shown::default().of(&file), file);
        let mut set = SetAttr {
            mode: Some(0o600),
            uid: Some(5),
            gid: Some(6),
            ..SetAttr::default()
        };
        let before = set;
        Shown::default().allow(&mut set).unwrap();
        assert_eq!(set, before);
    }

    #[test]
    fn one_owner_and_one_mode_for_all_but_links() {
        let shown = Shown {
            uid: Some(7),
            gid: Some(8),
            umask: Some(0o027),
        };
        let file = shown.of(&inode(libc::S_IFREG | 0o4000));
        assert_eq!((file.uid, file.gid), (7, 8));
        assert_eq!(file.mode, libc::S_IFREG | 0o750);
        let link = shown.of(&inode(libc::S_IFLNK | 0o777));
        assert_eq!(link.mode, libc::S_IFLNK | 0o777);
    }

    #[test]
    fn what_would_not_be_seen_is_not_changed_and_another_owner_is_refused() {
        let shown = Shown {
            uid: Some(7),
            gid: None,
            umask: Some(0o022),
        };
        let mut set = SetAttr {
            mode: Some(0o600),
            uid: Some(7),
            gid: Some(9),
            ..SetAttr::default()
        };
        shown.allow(&mut set).unwrap();
        assert_eq!((set.mode, set.uid, set.gid), (None, None, Some(9)));
        set.uid = Some(8);
        assert_eq!(shown.allow(&mut set).unwrap_err().errno(), libc::EPERM);
    }
}
