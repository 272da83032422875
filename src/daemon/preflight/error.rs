//! Why a mount is not tried, and what the user can do.

use std::io;
use std::path::PathBuf;

use crate::control::mounts;
use crate::core::{Exit, Failure, ForeignText, quoted};
use crate::daemon::dead_mount::DetachError;
use crate::sys::way::{Exposed, Writer};

/// One of the three directories of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The drive's directory.
    Backend,
    /// The mount point.
    Mountpoint,
    /// The cache directory on the SSD.
    Cache,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Backend => "drive",
            Role::Mountpoint => "mount point",
            Role::Cache => "cache",
        })
    }
}

/// Why a mount is not tried.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The mount point does not exist.
    #[error("the mount point {} does not exist", .0.escaped())]
    MountpointMissing(PathBuf),
    /// The mount point is not a directory.
    #[error("the mount point {} is not a directory", .0.escaped())]
    MountpointNotDirectory(PathBuf),
    /// The mount point has files, which the mount would hide.
    #[error("the mount point {} is not empty: {names}", path.escaped())]
    MountpointNotEmpty {
        /// The mount point.
        path: PathBuf,
        /// Some of what is in it.
        names: String,
    },
    /// The mount would hide another one.
    #[error(
        "another file system is mounted in the mount point {}: at {}",
        path.escaped(),
        inside.escaped()
    )]
    MountInside {
        /// The mount point.
        path: PathBuf,
        /// Where something is mounted.
        inside: PathBuf,
    },
    /// Another file system is mounted there.
    #[error("{} is already a mount ({fstype} of {})", path.escaped(), source_path.escaped())]
    MountpointBusy {
        /// The mount point.
        path: PathBuf,
        /// Type of what is mounted there.
        fstype: String,
        /// What is mounted there.
        source_path: PathBuf,
    },
    /// A dead ferryfs mount is there and cannot be removed.
    #[error("a dead mount is in the way: {0}")]
    DeadMountStays(#[from] DetachError),
    /// The drive's directory is not there, or its file system does not answer.
    #[error("the drive {} is not there: {source}", path.escaped())]
    BackendMissing {
        /// The drive.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another user can change where the path leads, and this process is root.
    #[error("the drive {} is not used as root: {exposed}", path.escaped())]
    BackendExposed {
        /// The drive.
        path: PathBuf,
        /// Where, and who.
        exposed: Exposed,
    },
    /// A link that another user may have made leads to the mount point, and this process is root.
    #[error(
        "the mount point {} is not used as root: a link leads from it, and {exposed}",
        path.escaped()
    )]
    MountpointExposed {
        /// The mount point, as it was named.
        path: PathBuf,
        /// Where, and who.
        exposed: Exposed,
    },
    /// The mount point is not the directory that was checked.
    #[error("the mount point {} is another directory than a moment ago", .0.escaped())]
    MountpointChanged(PathBuf),
    /// The drive's path is not a directory.
    #[error("the drive {} is not a directory", .0.escaped())]
    BackendNotDirectory(PathBuf),
    /// The whole file system is read-only.
    #[error("the drive {} is mounted read-only", .0.escaped())]
    BackendReadOnly(PathBuf),
    /// This user may not write there.
    #[error("the drive {} cannot be written to: {source}", path.escaped())]
    BackendNotWritable {
        /// The drive.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The drive's directory is in a ferryfs mount.
    #[error("the drive {} is itself in a ferryfs mount ({})", backend.escaped(), mountpoint.escaped())]
    BackendIsFerryfs {
        /// The drive.
        backend: PathBuf,
        /// The mount that it is in.
        mountpoint: PathBuf,
    },
    /// Two of the directories are one, or one is inside the other.
    #[error("the {inner} {} is inside the {outer} {}", inner_path.escaped(), outer_path.escaped())]
    Nested {
        /// What is inside.
        inner: Role,
        /// Where that is.
        inner_path: PathBuf,
        /// What it is inside of.
        outer: Role,
        /// Where that is.
        outer_path: PathBuf,
    },
    /// A check failed.
    #[error("cannot {operation} {}: {source}", path.escaped())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PreflightError {
    /// The exit status of the process.
    pub fn code(&self) -> Exit {
        match self {
            PreflightError::BackendMissing { .. } => Exit::BackendAbsent,
            _ => Exit::Failed,
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> String {
        use PreflightError as E;
        match self {
            E::MountpointMissing(path) => format!("make it: mkdir -p {}", quoted(path)),
            E::MountpointNotDirectory(_) => "choose a directory".into(),
            E::MountpointNotEmpty { .. } => {
                "nothing was changed. Choose an empty directory, or move the files away; or move \
                 them into the mount: --adopt"
                    .into()
            }
            E::MountInside { inside, .. } => format!(
                "nothing was changed. Unmount it first: umount {}; or choose another directory",
                quoted(inside)
            ),
            E::MountpointBusy { path, fstype, .. } if fstype.as_bytes() == mounts::FSTYPE => {
                format!(
                    "it may be what you want: ferryfs status {0}; to end it: ferryfs unmount {0}",
                    quoted(path)
                )
            }
            E::MountpointBusy { path, .. } => format!(
                "choose another directory, or unmount what is there: umount {}",
                quoted(path)
            ),
            E::DeadMountStays(_) => "close what still uses it, or unmount it as root".into(),
            E::BackendMissing { .. } => {
                "plug the drive in, or mount the share, and try again".into()
            }
            E::BackendExposed { exposed, .. } => safer_place(exposed),
            E::MountpointExposed { .. } => {
                "nothing was mounted. Name the directory itself, without a link".into()
            }
            E::MountpointChanged(_) => {
                "nothing was mounted. A program or user has moved it or replaced it: find out \
                 which, then try again"
                    .into()
            }
            E::BackendNotDirectory(_) => {
                "name the directory where the drive is mounted, not its device".into()
            }
            E::BackendReadOnly(path) => format!(
                "after an error the system makes a drive read-only: check it with fsck, then mount \
                 it again (see `dmesg`, `findmnt -T {}`)",
                quoted(path)
            ),
            E::BackendNotWritable { .. } => {
                "mount the drive with your uid (exFAT: -o uid=...,gid=...), or change its owner"
                    .into()
            }
            E::BackendIsFerryfs { .. } => "name the drive's own directory".into(),
            E::Nested { outer, .. } => match outer {
                Role::Cache => "give the cache a directory of its own with --cache DIR".into(),
                _ => "choose directories outside of one another".into(),
            },
            E::Io { .. } => "check the path, and who may use it".into(),
        }
    }
}

/// What root can do about a path that another user can change.
pub(in crate::daemon) fn safer_place(exposed: &Exposed) -> String {
    let as_owner = match exposed.by {
        Writer::Owner(uid) | Writer::OwnerOfNext(uid) => {
            format!("run ferryfs as that user ({uid})")
        }
        Writer::Group(_) | Writer::All => {
            format!(
                "remove that permission: chmod go-w {}",
                quoted(&exposed.dir)
            )
        }
    };
    format!(
        "nothing was changed: another user could lead root to any directory. Either {as_owner}, or \
         mount the drive at a path that only root can change, such as /mnt/NAME (`mount --bind` \
         does)"
    )
}

impl From<PreflightError> for Failure {
    fn from(error: PreflightError) -> Failure {
        Failure {
            code: error.code(),
            message: error.to_string(),
            hint: Some(error.hint()),
        }
    }
}
