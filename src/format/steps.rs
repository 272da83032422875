//! The steps of a batch on the backend, in order.
//!
//! A batch first *clears*, in paths of the tree before it, deepest first: what ends is removed, and
//! what moves is detached into a numbered slot of the staging directory. Then it *places*, in paths
//! of the tree after it, parents first: directories are created and attached, then files move from
//! slots to their names, then further links are created. Through slots, every cycle of names, swap
//! and case-only rename is an ordinary move. Last, entries get their *attributes*, where the
//! backend has them.

use std::collections::HashSet;

use crate::core::{ContentHash, FileKind, RelPath, Timestamp};

/// Number of a slot within one batch: one name in its staging directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotNo(pub u32);

impl SlotNo {
    /// Returns the file name in the staging directory: `s` and eight hexadecimal digits.
    pub fn file_name(self) -> String {
        format!("s{:08x}", self.0)
    }
}

/// The kinds of entries that every backend can store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PlainKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
}

/// An entry that is neither a regular file nor a directory, on a backend that can store it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// A symbolic link.
    Symlink {
        /// The target: 1 to [`MAX_TARGET_BYTES`](crate::core::MAX_TARGET_BYTES) bytes without NUL.
        target: Box<[u8]>,
    },
    /// A named pipe.
    Fifo,
    /// A Unix-domain socket's name.
    Socket,
    /// A character device.
    CharDevice {
        /// The device number.
        rdev: u32,
    },
    /// A block device.
    BlockDevice {
        /// The device number.
        rdev: u32,
    },
}

impl Node {
    /// Returns the size that a backend reports, in bytes: the length of a link's target, else 0.
    pub fn size(&self) -> u64 {
        match self {
            Node::Symlink { target } => target.len() as u64,
            _ => 0,
        }
    }

    /// Returns the kind.
    pub fn kind(&self) -> FileKind {
        match self {
            Node::Symlink { .. } => FileKind::Symlink,
            Node::Fifo => FileKind::Fifo,
            Node::Socket => FileKind::Socket,
            Node::CharDevice { .. } => FileKind::CharDevice,
            Node::BlockDevice { .. } => FileKind::BlockDevice,
        }
    }
}

/// Name and value of an extended attribute.
pub type Xattr = (Box<[u8]>, Box<[u8]>);

/// The attributes of an entry, set after all entries have their names. `None` leaves one unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeStep {
    /// The path in the tree after the batch; empty for the root of the volume.
    pub path: RelPath,
    /// Permission bits, `0o7777`.
    pub mode: Option<u32>,
    /// Number of the owner.
    pub owner: Option<u32>,
    /// Number of the group.
    pub group: Option<u32>,
    /// Modification time.
    pub modified: Option<Timestamp>,
    /// All extended attributes, in ascending order of their names.
    pub xattrs: Option<Vec<Xattr>>,
}

impl AttributeStep {
    /// Returns a step for `path` that changes nothing.
    pub fn new(path: RelPath) -> AttributeStep {
        AttributeStep {
            path,
            mode: None,
            owner: None,
            group: None,
            modified: None,
            xattrs: None,
        }
    }
}

/// The content that a staged file must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// Length in bytes.
    pub size: u64,
    /// BLAKE3 of all bytes.
    pub hash: ContentHash,
    /// The modification time that the file gets.
    pub modified: Timestamp,
}

/// A staged patch, a file of [`crate::format::patch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchFile {
    /// Length in bytes.
    pub size: u64,
    /// BLAKE3 of all bytes.
    pub hash: ContentHash,
}

/// A step of the first phase. Paths are those of the tree before the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClearStep {
    /// Moves the entry at `from`, with everything below it, into `slot`.
    Detach {
        /// The path.
        from: RelPath,
        /// The slot.
        slot: SlotNo,
        /// The kind of the entry.
        kind: PlainKind,
    },
    /// Removes a regular file.
    RemoveFile {
        /// The path.
        path: RelPath,
    },
    /// Removes a directory, which earlier steps have emptied as far as ferryfs knows its contents.
    RemoveDir {
        /// The path.
        path: RelPath,
    },
}

/// A step of the second phase. Paths are those of the tree after the batch. `C` is the content of a
/// staged file: its source in a plan, its size and hash once it is staged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceStep<C> {
    /// Creates a directory.
    MakeDir {
        /// The path.
        path: RelPath,
    },
    /// Moves a detached entry to its new name.
    Attach {
        /// The slot.
        slot: SlotNo,
        /// The path. It is free, or a regular file there is replaced by a regular file.
        to: RelPath,
        /// The kind of the entry.
        kind: PlainKind,
    },
    /// Moves a staged file to its name and replaces a regular file there.
    Install {
        /// The slot.
        slot: SlotNo,
        /// The path.
        to: RelPath,
        /// Its content.
        content: C,
    },
    /// Writes the blocks of a staged patch into the regular file that is at `to` before the batch
    /// and keeps its name.
    Patch {
        /// The slot. The patch is beside it, under a name of its own.
        slot: SlotNo,
        /// The path.
        to: RelPath,
        /// The content that the file has afterwards.
        content: C,
        /// The patch.
        patch: PatchFile,
    },
    /// Moves a staged node to its name and replaces any entry there except a directory.
    InstallNode {
        /// The slot.
        slot: SlotNo,
        /// The path.
        to: RelPath,
        /// The node.
        node: Node,
    },
    /// Gives the entry at `from` the further name `to`. Comes after all moves.
    Link {
        /// A name of it after the batch; not a directory.
        from: RelPath,
        /// The further name; a regular file there is replaced.
        to: RelPath,
    },
    /// Changes the modification time of a file whose bytes stay.
    Touch {
        /// The path.
        path: RelPath,
        /// The time.
        modified: Timestamp,
    },
}

impl ClearStep {
    /// Returns the path that the step clears.
    pub fn path(&self) -> &RelPath {
        match self {
            ClearStep::Detach { from: path, .. }
            | ClearStep::RemoveFile { path }
            | ClearStep::RemoveDir { path } => path,
        }
    }
}

impl<C> PlaceStep<C> {
    /// Returns the path that the step fills or changes.
    pub fn path(&self) -> &RelPath {
        match self {
            PlaceStep::MakeDir { path }
            | PlaceStep::Attach { to: path, .. }
            | PlaceStep::Install { to: path, .. }
            | PlaceStep::Patch { to: path, .. }
            | PlaceStep::InstallNode { to: path, .. }
            | PlaceStep::Link { to: path, .. }
            | PlaceStep::Touch { path, .. } => path,
        }
    }
}

/// All steps of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps<C> {
    /// The first phase, in order.
    pub clear: Vec<ClearStep>,
    /// The second phase, in order.
    pub place: Vec<PlaceStep<C>>,
    /// Attributes, set after all entries have their names. The contents of a directory come before
    /// the directory, whose mode may deny access to them. Repetition is harmless.
    pub attributes: Vec<AttributeStep>,
}

impl<C> Default for Steps<C> {
    fn default() -> Self {
        Steps {
            clear: Vec::new(),
            place: Vec::new(),
            attributes: Vec::new(),
        }
    }
}

impl<C> Steps<C> {
    /// Returns whether a repetition of the first phase after the beginning of the second could
    /// destroy something, so that a synced mark must separate them.
    ///
    /// A move or the removal of a directory always needs one: another entry may have the old path
    /// by then. If only files are removed, no directory changes its path, and only a step in the
    /// same directory can fill a removed file's path again: a directory with that name, or an entry
    /// whose name is equal for the backend (`Foo` and `foo`, composed and decomposed letters, the
    /// short names of FAT and SMB). Which names are equal is not known here, so any new name in
    /// that directory needs a mark.
    pub fn needs_barrier(&self) -> bool {
        let mut emptied = HashSet::new();
        for step in &self.clear {
            match step {
                ClearStep::RemoveFile { path } => emptied.extend(path.split_last().map(|it| it.0)),
                ClearStep::Detach { .. } | ClearStep::RemoveDir { .. } => return true,
            }
        }
        let fills = |step: &PlaceStep<C>| {
            let dir = || step.path().split_last().map(|it| it.0);
            !matches!(step, PlaceStep::Touch { .. } | PlaceStep::Patch { .. })
                && dir().is_some_and(|it| emptied.contains(&it))
        };
        !emptied.is_empty() && self.place.iter().any(fills)
    }

    /// Returns whether the second phase takes space that the first has freed, so that a sync must
    /// separate them even without a mark. Without it, on a backend without a journal, a crash may
    /// bring back a name whose clusters a new directory, or a file that has grown, has got.
    pub fn needs_sync_between(&self) -> bool {
        let takes_space = |step: &PlaceStep<C>| {
            matches!(step, PlaceStep::MakeDir { .. } | PlaceStep::Patch { .. })
        };
        !self.clear.is_empty() && self.place.iter().any(takes_space)
    }

    /// Returns whether there are no steps.
    pub fn is_empty(&self) -> bool {
        self.clear.is_empty() && self.place.is_empty() && self.attributes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(clear: Vec<ClearStep>, place: Vec<PlaceStep<()>>) -> Steps<()> {
        Steps {
            clear,
            place,
            ..Steps::default()
        }
    }

    fn remove(path: &'static str) -> ClearStep {
        ClearStep::RemoveFile {
            path: RelPath::fixed(path),
        }
    }

    fn install(to: &'static str) -> PlaceStep<()> {
        PlaceStep::Install {
            slot: SlotNo(0),
            to: RelPath::fixed(to),
            content: (),
        }
    }

    #[test]
    fn a_removed_file_whose_name_may_come_back_asks_for_a_mark() {
        let respelled = steps(vec![remove("d/Foo")], vec![install("d/foo")]);
        assert!(respelled.needs_barrier());
        let at_the_root = steps(vec![remove("Foo")], vec![install("foo")]);
        assert!(at_the_root.needs_barrier());
        let path = RelPath::fixed("d/a");
        let directory = steps(vec![remove("d/a")], vec![PlaceStep::MakeDir { path }]);
        assert!(directory.needs_barrier());
    }

    #[test]
    fn removals_and_new_files_in_different_directories_need_no_mark() {
        let apart = steps(
            vec![remove("d/a")],
            vec![install("e/a"), install("d/sub/a")],
        );
        assert!(!apart.needs_barrier());
        assert!(!steps(vec![remove("d/a")], vec![]).needs_barrier());
        assert!(!steps(vec![], vec![install("d/a")]).needs_barrier());
    }

    #[test]
    fn a_removed_directory_always_asks_for_a_mark() {
        let path = RelPath::fixed("d");
        assert!(steps(vec![ClearStep::RemoveDir { path }], vec![]).needs_barrier());
    }
}
