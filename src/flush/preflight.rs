//! Before anything is staged: what stands on the backend where the batch is to write is compared with what the index believes.
//! What somebody else has put there or changed is not overwritten; the name stays behind, with the reason.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Result;
use super::apply::hash_file;
use super::gather::Gathered;
use crate::backend::{Backend, Metadata};
use crate::base::{FileKind, Ino, Name, RelPath};
use crate::index::PlacedEntry;
use crate::rules::known::SLACK_NS;
use crate::rules::names::NameRules;
use crate::rules::plan::{NameKey, NewContent, OldEntry};
use crate::rules::steps::PlainKind;

/// Names on the backend that are taken by something unknown, where the batch would put something of its own.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// Files that can simply stay behind.
    pub(super) inos: HashSet<Ino>,
    /// Names of what cannot: a directory, or something that would be moved there.
    pub(super) in_the_way: Option<RelPath>,
    /// Files that the mount has removed and somebody else has changed. They stay where they are, and are theirs.
    pub(super) kept: Vec<NameKey>,
}

/// Looks at every name under which the batch would put something.
pub(super) fn find_foreign(
    backend: &dyn Backend,
    gathered: &Gathered,
    rules: &NameRules,
    granularity_ns: u64,
) -> Result<Foreign> {
    let slack = i64::try_from(granularity_ns)
        .unwrap_or(i64::MAX)
        .max(SLACK_NS.cast_signed());
    let mut foreign = Foreign::default();
    let standing = Standing::new(gathered);
    let mut listings = Listings {
        backend,
        rules,
        before: &gathered.before,
        dirs: HashMap::new(),
    };
    let names = &gathered.delta.names;
    let placed: HashSet<Ino> = names
        .iter()
        .filter_map(|change| change.old.map(|old| old.ino))
        .collect();
    let moving: HashSet<Ino> = names
        .iter()
        .filter_map(|change| change.new.as_ref())
        .filter(|new| !matches!(new.content, NewContent::Changed(_)))
        .map(|new| new.ino)
        .collect();
    for change in names {
        let Some(new) = &change.new else {
            let removed = |old: OldEntry| old.kind == PlainKind::File && !moving.contains(&old.ino);
            if change.old.is_some_and(removed)
                && let Some(dir) = standing.path_of(change.key.parent)
            {
                let path = dir.join(&change.key.name);
                let found = listings.find(&dir, &change.key)?;
                let believed = gathered.before.get(&change.key);
                if !agrees(backend, &path, found.as_ref(), believed, slack)? {
                    foreign.kept.push(change.key.clone());
                }
            }
            continue;
        };
        let same = change.old.is_some_and(|old| old.ino == new.ino);
        let stays = matches!(
            new.content,
            NewContent::Unchanged { .. } | NewContent::Directory | NewContent::Node(_)
        );
        if (same && stays) || new.content == NewContent::Live {
            continue;
        }
        let Some(dir) = standing.path_of(change.key.parent) else {
            continue;
        };
        let path = dir.join(&change.key.name);
        let believed = gathered.before.get(&change.key);
        let found = listings.find(&dir, &change.key)?;
        if new.content == NewContent::Directory
            && !placed.contains(&new.ino)
            && believed.is_none()
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

impl Foreign {
    /// Takes what is kept out of the difference: the index is to know nothing of it any more.
    pub(super) fn keep(&self, gathered: &mut Gathered) {
        let kept: HashSet<&NameKey> = self.kept.iter().collect();
        let names = &mut gathered.delta.names;
        names.retain(|change| !kept.contains(&change.key));
        gathered.settled.extend(self.kept.iter().cloned());
    }
}

/// Where the directories of the difference stand on the backend before the batch.
struct Standing<'a> {
    gathered: &'a Gathered,
    /// The name under which each directory is, or will be.
    names: HashMap<Ino, &'a NameKey>,
}

impl Standing<'_> {
    fn new(gathered: &Gathered) -> Standing<'_> {
        let changes = gathered.delta.names.iter();
        let names = changes
            .filter_map(|change| match &change.new {
                Some(new) if new.content == NewContent::Directory => Some((new.ino, &change.key)),
                _ => None,
            })
            .collect();
        Standing { gathered, names }
    }

    /// The path of `dir`: its own, or for one that the batch will make, where somebody else may have made it already.
    /// `None` if something known stands there now: it is cleared away, and all that is known in it, before the directory is
    /// made, so what it holds says nothing of what the new one will.
    fn path_of(&self, dir: Ino) -> Option<RelPath> {
        if let Some(old) = &self.gathered.delta.dirs.get(&dir)?.old {
            return Some(old.clone());
        }
        let key = self.names.get(&dir)?;
        if self.gathered.before.contains_key(*key) {
            return None;
        }
        Some(self.path_of(key.parent)?.join(&key.name))
    }
}

/// What stands in one directory, by name as it is spelled.
type Listing = BTreeMap<Vec<u8>, Metadata>;

/// Directories are listed once rather than asked for each name: that is one pass of the disk.
struct Listings<'a> {
    backend: &'a dyn Backend,
    rules: &'a NameRules,
    before: &'a BTreeMap<NameKey, PlacedEntry>,
    dirs: HashMap<RelPath, (Listing, HashMap<Vec<u8>, Name>)>,
}

impl Listings<'_> {
    /// What the backend has under the name `key` in `dir`, also in another spelling that it takes for the same; unless
    /// that spelling is a name of its own in the index, of which the batch knows what becomes.
    fn find(&mut self, dir: &RelPath, key: &NameKey) -> Result<Option<Metadata>> {
        if !self.dirs.contains_key(dir) {
            let listed = self.list(dir)?;
            self.dirs.insert(dir.clone(), listed);
        }
        let Some((exact, folded)) = self.dirs.get(dir) else {
            return Ok(None);
        };
        if let Some(found) = exact.get(key.name.as_bytes()) {
            return Ok(Some(found.clone()));
        }
        let Some(spelled) = folded.get(&self.rules.fold(&key.name)) else {
            return Ok(None);
        };
        let other = NameKey {
            parent: key.parent,
            name: spelled.clone(),
        };
        if self.before.contains_key(&other) {
            return Ok(None);
        }
        Ok(exact.get(spelled.as_bytes()).cloned())
    }

    fn list(&self, dir: &RelPath) -> Result<(Listing, HashMap<Vec<u8>, Name>)> {
        let entries = match self.backend.read_dir(dir) {
            Ok(entries) => entries,
            // A file in its place is found under the directory's own name.
            Err(error)
                if error.is_not_found()
                    || error.source.kind() == std::io::ErrorKind::NotADirectory =>
            {
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
        let mut folded = HashMap::new();
        let mut exact = BTreeMap::new();
        for entry in entries {
            let fold = self.rules.fold(&entry.name);
            if !fold.is_empty() {
                folded.insert(fold, entry.name.clone());
            }
            exact.insert(entry.name.as_bytes().to_vec(), entry.meta);
        }
        Ok((exact, folded))
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
    // Of a link or a special file the time says nothing: there is nothing in it that could have changed.
    if found.kind != FileKind::Regular && believed.hash.is_none() {
        return Ok(true);
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
