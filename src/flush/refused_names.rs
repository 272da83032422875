//! The names that a batch was refused, with a reason for each, as a user is told.

use std::collections::BTreeMap;

use crate::apply::Applied;
use crate::apply::explain::explain;
use crate::apply::journal::Journal;
use crate::apply::refused::{Back, PutBack, Refusal, StepNo};
use crate::core::ForeignText;
use crate::error::Result;
use crate::format::steps::{ClearStep, PlaceStep};
use crate::index::Index;

/// Returns the names that were refused, by path in the mount, with the reason.
pub(super) fn refused_names(
    index: &Index,
    journal: &Journal,
    applied: &Applied,
) -> Result<Vec<(String, String)>> {
    let mut named = BTreeMap::new();
    let mut state = index.lock();
    for Refusal { step, path, why } in &applied.refused.steps {
        let key = match step {
            StepNo::Clear(number) => journal.keys.clear.get(*number),
            StepNo::Place(number) => journal.keys.place.get(*number),
        };
        let spelled = match key {
            Some((key, _)) => state.key_path(key)?.map(|path| path.to_text()),
            None => None,
        };
        let at = put_back_of(journal, applied, *step).map(|put| &put.path);
        let reason = explain(*step, why, at);
        named
            .entry(spelled.unwrap_or_else(|| path.to_text()))
            .or_insert(reason);
    }
    for put in &applied.refused.back {
        if let (Back::LostFound, Some(step)) = (&put.back, journal.record.steps.clear.get(put.step))
        {
            let reason = format!(
                "could neither be moved nor put back on the drive; it is kept there as {}",
                put.path
            );
            named.insert(step.path().to_text(), reason);
        }
    }
    Ok(named.into_iter().collect())
}

/// Returns where the file was put back that the refused `step` was to attach.
fn put_back_of<'a>(journal: &Journal, applied: &'a Applied, step: StepNo) -> Option<&'a PutBack> {
    let StepNo::Place(number) = step else {
        return None;
    };
    let steps = &journal.record.steps;
    let Some(PlaceStep::Attach { slot, .. }) = steps.place.get(number) else {
        return None;
    };
    let is_it = |put: &&PutBack| match steps.clear.get(put.step) {
        Some(ClearStep::Detach { slot: other, .. }) => other == slot,
        _ => false,
    };
    let mut back = applied.refused.back.iter();
    back.find(|put| put.back != Back::LostFound && is_it(put))
}
