//! What is on the medium of a [`super::MemoryBackend`]: chains of clusters, and directories that point at them.
//!
//! As on exFAT the entry of a file is all that is known of it: name, kind, size, time, and where its bytes begin. A
//! directory is a chain that holds entries in numbered slots. While nothing has crashed, each chain has one entry, each
//! name of a directory one slot, and no entry points at clusters that are marked free; a crash may break all three, and
//! [`Medium::damage`] tells where.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{MemNode, MemoryOptions};
use crate::backend::{Metadata, Xattrs};
use crate::base::{FileKind, Name, RelPath, Timestamp};
use crate::rules::space::entry_bytes;

/// Number of a chain of clusters. Those of the root are [`ROOT`].
pub(super) type Chain = u64;
/// Where in its directory an entry stands.
pub(super) type Slot = u64;

/// The chain of the root directory.
pub(super) const ROOT: Chain = 0;

/// What an entry says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File {
        size: u64,
    },
    Directory,
    Symlink(Vec<u8>),
    /// With the number of a device, else 0.
    Special(FileKind, u32),
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As it was spelled.
    pub(super) name: Name,
    /// As it is looked up.
    pub(super) key: Vec<u8>,
    /// What open files know it by, and what all names of one file have in common. Not on the medium: new after each crash.
    pub(super) id: u64,
    pub(super) kind: Kind,
    /// `None` for a symbolic link, and for a file that has never had a byte.
    pub(super) chain: Option<Chain>,
    pub(super) modified: Timestamp,
    pub(super) permissions: u32,
    /// Owner and group.
    pub(super) owner: (u32, u32),
    pub(super) xattrs: Xattrs,
}

impl Entry {
    /// What it is; `nlink` is the number of its names.
    pub(super) fn metadata(&self, nlink: u32) -> Metadata {
        let (kind, size, target) = match &self.kind {
            Kind::File { size } => (FileKind::Regular, *size, None),
            Kind::Directory => (FileKind::Directory, 0, None),
            Kind::Symlink(target) => (FileKind::Symlink, target.len() as u64, Some(target.clone())),
            Kind::Special(kind, _) => (*kind, 0, None),
        };
        let rdev = match self.kind {
            Kind::Special(_, rdev) => rdev,
            _ => 0,
        };
        Metadata {
            kind,
            size,
            modified: self.modified,
            permissions: self.permissions,
            target,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev,
            nlink,
            file: (nlink > 1).then_some(self.id),
        }
    }
}

/// The entries of a directory, by slot.
pub(super) type Slots = BTreeMap<Slot, Entry>;

/// What a chain of clusters holds.
#[derive(Clone, Debug)]
pub(super) enum Cluster {
    Bytes(Arc<Vec<u8>>),
    Directory(Slots),
}

/// All of a medium.
#[derive(Clone, Debug)]
pub(super) struct Medium {
    pub(super) chains: BTreeMap<Chain, Cluster>,
    /// Chains that an entry points at although they are marked free: the next file may be given them.
    pub(super) loose: BTreeSet<Chain>,
    /// What the root is itself. It has no name.
    pub(super) root: Entry,
}

impl Default for Medium {
    fn default() -> Medium {
        let root = Cluster::Directory(Slots::new());
        Medium {
            chains: BTreeMap::from([(ROOT, root)]),
            loose: BTreeSet::new(),
            root: Entry {
                name: Name::new(b"root").expect("a name"),
                key: Vec::new(),
                id: 0,
                kind: Kind::Directory,
                chain: Some(ROOT),
                modified: Timestamp(0),
                permissions: 0o755,
                owner: (0, 0),
                xattrs: Xattrs::new(),
            },
        }
    }
}

static NOTHING: Slots = Slots::new();

impl Medium {
    /// The entries of the directory `chain`. Clusters that hold a file's bytes by now read as an empty one: what is no
    /// entry the driver skips.
    pub(super) fn slots(&self, chain: Chain) -> &Slots {
        match self.chains.get(&chain) {
            Some(Cluster::Directory(slots)) => slots,
            _ => &NOTHING,
        }
    }

    /// The same, to be changed. Whatever else the clusters held is overwritten.
    pub(super) fn slots_mut(&mut self, chain: Chain) -> &mut Slots {
        let cluster = self.chains.entry(chain).or_insert_with(empty_directory);
        if !matches!(cluster, Cluster::Directory(_)) {
            *cluster = empty_directory();
        }
        match cluster {
            Cluster::Directory(slots) => slots,
            Cluster::Bytes(_) => unreachable!("made a directory just now"),
        }
    }

    /// The first entry under a folded name, as a driver finds it.
    pub(super) fn lookup(&self, dir: Chain, key: &[u8]) -> Option<(Slot, &Entry)> {
        let mut slots = self.slots(dir).iter();
        slots
            .find(|(_, entry)| entry.key == key)
            .map(|(slot, entry)| (*slot, entry))
    }

    /// The entry of an open file, and where it stands.
    pub(super) fn by_id(&self, id: u64) -> Option<(Chain, Slot, &Entry)> {
        self.each().find(|(_, _, entry)| entry.id == id)
    }

    /// How many names a file has.
    pub(super) fn names_of(&self, id: u64) -> u32 {
        self.each().filter(|(_, _, entry)| entry.id == id).count() as u32
    }

    /// All entries, those of directories that nothing leads to any more as well.
    pub(super) fn entries(&self) -> Vec<(Chain, Slot, &Entry)> {
        self.each().collect()
    }

    fn each(&self) -> impl Iterator<Item = (Chain, Slot, &Entry)> {
        let directories = self
            .chains
            .iter()
            .filter_map(|(chain, cluster)| match cluster {
                Cluster::Directory(slots) => Some((*chain, slots)),
                Cluster::Bytes(_) => None,
            });
        directories
            .flat_map(|(chain, slots)| slots.iter().map(move |(slot, entry)| (chain, *slot, entry)))
    }

    /// Whether any entry points at `chain`.
    pub(super) fn is_referenced(&self, chain: Chain) -> bool {
        self.each().any(|(_, _, entry)| entry.chain == Some(chain))
    }

    /// The bytes of a file as a reader gets them: what its chain holds, and garbage where that ends before its size.
    pub(super) fn bytes(&self, entry: &Entry) -> Arc<Vec<u8>> {
        let Kind::File { size } = entry.kind else {
            return Arc::default();
        };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let chain = entry.chain.unwrap_or(ROOT);
        match entry.chain.and_then(|chain| self.chains.get(&chain)) {
            Some(Cluster::Bytes(bytes)) if bytes.len() == size => Arc::clone(bytes),
            Some(Cluster::Bytes(bytes)) => {
                let whole = &bytes[..bytes.len().min(size)];
                let mut seen = whole.to_vec();
                seen.extend((seen.len()..size).map(|at| garbage(chain, at)));
                Arc::new(seen)
            }
            _ => Arc::new((0..size).map(|at| garbage(chain, at)).collect()),
        }
    }

    /// Bytes that all files together take, shared ones once; with clusters, those of all files and directories.
    pub(super) fn used(&self, options: &MemoryOptions) -> u64 {
        let cluster = options.cluster.unwrap_or(1);
        let mut seen = BTreeSet::new();
        let mut total = 0;
        for (_, _, entry) in self.entries() {
            if let (Kind::File { size }, Some(chain)) = (&entry.kind, entry.chain)
                && seen.insert(chain)
            {
                total += size.next_multiple_of(cluster);
            }
        }
        let directories = self.chains.values().filter_map(|chain| match chain {
            Cluster::Directory(slots) if options.cluster.is_some() => Some(slots),
            _ => None,
        });
        let entries = |slots: &Slots| -> u64 {
            let names = slots.values().map(|entry| entry.name.as_bytes().len());
            names.map(entry_bytes).sum()
        };
        total
            + directories
                .map(|slots| entries(slots).max(1).next_multiple_of(cluster))
                .sum::<u64>()
    }

    /// Calls `visit` with every entry that can be reached from the root and its path, parents first. A directory that a
    /// crash has put below itself is told, but not entered again.
    pub(super) fn walk<'a>(&'a self, visit: &mut dyn FnMut(RelPath, Chain, &'a Entry)) {
        self.walk_below(&RelPath::root(), &mut vec![ROOT], visit);
    }

    fn walk_below<'a>(
        &'a self,
        path: &RelPath,
        above: &mut Vec<Chain>,
        visit: &mut dyn FnMut(RelPath, Chain, &'a Entry),
    ) {
        let dir = *above.last().unwrap_or(&ROOT);
        for entry in self.slots(dir).values() {
            let path = path.join(&entry.name);
            visit(path.clone(), dir, entry);
            if let (Kind::Directory, Some(chain)) = (&entry.kind, entry.chain)
                && !above.contains(&chain)
            {
                above.push(chain);
                self.walk_below(&path, above, visit);
                above.pop();
            }
        }
    }

    /// All of it, by paths as they are spelled. Of several entries under one name the one that a driver finds.
    pub(super) fn export(&self) -> BTreeMap<RelPath, MemNode> {
        let mut tree = BTreeMap::new();
        self.walk(&mut |path, _, entry| {
            let node = match &entry.kind {
                Kind::File { .. } => MemNode::File {
                    bytes: self.bytes(entry),
                    modified: entry.modified,
                },
                Kind::Directory => MemNode::Directory,
                Kind::Symlink(target) => MemNode::Symlink {
                    target: target.clone(),
                },
                Kind::Special(kind, rdev) => MemNode::Special {
                    kind: *kind,
                    rdev: *rdev,
                },
            };
            tree.entry(path).or_insert(node);
        });
        tree
    }

    /// What a check of the file system would complain of, one line each.
    pub(super) fn damage(&self) -> Vec<String> {
        let mut owners: BTreeMap<Chain, (u64, RelPath)> = BTreeMap::new();
        let mut names: BTreeMap<(Chain, &[u8]), RelPath> = BTreeMap::new();
        let mut dirs: BTreeMap<Chain, RelPath> = BTreeMap::new();
        let mut told = Vec::new();
        self.walk(&mut |path, dir, entry| {
            // What is below a directory that is seen twice is seen twice as well: telling the directory is enough.
            let up = path.split_last().map_or_else(RelPath::root, |it| it.0);
            if *dirs.entry(dir).or_insert_with(|| up.clone()) != up {
                return;
            }
            if let Some(other) = names.insert((dir, &entry.key), path.clone()) {
                told.push(format!("{path} and {other}: one name"));
            }
            let Some(chain) = entry.chain else { return };
            if self.loose.contains(&chain) {
                told.push(format!("{path}: its clusters are marked free"));
            }
            let fits = matches!(
                (&entry.kind, self.chains.get(&chain)),
                (Kind::Directory, Some(Cluster::Directory(_)))
                    | (Kind::File { .. }, Some(Cluster::Bytes(_)))
            );
            if !fits {
                told.push(format!("{path}: its clusters hold something else"));
            }
            if let Some((id, other)) = owners.insert(chain, (entry.id, path.clone()))
                && id != entry.id
            {
                told.push(format!("{path} and {other}: the same clusters"));
            }
        });
        told
    }
}

fn empty_directory() -> Cluster {
    Cluster::Directory(Slots::new())
}

/// What stands on the medium where nothing was written: never the same for two chains, and no zeros.
pub(super) fn garbage(chain: Chain, at: usize) -> u8 {
    let mixed = (chain.wrapping_mul(31)).wrapping_add((at as u64).wrapping_mul(7));
    (mixed % 127) as u8 | 0x80
}
