//! Names of one file according to the catalog. On a drive without hard links they are copies; they
//! become links of one inode here ([`LinkGroup`]).

use crate::core::{Ino, Name, RelPath};
use crate::index::{IndexWriter, Inode, LinkGroup};
use crate::vfs::Result;
use crate::vfs::import::Importer;
use crate::vfs::import::descriptions::{Described, Descriptions, Found};

impl Importer {
    /// Returns the inode with other names of the same file, if this name was described as one of
    /// them and still is. Counts the name as found; the caller adds it in the same transaction.
    pub(super) fn one_of_links(
        &self,
        state: &mut IndexWriter,
        described: &Described,
        found: Option<Found>,
    ) -> Result<Option<Ino>> {
        let Some(link) = described.it.link else {
            return Ok(None);
        };
        if !found.is_none_or(|found| described.is_of(found, self.capabilities.time_granularity_ns))
        {
            return Ok(None);
        }
        let Some(mut group) = state.link_group(link)? else {
            return Ok(None);
        };
        let is_alike = group.size == described.it.size && group.modified == described.it.modified;
        let known = state.inode(group.ino)?;
        let is_same =
            known.is_some_and(|inode| inode.kind() == described.it.kind && inode.nlink > 0);
        if !is_alike || !is_same {
            return Ok(None);
        }
        if group.pending > 0 {
            group.pending -= 1;
            state.put_link_group(&group)?;
        } else if let Some(mut inode) = state.inode(group.ino)? {
            // Another machine has added the link since the directories were imported.
            inode.nlink = inode.nlink.saturating_add(1);
            state.put_inode(inode);
        }
        Ok(Some(group.ino))
    }

    /// Starts a group of links with `inode`, if it was described as one of several and none of them
    /// is imported yet. It has as many links as the catalog lists, without those missing from
    /// directories that were already imported.
    pub(super) fn first_of_links(
        &self,
        state: &mut IndexWriter,
        inode: &mut Inode,
        described: &Described,
        found: Option<Found>,
        path: &RelPath,
    ) -> Result<()> {
        let Some(link) = described.it.link else {
            return Ok(());
        };
        let is_so =
            found.is_none_or(|found| described.is_of(found, self.capabilities.time_granularity_ns));
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
            size: described.it.size,
            modified: described.it.modified,
            pending,
        })?;
        Ok(())
    }

    /// Imports the directories with further names of changed files, so that a batch writes the
    /// files under all names.
    ///
    /// # Errors
    /// If the backend cannot be read; such files then wait.
    pub(in crate::vfs) fn complete_links(&self) -> Result<()> {
        let groups = self.index.lock().incomplete_links()?;
        for group in groups {
            let names = self.index.lock().described_links(group.link)?;
            for name in names {
                self.look_into_dir_of(&name)?;
            }
        }
        Ok(())
    }

    /// Imports every directory on the way to the backend's path `path`.
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
                Some(entry) if entry.ino != crate::plan::delta::NOBODY => at = entry.ino,
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

/// Stops waiting for names that were described as links and are not links in the imported
/// directory, or do not exist. Runs in the transaction that sets LISTED.
pub(super) fn count_links(
    state: &mut IndexWriter,
    dir: Ino,
    descriptions: &Descriptions,
) -> Result<()> {
    for (name, described) in descriptions.names() {
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
