//! Random operations on the engine and on the reference, compared after each.

mod ops;

use ferryfs::core::{Ino, Name};
use ferryfs::vfs::{CacheLimits, FsError};

use super::reference::{Answer, Id, Reference, What};
use crate::engine::rng::{Rng, Seed};
use crate::engine::tree::assert_same;
use crate::engine::{Engine, Kind, World};

const NAMES: [&str; 7] = ["a", "b", "A", "dir", "Dir", "x.txt", "sub"];

/// An open file.
struct Open {
    handle: u64,
    node: Id,
    write: bool,
}

pub(crate) struct Run {
    world: World,
    engine: Option<Engine>,
    reference: Reference,
    rng: Rng,
    opens: Vec<Open>,
    newest: Ino,
    log: Vec<String>,
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log.join("\n"));
        }
    }
}

fn errno<T>(result: Result<T, FsError>) -> Result<T, i32> {
    result.map_err(|error| error.errno())
}

/// Runs `steps` random operations.
pub(crate) fn run(kind: Kind, seed: u64, steps: usize) {
    let _seed = Seed(seed);
    let mut world = World::new(kind);
    world.limits = CacheLimits {
        max_bytes: 0,
        keep_free: 0,
        reserve: 0,
    };
    let engine = world.start(false);
    let mut run = Run {
        engine: Some(engine),
        world,
        reference: Reference::new(),
        rng: Rng::new(seed),
        opens: Vec::new(),
        newest: Ino::ROOT,
        log: Vec::new(),
    };
    for _ in 0..steps {
        run.step();
    }
    run.close_writers();
    run.flush();
    run.compare(true);
}

impl Run {
    fn e(&self) -> &Engine {
        self.engine.as_ref().expect("an engine")
    }

    fn step(&mut self) {
        let content = match self.rng.below(100) {
            0..=13 => self.make_file(),
            14..=21 => self.make_dir(),
            22..=24 => self.make_link(),
            25..=29 => self.open(),
            30..=44 => self.write(),
            45..=50 => self.close(),
            51..=54 => self.truncate(),
            55..=68 => self.rename(),
            69..=73 => self.hard_link(),
            74..=79 => self.unlink(),
            80..=82 => self.rmdir(),
            83..=85 => self.attributes(),
            86..=87 => self.xattrs(),
            88..=93 => {
                if !self.rng.one_in(4) {
                    self.close_writers();
                }
                self.flush();
                true
            }
            94..=96 => self.evict(),
            _ => self.remount(),
        };
        let content = content || self.rng.one_in(4);
        self.compare(content);
    }

    fn a_dir(&mut self) -> Id {
        let dirs = self.reference.dirs();
        self.rng.pick(&dirs)
    }

    fn a_place(&mut self) -> (Id, Vec<u8>) {
        let dir = self.a_dir();
        let there: Vec<Vec<u8>> = self.reference.children(dir).keys().cloned().collect();
        if there.is_empty() || self.rng.one_in(3) {
            return (dir, self.rng.pick(&NAMES).as_bytes().to_vec());
        }
        (dir, self.rng.pick(&there))
    }

    fn a_named(&mut self) -> Option<Id> {
        let place = self.a_place();
        self.reference.find((place.0, &place.1))
    }

    fn a_file(&mut self) -> Option<Id> {
        let id = self.a_named()?;
        matches!(self.reference.nodes[&id].what, What::File(_)).then_some(id)
    }

    fn at(&self, place: &(Id, Vec<u8>)) -> (Ino, Name) {
        let name = Name::new(&place.1).expect("a name");
        (self.reference.nodes[&place.0].ino, name)
    }

    fn note(&mut self, line: String) {
        self.log.push(line);
    }

    fn agree<T>(&mut self, got: Result<T, i32>, wanted: Answer) -> Option<T> {
        let answer = got.as_ref().map(|_| ()).map_err(|errno| *errno);
        assert_eq!(answer, wanted, "after {:?}", self.log.last());
        got.ok()
    }

    fn is_new(&mut self, ino: Ino) {
        assert!(ino > self.newest, "inode number {} was used before", ino.0);
        self.newest = ino;
    }

    fn flush(&mut self) {
        self.note("flush".into());
        let report = self.e().flush().expect("flush");
        // Whoever may still write holds his file back, whether he has or not.
        let writing = self.opens.iter().any(|open| open.write);
        assert!(
            writing || report.left_behind.is_empty(),
            "left behind: {:?}",
            report.left_behind
        );
        assert_eq!(self.world.leftovers(), Vec::<String>::new());
        self.world.check(self.e());
        if !writing {
            let wanted = self.e().expected_on_drive();
            assert_same(&self.world.drive_tree(), &wanted, "the drive after a flush");
            assert!(!self.e().index.lock().anything_dirty().expect("look"));
        }
    }

    fn evict(&mut self) -> bool {
        self.note("evict".into());
        self.e().trim();
        self.world.check(self.e());
        true
    }

    fn remount(&mut self) -> bool {
        let unclean = !self.rng.one_in(3);
        self.note(format!("remount, unclean {unclean}"));
        let engine = self.engine.take().expect("an engine");
        if unclean {
            // What is not committed yet may be lost; here it is about the rest.
            engine.index.commit().expect("commit");
            engine.die();
        } else {
            engine.close();
        }
        self.opens.clear();
        self.engine = Some(self.world.start(unclean));
        self.e().flusher.recover().expect("recover");
        self.world.check(self.e());
        true
    }

    fn compare(&mut self, content: bool) {
        self.compare_dir(0, content);
        if content {
            for n in 0..self.opens.len() {
                let Some(open) = self.opens.get(n) else { break };
                let (node, handle) = (open.node, open.handle);
                let What::File(wanted) = self.reference.nodes[&node].what.clone() else {
                    continue;
                };
                let got = errno(self.e().read_handle(handle, wanted.len() as u64));
                if self.gone(node, &got) {
                    continue;
                }
                assert!(got.as_ref() == Ok(&wanted), "open node {node}: {got:?}");
            }
        }
    }

    fn compare_dir(&self, dir: Id, content: bool) {
        let children = self.reference.children(dir);
        let listed = self.e().list(self.reference.nodes[&dir].ino);
        let names = listed
            .iter()
            .map(|(name, inode)| (name.as_bytes().to_vec(), inode.ino));
        let mut names: Vec<_> = names.collect();
        names.sort();
        let wanted = children.iter();
        let wanted: Vec<_> = wanted
            .map(|(name, id)| (name.clone(), self.reference.nodes[id].ino))
            .collect();
        assert_eq!(names, wanted, "names in node {dir}");
        for (name, inode) in listed {
            let id = children[name.as_bytes()];
            let node = &self.reference.nodes[&id];
            assert_eq!(inode.mode & 0o7777, node.mode, "mode of node {id}");
            assert_eq!(inode.nlink, self.reference.links(id), "links of node {id}");
            if let Some(mtime) = node.mtime {
                assert_eq!(inode.mtime, mtime, "mtime of node {id}");
            }
            for (key, value) in &node.xattrs {
                let got = self.e().fs.getxattr(inode.ino, key).expect("an xattr");
                assert_eq!(&got, value, "xattr of node {id}");
            }
            match &node.what {
                What::Dir(_) => self.compare_dir(id, content),
                What::Link(target) => {
                    let got = self.e().fs.readlink(inode.ino).expect("a target");
                    assert_eq!(&*got, &target[..]);
                }
                What::File(bytes) => {
                    assert_eq!(inode.size, bytes.len() as u64, "size of node {id}");
                    if content {
                        let got = self.e().read_ino(inode.ino);
                        assert_eq!(&got.expect("read"), bytes, "bytes of node {id}");
                    }
                }
            }
        }
    }
}
