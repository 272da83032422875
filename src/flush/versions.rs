//! Which versions a batch keeps, and which are removed again: by age and number, to stay within a
//! share of the drive, and when a batch needs their space.
//!
//! [`crate::apply::versions`] moves the files. Here is what surrounds that: the list that is staged
//! with a batch ([`Flusher::versions_of`]), and the removal of older versions after a flush
//! ([`Flusher::prune_versions`]) and before one that has not enough space.
//!
//! A removal is interrupted anywhere without harm. Files go before the list that names them, so
//! what is left is found and removed by the next one; a list that names files that are gone says
//! too much, which costs nothing. Removals are synced before anything is written, so that no
//! cluster has two owners. A list that is written again may be lost in between: its versions then
//! have no attributes beyond those of their files. A directory that the drive refuses to list, read
//! or remove is left out, so that it keeps no other from being removed.
//!
//! State: the sizes of directories that have been measured, and when versions were last chosen by
//! age. Both are in memory only. The lock is held for one access at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::apply::versions::{Keeper, write_list};
use crate::core::{
    BatchNo, FileKind, MAX_DEPTH, Metadata, Name, RelPath, SLACK_NS, Timestamp, is_time_of,
};
use crate::drive::sealed_file::read_small;
use crate::drive::{Backend, Look, is_absent};
use crate::error::{FlushError, Result};
use crate::flush::diff::Gathered;
use crate::flush::expectations::Before;
use crate::flush::patches::Bases;
use crate::flush::{Flusher, FlusherParts};
use crate::format::catalog::Description;
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::record::BatchRecord;
use crate::format::steps::{ClearStep, FileContent, PlaceStep, SlotNo, Steps};
use crate::format::versions::{
    About, Entry, MAX_LIST_BYTES, Special, VersionList, VersionsId, What,
};
use crate::plan::patterns::Patterns;
use crate::plan::planner::{Plan, StageSource};
use crate::plan::retention::{Keep, effective};
use crate::plan::space::Allocation;

/// A larger file that may be patched is patched: to keep its old version it would have to be
/// written whole.
const WHOLE_UP_TO: u64 = 1 << 30;

/// Versions are chosen by age after the first flush, and then so often.
const CHOOSE_EVERY: Duration = Duration::from_secs(3600);

/// Lists are written again in groups of about so many lines, which are in memory at once.
const LINES_AT_ONCE: usize = 200_000;

/// Which versions are kept.
#[derive(Clone, Debug)]
pub struct VersionPolicy {
    /// Whether batches keep any.
    pub is_on: bool,
    /// How many of each file.
    pub keep: Keep,
    /// How much of the drive they may take, in percent.
    pub share: u8,
    /// Files of which none are kept.
    pub exclude: Patterns,
}

impl VersionPolicy {
    /// Keeps nothing.
    pub fn off() -> VersionPolicy {
        VersionPolicy {
            is_on: false,
            keep: Keep::default(),
            share: 10,
            exclude: Patterns::default(),
        }
    }
}

/// What is known of the versions on the drive.
#[derive(Default)]
pub(super) struct Versions(Mutex<Known>);

#[derive(Default)]
struct Known {
    sizes: HashMap<VersionsId, u64>,
    chosen: Option<Instant>,
}

impl Flusher {
    /// Returns whether batches keep what they replace and remove.
    pub fn keeps_versions(&self) -> bool {
        self.parts.versions.is_on
    }

    /// Returns whether a batch that replaces the file at `path` on the drive keeps it. Patterns are
    /// about names in the mount; where these differ from the drive's, it may be wrong.
    pub fn keeps_version_of(&self, path: &RelPath) -> bool {
        let policy = &self.parts.versions;
        policy.is_on && !policy.exclude.matches(path, false)
    }

    /// Returns the list of what a batch with these steps keeps; `None` if it keeps nothing.
    pub(super) fn versions_of(
        &self,
        gathered: &Gathered,
        steps: &Steps<FileContent>,
    ) -> Result<Option<VersionList>> {
        let policy = &self.parts.versions;
        if !policy.is_on || !gathered.copied.is_empty() {
            return Ok(None);
        }
        let before = Before::new(gathered);
        let mut lister = Lister {
            parts: &self.parts,
            old_paths: old_paths(gathered),
            names: HashMap::new(),
            entries: Vec::new(),
        };
        let known = before.known(steps);
        lister.add_cleared(steps, &known.removed)?;
        lister.add_placed(steps, &known.replaced, &known.removed)?;
        lister.add_special(gathered)?;
        let mut entries = lister.entries;
        for entry in &mut entries {
            let is_dir = entry.what == What::Directory;
            entry.is_excluded |=
                entry.what.is_version() && policy.exclude.matches(entry.in_mount(), is_dir);
        }
        let keeps_any = (entries.iter()).any(|it| it.what.is_version() && !it.is_excluded);
        Ok(keeps_any.then_some(VersionList {
            volume: self.parts.volume,
            batch: BatchNo(0),
            time: Timestamp(0),
            entries,
        }))
    }

    /// Leaves out of `bases` the files whose old versions are kept: they are written whole.
    pub(super) fn leave_versions_whole(&self, plan: &Plan, bases: &mut Bases) {
        let policy = &self.parts.versions;
        if !policy.is_on || bases.is_empty() {
            return;
        }
        let paths: BTreeMap<SlotNo, &RelPath> = (plan.steps.place.iter())
            .filter_map(|step: &PlaceStep<StageSource>| match step {
                PlaceStep::Install { slot, to, .. } => Some((*slot, to)),
                _ => None,
            })
            .collect();
        bases.retain(|slot, base| {
            let is_excluded = (paths.get(slot)).is_none_or(|path| {
                // Patterns are about names in the mount. Where these differ from the drive's, a
                // file written whole for nothing is the worst that follows.
                policy.exclude.matches(path, false)
            });
            is_excluded || base.size > WHOLE_UP_TO
        });
    }

    /// Keeps the files at `aside` that the batch has set aside, if they are versions.
    ///
    /// # Errors
    /// If the drive fails.
    pub(super) fn keep_versions(
        &self,
        record: &BatchRecord,
        aside: &[RelPath],
        is_repeated: bool,
    ) -> Result<()> {
        // Not the backend of the batch, which would give its reserve for them.
        let backend = &*self.backend()?;
        let keeper = Keeper {
            backend,
            record,
            is_repeated,
            make_space: &|backend| self.remove_oldest(backend, Some(record)),
        };
        let kept = keeper.keep(aside)?;
        if kept.refused > 0 {
            tracing::warn!(batch = %record.batch, "not all old versions of the batch are kept");
        }
        let mut known = self.versions.0.lock();
        for dir in &kept.dirs {
            known.sizes.remove(dir);
        }
        Ok(())
    }

    /// Removes the versions that are too old or too many. What the drive refuses stays.
    pub(super) fn prune_versions(&self, backend: &dyn Backend) {
        if !self.parts.versions.is_on {
            return;
        }
        let pruned = self
            .choose_versions(backend)
            .and_then(|()| self.keep_to_share(backend));
        if let Err(error) = pruned {
            tracing::warn!(%error, "old versions on the drive are not removed for now");
        }
    }

    /// Returns the numbers of the batches that have kept versions on the drive, while new ones are
    /// kept: theirs must be higher, so that they count as newer.
    ///
    /// # Errors
    /// If the drive fails.
    pub(super) fn batches_with_versions(&self, backend: &dyn Backend) -> Result<Vec<BatchNo>> {
        if !self.parts.versions.is_on {
            return Ok(Vec::new());
        }
        match all(backend) {
            Ok(found) => Ok(found.iter().map(|id| id.batch).collect()),
            Err(error) if is_of_drive(backend, &error) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "the old versions on the drive cannot be listed");
                Ok(Vec::new())
            }
        }
    }

    /// Makes `needed` bytes available by removing versions, oldest first. Removes none if all of
    /// them would not be enough. Returns whether there are so many now.
    ///
    /// # Errors
    /// If the drive fails.
    pub(super) fn make_version_space(&self, backend: &dyn Backend, needed: u64) -> Result<bool> {
        let space = backend.space()?;
        let mut total = 0_u64;
        for id in all(backend)? {
            let size = or_skip(backend, id, self.size_of(backend, id, space.unit))?;
            total = total.saturating_add(size.unwrap_or(0));
        }
        if space.total == 0 || total == 0 || space.available.saturating_add(total) < needed {
            return Ok(false);
        }
        loop {
            if backend.space()?.available >= needed {
                return Ok(true);
            }
            if !self.remove_oldest(backend, None)? {
                return Ok(false);
            }
        }
    }

    /// Removes the oldest directory of versions, but none of `but`'s own. Returns false if there is
    /// none.
    fn remove_oldest(&self, backend: &dyn Backend, but: Option<&BatchRecord>) -> Result<bool> {
        let own = but.map(|record| VersionsId::of(record.batch, record.created));
        let found = self.by_age(backend)?.into_iter();
        let others =
            found.filter(|(_, id)| own.is_none_or(|own| VersionsId { part: 1, ..*id } != own));
        for (_, id) in others {
            tracing::info!(versions = %id.to_text(), "removed: their space is needed");
            if self.remove_or_skip(backend, id)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the oldest directories until the rest fits into its share. The newest stays as long
    /// as the drive has as much free space as the share: what was deleted a moment ago is most
    /// likely to be wanted again.
    fn keep_to_share(&self, backend: &dyn Backend) -> Result<()> {
        let space = backend.space()?;
        let limit = space.total / 100 * u64::from(self.parts.versions.share);
        if space.total == 0 {
            return Ok(());
        }
        let mut total = 0_u64;
        let found = self.by_age(backend)?;
        for (_, id) in &found {
            let size = or_skip(backend, *id, self.size_of(backend, *id, space.unit))?;
            total = total.saturating_add(size.unwrap_or(0));
        }
        for (number, (_, id)) in found.iter().enumerate() {
            let is_newest = number + 1 == found.len();
            if total <= limit || (is_newest && backend.space()?.available >= limit) {
                break;
            }
            let size = or_skip(backend, *id, self.size_of(backend, *id, space.unit))?;
            tracing::info!(versions = %id.to_text(), "removed: versions take more than their share");
            if self.remove_or_skip(backend, *id)? {
                total = total.saturating_sub(size.unwrap_or(0));
            }
        }
        Ok(())
    }

    /// Returns the directories of versions, oldest first, with the times that they count as having.
    fn by_age(&self, backend: &dyn Backend) -> Result<Vec<(Timestamp, VersionsId)>> {
        let found = all(backend)?;
        let made: Vec<_> = found.iter().map(|id| (id.time(), id.batch)).collect();
        let times = effective(self.parts.clock.now(), &made);
        let mut found: Vec<_> = times.into_iter().zip(found).collect();
        found.sort_by_key(|(time, id)| (*time, id.batch, id.part));
        Ok(found)
    }

    /// Returns how much space the versions in a directory take.
    fn size_of(&self, backend: &dyn Backend, id: VersionsId, unit: u64) -> Result<u64> {
        if let Some(size) = self.versions.0.lock().sizes.get(&id) {
            return Ok(*size);
        }
        let allocation = Allocation {
            unit,
            hard_links: false,
        };
        let files = files_in(backend, id)?;
        let dirs: HashSet<RelPath> = (files.iter())
            .filter_map(|entry| Some(entry.path.split_last()?.0))
            .collect();
        let of_dirs = allocation.directory(1).saturating_mul(dirs.len() as u64);
        let size = (files.iter())
            .map(|entry| allocation.file(entry.size))
            .fold(of_dirs, u64::saturating_add);
        self.versions.0.lock().sizes.insert(id, size);
        Ok(size)
    }

    /// Removes a directory of versions and its list.
    fn remove(&self, backend: &dyn Backend, id: VersionsId) -> Result<()> {
        self.versions.0.lock().sizes.remove(&id);
        remove_below(backend, &id.dir())?;
        remove_file(backend, &id.list())
    }

    /// The same, and syncs whatever became of it: nothing is to get clusters whose removal is not
    /// durable. Returns false if the drive refuses to remove this one.
    fn remove_or_skip(&self, backend: &dyn Backend, id: VersionsId) -> Result<bool> {
        let removed = or_skip(backend, id, self.remove(backend, id));
        let synced = backend.sync();
        let is_removed = removed?.is_some();
        synced?;
        Ok(is_removed)
    }

    /// Removes the versions that the rules do not keep, of each file on its own.
    fn choose_versions(&self, backend: &dyn Backend) -> Result<()> {
        let is_due = {
            let mut known = self.versions.0.lock();
            let is_due = known
                .chosen
                .is_none_or(|last| last.elapsed() >= CHOOSE_EVERY);
            if is_due {
                known.chosen = Some(Instant::now());
            }
            is_due
        };
        match is_due {
            true => self.choose_now(backend),
            false => Ok(()),
        }
    }

    fn choose_now(&self, backend: &dyn Backend) -> Result<()> {
        let mut dirs = self.by_age(backend)?;
        dirs.reverse();
        let superfluous = self.superfluous(backend, &dirs)?;
        if superfluous.is_empty() {
            return Ok(());
        }
        let mut changed = Vec::new();
        let removed = superfluous
            .into_iter()
            .try_for_each(|(at, numbers)| -> Result<()> {
                let id = dirs[at].1;
                let gone = or_skip(backend, id, self.remove_some(backend, id, numbers))?;
                changed.extend(gone.flatten().map(|gone| (id, gone)));
                Ok(())
            });
        // Also after an error: nothing is written before the removals are durable.
        let synced = backend.sync();
        removed?;
        synced?;
        let (mut lists, mut lines) = (Vec::new(), 0);
        for (id, gone) in changed {
            let list = or_skip(backend, id, list_without(backend, id, &gone))?;
            let Some(list) = list.flatten() else {
                continue;
            };
            lines += list.entries.len();
            lists.push((id, list));
            if lines > LINES_AT_ONCE {
                rewrite(backend, std::mem::take(&mut lists))?;
                lines = 0;
            }
        }
        if !lists.is_empty() {
            rewrite(backend, lists)?;
        }
        Ok(backend.sync()?)
    }

    /// Removes the versions of these numbers from a directory. Returns the numbers of those that
    /// are gone; `None` if all of it is.
    fn remove_some(
        &self,
        backend: &dyn Backend,
        id: VersionsId,
        numbers: HashSet<usize>,
    ) -> Result<Option<HashSet<usize>>> {
        let entries = versions_in(backend, id)?;
        if numbers.len() == entries.len() {
            self.remove(backend, id)?;
            return Ok(None);
        }
        self.versions.0.lock().sizes.remove(&id);
        let mut gone = HashSet::new();
        for number in numbers {
            let removed = match entries.get(number).filter(|it| it.what.is_file()) {
                Some(entry) => remove_version(backend, id, &entry.path),
                None => Ok(()),
            };
            if or_skip(backend, id, removed)?.is_some() {
                gone.insert(number);
            }
        }
        Ok(Some(gone))
    }

    /// Returns, for each of the directories, newest first, the numbers of the versions in it that
    /// are not kept.
    fn superfluous(
        &self,
        backend: &dyn Backend,
        dirs: &[(Timestamp, VersionsId)],
    ) -> Result<BTreeMap<usize, HashSet<usize>>> {
        // By the hashes of their paths, since there may be many.
        let mut versions: HashMap<[u8; 16], Vec<(usize, usize)>> = HashMap::new();
        for (at, (_, id)) in dirs.iter().enumerate() {
            let entries = or_skip(backend, *id, versions_in(backend, *id))?.unwrap_or_default();
            for (number, entry) in entries.iter().enumerate() {
                let hash = blake3::hash(entry.in_mount().as_bytes());
                let mut key = [0; 16];
                key.copy_from_slice(&hash.as_bytes()[..16]);
                versions.entry(key).or_default().push((at, number));
            }
        }
        let (keep, now) = (&self.parts.versions.keep, self.parts.clock.now());
        let mut superfluous: BTreeMap<usize, HashSet<usize>> = BTreeMap::new();
        for of_one in versions.values() {
            let times: Vec<Timestamp> = of_one.iter().map(|(at, _)| dirs[*at].0).collect();
            for ((at, number), is_kept) in of_one.iter().zip(keep.choose(now, &times)) {
                if !is_kept {
                    superfluous.entry(*at).or_default().insert(*number);
                }
            }
        }
        Ok(superfluous)
    }
}

/// Makes the lines of a list.
struct Lister<'a> {
    parts: &'a FlusherParts,
    /// Paths before the batch, by those after it, where they may differ.
    old_paths: HashMap<RelPath, RelPath>,
    /// Directories in the mount, by their paths on the drive.
    names: HashMap<RelPath, RelPath>,
    entries: Vec<Entry>,
}

impl Lister<'_> {
    fn add_cleared(
        &mut self,
        steps: &Steps<FileContent>,
        removed: &BTreeMap<RelPath, ExpectedFile>,
    ) -> Result<()> {
        for step in &steps.clear {
            match step {
                ClearStep::RemoveFile { path } => {
                    self.add(path, path, What::Removed, removed.get(path))?;
                }
                ClearStep::RemoveDir { path } => self.add(path, path, What::Directory, None)?,
                ClearStep::Detach { .. } => {}
            }
        }
        Ok(())
    }

    /// Adds that a patch has changed a file, of which there is no old version.
    fn add_patched(&mut self, to: &RelPath) -> Result<()> {
        let from = self.old_paths.get(to).unwrap_or(to).clone();
        self.add(to, &from, What::Replaced, None)?;
        if let Some(entry) = self.entries.last_mut() {
            entry.is_excluded = true;
        }
        Ok(())
    }

    fn add_placed(
        &mut self,
        steps: &Steps<FileContent>,
        replaced: &BTreeMap<SlotNo, ExpectedFile>,
        removed: &BTreeMap<RelPath, ExpectedFile>,
    ) -> Result<()> {
        let cleared: HashSet<&RelPath> = steps.clear.iter().map(ClearStep::path).collect();
        let mut detached = HashMap::new();
        for step in &steps.clear {
            if let ClearStep::Detach { from, slot, .. } = step {
                detached.insert(*slot, from);
            }
        }
        for step in &steps.place {
            let to = step.path();
            let old = match step {
                PlaceStep::Install { slot, .. }
                | PlaceStep::InstallNode { slot, .. }
                | PlaceStep::Attach { slot, .. } => replaced.get(slot),
                PlaceStep::Link { to, .. } if !cleared.contains(to) => removed.get(to),
                _ => None,
            };
            if let Some(old) = old {
                let from = self.old_paths.get(to).unwrap_or(to).clone();
                self.add(to, &from, What::Replaced, Some(old))?;
            }
            match step {
                PlaceStep::Install { content, .. } => {
                    self.add_made(to, What::Written, (content.size, content.modified), None);
                }
                PlaceStep::Patch { .. } => self.add_patched(to)?,
                PlaceStep::InstallNode { .. } | PlaceStep::Link { .. } => {
                    self.add_made(to, What::Made, (0, Timestamp(0)), None);
                }
                PlaceStep::MakeDir { .. } => {
                    self.add_made(to, What::MadeDirectory, (0, Timestamp(0)), None);
                }
                PlaceStep::Attach { slot, .. } => {
                    let from = match detached.get(slot) {
                        Some(from) => Some(self.in_mount(from)?),
                        None => None,
                    };
                    self.add_made(to, What::Moved, (0, Timestamp(0)), from);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds the links and special files that only the catalog has and the batch removes.
    fn add_special(&mut self, gathered: &Gathered) -> Result<()> {
        let listed: HashSet<RelPath> = self.entries.iter().map(|it| it.path.clone()).collect();
        let (mut gone, mut made) = (Vec::new(), Vec::new());
        for path in &gathered.subjects.gone {
            let told = self.description(path)?;
            gone.extend(told.map(|told| (path.clone(), told)));
        }
        for subject in &gathered.subjects.names {
            if let Some(told) = &subject.known {
                let target = subject.inode.target.as_deref();
                let is_same = Special::of(told.kind) == Special::of(subject.inode.kind())
                    && told.target.as_deref() == target;
                if !is_same {
                    gone.push((subject.path.clone(), told.clone()));
                    if Special::of(subject.inode.kind()).is_some() {
                        made.push(subject.path.clone());
                    }
                }
            }
        }
        for (path, told) in gone {
            if Special::of(told.kind).is_none() || listed.contains(&path) {
                continue;
            }
            let name = self.in_mount(&path)?;
            self.entries.push(Entry {
                name: (name != path).then_some(name),
                path,
                what: What::Special,
                size: 0,
                modified: told.modified,
                from: None,
                is_excluded: false,
                about: Some(About::of(&told)),
            });
        }
        // What has taken the place of one of them in the catalog.
        for path in made.iter().filter(|path| !listed.contains(path)) {
            self.add_made(path, What::Made, (0, Timestamp(0)), None);
        }
        Ok(())
    }

    /// Adds a version of `path`, which was at `old` before the batch.
    fn add(
        &mut self,
        path: &RelPath,
        old: &RelPath,
        what: What,
        expected: Option<&ExpectedFile>,
    ) -> Result<()> {
        let told = self.description(old)?;
        let (size, mut modified) = expected.map_or((0, Timestamp(0)), |it| (it.size, it.modified));
        if let Some(told) = &told
            && is_time_of(told.modified, modified, SLACK_NS)
        {
            modified = told.modified;
        }
        let name = self.in_mount(path)?;
        self.entries.push(Entry {
            path: path.clone(),
            name: (name != *path).then_some(name),
            what,
            size,
            modified,
            from: None,
            is_excluded: false,
            about: told.as_ref().map(About::of),
        });
        Ok(())
    }

    fn add_made(
        &mut self,
        path: &RelPath,
        what: What,
        (size, modified): (u64, Timestamp),
        from: Option<RelPath>,
    ) {
        // Without the name in the mount an undo does not find the file, and says so.
        let name = self.in_mount(path).unwrap_or_else(|_| path.clone());
        self.entries.push(Entry {
            path: path.clone(),
            name: (name != *path).then_some(name),
            what,
            size,
            modified,
            from,
            is_excluded: false,
            about: None,
        });
    }

    fn description(&self, path: &RelPath) -> Result<Option<Description>> {
        Ok(self.parts.index.lock().description(path)?)
    }

    /// Returns the path in the mount of a path on the drive.
    fn in_mount(&mut self, path: &RelPath) -> Result<RelPath> {
        let Some((dir, name)) = path.split_last() else {
            return Ok(RelPath::root());
        };
        let above = match self.names.get(&dir) {
            Some(above) => above.clone(),
            None => {
                let above = self.in_mount(&dir)?;
                self.names.insert(dir.clone(), above.clone());
                above
            }
        };
        let old = self.old_paths.get(path).unwrap_or(path);
        let told = self.description(old)?.and_then(|told| told.name);
        let decoded = || self.parts.rules.decode(&name, dir.is_root());
        let name: Name = told.or_else(decoded).unwrap_or(name);
        Ok(above.join(&name))
    }
}

/// Returns the paths before the batch of names whose paths after it are other ones, because a
/// directory above them moves.
fn old_paths(gathered: &Gathered) -> HashMap<RelPath, RelPath> {
    let mut paths = HashMap::new();
    for key in gathered.before.keys() {
        if let Some(dirs) = gathered.delta.dirs.get(&key.parent)
            && let (Some(old), Some(new)) = (&dirs.old, &dirs.new)
            && old != new
        {
            paths.insert(new.join(&key.name), old.join(&key.name));
        }
    }
    paths
}

/// Returns the directories of versions on the drive.
fn all(backend: &dyn Backend) -> Result<Vec<VersionsId>> {
    let names = match backend.names_in(&layout::versions_root()) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        names => names?,
    };
    let mut found: Vec<VersionsId> = (names.iter())
        .filter_map(|name| {
            VersionsId::parse(name.as_bytes()).or_else(|| VersionsId::parse_list(name))
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// Reads the list of a directory; `None` if there is none that can be used.
fn list_of(backend: &dyn Backend, id: VersionsId) -> Result<Option<VersionList>> {
    let bytes = match read_small(backend, &id.list(), MAX_LIST_BYTES) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(error) => match FlushError::from(error) {
            FlushError::NotOurs { .. } => return Ok(None),
            error => return Err(error),
        },
    };
    Ok(VersionList::decode(&bytes).ok())
}

/// Returns the versions in a directory: as its list says or, without one, as they are there.
fn versions_in(backend: &dyn Backend, id: VersionsId) -> Result<Vec<Entry>> {
    if let Some(list) = list_of(backend, id)? {
        let versions = list.entries.into_iter();
        return Ok(versions.filter(is_kept).collect());
    }
    let top = id.dir();
    let found = below(backend, &top)?.into_iter();
    let files = found.filter(|(_, meta)| meta.kind != FileKind::Directory);
    Ok(files
        .filter_map(|(path, meta)| {
            let path = path.as_bytes().strip_prefix(top.as_bytes())?;
            Some(Entry {
                path: RelPath::parse(path.strip_prefix(b"/")?).ok()?,
                name: None,
                what: What::Removed,
                size: meta.size,
                modified: meta.modified,
                from: None,
                is_excluded: false,
                about: None,
            })
        })
        .collect())
}

/// Returns whether the line is about a version that is there.
fn is_kept(entry: &Entry) -> bool {
    entry.what.is_version() && !entry.is_excluded
}

fn files_in(backend: &dyn Backend, id: VersionsId) -> Result<Vec<Entry>> {
    let versions = versions_in(backend, id)?.into_iter();
    Ok(versions.filter(|it| it.what.is_file()).collect())
}

/// Returns the paths on the drive of up to `limit` kept versions with `size` bytes: first those of
/// the file at `path`, the newest first. A directory that the drive refuses to read is left out.
///
/// # Errors
/// If the drive fails.
pub fn versions_of_size(
    backend: &dyn Backend,
    path: &RelPath,
    size: u64,
    limit: usize,
) -> Result<Vec<RelPath>> {
    let (mut same, mut others) = (Vec::new(), Vec::new());
    for id in all(backend)?.into_iter().rev() {
        let files = or_skip(backend, id, files_in(backend, id))?.unwrap_or_default();
        for entry in files.into_iter().filter(|entry| entry.size == size) {
            let found = match entry.path == *path {
                true => &mut same,
                false => &mut others,
            };
            if found.len() < limit {
                found.push(id.dir().join_path(&entry.path));
            }
        }
    }
    same.extend(others);
    same.truncate(limit);
    Ok(same)
}

/// Returns the list of a directory without the versions of these numbers: it says that they are not
/// kept, because an undo must not take what has their place for new files.
fn list_without(
    backend: &dyn Backend,
    id: VersionsId,
    without: &HashSet<usize>,
) -> Result<Option<VersionList>> {
    let Some(mut list) = list_of(backend, id)? else {
        return Ok(None);
    };
    let kept = list.entries.iter_mut().filter(|it| is_kept(it));
    for (_, entry) in (kept.enumerate()).filter(|(number, _)| without.contains(number)) {
        entry.is_excluded = true;
    }
    Ok(Some(list))
}

/// Writes lists again. No cluster of an old one is used before its removal is durable.
fn rewrite(backend: &dyn Backend, lists: Vec<(VersionsId, VersionList)>) -> Result<()> {
    let mut removed = Vec::new();
    for (id, list) in lists {
        if or_skip(backend, id, remove_file(backend, &id.list()))?.is_some() {
            removed.push((id, list));
        }
    }
    backend.sync()?;
    for (id, list) in &removed {
        or_skip(
            backend,
            *id,
            write_list(backend, *id, list).map_err(FlushError::from),
        )?;
    }
    Ok(())
}

/// Returns whether the drive is gone or does not answer: then nothing more is tried.
pub(super) fn is_of_drive(backend: &dyn Backend, error: &FlushError) -> bool {
    match error {
        FlushError::Backend(error) if error.is_refusal() => false,
        FlushError::Backend(error) if error.is_stalled() || error.is_of_sync() => true,
        FlushError::Backend(_) => backend.check_alive(Look::Read).is_err(),
        FlushError::Detached => true,
        _ => false,
    }
}

/// Makes an error that concerns one directory of versions a line in the log: it must not keep the
/// others from being removed.
fn or_skip<T>(backend: &dyn Backend, id: VersionsId, result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_of_drive(backend, &error) => Err(error),
        Err(error) => {
            tracing::warn!(versions = %id.to_text(), %error, "old versions cannot be read or \
                removed; they are left out");
            Ok(None)
        }
    }
}

/// Removes one version, and the directories that become empty.
fn remove_version(backend: &dyn Backend, id: VersionsId, path: &RelPath) -> Result<()> {
    let top = id.dir();
    let mut at = top.join_path(path);
    remove_file(backend, &at)?;
    while let Some((dir, _)) = at.split_last()
        && dir != layout::versions_root()
    {
        match backend.remove_dir(&dir) {
            Ok(()) => at = dir,
            // Most likely it is not empty.
            Err(error) if error.is_refusal() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn remove_file(backend: &dyn Backend, path: &RelPath) -> Result<()> {
    match backend.remove_file(path) {
        Err(error) if !is_absent(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Returns how many versions are kept on the drive, and their bytes.
///
/// # Errors
/// If the drive fails.
pub fn kept_versions(backend: &dyn Backend) -> Result<(u64, u64)> {
    let mut sum = (0, 0_u64);
    for id in all(backend)? {
        for entry in or_skip(backend, id, files_in(backend, id))?.unwrap_or_default() {
            sum = (sum.0 + 1, sum.1.saturating_add(entry.size));
        }
    }
    Ok(sum)
}

/// Removes a directory with all that is in it; no link is followed.
///
/// # Errors
/// If the drive refuses to remove a part.
pub(crate) fn remove_below(backend: &dyn Backend, dir: &RelPath) -> Result<()> {
    let mut found = below(backend, dir)?;
    // What is deeper goes first.
    found.sort_by_key(|(path, _)| std::cmp::Reverse(path.depth()));
    for (path, meta) in found {
        let removed = match meta.kind {
            FileKind::Directory => backend.remove_dir(&path),
            _ => backend.remove_file(&path),
        };
        match removed {
            Err(error) if !is_absent(&error) => return Err(error.into()),
            _ => {}
        }
    }
    match backend.remove_dir(dir) {
        Err(error) if !is_absent(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Returns all that is below a directory; nothing if it does not exist.
fn below(backend: &dyn Backend, dir: &RelPath) -> Result<Vec<(RelPath, Metadata)>> {
    let mut found = Vec::new();
    let mut open = vec![dir.clone()];
    while let Some(at) = open.pop() {
        let entries = match backend.read_dir(&at) {
            Err(error) if is_absent(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = at.join(&entry.name);
            if entry.meta.kind == FileKind::Directory && path.depth() < MAX_DEPTH {
                open.push(path.clone());
            }
            found.push((path, entry.meta));
        }
    }
    Ok(found)
}
