//! Keeps what a batch has replaced and removed: the files that were set aside get names below
//! `.ferryfs/versions` instead of being removed.
//!
//! A batch keeps versions if there is a list of them in its staging directory, which was staged
//! with its contents. So a recovery does the same on any machine, whatever is configured there.
//!
//! This happens after the batch is confirmed, or on a machine without its cache before the receipt,
//! and before the record goes. What a crash leaves, and who repairs it:
//!
//! | after | a crash leaves | repaired by |
//! |---|---|---|
//! | some renames | versions, files set aside, the record | the next recovery goes on |
//! | a rename on exFAT | one file under both names, which share clusters | the same: it makes a copy, syncs, and removes both |
//! | the same | the file under neither name | nobody: that version is lost, as a moved file would be |
//! | the list | all versions, perhaps a part of the list, the record | the same: it writes the list again |
//! | the sync | all of it, durable | nothing is left to do; the record and the staging directory go |
//!
//! All versions are durable before the record goes: without it what is set aside is garbage, and
//! removing that would free clusters under a version that shares them.
//!
//! Nothing here makes a batch fail but a drive that fails: a version that the drive refuses to take
//! is removed as it would be without this, and the log says so.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::apply::place::{Manners, Placer};
use crate::apply::refused::is_local;
use crate::apply::spare_slot;
use crate::apply::staging::{hide_dir, staging_trust};
use crate::core::{BatchNo, FileKind, Metadata, Name, RelPath, Timestamp};
use crate::drive::sealed_file::read_small;
use crate::drive::{Backend, BackendError, WRITE, exists, hash_file, is_absent};
use crate::error::{FlushError, Result};
use crate::format::layout;
use crate::format::record::BatchRecord;
use crate::format::steps::{ClearStep, PlaceStep, PlainKind};
use crate::format::versions::{Entry, MAX_LIST_BYTES, MAX_PARTS, VersionList, VersionsId, What};

/// Removes older versions so that one more finds space. Returns false if there are none.
pub(crate) type MakeSpace<'a> = &'a dyn Fn(&dyn Backend) -> Result<bool>;

/// Keeps the versions of one batch.
pub(crate) struct Keeper<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) record: &'a BatchRecord,
    /// The batch may have been here before, so its versions may be there already.
    pub(crate) is_repeated: bool,
    pub(crate) make_space: MakeSpace<'a>,
}

/// What was kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Directories with new versions.
    pub(crate) dirs: Vec<VersionsId>,
    /// How often the drive has refused to keep one.
    pub(crate) refused: usize,
}

/// Returns whether `batch` keeps versions.
pub(crate) fn keeps(backend: &dyn Backend, batch: BatchNo) -> Result<bool> {
    Ok(exists(backend, &layout::kept_list_path(batch))?)
}

impl Keeper<'_> {
    /// Keeps those of the files at `aside` that the batch has set aside, and syncs. The other files
    /// stay where they are.
    ///
    /// # Errors
    /// If the drive fails.
    pub(crate) fn keep(&self, aside: &[RelPath]) -> Result<Kept> {
        let told = self.read_list()?;
        let aside: HashSet<&RelPath> = aside.iter().collect();
        let excluded: HashSet<(&RelPath, What)> = (told.entries.iter())
            .filter(|entry| entry.is_excluded)
            .map(|entry| (&entry.path, entry.what))
            .collect();
        let mut run = Run {
            made: HashSet::new(),
            earlier: self.earlier_parts()?,
            last: HashMap::new(),
            parts: BTreeMap::new(),
            kept: Kept::default(),
        };
        for (from, path, what) in set_aside(self.record) {
            if excluded.contains(&(&path, what)) {
                continue;
            }
            let kept = match aside.contains(&from) {
                true => self.keep_or_make_space(&from, &path, &mut run),
                // An earlier run may have moved it already.
                false => self.part_with(&path, &run),
            };
            match kept {
                Ok(Some(part)) => run.note(part, path, what),
                Ok(None) => {}
                Err(FlushError::Backend(error)) if self.is_refusal(&error) => {
                    tracing::warn!(%path, %error, "the drive does not keep the old version");
                    run.kept.refused += 1;
                    if self.is_top(&error.path) {
                        // None of the others can be kept either.
                        break;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.write_lists(&told, &mut run)?;
        if !run.parts.is_empty() {
            self.backend.sync()?;
        }
        Ok(run.kept)
    }

    /// Reads the list that was staged. A damaged one says nothing: then all is kept.
    fn read_list(&self) -> Result<VersionList> {
        let nothing = || VersionList {
            volume: self.record.volume,
            batch: self.record.batch,
            time: self.record.created,
            entries: Vec::new(),
        };
        let path = layout::kept_list_path(self.record.batch);
        let bytes = match read_small(self.backend, &path, MAX_LIST_BYTES) {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(error) => match FlushError::from(error) {
                FlushError::Backend(error) if self.is_refusal(&error) => Vec::new(),
                FlushError::NotOurs { .. } => Vec::new(),
                error => return Err(error),
            },
        };
        Ok(match VersionList::decode(&bytes) {
            Ok(told) if told.batch == self.record.batch => told,
            Ok(_) => nothing(),
            Err(error) => {
                tracing::warn!(%path, %error, "the versions are kept without their attributes");
                nothing()
            }
        })
    }

    fn is_refusal(&self, error: &BackendError) -> bool {
        error.is_full() || is_local(self.backend, self.record.batch, error)
    }

    fn keep_or_make_space(
        &self,
        from: &RelPath,
        path: &RelPath,
        run: &mut Run,
    ) -> Result<Option<u32>> {
        loop {
            match self.keep_one(from, path, run) {
                Err(FlushError::Backend(error)) if error.is_full() => {
                    if !(self.make_space)(self.backend)? {
                        return Err(error.into());
                    }
                    // They may have been in a directory that is gone now.
                    run.made.clear();
                }
                result => return result,
            }
        }
    }

    /// Moves the file at `from` to its place as a version of `path`, and returns in which directory
    /// that is; `None` if there is no such file.
    fn keep_one(&self, from: &RelPath, path: &RelPath, run: &mut Run) -> Result<Option<u32>> {
        let found = self.look(from)?;
        if found
            .as_ref()
            .is_some_and(|it| it.kind == FileKind::Directory)
        {
            return Ok(None);
        }
        for part in 1..=MAX_PARTS {
            let id = self.id(part);
            let to = id.dir().join_path(path);
            let there = match self.is_repeated {
                true => self.look(&to)?,
                false => None,
            };
            match (&found, &there) {
                (None, Some(_)) => return Ok(Some(part)),
                (None, None) if !self.is_repeated => return Ok(None),
                (None, None) => {}
                (Some(one), Some(other)) => {
                    if self.are_one((from, one), (&to, other))? {
                        self.separate(from, &to)?;
                        return Ok(Some(part));
                    }
                }
                (Some(_), None) => {
                    let moved = self
                        .make_dirs(id, path, run)
                        .and_then(|()| self.backend.rename_new(from, &to));
                    match moved {
                        Ok(()) => return Ok(Some(part)),
                        // The batch has another version of this path, or one of a path above it.
                        Err(error) if error.is_taken() => {}
                        Err(error) if is_absent(&error) && self.look(from)?.is_some() => {}
                        Err(error) if is_absent(&error) => return Ok(None),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(None)
    }

    /// Returns in which directory an earlier run has put a version of `path` that this run has not
    /// met; `None` if there is none.
    fn part_with(&self, path: &RelPath, run: &Run) -> Result<Option<u32>> {
        let first = run.last.get(path).map_or(1, |last| last + 1);
        for part in first..=run.earlier {
            let found = self.look(&self.id(part).dir().join_path(path))?;
            if found.is_some_and(|it| it.kind != FileKind::Directory) {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    /// Returns how many directories earlier runs have made.
    fn earlier_parts(&self) -> Result<u32> {
        if !self.is_repeated {
            return Ok(0);
        }
        for part in 1..=MAX_PARTS {
            match self.look(&self.id(part).dir()) {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(part - 1),
                Err(FlushError::Backend(error)) if self.is_refusal(&error) => return Ok(part - 1),
                Err(error) => return Err(error),
            }
        }
        Ok(MAX_PARTS)
    }

    /// Returns whether an interrupted rename has left one file under both names.
    fn are_one(
        &self,
        (from, one): (&RelPath, &Metadata),
        (to, other): (&RelPath, &Metadata),
    ) -> Result<bool> {
        if self.backend.renames_atomically() || one.kind != FileKind::Regular {
            return Ok(false);
        }
        if (one.kind, one.size, one.modified) != (other.kind, other.size, other.modified) {
            return Ok(false);
        }
        let hash = |path: &RelPath| hash_file(&*self.backend.open(path)?, path);
        Ok(hash(from)? == hash(to)?)
    }

    /// Replaces two names that share clusters by one. A copy that finds no space costs the version.
    fn separate(&self, from: &RelPath, to: &RelPath) -> Result<()> {
        separate(self.backend, self.record.batch, from, to)
    }

    /// Returns whether all versions of the batch are below `path`.
    fn is_top(&self, path: &RelPath) -> bool {
        *path == layout::versions_root() || *path == self.id(1).dir()
    }

    fn id(&self, part: u32) -> VersionsId {
        VersionsId {
            part,
            ..VersionsId::of(self.record.batch, self.record.created)
        }
    }

    /// Makes the directory of the batch and those of `path` in it.
    fn make_dirs(
        &self,
        id: VersionsId,
        path: &RelPath,
        run: &mut Run,
    ) -> std::result::Result<(), BackendError> {
        let root = layout::versions_root();
        let mut above = vec![root.clone(), id.dir()];
        let mut at = id.dir();
        let Some((dir, _)) = path.split_last() else {
            return Ok(());
        };
        for name in dir.components().filter_map(|name| Name::new(name).ok()) {
            at = at.join(&name);
            above.push(at.clone());
        }
        for dir in above {
            if run.made.contains(&dir) {
                continue;
            }
            if dir == root {
                make_root(self.backend)?;
                run.made.insert(dir);
                continue;
            }
            match self.backend.make_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.is_taken() => {
                    if self.backend.metadata(&dir)?.kind != FileKind::Directory {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
            run.made.insert(dir);
        }
        Ok(())
    }

    /// Writes the list of each directory: what is kept there, with the attributes, and in the first
    /// one also what else the batch did.
    fn write_lists(&self, told: &VersionList, run: &mut Run) -> Result<()> {
        let about: HashMap<&RelPath, &Entry> = (told.entries.iter())
            .filter(|entry| entry.what.is_file())
            .map(|entry| (&entry.path, entry))
            .collect();
        let others = || (told.entries.iter()).filter(|entry| !entry.what.is_file());
        let listed: HashSet<(RelPath, What)> = run.parts.values().flatten().cloned().collect();
        let not_kept = (told.entries.iter())
            .filter(|it| it.what.is_file() && !listed.contains(&(it.path.clone(), it.what)));
        if others().any(|entry| entry.what.is_version() && !entry.is_excluded) {
            // Directories and links may be all that the batch has removed.
            run.parts.entry(1).or_default();
        }
        for (part, kept) in &run.parts {
            let id = self.id(*part);
            let mut entries = Vec::new();
            for (path, what) in kept {
                entries.push(match about.get(path) {
                    Some(entry) => Entry {
                        what: *what,
                        is_excluded: false,
                        ..(*entry).clone()
                    },
                    None => self.plain(&id, path, *what)?,
                });
            }
            if *part == 1 {
                entries.extend(others().cloned());
                // An undo must not take what has their place for new files.
                entries.extend(not_kept.clone().map(|it| Entry {
                    is_excluded: true,
                    ..it.clone()
                }));
            }
            let list = VersionList {
                entries,
                time: self.record.created,
                batch: self.record.batch,
                volume: self.record.volume,
            };
            match write_list(self.backend, id, &list) {
                Ok(()) => {}
                Err(error) if self.is_refusal(&error) => {
                    tracing::warn!(%error, "the versions are kept without their attributes");
                }
                Err(error) => return Err(error.into()),
            }
            run.kept.dirs.push(id);
        }
        Ok(())
    }

    /// Returns the line of a version of which only its file is known.
    fn plain(&self, id: &VersionsId, path: &RelPath, what: What) -> Result<Entry> {
        let found = self.look(&id.dir().join_path(path))?;
        Ok(Entry {
            path: path.clone(),
            name: None,
            what,
            size: found.as_ref().map_or(0, |it| it.size),
            modified: found.map_or(Timestamp(0), |it| it.modified),
            from: None,
            is_excluded: false,
            about: None,
        })
    }

    fn look(&self, path: &RelPath) -> Result<Option<Metadata>> {
        match self.backend.metadata(path) {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// What one run has met.
struct Run {
    /// Directories that are known to be there.
    made: HashSet<RelPath>,
    /// How many directories there were before.
    earlier: u32,
    /// In which directory the last version of a path is.
    last: HashMap<RelPath, u32>,
    /// What is kept, by the number of the directory.
    parts: BTreeMap<u32, Vec<(RelPath, What)>>,
    kept: Kept,
}

impl Run {
    fn note(&mut self, part: u32, path: RelPath, what: What) {
        self.last.insert(path.clone(), part);
        self.parts.entry(part).or_default().push((path, what));
    }
}

/// Replaces the names `from` and `to` of one file, which an interrupted rename has left and which
/// share clusters, by the name `to` for a copy with clusters of its own. Without space for the copy
/// both names go.
fn separate(backend: &dyn Backend, batch: BatchNo, from: &RelPath, to: &RelPath) -> Result<()> {
    let manners = Manners {
        time: Timestamp(0),
        host: String::new(),
        slack: 1,
        full_is_refusal: false,
        keeps_versions: true,
    };
    let placer = Placer {
        backend,
        batch,
        manners: &manners,
    };
    // A copy must not get clusters that were freed a moment ago.
    backend.sync()?;
    match placer.part(from, to) {
        Err(FlushError::Backend(error)) if error.is_full() || is_local(backend, batch, &error) => {
            tracing::warn!(path = %to, %error, "an interrupted move of an old version could not \
                be repaired; that version is lost");
            for path in [from, to] {
                match backend.remove_file(path) {
                    Err(error) if !is_absent(&error) => return Err(error.into()),
                    _ => {}
                }
            }
            Ok(())
        }
        result => result,
    }
}

/// Makes the directory of all versions, and closes it to others: its files may come from
/// directories that others cannot look into.
fn make_root(backend: &dyn Backend) -> std::result::Result<(), BackendError> {
    let root = layout::versions_root();
    let is_open_to_others = match backend.make_dir(&root) {
        Ok(()) => true,
        Err(error) if error.is_taken() => {
            let found = backend.metadata(&root)?;
            if found.kind != FileKind::Directory {
                return Err(error);
            }
            // A crash may have come between the two.
            found.permissions & 0o777 != 0o700 && backend.trust(&root)?.is_ours()
        }
        Err(error) => return Err(error),
    };
    let hidden =
        staging_trust(backend, None).and_then(|trust| match is_open_to_others && trust.is_ours() {
            true => hide_dir(backend, &root),
            false => Ok(()),
        });
    match hidden {
        Err(FlushError::Backend(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Writes the list of a directory of versions in place of an earlier one.
pub(crate) fn write_list(
    backend: &dyn Backend,
    id: VersionsId,
    list: &VersionList,
) -> std::result::Result<(), BackendError> {
    let path = id.list();
    let bytes = list.encode();
    // A repetition writes nothing twice: while the record is being removed, exFAT may have marked
    // its clusters as free already, and the list must not get them.
    if bytes.is_some()
        && matches!(read_small(backend, &path, MAX_LIST_BYTES), Ok(was) if was == bytes)
    {
        return Ok(());
    }
    match backend.remove_file(&path) {
        // The new one must not get its clusters before the removal is durable.
        Ok(()) => backend.sync()?,
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(error),
    }
    let Some(bytes) = bytes else {
        tracing::warn!(%path, "too many versions for a list; they are kept without it");
        return Ok(());
    };
    make_root(backend)?;
    write_plain(backend, &path, &bytes)
}

/// Writes a file without the space that is reserved on the drive. Leaves no part of it.
pub(crate) fn write_plain(
    backend: &dyn Backend,
    path: &RelPath,
    bytes: &[u8],
) -> std::result::Result<(), BackendError> {
    let mut file = backend.create(path)?;
    let written = file
        .append(bytes)
        .and_then(|()| file.finish(Timestamp::from(std::time::SystemTime::now())));
    written.map_err(|source| {
        // A part of a list counts as none.
        let _ = backend.remove_file(path);
        BackendError::new(WRITE, path, source)
    })
}

/// Returns the files that a batch may have set aside: where each is, whose version it is, and why.
fn set_aside(record: &BatchRecord) -> Vec<(RelPath, RelPath, What)> {
    let batch = record.batch;
    let removed = (record.steps.clear.iter().enumerate()).filter_map(|(number, step)| match step {
        ClearStep::RemoveFile { path } => Some((
            layout::removed_path(batch, number),
            path.clone(),
            What::Removed,
        )),
        _ => None,
    });
    let replaced = (record.steps.place.iter().enumerate()).filter_map(|(number, step)| {
        let (slot, to) = match step {
            // What a patch has changed in place is no version: it is torn until the patch is whole.
            PlaceStep::Install { slot, to, .. }
            | PlaceStep::InstallNode { slot, to, .. }
            | PlaceStep::Attach {
                slot,
                to,
                kind: PlainKind::File,
            } => (*slot, to),
            PlaceStep::Link { to, .. } => (spare_slot(number), to),
            _ => return None,
        };
        let aside = layout::replaced_path(batch, slot);
        Some((aside, to.clone(), What::Replaced))
    });
    removed.chain(replaced).collect()
}
