//! The drive's clock is read in another zone: all times are some hours off, and nobody has changed
//! anything.

use ferryfs::core::{FileKind, RelPath, Timestamp};
use ferryfs::drive::Backend;
use ferryfs::vfs::SetAttr;

use super::engine::script::rel;
use super::engine::{Engine, Kind, World, call};
use super::{KINDS, at_rest, others, put, time};

const HOUR: i64 = 3_600_000_000_000;

/// Everything on the drive seems to have been modified `by` later.
fn shift(world: &World, by: i64) {
    let mut open = vec![RelPath::root()];
    while let Some(dir) = open.pop() {
        for entry in world.memory.read_dir(&dir).expect("list") {
            let path = dir.join(&entry.name);
            if dir.is_root() && entry.name.as_bytes() == b".ferryfs" {
                continue;
            }
            let later = Timestamp(entry.meta.modified.0 + by);
            world.memory.set_modified(&path, later).expect("set time");
            if entry.meta.kind == FileKind::Directory {
                open.push(path);
            }
        }
    }
}

fn chmod(engine: &Engine, path: &str, mode: u32) {
    let set = SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    call(|ctx| engine.fs.setattr(ctx, engine.ino(path), &set)).expect("chmod");
}

/// Edits, removes, moves, and gives another mode.
fn work(engine: &Engine) {
    engine.put("album/p1", b"edited here");
    engine.unlink("album/p2");
    engine.rename("album/p3", "album/q3");
    chmod(engine, "album/p4", 0o600);
}

#[track_caller]
fn assert_work_is_done(world: &World, engine: &Engine) {
    at_rest(world, engine);
    assert_eq!(others(world).len(), 0);
    let there = |name: &str| {
        world
            .memory
            .metadata(&rel(&format!("album/{name}")))
            .is_ok()
    };
    let names = ["p1", "p2", "p3", "q3", "p4", "p5"];
    assert_eq!(
        names.map(there),
        [true, false, false, true, true, true],
        "{names:?}"
    );
    assert_eq!(engine.read("album/p1"), b"edited here");
    assert_eq!(engine.read("album/q3"), b"picture 3");
}

/// A drive that somebody else has filled, in the course of some weeks, and that has been taken in.
fn imported(kind: Kind) -> (World, Engine) {
    let world = World::new(kind);
    super::make_dir(&world, "album");
    for n in 1..=5 {
        let bytes = format!("picture {n}");
        put(&world, &format!("album/p{n}"), bytes.as_bytes(), n * 17_280);
    }
    let engine = world.start(false);
    engine.refresh();
    assert_eq!(engine.list(engine.ino("album")).len(), 5);
    (world, engine)
}

fn written(kind: Kind) -> (World, Engine) {
    let world = World::new(kind);
    let engine = world.start(false);
    engine.mkdir("album");
    for n in 1..=5 {
        engine.put(&format!("album/p{n}"), format!("picture {n}").as_bytes());
    }
    engine.flush_all();
    (world, engine)
}

#[test]
fn what_was_done_here_stays_done_when_only_the_clock_has_changed() {
    for kind in KINDS {
        for begin in [imported, written] {
            for by in [HOUR, -HOUR, 5 * HOUR + HOUR / 2] {
                // Taken in by a look, and by the flush itself.
                for looks in [true, false] {
                    let (world, engine) = begin(kind);
                    work(&engine);
                    shift(&world, by);
                    if looks {
                        let changes = engine.refresh();
                        assert_eq!((changes.new, changes.conflicts), (0, 0), "{changes:?}");
                    }
                    assert_work_is_done(&world, &engine);
                }
            }
        }
    }
}

#[test]
fn a_file_with_other_bytes_is_theirs_though_the_clock_has_changed_too() {
    for kind in KINDS {
        let (world, engine) = written(kind);
        engine.unlink("album/p2");
        engine.put("album/p3", b"ours");
        for name in ["album/p2", "album/p3"] {
            let was = world.memory.metadata(&rel(name)).expect("there").modified;
            put(&world, name, b"PICTURE X", 0);
            world.memory.set_modified(&rel(name), was).expect("time");
        }
        shift(&world, HOUR);
        engine.refresh();
        at_rest(&world, &engine);
        let kept: Vec<String> = others(&world).into_keys().collect();
        assert_eq!(kept, ["album/p2", "album/p3"]);
        assert_eq!(engine.read("album/p3"), b"ours");
    }
}

/// A collector elsewhere rewrites its files, which never change their size, every hour on the hour.
/// One of them was deleted here: all that is known of it are times that look like another zone's.
#[test]
fn files_that_a_job_rewrites_every_hour_are_not_taken_for_a_shifted_clock() {
    let world = World::new(Kind::Exfat);
    super::make_dir(&world, "data");
    let names = ["data/cpu", "data/disk", "data/net"];
    for (n, name) in names.iter().enumerate() {
        put(&world, name, b"00:00", n as i64);
    }
    let engine = world.start(false);
    engine.refresh();
    assert_eq!(engine.list(engine.ino("data")).len(), 3);
    engine.unlink("data/disk");
    for (n, name) in names.iter().enumerate() {
        put(&world, name, b"01:00", 0);
        let later = Timestamp(time(n as i64).0 + HOUR);
        world.memory.set_modified(&rel(name), later).expect("time");
    }
    engine.refresh();
    at_rest(&world, &engine);
    let kept: Vec<_> = others(&world).into_iter().collect();
    assert_eq!(kept, [("data/disk".to_string(), b"01:00".to_vec())]);
    assert_eq!(engine.read("data/cpu"), b"01:00");
}

/// Two files without a hash say nothing; a third one, whose bytes are known, tells what has become
/// of the clock.
#[test]
fn one_file_whose_bytes_are_known_tells_for_its_directory() {
    for (bytes, conflicts) in [(&b"known"[..], 0), (b"KNOWN", 1)] {
        let world = World::new(Kind::Exfat);
        super::make_dir(&world, "d");
        for (n, name) in ["d/a", "d/b", "d/k"].iter().enumerate() {
            put(&world, name, b"known", n as i64);
        }
        let engine = world.start(false);
        engine.refresh();
        // Reads all of it, and leaves it as it is.
        chmod(&engine, "d/k", 0o600);
        let handle = engine.open("d/k", super::engine::script::WRITE);
        engine.write_at(handle, 0, b"known");
        engine.close_handle(handle);
        engine.flush_all();
        engine.unlink("d/a");
        let was = world.memory.metadata(&rel("d/k")).expect("there").modified;
        put(&world, "d/k", bytes, 0);
        world.memory.set_modified(&rel("d/k"), was).expect("time");
        shift(&world, -HOUR);
        let changes = engine.refresh();
        assert_eq!(changes.conflicts, conflicts, "{changes:?}");
        at_rest(&world, &engine);
    }
}
