//! Names that must not be touched in the second phase, because of what was refused before. Derived
//! from the steps and the refusals alone, so that a replay comes to the same result.

use std::collections::{HashMap, HashSet};

use crate::apply::moves::Moves;
use crate::apply::refused::{Refused, StepNo, Why};
use crate::core::RelPath;
use crate::format::steps::{ClearStep, PlaceStep, SlotNo, Steps};
use crate::plan::units::database_of;

/// Names that must not be touched in the second phase, because of what was refused before.
#[derive(Default)]
pub(crate) struct Blocked {
    occupied: HashSet<RelPath>,
    missing: HashSet<RelPath>,
    /// The slots of files that could not be detached from their old names, with the reason.
    empty: HashMap<SlotNo, Why>,
}

impl Blocked {
    /// The state after the first phase.
    pub(crate) fn after_clear<C>(steps: &Steps<C>, refused: &Refused) -> Blocked {
        let moves = Moves::of(steps);
        let mut blocked = Blocked::default();
        for refusal in &refused.steps {
            let StepNo::Clear(number) = refusal.step else {
                continue;
            };
            let Some(step) = steps.clear.get(number) else {
                continue;
            };
            blocked.occupied.insert(moves.new_path(step.path()));
            blocked.occupied.insert(step.path().clone());
            if let ClearStep::Detach { slot, .. } = step {
                blocked.empty.insert(*slot, refusal.why.clone());
            }
        }
        blocked
    }

    /// Notes that the directory or database that was to be at `path` is not there.
    pub(crate) fn note_missing(&mut self, path: &RelPath) {
        self.missing.insert(path.clone());
    }

    /// Returns why a step must not be taken; `None` if it may be.
    pub(crate) fn why_not<C>(&self, step: &PlaceStep<C>, refused: &Refused) -> Option<Why> {
        if let PlaceStep::Link { from, .. } = step
            && (refused.has_name(from) || self.why(from).is_some())
        {
            // The file at `from` is another one, or another version, than the one that gets a
            // further name.
            return Some(Why::Occupied);
        }
        if let PlaceStep::Attach { slot, .. } = step
            && let Some(why) = self.empty.get(slot)
        {
            // It could not be detached from its old name, so it does not get the new one.
            return Some(why.clone());
        }
        self.why(step.path())
    }

    /// Returns why the name at `path` must be left alone; `None` if it need not be.
    pub(crate) fn why(&self, path: &RelPath) -> Option<Why> {
        if self.occupied.contains(path) {
            return Some(Why::Occupied);
        }
        if self.missing.is_empty() {
            return None;
        }
        // A database comes before its journals, because the steps are in the order of their paths.
        if database_of(path.as_bytes()).len() < path.as_bytes().len()
            && RelPath::parse(database_of(path.as_bytes()))
                .is_ok_and(|database| self.missing.contains(&database))
        {
            return Some(Why::NoDatabase);
        }
        let mut at = path.split_last();
        while let Some((dir, _)) = at {
            if self.missing.contains(&dir) {
                return Some(Why::NoDirectory);
            }
            at = dir.split_last();
        }
        None
    }
}

/// Notes the steps of the second phase that cannot be taken because of earlier refusals: their name
/// stays occupied, their slot is empty, or their directory is not there.
pub(crate) fn note_blocked<C>(steps: &Steps<C>, refused: &mut Refused) -> Blocked {
    let mut blocked = Blocked::after_clear(steps, refused);
    for (number, step) in steps.place.iter().enumerate() {
        let no = StepNo::Place(number);
        if let Some(why) = blocked.why_not(step, refused) {
            refused.note(no, step.path(), why);
        }
        if refused.has(no) {
            blocked.note_missing(step.path());
        }
    }
    blocked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::moves::tests::{attach, detach, path};
    use crate::format::steps::PlainKind;

    #[test]
    fn what_depends_on_a_refused_step_is_left_alone() {
        let steps = Steps {
            clear: vec![
                detach("d", 0, PlainKind::Directory),
                ClearStep::RemoveFile { path: path("d/f") },
            ],
            place: vec![attach(0, "e", PlainKind::Directory)],
            ..Steps::default()
        };
        let mut refused = Refused::default();
        refused.note(StepNo::Clear(1), &path("d/f"), Why::Errno(libc::EPERM));
        let mut blocked = Blocked::after_clear(&steps, &refused);
        assert_eq!(blocked.why(&path("e/f")), Some(Why::Occupied));
        assert_eq!(blocked.why(&path("e/g")), None);
        blocked.note_missing(&path("n"));
        assert_eq!(blocked.why(&path("n/x/y")), Some(Why::NoDirectory));
        assert_eq!(blocked.why(&path("nn")), None);
    }

    #[test]
    fn the_journals_of_a_refused_database_are_not_put_beside_the_older_one() {
        let mut blocked = Blocked::default();
        blocked.note_missing(&path("d/lab.db"));
        for journal in ["d/lab.db-wal", "d/lab.db-journal"] {
            assert_eq!(blocked.why(&path(journal)), Some(Why::NoDatabase));
        }
        for other in ["d/other.db-wal", "lab.db-wal", "d/lab.db2", "d/lab.db-shm"] {
            assert_eq!(blocked.why(&path(other)), None, "{other}");
        }
    }

    #[test]
    fn both_names_of_a_refused_move_have_one_reason() {
        let steps = Steps {
            clear: vec![detach("d", 0, PlainKind::Directory)],
            place: vec![
                attach(0, "e", PlainKind::Directory),
                PlaceStep::MakeDir { path: path("e/n") },
            ],
            ..Steps::default()
        };
        let mut refused = Refused::default();
        let busy = Why::Errno(libc::EBUSY);
        refused.note(StepNo::Clear(0), &path("d"), busy.clone());
        note_blocked(&steps, &mut refused);
        let reasons: Vec<&Why> = refused.steps.iter().map(|it| &it.why).collect();
        assert_eq!(reasons, [&busy, &busy, &Why::NoDirectory]);
    }
}
