//! A drive that is full from the n-th call of a flush on: because every call that may need space
//! fails, or because somebody else has taken every cluster that was free at that moment.

use ferryfs::core::{RelPath, Timestamp};
use ferryfs::drive::Backend;
use ferryfs::drive::memory::{MemoryBackend, MemoryOptions};
use ferryfs::error::FlushError;
use ferryfs::flush::Wish;
use ferryfs::format::layout;

use super::scene::Scene;
use super::{AFTER, Case, calls, random_edits};
use crate::engine::rng::{Rng, Seed};
use crate::engine::tree::assert_same;
use crate::engine::{Engine, Kind, World};

/// Of the drives here.
const CLUSTER: u64 = 4096;

/// Where somebody else puts what fills the drive: beside our own files, so that it is no part of
/// the tree.
fn theirs() -> RelPath {
    RelPath::fixed(".ferryfs/theirs")
}

/// A drive with clusters, and so many of them.
pub(crate) fn small(kind: Kind, clusters: u64) -> World {
    let options = MemoryOptions {
        capacity: Some(clusters * CLUSTER),
        cluster: Some(CLUSTER),
        ..kind.options()
    };
    World::on(kind, MemoryBackend::new(options))
}

/// Somebody else takes every cluster that is free.
pub(crate) fn fill(drive: &MemoryBackend) {
    let Ok(mut file) = drive.create(&theirs()) else {
        return; // Not even a name is to be had.
    };
    let free = drive.space().expect("space").available;
    file.append(&vec![7; free as usize])
        .expect("it was free just now");
    assert_eq!(drive.space().expect("space").available, 0);
    file.finish(Timestamp(0)).expect("close");
}

pub(crate) fn relent(drive: &MemoryBackend) {
    // It is not there if the flush was over before.
    let _ = drive.remove_file(&theirs());
}

/// Every call that may need space fails from the n-th on, for every n; later they work again.
fn full_from_every_call(kind: Kind, seed: u64) {
    let _seed = Seed(seed);
    // Five has no factor in common with the turns below.
    for n in calls(1, if kind == Kind::Exfat { 1 } else { 5 }) {
        let after = AFTER[n as usize % AFTER.len()];
        let _case = Case(format!("full from call {n}, {after:?}"));
        let scene = Scene::new(kind, seed, random_edits);
        let faulty = &scene.world.faulty;
        let from = faulty.calls() + n;
        faulty.fill_from(from);
        let first = scene.engine.flush();
        let over = faulty.calls() < from;
        // And once more, as the background does: it must not make anything worse.
        let second = scene.engine.flush();
        assert_eq!(
            scene.engine.mount_tree(),
            scene.mount,
            "the mount, {first:?}, {second:?}"
        );
        faulty.heal();
        match n % 3 {
            // Nobody recovers anything by hand.
            0 => scene.flush_and_check(),
            _ => scene.strike(after).recover_and_check(),
        }
        if over {
            assert!(n > 10, "the flush had nothing to do");
            return;
        }
    }
}

impl Scene {
    /// The next flush carries all that is left.
    fn flush_and_check(&self) {
        self.engine.flush_all();
        assert_same(&self.world.drive_tree(), &self.cut, "the next flush");
        self.recover_and_check();
    }
}

#[test]
fn a_drive_that_is_full_from_any_call_on_costs_nothing_on_a_plain_drive() {
    full_from_every_call(Kind::Plain, 3);
}

#[test]
fn a_drive_that_is_full_from_any_call_on_costs_nothing_on_exfat() {
    full_from_every_call(Kind::Exfat, 13);
}

#[test]
fn a_drive_that_is_full_from_any_call_on_costs_nothing_on_a_linux_drive() {
    full_from_every_call(Kind::Linux, 23);
}

/// More new directories than the reserve has room for.
fn many_directories(engine: &Engine, rng: &mut Rng) {
    random_edits(engine, rng);
    for n in 0..14 {
        engine.mkdir(&format!("new{n}"));
    }
}

/// Somebody else fills the drive right before the n-th call, for every n: the batch is done as a
/// whole or not begun.
fn others_fill_it_before_every_call(kind: Kind, seed: u64, prepare: fn(&Engine, &mut Rng)) {
    let _seed = Seed(seed);
    let (mut done, mut refused) = (0, 0);
    for n in calls(1, 3) {
        let _case = Case(format!("filled before call {n}"));
        let scene = Scene::on(small(kind, 1000), seed, prepare);
        let faulty = &scene.world.faulty;
        let at = faulty.calls() + n;
        let drive = scene.world.memory.clone();
        faulty.before_call(at, move || fill(&drive));
        let flushed = scene.engine.flush();
        let over = faulty.calls() < at;
        match flushed {
            Ok(report) => {
                assert_eq!(report.left_behind, []);
                assert_same(&scene.world.drive_tree(), &scene.cut, "it says so");
                done += 1;
            }
            Err(error @ FlushError::Full { .. }) => {
                let text = error.to_string();
                assert!(text.contains("not enough space on the drive"), "{text}");
                assert_same(&scene.world.drive_tree(), &scene.before, &text);
                refused += 1;
            }
            Err(error) => panic!("neither done nor full: {error}"),
        }
        faulty.heal();
        relent(&scene.world.memory);
        scene.flush_and_check();
        if over {
            assert!(done > 5 && refused > 5, "{done} done, {refused} refused");
            return;
        }
    }
}

#[test]
fn others_that_fill_the_drive_at_any_moment_stop_a_batch_before_its_commit_or_not_at_all() {
    others_fill_it_before_every_call(Kind::Exfat, 14, random_edits);
    others_fill_it_before_every_call(Kind::Linux, 24, random_edits);
}

#[test]
fn directories_that_are_made_after_the_commit_find_their_space_whoever_fills_the_drive() {
    others_fill_it_before_every_call(Kind::Exfat, 15, many_directories);
}

#[test]
fn deletes_and_renames_reach_a_drive_that_is_full_again_and_again() {
    for kind in [Kind::Exfat, Kind::Linux] {
        let world = small(kind, 1000);
        let engine = world.start(false);
        engine.mkdir("d");
        for n in 0..8 {
            engine.put(&format!("f{n}"), &[n; 200_000]);
        }
        engine.flush_all();
        for n in 0..4 {
            fill(&world.memory);
            engine.rename(&format!("f{n}"), &format!("d/renamed{n}"));
            engine.flush_all();
            assert!(world.on_drive(&format!("d/renamed{n}")).is_some());
            engine.unlink(&format!("f{}", 4 + n));
            engine.flush_all();
            assert_same(
                &world.drive_tree(),
                &engine.expected_on_drive(),
                "a delete on a full drive",
            );
            // The space of the deleted file is theirs again.
            relent(&world.memory);
        }
        world.check(&engine);
    }
}

#[test]
fn removals_first_works_on_a_drive_that_is_full_to_the_last_byte() {
    let world = small(Kind::Exfat, 1000);
    let engine = world.start(false);
    engine.put("old", &[1; 1_000_000]);
    engine.flush_all();
    fill(&world.memory);
    engine.unlink("old");
    engine.put("new", &[2; 900_000]);
    let full = engine.flush().expect_err("no space for it");
    assert!(matches!(full, FlushError::Full { .. }), "{full}");
    let wish = Wish {
        removals_first: true,
        ..Wish::default()
    };
    let report = engine.flusher.flush(&wish, &|_| {}, || {});
    assert_eq!(report.expect("in two batches").left_behind, []);
    assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "both batches",
    );
    relent(&world.memory);
    world.check(&engine);
}

#[test]
fn the_reserve_may_be_removed_by_anybody_at_any_time_and_comes_back() {
    let world = small(Kind::Exfat, 1000);
    let engine = world.start(false);
    engine.put("a", b"a");
    engine.flush_all();
    let reserve = || world.memory.metadata(&layout::reserve_path());
    assert_eq!(reserve().expect("the reserve").size, 10 * CLUSTER);
    world
        .memory
        .remove_file(&layout::reserve_path())
        .expect("remove");
    engine.put("b", b"b");
    engine.flush_all();
    assert_eq!(reserve().expect("the reserve").size, 10 * CLUSTER);
    world.check(&engine);
}

#[test]
fn a_check_before_the_batch_counts_clusters_directories_and_copies() {
    let needed = |prepare: &dyn Fn(&Engine)| {
        let world = small(Kind::Exfat, 300);
        let engine = world.start(false);
        engine.put("there", &[1; 100_000]);
        engine.flush_all();
        prepare(&engine);
        let Err(FlushError::Full { needed, .. }) = engine.flush() else {
            panic!("it does not fit");
        };
        assert_eq!(world.leftovers(), Vec::<String>::new(), "nothing is begun");
        needed / CLUSTER
    };
    let files = needed(&|engine| {
        for n in 0..400 {
            engine.put(&format!("f{n}"), b"tiny");
        }
    });
    assert!((400..480).contains(&files), "{files} for 400 files");
    let dirs = needed(&|engine| {
        for n in 0..400 {
            engine.mkdir(&format!("d{n}"));
        }
    });
    assert!((400..480).contains(&dirs), "{dirs} for 400 directories");
    let copies = needed(&|engine| {
        for n in 0..20 {
            engine.link("there", &format!("copy{n}"));
        }
    });
    assert!((500..520).contains(&copies), "{copies} for 20 copies of 25");
}
