//! The planner's promises, held against random trees and edits: applying a plan gives the cut;
//! stopping anywhere and recovering gives it too, also when recovery is stopped and taken up again;
//! what is replaced is never absent.

mod catalog;
mod disk;
mod tree;
mod world;

use std::collections::BTreeMap;
use std::ops::Range;

use ferryfs::plan::planner::{NameKey, Plan, plan};
use proptest::prelude::*;

use disk::{Disk, Listing, Mode, Version};
use tree::{Edit, Tree};
use world::{Chance, Expected, Records, World, text};

/// A file that must stand under its name at every moment, as one of two versions.
struct Standing {
    key: NameKey,
    versions: [Option<Version>; 2],
}

/// One batch under test.
struct Batch {
    plan: Plan,
    /// The backend with everything staged, before the first step.
    start: Disk,
    standing: Vec<Standing>,
    result: Listing,
}

/// Where a batch was stopped: the backend, and whether the mark between the phases is on it.
#[derive(Clone)]
struct Stopped {
    disk: Disk,
    marked: bool,
}

impl Batch {
    fn len(&self) -> usize {
        self.plan.steps.clear.len() + self.plan.steps.place.len()
    }

    /// Takes at most `limit` steps, the first phase only if it is not marked as done.
    fn run(&self, stopped: &mut Stopped, mode: Mode, limit: usize) {
        let steps = &self.plan.steps;
        let mut left = limit;
        if !stopped.marked {
            for step in &steps.clear {
                if left == 0 {
                    return;
                }
                left -= 1;
                self.check(stopped.disk.clear(step, mode), &stopped.disk);
            }
            if left == 0 {
                return;
            }
            stopped.marked = steps.needs_barrier();
        }
        for step in steps.place.iter().take(left) {
            self.check(stopped.disk.place(step, mode), &stopped.disk);
        }
    }

    fn check(&self, outcome: Result<(), String>, disk: &Disk) {
        if let Err(error) = outcome {
            panic!("{error}\n{:#?}", self.plan.steps);
        }
        for file in &self.standing {
            let found = disk.file_in(file.key.parent, &text(&file.key.name));
            let is_whole = found.is_some() && file.versions.iter().any(|it| same(*it, found));
            assert!(
                is_whole,
                "{} is {found:?}\n{:#?}",
                file.key, self.plan.steps
            );
        }
    }

    fn recovers(&self, mut stopped: Stopped) {
        for pass in ["once", "twice"] {
            self.run(&mut stopped, Mode::Redo, usize::MAX);
            let found = stopped.disk.listing();
            assert_eq!(found, self.result, "redone {pass}: {:#?}", self.plan.steps);
            assert!(stopped.disk.slots.is_empty(), "left in slots");
        }
    }

    /// Stops at every step, recovers, also with recovery stopped on its way.
    fn survives_every_stop(&self) {
        for stop in 0..=self.len() {
            let (disk, marked) = (self.start.clone(), false);
            let mut stopped = Stopped { disk, marked };
            self.run(&mut stopped, Mode::First, stop);
            self.recovers(stopped.clone());
            for again in [stop / 2, stop + 1, stop + 3] {
                let mut stopped = stopped.clone();
                self.run(&mut stopped, Mode::Redo, again);
                self.recovers(stopped);
            }
            if stop == self.plan.steps.clear.len() {
                let marked = self.plan.steps.needs_barrier();
                self.recovers(Stopped { marked, ..stopped });
            }
        }
    }
}

/// Equal bytes; the time is set by a step of its own.
fn same(one: Option<Version>, other: Option<Version>) -> bool {
    one.map(|it| it.bytes) == other.map(|it| it.bytes)
}

fn standing(before: &Records, expected: &Expected) -> Vec<Standing> {
    let files = before.iter().filter(|it| it.1.version.is_some());
    let staying = files.filter(|it| !expected.moved_from.contains(it.0));
    staying
        .filter_map(|(key, record)| {
            let after = expected.records.get(key)?.version;
            after.is_some().then(|| Standing {
                key: key.clone(),
                versions: [record.version, after],
            })
        })
        .collect()
}

/// One batch from `before` to `tree`; returns what the index has afterwards.
fn carry_over(before: &Records, tree: &Tree, chance: Chance, folds: bool) -> Records {
    let world = World::new(before, tree, chance);
    let mut delta = world.delta();
    let made = plan(&delta).unwrap();
    delta.names.reverse();
    let again = plan(&delta).unwrap();
    assert_eq!(made.steps, again.steps, "the order of the names shows");
    assert_eq!(made.outcomes, again.outcomes);
    assert_eq!(made.left_behind, again.left_behind);

    let expected = world.expected();
    let mut start = world::disk(before, folds);
    let staged = start.stage(&made);
    let after = world.concluded(&made, &staged);
    assert_eq!(after, expected.records, "outcomes: {:#?}", made.outcomes);
    let left = made
        .left_behind
        .iter()
        .map(|it| (it.key.clone(), it.reason));
    assert_eq!(left.collect::<BTreeMap<_, _>>(), expected.left);
    assert!(made.leftovers.iter().eq(&expected.leftovers));

    let batch = Batch {
        plan: made,
        start,
        standing: standing(before, &expected),
        result: world::listing(&expected.records),
    };
    batch.survives_every_stop();
    catalog::follows(&batch, &world.paths_after(&batch.plan));
    after
}

fn edits(count: Range<usize>) -> impl Strategy<Value = Vec<Edit>> {
    let edit = (any::<u8>(), any::<u16>(), any::<u16>(), any::<u8>());
    let edit = edit.prop_map(|(what, one, two, name)| Edit {
        what,
        one,
        two,
        name,
    });
    prop::collection::vec(edit, count)
}

/// How a tree grows, and then batches of a few edits each; with the seed of each batch's chances.
#[derive(Clone, Debug)]
struct Rounds {
    grow: Vec<Edit>,
    first: u64,
    later: Vec<(Vec<Edit>, u64)>,
}

fn rounds() -> impl Strategy<Value = Rounds> {
    let later = prop::collection::vec((edits(1..8), any::<u64>()), 1..4);
    (edits(4..28), any::<u64>(), later).prop_map(|(grow, first, later)| Rounds {
        grow,
        first,
        later,
    })
}

fn play(rounds: &Rounds, folds: bool) {
    let mut tree = Tree::new(folds);
    rounds.grow.iter().for_each(|edit| tree.grow(edit));
    let mut records = carry_over(&Records::new(), &tree, Chance(rounds.first), folds);
    for (edits, chance) in &rounds.later {
        edits.iter().for_each(|edit| tree.edit(edit));
        records = carry_over(&records, &tree, Chance(*chance), folds);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn every_batch_stopped_anywhere_ends_as_the_cut(rounds in rounds()) {
        play(&rounds, false);
    }

    #[test]
    fn every_batch_stopped_anywhere_ends_as_the_cut_without_case(rounds in rounds()) {
        play(&rounds, true);
    }
}
