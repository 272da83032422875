//! From the steps of a batch to the changes of the catalog that go with it. A pure function.
//!
//! What moves on the backend takes along what is known of it, through the same slots and in the same order, so a directory of a
//! million files moves in one change. What the steps remove is forgotten. Then every name that the batch brings up to date is
//! described anew. What stays behind keeps the description of the version that it has.

use crate::base::RelPath;
use crate::rules::catalog::{CatalogChange, Description};
use crate::rules::steps::{ClearStep, PlaceStep, Steps};

/// The changes. `gone` are old paths of what stands in the catalog only and ends; `sets` are new paths with what is to be known of
/// them.
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
    // Old paths hold as long as nothing above them has moved: what is in a directory before the directory.
    // In the order of a walk whoever takes the changes finds each name near the one before, however deep the tree is.
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
