//! Random operations on the engine and on the reference, compared after each.

use ferryfs::base::{Ino, Name, Timestamp};
use ferryfs::fs::{
    CacheLimits, FsError, NewNode, OpenMode, RenameMode, SetAttr, SetTime, SetXattr,
};

use crate::engine::rng::{Rng, Seed};
use crate::engine::tree::assert_same;
use crate::engine::{Engine, Kind, World, call};
use crate::reference::{Answer, Id, Node, Reference, What};

const NAMES: [&str; 7] = ["a", "b", "A", "dir", "Dir", "x.txt", "sub"];

/// An open file.
struct Open {
    handle: u64,
    node: Id,
    write: bool,
    written: bool,
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
        reference: Reference::new(kind == Kind::Exfat),
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

    fn make_file(&mut self) -> bool {
        let place = self.a_place();
        self.note(format!("create {place:?}"));
        let there = self.reference.find((place.0, &place.1));
        let wanted = self.reference.check_new((place.0, &place.1));
        let (parent, name) = self.at(&place);
        let mode = OpenMode {
            write: true,
            truncate: false,
        };
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.create(ctx, parent, &name, 0o640, mode, true)));
        let Some((inode, handle)) = self.agree(got, wanted) else {
            return there.is_none();
        };
        self.is_new(inode.ino);
        let node = Node::new(What::File(Vec::new()), inode.ino, 0o640);
        let node = self.reference.add((place.0, &place.1), node);
        self.opens.push(Open {
            handle,
            node,
            write: true,
            written: false,
        });
        false
    }

    fn make_node(&mut self, what: What, mode: u32, target: Option<&[u8]>) -> bool {
        let place = self.a_place();
        self.note(format!("make {what:?} {place:?}"));
        let wanted = self.reference.check_new((place.0, &place.1));
        let (parent, name) = self.at(&place);
        let node = NewNode {
            mode,
            rdev: 0,
            target: target.map(Into::into),
        };
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.make_node(ctx, parent, &name, node.clone())));
        if let Some(inode) = self.agree(got, wanted) {
            self.is_new(inode.ino);
            let node = Node::new(what, inode.ino, mode & 0o7777);
            self.reference.add((place.0, &place.1), node);
        }
        false
    }

    fn make_dir(&mut self) -> bool {
        self.make_node(What::Dir(Default::default()), libc::S_IFDIR | 0o750, None)
    }

    fn make_link(&mut self) -> bool {
        let target = self.rng.bytes(20);
        let target = [&b"t"[..], &target].concat();
        self.make_node(
            What::Link(target.clone()),
            libc::S_IFLNK | 0o777,
            Some(&target),
        )
    }

    fn open(&mut self) -> bool {
        let Some(node) = self.a_file() else {
            return false;
        };
        let mode = OpenMode {
            write: !self.rng.one_in(3),
            truncate: self.rng.one_in(5),
        };
        let mode = OpenMode {
            truncate: mode.write && mode.truncate,
            ..mode
        };
        self.note(format!("open {node} {mode:?}"));
        let ino = self.reference.nodes[&node].ino;
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.open(ctx, ino, mode)));
        let handle = self.agree(got, Ok(())).expect("opened");
        if mode.truncate {
            self.reference.bytes_mut(node).clear();
        }
        self.opens.push(Open {
            handle,
            node,
            write: mode.write,
            written: mode.truncate,
        });
        true
    }

    fn write(&mut self) -> bool {
        let writers: Vec<usize> = (0..self.opens.len())
            .filter(|n| self.opens[*n].write)
            .collect();
        if writers.is_empty() {
            return false;
        }
        let open = self.rng.pick(&writers);
        let data = self.rng.bytes(40);
        let node = self.opens[open].node;
        let size = match &self.reference.nodes[&node].what {
            What::File(bytes) => bytes.len(),
            _ => 0,
        };
        let at = match self.rng.below(3) {
            0 => size,
            _ => self.rng.below(size + 20),
        };
        self.note(format!("write {node} at {at}: {} bytes", data.len()));
        let fs = self.e().fs.clone();
        let handle = self.opens[open].handle;
        let got = errno(call(|ctx| fs.write(ctx, handle, at as u64, &data)));
        if self.gone(node, &got) {
            return false;
        }
        self.agree(got, Ok(()));
        if !data.is_empty() {
            self.reference.write(node, at, &data);
        } else {
            self.reference.bytes_mut(node);
        }
        self.opens[open].written = true;
        false
    }

    /// The drive in memory, unlike Linux, takes a removed file from those who have it open; then nothing can be checked.
    fn gone<T>(&mut self, node: Id, got: &Result<T, i32>) -> bool {
        if got.is_err() && self.reference.links(node) == 0 {
            while let Some(n) = self.opens.iter().position(|open| open.node == node) {
                self.close_nth(n);
            }
            return true;
        }
        false
    }

    fn close_nth(&mut self, n: usize) {
        let open = self.opens.swap_remove(n);
        self.note(format!("close {} ({})", open.node, open.handle));
        self.e().close_handle(open.handle);
        self.forget_unnamed(open.node);
    }

    fn forget_unnamed(&mut self, node: Id) {
        if self.reference.links(node) == 0 && !self.opens.iter().any(|open| open.node == node) {
            let ino = self.reference.nodes[&node].ino;
            self.e().fs.forget(ino).expect("forget");
        }
    }

    fn close(&mut self) -> bool {
        if !self.opens.is_empty() {
            let n = self.rng.below(self.opens.len());
            self.close_nth(n);
        }
        false
    }

    fn close_writers(&mut self) {
        while let Some(n) = self.opens.iter().position(|open| open.write) {
            self.close_nth(n);
        }
    }

    fn truncate(&mut self) -> bool {
        let Some(node) = self.a_file() else {
            return false;
        };
        let size = if self.rng.one_in(3) {
            0
        } else {
            self.rng.below(60)
        };
        self.note(format!("truncate {node} to {size}"));
        let set = SetAttr {
            size: Some(size as u64),
            ..SetAttr::default()
        };
        self.set(node, &set);
        self.reference.bytes_mut(node).resize(size, 0);
        // Whoever else has it open for writing settles it later.
        for open in self.opens.iter_mut().filter(|open| open.node == node) {
            open.written |= open.write;
        }
        false
    }

    fn set(&mut self, node: Id, set: &SetAttr) {
        let ino = self.reference.nodes[&node].ino;
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.setattr(ctx, ino, set)));
        self.agree(got, Ok(()));
    }

    fn rename(&mut self) -> bool {
        let (from, to) = (self.a_place(), self.a_place());
        let mode = self.rng.pick(&[
            RenameMode::Replace,
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ]);
        let (f, t) = ((from.0, &from.1[..]), (to.0, &to.1[..]));
        if self.reference.kernel_refuses(f, t, mode) {
            return false;
        }
        self.note(format!("rename {from:?} {to:?} {mode:?}"));
        let replaced = self
            .reference
            .find(t)
            .filter(|_| mode == RenameMode::Replace);
        let (a, b) = (self.at(&from), self.at(&to));
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.rename(ctx, (a.0, &a.1), (b.0, &b.1), mode)));
        let wanted = self.reference.rename(f, t, mode);
        self.agree(got, wanted);
        if let Some(node) = replaced {
            self.forget_if_gone(node);
        }
        true
    }

    fn forget_if_gone(&mut self, node: Id) {
        let named = self.reference.dirs().contains(&node);
        if self.reference.is_dir(node) && !named {
            let ino = self.reference.nodes[&node].ino;
            self.e().fs.forget(ino).expect("forget");
        } else if !self.reference.is_dir(node) {
            self.forget_unnamed(node);
        }
    }

    fn hard_link(&mut self) -> bool {
        let Some(node) = self.a_named() else {
            return false;
        };
        let place = self.a_place();
        self.note(format!("link {node} {place:?}"));
        let (parent, name) = self.at(&place);
        let ino = self.reference.nodes[&node].ino;
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.link(ctx, ino, parent, &name)));
        let wanted = self.reference.link(node, (place.0, &place.1));
        self.agree(got, wanted);
        false
    }

    fn unlink(&mut self) -> bool {
        let place = self.a_place();
        self.note(format!("unlink {place:?}"));
        let node = self.reference.find((place.0, &place.1));
        let (parent, name) = self.at(&place);
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.unlink(ctx, parent, &name)));
        let wanted = self.reference.unlink((place.0, &place.1));
        self.agree(got, wanted);
        if let (Some(node), Ok(())) = (node, wanted) {
            self.forget_if_gone(node);
        }
        false
    }

    fn rmdir(&mut self) -> bool {
        let place = self.a_place();
        self.note(format!("rmdir {place:?}"));
        let node = self.reference.find((place.0, &place.1));
        let (parent, name) = self.at(&place);
        let fs = self.e().fs.clone();
        let got = errno(call(|ctx| fs.rmdir(ctx, parent, &name)));
        let wanted = self.reference.rmdir((place.0, &place.1));
        self.agree(got, wanted);
        if let (Some(node), Ok(())) = (node, wanted) {
            self.forget_if_gone(node);
        }
        false
    }

    fn attributes(&mut self) -> bool {
        let Some(node) = self.a_named() else {
            return false;
        };
        if self.rng.one_in(3) {
            let mode = self.rng.pick(&[0o600, 0o755, 0o444]);
            self.note(format!("chmod {node} {mode:o}"));
            let set = SetAttr {
                mode: Some(mode),
                ..SetAttr::default()
            };
            self.set(node, &set);
            self.reference.nodes.get_mut(&node).expect("a node").mode = mode;
            return false;
        }
        let mtime = Timestamp(1_500_000_000_123_456_789 + self.rng.below(1 << 40) as i64);
        self.note(format!("utimes {node}"));
        let set = SetAttr {
            mtime: Some(SetTime::At(mtime)),
            ..SetAttr::default()
        };
        self.set(node, &set);
        if !self.reference.is_dir(node) {
            self.reference.nodes.get_mut(&node).expect("a node").mtime = Some(mtime);
        }
        false
    }

    fn xattrs(&mut self) -> bool {
        let Some(node) = self.a_named() else {
            return false;
        };
        let name = self.rng.pick(&[b"user.one".to_vec(), b"user.two".to_vec()]);
        let ino = self.reference.nodes[&node].ino;
        let value = self.rng.bytes(30);
        let remove = self.rng.one_in(3);
        self.note(format!("xattr {node} remove {remove}"));
        let fs = self.e().fs.clone();
        let (got, wanted) = {
            let attrs = &mut self.reference.nodes.get_mut(&node).expect("a node").xattrs;
            if remove {
                let there = attrs.remove(&name).map(|_| ());
                (fs.removexattr(ino, &name), there.ok_or(libc::ENODATA))
            } else {
                attrs.insert(name.clone(), value.clone());
                (fs.setxattr(ino, &name, &value, SetXattr::Any), Ok(()))
            }
        };
        self.agree(errno(got), wanted);
        false
    }

    fn flush(&mut self) {
        self.note("flush".into());
        let report = self.e().flush().expect("flush");
        let writing = self.opens.iter().any(|open| open.write && open.written);
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
