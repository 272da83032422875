//! Flushes, and what goes wrong in and between them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferryfs::drive::faulty::Fault;
use ferryfs::drive::memory::Crash;
use ferryfs::error::FlushError;

use super::model::{Plain, What, rel};
use super::sim::Sim;
use super::watch::Watch;

/// What random loss is drawn in crashes; `FERRYFS_SIM_LOSS=all` leaves it out.
fn may_draw() -> bool {
    std::env::var("FERRYFS_SIM_LOSS").as_deref() != Ok("all")
}

/// Whether `drive` is `before` less some of what `cut` does not have: a full drive's removals go in
/// a batch of their own.
fn is_removals_only(drive: &Plain, before: &Plain, cut: &Plain) -> bool {
    let kept = drive
        .iter()
        .all(|(path, node)| before.get(path) == Some(node));
    let mut less = before.keys().filter(|path| !drive.contains_key(*path));
    kept && less.all(|path| cut.get(path) != before.get(path))
}

fn told(drive: &Plain, wanted: &Plain) -> String {
    let paths: BTreeSet<_> = drive.keys().chain(wanted.keys()).collect();
    let lines = paths
        .into_iter()
        .filter(|path| drive.get(*path) != wanted.get(*path));
    let lines = lines.map(|path| {
        format!(
            "\n    {path}: {:?} / {:?}",
            drive.get(path),
            wanted.get(path)
        )
    });
    lines.collect()
}

impl Sim {
    /// A flush that nothing is done to.
    pub(crate) fn flush(&mut self) {
        let cut = self.model.on_drive();
        let was_unsettled = self.unsettled;
        let result = self.e().flush();
        self.note(format!(
            "flush -> {:?}",
            result.as_ref().map(|it| (it.files, it.left_behind.len()))
        ));
        self.counts.flushes += 1;
        match result {
            Ok(report) => {
                let named: BTreeSet<String> =
                    report.left_behind.iter().map(|it| it.0.clone()).collect();
                self.unsettled = false;
                if was_unsettled {
                    self.counts.recoveries += 1;
                }
                self.flushed(cut, &named);
            }
            Err(FlushError::Detached) => assert!(!self.attached),
            Err(error @ FlushError::Full { .. }) => {
                assert!(self.small_drive, "{error}");
                self.unsettled = false;
                self.is_one_of(cut, "a flush to a full drive");
                self.check("a flush to a full drive");
            }
            Err(error) => panic!("a flush in peace: {error}"),
        }
    }

    /// The flush says that all is on the drive, but for what it has named.
    fn flushed(&mut self, mut cut: Plain, named: &BTreeSet<String>) {
        let drive = self.drive();
        // What the SSD had kept for the batch is back.
        self.gone.retain(|path| !drive.contains_key(&rel(path)));
        let unnamed: Vec<_> = self.gone.difference(named).cloned().collect();
        let wrongly: Vec<_> = named.difference(&self.gone).collect();
        cut.retain(|path, _| !self.gone.contains(&path.to_string()));
        assert!(
            drive == cut,
            "the flush is done, the drive is not the cut:{}",
            told(&drive, &cut)
        );
        assert!(
            unnamed.is_empty(),
            "lost, and not named by the flush: {unnamed:?}; named: {named:?}"
        );
        assert!(wrongly.is_empty(), "left behind: {wrongly:?}");
        self.cuts = vec![cut];
        self.check("a flush");
        // What a broken flush has not tidied up the next attach does.
        if !self.untidy {
            self.nothing_is_left("a flush");
        }
        self.counts.gone += self.gone.len();
        // Whoever reads the report removes what is lost.
        for path in std::mem::take(&mut self.gone) {
            self.note(format!("{path} was lost; it is removed"));
            self.e()
                .try_remove(&path, false)
                .expect("remove what is lost");
            self.model.remove(&path);
        }
    }

    /// A flush that ends somewhere, and what follows.
    pub(crate) fn break_a_flush(&mut self) {
        if !self.attached {
            return self.flush();
        }
        let cut = self.model.on_drive();
        let kill = self.rng.one_in(3);
        let (n, dead, effect) = (
            1 + self.rng.below(60) as u64,
            self.rng.one_in(2),
            self.rng.one_in(2),
        );
        if kill {
            self.watch.kill_at(n / 3 + 1);
        } else {
            self.world.faulty.arm(Fault {
                at: self.world.faulty.calls() + n,
                errno: libc::EIO,
                stays_dead: dead,
                takes_effect: effect,
            });
        }
        let result = self.e().flush();
        self.watch.kill_at(0);
        self.note(format!(
            "flush, fails at {n}, kill {kill}, dead {dead}, effect {effect} -> {:?}",
            result
                .as_ref()
                .map(|it| it.files)
                .map_err(ToString::to_string)
        ));
        self.counts.broken_flushes += 1;
        let struck = kill && self.watch.is_dead();
        self.cuts.push(cut.clone());
        (self.unsettled, self.untidy) = (true, true);
        let yank = self.rng.one_in(2);
        let die = struck || self.rng.one_in(4);
        if !yank && !die {
            self.world.faulty.heal();
            if let Ok(report) = result {
                let named: BTreeSet<String> =
                    report.left_behind.into_iter().map(|it| it.0).collect();
                if self.gone.is_empty() && named.is_empty() {
                    // What failed was tidying up, at most.
                    let drive = self.drive();
                    assert!(
                        drive == cut,
                        "the flush is done, the drive is not the cut:{}",
                        told(&drive, &cut)
                    );
                }
            }
            return;
        }
        if die {
            self.bury();
        }
        if yank {
            self.power_goes();
        }
        self.world.faulty.heal();
        if die {
            self.start(true);
        }
        match self.rng.one_in(3) && yank {
            true => self.detach(),
            false => self.recover(),
        }
    }

    /// The drive's power goes; what it had and nobody else has may be gone.
    fn power_goes(&mut self) {
        let crash = match self.rng.below(6) {
            0 => Crash::LoseAll,
            1 => Crash::KeepAll,
            _ if may_draw() => Crash::Random(self.rng.next()),
            _ => Crash::LoseAll,
        };
        let story = self.world.memory.crash(crash);
        self.note(format!("power goes: {crash:?}"));
        self.counts.yanks += 1;
        for line in story.into_iter().take(12) {
            self.note(format!("    {line}"));
        }
    }

    /// Notes what of the mount neither the drive nor the cache has any more.
    fn look_what_is_gone(&mut self) {
        let whole = self.world.memory.tree();
        let there: BTreeSet<&Vec<u8>> = (whole.values())
            .filter_map(|node| match node {
                ferryfs::drive::memory::MemNode::File { bytes, .. } => Some(&**bytes),
                _ => None,
            })
            .collect();
        let files = self.model.paths(|what| matches!(what, What::File(_)));
        for path in files {
            let Some(What::File(bytes)) = self.model.what(&path) else {
                continue;
            };
            if !there.contains(&**bytes) && !self.e().is_cached(&path) {
                self.counts.on_nothing += 1;
                self.gone.insert(path);
            }
        }
    }

    fn detach(&mut self) {
        self.note("detached".into());
        self.e().drive.detach();
        self.attached = false;
    }

    /// The drive is taken away while nothing is written to it.
    pub(crate) fn yank(&mut self, crash: bool) {
        if crash {
            self.power_goes();
        }
        if self.attached {
            self.detach();
        }
    }

    /// The drive comes back.
    pub(crate) fn attach(&mut self) {
        self.note("attached".into());
        self.e().drive.attach(Arc::new(self.world.faulty.clone()));
        self.attached = true;
        self.recover();
    }

    /// Recovery, and all that must hold after it.
    fn recover(&mut self) {
        if self.unsettled {
            self.look_what_is_gone();
        }
        let first = self.e().flusher.recover();
        self.note(format!(
            "recover -> {:?}",
            first.as_ref().map_err(ToString::to_string)
        ));
        first.expect("recover");
        self.counts.recoveries += 1;
        (self.unsettled, self.untidy) = (false, false);
        let last = self.cuts.last().cloned().unwrap_or_default();
        self.is_one_of(last, "recovered");
        self.check("recovered");
        let tree = self.world.memory.tree();
        self.e().flusher.recover().expect("recover again");
        assert!(
            self.world.memory.tree() == tree,
            "recovering again changed the drive"
        );
        if !self.gone.is_empty() {
            self.flush();
        }
    }

    /// The drive must be one of the cuts that it may be; what was lost for good may be missing, and
    /// what was moved and lost but is cached may come with the next flush.
    fn is_one_of(&mut self, cut: Plain, when: &str) {
        self.cuts.push(cut.clone());
        let drive = self.drive();
        let moved_and_lost = |wanted: &Plain| -> bool {
            let same = drive
                .iter()
                .all(|(path, node)| wanted.get(path) == Some(node));
            let mut less = wanted.iter().filter(|(path, _)| !drive.contains_key(*path));
            same && may_draw()
                && less.all(|(_, node)| node.is_none() || !drive.values().any(|it| it == node))
        };
        let right = self
            .cuts
            .iter()
            .any(|cut| *cut == drive || moved_and_lost(cut))
            || (self.small_drive
                && self
                    .cuts
                    .iter()
                    .any(|before| is_removals_only(&drive, before, &cut)));
        if !right {
            let lines: Vec<String> = self.cuts.iter().map(|cut| told(&drive, cut)).collect();
            panic!(
                "{when}: the drive is no cut; it differs:{}",
                lines.join("\n  or")
            );
        }
        self.cuts = vec![drive];
    }

    /// The daemon has died in an operation.
    pub(crate) fn restart_dead(&mut self) {
        self.bury();
        self.world.faulty.heal();
        self.start(true);
        if self.attached {
            self.recover();
        }
    }

    fn bury(&mut self) {
        self.note("the daemon dies".into());
        self.counts.deaths += 1;
        if let Some(engine) = self.engine.take() {
            if !self.watch.is_dead() {
                // Changes of attributes alone may be lost; here it is about the rest.
                engine.index.commit().expect("commit");
            }
            engine.die();
        }
    }

    fn start(&mut self, unclean: bool) {
        let engine = self.world.start(unclean);
        let full = self.watch.full.load(Ordering::Relaxed);
        self.watch = Watch::new(&self.world, &engine, full);
        if !self.attached {
            engine.drive.detach();
        }
        self.engine = Some(engine);
    }

    /// The daemon is started anew, after its death or an orderly end.
    pub(crate) fn restart_idle(&mut self) {
        let unclean = self.rng.one_in(2);
        if unclean {
            self.bury();
        } else {
            self.note("the daemon ends".into());
            if let Some(engine) = self.engine.take() {
                engine.close();
            }
        }
        self.start(unclean);
        if self.attached {
            self.recover();
        }
    }
}
