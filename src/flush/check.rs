//! The check before anything is staged: the drive is compared with the index wherever the batch
//! writes, moves from, or removes ([`changed_elsewhere`]). If they differ, the batch is given up,
//! the external changes are imported, and another batch begins. If others keep changing the drive,
//! the batch goes on without the names concerned: files that others have put there or changed are
//! not overwritten ([`find_foreign`]). Such names are left behind, with the reason.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::apply::explain::explain;
use crate::apply::refused::{StepNo, Why, errno_of};
use crate::core::{FileKind, Ino, Metadata, RelPath, is_told_oddly};
use crate::drive::{Backend, Look, hash_file, is_absent};
use crate::error::Result;
use crate::flush::FlusherParts;
use crate::flush::across::CopiedDir;
use crate::flush::diff::Gathered;
use crate::flush::look::{Looks, Seen, SeenAll};
use crate::format::steps::PlainKind;
use crate::index::PlacedEntry;
use crate::plan::names::NameRules;
use crate::plan::planner::{NameChange, NameKey, NewContent, NewEntry, OldEntry};

/// Names on the backend that hold unknown files, where the batch would write.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// Files that can be left behind.
    pub(super) inos: HashSet<Ino>,
    /// Files that the mount has removed and others have changed. They stay on the drive.
    pub(super) kept: Vec<NameKey>,
}

/// Looks at every name under which the batch would write.
pub(super) fn find_foreign(
    parts: &FlusherParts,
    backend: &dyn Backend,
    gathered: &Gathered,
) -> Result<Foreign> {
    let slack = slack(parts.time_granularity_ns);
    let mut foreign = Foreign::default();
    let mut paths_before = PathsBefore::new(gathered, &parts.rules);
    let mut looks = Looks::new(parts, backend, gathered);
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
                && let Some(dir) = paths_before.path_of(change.key.parent)
            {
                let path = dir.join(&change.key.name);
                let found = looks.find(&dir, &change.key)?.found();
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
        let Some(dir) = paths_before.path_of(change.key.parent) else {
            continue;
        };
        let path = dir.join(&change.key.name);
        let believed = gathered.before.get(&change.key);
        let found = looks.find(&dir, &change.key)?.found();
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
        // A directory, or a name that something is moved to, cannot be left behind alone: the file
        // that is in the way gets a conflict name.
        if new.content != NewContent::Directory && (!placed.contains(&new.ino) || same) {
            foreign.inos.insert(new.ino);
        }
    }
    Ok(foreign)
}

/// Returns the directories in which something that the batch touches differs from the index; also
/// directories that are to be removed and hold unknown files.
pub(super) fn changed_elsewhere(
    parts: &FlusherParts,
    backend: &dyn Backend,
    gathered: &Gathered,
) -> Result<Vec<Ino>> {
    let _phase = backend.keep_open();
    let mut comparing = Comparing {
        backend,
        slack: slack(parts.time_granularity_ns),
        gathered,
        paths_before: PathsBefore::new(gathered, &parts.rules),
        looks: Looks::new(parts, backend, gathered),
        moved: moved(gathered),
        changed: BTreeSet::new(),
    };
    for change in &gathered.delta.names {
        comparing.compare(change)?;
    }
    for dir in &gathered.copied {
        comparing.compare_copied(dir)?;
    }
    Ok(comparing.changed.into_iter().collect())
}

/// Returns the files that the backend is known to refuse, with the reason: their directory, or the
/// file that they replace, cannot be changed. For moves and removals this shows when they are
/// tried.
pub(super) fn unchangeable(
    backend: &dyn Backend,
    gathered: &Gathered,
) -> Result<BTreeMap<Ino, String>> {
    let _phase = backend.keep_open();
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
            unchangeable.insert(*ino, explain(StepNo::Place(0), &Why::Errno(errno), None));
        }
    }
    Ok(unchangeable)
}

/// Returns the errno of a refusal. Other errors show elsewhere.
fn refusal(checked: crate::drive::Result<()>) -> Result<Option<i32>> {
    match checked {
        Ok(()) => Ok(None),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) if error.is_refusal() || errno_of(&error) == libc::EROFS => {
            Ok(Some(errno_of(&error)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the names from which the batch moves an inode to another name. One pass over all names,
/// because an inode may have tens of thousands of them.
fn moved(gathered: &Gathered) -> HashSet<&NameKey> {
    let names = &gathered.delta.names;
    // The new name of each inode; `None` if there are several, at least one of which is no old one.
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

/// Compares what a batch touches with the drive.
struct Comparing<'a> {
    backend: &'a dyn Backend,
    slack: i64,
    gathered: &'a Gathered,
    paths_before: PathsBefore<'a>,
    looks: Looks<'a>,
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
        let Some(dir) = self.paths_before.path_of(parent) else {
            return Ok(());
        };
        let believed = self.gathered.before.get(&change.key);
        let was_there =
            (self.gathered.delta.dirs.get(&parent)).is_some_and(|dir| dir.old.is_some());
        let found = match self.looks.find(&dir, &change.key)? {
            Seen::Unreadable => return Ok(()),
            Seen::NoDirectory if was_there => {
                self.changed.insert(parent);
                return Ok(());
            }
            seen => seen.found(),
        };
        // A name that is to be removed may be gone already. But a missing file can neither be moved
        // nor replaced.
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
                    && self.looks.holds_unknown(&path, old.ino)? =>
            {
                self.changed.insert(old.ino);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Comparing<'_> {
    /// Compares a directory that is copied, with everything in it, because it is removed
    /// afterwards.
    fn compare_copied(&mut self, dir: &CopiedDir) -> Result<()> {
        let found = match self.looks.all_in(&dir.old)? {
            SeenAll::There(found) => found,
            SeenAll::NoDirectory => {
                self.changed.insert(dir.ino);
                return Ok(());
            }
            // No file of it can be read, so none is copied.
            SeenAll::Unreadable => return Ok(()),
        };
        let mut differs = found.keys().any(|name| !dir.known.contains_key(name));
        for (name, believed) in &dir.known {
            let (path, found) = (dir.old.join(name), found.get(name));
            differs = differs
                || found.is_none()
                || !agrees(self.backend, &path, found, Some(believed), self.slack)?;
        }
        if differs {
            self.changed.insert(dir.ino);
        }
        Ok(())
    }
}

fn slack(granularity_ns: u64) -> i64 {
    i64::try_from(granularity_ns).unwrap_or(i64::MAX).max(1)
}

impl Foreign {
    /// Takes the kept files out of the difference: the index must forget them.
    pub(super) fn keep(&self, gathered: &mut Gathered) {
        let kept: HashSet<&NameKey> = self.kept.iter().collect();
        let names = &mut gathered.delta.names;
        names.retain(|change| !kept.contains(&change.key));
        gathered.settled.extend(self.kept.iter().cloned());
    }
}

/// Where the directories of the difference are on the backend before the batch.
struct PathsBefore<'a> {
    gathered: &'a Gathered,
    rules: &'a NameRules,
    /// The present or future name of each directory.
    names: HashMap<Ino, &'a NameKey>,
    /// The known names, folded as the backend compares names.
    known: HashSet<(Ino, Vec<u8>)>,
    /// Paths of directories that the batch makes, as far as they were looked up.
    paths: HashMap<Ino, Option<RelPath>>,
}

impl<'a> PathsBefore<'a> {
    fn new(gathered: &'a Gathered, rules: &'a NameRules) -> PathsBefore<'a> {
        let changes = gathered.delta.names.iter();
        let names = changes
            .filter_map(|change| match &change.new {
                Some(new) if new.content == NewContent::Directory => Some((new.ino, &change.key)),
                _ => None,
            })
            .collect();
        let known = gathered.before.keys();
        PathsBefore {
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

    /// Returns the present path of `dir`. For a directory that the batch makes this is the path at
    /// which others may have made it already. Returns `None` if a known file has that path now: it
    /// is removed, with everything known in it, before the directory is made, so its contents say
    /// nothing about the new directory.
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

    /// Returns the name under which the batch makes the directory `dir`.
    fn new_name(&self, dir: Ino) -> Option<&'a NameKey> {
        self.gathered.delta.dirs.get(&dir)?;
        self.names.get(&dir).copied()
    }

    /// Returns whether a known file has that name now.
    fn stands_there(&self, key: &NameKey) -> bool {
        let folded = (key.parent, self.rules.fold(&key.name));
        self.gathered.before.contains_key(key) || self.known.contains(&folded)
    }
}

/// Returns whether what was found is what the index believes, or nothing.
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
    // The time of a link or a special file says nothing: it has no contents that could have
    // changed.
    if found.kind != FileKind::Regular && believed.hash.is_none() {
        return Ok(true);
    }
    let slack = slack.unsigned_abs();
    if found.modified.0.abs_diff(believed.mtime.0) <= slack
        || is_told_oddly(believed.mtime, found.modified)
    {
        return Ok(true);
    }
    // The only difference may be another machine's clock, or a time zone.
    let Some(hash) = believed.hash else {
        return Ok(false);
    };
    let hashed = backend.open(path).and_then(|file| hash_file(&*file, path));
    match hashed {
        Ok(found) => Ok(found == hash),
        // A file that cannot be read may be anybody's; unless nothing can be read.
        Err(error) if !error.is_stalled() && backend.check_alive(Look::Read).is_ok() => {
            tracing::debug!(%error, "counts as changed by another program");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
