//! Look-ups of the mount's names by the backend's spelling: the only file of this module that uses
//! both.

use crate::core::{Ino, Name};
use crate::index::IndexWriter;
use crate::plan::planner::NameKey;
use crate::vfs::Result;

/// Returns the dirent of the mount with the stored name `key`.
pub(super) fn at(state: &mut IndexWriter, key: &NameKey) -> Result<Option<(Name, Ino)>> {
    match state.lookup_stored(key.parent, &key.name)? {
        Some(ino) => Ok(Some((state.mount_name(key)?, ino))),
        None => Ok(None),
    }
}

/// Returns the dirent of the mount that has, or will have, the name `key` on the backend, or a name
/// that is equal for the backend.
pub(super) fn in_the_way(state: &mut IndexWriter, key: &NameKey) -> Result<Option<(Name, Ino)>> {
    Ok(state.at_spelling(key.parent, &key.name)?)
}
