//! Where the directories that a batch moves are after it, to translate old paths.

use std::collections::{HashMap, HashSet};

use crate::apply::refused::{Refused, StepNo};
use crate::core::RelPath;
use crate::format::steps::{ClearStep, PlaceStep, PlainKind, SlotNo, Steps};

/// Where the directories that a batch moves are after it, to translate old paths.
pub(crate) struct Moves {
    dirs: HashMap<RelPath, RelPath>,
    /// Directories that are removed: another one may get the path.
    removed: HashSet<RelPath>,
}

impl Moves {
    /// Assumes that all steps are taken.
    pub(crate) fn of<C>(steps: &Steps<C>) -> Moves {
        Moves::without(steps, &Refused::default())
    }

    /// Assumes that all steps but the refused ones are taken. A directory that was detached but not
    /// attached counts as unmoved, until [`Moves::note`].
    pub(crate) fn without<C>(steps: &Steps<C>, refused: &Refused) -> Moves {
        let mut slots: HashMap<SlotNo, &RelPath> = HashMap::new();
        for (number, step) in steps.place.iter().enumerate() {
            if let PlaceStep::Attach { slot, to, .. } = step
                && !refused.has(StepNo::Place(number))
            {
                slots.insert(*slot, to);
            }
        }
        let moved = steps.clear.iter().filter_map(|step| match step {
            ClearStep::Detach {
                from,
                slot,
                kind: PlainKind::Directory,
            } => Some((from.clone(), (*slots.get(slot)?).clone())),
            _ => None,
        });
        let removed = steps.clear.iter().enumerate();
        let removed = removed.filter_map(|(number, step)| match step {
            ClearStep::RemoveDir { path } if !refused.has(StepNo::Clear(number)) => {
                Some(path.clone())
            }
            _ => None,
        });
        Moves {
            dirs: moved.collect(),
            removed: removed.collect(),
        }
    }

    /// Returns the path to which a file from `old` is put back; `None` if its directory is gone.
    pub(crate) fn place_back(&self, old: &RelPath) -> Option<RelPath> {
        let (dir, _) = old.split_last()?;
        (!self.removed.contains(&dir)).then(|| self.new_path(old))
    }

    /// Notes that the file that was to be moved from `from` is at `path` now.
    pub(crate) fn note(&mut self, from: &RelPath, path: RelPath) {
        self.dirs.insert(from.clone(), path);
    }

    /// Returns the path after the batch of the name that is `old` before it, if its directory
    /// exists then.
    pub(crate) fn new_path(&self, old: &RelPath) -> RelPath {
        let Some((dir, name)) = old.split_last() else {
            return old.clone();
        };
        self.new_dir(&dir).join(&name)
    }

    fn new_dir(&self, old: &RelPath) -> RelPath {
        // Not recursive: a tree may be deeper than a stack.
        let mut below = Vec::new();
        let mut at = old.clone();
        let mut new = loop {
            if let Some(new) = self.dirs.get(&at) {
                break new.clone();
            }
            match at.split_last() {
                Some((above, name)) => {
                    below.push(name);
                    at = above;
                }
                None => return old.clone(),
            }
        };
        for name in below.iter().rev() {
            new = new.join(name);
        }
        new
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::apply::refused::Why;

    pub(in crate::apply) fn path(text: &'static str) -> RelPath {
        RelPath::fixed(text)
    }

    pub(in crate::apply) fn detach(from: &'static str, slot: u32, kind: PlainKind) -> ClearStep {
        ClearStep::Detach {
            from: path(from),
            slot: SlotNo(slot),
            kind,
        }
    }

    pub(in crate::apply) fn attach(slot: u32, to: &'static str, kind: PlainKind) -> PlaceStep<()> {
        PlaceStep::Attach {
            slot: SlotNo(slot),
            to: path(to),
            kind,
        }
    }

    #[test]
    fn an_old_path_is_followed_through_directories_that_move() {
        let dir = PlainKind::Directory;
        let steps = Steps {
            clear: vec![detach("a/b", 0, dir), detach("a", 1, dir)],
            place: vec![attach(1, "x", dir), attach(0, "y", dir)],
            ..Steps::default()
        };
        let moves = Moves::of(&steps);
        let new = |old| moves.new_path(&path(old)).to_string();
        assert_eq!(new("a/f"), "x/f");
        assert_eq!(new("a/b/f"), "y/f");
        assert_eq!(new("a/b"), "x/b");
        assert_eq!(new("a"), "a");
        assert_eq!(new("other/a/f"), "other/a/f");
    }

    #[test]
    fn what_was_moved_is_put_back_only_where_its_directory_still_is() {
        let dir = PlainKind::Directory;
        let steps = Steps {
            clear: vec![
                detach("c/a", 0, dir),
                detach("c", 1, dir),
                detach("r/x", 2, dir),
                ClearStep::RemoveDir { path: path("r") },
            ],
            place: vec![attach(1, "p/a", dir), attach(0, "p/a/d", dir)],
            ..Steps::default()
        };
        let mut refused = Refused::default();
        let back = |refused: &Refused, old| {
            let place = Moves::without(&steps, refused).place_back(&path(old));
            place.map(|path| path.to_string())
        };
        assert_eq!(back(&refused, "c/a").as_deref(), Some("p/a/a"));
        assert_eq!(back(&refused, "r/x"), None);
        refused.note(StepNo::Place(0), &path("p/a"), Why::Occupied);
        refused.note(StepNo::Clear(3), &path("r"), Why::Errno(libc::EPERM));
        assert_eq!(back(&refused, "c/a").as_deref(), Some("c/a"));
        assert_eq!(back(&refused, "r/x").as_deref(), Some("r/x"));
        let mut moves = Moves::without(&steps, &refused);
        moves.note(&path("c"), path("ferryfs-1-1"));
        let place = moves.place_back(&path("c/a"));
        assert_eq!(place.expect("a place").to_string(), "ferryfs-1-1/a");
    }
}
