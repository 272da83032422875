//! Large files of which a batch writes only what has changed, into the file on the drive: a flush
//! that fails, is refused or loses power at any call, and a recovery that does.
//!
//! Between the commit and the end of recovery a patched file may be torn. Before the commit it is
//! the old version, and after recovery one of the two.

use ferryfs::core::RelPath;
use ferryfs::drive::Backend;
use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::{CHANGED, Crash};
use ferryfs::recovery::interrupted::recover_without_cache;
use ferryfs::vfs::SetXattr;

use super::loss::{lose_at_every_call, lose_at_every_call_drawing};
use super::refused::refuse_every_call_in;
use super::scene::Scene;
use super::{AFTER, After, Case, is_thorough};
use crate::engine::rng::{Rng, Seed};
use crate::engine::tree::assert_same;
use crate::engine::{BLOCK, Engine, Kind, World};

/// Bytes of which no two blocks are the same.
pub(super) fn bytes(seed: u64, blocks: usize, more: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let length = blocks * BLOCK as usize + more;
    (0..length).map(|_| rng.next() as u8).collect()
}

/// Files that are patched, and what else a batch does.
const PATCHED: [&str; 4] = ["image", "log", "d/both", "same"];

fn put_all(engine: &Engine) {
    engine.mkdir("d");
    engine.mkdir("e");
    engine.put("image", &bytes(1, 8, 0));
    engine.put("log", &bytes(2, 6, 77));
    engine.put("d/both", &bytes(3, 9, 100));
    engine.put("same", &bytes(4, 4, 1));
    engine.put("shrinks", &bytes(5, 6, 0));
    engine.put("e/in it", &bytes(6, 6, 0));
    engine.put("gone", b"to be removed");
    engine.put("small", b"small");
    engine.flush_all();
}

/// Returns the space that patches and whole files take.
fn change_all(engine: &Engine) {
    engine.edit("image", 3 * u64::from(BLOCK) + 5, b"changed");
    engine.edit("image", 7 * u64::from(BLOCK), &bytes(10, 0, 900));
    engine.edit("log", bytes(2, 6, 77).len() as u64, &bytes(11, 1, 5000));
    engine.edit("d/both", 0, &bytes(12, 1, 1));
    engine.edit("d/both", bytes(3, 9, 100).len() as u64, &bytes(13, 0, 40));
    engine.put("same", &bytes(4, 4, 1));
    engine.truncate("shrinks", 5 * u64::from(BLOCK));
    engine.rename("e", "f");
    engine.edit("f/in it", 0, b"in a directory that moves");
    engine.unlink("gone");
    engine.put("small", b"still small");
    engine.mkdir("new");
}

/// A scene with all of these.
fn scene(kind: Kind) -> Scene {
    scene_on(World::new(kind), put_all, change_all)
}

/// A scene with few steps: one patch within its file, one that lets it grow, and one other step of
/// each phase.
pub(super) fn small_scene(kind: Kind) -> Scene {
    let put = |engine: &Engine| {
        engine.put("image", &bytes(1, 4, 0));
        engine.put("log", &bytes(2, 3, 77));
        engine.put("gone", b"to be removed");
        engine.flush_all();
    };
    let change = |engine: &Engine| {
        engine.edit("image", 3 * u64::from(BLOCK) + 5, b"changed");
        engine.edit("log", bytes(2, 3, 77).len() as u64, &bytes(11, 0, 4050));
        engine.unlink("gone");
        engine.put("small", b"small");
    };
    scene_on(World::new(kind), put, change)
}

pub(super) fn scene_on(world: World, put: impl Fn(&Engine), change: impl Fn(&Engine)) -> Scene {
    let engine = world.start(false);
    put(&engine);
    let before = world.drive_tree();
    change(&engine);
    engine.index.commit().expect("commit");
    let (cut, mount) = (engine.expected_on_drive(), engine.mount_tree());
    Scene {
        world,
        engine,
        before,
        cut,
        mount,
        patched: PATCHED.map(RelPath::fixed).into(),
    }
}

#[test]
fn only_what_has_changed_is_written_and_the_files_are_whole() {
    for kind in [Kind::Plain, Kind::Exfat, Kind::Linux] {
        let scene = scene(kind);
        let report = scene.engine.flush_all();
        assert_same(&scene.world.drive_tree(), &scene.cut, "the flush");
        // Blocks: two of the image, three of the log, three of the next; then what is written
        // whole.
        let (patches, whole) = (8 * u64::from(BLOCK), 11 * u64::from(BLOCK));
        assert!(report.bytes > patches, "{kind:?}: {report:?}");
        assert!(
            report.bytes < patches + whole + 2000,
            "{kind:?}: {report:?}"
        );
        // The lists of the new contents serve the next flush.
        scene.engine.edit("log", 0, b"once more");
        let report = scene.engine.flush_all();
        assert!(
            report.bytes < u64::from(BLOCK) + 200,
            "{kind:?}: {report:?}"
        );
        assert_same(
            &scene.world.drive_tree(),
            &scene.engine.expected_on_drive(),
            "the second flush",
        );
    }
}

#[test]
fn without_patches_files_are_written_whole() {
    let mut world = World::new(Kind::Exfat);
    world.patches = false;
    let scene = scene_on(world, put_all, change_all);
    let report = scene.engine.flush_all();
    assert!(report.bytes > 38 * u64::from(BLOCK), "{report:?}");
    assert_same(&scene.world.drive_tree(), &scene.cut, "the flush");
}

/// Returns the numbers of calls at which to fail: every third one, others with the next seed.
fn calls(seed: u64) -> impl Iterator<Item = u64> {
    super::calls(1 + seed % 3, 3)
}

#[test]
fn a_flush_of_patches_that_fails_anywhere_leaves_one_cut() {
    for (kind, seed) in [(Kind::Exfat, 2), (Kind::Linux, 3)] {
        let _seed = Seed(seed);
        for n in calls(seed) {
            let turn = (n / 2) as usize;
            let after = AFTER[turn % AFTER.len()];
            let (dead, effect) = (turn.is_multiple_of(2), (n / 4).is_multiple_of(2));
            let _case = Case(format!("call {n}, dead {dead}, effect {effect}, {after:?}"));
            let scene = small_scene(kind);
            let failed = scene.flush_failing(n, dead, effect);
            scene.strike(after).recover_and_check();
            if !failed {
                assert!(n > 100, "the flush had nothing to do");
                break;
            }
        }
    }
}

#[test]
fn a_flush_of_patches_that_loses_power_anywhere_leaves_one_cut() {
    // Each call copies files of many blocks.
    lose_at_every_call_drawing(1, "patches", true, 21, |_| small_scene(Kind::Exfat));
    if is_thorough() {
        lose_at_every_call("patches", true, 22, |_| small_scene(Kind::Linux));
    }
}

#[test]
fn a_drive_that_refuses_anything_of_a_patch_keeps_only_that_file() {
    refuse_every_call_in(31, false, || small_scene(Kind::Exfat));
}

/// As on a machine that has the drive alone, after a power cut.
#[test]
fn patches_that_lost_power_are_finished_without_the_cache() {
    for n in calls(1) {
        let mut failed = false;
        for draw in 0..if is_thorough() { 2 } else { 1 } {
            let _case = Case(format!("call {n}, draw {draw}"));
            let scene = small_scene(Kind::Exfat);
            failed |= scene.flush_failing(n, true, (n / 2 + draw) % 2 == 0);
            scene.world.memory.crash(Crash::Random(n * 10 + draw));
            // Where the drive has lost a staged file, nothing is touched.
            if recover_without_cache(&scene.world.memory).is_ok() {
                recover_without_cache(&scene.world.memory).expect("and again");
                scene.is_one_cut("recovered without the cache");
            }
            scene.recover_and_check();
        }
        if !failed {
            return;
        }
    }
}

#[test]
fn a_recovery_of_patches_that_fails_as_well_is_taken_up_again() {
    let _seed = Seed(41);
    for n in (2..).step_by(5) {
        let mut failed = false;
        for m in (1 + n % 3..).step_by(3) {
            let after = if m % 4 < 2 { After::Heal } else { After::Loss };
            let _case = Case(format!("call {n}, then {m} of the recovery, {after:?}"));
            let scene = small_scene(Kind::Exfat);
            failed |= scene.flush_failing(n, true, n % 2 == 0);
            let at = scene.world.faulty.calls() + m;
            scene.world.faulty.arm(Fault {
                stays_dead: true,
                takes_effect: m % 3 == 0,
                ..Fault::at(at, libc::EIO)
            });
            let recovered = scene.engine.flusher.recover();
            let over = scene.world.faulty.calls() < at;
            scene.world.faulty.heal();
            assert!(recovered.is_ok() || !over, "{recovered:?}");
            scene.strike(after).recover_and_check();
            if over {
                break;
            }
        }
        if !failed {
            return;
        }
    }
}

/// Writes into a file of the drive as another program does.
pub(super) fn scribble(drive: &impl Backend, path: &'static str, at: u64, bytes: &[u8]) {
    let mut file = drive.modify(&RelPath::fixed(path)).expect("open");
    file.write_at(bytes, at).expect("write");
    file.finish(CHANGED).expect("close");
}

/// Another program changes a file that is about to be patched, before each call of the flush.
#[test]
fn what_others_write_into_a_file_before_it_is_patched_is_kept_beside_ours() {
    for kind in [Kind::Exfat, Kind::Linux] {
        let mut lost = Vec::new();
        for n in 1.. {
            let _case = Case(format!("{kind:?}, before call {n}"));
            let scene = small_scene(kind);
            let faulty = &scene.world.faulty;
            let at = faulty.calls() + n;
            let drive = scene.world.memory.clone();
            faulty.before_call(at, move || {
                scribble(&drive, "image", 3 * u64::from(BLOCK), b"THEIRS");
            });
            scene.engine.flush().expect("flush");
            let over = faulty.calls() < at;
            faulty.heal();
            if over {
                break;
            }
            scene.engine.refresh();
            scene.engine.flush_all();
            let tree = scene.world.drive_tree();
            let has = |start: &[u8]| {
                tree.iter().any(|(path, node)| match node {
                    ferryfs::drive::memory::MemNode::File { bytes, .. } => {
                        let at = 3 * BLOCK as usize;
                        path.to_string().starts_with("image") && bytes[at..].starts_with(start)
                    }
                    _ => false,
                })
            };
            let ours = &scene.cut[&RelPath::fixed("image")];
            let has_ours = tree.values().any(|node| node == ours);
            let is_taken = scene.engine.read("image")[3 * BLOCK as usize..].starts_with(b"THEIRS");
            if !has(b"THEIRS") || !(has_ours || is_taken) {
                lost.push(n);
            }
        }
        // Only while the file is open here: its patch is read and written, its time set.
        let span = lost
            .last()
            .zip(lost.first())
            .map_or(0, |(last, first)| last - first + 1);
        assert!(span <= 6 && span == lost.len() as u64, "{kind:?}: {lost:?}");
    }
}

/// Others have changed the very block, and have set the time back.
#[test]
fn a_block_that_is_not_what_it_was_has_the_file_written_whole() {
    let scene = scene(Kind::Exfat);
    let image = RelPath::fixed("image");
    let time = scene.world.memory.metadata(&image).expect("look").modified;
    scribble(&scene.world.memory, "image", 3 * u64::from(BLOCK), b"x");
    (scene.world.memory.set_modified(&image, time)).expect("set the time");
    let report = scene.engine.flush_all();
    assert!(report.bytes > 16 * u64::from(BLOCK), "{report:?}");
    assert_same(&scene.world.drive_tree(), &scene.cut, "the flush");
}

/// The drive refuses to write into the file, also in the recovery, and takes a new one.
#[test]
fn a_file_that_cannot_be_patched_is_written_whole_at_once() {
    for (operation, errno) in [
        ("modify", libc::EPERM),
        ("write", libc::EIO),
        ("write", libc::EPERM),
        ("close", libc::EIO),
    ] {
        let _case = Case(format!("{operation}, errno {errno}"));
        let scene = small_scene(Kind::Exfat);
        let faulty = &scene.world.faulty;
        faulty.refuse(operation, RelPath::fixed("image"), errno);
        scene.engine.flush_all();
        faulty.heal();
        assert_same(&scene.world.drive_tree(), &scene.cut, "the flush");
        scene.recover_and_check();
    }
}

/// Neither can the file be written into, nor can a new one replace it.
#[test]
fn a_file_that_the_drive_refuses_altogether_is_named_and_written_whole_later() {
    let scene = small_scene(Kind::Exfat);
    let faulty = &scene.world.faulty;
    let image = RelPath::fixed("image");
    let mut n = 0;
    let report = loop {
        // From the call on that opens the file after the commit.
        n += 1;
        let scene = small_scene(Kind::Exfat);
        let faulty = &scene.world.faulty;
        let at = faulty.calls() + n;
        faulty.refuse_from(at, libc::EPERM);
        let flushed = scene.engine.flush();
        let is_it = faulty.refused() == Some(("modify", image.clone()));
        if is_it
            && let Ok(report) = &flushed
            && !report.left_behind.is_empty()
        {
            break flushed.expect("it is");
        }
        assert!(faulty.calls() >= at, "never refused after the commit");
    };
    let is_image = |(path, _): &(String, String)| path == "image";
    assert!(report.left_behind.iter().all(is_image), "{report:?}");
    // The same here, and then the drive takes it.
    faulty.refuse_from(faulty.calls() + n, libc::EPERM);
    let first = scene.engine.flush().expect("one file stops nothing else");
    assert_eq!(first.left_behind.len(), 1, "{first:?}");
    let mut expected = scene.cut.clone();
    expected.insert(image.clone(), scene.before[&image].clone());
    assert_same(
        &scene.world.drive_tree(),
        &expected,
        "the old version stays",
    );
    faulty.heal();
    let second = scene.engine.flush_all();
    assert!(second.bytes >= 4 * u64::from(BLOCK), "whole: {second:?}");
    assert_same(&scene.world.drive_tree(), &scene.cut, "the next flush");
}

/// A new file has no attributes that it does not get. A patched one keeps those that it had.
#[test]
fn attributes_that_were_removed_do_not_stay_on_a_file_that_could_be_patched() {
    let scene = small_scene(Kind::Linux);
    let (engine, drive) = (&scene.engine, &scene.world.memory);
    let (image, ino) = (RelPath::fixed("image"), engine.ino("image"));
    let set = engine.fs.setxattr(ino, b"user.a", b"1", SetXattr::Any);
    set.expect("set an attribute");
    engine.flush_all();
    assert_eq!(drive.xattrs(&image).expect("its attributes").len(), 1);
    let removed = engine.fs.removexattr(ino, b"user.a");
    removed.expect("remove it");
    engine.edit("image", 9, b"changed too");
    engine.flush_all();
    assert_eq!(drive.xattrs(&image).expect("its attributes").len(), 0);
    engine.edit("image", 9, b"and once more");
    let report = engine.flush_all();
    assert!(report.bytes < 2 * u64::from(BLOCK), "{report:?}");
    let expected = engine.expected_on_drive();
    assert_same(&scene.world.drive_tree(), &expected, "the flush");
}
