//! Reads back what a batch has written, if `--verify` asks for it: before the index drops anything
//! (P5), and before any file has its final name.
//!
//! The contents are compared in their slots, after the sync that made them durable and before the
//! batch is committed. Placing renames, which moves no bytes: what was right in its slot is right
//! under its name. An error found here costs nothing: the batch is given up, all of it stays dirty
//! and pinned in the cache, and the drive's tree has not been touched (P3). The other files of the
//! batch are not written either: a drive that returns bytes that were never written cannot be
//! trusted with them. After placing, each name is checked once more to lead to a file of the right
//! size. If one does not, the batch stays open, and the next flush verifies it from its journal.
//!
//! The blocks of a patch are written into its file after the commit only. Before the commit the
//! patch is compared, and the file on the drive as it will be with it; after the sync that made the
//! blocks durable, the whole file. If that fails, the notes of the patches stay, and the replay
//! reads back from the medium what it writes again.
//!
//! Reads bypass the kernel's page cache, see [`crate::drive::Backend::open_uncached`]. A cache in
//! the drive's own electronics, or in a file system driver in user space, cannot be bypassed.

use crate::apply::patch;
use crate::apply::patch::{Begun, Patch};
use crate::apply::refused::StepNo;
use crate::apply::{Applied, special_files};
use crate::core::{BatchNo, FileKind, Phase, Progress, RelPath};
use crate::drive::{Backend, hash_file};
use crate::error::{FlushError, Result};
use crate::flush::flusher::phase;
use crate::flush::report::Wish;
use crate::format::layout;
use crate::format::steps::{FileContent, PatchFile, PlaceStep, SlotNo, Steps};

fn installs(steps: &Steps<FileContent>) -> impl Iterator<Item = (SlotNo, &RelPath, &FileContent)> {
    steps.place.iter().filter_map(|step| match step {
        PlaceStep::Install { slot, to, content } => Some((*slot, to, content)),
        _ => None,
    })
}

type PatchStep<'a> = (SlotNo, &'a RelPath, &'a FileContent, &'a PatchFile);

fn patches(steps: &Steps<FileContent>) -> impl Iterator<Item = PatchStep<'_>> {
    steps.place.iter().filter_map(|step| match step {
        PlaceStep::Patch {
            slot,
            to,
            content,
            patch,
        } => Some((*slot, to, content, patch)),
        _ => None,
    })
}

/// Compares every staged file with what was staged. Everything must have been synced.
pub(super) fn staged(
    backend: &dyn Backend,
    batch: BatchNo,
    steps: &Steps<FileContent>,
    wish: &Wish,
    progress: &dyn Fn(Progress),
) -> Result<()> {
    let mut at = phase(Phase::Verify);
    for (_, _, content) in installs(steps) {
        at.files_total += 1;
        at.bytes_total = at.bytes_total.saturating_add(content.size);
    }
    for (_, _, content, _) in patches(steps) {
        at.files_total += 1;
        at.bytes_total = at.bytes_total.saturating_add(content.size);
    }
    for (slot, to, content) in installs(steps) {
        wish.check()?;
        progress(at);
        let path = layout::slot_path(batch, slot);
        let file = backend.open_uncached(&path)?;
        // A wrong size is a wrong hash.
        if hash_file(&*file, &path)? != content.hash {
            return Err(FlushError::Lies { path: to.clone() });
        }
        at.files_done += 1;
        at.bytes_done = at.bytes_done.saturating_add(content.size);
    }
    for (slot, to, content, wanted) in patches(steps) {
        wish.check()?;
        progress(at);
        let path = layout::patch_path(batch, slot);
        // The rest of the file is on the drive already, and is read as well.
        let is_right = match Patch::open(backend, &patch::uncached, &path, wanted)? {
            Some(patch) => patch.completes((backend, &patch::uncached), to, content, Begun::No)?,
            None => false,
        };
        if !is_right {
            return Err(FlushError::Lies { path: to.clone() });
        }
        at.files_done += 1;
        at.bytes_done = at.bytes_done.saturating_add(content.size);
    }
    progress(at);
    Ok(())
}

/// Checks that every placed file has its size, that every patched file has its bytes, that every
/// node is of its kind, and that every further name is one.
pub(super) fn placed(
    backend: &dyn Backend,
    batch: BatchNo,
    steps: &Steps<FileContent>,
    applied: &Applied,
) -> Result<()> {
    for (number, step) in steps.place.iter().enumerate() {
        let to = step.path();
        if applied.refused.has(StepNo::Place(number)) {
            continue;
        }
        let is_there = match step {
            PlaceStep::Install { content, .. } => {
                let meta = backend.metadata(to)?;
                meta.kind == FileKind::Regular && meta.size == content.size
            }
            // Its bytes were written after the commit.
            PlaceStep::Patch { content, .. } => {
                let meta = backend.metadata(to)?;
                meta.kind == FileKind::Regular
                    && meta.size == content.size
                    && hash_file(&*backend.open_uncached(to)?, to)? == content.hash
            }
            PlaceStep::InstallNode { node, .. } => {
                special_files::node_of(&backend.metadata(to)?).as_ref() == Some(node)
            }
            PlaceStep::Link { from, .. } => {
                applied.vanished.contains(to)
                    || special_files::are_one(&backend.metadata(from)?, &backend.metadata(to)?)
                    || special_files::is_copy(backend, batch, from, to)?
            }
            _ => true,
        };
        if !is_there {
            return Err(FlushError::Unfinished {
                batch,
                problem: format!("{to} is not on the drive as it was put there"),
            });
        }
    }
    Ok(())
}
