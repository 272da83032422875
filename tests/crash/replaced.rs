//! After a power cut a replaced file is the old one or the new one: bytes that never became durable
//! are made short by hand here, as a file system leaves them, before the daemon starts again.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::script::{REWRITE, WRITE};
use crate::engine::{Engine, Kind, ROOMY, World};
use ferryfs::cache::Store;
use ferryfs::drive::connection::Drive;
use ferryfs::index::Index;
use ferryfs::plan::names::NameRules;
use ferryfs::recovery::cache::{Recovered, UncleanEnd};
use ferryfs::vfs::{Fs, FsParts};

/// The file of the object of what is at `path` now.
fn object_of(engine: &Engine, path: &str) -> PathBuf {
    let object = engine.find(path).expect("there").object.expect("cached");
    engine
        .dir
        .join(format!("objects/{:08x}/{object}", object.0 / 4096))
}

fn cut_to(object: &PathBuf, size: u64) {
    let file = OpenOptions::new().write(true).open(object).expect("open");
    file.set_len(size).expect("truncate");
}

/// Sets right what a power cut left, then starts as usual.
fn start_after(world: &World, end: UncleanEnd) -> (Engine, Recovered) {
    let dir = world.cache_dir();
    let rules = NameRules::new(&world.kind.capabilities());
    let index = Arc::new(Index::open(&dir.join("index.db"), rules).expect("open"));
    let fs = Fs::new(FsParts {
        index: index.clone(),
        store: Arc::new(Store::open(dir).expect("open")),
        drive: Arc::new(Drive::detached()),
        clock: world.clock.clone(),
        capabilities: world.kind.capabilities(),
        owner: (1000, 1000),
        limits: ROOMY,
        io_timeout: Duration::from_millis(50),
        cache_path: Vec::new(),
    })
    .expect("make the file system");
    index.lock().resume_batch().expect("look for a batch");
    let recovered = fs.recover_after(end).expect("recover");
    let again = fs.recover_after(end).expect("recover twice");
    assert!(
        again.damaged.is_empty() && again.quarantined.is_empty(),
        "{again:?}"
    );
    drop((fs, index));
    (world.start(true), recovered)
}

fn lost_and_found(world: &World) -> usize {
    fs::read_dir(world.cache_dir().join("lost+found"))
        .expect("list")
        .count()
}

/// As the tick does, so that rows are as they would be on the disk.
fn tick(engine: &Engine) {
    engine.fs.finish_pending().expect("commit");
}

#[test]
fn file_renamed_over_another_goes_back_to_the_other_if_its_bytes_were_lost() {
    for lost_to in [None, Some(0), Some(3)] {
        let world = World::new(Kind::Exfat);
        let engine = world.start(false);
        engine.mkdir("d");
        engine.put("d/f", b"the old version");
        engine.flush_all();
        engine.put("tmp", b"the new version, never synced");
        engine.rename("tmp", "d/f");
        tick(&engine);
        let object = object_of(&engine, "d/f");
        let old = fs::read_dir(object.parent().expect("shard"))
            .expect("list")
            .count();
        assert_eq!(old, 2, "the old object stays until the new one is durable");
        engine.die();
        match lost_to {
            Some(size) => cut_to(&object, size),
            None => fs::remove_file(&object).expect("remove"),
        }
        let (engine, recovered) = start_after(&world, UncleanEnd::PowerCut);
        assert_eq!(engine.read("d/f"), b"the old version", "cut to {lost_to:?}");
        assert!(engine.find("tmp").is_none());
        assert_eq!(recovered.damaged.len(), 1, "{recovered:?}");
        assert!(recovered.damaged[0].contains("d/f"), "{recovered:?}");
        assert_eq!(lost_and_found(&world), usize::from(lost_to.is_some()));
        engine.flush_all();
        assert_eq!(
            world.on_drive("d/f").as_deref(),
            Some(&b"the old version"[..])
        );
        world.check(&engine);
    }
}

#[test]
fn file_renamed_over_another_stays_if_its_bytes_are_there() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("f", b"old");
    engine.put("tmp", b"new and whole");
    engine.rename("tmp", "f");
    tick(&engine);
    engine.die();
    let (engine, recovered) = start_after(&world, UncleanEnd::PowerCut);
    assert_eq!(engine.read("f"), b"new and whole");
    assert!(recovered.damaged.is_empty(), "{recovered:?}");
    world.check(&engine);
}

#[test]
fn a_chain_of_replacements_goes_back_to_the_last_whole_version() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("f", b"first");
    engine.fs.sync().expect("sync");
    let mut lost = Vec::new();
    for version in ["second", "third", "fourth"] {
        engine.put("tmp", format!("{version}, never synced").as_bytes());
        engine.rename("tmp", "f");
        lost.push(object_of(&engine, "f"));
    }
    tick(&engine);
    engine.die();
    for object in &lost {
        cut_to(object, 0);
    }
    let (engine, _) = start_after(&world, UncleanEnd::PowerCut);
    assert_eq!(engine.read("f"), b"first");
    world.check(&engine);
}

#[test]
fn file_rewritten_from_nothing_goes_back_if_its_bytes_were_lost() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("f", b"the old version");
    engine.fs.sync().expect("sync");
    let before = engine.find("f").expect("f");
    engine.put("f", b"rewritten, closed, never synced");
    tick(&engine);
    cut_to(&object_of(&engine, "f"), 4);
    engine.die();
    let (engine, recovered) = start_after(&world, UncleanEnd::PowerCut);
    assert_eq!(engine.read("f"), b"the old version");
    let after = engine.find("f").expect("f");
    assert_eq!(
        (after.ino, after.mtime, after.object),
        (before.ino, before.mtime, before.object)
    );
    assert_eq!(recovered.damaged.len(), 1, "{recovered:?}");
    engine.flush_all();
    world.check(&engine);
}

#[test]
fn file_that_was_being_rewritten_goes_back_after_a_power_cut_and_not_after_a_kill() {
    for (end, wanted) in [
        (UncleanEnd::PowerCut, &b"the old version"[..]),
        (UncleanEnd::Killed, &b""[..]),
    ] {
        let world = World::new(Kind::Exfat);
        let engine = world.start(false);
        engine.put("f", b"the old version");
        engine.fs.sync().expect("sync");
        let handle = engine.open("f", REWRITE);
        engine.write_at(handle, 0, b"begun");
        tick(&engine);
        cut_to(&object_of(&engine, "f"), 0);
        engine.die();
        let (engine, _) = start_after(&world, end);
        assert_eq!(engine.read("f"), wanted, "{end:?}");
        world.check(&engine);
    }
}

#[test]
fn evicted_file_that_was_replaced_is_what_the_drive_has() {
    let mut world = World::new(Kind::Exfat);
    world.limits.max_bytes = 0;
    let engine = world.start(false);
    engine.put("f", b"only on the drive");
    engine.flush_all();
    engine.trim();
    engine.put("tmp", b"new, never synced");
    engine.rename("tmp", "f");
    tick(&engine);
    cut_to(&object_of(&engine, "f"), 0);
    engine.die();
    let (engine, _) = start_after(&world, UncleanEnd::PowerCut);
    assert_eq!(engine.read("f"), b"only on the drive");
    engine.flush_all();
    world.check(&engine);
}

/// Once synced, the new version is the file, whatever happens to it: nobody goes back behind an
/// fsync.
#[test]
fn nothing_goes_back_behind_a_sync() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("f", b"old");
    engine.put("tmp", b"new and synced");
    engine.rename("tmp", "f");
    engine.fs.sync().expect("sync");
    assert_eq!(engine.index.lock().replaced().expect("list"), []);
    let handle = engine.open("f", WRITE);
    engine.write_at(handle, 14, b", and then more");
    engine.close_handle(handle);
    tick(&engine);
    cut_to(&object_of(&engine, "f"), 14);
    engine.die();
    let (engine, _) = start_after(&world, UncleanEnd::PowerCut);
    assert_eq!(engine.read("f"), b"new and synced");
    world.check(&engine);
}

#[test]
fn writing_on_after_a_replacement_keeps_what_was_replaced() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("f", b"old");
    engine.fs.sync().expect("sync");
    engine.put("tmp", b"new");
    engine.rename("tmp", "f");
    engine.edit("f", 3, b" and appended");
    tick(&engine);
    cut_to(&object_of(&engine, "f"), 0);
    engine.die();
    let (engine, _) = start_after(&world, UncleanEnd::PowerCut);
    assert_eq!(engine.read("f"), b"old");
    world.check(&engine);
}

#[test]
fn replaced_file_with_other_names_keeps_them() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("f", b"linked");
    engine.link("f", "other");
    engine.fs.sync().expect("sync");
    engine.put("tmp", b"new");
    engine.rename("tmp", "f");
    tick(&engine);
    cut_to(&object_of(&engine, "f"), 0);
    engine.die();
    let (engine, _) = start_after(&world, UncleanEnd::PowerCut);
    assert_eq!(engine.ino("f"), engine.ino("other"));
    assert_eq!(engine.read("f"), b"linked");
    engine.flush_all();
    world.check(&engine);
}

#[test]
fn replacing_without_syncs_ends_with_nothing_noted() {
    let world = World::new(Kind::Plain);
    let engine = world.start(false);
    engine.put("f", b"0");
    for n in 0..50 {
        engine.put("tmp", format!("{n}").as_bytes());
        engine.rename("tmp", "f");
        engine.put("f", b"rewritten");
    }
    assert!(!engine.index.lock().replaced().expect("list").is_empty());
    engine.fs.sync().expect("sync");
    assert!(engine.index.lock().replaced().expect("list").is_empty());
    engine.flush_all();
    engine.trim();
    world.check(&engine);
    engine.close();
}

fn ino(engine: &Engine, path: &str) -> ferryfs::core::Ino {
    engine.find(path).expect("there").ino
}

#[test]
fn an_fsync_waits_for_its_own_file_and_for_those_that_replaced_others() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    engine.put("download", b"large, and never synced");
    engine.put("database", b"a transaction");
    engine
        .fs
        .sync_files(&[ino(&engine, "database")])
        .expect("fsync");
    assert!(engine.fs.has_unsynced(), "the download was synced as well");
    engine.fs.sync().expect("sync");
    assert!(!engine.fs.has_unsynced());

    engine.put("tmp", b"the next version");
    engine.rename("tmp", "database");
    engine.put("other", b"other");
    engine
        .fs
        .sync_files(&[ino(&engine, "other")])
        .expect("fsync");
    assert!(
        !engine.fs.has_unsynced(),
        "the old version could be lost along with the new one"
    );
    world.check(&engine);
}

#[test]
fn what_was_fsynced_outlives_later_writes_that_are_lost() {
    for replaces in [false, true] {
        let world = World::new(Kind::Exfat);
        let engine = world.start(false);
        engine.put("log", b"as the drive has it");
        engine.flush_all();
        if replaces {
            engine.put("tmp", b"fsynced");
            engine.rename("tmp", "log");
        } else {
            engine.put("log", b"fsynced");
        }
        engine.fs.sync_files(&[ino(&engine, "log")]).expect("fsync");
        engine.edit("log", 7, b", appended");
        let object = object_of(&engine, "log");
        // The log of the index has the rows of all files.
        engine.put("other", b"other");
        engine
            .fs
            .sync_files(&[ino(&engine, "other")])
            .expect("fsync");
        engine.die();
        cut_to(&object, 7);
        let (engine, recovered) = start_after(&world, UncleanEnd::PowerCut);
        assert_eq!(engine.read("log"), b"fsynced", "replaces: {replaces}");
        assert_eq!(engine.read("other"), b"other");
        assert_eq!(recovered.damaged.len(), 1, "{recovered:?}");
        assert!(recovered.damaged[0].contains("log"), "{recovered:?}");
        world.check(&engine);
    }
}
