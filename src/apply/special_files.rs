//! Files that only some backends can hold: nodes, further names, attributes; applied for the first
//! time and again.
//!
//! Every step may be repeated at any time. The record holds a node as a whole, so it can always be
//! made again. A further name is first given under a name of ours and then moved over the present
//! file: so a file is never missing, and if nothing shows that the step was taken, it is taken once
//! more. Attributes are simply set again.

use crate::apply::Applied;
use crate::apply::place::{Placer, is_across};
use crate::apply::refused::is_local;
use crate::core::{BatchNo, FileKind, Metadata, RelPath, Xattrs};
use crate::drive::{Backend, BackendError, exists, hash_file, is_absent, set_time};
use crate::error::{FlushError, Result};
use crate::format::expectations::ExpectedFile;
use crate::format::layout;
use crate::format::steps::{AttributeStep, Node, SlotNo};

/// Makes a node at a free name.
pub(crate) fn make_node(
    backend: &dyn Backend,
    node: &Node,
    path: &RelPath,
) -> std::result::Result<(), BackendError> {
    match node {
        Node::Symlink { target } => backend.make_symlink(target, path),
        Node::Fifo | Node::Socket => backend.make_node(node.kind(), 0, path),
        Node::CharDevice { rdev } | Node::BlockDevice { rdev } => {
            backend.make_node(node.kind(), *rdev, path)
        }
    }
}

/// Returns a file as a node; `None` for a regular file or directory.
pub(crate) fn node_of(meta: &Metadata) -> Option<Node> {
    let rdev = meta.rdev;
    Some(match meta.kind {
        FileKind::Symlink => Node::Symlink {
            target: meta.target.clone()?.into(),
        },
        FileKind::Fifo => Node::Fifo,
        FileKind::Socket => Node::Socket,
        FileKind::CharDevice => Node::CharDevice { rdev },
        FileKind::BlockDevice => Node::BlockDevice { rdev },
        FileKind::Regular | FileKind::Directory => return None,
    })
}

/// Returns whether two names are of one file, by their metadata.
pub(crate) fn are_one(one: &Metadata, other: &Metadata) -> bool {
    one.file.is_some() && one.file == other.file && one.kind == other.kind
}

/// Returns whether the batch has made `to` a copy of the file at `from`. Only a batch that has
/// noted so makes copies.
pub(crate) fn is_copy(
    backend: &dyn Backend,
    batch: BatchNo,
    from: &RelPath,
    to: &RelPath,
) -> std::result::Result<bool, BackendError> {
    Ok(exists(backend, &layout::across_path(batch))? && are_alike(backend, from, to)?)
}

/// Returns whether two files have the same contents.
pub(crate) fn are_alike(
    backend: &dyn Backend,
    one: &RelPath,
    other: &RelPath,
) -> std::result::Result<bool, BackendError> {
    let (one_meta, other_meta) = match (backend.metadata(one), backend.metadata(other)) {
        (Err(error), _) | (_, Err(error)) if is_absent(&error) => return Ok(false),
        (one, other) => (one?, other?),
    };
    if (one_meta.kind, one_meta.size) != (other_meta.kind, other_meta.size) {
        return Ok(false);
    }
    if let Some(node) = node_of(&one_meta) {
        return Ok(node_of(&other_meta) == Some(node));
    }
    let hash = |path: &RelPath| hash_file(&*backend.open(path)?, path);
    Ok(one_meta.kind == FileKind::Regular && hash(one)? == hash(other)?)
}

/// Gives the file at `from` the further name `to`, in place of `expected`, or of nothing. A crash
/// leaves `to` as it was or as it must be, and perhaps one more name in the staging directory,
/// which the next attempt removes. `slot` is one that the batch does not use.
///
/// If the two names are on different file systems, or on different disks of a pool, `to` becomes a
/// copy. A crash may leave a part of it beside `to`, which the next attempt removes, or all of it
/// at `to`, which the next attempt recognizes.
///
/// # Errors
/// If the backend refuses one more name, or fails. The file at `to` is unchanged then.
pub(crate) fn link(
    placer: &Placer<'_>,
    slot: SlotNo,
    (from, to): (&RelPath, &RelPath),
    expected: Option<&ExpectedFile>,
    applied: &mut Applied,
) -> Result<()> {
    let backend = placer.backend;
    match backend.make_hard_link(from, to) {
        Ok(()) => return Ok(()),
        Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) if is_across(&error) => {
            if !exists(backend, to)? {
                return placer.link_across(slot, (from, to), expected, applied);
            }
        }
        Err(error) if is_absent(&error) && !exists(backend, from)? => {
            applied.vanished.push(to.clone());
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    // A rename of one name of a file over another does nothing and leaves both.
    if are_one(&backend.metadata(from)?, &backend.metadata(to)?)
        || is_copy(backend, placer.batch, from, to)?
    {
        return Ok(());
    }
    let between = layout::slot_path(placer.batch, slot);
    match backend.remove_file(&between) {
        Err(error) if !is_absent(&error) => return Err(error.into()),
        _ => {}
    }
    let placed = match backend.make_hard_link(from, &between) {
        Ok(()) => placer.place(slot, &between, to, expected, applied),
        Err(error) if is_across(&error) => {
            return placer.link_across(slot, (from, to), expected, applied);
        }
        Err(error) => return Err(error.into()),
    };
    if placed.is_err() {
        drop_spare(placer, slot, from, applied);
    }
    placed
}

/// Has the further name of `from` that [`link`] has made in `slot` removed with the batch, if it
/// still is one.
pub(crate) fn drop_spare(placer: &Placer<'_>, slot: SlotNo, from: &RelPath, applied: &mut Applied) {
    let between = layout::slot_path(placer.batch, slot);
    if let (Ok(one), Ok(other)) = (
        placer.backend.metadata(from),
        placer.backend.metadata(&between),
    ) && are_one(&one, &other)
    {
        applied.garbage.push(between);
    }
}

/// Deals with what an earlier attempt at [`link`] has left in `slot`: one more name of the file,
/// which the next attempt removes, or the file from `to` that was exchanged with it. The latter is
/// compared, because it may be somebody else's.
pub(crate) fn see_to_link(
    placer: &Placer<'_>,
    slot: SlotNo,
    (from, to): (&RelPath, &RelPath),
    expected: &ExpectedFile,
    applied: &mut Applied,
) -> Result<()> {
    let backend = placer.backend;
    let between = layout::slot_path(placer.batch, slot);
    if !exists(backend, &between)?
        || are_one(&backend.metadata(from)?, &backend.metadata(&between)?)
    {
        return Ok(());
    }
    placer.keep_or_drop(&between, to, expected, applied)?;
    match applied
        .garbage
        .pop_if(|last| placer.manners.keeps_versions && *last == between)
    {
        Some(old) => placer.keep_until_end(slot, old, applied),
        None => Ok(()),
    }
}

/// Sets the attributes. What the backend refuses is named and is no error, because the index has
/// it. A missing file is reported elsewhere.
pub(crate) fn set_attributes(
    backend: &dyn Backend,
    batch: BatchNo,
    steps: Vec<&AttributeStep>,
    applied: &mut Applied,
) -> Result<()> {
    for step in steps {
        match set(backend, step) {
            Ok(()) => {}
            Err(FlushError::Backend(error)) if is_absent(&error) => {}
            Err(FlushError::Backend(error))
                if error.is_refusal() || is_local(backend, batch, &error) =>
            {
                tracing::warn!(%error, "attributes");
                applied.not_set.push(step.path.clone());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// In this order: a change of the owner clears privileges, and every change but that of the time
/// may change the time.
fn set(backend: &dyn Backend, step: &AttributeStep) -> Result<()> {
    let path = &step.path;
    if step.owner.is_some() || step.group.is_some() {
        backend.set_owner(path, step.owner, step.group)?;
    }
    if let Some(mode) = step.mode {
        backend.set_permissions(path, mode)?;
    }
    if let Some(xattrs) = &step.xattrs {
        let xattrs: Xattrs = xattrs.iter().cloned().collect();
        backend.set_xattrs(path, &xattrs)?;
    }
    if let Some(modified) = step.modified {
        set_time(backend, path, modified)?;
    }
    Ok(())
}
