//! The tree of a [`super::MemoryBackend`] as programs see it, and the log of what has changed since the last sync.
//!
//! Every change of the medium goes through [`Tree::write`], [`Tree::allocate`], [`Tree::release`] or [`Tree::append`], which
//! note it in the log: a crash draws from there what has reached the medium.

use std::io;
use std::sync::Arc;

use super::crash::Dice;
use super::errno;
use super::medium::{Chain, Cluster, Entry, Kind, Medium, ROOT, Slot, Slots, garbage};
use super::place::Place;
use crate::backend::{self, Metadata, Xattrs};
use crate::base::{FileKind, RelPath, Timestamp};

/// One write to the medium.
#[derive(Clone, Debug)]
pub(super) enum Update {
    /// A slot of a directory has got this entry, or none.
    Entry {
        dir: Chain,
        slot: Slot,
        after: Option<Entry>,
        /// The path by which it was reached, for people.
        path: RelPath,
    },
    /// A chain has been marked used, to hold a directory or a file's bytes.
    Allocated { chain: Chain, directory: bool },
    /// A chain has been marked free.
    Released { chain: Chain },
    /// Bytes have been written to a chain.
    Bytes {
        chain: Chain,
        from: usize,
        to: usize,
    },
}

/// A medium, and what has been done to it since the last sync.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) medium: Medium,
    pub(super) log: Vec<Update>,
    /// The last number given, to chains, slots and open files alike.
    pub(super) last_number: u64,
    /// Decides which clusters new files get, once a crash has left any in doubt.
    pub(super) dice: Dice,
    /// There has been a crash, so chains may be shared.
    pub(super) crashed: bool,
    /// A hard link has been made, so a file may have several names.
    linked: bool,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree {
            medium: Medium::default(),
            log: Vec::new(),
            last_number: ROOT,
            dice: Dice::new(0),
            crashed: false,
            linked: false,
        }
    }
}

/// What is to be made.
pub(super) enum New {
    File,
    Directory,
    Symlink(Vec<u8>),
    Special(FileKind, u32),
}

impl Tree {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn write(&mut self, dir: Chain, slot: Slot, path: &RelPath, after: Option<Entry>) {
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

    /// A chain for something new: a fresh one, or one that is marked free although an old entry points at it.
    fn allocate(&mut self, directory: bool) -> Chain {
        let loose: Vec<Chain> = self.medium.loose.iter().copied().collect();
        let chain = match loose.len() {
            n if n > 0 && self.dice.one_in(2) => loose[self.dice.below(n)],
            _ => self.number(),
        };
        self.medium.loose.remove(&chain);
        let cluster = match directory {
            true => Cluster::Directory(Slots::new()),
            false => Cluster::Bytes(Arc::default()),
        };
        self.medium.chains.insert(chain, cluster);
        self.log.push(Update::Allocated { chain, directory });
        chain
    }

    /// Frees a chain whose entry has just gone. If another entry points at it as well, as a crash may leave it, that one
    /// reads garbage from here on, and what is made next may be given its clusters.
    fn release(&mut self, chain: Option<Chain>) {
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

    /// The directory that holds `place`; links are not followed.
    fn parent(&self, place: &Place) -> io::Result<Chain> {
        Ok(*self.way_to(place)?.last().unwrap_or(&ROOT))
    }

    /// All directories on the way to `place`, the root first.
    fn way_to(&self, place: &Place) -> io::Result<Vec<Chain>> {
        let mut way = vec![ROOT];
        let mut at = ROOT;
        for key in &place.parents {
            let (_, entry) = self
                .medium
                .lookup(at, key)
                .ok_or_else(|| errno(libc::ENOENT))?;
            at = match entry.kind {
                Kind::Directory => entry.chain.unwrap_or(ROOT),
                Kind::File { .. } | Kind::Special(..) => return Err(errno(libc::ENOTDIR)),
                Kind::Symlink(_) => return Err(errno(libc::ELOOP)),
            };
            way.push(at);
        }
        Ok(way)
    }

    /// What stands at `place`, and where.
    fn find(&self, place: &Place, if_root: i32) -> io::Result<(Chain, Slot, &Entry)> {
        let (key, _) = place.last(if_root)?;
        let dir = self.parent(place)?;
        let found = self.medium.lookup(dir, key);
        let (slot, entry) = found.ok_or_else(|| errno(libc::ENOENT))?;
        Ok((dir, slot, entry))
    }

    pub(super) fn metadata(&self, place: &Place) -> io::Result<Metadata> {
        if place.is_root() {
            return Ok(self.medium.root.metadata(1));
        }
        Ok(self.told(self.find(place, libc::EINVAL)?.2))
    }

    fn told(&self, entry: &Entry) -> Metadata {
        let nlink = match self.linked {
            true => self.medium.names_of(entry.id),
            false => 1,
        };
        entry.metadata(nlink)
    }

    /// The entries of a directory, by folded name; one that a crash has left twice is listed twice.
    pub(super) fn children(&self, place: &Place) -> io::Result<Vec<backend::Entry>> {
        let mut dir = ROOT;
        if !place.is_root() {
            let (_, _, entry) = self.find(place, libc::EINVAL)?;
            dir = match entry.kind {
                Kind::Directory => entry.chain.unwrap_or(ROOT),
                Kind::File { .. } | Kind::Special(..) => return Err(errno(libc::ENOTDIR)),
                Kind::Symlink(_) => return Err(errno(libc::ELOOP)),
            };
        }
        let mut entries: Vec<&Entry> = self.medium.slots(dir).values().collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        let listed = entries.into_iter().map(|entry| backend::Entry {
            name: entry.name.clone(),
            meta: self.told(entry),
        });
        Ok(listed.collect())
    }

    /// The number of the regular file at `place`.
    pub(super) fn regular_file(&self, place: &Place) -> io::Result<u64> {
        let (_, _, entry) = self.find(place, libc::EISDIR)?;
        match entry.kind {
            Kind::File { .. } => Ok(entry.id),
            Kind::Directory => Err(errno(libc::EISDIR)),
            Kind::Symlink(_) => Err(errno(libc::ELOOP)),
            Kind::Special(..) => Err(errno(libc::EINVAL)),
        }
    }

    /// Makes something new; gives its number.
    pub(super) fn make(&mut self, place: &Place, new: New, permissions: u32) -> io::Result<u64> {
        let (key, name) = place.last(libc::EEXIST)?;
        let dir = self.parent(place)?;
        if self.medium.lookup(dir, key).is_some() {
            return Err(errno(libc::EEXIST));
        }
        let (kind, chain) = match new {
            New::File => (Kind::File { size: 0 }, None),
            New::Directory => (Kind::Directory, Some(self.allocate(true))),
            New::Symlink(target) => (Kind::Symlink(target), None),
            New::Special(kind, rdev) => (Kind::Special(kind, rdev), None),
        };
        let (id, slot) = (self.number(), self.number());
        let entry = Entry {
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
    pub(super) fn link(&mut self, from: &Place, to: &Place) -> io::Result<()> {
        let (_, _, entry) = self.find(from, libc::EPERM)?;
        if entry.kind == Kind::Directory {
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

    pub(super) fn xattrs(&self, place: &Place) -> io::Result<Xattrs> {
        if place.is_root() {
            return Ok(self.medium.root.xattrs.clone());
        }
        Ok(self.find(place, libc::EINVAL)?.2.xattrs.clone())
    }

    /// The entry of a file has changed: the same holds for all its names.
    fn write_everywhere(&mut self, dir: Chain, slot: Slot, path: &RelPath, entry: Entry) {
        if self.linked {
            let others = self.medium.entries().into_iter();
            let others = others.filter(|(d, s, e)| e.id == entry.id && (*d, *s) != (dir, slot));
            let others: Vec<_> = others
                .map(|(d, s, e)| (d, s, e.key.clone(), e.name.clone()))
                .collect();
            for (dir, slot, key, name) in others {
                let path = RelPath::root().join(&name);
                let entry = Entry {
                    key,
                    name,
                    ..entry.clone()
                };
                self.write(dir, slot, &path, Some(entry));
            }
        }
        self.write(dir, slot, path, Some(entry));
    }

    /// A name has gone: frees the clusters of a file that has no other.
    fn unlinked(&mut self, id: u64, chain: Option<Chain>) {
        if !self.linked || self.medium.names_of(id) == 0 {
            self.release(chain);
        }
    }

    pub(super) fn remove_file(&mut self, place: &Place) -> io::Result<()> {
        let (dir, slot, entry) = self.find(place, libc::EISDIR)?;
        if entry.kind == Kind::Directory {
            return Err(errno(libc::EISDIR));
        }
        let (id, chain) = (entry.id, entry.chain);
        self.write(dir, slot, &place.path, None);
        self.unlinked(id, chain);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, place: &Place) -> io::Result<()> {
        let (dir, slot, entry) = self.find(place, libc::EBUSY)?;
        if entry.kind != Kind::Directory {
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

    /// As rename(2): over a file goes what is no directory, over an empty directory a directory. On the medium it is done
    /// as the exFAT driver does it: the new entry is written, then the old one is removed, then what stood under the new name.
    pub(super) fn rename(&mut self, from: &Place, to: &Place) -> io::Result<()> {
        let (old_dir, old_slot, entry) = self.find(from, libc::EBUSY)?;
        let mut entry = entry.clone();
        let (key, name) = to.last(libc::EBUSY)?;
        let way = self.way_to(to)?;
        let moves_dir = entry.kind == Kind::Directory;
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
                return Ok(()); // Two names of one file: rename(2) leaves both.
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

    /// Whether two names are of one entry, spelled in two ways.
    pub(super) fn is_same(&self, one: &Place, other: &Place) -> bool {
        let entry = |place| {
            self.find(place, libc::EBUSY)
                .map(|(dir, slot, _)| (dir, slot))
        };
        matches!((entry(one), entry(other)), (Ok(one), Ok(other)) if one == other)
    }

    /// As renameat2(2) with RENAME_EXCHANGE. Directories are not moved into themselves by the callers here.
    pub(super) fn exchange(&mut self, one: &Place, other: &Place) -> io::Result<()> {
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

    fn check_replaceable(&self, old: &Entry, by_dir: bool) -> io::Result<()> {
        let is_dir = old.kind == Kind::Directory;
        let empty = self.medium.slots(old.chain.unwrap_or(ROOT)).is_empty();
        match (by_dir, is_dir) {
            (true, false) => Err(errno(libc::ENOTDIR)),
            (false, true) => Err(errno(libc::EISDIR)),
            (true, true) if !empty => Err(errno(libc::ENOTEMPTY)),
            _ => Ok(()),
        }
    }

    /// Changes the attributes of what stands at `place`.
    pub(super) fn change(
        &mut self,
        place: &Place,
        with: impl FnOnce(&mut Entry),
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

    fn open_entry(&self, id: u64) -> io::Result<(Chain, Slot, &Entry)> {
        self.medium.by_id(id).ok_or_else(|| errno(libc::EIO))
    }

    /// What an open file is now; EIO once it is gone.
    pub(super) fn open_metadata(&self, id: u64) -> io::Result<Metadata> {
        Ok(self.told(self.open_entry(id)?.2))
    }

    /// The bytes of an open file.
    pub(super) fn bytes(&self, id: u64) -> io::Result<Arc<Vec<u8>>> {
        Ok(self.medium.bytes(self.open_entry(id)?.2))
    }

    /// Gives an open file its time.
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
        let Kind::File { size } = entry.kind else {
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
        entry.kind = Kind::File {
            size: size + data.len() as u64,
        };
        let path = RelPath::root().join(&entry.name);
        self.write_everywhere(dir, slot, &path, entry);
        Ok(())
    }
}
