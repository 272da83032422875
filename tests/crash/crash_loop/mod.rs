//! A daemon that stops anywhere, and a drive that loses power with it.
//!
//! Here: a flush that fails at its n-th call to the drive, for every n until nothing fails (in the
//! gate for every third n or so, scripts/suites.sh takes them all): the
//! daemon goes on or dies, the drive keeps everything or loses what was not synced. Whatever
//! happened, recovery makes the drive the tree of one cut, the mount does not change, and the next
//! flush carries the rest and leaves nothing behind.

mod across;
mod full;
mod local;
mod loss;
mod parts;
mod patched;
mod patched_interrupted;
mod refused;
mod scene;
mod ssd;
mod versions;

use crate::engine::rng::{Rng, Seed};
use crate::engine::{Engine, Kind, grow};
use ferryfs::drive::faulty::Fault;
use scene::Scene;

/// Whether each case is tried, and not only some of them: with `FERRYFS_CRASH_DRAWS`, as
/// scripts/suites.sh sets it.
pub(crate) fn is_thorough() -> bool {
    std::env::var_os("FERRYFS_CRASH_DRAWS").is_some()
}

/// Returns the numbers of calls at which to fail, from `first` on: each one, or every `step`th.
pub(crate) fn calls(first: u64, step: usize) -> impl Iterator<Item = u64> {
    (first..).step_by(if is_thorough() { 1 } else { step })
}

/// What happens between the failure and recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
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

/// Fails at every call, in every way; what happens afterwards takes turns.
fn fail_at_every_call(kind: Kind, seed: u64, prepare: impl Fn(&Engine, &mut Rng) + Copy) {
    let _seed = Seed(seed);
    let mut turn = seed as usize;
    let step = if kind == Kind::Exfat { 3 } else { 5 };
    for n in calls(1 + seed % 3, step) {
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
pub(crate) struct Case(pub(crate) String);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed at {}", self.0);
        }
    }
}

/// Random ones.
pub(crate) fn random_edits(engine: &Engine, rng: &mut Rng) {
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
pub(crate) fn a_few_edits(engine: &Engine, _: &mut Rng) {
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
    for n in calls(1, 3) {
        let mut failed = false;
        for m in calls(1, 5) {
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
