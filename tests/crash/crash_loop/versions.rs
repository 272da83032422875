//! A flush that keeps what it replaces and removes, and fails or loses power at any call: no
//! version is torn, and none is lost unless the drive has lost it.

use std::collections::BTreeSet;
use std::time::Duration;

use ferryfs::core::RelPath;
use ferryfs::drive::Backend;
use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::MemNode;
use ferryfs::error::FlushError;
use ferryfs::flush::{HoldIf, VersionPolicy};
use ferryfs::format::layout;
use ferryfs::format::versions::What;
use ferryfs::plan::patterns::Patterns;
use ferryfs::plan::retention::Keep;

use super::full::small;
use super::loss::{lose_at_every_call, lose_twice};
use super::scene::Scene;
use super::{AFTER, Case, a_few_edits, calls, is_thorough, random_edits};
use crate::engine::rng::{Rng, Seed};
use crate::engine::{Engine, Kind, World};

/// A world whose batches keep versions.
fn keeping(kind: Kind) -> World {
    keep(World::new(kind))
}

fn keep(mut world: World) -> World {
    world.versions = VersionPolicy {
        is_on: true,
        ..VersionPolicy::off()
    };
    world
}

/// Files that are replaced and removed, with directories, moves, and a name that comes again.
fn put_all(engine: &Engine) {
    for dir in ["d", "d/in", "e", "m"] {
        engine.mkdir(dir);
    }
    for path in ["d/a", "d/in/b", "e/c", "f", "g", "m/h", "m/i", "j", "k"] {
        engine.put(path, format!("version one of {path}").as_bytes());
    }
    engine.flush_all();
}

fn change_all(engine: &Engine) {
    // A whole directory.
    engine.unlink("d/a");
    engine.unlink("d/in/b");
    engine.rmdir("d/in");
    engine.rmdir("d");
    engine.put("f", b"version two of f");
    engine.unlink("g");
    engine.put("fresh", b"fresh");
    // A file that is replaced in a directory that moves.
    engine.rename("m", "n");
    engine.put("n/h", b"version two of m/h");
    // A file that moves over another one.
    engine.rename("j", "k");
    engine.put("e/c", b"version two of e/c");
}

fn scene(kind: Kind) -> Scene {
    let world = keeping(kind);
    let engine = world.start(false);
    put_all(&engine);
    let before = world.drive_tree();
    change_all(&engine);
    engine.index.commit().expect("commit");
    Scene {
        before,
        cut: engine.expected_on_drive(),
        mount: engine.mount_tree(),
        world,
        engine,
        patched: BTreeSet::new(),
    }
}

/// What must be kept of the scene's changes: paths and their old contents.
const KEPT: [(&str, &str); 7] = [
    ("d/a", "d/a"),
    ("d/in/b", "d/in/b"),
    ("e/c", "e/c"),
    ("f", "f"),
    ("g", "g"),
    ("k", "k"),
    ("n/h", "m/h"),
];

fn assert_kept(world: &World) {
    let kept: Vec<(String, String)> = (world.kept_versions().into_iter())
        .map(|(_, path, bytes)| (path.to_string(), String::from_utf8(bytes).unwrap()))
        .collect();
    let wanted = KEPT.map(|(path, of)| (path.to_string(), format!("version one of {of}")));
    assert_eq!(kept, wanted);
}

/// The versions that the lists name, and whether they are there.
fn listed(world: &World) -> Vec<(String, bool)> {
    let lists = world.version_lists();
    let entries = lists.iter().flat_map(|(_, list)| &list.entries);
    let mut found: Vec<(String, bool)> = (entries.filter(|it| it.what.is_file()))
        .map(|it| (it.path.to_string(), !it.is_excluded))
        .collect();
    found.sort();
    found
}

#[test]
fn what_a_batch_replaces_and_removes_is_kept_under_its_name() {
    for kind in [Kind::Plain, Kind::Exfat, Kind::Linux] {
        let scene = scene(kind);
        scene.engine.flush_all();
        scene.is_one_cut("the flush");
        assert_kept(&scene.world);
        let lists = scene.world.version_lists();
        let [(_, list)] = &lists[..] else {
            panic!("{lists:?}");
        };
        let of = |wanted: What| -> Vec<String> {
            let entries = list.entries.iter();
            let mut paths: Vec<String> = (entries.filter(|it| it.what == wanted))
                .map(|it| it.path.to_string())
                .collect();
            paths.sort();
            paths
        };
        assert_eq!(of(What::Removed), ["d/a", "d/in/b", "g"]);
        assert_eq!(of(What::Replaced), ["e/c", "f", "k", "n/h"]);
        assert_eq!(of(What::Directory), ["d", "d/in"]);
        assert_eq!(of(What::Written), ["e/c", "f", "fresh", "n/h"]);
        assert_eq!(of(What::Moved), ["k", "n"]);
        scene.recover_and_check();
        assert_kept(&scene.world);
    }
}

/// Fails at every call, in two of four ways that take turns, as the aftermaths do.
fn keep_while_failing(kind: Kind, seed: u64) {
    let _seed = Seed(seed);
    let mut turn = seed as usize;
    let step = if kind == Kind::Exfat { 2 } else { 5 };
    for n in calls(seed, step) {
        let mut failed = false;
        for stays_dead in [false, true] {
            turn += 1;
            let (takes_effect, after) = (turn & 2 == 0, AFTER[turn % AFTER.len()]);
            let case = format!("call {n}, dead {stays_dead}, effect {takes_effect}, {after:?}");
            let _case = Case(format!("{kind:?}, {case}"));
            let scene = scene(kind);
            failed |= scene.flush_failing(n, stays_dead, takes_effect);
            let scene = scene.strike(after);
            scene.recover_and_check();
            // A single call that fails may be one that would have kept a version. Then the drive
            // has refused that while the rest of it works, and the version is gone.
            if stays_dead {
                assert_kept(&scene.world);
                let all = KEPT.map(|(path, _)| (path.to_string(), true));
                assert_eq!(listed(&scene.world), all);
            }
        }
        turn += 1; // So that each call meets other turns.
        if !failed {
            assert!(n > 10, "the flush had nothing to do");
            return;
        }
    }
}

#[test]
fn a_flush_that_fails_anywhere_keeps_every_version_whole() {
    keep_while_failing(Kind::Plain, 1);
}

#[test]
fn a_flush_that_fails_anywhere_keeps_every_version_whole_on_exfat() {
    keep_while_failing(Kind::Exfat, 2);
}

#[test]
fn a_flush_that_fails_anywhere_keeps_every_version_whole_on_a_linux_drive() {
    keep_while_failing(Kind::Linux, 3);
}

#[test]
fn a_flush_that_loses_power_anywhere_has_no_torn_version() {
    lose_at_every_call("versions", true, 5, |_| scene(Kind::Exfat));
    if is_thorough() {
        lose_at_every_call("versions after random edits", true, 21, |seed| {
            Scene::on(keeping(Kind::Exfat), seed, random_edits)
        });
    }
}

#[test]
fn a_recovery_that_loses_power_as_well_leaves_no_torn_version() {
    lose_twice(
        "versions, recoveries",
        if is_thorough() { 1 } else { 9 },
        || Scene::on(keeping(Kind::Exfat), 11, a_few_edits),
    );
}

#[test]
fn a_drive_that_refuses_versions_gets_the_batch_all_the_same() {
    for kind in [Kind::Exfat, Kind::Linux] {
        for errno in [libc::EACCES, libc::ENOSPC, libc::EIO] {
            let scene = scene(kind);
            (scene.world.faulty).refuse("mkdir", layout::versions_root(), errno);
            scene.engine.flush_all();
            scene.world.faulty.heal();
            scene.is_one_cut("the flush");
            assert_eq!(scene.world.kept_versions(), []);
            scene.recover_and_check();
        }
    }
}

#[test]
fn excluded_files_and_those_of_a_mount_without_versions_are_not_kept() {
    let mut scene = scene(Kind::Exfat);
    scene.engine.die();
    scene.world.versions.exclude =
        Patterns::new(&["/d/", "n/*", "[fg]"].map(String::from)).unwrap();
    scene.engine = scene.world.start(true);
    scene.engine.flusher.recover().expect("recover");
    scene.engine.flush_all();
    let kept: Vec<String> = (scene.world.kept_versions().iter())
        .map(|(_, path, _)| path.to_string())
        .collect();
    assert_eq!(kept, ["e/c", "k"]);
    // The list tells them from files that nothing was at the place of.
    let all = KEPT.map(|(path, _)| (path.to_string(), ["e/c", "k"].contains(&path)));
    assert_eq!(listed(&scene.world), all);
}

#[test]
fn a_file_that_a_further_name_replaces_is_a_version_after_a_crash_as_well() {
    for n in calls(1, 3) {
        let _case = Case(format!("call {n}"));
        let world = keeping(Kind::Linux);
        let engine = world.start(false);
        engine.put("a", b"version one of a");
        engine.put("b", b"b");
        engine.flush_all();
        let before = world.drive_tree();
        engine.unlink("a");
        engine.link("b", "a");
        engine.index.commit().expect("commit");
        let scene = Scene {
            before,
            cut: engine.expected_on_drive(),
            mount: engine.mount_tree(),
            world,
            engine,
            patched: BTreeSet::new(),
        };
        let failed = scene.flush_failing(n, true, true);
        let scene = scene.strike(AFTER[n as usize % AFTER.len()]);
        scene.recover_and_check();
        let kept: Vec<Vec<u8>> = (scene.world.kept_versions().into_iter())
            .map(|(_, _, bytes)| bytes)
            .collect();
        assert_eq!(kept, [b"version one of a".to_vec()]);
        if !failed {
            return;
        }
    }
}

/// One more version of a file.
fn version(world: &World, engine: &Engine, path: &str, number: usize) {
    engine.put(path, format!("version {number} of {path}").as_bytes());
    engine.flush_all();
    world.clock.advance(Duration::from_secs(60));
}

#[test]
fn versions_beyond_the_rules_are_removed_and_no_others() {
    let mut world = keeping(Kind::Exfat);
    world.versions.keep = Keep {
        last: 2,
        ..Keep::NOTHING
    };
    let engine = world.start(false);
    for number in 0..5 {
        version(&world, &engine, "a", number);
        // Of another file there is only one in all that time.
        if number < 2 {
            version(&world, &engine, "b", number);
        }
    }
    // They are chosen by the first flush of a daemon.
    engine.die();
    let engine = world.start(true);
    engine.flusher.recover().expect("recover");
    version(&world, &engine, "a", 5);
    let mut kept: Vec<String> = (world.kept_versions().into_iter())
        .map(|(_, _, bytes)| String::from_utf8(bytes).unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, ["version 0 of b", "version 3 of a", "version 4 of a"]);
    assert_eq!(world.version_lists().len(), 3);
    world.check(&engine);
}

#[test]
fn a_list_names_the_versions_that_were_removed_from_beside_others() {
    let mut world = keeping(Kind::Exfat);
    world.versions.keep = Keep {
        last: 1,
        ..Keep::NOTHING
    };
    let engine = world.start(false);
    engine.put("b", b"version 0 of b");
    version(&world, &engine, "a", 0);
    engine.put("b", b"version 1 of b");
    version(&world, &engine, "a", 1);
    engine.die();
    let engine = world.start(true);
    engine.flusher.recover().expect("recover");
    version(&world, &engine, "a", 2);
    assert_eq!(world.kept_versions().len(), 2);
    let [a, b] = ["a", "b"].map(String::from);
    assert_eq!(listed(&world), [(a.clone(), false), (a, true), (b, true)]);
    world.check(&engine);
}

#[test]
fn one_version_that_cannot_be_removed_keeps_no_other_and_no_batch_from_its_place() {
    for is_on in [true, false] {
        for errno in [libc::EACCES, libc::EIO] {
            let mut world = keep(small(Kind::Exfat, 64));
            world.versions.share = 100;
            let engine = world.start(false);
            for number in 0..4 {
                engine.put("a", &[number; 6 * 4096]);
                engine.flush_all();
                world.clock.advance(Duration::from_secs(60));
            }
            engine.die();
            world.versions.is_on = is_on;
            let engine = world.start(true);
            engine.flusher.recover().expect("recover");
            let (id, path, _) = world.kept_versions().remove(0);
            (world.faulty).refuse("remove", id.dir().join_path(&path), errno);
            engine.put("large", &[9; 30 * 4096]);
            engine.flush_all();
            let kept = world.kept_versions();
            assert!(kept.iter().any(|(_, _, bytes)| bytes[0] == 0), "{errno}");
            assert!(kept.iter().all(|(_, _, bytes)| bytes[0] != 1), "{errno}");
            // What does not fit is still said to need space, and nothing else.
            (world.faulty).refuse("read_dir", layout::versions_root(), errno);
            engine.put("larger", &[9; 40 * 4096]);
            let full = engine.flush().expect_err("no space");
            assert!(matches!(full, FlushError::Full { .. }), "{full}");
        }
    }
}

#[test]
fn batches_count_on_from_the_versions_that_another_cache_has_kept() {
    let world = keeping(Kind::Exfat);
    let engine = world.start(false);
    for number in 0..4 {
        version(&world, &engine, "a", number);
    }
    let highest = |world: &World| {
        let kept = world.kept_versions();
        kept.iter().map(|(id, ..)| id.batch).max().expect("some")
    };
    let last = highest(&world);
    engine.die();
    let other = keep(World::on(Kind::Exfat, world.memory.clone()));
    let engine = other.start(false);
    engine.flusher.recover().expect("recover");
    engine.put("fresh", b"fresh");
    let batch = engine.flush_all().batch.expect("a batch");
    assert!(batch > last, "{batch} after {last}");
}

#[test]
fn a_flush_that_is_divided_is_held_for_all_of_it() {
    let mut world = World::new(Kind::Exfat);
    world.hold_if = Some(HoldIf { percent: 50 });
    let engine = world.start(false);
    for n in 0..60 {
        engine.put(&format!("f{n}"), b"content");
    }
    engine.flush_all();
    for n in 0..50 {
        engine.unlink(&format!("f{n}"));
    }
    engine.flusher.limit_batches(5000);
    let held = engine.flush().expect_err("held");
    let is_whole = matches!(
        held,
        FlushError::Held {
            removed: 50,
            total: 60,
            ..
        }
    );
    assert!(is_whole, "{held}");
    assert!(world.on_drive("f0").is_some());
}

#[test]
fn a_removal_of_versions_that_is_interrupted_is_taken_up_again() {
    for n in 1.. {
        let mut world = keeping(Kind::Exfat);
        world.versions.keep = Keep {
            last: 1,
            ..Keep::NOTHING
        };
        let engine = world.start(false);
        for number in 0..3 {
            version(&world, &engine, "a", number);
        }
        engine.die();
        let engine = world.start(true);
        engine.flusher.recover().expect("recover");
        engine.put("b", b"what is written");
        let at = world.faulty.calls() + n;
        world.faulty.arm(Fault {
            stays_dead: true,
            ..Fault::at(at, libc::EIO)
        });
        let _ = engine.flush();
        let over = world.faulty.calls() < at;
        world.faulty.heal();
        world.memory.crash_to_durable();
        engine.die();
        let engine = world.start(true);
        engine.flusher.recover().expect("recover");
        version(&world, &engine, "a", 3);
        world.clock.advance(Duration::from_secs(7200));
        engine.die();
        let engine = world.start(true);
        engine.flusher.recover().expect("recover");
        version(&world, &engine, "c", 0);
        let kept: Vec<Vec<u8>> = (world.kept_versions().into_iter())
            .map(|(_, _, bytes)| bytes)
            .collect();
        assert_eq!(kept, [b"version 2 of a".to_vec()], "call {n}");
        world.check(&engine);
        if over {
            return;
        }
    }
}

#[test]
fn a_batch_that_needs_the_space_of_versions_gets_it_and_the_oldest_go_first() {
    let mut world = keep(small(Kind::Exfat, 64));
    world.versions.share = 100;
    let engine = world.start(false);
    for number in 0..4 {
        engine.put("a", &[number; 6 * 4096]);
        engine.flush_all();
        world.clock.advance(Duration::from_secs(60));
    }
    assert_eq!(world.kept_versions().len(), 3);
    engine.put("large", &[9; 30 * 4096]);
    engine.flush_all();
    let kept = world.kept_versions();
    assert!(kept.len() < 3, "{}", kept.len());
    assert!(kept.iter().all(|(_, _, bytes)| bytes[0] != 0));
    world.check(&engine);
}

#[test]
fn versions_stay_within_their_share_and_the_newest_while_there_is_space() {
    let mut world = keep(small(Kind::Exfat, 1000));
    // 50 clusters.
    world.versions.share = 5;
    let engine = world.start(false);
    engine.put("large", &[77; 100 * 4096]);
    for number in 0..8 {
        engine.put("a", &[number; 12 * 4096]);
        engine.flush_all();
        world.clock.advance(Duration::from_secs(60));
    }
    let kept = || -> Vec<u8> {
        let mut first: Vec<u8> = (world.kept_versions().iter())
            .map(|(_, _, bytes)| bytes[0])
            .collect();
        first.sort_unstable();
        first
    };
    // Each takes a cluster more, for its directory.
    assert_eq!(kept(), [4, 5, 6]);
    engine.unlink("large");
    engine.flush_all();
    assert_eq!(kept(), [77]);
    world.check(&engine);
}

#[test]
fn a_hostile_list_changes_no_file_and_ends_no_flush() {
    let world = keeping(Kind::Exfat);
    let engine = world.start(false);
    version(&world, &engine, "a", 0);
    version(&world, &engine, "a", 1);
    let (id, _) = world.version_lists().remove(0);
    world.memory.remove_file(&id.list()).expect("remove");
    let mut file = world.memory.create(&id.list()).expect("create");
    file.append(br#"{"ferryfs":"versions","format":1,"volume":"../../x","path":"../a"}"#)
        .expect("append");
    file.finish(ferryfs::core::Timestamp(0)).expect("finish");
    engine.die();
    let engine = world.start(true);
    engine.flusher.recover().expect("recover");
    version(&world, &engine, "a", 2);
    let tree = world.drive_tree();
    let a = tree.get(&RelPath::fixed("a"));
    assert!(matches!(a, Some(MemNode::File { bytes, .. }) if bytes[..] == *b"version 2 of a"));
    assert_eq!(world.kept_versions().len(), 2);
}

#[test]
fn random_edits_with_versions_leave_one_cut() {
    let mut rng = Rng::new(77);
    let world = keeping(Kind::Linux);
    let engine = world.start(false);
    for _ in 0..8 {
        random_edits(&engine, &mut rng);
        engine.flush_all();
        world.check(&engine);
    }
    assert!(!world.kept_versions().is_empty());
}
