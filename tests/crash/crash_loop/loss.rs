//! A flush, or a recovery, that stops at its n-th call while the drive loses power as exFAT does:
//! each directory entry, each run of bytes that was written since the last sync arrives or does
//! not, in no order.
//!
//! Recovery then makes the drive the tree of the cut or of the state before it, and sound again.
//! The one thing that may be missing is what was moved, was only on the drive, and is there under
//! neither name: nobody has its bytes any more. Each such file must be one of those, and named by
//! the next flush.

use std::cell::Cell;
use std::collections::BTreeSet;

use ferryfs::core::RelPath;
use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::{Crash, MemNode};
use ferryfs::vfs::RenameMode;

use super::full::{fill, relent, small};
use super::scene::Scene;
use super::{a_few_edits, calls, is_thorough, random_edits};
use crate::engine::check::{Finding, check_drive, told};
use crate::engine::rng::Rng;
use crate::engine::tree::{Tree, user_part};
use crate::engine::{Engine, Kind};

/// More with `FERRYFS_CRASH_DRAWS`.
fn draws() -> u64 {
    let asked = std::env::var("FERRYFS_CRASH_DRAWS");
    asked.ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// What went wrong in one case: which, what, and what the crash had kept.
type Failure = (String, String, Vec<String>);

/// Files that a crash had left under no name, and those of them that nothing brought back.
struct Lost {
    on_nothing: usize,
    gone: usize,
}

/// How a run of many cases went.
#[derive(Default)]
struct Tally {
    cases: usize,
    /// Files that nobody has any more, and nobody could have saved.
    gone: usize,
    /// Files that were under no name right after the crash, nor in an object.
    on_nothing: usize,
    failures: Vec<Failure>,
}

impl Tally {
    fn note(&mut self, case: String, story: Vec<String>, outcome: Result<Lost, String>) {
        self.cases += 1;
        match outcome {
            Ok(lost) => {
                self.gone += lost.gone;
                self.on_nothing += lost.on_nothing;
            }
            Err(what) => self.failures.push((case, what, story)),
        }
    }

    /// Fails if any case did, telling the one with the shortest story.
    fn close(mut self, name: &str) {
        let (cases, failed) = (self.cases, self.failures.len());
        println!(
            "{name}: {cases} cases, {failed} failed, {} files under no name and in no object, {} of them gone for good",
            self.on_nothing, self.gone
        );
        self.failures.sort_by_key(|(_, _, story)| story.len());
        let Some((case, what, story)) = self.failures.first() else {
            return;
        };
        let cases: Vec<&str> = self
            .failures
            .iter()
            .map(|it| it.0.as_str())
            .take(40)
            .collect();
        panic!(
            "{name}: {failed} of {} cases failed: {}\nthe shortest, {case}: {what}\nwhat the crash left:\n  {}",
            self.cases,
            cases.join("; "),
            story.join("\n  ")
        );
    }
}

/// Whether what is at `path` is anywhere on the drive: a file's bytes, or a directory of that name.
fn is_anywhere(tree: &Tree, path: &RelPath, node: &MemNode) -> bool {
    let last = path.split_last().map(|it| it.1);
    tree.iter().any(|(other, at)| match (at, node) {
        (MemNode::File { bytes: there, .. }, MemNode::File { bytes, .. }) => there == bytes,
        (MemNode::Directory, MemNode::Directory) => other.split_last().map(|it| it.1) == last,
        _ => false,
    })
}

/// What of `tree` the crash has taken for good: files that are nowhere on the drive, whole, nor in
/// the cache.
fn gone_from(scene: &Scene, tree: &Tree, crashed: &Tree) -> BTreeSet<RelPath> {
    let lost = tree.iter().filter(|(path, node)| {
        let cached = scene.mount.contains_key(path) && scene.engine.is_cached(&path.to_string());
        !cached && matches!(node, MemNode::File { .. }) && !is_anywhere(crashed, path, node)
    });
    lost.map(|(path, _)| path.clone()).collect()
}

fn without(tree: &Tree, gone: &BTreeSet<RelPath>) -> Tree {
    let kept = tree.iter().filter(|(path, _)| !gone.contains(*path));
    kept.map(|(path, node)| (path.clone(), node.clone()))
        .collect()
}

fn none(findings: Vec<Finding>, when: &str) -> Result<(), String> {
    match findings.is_empty() {
        true => Ok(()),
        false => Err(format!("{when}:{}", told(&findings))),
    }
}

impl Scene {
    /// Recovers after a crash that has left `crashed`, and looks at everything. Gives the files
    /// that are gone.
    fn recover_after_loss(&self, crashed: &Tree, all_cached: bool) -> Result<Lost, String> {
        let recover = |what: &str| {
            let done = self.engine.flusher.recover();
            done.map_err(|error| format!("{what}: {error}"))
        };
        let gone_cut = gone_from(self, &self.cut, crashed);
        let gone_before = gone_from(self, &self.before, crashed);
        recover("recover")?;
        let recovered = self.world.memory.tree();
        // What was moved and lost, but is in the cache, and what was in a directory that was moved
        // and lost, may come with the next flush only.
        let missing = |of: &Tree| -> BTreeSet<RelPath> {
            let drive = self.world.as_mounted(user_part(recovered.clone()));
            let lost = of.iter().filter(|(path, node)| {
                !drive.contains_key(*path) && !is_anywhere(crashed, path, node)
            });
            lost.map(|(path, _)| path.clone()).collect()
        };
        let (cut, before) = (&self.cut, &self.before);
        let cuts = [
            ("the state before", &without(before, &missing(before))),
            ("the cut", &without(cut, &missing(cut))),
        ];
        none(
            check_drive(&self.world.drive_tree(), &cuts, false),
            "recovered",
        )?;
        none(self.world.findings(&self.engine), "recovered")?;
        recover("recover again")?;
        if self.world.memory.tree() != recovered {
            return Err("recovering again changed the drive".into());
        }
        let report = self
            .engine
            .flush()
            .map_err(|error| format!("the next flush: {error}"))?;
        let named: BTreeSet<String> = report
            .left_behind
            .iter()
            .map(|left| left.0.clone())
            .collect();
        let drive = self.world.drive_tree();
        let lost: BTreeSet<RelPath> = cut
            .keys()
            .filter(|path| !drive.contains_key(*path))
            .cloned()
            .collect();
        if all_cached && !lost.is_empty() {
            return Err(format!("lost, although the cache has it: {lost:?}"));
        }
        let wrongly: Vec<_> = lost
            .iter()
            .filter(|path| !gone_cut.contains(*path) && !gone_before.contains(*path))
            .collect();
        if !wrongly.is_empty() {
            return Err(format!("lost, although the drive had it: {wrongly:?}"));
        }
        let unnamed: Vec<_> = lost
            .iter()
            .filter(|path| !named.contains(&path.to_string()))
            .collect();
        if !unnamed.is_empty() {
            return Err(format!(
                "lost and not named by the flush: {unnamed:?}; named: {named:?}"
            ));
        }
        let wanted = [("the cut", &without(cut, &lost))];
        none(check_drive(&drive, &wanted, false), "the next flush")?;
        none(self.world.findings(&self.engine), "the next flush")?;
        none(self.world.left_of_batches(&self.engine), "the next flush")?;
        none(self.version_findings(), "versions")?;
        let seen = self.engine.readable_tree();
        for (path, was) in &self.mount {
            let now = seen.get(path).map(|seen| &seen.bytes);
            if now != Some(&was.bytes) && !lost.contains(path) {
                return Err(format!(
                    "{path} in the mount is {now:?}, was {:?}",
                    was.bytes
                ));
            }
        }
        Ok(Lost {
            on_nothing: gone_cut.len(),
            gone: lost.len(),
        })
    }
}

/// Stops a flush at every call; the drive loses a random part each time.
pub(super) fn lose_at_every_call(
    name: &str,
    all_cached: bool,
    seed: u64,
    make: impl Fn(u64) -> Scene,
) {
    lose_at_every_call_drawing(draws(), name, all_cached, seed, make);
}

/// The same, with so many draws for each call.
pub(super) fn lose_at_every_call_drawing(
    draws: u64,
    name: &str,
    all_cached: bool,
    seed: u64,
    make: impl Fn(u64) -> Scene,
) {
    let mut tally = Tally::default();
    for n in calls(1 + seed % 3, 3) {
        let mut failed = false;
        for draw in 0..draws {
            let (effect, death) = ((n + draw) % 2 == 0, (n / 2 + draw) % 2 == 0);
            let case = format!("call {n}, draw {draw}, effect {effect}, death {death}");
            let mut scene = make(seed);
            failed |= scene.flush_failing(n, true, effect);
            let lost = Crash::Random(seed * 1_000_000 + n * 1000 + draw);
            let story = scene.world.memory.crash(lost);
            relent(&scene.world.memory);
            if death {
                scene.engine.die();
                scene.engine = scene.world.start(true);
            }
            let crashed = scene.world.as_mounted(scene.world.memory.tree());
            let outcome = none(scene.drive_findings(true), "crashed")
                .and_then(|()| scene.recover_after_loss(&crashed, all_cached));
            tally.note(case, story, outcome);
        }
        if !failed {
            return tally.close(name);
        }
    }
}

/// Moves of files and directories, replaced files, changes of case, cycles of names, removals.
fn moves(engine: &Engine, rng: &mut Rng) {
    for dir in ["m", "m/in", "n"] {
        if engine.find(dir).is_none() {
            engine.mkdir(dir);
        }
    }
    for (n, path) in ["m/a", "m/b", "m/in/c", "n/d", "e", "f"].iter().enumerate() {
        engine.put(
            path,
            &[&b"version one of "[..], path.as_bytes(), &[b'.'; 9][..n]].concat(),
        );
    }
    engine.flush_all();
    engine.trim();
    for _ in 0..4 {
        let there = |path: &str| engine.find(path).is_some();
        match rng.below(9) {
            0 if there("m/a") => engine.rename("m/a", "n/moved"),
            1 if there("m/in") && there("n") => engine.rename("m/in", "n/in"),
            2 if there("e") => engine.put("e", b"version two of e"),
            3 if there("f") => engine.rename("f", "F"),
            4 if there("e") && there("m/b") => engine
                .rename_with("e", "m/b", RenameMode::Exchange)
                .expect("exchange"),
            5 if there("n/d") && there("m/a") => engine.rename("n/d", "m/a"),
            6 if there("m/b") => engine.unlink("m/b"),
            7 if there("m") && !there("k") => {
                engine.rename("m", "k");
                engine.mkdir("m");
            }
            8 if there("n") && there("m/in") => {
                // A directory goes below its own former child.
                engine.rename("m/in", "up");
                engine.rename("n", "up/n");
            }
            _ => {}
        }
    }
}

impl Scene {
    /// One whose first state is that before the moves.
    fn of_moves(kind: Kind, seed: u64, evicted: bool) -> Scene {
        let mut scene = match evicted {
            true => Scene::evicted(kind, seed, |_, _| {}),
            false => Scene::new(kind, seed, |_, _| {}),
        };
        let mut rng = Rng::new(seed);
        moves(&scene.engine, &mut rng);
        scene.engine.index.commit().expect("commit");
        scene.before = scene.world.drive_tree();
        scene.mount = scene.engine.mount_tree();
        scene.cut = scene.engine.expected_on_drive();
        scene
    }
}

#[test]
fn a_flush_that_loses_power_anywhere_leaves_one_cut_after_random_edits() {
    for seed in [11, 12] {
        lose_at_every_call("random edits", true, seed, |seed| {
            Scene::new(Kind::Exfat, seed, random_edits)
        });
    }
}

#[test]
fn a_flush_that_loses_power_anywhere_leaves_one_cut_after_moves() {
    for seed in 1..=4 {
        lose_at_every_call("moves", true, seed, |seed| {
            Scene::of_moves(Kind::Exfat, seed, false)
        });
    }
}

#[test]
fn what_was_only_on_the_drive_is_lost_only_if_the_drive_has_lost_it() {
    for seed in 1..=4 {
        lose_at_every_call("moves, evicted", false, seed, |seed| {
            Scene::of_moves(Kind::Exfat, seed, true)
        });
    }
}

#[test]
fn a_flush_that_gives_held_space_up_and_loses_power_anywhere_leaves_one_cut() {
    let runs = Cell::new(0);
    lose_at_every_call("held space", true, 15, |seed| {
        let scene = Scene::on(small(Kind::Exfat, 1000), seed, |engine, rng| {
            a_few_edits(engine, rng);
            // More directories than the reserve has room for.
            for n in 0..9 {
                engine.mkdir(&format!("new{n}"));
                engine.mkdir(&format!("new{n}/in"));
            }
        });
        // Somebody else fills the drive at another call each time.
        let at = scene.world.faulty.calls() + 10 + runs.replace(runs.get() + 1) * 7 % 50;
        let drive = scene.world.memory.clone();
        scene.world.faulty.before_call(at, move || fill(&drive));
        scene
    });
}

#[test]
fn a_recovery_that_loses_power_as_well_is_taken_up_again() {
    lose_twice("recoveries", 1, || Scene::new(Kind::Exfat, 11, a_few_edits));
}

/// Stops a flush at every `step`th call (a third of them in the gate), and its recovery at every
/// second call of its own; the drive loses a random part each time.
pub(super) fn lose_twice(name: &str, step: usize, make: impl Fn() -> Scene) {
    let mut tally = Tally::default();
    for n in (1..).step_by(if is_thorough() { step } else { 3 * step }) {
        let mut failed = false;
        // Every second call of the recovery, in turns.
        for m in (1 + n % 2..).step_by(2) {
            let mut scene = make();
            failed |= scene.flush_failing(n, true, n % 2 == 0);
            let mut story = scene.world.memory.crash(Crash::Random(n * 1000 + m));
            let at = scene.world.faulty.calls() + m;
            let fault = Fault {
                stays_dead: true,
                takes_effect: m % 3 == 0,
                ..Fault::at(at, libc::EIO)
            };
            scene.world.faulty.arm(fault);
            let recovered = scene.engine.flusher.recover();
            let over = scene.world.faulty.calls() < at;
            scene.world.faulty.heal();
            story.push("-- and in the recovery:".into());
            story.extend(scene.world.memory.crash(Crash::Random(n * 2000 + m)));
            if m % 4 < 2 {
                scene.engine.die();
                scene.engine = scene.world.start(true);
            }
            let crashed = scene.world.as_mounted(scene.world.memory.tree());
            let outcome = match recovered {
                Err(error) if over => Err(format!("recover: {error}")),
                _ => scene.recover_after_loss(&crashed, true),
            };
            tally.note(
                format!("call {n}, then {m} of the recovery"),
                story,
                outcome,
            );
            if over {
                break;
            }
        }
        if !failed {
            return tally.close(name);
        }
    }
}
