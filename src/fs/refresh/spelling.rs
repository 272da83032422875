//! Between the names of the mount and the names as the backend spells them: the one place of this room that knows of both.

use super::super::Result;
use crate::base::{Ino, Name};
use crate::index::State;
use crate::rules::plan::NameKey;

/// What the mount has under the name that the backend spells as in `key`.
pub(super) fn at(state: &mut State, key: &NameKey) -> Result<Option<(Name, Ino)>> {
    match state.lookup_stored(key.parent, &key.name)? {
        Some(ino) => Ok(Some((state.mount_name(key)?, ino))),
        None => Ok(None),
    }
}

/// What of the mount is, or is to be, on the backend under the name `key`, or under one that the backend cannot tell from it.
pub(super) fn in_the_way(state: &mut State, key: &NameKey) -> Result<Option<(Name, Ino)>> {
    Ok(state.at_spelling(key.parent, &key.name)?)
}
