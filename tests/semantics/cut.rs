//! The tree at one instant: whatever is done to the files of a batch while it is on its way, the
//! drive gets the cut, and the next flush carries the rest.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use crate::engine::script::{REWRITE, WRITE, rel};
use crate::engine::tree::assert_same;
use crate::engine::{Engine, Kind, World};
use ferryfs::core::{Pace, Phase, WhileOpen};
use ferryfs::vfs::RenameMode;

const KINDS: [Kind; 2] = [Kind::Plain, Kind::Exfat];

/// Above the size up to which a file is copied when it is changed while a batch reads it.
const LARGE: u64 = (4 << 20) + 4096;

/// Flushes, and does `meddle` once when `phase` is first heard of, with which the drive must not be
/// touched.
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
                    engine.utimes("swap1", ferryfs::core::Timestamp(1_600_000_000_000_000_000));
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
fn a_large_file_changed_in_place_meanwhile_is_written_as_it_was() {
    type Change = fn(&Engine);
    let changes: [(&str, Change); 4] = [
        ("edit", |engine| {
            engine.edit("large", 0, b"CHANGED");
            engine.edit("large", LARGE - 8, b"changed!");
        }),
        ("shorten", |engine| engine.truncate("large", 100_000)),
        ("shorten and extend", |engine| {
            engine.truncate("large", LARGE / 2);
            engine.truncate("large", LARGE + 5);
            engine.edit("large", LARGE, b"more");
        }),
        ("empty", |engine| engine.put("large", b"all new")),
    ];
    for (what, change) in changes {
        for phase in [Phase::Stage, Phase::Commit, Phase::Apply] {
            let world = World::new(Kind::Plain);
            let engine = world.start(false);
            engine.put("large", &vec![b'x'; 3 << 20]);
            engine.truncate("large", LARGE);
            engine.put("small", b"small");
            let cut = engine.expected_on_drive();
            let report = flush_meddling(&engine, phase, || change(&engine));
            let case = format!("{what}, {phase:?}");
            assert_eq!(report.left_behind, [], "{case}");
            assert_same(&world.drive_tree(), &cut, &case);
            world.check(&engine);
            engine.flush_all();
            assert_same(&world.drive_tree(), &engine.expected_on_drive(), &case);
            world.check(&engine);
        }
    }
}

#[test]
fn a_large_file_whose_old_bytes_cannot_be_kept_is_left_behind_and_named() {
    for phase in [Phase::Stage, Phase::Commit, Phase::Apply] {
        let world = World::new(Kind::Plain);
        let engine = world.start(false);
        engine.put("large", b"old");
        engine.flush_all();
        engine.truncate("large", LARGE);
        engine.put("small", b"small");
        engine
            .store
            .inject(Some(Box::new(|operation, _| match operation {
                "keep" => Err(std::io::Error::from_raw_os_error(libc::ENOSPC)),
                _ => Ok(()),
            })));
        let cut = engine.expected_on_drive();
        let report = flush_meddling(&engine, phase, || {
            engine.edit("large", LARGE - 8, b"changed!");
        });
        let named: Vec<&str> = report.left_behind.iter().map(|it| &it.0[..]).collect();
        if phase == Phase::Stage {
            assert_eq!(named, ["large"]);
            assert!(report.left_behind[0].1.contains("no space"), "{report:?}");
            assert_eq!(world.on_drive("large").as_deref(), Some(&b"old"[..]));
            assert_eq!(world.on_drive("small").as_deref(), Some(&b"small"[..]));
        } else {
            // It is on the drive already.
            assert_eq!(named, [""; 0], "{phase:?}");
            assert_same(&world.drive_tree(), &cut, "staged before");
        }
        world.check(&engine);
        engine.flush_all();
        assert!(world.on_drive("large").expect("it").ends_with(b"changed!"));
        world.check(&engine);
    }
}

#[test]
fn open_files_are_written_as_they_were_at_one_moment() {
    for kind in KINDS {
        for phase in [Phase::Cut, Phase::Stage, Phase::Commit, Phase::Apply] {
            let world = World::new(kind);
            let engine = world.start(false);
            engine.put("log", b"old");
            engine.flush_all();
            let (log, fresh) = (engine.open("log", WRITE), engine.open("fresh", WRITE));
            let large = engine.open("large", WRITE);
            engine.write_at(log, 3, b" and new");
            engine.write_at(fresh, 0, b"half");
            engine.write_at(large, 5 << 20, b"far out");
            let cut = engine.expected_on_drive();
            let report = flush_meddling(&engine, phase, || {
                if phase != Phase::Cut {
                    engine.write_at(log, 0, b"later");
                    engine.write_at(fresh, 4, b" and whole");
                    engine.write_at(large, 0, b"front");
                    engine.write_at(large, 5 << 20, b"FAR");
                }
            });
            let case = format!("{kind:?}, {phase:?}");
            assert_eq!(report.left_behind, [], "{case}");
            let copied: Vec<&str> = report.copied_open.iter().map(|it| &it.path[..]).collect();
            assert_eq!(copied, ["fresh", "large", "log"], "{case}");
            assert_same(&world.drive_tree(), &cut, &case);
            world.check(&engine);
            // What nobody has changed since makes no further batch, though it is open.
            let again = engine.flush().expect("flush");
            assert_eq!(again.batch.is_some(), phase != Phase::Cut, "{case}");
            assert_same(&world.drive_tree(), &engine.expected_on_drive(), &case);
            engine.write_at(large, 9, b"once more");
            for handle in [log, fresh, large] {
                engine.close_handle(handle);
            }
            let report = engine.flush_all();
            assert_eq!((report.files, report.copied_open), (1, vec![]), "{case}");
            assert_same(&world.drive_tree(), &engine.expected_on_drive(), &case);
            world.check(&engine);
        }
    }
}

#[test]
fn an_open_file_is_moved_replaced_and_removed_like_any_other() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.mkdir("d");
        let names = ["d/moved", "removed", "config.tmp", "linked"];
        let handles = names.map(|name| engine.open(name, WRITE));
        for handle in handles {
            engine.write_at(handle, 0, b"first");
        }
        engine.put("config", b"old");
        engine.flush_all();
        for handle in handles {
            engine.write_at(handle, 5, b" second");
        }
        let report = flush_meddling(&engine, Phase::Stage, || {
            engine.rename("d/moved", "moved");
            engine.unlink("removed");
            engine.rename("config.tmp", "config");
            engine.link("linked", "d/link");
            for handle in handles {
                engine.write_at(handle, 0, b"THIRD");
            }
        });
        assert_eq!(report.left_behind, []);
        world.check(&engine);
        engine.flush_all();
        assert_same(&world.drive_tree(), &engine.expected_on_drive(), "moved");
        assert_eq!(world.on_drive("removed"), None);
        assert_eq!(
            world.on_drive("config").as_deref(),
            Some(&b"THIRD second"[..])
        );
        for handle in handles {
            engine.close_handle(handle);
        }
        engine.flush_all();
        world.check(&engine);
    }
}

#[test]
fn a_database_and_its_journal_stay_behind_together() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("lab.db", b"database 1");
        engine.put("lab.db-wal", b"journal 1");
        engine.flush_all();
        // Only the journal is open: with --wait-closed it stays behind, and so must the database.
        let wal = engine.open("lab.db-wal", WRITE);
        engine.write_at(wal, 0, b"JOURNAL");
        engine.put("lab.db", b"database 2");
        engine.put("else.db", b"else");
        let report = engine.flush_closed().expect("flush");
        let mut named: Vec<&str> = report.left_behind.iter().map(|it| &it.0[..]).collect();
        named.sort_unstable();
        assert_eq!(named, ["lab.db", "lab.db-wal"]);
        let on_drive = |path| world.on_drive(path);
        assert_eq!(on_drive("lab.db").as_deref(), Some(&b"database 1"[..]));
        assert_eq!(on_drive("lab.db-wal").as_deref(), Some(&b"journal 1"[..]));
        assert_eq!(on_drive("else.db").as_deref(), Some(&b"else"[..]));
        world.check(&engine);
        // The journal ends while the database is open.
        engine.close_handle(wal);
        engine.unlink("lab.db-wal");
        let database = engine.open("lab.db", WRITE);
        engine.write_at(database, 0, b"DATABASE 3");
        let report = engine.flush_closed().expect("flush");
        assert_eq!(report.left_behind.len(), 1);
        assert_eq!(on_drive("lab.db").as_deref(), Some(&b"database 1"[..]));
        assert_eq!(on_drive("lab.db-wal").as_deref(), Some(&b"journal 1"[..]));
        world.check(&engine);
        engine.flush_all();
        assert_eq!(on_drive("lab.db").as_deref(), Some(&b"DATABASE 3"[..]));
        assert_eq!(on_drive("lab.db-wal"), None);
        engine.close_handle(database);
        world.check(&engine);
    }
}

#[test]
fn a_rewrite_that_is_on_its_way_is_waited_for() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("config", b"old");
    engine.flush_all();
    let handle = engine.open("config", REWRITE);
    engine.write_at(handle, 0, b"new ");
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            engine.write_at(handle, 4, b"and whole");
            engine.close_handle(handle);
        });
        engine.flush_while_open(WhileOpen::Copy(Duration::from_secs(60)))
    });
    let report = report.expect("flush");
    assert_eq!((report.left_behind, report.copied_open), (vec![], vec![]));
    assert_eq!(
        world.on_drive("config").as_deref(),
        Some(&b"new and whole"[..])
    );
    // One that takes longer counts as a file that stays open.
    let handle = engine.open("download", WRITE);
    engine.write_at(handle, 0, b"half");
    let report = engine.flush_while_open(WhileOpen::Copy(Duration::from_millis(100)));
    assert_eq!(report.expect("flush").copied_open.len(), 1);
    assert_eq!(world.on_drive("download").as_deref(), Some(&b"half"[..]));
    engine.close_handle(handle);
    world.check(&engine);
}

#[test]
fn what_belongs_to_a_file_that_is_due_is_due() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    let old = ["lab.db", "alone"].map(|name| {
        let handle = engine.open(name, WRITE);
        engine.write_at(handle, 0, b"written a while ago");
        handle
    });
    let quiet = Duration::from_millis(300);
    std::thread::sleep(quiet);
    let new = ["lab.db-journal", "download"].map(|name| {
        let handle = engine.open(name, WRITE);
        engine.write_at(handle, 0, b"written just now");
        handle
    });
    let pace = Pace {
        quiet,
        max_age: Duration::from_secs(3600),
    };
    let report = engine.flush_while_open(WhileOpen::IfDue(pace));
    let report = report.expect("flush");
    let named: Vec<&str> = report.left_behind.iter().map(|it| &it.0[..]).collect();
    assert_eq!(named, ["download"]);
    for name in ["lab.db", "lab.db-journal", "alone"] {
        assert!(world.on_drive(name).is_some(), "{name}");
    }
    assert!(world.on_drive("download").is_none());
    for handle in old.into_iter().chain(new) {
        engine.close_handle(handle);
    }
    world.check(&engine);
}

#[test]
fn the_shared_memory_of_a_database_never_goes_to_the_drive() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("lab.db", b"database");
        let shared = engine.open("lab.db-shm", WRITE);
        engine.write_at(shared, 0, b"locks");
        engine.put("notes-shm", b"no database has this name");
        engine.flush_all();
        assert_eq!(world.on_drive("lab.db-shm"), None);
        assert!(world.on_drive("notes-shm").is_some());
        assert_eq!(engine.flush_all().batch, None, "nothing waits");
        engine.write_at(shared, 0, b"LOCKS");
        assert_eq!(engine.flush_all().batch, None, "nothing waits");
        engine.close_handle(shared);
        engine.trim();
        assert_eq!(engine.read("lab.db-shm"), b"LOCKS");
        // Under another name it is a file like any other.
        engine.rename("lab.db-shm", "kept");
        engine.flush_all();
        assert_eq!(world.on_drive("kept").as_deref(), Some(&b"LOCKS"[..]));
        world.check(&engine);
    }
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
fn with_wait_closed_a_file_being_written_stays_behind_whole_in_its_old_version() {
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
        let report = engine.flush_closed().expect("flush");
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
        let report = engine.flush_closed().expect("flush");
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
    let report = engine.flush_closed().expect("flush");
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

/// A batch is as large as what has changed, not as all names of the files concerned.
#[test]
fn one_renamed_name_of_a_file_with_many_is_a_small_batch() {
    let world = World::new(Kind::Linux);
    let engine = world.start(false);
    engine.put("one", b"shared");
    let path = |n: u32| format!("another name of the file, number {n}");
    for n in 0..500 {
        engine.link("one", &path(n));
    }
    engine.flush_all();
    engine.rename(&path(7), "renamed");
    let largest = Cell::new(0);
    let measure = |_| {
        for entry in fs::read_dir(&engine.journals).into_iter().flatten() {
            let meta = entry.and_then(|entry| entry.metadata());
            largest.set(largest.get().max(meta.map_or(0, |meta| meta.len())));
        }
    };
    engine.flush_with(&measure).expect("flush");
    let largest = largest.get();
    assert!((1..10_000).contains(&largest), "a journal of {largest} B");
    engine.link("renamed", "more");
    engine.rename(&path(8), "renamed too");
    engine.unlink("one");
    engine.flush_all();
    assert_same(&world.drive_tree(), &engine.expected_on_drive(), "links");
    world.check(&engine);
}
