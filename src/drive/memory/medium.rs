//! The medium of a [`crate::drive::memory::MemoryBackend`]: chains of clusters, and directories
//! that point at them.
//!
//! As on exFAT, the entry of a file is its only metadata: name, kind, size, time, and where its
//! bytes begin. A directory is a chain that holds entries in numbered slots. Invariant without a
//! crash: each chain has one entry, each name of a directory one slot, and no entry points at
//! clusters that are marked free. A crash may break all three; [`Medium::damage`] returns where.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::core::{FileKind, Metadata, Name, RelPath, Timestamp, Xattrs};
use crate::drive::memory::{MemNode, MemoryOptions};
use crate::plan::space::entry_bytes;

/// Number of a chain of clusters. Those of the root are [`ROOT`].
pub(super) type ChainNo = u64;
/// The position of an entry in its directory.
pub(super) type DirSlot = u64;

/// The chain of the root directory.
pub(super) const ROOT: ChainNo = 0;

/// The type that an entry states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
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
pub(super) struct DirEntry {
    /// The name as it was spelled.
    pub(super) name: Name,
    /// The folded name, for lookups.
    pub(super) key: Vec<u8>,
    /// Identifies the file for open files, and connects all names of one file. It is not on the
    /// medium: new after each crash.
    pub(super) id: u64,
    pub(super) kind: EntryKind,
    /// `None` for a symbolic link, and for a file that has never had a byte.
    pub(super) chain: Option<ChainNo>,
    pub(super) modified: Timestamp,
    pub(super) permissions: u32,
    /// Owner and group.
    pub(super) owner: (u32, u32),
    pub(super) xattrs: Xattrs,
}

impl DirEntry {
    /// Returns the metadata; `nlink` is the number of its names.
    pub(super) fn metadata(&self, nlink: u32) -> Metadata {
        let (kind, size, target) = match &self.kind {
            EntryKind::File { size } => (FileKind::Regular, *size, None),
            EntryKind::Directory => (FileKind::Directory, 0, None),
            EntryKind::Symlink(target) => {
                (FileKind::Symlink, target.len() as u64, Some(target.clone()))
            }
            EntryKind::Special(kind, _) => (*kind, 0, None),
        };
        let rdev = match self.kind {
            EntryKind::Special(_, rdev) => rdev,
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
pub(super) type DirSlots = BTreeMap<DirSlot, DirEntry>;

/// The contents of a chain of clusters.
#[derive(Clone, Debug)]
pub(super) enum Cluster {
    Bytes(Arc<Vec<u8>>),
    Directory(DirSlots),
}

/// A whole medium.
#[derive(Clone, Debug)]
pub(super) struct Medium {
    pub(super) chains: BTreeMap<ChainNo, Cluster>,
    /// Chains that an entry points at although they are marked free: the next file may get them.
    pub(super) loose: BTreeSet<ChainNo>,
    /// The attributes of the root. It has no name.
    pub(super) root: DirEntry,
}

impl Default for Medium {
    fn default() -> Medium {
        let root = Cluster::Directory(DirSlots::new());
        Medium {
            chains: BTreeMap::from([(ROOT, root)]),
            loose: BTreeSet::new(),
            root: DirEntry {
                name: Name::new(b"root").expect("a name"),
                key: Vec::new(),
                id: 0,
                kind: EntryKind::Directory,
                chain: Some(ROOT),
                modified: Timestamp(0),
                permissions: 0o755,
                owner: (0, 0),
                xattrs: Xattrs::new(),
            },
        }
    }
}

static NOTHING: DirSlots = DirSlots::new();

impl Medium {
    /// Returns the entries of the directory `chain`. Clusters that now hold a file's bytes read as
    /// an empty directory: the driver skips what is no entry.
    pub(super) fn slots(&self, chain: ChainNo) -> &DirSlots {
        match self.chains.get(&chain) {
            Some(Cluster::Directory(slots)) => slots,
            _ => &NOTHING,
        }
    }

    /// The same, mutable. Any other contents of the clusters are overwritten.
    pub(super) fn slots_mut(&mut self, chain: ChainNo) -> &mut DirSlots {
        let cluster = self.chains.entry(chain).or_insert_with(empty_directory);
        if !matches!(cluster, Cluster::Directory(_)) {
            *cluster = empty_directory();
        }
        match cluster {
            Cluster::Directory(slots) => slots,
            Cluster::Bytes(_) => unreachable!("made a directory just now"),
        }
    }

    /// Returns the first entry under a folded name, as a driver finds it.
    pub(super) fn lookup(&self, dir: ChainNo, key: &[u8]) -> Option<(DirSlot, &DirEntry)> {
        let mut slots = self.slots(dir).iter();
        slots
            .find(|(_, entry)| entry.key == key)
            .map(|(slot, entry)| (*slot, entry))
    }

    /// Returns the entry of an open file, and its position.
    pub(super) fn by_id(&self, id: u64) -> Option<(ChainNo, DirSlot, &DirEntry)> {
        self.each().find(|(_, _, entry)| entry.id == id)
    }

    /// Returns the number of names of a file.
    pub(super) fn names_of(&self, id: u64) -> u32 {
        self.each().filter(|(_, _, entry)| entry.id == id).count() as u32
    }

    /// Returns all entries, also those of unreachable directories.
    pub(super) fn entries(&self) -> Vec<(ChainNo, DirSlot, &DirEntry)> {
        self.each().collect()
    }

    fn each(&self) -> impl Iterator<Item = (ChainNo, DirSlot, &DirEntry)> {
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

    /// Returns whether any entry points at `chain`.
    pub(super) fn is_referenced(&self, chain: ChainNo) -> bool {
        self.each().any(|(_, _, entry)| entry.chain == Some(chain))
    }

    /// Returns the bytes of a file as a reader gets them: the contents of its chain, and garbage if
    /// the chain ends before the file's size.
    pub(super) fn bytes(&self, entry: &DirEntry) -> Arc<Vec<u8>> {
        let EntryKind::File { size } = entry.kind else {
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

    /// Returns the bytes that all files use, shared ones once; with clusters, those of all files
    /// and directories.
    pub(super) fn used(&self, options: &MemoryOptions) -> u64 {
        let cluster = options.cluster.unwrap_or(1);
        let mut seen = BTreeSet::new();
        let mut total = 0;
        for (_, _, entry) in self.entries() {
            if let (EntryKind::File { size }, Some(chain)) = (&entry.kind, entry.chain)
                && seen.insert(chain)
            {
                total += size.next_multiple_of(cluster);
            }
        }
        let directories = self.chains.values().filter_map(|chain| match chain {
            Cluster::Directory(slots) if options.cluster.is_some() => Some(slots),
            _ => None,
        });
        let entries = |slots: &DirSlots| -> u64 {
            let names = slots.values().map(|entry| entry.name.as_bytes().len());
            names.map(entry_bytes).sum()
        };
        total
            + directories
                .map(|slots| entries(slots).max(1).next_multiple_of(cluster))
                .sum::<u64>()
    }

    /// Calls `visit` with every entry reachable from the root and its path, parents first. A
    /// directory that a crash has put below itself is visited, but not entered again.
    pub(super) fn walk<'a>(&'a self, visit: &mut dyn FnMut(RelPath, ChainNo, &'a DirEntry)) {
        self.walk_below(&RelPath::root(), &mut vec![ROOT], visit);
    }

    fn walk_below<'a>(
        &'a self,
        path: &RelPath,
        above: &mut Vec<ChainNo>,
        visit: &mut dyn FnMut(RelPath, ChainNo, &'a DirEntry),
    ) {
        let dir = *above.last().unwrap_or(&ROOT);
        for entry in self.slots(dir).values() {
            let path = path.join(&entry.name);
            visit(path.clone(), dir, entry);
            if let (EntryKind::Directory, Some(chain)) = (&entry.kind, entry.chain)
                && !above.contains(&chain)
            {
                above.push(chain);
                self.walk_below(&path, above, visit);
                above.pop();
            }
        }
    }

    /// Returns the whole tree, by paths as they are spelled. Of several entries under one name it
    /// contains the one that a driver finds.
    pub(super) fn export(&self) -> BTreeMap<RelPath, MemNode> {
        let mut tree = BTreeMap::new();
        self.walk(&mut |path, _, entry| {
            let node = match &entry.kind {
                EntryKind::File { .. } => MemNode::File {
                    bytes: self.bytes(entry),
                    modified: entry.modified,
                },
                EntryKind::Directory => MemNode::Directory,
                EntryKind::Symlink(target) => MemNode::Symlink {
                    target: target.clone(),
                },
                EntryKind::Special(kind, rdev) => MemNode::Special {
                    kind: *kind,
                    rdev: *rdev,
                },
            };
            tree.entry(path).or_insert(node);
        });
        tree
    }

    /// Returns the problems that a check of the file system would report, one line each.
    pub(super) fn damage(&self) -> Vec<String> {
        let mut owners: BTreeMap<ChainNo, (u64, RelPath)> = BTreeMap::new();
        let mut names: BTreeMap<(ChainNo, &[u8]), RelPath> = BTreeMap::new();
        let mut dirs: BTreeMap<ChainNo, RelPath> = BTreeMap::new();
        let mut problems = Vec::new();
        self.walk(&mut |path, dir, entry| {
            // The contents of a directory that is visited twice are visited twice as well.
            // Reporting the directory is enough.
            let up = path.split_last().map_or_else(RelPath::root, |it| it.0);
            if *dirs.entry(dir).or_insert_with(|| up.clone()) != up {
                return;
            }
            if let Some(other) = names.insert((dir, &entry.key), path.clone()) {
                problems.push(format!("{path} and {other}: one name"));
            }
            let Some(chain) = entry.chain else { return };
            if self.loose.contains(&chain) {
                problems.push(format!("{path}: its clusters are marked free"));
            }
            let fits = matches!(
                (&entry.kind, self.chains.get(&chain)),
                (EntryKind::Directory, Some(Cluster::Directory(_)))
                    | (EntryKind::File { .. }, Some(Cluster::Bytes(_)))
            );
            if !fits {
                problems.push(format!("{path}: its clusters hold something else"));
            }
            if let Some((id, other)) = owners.insert(chain, (entry.id, path.clone()))
                && id != entry.id
            {
                problems.push(format!("{path} and {other}: the same clusters"));
            }
        });
        problems
    }
}

fn empty_directory() -> Cluster {
    Cluster::Directory(DirSlots::new())
}

/// Returns the content of unwritten places of the medium: different for any two chains, and never
/// zeros.
pub(super) fn garbage(chain: ChainNo, at: usize) -> u8 {
    let mixed = (chain.wrapping_mul(31)).wrapping_add((at as u64).wrapping_mul(7));
    (mixed % 127) as u8 | 0x80
}
