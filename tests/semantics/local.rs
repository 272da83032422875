//! What stays local never reaches the drive, whatever is done to its name, and all else does.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::rng::Rng;
use crate::engine::tree::Tree;
use crate::engine::{Engine, Kind, World};
use ferryfs::core::{FileKind, RelPath, Timestamp};
use ferryfs::drive::Backend;
use ferryfs::drive::memory::MemNode;
use ferryfs::plan::patterns::Patterns;
use ferryfs::vfs::Brought;

const KINDS: [Kind; 3] = [Kind::Plain, Kind::Exfat, Kind::Linux];

fn patterns(lines: &[&str]) -> Arc<Patterns> {
    let lines: Vec<String> = lines.iter().map(|line| (*line).into()).collect();
    Arc::new(Patterns::new(&lines).expect("patterns"))
}

fn set(engine: &Engine, lines: &[&str]) {
    let mut state = engine.index.lock();
    state.set_local_patterns(patterns(lines)).expect("set");
}

fn start(world: &World, lines: &[&str]) -> Engine {
    let engine = world.start(false);
    set(&engine, lines);
    engine
}

/// Another machine writes a file on the drive.
fn write_elsewhere(world: &World, path: &str, bytes: &[u8]) {
    let path = crate::engine::script::rel(path);
    let _ = world.memory.remove_file(&path);
    let mut file = world.memory.create(&path).expect("create");
    file.append(bytes).expect("append");
    file.finish(Timestamp(1_650_000_000_000_000_000))
        .expect("finish");
}

/// Flushes until nothing is held: what was moved to a local name is brought in between.
fn flush_and_bring(engine: &Engine) {
    for _ in 0..20 {
        let report = engine.flush().expect("flush");
        let wanted = engine.index.lock().wanted_for_local();
        if report.left_behind.is_empty() && wanted.is_empty() {
            return;
        }
        for ino in wanted {
            engine.fs.bring(ino).expect("bring");
        }
    }
    panic!("something is held for ever: {:?}", engine.flush());
}

fn waits(engine: &Engine) -> bool {
    let mut state = engine.index.lock();
    state.sort_local().expect("sort");
    state.commit().expect("commit");
    state.anything_dirty().expect("ask")
}

/// The marks, for messages.
fn marks(engine: &Engine) -> Vec<String> {
    let snapshot = engine.index.snapshot().expect("a snapshot");
    let names = snapshot.dirty_names().expect("names");
    let inodes = snapshot.dirty_inodes().expect("inodes");
    let names = names.into_iter().map(|(key, _)| {
        let placed = snapshot.placed(&key).expect("placed");
        let here = engine.index.lock().lookup_stored(key.parent, &key.name);
        let path = engine.index.lock().key_path(&key);
        format!("{path:?} {key}: {here:?} here, {placed:?} on the drive")
    });
    let inodes = inodes
        .into_iter()
        .map(|ino| format!("{:?}", snapshot.inode(ino)));
    names.chain(inodes).collect()
}

fn names(tree: &Tree) -> Vec<String> {
    tree.keys()
        .filter(|path| !path.is_root())
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_local_name_travels_once_it_is_renamed() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = start(&world, &["*.part", "tmp/"]);
        engine.put("film.mkv.part", b"first half");
        engine.mkdir("tmp");
        engine.mkdir("tmp/deep");
        engine.put("tmp/deep/x", b"scratch");
        engine.put("other", b"other");
        engine.flush_all();
        assert_eq!(names(&world.drive_tree()), ["other"]);
        assert!(!waits(&engine));
        engine.put("tmp/deep/x", b"scratch, again");
        engine.edit("film.mkv.part", 0, b"both halves");
        assert!(!waits(&engine), "no flush is due for local files");
        engine.rename("film.mkv.part", "film.mkv");
        engine.rename("tmp/deep", "deep");
        assert!(waits(&engine));
        engine.flush_all();
        assert_eq!(
            names(&world.drive_tree()),
            ["deep", "deep/x", "film.mkv", "other"]
        );
        assert_eq!(world.on_drive("film.mkv").unwrap(), b"both halves");
        assert_eq!(world.on_drive("deep/x").unwrap(), b"scratch, again");
        world.check(&engine);
    }
}

#[test]
fn what_moves_to_a_local_name_leaves_the_drive_when_its_bytes_are_here() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = start(&world, &["tmp/"]);
        engine.mkdir("tmp");
        engine.mkdir("dir");
        engine.put("dir/a", b"aaa");
        engine.put("dir/b", b"bbb");
        engine.put("film", b"film");
        engine.flush_all();
        engine.close();
        // A new cache, so that the drive alone has the bytes.
        let memory = world.memory.clone();
        let world = World::on(kind, memory);
        let engine = start(&world, &["tmp/"]);
        engine.mkdir("tmp");
        engine.rename("film", "tmp/film");
        engine.rename("dir", "tmp/dir");
        let report = engine.flush().expect("flush");
        let left: Vec<&str> = report
            .left_behind
            .iter()
            .map(|(path, _)| path.as_str())
            .collect();
        assert!(
            left.contains(&"tmp/film") && left.contains(&"tmp/dir"),
            "{left:?}"
        );
        assert_eq!(
            names(&world.drive_tree()),
            ["dir", "dir/a", "dir/b", "film"]
        );
        // Another file may have the old name meanwhile; it waits.
        engine.put("film", b"new film");
        let report = engine.flush().expect("flush");
        assert!(report.left_behind.iter().any(|(path, _)| path == "film"));
        assert_eq!(world.on_drive("film").unwrap(), b"film");
        flush_and_bring(&engine);
        assert_eq!(names(&world.drive_tree()), ["film"]);
        assert_eq!(world.on_drive("film").unwrap(), b"new film");
        engine.trim();
        assert_eq!(engine.read("tmp/film"), b"film");
        assert_eq!(engine.read("tmp/dir/b"), b"bbb");
        assert!(!waits(&engine));
        world.check(&engine);
    }
}

#[test]
fn a_pattern_deletes_nothing_and_freezes_what_the_drive_has() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = start(&world, &[]);
        engine.mkdir("node_modules");
        for name in ["a", "b", "c", "d"] {
            engine.put(&format!("node_modules/{name}"), b"first");
        }
        engine.flush_all();
        set(&engine, &["node_modules/"]);
        engine.flush_all();
        assert_eq!(names(&world.drive_tree()).len(), 5);
        engine.edit("node_modules/a", 0, b"FIRST");
        engine.put("node_modules/new", b"new");
        engine.put("b2", b"second");
        engine.rename("b2", "node_modules/b");
        engine.unlink("node_modules/c");
        engine.flush_all();
        let tree = names(&world.drive_tree());
        assert_eq!(
            tree,
            [
                "node_modules",
                "node_modules/a",
                "node_modules/b",
                "node_modules/d"
            ]
        );
        assert_eq!(world.on_drive("node_modules/a").unwrap(), b"first");
        assert_eq!(world.on_drive("node_modules/b").unwrap(), b"first");
        engine.put("node_modules/a", b"third");
        assert!(!waits(&engine));
        engine.trim();
        assert_eq!(engine.read("node_modules/a"), b"third");
        // And back.
        set(&engine, &[]);
        assert!(waits(&engine));
        engine.flush_all();
        assert_eq!(world.on_drive("node_modules/a").unwrap(), b"third");
        assert_eq!(world.on_drive("node_modules/b").unwrap(), b"second");
        assert_eq!(world.on_drive("node_modules/new").unwrap(), b"new");
        assert!(!waits(&engine));
        world.check(&engine);
    }
}

#[test]
fn a_file_with_a_local_and_another_name_travels_under_the_other() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = start(&world, &["tmp/"]);
        engine.mkdir("tmp");
        engine.put("kept", b"bytes");
        engine.link("kept", "tmp/link");
        engine.flush_all();
        assert_eq!(names(&world.drive_tree()), ["kept"]);
        engine.edit("tmp/link", 0, b"BYTES");
        engine.flush_all();
        assert_eq!(world.on_drive("kept").unwrap(), b"BYTES");
        assert_eq!(names(&world.drive_tree()), ["kept"]);
        set(&engine, &[]);
        engine.flush_all();
        assert_eq!(world.on_drive("tmp/link").unwrap(), b"BYTES");
        set(&engine, &["tmp/"]);
        engine.rename("tmp", "tmp2");
        engine.rename("tmp2", "tmp");
        engine.unlink("tmp/link");
        engine.link("kept", "tmp/link");
        engine.flush_all();
        engine.trim();
        engine.unlink("kept");
        flush_and_bring(&engine);
        // The directory was on the drive when the pattern came.
        let left = names(&world.drive_tree());
        assert!(left.iter().all(|path| path.starts_with("tmp")), "{left:?}");
        assert_eq!(engine.read("tmp/link"), b"BYTES");
        world.check(&engine);
    }
}

/// A file whose name that travels goes, and whose other one travels from then on.
fn last_name_travels(kind: Kind, is_away: bool, travels: impl Fn(&Engine)) {
    let world = World::new(kind);
    let engine = start(&world, &["tmp/"]);
    engine.mkdir("tmp");
    engine.put("kept", b"bytes");
    engine.link("kept", "tmp/link");
    engine.flush_all();
    let (world, engine) = match is_away {
        false => (world, engine),
        true => {
            // Nothing but the drive has the bytes.
            engine.trim();
            let ino = engine.ino("kept");
            engine.fs.evict_unused(i64::MAX).expect("evict");
            assert!(!engine.is_cached("kept"), "{ino:?}");
            (world, engine)
        }
    };
    engine.unlink("kept");
    travels(&engine);
    flush_and_bring(&engine);
    engine.trim();
    let names = names(&world.drive_tree());
    let path = names.last().expect("a file").clone();
    assert!(path.ends_with("/link"), "{kind:?}: {names:?}");
    assert_eq!(world.on_drive(&path).expect("on the drive"), b"bytes");
    assert_eq!(engine.read(&path), b"bytes");
    assert!(!waits(&engine));
    world.check(&engine);
}

#[test]
fn the_last_name_of_a_file_travels_when_its_directory_or_the_patterns_let_it() {
    for kind in KINDS {
        for is_away in [false, true] {
            last_name_travels(kind, is_away, |engine| engine.rename("tmp", "work"));
            last_name_travels(kind, is_away, |engine| set(engine, &[]));
            // The flush in between finds it held, if its bytes are away.
            last_name_travels(kind, is_away, |engine| {
                engine.flush().expect("flush");
                engine.rename("tmp", "work");
            });
        }
    }
}

#[test]
fn a_local_name_beside_others_stays_local_over_restarts_and_reloads() {
    for is_restart in [true, false] {
        let world = World::new(Kind::Exfat);
        let mut engine = start(&world, &["tmp/"]);
        engine.mkdir("tmp");
        engine.put("kept", b"bytes");
        engine.link("kept", "tmp/link");
        engine.flush_all();
        if is_restart {
            engine.close();
            engine = world.start(false);
        }
        set(&engine, &["tmp/"]);
        engine.edit("kept", 0, b"BYTES");
        engine.flush_all();
        assert_eq!(names(&world.drive_tree()), ["kept"], "{is_restart}");
        assert_eq!(world.on_drive("kept").unwrap(), b"BYTES");
        world.check(&engine);
    }
}

#[test]
fn the_drive_keeps_what_the_ssd_has_failed_to_store() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = start(&world, &["tmp/"]);
        engine.mkdir("tmp");
        engine.put("film", b"film");
        engine.flush_all();
        engine.rename("film", "tmp/film");
        let inode = engine.find("tmp/film").expect("a file");
        let object = inode.object.expect("an object");
        let damage = ferryfs::cache::Damage { errno: libc::EIO };
        engine.store.note_damage(object, damage);
        let report = engine.flush().expect("flush");
        assert!(!report.left_behind.is_empty(), "{report:?}");
        assert_eq!(world.on_drive("film").expect("on the drive"), b"film");
        // Whoever writes it anew has a whole copy here.
        engine.put("tmp/film", b"new film");
        engine.flush_all();
        assert_eq!(names(&world.drive_tree()), [""; 0]);
        assert_eq!(engine.read("tmp/film"), b"new film");
        world.check(&engine);
    }
}

#[test]
fn what_others_put_under_the_name_of_a_local_file_stays_on_the_drive() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = start(&world, &[]);
        engine.put("changed.part", b"first");
        engine.flush_all();
        set(&engine, &["*.part"]);
        engine.edit("changed.part", 0, b"OURS!");
        engine.put("made.part", b"ours");
        engine.flush_all();
        // This one has no flag yet.
        engine.put("young.part", b"ours");
        for name in ["changed.part", "made.part", "young.part"] {
            write_elsewhere(&world, name, b"theirs, longer");
        }
        for _ in 0..2 {
            engine.refresh();
            flush_and_bring(&engine);
        }
        let on_drive = ["changed.part", "made.part", "young.part"];
        assert_eq!(names(&world.drive_tree()), on_drive, "{kind:?}");
        for name in on_drive {
            assert_eq!(world.on_drive(name).unwrap(), b"theirs, longer", "{name}");
        }
        assert_eq!(engine.read("changed.part"), b"OURS!");
        assert_eq!(engine.read("made.part"), b"ours");
        assert_eq!(engine.mount_tree().len(), world.drive_tree().len());
        // Theirs appears when ours has gone.
        engine.unlink("made.part");
        engine.rename("changed.part", "changed");
        flush_and_bring(&engine);
        engine.refresh();
        assert_eq!(engine.read("made.part"), b"theirs, longer");
        assert_eq!(engine.read("changed.part"), b"theirs, longer");
        assert_eq!(world.on_drive("changed").unwrap(), b"OURS!");
        // And both are kept when ours travels.
        set(&engine, &[]);
        engine.flush().expect("flush");
        engine.refresh();
        flush_and_bring(&engine);
        assert_eq!(world.on_drive("young.part").unwrap(), b"ours");
        assert_eq!(names(&world.drive_tree()).len(), 5, "{kind:?}");
        world.check(&engine);
    }
}

#[test]
fn a_journal_goes_where_its_database_goes() {
    let world = World::new(Kind::Exfat);
    let engine = start(&world, &["*-wal", "cache.db"]);
    for name in [
        "lab.db",
        "lab.db-wal",
        "cache.db",
        "cache.db-wal",
        "alone-wal",
    ] {
        engine.put(name, b"x");
    }
    engine.flush_all();
    assert_eq!(names(&world.drive_tree()), ["lab.db", "lab.db-wal"]);
    world.check(&engine);
}

#[test]
fn a_journal_that_the_drive_kept_for_a_local_database_goes_when_that_travels() {
    for (is_changed, travels_by_rename) in [(false, false), (true, false), (true, true)] {
        let world = World::new(Kind::Exfat);
        let engine = start(&world, &[]);
        engine.put("lab.db", b"first");
        engine.put("lab.db-wal", b"journal");
        engine.flush_all();
        set(&engine, &["lab.db"]);
        engine.unlink("lab.db-wal");
        if is_changed {
            engine.edit("lab.db", 0, b"FIRST");
        }
        engine.flush_all();
        assert_eq!(names(&world.drive_tree()), ["lab.db", "lab.db-wal"]);
        match travels_by_rename {
            true => engine.rename("lab.db", "work.db"),
            false => set(&engine, &[]),
        }
        engine.flush_all();
        let left = names(&world.drive_tree());
        assert_eq!(left.len(), 1, "{is_changed} {travels_by_rename}: {left:?}");
        assert!(!waits(&engine));
        world.check(&engine);
    }
}

#[test]
fn a_directory_leaves_the_drive_with_the_older_versions_in_it() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = start(&world, &[]);
        engine.mkdir("dir");
        engine.mkdir("dir/sub");
        for path in ["dir/x.part", "dir/sub/x.part"] {
            engine.put(path, b"older");
        }
        engine.flush_all();
        set(&engine, &["*.part", "tmp/"]);
        for path in ["dir/x.part", "dir/sub/x.part"] {
            engine.put("new", b"newer");
            engine.rename("new", path);
        }
        engine.flush_all();
        assert_eq!(world.on_drive("dir/sub/x.part").unwrap(), b"older");
        engine.mkdir("tmp");
        engine.rename("dir", "tmp/dir");
        flush_and_bring(&engine);
        assert_eq!(names(&world.drive_tree()), [""; 0]);
        assert_eq!(engine.read("tmp/dir/sub/x.part"), b"newer");
        assert!(!waits(&engine), "{:?}", marks(&engine));
        world.check(&engine);
    }
}

#[test]
fn what_comes_and_goes_in_a_local_directory_during_a_flush_leaves_no_mark() {
    let world = World::new(Kind::Exfat);
    let engine = start(&world, &["tmp/"]);
    engine.mkdir("tmp");
    engine.flush_all();
    engine.put("other", b"other");
    let flushed = engine.flush_with(&|_| {
        engine.put("tmp/x", b"x");
        engine.unlink("tmp/x");
    });
    flushed.expect("flush");
    assert!(!waits(&engine), "{:?}", marks(&engine));
    world.check(&engine);
}

#[test]
fn what_others_rename_to_a_name_that_travels_is_written_from_then_on() {
    for kind in KINDS {
        let world = World::new(kind);
        let engine = start(&world, &[]);
        engine.mkdir("tmp");
        engine.put("x.part", b"first");
        engine.put("tmp/y", b"first");
        engine.flush_all();
        set(&engine, &["*.part", "tmp/"]);
        engine.edit("x.part", 0, b"FIRST");
        engine.edit("tmp/y", 0, b"FIRST");
        engine.flush_all();
        for (from, to) in [("x.part", "x"), ("tmp", "work")] {
            let (from, to) = (RelPath::fixed(from), RelPath::fixed(to));
            world.memory.rename(&from, &to).expect("rename");
        }
        engine.refresh();
        flush_and_bring(&engine);
        for (path, local) in [("x", "x.part"), ("work/y", "tmp/y")] {
            assert_eq!(engine.read(path), b"FIRST", "{kind:?} {path}");
            let there = world.on_drive(path).unwrap();
            assert_eq!(there, b"FIRST", "{kind:?} {path}");
            assert_eq!(world.on_drive(local), None, "{kind:?} {local}");
        }
        world.check(&engine);
    }
}

/// A drive with these files, each of so many bytes, and a cache of 100,000 bytes without them.
fn small_cache(files: &[(&str, usize)]) -> World {
    let world = World::new(Kind::Plain);
    let engine = world.start(false);
    engine.mkdir("dir");
    for (path, size) in files {
        engine.put(path, &vec![7; *size]);
    }
    engine.flush_all();
    engine.close();
    let mut world = World::on(Kind::Plain, world.memory.clone());
    world.limits.max_bytes = 100_000;
    world
}

#[test]
fn what_cannot_fit_into_the_cache_evicts_nothing() {
    let world = small_cache(&[("a", 40_000), ("film", 200_000)]);
    let engine = start(&world, &[]);
    let bring = |path: &str| engine.fs.bring(engine.ino(path)).expect("bring");
    assert_eq!(bring("a"), Brought::Fetched(40_000));
    assert_eq!(bring("film"), Brought::TooLarge(200_000));
    assert!(engine.is_cached("a"));
    world.check(&engine);
}

#[test]
fn what_is_brought_for_a_directory_is_not_evicted_before_all_of_it_is_here() {
    let files = [
        ("dir/a", 30_000),
        ("dir/b", 30_000),
        ("c", 50_000),
        ("d", 50_000),
    ];
    let world = small_cache(&files);
    let engine = start(&world, &["tmp/"]);
    engine.mkdir("tmp");
    engine.rename("dir", "tmp/dir");
    let report = engine.flush().expect("flush");
    assert!(!report.left_behind.is_empty(), "it is held");
    let bring = |path: &str| engine.fs.bring(engine.ino(path)).expect("bring");
    let dir = engine.ino("tmp/dir");
    engine.fs.bring(dir).expect("list");
    assert!(waits(&engine));
    for path in ["tmp/dir/a", "c", "d"] {
        world.clock.advance(Duration::from_secs(10));
        bring(path);
    }
    assert!(engine.is_cached("tmp/dir/a") && engine.is_cached("d"));
    assert!(!engine.is_cached("c"));
    flush_and_bring(&engine);
    assert_eq!(names(&world.drive_tree()), ["c", "d"]);
    world.check(&engine);
}

#[test]
fn local_files_survive_the_daemon_and_still_do_not_travel() {
    let world = World::new(Kind::Exfat);
    let lines = ["tmp/", "*.part"];
    let engine = start(&world, &lines);
    engine.mkdir("tmp");
    engine.put("tmp/a", b"aaa");
    engine.put("x.part", b"xxx");
    engine.flush_all();
    engine.put("tmp/b", b"bbb");
    engine.put("y.part", b"yyy");
    engine.index.sync().expect("sync");
    engine.die();
    let engine = world.start(true);
    set(&engine, &lines);
    engine.flush_all();
    assert_eq!(names(&world.drive_tree()), [""; 0]);
    for (path, bytes) in [("tmp/a", b"aaa"), ("tmp/b", b"bbb"), ("x.part", b"xxx")] {
        assert_eq!(engine.read(path), bytes);
    }
    engine.rename("tmp", "kept");
    engine.flush_all();
    assert_eq!(names(&world.drive_tree()), ["kept", "kept/a", "kept/b"]);
    world.check(&engine);
}

const NAMES: [&str; 8] = [
    "a",
    "b",
    "c.part",
    "tmp",
    "d",
    "e.part",
    "lab.db",
    "lab.db-wal",
];

/// Some path, in an existing directory.
fn some_path(engine: &Engine, rng: &mut Rng) -> String {
    let dirs: Vec<String> = engine
        .mount_tree()
        .into_iter()
        .filter(|(_, seen)| seen.kind() == FileKind::Directory)
        .map(|(path, _)| path.to_string())
        .collect();
    let dir = match dirs.is_empty() || rng.one_in(3) {
        true => String::new(),
        false => rng.pick(&dirs) + "/",
    };
    match dir.len() > 30 {
        true => rng.pick(&NAMES).to_owned(),
        false => dir + rng.pick(&NAMES),
    }
}

fn act(engine: &Engine, rng: &mut Rng, n: usize) {
    let (one, other) = (some_path(engine, rng), some_path(engine, rng));
    let is_there = engine.find(&one).is_some();
    let can_be = |path: &str| match path.rsplit_once('/') {
        Some((dir, _)) => engine.find(dir).is_some_and(|inode| inode.is_dir()),
        None => true,
    };
    // The kernel refuses to move a directory into itself.
    let is_in = |path: &str, dir: &str| path.starts_with(&format!("{dir}/"));
    if !can_be(&one) || !can_be(&other) || is_in(&other, &one) || is_in(&one, &other) {
        return;
    }
    match rng.below(12) {
        6..=11 if !is_there => {}
        0..=2 => drop(engine.try_put(&one, format!("{n} {one}").as_bytes(), false)),
        3 => drop(engine.try_edit(&one, 0, format!("edit {n}").as_bytes())),
        4 | 5 => drop(engine.try_make(&one, None)),
        6 => drop(engine.try_remove(&one, false)),
        7 => drop(engine.try_remove(&one, true)),
        8 if rng.one_in(2) => drop(engine.try_link(&one, &other)),
        9 => drop(engine.rename_with(&one, &other, ferryfs::vfs::RenameMode::Exchange)),
        _ => drop(engine.rename_with(&one, &other, ferryfs::vfs::RenameMode::Replace)),
    }
}

/// Which paths a reference implementation says are local: each name of each path by itself, and
/// what is below.
fn is_local(tree: &[String], path: &str, lines: &[&str]) -> bool {
    let mut at = String::new();
    path.split('/').enumerate().any(|(depth, name)| {
        let parent = at.clone();
        if depth > 0 {
            at.push('/');
        }
        at.push_str(name);
        let is_dir = at != path
            || tree
                .iter()
                .any(|other| other.starts_with(&format!("{at}/")));
        let database = name.strip_suffix("-wal").unwrap_or(name);
        let beside = match parent.is_empty() {
            true => database.to_owned(),
            false => format!("{parent}/{database}"),
        };
        let name = if !is_dir && tree.contains(&beside) {
            database
        } else {
            name
        };
        lines.iter().any(|line| match *line {
            "tmp/" => name == "tmp" && is_dir,
            "*.part" => name.ends_with(".part"),
            "/a/b" => at == "a/b",
            "lab.db" => name == "lab.db",
            other => panic!("no reference for {other}"),
        })
    })
}

/// Random changes and flushes; at each end of a flush the drive has exactly the names that travel,
/// with their bytes, and the mount has lost nothing.
fn simulate(kind: Kind, seed: u64, steps: usize) {
    let lists: [&[&str]; 4] = [
        &["tmp/", "*.part"],
        &["tmp/"],
        &["*.part", "/a/b"],
        &["lab.db"],
    ];
    let mut rng = Rng::new(seed);
    let world = World::new(kind);
    let lines = rng.pick(&lists);
    let mut engine = start(&world, lines);
    for n in 0..steps {
        act(&engine, &mut rng, n);
        if rng.one_in(40) {
            engine.trim();
        }
        if rng.one_in(60) {
            engine.index.sync().expect("sync");
            engine.die();
            engine = world.start(true);
            set(&engine, lines);
            let recovered = engine.flusher.recover();
            recovered.expect("recover");
        }
        if !rng.one_in(12) && n + 1 < steps {
            continue;
        }
        let before = engine.readable_tree();
        flush_and_bring(&engine);
        let tree: Vec<String> = before.keys().map(ToString::to_string).collect();
        let drive = world.drive_tree();
        let after = engine.readable_tree();
        for (path, seen) in &before {
            let text = path.to_string();
            let now = after.get(path).and_then(|seen| seen.bytes.clone());
            assert_eq!(now, seen.bytes, "seed {seed} step {n}: {text} in the mount");
            let is_dir = seen.kind() == FileKind::Directory;
            let travels = !is_local_with_kind(&tree, &text, is_dir, lines);
            if !travels && text.ends_with("-wal") {
                // The drive keeps one that it had before there was a local database beside it.
                continue;
            }
            assert_eq!(
                drive.contains_key(path),
                travels,
                "seed {seed} step {n} {lines:?}: {text} on the drive"
            );
            if let Some(MemNode::File { bytes, .. }) = drive.get(path) {
                let wanted = seen.bytes.as_ref().expect("a file");
                assert_eq!(bytes[..], wanted[..], "seed {seed} step {n}: {text}");
            }
        }
        for path in drive.keys().filter(|path| !path.is_root()) {
            assert!(
                before.contains_key(path),
                "seed {seed} step {n}: {path} is only on the drive"
            );
        }
        let waiting = waits(&engine).then(|| marks(&engine));
        assert_eq!(waiting, None, "seed {seed} step {n} {kind:?} {lines:?}");
        world.check(&engine);
    }
}

/// As [`is_local`], for an entry whose kind is known.
fn is_local_with_kind(tree: &[String], path: &str, is_dir: bool, lines: &[&str]) -> bool {
    if is_dir {
        let below = format!("{path}/x");
        let mut tree = tree.to_vec();
        tree.push(below);
        return is_local(&tree, path, lines);
    }
    is_local(tree, path, lines)
}

#[test]
fn whatever_is_renamed_a_local_name_never_reaches_the_drive_and_all_else_does() {
    for seed in 0..2 {
        for kind in KINDS {
            simulate(kind, 104 + seed, 120);
        }
    }
}
