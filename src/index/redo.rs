//! The redo log: a finished operation survives the daemon's death at the price of one small write.
//!
//! A commit of SQLite writes whole pages, six of them for a new name. So the transaction stays open
//! over many operations, and each operation appends one record to this log when it is finished
//! ([`super::IndexWriter::finish`]): the statements that it ran, with their parameters. The record
//! is in the page cache when the operation is acknowledged. That survives `kill -9`; it does not
//! survive a power cut, and neither does a commit without an fsync.
//!
//! **Epochs.** Each commit stores a number that was never used before, the epoch, in the same
//! transaction as the rows. A record names the epoch of the rows that it builds on. So the log
//! starts from its beginning without being touched: after a commit the next record is written at
//! its start.
//!
//! | crash after | what is there | repaired by |
//! |---|---|---|
//! | statements of an operation, before its record | rows of the last commit, whole records | nothing to repair: the operation was not acknowledged |
//! | a part of a record | its checksum is wrong: the log ends before it | the same |
//! | the record | rows of the last commit, all records | [`RedoLog::replay_earlier`] at the next start |
//! | the commit, before the next record | rows with a new epoch, records of the one before | nothing to repair: such records are ignored |
//! | a replay, or a part of it | the transaction of the replay is committed as a whole or not at all | the next start replays again |
//! | a commit that failed, and whose rows are there all the same | a mark in the log names the epoch of that commit | the next start replays the records after the mark |
//!
//! **Power cut.** Records name objects whose bytes were in memory only, and the two may have
//! reached the disk in any order. Each record has the number of the boot in its checksum, so that a
//! log of another boot is ignored. What must survive a power cut was committed and synced.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, OptionalExtension, ToSql, params_from_iter};

use crate::index::wal::failed;
use crate::index::{Context, Corruption, IndexError, Result, beside, statements};
use crate::sys::file::{FallocateMode, allocate};

/// Size of the file, allocated when it is made, so that an append to a full SSD has its space.
const LENGTH: u64 = 4 << 20;

/// A longer log is full: a commit starts it from its beginning.
const FULL: u64 = LENGTH / 2;

/// The longest record. An operation that changes more is committed instead.
const LONGEST: usize = 1 << 20;

/// Bytes before the entries of a record: checksum, length of the entries, epoch, number.
const HEADER: usize = 8 + 4 + 8 + 4;

/// Written after each record: no record begins here.
const END: [u8; HEADER] = [0; HEADER];

/// First byte of an entry.
const STATEMENT: u8 = 1;
const MARK: u8 = 2;

/// Reads and writes the epoch, a setting of the index.
const GET_EPOCH: &str = "SELECT value FROM meta WHERE key='epoch'";
pub(super) const PUT_EPOCH: &str = "INSERT OR REPLACE INTO meta VALUES('epoch',?)";

/// The changes of an operation since its last record, in the form of the log.
#[derive(Default)]
pub(super) struct Changes {
    entries: Vec<u8>,
    /// They cannot be logged.
    must_commit: bool,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.must_commit
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.must_commit = false;
    }

    /// Adds a statement that has been run.
    pub(super) fn add(&mut self, sql: &str, params: &[&dyn ToSql]) {
        if self.must_commit {
            return;
        }
        let is_known = statements::LOGGED.contains(&sql);
        let added = is_known.then(|| self.encode(sql, params)).flatten();
        if added.is_none() || self.entries.len() > LONGEST {
            self.entries = Vec::new();
            self.must_commit = true;
        }
    }

    /// Returns `None` if the log has no form for a parameter.
    fn encode(&mut self, sql: &str, params: &[&dyn ToSql]) -> Option<()> {
        self.entries.push(STATEMENT);
        put_bytes(&mut self.entries, sql.as_bytes())?;
        self.entries.push(u8::try_from(params.len()).ok()?);
        for param in params {
            match param.to_sql().ok()? {
                ToSqlOutput::Borrowed(value) => put_value(&mut self.entries, value)?,
                ToSqlOutput::Owned(value) => put_value(&mut self.entries, (&value).into())?,
                _ => return None,
            }
        }
        Some(())
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    out.extend_from_slice(&u32::try_from(bytes.len()).ok()?.to_le_bytes());
    out.extend_from_slice(bytes);
    Some(())
}

fn put_value(out: &mut Vec<u8>, value: ValueRef<'_>) -> Option<()> {
    match value {
        ValueRef::Null => out.push(b'n'),
        ValueRef::Integer(number) => {
            out.push(b'i');
            out.extend_from_slice(&number.to_le_bytes());
        }
        ValueRef::Text(text) => {
            out.push(b't');
            put_bytes(out, text)?;
        }
        ValueRef::Blob(bytes) => {
            out.push(b'b');
            put_bytes(out, bytes)?;
        }
        ValueRef::Real(_) => return None,
    }
    Some(())
}

/// An entry of a record.
enum Entry {
    Statement(String, Vec<Value>),
    /// A commit with this epoch failed. If its rows are there all the same, the records after the
    /// mark build on them.
    Mark(u64),
}

/// Reads entries; returns `None` for an invalid one.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = u32::from_le_bytes(self.array()?);
        self.take(count as usize)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn value(&mut self) -> Option<Value> {
        Some(match self.byte()? {
            b'n' => Value::Null,
            b'i' => Value::Integer(i64::from_le_bytes(self.array()?)),
            b't' => Value::Text(self.text()?),
            b'b' => Value::Blob(self.bytes()?.to_vec()),
            _ => return None,
        })
    }

    fn entry(&mut self) -> Option<Entry> {
        match self.byte()? {
            STATEMENT => {
                let sql = self.text()?;
                let count = self.byte()?;
                let params = (0..count).map(|_| self.value()).collect::<Option<_>>()?;
                Some(Entry::Statement(sql, params))
            }
            MARK => self
                .array()
                .map(|epoch| Entry::Mark(u64::from_le_bytes(epoch))),
            _ => None,
        }
    }
}

/// The log's file, and the position of the next record.
pub(super) struct RedoLog {
    path: PathBuf,
    file: File,
    /// Key of the checksums: the boot.
    key: [u8; 32],
    /// The epoch of the rows that the records build on.
    epoch: u64,
    /// The newest epoch that a commit was tried with.
    tried: u64,
    /// The position of the next record, and its number.
    at: u64,
    number: u32,
    /// A failed commit could not be marked: nothing is appended until the next one succeeds.
    broken: bool,
    record: Vec<u8>,
}

impl RedoLog {
    /// Opens the log beside the index `index`, and makes it if it does not exist. Returns `None` if
    /// this boot cannot be distinguished from others: then nothing may be replayed, and each
    /// operation has to be committed.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(super) fn open(index: &Path, boot: Option<&str>) -> Result<Option<RedoLog>> {
        let Some(boot) = boot else {
            return Ok(None);
        };
        let path = redo_path(index);
        let file = crate::cache::private::own()
            .read(true)
            .write(true)
            .create(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        // Without it an append may find no space; the operation is then committed.
        let _ = allocate(&file, FallocateMode::empty(), 0, LENGTH);
        Ok(Some(RedoLog {
            key: blake3::derive_key("ferryfs redo log, boot", boot.as_bytes()),
            path,
            file,
            epoch: 0,
            tried: 0,
            at: 0,
            number: 0,
            broken: false,
            record: Vec::new(),
        }))
    }

    /// Starts the log from its beginning: records build on the rows of `epoch` from now on.
    pub(super) fn begin_anew(&mut self, epoch: u64) {
        (self.epoch, self.tried) = (epoch, epoch);
        (self.at, self.number) = (0, 0);
        self.broken = false;
    }

    /// Returns whether operations were finished since the last commit.
    pub(super) fn has_records(&self) -> bool {
        self.number > 0
    }

    /// Returns an epoch for the rows that this daemon starts with, which no earlier daemon has
    /// used.
    pub(super) fn first_epoch() -> u64 {
        // SQLite's integers are signed, and commits count up from here.
        (uuid::Uuid::new_v4().as_u128() as u64) >> 2
    }

    /// Returns an epoch for the next commit, which no commit before was tried with.
    pub(super) fn next_epoch(&mut self) -> u64 {
        self.tried = self.tried.wrapping_add(1);
        self.tried
    }

    /// Appends a record with `changes`. Returns false if they cannot be logged.
    ///
    /// # Errors
    /// If the file cannot be written: the log is as it was before.
    pub(super) fn append(&mut self, changes: &Changes) -> Result<bool> {
        if changes.must_commit || self.broken || self.at >= FULL {
            return Ok(false);
        }
        self.write(&changes.entries)?;
        Ok(true)
    }

    /// Notes that the commit with the newest epoch has failed.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn mark_failed_commit(&mut self) -> Result<()> {
        let mut entry = vec![MARK];
        entry.extend_from_slice(&self.tried.to_le_bytes());
        let marked = self.write(&entry);
        self.broken |= marked.is_err();
        marked
    }

    fn write(&mut self, entries: &[u8]) -> Result<()> {
        let length = (entries.len() as u32).to_le_bytes();
        self.record.clear();
        self.record.extend_from_slice(&[0; 8]);
        self.record.extend_from_slice(&length);
        self.record.extend_from_slice(&self.epoch.to_le_bytes());
        self.record.extend_from_slice(&self.number.to_le_bytes());
        self.record.extend_from_slice(entries);
        let sum = checksum(&self.key, &self.record[8..]);
        self.record[..8].copy_from_slice(&sum);
        let next = self.at + self.record.len() as u64;
        self.record.extend_from_slice(&END);
        self.file
            .write_all_at(&self.record, self.at)
            .map_err(failed("write", &self.path))?;
        (self.at, self.number) = (next, self.number + 1);
        Ok(())
    }

    /// Applies, in the open transaction of `conn`, the records of this log since it was begun.
    ///
    /// # Errors
    /// If the log or the index cannot be read.
    pub(super) fn replay(&self, conn: &Connection) -> Result<()> {
        let found = self.read()?;
        let own = found.records.iter().take(self.number as usize);
        own.flatten().try_for_each(|entry| apply(conn, entry))
    }

    /// Applies, in the open transaction of `conn`, the operations that an earlier daemon has
    /// finished and not committed: the records that build on the present rows. Returns their
    /// number.
    ///
    /// # Errors
    /// If the log or the index cannot be read or written.
    pub(super) fn replay_earlier(&self, conn: &Connection) -> Result<usize> {
        let epoch: Option<i64> = conn
            .query_row(GET_EPOCH, [], |row| row.get(0))
            .optional()
            .context("read the epoch")?;
        let Some(epoch) = epoch.map(i64::cast_unsigned) else {
            return Ok(0);
        };
        let found = self.read()?;
        let builds_on_mark = |record: &Vec<Entry>| {
            let mut entries = record.iter();
            entries.any(|entry| matches!(entry, Entry::Mark(mark) if *mark == epoch))
        };
        let first = if found.epoch == epoch {
            0
        } else if let Some(mark) = found.records.iter().rposition(builds_on_mark) {
            mark + 1
        } else {
            return Ok(0);
        };
        let records = &found.records[first..];
        for entry in records.iter().flatten() {
            apply(conn, entry)?;
        }
        Ok(records.len())
    }

    /// Reads the records from the start of the log to the first that is not whole.
    fn read(&self) -> Result<Found> {
        let mut log = vec![0; LENGTH as usize];
        let mut length = 0;
        while length < log.len() {
            let read = self.file.read_at(&mut log[length..], length as u64);
            match read.map_err(failed("read", &self.path))? {
                0 => break,
                more => length += more,
            }
        }
        let mut rest = &log[..length];
        let mut found = Found::default();
        while let Some((record, after)) = self.whole_record(rest) {
            if found.records.is_empty() {
                found.epoch = record.epoch;
            }
            if record.epoch != found.epoch || record.number as usize != found.records.len() {
                break;
            }
            let Some(entries) = entries(record.entries) else {
                break;
            };
            found.records.push(entries);
            rest = after;
        }
        Ok(found)
    }

    /// Splits off the record at the start of `log`, if it is whole and of this boot.
    fn whole_record<'a>(&self, log: &'a [u8]) -> Option<(Record<'a>, &'a [u8])> {
        let mut header = Reader(log);
        let sum: [u8; 8] = header.array()?;
        let length = u32::from_le_bytes(header.array()?) as usize;
        let epoch = u64::from_le_bytes(header.array()?);
        let number = u32::from_le_bytes(header.array()?);
        let entries = header.take(length)?;
        let record = Record {
            epoch,
            number,
            entries,
        };
        let summed = log.get(sum.len()..HEADER + length)?;
        (checksum(&self.key, summed) == sum).then_some((record, header.0))
    }
}

/// Applies to the index in the file `index`, open as `conn`, the records of its redo log that are
/// newer than its rows.
///
/// # Errors
/// If the log cannot be read, or the rows cannot be changed: then none is.
pub(super) fn replay_earlier(conn: &Connection, index: &Path) -> Result<()> {
    let boot = crate::sys::host::boot_id();
    if !redo_path(index).exists() {
        return Ok(());
    }
    let Some(log) = RedoLog::open(index, boot.as_deref())? else {
        return Ok(());
    };
    let begin = conn.unchecked_transaction();
    let transaction = begin.context("replay the redo log")?;
    log.replay_earlier(conn)?;
    transaction.commit().context("replay the redo log")
}

/// A whole record.
struct Record<'a> {
    epoch: u64,
    number: u32,
    entries: &'a [u8],
}

/// The contents of a log.
#[derive(Default)]
struct Found {
    /// The epoch of the rows that the records build on.
    epoch: u64,
    records: Vec<Vec<Entry>>,
}

fn entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut reader = Reader(bytes);
    let mut entries = Vec::new();
    while !reader.0.is_empty() {
        entries.push(reader.entry()?);
    }
    Some(entries)
}

fn apply(conn: &Connection, entry: &Entry) -> Result<()> {
    let Entry::Statement(sql, params) = entry else {
        return Ok(());
    };
    // Somebody who can edit the file must not be able to run other statements.
    if !statements::LOGGED.contains(&sql.as_str()) {
        return Err(IndexError::Corrupt(Corruption::UnknownStatement));
    }
    let run = || -> rusqlite::Result<()> {
        let mut statement = conn.prepare_cached(sql)?;
        // Not `execute`: some statements return the row that they delete.
        let mut rows = statement.query(params_from_iter(params))?;
        while rows.next()?.is_some() {}
        Ok(())
    };
    run().context("replay the redo log")
}

fn checksum(key: &[u8; 32], bytes: &[u8]) -> [u8; 8] {
    let sum = blake3::keyed_hash(key, bytes);
    let mut short = [0; 8];
    short.copy_from_slice(&sum.as_bytes()[..8]);
    short
}

/// Returns the file of the log of the index `index`.
fn redo_path(index: &Path) -> PathBuf {
    beside(index, "-redo")
}

#[cfg(test)]
mod tests;
