//! A tree as POSIX has it, simple enough to be believed.

use std::collections::BTreeMap;

use ferryfs::core::{Ino, Timestamp};
use ferryfs::vfs::RenameMode;

/// Number of a node of the reference; the root is 0.
pub(crate) type Id = usize;

#[derive(Clone, Debug)]
pub(crate) enum What {
    File(Vec<u8>),
    Dir(BTreeMap<Vec<u8>, Id>),
    Link(Vec<u8>),
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) what: What,
    pub(crate) ino: Ino,
    pub(crate) mode: u32,
    /// Expectations only where it was set by hand since the last change of bytes.
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an operation answers: nothing, or an errno.
pub(crate) type Answer = Result<(), i32>;

pub(crate) struct Reference {
    pub(crate) nodes: BTreeMap<Id, Node>,
    next: Id,
}

/// Where a name stands.
pub(crate) type Place<'a> = (Id, &'a [u8]);

impl Reference {
    pub(crate) fn new() -> Reference {
        let root = Node::new(What::Dir(BTreeMap::new()), Ino::ROOT, 0o755);
        Reference {
            nodes: BTreeMap::from([(0, root)]),
            next: 1,
        }
    }

    pub(crate) fn children(&self, dir: Id) -> &BTreeMap<Vec<u8>, Id> {
        match &self.nodes[&dir].what {
            What::Dir(children) => children,
            _ => panic!("node {dir} is no directory"),
        }
    }

    fn children_mut(&mut self, dir: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.nodes.get_mut(&dir).expect("a node").what {
            What::Dir(children) => children,
            _ => panic!("node {dir} is no directory"),
        }
    }

    pub(crate) fn is_dir(&self, id: Id) -> bool {
        matches!(self.nodes[&id].what, What::Dir(_))
    }

    pub(crate) fn find(&self, (dir, name): Place<'_>) -> Option<Id> {
        self.children(dir).get(name).copied()
    }

    /// Directories that have a name, the root first.
    pub(crate) fn dirs(&self) -> Vec<Id> {
        let mut dirs = vec![0];
        let mut at = 0;
        while at < dirs.len() {
            let below = self.children(dirs[at]).values();
            let below: Vec<Id> = below.copied().filter(|id| self.is_dir(*id)).collect();
            dirs.extend(below);
            at += 1;
        }
        dirs
    }

    pub(crate) fn links(&self, id: Id) -> u32 {
        let dirs = self.dirs();
        if self.is_dir(id) {
            let below = self.children(id).values().filter(|id| self.is_dir(**id));
            return 2 + below.count() as u32;
        }
        let names = dirs.iter().flat_map(|dir| self.children(*dir).values());
        names.filter(|at| **at == id).count() as u32
    }

    pub(crate) fn is_within(&self, id: Id, dir: Id) -> bool {
        id == dir
            || (self.is_dir(dir)
                && self
                    .children(dir)
                    .values()
                    .any(|at| self.is_within(id, *at)))
    }

    pub(crate) fn check_new(&self, place: Place<'_>) -> Answer {
        if self.find(place).is_some() {
            return Err(libc::EEXIST);
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, (dir, name): Place<'_>, node: Node) -> Id {
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        self.children_mut(dir).insert(name.to_vec(), id);
        id
    }

    pub(crate) fn link(&mut self, id: Id, place: Place<'_>) -> Answer {
        if self.is_dir(id) {
            return Err(libc::EPERM);
        }
        self.check_new(place)?;
        self.children_mut(place.0).insert(place.1.to_vec(), id);
        Ok(())
    }

    pub(crate) fn unlink(&mut self, place: Place<'_>) -> Answer {
        let id = self.find(place).ok_or(libc::ENOENT)?;
        if self.is_dir(id) {
            return Err(libc::EISDIR);
        }
        self.children_mut(place.0).remove(place.1);
        Ok(())
    }

    pub(crate) fn rmdir(&mut self, place: Place<'_>) -> Answer {
        let id = self.find(place).ok_or(libc::ENOENT)?;
        if !self.is_dir(id) {
            return Err(libc::ENOTDIR);
        }
        if !self.children(id).is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.children_mut(place.0).remove(place.1);
        Ok(())
    }

    /// Whether the kernel would refuse this rename without asking: a directory into itself.
    pub(crate) fn kernel_refuses(&self, from: Place<'_>, to: Place<'_>, mode: RenameMode) -> bool {
        let into_itself =
            |a: Place<'_>, b: Place<'_>| self.find(a).is_some_and(|id| self.is_within(b.0, id));
        into_itself(from, to) || (mode == RenameMode::Exchange && into_itself(to, from))
    }

    pub(crate) fn rename(&mut self, from: Place<'_>, to: Place<'_>, mode: RenameMode) -> Answer {
        let moved = self.find(from).ok_or(libc::ENOENT)?;
        match (self.find(to), mode) {
            (Some(_), RenameMode::NoReplace) => return Err(libc::EEXIST),
            (None, RenameMode::Exchange) => return Err(libc::ENOENT),
            (Some(other), RenameMode::Exchange) => {
                self.children_mut(from.0).insert(from.1.to_vec(), other);
                self.children_mut(to.0).insert(to.1.to_vec(), moved);
                return Ok(());
            }
            (Some(other), RenameMode::Replace) if other == moved => return Ok(()),
            (Some(other), RenameMode::Replace) => match (self.is_dir(moved), self.is_dir(other)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.children(other).is_empty() => return Err(libc::ENOTEMPTY),
                _ => {}
            },
            (None, _) => {}
        }
        self.children_mut(from.0).remove(from.1);
        self.children_mut(to.0).insert(to.1.to_vec(), moved);
        Ok(())
    }

    pub(crate) fn bytes_mut(&mut self, id: Id) -> &mut Vec<u8> {
        let node = self.nodes.get_mut(&id).expect("a node");
        node.mtime = None;
        match &mut node.what {
            What::File(bytes) => bytes,
            _ => panic!("node {id} is no file"),
        }
    }

    pub(crate) fn write(&mut self, id: Id, at: usize, data: &[u8]) {
        let bytes = self.bytes_mut(id);
        bytes.resize(bytes.len().max(at + data.len()), 0);
        bytes[at..at + data.len()].copy_from_slice(data);
    }
}

impl Node {
    pub(crate) fn new(what: What, ino: Ino, mode: u32) -> Node {
        Node {
            what,
            ino,
            mode,
            mtime: None,
            xattrs: BTreeMap::new(),
        }
    }
}
