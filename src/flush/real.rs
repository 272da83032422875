//! What a backend can hold beyond plain files and directories: nodes, further names, attributes. Taken for the first time and again.
//!
//! Every step may be taken again after anything. A node stands whole in the record, so it can always be made anew. A further name is
//! first given under a name of ours and then moved over what stands there: so a file is never absent, and where nothing
//! shows that it has been done it is done once more. Attributes are simply set again.

use super::apply::{Applied, exists, is_absent, set_time};
use super::placing::Placer;
use super::refused::is_local;
use super::report::{FlushError, Result};
use crate::backend::{Backend, BackendError, Metadata, Xattrs};
use crate::base::{BatchNo, FileKind, RelPath};
use crate::rules::known::Believed;
use crate::rules::layout;
use crate::rules::steps::{AttributeStep, Node, SlotNo};

/// Makes a node where nothing stands.
pub(super) fn make_node(
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

/// What stands somewhere, as a node; `None` for a file or directory.
pub(super) fn node_of(meta: &Metadata) -> Option<Node> {
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

/// Whether two names are of one file, by what is told of them.
pub(super) fn are_one(one: &Metadata, other: &Metadata) -> bool {
    one.file.is_some() && one.file == other.file && one.kind == other.kind
}

/// Gives what stands at `from` the further name `to`, in place of `expected`, or of nothing. A crash leaves `to` as it was or as
/// it is to be, and perhaps one more name in the staging directory, which the next attempt removes. `slot` is one that the batch
/// has no use for.
pub(super) fn link(
    placer: &Placer<'_>,
    slot: SlotNo,
    (from, to): (&RelPath, &RelPath),
    expected: Option<&Believed>,
    applied: &mut Applied,
) -> Result<()> {
    let backend = placer.backend;
    match backend.make_hard_link(from, to) {
        Ok(()) => return Ok(()),
        Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) if is_absent(&error) && !exists(backend, from)? => {
            applied.vanished.push(to.clone());
            return Ok(());
        }
        Err(error) => return not_linked(error, to, applied),
    }
    // Moving one name of a file over another does nothing and leaves both.
    if are_one(&backend.metadata(from)?, &backend.metadata(to)?) {
        return Ok(());
    }
    let between = layout::slot_path(placer.batch, slot);
    match backend.remove_file(&between) {
        Err(error) if !is_absent(&error) => return Err(error.into()),
        _ => {}
    }
    match backend.make_hard_link(from, &between) {
        Err(error) => not_linked(error, to, applied),
        Ok(()) => match placer.place(slot, &between, to, expected, applied) {
            Err(FlushError::Backend(error)) => not_linked(error, to, applied),
            result => result,
        },
    }
}

/// What an attempt at [`link`] before this one has left in `slot`: one more name of the file, which the next attempt removes, or what
/// stood at `to` and was swapped with it. The latter is compared, as it may be somebody else's.
pub(super) fn see_to_link(
    placer: &Placer<'_>,
    slot: SlotNo,
    (from, to): (&RelPath, &RelPath),
    expected: &Believed,
    applied: &mut Applied,
) -> Result<()> {
    let backend = placer.backend;
    let between = layout::slot_path(placer.batch, slot);
    if !exists(backend, &between)?
        || are_one(&backend.metadata(from)?, &backend.metadata(&between)?)
    {
        return Ok(());
    }
    placer.keep_or_drop(&between, to, expected, applied)
}

/// A backend may refuse one more name for reasons of its own: too many of one file, another file system in between. The batch cannot
/// wait for that to change; what stands there is then no version of the file that the index knows.
fn not_linked(error: BackendError, to: &RelPath, applied: &mut Applied) -> Result<()> {
    if !error.is_refusal() {
        return Err(error.into());
    }
    tracing::warn!(%error, "a further name of a file");
    applied.not_linked.push(to.clone());
    Ok(())
}

/// Sets what is to be set. What the backend refuses to keep is named, and no error: the index has it. What is gone is told elsewhere.
pub(super) fn set_attributes(
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

/// In this order: another owner takes privileges away, and everything but the time may change the time.
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
