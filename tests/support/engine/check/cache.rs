//! A cache that is at rest: whether rows, objects and what is known of the drive agree.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ferryfs::core::{FileKind, RelPath};
use ferryfs::drive::Backend;
use ferryfs::index::{Flags, Index};
use rusqlite::Connection;

use super::super::{Engine, World};
use super::Finding;

struct Row {
    mode: u32,
    nlink: i64,
    size: i64,
    object: Option<u64>,
    flags: Flags,
}

type Key = (i64, Vec<u8>);

/// What the tables hold, read on a connection of the checker's own.
struct Tables {
    inodes: BTreeMap<i64, Row>,
    dirents: BTreeMap<Key, i64>,
    /// Inode, whether it is a directory, size.
    placed: BTreeMap<Key, (i64, bool, i64)>,
    dirty_names: BTreeSet<Key>,
    dirty_inodes: BTreeSet<i64>,
    dead: BTreeSet<u64>,
}

fn rows<T>(
    conn: &Connection,
    sql: &str,
    read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Vec<T> {
    let mut statement = conn.prepare(sql).expect("a query of the checker");
    let found = statement.query_map([], read).expect("run a query");
    found.collect::<Result<_, _>>().expect("read the rows")
}

impl Tables {
    fn read(index: &Path) -> Tables {
        let conn = Connection::open(index).expect("open the index beside the daemon");
        let key = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let inode = |row: &rusqlite::Row<'_>| {
            let object: Option<i64> = row.get(4)?;
            let inode = Row {
                mode: row.get(1)?,
                nlink: row.get(2)?,
                size: row.get(3)?,
                object: object.map(|n| n as u64),
                flags: Flags(row.get(5)?),
            };
            Ok((row.get(0)?, inode))
        };
        let placed = |row: &rusqlite::Row<'_>| {
            let kind: i64 = row.get(3)?;
            Ok((key(row)?, (row.get(2)?, kind == 1, row.get(4)?)))
        };
        Tables {
            inodes: rows(
                &conn,
                "SELECT ino, mode, nlink, size, object, flags FROM inodes",
                inode,
            )
            .into_iter()
            .collect(),
            dirents: rows(
                &conn,
                "SELECT parent, coalesce(stored, name), ino FROM dirents",
                |row| Ok((key(row)?, row.get(2)?)),
            )
            .into_iter()
            .collect(),
            placed: rows(
                &conn,
                "SELECT parent, name, ino, kind, size FROM placed",
                placed,
            )
            .into_iter()
            .collect(),
            dirty_names: rows(&conn, "SELECT parent, name FROM dirty_names", key)
                .into_iter()
                .collect(),
            dirty_inodes: rows(&conn, "SELECT ino FROM dirty_inodes", |row| row.get(0))
                .into_iter()
                .collect(),
            dead: rows(&conn, "SELECT object FROM dead_objects", |row| {
                row.get::<_, i64>(0).map(|n| n as u64)
            })
            .into_iter()
            .collect(),
        }
    }

    fn is_special(&self, ino: i64) -> bool {
        self.inodes
            .get(&ino)
            .is_some_and(|row| FileKind::from_mode(row.mode).is_some_and(|kind| !kind.is_plain()))
    }

    /// Whether the drive need not get a name of `ino`: it stays local, or another name of its file
    /// travels.
    fn stays_local(&self, ino: i64, there: Option<i64>) -> bool {
        let Some(row) = self.inodes.get(&ino) else {
            return false;
        };
        let is_old = |there: i64| self.inodes.get(&there).is_none_or(|row| row.nlink == 0);
        let is_apart = row.nlink > 1 && there.is_none() && self.has_places(ino);
        is_apart || row.flags.has(Flags::LOCAL) && there.is_none_or(is_old)
    }

    fn has_places(&self, ino: i64) -> bool {
        self.placed.values().any(|(at, _, _)| *at == ino)
    }
}

/// Looks at a cache in which no batch is under way.
pub fn check_cache(index: &Index, cache: &Path) -> Vec<Finding> {
    index.commit().expect("commit");
    let tables = Tables::read(&cache.join("index.db"));
    let mut findings = Vec::new();
    names(&tables, &mut findings);
    objects(&tables, &cache.join("objects"), &mut findings);
    marks(&tables, &mut findings);
    totals(index, &tables, cache, &mut findings);
    findings
}

fn names(tables: &Tables, findings: &mut Vec<Finding>) {
    let mut links: HashMap<i64, i64> = HashMap::new();
    let mut subdirs: HashMap<i64, i64> = HashMap::new();
    for ((parent, name), ino) in &tables.dirents {
        let name = String::from_utf8_lossy(name);
        *links.entry(*ino).or_default() += 1;
        match tables.inodes.get(ino) {
            None => findings.push(broken(format!(
                "{name} names inode {ino}, which is not there"
            ))),
            Some(row) if FileKind::from_mode(row.mode) == Some(FileKind::Directory) => {
                *subdirs.entry(*parent).or_default() += 1;
            }
            Some(_) => {}
        }
        if !tables.inodes.contains_key(parent) {
            let what = format!("{name} is in directory {parent}, which is not there");
            findings.push(broken(what));
        }
    }
    for (ino, row) in &tables.inodes {
        let names = links.get(ino).copied().unwrap_or(0);
        let is_dir = FileKind::from_mode(row.mode) == Some(FileKind::Directory);
        let wanted = match is_dir {
            true if *ino != 1 && names == 0 => 0,
            true => 2 + subdirs.get(ino).copied().unwrap_or(0),
            false => names,
        };
        if row.nlink != wanted {
            let what = format!("inode {ino} has {} links, not {wanted}", row.nlink);
            findings.push(broken(what));
        }
    }
}

fn objects(tables: &Tables, root: &Path, findings: &mut Vec<Finding>) {
    let mut on_disk = BTreeMap::new();
    for shard in std::fs::read_dir(root).expect("list the store") {
        let shard = shard.expect("a shard").path();
        for file in std::fs::read_dir(shard).expect("list a shard") {
            let file = file.expect("an object");
            let name = file.file_name().to_string_lossy().into_owned();
            let size = file.metadata().expect("stat an object").size();
            match u64::from_str_radix(&name, 16) {
                Ok(object) => drop(on_disk.insert(object, size)),
                Err(_) => findings.push(Finding::Leftover {
                    path: format!("objects/{name}"),
                }),
            }
        }
    }
    let mut vouched: BTreeMap<u64, i64> = BTreeMap::new();
    for (ino, row) in &tables.inodes {
        let Some(object) = row.object else { continue };
        if let Some(other) = vouched.insert(object, *ino) {
            let what = format!("shares object {object:x} with inode {other}");
            findings.push(Finding::ObjectMismatch { ino: *ino, what });
        }
        if tables.dead.contains(&object) {
            let what = format!("its object {object:x} counts as dead");
            findings.push(Finding::ObjectMismatch { ino: *ino, what });
        }
        match on_disk.get(&object) {
            None => findings.push(Finding::RowWithoutObject { ino: *ino, object }),
            Some(size) if *size as i64 != row.size && !row.flags.has(Flags::WRITING) => {
                let what = format!("{} bytes by its row, {size} in its object", row.size);
                findings.push(Finding::ObjectMismatch { ino: *ino, what });
            }
            Some(_) => {}
        }
    }
    for object in on_disk.keys() {
        if !vouched.contains_key(object) && !tables.dead.contains(object) {
            findings.push(Finding::ObjectWithoutRow { object: *object });
        }
    }
}

fn broken(what: String) -> Finding {
    Finding::BrokenName { what }
}

/// The marks may be too many, never too few.
fn marks(tables: &Tables, findings: &mut Vec<Finding>) {
    let keys: BTreeSet<&Key> = tables.dirents.keys().chain(tables.placed.keys()).collect();
    for key in keys {
        if tables.dirty_names.contains(key) {
            continue;
        }
        let here = tables.dirents.get(key).copied();
        let there = tables.placed.get(key).map(|(ino, _, _)| *ino);
        let special = here.is_some_and(|ino| tables.is_special(ino)) && there.is_none();
        let local = special || here.is_some_and(|ino| tables.stays_local(ino, there));
        if here != there && !local {
            let name = String::from_utf8_lossy(&key.1);
            let what = format!("{name} in {}: {here:?} here, {there:?} on the drive", key.0);
            findings.push(Finding::DirtyDropped { what });
        }
    }
    for (ino, row) in &tables.inodes {
        let dirty = row.flags.any(Flags::DIRTY) && !row.flags.has(Flags::LOCAL);
        let has = row.flags.has(Flags::ON_BACKEND);
        if *ino == 1 || FileKind::from_mode(row.mode) != Some(FileKind::Regular) || row.nlink == 0 {
            continue;
        }
        if has != tables.has_places(*ino) {
            let what = format!("inode {ino}: ON_BACKEND is {has}, its places say otherwise");
            findings.push(broken(what));
        }
        if dirty && has && !tables.dirty_inodes.contains(ino) {
            let what = format!("the bytes or the time of inode {ino}");
            findings.push(Finding::DirtyDropped { what });
        }
        if !has && !row.flags.has(Flags::DATA_DIRTY) {
            let what = format!("inode {ino}, which the drive does not have");
            findings.push(Finding::DirtyDropped { what });
        }
    }
}

fn totals(index: &Index, tables: &Tables, cache: &Path, findings: &mut Vec<Finding>) {
    let told = index.lock().totals();
    let dirty: i64 = (tables.inodes.values())
        .filter(|row| row.flags.has(Flags::DATA_DIRTY) && !row.flags.has(Flags::LOCAL))
        .map(|row| row.size)
        .sum();
    let conn = Connection::open(cache.join("index.db")).expect("open the index");
    let sql = "SELECT coalesce(sum(blocks * 512), 0) FROM inodes WHERE object IS NOT NULL";
    let cached = rows(&conn, sql, |row| row.get::<_, i64>(0))[0];
    if (told.cached_bytes as i64, told.dirty_bytes as i64) != (cached, dirty) {
        let what = format!("{told:?}, but the rows sum up to {cached} cached and {dirty} dirty");
        findings.push(Finding::WrongTotals { what });
    }
    // The same as if it were reckoned anew, from the rows alone.
    let reckoned = index.lock().reckon_totals().expect("sum up");
    if told != reckoned {
        let what = format!("{told:?}, but the rows sum up to {reckoned:?}");
        findings.push(Finding::WrongTotals { what });
    }
}

impl World {
    /// Whatever the index says that the drive has must stand there.
    pub(super) fn check_places(&self, engine: &Engine, findings: &mut Vec<Finding>) {
        let tables = Tables::read(&engine.dir.join("index.db"));
        for ((parent, name), (_, is_dir, size)) in &tables.placed {
            let dir = engine
                .index
                .lock()
                .backend_path(ferryfs::core::Ino(*parent as u64))
                .expect("a path");
            let path = match (dir, *parent) {
                (Some(dir), _) => dir,
                (None, 1) => RelPath::root(),
                (None, _) => {
                    let (path, what) = (format!("directory {parent}"), "it is nowhere".to_string());
                    findings.push(Finding::Misbelieved { path, what });
                    continue;
                }
            };
            let path = path.join(&ferryfs::core::Name::new(name).expect("a name"));
            match self.memory.metadata(&path) {
                Err(error) => findings.push(Finding::Misbelieved {
                    path: path.to_string(),
                    what: error.to_string(),
                }),
                Ok(meta) => {
                    let dir = meta.kind == FileKind::Directory;
                    if dir != *is_dir || (!dir && meta.size as i64 != *size) {
                        findings.push(Finding::Misbelieved {
                            path: path.to_string(),
                            what: format!("{:?} of {} bytes, not {size}", meta.kind, meta.size),
                        });
                    }
                }
            }
        }
    }
}
