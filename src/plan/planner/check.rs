//! Rejects an inconsistent delta before any step is made of it: a wrong path on a drive full of
//! files is worse than a batch that fails.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::core::{Ino, RelPath};
use crate::format::steps::PlainKind;
use crate::plan::delta::{Delta, NOBODY, NewContent};
use crate::plan::planner::{Inodes, Links, PlanError, Row, new_path, old_path};

/// Collects the listed names of each inode, and checks that they agree on its kind and content.
///
/// # Errors
/// If they do not, or a directory has two names on one side.
pub(super) fn links_by_inode<'a>(rows: &[Row<'a>]) -> Result<Inodes<'a>, PlanError> {
    let mut inodes = BTreeMap::new();
    for (number, row) in rows.iter().enumerate() {
        let key = &row.change.key;
        let nobody = || PlanError::NoInode { key: key.clone() };
        if let Some(old) = row.change.old {
            if old.ino == NOBODY && old.kind == PlainKind::Directory {
                return Err(nobody());
            }
            links(&mut inodes, old.ino, old.kind)?.old.push(number);
        }
        if let Some(new) = &row.change.new {
            if new.ino == NOBODY {
                return Err(nobody());
            }
            let links = links(&mut inodes, new.ino, new.content.kind())?;
            let first = *links.content.get_or_insert(&new.content);
            if !agree(first, &new.content) {
                return Err(PlanError::ContentsDiffer { ino: new.ino });
            }
            links.new.push(number);
        }
    }
    let twice = |links: &Links<'_>| links.old.len() > 1 || links.new.len() > 1;
    let mut found = inodes.iter();
    if let Some((&ino, _)) =
        found.find(|(_, links)| links.kind == PlainKind::Directory && twice(links))
    {
        return Err(PlanError::DirectoryTwice { ino });
    }
    Ok(inodes)
}

fn links<'m, 'a>(
    inodes: &'m mut Inodes<'a>,
    ino: Ino,
    kind: PlainKind,
) -> Result<&'m mut Links<'a>, PlanError> {
    let links = inodes.entry(ino).or_insert(Links {
        kind,
        content: None,
        old: Vec::new(),
        new: Vec::new(),
    });
    if links.kind != kind {
        return Err(PlanError::KindsDiffer { ino });
    }
    Ok(links)
}

/// Returns whether two names may have these as the content of one inode. Each may have its own
/// source of copies.
fn agree(one: &NewContent, other: &NewContent) -> bool {
    match (one, other) {
        (NewContent::Unchanged { .. }, NewContent::Unchanged { .. }) => true,
        (
            NewContent::Touched { modified: one, .. },
            NewContent::Touched {
                modified: other, ..
            },
        ) => one == other,
        _ => one == other,
    }
}

/// Checks that every listed entry has a path, and that the paths of directories follow from the
/// listed names: a directory that is not listed keeps its name in its parent, and moves only with
/// the nearest listed ancestor.
///
/// # Errors
/// If a path is missing, or two contradict each other.
pub(super) fn directories(
    delta: &Delta,
    rows: &[Row<'_>],
    inodes: &Inodes<'_>,
) -> Result<(), PlanError> {
    unique_paths(delta)?;
    for row in rows {
        let key = &row.change.key;
        crate::plan::planner::paths(delta, key)?;
        if row.change.old.is_some() {
            old_path(delta, key)?;
        }
        if row.change.new.is_some() {
            new_path(delta, key)?;
        }
    }
    let mut moved: Moved = HashMap::new();
    for (&ino, links) in inodes {
        if links.kind != PlainKind::Directory || links.old == links.new {
            continue;
        }
        let old = links.old.first().map(|&row| &rows[row].change.key);
        let new = links.new.first().map(|&row| &rows[row].change.key);
        let old = old.map(|key| old_path(delta, key)).transpose()?;
        let new = new.map(|key| new_path(delta, key)).transpose()?;
        moved.insert(ino, (old, new));
    }
    let along = going_along(delta, &moved);
    // In order of their numbers, so that the same delta fails with the same error.
    let dirs: BTreeMap<_, _> = delta.dirs.iter().collect();
    for (&ino, paths) in dirs {
        let right = match (moved.get(&ino), &paths.old, &paths.new) {
            (Some((old, new)), _, _) => *old == paths.old && *new == paths.new,
            (None, Some(_), Some(_)) => along.contains(&ino),
            (None, None, None) => true,
            (None, _, _) => false,
        };
        if !right {
            return Err(PlanError::PathsDisagree { ino });
        }
    }
    Ok(())
}

fn unique_paths(delta: &Delta) -> Result<(), PlanError> {
    let (mut olds, mut news) = (HashSet::new(), HashSet::new());
    for paths in delta.dirs.values() {
        let twice = [(&paths.old, &mut olds), (&paths.new, &mut news)]
            .into_iter()
            .find_map(|(path, seen)| path.as_ref().filter(|path| !seen.insert(*path)));
        if let Some(path) = twice {
            return Err(PlanError::PathTwice { path: path.clone() });
        }
    }
    Ok(())
}

/// Returns the directories without listed names whose new path results from the move of their
/// nearest moved ancestor alone. One walk over all of them in tree order.
fn going_along(delta: &Delta, moved: &Moved) -> HashSet<Ino> {
    let leaving = moved.values().filter_map(|(old, new)| {
        let to = new.as_ref();
        Some((old.as_ref()?, Visit::Leaves(to)))
    });
    let staying = delta.dirs.iter().filter_map(|(ino, paths)| {
        let (old, new) = (paths.old.as_ref()?, paths.new.as_ref()?);
        (!moved.contains_key(ino)).then_some((old, Visit::Stays(*ino, new)))
    });
    let mut visits: Vec<(&RelPath, Visit<'_>)> = leaving.chain(staying).collect();
    visits.sort_by(|(a, x), (b, y)| a.in_tree_order(b).then_with(|| x.rank().cmp(&y.rank())));
    let mut above: Vec<(&RelPath, Option<&RelPath>)> = Vec::new();
    let mut along = HashSet::new();
    for (old, visit) in visits {
        while above.last().is_some_and(|(dir, _)| !old.is_in_or_at(dir)) {
            above.pop();
        }
        match visit {
            Visit::Leaves(to) => above.push((old, to)),
            Visit::Stays(ino, new) => {
                let goes = match above.last() {
                    Some((from, Some(to))) => is_moved_along(old, new, (*from, *to)),
                    Some((_, None)) => false,
                    None => old == new,
                };
                if goes {
                    along.insert(ino);
                }
            }
        }
    }
    along
}

/// The paths of directories with listed names, before and after.
type Moved = HashMap<Ino, (Option<RelPath>, Option<RelPath>)>;

/// A directory found on a walk through the old tree.
enum Visit<'a> {
    /// A directory that moves or ends.
    Leaves(Option<&'a RelPath>),
    /// A directory that keeps its name, with its path afterwards.
    Stays(Ino, &'a RelPath),
}

impl Visit<'_> {
    fn rank(&self) -> u8 {
        u8::from(matches!(self, Visit::Stays(..)))
    }
}

/// Returns whether `old`, at or below `from`, becomes `new` when `from` moves to `to`.
fn is_moved_along(old: &RelPath, new: &RelPath, (from, to): (&RelPath, &RelPath)) -> bool {
    let rest = old.as_bytes().strip_prefix(from.as_bytes());
    rest.is_some() && rest == new.as_bytes().strip_prefix(to.as_bytes())
}
