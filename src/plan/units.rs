//! Files that belong together: a database and its journals.
//!
//! A database file means nothing without the journal of the same moment, and is destroyed by one of
//! another moment. So a batch includes all changes of a unit or none. A unit is found by its names,
//! whatever is in the files: SQLite's `-wal` and `-journal`, which it also has for encrypted
//! databases (<https://www.sqlite.org/tempfiles.html>), and DuckDB's `.wal`.

use std::collections::{HashMap, HashSet};

use crate::core::{Ino, Name};
use crate::plan::delta::{NameChange, NewContent};

/// What is appended to the name of a database.
const SUFFIXES: [&[u8]; 3] = [b"-wal", b"-journal", b".wal"];

/// What is appended for its shared memory.
const SHARED: &[u8] = b"-shm";

/// Returns the name of the database that a file of this name would belong to; its own name, if it
/// is none of a journal.
///
/// # Examples
///
/// ```
/// use ferryfs::plan::units::database_of;
///
/// assert_eq!(database_of(b"lab.db-wal"), b"lab.db");
/// assert_eq!(database_of(b"lab.db-journal"), b"lab.db");
/// assert_eq!(database_of(b"lab.duckdb.wal"), b"lab.duckdb");
/// assert_eq!(database_of(b"lab.db"), b"lab.db");
/// assert_eq!(database_of(b"-wal"), b"-wal");
/// ```
pub fn database_of(name: &[u8]) -> &[u8] {
    SUFFIXES
        .iter()
        .find_map(|suffix| name.strip_suffix(*suffix))
        .filter(|stem| !stem.is_empty())
        .unwrap_or(name)
}

/// Returns the names that journals of a database with this name have.
pub fn journals_of(database: &Name) -> impl Iterator<Item = Name> {
    SUFFIXES
        .iter()
        .filter_map(|suffix| Name::new(&[database.as_bytes(), suffix].concat()).ok())
}

/// Returns the name of the database whose shared memory a file of this name would be, in SQLite's
/// WAL mode; `None` if it is none. Such a file holds locks and an index of the journal, which are
/// of this machine and rebuilt from the journal (<https://www.sqlite.org/walformat.html>, 2.0): it
/// never goes to the drive.
pub fn database_of_shared_memory(name: &Name) -> Option<Name> {
    let database = name.as_bytes().strip_suffix(SHARED)?;
    Name::new(database).ok()
}

/// Returns the name of the database that a file of this name would belong to, as a journal or as
/// shared memory; its own name, if it is none of both.
pub fn head_of_unit(name: &Name) -> Name {
    if let Some(database) = database_of_shared_memory(name) {
        return database;
    }
    Name::new(database_of(name.as_bytes())).unwrap_or_else(|_| name.clone())
}

/// Returns the names of all files that belong together with a database of this name.
pub fn unit_of(database: &Name) -> impl Iterator<Item = Name> {
    let shared = Name::new(&[database.as_bytes(), SHARED].concat()).ok();
    let names = std::iter::once(database.clone()).chain(shared);
    names.chain(journals_of(database))
}

/// Leaves out what belongs to files that are left out: their content becomes
/// [`NewContent::Live`], and removals are dropped, so that they are tried again. Returns whether
/// anything was left out.
pub fn leave_out_units(names: &mut Vec<NameChange>) -> bool {
    let mut units: HashMap<(Ino, Vec<u8>), Vec<usize>> = HashMap::new();
    for (number, change) in names.iter().enumerate() {
        let database = database_of(change.key.name.as_bytes()).to_vec();
        let unit = units.entry((change.key.parent, database)).or_default();
        unit.push(number);
    }
    units.retain(|_, members| members.len() > 1);
    let mut left: HashSet<Ino> = names.iter().filter_map(live_ino).collect();
    let mut dropped: HashSet<usize> = HashSet::new();
    loop {
        let before = (left.len(), dropped.len());
        for members in units.values() {
            let is_left = |number: &usize| {
                dropped.contains(number) || inos_of(&names[*number]).any(|ino| left.contains(&ino))
            };
            if !members.iter().any(is_left) {
                continue;
            }
            for number in members {
                match &names[*number].new {
                    Some(new) if is_file(&new.content) => drop(left.insert(new.ino)),
                    Some(_) => {}
                    None => drop(dropped.insert(*number)),
                }
            }
        }
        if (left.len(), dropped.len()) == before {
            break;
        }
    }
    let mut changed = !dropped.is_empty();
    for change in names.iter_mut() {
        if let Some(new) = &mut change.new
            && left.contains(&new.ino)
            && new.content != NewContent::Live
        {
            new.content = NewContent::Live;
            changed = true;
        }
    }
    let mut number = 0;
    names.retain(|_| {
        number += 1;
        !dropped.contains(&(number - 1))
    });
    changed
}

fn live_ino(change: &NameChange) -> Option<Ino> {
    let new = change.new.as_ref()?;
    (new.content == NewContent::Live).then_some(new.ino)
}

fn inos_of(change: &NameChange) -> impl Iterator<Item = Ino> {
    let old = change.old.map(|old| old.ino);
    old.into_iter()
        .chain(change.new.as_ref().map(|new| new.ino))
}

fn is_file(content: &NewContent) -> bool {
    !matches!(content, NewContent::Directory | NewContent::Node(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ObjectId;
    use crate::core::Timestamp;
    use crate::format::steps::PlainKind;
    use crate::plan::delta::{NameKey, NewEntry, OldEntry, StageSource};

    fn changed(ino: u64) -> NewContent {
        NewContent::Changed(StageSource::Object {
            ino: Ino(ino),
            object: ObjectId(ino),
            modified: Timestamp(0),
        })
    }

    fn name(name: &str, old: Option<u64>, new: Option<(u64, NewContent)>) -> NameChange {
        NameChange {
            key: NameKey {
                parent: Ino(1),
                name: Name::new(name.as_bytes()).unwrap(),
            },
            old: old.map(|ino| OldEntry {
                ino: Ino(ino),
                kind: PlainKind::File,
            }),
            new: new.map(|(ino, content)| NewEntry {
                ino: Ino(ino),
                content,
            }),
        }
    }

    fn is_live(names: &[NameChange], wanted: &str) -> bool {
        let change = names
            .iter()
            .find(|change| change.key.name.as_bytes() == wanted.as_bytes());
        change.is_some_and(|change| live_ino(change).is_some())
    }

    #[test]
    fn a_journal_stays_behind_with_its_database_and_the_reverse() {
        for live in ["lab.db", "lab.db-wal"] {
            let content = |this: &str, ino| match this == live {
                true => NewContent::Live,
                false => changed(ino),
            };
            let mut names = vec![
                name("lab.db", Some(2), Some((2, content("lab.db", 2)))),
                name("lab.db-wal", None, Some((3, content("lab.db-wal", 3)))),
                name("other.db", None, Some((4, changed(4)))),
            ];
            assert!(leave_out_units(&mut names));
            assert!(is_live(&names, "lab.db") && is_live(&names, "lab.db-wal"));
            assert!(!is_live(&names, "other.db"));
            assert!(!leave_out_units(&mut names), "nothing is left to do");
        }
    }

    #[test]
    fn the_end_of_a_journal_waits_for_its_database() {
        let mut names = vec![
            name("lab.db", Some(2), Some((2, NewContent::Live))),
            name("lab.db-journal", Some(3), None),
            name("gone-wal", Some(4), None),
        ];
        assert!(leave_out_units(&mut names));
        let left: Vec<_> = names.iter().map(|it| it.key.name.as_bytes()).collect();
        assert_eq!(left, [&b"lab.db"[..], b"gone-wal"]);
    }

    #[test]
    fn another_name_of_a_file_that_is_left_out_binds_its_own_unit() {
        let mut names = vec![
            name("a.db", None, Some((2, NewContent::Live))),
            name("b.db", None, Some((2, NewContent::Live))),
            name("b.db-wal", None, Some((3, changed(3)))),
            name("c.db", None, Some((3, changed(3)))),
            name("c.db-journal", Some(9), None),
        ];
        assert!(leave_out_units(&mut names));
        assert!(is_live(&names, "b.db-wal") && is_live(&names, "c.db"));
        assert_eq!(names.len(), 4);
    }
}
