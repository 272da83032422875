//! Whether the backend has room for a batch, before anything is staged.
//!
//! A batch is a whole or nothing (P4), so everything new has to be there beside everything old until the record is committed: what the
//! batch removes or replaces frees its room only after that. A batch that does not fit is not begun, and the flush says how much
//! is missing. Carrying a part of it that fits would leave the drive in a state that no cut ever had; so would the removals alone.
//! Whoever wants them all the same says so (`flush --removals-first`): they then go in a batch of their own, and the mixture
//! stands until the rest has followed. The reckoning is in whole blocks of 4 KiB, and no file system tells how it rounds; a batch that
//! is stopped by ENOSPC all the same is given up like any other.

use std::collections::HashSet;

use super::gather::Gathered;
use super::report::{FlushError, Result};
use super::subjects::Subjects;
use crate::backend::Backend;
use crate::base::{Ino, RelPath};
use crate::rules::plan::{NameChange, Plan, StageSource};
use crate::rules::steps::{PlaceStep, PlainKind};

/// A file takes whole blocks of at least this many bytes.
const BLOCK: u64 = 4096;

/// Passes if the files that `plan` stages fit, or the backend does not tell.
pub(super) fn check(backend: &dyn Backend, plan: &Plan, gathered: &Gathered) -> Result<()> {
    let mut needed: u64 = 0;
    let mut largest: Option<(&RelPath, u64)> = None;
    for step in &plan.steps.place {
        if let PlaceStep::Install { to, content, .. } = step {
            let (StageSource::Object { ino, .. } | StageSource::Backend { ino, .. }) = content;
            let size = gathered.sizes.get(ino).copied().unwrap_or(0);
            needed = needed.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
            if largest.is_none_or(|(_, most)| size > most) {
                largest = Some((to, size));
            }
        }
    }
    let Some((path, size)) = largest else {
        return Ok(());
    };
    let space = match backend.space() {
        Ok(space) => space,
        Err(error) if error.is_gone() => return Err(error.into()),
        Err(_) => return Ok(()),
    };
    // Some servers answer with zeros.
    if space.total == 0 || needed <= space.available {
        return Ok(());
    }
    Err(FlushError::Full {
        path: path.clone(),
        size,
        available: space.available,
        needed,
        freed: freed_by_removals(gathered),
    })
}

/// Tells in an error of a full backend what the removals of the batch would free.
pub(super) fn explain(error: FlushError, gathered: &Gathered) -> FlushError {
    match error {
        FlushError::Full {
            path,
            size,
            available,
            needed,
            ..
        } => FlushError::Full {
            path,
            size,
            available,
            needed,
            freed: freed_by_removals(gathered),
        },
        other => other,
    }
}

fn freed_by_removals(gathered: &Gathered) -> u64 {
    let wanted = wanted(gathered);
    let gone = gathered.delta.names.iter();
    gone.filter(|change| is_removal(change, &wanted))
        .filter_map(|change| gathered.before.get(&change.key))
        .map(|entry| entry.size)
        .sum()
}

/// Inodes that the cut has under any of the names concerned.
fn wanted(gathered: &Gathered) -> HashSet<Ino> {
    let names = gathered.delta.names.iter();
    names
        .filter_map(|change| change.new.as_ref().map(|new| new.ino))
        .collect()
}

fn is_removal(change: &NameChange, wanted: &HashSet<Ino>) -> bool {
    change.new.is_none()
        && change
            .old
            .is_some_and(|old| old.kind == PlainKind::File && !wanted.contains(&old.ino))
}

/// Leaves of the difference only the files that are gone from the cut and from every other name.
pub(super) fn keep_removals(gathered: &mut Gathered) {
    let wanted = wanted(gathered);
    let names = &mut gathered.delta.names;
    names.retain(|change| is_removal(change, &wanted));
    gathered.settled.clear();
    gathered.attributes.clear();
    gathered.subjects = Subjects::default();
    // The directories stay where they are in this batch.
    let parents: HashSet<Ino> = names.iter().map(|change| change.key.parent).collect();
    gathered.delta.dirs.retain(|dir, _| parents.contains(dir));
    for paths in gathered.delta.dirs.values_mut() {
        paths.new.clone_from(&paths.old);
    }
}
