//! The tree at one instant: whatever is done to the files of a batch while it is on its way, the drive gets the cut, and the
//! next flush carries the rest.

#[path = "support/engine/mod.rs"]
mod engine;

use std::cell::Cell;

use engine::script::{WRITE, rel};
use engine::tree::assert_same;
use engine::{Engine, Kind, World};
use ferryfs::control::protocol::Phase;
use ferryfs::fs::RenameMode;

const KINDS: [Kind; 2] = [Kind::Plain, Kind::Exfat];

/// Above the size up to which a file is copied rather than left out of a batch.
const LARGE: u64 = (64 << 20) + 4096;

/// Flushes, and does `meddle` once when `phase` is first heard of, with which the drive must not be touched.
fn flush_meddling(engine: &Engine, phase: Phase, meddle: impl Fn()) -> ferryfs::flush::Report {
    let done = Cell::new(false);
    let report = engine.flush_with(&|progress| {
        if progress.phase == phase && !done.replace(true) {
            meddle();
        }
    });
    assert!(done.get(), "the flush never came to {phase:?}");
    report.expect("flush")
}

fn some_files(engine: &Engine) {
    engine.mkdir("d");
    engine.mkdir("d/sub");
    for path in [
        "replaced",
        "edited",
        "cut",
        "gone",
        "moved",
        "d/kept",
        "d/sub/deep",
        "swap1",
    ] {
        engine.put(path, format!("first version of {path}").as_bytes());
    }
}

fn change_everything(engine: &Engine) {
    engine.put("replaced", b"second version");
    engine.edit("edited", 0, b"SECOND");
    engine.truncate("cut", 3);
    engine.unlink("gone");
    engine.rename("moved", "d/moved");
    engine.rename("d/sub", "sub");
    engine
        .rename_with("swap1", "d/kept", RenameMode::Exchange)
        .expect("exchange");
    engine.put("fresh", b"made meanwhile");
    engine.mkdir("gone");
    engine.put("gone/inside", b"where a file was");
}

#[test]
fn changes_made_while_a_batch_is_on_its_way_wait_for_the_next() {
    for kind in KINDS {
        for phase in [Phase::Stage, Phase::Commit, Phase::Apply, Phase::Confirm] {
            for on_drive_already in [false, true] {
                let world = World::new(kind);
                let engine = world.start(false);
                some_files(&engine);
                if on_drive_already {
                    engine.flush_all();
                    for path in ["replaced", "edited", "cut", "gone", "moved", "d/sub/deep"] {
                        engine.edit(path, 0, b"next!");
                    }
                    engine.utimes("swap1", ferryfs::base::Timestamp(1_600_000_000_000_000_000));
                }
                let cut = engine.expected_on_drive();
                let report = flush_meddling(&engine, phase, || change_everything(&engine));
                let case = format!("{kind:?}, {phase:?}, {on_drive_already}");
                assert_eq!(report.left_behind, [], "{case}");
                assert_same(&world.drive_tree(), &cut, &case);
                world.check(&engine);
                let mount = engine.mount_tree();
                engine.flush_all();
                assert_same(&world.drive_tree(), &engine.expected_on_drive(), &case);
                assert_eq!(engine.mount_tree(), mount, "{case}");
                world.check(&engine);
                engine.trim();
                assert!(engine.store.space().is_ok());
            }
        }
    }
}

#[test]
fn a_clean_hard_linked_file_that_a_batch_copies_is_not_changed_under_it() {
    for meddle in ["edit", "unlink and edit", "truncate"] {
        for kind in KINDS {
            let world = World::new(kind);
            let engine = world.start(false);
            engine.put("one", b"the first version");
            engine.flush_all();
            engine.link("one", "two");
            let cut = engine.expected_on_drive();
            flush_meddling(&engine, Phase::Cut, || {});
            world.check(&engine);
            assert_same(&world.drive_tree(), &cut, "a second name");

            engine.link("one", "three");
            engine.put("another", b"so that something is staged first");
            let cut = engine.expected_on_drive();
            let report = flush_meddling(&engine, Phase::Stage, || match meddle {
                "edit" => engine.edit("one", 0, b"THE SECOND"),
                "truncate" => engine.truncate("one", 3),
                _ => {
                    engine.unlink("two");
                    engine.unlink("three");
                    engine.edit("one", 0, b"THE SECOND");
                }
            });
            assert_eq!(report.left_behind, []);
            assert_same(&world.drive_tree(), &cut, meddle);
            engine.flush_all();
            assert_same(&world.drive_tree(), &engine.expected_on_drive(), meddle);
            world.check(&engine);
        }
    }
}

#[test]
fn a_clean_file_that_a_batch_copies_is_not_evicted_under_it() {
    let mut world = World::new(Kind::Plain);
    world.limits.max_bytes = 0;
    let engine = world.start(false);
    engine.put("one", b"the first version");
    engine.flush_all();
    engine.link("one", "two");
    engine.put("another", b"so that something is staged first");
    let cut = engine.expected_on_drive();
    let report = flush_meddling(&engine, Phase::Stage, || engine.trim());
    assert_eq!(report.left_behind, []);
    assert_same(&world.drive_tree(), &cut, "evicted meanwhile");
    world.check(&engine);
}

#[test]
fn a_large_file_edited_in_place_while_staged_is_left_behind_and_named() {
    let world = World::new(Kind::Plain);
    let engine = world.start(false);
    engine.put("large", b"old");
    engine.flush_all();
    engine.truncate("large", LARGE);
    engine.put("small", b"small");
    let report = flush_meddling(&engine, Phase::Stage, || {
        engine.edit("large", LARGE - 8, b"changed!");
    });
    let named: Vec<&str> = report
        .left_behind
        .iter()
        .map(|(path, _)| &path[..])
        .collect();
    assert_eq!(named, ["large"]);
    assert_eq!(world.on_drive("large").as_deref(), Some(&b"old"[..]));
    assert_eq!(world.on_drive("small").as_deref(), Some(&b"small"[..]));
    world.check(&engine);
    engine.flush_all();
    let on_drive = world.on_drive("large").expect("carried");
    assert_eq!(
        (on_drive.len() as u64, &on_drive[..3]),
        (LARGE, &b"old"[..])
    );
    assert!(on_drive.ends_with(b"changed!"));
    world.check(&engine);
}

#[test]
fn a_large_file_edited_in_place_once_committed_is_carried_as_it_was() {
    let world = World::new(Kind::Plain);
    let engine = world.start(false);
    engine.put("large", b"first");
    engine.truncate("large", LARGE);
    let report = flush_meddling(&engine, Phase::Commit, || {
        engine.edit("large", 0, b"SECOND")
    });
    assert_eq!(report.left_behind, []);
    assert!(
        world
            .on_drive("large")
            .expect("carried")
            .starts_with(b"first")
    );
    engine.flush_all();
    assert!(
        world
            .on_drive("large")
            .expect("carried")
            .starts_with(b"SECOND")
    );
    world.check(&engine);
}

#[test]
fn a_file_being_written_stays_behind_whole_in_its_old_version() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.mkdir("d");
        engine.put("d/log", b"old");
        engine.put("unwritten", b"open, but not written");
        engine.flush_all();
        let handle = engine.open("d/log", WRITE);
        let idle = engine.open("unwritten", WRITE);
        let fresh = engine.open("new", WRITE);
        engine.write_at(handle, 0, b"new and");
        engine.write_at(fresh, 0, b"half");
        engine.put("other", b"other");
        let report = engine.flush().expect("flush");
        let mut named: Vec<&str> = report
            .left_behind
            .iter()
            .map(|(path, _)| &path[..])
            .collect();
        named.sort_unstable();
        assert_eq!(named, ["d/log", "new"]);
        assert_eq!(world.on_drive("d/log").as_deref(), Some(&b"old"[..]));
        assert_eq!(world.on_drive("new"), None);
        assert_eq!(world.on_drive("other").as_deref(), Some(&b"other"[..]));
        world.check(&engine);
        // Moved while it is written: the old version goes along.
        engine.rename("d", "e");
        engine.rename("e/log", "log");
        let report = engine.flush().expect("flush");
        assert_eq!(report.left_behind.len(), 2);
        assert_eq!(world.on_drive("log").as_deref(), Some(&b"old"[..]));
        world.check(&engine);
        engine.write_at(handle, 7, b" whole");
        for handle in [handle, idle, fresh] {
            engine.close_handle(handle);
        }
        engine.flush_all();
        assert_eq!(
            world.on_drive("log").as_deref(),
            Some(&b"new and whole"[..])
        );
        assert_same(
            &world.drive_tree(),
            &engine.expected_on_drive(),
            "all closed",
        );
        world.check(&engine);
    }
}

#[test]
fn a_rename_of_a_file_being_written_over_another_leaves_the_other_until_it_is_closed() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("config", b"old");
    engine.flush_all();
    let handle = engine.open("config.tmp", WRITE);
    engine.write_at(handle, 0, b"new");
    engine.rename("config.tmp", "config");
    let report = engine.flush().expect("flush");
    assert_eq!(report.left_behind.len(), 1);
    assert_eq!(world.on_drive("config").as_deref(), Some(&b"old"[..]));
    world.check(&engine);
    engine.close_handle(handle);
    engine.flush_all();
    assert_eq!(world.on_drive("config").as_deref(), Some(&b"new"[..]));
    world.check(&engine);
}

#[test]
fn names_may_change_kind_case_and_owner_between_two_batches() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        some_files(&engine);
        engine.flush_all();
        // A file for a directory and the other way round, in one batch; and what was in it stays.
        engine.unlink("gone");
        engine.mkdir("gone");
        engine.put("gone/inside", b"new");
        engine.rename("d/sub/deep", "deep");
        engine.rmdir("d/sub");
        engine.put("d/sub", b"a file now");
        // Case only.
        engine.rename("moved", "MOVED");
        engine.rename("d", "D");
        // Deleted and made anew.
        engine.unlink("cut");
        engine.put("cut", b"another file");
        // Its directory made anew, with the old file in it.
        engine.mkdir("d2");
        engine.rename("D", "d2/old");
        engine.mkdir("d");
        engine.rename("d2/old/kept", "d/kept");
        engine.flush_all();
        assert_same(
            &world.drive_tree(),
            &engine.expected_on_drive(),
            "after it all",
        );
        assert!(world.memory.tree().contains_key(&rel("MOVED")));
        world.check(&engine);
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn hard_links_are_carried_under_every_name_and_told_apart_again() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.mkdir("d");
        engine.put("one", b"shared");
        engine.link("one", "d/two");
        engine.flush_all();
        assert_eq!(world.on_drive("d/two").as_deref(), Some(&b"shared"[..]));
        engine.edit("d/two", 0, b"SHARED");
        engine.link("one", "three");
        engine.unlink("one");
        engine.flush_all();
        assert_eq!(world.on_drive("three").as_deref(), Some(&b"SHARED"[..]));
        assert_same(&world.drive_tree(), &engine.expected_on_drive(), "links");
        engine.put("d/next", b"takes a name over");
        engine.rename("d/next", "three");
        engine.flush_all();
        assert_same(
            &world.drive_tree(),
            &engine.expected_on_drive(),
            "links parted",
        );
        world.check(&engine);
    }
}
