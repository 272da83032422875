//! The steps of a batch on the backend, in the order in which they are taken.
//!
//! A batch first *clears*: in the names of the tree before it, deepest first, whatever goes away is removed and whatever
//! moves is set aside into a numbered slot of the batch's staging directory. Then it *places*: in the names of the tree
//! after it, parents first, directories are made and put back, then files are moved from their slots to their names, and last
//! further names are given to what stands. Going through slots makes every cycle of names, swap and case-only rename an ordinary move.
//! When everything has its name, it gets its *attributes*, where the backend has them.

use std::collections::HashSet;

use crate::base::{ContentHash, FileKind, RelPath, Timestamp};

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

/// What is neither a regular file nor a directory, on a backend that can hold it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// A symbolic link.
    Symlink {
        /// Where it points, byte for byte: 1 to [`MAX_TARGET_BYTES`] bytes without NUL.
        target: Box<[u8]>,
    },
    /// A named pipe.
    Fifo,
    /// A Unix-domain socket's name.
    Socket,
    /// A character device.
    CharDevice {
        /// Its number.
        rdev: u32,
    },
    /// A block device.
    BlockDevice {
        /// Its number.
        rdev: u32,
    },
}

/// Longest target of a symbolic link, in bytes: what Linux takes (`PATH_MAX` with its NUL).
pub const MAX_TARGET_BYTES: usize = 4095;

impl Node {
    /// The size that is told of it, in bytes: the length of a link's target, else 0.
    pub fn size(&self) -> u64 {
        match self {
            Node::Symlink { target } => target.len() as u64,
            _ => 0,
        }
    }

    /// What kind of entry it is.
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

/// What a name on the backend is given once everything has its name. What is `None` stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeStep {
    /// Which, in the tree after the batch; the root, empty, for the volume's own directory.
    pub path: RelPath,
    /// Permission bits, `0o7777`.
    pub mode: Option<u32>,
    /// Number of the owner.
    pub owner: Option<u32>,
    /// Number of the group.
    pub group: Option<u32>,
    /// Time of last change.
    pub modified: Option<Timestamp>,
    /// All extended attributes that it is to have, in ascending order of their names.
    pub xattrs: Option<Vec<Xattr>>,
}

impl AttributeStep {
    /// A step that changes nothing of `path` yet.
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
    /// Moves a staged node to its name; what stands there and is no directory is replaced.
    InstallNode {
        /// Where it waits.
        slot: SlotNo,
        /// Where it goes.
        to: RelPath,
        /// What it is.
        node: Node,
    },
    /// Gives what stands at `from` the further name `to`. Comes after everything that is moved to its name.
    Link {
        /// A name that it has, after the batch; no directory.
        from: RelPath,
        /// The further name; a regular file that stands there is replaced.
        to: RelPath,
    },
    /// Gives a file, whose bytes stay, another time of last change.
    Touch {
        /// Which.
        path: RelPath,
        /// The time.
        modified: Timestamp,
    },
}

impl ClearStep {
    /// Where what it clears stands.
    pub fn path(&self) -> &RelPath {
        match self {
            ClearStep::Detach { from: path, .. }
            | ClearStep::RemoveFile { path }
            | ClearStep::RemoveDir { path } => path,
        }
    }
}

impl<C> PlaceStep<C> {
    /// The name that it fills, or changes.
    pub fn path(&self) -> &RelPath {
        match self {
            PlaceStep::MakeDir { path }
            | PlaceStep::Attach { to: path, .. }
            | PlaceStep::Install { to: path, .. }
            | PlaceStep::InstallNode { to: path, .. }
            | PlaceStep::Link { to: path, .. }
            | PlaceStep::Touch { path, .. } => path,
        }
    }
}

/// All steps of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps<C> {
    /// First phase, in order.
    pub clear: Vec<ClearStep>,
    /// Second phase, in order.
    pub place: Vec<PlaceStep<C>>,
    /// What is set when everything has its name. What is in a directory comes before the directory, which may take away the right
    /// to reach it. Repeating them does no harm.
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
    /// Whether redoing the first phase after the second has begun could destroy something, so that a synced mark must
    /// stand between them.
    ///
    /// A move, or a directory that is removed, always asks for one: the old path may by then belong to another. Where
    /// nothing but files is removed, no directory changes its path, and a file's path can only be filled again from within
    /// its own directory: by a directory under the same name, or by a file or directory under a name that the backend
    /// takes for the same (`Foo` and `foo`, composed and decomposed letters, the short names of FAT and SMB). Which names
    /// those are cannot be known here, so any new name in that directory asks for a mark.
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
            !matches!(step, PlaceStep::Touch { .. })
                && dir().is_some_and(|it| emptied.contains(&it))
        };
        !emptied.is_empty() && self.place.iter().any(fills)
    }

    /// Whether the second phase takes space that the first has freed, so that a sync must stand between them where no mark does.
    /// Else, where the backend has no journal, a crash may bring back a name whose clusters a new directory has got.
    pub fn needs_sync_between(&self) -> bool {
        let makes_dir = |step: &PlaceStep<C>| matches!(step, PlaceStep::MakeDir { .. });
        !self.clear.is_empty() && self.place.iter().any(makes_dir)
    }

    /// Whether there is nothing to do.
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
