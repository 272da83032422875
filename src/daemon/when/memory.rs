//! What must be known after the end of the daemon: `when.json` in the cache.
//!
//! It is replaced as a whole by a rename. A crash leaves the old or the new one, and perhaps a
//! temporary file, which the next write replaces. After a power cut the old one may be there: then
//! a run of the schedule is made twice, or a pause that was just said is forgotten.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::private;
use crate::core::Timestamp;

/// The name of the file.
const FILE: &str = "when.json";

/// How long automatic flushes are paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Pause {
    /// Until they are resumed.
    UntilResumed,
    /// Until this time.
    Until(i64),
}

impl Pause {
    /// A pause until `time`.
    pub(super) fn until(time: Timestamp) -> Pause {
        Pause::Until(time.0)
    }

    pub(super) fn end(self) -> Option<Timestamp> {
        match self {
            Pause::UntilResumed => None,
            Pause::Until(time) => Some(Timestamp(time)),
        }
    }
}

/// The contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    pub(super) pause: Option<Pause>,
    /// The schedule that `done_until` is about: a new one has missed nothing.
    pub(super) schedule: Option<String>,
    /// All runs of the schedule up to this time are done: nanoseconds since 1970.
    pub(super) done_until: Option<i64>,
}

/// The file of the cache in `dir`.
pub(super) fn file(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

impl Memory {
    /// Reads the file; one that is missing or cannot be decoded is as a new one.
    pub(super) fn read(path: &Path) -> Memory {
        private::read_or_new(path, "a pause may be forgotten")
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// What the system said; the old file is still there.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        private::replace(path, &serde_json::to_vec(self)?)
    }
}
