//! Of which names the catalog is to be told something, read from the snapshot of the cut.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};

use super::Result;
use super::gather::Gathered;
use super::portion::Standing;
use crate::backend::Xattrs;
use crate::base::{Ino, Name, RelPath};
use crate::index::{Flags, Inode, Snapshot};
use crate::rules::catalog::Description;
use crate::rules::describe::link_group;
use crate::rules::names::NameRules;
use crate::rules::plan::NameKey;

/// A name of the cut, and what was known of it before.
pub(super) struct Subject {
    /// Which name; of the root there is none.
    pub(super) key: Option<NameKey>,
    /// Its name in the mount, where the backend's spelling does not give it.
    pub(super) name: Option<Name>,
    /// Its path on the backend after the batch.
    pub(super) path: RelPath,
    /// What it stands for, as of the cut.
    pub(super) inode: Inode,
    pub(super) xattrs: Xattrs,
    /// Its group of hard links, if it has several names.
    pub(super) link: Option<u64>,
    /// What the catalog says of the name.
    pub(super) known: Option<Description>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Subjects {
    pub(super) names: Vec<Subject>,
    /// Old paths of what stood in the catalog only, and does so no more.
    pub(super) gone: Vec<RelPath>,
}

struct Finder<'a> {
    snapshot: &'a Snapshot,
    rules: &'a NameRules,
    origin: &'a [u8; 16],
    standing: &'a Standing,
    old_dirs: BTreeMap<Ino, Option<RelPath>>,
    new_dirs: BTreeMap<Ino, Option<RelPath>>,
    found: Subjects,
}

/// Finds them: every name of the difference, every marked one at which there is none, and all names of inodes whose attributes have
/// changed.
pub(super) fn find(
    snapshot: &Snapshot,
    rules: &NameRules,
    origin: &[u8; 16],
    gathered: &Gathered,
) -> Result<Subjects> {
    let mut finder = Finder {
        snapshot,
        rules,
        origin,
        standing: &gathered.standing,
        old_dirs: BTreeMap::new(),
        new_dirs: BTreeMap::new(),
        found: Subjects::default(),
    };
    let listed = gathered.delta.names.iter().map(|change| &change.key);
    let mut keys: BTreeSet<NameKey> = listed.chain(&gathered.settled).cloned().collect();
    for ino in &gathered.attributes {
        keys.extend(snapshot.names_of(*ino)?);
    }
    for key in finder.in_tree_order(keys)? {
        finder.look_at(key)?;
    }
    if gathered.attributes.contains(&Ino::ROOT) {
        finder.look_at_root()?;
    }
    Ok(finder.found)
}

impl Finder<'_> {
    /// Names in the order of the directories that hold them on the backend: the mirror of the catalog then finds each near the one before.
    fn in_tree_order(&mut self, keys: BTreeSet<NameKey>) -> Result<Vec<NameKey>> {
        for key in &keys {
            self.old_dir(key.parent)?;
        }
        let mut dirs: Vec<(Ino, &RelPath)> = (self.old_dirs.iter())
            .filter_map(|(ino, path)| Some((*ino, path.as_ref()?)))
            .collect();
        dirs.sort_by(|(_, one), (_, other)| one.in_tree_order(other));
        let ranks = dirs.iter().enumerate();
        let ranks: HashMap<Ino, usize> = ranks.map(|(rank, (ino, _))| (*ino, rank)).collect();
        let mut keys: Vec<NameKey> = keys.into_iter().collect();
        keys.sort_by_key(|key| ranks.get(&key.parent).copied());
        Ok(keys)
    }

    fn old_dir(&mut self, dir: Ino) -> Result<Option<&RelPath>> {
        if let btree_map::Entry::Vacant(unknown) = self.old_dirs.entry(dir) {
            unknown.insert(self.snapshot.backend_dir(dir)?);
        }
        Ok(self.old_dirs.get(&dir).and_then(Option::as_ref))
    }

    fn look_at(&mut self, key: NameKey) -> Result<()> {
        let old = self.old_path(&key)?;
        let known = match &old {
            Some(path) => self.snapshot.description(path)?,
            None => None,
        };
        let is_there = |path: &Option<RelPath>| match path {
            Some(path) => self.snapshot.is_described(path),
            None => Ok(false),
        };
        let fold = self.rules.fold(&key.name);
        let ino = self.snapshot.lookup(&key, &fold)?;
        let inode = match ino {
            Some(ino) => self.snapshot.inode(ino)?,
            None => None,
        };
        let is_special = inode.as_ref().is_some_and(|inode| !inode.kind().is_plain());
        if !is_special && self.snapshot.placed(&key)?.is_none() && is_there(&old)? {
            self.found.gone.extend(old);
        }
        if let Some(inode) = inode
            && let Some(path) = self.new_path(&key)?
        {
            let read = self.rules.decode(&key.name, key.parent == Ino::ROOT);
            let shown = read.unwrap_or_else(|| key.name.clone());
            let exact = self.snapshot.mount_name(&key, &fold)?;
            let name = exact.filter(|exact| *exact != shown);
            self.add((Some(key), name), path, inode, known)?;
        }
        Ok(())
    }

    fn look_at_root(&mut self) -> Result<()> {
        if let Some(inode) = self.snapshot.inode(Ino::ROOT)? {
            let known = self.snapshot.description(&RelPath::root())?;
            self.add((None, None), RelPath::root(), inode, known)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        (key, name): (Option<NameKey>, Option<Name>),
        path: RelPath,
        inode: Inode,
        known: Option<Description>,
    ) -> Result<()> {
        let xattrs = match inode.flags.has(Flags::XATTRS) {
            true => self.snapshot.xattrs(inode.ino)?,
            false => Xattrs::new(),
        };
        let link = match inode.nlink > 1 && !inode.is_dir() {
            true => Some(self.link_of(inode.ino)?),
            false => None,
        };
        self.found.names.push(Subject {
            key,
            name,
            path,
            inode,
            xattrs,
            link,
            known,
        });
        Ok(())
    }

    fn link_of(&self, ino: Ino) -> Result<u64> {
        let found = self.snapshot.link_group_of(ino)?;
        Ok(found.map_or_else(|| link_group(self.origin, ino.0), |group| group.link))
    }

    fn old_path(&mut self, key: &NameKey) -> Result<Option<RelPath>> {
        let dir = self.old_dir(key.parent)?;
        Ok(dir.map(|dir| dir.join(&key.name)))
    }

    fn new_path(&mut self, key: &NameKey) -> Result<Option<RelPath>> {
        if !self.new_dirs.contains_key(&key.parent) {
            let dir = self.standing.path(self.snapshot, key.parent)?;
            self.new_dirs.insert(key.parent, dir);
        }
        let dir = self.new_dirs.get(&key.parent).and_then(Option::as_ref);
        Ok(dir.map(|dir| dir.join(&key.name)))
    }
}
