//! A daemon that is killed at any moment: afterwards exactly the finished operations are there. The
//! same operations on an index that commits each of them give the expected rows.

use std::fs;
use std::path::Path;

use rusqlite::types::Value;

use super::*;
use crate::core::{Capabilities, Ino, Name, Timestamp};
use crate::index::{Index, IndexWriter, Inode};
use crate::plan::names::NameRules;

const TABLES: [&str; 11] = [
    "inodes",
    "dirents",
    "placed",
    "dirty_names",
    "dirty_inodes",
    "dead_objects",
    "xattrs",
    "xattr_sizes",
    "tall_dirs",
    "replaced",
    // The reserved numbers and the epoch differ.
    "(SELECT * FROM meta WHERE key NOT LIKE 'next_%' AND key NOT IN ('epoch', 'opened'))",
];

type Rows = Vec<Vec<Vec<Value>>>;

/// Returns all rows, as another connection sees them.
fn rows(index: &Index) -> Rows {
    index.commit().unwrap();
    let state = index.lock();
    let of = |table: &str| -> Vec<Vec<Value>> {
        let sql = format!("SELECT * FROM {table}");
        let mut statement = state.conn.prepare(&sql).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..columns).map(|column| row.get(column)).collect();
        let rows = statement.query_map([], row).unwrap();
        let mut rows: Vec<Vec<Value>> = rows.map(|row| row.unwrap()).collect();
        rows.sort_by_key(|row| format!("{row:?}"));
        rows
    };
    TABLES.map(of).into()
}

fn open(dir: &Path) -> Index {
    let rules = NameRules::new(&Capabilities::everything());
    Index::open(&dir.join("index.db"), rules).unwrap()
}

/// Returns what is on the disk at this moment, for a daemon that starts after a kill.
fn image(dir: &Path) -> tempfile::TempDir {
    let image = tempfile::tempdir().unwrap();
    for file in fs::read_dir(dir).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), image.path().join(file.file_name())).unwrap();
    }
    image
}

fn name(number: u64) -> Name {
    Name::new(format!("name {number}").as_bytes()).unwrap()
}

/// Pseudo-random numbers (xorshift).
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Runs one operation of each kind that requests do. Does nothing if its names are not as it needs.
fn operate(state: &mut IndexWriter, kind: u64, a: u64, b: u64) -> Result<()> {
    let root = Ino::ROOT;
    let found = state.lookup(root, &name(a))?;
    match (kind, found) {
        (0, None) => {
            let mut inode = Inode::new(state.new_ino()?, libc::S_IFREG | 0o644, 0, 0, Timestamp(7));
            inode.data_seq = state.next_seq()?;
            inode.object = Some(state.new_object()?);
            state.put_inode(inode.clone());
            state.add_name(root, &name(a), &inode)?;
        }
        (1, Some(ino)) => {
            state.remove_name(root, &name(a))?;
            state.remove_inode(ino)?;
        }
        (2, Some(ino)) => {
            let inode = state.expect_inode(ino)?;
            if state.lookup(root, &name(b))?.is_none() {
                state.remove_name(root, &name(a))?;
                state.add_name(root, &name(b), &inode)?;
            }
        }
        (3, Some(ino)) => {
            let mut inode = state.expect_inode(ino)?;
            inode.size = b * 1000;
            state.note_attributes(&mut inode)?;
            state.put_inode(inode);
        }
        (4, Some(ino)) => {
            let text = format!("user.{b}");
            let value = a.is_multiple_of(2).then_some(b"value".as_slice());
            state.put_xattr(ino, text.as_bytes(), value)?;
        }
        (5, Some(ino)) => {
            let inode = state.expect_inode(ino)?;
            let seq = state.next_seq()?;
            state.note_replaced(None, (ino, seq), &inode)?;
        }
        (6, _) => state.set_meta(&format!("setting {a}"), &b.to_string())?,
        _ => {}
    }
    Ok(())
}

/// Two indexes with the same operations: one logs them, one commits them.
struct Pair {
    logged: (tempfile::TempDir, Index),
    committed: (tempfile::TempDir, Index),
    rng: Rng,
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let index = || {
            let dir = tempfile::tempdir().unwrap();
            let index = open(dir.path());
            let mut state = index.lock();
            let root = Inode::new(Ino::ROOT, libc::S_IFDIR | 0o755, 0, 0, Timestamp(1));
            state.put_inode(root);
            state.commit().unwrap();
            drop(state);
            (dir, index)
        };
        Pair {
            logged: index(),
            committed: index(),
            rng: Rng(seed * 2 + 1),
        }
    }

    fn operate(&mut self) {
        let (kind, a, b) = (self.rng.below(7), self.rng.below(12), self.rng.below(12));
        for (index, is_logged) in [(&self.logged.1, true), (&self.committed.1, false)] {
            let mut state = index.lock();
            operate(&mut state, kind, a, b).unwrap();
            match is_logged {
                true => state.finish().unwrap(),
                false => drop(state.commit().unwrap()),
            }
        }
    }

    fn assert_survives(&self, case: &str) {
        let image = image(self.logged.0.path());
        for start in 1..3 {
            let found = rows(&open(image.path()));
            assert_eq!(found, rows(&self.committed.1), "{case}, start {start}");
        }
    }
}

#[test]
fn a_daemon_killed_after_any_operation_has_all_that_was_finished() {
    for seed in 1..6 {
        let mut pair = Pair::new(seed);
        for count in 0..120 {
            pair.operate();
            if pair.rng.below(20) == 0 {
                pair.logged.1.commit().unwrap();
            }
            if count % 5 == 0 {
                pair.assert_survives(&format!("seed {seed}, operation {count}"));
            }
        }
        assert!(
            pair.logged.1.lock().commits() < 30,
            "operations are committed, not logged"
        );
    }
}

#[test]
fn what_was_not_finished_is_not_there_after_a_kill() {
    let mut pair = Pair::new(3);
    for _ in 0..30 {
        pair.operate();
    }
    let mut state = pair.logged.1.lock();
    operate(&mut state, 0, 77, 0).unwrap();
    pair.assert_survives("in the middle of an operation");
}

#[test]
fn a_record_that_is_not_whole_ends_the_log() {
    let mut pair = Pair::new(4);
    for _ in 0..30 {
        pair.operate();
    }
    let before = rows(&pair.committed.1);
    let log_before = fs::read(redo_path(&pair.logged.0.path().join("index.db"))).unwrap();
    let mut state = pair.logged.1.lock();
    operate(&mut state, 6, 1, 999).unwrap();
    state.finish().unwrap();
    let whole = image(pair.logged.0.path());
    let log = fs::read(redo_path(&whole.path().join("index.db"))).unwrap();
    let differs = |at: &usize| log[*at] != log_before[*at];
    let (first, last) = (
        (0..log.len()).find(differs).unwrap(),
        (0..log.len()).rfind(differs).unwrap(),
    );
    for at in (first..=last).step_by(7).chain([last]) {
        let torn = image(whole.path());
        let mut bytes = log.clone();
        bytes[at..].fill(0);
        fs::write(redo_path(&torn.path().join("index.db")), &bytes).unwrap();
        assert_eq!(rows(&open(torn.path())), before, "torn at {at}");
        let flipped = image(whole.path());
        bytes.clone_from(&log);
        bytes[at] ^= 0x40;
        fs::write(redo_path(&flipped.path().join("index.db")), &bytes).unwrap();
        assert_eq!(rows(&open(flipped.path())), before, "flipped at {at}");
    }
    assert_ne!(rows(&open(whole.path())), before);
}

#[test]
fn an_operation_that_fails_takes_no_finished_one_with_it() {
    for seed in 1..4 {
        let mut pair = Pair::new(seed);
        for count in 0..60 {
            pair.operate();
            if pair.rng.below(4) > 0 {
                continue;
            }
            // There is space for it neither in the log nor in a commit.
            let is_commit = pair.rng.below(2) == 0;
            pair.logged.1.fail_next_commit(libc::ENOSPC);
            let mut state = pair.logged.1.lock();
            operate(&mut state, 6, 50, count).unwrap();
            let refused = match is_commit {
                true => state.commit().map(drop),
                false => state.finish(),
            };
            assert!(refused.unwrap_err().is_full());
            assert_eq!(state.meta("setting 50").unwrap(), None);
            drop(state);
            pair.assert_survives(&format!("seed {seed}, failure after {count}"));
            if is_commit {
                let found = rows(&pair.logged.1);
                assert_eq!(found, rows(&pair.committed.1), "seed {seed}, {count}");
            }
        }
        let totals = pair.logged.1.lock().totals();
        assert_eq!(totals, pair.committed.1.lock().totals());
    }
}

/// A commit may fail and its rows be in the file all the same.
#[test]
fn a_commit_that_failed_and_is_there_does_not_hide_what_came_after() {
    let mut pair = Pair::new(9);
    for _ in 0..20 {
        pair.operate();
    }
    // The rows that the failed commit leaves: the present ones, with its epoch.
    let there = image(pair.logged.0.path());
    let conn = Connection::open(there.path().join("index.db")).unwrap();
    let earlier = RedoLog::open(
        &there.path().join("index.db"),
        crate::sys::host::boot_id().as_deref(),
    );
    assert!(earlier.unwrap().unwrap().replay_earlier(&conn).unwrap() > 0);
    conn.execute_batch("UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
        .unwrap();
    drop(conn);
    pair.logged.1.fail_next_commit(libc::EIO);
    pair.logged.1.commit().unwrap_err();
    for _ in 0..20 {
        pair.operate();
    }
    pair.assert_survives("its rows are not there");
    let log = |dir: &Path| redo_path(&dir.join("index.db"));
    fs::copy(log(pair.logged.0.path()), log(there.path())).unwrap();
    assert_eq!(rows(&open(there.path())), rows(&pair.committed.1));
}

#[test]
fn a_log_of_another_boot_is_not_replayed() {
    let mut pair = Pair::new(5);
    pair.logged.1.commit().unwrap();
    let before = rows(&open(image(pair.logged.0.path()).path()));
    for _ in 0..30 {
        pair.operate();
    }
    let dead = image(pair.logged.0.path());
    let index = dead.path().join("index.db");
    let conn = Connection::open(&index).unwrap();
    let log = RedoLog::open(&index, Some("another boot"))
        .unwrap()
        .unwrap();
    assert_eq!(log.replay_earlier(&conn).unwrap(), 0);
    drop(conn);
    // The log of the other boot starts from its beginning; the rows are those of the commit.
    let log = fs::OpenOptions::new()
        .write(true)
        .open(redo_path(&index))
        .unwrap();
    log.write_all_at(b"another", 0).unwrap();
    assert_eq!(rows(&open(dead.path())), before);
}

#[test]
fn a_log_with_other_statements_is_refused_and_nothing_of_it_is_run() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let index = dir.path().join("index.db");
    let conn = Connection::open(&index).unwrap();
    let epoch: i64 = conn.query_row(GET_EPOCH, [], |row| row.get(0)).unwrap();
    drop(conn);
    let boot = crate::sys::host::boot_id();
    let mut log = RedoLog::open(&index, boot.as_deref()).unwrap().unwrap();
    log.begin_anew(epoch.cast_unsigned());
    let mut changes = Changes::default();
    changes.add(statements::PUT_SETTING, &[&"planted", &"1"]);
    changes.encode("DELETE FROM meta", &[]).unwrap();
    assert!(log.append(&changes).unwrap());
    let rules = NameRules::new(&Capabilities::everything());
    let refused = Index::open(&index, rules).map(drop).unwrap_err();
    assert!(refused.to_string().contains("another version"), "{refused}");
    let conn = Connection::open(&index).unwrap();
    let planted: i64 = conn
        .query_row("SELECT count(*) FROM meta WHERE key='planted'", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(planted, 0);
}

#[test]
fn a_full_log_is_committed_and_begun_anew() {
    let mut pair = Pair::new(8);
    let large = "x".repeat(200_000);
    for count in 0..40 {
        for index in [&pair.logged.1, &pair.committed.1] {
            let mut state = index.lock();
            state.set_meta(&format!("large {count}"), &large).unwrap();
            state.finish().unwrap();
        }
        pair.operate();
        if count % 8 == 0 {
            pair.assert_survives(&format!("after {count}"));
        }
    }
    let enormous = "x".repeat(3 << 20);
    for index in [&pair.logged.1, &pair.committed.1] {
        let mut state = index.lock();
        state.set_meta("enormous", &enormous).unwrap();
        state.finish().unwrap();
    }
    pair.assert_survives("with a record that has no place");
    let length = fs::metadata(redo_path(&pair.logged.0.path().join("index.db"))).unwrap();
    assert_eq!(length.len(), LENGTH);
}
