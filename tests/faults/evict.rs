//! The cache gives way: clean objects, least recently used first, within the limits; never what is
//! dirty, never what is open.

use crate::engine;

use std::time::Duration;

use engine::script::{READ, WRITE};
use engine::tree::assert_same;
use engine::{Engine, Kind, World};
use ferryfs::drive::Backend;

fn world(max_bytes: u64) -> World {
    let mut world = World::new(Kind::Exfat);
    world.limits.max_bytes = max_bytes;
    world
}

fn objects(engine: &Engine) -> usize {
    let shards = std::fs::read_dir(engine.dir.join("objects")).expect("the store");
    shards
        .map(|shard| {
            let shard = shard.expect("a shard").path();
            std::fs::read_dir(shard).expect("a shard").count()
        })
        .sum()
}

#[test]
fn clean_objects_go_least_recently_used_first_and_only_as_many_as_must() {
    let world = world(3 * 4096);
    let engine = world.start(false);
    for path in ["a", "b", "c", "d", "e"] {
        engine.put(path, path.as_bytes());
        world.clock.advance(Duration::from_secs(100));
    }
    engine.flush_all();
    // Used again, a is the youngest.
    engine.read("a");
    engine.trim();
    let cached: Vec<bool> = ["a", "b", "c", "d", "e"]
        .map(|path| engine.is_cached(path))
        .into();
    assert_eq!(cached, [true, false, false, true, true]);
    assert_eq!(engine.index.lock().totals().cached_bytes, 3 * 4096);
    assert_eq!(objects(&engine), 3);
    world.check(&engine);
    engine.trim();
    assert_eq!(objects(&engine), 3, "within its limits nothing goes");
}

#[test]
fn dirty_and_open_files_never_go() {
    let world = world(0);
    let engine = world.start(false);
    for path in ["open", "written", "timed", "clean"] {
        engine.put(path, path.as_bytes());
    }
    engine.flush_all();
    let handle = engine.open("open", READ);
    engine.edit("written", 0, b"W");
    engine.utimes("timed", ferryfs::core::Timestamp(5));
    engine.put("new", b"new");
    engine.trim();
    for path in ["open", "written", "timed", "new"] {
        assert!(engine.is_cached(path), "{path} is gone");
    }
    assert!(!engine.is_cached("clean"));
    world.check(&engine);
    engine.close_handle(handle);
    engine.flush_all();
    engine.trim();
    assert_eq!(objects(&engine), 0);
    world.check(&engine);
}

#[test]
fn an_evicted_file_reads_through_and_is_fetched_to_be_edited() {
    let world = world(0);
    let engine = world.start(false);
    engine.put("f", b"0123456789");
    engine.put("g", b"grown later");
    engine.put("emptied", b"not needed");
    engine.flush_all();
    let mtime = engine.find("f").expect("f").mtime;
    engine.trim();
    assert_eq!(engine.read("f"), b"0123456789");
    assert!(!engine.is_cached("f"), "reading alone needs no copy");
    assert_eq!(engine.find("f").expect("f").mtime, mtime);
    engine.edit("f", 3, b"xyz");
    engine.truncate("g", 5);
    engine.truncate("g", 7);
    engine.put("emptied", b"new");
    assert_eq!(engine.read("f"), b"012xyz6789");
    assert_eq!(engine.read("g"), b"grown\0\0");
    world.check(&engine);
    engine.flush_all();
    engine.trim();
    world.check(&engine);
    assert_eq!(engine.read("f"), b"012xyz6789");
    assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "edited after eviction",
    );
}

#[test]
fn a_deleted_file_of_the_drive_stays_open_for_its_readers() {
    let world = world(0);
    let engine = world.start(false);
    for path in ["read", "unread"] {
        engine.put(path, b"0123456789");
    }
    engine.flush_all();
    engine.trim();
    let read = |handle| engine.read_handle(handle, 10);
    let handles = ["read", "unread"].map(|path| engine.open(path, READ));
    read(handles[0]).expect("read");
    let inos = ["read", "unread"].map(|path| engine.ino(path));
    for path in ["read", "unread"] {
        engine.unlink(path);
    }
    engine.fs.hold_open_for_readers(&inos);
    // No path leads to them any more. (This drive would fail reads of removed files.)
    for path in ["read", "unread"] {
        let [from, to] = [path.to_string(), format!("{path}.old")].map(|path| {
            let name = ferryfs::core::Name::new(path.as_bytes()).expect("a name");
            ferryfs::core::RelPath::root().join(&name)
        });
        world.memory.rename(&from, &to).expect("move aside");
    }
    std::thread::sleep(Duration::from_millis(2100));
    engine.fs.close_idle_readers(false);
    for handle in handles {
        assert_eq!(read(handle).expect("read when idle"), b"0123456789");
        world.faulty.fail_at(world.faulty.calls() + 1, libc::EIO);
        assert!(read(handle).is_err());
        assert_eq!(read(handle).expect("read after a failure"), b"0123456789");
    }
    engine.fs.close_idle_readers(true);
    for handle in handles {
        assert!(read(handle).is_err(), "the drive was let go of");
        engine.close_handle(handle);
    }
}

#[test]
fn an_evicted_file_follows_its_renames_on_the_drive() {
    let world = world(0);
    let engine = world.start(false);
    engine.mkdir("d");
    engine.put("d/f", b"far away");
    engine.link("d/f", "second");
    engine.flush_all();
    engine.trim();
    engine.rename("d", "e");
    engine.rename("e/f", "f");
    assert_eq!(engine.read("f"), b"far away", "before the flush");
    engine.link("f", "third");
    engine.utimes("f", ferryfs::core::Timestamp(1_600_000_000_000_000_000));
    engine.flush_all();
    assert_eq!(engine.read("f"), b"far away", "after it");
    assert_eq!(world.on_drive("third").as_deref(), Some(&b"far away"[..]));
    assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "moved while evicted",
    );
    assert!(!engine.is_cached("f"));
    world.check(&engine);
}

#[test]
fn dead_objects_disappear_from_the_store_once_nothing_needs_them() {
    let world = world(u64::MAX);
    let engine = world.start(false);
    engine.put("replaced", b"one");
    engine.put("replaced", b"two");
    engine.put("removed", b"three");
    engine.unlink("removed");
    engine.put("open", b"four");
    let ino = engine.ino("open");
    let handle = engine.open("open", WRITE);
    engine.unlink("open");
    assert_eq!(engine.read_handle(handle, 4).expect("still open"), b"four");
    engine.trim();
    assert_eq!(
        objects(&engine),
        2,
        "the one that has a name, and the open one"
    );
    engine.close_handle(handle);
    engine.fs.forget(ino).expect("forget");
    engine.trim();
    assert_eq!(objects(&engine), 1);
    world.check(&engine);
}

#[test]
fn what_a_batch_reads_is_kept_until_the_batch_is_over() {
    let world = world(0);
    let engine = world.start(false);
    engine.put("f", b"first");
    let report = engine.flush_with(&|_| {
        if engine.find("f").is_some() {
            engine.unlink("f");
        }
        engine.fs.trim().expect("trim");
    });
    assert_eq!(report.expect("flush").left_behind, []);
    engine.trim();
    assert_eq!(objects(&engine), 0);
    engine.flush_all();
    assert_eq!(world.on_drive("f"), None);
    world.check(&engine);
}

#[test]
fn a_closed_file_survives_a_kill_with_all_its_bytes() {
    let world = world(u64::MAX);
    let engine = world.start(false);
    engine.mkdir("d");
    engine.put("d/f", b"closed");
    engine.flush_all();
    engine.edit("d/f", 6, b", and longer");
    let handle = engine.open("d/open", WRITE);
    engine.write_at(handle, 0, b"written, not closed");
    let mtime = engine.find("d/f").expect("f").mtime;
    engine.die();
    let engine = world.start(true);
    assert_eq!(engine.read("d/f"), b"closed, and longer");
    assert_eq!(engine.find("d/f").expect("f").mtime, mtime);
    assert_eq!(engine.read("d/open"), b"written, not closed");
    engine.flusher.recover().expect("recover");
    engine.flush_all();
    assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "after the kill",
    );
    world.check(&engine);
}
