//! A directory that is moved between two file systems inside the drive, by a flush that is cut
//! short anywhere.
//!
//! It is copied and then removed, in several batches, so that between them the drive has the tree
//! of no cut. But the mount never changes, what it shows can always be read, also of what only the
//! drive has, and the next flush carries everything and leaves nothing behind.

use std::collections::BTreeMap;

use ferryfs::core::RelPath;
use ferryfs::drive::faulty::Fault;
use ferryfs::error::FlushError;
use ferryfs::recovery::interrupted::recover_without_cache;
use ferryfs::vfs::CacheLimits;

use super::{AFTER, After, Case, calls};
use crate::engine::check::{Finding, assert_none};
use crate::engine::script::rel;
use crate::engine::tree::{Seen, Tree, assert_same, user_part};
use crate::engine::{Engine, Kind, ROOMY, World};

/// A world in which what is in `media` is on another file system than the rest, and a directory
/// was moved across. Only the drive has its files.
struct Moved {
    world: World,
    engine: Engine,
    cut: Tree,
    mount: BTreeMap<RelPath, Seen>,
}

impl Moved {
    fn new(kind: Kind, (from, to): (&str, &str)) -> Moved {
        let mut world = World::new(kind);
        world.faulty.separate(rel("media"));
        world.limits = CacheLimits {
            max_bytes: 0,
            ..ROOMY
        };
        let engine = world.start(false);
        for dir in [
            "media",
            from,
            &format!("{from}/sub"),
            &format!("{from}/sub/empty"),
        ] {
            engine.mkdir(dir);
        }
        for file in ["gone", "kept", "edited", "sub/deep", "sub/away"] {
            engine.put(
                &format!("{from}/{file}"),
                format!("{file} of old").as_bytes(),
            );
        }
        if kind == Kind::Linux {
            engine.link(&format!("{from}/kept"), &format!("{from}/sub/also"));
        }
        engine.flush_all();
        engine.trim();
        engine.rename(from, to);
        engine.put(&format!("{to}/new"), b"new");
        engine.put(&format!("{to}/edited"), b"edited, and longer");
        engine.unlink(&format!("{to}/gone"));
        engine.rename(&format!("{to}/sub/away"), "away");
        engine.mkdir(from);
        engine.put(&format!("{from}/kept"), b"another one");
        engine.index.commit().expect("commit");
        Moved {
            cut: engine.expected_on_drive(),
            mount: engine.mount_tree(),
            world,
            engine,
        }
    }

    /// Stops the flush at its call number `n`; false if it was over before.
    fn stop(&self, n: u64, stays_dead: bool, takes_effect: bool) -> bool {
        let at = self.world.faulty.calls() + n;
        self.world.faulty.arm(Fault {
            stays_dead,
            takes_effect,
            ..Fault::at(at, libc::EIO)
        });
        let _ = self.engine.flush();
        let failed = self.world.faulty.calls() >= at;
        self.world.faulty.heal();
        failed
    }

    fn strike(mut self, after: After) -> Moved {
        use After::{Death, DeathAndLoss, Elsewhere, ElsewhereAfterLoss, Loss};
        if matches!(after, Loss | DeathAndLoss | ElsewhereAfterLoss) {
            self.world.memory.crash_to_durable();
        }
        if matches!(after, Elsewhere | ElsewhereAfterLoss) {
            for _ in 0..2 {
                // What was staged for a refused name may be gone by the end of the batch.
                match recover_without_cache(&self.world.faulty) {
                    Ok(_) | Err(FlushError::Unfinished { .. }) => {}
                    Err(error) => panic!("recover without the cache: {error}"),
                }
            }
        }
        if matches!(after, Death | DeathAndLoss | ElsewhereAfterLoss) {
            self.engine.die();
            self.engine = self.world.start(true);
        }
        self
    }

    fn recover_and_check(&self) {
        for turn in ["recovered", "recovered again"] {
            self.engine.flusher.recover().expect("recover");
            self.world.check(&self.engine);
            assert_eq!(self.engine.mount_tree(), self.mount, "{turn}");
        }
        self.carries_all();
    }

    fn carries_all(&self) {
        self.engine.flush_all();
        assert_same(&self.world.drive_tree(), &self.cut, "the next flush");
        let durable = user_part(self.world.memory.durable_tree());
        assert_same(
            &self.world.as_mounted(durable),
            &self.cut,
            "what is durable",
        );
        let left = self.world.left_of_batches(&self.engine).into_iter();
        // What another machine could not place it keeps.
        let left: Vec<Finding> = left.filter(|it| !is_kept(it)).collect();
        assert_none(&left, "after it");
        self.world.check(&self.engine);
        assert_eq!(
            self.engine.mount_tree(),
            self.mount,
            "the mount has changed"
        );
        // Nothing waits, and none of its names is looked for again.
        assert_eq!(self.engine.flush_all().batch, None);
    }
}

fn is_kept(left: &Finding) -> bool {
    matches!(left, Finding::Leftover { path } if path.starts_with(".ferryfs/lost+found"))
}

const WAYS: [(&str, &str); 2] = [("media/dir", "dir"), ("dir", "media/dir")];

#[test]
fn a_directory_that_cannot_be_moved_is_copied_and_the_old_one_removed() {
    for kind in [Kind::Plain, Kind::Linux, Kind::Exfat] {
        for way in WAYS {
            let _case = Case(format!("{kind:?}, {way:?}"));
            Moved::new(kind, way).carries_all();
        }
    }
}

/// Each call fails in one of the ways; with what happens afterwards they take turns.
fn stopped_anywhere(kind: Kind, way: (&str, &str)) {
    let faults = [(false, false), (true, true), (true, false), (false, true)];
    for n in calls(1, 3) {
        let number = n as usize;
        let (stays_dead, takes_effect) = faults[number % faults.len()];
        let after = AFTER[(number + number / faults.len()) % AFTER.len()];
        let _case = Case(format!(
            "{way:?}, call {n}, dead {stays_dead}, effect {takes_effect}, {after:?}"
        ));
        let moved = Moved::new(kind, way);
        let failed = moved.stop(n, stays_dead, takes_effect);
        moved.strike(after).recover_and_check();
        if !failed {
            assert!(n > 50, "the flush had nothing to do");
            return;
        }
    }
}

#[test]
fn a_flush_that_copies_a_directory_and_fails_anywhere_loses_nothing_on_a_linux_drive() {
    stopped_anywhere(Kind::Linux, WAYS[0]);
}

#[test]
fn a_flush_that_copies_a_directory_and_fails_anywhere_loses_nothing_on_a_plain_drive() {
    stopped_anywhere(Kind::Plain, WAYS[1]);
}

/// The daemon dies before any of its steps on the SSD, between the batches too.
#[test]
fn a_daemon_that_dies_anywhere_while_it_copies_a_directory_loses_nothing() {
    for n in calls(1, 3) {
        let _case = Case(format!("step {n}"));
        let mut moved = Moved::new(Kind::Linux, WAYS[0]);
        let killer = moved.world.kill_at(&moved.engine, n);
        let _ = moved.engine.flush();
        let is_over = !killer.has_struck();
        moved.world.faulty.heal();
        moved.engine.die();
        moved.engine = moved.world.start(true);
        moved.recover_and_check();
        if is_over {
            return;
        }
    }
}

/// What is refused for ever in the copy leaves the directory where it was.
#[test]
fn a_copy_that_is_refused_in_part_is_removed_and_nothing_is_lost() {
    // Every other call is refused with one of the errors, which take turns.
    let errnos = [libc::ENOSPC, libc::EACCES, libc::EPERM];
    for n in (1..).step_by(2) {
        let errno = errnos[n as usize % errnos.len()];
        let moved = Moved::new(Kind::Linux, WAYS[1]);
        let at = moved.world.faulty.calls() + n;
        moved.world.faulty.refuse_from(at, errno);
        let _ = moved.engine.flush();
        let what = moved.world.faulty.refused();
        let _case = Case(format!("call {n}, {what:?}, errno {errno}"));
        let is_over = moved.world.faulty.calls() < at;
        moved.world.faulty.heal();
        moved.engine.flush_all();
        let mut mount = moved.engine.mount_tree();
        mount.retain(|path, _| !path.to_string().contains(".sync-conflict-"));
        assert_eq!(mount, moved.mount, "the mount");
        let drive = moved.world.drive_tree();
        for (path, node) in &moved.cut {
            assert_eq!(drive.get(path), Some(node), "{path}");
        }
        moved.world.check(&moved.engine);
        if is_over {
            return;
        }
    }
}
