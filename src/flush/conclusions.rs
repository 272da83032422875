//! What the index concludes of a batch, as values: derived from the plan's outcomes when the batch
//! is committed, and corrected by what was refused when it is applied. `confirm` writes them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::apply::Applied;
use crate::apply::journal::Journal;
use crate::apply::refused::{Back, StepNo};
use crate::core::{Ino, Timestamp};
use crate::error::{FlushError, Result};
use crate::flush::diff::Gathered;
use crate::flush::stage::Staged;
use crate::format::steps::{FileContent, PlaceStep, PlainKind, SlotNo};
use crate::index::{Confirmed, PlacedEntry};
use crate::plan::delta::NOBODY;
use crate::plan::planner::{NameKey, Outcome, Placed, Plan};

/// The contents of a slot: a file, or a node with the size that stat reports for it.
enum Staging {
    File(FileContent),
    Node(u64),
}

/// Returns what is true of each name once the steps of `staged` have been taken.
pub(super) fn conclusions(plan: &Plan, gathered: &Gathered, staged: &Staged) -> Vec<Confirmed> {
    let place = staged.steps.place.iter();
    let contents: BTreeMap<SlotNo, Staging> = place
        .filter_map(|step| match step {
            PlaceStep::Install { slot, content, .. } | PlaceStep::Patch { slot, content, .. } => {
                Some((*slot, Staging::File(*content)))
            }
            PlaceStep::InstallNode { slot, node, .. } => Some((*slot, Staging::Node(node.size()))),
            _ => None,
        })
        .collect();
    let left: BTreeSet<_> = plan.left_behind.iter().map(|left| &left.key).collect();
    let mut confirmed: Vec<Confirmed> = plan
        .outcomes
        .iter()
        .map(|outcome| {
            let settled = !left.contains(&outcome.key);
            Confirmed {
                key: outcome.key.clone(),
                placed: placed(outcome, gathered, &contents),
                settled,
                inode_settled: settled,
            }
        })
        .collect();
    for key in &plan.leftovers {
        let before = gathered.before.get(key);
        confirmed.push(Confirmed {
            key: key.clone(),
            placed: before.map(|entry| PlacedEntry {
                ino: NOBODY,
                ..entry.clone()
            }),
            settled: false,
            inode_settled: false,
        });
    }
    for key in &gathered.settled {
        confirmed.push(Confirmed {
            key: key.clone(),
            placed: None,
            settled: true,
            inode_settled: false,
        });
    }
    confirmed
}

fn placed(
    outcome: &Outcome,
    gathered: &Gathered,
    contents: &BTreeMap<SlotNo, Staging>,
) -> Option<PlacedEntry> {
    match &outcome.placed {
        Placed::Nothing => None,
        Placed::Directory(ino) => Some(PlacedEntry {
            ino: *ino,
            kind: PlainKind::Directory,
            size: 0,
            mtime: Timestamp(0),
            hash: None,
        }),
        Placed::Kept {
            ino,
            from,
            modified,
        } => {
            let before = gathered.before.get(from)?;
            Some(PlacedEntry {
                ino: *ino,
                mtime: modified.unwrap_or(before.mtime),
                ..before.clone()
            })
        }
        Placed::Staged { ino, slot } => {
            let (size, mtime, hash) = match contents.get(slot)? {
                Staging::File(content) => (content.size, content.modified, Some(content.hash)),
                Staging::Node(size) => {
                    let inode = gathered.inodes.get(ino);
                    let mtime = inode.map_or(Timestamp(0), |inode| inode.mtime);
                    (*size, mtime, None)
                }
            };
            Some(PlacedEntry {
                ino: *ino,
                kind: PlainKind::File,
                size,
                mtime,
                hash,
            })
        }
    }
}

/// The conclusions of the index from a batch.
pub(super) struct Concluded {
    pub(super) names: Vec<Confirmed>,
    /// Inodes whose attributes on the backend are those of the cut.
    pub(super) attributes: Vec<Ino>,
}

impl Concluded {
    /// Returns everything that the journal says, for a batch without refusals.
    pub(super) fn all(journal: &Journal) -> Concluded {
        Concluded {
            names: journal.confirmed.clone(),
            attributes: journal.attributes.clone(),
        }
    }

    /// Returns what the journal says without the refused names, and these names.
    ///
    /// # Errors
    /// If the journal does not tell which names its steps are about.
    pub(super) fn of<'a>(
        journal: &'a Journal,
        applied: &Applied,
    ) -> Result<(Concluded, Exceptions<'a>)> {
        let mut concluded = Concluded::all(journal);
        if applied.catalog_refused {
            // The attributes were not written to the catalog, so the next batch looks at every name
            // again.
            concluded.attributes.clear();
            for name in &mut concluded.names {
                (name.settled, name.inode_settled) = (false, false);
            }
        }
        note_untouched(journal, applied, &mut concluded);
        if applied.refused.is_empty() {
            return Ok((concluded, Exceptions::default()));
        }
        let (keys, steps) = (&journal.keys, &journal.record.steps);
        if (keys.clear.len(), keys.place.len()) != (steps.clear.len(), steps.place.len()) {
            return Err(FlushError::Unfinished {
                batch: journal.record.batch,
                problem: "its journal does not tell which names its steps are about".into(),
            });
        }
        let exceptions = Exceptions::of(journal, applied);
        concluded.leave_out(&exceptions, lacks_dir(journal, applied));
        Ok((concluded, exceptions))
    }

    /// Removes the `exceptions`. With `lacks_dir` some directory is not where the batch wanted it,
    /// so the files in it do not have their attributes, and no attributes are settled.
    fn leave_out(&mut self, exceptions: &Exceptions<'_>, lacks_dir: bool) {
        if lacks_dir {
            self.attributes.clear();
        }
        self.attributes
            .retain(|ino| !exceptions.inodes.contains(ino));
        self.names
            .retain(|name| !exceptions.as_before.contains(&name.key));
        for name in &mut self.names {
            if exceptions.emptied.contains(&name.key) {
                name.placed = None;
                (name.settled, name.inode_settled) = (false, false);
            }
        }
    }
}

/// Returns whether a directory could not be made or moved to its place.
fn lacks_dir(journal: &Journal, applied: &Applied) -> bool {
    let place = &journal.record.steps.place;
    applied.refused.steps.iter().any(|refusal| {
        let StepNo::Place(number) = refusal.step else {
            return false;
        };
        matches!(
            place.get(number),
            Some(
                PlaceStep::MakeDir { .. }
                    | PlaceStep::Attach {
                        kind: PlainKind::Directory,
                        ..
                    }
            )
        )
    })
}

/// The names of a batch that differ from its journal, because steps of it were refused.
#[derive(Default)]
pub(super) struct Exceptions<'a> {
    /// Names that keep their old entry. The index is right about them, and they stay marked.
    pub(super) as_before: HashSet<&'a NameKey>,
    /// Names whose old entry was removed and whose new one was not placed.
    pub(super) emptied: HashSet<&'a NameKey>,
    /// Inodes that did not get one of their names.
    inodes: HashSet<Ino>,
}

impl Exceptions<'_> {
    fn of<'a>(journal: &'a Journal, applied: &Applied) -> Exceptions<'a> {
        let keys = &journal.keys;
        let mut cleared: HashMap<&NameKey, usize> = HashMap::new();
        for (number, (key, _)) in keys.clear.iter().enumerate() {
            cleared.insert(key, number);
        }
        let back: HashSet<usize> = (applied.refused.back.iter())
            .filter(|put| put.back == Back::There)
            .map(|put| put.step)
            .collect();
        let is_back = |number: usize| back.contains(&number);
        let mut exceptions = Exceptions::default();
        for refusal in &applied.refused.steps {
            match refusal.step {
                StepNo::Clear(number) => {
                    exceptions
                        .as_before
                        .extend(keys.clear.get(number).map(|(key, _)| key));
                }
                StepNo::Place(number) => {
                    let Some((key, ino)) = keys.place.get(number) else {
                        continue;
                    };
                    exceptions.inodes.insert(*ino);
                    let was_cleared = cleared.get(key).is_some_and(|number| {
                        !is_back(*number) && !applied.refused.has(StepNo::Clear(*number))
                    });
                    match was_cleared {
                        true => exceptions.emptied.insert(key),
                        false => exceptions.as_before.insert(key),
                    };
                }
            }
        }
        for (number, (key, _)) in keys.clear.iter().enumerate() {
            if is_back(number) {
                exceptions.as_before.insert(key);
            }
        }
        exceptions
    }
}

/// Restores the old time of files that were moved and did not get the new one: the next comparison
/// recognizes them by it.
fn note_untouched(journal: &Journal, applied: &Applied, concluded: &mut Concluded) {
    if applied.not_touched.is_empty() {
        return;
    }
    let mut times: HashMap<&NameKey, Timestamp> = HashMap::new();
    let steps = journal.record.steps.place.iter().zip(&journal.keys.place);
    for (step, (key, _)) in steps {
        if let PlaceStep::Attach { slot, to, .. } = step
            && applied.not_touched.contains(to)
            && let Some(moved) = journal.record.known.moved.get(slot)
        {
            times.insert(key, moved.modified);
        }
    }
    let mut inodes = HashSet::new();
    for name in &mut concluded.names {
        if let (Some(time), Some(placed)) = (times.get(&name.key), &mut name.placed) {
            placed.mtime = *time;
            inodes.insert(placed.ino);
        }
    }
    // A copy under another name may have the new time. That does not settle the inode.
    for name in &mut concluded.names {
        let placed = name.placed.as_ref();
        name.inode_settled &= placed.is_none_or(|placed| !inodes.contains(&placed.ino));
    }
}
