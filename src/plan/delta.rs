//! Input and output of the planner.

use std::collections::HashMap;
use std::fmt;

use crate::core::{Ino, Name, ObjectId, RelPath, Timestamp};
use crate::format::steps::{Node, PlainKind, SlotNo, Steps};

/// Replaces the inode of a file on the backend that is no longer any inode's content: a file that
/// an earlier batch left under a name ([`Plan::leftovers`]). FUSE numbers inodes from 1, so no
/// inode has this number. Such a file is never moved, only removed, replaced, or left again.
pub const NOBODY: Ino = Ino(0);

/// A name in a directory of the index: the directory's inode and the name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameKey {
    /// The directory.
    pub parent: Ino,
    /// The name.
    pub name: Name,
}

impl fmt::Display for NameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in directory {}", self.name, self.parent.0)
    }
}

/// The path of a directory on the backend, before and after the batch.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DirPaths {
    /// Before; `None` if the backend does not have it.
    pub old: Option<RelPath>,
    /// After; `None` if the cut does not have it.
    pub new: Option<RelPath>,
}

/// The source of a staged file's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageSource {
    /// An object of the cache.
    Object {
        /// The inode with this content.
        ino: Ino,
        /// The object.
        object: ObjectId,
        /// The modification time for the copy on the backend.
        modified: Timestamp,
    },
    /// A file that the backend has under another name, by its path before the batch.
    Backend {
        /// The inode with this content.
        ino: Ino,
        /// The path.
        path: RelPath,
        /// The modification time for the copy on the backend.
        modified: Timestamp,
    },
}

/// The backend's entry of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldEntry {
    /// The inode of the name; [`NOBODY`] for a leftover.
    pub ino: Ino,
    /// File or directory.
    pub kind: PlainKind,
}

/// The cut's entry of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The inode of the name.
    pub ino: Ino,
    /// File or directory, with the facts about a file's bytes.
    pub content: NewContent,
}

/// The content of an entry in the cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewContent {
    /// A directory.
    Directory,
    /// A file with the bytes that the backend has under each of its old names. `copy` is the source
    /// for further copies, if there are more new names than old ones to move.
    Unchanged {
        /// Source of a further copy.
        copy: Option<StageSource>,
    },
    /// As `Unchanged`, with another modification time.
    Touched {
        /// The modification time.
        modified: Timestamp,
        /// Source of a further copy.
        copy: Option<StageSource>,
    },
    /// A file whose bytes the backend does not have.
    Changed(StageSource),
    /// A link or special file, on a backend that can store it. It never changes, so the backend's
    /// entry is current, and it can be created again anywhere.
    Node(Node),
    /// A file that is open for writing, so that no complete version exists. The backend's version
    /// stays.
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

/// A name whose entry, or whose entry's content, differs between the backend and the cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameChange {
    /// The name.
    pub key: NameKey,
    /// The backend's entry.
    pub old: Option<OldEntry>,
    /// The cut's entry; `None` also for an entry that no backend can store.
    pub new: Option<NewEntry>,
}

/// All differences between the backend and the cut.
///
/// The caller ensures these invariants:
/// - for every inode that has changed content or is live, all its names on either side are listed;
/// - all old names of one inode have the same bytes; where an earlier batch left an older version
///   under a name, that name's old entry has the inode [`NOBODY`]. Otherwise a move could put the
///   older version where the newer one belongs;
/// - for a directory that the cut does not have, all its names are listed as removed or moved;
/// - `dirs` contains every directory that is the `parent` of a listed name.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// The paths of the directories with listed names.
    pub dirs: HashMap<Ino, DirPaths>,
    /// The names, each once.
    pub names: Vec<NameChange>,
    /// The backend has hard links, so that further names are links instead of copies. If one name
    /// of an inode with several is listed, all are.
    pub hard_links: bool,
}

/// The backend's entry of a name after the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory(Ino),
    /// A file whose bytes were under the old name `from`, perhaps the same name, with a new time if
    /// given.
    Kept {
        /// The inode.
        ino: Ino,
        /// The name before the batch.
        from: NameKey,
        /// The new modification time.
        modified: Option<Timestamp>,
    },
    /// The content staged in `slot`, under this name or another of the same file.
    Staged {
        /// The inode.
        ino: Ino,
        /// The slot.
        slot: SlotNo,
    },
}

/// The result for a listed name after the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The name.
    pub key: NameKey,
    /// The backend's entry.
    pub placed: Placed,
}

/// Why an entry is left behind.
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
    /// The name.
    pub key: NameKey,
    /// The inode of the name in the cut.
    pub ino: Ino,
    /// The reason.
    pub reason: LeftReason,
}

/// The name and inode of each step of a plan: before the batch for the first phase, after it for
/// the second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepKeys {
    /// Of the first phase, in order.
    pub clear: Vec<(NameKey, Ino)>,
    /// Of the second phase, in order.
    pub place: Vec<(NameKey, Ino)>,
}

/// The actions of one batch, and what the index may conclude after it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The steps.
    pub steps: Steps<StageSource>,
    /// The name of each step.
    pub keys: StepKeys,
    /// The backend's entry after the batch, for every listed name that the batch brings up to date
    /// or changes at all.
    pub outcomes: Vec<Outcome>,
    /// The names that the batch does not bring up to date.
    pub left_behind: Vec<LeftBehind>,
    /// Names, all among `left_behind`, under which another inode's file stays so that the name is
    /// not left empty. Such a name has no outcome and is not touched, but its file now belongs
    /// to [`NOBODY`]: its former inode may get other bytes elsewhere, in this batch or a later one.
    pub leftovers: Vec<NameKey>,
}
