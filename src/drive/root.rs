//! The root directory of a backend: found once, and identified again at each call.
//!
//! Its path is resolved at the attach. From then on the resolved path is opened without following a
//! symbolic link, and the result must be the directory that was found: the same directory on the
//! same mount of the same file system. Anything else counts as a missing medium. The path alone
//! proves nothing: the owner of a directory on the way can replace it at any moment. No descriptor
//! stays open, as it would prevent an unmount of the drive.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::sys;
use crate::sys::mounts::Place;
use crate::sys::way;

/// A directory that can be identified again.
#[derive(Clone, Debug)]
pub(super) struct Root {
    /// The original path, absolute.
    path: PathBuf,
    /// The path without links, as of the time it was found.
    place: PathBuf,
    /// `None` while there is none.
    identity: Option<Identity>,
}

/// The properties that distinguish a directory from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    place: Place,
    /// It is the directory that its mount shows at its mount point. A mount has only one, so it
    /// needs no inode number.
    is_mount_root: bool,
    /// Otherwise its inode number, if the file system keeps inode numbers.
    inode: Option<u64>,
}

impl Root {
    /// Finds the directory at `path`.
    ///
    /// # Errors
    /// ENOMEDIUM if there is none. A [`way::Exposed`] with the kind `PermissionDenied` if this is
    /// root, and another user can redirect the path. Else what the system said.
    pub(super) fn find(path: &Path) -> io::Result<Root> {
        let path = std::path::absolute(path)?;
        let way = way::walk(&path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => no_medium(),
            _ => error,
        })?;
        if let Some(exposed) = way.danger() {
            let kind = io::ErrorKind::PermissionDenied;
            return Err(io::Error::new(kind, exposed.clone()));
        }
        let (_, is_mount_root) = sys::mounts::mount_root(&way.dir)?;
        let has_inode = !is_mount_root && sys::file::keeps_inode_numbers(&way.dir);
        let identity = Identity::of(&way.dir, has_inode)?;
        Ok(Root {
            path,
            place: way.place,
            identity: Some(identity),
        })
    }

    /// Returns a root for `path` while no directory is there: nothing that appears there later is
    /// accepted.
    pub(super) fn absent(path: &Path) -> Root {
        Root {
            path: path.into(),
            place: path.into(),
            identity: None,
        }
    }

    /// Returns the original path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The same without links, as it was when it was found.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Returns the `st_dev` of its file system; a number that no device has while there is no
    /// directory.
    pub(super) fn device(&self) -> u64 {
        self.identity.map_or(u64::MAX, |found| found.place.device)
    }

    /// Opens the directory, if it is the one that was found. The descriptor serves to resolve
    /// names, not for reading.
    ///
    /// # Errors
    /// ENOMEDIUM if it is not there, or something else is; else what the system said.
    pub(super) fn hold(&self) -> io::Result<OwnedFd> {
        let identity = self.identity.ok_or_else(no_medium)?;
        let dir =
            sys::path::open_place(&self.place).map_err(|error| match error.raw_os_error() {
                // A link, or a path that no longer leads to a directory.
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => no_medium(),
                _ => error,
            })?;
        match Identity::of(&dir, identity.inode.is_some())? == identity {
            true => Ok(dir),
            false => Err(no_medium()),
        }
    }
}

impl Identity {
    /// Returns the identity of the directory `dir`, with its inode number or without.
    fn of(dir: &OwnedFd, has_inode: bool) -> io::Result<Identity> {
        // No request to a driver behind FUSE for a number that does not matter.
        if !has_inode {
            let (place, is_mount_root) = sys::mounts::mount_root(dir)?;
            return Ok(Identity {
                place,
                is_mount_root,
                inode: None,
            });
        }
        let facts = sys::mounts::facts_of(dir)?;
        Ok(Identity {
            place: facts.place,
            is_mount_root: facts.is_mount_root,
            inode: Some(facts.inode),
        })
    }
}

pub(super) fn no_medium() -> io::Error {
    Errno::ENOMEDIUM.into()
}
