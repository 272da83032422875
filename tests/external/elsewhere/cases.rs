//! One change at a time.

use ferryfs::core::{FileKind, Timestamp};
use ferryfs::drive::Backend;
use ferryfs::vfs::SetAttr;

use super::engine::script::{READ, rel};
use super::engine::{Engine, Kind, World, call};
use super::{KINDS, at_rest, make_dir, others, put, remove, rename, time};

/// A drive with a file `f` and a directory `d` with `d/g` and `d/e/h`, all of it known and in the
/// cache.
fn known(kind: Kind) -> (World, Engine) {
    let world = World::new(kind);
    let engine = world.start(false);
    engine.put("f", b"first");
    engine.mkdir("d");
    engine.put("d/g", b"in d");
    engine.mkdir("d/e");
    engine.put("d/e/h", b"in d/e");
    engine.flush_all();
    (world, engine)
}

fn chmod(engine: &Engine, path: &str, mode: u32) {
    let set = SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    call(|ctx| engine.fs.setattr(ctx, engine.ino(path), &set)).expect("chmod");
}

#[test]
fn what_appears_there_is_shown() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        put(&world, "new", b"new", 1);
        put(&world, "d/new", b"in d, too", 1);
        make_dir(&world, "tree");
        make_dir(&world, "tree/deep");
        put(&world, "tree/deep/leaf", b"leaf", 1);
        let changes = engine.refresh();
        assert_eq!((changes.new, changes.conflicts), (3, 0), "{changes:?}");
        assert_eq!(engine.read("new"), b"new");
        assert_eq!(engine.read("d/new"), b"in d, too");
        assert_eq!(engine.read("tree/deep/leaf"), b"leaf");
        at_rest(&world, &engine);
    }
}

#[test]
fn what_changes_there_is_read_and_keeps_its_inode_and_mode() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        chmod(&engine, "f", 0o751);
        engine.flush_all();
        let before = engine.find("f").expect("f");
        // Another size, and the same size with another time.
        for (n, bytes) in [&b"somebody else was here"[..], b"somebody else was HERE"]
            .into_iter()
            .enumerate()
        {
            put(&world, "f", bytes, n as i64);
            assert_eq!(engine.refresh().changed, 1);
            assert_eq!(engine.read("f"), bytes);
            let after = engine.find("f").expect("f");
            assert_eq!((after.ino, after.mode), (before.ino, before.mode));
            assert_eq!(after.mtime, time(n as i64));
            at_rest(&world, &engine);
        }
    }
}

#[test]
fn whoever_has_a_changed_file_open_sees_its_new_bytes() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        let handle = engine.open("f", READ);
        assert_eq!(engine.read_handle(handle, 5).expect("read"), b"first");
        put(&world, "f", b"and then", 1);
        engine.refresh();
        assert_eq!(engine.read_handle(handle, 8).expect("read"), b"and then");
        put(&world, "f", b"and then others", 2);
        engine.refresh();
        assert_eq!(
            engine.read_handle(handle, 15).expect("read"),
            b"and then others"
        );
        engine.close_handle(handle);
        at_rest(&world, &engine);
    }
}

#[test]
fn a_file_open_for_writing_that_nobody_has_written_yet_begins_with_their_bytes() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        let handle = engine.open("f", super::engine::script::WRITE);
        put(&world, "f", b"their line\n", 1);
        assert_eq!(engine.refresh().changed, 1);
        engine.write_at(handle, 11, b"our line\n");
        engine.close_handle(handle);
        assert_eq!(engine.read("f"), b"their line\nour line\n");
        assert_eq!(others(&world).len(), 0);
        at_rest(&world, &engine);
    }
}

#[test]
fn what_is_deleted_there_goes_but_for_whoever_has_it_open() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        let handle = engine.open("f", READ);
        remove(&world, "f");
        remove(&world, "d");
        let changes = engine.refresh();
        assert_eq!(changes.deleted, 5, "{changes:?}");
        assert!(engine.find("f").is_none() && engine.find("d").is_none());
        assert_eq!(engine.read_handle(handle, 5).expect("read"), b"first");
        engine.close_handle(handle);
        at_rest(&world, &engine);
        assert_eq!(world.drive_tree().len(), 0);
    }
}

#[test]
fn what_is_deleted_there_and_changed_here_comes_back_with_its_directory() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        engine.put("d/e/h", b"changed here");
        engine.put("f", b"changed as well");
        remove(&world, "d");
        remove(&world, "f");
        let changes = engine.refresh();
        assert_eq!((changes.deleted, changes.conflicts), (1, 0), "{changes:?}");
        assert!(engine.find("d/g").is_none(), "nobody has changed that here");
        engine.flush_all();
        assert_eq!(
            world.on_drive("d/e/h").as_deref(),
            Some(&b"changed here"[..])
        );
        assert_eq!(
            world.on_drive("f").as_deref(),
            Some(&b"changed as well"[..])
        );
        at_rest(&world, &engine);
    }
}

#[test]
fn what_is_renamed_there_keeps_its_inode_and_its_bytes_in_the_cache() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        let (f, g) = (engine.ino("f"), engine.ino("d/g"));
        rename(&world, "f", "d/renamed");
        make_dir(&world, "fresh");
        rename(&world, "d/g", "fresh/g");
        let changes = engine.refresh();
        assert_eq!((changes.moved, changes.deleted), (2, 0), "{changes:?}");
        assert_eq!((engine.ino("d/renamed"), engine.ino("fresh/g")), (f, g));
        assert!(engine.is_cached("d/renamed") && engine.is_cached("fresh/g"));
        assert!(engine.find("f").is_none() && engine.find("d/g").is_none());
        at_rest(&world, &engine);
    }
}

#[test]
fn a_directory_that_is_renamed_there_keeps_all_that_is_in_it() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        let (d, h) = (engine.ino("d"), engine.ino("d/e/h"));
        make_dir(&world, "above");
        rename(&world, "d", "above/moved");
        // And something happens in it besides.
        put(&world, "above/moved/g", b"changed after it was moved", 1);
        let changes = engine.refresh();
        assert_eq!((changes.moved, changes.deleted), (1, 0), "{changes:?}");
        assert_eq!(engine.ino("above/moved"), d);
        assert_eq!(engine.ino("above/moved/e/h"), h);
        assert!(engine.is_cached("above/moved/e/h"));
        assert_eq!(engine.read("above/moved/g"), b"changed after it was moved");
        at_rest(&world, &engine);
    }
}

#[test]
fn what_is_renamed_on_both_sides_keeps_our_name() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        rename(&world, "f", "theirs");
        engine.rename("f", "ours");
        rename(&world, "d", "their dir");
        engine.rename("d", "our dir");
        engine.refresh();
        assert_eq!(engine.read("ours"), b"first");
        assert_eq!(engine.read("our dir/e/h"), b"in d/e");
        assert!(engine.find("theirs").is_none() && engine.find("their dir").is_none());
        at_rest(&world, &engine);
        assert_eq!(world.on_drive("ours").as_deref(), Some(&b"first"[..]));
        assert_eq!(world.on_drive("theirs"), None);
    }
}

#[test]
fn directories_moved_into_each_other_on_the_two_sides_end_somewhere() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        engine.mkdir("x");
        engine.put("x/in", b"in x");
        engine.flush_all();
        rename(&world, "d", "x/d");
        engine.rename("x", "d/x");
        engine.refresh();
        at_rest(&world, &engine);
        let tree = engine.mount_tree();
        for bytes in [&b"in d"[..], b"in d/e", b"in x"] {
            let found = tree
                .values()
                .any(|seen| seen.bytes.as_ref().is_some_and(|found| &found[..] == bytes));
            assert!(found, "{} is lost", bytes.escape_ascii());
        }
    }
}

#[test]
fn a_file_replaced_by_a_directory_there_and_the_other_way_round_is_shown() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        remove(&world, "f");
        make_dir(&world, "f");
        put(&world, "f/inside", b"inside", 1);
        remove(&world, "d");
        put(&world, "d", b"a file now", 1);
        engine.refresh();
        assert_eq!(engine.read("f/inside"), b"inside");
        assert_eq!(engine.read("d"), b"a file now");
        at_rest(&world, &engine);
    }
}

#[test]
fn a_file_replaced_by_a_directory_there_and_changed_here_is_kept_beside_it() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        engine.put("f", b"changed here");
        engine.put("d/g", b"changed here, too");
        remove(&world, "f");
        make_dir(&world, "f");
        put(&world, "f/inside", b"inside", 1);
        remove(&world, "d");
        put(&world, "d", b"a file now", 1);
        assert_eq!(engine.refresh().conflicts, 2);
        at_rest(&world, &engine);
        assert_eq!(world.on_drive("f").as_deref(), Some(&b"changed here"[..]));
        assert_eq!(
            world.on_drive("d/g").as_deref(),
            Some(&b"changed here, too"[..])
        );
        let others = others(&world);
        assert_eq!(others.get("d").map(Vec::as_slice), Some(&b"a file now"[..]));
        assert!(
            others.values().any(|bytes| bytes == b"inside"),
            "{others:?}"
        );
    }
}

#[test]
fn a_name_in_another_case_there_is_a_rename() {
    let (world, engine) = known(Kind::Exfat);
    let (f, d) = (engine.ino("f"), engine.ino("d"));
    rename(&world, "f", "F");
    rename(&world, "d", "D");
    let changes = engine.refresh();
    assert_eq!((changes.moved, changes.deleted), (2, 0), "{changes:?}");
    assert_eq!((engine.ino("F"), engine.ino("D")), (f, d));
    assert_eq!(engine.read("D/e/h"), b"in d/e");
    at_rest(&world, &engine);
    assert!(world.drive_tree().contains_key(&rel("F")));
}

#[test]
fn what_is_removed_here_and_only_spelled_anew_there_is_removed() {
    let (world, engine) = known(Kind::Exfat);
    rename(&world, "d/g", "d/G");
    engine.unlink("d/g");
    engine.rename("d/e", "d/g");
    engine.refresh();
    at_rest(&world, &engine);
    assert_eq!(engine.read("d/g/h"), b"in d/e");
    assert_eq!(world.on_drive("d/g/h").as_deref(), Some(&b"in d/e"[..]));
    assert_eq!(
        world.drive_tree().len(),
        4,
        "{:?}",
        world.drive_tree().keys()
    );
}

#[test]
fn another_time_with_the_same_bytes_keeps_what_is_in_the_cache() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        put(&world, "f", b"first", 7);
        let changes = engine.refresh();
        assert!(changes.is_nothing(), "{changes:?}");
        assert!(engine.is_cached("f"));
        assert_eq!(engine.find("f").expect("f").mtime, time(7));
        // Changed here meanwhile, it is no conflict either.
        put(&world, "f", b"first", 8);
        engine.put("f", b"second");
        at_rest(&world, &engine);
        assert_eq!(others(&world).len(), 0);
    }
}

#[test]
fn one_of_several_names_that_gets_other_bytes_there_becomes_a_file_of_its_own() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        engine.link("f", "also f");
        engine.flush_all();
        put(&world, "also f", b"not f any more", 1);
        assert_eq!(engine.refresh().changed, 1);
        assert_eq!(engine.read("f"), b"first");
        assert_eq!(engine.read("also f"), b"not f any more");
        let (f, other) = (engine.find("f").expect("f"), engine.find("also f"));
        assert_eq!(f.nlink, 1);
        assert_ne!(f.ino, other.expect("also f").ino);
        at_rest(&world, &engine);
    }
}

#[test]
fn a_file_that_is_only_there_is_read_as_it_is_now_without_a_look() {
    for kind in KINDS {
        let mut world = World::new(kind);
        world.limits.max_bytes = 0;
        let engine = world.start(false);
        engine.put("film", b"short");
        engine.flush_all();
        engine.trim();
        assert!(!engine.is_cached("film"));
        put(&world, "film", b"much longer than it was", 1);
        let handle = engine.open("film", READ);
        let whole = engine.read_handle(handle, 23).expect("read");
        assert_eq!(whole, b"much longer than it was");
        assert_eq!(engine.find("film").expect("film").size, 23);
        engine.close_handle(handle);
        // Changed in place it begins with those bytes, not with a part of them.
        put(&world, "film", b"short again", 2);
        engine.edit("film", 0, b"S");
        assert_eq!(engine.read("film"), b"Short again");
        at_rest(&world, &engine);
        assert_eq!(others(&world).len(), 0);
    }
}

#[test]
fn a_link_that_appears_or_changes_there_is_shown() {
    let (world, engine) = known(Kind::Plain);
    world.memory.make_symlink(b"f", &rel("to")).expect("link");
    engine.refresh();
    let target = |engine: &Engine| engine.find("to").expect("to").target.expect("a target");
    assert_eq!(&*target(&engine), b"f");
    remove(&world, "to");
    world.memory.make_symlink(b"d", &rel("to")).expect("link");
    engine.refresh();
    assert_eq!(&*target(&engine), b"d");
    assert_eq!(engine.find("to").expect("to").kind(), FileKind::Symlink);
    assert!(engine.refresh().is_nothing());
}

#[test]
fn conflicts_are_counted_until_they_are_gone() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        let count = || engine.index.lock().count_conflicts().expect("count");
        assert_eq!(count(), 0);
        for (n, path) in ["f", "d/g"].into_iter().enumerate() {
            put(&world, path, b"theirs", n as i64);
            engine.put(path, b"ours, of course");
        }
        assert_eq!(engine.refresh().conflicts, 2);
        assert_eq!(count(), 2);
        at_rest(&world, &engine);
        let names = engine.names();
        let other = names
            .iter()
            .map(ToString::to_string)
            .find(|path| path.starts_with("d/g.sync-conflict-"));
        engine.unlink(&other.expect("a conflict of d/g"));
        assert_eq!(count(), 1);
        at_rest(&world, &engine);
    }
}

#[test]
fn three_machines_that_change_one_file_leave_three_versions() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        engine.put("f", b"ours");
        put(&world, "f", b"the second machine's", 1);
        assert_eq!(engine.refresh().conflicts, 1);
        // Before what is ours gets there a third comes by.
        put(&world, "f", b"and the third's", 2);
        at_rest(&world, &engine);
        let tree = engine.mount_tree();
        let all: Vec<&[u8]> = (tree.iter())
            .filter(|(path, _)| path.to_string().starts_with('f'))
            .filter_map(|(_, seen)| seen.bytes.as_ref().map(|bytes| &bytes[..]))
            .collect();
        assert!(all.contains(&&b"ours"[..]), "{all:?}");
        assert!(all.contains(&&b"and the third's"[..]), "{all:?}");
        // The third has overwritten the second's, which it had seen.
        assert_eq!(engine.read("f"), b"ours");
    }
}

#[test]
fn the_times_of_a_file_that_was_only_touched_here_do_not_hide_a_change_there() {
    for kind in KINDS {
        let (world, engine) = known(kind);
        engine.utimes("f", Timestamp(1_500_000_000_000_000_000));
        put(&world, "f", b"changed there", 1);
        assert_eq!(engine.refresh().changed, 1);
        assert_eq!(engine.read("f"), b"changed there");
        at_rest(&world, &engine);
    }
}

/// As in a store of packages or a backup: thousands of names of one file. What is done with them
/// takes a time that grows with their number, not with its square: that would be minutes here.
#[test]
fn a_file_with_thousands_of_names_is_carried_and_looked_at_name_by_name() {
    const NAMES: usize = 4_000;
    let limit = std::time::Duration::from_secs(120);
    for kind in KINDS {
        let begun = std::time::Instant::now();
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("pool", b"bytes");
        engine.mkdir("l");
        for n in 0..NAMES {
            engine.link("pool", &format!("l/{n}"));
        }
        engine.flush_all();
        engine.rename("l/5", "l/renamed");
        engine.flush_all();
        rename(&world, "l/7", "l/elsewhere");
        assert_eq!(engine.refresh().conflicts, 0);
        for n in 100..NAMES {
            engine.unlink(&format!("l/{n}"));
        }
        engine.flush_all();
        at_rest(&world, &engine);
        assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    }
}
