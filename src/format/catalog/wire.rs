//! Encoding of descriptions and changes, for section 3 of a record and for segments of the catalog.
//! `docs/on-drive-format.md` has the layout. Equal values have equal bytes: an optional part is
//! present only if it is not empty.

use crate::core::{FileKind, Xattrs};
use crate::format::catalog::{CatalogChange, Description, Extent, Principal};
use crate::format::codec::{ReadError, Reader, Result, put_long, put_path, put_short};
use crate::format::steps::{SlotNo, Xattr};

const DETACH: u8 = 1;
const ATTACH: u8 = 2;
const REMOVE: u8 = 3;
const SET: u8 = 4;

const HAS_RDEV: u8 = 1;
const HAS_OWNER_NAME: u8 = 2;
const HAS_GROUP_NAME: u8 = 4;
const HAS_TARGET: u8 = 8;
const HAS_LINK: u8 = 16;
const HAS_XATTRS: u8 = 32;
const HAS_NAME: u8 = 64;
const HAS_HOLES: u8 = 128;

/// The shortest change in a record: a tag and the length of an empty path.
pub(crate) const MIN_CHANGE_BYTES: usize = 1 + 4;

/// The longest value of an extended attribute, in bytes, as in Linux (`XATTR_SIZE_MAX`).
pub const MAX_XATTR_BYTES: usize = 65_536;

const KINDS: [FileKind; 7] = [
    FileKind::Regular,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::CharDevice,
    FileKind::BlockDevice,
];

pub(crate) fn put_kind(out: &mut Vec<u8>, kind: FileKind) {
    let at = KINDS.iter().position(|it| *it == kind).unwrap_or(0);
    out.push(at as u8 + 1);
}

pub(crate) fn read_kind(reader: &mut Reader<'_>) -> Result<FileKind> {
    let kind = usize::from(reader.u8()?).checked_sub(1);
    kind.and_then(|at| KINDS.get(at).copied())
        .ok_or_else(|| reader.malformed("there is no such kind of entry"))
}

/// Encodes a change with its full path, as in a record.
pub(crate) fn put_change(out: &mut Vec<u8>, change: &CatalogChange) {
    put_head(out, change);
    put_path(out, change.path());
    put_tail(out, change);
}

/// Encodes the tag, and the slot if there is one.
pub(super) fn put_head(out: &mut Vec<u8>, change: &CatalogChange) {
    match change {
        CatalogChange::Detach { slot, .. } => {
            out.push(DETACH);
            out.extend_from_slice(&slot.0.to_le_bytes());
        }
        CatalogChange::Attach { slot, .. } => {
            out.push(ATTACH);
            out.extend_from_slice(&slot.0.to_le_bytes());
        }
        CatalogChange::Remove { .. } => out.push(REMOVE),
        CatalogChange::Set { .. } => out.push(SET),
    }
}

/// Encodes what follows the path.
pub(super) fn put_tail(out: &mut Vec<u8>, change: &CatalogChange) {
    if let CatalogChange::Set { description, .. } = change {
        put_description(out, description);
    }
}

/// Decodes a change; `path` decodes its path.
pub(crate) fn read_change<'a>(
    reader: &mut Reader<'a>,
    path: impl FnOnce(&mut Reader<'a>) -> Result<crate::core::RelPath>,
) -> Result<CatalogChange> {
    Ok(match reader.u8()? {
        DETACH => {
            let slot = SlotNo(reader.u32()?);
            let from = path(reader)?;
            CatalogChange::Detach { from, slot }
        }
        ATTACH => {
            let slot = SlotNo(reader.u32()?);
            let to = path(reader)?;
            CatalogChange::Attach { slot, to }
        }
        REMOVE => CatalogChange::Remove {
            path: path(reader)?,
        },
        SET => {
            let path = path(reader)?;
            let description = Box::new(read_description(reader)?);
            CatalogChange::Set { path, description }
        }
        _ => return Err(reader.malformed("there is no such change of the catalog")),
    })
}

pub(super) fn put_description(out: &mut Vec<u8>, it: &Description) {
    let has = |there: bool, flag: u8| if there { flag } else { 0 };
    put_kind(out, it.kind);
    out.push(
        has(it.rdev != 0, HAS_RDEV)
            | has(it.owner.name.is_some(), HAS_OWNER_NAME)
            | has(it.group.name.is_some(), HAS_GROUP_NAME)
            | has(it.target.is_some(), HAS_TARGET)
            | has(it.link.is_some(), HAS_LINK)
            | has(!it.xattrs.is_empty(), HAS_XATTRS)
            | has(it.name.is_some(), HAS_NAME)
            | has(!it.holes.is_empty(), HAS_HOLES),
    );
    // Other values are invalid permission bits, which no reader accepts.
    let permissions = u16::try_from(it.permissions).unwrap_or(u16::MAX);
    out.extend_from_slice(&permissions.to_le_bytes());
    out.extend_from_slice(&it.owner.id.to_le_bytes());
    out.extend_from_slice(&it.group.id.to_le_bytes());
    out.extend_from_slice(&it.modified.0.to_le_bytes());
    out.extend_from_slice(&it.size.to_le_bytes());
    if it.rdev != 0 {
        out.extend_from_slice(&it.rdev.to_le_bytes());
    }
    for name in [&it.owner.name, &it.group.name, &it.target]
        .into_iter()
        .flatten()
    {
        put_short(out, name);
    }
    if let Some(link) = it.link {
        out.extend_from_slice(&link.to_le_bytes());
    }
    if !it.xattrs.is_empty() {
        put_count(out, it.xattrs.len());
        for (name, value) in &it.xattrs {
            put_xattr(out, name, value);
        }
    }
    if let Some(name) = &it.name {
        put_short(out, name.as_bytes());
    }
    if !it.holes.is_empty() {
        put_count(out, it.holes.len());
        for hole in &it.holes {
            out.extend_from_slice(&hole.offset.to_le_bytes());
            out.extend_from_slice(&hole.length.to_le_bytes());
        }
    }
}

pub(super) fn read_description(reader: &mut Reader<'_>) -> Result<Description> {
    let kind = read_kind(reader)?;
    let flags = reader.u8()?;
    let has = |flag: u8| flags & flag != 0;
    let permissions = u32::from(reader.u16()?);
    let (owner, group) = (reader.u32()?, reader.u32()?);
    let (modified, size) = (reader.time()?, reader.u64()?);
    let rdev = part(has(HAS_RDEV), || reader.u32())?;
    let owner_name = part(has(HAS_OWNER_NAME), || reader.short())?;
    let group_name = part(has(HAS_GROUP_NAME), || reader.short())?;
    let target = part(has(HAS_TARGET), || reader.short())?;
    let link = part(has(HAS_LINK), || reader.u64())?;
    let xattrs = part(has(HAS_XATTRS), || read_xattrs(reader))?;
    let name = part(has(HAS_NAME), || reader.name())?;
    let holes = part(has(HAS_HOLES), || {
        let count = reader.u32()?;
        reader.items(count.into(), 16, |reader| {
            let (offset, length) = (reader.u64()?, reader.u64()?);
            Ok(Extent { offset, length })
        })
    })?;
    if rdev == Some(0) || holes.as_ref().is_some_and(Vec::is_empty) {
        return Err(reader.malformed("a description has a part that says nothing"));
    }
    Ok(Description {
        kind,
        permissions,
        owner: Principal {
            id: owner,
            name: owner_name,
        },
        group: Principal {
            id: group,
            name: group_name,
        },
        modified,
        size,
        target,
        rdev: rdev.unwrap_or(0),
        link,
        xattrs: xattrs.unwrap_or_default(),
        name,
        holes: holes.unwrap_or_default(),
    })
}

fn part<T>(there: bool, read: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    there.then(read).transpose()
}

pub(crate) fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

pub(crate) fn put_xattr(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put_short(out, name);
    put_long(out, value);
}

/// Decodes name and value of an extended attribute.
pub(crate) fn read_xattr(reader: &mut Reader<'_>) -> Result<Xattr> {
    let name = reader.short()?;
    let value = reader.long(
        MAX_XATTR_BYTES,
        "an extended attribute is longer than any can be",
    )?;
    Ok((name, value))
}

fn read_xattrs(reader: &mut Reader<'_>) -> Result<Xattrs> {
    let count = reader.u32()?;
    let mut xattrs = Xattrs::new();
    for (name, value) in reader.items(count.into(), 2 + 4, read_xattr)? {
        let after = xattrs.last_key_value().is_none_or(|(last, _)| *last < name);
        xattrs.insert(name, value);
        if !after {
            return Err(out_of_order(reader));
        }
    }
    if xattrs.is_empty() {
        return Err(reader.malformed("a description has a part that says nothing"));
    }
    Ok(xattrs)
}

fn out_of_order(reader: &Reader<'_>) -> ReadError {
    reader.malformed("extended attributes are not in ascending order")
}
