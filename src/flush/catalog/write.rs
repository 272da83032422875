//! Writing a segment, and removing those that a full one has superseded.

use uuid::Uuid;

use super::super::apply::{create_with, is_absent};
use super::super::report::{FlushError, Result};
use super::read::{look_at, segments};
use crate::backend::Backend;
use crate::base::{BatchNo, FileKind, RelPath};
use crate::rules::catalog::chain::Found;
use crate::rules::catalog::{CatalogBatch, segment};
use crate::rules::layout;

/// Damaged segments that are kept, for people to look at. They do not count for anything.
const KEPT: usize = 8;

/// Makes the directory of the log if there is none. Done before the batch is committed, so that it takes no clusters that the batch
/// has freed and a crash may claim again.
pub(in super::super) fn make_dir(backend: &dyn Backend) -> Result<()> {
    match backend.make_dir(&layout::catalog_dir()) {
        Err(error) if error.source.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes the segment of a batch that is committed. Not durable before the next sync, before which nothing must have been freed that
/// is not synced: a crash could bring back a name whose clusters the segment has got. So the first time it is done before the
/// batch clears anything, and in a redo after everything else.
pub(in super::super) fn write(
    backend: &dyn Backend,
    volume: Uuid,
    catalog: &CatalogBatch,
) -> Result<()> {
    let bytes = segment::encode(volume, catalog);
    create_with(backend, &layout::segment_path(catalog.segment), &bytes)
}

/// What a redo does before it writes anything: what has the name of the batch's segment and is not it, whole, is removed, and of a full
/// one all that it supersedes, and that is synced. After a crash names that were to be removed may be on clusters that are marked free,
/// so that whatever is written next would get them, and removing the names later would free them again. What is removed is whole in
/// the record, whatever happens now. True if the segment is there, and is not to be written.
///
/// Another whole segment under its number is somebody else's: a machine that found the record torn has gone on without the batch.
/// What that one says counts, and stays.
pub(in super::super) fn make_way(
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
        Some(Found::Whole(link)) => {
            let own = segment::hash_of(&segment::encode(volume, catalog));
            if own != Some(link.hash) {
                tracing::error!(%batch, %path, "another machine has changed the catalog since; what the batch says of attributes is lost");
                return Ok(true);
            }
            true
        }
        Some(Found::Bad(_)) | None => false,
    };
    let removed = !is_there && remove_all(backend, batch, &path)?;
    if remove_superseded(backend, volume, (batch, catalog))? || removed {
        backend.sync()?;
    }
    Ok(is_there)
}

/// Removes what a full segment has superseded, but for what is damaged: of that the newest stay, as they are. True if there was
/// anything. To be synced before the record goes, which tells the next redo that this may be half done.
pub(in super::super) fn remove_superseded(
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
        let is_bad = matches!(look_at(backend, volume, number, kind)?, Found::Bad(_));
        if is_bad && kept < KEPT {
            kept += 1;
            continue;
        }
        removed |= remove_all(backend, batch, &layout::segment_path(number))?;
    }
    Ok(removed)
}

/// Removes the file at `path`, and whatever a crash has left under the same name beside it. True if there was one.
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
