//! What the index knows of the backend, what differs from the cut, and what a batch must make of
//! it, worked out from the whole trees and name by name, without the planner.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ferryfs::core::{Ino, Name, ObjectId, RelPath, Timestamp};
use ferryfs::format::steps::PlainKind;
use ferryfs::plan::planner::{
    Delta, DirPaths, LeftReason, NOBODY, NameChange, NameKey, NewContent, NewEntry, OldEntry,
    Placed, Plan, StageSource,
};

use super::disk::{Disk, Listing, Node, Version};
use super::tree::{Inode, Tree, key};

/// What the backend has under a name: whose it is, and the version (`None`: a directory).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) ino: Ino,
    pub(crate) version: Option<Version>,
}

/// The backend's tree as the index has it.
pub(crate) type Records = BTreeMap<NameKey, Record>;

/// Chances that are the same whenever asked, so that a failure can be replayed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chance(pub u64);

impl Chance {
    pub(crate) fn one_in(self, n: u64, salt: u64, thing: u64) -> bool {
        let mut x = self.0 ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ thing.wrapping_mul(0xbf58);
        for _ in 0..3 {
            x ^= x >> 30;
            x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x ^= x >> 27;
        }
        x.is_multiple_of(n)
    }
}

/// The backend's records and the cut, side by side.
pub(crate) struct World<'a> {
    pub(crate) records: &'a Records,
    pub(crate) cut: Records,
    pub(crate) chance: Chance,
    old_paths: HashMap<Ino, RelPath>,
    new_paths: HashMap<Ino, RelPath>,
}

/// What a batch must lead to.
pub(crate) struct Expected {
    pub(crate) records: Records,
    /// Names whose old entry moves elsewhere.
    pub(crate) moved_from: BTreeSet<NameKey>,
    pub(crate) left: BTreeMap<NameKey, LeftReason>,
    pub(crate) leftovers: BTreeSet<NameKey>,
}

fn dir_paths(records: &Records) -> HashMap<Ino, RelPath> {
    let mut paths = HashMap::from([(Ino::ROOT, RelPath::root())]);
    loop {
        let before = paths.len();
        for (key, record) in records.iter().filter(|it| it.1.version.is_none()) {
            if let Some(path) = paths.get(&key.parent).map(|dir| dir.join(&key.name)) {
                paths.insert(record.ino, path);
            }
        }
        if paths.len() == before {
            return paths;
        }
    }
}

/// The records as a tree of paths.
pub(crate) fn listing(records: &Records) -> Listing {
    let paths = dir_paths(records);
    let mut listing = Listing::from([(String::new(), None)]);
    for (key, record) in records {
        let dir = paths.get(&key.parent).expect("a record below nothing");
        listing.insert(format!("/{}", dir.join(&key.name)), record.version);
    }
    listing
}

/// A backend that holds what the records say.
pub(crate) fn disk(records: &Records, folds: bool) -> Disk {
    fn node(records: &Records, record: Record) -> Node {
        let Some(version) = record.version else {
            let below = records.iter().filter(|it| it.0.parent == record.ino);
            let entries = below
                .map(|(key, &record)| (key.name.to_string(), node(records, record)))
                .collect();
            let ino = Some(record.ino);
            return Node::Directory { ino, entries };
        };
        Node::File(version)
    }
    let (ino, version) = (Ino::ROOT, None);
    let root = node(records, Record { ino, version });
    let slots = BTreeMap::new();
    Disk { root, slots, folds }
}

/// The names in `these` but not in `others`, in order.
fn lacking(these: &BTreeSet<NameKey>, others: &BTreeSet<NameKey>) -> Vec<NameKey> {
    these.difference(others).cloned().collect()
}

impl<'a> World<'a> {
    pub(crate) fn new(records: &'a Records, tree: &Tree, chance: Chance) -> World<'a> {
        let record = |ino: Ino| match &tree.inodes[&ino] {
            Inode::Directory(_) => Record { ino, version: None },
            Inode::File(version) => Record {
                ino,
                version: Some(*version),
            },
        };
        let names = tree.names().into_iter();
        let cut = names.map(|(dir, name, ino)| (key(dir, &name), record(ino)));
        let cut: Records = cut.collect();
        World {
            old_paths: dir_paths(records),
            new_paths: dir_paths(&cut),
            records,
            cut,
            chance,
        }
    }

    fn names_of(records: &Records, ino: Ino) -> BTreeSet<NameKey> {
        let names = records.iter().filter(|it| it.1.ino == ino);
        names.map(|it| it.0.clone()).collect()
    }

    /// What the cut knows of an inode's content.
    fn content(&self, ino: Ino, version: Option<Version>) -> NewContent {
        let Some(now) = version else {
            return NewContent::Directory;
        };
        if self.chance.one_in(5, 1, ino.0) {
            return NewContent::Live;
        }
        let modified = Timestamp(now.time);
        let object = StageSource::Object {
            ino,
            object: ObjectId(now.bytes),
            modified,
        };
        let mut old = self.records.iter().filter(|it| it.1.ino == ino).peekable();
        let source = old.peek().map(|(key, _)| StageSource::Backend {
            ino,
            path: self.old_paths[&key.parent].join(&key.name),
            modified,
        });
        if source.is_none() && self.chance.one_in(7, 2, ino.0) {
            return NewContent::Unchanged { copy: None };
        }
        let versions: Vec<Version> = old.filter_map(|it| it.1.version).collect();
        if versions.is_empty() || versions.iter().any(|it| it.bytes != now.bytes) {
            return NewContent::Changed(object);
        }
        let copy = match (
            self.chance.one_in(3, 3, ino.0),
            self.chance.one_in(2, 4, ino.0),
        ) {
            (true, _) => None,
            (false, true) => source,
            (false, false) => Some(object),
        };
        if versions.iter().all(|it| it.time == now.time) {
            NewContent::Unchanged { copy }
        } else {
            NewContent::Touched { modified, copy }
        }
    }

    /// All contents of the cut, by inode.
    fn contents(&self) -> BTreeMap<Ino, NewContent> {
        let files = self.cut.values();
        files
            .map(|record| (record.ino, self.content(record.ino, record.version)))
            .collect()
    }

    pub(crate) fn delta(&self) -> Delta {
        let contents = self.contents();
        let mut delta = Delta::default();
        let keys: BTreeSet<&NameKey> = self.records.keys().chain(self.cut.keys()).collect();
        for (number, key) in keys.into_iter().enumerate() {
            let (old, new) = (self.records.get(key), self.cut.get(key));
            let is_listed = |record: &&Record| {
                matches!(
                    contents.get(&record.ino),
                    Some(NewContent::Changed(_) | NewContent::Touched { .. } | NewContent::Live)
                )
            };
            let same = old.map(|it| it.ino) == new.map(|it| it.ino);
            let listed = !same
                || old.iter().chain(&new).any(is_listed)
                || self.chance.one_in(6, 5, number as u64);
            if !listed {
                continue;
            }
            let paths = DirPaths {
                old: self.old_paths.get(&key.parent).cloned(),
                new: self.new_paths.get(&key.parent).cloned(),
            };
            delta.dirs.insert(key.parent, paths);
            delta.names.push(NameChange {
                key: key.clone(),
                old: old.map(|record| OldEntry {
                    ino: record.ino,
                    kind: match record.version {
                        Some(_) => PlainKind::File,
                        None => PlainKind::Directory,
                    },
                }),
                new: new.map(|record| NewEntry {
                    ino: record.ino,
                    content: contents[&record.ino].clone(),
                }),
            });
        }
        delta
    }

    /// What the backend must have after the batch.
    pub(crate) fn expected(&self) -> Expected {
        let mut expected = Expected {
            records: Records::new(),
            moved_from: BTreeSet::new(),
            left: BTreeMap::new(),
            leftovers: BTreeSet::new(),
        };
        let mut unfilled = Vec::new();
        for (ino, content) in self.contents() {
            self.expect_inode(ino, &content, &mut expected, &mut unfilled);
        }
        for key in unfilled {
            let there = self.records.get(&key).filter(|it| it.version.is_some());
            if let Some(&record) = there.filter(|_| !expected.moved_from.contains(&key)) {
                let ino = NOBODY;
                expected
                    .records
                    .insert(key.clone(), Record { ino, ..record });
                expected.leftovers.insert(key);
            }
        }
        expected
    }

    fn expect_inode(
        &self,
        ino: Ino,
        content: &NewContent,
        expected: &mut Expected,
        unfilled: &mut Vec<NameKey>,
    ) {
        let (old, new) = (
            World::names_of(self.records, ino),
            World::names_of(&self.cut, ino),
        );
        let (leaving, coming) = (lacking(&old, &new), lacking(&new, &old));
        let is_changed = matches!(content, NewContent::Changed(_));
        let is_live = *content == NewContent::Live;
        let mut moves = coming.iter().zip(&leaving);
        let without = match content {
            NewContent::Live => Some(LeftReason::OpenForWriting),
            NewContent::Unchanged { copy: None } | NewContent::Touched { copy: None, .. } => {
                Some(LeftReason::NoSource)
            }
            _ => None,
        };
        for key in &new {
            let from = moves.clone().find(|it| it.0 == key).map(|it| it.1);
            let from = from.or(old.get(key));
            match (from, without) {
                (None, Some(reason)) => {
                    expected.left.insert(key.clone(), reason);
                    unfilled.push(key.clone());
                }
                (Some(from), _) if is_live => {
                    (expected.left).insert(key.clone(), LeftReason::OpenForWriting);
                    expected.records.insert(key.clone(), self.records[from]);
                }
                _ => drop(expected.records.insert(key.clone(), self.cut[key])),
            }
        }
        if !is_changed {
            expected
                .moved_from
                .extend(moves.by_ref().map(|it| it.1.clone()));
        }
    }

    /// The new paths of the names that a plan brings up to date.
    pub(crate) fn paths_after(&self, plan: &Plan) -> BTreeSet<RelPath> {
        let left: BTreeSet<&NameKey> = plan.left_behind.iter().map(|left| &left.key).collect();
        let outcomes = plan.outcomes.iter();
        let told = outcomes.filter(|it| it.placed != Placed::Nothing && !left.contains(&it.key));
        told.filter_map(|it| Some(self.new_paths.get(&it.key.parent)?.join(&it.key.name)))
            .collect()
    }

    /// What the index concludes from a plan that has been carried out.
    pub(crate) fn concluded(&self, plan: &Plan, staged: &BTreeMap<u32, Version>) -> Records {
        let mut records = self.records.clone();
        for outcome in &plan.outcomes {
            let record = match &outcome.placed {
                Placed::Nothing => {
                    records.remove(&outcome.key);
                    continue;
                }
                &Placed::Directory(ino) => Record { ino, version: None },
                Placed::Kept {
                    ino,
                    from,
                    modified,
                } => {
                    let mut version = self.records[from].version.expect("a file was kept");
                    version.time = modified.map_or(version.time, |it| it.0);
                    let version = Some(version);
                    Record { ino: *ino, version }
                }
                &Placed::Staged { ino, slot } => Record {
                    ino,
                    version: Some(staged[&slot.0]),
                },
            };
            records.insert(outcome.key.clone(), record);
        }
        for key in &plan.leftovers {
            records.get_mut(key).expect("a leftover exists").ino = NOBODY;
        }
        records
    }
}

/// The name as text.
pub(crate) fn text(name: &Name) -> String {
    name.to_string()
}
