//! What the planner is told, and what it answers.

use std::collections::HashMap;
use std::fmt;

use crate::base::{Ino, Name, ObjectId, RelPath, Timestamp};
use crate::rules::steps::{Node, PlainKind, SlotNo, Steps};

/// Stands for the inode of a file on the backend that is no inode's content any more: what an earlier batch left under a
/// name ([`Plan::leftovers`]). FUSE numbers inodes from 1, so no inode has it. Such a file is never moved, only removed,
/// replaced, or left once more.
pub const NOBODY: Ino = Ino(0);

/// A name in a directory of the index: the directory's inode and the name in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameKey {
    /// The directory.
    pub parent: Ino,
    /// The name in it.
    pub name: Name,
}

impl fmt::Display for NameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in directory {}", self.name, self.parent.0)
    }
}

/// Where a directory stands on the backend before the batch, and where after it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DirPaths {
    /// Before; `None` if the backend does not have it.
    pub old: Option<RelPath>,
    /// After; `None` if it is gone from the cut.
    pub new: Option<RelPath>,
}

/// Where the bytes of a staged file come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageSource {
    /// An object of the cache.
    Object {
        /// Whose content it is.
        ino: Ino,
        /// Which object.
        object: ObjectId,
        /// Time of last change that the copy on the backend is given.
        modified: Timestamp,
    },
    /// A file that the backend has under another name, by its path before the batch.
    Backend {
        /// Whose content it is.
        ino: Ino,
        /// Where it stands.
        path: RelPath,
        /// Time of last change that the copy on the backend is given.
        modified: Timestamp,
    },
}

/// What the backend has under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldEntry {
    /// The inode whose name this is; [`NOBODY`] for a leftover.
    pub ino: Ino,
    /// File or directory.
    pub kind: PlainKind,
}

/// What the cut has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The inode whose name this is.
    pub ino: Ino,
    /// File or directory, with what is to be known of a file's bytes.
    pub content: NewContent,
}

/// What the cut knows of an entry's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewContent {
    /// A directory.
    Directory,
    /// A file with the bytes that the backend has under each of its old names. `copy` tells where a further copy could
    /// be taken from, should there be more new names than old ones to move.
    Unchanged {
        /// Source of a further copy.
        copy: Option<StageSource>,
    },
    /// As `Unchanged`, but with another time of last change.
    Touched {
        /// The time.
        modified: Timestamp,
        /// Source of a further copy.
        copy: Option<StageSource>,
    },
    /// A file whose bytes the backend does not have.
    Changed(StageSource),
    /// A link or a special file, on a backend that has them. It never changes, so wherever the backend has it, it has this, and
    /// it can be made anew anywhere.
    Node(Node),
    /// A file that is open for writing: no whole version of it can be had. What the backend has of it stays.
    Live,
}

impl NewContent {
    /// File or directory.
    pub fn kind(&self) -> PlainKind {
        match self {
            NewContent::Directory => PlainKind::Directory,
            _ => PlainKind::File,
        }
    }
}

/// One name whose entry, or the content of whose entry, differs between the backend and the cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameChange {
    /// Which name.
    pub key: NameKey,
    /// What the backend has there.
    pub old: Option<OldEntry>,
    /// What the cut has there; `None` also for what no backend can hold.
    pub new: Option<NewEntry>,
}

/// Everything that differs between the backend and the cut.
///
/// Invariants that the caller keeps:
/// - for every inode with changed content, and every live one, every name that it has on either side is listed;
/// - all old names of one inode hold the same bytes; where an earlier batch left an older version under a name, that name's
///   old entry is [`NOBODY`]'s. Without this, a move would put the older version where the newer one belongs;
/// - a directory that is gone from the cut has had all its names listed, as removed or moved;
/// - `dirs` has every directory that is a `parent` of a listed name.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// The paths of the directories that hold the listed names.
    pub dirs: HashMap<Ino, DirPaths>,
    /// The names, each once.
    pub names: Vec<NameChange>,
    /// Whether further names of a file can be given to it, rather than to copies. All names of an inode that has several are then
    /// listed as soon as one is.
    pub hard_links: bool,
}

/// What the backend has under a name after the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory(Ino),
    /// A file whose bytes came along from the old name `from`, perhaps this very one, with a new time if given.
    Kept {
        /// The inode.
        ino: Ino,
        /// The name before the batch.
        from: NameKey,
        /// The new time of last change.
        modified: Option<Timestamp>,
    },
    /// What was staged in `slot`, under this name or under another one of the same file.
    Staged {
        /// The inode.
        ino: Ino,
        /// The slot.
        slot: SlotNo,
    },
}

/// What a listed name stands for once the batch is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Which name.
    pub key: NameKey,
    /// What the backend has there.
    pub placed: Placed,
}

/// Why an entry stays behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeftReason {
    /// It was open for writing at the cut.
    OpenForWriting,
    /// Its bytes are neither in the cache nor on the backend under a name that could be copied.
    NoSource,
}

/// A name that the batch does not bring up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftBehind {
    /// Which name.
    pub key: NameKey,
    /// Whose name it is in the cut.
    pub ino: Ino,
    /// Why.
    pub reason: LeftReason,
}

/// Which name each step of a plan is about, and whose it is: before the batch for the first phase, after it for the second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepKeys {
    /// Of the steps of the first phase, in their order.
    pub clear: Vec<(NameKey, Ino)>,
    /// Of the steps of the second phase, in their order.
    pub place: Vec<(NameKey, Ino)>,
}

/// What one batch does, and what the index may conclude once it has been done.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The steps.
    pub steps: Steps<StageSource>,
    /// Which name each of them is about.
    pub keys: StepKeys,
    /// For every listed name that the batch brings up to date, or changes at all: what then stands there.
    pub outcomes: Vec<Outcome>,
    /// The names that it does not.
    pub left_behind: Vec<LeftBehind>,
    /// Names, all among `left_behind`, under which the file of another inode stays so that the name is not left empty.
    /// It has no outcome and is not touched, but from now on it is [`NOBODY`]'s: the inode whose name this was may get other
    /// bytes elsewhere, in this batch or a later one.
    pub leftovers: Vec<NameKey>,
}
