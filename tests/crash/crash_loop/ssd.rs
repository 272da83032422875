//! A daemon that dies before its n-th step on the SSD, for every n: commits, objects made, written,
//! synced and removed, journals, in the middle of writing, flushing and evicting. The drive, too,
//! keeps everything or loses what was not synced.
//!
//! Whatever had been answered before is there afterwards; what was not is done, or not, or half
//! done as a writer that was killed leaves it; the drive is the tree of a cut; and no object is
//! without a row or the other way round.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferryfs::core::RelPath;
use ferryfs::drive::memory::Crash;
use ferryfs::vfs::{CacheLimits, RenameMode};

use super::Case;
use crate::engine::check::{assert_none, check_drive};
use crate::engine::tree::{Seen, Tree, assert_same};
use crate::engine::{Engine, Kind, ROOMY, World};

/// Names and bytes of the mount.
type Names = BTreeMap<RelPath, Option<Arc<Vec<u8>>>>;

fn names(seen: BTreeMap<RelPath, Seen>) -> Names {
    let names = seen.into_iter();
    names.map(|(path, seen)| (path, seen.bytes)).collect()
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Put(&'static str, &'static [u8]),
    Edit(&'static str, &'static [u8]),
    Truncate(&'static str, u64),
    Rename(&'static str, &'static str),
    Exchange(&'static str, &'static str),
    Link(&'static str, &'static str),
    Unlink(&'static str),
    MakeDir(&'static str),
    Flush,
    Trim,
    Fsync(&'static str, &'static [u8]),
}

use Step::{Edit, Exchange, Flush, Fsync, Link, MakeDir, Put, Rename, Trim, Truncate, Unlink};

/// What is done in peace, and is on the drive and out of the cache.
const BEFORE: [Step; 9] = [
    MakeDir("d"),
    MakeDir("d/in"),
    Put("d/a", b"first a"),
    Put("d/in/b", b"first b, longer"),
    Put("c", b"first c"),
    Put("gone", b"to be removed"),
    Put("x", b"x of the exchange"),
    Flush,
    Trim,
];

/// What the daemon dies in.
const SCRIPT: [Step; 19] = [
    Put("c", b"second c"),
    Edit("d/a", b"FIRST"),
    Put("new", b"made and carried"),
    Rename("d/in", "moved"),
    Unlink("gone"),
    Exchange("x", "new"),
    Link("c", "d/link"),
    Flush,
    Trim,
    Edit("moved/b", b"brought back, then changed"),
    Truncate("c", 3),
    Put("d/link", b""),
    Rename("new", "x"),
    Fsync("synced", b"fsynced"),
    Flush,
    Trim,
    Rename("synced", "Y"),
    Flush,
    Trim,
];

/// Takes one step; an error as text.
fn take(engine: &Engine, step: Step) -> Result<(), String> {
    let done = match step {
        Put(path, bytes) => engine.try_put(path, bytes, false),
        Fsync(path, bytes) => engine.try_put(path, bytes, true),
        Edit(path, bytes) => engine.try_edit(path, 0, bytes),
        Truncate(path, size) => engine.try_truncate(path, size),
        Rename(from, to) => engine.rename_with(from, to, RenameMode::Replace),
        Exchange(from, to) => engine.rename_with(from, to, RenameMode::Exchange),
        Link(from, to) => engine.try_link(from, to),
        Unlink(path) => engine.try_remove(path, false),
        MakeDir(path) => engine.try_make(path, None),
        Trim => engine.fs.trim(),
        Flush => {
            let report = engine.flush().map_err(|error| error.to_string())?;
            assert_eq!(report.left_behind, []);
            return Ok(());
        }
    };
    done.map_err(|error| error.to_string())
}

/// What the mount may be if `step` was not answered: as before, as after, or half written.
fn allowed(step: Step, before: &Names, after: &Names) -> Vec<Names> {
    let mut all = vec![before.clone(), after.clone()];
    if let Put(path, _) | Fsync(path, _) = step {
        let path = RelPath::parse(path.as_bytes()).expect("a path");
        let mut emptied = before.clone();
        // Under all its names.
        let old = before.get(&path).cloned();
        if let Some(old) = old {
            for bytes in emptied.values_mut().filter(|bytes| **bytes == old) {
                *bytes = Some(Arc::default());
            }
        }
        emptied.insert(path, Some(Arc::default()));
        all.push(emptied);
    }
    all
}

fn world(kind: Kind) -> (World, Engine) {
    let mut world = World::new(kind);
    world.may_set_aside = true;
    world.limits = CacheLimits {
        max_bytes: 0,
        ..ROOMY
    };
    let engine = world.start(false);
    for step in BEFORE {
        take(&engine, step).expect("in peace");
    }
    (world, engine)
}

/// The mount after each step, the drive's trees, from a run in which nobody dies.
struct Peace {
    mounts: Vec<Names>,
    cuts: Vec<Tree>,
}

impl Peace {
    fn new(kind: Kind) -> Peace {
        let (world, engine) = world(kind);
        let mut peace = Peace {
            mounts: vec![names(engine.mount_tree())],
            cuts: vec![world.drive_tree()],
        };
        for step in SCRIPT {
            take(&engine, step).expect("in peace");
            peace.mounts.push(names(engine.mount_tree()));
            if matches!(step, Flush) {
                peace.cuts.push(world.drive_tree());
            }
        }
        peace
    }
}

/// Bytes and names only: times depend on how often the clock was looked at.
fn timeless(tree: &Tree) -> Tree {
    use ferryfs::drive::memory::MemNode;
    let mut tree = tree.clone();
    for node in tree.values_mut() {
        if let MemNode::File { modified, .. } = node {
            *modified = ferryfs::core::Timestamp(0);
        }
    }
    tree
}

/// Dies before step `n`; true if there were as many.
fn die_at(kind: Kind, n: u64, crash: Option<Crash>, peace: &Peace) -> bool {
    let (world, engine) = world(kind);
    let killer = world.kill_at(&engine, n);
    let stopped = (0..SCRIPT.len()).find(|at| take(&engine, SCRIPT[*at]).is_err());
    let struck = killer.has_struck();
    let at = stopped.unwrap_or(SCRIPT.len());
    let step = SCRIPT.get(at);
    let _case = Case(format!(
        "step {n} {:?}, in {step:?}, {crash:?}",
        killer.taken.lock().last()
    ));
    engine.die();
    world.faulty.heal();
    if let Some(crash) = crash {
        world.memory.crash(crash);
    }
    let engine = world.start(true);
    engine.flusher.recover().expect("recover");
    let drive = world.drive_tree();
    let cuts: Vec<Tree> = peace.cuts.iter().map(timeless).collect();
    let cuts: Vec<(&str, &Tree)> = cuts.iter().map(|cut| ("one of the cuts", cut)).collect();
    assert_none(&check_drive(&timeless(&drive), &cuts, false), "recovered");
    world.check(&engine);
    let mount = names(engine.mount_tree());
    let wanted = match step {
        Some(step) => allowed(*step, &peace.mounts[at], &peace.mounts[at + 1]),
        None => vec![peace.mounts[at].clone()],
    };
    assert!(
        wanted.contains(&mount),
        "the mount is {mount:#?}, not one of {wanted:#?}"
    );
    engine.flusher.recover().expect("recover again");
    assert_same(&world.drive_tree(), &drive, "recovered again");
    engine.die();
    let engine = world.start(true);
    engine.flusher.recover().expect("recover once more");
    assert_same(&world.drive_tree(), &drive, "started again");
    assert_eq!(names(engine.mount_tree()), mount, "started again");
    engine.flush_all();
    assert_same(
        &world.drive_tree(),
        &engine.expected_on_drive(),
        "the next flush",
    );
    assert_none(&world.left_of_batches(&engine), "the next flush");
    world.check(&engine);
    assert_eq!(names(engine.mount_tree()), mount, "the next flush");
    struck
}

fn die_at_every_step(kind: Kind, crash: impl Fn(u64) -> Option<Crash>) {
    let peace = Peace::new(kind);
    let steps = (1..).take_while(|n| die_at(kind, *n, crash(*n), &peace));
    let steps = steps.count();
    println!("{kind:?}: died before each of {steps} steps on the SSD");
    assert!(steps > 60, "only {steps} steps: is the watch still asked?");
}

#[test]
fn a_daemon_that_dies_before_any_step_on_the_ssd_loses_nothing() {
    die_at_every_step(Kind::Plain, |_| None);
}

#[test]
fn a_daemon_that_dies_before_any_step_on_the_ssd_with_the_drive_yanked_loses_nothing() {
    die_at_every_step(Kind::Exfat, |n| (n % 3 != 0).then_some(Crash::LoseAll));
}
