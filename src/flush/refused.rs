//! Steps of a committed batch that the backend refuses: they are set aside, and the batch goes on without them.
//!
//! A refused step is as if its name had not been in the batch. What stood there stays, or is put back; what was to come stays in the
//! cache, dirty, for the next batch. What depends on it is set aside as well: what was to get a name that stays occupied, and all that
//! was to be placed in a directory that is not there.
//!
//! A refusal is told from a failure of the drive by looking at the rest of it ([`is_local`]): only if that can be read and written is
//! the error that of one name.

use std::collections::{HashMap, HashSet};

use super::apply::{Applied, create_with, exists, is_absent};
use super::placing::Placer;
use super::report::{FlushError, Result};
use crate::backend::{Backend, BackendError, Look};
use crate::base::{BatchNo, Name, RelPath};
use crate::rules::layout;
use crate::rules::steps::{ClearStep, PlaceStep, PlainKind, SlotNo, Steps};

/// A step of a batch, by its number in its phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum StepNo {
    Clear(usize),
    Place(usize),
}

/// Why a step was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// What the backend said, as `errno`.
    Errno(i32),
    /// What stands under the name could not be taken away.
    Occupied,
    /// The directory that it is in is not there.
    NoDirectory,
}

/// A step that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) step: StepNo,
    pub(super) path: RelPath,
    pub(super) why: Why,
}

/// Where something ended up that could not be given its new name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Back {
    /// Under its old name.
    There,
    /// In the directory that it came from, under this name.
    Beside(Name),
    /// At the root, under this name.
    AtRoot(Name),
    /// In `.ferryfs/lost+found`.
    LostFound(RelPath),
}

/// What was set aside of a batch.
#[derive(Clone, Debug, Default)]
pub(super) struct Refused {
    pub(super) steps: Vec<Refusal>,
    /// What was to move and did not, by the number of the clear step that took it away.
    pub(super) back: Vec<(usize, Back)>,
    numbers: HashSet<StepNo>,
    /// The directories that hold what could not be taken away.
    dirs: HashSet<RelPath>,
    /// The names that did not get what the batch has for them.
    names: HashSet<RelPath>,
}

impl Refused {
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(super) fn has(&self, step: StepNo) -> bool {
        self.numbers.contains(&step)
    }

    /// Whether the name at `path` did not get what the batch has for it.
    pub(super) fn has_name(&self, path: &RelPath) -> bool {
        self.names.contains(path)
    }

    /// Whether the directory at `path` holds something that was to be taken away and could not be.
    pub(super) fn holds(&self, path: &RelPath) -> bool {
        self.dirs.contains(path)
    }

    pub(super) fn note(&mut self, step: StepNo, path: &RelPath, why: Why) {
        if self.numbers.insert(step) {
            self.dirs.extend(path.split_last().map(|(dir, _)| dir));
            if matches!(step, StepNo::Place(_)) {
                self.names.insert(path.clone());
            }
            tracing::warn!(%path, ?why, "the drive refuses a step of the batch; it is set aside");
            let path = path.clone();
            self.steps.push(Refusal { step, path, why });
        }
    }

    /// The numbers of the clear steps among them.
    pub(super) fn cleared(&self) -> Vec<usize> {
        let clear = self.steps.iter().filter_map(|refusal| match refusal.step {
            StepNo::Clear(number) => Some(number),
            StepNo::Place(_) => None,
        });
        clear.collect()
    }
}

/// The errno of an error that the backend told.
pub(super) fn errno_of(error: &BackendError) -> i32 {
    error
        .source
        .raw_os_error()
        .unwrap_or(match error.source.kind() {
            std::io::ErrorKind::NotFound => libc::ENOENT,
            std::io::ErrorKind::AlreadyExists => libc::EEXIST,
            _ => libc::EIO,
        })
}

/// Whether an error is that of one name: the backend says so, or the rest of it can be read and written.
///
/// Nothing is known from an error of this machine, such as a lack of memory or descriptors. A full drive is full for all names: the
/// batch waits for space, see [`super::placing::Manners::full_is_refusal`].
pub(super) fn is_local(backend: &dyn Backend, batch: BatchNo, error: &BackendError) -> bool {
    let of_this_machine = matches!(
        error.source.raw_os_error(),
        Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EINTR | libc::ENOMEDIUM)
    );
    // What a sync was to make durable is of unknown state, whichever name that is: the system tells of it once.
    let of_all = error.operation == "sync" || error.is_full() || error.is_stalled();
    if of_this_machine || of_all {
        return false;
    }
    error.is_refusal() || (backend.check_alive(Look::Read).is_ok() && can_write(backend, batch))
}

/// Whether a file can be made on the backend, and removed again.
fn can_write(backend: &dyn Backend, batch: BatchNo) -> bool {
    let path = layout::probe_path(batch);
    let removed = |tolerant: bool| match backend.remove_file(&path) {
        Ok(()) => true,
        Err(error) => tolerant && is_absent(&error),
    };
    removed(true)
        && create_with(backend, &path, b"x").is_ok()
        && backend.sync().is_ok()
        && removed(false)
}

/// Where the directories that a batch moves are after it, to find where an old path leads.
pub(super) struct Moves {
    dirs: HashMap<RelPath, RelPath>,
}

impl Moves {
    pub(super) fn of<C>(steps: &Steps<C>) -> Moves {
        let mut slots: HashMap<SlotNo, &RelPath> = HashMap::new();
        for step in &steps.place {
            if let PlaceStep::Attach { slot, to, .. } = step {
                slots.insert(*slot, to);
            }
        }
        let moved = steps.clear.iter().filter_map(|step| match step {
            ClearStep::Detach {
                from,
                slot,
                kind: PlainKind::Directory,
            } => Some((from.clone(), (*slots.get(slot)?).clone())),
            _ => None,
        });
        Moves {
            dirs: moved.collect(),
        }
    }

    /// The path after the batch of the name that has `old` before it, if its directory is there then.
    pub(super) fn new_path(&self, old: &RelPath) -> RelPath {
        let Some((dir, name)) = old.split_last() else {
            return old.clone();
        };
        self.new_dir(&dir).join(&name)
    }

    fn new_dir(&self, old: &RelPath) -> RelPath {
        // Not recursive: a tree may be deeper than a stack.
        let mut below = Vec::new();
        let mut at = old.clone();
        let mut new = loop {
            if let Some(new) = self.dirs.get(&at) {
                break new.clone();
            }
            match at.split_last() {
                Some((above, name)) => {
                    below.push(name);
                    at = above;
                }
                None => return old.clone(),
            }
        };
        for name in below.iter().rev() {
            new = new.join(name);
        }
        new
    }
}

/// What is not to be touched in the second phase, because of what was refused before.
#[derive(Default)]
pub(super) struct Blocked {
    occupied: HashSet<RelPath>,
    missing: HashSet<RelPath>,
}

impl Blocked {
    /// After the first phase.
    pub(super) fn after_clear<C>(steps: &Steps<C>, refused: &Refused) -> Blocked {
        let moves = Moves::of(steps);
        let mut blocked = Blocked::default();
        for number in refused.cleared() {
            if let Some(step) = steps.clear.get(number) {
                blocked.occupied.insert(moves.new_path(step.path()));
                blocked.occupied.insert(step.path().clone());
            }
        }
        blocked
    }

    /// Notes that the directory that was to be at `path` is not there.
    pub(super) fn note_missing(&mut self, path: &RelPath) {
        self.missing.insert(path.clone());
    }

    /// Why a step is not to be taken; `None` if it is.
    pub(super) fn why_not<C>(&self, step: &PlaceStep<C>, refused: &Refused) -> Option<Why> {
        if let PlaceStep::Link { from, .. } = step
            && (refused.has_name(from) || self.why(from).is_some())
        {
            // What stands there is another file, or another version, than the one that is to get a further name.
            return Some(Why::Occupied);
        }
        self.why(step.path())
    }

    /// Why the name at `path` is to be left alone; `None` if it is not.
    pub(super) fn why(&self, path: &RelPath) -> Option<Why> {
        if self.occupied.contains(path) {
            return Some(Why::Occupied);
        }
        if self.missing.is_empty() {
            return None;
        }
        let mut at = path.split_last();
        while let Some((dir, _)) = at {
            if self.missing.contains(&dir) {
                return Some(Why::NoDirectory);
            }
            at = dir.split_last();
        }
        None
    }
}

/// Puts what is still in the slot of each refused move back where it came from, or as near to it as the backend lets us.
pub(super) fn put_back<C>(
    placer: &Placer<'_>,
    steps: &Steps<C>,
    standing: impl Fn(SlotNo) -> Option<RelPath>,
    applied: &mut Applied,
) -> Result<()> {
    let moves = Moves::of(steps);
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
        let back = one_back(placer, slot, (&at, from), &moves, applied)?;
        tracing::warn!(path = %from, ?back, "put back, as it could not be moved");
        applied.refused.back.push((*number, back));
    }
    Ok(())
}

fn one_back(
    placer: &Placer<'_>,
    slot: SlotNo,
    (at, from): (&RelPath, &RelPath),
    moves: &Moves,
    applied: &mut Applied,
) -> Result<Back> {
    let (backend, batch) = (placer.backend, placer.batch);
    let unlike = format!("ferryfs-{:x}-{}", batch.0, slot.0);
    let unlike = Name::new(unlike.as_bytes())
        .map_err(|_| FlushError::WrongDrive("a batch number has no file name".into()))?;
    let now = moves.new_path(from);
    let mut places: Vec<(RelPath, Back)> = Vec::new();
    for path in [&now, from] {
        places.push((path.clone(), Back::There));
    }
    for path in [&now, from] {
        if let Some((dir, _)) = path.split_last() {
            places.push((dir.join(&unlike), Back::Beside(unlike.clone())));
        }
    }
    places.push((RelPath::root().join(&unlike), Back::AtRoot(unlike.clone())));
    for (path, back) in &places {
        match backend.rename_new(at, path) {
            Ok(()) => return Ok(back.clone()),
            Err(error) if is_local(backend, batch, &error) => {
                tracing::debug!(%error, "not to be put back there");
            }
            Err(error) => return Err(error.into()),
        }
    }
    // It is stuck where it is. A file can be read there, perhaps.
    for (path, back) in places {
        if !exists(backend, &path)? && placer.copy(at, &path).is_ok() {
            applied.garbage.push(at.clone());
            return Ok(back);
        }
    }
    let kept = placer.to_lost_found(at)?;
    tracing::error!(path = %from, kept = %kept, "cannot be put back; it is kept on the drive");
    Ok(Back::LostFound(kept))
}

/// What is said of a refused step, for people: what happened, what is safe, and what to do.
pub(super) fn explain(step: StepNo, why: &Why) -> String {
    let cause = explain_alone(why);
    let rest = match step {
        StepNo::Clear(_) => "it stays on the drive as it was, and the change waits in the cache",
        StepNo::Place(_) => "the drive keeps what it had, and the new version waits in the cache",
    };
    format!("{cause}; {rest}. Put that right and flush again")
}

/// The same on a machine that has the drive and not the cache.
pub(super) fn explain_alone(why: &Why) -> String {
    match why {
        Why::Errno(errno) => cause(*errno),
        Why::Occupied => "what has this name on the drive cannot be taken away".into(),
        Why::NoDirectory => "the directory that it belongs in could not be made".into(),
    }
}

fn cause(errno: i32) -> String {
    let hint = match errno {
        libc::EPERM => {
            "it or its directory may be marked immutable (see lsattr), or belong to somebody else"
        }
        libc::EACCES => "ferryfs has no permission there",
        libc::EROFS => "that part of the drive is read-only",
        libc::EXDEV => "a directory cannot be moved between two file systems",
        libc::EBUSY | libc::ETXTBSY => {
            "another program or computer has it in use, or a file system is mounted on it"
        }
        libc::EFBIG => "it is larger than the drive's file system takes",
        libc::EINVAL | libc::EILSEQ => "the drive's file system does not take this name",
        libc::ENAMETOOLONG => "its name is too long for the drive's file system",
        libc::EMLINK => "the drive's file system does not take so many links or directories",
        libc::EIO | libc::EUCLEAN => "the medium may be damaged there; check it",
        libc::ENOSPC => "others have filled the drive meanwhile; make space on it",
        libc::EDQUOT => "the quota on the drive is used up",
        libc::EEXIST | libc::ENOTEMPTY | libc::EISDIR | libc::ENOTDIR => {
            "something else has its name there"
        }
        libc::ENOENT => "its directory is not there",
        _ => "",
    };
    let said = std::io::Error::from_raw_os_error(errno).to_string();
    let said = said
        .split(" (os error")
        .next()
        .unwrap_or_default()
        .to_string();
    match hint {
        "" => format!("the drive refuses it: {said}"),
        hint => format!("the drive refuses it: {said}; {hint}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &'static str) -> RelPath {
        RelPath::fixed(text)
    }

    fn detach(from: &'static str, slot: u32, kind: PlainKind) -> ClearStep {
        ClearStep::Detach {
            from: path(from),
            slot: SlotNo(slot),
            kind,
        }
    }

    fn attach(slot: u32, to: &'static str, kind: PlainKind) -> PlaceStep<()> {
        PlaceStep::Attach {
            slot: SlotNo(slot),
            to: path(to),
            kind,
        }
    }

    #[test]
    fn an_old_path_is_followed_through_directories_that_move() {
        let dir = PlainKind::Directory;
        let steps = Steps {
            clear: vec![detach("a/b", 0, dir), detach("a", 1, dir)],
            place: vec![attach(1, "x", dir), attach(0, "y", dir)],
            ..Steps::default()
        };
        let moves = Moves::of(&steps);
        let new = |old| moves.new_path(&path(old)).to_string();
        assert_eq!(new("a/f"), "x/f");
        assert_eq!(new("a/b/f"), "y/f");
        assert_eq!(new("a/b"), "x/b");
        assert_eq!(new("a"), "a");
        assert_eq!(new("other/a/f"), "other/a/f");
    }

    #[test]
    fn what_depends_on_a_refused_step_is_left_alone() {
        let steps = Steps {
            clear: vec![
                detach("d", 0, PlainKind::Directory),
                ClearStep::RemoveFile { path: path("d/f") },
            ],
            place: vec![attach(0, "e", PlainKind::Directory)],
            ..Steps::default()
        };
        let mut refused = Refused::default();
        refused.note(StepNo::Clear(1), &path("d/f"), Why::Errno(libc::EPERM));
        let mut blocked = Blocked::after_clear(&steps, &refused);
        assert_eq!(blocked.why(&path("e/f")), Some(Why::Occupied));
        assert_eq!(blocked.why(&path("e/g")), None);
        blocked.note_missing(&path("n"));
        assert_eq!(blocked.why(&path("n/x/y")), Some(Why::NoDirectory));
        assert_eq!(blocked.why(&path("nn")), None);
    }

    #[test]
    fn a_person_is_told_what_is_safe_and_what_to_do() {
        let text = explain(StepNo::Place(0), &Why::Errno(libc::EPERM));
        for part in [
            "Operation not permitted",
            "immutable",
            "waits in the cache",
            "flush again",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("os error"), "{text}");
    }
}
