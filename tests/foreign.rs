//! What somebody else has put on the drive, or changed there, is not overwritten: the mount's own version stays behind, and
//! is named.

#[path = "support/engine/mod.rs"]
mod engine;

use engine::{Kind, World};
use ferryfs::backend::Backend;
use ferryfs::backend::faulty::Fault;
use ferryfs::backend::memory::MemNode;
use ferryfs::base::{RelPath, Timestamp};
use ferryfs::flush::{FlushError, Report};

const KINDS: [Kind; 2] = [Kind::Plain, Kind::Exfat];

/// Somebody else's hand.
fn put(world: &World, path: &'static str, bytes: &[u8]) {
    let path = RelPath::fixed(path);
    let _ = world.memory.remove_file(&path);
    let mut file = world.memory.create(&path).expect("create");
    file.append(bytes).expect("append");
    file.finish(Timestamp(1_650_000_000_000_000_000))
        .expect("finish");
}

fn named(report: &Report) -> Vec<&str> {
    report
        .left_behind
        .iter()
        .map(|(path, _)| &path[..])
        .collect()
}

#[test]
fn a_file_that_somebody_put_where_a_new_one_goes_is_not_overwritten() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.mkdir("d");
        engine.put("d/known", b"known");
        engine.flush_all();
        put(&world, "d/new", b"theirs");
        engine.put("d/new", b"ours");
        engine.put("other", b"other");
        assert_eq!(named(&engine.flush().expect("flush")), ["d/new"]);
        assert_eq!(world.on_drive("d/new").as_deref(), Some(&b"theirs"[..]));
        assert_eq!(world.on_drive("other").as_deref(), Some(&b"other"[..]));
        assert_eq!(engine.read("d/new"), b"ours");
        // Renamed, as the reason says, it is carried.
        engine.rename("d/new", "d/newer");
        engine.flush_all();
        assert_eq!(world.on_drive("d/new").as_deref(), Some(&b"theirs"[..]));
        assert_eq!(world.on_drive("d/newer").as_deref(), Some(&b"ours"[..]));
        world.check(&engine);
    }
}

#[test]
fn a_foreign_file_in_another_case_is_not_overwritten_on_exfat() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("known", b"known");
    engine.flush_all();
    put(&world, "Report.TXT", b"theirs");
    engine.put("report.txt", b"ours");
    assert_eq!(named(&engine.flush().expect("flush")), ["report.txt"]);
    assert_eq!(
        world.on_drive("Report.TXT").as_deref(),
        Some(&b"theirs"[..])
    );
    world.check(&engine);
}

#[test]
fn a_file_that_somebody_changed_is_not_overwritten() {
    for kind in KINDS {
        for theirs in [&b"theirs, and longer"[..], b"their"] {
            let world = World::new(kind);
            let engine = world.start(false);
            engine.put("f", b"first");
            engine.flush_all();
            put(&world, "f", theirs);
            engine.put("f", b"ours");
            assert_eq!(named(&engine.flush().expect("flush")), ["f"]);
            assert_eq!(world.on_drive("f").as_deref(), Some(theirs));
            assert_eq!(engine.read("f"), b"ours");
        }
    }
}

#[test]
fn a_file_with_another_time_but_the_same_bytes_is_nobody_elses() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("f", b"first");
    engine.flush_all();
    put(&world, "f", b"first");
    engine.put("f", b"ours");
    engine.flush_all();
    assert_eq!(world.on_drive("f").as_deref(), Some(&b"ours"[..]));
}

#[test]
fn a_file_that_somebody_put_where_another_moves_stops_the_flush_and_is_named() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("f", b"ours");
        engine.flush_all();
        put(&world, "g", b"theirs");
        engine.rename("f", "g");
        let error = engine.flush().expect_err("somebody else's file is there");
        assert!(matches!(&error, FlushError::Foreign { path } if path.to_string() == "g"));
        assert_eq!(world.on_drive("g").as_deref(), Some(&b"theirs"[..]));
        assert_eq!(world.on_drive("f").as_deref(), Some(&b"ours"[..]));
        engine.rename("g", "h");
        engine.flush_all();
        assert_eq!(world.on_drive("h").as_deref(), Some(&b"ours"[..]));
        world.check(&engine);
    }
}

#[test]
fn a_directory_that_somebody_else_made_as_well_serves_both() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        world
            .memory
            .make_dir(&RelPath::fixed("both"))
            .expect("mkdir");
        put(&world, "both/same", b"theirs");
        // The mount has listed its root before.
        engine.put("first", b"first");
        assert_eq!(engine.read("both/same"), b"theirs");
        engine.mkdir("late");
        world
            .memory
            .make_dir(&RelPath::fixed("late"))
            .expect("mkdir");
        put(&world, "late/same", b"theirs");
        engine.put("late/same", b"ours");
        engine.put("late/own", b"own");
        assert_eq!(named(&engine.flush().expect("flush")), ["late/same"]);
        assert_eq!(world.on_drive("late/same").as_deref(), Some(&b"theirs"[..]));
        assert_eq!(world.on_drive("late/own").as_deref(), Some(&b"own"[..]));
        world.check(&engine);
    }
}

#[test]
fn a_file_that_somebody_put_where_a_new_directory_goes_stops_the_flush_and_is_named() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("first", b"first");
        engine.flush_all();
        put(&world, "d", b"theirs");
        engine.mkdir("d");
        engine.mkdir("d/e");
        engine.put("d/e/f", b"ours");
        let error = engine.flush().expect_err("somebody else's file is there");
        assert!(matches!(&error, FlushError::Foreign { path } if path.to_string() == "d"));
        assert_eq!(world.on_drive("d").as_deref(), Some(&b"theirs"[..]));
    }
}

#[test]
fn what_somebody_put_into_a_directory_that_is_removed_stays_and_the_directory_is_named() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.mkdir("d");
        engine.put("d/f", b"ours");
        engine.flush_all();
        put(&world, "d/theirs", b"theirs");
        engine.unlink("d/f");
        engine.rmdir("d");
        assert_eq!(named(&engine.flush().expect("flush")), ["d"]);
        assert_eq!(world.on_drive("d/theirs").as_deref(), Some(&b"theirs"[..]));
        assert_eq!(world.on_drive("d/f"), None);
    }
}

#[test]
fn a_file_that_somebody_changed_and_the_mount_removed_is_not_removed() {
    for kind in KINDS {
        for with_its_directory in [false, true] {
            let world = World::new(kind);
            let engine = world.start(false);
            engine.mkdir("d");
            engine.put("d/f", b"ours");
            engine.put("d/g", b"unchanged");
            engine.flush_all();
            put(&world, "d/f", b"theirs, and much longer");
            engine.unlink("d/f");
            engine.unlink("d/g");
            if with_its_directory {
                engine.rmdir("d");
            }
            let report = engine.flush().expect("flush");
            assert!(named(&report)[0].ends_with('f'), "{report:?}");
            let on_drive = world.on_drive("d/f");
            assert_eq!(on_drive.as_deref(), Some(&b"theirs, and much longer"[..]));
            assert_eq!(world.on_drive("d/g"), None);
            world.check(&engine);
            // Nothing of it waits any more.
            engine.flush_all();
            assert_eq!(world.on_drive("d/f").map(|bytes| bytes.len()), Some(23));
        }
    }
}

#[test]
fn a_moved_file_that_the_drive_has_no_more_is_named_and_put_back_from_the_cache() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("cached", b"still in the cache");
        engine.put("other", b"other");
        engine.flush_all();
        world
            .memory
            .remove_file(&RelPath::fixed("cached"))
            .expect("somebody removes it");
        engine.rename("cached", "moved");
        engine.rename("other", "another");
        assert_eq!(named(&engine.flush().expect("flush")), ["moved"]);
        assert_eq!(world.on_drive("another").as_deref(), Some(&b"other"[..]));
        engine.flush_all();
        assert_eq!(
            world.on_drive("moved").as_deref(),
            Some(&b"still in the cache"[..])
        );
        world.check(&engine);
    }
}

#[test]
fn a_moved_file_that_is_nowhere_does_not_keep_the_rest_from_the_drive() {
    for kind in KINDS {
        let mut world = World::new(kind);
        world.limits.max_bytes = 0;
        let engine = world.start(false);
        engine.put("film", b"only on the drive");
        engine.flush_all();
        engine.trim();
        assert!(!engine.is_cached("film"));
        world
            .memory
            .remove_file(&RelPath::fixed("film"))
            .expect("somebody removes it");
        engine.rename("film", "moved");
        engine.put("new", b"new");
        assert_eq!(named(&engine.flush().expect("flush")), ["moved"]);
        assert_eq!(world.on_drive("new").as_deref(), Some(&b"new"[..]));
        engine.put("newer", b"newer");
        engine.flush().expect("the next flush goes on");
        assert_eq!(world.on_drive("newer").as_deref(), Some(&b"newer"[..]));
    }
}

/// A batch is interrupted, somebody else works on the drive, then it comes back: what they have put under its final names, or
/// changed there, is on the drive still, under its name or in `.ferryfs/lost+found`.
#[test]
fn what_somebody_does_while_a_batch_is_interrupted_is_kept() {
    let mut set_aside = 0;
    for kind in KINDS {
        for n in 1.. {
            let world = World::new(kind);
            let engine = world.start(false);
            for (path, bytes) in [("f", "first"), ("gone", "to go"), ("m", "to move")] {
                engine.put(path, bytes.as_bytes());
            }
            engine.flush_all();
            engine.put("f", b"second");
            engine.unlink("gone");
            engine.rename("m", "n");
            let at = world.faulty.calls() + n;
            world.faulty.arm(Fault {
                stays_dead: true,
                ..Fault::at(at, libc::EIO)
            });
            let _ = engine.flush();
            let failed = world.faulty.calls() >= at;
            world.faulty.heal();
            let theirs = [
                ("f", "theirs at f"),
                ("gone", "theirs at gone"),
                ("n", "theirs at n"),
            ];
            for (path, bytes) in theirs {
                put(&world, path, bytes.as_bytes());
            }
            engine.flusher.recover().expect("recover");
            let _ = engine.flush();
            let tree = world.memory.tree();
            for (path, bytes) in theirs {
                let place = tree.iter().find(|(_, node)| match node {
                    MemNode::File { bytes: b, .. } => b.as_slice() == bytes.as_bytes(),
                    _ => false,
                });
                let (place, _) = place.unwrap_or_else(|| panic!("call {n}: {path} is gone"));
                set_aside += usize::from(place.to_string().contains("-theirs"));
            }
            assert_eq!(engine.read("f"), b"second", "call {n}");
            assert_eq!(engine.read("n"), b"to move", "call {n}");
            if !failed {
                break;
            }
        }
    }
    assert!(set_aside > 0, "nothing had to be set aside");
}
