//! One thing that the drive refuses for ever: the n-th call of a flush, for every n, with each
//! errno, and from then on the same operation on the same path. Everything else works.
//!
//! The flush ends; nothing is lost; what it says to be on the drive is there, and the refused thing
//! is named, or the flush fails and the next one, when nothing is refused any more, carries
//! everything.

use std::collections::BTreeSet;

use ferryfs::core::RelPath;
use ferryfs::drive::faulty::Fault;
use ferryfs::flush::Report;
use ferryfs::format::layout;
use ferryfs::recovery::interrupted::recover_without_cache;

use super::scene::Scene;
use super::{Case, a_few_edits, calls, random_edits};
use crate::engine::Kind;
use crate::engine::check::assert_none;
use crate::engine::rng::Seed;
use crate::engine::tree::assert_same;

/// What a drive may refuse something with.
const ERRNOS: [i32; 11] = [
    libc::EPERM,
    libc::EACCES,
    libc::EXDEV,
    libc::EBUSY,
    libc::ETXTBSY,
    libc::EROFS,
    libc::EFBIG,
    libc::EINVAL,
    libc::ENAMETOOLONG,
    libc::EMLINK,
    libc::EIO,
];

/// Errors that say that the drive itself is gone or no longer to be trusted: then the flush fails
/// as a whole.
const DRIVE_IS_GONE: [i32; 2] = [libc::EROFS, libc::EIO];

/// Operations that change something under a name of the user's.
const CHANGES: [&str; 10] = [
    "mkdir",
    "rename",
    "remove",
    "rmdir",
    "link",
    "set time of",
    "set permissions of",
    "set owner of",
    "set attributes of",
    "symlink",
];

/// Whether everything of the cut is on the drive but what the report names, and what is in it.
fn is_as_told(scene: &Scene, report: &Report) {
    let named: BTreeSet<RelPath> = report
        .left_behind
        .iter()
        .filter_map(|(path, _)| RelPath::parse(path.as_bytes()).ok())
        .collect();
    let is_named = |path: &RelPath| {
        let mut at = Some(path.clone());
        while let Some(path) = at {
            if named.contains(&path) {
                return true;
            }
            at = path.split_last().map(|(dir, _)| dir);
        }
        // A directory that could not be moved, with what is in it.
        named.iter().any(|named| {
            let below = format!("{path}/");
            named.to_string().starts_with(&below)
        })
    };
    let drive = scene.world.drive_tree();
    for (path, node) in &scene.cut {
        let is_there = drive.get(path) == Some(node);
        assert!(
            is_there || is_named(path),
            "{path} is not named: {report:?}"
        );
    }
    if report.left_behind.is_empty() {
        // Another machine would finish its record once more.
        assert_none(&scene.world.left_of_batches(&scene.engine), "all of it");
        let mut drive = drive;
        drive.retain(|path, _| !path.to_string().contains(".sync-conflict-"));
        assert_same(&drive, &scene.cut, "all of it");
    }
}

/// What is checked of one case. `strict`: what is refused under a user's name after the commit is
/// no reason to fail.
fn refuse(scene: Scene, (n, errno): (u64, i32), strict: bool) -> bool {
    let faulty = &scene.world.faulty;
    let at = faulty.calls() + n;
    faulty.refuse_from(at, errno);
    let first = scene.engine.flush();
    let over = faulty.calls() < at;
    let what = faulty.refused();
    let _case = Case(format!("call {n}, {what:?}, errno {errno}: {first:?}"));
    if let Ok(report) = &first {
        is_as_told(&scene, report);
    }
    let is_users = what.as_ref().is_some_and(|(operation, path)| {
        CHANGES.contains(operation) && !layout::is_reserved(path) && !path.is_root()
    });
    if strict && is_users && !DRIVE_IS_GONE.contains(&errno) {
        let report = first.as_ref().expect("one refused name stops nothing else");
        is_as_told(&scene, report);
    }
    // Again while it is refused: it ends, and makes nothing worse.
    if let Ok(report) = &scene.engine.flush() {
        is_as_told(&scene, report);
    }
    let mut mount = scene.engine.mount_tree();
    // Nobody else has written. Only what cannot be looked at may be somebody's.
    if !is_users {
        mount.retain(|path, _| !path.to_string().contains(".sync-conflict-"));
    }
    assert_eq!(mount, scene.mount, "the mount");
    faulty.heal();
    scene.engine.flush_all();
    if what.is_some_and(|(_, path)| layout::is_reserved(&path)) {
        // What stands in our own directory and can never be looked at or moved may be somebody's
        // version: it is kept.
        let drive = scene.world.drive_tree();
        for (path, node) in &scene.cut {
            assert_eq!(drive.get(path), Some(node), "{path}");
        }
        scene.world.check(&scene.engine);
        return over;
    }
    assert_same(&scene.world.drive_tree(), &scene.cut, "when it is allowed");
    scene.recover_and_check();
    over
}

/// Every call; the errnos take turns.
fn refuse_every_call(kind: Kind, seed: u64, strict: bool) {
    refuse_every_call_in(seed, strict, || Scene::new(kind, seed, random_edits));
}

/// The same in each scene that is made.
pub(super) fn refuse_every_call_in(seed: u64, strict: bool, make: impl Fn() -> Scene) {
    let _seed = Seed(seed);
    for n in calls(1 + seed % 3, 3) {
        let mut over = false;
        for turn in 0..2 {
            let errno = ERRNOS[(n as usize * 2 + turn) % ERRNOS.len()];
            over |= refuse(make(), (n, errno), strict);
        }
        if over {
            assert!(n > 10, "the flush had nothing to do");
            return;
        }
    }
}

/// A sector that can never be read again under one name of the user's, whichever the flush meets it
/// at.
#[test]
fn a_bad_sector_under_one_name_keeps_only_that_name_from_the_drive() {
    for (kind, seed) in [(Kind::Plain, 7), (Kind::Exfat, 18), (Kind::Linux, 27)] {
        let _seed = Seed(seed);
        for n in calls(1 + seed % 3, 3) {
            if bad_sector(kind, seed, n) {
                assert!(n > 10, "the flush had nothing to do");
                break;
            }
        }
    }
}

fn bad_sector(kind: Kind, seed: u64, n: u64) -> bool {
    let scene = Scene::new(kind, seed, random_edits);
    let faulty = &scene.world.faulty;
    let at = faulty.calls() + n;
    faulty.refuse_from(at, libc::EIO);
    let first = scene.engine.flush();
    let over = faulty.calls() < at;
    let what = faulty.refused();
    let _case = Case(format!("call {n}, {what:?}: {first:?}"));
    let is_users = what.as_ref().is_some_and(|(operation, path)| {
        let touches = CHANGES.contains(operation) || ["open", "read", "stat"].contains(operation);
        touches && !layout::is_reserved(path) && !path.is_root()
    });
    if is_users {
        let report = first.as_ref().expect("one bad sector stops nothing else");
        is_as_told(&scene, report);
    }
    let mut mount = scene.engine.mount_tree();
    mount.retain(|path, _| !path.to_string().contains(".sync-conflict-"));
    // A version that is kept beside another gives its directory another time.
    if !what.is_some_and(|(_, path)| layout::is_reserved(&path)) {
        assert_eq!(mount, scene.mount, "the mount");
    }
    faulty.heal();
    scene.engine.flush_all();
    let drive = scene.world.drive_tree();
    for (path, node) in &scene.cut {
        assert_eq!(drive.get(path), Some(node), "{path}");
    }
    scene.world.check(&scene.engine);
    over
}

/// An error that comes once, also while the batch that is over is tidied away.
#[test]
fn after_an_error_the_next_flush_leaves_nothing_of_any_batch_on_the_drive() {
    for (kind, seed) in [(Kind::Plain, 31), (Kind::Exfat, 32), (Kind::Linux, 33)] {
        let _seed = Seed(seed);
        for n in calls(1 + seed % 3, 3) {
            let scene = Scene::new(kind, seed, random_edits);
            let failed = scene.flush_failing(n, false, false);
            let _case = Case(format!("call {n}"));
            scene.engine.flush_all();
            assert_none(
                &scene.world.left_of_batches(&scene.engine),
                "the next flush",
            );
            assert_same(&scene.world.drive_tree(), &scene.cut, "the next flush");
            if !failed {
                assert!(n > 10, "the flush had nothing to do");
                break;
            }
        }
    }
}

/// An error that comes after the effect of a call, in a flush that first finishes what was
/// interrupted: nothing is taken for refused that has been done.
#[test]
fn a_flush_that_says_that_all_is_done_is_right_though_a_call_failed_after_its_effect() {
    for (kind, seed) in [(Kind::Plain, 71), (Kind::Exfat, 72), (Kind::Linux, 73)] {
        let _seed = Seed(seed);
        let make = || Scene::evicted(kind, seed, a_few_edits);
        let has_record = |n: &u64| {
            let scene = make();
            scene.flush_failing(*n, true, false);
            scene
                .world
                .leftovers()
                .iter()
                .any(|it| it.ends_with(".rec"))
        };
        let committed = (1..).find(has_record).expect("a record");
        for n in calls(1, 3) {
            let _case = Case(format!("call {n}"));
            let scene = make();
            assert!(scene.flush_failing(committed, true, false));
            let faulty = &scene.world.faulty;
            let at = faulty.calls() + n;
            faulty.arm(Fault {
                takes_effect: true,
                ..Fault::at(at, libc::EIO)
            });
            let flushed = scene.engine.flush();
            let over = faulty.calls() < at;
            faulty.heal();
            // What cannot be told from another's version is kept twice.
            let drive = || {
                let mut drive = scene.world.drive_tree();
                drive.retain(|path, _| !path.to_string().contains(".sync-conflict-"));
                drive
            };
            if flushed.is_ok_and(|report| report.left_behind.is_empty()) {
                assert_same(&drive(), &scene.cut, "it says so");
            }
            scene.engine.flush_all();
            assert_same(&drive(), &scene.cut, "the next flush");
            if over {
                assert!(n > 10, "the flush had nothing to do");
                break;
            }
        }
    }
}

/// A batch is finished by a machine without the cache, and the drive refuses that one something
/// under a user's name. False if the recovery was over before.
fn refuse_elsewhere(kind: Kind, seed: u64, committed: u64, n: u64) -> bool {
    let scene = Scene::new(kind, seed, random_edits);
    assert!(scene.flush_failing(committed, true, false));
    let faulty = &scene.world.faulty;
    let at = faulty.calls() + n;
    faulty.refuse_from(at, libc::EPERM);
    let recovered = recover_without_cache(faulty);
    let over = faulty.calls() < at;
    let what = faulty.refused();
    faulty.heal();
    let is_users = what.as_ref().is_some_and(|(operation, path)| {
        CHANGES.contains(operation) && !layout::is_reserved(path) && !path.is_root()
    });
    let _case = Case(format!("call {n}, {what:?}: {recovered:?}"));
    if is_users {
        scene.engine.flusher.recover().expect("recover");
        assert_eq!(scene.engine.mount_tree(), scene.mount, "the mount");
        scene.engine.flush_all();
        assert_eq!(scene.engine.mount_tree(), scene.mount, "the mount");
        assert_same(&scene.world.drive_tree(), &scene.cut, "when it is allowed");
        // That machine has kept what it could not place.
        let mut left = scene.world.leftovers();
        left.retain(|path| !path.starts_with(".ferryfs/lost+found"));
        assert!(left.is_empty(), "{left:?}");
    }
    over
}

#[test]
fn what_is_refused_to_a_machine_without_the_cache_waits_in_the_cache() {
    for (kind, seed) in [
        (Kind::Plain, 41),
        (Kind::Plain, 43),
        (Kind::Exfat, 59),
        (Kind::Linux, 43),
        (Kind::Linux, 45),
    ] {
        refused_elsewhere(kind, seed);
    }
}

fn refused_elsewhere(kind: Kind, seed: u64) {
    let _seed = Seed(seed);
    let has_record = |n: &u64| {
        let scene = Scene::new(kind, seed, random_edits);
        scene.flush_failing(*n, true, false);
        let left = scene.world.leftovers();
        left.iter().any(|path| path.ends_with(".rec"))
    };
    // Some calls later the record is durable, and perhaps something is cleared.
    let committed = (1..).find(has_record).expect("a record") + 3;
    let calls = (1..).take_while(|n| !refuse_elsewhere(kind, seed, committed, *n));
    assert!(calls.count() > 10, "nothing was to be done");
}

#[test]
fn whatever_is_refused_for_ever_nothing_is_lost_and_all_follows_when_it_is_allowed() {
    refuse_every_call(Kind::Plain, 5, false);
    refuse_every_call(Kind::Exfat, 16, false);
    refuse_every_call(Kind::Linux, 25, false);
}

#[test]
fn one_name_that_is_refused_for_ever_is_named_and_stops_nothing_else_on_a_plain_drive() {
    refuse_every_call(Kind::Plain, 6, true);
}

#[test]
fn one_name_that_is_refused_for_ever_is_named_and_stops_nothing_else_on_exfat() {
    refuse_every_call(Kind::Exfat, 17, true);
}

#[test]
fn one_name_that_is_refused_for_ever_is_named_and_stops_nothing_else_on_a_linux_drive() {
    refuse_every_call(Kind::Linux, 26, true);
}
