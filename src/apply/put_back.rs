//! Puts files back whose move was refused: to their old names, or as near to them as the backend
//! allows. A crash in between leaves some of them in their slots; the replay puts these back, and
//! finds the others (`recovery/put_back.rs`).

use std::collections::HashMap;

use crate::apply::Applied;
use crate::apply::moves::Moves;
use crate::apply::place::Placer;
use crate::apply::refused::{Back, PutBack, StepNo, is_local};
use crate::core::{BatchNo, Name, RelPath};
use crate::drive::exists;
use crate::error::{FlushError, Result};
use crate::format::steps::{ClearStep, PlaceStep, SlotNo, Steps};

/// Puts the file in the slot of each refused move back to its old name, or as near to it as the
/// backend allows.
pub(crate) fn put_back<C>(
    placer: &Placer<'_>,
    steps: &Steps<C>,
    standing: impl Fn(SlotNo) -> Option<RelPath>,
    applied: &mut Applied,
) -> Result<()> {
    // Directories come before their contents: a file from a directory that could not be moved goes
    // back to where that directory is now.
    let mut moves = Moves::without(steps, &applied.refused);
    let origin: HashMap<SlotNo, (usize, &RelPath)> = (steps.clear.iter().enumerate())
        .filter_map(|(number, step)| match step {
            ClearStep::Detach { from, slot, .. } => Some((*slot, (number, from))),
            _ => None,
        })
        .collect();
    let refused: Vec<SlotNo> = (steps.place.iter().enumerate())
        .filter_map(|(number, step)| match step {
            PlaceStep::Attach { slot, .. } if applied.refused.has(StepNo::Place(number)) => {
                Some(*slot)
            }
            _ => None,
        })
        .collect();
    for slot in refused {
        let (Some((number, from)), Some(at)) = (origin.get(&slot), standing(slot)) else {
            continue;
        };
        let now = moves.place_back(from);
        let (path, back) = one_back(placer, slot, (&at, now.as_ref()), applied)?;
        tracing::warn!(path = %from, ?back, "put back, as it could not be moved");
        moves.note(from, path.clone());
        applied.refused.back.push(PutBack {
            step: *number,
            back,
            path,
        });
    }
    Ok(())
}

/// Returns the places for a file that could not be moved, the best first. `now` is the present path
/// of its old name, if its directory still exists.
pub(crate) fn places_back(
    batch: BatchNo,
    slot: SlotNo,
    now: Option<&RelPath>,
) -> Result<Vec<(RelPath, Back)>> {
    let unlike = format!("ferryfs-{:x}-{}", batch.0, slot.0);
    let unlike = Name::new(unlike.as_bytes())
        .map_err(|_| FlushError::WrongDrive("a batch number has no file name".into()))?;
    let mut places = Vec::new();
    if let Some(now) = now {
        places.push((now.clone(), Back::There));
        let dir = now.split_last().map(|(dir, _)| dir);
        places.extend(dir.map(|dir| (dir.join(&unlike), Back::Beside(unlike.clone()))));
    }
    places.push((RelPath::root().join(&unlike), Back::AtRoot(unlike)));
    Ok(places)
}

/// Puts the file at `at` back to `now`, its old name, or as near to it as the backend allows.
fn one_back(
    placer: &Placer<'_>,
    slot: SlotNo,
    (at, now): (&RelPath, Option<&RelPath>),
    applied: &mut Applied,
) -> Result<(RelPath, Back)> {
    let (backend, batch) = (placer.backend, placer.batch);
    let places = places_back(batch, slot, now)?;
    for (path, back) in &places {
        match backend.rename_new(at, path) {
            Ok(()) => return Ok((path.clone(), back.clone())),
            Err(error) if is_local(backend, batch, &error) => {
                tracing::debug!(%error, "cannot be put back there");
            }
            Err(error) => return Err(error.into()),
        }
    }
    // It cannot be moved from there. A file can perhaps be copied.
    for (path, back) in places {
        if !exists(backend, &path)? && placer.copy(at, &path).is_ok() {
            applied.garbage.push(at.clone());
            return Ok((path, back));
        }
    }
    let kept = placer.to_lost_found(at)?;
    tracing::error!(path = %at, kept = %kept, "cannot be put back; it is kept on the drive");
    Ok((kept, Back::LostFound))
}
