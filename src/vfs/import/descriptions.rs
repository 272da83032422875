//! Descriptions of the catalog: reading those of a directory, and applying one to an inode.
//!
//! Invariant: a description applies to the bytes that were described. Size and time on the drive
//! show whether the file still has these bytes. If not, the file was changed elsewhere, and only
//! mode, owner and extended attributes of the description are used.

use std::collections::BTreeMap;

use crate::core::{
    FileKind, Ino, Metadata, Name, RelPath, SET_IDS, Timestamp, acl, is_privileged, without_set_ids,
};
use crate::format::catalog::Description;
use crate::index::{Flags, IndexWriter, Inode, PlacedEntry};
use crate::plan::describe::{blocks, describes, group_here, owner_here};
use crate::sys;
use crate::vfs::import::Importer;
use crate::vfs::invalidation::Invalidation;
use crate::vfs::privileges::CAPABILITY;
use crate::vfs::{Result, known};

/// Names read from the mirror under one hold of the index lock.
pub(super) const CHUNK: usize = 256;

/// The fields of the drive's entry that show whether it is the described file.
#[derive(Clone, Copy)]
pub(super) struct Found {
    kind: FileKind,
    size: u64,
    modified: Timestamp,
}

impl Found {
    /// Returns the fields of an entry's metadata.
    pub(super) fn new(meta: &Metadata) -> Found {
        Found {
            kind: meta.kind,
            size: meta.size,
            modified: meta.modified,
        }
    }

    /// Returns the fields of an entry that the index has.
    pub(super) fn placed(kind: FileKind, entry: &PlacedEntry) -> Found {
        Found {
            kind,
            size: entry.size,
            modified: entry.mtime,
        }
    }
}

/// The description of one name, with the user and group IDs of its owners on this machine.
pub(super) struct Described {
    pub(super) it: Description,
    uid: u32,
    gid: u32,
    /// A user other than this cache's user and root could have written it.
    is_strangers: bool,
}

/// The descriptions of the names in one directory, as the backend spells them.
#[derive(Default)]
pub(super) struct Descriptions {
    /// The path of the directory on the backend.
    dir: RelPath,
    /// The directory's own description, for the volume's root, which has no parent.
    own: Option<Described>,
    names: BTreeMap<Name, Described>,
}

impl Described {
    /// Looks up the owners. The caller must not hold a lock.
    fn new(it: Description, is_strangers: bool) -> Described {
        let owners = sys::owners::system();
        Described {
            is_strangers,
            uid: owner_here(&it.owner, owners),
            gid: group_here(&it.group, owners),
            it,
        }
    }

    /// Returns whether the description must not be imported: a device described by a stranger.
    pub(super) fn is_withheld(&self) -> bool {
        let is_device = matches!(self.it.kind, FileKind::CharDevice | FileKind::BlockDevice);
        self.is_strangers && is_device
    }

    /// Returns the permission bits for a file that has those of `mode` so far. A stranger's
    /// description gives no privileges, and does not remove privileges known from elsewhere.
    fn permissions(&self, mode: u32) -> u32 {
        let described = self.it.permissions & 0o7777;
        match self.is_strangers {
            true => {
                let is_dir = self.it.kind == FileKind::Directory;
                without_set_ids(is_dir, described) | (described & mode & SET_IDS)
            }
            false => described,
        }
    }

    /// Returns the extended attributes to import.
    fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let all = self.it.xattrs.iter();
        all.filter(|(name, _)| !self.is_strangers || !is_privileged(name))
            .map(|(name, value)| (&name[..], &value[..]))
    }

    /// Returns whether the file found has the described bytes.
    pub(super) fn is_of(&self, found: Found, granularity_ns: u64) -> bool {
        match self.it.kind {
            FileKind::Regular => describes(&self.it, found.size, found.modified, granularity_ns),
            kind => kind == found.kind,
        }
    }
}

impl Descriptions {
    /// Returns the description of a single name. The look-up of its owners is quick if they were
    /// looked up a moment ago.
    pub(super) fn of_one(
        dir: RelPath,
        name: &Name,
        it: Description,
        is_strangers: bool,
    ) -> Descriptions {
        Descriptions {
            dir,
            own: None,
            names: BTreeMap::from([(name.clone(), Described::new(it, is_strangers))]),
        }
    }

    /// Returns the description of an entry of the backend, unless the entry now has another file
    /// type.
    pub(super) fn of(&self, name: &Name, kind: FileKind) -> Option<&Described> {
        self.names
            .get(name)
            .filter(|described| described.it.kind == kind)
    }

    /// Returns the path on the backend of a name in the directory.
    pub(super) fn path(&self, name: &Name) -> RelPath {
        self.dir.join(name)
    }

    /// Returns the root's description alone.
    pub(super) fn of_root(own: Option<Described>) -> Descriptions {
        Descriptions {
            own,
            ..Descriptions::default()
        }
    }

    /// Returns all described names.
    pub(super) fn names(&self) -> impl Iterator<Item = (&Name, &Described)> {
        self.names.iter()
    }

    /// Returns whether a name is described.
    pub(super) fn has(&self, name: &Name) -> bool {
        self.names.contains_key(name)
    }

    /// Returns the entries that exist only in the catalog and may be imported.
    pub(super) fn specials(&self) -> impl Iterator<Item = (&Name, &Described)> {
        let names = self.names.iter();
        names.filter(|(_, described)| !described.it.kind.is_plain() && !described.is_withheld())
    }
}

impl Importer {
    /// Reads the descriptions of the names in the backend's directory `dir`. The caller keeps names
    /// from being moved.
    pub(super) fn descriptions_in(&self, dir: &RelPath) -> Result<Descriptions> {
        let mut descriptions = Descriptions {
            dir: dir.clone(),
            ..Descriptions::default()
        };
        let is_strangers = self.index.lock().catalog_is_strangers()?;
        if dir.is_root() {
            descriptions.own = self.root_description()?;
        }
        let mut after = None;
        loop {
            let found = self.index.lock().described_in(dir, after.as_ref(), CHUNK)?;
            let Some((last, _)) = found.last() else {
                return Ok(descriptions);
            };
            after = Some(last.clone());
            for (name, it) in found {
                if let Some(it) = it {
                    descriptions
                        .names
                        .insert(name, Described::new(it, is_strangers));
                }
            }
        }
    }

    /// Reads the description of the backend's root.
    pub(super) fn root_description(&self) -> Result<Option<Described>> {
        let (own, is_strangers) = {
            let mut state = self.index.lock();
            let own = state.description(&RelPath::root())?;
            (own, state.catalog_is_strangers()?)
        };
        Ok(own.map(|it| Described::new(it, is_strangers)))
    }

    /// Applies its description to an inode that is being imported.
    pub(super) fn apply_description(
        &self,
        state: &mut IndexWriter,
        inode: &mut Inode,
        described: &Described,
        found: Option<Found>,
    ) -> Result<()> {
        let it = &described.it;
        let is_native = self.is_native(described);
        // Otherwise a batch running as root would give the drive's file to a user named by a
        // stranger.
        let takes_owner = !described.is_strangers || !self.capabilities.owners;
        if takes_owner
            && described.is_strangers
            && (inode.uid, inode.gid) != (described.uid, described.gid)
        {
            // The file's privileges were meant for its previous owner.
            inode.mode = (inode.mode & libc::S_IFMT) | without_set_ids(inode.is_dir(), inode.mode);
            state.put_xattr(inode.ino, CAPABILITY, None)?;
        }
        if takes_owner {
            (inode.uid, inode.gid) = (described.uid, described.gid);
        }
        if !is_native {
            inode.mode = (inode.mode & libc::S_IFMT) | described.permissions(inode.mode);
            // The description is complete: an ACL that is not part of it would contradict its mode.
            crate::vfs::acl::remove_both(state, inode)?;
        }
        for (name, value) in described.xattrs() {
            if !is_native || !acl::is_acl(name) {
                crate::vfs::acl::take(state, inode, name, value)?;
            }
        }
        if found.is_none_or(|found| described.is_of(found, self.capabilities.time_granularity_ns)) {
            inode.mtime = it.modified;
            inode.ctime = it.modified;
            if it.kind == FileKind::Regular {
                inode.blocks = blocks(it.size, &it.holes);
            }
        }
        Ok(())
    }

    /// Returns whether the drive itself stores the permissions of the file, so that a stranger's
    /// description is not used for them.
    pub(super) fn is_native(&self, described: &Described) -> bool {
        described.is_strangers && described.it.kind.is_plain() && self.capabilities.permissions
    }

    /// Creates the inode of an entry that exists only in the catalog.
    pub(super) fn special_inode(
        &self,
        state: &mut IndexWriter,
        described: &Described,
    ) -> Result<Inode> {
        let it = &described.it;
        let mode = it.kind.mode_bits() | described.permissions(0);
        let (uid, gid) = self.owner;
        let mut inode = Inode::new(state.new_ino()?, mode, uid, gid, it.modified);
        inode.rdev = it.rdev;
        inode.size = it.target.as_ref().map_or(0, |target| target.len() as u64);
        inode.target = it.target.clone();
        // The catalog has it, so a removal has to be written to the catalog.
        inode.flags.set(Flags::ON_BACKEND);
        self.apply_description(state, &mut inode, described, None)?;
        Ok(inode)
    }

    /// Applies its description to the root, unless the root has local changes.
    pub(super) fn apply_root_description(
        &self,
        state: &mut IndexWriter,
        descriptions: &Descriptions,
    ) -> Result<()> {
        let Some(own) = &descriptions.own else {
            return Ok(());
        };
        let mut root = known(state, Ino::ROOT)?;
        if own.it.kind == FileKind::Directory && !root.flags.has(Flags::ATTR_DIRTY) {
            let before = root.clone();
            self.apply_description(state, &mut root, own, None)?;
            if root != before {
                // The caller holds the index's lock, so this must not wait.
                let invalidation = Invalidation::Inode { ino: Ino::ROOT };
                self.invalidations.push_now(invalidation);
            }
            state.put_inode(root);
        }
        Ok(())
    }
}
