//! What a backend can hold beyond plain files and directories: nodes, further names, attributes. Taken for the first time and again.

use super::apply::{Applied, exists, is_absent, set_time};
use super::report::Result;
use crate::backend::{Backend, BackendError};
use crate::base::{BatchNo, RelPath};
use crate::rules::layout;
use crate::rules::steps::{AttributeStep, FileContent, Node, PlaceStep, SlotNo, Steps};

/// Gives what stands at `from` the further name `to`; a file that stands there makes way. A crash between the two leaves no file
/// there, and the redo links again.
pub(super) fn link(backend: &dyn Backend, from: &RelPath, to: &RelPath) -> Result<()> {
    match backend.make_hard_link(from, to) {
        Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {
            backend.remove_file(to)?;
            Ok(backend.make_hard_link(from, to)?)
        }
        result => Ok(result?),
    }
}

/// Sets what is to be set. What the backend refuses to keep, or whose file is gone, is no error: the index has it.
pub(super) fn set_attributes(backend: &dyn Backend, steps: &[AttributeStep]) -> Result<()> {
    for step in steps {
        if let Some(mode) = step.mode {
            match backend.set_permissions(&step.path, mode) {
                Err(error) if is_absent(&error) || is_refused(&error) => {}
                result => result?,
            }
        }
        if let Some(modified) = step.modified {
            set_time(backend, &step.path, modified)?;
        }
    }
    Ok(())
}

fn is_refused(error: &BackendError) -> bool {
    matches!(
        error.source.raw_os_error(),
        Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)
    )
}

/// Takes the steps about nodes, names and attributes once more, after everything else has its name. A node that is in its slot still
/// is moved; one that is nowhere is named.
pub(super) fn redo(
    backend: &dyn Backend,
    batch: BatchNo,
    steps: &Steps<FileContent>,
    applied: &mut Applied,
) -> Result<()> {
    for step in &steps.place {
        match step {
            PlaceStep::InstallNode { slot, to, node } => {
                redo_node(backend, (batch, *slot), to, node, applied)?;
            }
            PlaceStep::Link { from, to } => match exists(backend, from)? {
                true => link(backend, from, to)?,
                false => applied.vanished.push(to.clone()),
            },
            _ => {}
        }
    }
    set_attributes(backend, &steps.attributes)
}

fn redo_node(
    backend: &dyn Backend,
    (batch, slot): (BatchNo, SlotNo),
    to: &RelPath,
    node: &Node,
    applied: &mut Applied,
) -> Result<()> {
    let from = layout::slot_path(batch, slot);
    if exists(backend, &from)? {
        return Ok(backend.rename(&from, to)?);
    }
    match backend.metadata(to) {
        Ok(meta) if meta.kind == node.kind() => Ok(()),
        Err(error) if !is_absent(&error) => Err(error.into()),
        _ => {
            applied.vanished.push(to.clone());
            Ok(())
        }
    }
}
