//! What somebody else has put on the drive, or changed there, is not overwritten by a flush that
//! meets it: it is taken in first, and where the mount has changed the same, both versions are on
//! the drive in the end.

use crate::engine::{self, Engine, Kind, World};
use ferryfs::core::{RelPath, Timestamp};
use ferryfs::drive::Backend;
use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::{MemNode, MemoryBackend, MemoryOptions};
use ferryfs::format::layout;

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

/// The other versions on the drive: paths with the mark taken out, and bytes.
fn others(world: &World) -> Vec<(String, Vec<u8>)> {
    let tree = world.drive_tree().into_iter();
    let all = tree.filter_map(|(path, node)| {
        let path = path.to_string();
        let (stem, rest) = path.split_once(".sync-conflict-")?;
        let extension = rest.split_once('.').map(|(_, extension)| extension);
        let plain = extension.map_or(stem.to_string(), |extension| format!("{stem}.{extension}"));
        match node {
            MemNode::File { bytes, .. } => Some((plain, bytes.to_vec())),
            _ => Some((plain, Vec::new())),
        }
    });
    all.collect()
}

/// The mount shows what is on the drive, and a look finds nothing that is not known.
fn at_rest(world: &World, engine: &Engine) {
    engine.flush_all();
    assert!(engine.refresh().is_nothing());
    world.check(engine);
    engine::tree::assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "the drive is not what the mount shows",
    );
}

#[test]
fn a_file_that_somebody_put_where_a_new_one_goes_is_kept_beside_it() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.mkdir("d");
        engine.put("d/known", b"known");
        engine.flush_all();
        put(&world, "d/new.txt", b"theirs");
        engine.put("d/new.txt", b"ours");
        engine.put("other", b"other");
        engine.flush_all();
        assert_eq!(world.on_drive("d/new.txt").as_deref(), Some(&b"ours"[..]));
        assert_eq!(world.on_drive("other").as_deref(), Some(&b"other"[..]));
        assert_eq!(others(&world), [("d/new.txt".into(), b"theirs".to_vec())]);
        assert_eq!(engine.read("d/new.txt"), b"ours");
        at_rest(&world, &engine);
    }
}

#[test]
fn a_foreign_file_in_another_case_is_kept_beside_ours_on_exfat() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("known", b"known");
    engine.flush_all();
    put(&world, "Report.TXT", b"theirs");
    engine.put("report.txt", b"ours");
    engine.flush_all();
    assert_eq!(world.on_drive("report.txt").as_deref(), Some(&b"ours"[..]));
    assert_eq!(others(&world), [("Report.TXT".into(), b"theirs".to_vec())]);
    at_rest(&world, &engine);
}

/// Spellings that count as the same although the drive distinguishes them: Unicode forms, and a
/// Kelvin sign.
#[test]
fn a_foreign_file_in_another_unicode_form_is_kept_beside_ours_on_exfat() {
    let pairs = [
        ("caf\u{e9}.txt", "cafe\u{301}.txt"),
        ("Kiel.txt", "\u{212a}iel.txt"),
    ];
    for (ours, theirs) in pairs {
        let world = World::new(Kind::Exfat);
        let engine = world.start(false);
        engine.put("Known", b"known");
        engine.flush_all();
        put(&world, theirs, b"theirs");
        engine.put(ours, b"ours");
        engine.flush_all();
        assert_eq!(world.on_drive(ours).as_deref(), Some(&b"ours"[..]));
        assert_eq!(others(&world), [(theirs.into(), b"theirs".to_vec())]);
        at_rest(&world, &engine);
    }
}

/// The drive was enrolled where names are compared without case, and is reached by a way that
/// distinguishes case.
#[test]
fn a_foreign_file_in_another_case_is_found_on_a_drive_that_does_not_look_for_it() {
    for known in ["Known", "0815"] {
        let options = MemoryOptions {
            case_insensitive: false,
            ..MemoryOptions::exfat_like()
        };
        let world = World::on(Kind::Exfat, MemoryBackend::new(options));
        let engine = world.start(false);
        engine.put(known, b"known");
        engine.flush_all();
        put(&world, "Report.TXT", b"theirs");
        engine.put("report.txt", b"ours");
        engine.flush_all();
        assert_eq!(world.on_drive("report.txt").as_deref(), Some(&b"ours"[..]));
        assert_eq!(others(&world), [("Report.TXT".into(), b"theirs".to_vec())]);
    }
}

#[test]
fn a_directory_that_somebody_replaced_by_a_link_is_made_again_beside_it() {
    let world = World::new(Kind::Linux);
    let engine = world.start(false);
    engine.mkdir("d");
    engine.mkdir("d/sub");
    engine.put("d/f", b"first");
    engine.put("d/sub/f", b"first");
    engine.flush_all();
    for file in ["d/sub/f", "d/f"].map(RelPath::fixed) {
        world.memory.remove_file(&file).expect("remove");
    }
    for dir in ["d/sub", "d"].map(RelPath::fixed) {
        world.memory.remove_dir(&dir).expect("rmdir");
    }
    let d = RelPath::fixed("d");
    world.memory.make_symlink(b"other", &d).expect("symlink");
    engine.put("d/f", b"ours");
    engine.put("d/sub/f", b"ours");
    engine.flush_all();
    for path in ["d/f", "d/sub/f"] {
        assert_eq!(world.on_drive(path).as_deref(), Some(&b"ours"[..]));
        assert_eq!(engine.read(path), b"ours");
    }
    assert_eq!(others(&world), [("d".into(), Vec::new())]);
    assert!(engine.refresh().is_nothing());
    world.check(&engine);
}

/// Names of the mount that differ in case only change places, while somebody puts another there.
#[test]
fn what_stands_under_another_known_spelling_is_not_taken_for_a_foreign_file() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("Report.txt", b"ours");
    engine.flush_all();
    engine.rename("Report.txt", "report.TXT");
    engine.put("other", b"other");
    engine.flush_all();
    assert_eq!(others(&world), []);
    assert_eq!(world.on_drive("report.TXT").as_deref(), Some(&b"ours"[..]));
    at_rest(&world, &engine);
}

/// The directories of the user's tree that a flush has listed.
fn listed(world: &World) -> Vec<RelPath> {
    let all = world.faulty.take_listed().into_iter();
    all.filter(|dir| !layout::is_reserved(dir)).collect()
}

#[test]
fn a_flush_of_a_few_names_lists_no_directory_and_costs_the_same_in_a_large_one() {
    for kind in KINDS {
        let calls = [10, 1000].map(|files| {
            let world = World::new(kind);
            let engine = world.start(false);
            engine.mkdir("d");
            for n in 0..files {
                engine.put(&format!("d/{n} file"), b"before");
            }
            engine.flush_all();
            engine.put("d/1 file", b"after, and longer");
            engine.put("d/new", b"new");
            engine.unlink("d/2 file");
            let before = world.faulty.calls();
            listed(&world);
            engine.flush_all();
            assert_eq!(listed(&world), [], "{kind:?}, {files} files");
            world.faulty.calls() - before
        });
        assert_eq!(calls[0], calls[1], "{kind:?}");
        assert!(calls[0] < 90, "{kind:?}: {} calls", calls[0]);
    }
}

#[test]
fn a_flush_of_many_names_of_a_directory_lists_it_once_in_each_look() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.mkdir("d");
        engine.put("d/before", b"before");
        engine.flush_all();
        for n in 0..40 {
            engine.put(&format!("d/{n} file"), b"new");
        }
        listed(&world);
        engine.flush_all();
        let d = RelPath::fixed("d");
        assert_eq!(listed(&world), [d.clone(), d], "{kind:?}");
    }
}

#[test]
fn a_file_that_somebody_changed_and_the_mount_too_is_kept_in_both_versions() {
    for kind in KINDS {
        for theirs in [&b"theirs, and longer"[..], b"their"] {
            let world = World::new(kind);
            let engine = world.start(false);
            engine.put("f", b"first");
            engine.flush_all();
            put(&world, "f", theirs);
            engine.put("f", b"ours");
            engine.flush_all();
            assert_eq!(world.on_drive("f").as_deref(), Some(&b"ours"[..]));
            assert_eq!(others(&world), [("f".into(), theirs.to_vec())]);
            at_rest(&world, &engine);
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
    assert_eq!(others(&world), []);
}

#[test]
fn both_sides_having_made_the_same_file_is_no_conflict() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("old", b"old");
        engine.flush_all();
        put(&world, "same", b"the same");
        engine.put("same", b"the same");
        put(&world, "old", b"anew");
        engine.put("old", b"anew");
        engine.flush_all();
        assert_eq!(others(&world), []);
        at_rest(&world, &engine);
    }
}

#[test]
fn a_file_that_somebody_put_where_another_moves_is_kept_beside_it() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("f", b"ours");
        engine.flush_all();
        put(&world, "g", b"theirs");
        engine.rename("f", "g");
        engine.flush_all();
        assert_eq!(world.on_drive("g").as_deref(), Some(&b"ours"[..]));
        assert_eq!(others(&world), [("g".into(), b"theirs".to_vec())]);
        at_rest(&world, &engine);
    }
}

#[test]
fn a_file_that_somebody_changed_before_it_is_moved_is_moved_as_it_is_now() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("f", b"ours");
        engine.flush_all();
        put(&world, "f", b"theirs, seen late");
        engine.rename("f", "g");
        engine.flush_all();
        assert_eq!(engine.read("g"), b"theirs, seen late");
        assert_eq!(others(&world), []);
        at_rest(&world, &engine);
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
        put(&world, "late/their own", b"seen");
        engine.put("late/same", b"ours");
        engine.put("late/own", b"own");
        engine.flush_all();
        assert_eq!(world.on_drive("late/same").as_deref(), Some(&b"ours"[..]));
        assert_eq!(world.on_drive("late/own").as_deref(), Some(&b"own"[..]));
        assert_eq!(others(&world), [("late/same".into(), b"theirs".to_vec())]);
        assert_eq!(engine.read("late/their own"), b"seen");
        at_rest(&world, &engine);
    }
}

#[test]
fn a_file_that_somebody_put_where_a_new_directory_goes_is_kept_beside_it() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("first", b"first");
        engine.flush_all();
        put(&world, "d", b"theirs");
        engine.mkdir("d");
        engine.mkdir("d/e");
        engine.put("d/e/f", b"ours");
        engine.flush_all();
        assert_eq!(world.on_drive("d/e/f").as_deref(), Some(&b"ours"[..]));
        assert_eq!(others(&world), [("d".into(), b"theirs".to_vec())]);
        at_rest(&world, &engine);
    }
}

#[test]
fn what_somebody_put_into_a_directory_that_is_removed_brings_it_back() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.mkdir("d");
        engine.mkdir("d/e");
        engine.put("d/e/f", b"ours");
        engine.flush_all();
        put(&world, "d/e/theirs", b"theirs");
        engine.unlink("d/e/f");
        engine.rmdir("d/e");
        engine.rmdir("d");
        engine.flush_all();
        assert_eq!(
            world.on_drive("d/e/theirs").as_deref(),
            Some(&b"theirs"[..])
        );
        assert_eq!(world.on_drive("d/e/f"), None);
        assert_eq!(engine.read("d/e/theirs"), b"theirs");
        at_rest(&world, &engine);
    }
}

#[test]
fn a_file_that_somebody_changed_and_the_mount_removed_stays_as_a_conflict() {
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
            engine.flush_all();
            let theirs = b"theirs, and much longer".to_vec();
            assert_eq!(others(&world), [("d/f".into(), theirs)]);
            assert_eq!(world.on_drive("d/f"), None);
            assert_eq!(world.on_drive("d/g"), None);
            at_rest(&world, &engine);
        }
    }
}

#[test]
fn a_moved_file_that_the_drive_has_no_more_is_put_back_from_the_cache() {
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
        engine.flush_all();
        assert_eq!(world.on_drive("another").as_deref(), Some(&b"other"[..]));
        assert_eq!(
            world.on_drive("moved").as_deref(),
            Some(&b"still in the cache"[..])
        );
        at_rest(&world, &engine);
    }
}

#[test]
fn a_moved_file_that_is_nowhere_goes_and_does_not_keep_the_rest_from_the_drive() {
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
        engine.flush_all();
        assert!(engine.find("moved").is_none());
        assert_eq!(world.on_drive("new").as_deref(), Some(&b"new"[..]));
        at_rest(&world, &engine);
    }
}

#[test]
fn a_directory_that_is_gone_from_under_a_new_file_is_made_again() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.mkdir("d");
        engine.mkdir("d/e");
        engine.put("d/e/old", b"old");
        engine.flush_all();
        let gone = ["d/e/old", "d/e", "d"].map(RelPath::fixed);
        world.memory.remove_file(&gone[0]).expect("rm");
        world.memory.remove_dir(&gone[1]).expect("rmdir");
        world.memory.remove_dir(&gone[2]).expect("rmdir");
        engine.put("d/e/new", b"new");
        engine.flush_all();
        assert_eq!(world.on_drive("d/e/new").as_deref(), Some(&b"new"[..]));
        assert!(engine.find("d/e/old").is_none());
        at_rest(&world, &engine);
    }
}

/// A batch is interrupted, somebody else works on the drive, then it comes back: what they have put
/// under its final names, or changed there, is on the drive still, under its name or that of a
/// conflict.
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
                set_aside += usize::from(place.to_string().contains(".sync-conflict-"));
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
