//! Converts the differences between the backend's tree and the cut to steps that make them equal. A
//! pure function.
//!
//! Why the steps are valid in this order, and again after a crash:
//! - *Clear* only removes names, contents before their directory, so each old path is still valid
//!   at its turn, whatever moves. Nothing new appears, so a step that finds nothing at its path is
//!   done.
//! - *Place* goes from parents to children, so the directory of each new path exists. All
//!   directories come before the first file: a file that replaces another frees space, and on a
//!   file system without a journal nothing may get that space before the next sync. Every slot is
//!   used once, so a step whose slot is empty is done.
//! - A regular file that another replaces under the same name of the same directory is not cleared:
//!   the rename of the new file replaces it. Its path may differ between the phases; the directory
//!   is the same.
//! - A name that is empty in the cut, or has an entry of the other kind, is cleared. So no placed
//!   entry meets another one, even if the backend equates names that differ in case.

mod check;
mod error;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::core::{Ino, RelPath, Timestamp};
use crate::format::steps::{ClearStep, Node, PlaceStep, PlainKind, SlotNo, Steps};

pub use crate::plan::delta::{
    Delta, DirPaths, LeftBehind, LeftReason, NOBODY, NameChange, NameKey, NewContent, NewEntry,
    OldEntry, Outcome, Placed, Plan, StageSource, StepKeys,
};
pub use crate::plan::planner::error::PlanError;

/// The result for a name's old entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Departure {
    /// It stays, or its own inode's new bytes replace it, or there is none.
    Stays,
    /// It moves to another name.
    Moves,
    /// It ends, unless a step keeps or replaces it under its name.
    Goes,
}

/// The source of a name's new entry.
#[derive(Clone, Copy, Debug)]
enum Arrival<'a> {
    /// There is none.
    Nothing,
    /// It is there already; a file may get another time.
    There { touch: Option<Timestamp> },
    /// The old entry of the row `from` moves here.
    Moved {
        from: usize,
        touch: Option<Timestamp>,
    },
    /// A staged file.
    Staged(&'a StageSource),
    /// A link or special file, staged.
    Node(&'a Node),
    /// A link to the file of the row `to`.
    Linked { to: usize },
    /// A new directory.
    Made,
    /// A version of the file is there; the file is live.
    Live,
    /// There is no source for it.
    Unfilled,
}

/// A listed name and the decisions about it. Rows are in the order of their keys.
struct Row<'a> {
    change: &'a NameChange,
    departure: Departure,
    arrival: Arrival<'a>,
    /// The slot of the old entry, if it moves.
    detached: Option<SlotNo>,
    /// The slot of the new entry, if it is staged.
    staged: Option<SlotNo>,
}

/// The listed names of one inode, as numbers of rows, ascending.
struct Links<'a> {
    kind: PlainKind,
    content: Option<&'a NewContent>,
    old: Vec<usize>,
    new: Vec<usize>,
}

/// The listed names of every inode.
type Inodes<'a> = BTreeMap<Ino, Links<'a>>;

/// The order of names in the second phase.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Directory,
    File,
    FurtherName,
}

/// Assigns slot numbers from 0.
#[derive(Default)]
struct Slots(u32);

impl Slots {
    fn next(&mut self, key: &NameKey) -> Result<SlotNo, PlanError> {
        let slot = SlotNo(self.0);
        self.0 = (self.0.checked_add(1)).ok_or_else(|| PlanError::TooMany { key: key.clone() })?;
        Ok(slot)
    }
}

/// Returns the steps that make the backend's tree equal to the cut, and the conclusions after them.
/// The same delta, with its names in any order, gives the same plan.
///
/// # Errors
/// [`PlanError`] if the delta violates an invariant that can be checked without the whole trees.
pub fn plan(delta: &Delta) -> Result<Plan, PlanError> {
    let mut rows = sorted_rows(delta)?;
    let inodes = check::links_by_inode(&rows)?;
    check::directories(delta, &rows, &inodes)?;
    let mut left_behind = Vec::new();
    for links in inodes.values() {
        decide(links, &mut rows);
        if delta.hard_links {
            unite(links, &mut rows);
        }
        note_left(links, &rows, &mut left_behind);
    }
    left_behind.sort_by(|a, b| a.key.cmp(&b.key));
    let mut slots = Slots::default();
    let mut keys = StepKeys::default();
    let clear = clear_steps(delta, &mut rows, &mut slots, &mut keys)?;
    let place = place_steps(delta, &mut rows, &mut slots, &mut keys)?;
    let leftovers = rows.iter().filter(|row| row.is_leftover());
    Ok(Plan {
        steps: Steps {
            clear,
            place,
            attributes: Vec::new(),
        },
        keys,
        outcomes: rows.iter().filter_map(|row| row.outcome(&rows)).collect(),
        left_behind,
        leftovers: leftovers.map(|row| row.change.key.clone()).collect(),
    })
}

fn sorted_rows(delta: &Delta) -> Result<Vec<Row<'_>>, PlanError> {
    let mut names: Vec<&NameChange> = delta.names.iter().collect();
    names.sort_by(|a, b| a.key.cmp(&b.key));
    if let Some(pair) = names.windows(2).find(|pair| pair[0].key == pair[1].key) {
        let key = pair[0].key.clone();
        return Err(PlanError::NameTwice { key });
    }
    let rows = names.into_iter().map(|change| Row {
        change,
        departure: Departure::Stays,
        arrival: Arrival::Nothing,
        detached: None,
        staged: None,
    });
    Ok(rows.collect())
}

/// Decides for all names of one inode, as if each had its own bytes. Old names that the inode loses
/// are paired with names that it gains, in order of their keys, as moves; changed content has no
/// moves.
fn decide<'a>(links: &Links<'a>, rows: &mut [Row<'a>]) {
    let only_in = |these: &[usize], others: &[usize]| -> Vec<usize> {
        let lacks = |row: &usize| others.binary_search(row).is_err();
        these.iter().copied().filter(lacks).collect()
    };
    let leaving = only_in(&links.old, &links.new);
    let coming = only_in(&links.new, &links.old);
    let changed = matches!(links.content, Some(NewContent::Changed(_)));
    let touch = match links.content {
        Some(NewContent::Touched { modified, .. }) => Some(*modified),
        _ => None,
    };
    let moves = if changed {
        0
    } else {
        leaving.len().min(coming.len())
    };

    for (&from, &to) in leaving.iter().zip(&coming).take(moves) {
        rows[from].departure = Departure::Moves;
        rows[to].arrival = Arrival::Moved { from, touch };
    }
    for &gone in &leaving[moves..] {
        rows[gone].departure = Departure::Goes;
    }
    for &here in &links.new {
        let row = &mut rows[here];
        let Some(entry) = &row.change.new else {
            continue;
        };
        let is_moved = matches!(row.arrival, Arrival::Moved { .. });
        if !is_moved {
            let is_there = links.old.binary_search(&here).is_ok();
            row.arrival = arrival(&entry.content, is_there);
        }
    }
}

/// Decides where one file can have many names: all names that would get a copy become links to the
/// first name that has the file, or else gets it. Changed bytes replace the file under all its
/// names, so that it stays one file.
fn unite(links: &Links<'_>, rows: &mut [Row<'_>]) {
    if links.content == Some(&NewContent::Live) {
        return;
    }
    let stands =
        |row: &Row<'_>| matches!(row.arrival, Arrival::There { .. } | Arrival::Moved { .. });
    let staged = |row: &Row<'_>| matches!(row.arrival, Arrival::Staged(_) | Arrival::Node(_));
    let mut all = links.new.iter().copied();
    let Some(first) = (all.clone().find(|&row| stands(&rows[row])))
        .or_else(|| all.find(|&row| staged(&rows[row])))
    else {
        return;
    };
    for &other in &links.new {
        let row = &mut rows[other];
        let lacks = matches!(
            row.arrival,
            Arrival::Staged(_) | Arrival::Node(_) | Arrival::Unfilled
        );
        if other != first && lacks {
            row.arrival = Arrival::Linked { to: first };
        }
    }
}

/// Records the names of one inode that are left behind.
fn note_left(links: &Links<'_>, rows: &[Row<'_>], left: &mut Vec<LeftBehind>) {
    for &here in &links.new {
        let row = &rows[here];
        let Some(entry) = &row.change.new else {
            continue;
        };
        let reason = match (&entry.content, row.arrival) {
            (NewContent::Live, _) => LeftReason::OpenForWriting,
            (_, Arrival::Unfilled) => LeftReason::NoSource,
            _ => continue,
        };
        left.push(LeftBehind {
            key: row.change.key.clone(),
            ino: entry.ino,
            reason,
        });
    }
}

/// Returns the source of a name's entry without a move; `is_there` if the backend has the inode
/// under that name.
fn arrival(content: &NewContent, is_there: bool) -> Arrival<'_> {
    match content {
        NewContent::Changed(source) => Arrival::Staged(source),
        NewContent::Live if is_there => Arrival::Live,
        NewContent::Live => Arrival::Unfilled,
        NewContent::Touched { modified, .. } if is_there => Arrival::There {
            touch: Some(*modified),
        },
        NewContent::Directory | NewContent::Unchanged { .. } | NewContent::Node(_) if is_there => {
            Arrival::There { touch: None }
        }
        NewContent::Directory => Arrival::Made,
        NewContent::Node(node) => Arrival::Node(node),
        NewContent::Unchanged { copy } | NewContent::Touched { copy, .. } => {
            copy.as_ref().map_or(Arrival::Unfilled, Arrival::Staged)
        }
    }
}

/// The first phase: deepest first, in old paths.
fn clear_steps(
    delta: &Delta,
    rows: &mut [Row<'_>],
    slots: &mut Slots,
    keys: &mut StepKeys,
) -> Result<Vec<ClearStep>, PlanError> {
    let mut order = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        if row.is_cleared() {
            let path = old_path(delta, &row.change.key)?;
            order.push((Reverse(path.depth()), path, number));
        }
    }
    order.sort_unstable();
    let mut steps = Vec::with_capacity(order.len());
    for (_, path, number) in order {
        let row = &mut rows[number];
        let ino = row.change.old.map_or(NOBODY, |old| old.ino);
        keys.clear.push((row.change.key.clone(), ino));
        steps.push(match (row.departure, row.old_kind()) {
            (Departure::Moves, Some(kind)) => {
                let slot = slots.next(&row.change.key)?;
                row.detached = Some(slot);
                ClearStep::Detach {
                    from: path,
                    slot,
                    kind,
                }
            }
            (_, Some(PlainKind::Directory)) => ClearStep::RemoveDir { path },
            (_, _) => ClearStep::RemoveFile { path },
        });
    }
    Ok(steps)
}

/// The second phase: directories, parents first, then files, then links; in new paths.
fn place_steps(
    delta: &Delta,
    rows: &mut [Row<'_>],
    slots: &mut Slots,
    keys: &mut StepKeys,
) -> Result<Vec<PlaceStep<StageSource>>, PlanError> {
    let mut order = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        if row.change.new.is_some() {
            let path = new_path(delta, &row.change.key)?;
            let turn = match (row.arrival, row.new_kind()) {
                (Arrival::Linked { .. }, _) => Turn::FurtherName,
                (_, Some(PlainKind::Directory)) => Turn::Directory,
                _ => Turn::File,
            };
            order.push((turn, path.depth(), path, number));
        }
    }
    order.sort_unstable();
    let mut steps = Vec::new();
    for (_, _, path, number) in order {
        let change = rows[number].change;
        let ino = change.new.as_ref().map_or(NOBODY, |new| new.ino);
        let key = (change.key.clone(), ino);
        let (slot, touch) = match rows[number].arrival {
            Arrival::Moved { from, touch } => (rows[from].detached, touch),
            Arrival::There { touch } => (None, touch),
            Arrival::Made => {
                keys.place.push(key);
                steps.push(PlaceStep::MakeDir { path });
                continue;
            }
            Arrival::Staged(source) => {
                let slot = slots.next(&rows[number].change.key)?;
                rows[number].staged = Some(slot);
                keys.place.push(key);
                steps.push(PlaceStep::Install {
                    slot,
                    to: path,
                    content: source.clone(),
                });
                continue;
            }
            Arrival::Node(node) => {
                let slot = slots.next(&rows[number].change.key)?;
                rows[number].staged = Some(slot);
                keys.place.push(key);
                steps.push(PlaceStep::InstallNode {
                    slot,
                    to: path,
                    node: node.clone(),
                });
                continue;
            }
            Arrival::Linked { to: first } => {
                let from = new_path(delta, &rows[first].change.key)?;
                keys.place.push(key);
                steps.push(PlaceStep::Link { from, to: path });
                continue;
            }
            Arrival::Nothing | Arrival::Live | Arrival::Unfilled => continue,
        };
        if let (Some(slot), Some(kind)) = (slot, rows[number].new_kind()) {
            let to = path.clone();
            keys.place.push(key.clone());
            steps.push(PlaceStep::Attach { slot, to, kind });
        }
        if let Some(modified) = touch {
            keys.place.push(key);
            steps.push(PlaceStep::Touch { path, modified });
        }
    }
    Ok(steps)
}

impl Row<'_> {
    fn old_kind(&self) -> Option<PlainKind> {
        self.change.old.map(|entry| entry.kind)
    }

    fn new_kind(&self) -> Option<PlainKind> {
        self.change.new.as_ref().map(|new| new.content.kind())
    }

    /// Returns whether the first phase removes the old entry.
    fn is_cleared(&self) -> bool {
        match self.departure {
            Departure::Stays => false,
            Departure::Moves => true,
            Departure::Goes => !self.is_replaced() && !self.is_leftover(),
        }
    }

    /// Returns whether placing the new entry replaces the old one, so that the name is never empty.
    fn is_replaced(&self) -> bool {
        let placed = matches!(
            self.arrival,
            Arrival::Moved { .. } | Arrival::Staged(_) | Arrival::Node(_) | Arrival::Linked { .. }
        );
        placed
            && self.old_kind() == Some(PlainKind::File)
            && self.new_kind() == Some(PlainKind::File)
    }

    /// Returns whether the old file stays although the name belongs to another inode, which has no
    /// content to put there: an older version under a name is better than none.
    fn is_leftover(&self) -> bool {
        self.departure == Departure::Goes
            && self.old_kind() == Some(PlainKind::File)
            && matches!(self.arrival, Arrival::Unfilled)
    }

    fn outcome(&self, rows: &[Row<'_>]) -> Option<Outcome> {
        let key = &self.change.key;
        let kept = |ino, from: &NameKey, modified| Placed::Kept {
            ino,
            from: from.clone(),
            modified,
        };
        let placed = match (&self.change.new, self.arrival) {
            (None, _) | (_, Arrival::Nothing) => Placed::Nothing,
            (_, Arrival::Live) => return None,
            (_, Arrival::Unfilled) if self.is_cleared() => Placed::Nothing,
            (_, Arrival::Unfilled) => return None,
            (Some(new), Arrival::Staged(_) | Arrival::Node(_)) => Placed::Staged {
                ino: new.ino,
                slot: self.staged?,
            },
            (Some(_), Arrival::Linked { to }) => {
                let first = &rows[to];
                let placed = match first.arrival {
                    Arrival::Linked { .. } => return None,
                    _ => first.outcome(rows)?.placed,
                };
                let key = key.clone();
                return Some(Outcome { key, placed });
            }
            (Some(new), _) if new.content == NewContent::Directory => Placed::Directory(new.ino),
            (Some(new), Arrival::Moved { from, touch }) => {
                kept(new.ino, &rows[from].change.key, touch)
            }
            (Some(new), Arrival::There { touch }) => kept(new.ino, key, touch),
            (Some(new), Arrival::Made) => Placed::Directory(new.ino),
        };
        let key = key.clone();
        Some(Outcome { key, placed })
    }
}

fn paths<'a>(delta: &'a Delta, key: &NameKey) -> Result<&'a DirPaths, PlanError> {
    (delta.dirs.get(&key.parent)).ok_or_else(|| PlanError::DirectoryMissing { key: key.clone() })
}

fn old_path(delta: &Delta, key: &NameKey) -> Result<RelPath, PlanError> {
    let dir = paths(delta, key)?.old.as_ref();
    let dir = dir.ok_or_else(|| PlanError::NoOldPath { key: key.clone() })?;
    Ok(dir.join(&key.name))
}

fn new_path(delta: &Delta, key: &NameKey) -> Result<RelPath, PlanError> {
    let dir = paths(delta, key)?.new.as_ref();
    let dir = dir.ok_or_else(|| PlanError::NoNewPath { key: key.clone() })?;
    Ok(dir.join(&key.name))
}

#[cfg(test)]
mod tests;
