//! Progress of the import of the backend's tree into the index, and the directories that could not
//! be read.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::core::{ForeignText, Ino, MAX_DEPTH};
use crate::vfs::FsError;
use crate::vfs::import::Importer;

/// Key of the index setting that counts imported directories and entries.
pub(super) const IMPORTED: &str = "imported";

/// Number of unreadable directories that are recorded by name; further ones are only counted.
const NAMED: usize = 100;

/// How long the background import pauses after a request.
const BUSY: Duration = Duration::from_millis(20);

/// Progress of the import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportProgress {
    /// Directories imported.
    pub dirs_done: u64,
    /// Entries imported with them.
    pub entries: u64,
    /// Known directories that have not been listed.
    pub dirs_left: u64,
    /// Those of them that could not be read, with the reason; at most a hundred.
    pub unreadable: Vec<(String, String)>,
    /// Number of directories that could not be read.
    pub unreadable_count: u64,
}

/// The state of the import that is not in the index.
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
    /// Parses the index setting; an unreadable number counts as 0.
    fn read(text: &str) -> Counted {
        let mut numbers = text.split(' ').map(|n| n.parse().unwrap_or(0));
        Counted {
            dirs: numbers.next().unwrap_or(0),
            entries: numbers.next().unwrap_or(0),
        }
    }

    /// Returns the text for the index setting.
    pub(super) fn text(self) -> String {
        format!("{} {}", self.dirs, self.entries)
    }

    /// Returns the counts after one more directory with `entries` entries.
    pub(super) fn and(self, entries: usize) -> Counted {
        Counted {
            dirs: self.dirs + 1,
            entries: self.entries + entries as u64,
        }
    }
}

impl Progress {
    /// Starts with the counts `noted` in the index.
    pub(super) fn begin(&self, noted: Option<&str>) {
        *self.counted.lock() = noted.map(Counted::read).unwrap_or_default();
    }

    pub(super) fn counted(&self) -> Counted {
        *self.counted.lock()
    }

    /// Records that `dir` was imported.
    pub(super) fn done(&self, dir: Ino, counted: Counted) {
        *self.counted.lock() = counted;
        let mut failed = self.failed.lock();
        failed.named.remove(&dir);
        failed.others.remove(&dir);
    }
}

impl Importer {
    /// Returns the progress, for a caller that has counted `dirs_left`.
    pub(in crate::vfs) fn progress_with(&self, dirs_left: u64) -> ImportProgress {
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

    /// Records that the background import could not read `dir`.
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

    /// Records a request of a program: the background import pauses for a moment.
    pub(in crate::vfs) fn note_request(&self) {
        // If the lock is taken, another request is recorded at this moment.
        if let Some(mut busy) = self.progress.busy.try_lock() {
            *busy = Some(Instant::now());
        }
    }

    /// Returns whether a program made a request a moment ago.
    pub(in crate::vfs) fn is_busy(&self) -> bool {
        let last = *self.progress.busy.lock();
        last.is_some_and(|at| at.elapsed() < BUSY)
    }
}
