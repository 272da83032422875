//! Large files that a batch was writing blocks into when it was interrupted: what others write into
//! them then, a drive that loses its record, has no space left, or returns other bytes.
//!
//! What others have written is kept beside ours, what cannot be written is named, and everything
//! else is finished.

use ferryfs::core::{Phase, RelPath};
use ferryfs::drive::Backend;
use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::MemNode;
use ferryfs::error::FlushError;
use ferryfs::flush::Wish;
use ferryfs::recovery::interrupted::recover_without_cache;

use super::full::{fill, relent, small};
use super::patched::{bytes, scene_on, scribble, small_scene};
use super::scene::Scene;
use super::{Case, calls};
use crate::engine::tree::assert_same;
use crate::engine::{BLOCK, Engine, Kind, World};

/// Where a block of the image is patched, and where a sector of it is that stays the same.
const PATCHED: u64 = 3 * BLOCK as u64;
const THEIRS: &[u8] = b"THEIRS";

fn image() -> RelPath {
    RelPath::fixed("image")
}

/// Returns the names on the drive that end so.
fn ours_ending(scene: &Scene, end: &str) -> Vec<RelPath> {
    let tree = scene.world.memory.tree();
    let found = tree.keys().filter(|path| path.to_string().ends_with(end));
    found.cloned().collect()
}

/// Passes a scene to `each` for every third call, with `FERRYFS_CRASH_DRAWS` for every call, at
/// which a flush stops after it has noted that a patch was begun, and before the batch is over.
fn interrupted(make: impl Fn() -> Scene, mut each: impl FnMut(Scene)) {
    let mut met = 0;
    for n in calls(1, 3) {
        let scene = make();
        let failed = scene.flush_failing(n, true, n % 2 == 0);
        if !ours_ending(&scene, ".begun").is_empty() {
            met += 1;
            let _case = Case(format!("stopped at call {n}"));
            each(scene);
        } else if !failed || met > 0 {
            // Before the notes, or after they are gone.
            break;
        }
    }
    assert!(met > 5, "only {met} calls with a patch that was begun");
}

/// Returns whether a file whose name begins with `name` has `bytes` at `at` on the drive.
fn is_kept(scene: &Scene, name: &str, at: u64, bytes: &[u8]) -> bool {
    let at = usize::try_from(at).expect("small");
    scene.world.drive_tree().iter().any(|(path, node)| {
        let MemNode::File { bytes: there, .. } = node else {
            return false;
        };
        path.to_string().starts_with(name)
            && there.get(at..).is_some_and(|rest| rest.starts_with(bytes))
    })
}

fn has_ours(scene: &Scene, name: &str) -> bool {
    let ours = &scene.cut[&RelPath::parse(name.as_bytes()).expect("a path")];
    let same = |node: &MemNode| match (node, ours) {
        (MemNode::File { bytes, .. }, MemNode::File { bytes: ours, .. }) => bytes == ours,
        _ => false,
    };
    scene.world.drive_tree().values().any(same)
}

/// Finishes the batch and all that follows.
fn recover_and_flush(scene: &Scene) {
    scene.engine.flusher.recover().expect("recover");
    scene.engine.refresh();
    scene.engine.flush_all();
}

/// In a sector of the block that the patch changes elsewhere, and in a block that it does not
/// change.
#[test]
fn what_others_write_into_an_interrupted_patch_is_kept_beside_ours() {
    for kind in [Kind::Exfat, Kind::Linux] {
        for at in [PATCHED + 600, u64::from(BLOCK) + 7] {
            interrupted(
                || small_scene(kind),
                |scene| {
                    scribble(&scene.world.memory, "image", at, THEIRS);
                    recover_and_flush(&scene);
                    assert!(is_kept(&scene, "image", at, THEIRS), "theirs is lost");
                    assert!(has_ours(&scene, "image"), "ours is lost");
                },
            );
        }
    }
}

#[test]
fn what_others_append_to_an_interrupted_patch_is_kept_beside_ours() {
    interrupted(
        || small_scene(Kind::Exfat),
        |scene| {
            let drive = &scene.world.memory;
            let log = RelPath::fixed("log");
            let end = drive.metadata(&log).expect("look").size;
            scribble(drive, "log", end, b"a line of theirs\n");
            recover_and_flush(&scene);
            assert!(is_kept(&scene, "log", end, b"a line of theirs\n"), "lost");
            assert!(has_ours(&scene, "log"), "ours is lost");
        },
    );
}

/// A machine without the cache leaves their version as it is.
#[test]
fn what_others_write_into_an_interrupted_patch_outlives_a_recovery_without_the_cache() {
    interrupted(
        || small_scene(Kind::Exfat),
        |scene| {
            scribble(&scene.world.memory, "image", PATCHED + 600, THEIRS);
            // It finishes the batch only if it need not touch that file.
            let _ = recover_without_cache(&scene.world.memory);
            assert!(is_kept(&scene, "image", PATCHED + 600, THEIRS));
            recover_and_flush(&scene);
            assert!(is_kept(&scene, "image", PATCHED + 600, THEIRS));
            assert!(has_ours(&scene, "image"), "ours is lost");
        },
    );
}

/// Whether everything of the cut is on the drive, and beside it at most conflict copies.
fn assert_has_cut(scene: &Scene, what: &str) {
    let drive = scene.world.drive_tree();
    for (path, node) in &scene.cut {
        assert_eq!(drive.get(path), Some(node), "{what}: {path}");
    }
}

/// Whether each of the files that are patched is one of its two versions.
fn is_whole(scene: &Scene) -> bool {
    let drive = scene.world.drive_tree();
    ["image", "log"].map(RelPath::fixed).iter().all(|path| {
        let found = drive.get(path);
        found == scene.before.get(path) || found == scene.cut.get(path)
    })
}

/// Returns the patches that are staged.
fn staged_patches(scene: &Scene) -> Vec<RelPath> {
    let tree = scene.world.memory.tree();
    let is_patch = |path: &&RelPath| match path.split_last() {
        Some((dir, name)) => {
            let name = name.as_bytes();
            dir.to_string().contains("staging") && name.len() == 9 && name[0] == b'p'
        }
        None => false,
    };
    tree.keys().filter(is_patch).cloned().collect()
}

/// A sector of the file, or of its staged patch, cannot be read any more.
#[test]
fn what_cannot_be_read_of_an_interrupted_patch_is_written_whole_from_the_cache() {
    for kind in [Kind::Exfat, Kind::Linux] {
        for which in 0..3 {
            interrupted(
                || small_scene(kind),
                |scene| {
                    let patches = staged_patches(&scene);
                    let bad = match which {
                        0 => Some(image()),
                        which => patches.get(which - 1).cloned(),
                    };
                    let Some(bad) = bad else {
                        return;
                    };
                    let _case = Case(format!("{kind:?}, {bad} cannot be read"));
                    scene.world.faulty.refuse("read", bad, libc::EIO);
                    scene.engine.flusher.recover().expect("recover");
                    assert_has_cut(&scene, "recovered");
                    assert_eq!(ours_ending(&scene, ".begun"), []);
                    scene.world.faulty.heal();
                    scene.engine.refresh();
                    scene.engine.flush_all();
                    assert_has_cut(&scene, "the next flush");
                },
            );
        }
    }
}

/// Returns a scene that was stopped after the commit, and has no note yet, with the note of one of
/// its patches.
fn without_notes(kind: Kind) -> (Scene, RelPath) {
    let mut last = None;
    for n in 1.. {
        let scene = small_scene(kind);
        scene.flush_failing(n, true, false);
        if !ours_ending(&scene, ".begun").is_empty() {
            break;
        }
        if ours_ending(&scene, ".rec").is_empty() {
            continue;
        }
        let patch = staged_patches(&scene).remove(0);
        let (dir, name) = patch.split_last().expect("a name");
        let digits = name.as_bytes()[1..].to_vec();
        let note = format!("s{}.begun", String::from_utf8(digits).expect("digits"));
        let note = RelPath::parse(format!("{dir}/{note}").as_bytes()).expect("a path");
        last = Some((scene, note));
    }
    last.expect("a call between the record and the notes")
}

#[test]
fn a_patch_whose_note_the_drive_does_not_take_keeps_no_batch_open() {
    for errno in [libc::EIO, libc::EACCES, libc::ENOSPC] {
        let _case = Case(format!("errno {errno}"));
        let (scene, note) = without_notes(Kind::Exfat);
        scene.world.faulty.refuse("create", note.clone(), errno);
        scene.engine.flusher.recover().expect("recover");
        assert_same(&scene.world.drive_tree(), &scene.cut, "recovered");
        scene.world.faulty.heal();
        scene.recover_and_check();

        let (scene, note) = without_notes(Kind::Exfat);
        scene.world.faulty.refuse("create", note, errno);
        let recovered = recover_without_cache(&scene.world.faulty).expect("without the cache");
        assert_eq!(recovered[0].left_behind.len(), 1, "{recovered:?}");
        scene.world.faulty.heal();
        assert!(is_whole(&scene));
        recover_and_flush(&scene);
        assert_same(&scene.world.drive_tree(), &scene.cut, "the next flush");
    }
}

/// The drive does not let go of a note, and its batch ends all the same. Without the record the
/// note is not taken for that of a lost batch, also by a new daemon.
#[test]
fn a_note_that_the_drive_keeps_is_removed_when_it_lets_go_of_it() {
    for errno in [libc::EBUSY, libc::EIO] {
        interrupted(
            || small_scene(Kind::Exfat),
            |mut scene| {
                let note = ours_ending(&scene, ".begun").remove(0);
                let refuse = |scene: &Scene| {
                    scene.world.faulty.refuse("remove", note.clone(), errno);
                };
                refuse(&scene);
                scene.engine.flusher.recover().expect("recover");
                assert_same(&scene.world.drive_tree(), &scene.cut, "recovered");
                let notes = ours_ending(&scene, ".begun");
                assert_eq!(notes, std::slice::from_ref(&note));
                assert_eq!(ours_ending(&scene, ".rec"), []);
                scene.engine.die();
                scene.engine = scene.world.start(true);
                scene.engine.flusher.recover().expect("and again");
                let notes = ours_ending(&scene, ".begun");
                assert_eq!(notes, std::slice::from_ref(&note));
                scene.world.faulty.heal();
                scene.recover_and_check();
                assert_eq!(ours_ending(&scene, ".begun"), []);
            },
        );
    }
}

/// As long as it stays, another machine tells of it, and finishes the batches after it.
#[test]
fn a_note_without_a_record_stops_no_other_batch_of_a_recovery_without_the_cache() {
    let stop = last_before_it_is_written(Kind::Exfat);
    for n in 1.. {
        let scene = small_scene(Kind::Exfat);
        scene.flush_failing(stop, true, false);
        let note = ours_ending(&scene, ".begun").remove(0);
        (scene.world.faulty).refuse("remove", note.clone(), libc::EBUSY);
        scene.engine.flusher.recover().expect("recover");
        scene.world.faulty.heal();
        scene.engine.put("after", b"of the next batch");
        let at = scene.world.faulty.calls() + n;
        let drive = scene.world.faulty.clone();
        (scene.world.faulty).refuse("remove", note.clone(), libc::EBUSY);
        scene.world.faulty.arm(Fault {
            stays_dead: true,
            ..Fault::at(at, libc::EIO)
        });
        let flushed = scene.engine.flush();
        drive.heal();
        assert!(flushed.is_err(), "no call between the record and the file");
        let after = RelPath::fixed("after");
        if ours_ending(&scene, ".rec").is_empty() || scene.world.drive_tree().contains_key(&after) {
            continue;
        }
        let without = recover_without_cache(&scene.world.memory);
        assert!(without.is_err(), "the note is still there: {without:?}");
        if !scene.world.drive_tree().contains_key(&after) {
            continue; // Its record was not whole.
        }
        recover_and_flush(&scene);
        assert_eq!(ours_ending(&scene, ".begun"), []);
        break;
    }
}

/// A machine without the cache may not write into the file, for good or for a moment: what could
/// repair it stays.
#[test]
fn a_torn_file_that_another_machine_cannot_write_waits() {
    for (operation, errno) in [
        ("modify", libc::EACCES),
        ("write", libc::EIO),
        ("read", libc::EIO),
    ] {
        let mut waits = 0;
        interrupted(
            || small_scene(Kind::Exfat),
            |scene| {
                let _case = Case(format!("{operation}, errno {errno}"));
                let faulty = &scene.world.faulty;
                faulty.refuse(operation, image(), errno);
                let without = recover_without_cache(faulty);
                faulty.heal();
                if without.is_ok() {
                    assert!(is_whole(&scene), "torn, and its batch is over");
                    recover_and_flush(&scene);
                    return assert_same(&scene.world.drive_tree(), &scene.cut, "flushed");
                }
                waits += 1;
                recover_without_cache(&scene.world.memory).expect("when it may");
                scene.is_one_cut("recovered without the cache");
                scene.recover_and_check();
            },
        );
        assert!(waits > 0, "never torn");
    }
}

/// What others have changed or removed since is no reason to wait for the machine with the cache.
#[test]
fn a_machine_without_the_cache_ends_a_batch_whose_file_others_have_changed_or_removed() {
    for is_removed in [false, true] {
        interrupted(
            || small_scene(Kind::Exfat),
            |scene| {
                let drive = &scene.world.memory;
                match is_removed {
                    true => drive.remove_file(&image()).expect("remove it"),
                    false => scribble(drive, "image", PATCHED + 600, THEIRS),
                }
                let recovered = recover_without_cache(drive).expect("no dead end");
                let named = recovered.iter().flat_map(|it| &it.left_behind);
                assert_eq!(named.filter(|(path, _)| path == "image").count(), 1);
                assert_eq!(ours_ending(&scene, ".begun"), []);
                assert_eq!(ours_ending(&scene, ".rec"), []);
                let is_there = drive.metadata(&image()).is_ok();
                assert_eq!(is_there, !is_removed, "theirs is left alone");
                recover_and_flush(&scene);
                assert!(has_ours(&scene, "image"), "ours is lost");
                assert!(is_removed || is_kept(&scene, "image", PATCHED + 600, THEIRS));
            },
        );
    }
}

/// The file cannot be written into, and a crash comes while it is replaced.
#[test]
fn a_replay_that_stops_while_it_replaces_a_torn_file_keeps_no_copy_of_it() {
    let is_torn = |n: &u64| {
        let scene = only_patches();
        assert!(scene.flush_failing(*n, true, false), "never torn");
        let image = scene.world.on_drive("image").expect("it is there");
        let has = |at: usize| image[at..].starts_with(b"changed");
        has(5) != has(PATCHED as usize + 5)
    };
    let stop = (1..).find(is_torn).expect("a call between two blocks");
    for m in 1.. {
        let _case = Case(format!("call {m} of the recovery"));
        let scene = only_patches();
        scene.flush_failing(stop, true, false);
        let faulty = &scene.world.faulty;
        let at = faulty.calls() + m;
        faulty.refuse("modify", image(), libc::EPERM);
        faulty.arm(Fault {
            stays_dead: true,
            ..Fault::at(at, libc::EIO)
        });
        let _ = scene.engine.flusher.recover();
        let over = faulty.calls() < at;
        faulty.heal();
        scene.recover_and_check();
        if over {
            break;
        }
    }
}

/// Returns the last call of a flush at which the patch of the image was begun, and nothing has been
/// written into it.
fn last_before_it_is_written(kind: Kind) -> u64 {
    let mut stop = None;
    for n in 1.. {
        let scene = small_scene(kind);
        let failed = scene.flush_failing(n, true, false);
        let is_old = scene.world.drive_tree()[&image()] == scene.before[&image()];
        if !ours_ending(&scene, ".begun").is_empty() && is_old {
            stop = Some(n);
        } else if !failed || stop.is_some() {
            break;
        }
    }
    stop.expect("a call after the note")
}

/// Somebody has made it readable to others on the drive, since its blocks were staged.
#[test]
fn a_file_that_others_may_read_by_now_gets_no_new_bytes_before_it_is_closed_to_them() {
    let scene = small_scene(Kind::Linux);
    scene.flush_failing(last_before_it_is_written(Kind::Linux), true, false);
    let drive = &scene.world.memory;
    let reader = drive.open(&image()).expect("open it as they could");
    (drive.set_permissions(&image(), 0o666)).expect("open it to them");
    scene.engine.flusher.recover().expect("recover");
    let mut seen = [0; 7];
    // An error: the file that they have opened is gone.
    if reader.read_at(&mut seen, PATCHED + 5).is_ok() {
        assert_ne!(&seen, b"changed");
    }
    assert_same(&scene.world.drive_tree(), &scene.cut, "recovered");
    let mode = drive.metadata(&image()).expect("look").permissions;
    assert_ne!(mode, 0o666);
}

/// Another program changes the file before each call of a recovery.
#[test]
fn what_others_write_while_an_interrupted_patch_is_finished_is_kept_beside_ours() {
    let stop = last_before_it_is_written(Kind::Exfat);
    let mut lost = Vec::new();
    for m in 1.. {
        let _case = Case(format!("before call {m} of the recovery"));
        let scene = small_scene(Kind::Exfat);
        scene.flush_failing(stop, true, false);
        let faulty = &scene.world.faulty;
        let at = faulty.calls() + m;
        let drive = scene.world.memory.clone();
        faulty.before_call(at, move || scribble(&drive, "image", PATCHED + 600, THEIRS));
        scene.engine.flusher.recover().expect("recover");
        let over = faulty.calls() < at;
        faulty.heal();
        if over {
            break;
        }
        scene.engine.refresh();
        scene.engine.flush_all();
        let is_taken = scene.engine.read("image")[PATCHED as usize + 600..].starts_with(THEIRS);
        let has_both = has_ours(&scene, "image") || is_taken;
        if !is_kept(&scene, "image", PATCHED + 600, THEIRS) || !has_both {
            lost.push(m);
        }
    }
    // Between the comparison of the block and the write, and until the time is set.
    let span = (lost.last().zip(lost.first())).map_or(0, |(last, first)| last - first + 1);
    assert!(span <= 4 && span == lost.len() as u64, "{lost:?}");
}

/// A scene that needs no mark between its phases.
fn only_patches() -> Scene {
    let put = |engine: &Engine| {
        engine.put("image", &bytes(1, 4, 0));
        engine.put("log", &bytes(2, 3, 77));
        engine.flush_all();
    };
    let change = |engine: &Engine| {
        engine.edit("image", PATCHED + 5, b"changed");
        engine.edit("image", 5, b"changed");
        engine.edit("log", bytes(2, 3, 77).len() as u64, &bytes(11, 0, 4050));
    };
    scene_on(World::new(Kind::Exfat), put, change)
}

fn lose_record(scene: &Scene) {
    for record in ours_ending(scene, ".rec") {
        scene.world.memory.remove_file(&record).expect("lose it");
    }
}

#[test]
fn a_record_that_the_drive_loses_after_a_patch_was_begun_ends_no_batch() {
    for make in [only_patches, || small_scene(Kind::Exfat)] {
        interrupted(make, |scene| {
            lose_record(&scene);
            let without = recover_without_cache(&scene.world.memory);
            assert!(without.is_err(), "its batch is not over: {without:?}");
            assert_ne!(ours_ending(&scene, ".begun"), []);
            scene.recover_and_check();
        });
    }
}

/// The mark between the phases is lost as well.
#[test]
fn a_mark_that_the_drive_loses_after_a_patch_was_begun_is_known_all_the_same() {
    interrupted(
        || small_scene(Kind::Exfat),
        |scene| {
            for mark in ours_ending(&scene, "/cleared") {
                scene.world.memory.remove_file(&mark).expect("lose it");
            }
            scene.recover_and_check();
        },
    );
}

/// Others have written into a file in the middle of its patch, and there is no space for ours
/// beside theirs.
#[test]
fn a_file_for_which_there_is_no_space_is_named_and_the_rest_is_finished() {
    let make = || {
        let put = |engine: &Engine| {
            engine.put("image", &bytes(1, 40, 0));
            engine.put("other", &bytes(2, 40, 0));
            engine.flush_all();
        };
        let change = |engine: &Engine| {
            engine.edit("image", PATCHED + 5, b"changed");
            engine.edit("other", PATCHED + 5, b"changed");
        };
        scene_on(small(Kind::Exfat, 200), put, change)
    };
    interrupted(make, |scene| {
        let drive = &scene.world.memory;
        scribble(drive, "image", PATCHED + 600, THEIRS);
        fill(drive);
        let before = scene.world.faulty.calls();
        scene.engine.flusher.recover().expect("no dead end");
        assert!(scene.world.faulty.calls() > before);
        let other = RelPath::fixed("other");
        assert_eq!(scene.world.drive_tree()[&other], scene.cut[&other]);
        assert!(is_kept(&scene, "image", PATCHED + 600, THEIRS));
        let named = match scene.engine.flush() {
            Ok(report) => report.left_behind.iter().any(|(path, _)| path == "image"),
            Err(FlushError::Full { path, .. }) => path == Some(image()),
            Err(_) => false,
        };
        assert!(named, "nobody is told");
        relent(drive);
        scene.engine.refresh();
        scene.engine.flush_all();
        assert!(is_kept(&scene, "image", PATCHED + 600, THEIRS));
        assert!(has_ours(&scene, "image"), "ours is lost");
    });
}

/// A flush with `--verify` has found other bytes on the medium. Its batch does not end with them.
#[test]
fn blocks_that_the_drive_does_not_take_are_written_elsewhere_by_the_next_flush() {
    let scene = small_scene(Kind::Exfat);
    let faulty = &scene.world.faulty;
    let wish = Wish {
        verify: true,
        ..Wish::asked_for()
    };
    let flushed = scene.engine.flusher.flush(
        &wish,
        &|at| {
            if at.phase == Phase::Apply {
                faulty.lie_in(Some(image()));
            }
        },
        || {},
    );
    let told = flushed.expect_err("other bytes").to_string();
    assert!(told.contains("image"), "{told}");
    scene.engine.flush().expect("the next flush");
    assert!(has_ours(&scene, "image"), "the drive has other bytes");
    assert_eq!(
        scene.world.drive_tree()[&image()],
        scene.cut[&image()],
        "under its name"
    );
}

/// The same of a recovery, for which nobody has asked to verify anything.
#[test]
fn a_recovery_reads_back_the_blocks_that_it_writes() {
    interrupted(
        || small_scene(Kind::Exfat),
        |scene| {
            scene.world.faulty.lie_in(Some(image()));
            scene.engine.flusher.recover().expect("recover");
            scene.world.faulty.lie_in(None);
            assert_same(&scene.world.drive_tree(), &scene.cut, "recovered");
            scene.recover_and_check();
        },
    );
}

/// A list of hashes would otherwise become longer and longer.
#[test]
fn a_file_that_outgrows_its_blocks_gets_larger_ones_without_being_written_whole() {
    let mut world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("image", &bytes(1, 32, 0));
    engine.flush_all();
    engine.die();
    world.block = 4 * BLOCK;
    let engine = world.start(true);
    let block = u64::from(BLOCK);
    for number in 0..3 {
        engine.edit("image", number * 9 * block + 3, b"changed");
        let report = engine.flush_all();
        assert!(report.bytes < 2 * block, "{number}: {report:?}");
        assert_same(
            &world.drive_tree(),
            &engine.expected_on_drive(),
            "the flush",
        );
    }
    let lists = std::fs::read_dir(engine.dir.join("blocks")).expect("the lists");
    let mut lengths: Vec<u64> = lists
        .map(|entry| entry.and_then(|it| it.metadata()).expect("a list").len())
        .collect();
    lengths.sort_unstable();
    // Of 8 blocks three times, and of 32 once.
    assert!(
        lengths[0] == lengths[2] && 2 * lengths[2] < lengths[3],
        "{lengths:?}"
    );
}
