//! One directory's listing beside what the index believes of it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::super::{Fs, Result};
use super::spelling;
use crate::backend::{Entry, Metadata};
use crate::base::{FileKind, Ino, Name};
use crate::index::{PlacedEntry, State};
use crate::rules::describe::is_told_oddly;
use crate::rules::known::Believed;
use crate::rules::merge::{Standing, compare};
use crate::rules::plan::NameKey;
use crate::rules::steps::PlainKind;

/// How a directory of the backend differs from what the index believes.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Anything does.
    pub(super) differs: bool,
    /// What is not known.
    pub(super) appeared: Vec<Entry>,
    /// What is not there.
    pub(super) vanished: Vec<(Name, PlacedEntry)>,
    /// What has other bytes, or (true) only another time.
    pub(super) changed: Vec<(Name, PlacedEntry, Metadata, bool)>,
    /// What is spelled in another way, which the backend takes for the same.
    pub(super) respelled: Vec<(Name, PlacedEntry, Entry)>,
    /// Directories that are there as they were.
    pub(super) dirs: Vec<(Name, Ino)>,
    /// The time that is believed and the one that was found, of each file that is as large as it was.
    pub(super) times: Vec<(i64, i64)>,
}

impl Fs {
    pub(super) fn compare_listing(&self, dir: Ino, entries: Vec<Entry>) -> Result<Compared> {
        let believed = self.index.lock().placed_in(dir)?;
        let mut believed: BTreeMap<Name, PlacedEntry> = believed.into_iter().collect();
        let mut compared = Compared::default();
        for entry in entries {
            if self.is_left_out(dir, &entry) {
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
                Standing::Same if was.kind == PlainKind::Directory => {
                    compared.dirs.push((entry.name, was.ino));
                }
                Standing::Same => {}
                Standing::OtherKind => {
                    compared.vanished.push((entry.name.clone(), was));
                    compared.appeared.push(entry);
                }
                standing => {
                    let touched = standing == Standing::Touched;
                    compared
                        .changed
                        .push((entry.name, was, entry.meta, touched));
                }
            }
        }
        // Who gets which name in the mount is not to depend on the backend's order.
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

    fn standing(&self, was: &PlacedEntry, found: &Metadata) -> Result<Standing> {
        let granularity = self.capabilities.time_granularity_ns;
        let standing = compare(was.kind, &believed(was), found, granularity);
        let is_plain = found.kind.is_plain();
        if is_plain || standing == Standing::OtherKind {
            return Ok(standing);
        }
        // Links and the like have no bytes: they are the same or they are something else.
        let known = self.index.lock().inode(was.ino)?;
        let same = known.is_none_or(|known| {
            known.kind() == found.kind
                && (found.kind != FileKind::Symlink
                    || known.target.as_deref() == found.target.as_deref())
        });
        Ok(match same {
            true => Standing::Same,
            false => Standing::OtherKind,
        })
    }

    /// Takes those that have only been spelled anew out of what has vanished and appeared.
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
                    *name != entry.name && self.standing(was, &entry.meta)? == Standing::Same
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

/// What is believed of a file, in the words of the rules.
pub(super) fn believed(was: &PlacedEntry) -> Believed {
    Believed {
        size: was.size,
        modified: was.mtime,
        hash: was.hash,
    }
}

/// The mount's directory under this name, or one that the backend cannot tell from it, which the backend did not have so far.
pub(super) fn own_dir(state: &mut State, key: &NameKey) -> Result<Option<Ino>> {
    let Some((_, ino)) = spelling::in_the_way(state, key)? else {
        return Ok(None);
    };
    let is_dir = state.inode(ino)?.is_some_and(|inode| inode.is_dir());
    Ok((is_dir && state.a_place_of(ino)?.is_none()).then_some(ino))
}
