//! A flush that fails at its n-th call to the drive, for every n until nothing fails: the daemon goes on or dies, the drive
//! keeps everything or loses what was not synced. Whatever happened, recovery makes the drive the tree of one cut, the
//! mount does not change, and the next flush carries the rest and leaves nothing behind.

#[path = "support/engine/mod.rs"]
mod engine;

use std::collections::BTreeMap;

use engine::rng::{Rng, Seed};
use engine::tree::{Seen, Tree, assert_same};
use engine::{Engine, Kind, World, grow};
use ferryfs::backend::faulty::Fault;
use ferryfs::backend::memory::{MemNode, differences};
use ferryfs::base::RelPath;
use ferryfs::flush::recover_without_cache;

/// What happens between the failure and recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The drive answers again.
    Heal,
    /// The daemon is killed and started again.
    Death,
    /// Everything since the drive's last sync is lost.
    Loss,
    /// Both.
    DeathAndLoss,
    /// The drive is finished on a machine without the cache, then comes back.
    Elsewhere,
    /// The same, after the power cut; the daemon is started anew.
    ElsewhereAfterLoss,
}

const AFTER: [After; 6] = [
    After::Heal,
    After::Death,
    After::Loss,
    After::DeathAndLoss,
    After::Elsewhere,
    After::ElsewhereAfterLoss,
];

/// A world with something on the drive and something else in the mount.
struct Scene {
    world: World,
    engine: Engine,
    before: Tree,
    cut: Tree,
    mount: BTreeMap<RelPath, Seen>,
}

impl Scene {
    fn new(kind: Kind, seed: u64, prepare: impl Fn(&Engine, &mut Rng)) -> Scene {
        let mut rng = Rng::new(seed);
        let world = World::new(kind);
        let engine = world.start(false);
        grow::edit(&engine, &mut rng, 14);
        engine.flush_all();
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
        }
    }

    /// A flush whose call number `n` fails. False if it was over before.
    fn flush_failing(&self, n: u64, stays_dead: bool, takes_effect: bool) -> bool {
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

    fn strike(mut self, after: After) -> Scene {
        use After::{Death, DeathAndLoss, Elsewhere, ElsewhereAfterLoss, Loss};
        let files_are_whole = |tree: &Tree| {
            for (path, node) in tree {
                let sides = [&self.before, &self.cut];
                let known = sides
                    .iter()
                    .any(|side| side.values().any(|at| bytes_equal(at, node)));
                assert!(known, "{path} is no version that ever was: {node:?}");
            }
        };
        files_are_whole(&self.world.drive_tree());
        if matches!(after, Loss | DeathAndLoss | ElsewhereAfterLoss) {
            self.world.memory.crash_to_durable();
            files_are_whole(&self.world.drive_tree());
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

    fn is_one_cut(&self, what: &str) {
        let drive = self.world.drive_tree();
        if drive != self.before && drive != self.cut {
            panic!(
                "{what}: the drive is neither the state before\n  {}\nnor the cut\n  {}",
                differences(&drive, &self.before).join("\n  "),
                differences(&drive, &self.cut).join("\n  ")
            );
        }
    }

    fn recover_and_check(&self) {
        self.engine.flusher.recover().expect("recover");
        self.is_one_cut("recovered");
        self.engine.flusher.recover().expect("recover again");
        self.is_one_cut("recovered twice");
        self.world.check(&self.engine);
        assert_eq!(
            self.engine.mount_tree(),
            self.mount,
            "the mount has changed"
        );
        self.engine.flush_all();
        assert_same(&self.world.drive_tree(), &self.cut, "the next flush");
        assert_same(
            &engine::tree::user_part(self.world.memory.durable_tree()),
            &self.cut,
            "what is durable after it",
        );
        assert_eq!(self.world.leftovers(), Vec::<String>::new());
        let journals = std::fs::read_dir(&self.engine.journals).expect("list the journals");
        assert_eq!(journals.count(), 0, "journals are left");
        self.world.check(&self.engine);
        assert_eq!(
            self.engine.mount_tree(),
            self.mount,
            "the mount has changed"
        );
    }
}

fn bytes_equal(one: &MemNode, other: &MemNode) -> bool {
    match (one, other) {
        (MemNode::File { bytes: a, .. }, MemNode::File { bytes: b, .. }) => a == b,
        (MemNode::Directory, MemNode::Directory) => true,
        _ => one == other,
    }
}

/// Fails at every call, in every way; what happens afterwards takes turns.
fn fail_at_every_call(kind: Kind, seed: u64, prepare: impl Fn(&Engine, &mut Rng) + Copy) {
    let _seed = Seed(seed);
    let mut turn = seed as usize;
    for n in 1.. {
        let mut failed = false;
        for (stays_dead, takes_effect) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            turn += 1;
            let after = AFTER[turn % AFTER.len()];
            let case = format!("call {n}, dead {stays_dead}, effect {takes_effect}, {after:?}");
            let _case = Case(case);
            let scene = Scene::new(kind, seed, prepare);
            failed |= scene.flush_failing(n, stays_dead, takes_effect);
            scene.strike(after).recover_and_check();
        }
        turn += 1; // So that each call meets other turns.
        if !failed {
            assert!(n > 10, "the flush had nothing to do");
            return;
        }
    }
}

/// Says which case failed.
struct Case(String);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed at {}", self.0);
        }
    }
}

fn random_edits(engine: &Engine, rng: &mut Rng) {
    grow::edit(engine, rng, 14);
}

#[test]
fn a_flush_that_fails_anywhere_leaves_one_cut_on_a_plain_drive() {
    for seed in [1, 2] {
        fail_at_every_call(Kind::Plain, seed, random_edits);
    }
}

#[test]
fn a_flush_that_fails_anywhere_leaves_one_cut_on_exfat() {
    for seed in [11, 12] {
        fail_at_every_call(Kind::Exfat, seed, random_edits);
    }
}

/// One of each kind of step, and few of them.
fn a_few_edits(engine: &Engine, _: &mut Rng) {
    engine.put("fresh", b"fresh");
    let files = engine.mount_tree();
    let mut names = files
        .iter()
        .filter(|(path, seen)| path.depth() == 1 && seen.bytes.is_some());
    if let Some((path, _)) = names.next() {
        engine.put(&path.to_string(), b"replaced");
    }
    if let Some((path, _)) = names.next() {
        engine.rename(&path.to_string(), "moved");
    }
}

#[test]
fn a_recovery_that_fails_as_well_is_taken_up_again() {
    let (kind, seed) = (Kind::Exfat, 11);
    let _seed = Seed(seed);
    for n in 1.. {
        let mut failed = false;
        for m in 1.. {
            let after = if m % 2 == 0 { After::Heal } else { After::Loss };
            let _case = Case(format!("call {n}, then {m} of the recovery, {after:?}"));
            let scene = Scene::new(kind, seed, a_few_edits);
            // An effect without an answer is what leaves half a record.
            failed |= scene.flush_failing(n, true, n % 2 == 0);
            let at = scene.world.faulty.calls() + m;
            scene.world.faulty.arm(Fault {
                stays_dead: true,
                takes_effect: m % 3 == 0,
                ..Fault::at(at, libc::EIO)
            });
            let recovered = scene.engine.flusher.recover();
            let over = scene.world.faulty.calls() < at;
            scene.world.faulty.heal();
            assert!(recovered.is_ok() || !over, "{recovered:?}");
            scene.strike(after).recover_and_check();
            if over {
                break;
            }
        }
        if !failed {
            return;
        }
    }
}
