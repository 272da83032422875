//! Reading back what a batch has written, where that is asked for (`--verify`): before the index lets go of anything (P5), and
//! before anything stands under a final name.
//!
//! The contents are compared in their slots, after the sync that made them durable and before the batch is committed. Placing is
//! renaming, which moves no bytes: what was right in its slot is right under its name. Found here, other bytes cost nothing: the
//! batch is given up, all of it stays dirty and pinned in the cache, and the drive's tree has not been touched (P3). The other
//! files of the batch are not carried instead: a drive that gives back what nobody wrote is not to be trusted with them.
//! That each name then leads to a file of the right size is looked at once more after placing; a batch of which that is
//! not so stays open, and the next flush verifies it from its journal.
//!
//! What is read comes past the kernel's page cache, see [`crate::backend::Backend::open_uncached`]; a cache in the drive's own
//! electronics, or in a file system driver in user space, nobody gets past.

use super::apply::{Applied, hash_file};
use super::real;
use super::refused::StepNo;
use super::report::{FlushError, Result, Wish};
use super::run::phase;
use crate::backend::Backend;
use crate::base::{BatchNo, FileKind, RelPath};
use crate::control::protocol::{Phase, Progress};
use crate::rules::layout;
use crate::rules::steps::{FileContent, PlaceStep, SlotNo, Steps};

fn installs(steps: &Steps<FileContent>) -> impl Iterator<Item = (SlotNo, &RelPath, &FileContent)> {
    steps.place.iter().filter_map(|step| match step {
        PlaceStep::Install { slot, to, content } => Some((*slot, to, content)),
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
    progress(at);
    Ok(())
}

/// Looks whether every placed file stands under its name in its size, every node as what it is, every further name as one.
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
            PlaceStep::InstallNode { node, .. } => {
                real::node_of(&backend.metadata(to)?).as_ref() == Some(node)
            }
            PlaceStep::Link { from, .. } => {
                let refused = applied.not_linked.contains(to) || applied.vanished.contains(to);
                refused || real::are_one(&backend.metadata(from)?, &backend.metadata(to)?)
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
