//! Where the volume is, or was when it was seen last.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bell::Bell;
use crate::daemon::verify::Found;
use crate::drive::mounted::MountedDir;
use crate::drive::revocable::Watched;
use crate::sys::mounts::Mount;
use crate::sys::superblock;
use crate::sys::superblock::InsertedMedium;

/// Where the volume is, or was when it was seen last.
pub(in crate::daemon) struct Site {
    /// The path as the user gave it.
    pub(in crate::daemon) path: PathBuf,
    /// The same without symbolic links.
    pub(in crate::daemon) place: PathBuf,
    /// The mount that it is on.
    pub(in crate::daemon) mount: Option<Mount>,
    /// The medium that it is on, if that is known.
    pub(super) medium: Option<InsertedMedium>,
    /// The directory itself. It can be looked at after the drive was detached.
    pub(in crate::daemon) dir: MountedDir,
    /// The same as it is attached: it can be revoked.
    pub(in crate::daemon) backend: Arc<Watched>,
    /// A warning about its top directory.
    pub(in crate::daemon) remark: Option<String>,
}

impl Site {
    /// The site of what was found at `path`; errors of it ring `bell`.
    pub(in crate::daemon) fn new(path: &Path, found: &Found, bell: &Arc<Bell>) -> Site {
        Site {
            path: path.into(),
            place: std::fs::canonicalize(path).unwrap_or_else(|_| path.into()),
            mount: found.mount.clone(),
            medium: medium_of(found),
            dir: found.dir.clone(),
            backend: bell.watch(found.dir.clone()),
            remark: None,
        }
    }

    /// The site at `path` of a volume that has not been there since this daemon started.
    pub(in crate::daemon) fn absent(path: &Path, bell: &Arc<Bell>) -> Site {
        let dir = MountedDir::absent(path);
        Site {
            path: path.into(),
            place: path.into(),
            mount: None,
            medium: None,
            dir: dir.clone(),
            backend: bell.watch(dir),
            remark: None,
        }
    }
}

pub(super) fn medium_of(found: &Found) -> Option<InsertedMedium> {
    superblock::medium(found.mount.as_ref()?.block_device()?)
}
