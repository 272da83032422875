//! Absent is not deleted: nothing is concluded from what is not the volume, nor from what cannot be
//! read.

use ferryfs::core::Ino;
use ferryfs::drive::Backend;
use ferryfs::drive::faulty::Fault;
use ferryfs::error::FlushError;
use ferryfs::format::layout;

use super::engine::{Engine, Kind, World};
use super::{KINDS, at_rest, make_dir, put, remove, rename};

fn known(kind: Kind) -> (World, Engine) {
    let world = World::new(kind);
    let engine = world.start(false);
    for dir in ["a", "b", "a/c"] {
        engine.mkdir(dir);
        for n in 0..3 {
            engine.put(&format!("{dir}/{n}"), format!("{dir} {n}").as_bytes());
        }
    }
    engine.flush_all();
    (world, engine)
}

fn empty(world: &World) {
    remove(world, "a");
    remove(world, "b");
}

#[test]
fn nothing_is_concluded_from_a_drive_without_its_marker() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        let before = engine.mount_tree();
        empty(&world);
        let marker = layout::marker_path();
        world.memory.remove_file(&marker).expect("rm");
        let error = engine
            .flusher
            .refresh(Ino::ROOT, true, &|| false)
            .expect_err("not our drive");
        assert!(matches!(error, FlushError::WrongDrive(_)), "{error}");
        assert_eq!(engine.mount_tree(), before);
    }
}

#[test]
fn nothing_is_concluded_if_the_drive_goes_while_it_is_listed() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        let before = engine.mount_tree();
        empty(&world);
        // As when the mount point of a drive that was pulled is empty: the listing is fine, the
        // marker is not.
        let mut asked = 0;
        let taken = engine.fs.take_in(&world.memory, &[Ino::ROOT], &mut || {
            asked += 1;
            false
        });
        assert!(taken.is_err());
        assert_eq!(asked, 1);
        assert_eq!(engine.mount_tree(), before);
    }
}

/// Every call of a look fails once, in each of several ways: what is there is in the mount
/// afterwards, whatever was told.
#[test]
fn what_cannot_be_read_is_not_taken_for_deleted() {
    for errno in [libc::EIO, libc::EACCES, libc::ETIMEDOUT, libc::ENOMEDIUM] {
        let mut named = 0;
        for n in 1.. {
            let (world, engine) = known(Kind::Exfat);
            put(&world, "a/new", b"new", 1);
            rename(&world, "b", "moved");
            make_dir(&world, "fresh");
            put(&world, "fresh/x", b"x", 1);
            let at = world.faulty.calls() + n;
            world.faulty.arm(Fault::at(at, errno));
            let refreshed = engine.flusher.refresh(Ino::ROOT, true, &|| false);
            let hit = world.faulty.calls() >= at;
            world.faulty.heal();
            if let Ok(changes) = &refreshed {
                named += changes.skipped.len();
                // That `b` is gone shows, if not where it is now.
                let unseen = changes.skipped.iter().any(|(path, _)| path == "moved");
                assert!(changes.deleted == 0 || unseen, "call {n}: {changes:?}");
            }
            for path in ["a/0", "a/c/1"] {
                assert!(engine.find(path).is_some(), "call {n}: {path} is gone");
            }
            // And the next look puts everything right.
            engine.refresh();
            assert_eq!(engine.read("moved/2"), b"b 2");
            assert_eq!(engine.read("fresh/x"), b"x");
            assert_eq!(engine.read("a/new"), b"new");
            at_rest(&world, &engine);
            if !hit {
                break;
            }
        }
        if errno == libc::EACCES {
            assert!(named > 0, "a directory that cannot be read is named");
        }
    }
}

#[test]
fn a_look_finishes_what_was_interrupted_first() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        engine.rename("a/0", "b/moved");
        engine.put("b/1", b"changed here");
        let mut interrupted = false;
        for n in 1.. {
            let at = world.faulty.calls() + n;
            world.faulty.arm(Fault {
                stays_dead: true,
                ..Fault::at(at, libc::EIO)
            });
            let flushed = engine.flush();
            world.faulty.heal();
            if flushed.is_ok() {
                break;
            }
            interrupted = true;
            let changes = engine.refresh();
            assert_eq!(
                (changes.deleted, changes.conflicts),
                (0, 0),
                "call {n}: {changes:?}"
            );
            engine.put("b/1", format!("changed here {n}").as_bytes());
        }
        assert!(interrupted);
        at_rest(&world, &engine);
        assert_eq!(engine.read("b/moved"), b"a 0");
    }
}

#[test]
fn a_daemon_that_dies_while_it_takes_things_in_finds_the_rest_at_the_next_look() {
    for kind in KINDS {
        for commits in 0..6 {
            let (world, engine) = known(kind);
            make_dir(&world, "fresh");
            for n in 0..3 {
                put(&world, &format!("fresh/{n}"), b"fresh", n);
                remove(&world, &format!("a/{n}"));
            }
            rename(&world, "b", "moved");
            put(&world, "a/c/0", b"changed", 1);
            // Nothing after this many commits survives.
            for _ in 0..commits {
                let _ = engine.index.commit();
            }
            engine.index.fail_next_commit(libc::EIO);
            let _ = engine.flusher.refresh(Ino::ROOT, true, &|| false);
            engine.die();
            let engine = world.start(true);
            engine.flusher.recover().expect("recover");
            engine.refresh();
            assert_eq!(engine.read("moved/2"), b"b 2");
            assert_eq!(engine.read("fresh/1"), b"fresh");
            assert_eq!(engine.read("a/c/0"), b"changed");
            assert!(engine.find("a/1").is_none());
            at_rest(&world, &engine);
        }
    }
}
