//! What is taken in of a backend that has owners, extended attributes and several names of one file.
//!
//! Names of one file are known by its number, as far as they are met within one life of the daemon: the number means nothing once
//! the file is gone, and what is written anew by a batch gets another. So a number is believed only together with size and time,
//! and only while the index has the very bytes that the backend has.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::backend::{Backend, BackendError, Capabilities, Entry, Metadata, Xattrs};
use crate::base::{FileKind, Ino, Name, RelPath};
use crate::fs::described::Told;
use crate::fs::{Fs, FsError, Result};
use crate::index::{Flags, Inode, PlacedEntry, State};
use crate::rules::acl::{self, Acl};
use crate::rules::given;
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;

/// Inodes by the numbers of files that have several names.
#[derive(Default)]
pub(super) struct Linked(Mutex<HashMap<u64, Ino>>);

impl Linked {
    pub(super) fn note(&self, meta: &Metadata, ino: Ino) {
        if let Some(file) = meta.file {
            self.0.lock().insert(file, ino);
        }
    }

    fn find(&self, meta: &Metadata) -> Option<Ino> {
        self.0.lock().get(&meta.file?).copied()
    }
}

/// A directory as the backend has it.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) entries: Vec<Entry>,
    /// The extended attributes of those that have any.
    xattrs: HashMap<Name, Xattrs>,
    /// Of the root, what it is itself.
    pub(super) root: Option<(Metadata, Xattrs)>,
    /// What the catalog says of it.
    pub(super) told: Told,
}

impl Listed {
    /// Reads the directory at `path`, and all that is told of what is in it.
    pub(super) fn read(
        backend: &dyn Backend,
        path: &RelPath,
        capabilities: &Capabilities,
    ) -> std::result::Result<Listed, BackendError> {
        let mut listed = Listed {
            entries: backend.read_dir(path)?,
            ..Listed::default()
        };
        let has_xattrs = !capabilities.xattrs.is_empty();
        if has_xattrs {
            let names: Vec<Name> = (listed.entries.iter())
                .map(|entry| entry.name.clone())
                .collect();
            listed.xattrs = backend.xattrs_in(path, &names)?.into_iter().collect();
        }
        if path.is_root() && given::has_attributes(capabilities) {
            listed.root = Some(read_root(backend, capabilities)?);
        }
        Ok(listed)
    }

    /// Gives a new inode the extended attributes of its entry.
    pub(super) fn put_xattrs(
        &self,
        state: &mut State,
        name: &Name,
        inode: &mut Inode,
    ) -> Result<()> {
        for (attribute, value) in self.xattrs.get(name).into_iter().flatten() {
            crate::fs::acl::take(state, inode, attribute, value)?;
        }
        Ok(())
    }
}

fn read_root(
    backend: &dyn Backend,
    capabilities: &Capabilities,
) -> std::result::Result<(Metadata, Xattrs), BackendError> {
    let root = RelPath::root();
    let mut xattrs = match capabilities.xattrs.is_empty() {
        true => Xattrs::new(),
        false => backend.xattrs(&root)?,
    };
    // The kernel lets nobody into what has an ACL that it cannot read.
    xattrs.retain(|name, value| !acl::is_acl(name) || matches!(Acl::parse(value), Ok(Some(_))));
    Ok((backend.metadata(&root)?, xattrs))
}

impl Fs {
    /// Takes the attributes of the backend's own directory for those of the mount, if that has never been done. To be called before
    /// anybody is shown the root.
    ///
    /// # Errors
    /// If the backend cannot be read; the root then has attributes of its own until it is listed.
    pub fn take_root(&self) -> Result<()> {
        if !given::has_attributes(&self.capabilities) || self.index.lock().has_root()? {
            return Ok(());
        }
        let backend = self.drive.get().ok_or(FsError::Detached)?;
        let (meta, xattrs) = read_root(&*backend, &self.capabilities)
            .map_err(|error| self.note_backend_error(error))?;
        let mut state = self.index.lock();
        state.take_root(&meta, &xattrs)?;
        state.commit()?;
        Ok(())
    }

    /// Owner and group of what the backend has: its own where it keeps permissions for several, else whoever runs ferryfs.
    pub(super) fn owner_of(&self, meta: &Metadata) -> (u32, u32) {
        match self.capabilities.permissions {
            true => (meta.uid, meta.gid),
            false => self.owner,
        }
    }

    /// Takes in an entry that is a further name of a file that is known already. False if it is none.
    pub(super) fn import_further_name(
        &self,
        state: &mut State,
        dir: Ino,
        entry: &Entry,
    ) -> Result<bool> {
        let meta = &entry.meta;
        if !self.capabilities.hard_links || meta.kind == FileKind::Directory {
            return Ok(false);
        }
        let Some(ino) = self.importing.linked.find(meta) else {
            return Ok(false);
        };
        let known = (state.inode(ino)?, state.a_place_of(ino)?);
        let (Some(mut inode), Some((_, place))) = known else {
            return Ok(false);
        };
        let is_it = inode.nlink > 0
            && inode.kind() == meta.kind
            && !inode.flags.has(Flags::DATA_DIRTY)
            && !inode.flags.has(Flags::WRITING)
            && (place.size, place.mtime) == (meta.size, meta.modified);
        if !is_it {
            return Ok(false);
        }
        inode.nlink = inode.nlink.saturating_add(1);
        let key = NameKey {
            parent: dir,
            name: entry.name.clone(),
        };
        let placed = PlacedEntry {
            ino,
            kind: PlainKind::File,
            size: meta.size,
            mtime: meta.modified,
            hash: place.hash,
        };
        state.put_inode(inode);
        state.put_placed(&key, Some(&placed))?;
        let name = state.mount_name_for(dir, &entry.name, None)?;
        state.add_clean_name(dir, &name, &entry.name, ino)?;
        Ok(true)
    }
}
