//! A flush that dies anywhere while names become local and local names travel: no file loses its
//! bytes, and after the next flush the drive has what travels and nothing else.

use std::sync::Arc;

use ferryfs::drive::faulty::Fault;
use ferryfs::plan::patterns::Patterns;

use super::{Case, calls};
use crate::engine::tree::Tree;
use crate::engine::{Engine, Kind, World};

fn set_patterns(engine: &Engine) {
    let lines = ["tmp/".to_owned(), "*.part".to_owned()];
    let patterns = Arc::new(Patterns::new(&lines).expect("patterns"));
    let set = engine.index.lock().set_local_patterns(patterns);
    set.expect("set");
}

/// What travels at the end.
const TRAVELS: [(&str, &[u8]); 5] = [
    ("back/old", b"was scratch"),
    ("film", b"another film"),
    ("kept", b"kept"),
    ("two", b"two names"),
    ("x", b"whole"),
];

/// What stays here.
const LOCAL: [(&str, &[u8]); 5] = [
    ("tmp/film", b"film"),
    ("tmp/dir/a", b"a"),
    ("tmp/dir/sub/b", b"b"),
    ("tmp/link", b"two names"),
    ("y.part", b"half"),
];

fn scene(kind: Kind) -> (World, Engine) {
    let world = World::new(kind);
    let engine = world.start(false);
    set_patterns(&engine);
    for dir in ["tmp", "tmp/back", "dir", "dir/sub"] {
        engine.mkdir(dir);
    }
    for (path, bytes) in [
        ("film", &b"film"[..]),
        ("kept", b"kept"),
        ("dir/a", b"a"),
        ("dir/sub/b", b"b"),
        ("tmp/back/old", b"was scratch"),
        ("x.part", b"whole"),
        ("two", b"two names"),
    ] {
        engine.put(path, bytes);
    }
    engine.flush_all();
    engine.rename("film", "tmp/film");
    engine.put("film", b"another film");
    engine.rename("dir", "tmp/dir");
    engine.rename("tmp/back", "back");
    engine.rename("x.part", "x");
    engine.link("two", "tmp/link");
    engine.put("y.part", b"half");
    engine.index.commit().expect("commit");
    (world, engine)
}

fn names(tree: &Tree) -> Vec<String> {
    let paths = tree.keys().map(ToString::to_string);
    paths
        .filter(|path| !path.is_empty() && path != "back")
        .collect()
}

fn check(world: &World, engine: &Engine) {
    engine.flusher.recover().expect("recover");
    world.check(engine);
    engine.trim();
    for (path, bytes) in TRAVELS.iter().chain(&LOCAL) {
        assert_eq!(engine.read(path), *bytes, "{path} in the mount");
    }
    engine.flush_all();
    engine.trim();
    let wanted: Vec<&str> = TRAVELS.iter().map(|(path, _)| *path).collect();
    assert_eq!(names(&world.drive_tree()), wanted);
    for (path, bytes) in TRAVELS {
        assert_eq!(world.on_drive(path).expect("on the drive"), bytes, "{path}");
    }
    for (path, bytes) in LOCAL {
        assert_eq!(engine.read(path), bytes, "{path} in the mount");
    }
    assert_eq!(engine.index.lock().held_and_apart().0.len(), 0);
    world.check(engine);
}

fn restart(world: &World, engine: Engine) -> Engine {
    engine.die();
    world.faulty.heal();
    let engine = world.start(true);
    set_patterns(&engine);
    engine
}

#[test]
fn local_names_survive_a_flush_that_dies_at_any_call_to_the_drive() {
    for (kind, step) in [(Kind::Exfat, 3), (Kind::Linux, 7)] {
        for n in calls(1, step) {
            let (stays_dead, takes_effect) = (n % 2 == 0, n % 3 == 0);
            let _case = Case(format!("{kind:?}, call {n}"));
            let (world, mut engine) = scene(kind);
            let at = world.faulty.calls() + n;
            world.faulty.arm(Fault {
                at,
                errno: libc::EIO,
                stays_dead,
                takes_effect,
            });
            let _ = engine.flush();
            let is_over = world.faulty.calls() < at;
            world.faulty.heal();
            if n % 4 == 0 {
                world.memory.crash_to_durable();
            }
            engine = restart(&world, engine);
            check(&world, &engine);
            if is_over {
                assert!(n > 30, "the flush had nothing to do");
                break;
            }
        }
    }
}

#[test]
fn local_names_survive_a_flush_that_dies_at_any_step_on_the_ssd() {
    for n in calls(1, 2) {
        let _case = Case(format!("step {n}"));
        let (world, engine) = scene(Kind::Exfat);
        let killer = world.kill_at(&engine, n);
        let _ = engine.flush();
        let struck = killer.has_struck();
        let engine = restart(&world, engine);
        check(&world, &engine);
        if !struck {
            assert!(n > 5, "no step was taken");
            break;
        }
    }
}
