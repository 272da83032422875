//! Two hands at random, and nothing that either has written is lost.
//!
//! Every version has bytes of its own. One that neither side has overwritten, renamed something
//! over, or deleted is in the mount after every look, and on the drive after every flush, under
//! whatever name; and in the end both are the same tree.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use ferryfs::core::{FileKind, Ino, Name, RelPath};
use ferryfs::drive::Backend;
use ferryfs::vfs::RenameMode;

use super::engine::rng::{Rng, Seed};
use super::engine::script::rel;
use super::engine::tree::{Tree, user_part};
use super::engine::{Engine, Kind, World, call};
use super::{put, remove};
use ferryfs::drive::memory::MemNode;

const NAMES: [&str; 6] = ["a", "b", "c", "A", "x", "y"];

struct Game {
    world: World,
    engine: Option<Engine>,
    rng: Rng,
    /// Versions that nobody has overwritten or deleted.
    untouched: BTreeSet<Vec<u8>>,
    version: usize,
    /// What was last read of each file of the mount: whoever deletes it unread has seen that.
    seen: RefCell<HashMap<Ino, Vec<u8>>>,
    log: Vec<String>,
}

impl Game {
    fn new(kind: Kind, seed: u64) -> Game {
        let mut world = World::new(kind);
        world.limits.max_bytes = if seed.is_multiple_of(2) { u64::MAX } else { 0 };
        Game {
            engine: Some(world.start(false)),
            world,
            rng: Rng::new(seed),
            untouched: BTreeSet::new(),
            version: 0,
            seen: RefCell::default(),
            log: Vec::new(),
        }
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("a daemon")
    }

    /// Bytes that no other version has, of one of a few sizes.
    fn bytes(&mut self) -> Vec<u8> {
        self.version += 1;
        let size = 8 + 8 * self.rng.below(3);
        let mut bytes = format!("{:08}", self.version).into_bytes();
        bytes.resize(size, b'.');
        self.untouched.insert(bytes.clone());
        bytes
    }

    /// Paths of the mount, directories with a slash at their end; files with their bytes.
    fn here(&self) -> Vec<(String, Option<Vec<u8>>)> {
        let mut found = Vec::new();
        self.walk(Ino::ROOT, &RelPath::root(), &mut found);
        found
    }

    fn walk(&self, dir: Ino, path: &RelPath, found: &mut Vec<(String, Option<Vec<u8>>)>) -> bool {
        let engine = self.engine();
        // What was changed or deleted there, and is not in the cache or was never visited, cannot
        // be read before a look.
        let Ok(opened) = call(|ctx| engine.fs.opendir(ctx, dir)) else {
            return false;
        };
        let mut entries = Vec::new();
        let listed = engine.fs.readdir(opened.handle, 0, |entry| {
            if let Ok(name) = Name::new(&entry.name) {
                entries.push((name, entry.inode.clone()));
            }
            true
        });
        listed.expect("list");
        engine.fs.releasedir(opened.handle);
        for (name, inode) in entries {
            let path = path.join(&name);
            let mut seen = self.seen.borrow_mut();
            let bytes = (inode.kind() == FileKind::Regular).then(|| {
                // Opening it may tell its size anew.
                let _ = engine.read_ino(inode.ino);
                if let Ok(bytes) = engine.read_ino(inode.ino) {
                    seen.insert(inode.ino, bytes);
                }
                seen.get(&inode.ino).cloned().unwrap_or_default()
            });
            drop(seen);
            let at = found.len();
            found.push((path.to_string(), bytes));
            if inode.is_dir() && !self.walk(inode.ino, &path, found) {
                found.truncate(at);
            }
        }
        true
    }

    fn there(&self) -> Vec<(String, Option<Vec<u8>>)> {
        // As they are spelled there.
        let tree = user_part(self.world.memory.tree()).into_iter();
        tree.map(|(path, node)| match node {
            MemNode::File { bytes, .. } => (path.to_string(), Some(bytes.to_vec())),
            _ => (path.to_string(), None),
        })
        .collect()
    }

    /// A path to make something at: in the root or a directory of `tree`.
    fn place(&mut self, tree: &[(String, Option<Vec<u8>>)]) -> String {
        let mut dirs: Vec<String> = (tree.iter())
            .filter(|(path, bytes)| bytes.is_none() && path.matches('/').count() < 3)
            .map(|(path, _)| format!("{path}/"))
            .collect();
        dirs.push(String::new());
        let dir = self.rng.pick(&dirs);
        format!("{dir}{}", self.rng.pick(&NAMES))
    }

    fn forget_below(&mut self, tree: &[(String, Option<Vec<u8>>)], path: &str) {
        let below = format!("{path}/");
        for (at, bytes) in tree {
            if let Some(bytes) = bytes
                && (at == path || at.starts_with(&below))
            {
                self.untouched.remove(bytes);
            }
        }
    }

    fn act_here(&mut self) {
        let tree = self.here();
        let place = self.place(&tree);
        let at_place = tree.iter().find(|(path, _)| *path == place).cloned();
        match self.rng.below(6) {
            0 | 1 if at_place.as_ref().is_none_or(|(_, bytes)| bytes.is_some()) => {
                self.forget_below(&tree, &place);
                let bytes = self.bytes();
                self.log
                    .push(format!("here: put {place} {}", bytes.escape_ascii()));
                self.engine().put(&place, &bytes);
                // Of two files of one size that were written in the same 10 ms nobody could tell,
                // but by their bytes, that one was renamed over the other elsewhere.
                let at = super::time(self.version as i64);
                self.engine().utimes(&place, at);
            }
            2 if at_place.is_none() => {
                self.log.push(format!("here: mkdir {place}"));
                self.engine().mkdir(&place);
            }
            3 if !tree.is_empty() => {
                let (from, _) = self.rng.pick(&tree);
                let inside = place.starts_with(&format!("{from}/"));
                let moved = !inside && from != place && self.rename_here(&from, &place);
                if moved {
                    self.forget_below(&tree, &place);
                }
            }
            4 if !tree.is_empty() => {
                let (path, _) = self.rng.pick(&tree);
                self.log.push(format!("here: rm -r {path}"));
                let below = format!("{path}/");
                for (at, bytes) in tree.iter().rev() {
                    if *at == path || at.starts_with(&below) {
                        self.remove_here(at, bytes.is_some());
                    }
                }
                self.forget_below(&tree, &path);
            }
            _ => {}
        }
    }

    /// A directory that cannot be listed, because it is not there any more, cannot be removed
    /// either.
    fn remove_here(&self, path: &str, is_file: bool) {
        let engine = self.engine();
        let (parent, name) = engine.place(path);
        let ino = engine.ino(path);
        let removed = match is_file {
            true => call(|ctx| engine.fs.unlink(ctx, parent, &name)),
            false => call(|ctx| engine.fs.rmdir(ctx, parent, &name)),
        };
        if removed.is_ok() {
            engine.fs.forget(ino).expect("forget");
        }
    }

    fn rename_here(&mut self, from: &str, to: &str) -> bool {
        let renamed = self.engine().rename_with(from, to, RenameMode::Replace);
        self.log
            .push(format!("here: mv {from} {to}: {}", renamed.is_ok()));
        renamed.is_ok()
    }

    fn act_there(&mut self) {
        let tree = self.there();
        let place = self.place(&tree);
        let fold = |path: &str| match self.world.kind {
            Kind::Exfat => path.to_lowercase(),
            _ => path.to_string(),
        };
        let at_place = (tree.iter())
            .find(|(path, _)| fold(path) == fold(&place))
            .cloned();
        match self.rng.below(6) {
            0 | 1 if at_place.as_ref().is_none_or(|(_, bytes)| bytes.is_some()) => {
                if let Some((path, _)) = &at_place {
                    self.forget_below(&tree, path);
                }
                let bytes = self.bytes();
                self.log
                    .push(format!("there: put {place} {}", bytes.escape_ascii()));
                put(&self.world, &place, &bytes, self.version as i64);
            }
            2 if at_place.is_none() => {
                self.log.push(format!("there: mkdir {place}"));
                super::make_dir(&self.world, &place);
            }
            3 if !tree.is_empty() => {
                let (from, _) = self.rng.pick(&tree);
                let (from_path, to_path) = (rel(&from), rel(&place));
                if fold(&place).starts_with(&format!("{}/", fold(&from))) || from == place {
                    return;
                }
                let moved = self.world.memory.rename(&from_path, &to_path).is_ok();
                self.log.push(format!("there: mv {from} {place}: {moved}"));
                if let (true, Some((path, _))) = (moved, &at_place)
                    && *path != from
                {
                    self.forget_below(&tree, path);
                }
            }
            4 if !tree.is_empty() => {
                let (path, _) = self.rng.pick(&tree);
                self.log.push(format!("there: rm -r {path}"));
                self.forget_below(&tree, &path);
                remove(&self.world, &path);
            }
            _ => {}
        }
    }

    fn meet(&mut self) {
        match self.rng.below(8) {
            0 => {
                self.log.push("flush".into());
                let report = self.engine().flush().expect("flush");
                assert_eq!(report.left_behind, [], "{}", self.story());
                self.must_be_on_the_drive();
                // What came in by that is seen, so that it may be overwritten.
                self.here();
            }
            1 => {
                self.log.push("refresh".into());
                let changes = self.engine().refresh();
                self.log.push(format!("  {changes:?}"));
                self.must_be_in_the_mount();
            }
            2 if self.world.limits.max_bytes == 0 => self.engine().trim(),
            3 if self.rng.one_in(4) => {
                self.log.push("the daemon dies".into());
                self.engine.take().expect("a daemon").die();
                let engine = self.world.start(true);
                engine.flusher.recover().expect("recover");
                self.engine = Some(engine);
            }
            _ => {}
        }
    }

    fn must_be_in_the_mount(&self) {
        let found: BTreeSet<Vec<u8>> = self.here().into_iter().filter_map(|(_, b)| b).collect();
        for bytes in &self.untouched {
            assert!(
                found.contains(bytes),
                "{} is not in the mount\n{}",
                bytes.escape_ascii(),
                self.story()
            );
        }
    }

    fn must_be_on_the_drive(&self) {
        let found: BTreeSet<Vec<u8>> = self.there().into_iter().filter_map(|(_, b)| b).collect();
        for bytes in &self.untouched {
            assert!(
                found.contains(bytes),
                "{} is not on the drive\n{}",
                bytes.escape_ascii(),
                self.story()
            );
        }
    }

    fn story(&self) -> String {
        let tree: Tree = self.world.drive_tree();
        let paths: Vec<&RelPath> = tree.keys().collect();
        format!("{}\ndrive: {paths:?}", self.log.join("\n"))
    }

    fn play(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.rng.below(2) {
                0 => self.act_here(),
                _ => self.act_there(),
            }
            self.meet();
        }
        self.log.push("the end".into());
        self.engine().refresh();
        self.must_be_in_the_mount();
        let report = self.engine().flush().expect("flush");
        assert_eq!(report.left_behind, [], "{}", self.story());
        self.must_be_on_the_drive();
        let again = self.engine().refresh();
        assert!(again.is_nothing(), "{again:?}");
        self.world.check(self.engine());
        // By their bytes: which spelling stands for which name takes more than the drive to tell,
        // where both sides use such.
        let bytes = |tree: Vec<(String, Option<Vec<u8>>)>| {
            let mut all: Vec<Vec<u8>> = tree.into_iter().filter_map(|(_, bytes)| bytes).collect();
            all.sort();
            all
        };
        assert_eq!(bytes(self.here()), bytes(self.there()));
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn two_hands_at_random_lose_nothing_that_the_other_has_not_seen() {
    let first = number("FERRYFS_ELSEWHERE_SEED").unwrap_or(1);
    let runs = number("FERRYFS_ELSEWHERE_RUNS").unwrap_or(40);
    for seed in first..first + runs {
        for kind in super::KINDS {
            let _seed = Seed(seed);
            Game::new(kind, seed).play(40);
        }
    }
}

impl Drop for Game {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what was done:\n{}", self.story());
            let raw: Vec<String> = self.there().into_iter().map(|(path, _)| path).collect();
            eprintln!("as spelled: {raw:?}");
            if self.engine.is_some() {
                eprintln!("mount: {:?}", self.here());
            }
        }
    }
}
