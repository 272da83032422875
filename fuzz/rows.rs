//! A cache whose index somebody has edited: the input's rows, in tables that take anything, are
//! rescued.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::OnceLock;

use ferryfs::index::Index;
use ferryfs::plan::names::NameRules;
use ferryfs::recovery::rescue::rescue;
use rusqlite::Connection;
use rusqlite::types::Value;

use crate::pieces::pieces;

/// Most rows of one input.
const MOST: usize = 2000;

/// The tables that are read, and how many columns each has.
const TABLES: [(&str, &[&str]); 3] = [
    (
        "inodes",
        &[
            "ino", "mode", "uid", "gid", "rdev", "nlink", "size", "blocks", "atime", "mtime",
            "ctime", "btime", "object", "flags", "data_seq", "time_seq", "used", "target",
        ],
    ),
    ("dirents", &["parent", "name", "ino"]),
    ("dead_objects", &["object"]),
];

/// Values of a row: a type, then as many bytes as that has. What is missing is 0.
pub fn values(mut bytes: &[u8], count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    while found.len() < count {
        let (kind, rest) = bytes
            .split_first()
            .map_or((1, &[][..]), |(kind, rest)| (*kind, rest));
        let mut take = |length: usize| {
            let (taken, behind) = rest.split_at(length.min(rest.len()));
            bytes = behind;
            taken
        };
        let wide = |taken: &[u8]| {
            let mut eight = [0; 8];
            eight[..taken.len()].copy_from_slice(taken);
            i64::from_le_bytes(eight)
        };
        found.push(match kind % 6 {
            0 => Value::Null,
            1 => Value::Integer(wide(take(1))),
            2 => Value::Integer(wide(take(8))),
            3 => Value::Real(f64::from_bits(wide(take(8)).cast_unsigned())),
            text_or_blob => {
                let length = rest.first().map_or(0, |length| usize::from(*length) + 1);
                let taken = take(length);
                let taken = taken.get(1..).unwrap_or_default().to_vec();
                match text_or_blob {
                    4 => Value::Blob(taken),
                    _ => Value::Text(String::from_utf8_lossy(&taken).into_owned()),
                }
            }
        });
        if matches!(kind % 6, 0) {
            bytes = rest;
        }
    }
    found
}

/// An empty index, made once.
fn template() -> &'static [u8] {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("index.db");
        let rules = NameRules::new(&ferryfs::core::Capabilities::everything());
        drop(Index::open(&path, rules).expect("an index"));
        let conn = Connection::open(&path).expect("open");
        conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode=DELETE;")
            .expect("checkpoint");
        for (table, columns) in TABLES {
            let sql = format!(
                "DROP TABLE {table}; CREATE TABLE {table}({});",
                columns.join(", ")
            );
            conn.execute_batch(&sql)
                .expect("a table that takes anything");
        }
        drop(conn);
        fs::read(&path).expect("read")
    })
}

/// What an edited index makes a rescue do: it ends, and writes below its target only, for its
/// owner, and nothing that runs with another's rights.
pub fn rows(input: &[u8]) {
    let shm = Path::new("/dev/shm");
    let top = match shm.is_dir() {
        true => tempfile::tempdir_in(shm),
        false => tempfile::tempdir(),
    };
    let top = top.expect("a directory");
    let (cache, out, outside) = (
        top.path().join("cache"),
        top.path().join("out"),
        top.path().join("outside"),
    );
    fs::create_dir_all(cache.join("objects/00000000")).expect("mkdir");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("precious"), b"precious").expect("write");
    for object in 0..3 {
        fs::write(
            cache.join(format!("objects/00000000/{object:016x}")),
            b"object",
        )
        .expect("write");
    }
    let index = cache.join("index.db");
    fs::write(&index, template()).expect("write");
    fill(&index, input);
    match rescue(&cache, &out, false) {
        Ok(report) => drop(serde_json::to_string(&report).expect("a report")),
        Err(error) => drop(error.to_string()),
    }
    let mut seen: Vec<_> = fs::read_dir(top.path())
        .expect("list")
        .map(|e| e.expect("list").file_name())
        .collect();
    seen.sort();
    assert!(
        seen == ["cache", "out", "outside"] || seen == ["cache", "outside"],
        "{seen:?}"
    );
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 1);
    assert_eq!(
        fs::read(outside.join("precious")).expect("read"),
        b"precious"
    );
    assert_eq!(
        fs::read_dir(cache.join("objects/00000000"))
            .expect("list")
            .count(),
        3
    );
    if out.exists() {
        look(&out);
    }
}

fn fill(index: &Path, input: &[u8]) {
    let mut conn = Connection::open(index).expect("open");
    conn.execute_batch("PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY;")
        .expect("configure");
    let transaction = conn.transaction().expect("begin");
    for piece in pieces(input).iter().take(MOST) {
        let (table, columns) = TABLES[usize::from(piece.kind) % TABLES.len()];
        let marks = vec!["?"; columns.len()].join(", ");
        let sql = format!("INSERT INTO {table} VALUES ({marks})");
        let mut insert = transaction.prepare_cached(&sql).expect("prepare");
        let _ = insert.execute(rusqlite::params_from_iter(values(
            piece.bytes,
            columns.len(),
        )));
    }
    transaction.commit().expect("commit");
}

fn look(dir: &Path) {
    for entry in fs::read_dir(dir).expect("list") {
        let path = entry.expect("list").path();
        let meta = fs::symlink_metadata(&path).expect("look");
        if meta.is_symlink() {
            continue;
        }
        assert_eq!(meta.permissions().mode() & 0o7000, 0, "{}", path.display());
        assert!(meta.is_file() || meta.is_dir(), "{}", path.display());
        if meta.is_dir() {
            look(&path);
        }
    }
}
