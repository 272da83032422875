//! Staging: contents go to the batch's own directory on the backend, hashed on the way.

use std::collections::BTreeMap;

use crate::apply::explain::explain;
use crate::apply::refused::{StepNo, Why, errno_of, is_local};
use crate::apply::special_files;
use crate::apply::staging::BUFFER;
use crate::apply::staging::Source;
use crate::apply::staging::hide_dir;
use crate::apply::staging::modified;
use crate::apply::staging::write_slot;
use crate::apply::versions::write_plain;
use crate::cache::Store;
use crate::core::{BatchNo, Ino, Phase, Progress, RelPath};
use crate::drive::{Backend, BackendError};
use crate::error::{FlushError, Result};
use crate::flush::patches::{Bases, PatchStager, Patching};
use crate::flush::report::Wish;
use crate::flush::space_check::Holding;
use crate::format::layout;
use crate::format::steps::{FileContent, Node, PatchFile, PlaceStep, SlotNo, Steps};
use crate::format::versions::VersionList;
use crate::index::Inode;
use crate::plan::planner::StageSource;

/// A batch whose contents are on the backend, synced, under no final name.
pub(crate) struct Staged {
    pub(crate) steps: Steps<FileContent>,
    pub(crate) sources: BTreeMap<SlotNo, StageSource>,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// The batch keeps versions.
    pub(crate) keeps_versions: bool,
}

/// Stages every file of the plan, in the order of its final path, and syncs once.
pub(crate) struct Stager<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) store: &'a Store,
    pub(crate) batch: BatchNo,
    pub(crate) sizes: &'a BTreeMap<Ino, u64>,
    /// The inodes of the files.
    pub(crate) inodes: &'a BTreeMap<Ino, Inode>,
    /// The backend keeps permissions.
    pub(crate) keeps_permissions: bool,
    /// No other user could finish the batch, so the staging directory is closed to all others.
    pub(crate) hides_all: bool,
    pub(crate) wish: &'a Wish,
    pub(crate) progress: &'a dyn Fn(Progress),
    /// Space that is held for the part after the commit.
    pub(crate) held: Holding,
    pub(crate) patching: &'a Patching,
    /// The files that may be patched.
    pub(super) bases: &'a Bases,
    /// Returns the list of the versions that the batch keeps, if it keeps any.
    pub(super) versions: &'a VersionsOf<'a>,
}

/// Makes the list of the versions that a batch with these steps keeps.
pub(super) type VersionsOf<'a> = dyn Fn(&Steps<FileContent>) -> Result<Option<VersionList>> + 'a;

impl Stager<'_> {
    pub(crate) fn stage(&self, plan: Steps<StageSource>) -> Result<Staged> {
        let mut staged = Staged {
            steps: Steps {
                clear: plan.clear,
                place: Vec::with_capacity(plan.place.len()),
                attributes: plan.attributes,
            },
            sources: BTreeMap::new(),
            files: 0,
            bytes: 0,
            keeps_versions: false,
        };
        let _phase = self.backend.keep_open();
        self.backend.make_dir(&layout::staging_dir(self.batch))?;
        if self.keeps_permissions && self.hides_all {
            hide_dir(self.backend, &layout::staging_dir(self.batch))?;
        }
        let mut progress = self.totals(&plan.place);
        let mut buffer = vec![0; BUFFER];
        let mut bad = Vec::new();
        for step in plan.place {
            let step = match step {
                PlaceStep::Install { slot, to, content } => {
                    let place = (slot, &to);
                    let written = self.stage_one(&content, place, &mut buffer, &mut progress);
                    let (measured, patch) = match written {
                        // All of them are found in one pass; the batch is then planned without
                        // them.
                        Err(FlushError::BadObjects(files)) => {
                            bad.extend(files);
                            continue;
                        }
                        written => written?,
                    };
                    let path = match patch {
                        Some(_) => layout::patch_path(self.batch, slot),
                        None => layout::slot_path(self.batch, slot),
                    };
                    self.hide_private(&content, &path)?;
                    let bytes = patch.map_or(measured.size, |patch| patch.size);
                    staged.files += 1;
                    staged.bytes = staged.bytes.saturating_add(bytes);
                    staged.sources.insert(slot, content);
                    match patch {
                        Some(patch) => PlaceStep::Patch {
                            slot,
                            to,
                            content: measured,
                            patch,
                        },
                        None => PlaceStep::Install {
                            slot,
                            to,
                            content: measured,
                        },
                    }
                }
                // Made here only.
                PlaceStep::Patch { .. } => continue,
                PlaceStep::MakeDir { path } => PlaceStep::MakeDir { path },
                PlaceStep::Attach { slot, to, kind } => PlaceStep::Attach { slot, to, kind },
                PlaceStep::InstallNode { slot, to, node } => {
                    self.stage_node(&node, slot)?;
                    staged.files += 1;
                    PlaceStep::InstallNode { slot, to, node }
                }
                PlaceStep::Link { from, to } => PlaceStep::Link { from, to },
                PlaceStep::Touch { path, modified } => PlaceStep::Touch { path, modified },
            };
            staged.steps.place.push(step);
        }
        if !bad.is_empty() {
            return Err(FlushError::BadObjects(bad));
        }
        staged.keeps_versions = self.stage_versions(&staged.steps)?;
        let patched = patched_bytes(&staged.steps);
        self.held.beside(patched).write(self.backend, self.batch)?;
        self.backend.sync()?;
        Ok(staged)
    }

    /// Writes the list of the versions that the batch keeps. Without it the batch keeps none.
    fn stage_versions(&self, steps: &Steps<FileContent>) -> Result<bool> {
        let Some(list) = (self.versions)(steps)? else {
            return Ok(false);
        };
        let list = VersionList {
            batch: self.batch,
            ..list
        };
        let path = layout::kept_list_path(self.batch);
        let written = match list.encode() {
            Some(bytes) => write_plain(self.backend, &path, &bytes),
            None => Ok(()),
        };
        match written {
            Err(error) if error.is_full() || is_local(self.backend, self.batch, &error) => {
                tracing::warn!(%error, "the batch keeps no old versions");
                Ok(false)
            }
            written => Ok(written.map(|()| true)?),
        }
    }

    fn stage_node(&self, node: &Node, slot: SlotNo) -> Result<()> {
        let path = layout::slot_path(self.batch, slot);
        Ok(special_files::make_node(self.backend, node, &path)?)
    }

    /// Closes the slot of a file that others may not read in the mount. So they cannot read it in
    /// the slot, nor under its name before it gets its attributes.
    fn hide_private(&self, source: &StageSource, path: &RelPath) -> Result<()> {
        let (StageSource::Object { ino, .. } | StageSource::Backend { ino, .. }) = source;
        match self.inodes.get(ino) {
            Some(inode) if self.keeps_permissions && inode.mode & 0o044 != 0o044 => {
                Ok(self.backend.set_permissions(path, 0o600)?)
            }
            _ => Ok(()),
        }
    }

    fn totals(&self, place: &[PlaceStep<StageSource>]) -> Progress {
        let mut progress = crate::flush::phase(Phase::Stage);
        for step in place {
            if let PlaceStep::Install { content, .. } = step {
                progress.files_total += 1;
                progress.bytes_total = progress.bytes_total.saturating_add(self.size_of(content));
            }
        }
        progress
    }

    fn expected_size(&self, source: &StageSource) -> Option<u64> {
        match source {
            StageSource::Object { ino, .. } | StageSource::Backend { ino, .. } => {
                self.sizes.get(ino).copied()
            }
        }
    }

    fn size_of(&self, source: &StageSource) -> u64 {
        let (StageSource::Object { ino, .. } | StageSource::Backend { ino, .. }) = source;
        // A further copy of an unchanged file may be read from the drive, where its size may have
        // changed.
        let known = || self.inodes.get(ino).map(|inode| inode.size);
        self.expected_size(source).or_else(known).unwrap_or(0)
    }

    /// Stages the difference of a file that may be patched. Returns `None` if it is better written
    /// whole.
    fn stage_patch(
        &self,
        source: &StageSource,
        (slot, to): (SlotNo, &RelPath),
    ) -> Result<Option<(FileContent, PatchFile)>> {
        let (Some(base), Some(size)) = (self.bases.get(&slot), self.expected_size(source)) else {
            return Ok(None);
        };
        let from = Source::open(self.backend, self.store, source)?;
        let path = layout::patch_path(self.batch, slot);
        let stager = PatchStager {
            backend: self.backend,
            patching: self.patching,
            target: to,
            patch: &path,
            size,
            modified: modified(source),
        };
        let staged = stager.stage(&from, base, &mut || self.wish.check())?;
        match from.is_torn() {
            true => Err(bad_object(source, TORN.into())),
            false => Ok(staged),
        }
    }

    /// Writes one file into its slot, whole.
    fn stage_whole(
        &self,
        source: &StageSource,
        slot: SlotNo,
        buffer: &mut [u8],
        progress: &mut Progress,
    ) -> Result<FileContent> {
        let slot = layout::slot_path(self.batch, slot);
        let expected = self.expected_size(source);
        let from = Source::open(self.backend, self.store, source)?;
        let file = self.backend.create(&slot)?;
        let (file, tap) = self.patching.tap(file, source, expected);
        let done = |bytes| {
            progress.bytes_done = progress.bytes_done.saturating_add(bytes);
            (self.progress)(*progress);
            self.wish.check()
        };
        let content = write_slot(
            (file, &slot),
            &from,
            modified(source),
            expected,
            buffer,
            done,
        )?;
        if from.is_torn() {
            return Err(bad_object(source, TORN.into()));
        }
        if expected.is_some_and(|expected| expected != content.size) {
            return Err(FlushError::Cache {
                operation: format!(
                    "read the object of {slot}: {} bytes where the index has {}",
                    content.size,
                    expected.unwrap_or(0)
                ),
                source: std::io::Error::from(std::io::ErrorKind::UnexpectedEof),
            });
        }
        self.patching.keep(tap, &content);
        Ok(content)
    }

    /// Copies one file, or what differs of it, into its slot and returns its content. A file that
    /// is not of the expected size is not the one that the index describes, and must not replace
    /// anything.
    fn stage_one(
        &self,
        source: &StageSource,
        (slot, to): (SlotNo, &RelPath),
        buffer: &mut [u8],
        progress: &mut Progress,
    ) -> Result<(FileContent, Option<PatchFile>)> {
        let result = match self.stage_patch(source, (slot, to)) {
            Ok(Some((content, patch))) => {
                progress.bytes_done = progress.bytes_done.saturating_add(content.size);
                Ok((content, Some(patch)))
            }
            Ok(None) => (self.stage_whole(source, slot, buffer, progress)).map(|it| (it, None)),
            Err(error) => Err(error),
        };
        progress.files_done += 1;
        (self.progress)(*progress);
        result.map_err(|error| match error {
            // The rest of the batch can be read from the cache: one bad file must not keep it from
            // the drive.
            FlushError::Store(error) => bad_object(source, format!("{error}; {BAD}")),
            error @ FlushError::Cache { .. } => bad_object(source, format!("{error}; {BAD}")),
            FlushError::Backend(error) if is_of_this_file(&error) => bad_object(
                source,
                explain(StepNo::Place(0), &Why::Errno(errno_of(&error)), None),
            ),
            // The source is another name on the drive, and cannot be read there.
            FlushError::Backend(error)
                if matches!(source, StageSource::Backend { .. })
                    && is_local(self.backend, self.batch, &error) =>
            {
                bad_object(
                    source,
                    explain(StepNo::Place(0), &Why::Errno(errno_of(&error)), None),
                )
            }
            other => other,
        })
    }
}

/// Returns the bytes of all patches.
fn patched_bytes(steps: &Steps<FileContent>) -> u64 {
    let patches = steps.place.iter().filter_map(|step| match step {
        PlaceStep::Patch { patch, .. } => Some(patch.size),
        _ => None,
    });
    patches.fold(0, u64::saturating_add)
}

/// What a user can do about a file that the SSD has lost.
pub(crate) const BAD: &str =
    "write it anew from another copy, or delete it, and look at the health of the SSD";

const TORN: &str = "a program changes it, and the SSD has no space to keep it as it was at the \
    beginning of the flush; free some space on the SSD, or flush again later";

/// Returns whether the drive refuses the bytes of this very file, for example because it is too
/// large.
fn is_of_this_file(error: &BackendError) -> bool {
    error.is_of_contents() && error.is_refusal() && !error.is_full()
}

fn bad_object(source: &StageSource, problem: String) -> FlushError {
    let (StageSource::Object { ino, .. } | StageSource::Backend { ino, .. }) = source;
    FlushError::BadObjects(vec![(*ino, problem)])
}
