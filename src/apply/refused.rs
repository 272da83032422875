//! Steps of a committed batch that the backend refuses: they are set aside, and the batch goes on
//! without them.
//!
//! A refused step is treated as if its name had not been in the batch. The present file stays, or
//! is put back; the new version stays in the cache, dirty, for the next batch. Steps that depend on
//! a refused one are set aside as well: those whose name stays occupied, and everything in a
//! directory that was not made.
//!
//! A refusal is distinguished from a failure of the drive by checking the rest of the drive
//! ([`is_local`]): only if that can be read and written does the error concern one name.
//!
//! What follows from a refusal is in [`blocked`](super::blocked), [`put_back`](mod@super::put_back)
//! and [`explain`](super::explain).

use std::collections::HashSet;

use crate::core::{BatchNo, Name, RelPath};
use crate::drive::{Backend, BackendError, Look, create_with, is_absent};
use crate::format::layout;
use crate::format::steps::{ClearStep, PlaceStep, Steps};

/// A step of a batch, by its number in its phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum StepNo {
    Clear(usize),
    Place(usize),
}

/// Why a step was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The errno of the backend's error.
    Errno(i32),
    /// The errno of the backend's error for a further name of a file.
    Link(i32),
    /// The errno of the backend's error for a patch, or for the whole file in its place. Some of
    /// the patch may have been written.
    Patch(i32),
    /// Others have changed or removed a file that was being patched. It may be torn.
    Torn,
    /// The file that has the name could not be removed.
    Occupied,
    /// The directory of the name is not there.
    NoDirectory,
    /// It is the journal of a database that was refused, and would destroy the older one.
    NoDatabase,
}

impl Why {
    /// Returns why the backend has refused `step`, from its `error`.
    pub(crate) fn of<C>(steps: &Steps<C>, step: StepNo, error: &BackendError) -> Why {
        let errno = errno_of(error);
        let step = match step {
            StepNo::Place(number) => steps.place.get(number),
            StepNo::Clear(_) => None,
        };
        match step {
            Some(PlaceStep::Link { .. }) => Why::Link(errno),
            Some(PlaceStep::Patch { .. }) => Why::Patch(errno),
            _ => Why::Errno(errno),
        }
    }
}

/// A step that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) step: StepNo,
    pub(crate) path: RelPath,
    pub(crate) why: Why,
}

/// Where a file ended up that could not get its new name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Back {
    /// Under its old name.
    There,
    /// In the directory that it came from, under this name.
    Beside(Name),
    /// At the root, under this name.
    AtRoot(Name),
    /// In `.ferryfs/lost+found`.
    LostFound,
}

/// A file that was to be moved, and was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PutBack {
    /// The number of the clear step that set it aside.
    pub(crate) step: usize,
    pub(crate) back: Back,
    /// Where it is now.
    pub(crate) path: RelPath,
}

/// The steps of a batch that were set aside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused {
    pub(crate) steps: Vec<Refusal>,
    /// Files that were to be moved, and were not.
    pub(crate) back: Vec<PutBack>,
    numbers: HashSet<StepNo>,
    /// The directories with names that could not be removed.
    dirs: HashSet<RelPath>,
    /// The names that did not get their file from the batch.
    names: HashSet<RelPath>,
}

impl Refused {
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(crate) fn has(&self, step: StepNo) -> bool {
        self.numbers.contains(&step)
    }

    /// Returns whether the name at `path` did not get its file from the batch.
    pub(crate) fn has_name(&self, path: &RelPath) -> bool {
        self.names.contains(path)
    }

    /// Returns whether the directory at `path` holds a name that was to be removed and could not
    /// be.
    pub(crate) fn holds(&self, path: &RelPath) -> bool {
        self.dirs.contains(path)
    }

    pub(crate) fn note(&mut self, step: StepNo, path: &RelPath, why: Why) {
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

    /// Notes the `listed` steps of `steps`, without known reasons.
    pub(crate) fn note_listed<C>(&mut self, steps: &Steps<C>, listed: &[StepNo]) {
        for step in listed {
            let path = match step {
                StepNo::Clear(number) => steps.clear.get(*number).map(ClearStep::path),
                StepNo::Place(number) => steps.place.get(*number).map(PlaceStep::path),
            };
            if let Some(path) = path {
                self.note(*step, path, Why::Occupied);
            }
        }
    }

    /// Returns the numbers of the refused clear steps.
    pub(crate) fn cleared(&self) -> impl Iterator<Item = usize> {
        self.steps.iter().filter_map(|refusal| match refusal.step {
            StepNo::Clear(number) => Some(number),
            StepNo::Place(_) => None,
        })
    }
}

/// Returns the errno of an error of the backend.
pub(crate) fn errno_of(error: &BackendError) -> i32 {
    error
        .source
        .raw_os_error()
        .unwrap_or(match error.source.kind() {
            std::io::ErrorKind::NotFound => libc::ENOENT,
            std::io::ErrorKind::AlreadyExists => libc::EEXIST,
            _ => libc::EIO,
        })
}

/// Returns whether an error concerns one name only: the backend refuses it, or the rest of the
/// drive can be read and written.
///
/// An error of this machine, such as a lack of memory or descriptors, says nothing. A full drive is
/// full for all names: the batch waits for space, see
/// [`crate::apply::place::Manners::full_is_refusal`].
pub(crate) fn is_local(backend: &dyn Backend, batch: BatchNo, error: &BackendError) -> bool {
    let of_this_machine = matches!(
        error.source.raw_os_error(),
        Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EINTR | libc::ENOMEDIUM)
    );
    // The system reports a failed sync only once, and does not say which names it concerns.
    let of_all = error.is_of_sync() || error.is_full() || error.is_stalled();
    if of_this_machine || of_all {
        return false;
    }
    error.is_refusal() || (backend.check_alive(Look::Read).is_ok() && can_write(backend, batch))
}

/// Returns whether a file can be made on the backend and removed again.
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
