//! Errors of a delta.

use crate::core::{Ino, RelPath};
use crate::plan::delta::NameKey;

/// Why there is no plan: the delta violates an invariant, which is a mistake of its caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A name is listed twice.
    #[error("plan: {key} is listed twice")]
    NameTwice {
        /// The name.
        key: NameKey,
    },
    /// The directory of a listed name is not among the directories.
    #[error("plan: the paths of the directory of {key} are missing")]
    DirectoryMissing {
        /// The name.
        key: NameKey,
    },
    /// The backend has an entry in a directory without a path there.
    #[error("plan: {key} is on the backend, but its directory has no path there")]
    NoOldPath {
        /// The name.
        key: NameKey,
    },
    /// The cut has an entry in a directory without a path there.
    #[error("plan: {key} is in the cut, but its directory has no path there")]
    NoNewPath {
        /// The name.
        key: NameKey,
    },
    /// An inode is a directory under one name and a file under another.
    #[error("plan: inode {} is both a file and a directory", .ino.0)]
    KindsDiffer {
        /// The inode.
        ino: Ino,
    },
    /// A directory has two names on the same side.
    #[error("plan: directory {} has two names at once", .ino.0)]
    DirectoryTwice {
        /// The directory.
        ino: Ino,
    },
    /// The names of one file disagree on its content.
    #[error("plan: the names of inode {} disagree on its content", .ino.0)]
    ContentsDiffer {
        /// The file.
        ino: Ino,
    },
    /// A directory's paths do not follow from the listed names.
    #[error("plan: the paths of directory {} contradict the listed names", .ino.0)]
    PathsDisagree {
        /// The directory.
        ino: Ino,
    },
    /// Two directories have the same path on one side.
    #[error("plan: two directories have the path {path}")]
    PathTwice {
        /// The path.
        path: RelPath,
    },
    /// [`NOBODY`](crate::plan::delta::NOBODY) is the inode of a directory or of an entry of the
    /// cut.
    #[error("plan: {key} has no inode")]
    NoInode {
        /// The name.
        key: NameKey,
    },
    /// The batch needs more slots than there are numbers.
    #[error("plan: too many entries for one batch at {key}")]
    TooMany {
        /// The first name without a slot.
        key: NameKey,
    },
}
