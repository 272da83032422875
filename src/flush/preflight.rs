//! Before anything is staged: what stands on the backend where the batch is to write, whence it moves something, and in what it
//! removes is compared with what the index believes ([`changed_elsewhere`]). Where they differ the batch is given up, what others
//! have done is taken in, and another is begun. Only if that does not end, because they go on, the batch goes without:
//! what somebody else has put there or changed is not overwritten ([`find_foreign`]); the name stays behind, with the reason.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::apply::{hash_file, is_absent};
use super::gather::Gathered;
use super::refused::{StepNo, Why, errno_of, explain};
use super::{Parts, Result};
use crate::backend::{Backend, Look, Metadata};
use crate::base::{FileKind, Ino, Name, RelPath};
use crate::index::PlacedEntry;
use crate::rules::describe::is_told_oddly;
use crate::rules::layout;
use crate::rules::names::NameRules;
use crate::rules::plan::{NameChange, NameKey, NewContent, NewEntry, OldEntry};
use crate::rules::steps::PlainKind;

/// Names on the backend that are taken by something unknown, where the batch would put something of its own.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// Files that can simply stay behind.
    pub(super) inos: HashSet<Ino>,
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
    let slack = slack(granularity_ns);
    let mut foreign = Foreign::default();
    let mut standing = Standing::new(gathered, rules);
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
        // A directory, or what is moved there, cannot stay behind alone: what is in the way gets the name of a conflict.
        if new.content != NewContent::Directory && (!placed.contains(&new.ino) || same) {
            foreign.inos.insert(new.ino);
        }
    }
    Ok(foreign)
}

/// The directories in which anything that the batch touches is not as the index believes, or in which, as they are to be
/// removed, there is something unknown.
pub(super) fn changed_elsewhere(
    parts: &Parts,
    backend: &dyn Backend,
    gathered: &Gathered,
) -> Result<Vec<Ino>> {
    let mut comparing = Comparing {
        backend,
        slack: slack(parts.time_granularity_ns),
        gathered,
        standing: Standing::new(gathered, &parts.rules),
        listings: Listings {
            backend,
            rules: &parts.rules,
            before: &gathered.before,
            dirs: HashMap::new(),
        },
        moved: moved(gathered),
        changed: BTreeSet::new(),
    };
    for change in &gathered.delta.names {
        comparing.compare(change)?;
    }
    Ok(comparing.changed.into_iter().collect())
}

/// Files of which it is known that the backend would refuse to take them: their directory, or what they are to replace, may not be
/// changed. With what is to be said of each. What is moved or removed shows when it is tried.
pub(super) fn unchangeable(
    backend: &dyn Backend,
    gathered: &Gathered,
) -> Result<BTreeMap<Ino, String>> {
    let mut dirs: HashMap<Ino, Option<i32>> = HashMap::new();
    let mut unchangeable = BTreeMap::new();
    for change in &gathered.delta.names {
        let Some(NewEntry {
            ino,
            content: NewContent::Changed(_),
        }) = &change.new
        else {
            continue;
        };
        let paths = gathered.delta.dirs.get(&change.key.parent);
        let Some(dir) = paths.and_then(|paths| paths.old.as_ref()) else {
            continue;
        };
        let mut refused = match dirs.get(&change.key.parent) {
            Some(known) => *known,
            None => {
                let found = refusal(backend.check_changeable(dir))?;
                dirs.insert(change.key.parent, found);
                found
            }
        };
        if refused.is_none() && change.old.is_some() {
            refused = refusal(backend.check_replaceable(&dir.join(&change.key.name)))?;
        }
        if let Some(errno) = refused {
            unchangeable.insert(*ino, explain(StepNo::Place(0), &Why::Errno(errno)));
        }
    }
    Ok(unchangeable)
}

/// The errno of a refusal; what else is wrong shows elsewhere.
fn refusal(checked: crate::backend::Result<()>) -> Result<Option<i32>> {
    match checked {
        Ok(()) => Ok(None),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) if error.is_refusal() || errno_of(&error) == libc::EROFS => {
            Ok(Some(errno_of(&error)))
        }
        Err(error) => Err(error.into()),
    }
}

/// The names from which the batch moves something: the old ones of an inode that is to be under another name. One pass over the
/// names, as an inode may have tens of thousands of them.
fn moved(gathered: &Gathered) -> HashSet<&NameKey> {
    let names = &gathered.delta.names;
    // The name under which the inode is to be; `None` if there are several, one of which is another than any old one.
    let mut targets: HashMap<Ino, Option<&NameKey>> = HashMap::new();
    for change in names {
        let Some(new) = &change.new else { continue };
        if !matches!(new.content, NewContent::Changed(_) | NewContent::Live) {
            let target = targets.entry(new.ino);
            target
                .and_modify(|only| *only = None)
                .or_insert(Some(&change.key));
        }
    }
    let leaves = |change: &&NameChange| {
        let old = change.old.and_then(|old| targets.get(&old.ino));
        old.is_some_and(|target| *target != Some(&change.key))
    };
    names.iter().filter(leaves).map(|it| &it.key).collect()
}

/// Comparing what a batch touches with what stands there.
struct Comparing<'a> {
    backend: &'a dyn Backend,
    slack: i64,
    gathered: &'a Gathered,
    standing: Standing<'a>,
    listings: Listings<'a>,
    moved: HashSet<&'a NameKey>,
    /// The directories in which something differs.
    changed: BTreeSet<Ino>,
}

impl Comparing<'_> {
    fn compare(&mut self, change: &NameChange) -> Result<()> {
        let parent = change.key.parent;
        let stays = change.new.as_ref().is_some_and(|new| match new.content {
            NewContent::Live => true,
            NewContent::Unchanged { .. } | NewContent::Directory => {
                change.old.is_some_and(|old| old.ino == new.ino)
            }
            _ => false,
        });
        if stays || self.changed.contains(&parent) {
            return Ok(());
        }
        let Some(dir) = self.standing.path_of(parent) else {
            return Ok(());
        };
        let believed = self.gathered.before.get(&change.key);
        let found = self.listings.find(&dir, &change.key)?;
        if self.listings.is_unreadable(&dir) {
            return Ok(());
        }
        let was_there =
            (self.gathered.delta.dirs.get(&parent)).is_some_and(|dir| dir.old.is_some());
        if was_there && self.listings.is_missing(&dir) {
            self.changed.insert(parent);
            return Ok(());
        }
        // Nobody misses what is gone if it was to go; but it can neither be moved nor replaced.
        let is_wanted = change.new.is_some() || self.moved.contains(&change.key);
        let is_missed = found.is_none() && believed.is_some() && is_wanted;
        let path = dir.join(&change.key.name);
        if is_missed || !agrees(self.backend, &path, found.as_ref(), believed, self.slack)? {
            self.changed.insert(parent);
            return Ok(());
        }
        match change.old {
            Some(old)
                if old.kind == PlainKind::Directory
                    && found.is_some()
                    && !self.moved.contains(&change.key)
                    && self.listings.holds_unknown(&path, old.ino)? =>
            {
                self.changed.insert(old.ino);
            }
            _ => {}
        }
        Ok(())
    }
}

fn slack(granularity_ns: u64) -> i64 {
    i64::try_from(granularity_ns).unwrap_or(i64::MAX).max(1)
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
    rules: &'a NameRules,
    /// The name under which each directory is, or will be.
    names: HashMap<Ino, &'a NameKey>,
    /// What is known to stand there, as the backend compares names.
    known: HashSet<(Ino, Vec<u8>)>,
    /// Paths of directories that the batch makes, as far as they were asked for.
    paths: HashMap<Ino, Option<RelPath>>,
}

impl<'a> Standing<'a> {
    fn new(gathered: &'a Gathered, rules: &'a NameRules) -> Standing<'a> {
        let changes = gathered.delta.names.iter();
        let names = changes
            .filter_map(|change| match &change.new {
                Some(new) if new.content == NewContent::Directory => Some((new.ino, &change.key)),
                _ => None,
            })
            .collect();
        let known = gathered.before.keys();
        Standing {
            known: known
                .map(|key| (key.parent, rules.fold(&key.name)))
                .filter(|(_, fold)| !fold.is_empty())
                .collect(),
            gathered,
            rules,
            names,
            paths: HashMap::new(),
        }
    }

    /// The path of `dir`: its own, or for one that the batch will make, where somebody else may have made it already.
    /// `None` if something known stands there now: it is cleared away, and all that is known in it, before the directory is
    /// made, so what it holds says nothing of what the new one will.
    fn path_of(&mut self, dir: Ino) -> Option<RelPath> {
        // Level by level, each directory once: trees may be deep.
        let mut way = Vec::new();
        let mut at = dir;
        let mut path = loop {
            if let Some(known) = self.paths.get(&at) {
                break known.clone();
            }
            if let Some(old) = (self.gathered.delta.dirs.get(&at)).and_then(|it| it.old.as_ref()) {
                break Some(old.clone());
            }
            match self.new_name(at) {
                Some(key) if !self.stands_there(key) => {
                    self.paths.insert(at, None);
                    way.push((at, key));
                    at = key.parent;
                }
                _ => break None,
            }
        };
        for (dir, key) in way.into_iter().rev() {
            path = path.map(|path| path.join(&key.name));
            self.paths.insert(dir, path.clone());
        }
        path
    }

    /// The name under which the batch makes the directory `dir`.
    fn new_name(&self, dir: Ino) -> Option<&'a NameKey> {
        self.gathered.delta.dirs.get(&dir)?;
        self.names.get(&dir).copied()
    }

    /// Whether something known stands there now.
    fn stands_there(&self, key: &NameKey) -> bool {
        let folded = (key.parent, self.rules.fold(&key.name));
        self.gathered.before.contains_key(key) || self.known.contains(&folded)
    }
}

/// What stands in one directory.
#[derive(Default)]
struct Listed {
    /// It cannot be listed, so nothing is known of what is in it.
    unreadable: bool,
    /// By name as it is spelled.
    exact: BTreeMap<Vec<u8>, Metadata>,
    /// The names by how the backend compares them.
    folded: HashMap<Vec<u8>, Name>,
    /// There is no such directory.
    missing: bool,
}

/// Directories are listed once rather than asked for each name: that is one pass of the disk.
struct Listings<'a> {
    backend: &'a dyn Backend,
    rules: &'a NameRules,
    before: &'a BTreeMap<NameKey, PlacedEntry>,
    dirs: HashMap<RelPath, Listed>,
}

impl Listings<'_> {
    /// Whether there is anything in the directory `ino` at `path` of which the batch does not know.
    fn holds_unknown(&mut self, path: &RelPath, ino: Ino) -> Result<bool> {
        self.list_once(path)?;
        let Some(listed) = self.dirs.get(path) else {
            return Ok(false);
        };
        let is_unknown = |name: &Vec<u8>| {
            Name::new(name).is_ok_and(|name| {
                let reserved =
                    layout::is_near_name(&name) || layout::is_reserved(&path.join(&name));
                let key = NameKey { parent: ino, name };
                !reserved && !self.before.contains_key(&key)
            })
        };
        Ok(listed.exact.keys().any(is_unknown))
    }

    /// Whether no directory stands at `dir`, which has been looked at.
    fn is_missing(&self, dir: &RelPath) -> bool {
        self.dirs.get(dir).is_some_and(|listed| listed.missing)
    }

    fn is_unreadable(&self, dir: &RelPath) -> bool {
        self.dirs.get(dir).is_some_and(|listed| listed.unreadable)
    }

    fn list_once(&mut self, dir: &RelPath) -> Result<()> {
        if !self.dirs.contains_key(dir) {
            let listed = self.list(dir)?;
            self.dirs.insert(dir.clone(), listed);
        }
        Ok(())
    }

    /// What the backend has under the name `key` in `dir`, also in another spelling that it takes for the same; unless
    /// that spelling is a name of its own in the index, of which the batch knows what becomes.
    fn find(&mut self, dir: &RelPath, key: &NameKey) -> Result<Option<Metadata>> {
        self.list_once(dir)?;
        let Some(Listed { exact, folded, .. }) = self.dirs.get(dir) else {
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

    fn list(&self, dir: &RelPath) -> Result<Listed> {
        let mut missing = false;
        let entries = match self.backend.read_dir(dir) {
            Ok(entries) => entries,
            // A file in its place is found under the directory's own name.
            Err(error)
                if error.is_not_found()
                    || error.source.kind() == std::io::ErrorKind::NotADirectory =>
            {
                missing = true;
                Vec::new()
            }
            // Each name in it is looked at again when it is changed.
            Err(error) if !error.is_stalled() && self.backend.check_alive(Look::Read).is_ok() => {
                tracing::warn!(%error, "cannot be compared");
                return Ok(Listed {
                    unreadable: true,
                    ..Listed::default()
                });
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
        Ok(Listed {
            unreadable: false,
            exact,
            folded,
            missing,
        })
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
    let slack = slack.unsigned_abs();
    if found.modified.0.abs_diff(believed.mtime.0) <= slack
        || is_told_oddly(believed.mtime, found.modified)
    {
        return Ok(true);
    }
    // The clock of another machine, or a time zone, may be all the difference.
    let Some(hash) = believed.hash else {
        return Ok(false);
    };
    let hashed = (backend.open(path).map_err(super::FlushError::from))
        .and_then(|file| hash_file(&*file, path));
    match hashed {
        Ok(found) => Ok(found == hash),
        // What cannot be read may be anybody's; unless nothing can be read.
        Err(super::FlushError::Backend(error))
            if !error.is_stalled() && backend.check_alive(Look::Read).is_ok() =>
        {
            tracing::debug!(%error, "counts as changed by somebody else");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
