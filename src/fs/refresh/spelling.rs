//! Between the names of the mount and the names as the backend spells them: the one place of this room that knows of both.

use super::super::Result;
use crate::base::{Ino, Name};
use crate::index::State;
use crate::rules::plan::NameKey;

/// The name that the mount is to show for what the backend calls `stored`.
pub(super) fn mount_name(_state: &mut State, _parent: Ino, stored: &Name) -> Result<Name> {
    Ok(stored.clone())
}

/// What the mount has under the name that the backend spells as in `key`.
pub(super) fn at(state: &mut State, key: &NameKey) -> Result<Option<(Name, Ino)>> {
    let found = state.lookup(key.parent, &key.name)?;
    Ok(found.map(|ino| (key.name.clone(), ino)))
}

/// How the backend spells the name `name` of the mount.
pub(super) fn stored(_state: &mut State, parent: Ino, name: &Name) -> Result<NameKey> {
    Ok(NameKey {
        parent,
        name: name.clone(),
    })
}

/// Whatever in the mount keeps the backend from having `name` in `parent` as another file: that very name, or one that the
/// backend cannot tell from it.
pub(super) fn taken(state: &mut State, parent: Ino, name: &Name) -> Result<Option<(Name, Ino)>> {
    if let Some(ino) = state.lookup(parent, name)? {
        return Ok(Some((name.clone(), ino)));
    }
    let Some(other) = state.colliding_name(parent, name)? else {
        return Ok(None);
    };
    let ino = state.lookup(parent, &other)?;
    Ok(ino.map(|ino| (other, ino)))
}
