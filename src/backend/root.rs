//! The directory that a backend begins in: found once, and recognized at each call.
//!
//! Its path is resolved when it is attached. From then on the resolved path is opened without following a symbolic link, and
//! what is there must be the directory that was found: on the same mount of the same file system, and the same one of it.
//! Anything else counts as a missing medium. A path says nothing by itself: whoever owns a directory on the way can put another
//! one in its place at any moment. No descriptor is held, as it would keep the drive from being unmounted.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::sys;
use crate::sys::mounts::Place;
use crate::sys::way;

/// A directory that is recognized.
#[derive(Clone, Debug)]
pub(super) struct Root {
    /// As it was named, absolute.
    path: PathBuf,
    /// The same without links, as it was when it was found.
    place: PathBuf,
    /// `None` while there is none.
    identity: Option<Identity>,
}

/// What tells a directory from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    place: Place,
    /// It is what its mount shows at its mount point. There is no other directory like it on that mount, so it needs no number.
    is_mount_root: bool,
    /// Else its number, where the file system does not give it another one in time.
    inode: Option<u64>,
}

impl Root {
    /// The directory that `path` leads to now.
    ///
    /// # Errors
    /// ENOMEDIUM if there is none. A [`way::Exposed`] with the kind `PermissionDenied` if this is root, and another user can
    /// make the path lead elsewhere. Else what the system said.
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

    /// The directory at `path` while none is there: nothing that appears there is it.
    pub(super) fn absent(path: &Path) -> Root {
        Root {
            path: path.into(),
            place: path.into(),
            identity: None,
        }
    }

    /// Its path as it was named.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// `st_dev` of its file system; one that no device has while there is no directory.
    pub(super) fn device(&self) -> u64 {
        self.identity.map_or(u64::MAX, |found| found.place.device)
    }

    /// Takes hold of it, if it still is where it was. Good for resolving names, not for reading.
    ///
    /// # Errors
    /// ENOMEDIUM if it is not there, or something else is; else what the system said.
    pub(super) fn hold(&self) -> io::Result<OwnedFd> {
        let identity = self.identity.ok_or_else(no_medium)?;
        let dir =
            sys::path::open_place(&self.place).map_err(|error| match error.raw_os_error() {
                // A link, or a way that does not lead to a directory any more.
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
    /// That of the directory `dir`, with its number or without.
    fn of(dir: &OwnedFd, has_inode: bool) -> io::Result<Identity> {
        // A driver behind FUSE is not asked for a number that does not matter.
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
