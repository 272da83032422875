//! Writes segments, and removes those that a full segment has superseded.

use uuid::Uuid;

use crate::catalog::reader::{look_at, segments};
use crate::core::{BatchNo, FileKind, RelPath};
use crate::drive::{Backend, create_with, is_absent};
use crate::error::{FlushError, Result};
use crate::format::catalog::chain::FoundSegment;
use crate::format::catalog::{CatalogBatch, segment};
use crate::format::layout;

/// Damaged segments that are kept for inspection. They have no other effect.
const KEPT: usize = 8;

/// Creates the directory of the log if it is missing. This happens before the commit of the batch,
/// so that the directory takes no clusters that the batch has freed and a crash may reclaim.
pub(crate) fn make_dir(backend: &dyn Backend) -> Result<()> {
    match backend.make_dir(&layout::catalog_dir()) {
        Err(error) if error.source.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes the segment of a committed batch. It is durable after the next sync only. No unsynced
/// removal may precede it, because a crash could bring back a name whose clusters the segment has
/// got. So the first attempt writes it before the batch clears anything, and a replay writes it
/// after everything else.
pub(crate) fn write(backend: &dyn Backend, volume: Uuid, catalog: &CatalogBatch) -> Result<()> {
    let bytes = segment::encode(volume, catalog);
    Ok(create_with(
        backend,
        &layout::segment_path(catalog.segment),
        &bytes,
    )?)
}

/// Prepares a replay before it writes anything. It removes a file with the name of the batch's
/// segment that is not this segment, complete; for a full segment it also removes all superseded
/// ones; then it syncs. After a crash, names that were removed may be on clusters that are marked
/// free. A later write would get these clusters, and a later removal of the names would free them
/// again. The record contains everything that is removed here. Returns `true` if the segment is
/// there and must not be written.
///
/// A different complete segment under its number is from another machine, which found the record
/// torn and continued without the batch. That segment counts and stays.
pub(crate) fn make_way(
    backend: &dyn Backend,
    volume: Uuid,
    (batch, catalog): (BatchNo, &CatalogBatch),
) -> Result<bool> {
    let path = layout::segment_path(catalog.segment);
    let found = match backend.metadata(&path) {
        Ok(meta) => Some(look_at(backend, volume, catalog.segment, meta.kind)?),
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(error.into()),
    };
    let is_there = match found {
        Some(FoundSegment::Whole(link)) => {
            let own = segment::hash_of(&segment::encode(volume, catalog));
            if own != Some(link.hash) {
                tracing::error!(%batch, %path, "another machine has changed the catalog since; \
                    the attributes in the batch are lost");
                return Ok(true);
            }
            true
        }
        Some(FoundSegment::Bad(_)) | None => false,
    };
    let removed = !is_there && remove_all(backend, batch, &path)?;
    if remove_superseded(backend, volume, (batch, catalog))? || removed {
        backend.sync()?;
    }
    Ok(is_there)
}

/// Removes the segments that a full one has superseded, except the newest damaged ones, which stay
/// unchanged. Returns whether it removed any. The caller syncs before it removes the record, which
/// tells the next replay that this may be incomplete.
pub(crate) fn remove_superseded(
    backend: &dyn Backend,
    volume: Uuid,
    (batch, catalog): (BatchNo, &CatalogBatch),
) -> Result<bool> {
    if !catalog.full {
        return Ok(false);
    }
    let mut below: Vec<(u64, FileKind)> = segments(backend)?
        .into_iter()
        .filter_map(|entry| Some((layout::parse_segment_name(&entry.name)?, entry.meta.kind)))
        .filter(|(number, _)| *number < catalog.segment)
        .collect();
    below.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    below.dedup_by_key(|(number, _)| *number);
    let (mut kept, mut removed) = (0, false);
    for (number, kind) in below {
        if kind == FileKind::Directory {
            continue;
        }
        let is_bad = matches!(
            look_at(backend, volume, number, kind)?,
            FoundSegment::Bad(_)
        );
        if is_bad && kept < KEPT {
            kept += 1;
            continue;
        }
        removed |= remove_all(backend, batch, &layout::segment_path(number))?;
    }
    Ok(removed)
}

/// Removes the file at `path`, and further entries that a crash has left under the same name.
/// Returns whether there was one.
fn remove_all(backend: &dyn Backend, batch: BatchNo, path: &RelPath) -> Result<bool> {
    /// More entries of one name than any crash leaves.
    const SAME_NAME: usize = 8;
    for nth in 0..SAME_NAME {
        match backend.remove_file(path) {
            Err(error) if is_absent(&error) => return Ok(nth > 0),
            result => result?,
        }
    }
    Err(FlushError::Unfinished {
        batch,
        problem: format!("{path} cannot be removed from the drive; run fsck on it"),
    })
}
