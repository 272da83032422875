//! Checks changes of the catalog: before a commit, and after a read from a drive.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::core::{FileKind, MAX_TARGET_BYTES, RelPath};
use crate::format::catalog::wire::MAX_XATTR_BYTES;
use crate::format::catalog::{CatalogChange, Description, Extent};
use crate::format::codec::MAX_PATH_BYTES;
use crate::format::layout;

/// The most holes in a description. The holes after these are stored as zeros.
pub const MAX_HOLES: usize = 65_536;

/// The longest name in a mount, in bytes (`NAME_MAX`); names on a backend may be longer.
const MAX_MOUNT_NAME_BYTES: usize = 255;

/// The longest name of a user or group, in bytes (`LOGIN_NAME_MAX`).
pub const MAX_PRINCIPAL_BYTES: usize = 256;

/// The longest name of an extended attribute, in bytes (`XATTR_NAME_MAX`).
pub const MAX_XATTR_NAME_BYTES: usize = 255;

/// An invalid change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadChange {
    /// The path of the change.
    pub path: RelPath,
    /// The problem.
    pub problem: &'static str,
}

/// Checks the changes of one batch, in their order:
/// - no path is reserved or too long; only [`CatalogChange::Set`] may name the root;
/// - a slot is filled once and emptied once, in this order;
/// - a `full` segment contains only descriptions, one for each name;
/// - every description passes [`check_description`].
///
/// # Errors
/// The first invalid change.
pub fn check_changes<'c>(
    changes: impl IntoIterator<Item = &'c CatalogChange>,
    full: bool,
) -> Result<(), BadChange> {
    let mut checker = Checker::new(full);
    for change in changes {
        checker.next(change)?;
    }
    checker.end()
}

/// Checks one change after another.
#[derive(Default)]
pub(super) struct Checker {
    full: bool,
    /// The slots in use, and whether each has been emptied.
    slots: HashMap<u32, (RelPath, bool)>,
    last: Option<RelPath>,
}

impl Checker {
    pub(super) fn new(full: bool) -> Checker {
        Checker {
            full,
            ..Checker::default()
        }
    }

    pub(super) fn next(&mut self, change: &CatalogChange) -> Result<(), BadChange> {
        let path = change.path();
        let bad = |problem| BadChange {
            path: path.clone(),
            problem,
        };
        let is_set = matches!(change, CatalogChange::Set { .. });
        if path.is_root() && !is_set {
            return Err(bad("the root can only be described"));
        }
        if layout::is_reserved(path) {
            return Err(bad("it belongs to ferryfs itself"));
        }
        if path.as_bytes().len() > MAX_PATH_BYTES {
            return Err(bad("the path is longer than any can be"));
        }
        if self.full {
            if !is_set {
                return Err(bad("the whole of a catalog only describes"));
            }
            if self.last.as_ref().is_some_and(|last| !precedes(last, path)) {
                return Err(bad("the whole of a catalog is not in order"));
            }
            self.last = Some(path.clone());
        }
        match change {
            CatalogChange::Detach { slot, .. } => match self.slots.entry(slot.0) {
                Entry::Vacant(free) => {
                    free.insert((path.clone(), false));
                    Ok(())
                }
                Entry::Occupied(_) => Err(bad("two changes fill one slot")),
            },
            CatalogChange::Attach { slot, .. } => match self.slots.get_mut(&slot.0) {
                Some((_, taken)) if !*taken => {
                    *taken = true;
                    Ok(())
                }
                _ => Err(bad("it is put back and was never set aside")),
            },
            CatalogChange::Remove { .. } => Ok(()),
            CatalogChange::Set { description, .. } => check_description(description).map_err(bad),
        }
    }

    pub(super) fn end(self) -> Result<(), BadChange> {
        let left = self.slots.into_values().filter(|(_, taken)| !taken);
        // The smallest, so that the result does not depend on the map's order.
        match left.map(|(path, _)| path).min() {
            Some(path) => Err(BadChange {
                path,
                problem: "it is set aside and never put back",
            }),
            None => Ok(()),
        }
    }
}

/// Returns whether `a` comes before `b` in a full segment: a directory before its contents,
/// siblings by the bytes of their names.
fn precedes(a: &RelPath, b: &RelPath) -> bool {
    a.in_tree_order(b).is_lt()
}

/// Checks a description.
///
/// # Errors
/// The problem.
pub fn check_description(it: &Description) -> Result<(), &'static str> {
    let is_device = matches!(it.kind, FileKind::CharDevice | FileKind::BlockDevice);
    if it.permissions > 0o7777 {
        return Err("it has permission bits that there are not");
    }
    if it.rdev != 0 && !is_device {
        return Err("it has a device number and is no device");
    }
    if it.link.is_some() && it.kind == FileKind::Directory {
        return Err("a directory has no further names");
    }
    match (&it.target, it.kind) {
        (Some(target), FileKind::Symlink) => check_bytes(target, MAX_TARGET_BYTES)
            .map_err(|()| "a symbolic link cannot point there")?,
        (None, FileKind::Symlink) => return Err("a symbolic link points nowhere"),
        (Some(_), _) => return Err("it points somewhere and is no symbolic link"),
        (None, _) => {}
    }
    for name in [&it.owner.name, &it.group.name].into_iter().flatten() {
        check_bytes(name, MAX_PRINCIPAL_BYTES).map_err(|()| "nobody can be called so")?;
    }
    for (name, value) in &it.xattrs {
        check_xattr(name, value)?;
    }
    if (it.name.as_ref()).is_some_and(|name| name.as_bytes().len() > MAX_MOUNT_NAME_BYTES) {
        return Err("its name in the mount is longer than any can be");
    }
    check_bytes_of_file(it)
}

/// Checks size and holes.
fn check_bytes_of_file(it: &Description) -> Result<(), &'static str> {
    if it.kind != FileKind::Regular && (it.size != 0 || !it.holes.is_empty()) {
        return Err("it has bytes and is no file");
    }
    if i64::try_from(it.size).is_err() {
        return Err("no file can be so large");
    }
    if it.holes.len() > MAX_HOLES {
        return Err("it has more holes than a description tells of");
    }
    let mut free_from = 0;
    for (nth, Extent { offset, length }) in it.holes.iter().enumerate() {
        let touches = nth > 0 && *offset <= free_from;
        let end = offset.checked_add(*length);
        match end.filter(|end| *end <= it.size) {
            Some(end) if *length > 0 && !touches => free_from = end,
            _ => return Err("its holes are not in order or beyond its end"),
        }
    }
    Ok(())
}

/// Checks name and value of an extended attribute.
///
/// # Errors
/// The problem.
pub(crate) fn check_xattr(name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    check_bytes(name, MAX_XATTR_NAME_BYTES)
        .map_err(|()| "no extended attribute can be called so")?;
    if value.len() > MAX_XATTR_BYTES {
        return Err("an extended attribute is longer than any can be");
    }
    Ok(())
}

/// Checks for one to `most` bytes without NUL.
pub(crate) fn check_bytes(bytes: &[u8], most: usize) -> Result<(), ()> {
    if bytes.is_empty() || bytes.len() > most || bytes.contains(&0) {
        return Err(());
    }
    Ok(())
}
