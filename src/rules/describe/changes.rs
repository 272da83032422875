//! From the steps of a batch to the changes of the catalog that go with it. A pure function.
//!
//! What moves on the backend takes along what is known of it, through the same slots and in the same order, so a directory of a
//! million files moves in one change. What the steps remove is forgotten. Then every name that the batch brings up to date is
//! described anew. What stays behind keeps the description of the version that it has.

use std::cmp::Reverse;

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
    // Old paths hold as long as nothing above them has moved: the deepest first.
    let mut clear: Vec<(Reverse<usize>, CatalogChange)> = Vec::new();
    for step in &steps.clear {
        let change = match step {
            ClearStep::Detach { from, slot, .. } => CatalogChange::Detach {
                from: from.clone(),
                slot: *slot,
            },
            ClearStep::RemoveFile { path } | ClearStep::RemoveDir { path } => {
                CatalogChange::Remove { path: path.clone() }
            }
        };
        clear.push((Reverse(step.path().depth()), change));
    }
    for path in gone {
        let change = CatalogChange::Remove { path: path.clone() };
        clear.push((Reverse(path.depth()), change));
    }
    clear.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.path().cmp(y.path())));
    let mut changes: Vec<CatalogChange> = clear.into_iter().map(|(_, change)| change).collect();
    for step in &steps.place {
        if let PlaceStep::Attach { slot, to, .. } = step {
            changes.push(CatalogChange::Attach {
                slot: *slot,
                to: to.clone(),
            });
        }
    }
    sets.sort_by(|(a, _), (b, _)| a.depth().cmp(&b.depth()).then_with(|| a.cmp(b)));
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
