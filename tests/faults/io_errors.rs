//! Errors of the SSD and of the drive: told to whoever is concerned, remembered where the system
//! tells them only once, and never continued blindly. And the ends of both: an index that cannot
//! grow, an SSD without a byte, a drive without room.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;

use crate::engine::script::{READ, WRITE, name};
use crate::engine::tree::assert_same;
use crate::engine::{Engine, Kind, World, call};
use ferryfs::core::{ObjectId, Phase};
use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::{MemoryBackend, MemoryOptions};
use ferryfs::error::FlushError;
use ferryfs::flush::{Report, Wish};
use ferryfs::vfs::CacheLimits;

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn object(engine: &Engine, path: &str) -> ObjectId {
    engine
        .find(path)
        .and_then(|inode| inode.object)
        .expect("an object")
}

fn object_file(engine: &Engine, object: ObjectId) -> PathBuf {
    let shard = format!("{:08x}", object.0 / 4096);
    engine
        .dir
        .join("objects")
        .join(shard)
        .join(object.to_string())
}

/// `operation` on the object of `path` fails with `code` until [`heal`].
fn fail(engine: &Engine, operation: &'static str, path: &str, code: i32) {
    let bad = object(engine, path);
    engine.store.inject(Some(Box::new(move |op, object| {
        match op == operation && object == bad {
            true => Err(errno(code)),
            false => Ok(()),
        }
    })));
}

fn heal(engine: &Engine) {
    engine.store.inject(None);
}

fn paths(report: &Report) -> Vec<&str> {
    report
        .left_behind
        .iter()
        .map(|(path, _)| path.as_str())
        .collect()
}

#[test]
fn a_failed_fsync_is_remembered_for_its_file_until_that_is_written_anew() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("good", b"good");
    engine.put("bad", b"lost");
    fail(&engine, "fsync", "bad", libc::EIO);
    let told = engine.fs.sync().expect_err("everybody who waits is told");
    assert_eq!(told.errno(), libc::EIO);
    heal(&engine);
    // The system has told it once, and says from now on that all is well.
    engine.fs.sync().expect("the rest is durable");
    engine
        .fs
        .sync_verdict(engine.ino("good"))
        .expect("its bytes are");
    let verdict = engine.fs.sync_verdict(engine.ino("bad"));
    assert_eq!(verdict.expect_err("lost").errno(), libc::EIO);
    let troubles = engine.fs.troubles();
    assert!(
        troubles.len() == 1 && troubles[0].starts_with("bad: "),
        "{troubles:?}"
    );

    let report = engine.flush().expect("flush");
    assert_eq!(paths(&report), ["bad"]);
    assert!(
        report.left_behind[0].1.contains("write it anew"),
        "{report:?}"
    );
    assert_eq!(world.on_drive("good").as_deref(), Some(&b"good"[..]));
    assert_eq!(world.on_drive("bad"), None);

    // The page cache outlives the daemon, so must the memory of the failure.
    engine.die();
    let engine = world.start(true);
    assert!(engine.fs.sync_verdict(engine.ino("bad")).is_err());
    engine.edit("bad", 0, b"L");
    engine.fs.sync().expect("sync");
    assert!(
        engine.fs.sync_verdict(engine.ino("bad")).is_err(),
        "a part is not the whole"
    );
    engine.put("bad", b"written anew");
    engine.fs.sync().expect("sync");
    engine.fs.sync_verdict(engine.ino("bad")).expect("durable");
    engine.fs.trim().expect("trim");
    assert_eq!(engine.fs.troubles(), Vec::<String>::new());
    engine.flush_all();
    world.check(&engine);
    engine.die();
    assert_eq!(world.start(true).fs.troubles(), Vec::<String>::new());
}

#[test]
fn among_many_files_the_one_that_the_ssd_has_lost_is_found() {
    let world = World::new(Kind::Plain);
    let engine = world.start(false);
    for n in 0..40 {
        engine.put(&format!("f{n}"), b"bytes");
    }
    fail(&engine, "fsync", "f7", libc::ENOSPC);
    assert_eq!(engine.fs.sync().expect_err("told").errno(), libc::ENOSPC);
    heal(&engine);
    engine.fs.sync().expect("sync");
    let report = engine.flush().expect("flush");
    assert_eq!(paths(&report), ["f7"]);
    assert_eq!(report.files, 39);
}

#[test]
fn a_failure_found_while_the_batch_is_made_durable_ends_the_batch() {
    let world = World::new(Kind::Plain);
    let engine = world.start(false);
    engine.put("f", b"bytes");
    fail(&engine, "fsync", "f", libc::EIO);
    engine.flush().expect_err("its bytes are in the batch");
    assert_eq!(world.on_drive("f"), None);
    heal(&engine);
    assert_eq!(paths(&engine.flush().expect("flush")), ["f"]);
    world.check(&engine);
}

#[test]
fn what_the_ssd_has_lost_and_the_drive_has_is_read_from_the_drive() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("f", b"on the drive");
    engine.flush_all();
    let lost = object(&engine, "f");
    std::fs::write(object_file(&engine, lost), b"garbage.....").expect("damage it");
    engine
        .store
        .note_damage(lost, ferryfs::cache::Damage { errno: libc::EIO });
    engine.fs.trim().expect("trim");
    assert_eq!(engine.read("f"), b"on the drive");
    assert_eq!(engine.fs.troubles(), Vec::<String>::new());
    world.check(&engine);
}

#[test]
fn errors_of_reading_and_writing_reach_the_caller_and_no_one_else() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("f", b"bytes");
    engine.put("g", b"other");
    for code in [libc::EIO, libc::EROFS, libc::ENOSPC] {
        let handle = engine.open("f", WRITE);
        fail(&engine, "write", "f", code);
        let written = call(|ctx| engine.fs.write(ctx, handle, 0, b"B"));
        assert_eq!(written.expect_err("fails").errno(), code);
        engine.edit("g", 0, b"O");
        heal(&engine);
        engine.write_at(handle, 0, b"B");
        engine.close_handle(handle);
    }
    let handle = engine.open("f", READ);
    fail(&engine, "read", "f", libc::EIO);
    let read = engine.read_handle(handle, 5);
    assert_eq!(read.expect_err("fails").errno(), libc::EIO);
    assert_eq!(engine.read("g"), b"Other");
    heal(&engine);
    assert_eq!(engine.read_handle(handle, 5).expect("read"), b"Bytes");
    engine.close_handle(handle);
    engine.flush_all();
    world.check(&engine);
}

#[test]
fn an_object_that_cannot_be_carried_stays_behind_alone() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    for path in ["gone", "short", "whole", "replaced"] {
        engine.put(path, b"0123456789");
    }
    engine.flush_all();
    for path in ["gone", "short", "whole", "replaced"] {
        engine.edit(path, 0, b"new");
    }
    engine.put("new", b"new");
    std::fs::remove_file(object_file(&engine, object(&engine, "gone"))).expect("remove");
    let short = std::fs::File::options()
        .write(true)
        .open(object_file(&engine, object(&engine, "short")));
    short.and_then(|file| file.set_len(3)).expect("cut short");
    let report = engine.flush().expect("flush");
    let mut left = paths(&report);
    left.sort_unstable();
    assert_eq!(left, ["gone", "short"]);
    for path in ["whole", "replaced"] {
        assert_eq!(
            world.on_drive(path).as_deref(),
            Some(&b"new3456789"[..]),
            "{path}"
        );
    }
    for path in ["gone", "short"] {
        assert_eq!(
            world.on_drive(path).as_deref(),
            Some(&b"0123456789"[..]),
            "{path} is as it was"
        );
    }
    assert_eq!(world.on_drive("new").as_deref(), Some(&b"new"[..]));
    engine.put("gone", b"again");
    engine.put("short", b"again");
    engine.flush_all();
    assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "written anew",
    );
}

#[test]
fn an_index_that_the_ssd_has_refused_is_not_believed_durable_again() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("before", b"durable");
    engine.fs.sync().expect("sync");
    engine.put("after", b"not durable");
    engine.index.fail_next_sync(libc::EIO);
    for round in 0..3 {
        let told = engine.fs.sync().expect_err("each time");
        assert_eq!(told.errno(), libc::EIO, "round {round}");
    }
    assert_eq!(engine.read("before"), b"durable", "reading goes on");
    let (root, new) = (engine.ino(""), name("new"));
    let refused = call(|ctx| engine.fs.create(ctx, root, &new, 0o644, WRITE, false));
    assert_eq!(refused.expect_err("sealed").errno(), libc::EROFS);
    let refused = call(|ctx| engine.fs.unlink(ctx, root, &name("before")));
    assert_eq!(refused.expect_err("sealed").errno(), libc::EROFS);
    assert!(engine.find("new").is_none() && engine.find("before").is_some());
    engine
        .fs
        .finish_pending()
        .expect("the tick does not tell it five times a second");
    engine
        .flush()
        .expect_err("rows of unknown age must not be carried");
    assert_eq!(world.on_drive("before"), None);
    assert!(engine.fs.troubles()[0].contains("mount again"));
    engine.die();
    let engine = world.start(true);
    assert_eq!(engine.read("before"), b"durable");
    assert_eq!(engine.fs.troubles(), Vec::<String>::new());
    engine.flush_all();
    world.check(&engine);
}

/// Makes, renames, links and removes until something fails; each outcome must be all or nothing.
fn churn(engine: &Engine, round: u32) -> u32 {
    let mut refused = 0;
    let root = engine.ino("");
    for n in 0..60 {
        let (file, other) = (
            name(&format!("{round}-file-{n}-{}", "x".repeat(100))),
            name(&format!("{round}-{n}")),
        );
        let made = call(|ctx| engine.fs.create(ctx, root, &file, 0o644, WRITE, true));
        let Ok((inode, handle)) = made else {
            assert_eq!(made.expect_err("refused").errno(), libc::ENOSPC);
            refused += 1;
            continue;
        };
        call(|ctx| engine.fs.write(ctx, handle, 0, b"bytes")).expect("objects have room");
        let renamed = call(|ctx| {
            engine.fs.rename(
                ctx,
                (root, &file),
                (root, &other),
                ferryfs::vfs::RenameMode::Replace,
            )
        });
        let linked = call(|ctx| {
            engine
                .fs
                .link(ctx, inode.ino, root, &name(&format!("{round}-{n}-link")))
        });
        let at = if renamed.is_ok() { &other } else { &file };
        let removed = call(|ctx| engine.fs.unlink(ctx, root, at));
        // Whether a name went or not decides whether the open file outlives its handle.
        call(|ctx| engine.fs.release(ctx, handle)).expect("release");
        engine.fs.forget(inode.ino).expect("forget");
        for error in [
            renamed.err(),
            linked.as_ref().err().map(|_| errno(libc::ENOSPC).into()),
            removed.as_ref().err().map(|_| errno(libc::ENOSPC).into()),
        ]
        .into_iter()
        .flatten()
        {
            let error: ferryfs::vfs::FsError = error;
            assert_eq!(error.errno(), libc::ENOSPC);
            refused += 1;
        }
        let there = call(|ctx| engine.fs.lookup(ctx, root, at))
            .expect("lookup")
            .is_some();
        assert_eq!(there, removed.is_err(), "unlink said {removed:?}");
    }
    refused
}

#[test]
fn an_index_that_cannot_grow_refuses_and_nothing_is_left_half_done() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("kept", b"kept");
    engine.flush_all();
    let mut refused = 0;
    for round in 0..12 {
        engine.index.limit_growth(Some(round)).expect("limit");
        refused += churn(&engine, round);
        assert_eq!(engine.read("kept"), b"kept", "reads go on");
        engine.index.limit_growth(None).expect("unlimit");
        engine.fs.finish_pending().expect("settle what was undone");
        world.check(&engine);
        assert_eq!(
            engine.fs.writing_count(),
            0,
            "nobody writes, so nothing may be held back"
        );
    }
    assert!(refused > 50, "the limit was hardly met: {refused}");
    // Without a restart everything works again, and nothing is left behind.
    engine.flush_all();
    assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "after the index could grow again",
    );
    world.check(&engine);
}

#[test]
fn an_operation_whose_commit_fails_has_not_happened() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.mkdir("d");
    engine.mkdir("d/empty");
    engine.put("d/f", b"precious");
    engine.put("g", b"replaced");
    engine.flush_all();
    let handle = engine.open("d/f", READ);
    let before = engine.mount_tree();
    let root = engine.ino("");
    let (d, f, g, new) = (engine.ino("d"), name("f"), name("g"), name("new"));
    let dir = ferryfs::vfs::NewNode {
        mode: libc::S_IFDIR | 0o755,
        rdev: 0,
        target: None,
    };
    let replace = ferryfs::vfs::RenameMode::Replace;
    let ino = engine.ino("d/f");
    type Attempt<'a> = (
        &'a str,
        Box<dyn Fn() -> Result<(), ferryfs::vfs::FsError> + 'a>,
    );
    let fs = &engine.fs;
    let attempts: Vec<Attempt<'_>> = vec![
        ("unlink", Box::new(|| call(|ctx| fs.unlink(ctx, d, &f)))),
        (
            "rmdir",
            Box::new(|| call(|ctx| fs.rmdir(ctx, d, &name("empty")))),
        ),
        (
            "rename",
            Box::new(|| call(|ctx| fs.rename(ctx, (d, &f), (root, &g), replace))),
        ),
        (
            "mkdir",
            Box::new(|| call(|ctx| fs.make_node(ctx, root, &new, dir.clone())).map(drop)),
        ),
        (
            "link",
            Box::new(|| call(|ctx| fs.link(ctx, ino, root, &new)).map(drop)),
        ),
        (
            "create",
            Box::new(|| call(|ctx| fs.create(ctx, root, &new, 0o644, WRITE, true)).map(drop)),
        ),
        (
            "truncate",
            Box::new(|| {
                let set = ferryfs::vfs::SetAttr {
                    size: Some(0),
                    ..Default::default()
                };
                call(|ctx| fs.setattr(ctx, ino, &set)).map(drop)
            }),
        ),
    ];
    for (what, attempt) in &attempts {
        engine.index.fail_next_commit(libc::EIO);
        assert_eq!(attempt().expect_err(what).errno(), libc::EIO);
        assert_eq!(engine.mount_tree(), before, "{what}");
        assert_eq!(fs.writing_count(), 0, "{what}");
        fs.finish_pending().expect("commit");
        world.check(&engine);
    }
    // Were it still taken for unlinked, the last close would take it away.
    engine.close_handle(handle);
    fs.forget(ino).expect("forget");
    assert_eq!(engine.read("d/f"), b"precious");
    engine.put("d/f", b"and it can be written");
    engine.flush_all();
    assert_same(&world.drive_tree(), &engine.expected_on_drive(), "after it");
    world.check(&engine);
}

#[test]
fn a_close_whose_row_was_undone_is_settled_without_a_restart() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("f", b"short");
    engine.flush_all();
    engine.edit("f", 5, b", and then longer");
    engine.index.fail_next_commit(libc::EIO);
    engine.fs.finish_pending().expect_err("told in the log");
    engine.fs.finish_pending().expect("the next tick");
    let again = engine.index.lock().take_unmeasured();
    assert!(!again, "open files are measured once, not at every tick");
    assert_eq!(engine.find("f").expect("f").size, 22);
    engine.flush_all();
    assert_eq!(
        world.on_drive("f").as_deref(),
        Some(&b"short, and then longer"[..])
    );
    world.check(&engine);
}

fn wish_verify() -> Wish {
    Wish {
        verify: true,
        ..Wish::default()
    }
}

fn flush_wishing(engine: &Engine, wish: &Wish) -> Result<Report, FlushError> {
    engine.flusher.flush(wish, &|_| {}, || {})
}

#[test]
fn a_flush_is_cancelled_as_long_as_its_batch_is_not_committed_and_not_later() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("a", &vec![1; 300_000]);
    let before = world.drive_tree();
    for phase in [Phase::Cut, Phase::Stage] {
        let wish = Wish::default();
        let cancelled = Cell::new(None);
        let told = engine.flusher.flush(
            &wish,
            &|step| {
                if step.phase == phase && cancelled.get().is_none() {
                    cancelled.set(Some(wish.cancel.cancel()));
                }
            },
            || panic!("a flush that was cancelled lets go of nothing"),
        );
        assert!(matches!(told, Err(FlushError::Cancelled)), "{told:?}");
        assert_eq!(cancelled.get(), Some(true));
        assert_same(&world.drive_tree(), &before, "nothing was carried");
        assert_eq!(world.leftovers(), Vec::<String>::new());
        world.check(&engine);
    }
    let wish = Wish::default();
    let late = Cell::new(None);
    let report = engine.flusher.flush(
        &wish,
        &|step| {
            if step.phase == Phase::Apply && late.get().is_none() {
                late.set(Some(wish.cancel.cancel()));
            }
        },
        || {},
    );
    assert_eq!(report.expect("it is finished").left_behind, []);
    assert_eq!(late.get(), Some(false), "too late");
    assert_eq!(world.on_drive("a"), Some(vec![1; 300_000]));
    world.check(&engine);
}

#[test]
fn a_flush_that_is_cancelled_while_another_is_under_way_leaves_that_alone() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("a", b"a");
    let wish = Wish::default();
    assert!(wish.cancel.cancel());
    let report = engine.flush_with(&|step| {
        if step.phase == Phase::Stage {
            let told = flush_wishing(&engine, &wish);
            assert!(matches!(told, Err(FlushError::Cancelled)), "{told:?}");
        }
    });
    assert_eq!(report.expect("the other one").left_behind, []);
    assert_eq!(world.on_drive("a").as_deref(), Some(&b"a"[..]));
}

#[test]
fn removals_and_places_are_counted_while_a_batch_is_applied() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    for n in 0..5 {
        engine.put(&format!("old{n}"), b"old");
    }
    engine.flush_all();
    for n in 0..5 {
        engine.unlink(&format!("old{n}"));
    }
    engine.put("new", b"new");
    let seen = RefCell::new(Vec::new());
    let report = engine.flush_with(&|step| {
        if step.phase == Phase::Apply {
            seen.borrow_mut().push((step.files_done, step.files_total));
        }
    });
    assert_eq!(report.expect("flush").left_behind, []);
    let seen = seen.into_inner();
    assert_eq!(seen.first(), Some(&(0, 6)), "{seen:?}");
    assert_eq!(seen.last(), Some(&(6, 6)), "{seen:?}");
}

#[test]
fn a_drive_that_lies_is_found_out_before_anything_is_in_place() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("old", b"old");
    engine.put("same", b"same");
    flush_wishing(&engine, &wish_verify()).expect("an honest drive");
    engine.put("old", b"new");
    engine.put("fresh", b"fresh");
    engine.unlink("same");
    let before = world.drive_tree();
    world.faulty.lie(true);
    let told = flush_wishing(&engine, &wish_verify()).expect_err("found out");
    assert!(matches!(&told, FlushError::Lies { .. }), "{told}");
    assert_same(&world.drive_tree(), &before, "nothing was put in place");
    assert!(engine.is_cached("old") && engine.is_cached("fresh"));
    engine.trim();
    assert!(
        engine.is_cached("fresh"),
        "P5: nothing leaves before it was verified"
    );
    world.check(&engine);
    world.faulty.lie(false);
    assert_eq!(
        flush_wishing(&engine, &wish_verify())
            .expect("honest again")
            .left_behind,
        []
    );
    assert_same(&world.drive_tree(), &engine.expected_on_drive(), "carried");
    assert_eq!(world.leftovers(), Vec::<String>::new());
    world.check(&engine);
}

#[test]
fn every_call_of_a_verified_flush_may_fail() {
    for n in 1.. {
        let world = World::new(Kind::Exfat);
        let engine = world.start(false);
        engine.put("a", b"one");
        engine.flush_all();
        engine.put("a", b"two");
        engine.put("b", b"three");
        engine.mkdir("d");
        engine.rename("b", "d/b");
        let at = world.faulty.calls() + n;
        world.faulty.arm(Fault::at(at, libc::EIO));
        let result = flush_wishing(&engine, &wish_verify());
        let was_hit = world.faulty.calls() >= at;
        world.faulty.heal();
        engine.flush_all();
        engine.flusher.recover().expect("tidy up");
        let expected = engine.expected_on_drive();
        assert_same(&world.drive_tree(), &expected, "after the retry");
        assert_eq!(world.leftovers(), Vec::<String>::new(), "call {n}");
        world.check(&engine);
        if !was_hit {
            result.expect("nothing failed");
            return;
        }
    }
}

#[test]
fn a_drive_that_turns_read_only_at_any_call_loses_nothing() {
    let mut ended = false;
    for n in 1..400 {
        let world = World::new(Kind::Exfat);
        let engine = world.start(false);
        engine.put("a", b"one");
        engine.put("gone", b"gone");
        engine.flush_all();
        engine.put("a", b"two");
        engine.put("b", b"three");
        engine.unlink("gone");
        world.faulty.arm(Fault {
            stays_dead: true,
            ..Fault::at(world.faulty.calls() + n, libc::EROFS)
        });
        let first = engine.flush();
        if first.is_ok() {
            ended = true;
            break;
        }
        // Latched: as long as it lasts each attempt fails, and says why.
        let told = engine.flush().expect_err("still read-only").to_string();
        assert!(told.contains("Read-only"), "{told}");
        assert_eq!(
            (engine.read("a"), engine.read("b")),
            (b"two".to_vec(), b"three".to_vec())
        );
        world.faulty.heal();
        engine.flush_all();
        engine.flusher.recover().expect("tidy up");
        assert_same(
            &world.drive_tree(),
            &engine.expected_on_drive(),
            "when it can be written again",
        );
        assert_eq!(world.leftovers(), Vec::<String>::new());
        world.check(&engine);
    }
    assert!(ended, "the loop never came to the end of a flush");
}

fn small_drive(capacity: u64) -> World {
    let options = MemoryOptions {
        capacity: Some(capacity),
        ..MemoryOptions::exfat_like()
    };
    World::on(Kind::Exfat, MemoryBackend::new(options))
}

#[test]
fn a_batch_that_does_not_fit_is_not_begun_and_the_flush_says_how_much_is_missing() {
    let world = small_drive(1 << 20);
    let engine = world.start(false);
    engine.put("old", &vec![1; 600_000]);
    engine.flush_all();
    let before = world.drive_tree();
    engine.put("big", &vec![2; 700_000]);
    engine.put("fits", b"little");
    engine.unlink("old");
    let staged = std::cell::Cell::new(false);
    let told = engine.flush_with(&|at| staged.set(staged.get() || at.phase == Phase::Stage));
    let told = told.expect_err("full");
    assert!(!staged.get(), "it was begun");
    let text = told.to_string();
    let FlushError::Full {
        needed,
        available,
        freed,
        path,
        ..
    } = told
    else {
        panic!("{text}");
    };
    assert_eq!(path.expect("the largest file").to_string(), "big");
    assert_eq!(freed, 600_000);
    assert!(
        needed > available && text.contains(&format!("({} bytes)", needed - available)),
        "{text}"
    );
    assert!(text.contains("would free 586 KiB"), "{text}");
    // P4: neither what fits nor the removals alone were ever the tree of a cut.
    assert_same(&world.drive_tree(), &before, "nothing was carried");
    assert_eq!(world.leftovers(), Vec::<String>::new());
    engine.flush().expect_err("nor at the next attempt");
    assert_same(&world.drive_tree(), &before, "nothing was carried");
    world.check(&engine);

    let wish = Wish {
        removals_first: true,
        ..Wish::default()
    };
    assert_eq!(
        flush_wishing(&engine, &wish)
            .expect("in two batches")
            .left_behind,
        []
    );
    assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "all of it",
    );
    world.check(&engine);
}

#[test]
fn a_replacement_needs_room_beside_what_it_replaces_and_says_so() {
    let world = small_drive(1 << 20);
    let engine = world.start(false);
    engine.put("f", &vec![1; 600_000]);
    engine.flush_all();
    engine.put("f", &vec![2; 600_000]);
    let wish = Wish {
        removals_first: true,
        ..Wish::default()
    };
    for wish in [Wish::default(), wish] {
        let told = flush_wishing(&engine, &wish).expect_err("no room for both");
        assert!(matches!(told, FlushError::Full { freed: 0, .. }), "{told}");
        assert_eq!(world.on_drive("f"), Some(vec![1; 600_000]), "P3");
    }
    engine.truncate("f", 100_000);
    engine.flush_all();
    assert_eq!(world.on_drive("f"), Some(vec![2; 100_000]));
}

/// A small file system over a world's cache directory; root only.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(world: &World, size: &str) -> Option<Tmpfs> {
        let path = world.cache_dir().to_path_buf();
        let options = format!("size={size},mode=700");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )
        .ok()?;
        Some(Tmpfs(path))
    }

    /// Somebody else takes every byte that is left.
    fn fill(&self) {
        use std::io::Write;
        let hog = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.0.join("hog"));
        let mut hog = hog.expect("a file of somebody else");
        while hog.write(&[7; 4096]).is_ok_and(|n| n > 0) {}
        assert_eq!(
            nix::sys::statvfs::statvfs(&self.0)
                .expect("statvfs")
                .blocks_available(),
            0
        );
    }

    fn relent(&self) {
        std::fs::remove_file(self.0.join("hog")).expect("remove");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

const TIGHT: CacheLimits = CacheLimits {
    max_bytes: u64::MAX,
    keep_free: 0,
    reserve: 2 << 20,
};

#[test]
fn on_an_ssd_that_others_have_filled_to_the_last_byte_what_gives_space_back_still_works() {
    let mut world = World::new(Kind::Exfat);
    world.limits = TIGHT;
    let Some(ssd) = Tmpfs::new(&world, "32m") else {
        let _ = std::fs::write("/dev/stderr", "SKIPPED: a small tmpfs needs root\n");
        return;
    };
    let engine = world.start(false);
    for n in 0..20 {
        engine.put(&format!("f{n}"), &vec![n as u8; 100_000]);
    }
    engine.fs.sync().expect("sync");
    for round in 0..6 {
        ssd.fill();
        engine.fs.look_at_space();
        let first = format!("f{}", round * 3);
        engine.rename(&first, &format!("renamed{round}"));
        engine.truncate(&format!("f{}", round * 3 + 1), 10);
        engine.truncate(&format!("f{}", round * 3 + 2), 0);
        engine.unlink(&format!("renamed{round}"));
        engine.fs.sync().expect("fsync of what there is");
        let root = engine.ino("");
        let refused = call(|ctx| {
            engine
                .fs
                .create(ctx, root, &name("more"), 0o644, WRITE, true)
        });
        let refused = refused.and_then(|(_, handle)| {
            let written = call(|ctx| engine.fs.write(ctx, handle, 0, &[1; 1 << 20]));
            engine.close_handle(handle);
            engine.unlink("more");
            written
        });
        if let Err(error) = refused {
            assert_eq!(error.errno(), libc::ENOSPC);
        }
    }
    ssd.fill();
    assert_eq!(
        engine
            .flush()
            .expect("a flush needs next to nothing")
            .left_behind,
        []
    );
    assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "carried from a full SSD",
    );
    ssd.fill();
    // A daemon that dies now must be able to start again, and drain.
    engine.truncate("f19", 0);
    engine.die();
    ssd.fill();
    ferryfs::cache::Reserve::make_room_to_start(world.cache_dir());
    let engine = world.start(true);
    assert_eq!(engine.read("f18"), vec![18; 100_000]);
    engine.flush_all();
    // And when there is room, all is as before.
    ssd.relent();
    engine.fs.trim().expect("trim");
    engine.fs.look_at_space();
    assert_eq!(engine.store.reserve().held(), TIGHT.reserve, "held anew");
    engine.put("more", &vec![9; 1 << 20]);
    engine.flush_all();
    assert_eq!(engine.fs.sync().map_err(|e| e.errno()), Ok(()));
    world.check(&engine);
    drop(engine);
}
