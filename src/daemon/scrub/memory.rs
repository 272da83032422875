//! What must be known of scrubs after the end of the daemon: `scrub.json` in the cache.
//!
//! It is replaced as a whole. After a crash or a power cut an older one may be there: then some
//! files are read a second time. One that is missing or cannot be decoded is as a new one: the next
//! scrub begins with the first file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::private;
use crate::control::protocol::{Amount, ScrubProblem, ScrubReport};
use crate::core::{ContentHash, Ino, Name, Timestamp, printable};
use crate::daemon::service::rfc3339;
use crate::index::PlacedEntry;
use crate::plan::planner::NameKey;

/// The name of the file.
const FILE: &str = "scrub.json";

/// The most damaged files that are kept one by one.
const MOST_PROBLEMS: usize = 200;

/// How often one file may halt a scrub before it is left out.
const MOST_HALTS: u32 = 2;

/// The contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    /// The scrub that has not come to its end.
    pub(super) current: Option<Current>,
    /// The last one that has.
    pub(super) last: Option<Found>,
}

/// A scrub that has not come to its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Current {
    /// Whether it goes on by itself. One that was stopped waits for a command, or the schedule.
    pub(super) is_wanted: bool,
    /// The schedule has begun it.
    pub(super) is_scheduled: bool,
    /// It repairs nothing.
    pub(super) only_looks: bool,
    /// It also repairs what may be a change that kept the time, if no version of it is kept.
    pub(super) repairs_steady: bool,
    /// How many bytes a second it reads, if that was asked for.
    pub(super) rate: Option<u64>,
    /// The last file that it is done with: the directory and the name.
    pub(super) after: Option<(u64, Vec<u8>)>,
    /// The file under way: the directory and the name.
    pub(super) under_way: Option<(u64, Vec<u8>)>,
    /// How often something has halted the scrub at that file.
    pub(super) halts: u32,
    /// What that was the last time.
    pub(super) halted_by: String,
    /// The files that it is done with.
    pub(super) visited: Amount,
    pub(super) found: Found,
}

impl Current {
    /// Notes that the file `key` is begun. Returns why it is to be left out, if it has halted the
    /// scrub too often.
    pub(super) fn begin_file(&mut self, key: &NameKey) -> Option<String> {
        let file = Some((key.parent.0, key.name.as_bytes().to_vec()));
        if self.under_way != file {
            (self.under_way, self.halts) = (file, 0);
        }
        (self.halts >= MOST_HALTS).then(|| self.halted_by.clone())
    }

    /// Notes that the scrub is halted by the file under way, if there is one.
    pub(super) fn note_halt(&mut self, why: String) {
        if self.under_way.is_some() {
            self.halts += 1;
            self.halted_by = why;
        }
    }

    /// Notes that the scrub is done with the file `key`.
    pub(super) fn end_file(&mut self, key: &NameKey, size: u64) {
        self.after = Some((key.parent.0, key.name.as_bytes().to_vec()));
        self.visited.add(size);
        (self.under_way, self.halts) = (None, 0);
    }

    pub(super) fn position(&self) -> Option<NameKey> {
        let (parent, name) = self.after.as_ref()?;
        let parent = Ino(*parent);
        let name = Name::new(name).ok()?;
        Some(NameKey { parent, name })
    }
}

/// What a scrub has found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Found {
    /// Nanoseconds since 1970.
    pub(super) started: i64,
    pub(super) ended: Option<i64>,
    pub(super) read: Amount,
    pub(super) compared: u64,
    pub(super) recorded: u64,
    pub(super) left_out: u64,
    pub(super) damaged: u64,
    pub(super) repaired: u64,
    pub(super) unsteady: u64,
    pub(super) unreadable: u64,
    pub(super) problems: Vec<Problem>,
}

impl Found {
    pub(super) fn add_problem(&mut self, problem: Problem) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(problem);
        }
    }

    pub(super) fn report(&self) -> ScrubReport {
        let time = |nanos| rfc3339(Timestamp(nanos));
        ScrubReport {
            started: time(self.started),
            ended: self.ended.map(time),
            read: self.read,
            compared: self.compared,
            recorded: self.recorded,
            left_out: self.left_out,
            damaged: self.damaged,
            repaired: self.repaired,
            waiting: 0,
            unsteady: self.unsteady,
            unreadable: self.unreadable,
            problems: self.problems.iter().map(Problem::told).collect(),
        }
    }
}

/// A file that is damaged or unreadable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Problem {
    parent: u64,
    name: Vec<u8>,
    size: u64,
    mtime: i64,
    hash: Option<[u8; 32]>,
    path: String,
    problem: String,
    pub(super) repaired: bool,
    /// It was marked to be written again.
    #[serde(default)]
    pub(super) marked: bool,
}

impl Problem {
    pub(super) fn new(
        (key, entry): (&NameKey, &PlacedEntry),
        path: String,
        problem: String,
        repaired: bool,
    ) -> Problem {
        Problem {
            parent: key.parent.0,
            name: key.name.as_bytes().to_vec(),
            size: entry.size,
            mtime: entry.mtime.0,
            hash: entry.hash.map(|hash| hash.0),
            path,
            problem,
            repaired,
            marked: false,
        }
    }

    /// The same, of a file that was marked to be written again.
    pub(super) fn marked(self) -> Problem {
        Problem {
            repaired: true,
            marked: true,
            ..self
        }
    }

    /// Returns whether the drive still has the damaged bytes of a marked file.
    pub(super) fn is_before_flush(&self, entry: &PlacedEntry) -> bool {
        // The mark gives the row another hash; the flush gives it the right one again.
        let is_same = (self.size, self.mtime) == (entry.size, entry.mtime.0);
        is_same && (self.hash.is_none() || self.hash != entry.hash.map(|hash| hash.0))
    }

    fn told(&self) -> ScrubProblem {
        ScrubProblem {
            path: self.path.clone(),
            problem: self.problem.clone(),
            repaired: self.repaired,
        }
    }

    pub(super) fn key(&self) -> Option<NameKey> {
        let name = Name::new(&self.name).ok()?;
        let parent = Ino(self.parent);
        Some(NameKey { parent, name })
    }

    /// Returns whether it is about this version of the file.
    pub(super) fn is_about(&self, entry: &PlacedEntry) -> bool {
        let version = (self.size, self.mtime, self.hash.map(ContentHash));
        version == (entry.size, entry.mtime.0, entry.hash)
    }

    pub(super) fn line(&self) -> String {
        format!("{}: {}", printable(&self.path), self.problem)
    }
}

/// The file of the cache in `dir`.
pub(super) fn file(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

impl Memory {
    pub(super) fn read(path: &Path) -> Memory {
        private::read_or_new(path, "a scrub begins again")
    }

    pub(super) fn write(&self, path: &Path) {
        let written = (serde_json::to_vec(self).map_err(Into::into))
            .and_then(|it| private::replace(path, &it));
        if let Err(error) = written {
            tracing::warn!(%error, "the progress of the scrub is forgotten with this daemon");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_halts_a_scrub_twice_is_left_out_and_another_one_is_not() {
        let key = |name: &[u8]| NameKey {
            parent: Ino(7),
            name: Name::new(name).unwrap(),
        };
        let mut current = Current::default();
        // Before any file is begun nothing is its fault.
        current.note_halt("none".into());
        assert_eq!(current.begin_file(&key(b"a")), None);
        current.note_halt("once".into());
        assert_eq!(current.begin_file(&key(b"a")), None);
        current.note_halt("twice".into());
        // Also in another daemon.
        let text = serde_json::to_vec(&current).unwrap();
        let mut current: Current = serde_json::from_slice(&text).unwrap();
        assert_eq!(current.begin_file(&key(b"a")), Some("twice".into()));
        current.end_file(&key(b"a"), 5);
        current.note_halt("between two files".into());
        assert_eq!(current.begin_file(&key(b"b")), None);
        current.note_halt("once".into());
        assert_eq!(current.begin_file(&key(b"b")), None);
        assert_eq!((current.visited.files, current.visited.bytes), (1, 5));
    }

    #[test]
    fn a_damaged_memory_begins_again_and_a_whole_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path());
        assert_eq!(Memory::read(&path), Memory::default());
        let current = Current {
            is_wanted: true,
            after: Some((7, b"a\xff".to_vec())),
            ..Current::default()
        };
        let memory = Memory {
            current: Some(current),
            last: None,
        };
        memory.write(&path);
        assert_eq!(Memory::read(&path), memory);
        let position = memory.current.and_then(|it| it.position()).unwrap();
        assert_eq!(position.parent, Ino(7));
        assert_eq!(position.name.as_bytes(), b"a\xff");
        std::fs::write(&path, b"{\"current\":{").unwrap();
        assert_eq!(Memory::read(&path), Memory::default());
    }
}
