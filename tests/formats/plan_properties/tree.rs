//! The tree that scripts see, and random edits of it.

use std::collections::{BTreeMap, BTreeSet};

use ferryfs::core::{Ino, Name};
use ferryfs::plan::planner::NameKey;

use super::disk::Version;

#[derive(Clone, Debug)]
pub(crate) enum Inode {
    Directory(BTreeMap<String, Ino>),
    File(Version),
}

/// A tree of inodes; a file may have several names.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) inodes: BTreeMap<Ino, Inode>,
    next: u64,
    /// Refuses two names in one directory that differ only in case.
    folds: bool,
}

/// One edit; the numbers pick among what there is.
#[derive(Clone, Debug)]
pub(crate) struct Edit {
    pub(crate) what: u8,
    pub(crate) one: u16,
    pub(crate) two: u16,
    pub(crate) name: u8,
}

const NAMES: [&str; 6] = ["a", "b", "A", "c", "B", "d"];

pub(crate) fn key(parent: Ino, name: &str) -> NameKey {
    let name = Name::new(name.as_bytes()).unwrap();
    NameKey { parent, name }
}

impl Tree {
    pub(crate) fn new(folds: bool) -> Tree {
        let root = Inode::Directory(BTreeMap::new());
        let inodes = BTreeMap::from([(Ino::ROOT, root)]);
        let next = 2;
        Tree {
            inodes,
            next,
            folds,
        }
    }

    pub(crate) fn entries(&self, dir: Ino) -> &BTreeMap<String, Ino> {
        match &self.inodes[&dir] {
            Inode::Directory(entries) => entries,
            Inode::File(_) => panic!("no directory"),
        }
    }

    fn entries_mut(&mut self, dir: Ino) -> &mut BTreeMap<String, Ino> {
        match self.inodes.get_mut(&dir) {
            Some(Inode::Directory(entries)) => entries,
            _ => panic!("no directory"),
        }
    }

    pub(crate) fn dirs(&self) -> Vec<Ino> {
        let is_dir = |it: &(&Ino, &Inode)| matches!(it.1, Inode::Directory(_));
        self.inodes.iter().filter(is_dir).map(|it| *it.0).collect()
    }

    /// Every name in the tree with its inode.
    pub(crate) fn names(&self) -> Vec<(Ino, String, Ino)> {
        let mut names = Vec::new();
        for dir in self.dirs() {
            for (name, ino) in self.entries(dir) {
                names.push((dir, name.clone(), *ino));
            }
        }
        names
    }

    /// Whether the directory `inner` is `outer` or below it.
    fn is_within(&self, inner: Ino, outer: Ino) -> bool {
        inner == outer
            || matches!(&self.inodes[&outer], Inode::Directory(entries)
                if entries.values().any(|&it| self.is_within(inner, it)))
    }

    fn spelled(&self, dir: Ino, name: &str) -> Option<String> {
        let same = |it: &&String| *it == name || (self.folds && it.eq_ignore_ascii_case(name));
        self.entries(dir).keys().find(same).cloned()
    }

    fn add(&mut self, inode: Inode) -> Ino {
        let ino = Ino(self.next);
        self.next += 1;
        self.inodes.insert(ino, inode);
        ino
    }

    /// Gives `ino` the name, in place of whatever has it.
    fn put(&mut self, dir: Ino, name: &str, ino: Ino) {
        if let Some(there) = self.spelled(dir, name) {
            self.entries_mut(dir).remove(&there);
        }
        self.entries_mut(dir).insert(name.to_owned(), ino);
    }

    fn rename(&mut self, from: (Ino, String, Ino), dir: Ino, name: &str) {
        let (old_dir, old_name, ino) = from;
        let replaced = self.spelled(dir, name).map(|it| self.entries(dir)[&it]);
        let lost = replaced.is_some_and(|it| it != ino && self.is_within(old_dir, it));
        if self.is_within(dir, ino) || lost {
            return;
        }
        self.entries_mut(old_dir).remove(&old_name);
        self.put(dir, name, ino);
    }

    fn swap(&mut self, one: (Ino, String, Ino), two: (Ino, String, Ino)) {
        if self.is_within(one.0, two.2) || self.is_within(two.0, one.2) {
            return;
        }
        self.entries_mut(one.0).insert(one.1, two.2);
        self.entries_mut(two.0).insert(two.1, one.2);
    }

    /// The directory under the name takes the place of the one that holds it, which goes below it.
    fn invert(&mut self, child: (Ino, String, Ino)) {
        let (parent, name, ino) = child;
        let above = self.names().into_iter().find(|it| it.2 == parent);
        let (Some(above), Inode::Directory(_)) = (above, &self.inodes[&ino]) else {
            return;
        };
        self.entries_mut(parent).remove(&name);
        self.put(above.0, &above.1, ino);
        self.put(ino, &name, parent);
    }

    pub(crate) fn edit(&mut self, edit: &Edit) {
        let dirs = self.dirs();
        let dir = dirs[usize::from(edit.two) % dirs.len()];
        let name = NAMES[usize::from(edit.name) % NAMES.len()];
        let stamp = self.next as i64;
        let version = |bytes| Version { bytes, time: stamp };
        match edit.what % 12 {
            0 | 1 => {
                let ino = self.add(Inode::File(version(self.next)));
                self.put(dir, name, ino);
            }
            2 => {
                let ino = self.add(Inode::Directory(BTreeMap::new()));
                self.put(dir, name, ino);
            }
            what => self.edit_name(what, edit, dir, name),
        }
        self.forget_unreachable();
    }

    /// An edit that only adds: a file, a directory or a further name of a file, where the name is
    /// free.
    pub(crate) fn grow(&mut self, edit: &Edit) {
        let dirs = self.dirs();
        let dir = dirs[usize::from(edit.two) % dirs.len()];
        let name = NAMES[usize::from(edit.name) % NAMES.len()];
        let what = [0, 2, 7][usize::from(edit.what % 3)];
        if self.spelled(dir, name).is_none() && !(what == 7 && self.is_directory(edit)) {
            self.edit(&Edit {
                what,
                ..edit.clone()
            });
        }
    }

    fn is_directory(&self, edit: &Edit) -> bool {
        let names = self.names();
        let one = names.get(usize::from(edit.one) % names.len().max(1));
        one.is_none_or(|it| matches!(self.inodes[&it.2], Inode::Directory(_)))
    }

    fn edit_name(&mut self, what: u8, edit: &Edit, dir: Ino, name: &str) {
        let names = self.names();
        if names.is_empty() {
            return;
        }
        let one = names[usize::from(edit.one) % names.len()].clone();
        let two = names[usize::from(edit.two) % names.len()].clone();
        let is_file = matches!(self.inodes[&one.2], Inode::File(_));
        match what {
            3..=5 => self.rename(one, dir, name),
            6 => drop(self.entries_mut(one.0).remove(&one.1)),
            7 if is_file => self.put(dir, name, one.2),
            7 => self.invert(one),
            8 => self.swap(one, two),
            9 => {
                let flipped = match one.1.to_ascii_uppercase() {
                    upper if upper == one.1 => one.1.to_ascii_lowercase(),
                    upper => upper,
                };
                self.rename(one.clone(), one.0, &flipped);
            }
            _ => {
                let stamp = self.next;
                self.next += 1;
                if let Some(Inode::File(version)) = self.inodes.get_mut(&one.2) {
                    version.time = stamp as i64;
                    if what == 10 {
                        version.bytes = stamp;
                    }
                }
            }
        }
    }

    fn forget_unreachable(&mut self) {
        let mut reached = BTreeSet::new();
        let mut open = vec![Ino::ROOT];
        while let Some(ino) = open.pop() {
            reached.insert(ino);
            if let Inode::Directory(entries) = &self.inodes[&ino] {
                open.extend(entries.values());
            }
        }
        self.inodes.retain(|ino, _| reached.contains(ino));
    }
}
