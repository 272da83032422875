//! `ferryfs undo`

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

use super::kept::restore::{CHANGED, Present, check_way, is_as_left, rename_new, restore};
use super::kept::{Kept, Store, Version};
use super::say;
use crate::core::{Exit, Failure, ForeignText, RelPath};
use crate::format::versions::{Entry, What};
use crate::sys::terminal::complain;

/// Undo one batch: bring back what it replaced and deleted, and remove what it made
///
/// Shows first what it would do, and asks. Only what is still as the batch has left it is changed;
/// the rest is named (exit code 3). The result is a change in the mount like any other, so the next
/// flush writes it, and that can be undone as well. `ferryfs log` and `ferryfs versions` have the
/// numbers of batches.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct UndoArgs {
    /// Do it without asking
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// Only show what would be done; so does this command without a terminal and --yes
    #[arg(long)]
    dry_run: bool,
    /// The number of the batch
    batch: u64,
    /// The mount, or a path in it
    #[arg(default_value = ".")]
    mount: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs undo 42 ~/lab            # shows, and asks
  ferryfs undo --dry-run 42 ~/lab
  ferryfs undo --yes 42 ~/lab";

/// One thing to do.
enum Action {
    /// Remove a file that the batch wrote where nothing was.
    Remove(Entry),
    RemoveDirectory(RelPath),
    Restore(Version),
    /// Restore a file that another one has moved over, after that one has moved back.
    RestoreUnder(Version),
    MoveBack {
        from: RelPath,
        to: RelPath,
    },
    /// Leave what the batch wrote: what it replaced or removed there is not kept.
    Leave(RelPath),
}

const NOT_KEPT: &str = "its old version is not kept";

pub(super) fn run(args: &UndoArgs) -> Result<Exit, Failure> {
    let (store, _) = Store::of(&args.mount)?;
    let kept: Vec<Kept> = (store.batches()?.into_iter())
        .filter(|kept| kept.id.batch.0 == args.batch)
        .collect();
    // Two caches may have used one number.
    let Some(newest) = kept.iter().map(|kept| kept.id.secs).max() else {
        return Err(Failure::failed(format!(
            "nothing is kept of batch {}: it has replaced and deleted nothing, or its versions are \
             gone",
            args.batch
        ))
        .hint("`ferryfs versions` lists what is kept"));
    };
    let of_batch: Vec<&Kept> = kept.iter().filter(|it| it.id.secs == newest).collect();
    let actions = plan(&store, &of_batch);
    say(&actions.iter().map(told).collect::<String>());
    if args.dry_run || !(args.yes || is_confirmed(args.batch)) {
        say("nothing was changed; --yes does it\n");
        return Ok(Exit::Done);
    }
    let failed = take_all(&store, &actions, &made_by(&of_batch));
    for (action, why) in &failed {
        complain(&match action {
            Action::Leave(path) => format!("ferryfs: not restored: {}: {why}", path.escaped()),
            _ => format!("ferryfs: not done: {}: {why}", told(action).trim_end()),
        });
    }
    Ok(match failed.is_empty() {
        true => Exit::Done,
        false => Exit::LeftBehind,
    })
}

/// Does all of it in order, and returns what could not be done. Moves are tried again as long as
/// others succeed: their old names may be taken, or their directories missing, until then.
fn take_all<'a>(
    store: &Store,
    actions: &'a [Action],
    made: &HashMap<&RelPath, &Entry>,
) -> Vec<(&'a Action, String)> {
    let mut failed = Vec::new();
    let mut moves = Vec::new();
    for action in actions {
        if let Action::MoveBack { from, to } = action {
            moves.push((action, from, to));
            continue;
        }
        // The moves are together. Directories that were deleted come back, with their modes, before
        // a move makes them.
        move_back(store, &mut moves, false);
        if !matches!(action, Action::Restore(it) if it.entry.what == What::Directory) {
            move_back(store, &mut moves, true);
        }
        let taken = match action {
            Action::RestoreUnder(it)
                if moves
                    .iter()
                    .any(|(_, from, _)| *from == it.entry.in_mount()) =>
            {
                Err("what has its name now was not moved back".into())
            }
            _ => take(store, action, made),
        };
        if let Err(why) = taken {
            failed.push((action, why));
        }
    }
    move_back(store, &mut moves, false);
    let left = move_back(store, &mut moves, true);
    failed.extend(moves.iter().map(|(action, ..)| *action).zip(left));
    failed
}

/// Moves as much back as can be, and returns why the rest cannot.
fn move_back(
    store: &Store,
    moves: &mut Vec<(&Action, &RelPath, &RelPath)>,
    makes_dirs: bool,
) -> Vec<String> {
    loop {
        let before = moves.len();
        let mut reasons = Vec::new();
        moves.retain(
            |(_, from, to)| match move_one(store, from, to, makes_dirs) {
                Ok(()) => false,
                Err(why) => {
                    reasons.push(why);
                    true
                }
            },
        );
        if moves.is_empty() || moves.len() == before {
            return reasons;
        }
    }
}

fn move_one(store: &Store, from: &RelPath, to: &RelPath, makes_dirs: bool) -> Result<(), String> {
    let (from, to) = (safe(store, from)?, safe(store, to)?);
    if fs::symlink_metadata(&from).is_err() {
        return Err("it is not there any more".into());
    }
    if let Some(dir) = to.parent().filter(|_| makes_dirs) {
        fs::create_dir_all(dir).map_err(|error| error.to_string())?;
    }
    rename_new(&from, &to).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => "something else has its old name".into(),
        _ => error.to_string(),
    })
}

fn is_confirmed(batch: u64) -> bool {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return false;
    }
    say(&format!("undo batch {batch}? [y/N] "));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Returns what to do, in order. Up to the moves the paths are those after the batch, then those
/// before it.
fn plan(store: &Store, of_batch: &[&Kept]) -> Vec<Action> {
    let all = || {
        of_batch
            .iter()
            .flat_map(|kept| kept.entries.iter().map(|it| (kept.id, it)))
    };
    let replaced: HashSet<&RelPath> = all()
        .filter(|(_, entry)| entry.what == What::Replaced)
        .map(|(_, entry)| entry.in_mount())
        .collect();
    let of = |what: What| {
        let found = all().filter(move |(_, entry)| entry.what == what);
        found.map(|(id, entry)| Version {
            id,
            entry: entry.clone(),
        })
    };
    let is_there = |version: &Version| store.is_there(version.id, &version.entry);
    let moved: BTreeMap<RelPath, RelPath> = of(What::Moved)
        .filter_map(|it| Some((it.entry.in_mount().clone(), it.entry.from.clone()?)))
        .collect();
    // What the batch has written in place of something that cannot come back is all there is.
    let lost: BTreeSet<&RelPath> = all()
        .filter(|(id, entry)| entry.what.is_version() && !store.is_there(*id, entry))
        .map(|(_, entry)| entry.in_mount())
        .collect();
    let onward = (moved.iter())
        .map(|(to, from)| (from.clone(), to.clone()))
        .collect();
    let stays: HashSet<RelPath> = (lost.iter())
        .flat_map(|path| [(*path).clone(), before(path, &onward)])
        .collect();
    let mut actions = Vec::new();
    let new = of(What::Written).chain(of(What::Made));
    let new = new.filter(|it| {
        let at = it.entry.in_mount();
        !replaced.contains(at) && !stays.contains(at)
    });
    actions.extend(new.map(|it| Action::Remove(it.entry)));
    // A file that another one has moved over comes back after that is gone.
    let (under_moved, others): (Vec<Version>, Vec<Version>) = of(What::Replaced)
        .filter(is_there)
        .partition(|it| moved.contains_key(it.entry.in_mount()));
    actions.extend(others.into_iter().map(Action::Restore));
    let mut made: Vec<RelPath> = (of(What::MadeDirectory))
        .map(|it| it.entry.in_mount().clone())
        .collect();
    made.sort_by_key(|path| std::cmp::Reverse(path.depth()));
    actions.extend(made.into_iter().map(Action::RemoveDirectory));
    // What is in a directory that has moved as well moves back after that, from its place there.
    let mut moves: Vec<(&RelPath, &RelPath)> = moved.iter().collect();
    moves.sort_by_key(|(from, _)| from.depth());
    actions.extend(moves.into_iter().map(|(from, to)| Action::MoveBack {
        from: before(from, &moved),
        to: to.clone(),
    }));
    let mut dirs: Vec<Version> = of(What::Directory).filter(is_there).collect();
    dirs.sort_by_key(|it| it.entry.path.depth());
    actions.extend(dirs.into_iter().map(Action::Restore));
    let gone = of(What::Removed).chain(of(What::Special));
    actions.extend(gone.filter(is_there).map(Action::Restore));
    for mut version in under_moved {
        version.entry.name = Some(before(version.entry.in_mount(), &moved));
        actions.push(Action::RestoreUnder(version));
    }
    actions.extend(lost.into_iter().cloned().map(Action::Leave));
    actions
}

/// Returns where `path` was before the directories above it moved.
fn before(path: &RelPath, moved: &BTreeMap<RelPath, RelPath>) -> RelPath {
    let mut below = RelPath::root();
    let mut at = path.clone();
    while let Some((dir, name)) = at.split_last() {
        below = RelPath::root().join(&name).join_path(&below);
        if let Some(old) = moved.get(&dir) {
            return old.join_path(&below);
        }
        at = dir;
    }
    path.clone()
}

/// Returns what the batch has written and made, to tell whether it is unchanged.
fn made_by<'a>(of_batch: &[&'a Kept]) -> HashMap<&'a RelPath, &'a Entry> {
    let all = of_batch.iter().flat_map(|kept| &kept.entries);
    all.filter(|entry| matches!(entry.what, What::Written | What::Made))
        .map(|entry| (entry.in_mount(), entry))
        .collect()
}

fn told(action: &Action) -> String {
    match action {
        Action::Remove(entry) => format!("remove   {}\n", entry.in_mount().escaped()),
        Action::RemoveDirectory(path) => format!("remove   {}/\n", path.escaped()),
        Action::Restore(version) | Action::RestoreUnder(version) => {
            format!("restore  {}\n", version.entry.in_mount().escaped())
        }
        Action::Leave(path) => format!("leave    {}: {NOT_KEPT}\n", path.escaped()),
        Action::MoveBack { from, to } => {
            format!("move     {} -> {}\n", from.escaped(), to.escaped())
        }
    }
}

/// Returns the path in the mount, unless a link leads there.
fn safe(store: &Store, path: &RelPath) -> Result<PathBuf, String> {
    let path = store.in_mount(path);
    check_way(&store.mountpoint, &path).map_err(|error| error.to_string())?;
    Ok(path)
}

fn take(store: &Store, action: &Action, made: &HashMap<&RelPath, &Entry>) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    match action {
        Action::Remove(entry) => {
            let path = safe(store, entry.in_mount())?;
            let Ok(found) = fs::symlink_metadata(&path) else {
                return Ok(());
            };
            match is_as_left(entry, &found) {
                true => fs::remove_file(&path).map_err(failed),
                false => Err(CHANGED.into()),
            }
        }
        Action::RemoveDirectory(path) => match fs::remove_dir(safe(store, path)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                Err("it is not empty".into())
            }
            result => result.map_err(failed),
        },
        Action::Restore(version) => {
            // Before the moves the names are those that the batch has given.
            let left = match version.entry.what {
                What::Replaced => made.get(version.entry.in_mount()),
                _ => None,
            };
            restore_over(store, version, left.copied())
        }
        Action::RestoreUnder(version) => restore_over(store, version, None),
        Action::Leave(_) => Err(NOT_KEPT.into()),
        Action::MoveBack { from, to } => move_one(store, from, to, true),
    }
}

/// Restores a version in place of nothing, or of what the batch has left there.
fn restore_over(store: &Store, version: &Version, left: Option<&Entry>) -> Result<(), String> {
    let to = store.in_mount(version.entry.in_mount());
    // It is as the batch has left it, so the drive has it.
    let may_replace = left.map_or(Present::Nothing, Present::Left);
    restore(
        store,
        version,
        (store.mountpoint.as_path(), to.as_path()),
        may_replace,
    )
    .map_err(|error| error.to_string())
}
