//! The history of batches: a file in the cache, one JSON object a line, the newest last.
//!
//! A line is written after its batch has ended, in one write at the end of the file. Nothing reads
//! the file but `ferryfs log`, so a lost line loses no data.
//!
//! | a crash | leaves | then |
//! |---|---|---|
//! | after a batch, before its line | no line | the batch is missing in the history |
//! | while a line is written | a torn last line | readers skip it; the next line begins on a new one |
//! | while the file is shortened | the old file, and perhaps a temporary one | the next shortening replaces both |
//!
//! The file is shortened to its newer half when it has [`MOST_BYTES`]. The lock of [`History`] is
//! held for one line; no other lock is taken under it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::cache::private;
use crate::core::Timestamp;
use crate::daemon::service::rfc3339;
use crate::flush::{BatchNote, NotedEnd};

/// Its name in the cache.
const NAME: &str = "history.jsonl";

/// The name of its successor while it is shortened.
const NEW_NAME: &str = "history.jsonl.new";

/// The file is shortened when it has so many bytes: some thousand batches.
const MOST_BYTES: u64 = 1 << 20;

/// A problem is cut to so many characters, so that a line stays a line.
const LONGEST_PROBLEM: usize = 300;

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All of it is on the drive.
    Complete,
    /// It is on the drive, and some entries are missing from it.
    LeftBehind,
    /// It was given up; all of it still waits.
    GivenUp,
    /// It was committed and could not be finished then.
    Interrupted,
}

impl Outcome {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Outcome; 4] = [
        Outcome::Complete,
        Outcome::LeftBehind,
        Outcome::GivenUp,
        Outcome::Interrupted,
    ];

    /// Its name in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Complete => "complete",
            Outcome::LeftBehind => "left_behind",
            Outcome::GivenUp => "given_up",
            Outcome::Interrupted => "interrupted",
        }
    }
}

impl From<NotedEnd> for Outcome {
    fn from(end: NotedEnd) -> Outcome {
        match end {
            NotedEnd::Complete => Outcome::Complete,
            NotedEnd::LeftBehind => Outcome::LeftBehind,
            NotedEnd::GivenUp => Outcome::GivenUp,
            NotedEnd::Interrupted => Outcome::Interrupted,
        }
    }
}

/// One batch of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When it ended: RFC 3339, UTC.
    pub time: String,
    /// Its number, counted per volume from 1.
    pub batch: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// A recovery has finished it or has given it up, after an interruption.
    #[serde(default)]
    pub recovered: bool,
    /// Files that it has written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names that it has removed.
    pub removed: u64,
    /// Names that it has moved.
    pub moved: u64,
    /// Files that both sides had changed, found since the batch before it.
    pub conflicts: u64,
    /// Entries that it has left behind.
    pub left_behind: u64,
    /// How long it took.
    pub seconds: f64,
    /// Why it was given up or interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Entry {
    fn of(note: &BatchNote, time: Timestamp) -> Entry {
        let cut = |problem: &String| problem.chars().take(LONGEST_PROBLEM).collect();
        Entry {
            time: rfc3339(time),
            batch: note.batch.0,
            outcome: note.end.into(),
            recovered: note.recovered,
            files: note.files,
            bytes: note.bytes,
            removed: note.removed,
            moved: note.moved,
            conflicts: note.conflicts,
            left_behind: note.left_behind,
            seconds: (note.took.as_secs_f64() * 1000.0).round() / 1000.0,
            problem: note.problem.as_ref().map(cut),
        }
    }
}

/// The history of a cache that a daemon serves.
pub(super) struct History {
    path: PathBuf,
    writing: Mutex<()>,
}

impl History {
    /// The history of the cache `dir`. Nothing is opened before the first batch.
    pub(super) fn of(dir: &Path) -> History {
        History {
            path: dir.join(NAME),
            writing: Mutex::new(()),
        }
    }

    /// Adds a batch. A failure is logged and has no other effect.
    pub(super) fn note(&self, note: &BatchNote, time: Timestamp) {
        let _writing = self.writing.lock();
        let entry = Entry::of(note, time);
        if let Err(error) = append(&self.path, &entry, MOST_BYTES) {
            tracing::warn!(%error, "the batch is missing in the history");
        }
    }
}

/// Adds a line, and shortens the file first if it has `most` bytes.
fn append(path: &Path, entry: &Entry, most: u64) -> io::Result<()> {
    let mut line = serde_json::to_vec(entry).map_err(io::Error::other)?;
    line.push(b'\n');
    let mut file = open(path)?;
    let mut end = file.seek(SeekFrom::End(0))?;
    if end + line.len() as u64 > most {
        shorten(path, &mut file, most / 2)?;
        file = open(path)?;
        end = file.seek(SeekFrom::End(0))?;
    }
    if is_torn(&mut file, end)? {
        line.insert(0, b'\n');
    }
    file.write_all(&line)
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = private::own();
    let file = options.read(true).append(true).create(true).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("the history is no plain file")),
    }
}

/// Whether the last line has no end, because its writer was interrupted.
fn is_torn(file: &mut File, end: u64) -> io::Result<bool> {
    if end == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(end - 1))?;
    file.read_exact(&mut last)?;
    Ok(last != [b'\n'])
}

/// Replaces the file by its last whole lines of at most `keep` bytes.
fn shorten(path: &Path, file: &mut File, keep: u64) -> io::Result<()> {
    let bytes = tail(file, keep)?;
    let new = path.with_file_name(NEW_NAME);
    let mut shorter = private::make_new(&new)?;
    shorter.write_all(&bytes)?;
    // A rename that became durable before the bytes would lose all of the history.
    shorter.sync_data()?;
    fs::rename(&new, path)
}

/// The last `most` bytes of the file, from the beginning of a line.
fn tail(file: &mut File, most: u64) -> io::Result<Vec<u8>> {
    let end = file.seek(SeekFrom::End(0))?;
    let start = end.saturating_sub(most);
    // With the byte before, a line that begins right there counts as a whole one.
    let from = start.saturating_sub(1);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(end - from).read_to_end(&mut bytes)?;
    if start > 0 {
        let first = bytes.iter().position(|&byte| byte == b'\n');
        bytes.drain(..first.map_or(bytes.len(), |at| at + 1));
    }
    Ok(bytes)
}

/// Returns the last `most` batches of the cache `dir`, the newest last. Lines that are no entries
/// are skipped. Without a history it is empty.
///
/// # Errors
/// If it cannot be read.
pub fn read(dir: &Path, most: usize) -> io::Result<Vec<Entry>> {
    let mut file = match private::own().read(true).open(dir.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("the history is no plain file"));
    }
    let bytes = tail(&mut file, MOST_BYTES)?;
    let lines = bytes.split(|&byte| byte == b'\n').rev();
    let mut entries: Vec<Entry> = lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .take(most)
        .collect();
    entries.reverse();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(batch: u64) -> Entry {
        Entry {
            time: "2026-11-20T00:00:00Z".into(),
            batch,
            outcome: Outcome::Complete,
            recovered: false,
            files: 3,
            bytes: 4096,
            removed: 1,
            moved: 2,
            conflicts: 0,
            left_behind: 0,
            seconds: 1.5,
            problem: None,
        }
    }

    fn numbers(dir: &Path, most: usize) -> Vec<u64> {
        let entries = read(dir, most).unwrap();
        entries.iter().map(|entry| entry.batch).collect()
    }

    #[test]
    fn without_a_history_it_is_empty_and_then_has_each_batch_in_order() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), 10).unwrap(), []);
        for batch in 1..=5 {
            append(&dir.path().join(NAME), &entry(batch), MOST_BYTES).unwrap();
        }
        assert_eq!(numbers(dir.path(), 10), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(dir.path(), 2), [4, 5]);
        assert_eq!(read(dir.path(), 1).unwrap(), [entry(5)]);
    }

    #[test]
    fn a_line_torn_at_any_byte_costs_that_line_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let line = serde_json::to_vec(&entry(2)).unwrap();
        for cut in 0..line.len() {
            let _ = fs::remove_file(&path);
            append(&path, &entry(1), MOST_BYTES).unwrap();
            let mut file = open(&path).unwrap();
            file.write_all(&line[..cut]).unwrap();
            assert_eq!(numbers(dir.path(), 9), [1], "cut at {cut}");
            append(&path, &entry(3), MOST_BYTES).unwrap();
            assert_eq!(numbers(dir.path(), 9), [1, 3], "cut at {cut}");
        }
    }

    #[test]
    fn the_file_stays_below_its_bound_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        for batch in 1..=200 {
            append(&path, &entry(batch), 4000).unwrap();
            assert!(fs::metadata(&path).unwrap().len() <= 4000);
            let kept = numbers(dir.path(), 1000);
            let first = batch + 1 - kept.len() as u64;
            assert_eq!(kept, (first..=batch).collect::<Vec<_>>());
        }
        assert!(numbers(dir.path(), 1000).len() >= 10);
    }

    #[test]
    fn garbage_and_newer_fields_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        fs::write(&path, b"\xff\xfe\n{}\nnull\n[1]\n\n").unwrap();
        append(&path, &entry(7), MOST_BYTES).unwrap();
        let mut newer = serde_json::to_value(entry(8)).unwrap();
        newer["colour"] = "green".into();
        let mut file = open(&path).unwrap();
        writeln!(file, "{newer}").unwrap();
        assert_eq!(numbers(dir.path(), 9), [7, 8]);
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        fs::write(&other, b"theirs").unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join(NAME)).unwrap();
        append(&dir.path().join(NAME), &entry(1), MOST_BYTES).unwrap_err();
        read(dir.path(), 9).unwrap_err();
        assert_eq!(fs::read(&other).unwrap(), b"theirs");
    }
}
