//! One world, played from a seed: what programs do, what the daemon does, and what goes wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferryfs::core::RelPath;
use ferryfs::drive::memory::{MemNode, MemoryBackend};
use ferryfs::vfs::CacheLimits;

use super::model::{Model, Plain, What, rel};
use super::watch::Watch;
use crate::engine::check::{assert_none, told};
use crate::engine::rng::Rng;
use crate::engine::{Engine, Kind, ROOMY, World};

/// Operations that are told when something fails.
const TOLD: usize = 20;

/// How often what happened, over all runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) operations: usize,
    pub(crate) flushes: usize,
    pub(crate) broken_flushes: usize,
    pub(crate) deaths: usize,
    pub(crate) yanks: usize,
    pub(crate) recoveries: usize,
    /// Files that neither the drive nor an object had after a crash.
    pub(crate) on_nothing: usize,
    /// Files that neither the drive nor the cache had any more: moved, only on the drive, and left
    /// under neither name.
    pub(crate) gone: usize,
}

pub(crate) struct Sim {
    pub(crate) seed: u64,
    pub(crate) step: usize,
    pub(crate) rng: Rng,
    pub(crate) world: World,
    pub(crate) engine: Option<Engine>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) model: Model,
    /// The drive is in its slot.
    pub(crate) attached: bool,
    /// A batch has been interrupted and not been recovered.
    pub(crate) unsettled: bool,
    /// One may have left something that the next attach removes.
    pub(crate) untidy: bool,
    /// What the drive may be, the state before the batch under way first.
    pub(crate) cuts: Vec<Plain>,
    /// Paths whose bytes nobody has any more.
    pub(crate) gone: BTreeSet<String>,
    pub(crate) small_drive: bool,
    pub(crate) counts: Counts,
    log: VecDeque<String>,
    /// All of it in one number, to see that a seed plays the same twice.
    pub(crate) digest: u64,
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log.make_contiguous().join("\n  ");
            eprintln!(
                "failed at step {} of seed {}; the last operations:\n  {log}\nreplay: scripts/soak.sh --seed {}",
                self.step, self.seed, self.seed
            );
        }
    }
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Sim {
        let mut rng = Rng::new(seed);
        let kind = if rng.one_in(3) {
            Kind::Plain
        } else {
            Kind::Exfat
        };
        let mut options = kind.options();
        let small_drive = rng.one_in(4);
        // Our own files need some hundreds of bytes.
        options.capacity = small_drive.then(|| 3000 + rng.below(3000) as u64);
        let mut world = World::on(kind, MemoryBackend::new(options));
        world.may_set_aside = true;
        world.limits = CacheLimits {
            max_bytes: rng.pick(&[0, 4096, 1 << 16, u64::MAX]),
            ..ROOMY
        };
        let engine = world.start(false);
        // The empty drive is taken in before it can go away.
        assert!(engine.names().is_empty());
        let watch = Watch::new(&world, &engine, false);
        Sim {
            seed,
            step: 0,
            rng,
            engine: Some(engine),
            watch,
            world,
            model: Model::default(),
            attached: true,
            unsettled: false,
            untidy: false,
            cuts: vec![Plain::new()],
            gone: BTreeSet::new(),
            small_drive,
            counts: Counts::default(),
            log: VecDeque::new(),
            digest: 0,
        }
    }

    /// Plays `steps` steps, and then brings everything to rest.
    pub(crate) fn play(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step += 1;
            self.one();
            let with_bytes = self.rng.one_in(5);
            self.compare(with_bytes);
        }
        self.note("the end".into());
        self.watch.full.store(false, Ordering::Relaxed);
        if !self.attached {
            self.attach();
        }
        self.flush();
        self.compare(true);
    }

    fn one(&mut self) {
        match self.rng.below(100) {
            0..=61 => {
                if self.rng.one_in(12) {
                    let n = 1 + self.rng.below(6) as u64;
                    self.watch.kill_at(n);
                }
                self.counts.operations += usize::from(self.operate());
                if self.watch.is_dead() {
                    self.restart_dead();
                }
                self.watch.kill_at(0);
            }
            62..=71 => self.flush(),
            72..=81 => self.break_a_flush(),
            82..=85 => self.evict(),
            86..=89 if self.attached => self.yank(false),
            86..=93 if !self.attached => self.attach(),
            90..=91 => self.yank(true),
            92..=94 => self.restart_idle(),
            95..=97 => {
                let full = self.watch.full.fetch_xor(true, Ordering::Relaxed);
                self.note(format!("the SSD is full: {}", !full));
            }
            _ => {
                self.world.clock.advance(std::time::Duration::from_secs(7));
                self.e().fs.sync().expect("sync");
            }
        }
    }

    pub(crate) fn e(&self) -> &Engine {
        self.engine.as_ref().expect("an engine")
    }

    pub(crate) fn note(&mut self, line: String) {
        // The same in every run, wherever its directory is.
        let line = line.replace(&self.world.cache_dir().display().to_string(), "CACHE");
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        self.log.push_back(format!("{}: {line}", self.step));
        while self.log.len() > TOLD {
            self.log.pop_front();
        }
    }

    pub(crate) fn ssd_is_full(&self) -> bool {
        self.watch.full.load(Ordering::Relaxed)
    }

    /// Whether a file that is only on the drive can be read.
    pub(crate) fn drive_is_believed(&self) -> bool {
        self.attached && !self.unsettled
    }

    fn evict(&mut self) {
        self.note("evict".into());
        self.e().trim();
        if !self.unsettled && self.attached {
            self.check("evicted");
        }
    }

    /// The mount must be what the model says.
    fn compare(&self, with_bytes: bool) {
        let wrong = self.differs(&self.model, with_bytes);
        assert!(
            wrong.is_empty(),
            "the mount is not what it must be:\n  {}",
            wrong.join("\n  ")
        );
    }

    /// The one of `states` that the mount is.
    pub(crate) fn that_is(&self, states: Vec<Model>) -> Model {
        let mut told = Vec::new();
        for state in states {
            let wrong = self.differs(&state, true);
            if wrong.is_empty() {
                return state;
            }
            told.push(wrong.join("\n  "));
        }
        panic!(
            "the mount is none of what it may be:\n  {}",
            told.join("\n or\n  ")
        );
    }

    fn differs(&self, model: &Model, with_bytes: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        let seen = match with_bytes {
            true => self.e().readable_tree(),
            false => BTreeMap::new(),
        };
        if !with_bytes {
            let found: BTreeSet<RelPath> = self.e().names().into_iter().collect();
            let wanted: BTreeSet<RelPath> = model.names.keys().map(|it| rel(it)).collect();
            wrong.extend(
                found
                    .symmetric_difference(&wanted)
                    .map(|it| format!("{it}: here or there")),
            );
            return wrong;
        }
        wrong.extend(seen.keys().filter_map(|path| {
            let known = model.names.contains_key(&path.to_string());
            (!known).then(|| format!("{path}: too many"))
        }));
        for (path, id) in &model.names {
            let Some(seen) = seen.get(&rel(path)) else {
                wrong.push(format!("{path}: missing"));
                continue;
            };
            let right = match (&model.nodes[id], &seen.bytes, &seen.target) {
                (What::File(bytes), Some(now), _) => bytes == now,
                (What::File(bytes), None, None) => {
                    let cached = self.e().is_cached(path);
                    let away = !cached && (!self.drive_is_believed() || self.gone.contains(path));
                    away && bytes.len() as u64 == seen.size
                }
                (What::Link(target), None, Some(now)) => target[..] == now[..],
                (What::Dir, None, None) => seen.mode & libc::S_IFMT == libc::S_IFDIR,
                _ => false,
            };
            if !right {
                wrong.push(format!(
                    "{path}: {:?}, must be {:?}",
                    seen.bytes, model.nodes[id]
                ));
            }
        }
        wrong
    }

    /// The user's tree on the drive.
    pub(crate) fn drive(&self) -> Plain {
        let tree = self.world.drive_tree().into_iter();
        tree.map(|(path, node)| match node {
            MemNode::File { bytes, .. } => (path, Some(bytes)),
            _ => (path, None),
        })
        .collect()
    }

    /// Looks at the cache and the drive. No batch may be under way, and the drive must be there.
    pub(crate) fn check(&self, when: &str) {
        let findings = self.world.findings(self.e());
        assert!(findings.is_empty(), "{when}:{}", told(&findings));
    }

    pub(crate) fn nothing_is_left(&self, when: &str) {
        assert_none(&self.world.left_of_batches(self.e()), when);
    }
}
