//! Checks the steps of a record: before a commit, and after a read from a drive.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use crate::core::{MAX_TARGET_BYTES, RelPath};
use crate::format::catalog::{CatalogBatch, check_bytes, check_changes};
use crate::format::record::{BatchRecord, MAX_PATH_BYTES, RecordError};
use crate::format::steps::{
    AttributeStep, ClearStep, FileContent, Node, PlaceStep, PlainKind, SlotNo,
};
use crate::format::{catalog, layout};

/// The states of a slot, in their order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotUse {
    SetAside(PlainKind),
    PutBack,
    Staged,
}

/// Checks that the steps stay in the user's tree and are consistent:
/// - no path is the root, reserved ([`layout::is_reserved`]) or longer than [`MAX_PATH_BYTES`];
/// - no path is cleared twice or placed twice: the second step would undo the first;
/// - every slot has one use; what is detached is attached once, as the same kind, because the
///   removal of the staging directory would destroy it otherwise;
/// - a patched file is expected to be there, stays where it is, and does not become smaller;
/// - links come last; each path gets attributes once, the contents of a directory before the
///   directory;
/// - the catalog's changes pass [`check_changes`], and their segment has a predecessor if it needs
///   one.
///
/// # Errors
/// The first invalid step.
pub fn check(record: &BatchRecord) -> Result<(), RecordError> {
    let mut slots = HashMap::new();
    check_clear(&record.steps.clear, &mut slots)?;
    check_place(&record.steps.place, &mut slots)?;
    let lost =
        |(slot, use_): (&SlotNo, &SlotUse)| matches!(use_, SlotUse::SetAside(_)).then_some(*slot);
    // The smallest, so that the result does not depend on the map's order.
    if let Some(slot) = slots.iter().filter_map(lost).min() {
        return Err(bad_slot(slot, "it is set aside and never put back"));
    }
    check_patches(record)?;
    check_attributes(&record.steps.attributes)?;
    record.catalog.as_ref().map_or(Ok(()), check_catalog)
}

/// Checks that it is known of each patched file what it was, and that no clear step takes the file
/// away: a patch is worth nothing without the bytes that it leaves as they are.
fn check_patches(record: &BatchRecord) -> Result<(), RecordError> {
    let cleared: HashSet<&RelPath> = record.steps.clear.iter().map(ClearStep::path).collect();
    for step in &record.steps.place {
        let PlaceStep::Patch {
            slot, to, content, ..
        } = step
        else {
            continue;
        };
        let Some(before) = record.known.replaced.get(slot) else {
            return Err(bad_step(to, "it is patched, and nobody knows what it was"));
        };
        if before.size > content.size {
            return Err(bad_step(to, "a patch makes it smaller"));
        }
        if cleared.contains(to) {
            return Err(bad_step(to, "it is cleared, and patched all the same"));
        }
    }
    Ok(())
}

fn check_catalog(catalog: &CatalogBatch) -> Result<(), RecordError> {
    let bad = |problem| Err(bad_step(&RelPath::root(), problem));
    if catalog.segment == 0 || catalog.segment > layout::MAX_SEGMENT {
        return bad("no segment of the catalog has that number");
    }
    if catalog.after.is_none() && !catalog.full {
        return bad("its segment of the catalog follows on none");
    }
    check_changes(&catalog.changes, catalog.full).map_err(|bad| bad_step(&bad.path, bad.problem))
}

fn check_attributes(steps: &[AttributeStep]) -> Result<(), RecordError> {
    for step in steps {
        let path = &step.path;
        if !path.is_root() {
            check_path(path)?;
        }
        if step.mode.is_some_and(|mode| mode > 0o7777) {
            return Err(bad_step(path, "it has permission bits that there are not"));
        }
        let mut last: Option<&[u8]> = None;
        for (name, value) in step.xattrs.iter().flatten() {
            catalog::check_xattr(name, value).map_err(|problem| bad_step(path, problem))?;
            if last.is_some_and(|last| last >= &**name) {
                return Err(bad_step(
                    path,
                    "extended attributes are not in ascending order",
                ));
            }
            last = Some(name);
        }
    }
    match out_of_turn(steps) {
        Some(step) => {
            let problem = "it gets attributes twice, or after the directory that it is in";
            Err(bad_step(&step.path, problem))
        }
        None => Ok(()),
    }
}

/// Returns a step that follows one for the same path or an ancestor. In one walk in tree order, the
/// nearest ancestor is the only one to compare with: it was compared with the one above it.
fn out_of_turn(steps: &[AttributeStep]) -> Option<&AttributeStep> {
    let mut order: Vec<usize> = (0..steps.len()).collect();
    order.sort_by(|a, b| steps[*a].path.in_tree_order(&steps[*b].path));
    let mut above: Vec<usize> = Vec::new();
    let mut wrong = None;
    for number in order {
        let path = &steps[number].path;
        while (above.last()).is_some_and(|dir| !path.is_in_or_at(&steps[*dir].path)) {
            above.pop();
        }
        if let Some(dir) = above.last() {
            let is_same = steps[*dir].path == *path;
            if is_same || *dir < number {
                let later = number.max(*dir);
                wrong = Some(wrong.map_or(later, |first: usize| first.min(later)));
            }
        }
        above.push(number);
    }
    wrong.map(|number| &steps[number])
}

fn check_clear(
    steps: &[ClearStep],
    slots: &mut HashMap<SlotNo, SlotUse>,
) -> Result<(), RecordError> {
    let mut cleared = HashSet::new();
    for step in steps {
        let path = match step {
            ClearStep::Detach { from, slot, kind } => {
                claim(slots, *slot, SlotUse::SetAside(*kind))?;
                from
            }
            ClearStep::RemoveFile { path } | ClearStep::RemoveDir { path } => path,
        };
        check_path(path)?;
        if !cleared.insert(path) {
            return Err(bad_step(path, "it is cleared twice"));
        }
    }
    Ok(())
}

fn check_place(
    steps: &[PlaceStep<FileContent>],
    slots: &mut HashMap<SlotNo, SlotUse>,
) -> Result<(), RecordError> {
    let mut placed = HashSet::new();
    let mut linking = false;
    for step in steps {
        let is_last = matches!(step, PlaceStep::Link { .. } | PlaceStep::Touch { .. });
        if linking && !is_last {
            return Err(bad_step(step.path(), "it comes after a further name"));
        }
        let path = match step {
            PlaceStep::MakeDir { path } => path,
            PlaceStep::InstallNode { slot, to, node } => {
                claim(slots, *slot, SlotUse::Staged)?;
                check_node(to, node)?;
                to
            }
            PlaceStep::Link { from, to } => {
                linking = true;
                check_path(from)?;
                to
            }
            PlaceStep::Attach { slot, to, kind } => {
                put_back(slots, *slot, *kind)?;
                to
            }
            PlaceStep::Install { slot, to, content } => {
                claim(slots, *slot, SlotUse::Staged)?;
                if i64::try_from(content.size).is_err() {
                    return Err(bad_step(to, "no file can be so large"));
                }
                to
            }
            PlaceStep::Patch {
                slot,
                to,
                content,
                patch,
            } => {
                claim(slots, *slot, SlotUse::Staged)?;
                if i64::try_from(content.size).is_err() || i64::try_from(patch.size).is_err() {
                    return Err(bad_step(to, "no file can be so large"));
                }
                to
            }
            PlaceStep::Touch { path, .. } => {
                check_path(path)?;
                continue;
            }
        };
        check_path(path)?;
        if !placed.insert(path) {
            return Err(bad_step(path, "two steps put something there"));
        }
    }
    Ok(())
}

fn check_node(to: &RelPath, node: &Node) -> Result<(), RecordError> {
    if let Node::Symlink { target } = node
        && check_bytes(target, MAX_TARGET_BYTES).is_err()
    {
        return Err(bad_step(to, "a symbolic link cannot point there"));
    }
    Ok(())
}

fn claim(
    slots: &mut HashMap<SlotNo, SlotUse>,
    slot: SlotNo,
    use_: SlotUse,
) -> Result<(), RecordError> {
    match slots.entry(slot) {
        Entry::Vacant(free) => {
            free.insert(use_);
            Ok(())
        }
        Entry::Occupied(_) => Err(bad_slot(slot, "two steps fill it")),
    }
}

fn put_back(
    slots: &mut HashMap<SlotNo, SlotUse>,
    slot: SlotNo,
    kind: PlainKind,
) -> Result<(), RecordError> {
    match slots.get_mut(&slot) {
        Some(found @ SlotUse::SetAside(_)) if *found == SlotUse::SetAside(kind) => {
            *found = SlotUse::PutBack;
            Ok(())
        }
        Some(SlotUse::SetAside(_)) => Err(bad_slot(slot, "it changes between file and directory")),
        Some(SlotUse::PutBack) => Err(bad_slot(slot, "it is put back twice")),
        Some(SlotUse::Staged) | None => {
            Err(bad_slot(slot, "it is put back and was never set aside"))
        }
    }
}

fn check_path(path: &RelPath) -> Result<(), RecordError> {
    if path.is_root() {
        return Err(bad_step(path, "no step acts on the root"));
    }
    if layout::is_reserved(path) {
        return Err(RecordError::Reserved { path: path.clone() });
    }
    if path.as_bytes().len() > MAX_PATH_BYTES {
        return Err(bad_step(path, "the path is longer than any can be"));
    }
    Ok(())
}

fn bad_step(path: &RelPath, problem: &'static str) -> RecordError {
    RecordError::BadStep {
        path: path.clone(),
        problem,
    }
}

fn bad_slot(slot: SlotNo, problem: &'static str) -> RecordError {
    RecordError::BadSlot { slot, problem }
}
