//! Comparison of a directory's listing with the index.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::core::{Entry, FileKind, Ino, Metadata, Name, is_told_oddly};
use crate::external::names;
use crate::format::steps::PlainKind;
use crate::index::{IndexWriter, PlacedEntry};
use crate::plan::merge::{Comparison, compare};
use crate::plan::planner::NameKey;
use crate::vfs::drive_files::expected;
use crate::vfs::{Fs, Result};

/// The differences between a directory of the backend and the index.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// There is a difference.
    pub(super) differs: bool,
    /// New entries.
    pub(super) appeared: Vec<Entry>,
    /// Missing entries.
    pub(super) vanished: Vec<(Name, PlacedEntry)>,
    /// Files with other bytes, or (true) only another time.
    pub(super) changed: Vec<(Name, PlacedEntry, Metadata, bool)>,
    /// Entries with another spelling that is equal for the backend.
    pub(super) respelled: Vec<(Name, PlacedEntry, Entry)>,
    /// Unchanged directories.
    pub(super) dirs: Vec<(Name, Ino)>,
    /// Expected and found time of each file whose size is unchanged.
    pub(super) times: Vec<(i64, i64)>,
}

impl Fs {
    pub(super) fn compare_listing(&self, dir: Ino, entries: Vec<Entry>) -> Result<Compared> {
        let believed = self.index.lock().placed_in(dir)?;
        let mut believed: BTreeMap<Name, PlacedEntry> = believed.into_iter().collect();
        let mut compared = Compared::default();
        for entry in entries {
            if self.importer().is_left_out(dir, &entry) {
                continue;
            }
            let Some(was) = believed.remove(&entry.name) else {
                compared.appeared.push(entry);
                continue;
            };
            if entry.meta.kind == FileKind::Regular
                && was.kind == PlainKind::File
                && entry.meta.size == was.size
                && !is_told_oddly(was.mtime, entry.meta.modified)
            {
                let times = (was.mtime.0, entry.meta.modified.0);
                compared.times.push(times);
            }
            match self.standing(&was, &entry.meta)? {
                Comparison::Same if was.kind == PlainKind::Directory => {
                    compared.dirs.push((entry.name, was.ino));
                }
                Comparison::Same => {}
                Comparison::OtherKind => {
                    compared.vanished.push((entry.name.clone(), was));
                    compared.appeared.push(entry);
                }
                standing => {
                    let touched = standing == Comparison::Touched;
                    compared
                        .changed
                        .push((entry.name, was, entry.meta, touched));
                }
            }
        }
        // The names in the mount must not depend on the backend's order.
        let in_root = dir == Ino::ROOT;
        (compared.appeared).sort_by_cached_key(|entry| {
            let foreign = self.rules.decode(&entry.name, in_root).is_none();
            (foreign, entry.name.clone())
        });
        compared.vanished.extend(believed);
        self.find_respelled(&mut compared)?;
        compared.differs = !(compared.appeared.is_empty()
            && compared.vanished.is_empty()
            && compared.changed.is_empty()
            && compared.respelled.is_empty());
        Ok(compared)
    }

    fn standing(&self, was: &PlacedEntry, found: &Metadata) -> Result<Comparison> {
        let granularity = self.capabilities.time_granularity_ns;
        let standing = compare(was.kind, &expected(was), found, granularity);
        let is_plain = found.kind.is_plain();
        if is_plain || standing == Comparison::OtherKind {
            return Ok(standing);
        }
        // Links and special files have no contents: they are unchanged or replaced. A target that
        // cannot be read says nothing.
        let known = self.index.lock().inode(was.ino)?;
        let same = known.is_none_or(|known| {
            known.kind() == found.kind
                && (found.kind != FileKind::Symlink
                    || found.target.is_none()
                    || known.target.as_deref() == found.target.as_deref())
        });
        Ok(match same {
            true => Comparison::Same,
            false => Comparison::OtherKind,
        })
    }

    /// Moves entries with a new spelling from missing and new to respelled.
    fn find_respelled(&self, compared: &mut Compared) -> Result<()> {
        let folds: HashMap<Vec<u8>, usize> = (compared.vanished.iter().enumerate())
            .map(|(at, (name, _))| (self.rules.fold(name), at))
            .filter(|(fold, _)| !fold.is_empty())
            .collect();
        if folds.is_empty() {
            return Ok(());
        }
        let mut gone = HashSet::new();
        let mut appeared = Vec::new();
        for entry in std::mem::take(&mut compared.appeared) {
            let found = folds.get(&self.rules.fold(&entry.name)).copied();
            let same = match found {
                Some(at) => {
                    let (name, was) = &compared.vanished[at];
                    *name != entry.name && self.standing(was, &entry.meta)? == Comparison::Same
                }
                None => false,
            };
            match found {
                Some(at) if same => {
                    let (name, was) = compared.vanished[at].clone();
                    gone.insert(at);
                    compared.respelled.push((name, was, entry));
                }
                _ => appeared.push(entry),
            }
        }
        compared.appeared = appeared;
        let mut at = 0;
        compared.vanished.retain(|_| {
            at += 1;
            !gone.contains(&(at - 1))
        });
        Ok(())
    }
}

/// Returns the mount's directory with this name, or a name that is equal for the backend, if the
/// backend does not have the directory yet.
pub(super) fn own_dir(state: &mut IndexWriter, key: &NameKey) -> Result<Option<Ino>> {
    let Some((_, ino)) = names::in_the_way(state, key)? else {
        return Ok(None);
    };
    let is_dir = state.inode(ino)?.is_some_and(|inode| inode.is_dir());
    Ok((is_dir && state.a_place_of(ino)?.is_none()).then_some(ino))
}
