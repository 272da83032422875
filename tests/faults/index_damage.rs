//! A damaged index either opens and accounts for every byte that the cache holds, or is refused
//! before anything is written. What a power cut leaves of the WAL is no damage. Whatever has become
//! of the index, `rescue` gets every object out.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::rng::Rng;
use crate::engine::{Kind, ROOMY, World};
use ferryfs::cache::Store;
use ferryfs::core::{Capabilities, SystemClock};
use ferryfs::drive::connection::Drive;
use ferryfs::index::{Index, IndexError, check};
use ferryfs::plan::names::NameRules;
use ferryfs::recovery::rescue::{RescueReport, rescue};
use ferryfs::vfs::{Fs, FsParts};

/// The bytes of the file `n`: no two are alike.
fn body(n: usize) -> Vec<u8> {
    format!("{n}:").into_bytes().repeat(20 + n % 7)
}

const FILES: usize = 200;

/// A cache as a daemon's death leaves it: some of it in the database, some in the WAL.
fn dead_cache() -> World {
    let world = World::new(Kind::Plain);
    let engine = world.start(false);
    for dir in 0..8 {
        engine.mkdir(&format!("dir{dir}"));
    }
    for n in 0..FILES {
        engine.put(&format!("dir{}/file number {n}", n % 8), &body(n));
        if n == FILES / 2 {
            engine.fs.sync().expect("sync");
            engine.index.checkpoint().expect("checkpoint");
        }
    }
    engine.fs.sync().expect("sync");
    // As a kill would leave them: an orderly end would put the WAL back into the database.
    let keep = world.cache_dir().join("keep");
    fs::create_dir(&keep).expect("mkdir");
    for name in ["index.db", "index.db-wal"] {
        fs::copy(world.cache_dir().join(name), keep.join(name)).expect("copy");
    }
    engine.die();
    for name in ["index.db", "index.db-wal"] {
        fs::rename(keep.join(name), world.cache_dir().join(name)).expect("rename");
    }
    fs::remove_dir(keep).expect("rmdir");
    world
}

/// The same with all of it in the database, where damage tells.
fn without_wal() -> World {
    let world = dead_cache();
    rusqlite::Connection::open(world.cache_dir().join("index.db"))
        .and_then(|conn| conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)"))
        .expect("checkpoint");
    world
}

/// A copy of the cache `from` to be damaged.
fn copy_of(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory");
    copy_tree(from, to.path());
    to
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("list").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).expect("mkdir");
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// The contents of all files below these directories.
fn contents(dirs: &[PathBuf]) -> BTreeSet<Vec<u8>> {
    let files = dirs.iter().flat_map(|dir| files_below(dir));
    files.map(|file| fs::read(file).expect("read")).collect()
}

/// What everything in a directory is, to tell whether anything was written.
fn state_of(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = files_below(dir);
    files.sort();
    files
        .into_iter()
        .map(|file| (file.clone(), fs::read(file).expect("read")))
        .collect()
}

/// Without the empty files: SQLite makes an empty WAL even to read.
fn filled(state: Vec<(PathBuf, Vec<u8>)>) -> Vec<(PathBuf, Vec<u8>)> {
    let files = state.into_iter();
    files.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

fn all_bodies() -> BTreeSet<Vec<u8>> {
    (0..FILES).map(body).collect()
}

/// Serves the cache as a daemon would, up to the first request. The error is why not.
fn serve(cache: &Path) -> Result<(Arc<Fs>, Arc<Index>), String> {
    let rules = NameRules::new(&Kind::Plain.capabilities());
    let index = Index::open(&cache.join("index.db"), rules).map_err(|error| error.to_string())?;
    let index = Arc::new(index);
    let fs = Fs::new(FsParts {
        index: index.clone(),
        store: Arc::new(Store::open(cache).map_err(|error| error.to_string())?),
        drive: Arc::new(Drive::detached()),
        clock: Arc::new(SystemClock),
        capabilities: Kind::Plain.capabilities(),
        owner: (0, 0),
        limits: ROOMY,
        io_timeout: Duration::from_millis(1),
        cache_path: Vec::new(),
    });
    let fs = Arc::new(fs.map_err(|error| error.to_string())?);
    fs.recover().map_err(|error| error.to_string())?;
    Ok((fs, index))
}

/// What became of a damaged cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Refused,
    Opened,
}

/// Whatever the damage: refused with nothing written, or opened with every byte still there; and
/// `rescue` has them all.
fn meet(cache: &Path, what: &str) -> Fate {
    let before = state_of(cache);
    let out = tempfile::tempdir().expect("a directory");
    let report =
        rescue(cache, out.path(), false).unwrap_or_else(|error| panic!("{what}: rescue: {error}"));
    assert!(
        state_of(cache) == before,
        "{what}: rescue wrote into the cache"
    );
    let missing = all_bodies()
        .difference(&contents(&[out.path().into()]))
        .count();
    assert_eq!(missing, 0, "{what}: rescue left objects behind: {report:?}");
    let fate = match check(&cache.join("index.db"), Store::holds_objects(cache)) {
        Err(error) => {
            let clear = matches!(
                error,
                IndexError::Damaged { .. } | IndexError::OtherVersion(_)
            );
            assert!(clear, "{what}: {error}");
            Fate::Refused
        }
        Ok(_) => Fate::Opened,
    };
    let (after, before) = (filled(state_of(cache)), filled(before));
    let differs: Vec<_> = after
        .iter()
        .filter(|file| !before.contains(file))
        .chain(before.iter().filter(|file| !after.contains(file)))
        .map(|(path, bytes)| (path, bytes.len()))
        .collect();
    assert!(
        differs.is_empty(),
        "{what}: the look wrote into the cache: {differs:?}"
    );
    if fate == Fate::Opened {
        // It may still fail, but not lose anything.
        let served = serve(cache);
        let kept = contents(&[cache.join("objects"), cache.join("lost+found")]);
        let missing = all_bodies().difference(&kept).count();
        assert_eq!(missing, 0, "{what}: bytes are gone; {:?}", served.err());
    }
    fate
}

fn damage(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).expect("read");
    change(&mut bytes);
    fs::write(file, bytes).expect("write");
}

#[test]
fn an_index_with_flipped_bytes_is_refused_or_loses_nothing() {
    let world = without_wal();
    let mut rng = Rng::new(20_261_120);
    let mut refused = 0;
    for round in 0..50 {
        let cache = copy_of(world.cache_dir());
        let flips = 1 + rng.below(8);
        damage(&cache.path().join("index.db"), |bytes| {
            for _ in 0..flips {
                let at = rng.below(bytes.len());
                bytes[at] ^= 1 + rng.below(255) as u8;
            }
        });
        let fate = meet(cache.path(), &format!("round {round}"));
        refused += usize::from(fate == Fate::Refused);
    }
    assert!(
        refused > 10,
        "only {refused} of 50 were found to be damaged"
    );
}

#[test]
fn an_index_with_lost_pages_is_refused_or_loses_nothing() {
    with_each_page_lost(|cache, page| {
        meet(cache, &format!("page {page} zeroed"));
    });
}

/// Runs `act` on copies of one cache, each with another page of its index zeroed.
fn with_each_page_lost(mut act: impl FnMut(&Path, u64)) {
    let world = without_wal();
    let index = fs::metadata(world.cache_dir().join("index.db")).expect("stat");
    for page in 0..index.len() / 4096 {
        let cache = copy_of(world.cache_dir());
        let file = OpenOptions::new()
            .write(true)
            .open(cache.path().join("index.db"))
            .expect("open");
        file.write_all_at(&[0; 4096], page * 4096).expect("write");
        act(cache.path(), page);
    }
}

#[test]
fn an_index_that_was_cut_off_is_refused_or_loses_nothing() {
    for world in [dead_cache(), without_wal()] {
        cut_off(&world);
    }
}

fn cut_off(world: &World) {
    let mut rng = Rng::new(7);
    let length = fs::metadata(world.cache_dir().join("index.db"))
        .expect("stat")
        .len();
    let mut cuts: Vec<u64> = (0..12).map(|_| rng.below(length as usize) as u64).collect();
    cuts.extend([0, 1, 99, 100, 4095, 4096, length - 1]);
    for cut in cuts {
        let cache = copy_of(world.cache_dir());
        let file = OpenOptions::new()
            .write(true)
            .open(cache.path().join("index.db"))
            .expect("open");
        file.set_len(cut).expect("truncate");
        meet(cache.path(), &format!("cut at {cut} of {length}"));
    }
    let cache = copy_of(world.cache_dir());
    fs::remove_file(cache.path().join("index.db")).expect("remove");
    assert_eq!(meet(cache.path(), "index.db removed"), Fate::Refused);
}

/// What a power cut leaves: any prefix of the WAL, and garbage where blocks were allotted and not
/// written.
#[test]
fn a_wal_that_was_cut_off_or_garbled_at_its_end_opens() {
    let world = dead_cache();
    let mut rng = Rng::new(11);
    let length = fs::metadata(world.cache_dir().join("index.db-wal"))
        .expect("stat")
        .len();
    for round in 0..30 {
        let cache = copy_of(world.cache_dir());
        let cut = rng.below(length as usize + 1);
        damage(&cache.path().join("index.db-wal"), |bytes| {
            match round % 3 {
                0 => bytes.truncate(cut),
                1 => bytes[cut..].fill(0),
                _ => bytes[cut..]
                    .iter_mut()
                    .for_each(|byte| *byte = rng.below(256) as u8),
            }
        });
        let what = format!("round {round}, from {cut} of {length}");
        assert_eq!(meet(cache.path(), &what), Fate::Opened, "{what}");
        // Again from the start, as `meet` has served it already.
        serve(cache.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

#[test]
fn a_wal_with_flipped_bytes_is_refused_or_loses_nothing() {
    let world = dead_cache();
    let mut rng = Rng::new(13);
    for round in 0..30 {
        let cache = copy_of(world.cache_dir());
        damage(&cache.path().join("index.db-wal"), |bytes| {
            for _ in 0..3 {
                let at = rng.below(bytes.len());
                bytes[at] ^= 1 + rng.below(255) as u8;
            }
        });
        meet(cache.path(), &format!("round {round}"));
    }
}

/// Rows that SQLite finds nothing wrong with, and that would have bytes removed or mixed up.
#[test]
fn rows_that_contradict_each_other_are_refused_and_named() {
    let world = dead_cache();
    for (sql, word) in [
        (
            "UPDATE dirents SET parent=99999 WHERE name=CAST('file number 3' AS BLOB)",
            "directory that is not there",
        ),
        (
            "DELETE FROM inodes WHERE ino=(SELECT ino FROM dirents WHERE name=CAST('file number 3' AS BLOB))",
            "not there",
        ),
        (
            "UPDATE dirents SET parent=(SELECT ino FROM dirents WHERE name=CAST('dir1' AS BLOB)) WHERE name=CAST('dir1' AS BLOB)",
            "inside themselves",
        ),
        ("UPDATE inodes SET object=1 WHERE object=2", "two files"),
        (
            "INSERT OR REPLACE INTO dead_objects VALUES(1, 0)",
            "to be removed",
        ),
        ("UPDATE inodes SET ino=99999999 WHERE ino=5", "not there"),
        (
            "UPDATE meta SET value=3 WHERE key='next_ino'",
            "never given out",
        ),
        (
            "UPDATE meta SET value=3 WHERE key='next_object'",
            "never given out",
        ),
        ("UPDATE meta SET value=3 WHERE key='next_seq'", "never were"),
        ("UPDATE inodes SET size=-1 WHERE ino=5", "impossible"),
        ("UPDATE inodes SET size='many' WHERE ino=5", ""),
        (
            "UPDATE dirents SET name=x'612f62' WHERE name=CAST('file number 3' AS BLOB)",
            "",
        ),
        (
            "DELETE FROM inodes; DELETE FROM dirents; DROP TABLE inodes",
            "",
        ),
    ] {
        let cache = copy_of(world.cache_dir());
        let path = cache.path().join("index.db");
        rusqlite::Connection::open(&path)
            .and_then(|conn| conn.execute_batch(sql))
            .expect("damage");
        let error = check(&path, true).expect_err(sql);
        assert!(
            matches!(error, IndexError::Damaged { .. }),
            "{sql}: {error}"
        );
        assert!(error.to_string().contains(word), "{sql}: {error}");
    }
    check(&world.cache_dir().join("index.db"), true).expect("the undamaged one");
}

#[test]
fn a_new_cache_needs_no_index_and_one_with_objects_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("index.db");
    check(&path, false).expect("nothing there yet");
    fs::write(&path, b"").expect("write");
    check(&path, false).expect("just made");
    check(&path, true).expect_err("objects of nobody");
    fs::write(
        &path,
        b"not a database, but long enough to be taken for one".repeat(100),
    )
    .expect("write");
    check(&path, false).expect_err("garbage");
}

/// Whatever version it is, older or newer: nothing is changed, and the files can be had.
#[test]
fn an_index_of_another_version_is_refused_and_rescued() {
    let world = World::new(Kind::Plain);
    let engine = world.start(false);
    engine.put("kept", b"kept");
    engine.close();
    let path = world.cache_dir().join("index.db");
    let known: i64 = rusqlite::Connection::open(&path)
        .and_then(|conn| conn.query_row("PRAGMA user_version", [], |row| row.get(0)))
        .expect("a version");
    for other in [known + 1, known + 7, i64::from(i32::MAX), -1] {
        let sql = format!("PRAGMA user_version={other};");
        rusqlite::Connection::open(&path)
            .and_then(|conn| conn.execute_batch(&sql))
            .expect("another version");
        let before = state_of(world.cache_dir());
        let checked = check(&path, true).expect_err("refused");
        assert!(matches!(checked, IndexError::OtherVersion(found) if found == other));
        assert!(checked.to_string().contains("that made it"), "{checked}");
        let out = tempfile::tempdir().expect("a directory");
        let report = rescue(world.cache_dir(), out.path(), false).expect("rescue");
        assert_eq!(report.index, Vec::<String>::new());
        assert!(contents(&[out.path().into()]).contains(&b"kept"[..]));
        assert!(filled(state_of(world.cache_dir())) == filled(before));
        let opened = Index::open(&path, NameRules::new(&Capabilities::everything()));
        assert!(matches!(opened.map(drop), Err(IndexError::OtherVersion(found)) if found == other));
    }
}

/// A cache of the version before has data that exists nowhere else.
#[test]
fn an_index_of_the_version_before_is_brought_up_to_date_with_all_that_it_has() {
    let world = World::new(Kind::Plain);
    let engine = world.start(false);
    engine.put("kept", b"kept");
    engine.close();
    let path = world.cache_dir().join("index.db");
    let read = |sql: &str| -> i64 {
        let conn = rusqlite::Connection::open(&path).expect("open");
        conn.query_row(sql, [], |row| row.get(0)).expect("a number")
    };
    let indexes = "SELECT count(*) FROM sqlite_schema WHERE type='index'";
    let (version, had) = (read("PRAGMA user_version"), read(indexes));
    let older = "DROP INDEX inodes_local; DROP INDEX inodes_orphaned; DROP INDEX inodes_kept_local;
        PRAGMA user_version=1;";
    rusqlite::Connection::open(&path)
        .and_then(|conn| conn.execute_batch(older))
        .expect("the older version");
    check(&path, true).expect("known");
    let engine = world.start(false);
    assert_eq!(engine.read("kept"), b"kept");
    engine.close();
    assert_eq!((read("PRAGMA user_version"), read(indexes)), (version, had));
}

/// How much a rescue names of a cache whose index lost single pages.
#[test]
fn a_lost_page_costs_only_the_names_on_it() {
    let mut best: Option<RescueReport> = None;
    with_each_page_lost(|cache, _| {
        let out = tempfile::tempdir().expect("a directory");
        let report = rescue(cache, out.path(), false).expect("rescue");
        let damaged = !report.index.is_empty();
        if damaged && best.as_ref().is_none_or(|best| best.files < report.files) {
            best = Some(report);
        }
    });
    let best = best.expect("some page matters");
    assert!(best.files as usize > FILES / 2, "{best:?}");
}
