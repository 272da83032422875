//! Finds the names that the catalog may have to describe, in the snapshot of the cut.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map};

use crate::core::{Ino, Name, RelPath, Xattrs};
use crate::error::Result;
use crate::format::catalog::Description;
use crate::index::{Flags, Inode, Snapshot};
use crate::plan::describe::link_group;
use crate::plan::names::NameRules;
use crate::plan::planner::NameKey;

/// A name of the cut, and what the catalog says of it so far.
pub(crate) struct NameOfCut {
    /// The name; `None` for the root.
    pub(crate) key: Option<NameKey>,
    /// Its name in the mount, if the backend's spelling does not give it.
    pub(crate) name: Option<Name>,
    /// Its path on the backend after the batch.
    pub(crate) path: RelPath,
    /// The inode of the name, as of the cut.
    pub(crate) inode: Inode,
    pub(crate) xattrs: Xattrs,
    /// Its group of hard links, if it has several names.
    pub(crate) link: Option<u64>,
    /// The description in the catalog before the batch.
    pub(crate) known: Option<Description>,
}

/// All names found.
#[derive(Default)]
pub(crate) struct Subjects {
    pub(crate) names: Vec<NameOfCut>,
    /// Old paths of names that existed in the catalog only, and no longer do.
    pub(crate) gone: Vec<RelPath>,
}

/// The paths of directories on the backend after the batch.
pub(crate) trait NewDirs {
    /// Returns the path of `dir`, if it has one.
    fn path(&self, snapshot: &Snapshot, dir: Ino) -> Result<Option<RelPath>>;
}

/// What a batch affects.
pub(crate) struct Concerned<'a> {
    /// The names of its difference, and marked names without a difference.
    pub(crate) keys: BTreeSet<NameKey>,
    /// Inodes whose attributes have changed.
    pub(crate) attributes: &'a BTreeSet<Ino>,
    pub(crate) new_dirs: &'a dyn NewDirs,
    /// Names that the batch does not make.
    pub(crate) apart: &'a HashSet<NameKey>,
}

struct Finder<'a> {
    snapshot: &'a Snapshot,
    rules: &'a NameRules,
    origin: &'a [u8; 16],
    dirs_after: &'a dyn NewDirs,
    apart: &'a HashSet<NameKey>,
    old_dirs: BTreeMap<Ino, Option<RelPath>>,
    new_dirs: BTreeMap<Ino, Option<RelPath>>,
    found: Subjects,
}

/// Finds the candidates: every name of the difference, every marked name without a difference, and
/// all names of inodes whose attributes have changed.
pub(crate) fn find(
    snapshot: &Snapshot,
    rules: &NameRules,
    origin: &[u8; 16],
    concerned: Concerned<'_>,
) -> Result<Subjects> {
    let mut finder = Finder {
        snapshot,
        rules,
        origin,
        dirs_after: concerned.new_dirs,
        apart: concerned.apart,
        old_dirs: BTreeMap::new(),
        new_dirs: BTreeMap::new(),
        found: Subjects::default(),
    };
    let mut keys = concerned.keys;
    for ino in concerned.attributes {
        keys.extend(snapshot.names_of(*ino)?);
    }
    for key in finder.in_tree_order(keys)? {
        finder.look_at(key)?;
    }
    if concerned.attributes.contains(&Ino::ROOT) {
        finder.look_at_root()?;
    }
    Ok(finder.found)
}

impl Finder<'_> {
    /// Sorts names by the directories that hold them on the backend, so that the catalog's mirror
    /// finds each name near the one before.
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
        let is_apart = self.apart.contains(&key);
        if let Some(inode) = inode.filter(|inode| !inode.flags.has(Flags::LOCAL) && !is_apart)
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
        self.found.names.push(NameOfCut {
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
            let dir = self.dirs_after.path(self.snapshot, key.parent)?;
            self.new_dirs.insert(key.parent, dir);
        }
        let dir = self.new_dirs.get(&key.parent).and_then(Option::as_ref);
        Ok(dir.map(|dir| dir.join(&key.name)))
    }
}
