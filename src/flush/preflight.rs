//! Before anything is staged: what stands on the backend where the batch is to write is compared with what the index believes.
//! What somebody else has put there or changed is not overwritten; the name stays behind, with the reason.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Result;
use super::apply::hash_file;
use super::gather::Gathered;
use crate::backend::{Backend, Metadata};
use crate::base::{FileKind, Ino, RelPath};
use crate::index::PlacedEntry;
use crate::rules::plan::{NameKey, NewContent};
use crate::rules::steps::PlainKind;

/// Times nearer than this are taken as equal whatever the backend's granularity: FAT keeps two seconds.
const SLACK_NS: i64 = 2_000_000_000;

/// Names on the backend that are taken by something unknown, where the batch would put something of its own.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// Files that can simply stay behind.
    pub(super) inos: HashSet<Ino>,
    /// Names of what cannot: a directory, or something that would be moved there.
    pub(super) in_the_way: Option<RelPath>,
}

/// Looks at every name under which the batch would put something.
pub(super) fn find_foreign(
    backend: &dyn Backend,
    gathered: &Gathered,
    granularity_ns: u64,
) -> Result<Foreign> {
    let slack = i64::try_from(granularity_ns)
        .unwrap_or(i64::MAX)
        .max(SLACK_NS);
    let mut foreign = Foreign::default();
    let mut listings = Listings {
        backend,
        dirs: HashMap::new(),
    };
    let names = &gathered.delta.names;
    let placed: HashSet<Ino> = names
        .iter()
        .filter_map(|change| change.old.map(|old| old.ino))
        .collect();
    for change in names {
        let Some(new) = &change.new else { continue };
        let same = change.old.is_some_and(|old| old.ino == new.ino);
        let stays = matches!(
            new.content,
            NewContent::Unchanged { .. } | NewContent::Directory
        );
        if (same && stays) || new.content == NewContent::Live {
            continue;
        }
        let paths = gathered.delta.dirs.get(&change.key.parent);
        let Some(dir) = paths.and_then(|paths| paths.old.as_ref().or(paths.new.as_ref())) else {
            continue;
        };
        let path = dir.join(&change.key.name);
        let believed = gathered.before.get(&change.key);
        let found = listings.find(dir, &change.key)?;
        if new.content == NewContent::Directory
            && !placed.contains(&new.ino)
            && found
                .as_ref()
                .is_some_and(|meta| meta.kind == FileKind::Directory)
        {
            continue; // Somebody else has made the same directory; it serves both.
        }
        if agrees(backend, &path, found.as_ref(), believed, slack)? {
            continue;
        }
        if new.content == NewContent::Directory || (placed.contains(&new.ino) && !same) {
            foreign.in_the_way = Some(path);
        } else {
            foreign.inos.insert(new.ino);
        }
    }
    Ok(foreign)
}

/// Directories are listed once rather than asked for each name: that is one pass of the disk.
struct Listings<'a> {
    backend: &'a dyn Backend,
    dirs: HashMap<RelPath, BTreeMap<Vec<u8>, Metadata>>,
}

impl Listings<'_> {
    fn find(&mut self, dir: &RelPath, key: &NameKey) -> Result<Option<Metadata>> {
        if !self.dirs.contains_key(dir) {
            let entries = match self.backend.read_dir(dir) {
                Ok(entries) => entries,
                Err(error) if error.is_not_found() => Vec::new(),
                // A file that this batch replaces by a directory.
                Err(error) if error.source.raw_os_error() == Some(libc::ENOTDIR) => Vec::new(),
                Err(error) => return Err(error.into()),
            };
            let by_name = entries
                .into_iter()
                .map(|entry| (entry.name.as_bytes().to_vec(), entry.meta))
                .collect();
            self.dirs.insert(dir.clone(), by_name);
        }
        Ok(self
            .dirs
            .get(dir)
            .and_then(|entries| entries.get(key.name.as_bytes()))
            .cloned())
    }
}

/// Whether what was found is what the index believes, or nothing.
fn agrees(
    backend: &dyn Backend,
    path: &RelPath,
    found: Option<&Metadata>,
    believed: Option<&PlacedEntry>,
    slack: i64,
) -> Result<bool> {
    let (found, believed) = match (found, believed) {
        (None, _) => return Ok(true),
        (Some(_), None) => return Ok(false),
        (Some(found), Some(believed)) => (found, believed),
    };
    let is_dir = found.kind == FileKind::Directory;
    if is_dir || believed.kind == PlainKind::Directory {
        return Ok(is_dir && believed.kind == PlainKind::Directory);
    }
    if found.size != believed.size {
        return Ok(false);
    }
    if found.modified.0.abs_diff(believed.mtime.0) <= slack.unsigned_abs() {
        return Ok(true);
    }
    // The clock of another machine, or a time zone, may be all the difference.
    match believed.hash {
        Some(hash) => Ok(hash_file(&*backend.open(path)?, path)? == hash),
        None => Ok(false),
    }
}
