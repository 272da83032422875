//! The files of a batch that were open for writing at its cut, for the report.

use std::collections::BTreeSet;

use crate::cache::Store;
use crate::core::{ForeignText, Ino, ObjectId};
use crate::flush::FlusherParts;
use crate::flush::report::OpenCopy;
use crate::flush::stage::Staged;
use crate::index::ActiveBatch;
use crate::plan::planner::StageSource;
use crate::plan::units::database_of;

/// The first bytes of a SQLite database (<https://www.sqlite.org/fileformat.html>, 1.3).
const SQLITE: &[u8; 16] = b"SQLite format 3\0";

/// Returns what the batch has written of files that were open for writing, sorted by path. A file
/// that has been removed since is not listed.
pub(super) fn of(parts: &FlusherParts, active: &ActiveBatch, staged: &Staged) -> Vec<OpenCopy> {
    let sources: BTreeSet<(Ino, ObjectId)> = staged
        .sources
        .values()
        .filter_map(|source| match source {
            StageSource::Object { ino, object, .. } => Some((*ino, *object)),
            StageSource::Backend { .. } => None,
        })
        .filter(|(ino, _)| active.open.contains(ino))
        .collect();
    let mut copies = Vec::with_capacity(sources.len());
    for (ino, object) in sources {
        // Without a path nobody would know which file is meant.
        let Ok(Some(path)) = parts.index.lock().mount_path(ino) else {
            continue;
        };
        let path = path.to_text();
        copies.push(OpenCopy {
            is_database: database_of(path.as_bytes()).len() < path.len()
                || is_sqlite(&parts.store, object),
            as_of: active.time,
            path,
        });
    }
    copies.sort_by(|one, other| one.path.cmp(&other.path));
    copies
}

fn is_sqlite(store: &Store, object: ObjectId) -> bool {
    let mut start = [0; SQLITE.len()];
    store.open_object(object).is_ok_and(|file| {
        let read = store.read_as_of_cut(object, &file, &mut start, 0);
        read.is_ok() && start == *SQLITE
    })
}
