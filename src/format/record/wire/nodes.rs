//! Encoding of nodes and attributes in a record.

use crate::core::{FileKind, MAX_TARGET_BYTES};
use crate::format::catalog::wire::{put_count, put_kind, put_xattr, read_kind, read_xattr};
use crate::format::codec::{Reader, Result, put_long, put_path};
use crate::format::steps::{AttributeStep, Node};

const HAS_MODE: u8 = 1;
const HAS_OWNER: u8 = 2;
const HAS_GROUP: u8 = 4;
const HAS_MODIFIED: u8 = 8;
const HAS_XATTRS: u8 = 16;

pub(super) fn put_node(out: &mut Vec<u8>, node: &Node) {
    put_kind(out, node.kind());
    match node {
        Node::Symlink { target } => put_long(out, target),
        Node::CharDevice { rdev } | Node::BlockDevice { rdev } => {
            out.extend_from_slice(&rdev.to_le_bytes());
        }
        Node::Fifo | Node::Socket => {}
    }
}

pub(super) fn read_node(reader: &mut Reader<'_>) -> Result<Node> {
    const LONG: &str = "a symbolic link points farther than any can";
    Ok(match read_kind(reader)? {
        FileKind::Symlink => {
            let target = reader.long(MAX_TARGET_BYTES, LONG)?;
            Node::Symlink { target }
        }
        FileKind::Fifo => Node::Fifo,
        FileKind::Socket => Node::Socket,
        FileKind::CharDevice => Node::CharDevice {
            rdev: reader.u32()?,
        },
        FileKind::BlockDevice => Node::BlockDevice {
            rdev: reader.u32()?,
        },
        FileKind::Regular | FileKind::Directory => {
            return Err(reader.malformed("a file or directory is no node"));
        }
    })
}

pub(super) fn put_attributes(out: &mut Vec<u8>, step: &AttributeStep) {
    let has = |there: bool, flag: u8| if there { flag } else { 0 };
    out.push(
        has(step.mode.is_some(), HAS_MODE)
            | has(step.owner.is_some(), HAS_OWNER)
            | has(step.group.is_some(), HAS_GROUP)
            | has(step.modified.is_some(), HAS_MODIFIED)
            | has(step.xattrs.is_some(), HAS_XATTRS),
    );
    for number in [step.mode, step.owner, step.group].into_iter().flatten() {
        out.extend_from_slice(&number.to_le_bytes());
    }
    if let Some(modified) = step.modified {
        out.extend_from_slice(&modified.0.to_le_bytes());
    }
    if let Some(xattrs) = &step.xattrs {
        put_count(out, xattrs.len());
        for (name, value) in xattrs {
            put_xattr(out, name, value);
        }
    }
    put_path(out, &step.path);
}

pub(super) fn read_attributes(reader: &mut Reader<'_>) -> Result<AttributeStep> {
    let flags = reader.u8()?;
    if flags & !(HAS_MODE | HAS_OWNER | HAS_GROUP | HAS_MODIFIED | HAS_XATTRS) != 0 {
        return Err(reader.malformed("there is no such attribute"));
    }
    let has = |flag: u8| flags & flag != 0;
    Ok(AttributeStep {
        mode: has(HAS_MODE).then(|| reader.u32()).transpose()?,
        owner: has(HAS_OWNER).then(|| reader.u32()).transpose()?,
        group: has(HAS_GROUP).then(|| reader.u32()).transpose()?,
        modified: has(HAS_MODIFIED).then(|| reader.time()).transpose()?,
        xattrs: match has(HAS_XATTRS) {
            false => None,
            true => {
                let count = reader.u32()?;
                Some(reader.items(count.into(), 2 + 4, read_xattr)?)
            }
        },
        path: reader.path()?,
    })
}
