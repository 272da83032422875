//! The part of the probe that is about owners, special files and extended attributes.

use crate::core::{FileKind, MAX_TARGET_BYTES, Timestamp, XATTR_UNBOUNDED, Xattrs, acl};
use crate::drive::BackendError;
use crate::drive::probe::{Probe, Result, clear, is_io_error};

/// Owners and groups that no file has by itself; small enough for a user name space.
const OWNERS: [(u32, u32); 2] = [(12_345, 23_456), (34_567, 45_678)];

/// Name spaces of extended attributes that are carried. Names below them, as any might do.
const SPACES: [&str; 3] = ["user.", "trusted.", "security."];

/// An ACL that permission bits cannot say: rw- for the owner, r-- for user 12345, the group, the
/// mask and all others.
const ACL_NAME: &str = "system.posix_acl_access";
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 57, 48, 0, 0, 4, 0, 4, 0, 255, 255,
    255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];

/// Sizes that file systems bound the attributes of a file to, in bytes, largest first, with room
/// for what goes along: none; one block of 4 KiB (ext4, tmpfs in some kernels); one of 1 KiB; what
/// fits into an inode.
const SIZES: [u32; 4] = [XATTR_UNBOUNDED, 3_800, 800, 60];

/// Lengths of targets that file systems take: all that Linux has; one block of 1 KiB (XFS, ext4
/// with such blocks) and its NUL.
const TARGETS: [u32; 3] = [MAX_TARGET_BYTES as u32, 1_023, 255];

/// The device that reads as nothing.
const NULL_DEVICE: u32 = 0x103;

impl Probe<'_> {
    /// Two different settings must both be read back: one alone could be what the mount gives to
    /// every file.
    pub(super) fn owners(&self) -> Result<bool> {
        let path = self.make_plain()?;
        let mut kept = true;
        for (owner, group) in OWNERS {
            let set = self.backend.set_owner(&path, Some(owner), Some(group));
            let set = self.refusable(set)?;
            let meta = self.backend.metadata(&path)?;
            kept &= set.is_some() && (meta.uid, meta.gid) == (owner, group);
        }
        clear(self.backend, self.scratch_dir)?;
        Ok(kept)
    }

    pub(super) fn own(&self) -> Result<(u32, u32)> {
        let path = self.make_plain()?;
        let meta = self.backend.metadata(&path)?;
        clear(self.backend, self.scratch_dir)?;
        Ok((meta.uid, meta.gid))
    }

    /// Whether such a special file can be made.
    pub(super) fn makes(&self, kind: FileKind) -> Result<bool> {
        let path = self.path(b"special")?;
        let rdev = match kind {
            FileKind::CharDevice => NULL_DEVICE,
            _ => 0,
        };
        let made = self.unless_io_error(&path, || self.backend.make_node(kind, rdev, &path))?;
        let kept = match made {
            Some(()) => {
                let meta = self.backend.metadata(&path)?;
                meta.kind == kind && meta.rdev == rdev
            }
            None => false,
        };
        clear(self.backend, self.scratch_dir)?;
        Ok(kept)
    }

    /// How long the target of a symbolic link may be: some file systems keep no more than fits into
    /// a block of theirs.
    pub(super) fn target_bytes(&self) -> Result<u32> {
        let path = self.path(b"symlink")?;
        for length in TARGETS {
            // Of names that could be, so that whoever resolves it is not offended.
            let target: Vec<u8> = (1..=length)
                .map(|at| if at % 100 == 0 { b'/' } else { b't' })
                .collect();
            let make = || self.backend.make_symlink(&target, &path);
            let kept = match self.unless_io_error(&path, make)? {
                Some(()) => self.backend.metadata(&path)?.target == Some(target.clone()),
                None => false,
            };
            clear(self.backend, self.scratch_dir)?;
            if kept {
                return Ok(length);
            }
        }
        Ok(0)
    }

    pub(super) fn xattr_spaces(&self) -> Result<Vec<String>> {
        let mut spaces = Vec::new();
        for space in SPACES {
            let name = format!("{space}ferryfs-probe");
            if self.keeps_xattr(&name, b"value")? {
                spaces.push(space.to_string());
            }
        }
        if self.keeps_xattr(ACL_NAME, &ACL)? {
            spaces.push(acl::SPACE.to_string());
        }
        Ok(spaces)
    }

    pub(super) fn xattr_bytes(&self) -> Result<u32> {
        for size in SIZES {
            if self.keeps_xattr("user.ferryfs-probe", &vec![b'x'; size as usize])? {
                return Ok(size);
            }
        }
        Ok(0)
    }

    /// Whether an attribute can be set, read back, and taken away.
    fn keeps_xattr(&self, name: &str, value: &[u8]) -> Result<bool> {
        let path = self.make_plain()?;
        let wanted = Xattrs::from([(name.as_bytes().into(), value.into())]);
        let set = match self.backend.set_xattrs(&path, &wanted) {
            // A file system may say that it is full, and mean the room for attributes.
            Err(error) if error.is_full() => self.must_have_room(error).map(|()| None)?,
            // rclone answers EIO to all calls that are about attributes.
            Err(error) if is_io_error(&error) => {
                self.odd(|| self.backend.set_xattrs(&path, &wanted))?
            }
            set => self.refusable(set)?,
        };
        let mut kept = false;
        if set.is_some()
            && let Some(found) = self.refusable(self.backend.xattrs(&path))?
        {
            let none = self.backend.set_xattrs(&path, &Xattrs::new());
            kept = found == wanted && self.refusable(none)?.is_some();
        }
        clear(self.backend, self.scratch_dir)?;
        Ok(kept)
    }

    /// Gives `error` back if a small file cannot be written either.
    fn must_have_room(&self, error: BackendError) -> Result<()> {
        let path = self.path(b"control")?;
        let mut file = self.backend.create(&path)?;
        let written = file.append(&[b'x'; 4096]);
        if written.is_err() || file.finish(Timestamp(0)).is_err() {
            return Err(error);
        }
        self.backend.remove_file(&path)
    }
}
