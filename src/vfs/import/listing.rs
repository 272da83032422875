//! The listing of one directory of the backend, with the attributes of a backend that has owners,
//! extended attributes and hard links.
//!
//! The names of one file are recognized by its inode number on the backend, among the names seen
//! during one life of the daemon. The number has no meaning after the file is removed, and a file
//! rewritten by a batch gets another number. Invariant: a number is trusted only together with size
//! and time, and only while the index has the same bytes as the backend.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::core::acl::Acl;
use crate::core::{Capabilities, Entry, FileKind, Ino, Metadata, Name, RelPath, Xattrs, acl};
use crate::drive::{Backend, BackendError};
use crate::format::steps::PlainKind;
use crate::index::{Flags, IndexWriter, Inode, PlacedEntry};
use crate::plan::planner::NameKey;
use crate::plan::representable;
use crate::vfs::Result;
use crate::vfs::drive_files::note_backend_error;
use crate::vfs::import::Importer;
use crate::vfs::import::descriptions::Descriptions;

/// Inodes by the backend's inode numbers of files with several links.
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

/// The contents of a directory on the backend.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) entries: Vec<Entry>,
    /// The extended attributes of entries that have any.
    xattrs: HashMap<Name, Xattrs>,
    /// Metadata and extended attributes of the backend's root, if this is the root.
    pub(super) root: Option<(Metadata, Xattrs)>,
    /// The catalog's descriptions of the entries.
    pub(super) descriptions: Descriptions,
}

impl Listed {
    /// Reads the directory at `path`, with the extended attributes of its entries.
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
        if path.is_root() && representable::has_attributes(capabilities) {
            listed.root = Some(read_root(backend, capabilities)?);
        }
        Ok(listed)
    }

    /// Copies the extended attributes of an entry to its new inode.
    pub(super) fn put_xattrs(
        &self,
        state: &mut IndexWriter,
        name: &Name,
        inode: &mut Inode,
    ) -> Result<()> {
        for (attribute, value) in self.xattrs.get(name).into_iter().flatten() {
            crate::vfs::acl::take(state, inode, attribute, value)?;
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
    // The kernel refuses every access to a file with an ACL that it cannot read.
    xattrs.retain(|name, value| !acl::is_acl(name) || matches!(Acl::parse(value), Ok(Some(_))));
    Ok((backend.metadata(&root)?, xattrs))
}

impl Importer {
    /// Copies the attributes of the backend's root directory to the mount's root, once.
    pub(in crate::vfs) fn take_root(&self) -> Result<()> {
        if !representable::has_attributes(&self.capabilities) || self.index.lock().has_root()? {
            return Ok(());
        }
        let backend = self.paths.backend()?;
        let (meta, xattrs) =
            read_root(&*backend, &self.capabilities).map_err(note_backend_error)?;
        let mut state = self.index.lock();
        state.take_root(&meta, &xattrs)?;
        state.commit()?;
        Ok(())
    }

    /// Returns owner and group of a file on the backend: its own if the backend stores permissions
    /// of several users, otherwise the user that runs ferryfs.
    pub(super) fn owner_of(&self, meta: &Metadata) -> (u32, u32) {
        match self.capabilities.permissions {
            true => (meta.uid, meta.gid),
            false => self.owner,
        }
    }

    /// Imports an entry that is a further link of a known file. Returns false if it is none.
    pub(super) fn import_further_name(
        &self,
        state: &mut IndexWriter,
        dir: Ino,
        entry: &Entry,
    ) -> Result<bool> {
        let meta = &entry.meta;
        if !self.capabilities.hard_links || meta.kind == FileKind::Directory {
            return Ok(false);
        }
        let Some(ino) = self.linked.find(meta) else {
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
