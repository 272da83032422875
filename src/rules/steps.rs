//! The steps of a batch on the backend, in the order in which they are taken.
//!
//! A batch first *clears*: in the names of the tree before it, deepest first, whatever goes away is removed and whatever
//! moves is set aside into a numbered slot of the batch's staging directory. Then it *places*: in the names of the tree
//! after it, parents first, directories are made, slots are moved to their names. Going through slots makes every
//! cycle of names, swap and case-only rename an ordinary move.

use crate::base::{ContentHash, RelPath, Timestamp};

/// Number of a slot within one batch: one name in its staging directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotNo(pub u32);

impl SlotNo {
    /// The slot's file name in the staging directory: `s` and eight hexadecimal digits.
    pub fn file_name(self) -> String {
        format!("s{:08x}", self.0)
    }
}

/// The two kinds of entry that every backend can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PlainKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
}

/// What a file that was staged must turn out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// Length in bytes.
    pub size: u64,
    /// BLAKE3 of all of it.
    pub hash: ContentHash,
    /// Time of last change that the file is given.
    pub modified: Timestamp,
}

/// A step of the first phase. Paths are those of the tree before the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClearStep {
    /// Moves what stands at `from`, with all below it, into `slot`.
    Detach {
        /// Where it stands.
        from: RelPath,
        /// Where it waits.
        slot: SlotNo,
        /// What it is.
        kind: PlainKind,
    },
    /// Removes a regular file.
    RemoveFile {
        /// Where it stands.
        path: RelPath,
    },
    /// Removes a directory, which earlier steps have emptied of all that ferryfs knows.
    RemoveDir {
        /// Where it stands.
        path: RelPath,
    },
}

/// A step of the second phase. Paths are those of the tree after the batch. `C` tells of a staged file's content: where
/// it is to come from while the batch is planned, what it is once staged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceStep<C> {
    /// Makes a directory.
    MakeDir {
        /// Where.
        path: RelPath,
    },
    /// Moves what the first phase set aside to its new name.
    Attach {
        /// Where it waits.
        slot: SlotNo,
        /// Where it goes; nothing stands there, or a regular file that a regular file replaces.
        to: RelPath,
        /// What it is.
        kind: PlainKind,
    },
    /// Moves a staged file to its name; a regular file that stands there is replaced.
    Install {
        /// Where it waits.
        slot: SlotNo,
        /// Where it goes.
        to: RelPath,
        /// Its content.
        content: C,
    },
    /// Gives a file, whose bytes stay, another time of last change.
    Touch {
        /// Which.
        path: RelPath,
        /// The time.
        modified: Timestamp,
    },
}

/// All steps of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps<C> {
    /// First phase, in order.
    pub clear: Vec<ClearStep>,
    /// Second phase, in order.
    pub place: Vec<PlaceStep<C>>,
}

impl<C> Default for Steps<C> {
    fn default() -> Self {
        Steps {
            clear: Vec::new(),
            place: Vec::new(),
        }
    }
}

impl<C> Steps<C> {
    /// Whether redoing the first phase after the second has begun could destroy something, so that a synced mark must
    /// stand between them. Removing a file is known by what stands at the path afterwards; a move, or a directory that is
    /// removed, is not: its old path may by then belong to another.
    pub fn needs_barrier(&self) -> bool {
        self.clear
            .iter()
            .any(|step| !matches!(step, ClearStep::RemoveFile { .. }))
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.clear.is_empty() && self.place.is_empty()
    }
}
