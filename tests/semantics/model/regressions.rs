//! Failures that were found once, in as few steps as they take.

use crate::engine::tree::assert_same;
use crate::engine::{Kind, World};

#[test]
fn regression_a_file_is_replaced_by_a_directory_with_something_in_it() {
    for kind in [Kind::Plain, Kind::Exfat] {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("name", b"a file");
        engine.flush_all();
        engine.unlink("name");
        engine.mkdir("name");
        engine.put("name/inside", b"new");
        engine.flush_all();
        assert_same(&world.drive_tree(), &engine.expected_on_drive(), "replaced");
        world.check(&engine);
    }
}

#[test]
fn regression_a_directory_is_moved_away_and_made_anew_with_the_same_names() {
    for kind in [Kind::Plain, Kind::Exfat] {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.mkdir("d");
        engine.put("d/new", b"old");
        engine.put("d/moved", b"moved");
        engine.flush_all();
        engine.rename("d", "old");
        engine.mkdir("d");
        engine.put("d/new", b"new, and longer");
        engine.rename("old/moved", "d/moved");
        engine.flush_all();
        assert_same(
            &world.drive_tree(),
            &engine.expected_on_drive(),
            "made anew",
        );
        world.check(&engine);
    }
}

#[test]
fn regression_a_file_open_at_a_kill_is_counted_once_afterwards() {
    let world = World::new(Kind::Exfat);
    let engine = world.start(false);
    let handle = engine.open("f", crate::engine::script::WRITE);
    engine.write_at(handle, 0, b"some bytes");
    // Its row knows part of its size already.
    engine.fs.finish_pending().expect("commit");
    engine.die();
    let engine = world.start(true);
    world.check(&engine);
    engine.unlink("f");
    world.check(&engine);
}
