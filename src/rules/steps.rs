//! The steps of a batch on the backend, in the order in which they are taken.
//!
//! A batch first *clears*: in the names of the tree before it, deepest first, whatever goes away is removed and whatever
//! moves is set aside into a numbered slot of the batch's staging directory. Then it *places*: in the names of the tree
//! after it, parents first, directories are made and put back, then files are moved from their slots to their names. Going through slots makes every
//! cycle of names, swap and case-only rename an ordinary move.

use std::collections::HashSet;

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
        let fills = |step: &PlaceStep<C>| match step {
            PlaceStep::MakeDir { path: to }
            | PlaceStep::Attach { to, .. }
            | PlaceStep::Install { to, .. } => {
                (to.split_last()).is_some_and(|(dir, _)| emptied.contains(&dir))
            }
            PlaceStep::Touch { .. } => false,
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
        self.clear.is_empty() && self.place.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(clear: Vec<ClearStep>, place: Vec<PlaceStep<()>>) -> Steps<()> {
        Steps { clear, place }
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
