//! The tree of a [`crate::drive::memory::MemoryBackend`] as programs see it, and the log of the
//! changes since the last sync.
//!
//! Invariant: every change of the medium goes through [`Tree::write`], [`Tree::allocate`],
//! [`Tree::release`] or [`Tree::append`], which add it to the log. A crash chooses from the log
//! which writes have reached the medium.

use std::io;
use std::sync::Arc;

use crate::core::{FileKind, Metadata, RelPath, Timestamp, Xattrs};
use crate::drive;
use crate::drive::memory::crash::Dice;
use crate::drive::memory::medium::{
    ChainNo, Cluster, DirEntry, DirSlot, DirSlots, EntryKind, Medium, ROOT, garbage,
};
use crate::drive::memory::place::FoldedPath;
use crate::drive::memory::{CHANGED, errno};

/// One write to the medium.
#[derive(Clone, Debug)]
pub(super) enum Update {
    /// A slot of a directory has got this entry, or none.
    Entry {
        dir: ChainNo,
        slot: DirSlot,
        after: Option<DirEntry>,
        /// The path that was used, for messages.
        path: RelPath,
    },
    /// A chain has been marked used, for a directory or a file's bytes.
    Allocated { chain: ChainNo, directory: bool },
    /// A chain has been marked free.
    Released { chain: ChainNo },
    /// Bytes of a chain have been written over, or have been added to one that had a file's bytes
    /// before.
    Overwritten {
        chain: ChainNo,
        from: usize,
        to: usize,
    },
    /// Bytes have been written to a chain.
    Bytes {
        chain: ChainNo,
        from: usize,
        to: usize,
    },
}

/// A medium, and the changes since the last sync.
#[derive(Clone, Debug)]
pub(super) struct MemoryTree {
    pub(super) medium: Medium,
    pub(super) log: Vec<Update>,
    /// The last number assigned, to chains, slots and open files alike.
    pub(super) last_number: u64,
    /// Chooses the clusters of new files after a crash.
    pub(super) dice: Dice,
    /// There has been a crash, so chains may be shared.
    pub(super) crashed: bool,
    /// There has been a hard link, so a file may have several names.
    linked: bool,
}

impl Default for MemoryTree {
    fn default() -> MemoryTree {
        MemoryTree {
            medium: Medium::default(),
            log: Vec::new(),
            last_number: ROOT,
            dice: Dice::new(0),
            crashed: false,
            linked: false,
        }
    }
}

/// A new node.
pub(super) enum New {
    File,
    Directory,
    Symlink(Vec<u8>),
    Special(FileKind, u32),
}

impl MemoryTree {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn write(&mut self, dir: ChainNo, slot: DirSlot, path: &RelPath, after: Option<DirEntry>) {
        let slots = self.medium.slots_mut(dir);
        match &after {
            Some(entry) => drop(slots.insert(slot, entry.clone())),
            None => drop(slots.remove(&slot)),
        }
        let path = path.clone();
        self.log.push(Update::Entry {
            dir,
            slot,
            after,
            path,
        });
    }

    /// Returns a chain for a new node: a fresh one, or one that is marked free although an old
    /// entry points at it.
    fn allocate(&mut self, directory: bool) -> ChainNo {
        let loose: Vec<ChainNo> = self.medium.loose.iter().copied().collect();
        let chain = match loose.len() {
            n if n > 0 && self.dice.one_in(2) => loose[self.dice.below(n)],
            _ => self.number(),
        };
        self.medium.loose.remove(&chain);
        let cluster = match directory {
            true => Cluster::Directory(DirSlots::new()),
            false => Cluster::Bytes(Arc::default()),
        };
        self.medium.chains.insert(chain, cluster);
        self.log.push(Update::Allocated { chain, directory });
        chain
    }

    /// Frees a chain whose entry has just been removed. After a crash another entry may point at it
    /// too. That entry then reads garbage, and the next new file may get its clusters.
    fn release(&mut self, chain: Option<ChainNo>) {
        let Some(chain) = chain else { return };
        self.log.push(Update::Released { chain });
        if !self.crashed || !self.medium.is_referenced(chain) {
            self.medium.chains.remove(&chain);
            self.medium.loose.remove(&chain);
            return;
        }
        if let Some(Cluster::Bytes(bytes)) = self.medium.chains.get_mut(&chain) {
            *bytes = Arc::new((0..bytes.len()).map(|at| garbage(chain, at)).collect());
        }
        self.medium.loose.insert(chain);
    }

    /// Returns the directory that holds `place`; it follows no links.
    fn parent(&self, place: &FoldedPath) -> io::Result<ChainNo> {
        Ok(*self.way_to(place)?.last().unwrap_or(&ROOT))
    }

    /// Returns all directories on the way to `place`, the root first.
    fn way_to(&self, place: &FoldedPath) -> io::Result<Vec<ChainNo>> {
        let mut way = vec![ROOT];
        let mut at = ROOT;
        for key in &place.parents {
            let (_, entry) = self
                .medium
                .lookup(at, key)
                .ok_or_else(|| errno(libc::ENOENT))?;
            at = match entry.kind {
                EntryKind::Directory => entry.chain.unwrap_or(ROOT),
                EntryKind::File { .. } | EntryKind::Special(..) => {
                    return Err(errno(libc::ENOTDIR));
                }
                EntryKind::Symlink(_) => return Err(errno(libc::ELOOP)),
            };
            way.push(at);
        }
        Ok(way)
    }

    /// Returns the entry of `place`, and its position.
    fn find(&self, place: &FoldedPath, if_root: i32) -> io::Result<(ChainNo, DirSlot, &DirEntry)> {
        let (key, _) = place.last(if_root)?;
        let dir = self.parent(place)?;
        let found = self.medium.lookup(dir, key);
        let (slot, entry) = found.ok_or_else(|| errno(libc::ENOENT))?;
        Ok((dir, slot, entry))
    }

    pub(super) fn metadata(&self, place: &FoldedPath) -> io::Result<Metadata> {
        if place.is_root() {
            return Ok(self.medium.root.metadata(1));
        }
        Ok(self.metadata_of(self.find(place, libc::EINVAL)?.2))
    }

    fn metadata_of(&self, entry: &DirEntry) -> Metadata {
        let nlink = match self.linked {
            true => self.medium.names_of(entry.id),
            false => 1,
        };
        entry.metadata(nlink)
    }

    /// Returns the entries of a directory, sorted by folded name; an entry that a crash has
    /// duplicated is listed twice.
    pub(super) fn children(&self, place: &FoldedPath) -> io::Result<Vec<drive::Entry>> {
        let mut dir = ROOT;
        if !place.is_root() {
            let (_, _, entry) = self.find(place, libc::EINVAL)?;
            dir = match entry.kind {
                EntryKind::Directory => entry.chain.unwrap_or(ROOT),
                EntryKind::File { .. } | EntryKind::Special(..) => {
                    return Err(errno(libc::ENOTDIR));
                }
                EntryKind::Symlink(_) => return Err(errno(libc::ELOOP)),
            };
        }
        let mut entries: Vec<&DirEntry> = self.medium.slots(dir).values().collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        let listed = entries.into_iter().map(|entry| drive::Entry {
            name: entry.name.clone(),
            meta: self.metadata_of(entry),
        });
        Ok(listed.collect())
    }

    /// Returns the number of the regular file at `place`.
    pub(super) fn regular_file(&self, place: &FoldedPath) -> io::Result<u64> {
        let (_, _, entry) = self.find(place, libc::EISDIR)?;
        match entry.kind {
            EntryKind::File { .. } => Ok(entry.id),
            EntryKind::Directory => Err(errno(libc::EISDIR)),
            EntryKind::Symlink(_) => Err(errno(libc::ELOOP)),
            EntryKind::Special(..) => Err(errno(libc::EINVAL)),
        }
    }

    /// Makes something new; gives its number.
    pub(super) fn make(
        &mut self,
        place: &FoldedPath,
        new: New,
        permissions: u32,
    ) -> io::Result<u64> {
        let (key, name) = place.last(libc::EEXIST)?;
        let dir = self.parent(place)?;
        if self.medium.lookup(dir, key).is_some() {
            return Err(errno(libc::EEXIST));
        }
        let (kind, chain) = match new {
            New::File => (EntryKind::File { size: 0 }, None),
            New::Directory => (EntryKind::Directory, Some(self.allocate(true))),
            New::Symlink(target) => (EntryKind::Symlink(target), None),
            New::Special(kind, rdev) => (EntryKind::Special(kind, rdev), None),
        };
        let (id, slot) = (self.number(), self.number());
        let entry = DirEntry {
            name: name.clone(),
            key: key.to_vec(),
            id,
            kind,
            chain,
            modified: Timestamp(0),
            permissions,
            owner: (0, 0),
            xattrs: Xattrs::new(),
        };
        self.write(dir, slot, &place.path, Some(entry));
        Ok(id)
    }

    /// Gives a file a further name.
    pub(super) fn link(&mut self, from: &FoldedPath, to: &FoldedPath) -> io::Result<()> {
        let (_, _, entry) = self.find(from, libc::EPERM)?;
        if entry.kind == EntryKind::Directory {
            return Err(errno(libc::EPERM));
        }
        let mut entry = entry.clone();
        let (key, name) = to.last(libc::EEXIST)?;
        let dir = self.parent(to)?;
        if self.medium.lookup(dir, key).is_some() {
            return Err(errno(libc::EEXIST));
        }
        (entry.key, entry.name) = (key.to_vec(), name.clone());
        let slot = self.number();
        self.linked = true;
        self.write(dir, slot, &to.path, Some(entry));
        Ok(())
    }

    pub(super) fn xattrs(&self, place: &FoldedPath) -> io::Result<Xattrs> {
        if place.is_root() {
            return Ok(self.medium.root.xattrs.clone());
        }
        Ok(self.find(place, libc::EINVAL)?.2.xattrs.clone())
    }

    /// Writes a changed entry of a file under all its names.
    fn write_everywhere(&mut self, dir: ChainNo, slot: DirSlot, path: &RelPath, entry: DirEntry) {
        if self.linked {
            let others = self.medium.entries().into_iter();
            let others = others.filter(|(d, s, e)| e.id == entry.id && (*d, *s) != (dir, slot));
            let others: Vec<_> = others
                .map(|(d, s, e)| (d, s, e.key.clone(), e.name.clone()))
                .collect();
            for (dir, slot, key, name) in others {
                let path = RelPath::root().join(&name);
                let entry = DirEntry {
                    key,
                    name,
                    ..entry.clone()
                };
                self.write(dir, slot, &path, Some(entry));
            }
        }
        self.write(dir, slot, path, Some(entry));
    }

    /// Frees the clusters of a file that has lost its last name.
    fn unlinked(&mut self, id: u64, chain: Option<ChainNo>) {
        if !self.linked || self.medium.names_of(id) == 0 {
            self.release(chain);
        }
    }

    pub(super) fn remove_file(&mut self, place: &FoldedPath) -> io::Result<()> {
        let (dir, slot, entry) = self.find(place, libc::EISDIR)?;
        if entry.kind == EntryKind::Directory {
            return Err(errno(libc::EISDIR));
        }
        let (id, chain) = (entry.id, entry.chain);
        self.write(dir, slot, &place.path, None);
        self.unlinked(id, chain);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, place: &FoldedPath) -> io::Result<()> {
        let (dir, slot, entry) = self.find(place, libc::EBUSY)?;
        if entry.kind != EntryKind::Directory {
            return Err(errno(libc::ENOTDIR));
        }
        let chain = entry.chain;
        if !self.medium.slots(chain.unwrap_or(ROOT)).is_empty() {
            return Err(errno(libc::ENOTEMPTY));
        }
        self.write(dir, slot, &place.path, None);
        self.release(chain);
        Ok(())
    }

    /// As rename(2): a directory replaces only an empty directory, anything else only a
    /// non-directory. The writes follow the order of the exFAT driver: the new entry is written,
    /// then the old one is removed, then the replaced one.
    pub(super) fn rename(&mut self, from: &FoldedPath, to: &FoldedPath) -> io::Result<()> {
        let (old_dir, old_slot, entry) = self.find(from, libc::EBUSY)?;
        let mut entry = entry.clone();
        let (key, name) = to.last(libc::EBUSY)?;
        let way = self.way_to(to)?;
        let moves_dir = entry.kind == EntryKind::Directory;
        if moves_dir && entry.chain.is_some_and(|chain| way.contains(&chain)) {
            return Err(errno(libc::EINVAL));
        }
        let dir = *way.last().unwrap_or(&ROOT);
        let target = self.medium.lookup(dir, key);
        // Another spelling of the same name replaces nothing.
        let target = target.filter(|(slot, _)| (dir, *slot) != (old_dir, old_slot));
        let target = target.map(|(slot, old)| (slot, old.clone()));
        if let Some((_, old)) = &target {
            self.check_replaceable(old, moves_dir)?;
            if old.id == entry.id {
                return Ok(()); // Two names of one file: rename(2) keeps both.
            }
        }
        (entry.key, entry.name) = (key.to_vec(), name.clone());
        let slot = self.number();
        self.write(dir, slot, &to.path, Some(entry));
        self.write(old_dir, old_slot, &from.path, None);
        if let Some((slot, old)) = target {
            self.write(dir, slot, &to.path, None);
            self.unlinked(old.id, old.chain);
        }
        Ok(())
    }

    /// Returns whether two names are spellings of one entry.
    pub(super) fn is_same(&self, one: &FoldedPath, other: &FoldedPath) -> bool {
        let entry = |place| {
            self.find(place, libc::EBUSY)
                .map(|(dir, slot, _)| (dir, slot))
        };
        matches!((entry(one), entry(other)), (Ok(one), Ok(other)) if one == other)
    }

    /// As renameat2(2) with RENAME_EXCHANGE. The callers here never move a directory into itself.
    pub(super) fn exchange(&mut self, one: &FoldedPath, other: &FoldedPath) -> io::Result<()> {
        let (one_dir, one_slot, first) = self.find(one, libc::EBUSY)?;
        let mut first = first.clone();
        let (other_dir, other_slot, second) = self.find(other, libc::EBUSY)?;
        let mut second = second.clone();
        std::mem::swap(&mut first.key, &mut second.key);
        std::mem::swap(&mut first.name, &mut second.name);
        self.write(one_dir, one_slot, &one.path, Some(second));
        self.write(other_dir, other_slot, &other.path, Some(first));
        Ok(())
    }

    fn check_replaceable(&self, old: &DirEntry, by_dir: bool) -> io::Result<()> {
        let is_dir = old.kind == EntryKind::Directory;
        let empty = self.medium.slots(old.chain.unwrap_or(ROOT)).is_empty();
        match (by_dir, is_dir) {
            (true, false) => Err(errno(libc::ENOTDIR)),
            (false, true) => Err(errno(libc::EISDIR)),
            (true, true) if !empty => Err(errno(libc::ENOTEMPTY)),
            _ => Ok(()),
        }
    }

    /// Changes the attributes of `place`.
    pub(super) fn change(
        &mut self,
        place: &FoldedPath,
        with: impl FnOnce(&mut DirEntry),
    ) -> io::Result<()> {
        if place.is_root() {
            with(&mut self.medium.root);
            return Ok(());
        }
        let (dir, slot, entry) = self.find(place, libc::EINVAL)?;
        let mut entry = entry.clone();
        with(&mut entry);
        self.write_everywhere(dir, slot, &place.path, entry);
        Ok(())
    }

    fn open_entry(&self, id: u64) -> io::Result<(ChainNo, DirSlot, &DirEntry)> {
        self.medium.by_id(id).ok_or_else(|| errno(libc::EIO))
    }

    /// Returns the metadata of an open file; EIO once it is gone.
    pub(super) fn open_metadata(&self, id: u64) -> io::Result<Metadata> {
        Ok(self.metadata_of(self.open_entry(id)?.2))
    }

    /// Returns the bytes of an open file.
    pub(super) fn bytes(&self, id: u64) -> io::Result<Arc<Vec<u8>>> {
        Ok(self.medium.bytes(self.open_entry(id)?.2))
    }

    /// Sets the time of an open file.
    pub(super) fn set_open_time(&mut self, id: u64, modified: Timestamp) -> io::Result<()> {
        let (dir, slot, entry) = self.open_entry(id)?;
        let mut entry = entry.clone();
        entry.modified = modified;
        let path = RelPath::root().join(&entry.name);
        self.write_everywhere(dir, slot, &path, entry);
        Ok(())
    }

    /// Appends to an open file: bytes first, then the size in its entry.
    pub(super) fn append(&mut self, id: u64, data: &[u8]) -> io::Result<()> {
        let (dir, slot, entry) = self.open_entry(id)?;
        let mut entry = entry.clone();
        if data.is_empty() {
            return Ok(());
        }
        let EntryKind::File { size } = entry.kind else {
            return Err(errno(libc::EIO));
        };
        let mut bytes = self.medium.bytes(&entry);
        let chain = match entry.chain {
            Some(chain) => chain,
            None => self.allocate(false),
        };
        // Copied only if a durable version shares them.
        self.medium.chains.remove(&chain);
        Arc::make_mut(&mut bytes).extend_from_slice(data);
        let (from, to) = (bytes.len() - data.len(), bytes.len());
        self.medium.chains.insert(chain, Cluster::Bytes(bytes));
        self.log.push(Update::Bytes { chain, from, to });
        entry.chain = Some(chain);
        entry.kind = EntryKind::File {
            size: size + data.len() as u64,
        };
        let path = RelPath::root().join(&entry.name);
        self.write_everywhere(dir, slot, &path, entry);
        Ok(())
    }

    /// Writes into an open file, also beyond its end: bytes first, then size and time in its entry.
    pub(super) fn write_at(&mut self, id: u64, data: &[u8], offset: u64) -> io::Result<()> {
        let (_, _, entry) = self.open_entry(id)?;
        let mut bytes = self.medium.bytes(entry);
        let from = usize::try_from(offset).map_err(|_| errno(libc::EFBIG))?;
        let to = from + data.len();
        let all = Arc::make_mut(&mut bytes);
        if all.len() < to {
            all.resize(to, 0);
        }
        all[from..to].copy_from_slice(data);
        self.change_bytes(id, bytes, (from, to))
    }

    /// Cuts an open file off, or fills it up with zeros.
    pub(super) fn set_size(&mut self, id: u64, size: u64) -> io::Result<()> {
        let (_, _, entry) = self.open_entry(id)?;
        let mut bytes = self.medium.bytes(entry);
        let (from, to) = (bytes.len(), usize::try_from(size).unwrap_or(usize::MAX));
        Arc::make_mut(&mut bytes).resize(to, 0);
        self.change_bytes(id, bytes, (from.min(to), to))
    }

    fn change_bytes(
        &mut self,
        id: u64,
        bytes: Arc<Vec<u8>>,
        (from, to): (usize, usize),
    ) -> io::Result<()> {
        let (dir, slot, entry) = self.open_entry(id)?;
        let mut entry = entry.clone();
        let size = bytes.len() as u64;
        let chain = match entry.chain {
            Some(chain) => chain,
            None => self.allocate(false),
        };
        self.medium.chains.insert(chain, Cluster::Bytes(bytes));
        if from < to {
            self.log.push(Update::Overwritten { chain, from, to });
        }
        (entry.chain, entry.modified) = (Some(chain), CHANGED);
        entry.kind = EntryKind::File { size };
        let path = RelPath::root().join(&entry.name);
        self.write_everywhere(dir, slot, &path, entry);
        Ok(())
    }
}
