//! The feed of changes: for each batch that has reached the drive, what it has changed there. A
//! second copy follows it, and so can an audit. `ferryfs changes` reads it.
//!
//! One file for each batch, `changes/<batch>.jsonl` in the cache: a head, then one line for each
//! change. It is written under another name, synced and renamed before the batch ends in the index:
//!
//! | a crash | leaves | then |
//! |---|---|---|
//! | while the list is written | a temporary file, and an open batch | the recovery confirms the batch again, and writes the list again |
//! | after the rename, before the end of the batch | the list, and an open batch | the same; the list is replaced |
//!
//! After an interruption a list may say of a file that others have changed meanwhile, and that the
//! batch has put back, that it was removed: the recovery does not know which of the two happened.
//!
//! The head names the batch before it, so a list that is missing is noticed: it could not be
//! written, or it was removed because all of them together have [`MOST_BYTES`]. The lock of
//! [`Feed`] is held for one list; no other lock is taken under it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::cache::private;
use crate::core::{BatchNo, ForeignText, Timestamp};
use crate::daemon::service::rfc3339;
use crate::flush::{Change, ChangeKind};

/// Its name in the cache.
const NAME: &str = "changes";

/// The name of a list while it is written.
const NEW_NAME: &str = "new";

/// The oldest lists are removed when all together have so many bytes: half a million changes. The
/// newest one stays in any case.
const MOST_BYTES: u64 = 64 << 20;

/// Longest line: two paths of 4,095 bytes, each byte escaped.
const LONGEST_LINE: u64 = 128 << 10;

/// The first line of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    batch: u64,
    /// When it reached the drive: RFC 3339, UTC.
    time: String,
    /// The batch before it that has changed the drive; 0 for none.
    after: u64,
}

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A file with new content, or a new directory.
    Written,
    /// It was at `from` before, a directory with everything in it.
    Moved,
    /// The name is gone.
    Removed,
    /// Time, mode, owner or extended attributes.
    Attributes,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    change: What,
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    dir: bool,
}

/// One change, as `ferryfs changes` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The batch.
    pub batch: u64,
    /// When the batch reached the drive: RFC 3339, UTC.
    pub time: String,
    /// What became of the name.
    pub change: What,
    /// The name on the drive, as [`ForeignText::to_text`] converts it.
    pub path: String,
    /// The name before, if it was moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether it is a directory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dir: bool,
}

/// Why changes cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// Lists are missing.
    #[error(
        "the changes after batch {since} are not all known any more: those of batch {missing} are not there"
    )]
    Gap {
        /// The batch that was asked for.
        since: u64,
        /// The first missing one.
        missing: u64,
    },
    /// There is no such batch.
    #[error("there is no batch {since}: the newest with changes is {newest}")]
    Future {
        /// The batch that was asked for.
        since: u64,
        /// The newest batch; 0 for none.
        newest: u64,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.escaped())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The feed of a cache that a daemon serves.
pub(super) struct Feed {
    dir: PathBuf,
    writing: Mutex<()>,
}

impl Feed {
    /// The feed of the cache `cache`. Nothing is opened before the first batch.
    pub(super) fn of(cache: &Path) -> Feed {
        Feed {
            dir: cache.join(NAME),
            writing: Mutex::new(()),
        }
    }

    /// Adds the list of `batch`, which comes after `after`. A failure is logged; readers notice
    /// that the list is missing.
    pub(super) fn note(
        &self,
        batch: BatchNo,
        after: Option<BatchNo>,
        changes: &[Change],
        time: Timestamp,
    ) {
        let _writing = self.writing.lock();
        if let Err(error) = write(&self.dir, batch.0, after, changes, time) {
            tracing::warn!(%error, %batch, "the changes of the batch are missing in the feed");
        }
        if let Err(error) = shorten(&self.dir, MOST_BYTES) {
            tracing::warn!(%error, "the feed of changes cannot be shortened");
        }
    }
}

fn write(
    dir: &Path,
    batch: u64,
    after: Option<BatchNo>,
    changes: &[Change],
    time: Timestamp,
) -> io::Result<()> {
    private::make_dir(dir).map_err(io::Error::other)?;
    // Of very many failures in a row the index does not remember the last success.
    let older = numbers(dir)?.into_iter().rfind(|number| *number < batch);
    let head = Head {
        batch,
        time: rfc3339(time),
        after: after.map_or(0, |after| after.0).max(older.unwrap_or(0)),
    };
    let new = dir.join(NEW_NAME);
    let mut file = BufWriter::new(private::make_new(&new)?);
    put(&mut file, &head)?;
    for change in changes {
        put(&mut file, &Line::of(change))?;
    }
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_data()?;
    fs::rename(&new, dir.join(file_name(batch)))?;
    File::open(dir)?.sync_all()
}

fn put(file: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *file, value).map_err(io::Error::other)?;
    file.write_all(b"\n")
}

impl Line {
    fn of(change: &Change) -> Line {
        Line {
            change: match change.kind {
                ChangeKind::Written => What::Written,
                ChangeKind::Moved => What::Moved,
                ChangeKind::Removed => What::Removed,
                ChangeKind::Attributes => What::Attributes,
            },
            path: change.path.to_text(),
            from: change.from.as_ref().map(ForeignText::to_text),
            dir: change.is_dir,
        }
    }
}

fn file_name(batch: u64) -> String {
    format!("{batch:016x}.jsonl")
}

/// The batches that have a list, in ascending order.
fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".jsonl"));
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        numbers.extend(number.filter(|number| *name == *file_name(*number)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes the oldest lists until all together have at most `most` bytes, or one is left.
fn shorten(dir: &Path, most: u64) -> io::Result<()> {
    let mut kept = 0;
    for (at, number) in numbers(dir)?.into_iter().rev().enumerate() {
        let path = dir.join(file_name(number));
        kept += fs::symlink_metadata(&path)?.len();
        if at > 0 && kept > most {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The newest batch that has changed the drive and is in the feed of `cache`; 0 for none.
///
/// # Errors
/// If the feed cannot be read.
pub fn newest(cache: &Path) -> Result<u64, FeedError> {
    let dir = cache.join(NAME);
    let numbers = numbers(&dir).map_err(|source| FeedError::Io { path: dir, source })?;
    Ok(numbers.last().copied().unwrap_or(0))
}

/// The batch after which all changes in the feed of `cache` are known.
///
/// # Errors
/// If the feed cannot be read.
pub fn before_oldest(cache: &Path) -> Result<u64, FeedError> {
    let dir = cache.join(NAME);
    let failed = |source| FeedError::Io {
        path: dir.clone(),
        source,
    };
    let numbers = numbers(&dir).map_err(failed)?;
    let mut known = 0;
    let mut before = 0;
    for number in numbers {
        let (head, _) = open(&dir.join(file_name(number))).map_err(failed)?;
        if head.after > before {
            known = head.after;
        }
        before = number;
    }
    Ok(known)
}

/// Passes the changes of the batches after `since`, up to `until`, to `take`, oldest first.
///
/// # Errors
/// [`FeedError`]; those of `take`. If changes are missing nothing is passed.
pub fn read<E: From<FeedError>>(
    cache: &Path,
    since: u64,
    until: u64,
    mut take: impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let dir = cache.join(NAME);
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| FeedError::Io { path, source }
    };
    let numbers = numbers(&dir).map_err(failed(&dir))?;
    let newest = numbers.last().copied().unwrap_or(0);
    if since > newest {
        return Err(FeedError::Future { since, newest }.into());
    }
    let wanted = numbers
        .into_iter()
        .filter(|number| (since + 1..=until).contains(number));
    let mut lists = Vec::new();
    let mut before = since;
    for number in wanted {
        let path = dir.join(file_name(number));
        let (head, lines) = open(&path).map_err(failed(&path))?;
        if head.after > before {
            let missing = head.after;
            return Err(FeedError::Gap { since, missing }.into());
        }
        before = number;
        lists.push((path, head, lines));
    }
    for (path, head, lines) in lists {
        for line in lines {
            let line = line
                .and_then(|line| serde_json::from_slice::<Line>(&line).map_err(io::Error::from));
            let line = line.map_err(failed(&path))?;
            take(Entry {
                batch: head.batch,
                time: head.time.clone(),
                change: line.change,
                path: line.path,
                from: line.from,
                dir: line.dir,
            })?;
        }
    }
    Ok(())
}

/// Opens a list, and reads its head.
fn open(path: &Path) -> io::Result<(Head, impl Iterator<Item = io::Result<Vec<u8>>> + use<>)> {
    let file = private::own().read(true).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut file = BufReader::new(file);
    let mut lines = std::iter::from_fn(move || next_line(&mut file).transpose());
    let head = lines
        .next()
        .unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
    Ok((serde_json::from_slice(&head)?, lines))
}

/// Reads a line of bounded length.
fn next_line(file: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    io::Read::take(&mut *file, LONGEST_LINE).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(io::Error::other("a line is too long, or has no end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::RelPath;

    fn change(path: &'static str) -> Change {
        Change {
            kind: ChangeKind::Written,
            path: RelPath::fixed(path),
            from: None,
            is_dir: false,
        }
    }

    fn note(cache: &Path, batch: u64, after: u64, paths: &[&'static str]) {
        let changes: Vec<Change> = paths.iter().map(|path| change(path)).collect();
        let after = (after > 0).then_some(BatchNo(after));
        write(&cache.join(NAME), batch, after, &changes, Timestamp(0)).unwrap();
    }

    fn paths(cache: &Path, since: u64, until: u64) -> Result<Vec<(u64, String)>, FeedError> {
        let mut found = Vec::new();
        read(cache, since, until, |entry| {
            found.push((entry.batch, entry.path));
            Ok::<(), FeedError>(())
        })?;
        Ok(found)
    }

    fn list(of: &[(u64, &str)]) -> Vec<(u64, String)> {
        of.iter()
            .map(|(batch, path)| (*batch, (*path).to_owned()))
            .collect()
    }

    #[test]
    fn each_batch_is_told_once_in_order_also_if_its_list_is_written_twice() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(newest(cache.path()).unwrap(), 0);
        assert_eq!(paths(cache.path(), 0, u64::MAX).unwrap(), []);
        note(cache.path(), 3, 0, &["a", "b"]);
        note(cache.path(), 5, 3, &["c"]);
        note(cache.path(), 5, 3, &["c"]);
        let all = list(&[(3, "a"), (3, "b"), (5, "c")]);
        assert_eq!(paths(cache.path(), 0, u64::MAX).unwrap(), all);
        assert_eq!(paths(cache.path(), 3, u64::MAX).unwrap(), all[2..]);
        // Batch 4 was given up: it has changed nothing.
        assert_eq!(paths(cache.path(), 4, u64::MAX).unwrap(), all[2..]);
        assert_eq!(paths(cache.path(), 0, 4).unwrap(), all[..2]);
        assert_eq!(paths(cache.path(), 5, u64::MAX).unwrap(), []);
        assert_eq!(newest(cache.path()).unwrap(), 5);
        let future = paths(cache.path(), 6, u64::MAX).unwrap_err();
        assert!(
            matches!(
                future,
                FeedError::Future {
                    since: 6,
                    newest: 5
                }
            ),
            "{future}"
        );
    }

    #[test]
    fn a_list_that_is_missing_is_told_and_nothing_after_it_is_given() {
        let cache = tempfile::tempdir().unwrap();
        for batch in 1..=6 {
            note(cache.path(), batch, batch - 1, &["a"]);
        }
        fs::remove_file(cache.path().join(NAME).join(file_name(4))).unwrap();
        for since in [0, 1, 2, 3] {
            let gap = paths(cache.path(), since, u64::MAX).unwrap_err();
            assert!(matches!(gap, FeedError::Gap { missing: 4, .. }), "{gap}");
        }
        assert_eq!(paths(cache.path(), 4, u64::MAX).unwrap().len(), 2);
        assert_eq!(paths(cache.path(), 0, 3).unwrap().len(), 3);
    }

    #[test]
    fn the_oldest_go_and_the_newest_stays_however_long_it_is() {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join(NAME);
        for batch in 1..=20 {
            note(cache.path(), batch, batch - 1, &["a", "b", "c"]);
            shorten(&dir, 500).unwrap();
        }
        let kept = numbers(&dir).unwrap();
        assert!(
            kept.len() > 1 && kept.len() < 6 && kept.ends_with(&[20]),
            "{kept:?}"
        );
        shorten(&dir, 1).unwrap();
        assert_eq!(numbers(&dir).unwrap(), [20]);
    }

    #[test]
    fn damage_and_links_are_errors_that_name_the_file() {
        let cache = tempfile::tempdir().unwrap();
        note(cache.path(), 1, 0, &["a"]);
        let path = cache.path().join(NAME).join(file_name(1));
        let whole = fs::read(&path).unwrap();
        for bytes in [&b""[..], b"\xff\n", b"{}\n", &whole[..whole.len() - 1]] {
            fs::write(&path, bytes).unwrap();
            let error = paths(cache.path(), 0, u64::MAX).unwrap_err();
            assert!(error.to_string().contains(&file_name(1)), "{error}");
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        paths(cache.path(), 0, u64::MAX).unwrap_err();
    }

    #[test]
    fn names_that_are_no_text_are_the_same_after_reading() {
        use std::os::unix::ffi::OsStrExt;
        let cache = tempfile::tempdir().unwrap();
        let odd = RelPath::parse(b"a\xff\n/b").unwrap();
        let change = Change {
            kind: ChangeKind::Moved,
            path: odd.clone(),
            from: Some(odd.clone()),
            is_dir: true,
        };
        write(&cache.path().join(NAME), 1, None, &[change], Timestamp(0)).unwrap();
        let mut entries = Vec::new();
        read(cache.path(), 0, 9, |entry| {
            entries.push(entry);
            Ok::<(), FeedError>(())
        })
        .unwrap();
        let path = crate::core::path_of_text(&entries[0].path);
        assert_eq!(path.as_os_str().as_bytes(), odd.as_bytes());
        assert!(entries[0].dir && entries[0].from == Some(entries[0].path.clone()));
    }
}
