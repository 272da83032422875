//! How far the backend's tree has been taken into the index, and what stands in the way of the rest.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Fs, FsError};
use crate::base::{ForeignText, Ino, MAX_DEPTH};

/// Key of the index's setting that counts what has been imported: directories and entries.
pub(super) const IMPORTED: &str = "imported";

/// So many directories that cannot be read are remembered by name; the rest is counted.
const NAMED: usize = 100;

/// For so long after a request the background keeps still.
const BUSY: Duration = Duration::from_millis(20);

/// How far the import is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportProgress {
    /// Directories that have been taken in.
    pub dirs_done: u64,
    /// Entries that were in them.
    pub entries: u64,
    /// Directories that are known and have not been looked into.
    pub dirs_left: u64,
    /// Those of them that could not be read, and why; at most a hundred.
    pub unreadable: Vec<(String, String)>,
    /// How many there are of these.
    pub unreadable_count: u64,
}

/// What is known of it beside the index.
#[derive(Default)]
pub(super) struct Progress {
    counted: Mutex<Counted>,
    failed: Mutex<Failed>,
    busy: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Counted {
    pub(super) dirs: u64,
    pub(super) entries: u64,
}

#[derive(Default)]
struct Failed {
    named: BTreeMap<Ino, (String, String)>,
    others: std::collections::BTreeSet<Ino>,
}

impl Counted {
    /// As it was noted in the index; what cannot be read counts from nothing.
    fn read(text: &str) -> Counted {
        let mut numbers = text.split(' ').map(|n| n.parse().unwrap_or(0));
        Counted {
            dirs: numbers.next().unwrap_or(0),
            entries: numbers.next().unwrap_or(0),
        }
    }

    /// As it is noted in the index.
    pub(super) fn text(self) -> String {
        format!("{} {}", self.dirs, self.entries)
    }

    /// With a directory of `entries` more.
    pub(super) fn and(self, entries: usize) -> Counted {
        Counted {
            dirs: self.dirs + 1,
            entries: self.entries + entries as u64,
        }
    }
}

impl Progress {
    /// Begins with what was `noted` in the index.
    pub(super) fn begin(&self, noted: Option<&str>) {
        *self.counted.lock() = noted.map(Counted::read).unwrap_or_default();
    }

    pub(super) fn counted(&self) -> Counted {
        *self.counted.lock()
    }

    /// The directory `dir` was taken in.
    pub(super) fn done(&self, dir: Ino, counted: Counted) {
        *self.counted.lock() = counted;
        let mut failed = self.failed.lock();
        failed.named.remove(&dir);
        failed.others.remove(&dir);
    }
}

impl Fs {
    /// How far the import is.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn import_progress(&self) -> super::Result<ImportProgress> {
        Ok(self.import_progress_with(self.index.snapshot()?.unlisted_dirs()?))
    }

    /// The same, where `dirs_left` has been counted.
    pub fn import_progress_with(&self, dirs_left: u64) -> ImportProgress {
        let counted = self.progress.counted();
        let failed = self.progress.failed.lock();
        ImportProgress {
            dirs_done: counted.dirs,
            entries: counted.entries,
            dirs_left,
            unreadable: failed.named.values().cloned().collect(),
            unreadable_count: (failed.named.len() + failed.others.len()) as u64,
        }
    }

    /// Notes that `dir` could not be taken in by the background.
    pub(super) fn note_unreadable(&self, dir: Ino, error: &FsError) {
        let path = self.index.lock().mount_path(dir);
        let path = match path {
            Ok(Some(path)) if path.is_root() => "the root".to_owned(),
            Ok(Some(path)) => path.to_text(),
            _ => format!("directory {}", dir.0),
        };
        let reason = match error.errno() {
            libc::ELOOP => {
                "it contains itself: the drive's file system is damaged; check it".to_owned()
            }
            libc::ENAMETOOLONG => {
                format!("it is more than {MAX_DEPTH} directories deep; move it up on the drive")
            }
            _ => error.to_string(),
        };
        let mut failed = self.progress.failed.lock();
        if failed.named.contains_key(&dir) || failed.named.len() < NAMED {
            let known = failed.named.insert(dir, (path.clone(), reason.clone()));
            drop(failed);
            if known.is_none_or(|(_, before)| before != reason) {
                tracing::warn!(path, reason, "a directory of the backend cannot be read");
            }
        } else {
            failed.others.insert(dir);
        }
    }

    /// A program asks for something: the background is to keep still for a moment.
    pub fn note_request(&self) {
        // Somebody else's note serves as well.
        if let Some(mut busy) = self.progress.busy.try_lock() {
            *busy = Some(Instant::now());
        }
    }

    /// Whether a program has asked for something a moment ago.
    pub fn is_busy(&self) -> bool {
        let last = *self.progress.busy.lock();
        last.is_some_and(|at| at.elapsed() < BUSY)
    }
}
