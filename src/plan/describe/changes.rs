//! Converts the steps of a batch to the matching changes of the catalog. A pure function.
//!
//! The descriptions of entries that move on the backend move along, through the same slots and in
//! the same order, so a directory of a million files moves in one change. The descriptions of
//! removed entries are discarded. Then every name that the batch brings up to date is described. An
//! entry left behind keeps the description of its version on the backend.

use crate::core::RelPath;
use crate::format::catalog::{CatalogChange, Description};
use crate::format::steps::{ClearStep, PlaceStep, Steps};

/// Returns the changes. `gone` are old paths of entries that ended and were in the catalog only;
/// `sets` are new paths with their descriptions.
pub fn changes<C>(
    steps: &Steps<C>,
    gone: &[RelPath],
    mut sets: Vec<(RelPath, Description)>,
) -> Vec<CatalogChange> {
    let mut clear: Vec<CatalogChange> = Vec::new();
    for step in &steps.clear {
        clear.push(match step {
            ClearStep::Detach { from, slot, .. } => CatalogChange::Detach {
                from: from.clone(),
                slot: *slot,
            },
            ClearStep::RemoveFile { path } | ClearStep::RemoveDir { path } => {
                CatalogChange::Remove { path: path.clone() }
            }
        });
    }
    let gone = gone.iter().cloned();
    clear.extend(gone.map(|path| CatalogChange::Remove { path }));
    // An old path is valid until an ancestor moves, so contents come before their directory. In
    // tree order each name is near the one before, which makes the look-ups fast at any depth.
    clear.sort_by(|a, b| b.path().in_tree_order(a.path()));
    let mut changes = clear;
    for step in &steps.place {
        if let PlaceStep::Attach { slot, to, .. } = step {
            changes.push(CatalogChange::Attach {
                slot: *slot,
                to: to.clone(),
            });
        }
    }
    sets.sort_by(|(a, _), (b, _)| a.in_tree_order(b));
    sets.dedup_by(|(a, _), (b, _)| a == b);
    let described = sets
        .into_iter()
        .map(|(path, description)| CatalogChange::Set {
            path,
            description: Box::new(description),
        });
    changes.extend(described);
    changes
}
