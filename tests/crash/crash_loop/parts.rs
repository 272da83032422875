//! What is too much for one batch goes in several, each of them whole: whatever their size, in the
//! end the drive is the mount; and what fits into none is named, and keeps nothing else back.

use ferryfs::core::{Ino, MAX_DEPTH, Name};
use ferryfs::drive::faulty::Fault;
use ferryfs::vfs::{FsError, NewNode, RenameMode, SetXattr};

use super::Case;
use crate::engine::check::assert_none;
use crate::engine::mirror::assert_mirrored;
use crate::engine::rng::{Rng, Seed};
use crate::engine::tree::assert_same;
use crate::engine::{Engine, Kind, World, call, grow};

/// More than any batch here takes.
const AMPLE: u64 = 1 << 30;

fn is_as_it_must_be(world: &World, engine: &Engine) {
    assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "the drive is the mount",
    );
    assert_mirrored(world, engine);
    assert_none(&world.left_of_batches(engine), "after it");
    world.check(engine);
}

#[test]
fn what_one_batch_cannot_hold_is_carried_in_several() {
    let mut in_parts = 0;
    for seed in 0..15 {
        let _seed = Seed(seed);
        let mut rng = Rng::new(seed);
        let kind = [Kind::Plain, Kind::Linux, Kind::Exfat][seed as usize % 3];
        let world = World::new(kind);
        let engine = world.start(false);
        for round in 0..4 {
            let _case = Case(format!("round {round} on {kind:?}"));
            grow::edit(&engine, &mut rng, 25);
            let first = world.memory.tree();
            engine.flusher.limit_batches(600 + rng.below(6000) as u64);
            let left = engine.flush().expect("flush").left_behind;
            world.check(&engine);
            assert_mirrored(&world, &engine);
            in_parts += usize::from(left.is_empty() && world.memory.tree() != first);
            engine.flusher.limit_batches(AMPLE);
            engine.flush_all();
            is_as_it_must_be(&world, &engine);
        }
    }
    assert!(in_parts > 10, "{in_parts} flushes were carried in parts");
}

#[test]
fn a_flush_in_parts_that_fails_anywhere_is_taken_up_again() {
    for kind in [Kind::Linux, Kind::Exfat] {
        for n in (1..160).step_by(13) {
            let _case = Case(format!("call {n} on {kind:?}"));
            let mut rng = Rng::new(n);
            let world = World::new(kind);
            let engine = world.start(false);
            grow::edit(&engine, &mut rng, 20);
            engine.flush_all();
            grow::edit(&engine, &mut rng, 20);
            engine.index.commit().expect("commit");
            engine.flusher.limit_batches(5000);
            world.faulty.arm(Fault {
                at: world.faulty.calls() + n,
                errno: libc::EIO,
                stays_dead: true,
                takes_effect: n % 2 == 0,
            });
            let _ = engine.flush();
            world.faulty.heal();
            world.memory.crash_to_durable();
            let mount = engine.mount_tree();
            engine.die();
            let engine = world.start(true);
            engine.flusher.recover().expect("recover");
            world.check(&engine);
            engine.flusher.limit_batches(AMPLE);
            engine.flush_all();
            assert_eq!(engine.mount_tree(), mount);
            is_as_it_must_be(&world, &engine);
        }
    }
}

fn set(engine: &Engine, path: &str, attribute: usize, bytes: usize) -> Result<(), FsError> {
    let name = format!("user.{attribute}");
    let value = vec![b'x'; bytes];
    (engine.fs).setxattr(engine.ino(path), name.as_bytes(), &value, SetXattr::Any)
}

#[test]
fn the_attributes_of_a_file_have_a_bound_and_one_that_fits_into_no_batch_is_left_alone() {
    for kind in [Kind::Linux, Kind::Exfat] {
        let world = World::new(kind);
        let engine = world.start(false);
        engine.put("heavy", b"heavy");
        for attribute in 0..15 {
            set(&engine, "heavy", attribute, 65_536).expect("a value");
        }
        assert_eq!(
            set(&engine, "heavy", 16, 65_536).unwrap_err().errno(),
            libc::ENOSPC
        );
        set(&engine, "heavy", 3, 10).expect("a smaller value in the place of one");
        set(&engine, "heavy", 16, 65_536).expect("there is room for it now");
        engine.put("light", b"light");
        engine.flusher.limit_batches(1 << 20);
        let report = engine.flush().expect("flush");
        let left: Vec<&str> = report
            .left_behind
            .iter()
            .map(|(path, _)| &path[..])
            .collect();
        assert_eq!(left, ["heavy"]);
        let names: Vec<String> = world.drive_tree().keys().map(ToString::to_string).collect();
        assert_eq!(names, ["light"]);
        engine.flusher.limit_batches(AMPLE);
        engine.flush_all();
        is_as_it_must_be(&world, &engine);
    }
}

fn make_dir(engine: &Engine, parent: Ino, name: &str) -> Result<Ino, FsError> {
    let node = NewNode {
        mode: libc::S_IFDIR | 0o755,
        rdev: 0,
        target: None,
    };
    let name = Name::new(name.as_bytes()).expect("a name");
    let made = call(|ctx| engine.fs.make_node(ctx, parent, &name, node.clone()));
    made.map(|inode| inode.ino)
}

/// Directories one in the other, `levels` of them.
fn chain(engine: &Engine, from: Ino, levels: usize) -> Vec<Ino> {
    let mut chain = vec![from];
    for _ in 0..levels {
        let last = *chain.last().expect("one at least");
        chain.push(make_dir(engine, last, "d").expect("mkdir"));
    }
    chain
}

fn rename(engine: &Engine, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> i32 {
    let name = |text: &str| Name::new(text.as_bytes()).expect("a name");
    let (old, new) = (name(from.1), name(to.1));
    let done = call(|ctx| (engine.fs).rename(ctx, (from.0, &old), (to.0, &new), mode));
    done.map_or_else(|error| error.errno(), |()| 0)
}

#[test]
fn directories_are_as_deep_as_the_bound_and_no_deeper() {
    let world = World::new(Kind::Linux);
    let engine = world.start(false);
    let deep = chain(&engine, Ino::ROOT, MAX_DEPTH);
    let deepest = deep[MAX_DEPTH];
    let refused = make_dir(&engine, deepest, "d").unwrap_err();
    assert_eq!(refused.errno(), libc::ENAMETOOLONG);
    // What is moved counts with all that is below it.
    let side = make_dir(&engine, Ino::ROOT, "side").expect("mkdir");
    let tall = make_dir(&engine, side, "tall").expect("mkdir");
    chain(&engine, tall, 100);
    let at = |depth: usize| (deep[depth], "moved");
    let mode = RenameMode::NoReplace;
    assert_eq!(
        rename(&engine, (side, "tall"), at(MAX_DEPTH - 100), mode),
        libc::ENAMETOOLONG
    );
    assert_eq!(
        rename(&engine, (side, "tall"), at(MAX_DEPTH - 101), mode),
        0
    );
    let exchanged = rename(
        &engine,
        (Ino::ROOT, "side"),
        (deep[MAX_DEPTH - 101], "moved"),
        RenameMode::Exchange,
    );
    assert_eq!(exchanged, 0);
    // It is up again, and may be moved down to where it was, but not lower.
    make_dir(&engine, Ino::ROOT, "lower").expect("mkdir");
    let lower = (deep[MAX_DEPTH - 100], "moved");
    assert_eq!(
        rename(&engine, (Ino::ROOT, "side"), lower, mode),
        libc::ENAMETOOLONG
    );
    // To a level as deep, or less deep, everything can be moved.
    assert_eq!(rename(&engine, (deep[1], "d"), (Ino::ROOT, "up"), mode), 0);
}

#[test]
fn a_tall_tree_is_moved_and_removed_as_it_was_made() {
    let world = World::new(Kind::Linux);
    let engine = world.start(false);
    let deep = chain(&engine, Ino::ROOT, 150);
    engine.flush_all();
    let mode = RenameMode::NoReplace;
    assert_eq!(rename(&engine, (deep[1], "d"), (Ino::ROOT, "up"), mode), 0);
    assert_eq!(
        rename(&engine, (deep[70], "d"), (deep[1], "aside"), mode),
        0
    );
    engine.flusher.limit_batches(40_000);
    engine.flush_all();
    is_as_it_must_be(&world, &engine);
    for dir in deep[71..150].iter().rev() {
        let name = Name::new(b"d").expect("a name");
        call(|ctx| engine.fs.rmdir(ctx, *dir, &name)).expect("rmdir");
    }
    engine.flush_all();
    is_as_it_must_be(&world, &engine);
}
