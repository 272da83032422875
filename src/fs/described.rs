//! What the drive's catalog says of what is found on the drive, taken into the index with it.
//!
//! The description belongs to the bytes that were described: size and time on the drive tell whether these are there still. If not,
//! somebody has changed the file elsewhere, and only mode, owner and extended attributes are believed.
//!
//! Names of one file are copies on a drive that has no links, united here into one inode (`index::LinkGroup`).

use std::collections::BTreeMap;

use super::privileges::CAPABILITY;
use super::refresh::Notice;
use super::{Fs, Result};
use crate::backend::Metadata;
use crate::base::{FileKind, Ino, Name, RelPath, Timestamp};
use crate::index::{Flags, Inode, LinkGroup, State};
use crate::rules::acl;
use crate::rules::catalog::{Description, Extent};
use crate::rules::describe::{blocks, describes, group_here, owner_here};
use crate::rules::plan::NameKey;
use crate::rules::trust::{SET_IDS, is_privileged, without_set_ids};
use crate::sys;

/// Names read from the mirror under one hold of the index lock.
const CHUNK: usize = 256;

/// What the drive's own entry says, as far as it tells whether it is what was described.
#[derive(Clone, Copy)]
pub(super) struct Found {
    kind: FileKind,
    size: u64,
    modified: Timestamp,
}

impl Found {
    /// What the backend tells of an entry.
    pub(super) fn new(meta: &Metadata) -> Found {
        Found {
            kind: meta.kind,
            size: meta.size,
            modified: meta.modified,
        }
    }
}

/// What is said of one name, with the numbers that its owners have here.
pub(in crate::fs) struct Described {
    pub(super) it: Description,
    uid: u32,
    gid: u32,
    /// Somebody else than this cache's user and root could have said so.
    is_strangers: bool,
}

/// What is said of the names in one directory, in the backend's spelling.
#[derive(Default)]
pub(in crate::fs) struct Told {
    /// The directory on the backend.
    dir: RelPath,
    /// Of itself, for the volume's own directory, which no other speaks of.
    own: Option<Described>,
    names: BTreeMap<Name, Described>,
}

impl Described {
    /// Asks who the owners are; not to be called under a lock.
    fn new(it: Description, is_strangers: bool) -> Described {
        let owners = sys::owners::system();
        Described {
            is_strangers,
            uid: owner_here(&it.owner, owners),
            gid: group_here(&it.group, owners),
            it,
        }
    }

    /// Whether it is not to be taken in: a device that a stranger describes.
    fn is_withheld(&self) -> bool {
        let is_device = matches!(self.it.kind, FileKind::CharDevice | FileKind::BlockDevice);
        self.is_strangers && is_device
    }

    /// The permission bits that are believed of what has those of `mode` so far. What a stranger says gives no rights, nor does it
    /// take any that are known from elsewhere.
    fn permissions(&self, mode: u32) -> u32 {
        let told = self.it.permissions & 0o7777;
        match self.is_strangers {
            true => {
                let is_dir = self.it.kind == FileKind::Directory;
                without_set_ids(is_dir, told) | (told & mode & SET_IDS)
            }
            false => told,
        }
    }

    /// The extended attributes that are believed.
    fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let all = self.it.xattrs.iter();
        all.filter(|(name, _)| !self.is_strangers || !is_privileged(name))
            .map(|(name, value)| (&name[..], &value[..]))
    }

    /// Whether the bytes found are those that were described.
    fn is_of(&self, found: Found, granularity_ns: u64) -> bool {
        match self.it.kind {
            FileKind::Regular => describes(&self.it, found.size, found.modified, granularity_ns),
            kind => kind == found.kind,
        }
    }
}

impl Told {
    /// What is said of one name alone. Its owners are looked up, which is quick for those that were met a moment ago.
    pub(super) fn of_one(dir: RelPath, name: &Name, it: Description, is_strangers: bool) -> Told {
        Told {
            dir,
            own: None,
            names: BTreeMap::from([(name.clone(), Described::new(it, is_strangers))]),
        }
    }

    /// What is said of an entry of the backend; nothing if it is of another kind now.
    pub(super) fn of(&self, name: &Name, kind: FileKind) -> Option<&Described> {
        self.names.get(name).filter(|told| told.it.kind == kind)
    }

    /// The path on the backend of a name in the directory.
    pub(super) fn path(&self, name: &Name) -> RelPath {
        self.dir.join(name)
    }

    /// What stands in the catalog only, as far as it is taken in.
    pub(super) fn specials(&self) -> impl Iterator<Item = (&Name, &Described)> {
        let names = self.names.iter();
        names.filter(|(_, told)| !told.it.kind.is_plain() && !told.is_withheld())
    }
}

impl Fs {
    /// Reads what is said of the names in the backend's directory at `dir`. The caller keeps names where they are.
    pub(super) fn told_in(&self, dir: &RelPath) -> Result<Told> {
        let mut told = Told {
            dir: dir.clone(),
            ..Told::default()
        };
        let is_strangers = self.index.lock().catalog_is_strangers()?;
        if dir.is_root() {
            told.own = self.told_of_root()?;
        }
        let mut after = None;
        loop {
            let found = self.index.lock().described_in(dir, after.as_ref(), CHUNK)?;
            let Some((last, _)) = found.last() else {
                return Ok(told);
            };
            after = Some(last.clone());
            for (name, it) in found {
                if let Some(it) = it {
                    told.names.insert(name, Described::new(it, is_strangers));
                }
            }
        }
    }

    /// What is said of the backend's root itself.
    fn told_of_root(&self) -> Result<Option<Described>> {
        let (own, is_strangers) = {
            let mut state = self.index.lock();
            let own = state.description(&RelPath::root())?;
            (own, state.catalog_is_strangers()?)
        };
        Ok(own.map(|it| Described::new(it, is_strangers)))
    }

    /// Gives an inode that is being taken in what is said of it.
    pub(super) fn believe(
        &self,
        state: &mut State,
        inode: &mut Inode,
        told: &Described,
        found: Option<Found>,
    ) -> Result<()> {
        let it = &told.it;
        let is_native = self.is_native(told);
        // Root would give the file on the drive to whom a stranger names.
        let takes_owner = !told.is_strangers || !self.capabilities.owners;
        if takes_owner && told.is_strangers && (inode.uid, inode.gid) != (told.uid, told.gid) {
            // What it may do it may do for the owner that it had.
            inode.mode = (inode.mode & libc::S_IFMT) | without_set_ids(inode.is_dir(), inode.mode);
            state.put_xattr(inode.ino, CAPABILITY, None)?;
        }
        if takes_owner {
            (inode.uid, inode.gid) = (told.uid, told.gid);
        }
        if !is_native {
            inode.mode = (inode.mode & libc::S_IFMT) | told.permissions(inode.mode);
            // The description says all, and an ACL that it does not say would contradict its mode.
            super::acl::remove_both(state, inode)?;
        }
        for (name, value) in told.xattrs() {
            if !is_native || !acl::is_acl(name) {
                super::acl::take(state, inode, name, value)?;
            }
        }
        if found.is_none_or(|found| told.is_of(found, self.capabilities.time_granularity_ns)) {
            inode.mtime = it.modified;
            inode.ctime = it.modified;
            if it.kind == FileKind::Regular {
                inode.blocks = blocks(it.size, &it.holes);
            }
        }
        Ok(())
    }

    /// Whether the drive says itself who may do what with something, so that no stranger is asked.
    fn is_native(&self, told: &Described) -> bool {
        told.is_strangers && told.it.kind.is_plain() && self.capabilities.permissions
    }

    /// Makes the inode of what stands in the catalog only.
    pub(super) fn special_inode(&self, state: &mut State, told: &Described) -> Result<Inode> {
        let it = &told.it;
        let mode = it.kind.mode_bits() | told.permissions(0);
        let (uid, gid) = self.owner;
        let mut inode = Inode::new(state.new_ino()?, mode, uid, gid, it.modified);
        inode.rdev = it.rdev;
        inode.size = it.target.as_ref().map_or(0, |target| target.len() as u64);
        inode.target = it.target.clone();
        // The catalog knows of it, so its end has to be told.
        inode.flags.set(Flags::ON_BACKEND);
        self.believe(state, &mut inode, told, None)?;
        Ok(inode)
    }

    /// The inode that has other names of the same file already, if this name was described as one of them and is so still. Counts
    /// it as found; the caller adds the name, in the same transaction.
    pub(super) fn one_of_links(
        &self,
        state: &mut State,
        told: &Described,
        found: Option<Found>,
    ) -> Result<Option<Ino>> {
        let Some(link) = told.it.link else {
            return Ok(None);
        };
        if !found.is_none_or(|found| told.is_of(found, self.capabilities.time_granularity_ns)) {
            return Ok(None);
        }
        let Some(mut group) = state.link_group(link)? else {
            return Ok(None);
        };
        let is_alike = group.size == told.it.size && group.modified == told.it.modified;
        let known = state.inode(group.ino)?;
        let is_same = known.is_some_and(|inode| inode.kind() == told.it.kind && inode.nlink > 0);
        if !is_alike || !is_same {
            return Ok(None);
        }
        if group.pending > 0 {
            group.pending -= 1;
            state.put_link_group(&group)?;
        } else if let Some(mut inode) = state.inode(group.ino)? {
            // Another machine has made it since the directories were looked into.
            inode.nlink = inode.nlink.saturating_add(1);
            state.put_inode(inode);
        }
        Ok(Some(group.ino))
    }

    /// `inode` is the first that is met of its group of links, if it was described as one of several: it has as many names as the
    /// catalog says, but for those that directories which were looked into lack.
    pub(super) fn first_of_links(
        &self,
        state: &mut State,
        inode: &mut Inode,
        told: &Described,
        found: Option<Found>,
        path: &RelPath,
    ) -> Result<()> {
        let Some(link) = told.it.link else {
            return Ok(());
        };
        let is_so =
            found.is_none_or(|found| told.is_of(found, self.capabilities.time_granularity_ns));
        if !is_so || state.link_group(link)?.is_some() {
            return Ok(());
        }
        let mut pending = 0;
        for other in state.described_links(link)? {
            if other != *path && !state.was_looked_into(&other)? {
                pending += 1;
            }
        }
        inode.nlink = 1 + pending;
        state.put_link_group(&LinkGroup {
            link,
            ino: inode.ino,
            size: told.it.size,
            modified: told.it.modified,
            pending,
        })?;
        Ok(())
    }

    /// The directory has been looked into: names that were described as links and have turned out to be none, or are not there, are
    /// not waited for any more. In the transaction that says that it is listed.
    pub(super) fn count_links(&self, state: &mut State, dir: Ino, told: &Told) -> Result<()> {
        for (name, described) in &told.names {
            let Some(link) = described.it.link else {
                continue;
            };
            let Some(mut group) = state.link_group(link)? else {
                continue;
            };
            if group.pending == 0 || state.lookup_stored(dir, name)? == Some(group.ino) {
                continue;
            }
            group.pending -= 1;
            state.put_link_group(&group)?;
            if let Some(mut inode) = state.inode(group.ino)? {
                inode.nlink = inode.nlink.saturating_sub(1);
                if inode.nlink == 0 {
                    state.add_orphan(inode.ino);
                }
                state.put_inode(inode);
            }
        }
        Ok(())
    }

    /// Gives the root what is said of it, unless it has been changed here.
    pub(super) fn believe_of_root(&self, state: &mut State, told: &Told) -> Result<()> {
        let Some(own) = &told.own else {
            return Ok(());
        };
        let mut root = self.known(state, Ino::ROOT)?;
        if own.it.kind == FileKind::Directory && !root.flags.has(Flags::ATTR_DIRTY) {
            let before = root.clone();
            self.believe(state, &mut root, own, None)?;
            if root != before {
                self.notices.push(vec![Notice::Inode { ino: Ino::ROOT }]);
            }
            state.put_inode(root);
        }
        Ok(())
    }

    /// Where a file that is only on the backend has holes, as the catalog says. A hint: what is there reads as it is.
    pub(super) fn described_holes(&self, inode: &Inode) -> Result<Vec<Extent>> {
        if inode.blocks.saturating_mul(512) >= inode.size {
            return Ok(Vec::new());
        }
        let mut state = self.index.lock();
        let Some(path) = state.backend_path(inode.ino)? else {
            return Ok(Vec::new());
        };
        let told = state.description(&path)?;
        Ok(told
            .filter(|told| describes(told, inode.size, inode.mtime, 0))
            .map(|told| told.holes)
            .unwrap_or_default())
    }

    /// Takes in what the catalog says anew of what is in the index already; what was changed here stays.
    ///
    /// # Errors
    /// If the index fails.
    pub fn believe_anew(&self) -> Result<()> {
        self.believe_of_top()?;
        let mut after = Ino(0);
        loop {
            let next = self.index.lock().a_listed_dir(after)?;
            let Some(dir) = next else { return Ok(()) };
            self.believe_of_dir(dir)?;
            after = dir;
        }
    }

    /// The same for the root, which is asked for before anything has listed it.
    fn believe_of_top(&self) -> Result<()> {
        let told = Told {
            own: self.told_of_root()?,
            ..Told::default()
        };
        let mut state = self.index.lock();
        self.believe_of_root(&mut state, &told)?;
        state.commit()?;
        Ok(())
    }

    /// The same for one directory.
    ///
    /// # Errors
    /// If the index fails.
    pub fn believe_of_dir(&self, dir: Ino) -> Result<()> {
        let Some(path) = self.index.lock().backend_path(dir)? else {
            return Ok(());
        };
        let told = self.told_in(&path)?;
        let names: Vec<_> = told.names.iter().collect();
        // The kernel is told with nothing locked, see `refresh::notices`.
        let mut news = Vec::new();
        for chunk in names.chunks(CHUNK) {
            {
                let mut state = self.index.lock();
                for (name, described) in chunk {
                    self.believe_of_name(&mut state, dir, (name, described), &told, &mut news)?;
                }
                state.commit()?;
            }
            self.notices.push(std::mem::take(&mut news));
        }
        self.forget_untold_specials(dir, &told, &mut news)?;
        self.notices.push(news);
        Ok(())
    }

    fn believe_of_name(
        &self,
        state: &mut State,
        dir: Ino,
        (name, described): (&Name, &Described),
        told: &Told,
        news: &mut Vec<Notice>,
    ) -> Result<()> {
        let placed = state.placed(dir, name)?;
        let Some(entry) = placed else {
            if described.it.kind.is_plain() {
                return Ok(()); // Not on the drive, as far as is known.
            }
            if let Some(inode) = self.special_at(state, dir, name)? {
                return self.believe_of_inode(state, inode, described, None, news);
            }
            if described.is_withheld() {
                return Ok(());
            }
            self.import_special(state, dir, name, described, told)?;
            let key = NameKey {
                parent: dir,
                name: name.clone(),
            };
            let name = state.mount_name(&key)?;
            news.push(Notice::Entry { parent: dir, name });
            news.push(Notice::Inode { ino: dir });
            return Ok(());
        };
        let Some(inode) = state.inode(entry.ino)? else {
            return Ok(());
        };
        let found = Found {
            kind: inode.kind(),
            size: entry.size,
            modified: entry.mtime,
        };
        self.believe_of_inode(state, inode, described, Some(found), news)
    }

    fn believe_of_inode(
        &self,
        state: &mut State,
        mut inode: Inode,
        described: &Described,
        found: Option<Found>,
        news: &mut Vec<Notice>,
    ) -> Result<()> {
        if inode.kind() != described.it.kind || inode.flags.any(Flags::DIRTY) {
            return Ok(());
        }
        let before = inode.clone();
        let acls = super::acl::both(state, &inode)?;
        for name in state.xattr_names(inode.ino)? {
            let stays = acl::is_acl(&name) && self.is_native(described);
            if !stays && !described.it.xattrs.contains_key(&name[..]) {
                state.put_xattr(inode.ino, &name, None)?;
            }
        }
        // What is left of them is written over or removed.
        let blocks = inode.blocks;
        self.believe(state, &mut inode, described, found)?;
        if inode.object.is_some() {
            inode.blocks = blocks; // What it takes here is known.
        }
        if described.it.kind == FileKind::Symlink {
            inode.target.clone_from(&described.it.target);
            inode.size = inode
                .target
                .as_ref()
                .map_or(0, |target| target.len() as u64);
        }
        inode.ctime = match (&inode.mtime, inode.mode, inode.uid, inode.gid)
            == (&before.mtime, before.mode, before.uid, before.gid)
        {
            true => before.ctime,
            false => self.clock.now(),
        };
        // The kernel remembers ACLs with the inode.
        if inode != before || super::acl::both(state, &inode)? != acls {
            news.push(Notice::Inode { ino: inode.ino });
        }
        state.put_inode(inode);
        Ok(())
    }

    /// The link or special file that the mount has under a name which the drive has no entry for.
    fn special_at(&self, state: &mut State, dir: Ino, name: &Name) -> Result<Option<Inode>> {
        let found = match state.lookup_stored(dir, name)? {
            Some(ino) => state.inode(ino)?,
            None => None,
        };
        Ok(found.filter(|inode| !inode.kind().is_plain()))
    }

    /// Links and special files that the catalog knew of, and does so no more, were removed elsewhere.
    fn forget_untold_specials(&self, dir: Ino, told: &Told, news: &mut Vec<Notice>) -> Result<()> {
        let mut after = 0;
        loop {
            let mut state = self.index.lock();
            let names = state.list(dir, after, u64::MAX, CHUNK as u32)?;
            let Some(last) = names.last() else {
                return Ok(());
            };
            after = last.cookie;
            for dirent in names {
                let inode = state.expect_inode(dirent.ino)?;
                let is_clean = inode.flags.has(Flags::ON_BACKEND) && !inode.flags.any(Flags::DIRTY);
                if inode.kind().is_plain() || !is_clean {
                    continue;
                }
                let Some(stored) = state.stored_name(dir, &dirent.name)? else {
                    continue;
                };
                if told.names.contains_key(&stored)
                    || state.placed(dir, &stored)?.is_some()
                    || state.is_marked(dir, &stored)?
                {
                    continue;
                }
                state.remove_clean_name(dir, &dirent.name)?;
                news.push(Notice::Entry {
                    parent: dir,
                    name: dirent.name.clone(),
                });
                news.push(Notice::Inode { ino: dir });
                let mut inode = inode;
                inode.nlink = inode.nlink.saturating_sub(1);
                if inode.nlink == 0 {
                    state.add_orphan(inode.ino);
                }
                state.put_inode(inode);
            }
            state.commit()?;
        }
    }

    /// Brings the index up to what a batch has to know: sizes of what was written, and all names of what has several.
    ///
    /// # Errors
    /// If the index or the backend fails; what could not be brought up stays behind.
    pub fn settle_for_batch(&self) -> Result<()> {
        self.commit_pending()?;
        self.complete_links()
    }

    /// Takes in the directories that hold names of changed files with several names, so that a batch carries them under all.
    ///
    /// # Errors
    /// If the backend cannot be read; such files then wait.
    pub fn complete_links(&self) -> Result<()> {
        let groups = self.index.lock().incomplete_links()?;
        for group in groups {
            let names = self.index.lock().described_links(group.link)?;
            for name in names {
                self.look_into_dir_of(&name)?;
            }
        }
        Ok(())
    }

    /// Takes in every directory on the way to the backend's name `path`.
    fn look_into_dir_of(&self, path: &RelPath) -> Result<()> {
        let Some((dir, _)) = path.split_last() else {
            return Ok(());
        };
        let mut at = Ino::ROOT;
        self.import_dir(at)?;
        for name in dir.components() {
            let Ok(name) = Name::new(name) else {
                return Ok(());
            };
            let placed = self.index.lock().placed(at, &name)?;
            match placed {
                Some(entry) if entry.ino != crate::rules::delta::NOBODY => at = entry.ino,
                _ => return Ok(()),
            }
            let known = self.index.lock().inode(at)?;
            if !known.is_some_and(|inode| inode.is_dir()) {
                return Ok(());
            }
            self.import_dir(at)?;
        }
        Ok(())
    }
}

/// Writes what of `bytes`, which stand at `at`, is not zeros in one of `holes`. `holes` are in order.
pub(super) fn write_around_holes(
    holes: &[Extent],
    at: u64,
    bytes: &[u8],
    mut write: impl FnMut(u64, &[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let end = at + bytes.len() as u64;
    let part = |from: u64, to: u64| &bytes[(from - at) as usize..(to - at) as usize];
    let mut done = at;
    for hole in holes {
        let (from, to) = (hole.offset.max(done), hole.end().min(end));
        if from >= to || part(from, to).iter().any(|byte| *byte != 0) {
            continue;
        }
        if done < from {
            write(done, part(done, from))?;
        }
        done = to;
    }
    if done < end {
        write(done, part(done, end))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zeros_in_holes_are_not_written() {
        let holes = [(2, 4), (8, 4), (14, 2), (90, 5)];
        let holes = holes.map(|(offset, length)| Extent { offset, length });
        let mut file = vec![0xee; 16];
        let bytes: Vec<u8> = vec![1, 0, 0, 0, 0, 0, 2, 3, 0, 9, 0, 0, 4, 5, 0, 0];
        for (at, part) in [(0, &bytes[..5]), (5, &bytes[5..])] {
            write_around_holes(&holes, at, part, |at, bytes| {
                file[at as usize..][..bytes.len()].copy_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        }
        let untouched = 0xee;
        let wanted = [
            1, 0, untouched, untouched, untouched, untouched, 2, 3, 0, 9, 0, 0, 4, 5, untouched,
            untouched,
        ];
        assert_eq!(file, wanted, "a hole that holds bytes is written whole");
    }
}
