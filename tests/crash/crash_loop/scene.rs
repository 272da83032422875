//! A world with something on the drive and something else in the mount, and what may become of it.

use std::collections::{BTreeMap, BTreeSet};

use ferryfs::core::RelPath;
use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::MemNode;
use ferryfs::recovery::interrupted::recover_without_cache;
use ferryfs::vfs::CacheLimits;

use super::After;
use crate::engine::check::{Finding, assert_none, check_drive};
use crate::engine::mirror::assert_mirrored;
use crate::engine::rng::Rng;
use crate::engine::tree::{Seen, Tree, assert_same, user_part};
use crate::engine::{Engine, Kind, ROOMY, World, grow};

/// A world with something on the drive and something else in the mount.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) engine: Engine,
    pub(crate) before: Tree,
    pub(crate) cut: Tree,
    pub(crate) mount: BTreeMap<RelPath, Seen>,
    /// Files that are patched: until recovery they may be neither version.
    pub(crate) patched: BTreeSet<RelPath>,
}

impl Scene {
    pub(crate) fn new(kind: Kind, seed: u64, prepare: impl Fn(&Engine, &mut Rng)) -> Scene {
        Scene::on(World::new(kind), seed, prepare)
    }

    /// One in which the cache has nothing that is on the drive as well.
    pub(crate) fn evicted(kind: Kind, seed: u64, prepare: impl Fn(&Engine, &mut Rng)) -> Scene {
        let mut world = World::new(kind);
        world.limits = CacheLimits {
            max_bytes: 0,
            ..ROOMY
        };
        Scene::on(world, seed, prepare)
    }

    pub(crate) fn on(world: World, seed: u64, prepare: impl Fn(&Engine, &mut Rng)) -> Scene {
        let mut rng = Rng::new(seed);
        let engine = world.start(false);
        grow::edit(&engine, &mut rng, 14);
        engine.flush_all();
        engine.trim();
        let before = world.drive_tree();
        prepare(&engine, &mut rng);
        // A change of attributes alone may be lost with the daemon until the next commit.
        engine.index.commit().expect("commit");
        let cut = engine.expected_on_drive();
        let mount = engine.mount_tree();
        Scene {
            world,
            engine,
            before,
            cut,
            mount,
            patched: BTreeSet::new(),
        }
    }

    /// A flush whose call number `n` fails. False if it was over before.
    pub(crate) fn flush_failing(&self, n: u64, stays_dead: bool, takes_effect: bool) -> bool {
        let at = self.world.faulty.calls() + n;
        self.world.faulty.arm(Fault {
            at,
            errno: libc::EIO,
            stays_dead,
            takes_effect,
        });
        // Some failures are none, such as that of tidying up.
        let _ = self.engine.flush();
        let failed = self.world.faulty.calls() >= at;
        self.world.faulty.heal();
        failed
    }

    pub(crate) fn strike(mut self, after: After) -> Scene {
        use After::{Death, DeathAndLoss, Elsewhere, ElsewhereAfterLoss, Loss};
        assert_none(&self.drive_findings(true), "stopped");
        if matches!(after, Loss | DeathAndLoss | ElsewhereAfterLoss) {
            self.world.memory.crash_to_durable();
            assert_none(&self.drive_findings(true), "stopped and lost");
        }
        if matches!(after, Elsewhere | ElsewhereAfterLoss) {
            recover_without_cache(&self.world.memory).expect("recover without the cache");
            recover_without_cache(&self.world.memory).expect("and again");
            self.is_one_cut("recovered without the cache");
        }
        if matches!(after, Death | DeathAndLoss | ElsewhereAfterLoss) {
            self.engine.die();
            self.engine = self.world.start(true);
        }
        self
    }

    /// What of the drive is of no cut; with `parts` it may be between the two.
    pub(crate) fn drive_findings(&self, parts: bool) -> Vec<Finding> {
        let cuts = [("the state before", &self.before), ("the cut", &self.cut)];
        let mut drive = self.world.drive_tree();
        drive.retain(|path, _| !parts || !self.patched.contains(path));
        check_drive(&drive, &cuts, parts)
    }

    /// Versions that are no file of either tree.
    pub(crate) fn version_findings(&self) -> Vec<Finding> {
        let kept = self.world.kept_versions().into_iter();
        let is_known = |now: &[u8]| {
            let files = self.before.values().chain(self.cut.values());
            let mut files = files.filter_map(|node| match node {
                MemNode::File { bytes, .. } => Some(bytes),
                _ => None,
            });
            files.any(|bytes| bytes[..] == *now)
        };
        kept.filter(|(_, _, bytes)| !is_known(bytes))
            .map(|(_, path, bytes)| Finding::Torn {
                path,
                now: format!("a version of {} bytes", bytes.len()),
            })
            .collect()
    }

    pub(crate) fn is_one_cut(&self, what: &str) {
        assert_none(&self.drive_findings(false), what);
    }

    pub(crate) fn recover_and_check(&self) {
        self.engine.flusher.recover().expect("recover");
        self.is_one_cut("recovered");
        assert_none(&self.version_findings(), "versions");
        self.engine.flusher.recover().expect("recover again");
        self.is_one_cut("recovered twice");
        assert_mirrored(&self.world, &self.engine);
        self.world.check(&self.engine);
        assert_eq!(
            self.engine.mount_tree(),
            self.mount,
            "the mount has changed"
        );
        self.engine.flush_all();
        assert_same(&self.world.drive_tree(), &self.cut, "the next flush");
        assert_mirrored(&self.world, &self.engine);
        assert_same(
            &(self.world).as_mounted(user_part(self.world.memory.durable_tree())),
            &self.cut,
            "what is durable after it",
        );
        assert_none(&self.world.left_of_batches(&self.engine), "after it");
        assert_none(&self.version_findings(), "versions after it");
        self.world.check(&self.engine);
        assert_eq!(
            self.engine.mount_tree(),
            self.mount,
            "the mount has changed"
        );
    }
}
