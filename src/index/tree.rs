//! The two trees: the mount's names, and the backend's.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::inode::{Flags, Inode};
use super::{Context, IndexWriter, Result, int, statements};
use crate::core::{ContentHash, Ino, Metadata, Name, Timestamp, Xattrs};
use crate::format::steps::PlainKind;
use crate::plan::planner::NameKey;

/// Key of the setting that says that the root has the attributes that it had on the backend.
const ROOT_TAKEN: &str = "root_taken";

/// A name of the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    /// The name.
    pub name: Name,
    /// Its inode.
    pub ino: Ino,
    /// Its place in a listing of the directory, after which the listing continues. Above 2, and the
    /// same as long as the name exists.
    pub cookie: u64,
}

/// What the backend has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedEntry {
    /// The inode that it is a version of.
    pub ino: Ino,
    /// A directory, or anything else.
    pub kind: PlainKind,
    /// Its size in bytes, as last seen.
    pub size: u64,
    /// Its time of last change, as last seen on the backend.
    pub mtime: Timestamp,
    /// The hash of its bytes, if ferryfs has written it.
    pub hash: Option<ContentHash>,
}

/// The columns that [`placed_from_row`] reads: parent and name, then those of the entry.
pub(super) const PLACED_COLUMNS: &str = "parent, name, ino, kind, size, mtime, hash";

pub(super) fn name_from_row(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    let bytes: Vec<u8> = row.get(column)?;
    Name::new(&bytes).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Blob,
            Box::new(error),
        )
    })
}

pub(super) fn placed_from_row(row: &Row<'_>) -> rusqlite::Result<(NameKey, PlacedEntry)> {
    let key = NameKey {
        parent: Ino(row.get::<_, i64>(0)? as u64),
        name: name_from_row(row, 1)?,
    };
    let entry = PlacedEntry {
        ino: Ino(row.get::<_, i64>(2)? as u64),
        kind: if row.get::<_, i64>(3)? == 1 {
            PlainKind::Directory
        } else {
            PlainKind::File
        },
        size: row.get::<_, i64>(4)? as u64,
        mtime: Timestamp(row.get(5)?),
        hash: row.get::<_, Option<[u8; 32]>>(6)?.map(ContentHash),
    };
    Ok((key, entry))
}

/// Returns all names of `ino` in the mount, as they are stored.
pub(super) fn stored_names_of(conn: &Connection, ino: Ino) -> Result<Vec<NameKey>> {
    conn.prepare_cached(
        "SELECT parent, coalesce(stored, name) FROM dirents WHERE ino=? ORDER BY 1, 2",
    )
    .and_then(|mut s| s.query_map([int(ino.0)], key_from_row)?.collect())
    .context("list the names of an inode")
}

/// Returns the name in the first two columns of `row`.
pub(super) fn key_from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<NameKey> {
    Ok(NameKey {
        parent: Ino(row.get::<_, i64>(0)? as u64),
        name: name_from_row(row, 1)?,
    })
}

/// Returns all names under which the backend has `ino`.
pub(super) fn places_of(conn: &Connection, ino: Ino) -> Result<Vec<(NameKey, PlacedEntry)>> {
    conn.prepare_cached(&format!(
        "SELECT {PLACED_COLUMNS} FROM placed WHERE ino=? ORDER BY parent, name"
    ))
    .and_then(|mut s| s.query_map([int(ino.0)], placed_from_row)?.collect())
    .context("list the places of an inode")
}

/// Returns what the backend has in the directory `parent`.
pub(super) fn placed_in(conn: &Connection, parent: Ino) -> Result<Vec<(Name, PlacedEntry)>> {
    conn.prepare_cached(&format!(
        "SELECT {PLACED_COLUMNS} FROM placed WHERE parent=?"
    ))
    .and_then(|mut s| s.query_map([int(parent.0)], placed_from_row)?.collect())
    .context("list what the backend has")
    .map(|found: Vec<(NameKey, PlacedEntry)>| {
        let entries = found.into_iter();
        entries.map(|(key, entry)| (key.name, entry)).collect()
    })
}

/// Returns a place in a listing as SQLite can compare it: programs may seek to any number.
fn saturated(cookie: u64) -> i64 {
    i64::try_from(cookie).unwrap_or(i64::MAX)
}

impl IndexWriter {
    /// Returns the inode of `name` in `parent`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn lookup(&mut self, parent: Ino, name: &Name) -> Result<Option<Ino>> {
        let fold = self.rules.fold(name);
        self.conn
            .prepare_cached("SELECT ino FROM dirents WHERE parent=? AND fold=? AND name=?")
            .and_then(|mut s| {
                s.query_row(params![int(parent.0), fold, name.as_bytes()], |row| {
                    row.get::<_, i64>(0)
                })
                .optional()
            })
            .context("look up a name")
            .map(|found| found.map(|ino| Ino(ino as u64)))
    }

    /// Adds a name of `inode`, stored under the best spelling that is free. The caller updates its
    /// link count.
    ///
    /// # Errors
    /// If SQLite fails, also because the name exists.
    pub fn add_name(&mut self, parent: Ino, name: &Name, inode: &Inode) -> Result<()> {
        let stored = self.choose_stored(parent, name)?;
        self.add_name_as(parent, name, &stored, inode)
    }

    /// The same in a directory that stays local, so that no batch has anything to do with it.
    ///
    /// # Errors
    /// The same.
    pub fn add_local_name(&mut self, parent: Ino, name: &Name, ino: Ino) -> Result<()> {
        let stored = self.choose_stored(parent, name)?;
        self.add_clean_name(parent, name, &stored, ino)
    }

    /// As [`IndexWriter::add_name`], stored under `stored`, which no other name of `parent` has.
    ///
    /// # Errors
    /// The same.
    pub fn add_name_as(
        &mut self,
        parent: Ino,
        name: &Name,
        stored: &Name,
        inode: &Inode,
    ) -> Result<()> {
        self.add_clean_name(parent, name, stored, inode.ino)?;
        self.mark_name(parent, stored)
    }

    /// Adds a name for an unchanged file of the backend, under `stored`.
    ///
    /// # Errors
    /// If SQLite fails, also because the name exists.
    pub fn add_clean_name(
        &mut self,
        parent: Ino,
        name: &Name,
        stored: &Name,
        ino: Ino,
    ) -> Result<()> {
        self.mount_ways.forget(ino);
        let fold = self.rules.fold(name);
        let other = (stored != name).then_some(stored);
        let cookie = match self.left_places.get(&(parent, name.clone())) {
            Some(cookie) => *cookie,
            None => self.take_number(|state| &mut state.cookies)?,
        };
        self.change(
            "add a name",
            statements::ADD_NAME,
            params![
                int(parent.0),
                fold,
                name.as_bytes(),
                int(ino.0),
                other.map(Name::as_bytes),
                other.map(|stored| self.rules.fold(stored)),
                int(cookie),
            ],
        )?;
        self.note_height(parent, ino)
    }

    /// Removes a name. Returns its stored name.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn remove_name(&mut self, parent: Ino, name: &Name) -> Result<Name> {
        self.mount_ways.forget_name(parent, name);
        let fold = self.rules.fold(name);
        let removed = self.change_returning(
            "remove a name",
            statements::REMOVE_NAME,
            params![int(parent.0), fold, name.as_bytes()],
            |row| {
                Ok((
                    name_from_row(row, 0)?,
                    Ino(row.get::<_, i64>(1)? as u64),
                    row.get::<_, i64>(2)? as u64,
                ))
            },
        )?;
        let (stored, is_told_of) = match removed {
            Some((stored, ino, cookie)) => {
                self.left_places.insert((parent, name.clone()), cookie);
                (stored, self.is_special_and_told_of(ino)?)
            }
            None => (name.clone(), false),
        };
        if is_told_of || self.may_be_placed(parent, &stored)? {
            self.mark_name(parent, &stored)?;
        } else {
            self.change(
                "forget a dirty name",
                statements::FORGET_DIRTY_NAME,
                params![int(parent.0), stored.as_bytes()],
            )?;
            if !self.is_local_dir(parent)? {
                self.sort_name_later(parent, &stored);
            }
        }
        Ok(stored)
    }

    /// Marks a stored name: the backend may have another file under it than the mount.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn mark_name(&mut self, parent: Ino, name: &Name) -> Result<()> {
        let seq = self.next_seq()?;
        self.change(
            "mark a name",
            statements::MARK_NAME,
            params![int(parent.0), name.as_bytes(), int(seq.0)],
        )?;
        self.sort_name_later(parent, name);
        self.touch_dirty();
        Ok(())
    }

    /// Marks an inode: its bytes or mtime differ from the backend's. If the backend does not have
    /// it, its names are marked already.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn mark_inode(&mut self, inode: &Inode) -> Result<()> {
        if inode.flags.has(Flags::LOCAL) {
            return Ok(());
        }
        if inode.flags.has(Flags::ON_BACKEND) {
            self.change(
                "mark an inode",
                statements::MARK_INODE,
                params![int(inode.ino.0)],
            )?;
            self.sort_inode_later(inode.ino);
        }
        self.touch_dirty();
        Ok(())
    }

    /// Notes in `inode`, which the caller puts, that an attribute has changed that the backend or
    /// the catalog must get. Once it is marked this changes a number in memory only, so that a
    /// thousand new files in one directory cost one mark.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn note_attributes(&mut self, inode: &mut Inode) -> Result<()> {
        // The open batch settles only changes before its cut.
        inode.time_seq = self.next_seq()?;
        if inode.flags.has(Flags::ATTR_DIRTY) {
            if !inode.flags.has(Flags::LOCAL) {
                self.touch_dirty();
            }
            return Ok(());
        }
        inode.flags.set(Flags::ATTR_DIRTY);
        self.mark_inode(inode)
    }

    /// Returns whether the backend has something under this stored name, or may get something by
    /// the open batch.
    fn may_be_placed(&mut self, parent: Ino, stored: &Name) -> Result<bool> {
        Ok(self.active.is_some() || self.placed(parent, stored)?.is_some())
    }

    /// Returns whether `ino` is a link or a special file that the drive's catalog describes: the
    /// backend has no entry of it, so its removal must be noted otherwise.
    fn is_special_and_told_of(&mut self, ino: Ino) -> Result<bool> {
        let inode = self.inode(ino)?;
        Ok(inode
            .is_some_and(|inode| !inode.kind().is_plain() && inode.flags.has(Flags::ON_BACKEND)))
    }

    /// Returns whether `dir` is empty.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn is_empty_dir(&mut self, dir: Ino) -> Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM dirents WHERE parent=? LIMIT 1")
            .and_then(|mut s| s.exists([int(dir.0)]))
            .context("look into a directory")
            .map(|any| !any)
    }

    /// Returns up to `limit` names of `dir` with places above `after` and below `before`, in their
    /// order.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn list(&mut self, dir: Ino, after: u64, before: u64, limit: u32) -> Result<Vec<Dirent>> {
        self.conn
            .prepare_cached(
                "SELECT name, ino, cookie FROM dirents INDEXED BY dirents_cookie
                 WHERE parent=? AND cookie>? AND cookie<? ORDER BY cookie LIMIT ?",
            )
            .and_then(|mut s| {
                let dirent = |row: &Row<'_>| {
                    Ok(Dirent {
                        name: name_from_row(row, 0)?,
                        ino: Ino(row.get::<_, i64>(1)? as u64),
                        cookie: row.get::<_, i64>(2)? as u64,
                    })
                };
                s.query_map(
                    params![int(dir.0), saturated(after), saturated(before), limit],
                    dirent,
                )?
                .collect()
            })
            .context("list a directory")
    }

    /// Returns a place above those of all present names, and below those of all future ones.
    pub fn end_of_listings(&self) -> u64 {
        self.cookies.next
    }

    /// Returns one name of `ino` in the mount; the only one of a directory.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn a_name_of(&mut self, ino: Ino) -> Result<Option<(Ino, Name)>> {
        self.conn
            .prepare_cached("SELECT parent, name FROM dirents WHERE ino=? LIMIT 1")
            .and_then(|mut s| {
                s.query_row([int(ino.0)], |row| {
                    Ok((Ino(row.get::<_, i64>(0)? as u64), name_from_row(row, 1)?))
                })
                .optional()
            })
            .context("find a name of an inode")
    }

    /// Returns what the backend has under a stored name.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn placed(&mut self, parent: Ino, name: &Name) -> Result<Option<PlacedEntry>> {
        self.conn
            .prepare_cached(&format!(
                "SELECT {PLACED_COLUMNS} FROM placed WHERE parent=? AND name=?"
            ))
            .and_then(|mut s| {
                s.query_row(params![int(parent.0), name.as_bytes()], placed_from_row)
                    .optional()
            })
            .context("look up what the backend has")
            .map(|found| found.map(|(_, entry)| entry))
    }

    /// Returns what the backend has in the directory `parent`, as last seen or left.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn placed_in(&mut self, parent: Ino) -> Result<Vec<(Name, PlacedEntry)>> {
        placed_in(&self.conn, parent)
    }

    /// Returns names that the backend has in directory `parent`, in the order of their bytes: at
    /// most `most` of them, without the first `skip`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn placed_names(&mut self, parent: Ino, skip: usize, most: usize) -> Result<Vec<Name>> {
        let bound = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let range = (int(parent.0), bound(most), bound(skip));
        self.conn
            .prepare_cached("SELECT name FROM placed WHERE parent=? ORDER BY name LIMIT ? OFFSET ?")
            .and_then(|mut s| s.query_map(range, |row| name_from_row(row, 0))?.collect())
            .context("list names that the backend has")
    }

    /// Notes what the backend has under a stored name.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn put_placed(&mut self, key: &NameKey, entry: Option<&PlacedEntry>) -> Result<()> {
        self.backend_ways.forget_name(key.parent, &key.name);
        if let Some(entry) = entry {
            self.backend_ways.forget(entry.ino);
        }
        match entry {
            Some(e) => self.change(
                "note what the backend has",
                statements::PUT_PLACED,
                params![
                    int(key.parent.0),
                    key.name.as_bytes(),
                    int(e.ino.0),
                    i64::from(e.kind == PlainKind::Directory),
                    int(e.size),
                    e.mtime.0,
                    e.hash.map(|h| h.0),
                ],
            )?,
            None => self.change(
                "note what the backend has",
                statements::DROP_PLACED,
                params![int(key.parent.0), key.name.as_bytes()],
            )?,
        };
        Ok(())
    }

    /// Returns one name under which the backend has `ino`, the first in order.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn a_place_of(&mut self, ino: Ino) -> Result<Option<(NameKey, PlacedEntry)>> {
        self.conn
            .prepare_cached(&format!(
                "SELECT {PLACED_COLUMNS} FROM placed WHERE ino=? ORDER BY parent, name LIMIT 1"
            ))
            .and_then(|mut s| s.query_row([int(ino.0)], placed_from_row).optional())
            .context("find an inode on the backend")
    }

    /// Returns the next directory after `after` all of whose entries are in the index.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn a_listed_dir(&mut self, after: Ino) -> Result<Option<Ino>> {
        self.commit()?;
        self.conn
            .prepare_cached(
                "SELECT ino FROM inodes WHERE mode & 61440 = 16384 AND flags & 8 <> 0 AND ino > ? ORDER BY ino LIMIT 1",
            )
            .and_then(|mut s| s.query_row([int(after.0)], |row| row.get::<_, i64>(0)).optional())
            .context("find a listed directory")
            .map(|found| found.map(|ino| Ino(ino as u64)))
    }

    /// Returns whether a name is marked.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn is_marked(&mut self, parent: Ino, name: &Name) -> Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM dirty_names WHERE parent=? AND name=?")
            .and_then(|mut s| s.exists(params![int(parent.0), name.as_bytes()]))
            .context("look for a mark")
    }

    /// Unmarks a name that exists on neither side any more.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn remove_clean_name(&mut self, parent: Ino, name: &Name) -> Result<()> {
        self.mount_ways.forget_name(parent, name);
        let fold = self.rules.fold(name);
        let place: Option<i64> = self.change_returning(
            "remove a name",
            statements::REMOVE_CLEAN_NAME,
            params![int(parent.0), fold, name.as_bytes()],
            |row| row.get(0),
        )?;
        if let Some(place) = place {
            self.left_places
                .insert((parent, name.clone()), place as u64);
        }
        Ok(())
    }

    /// Returns the next directory after `after` whose entries were never read from the backend.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn an_unlisted_dir(&mut self, after: Ino) -> Result<Option<Ino>> {
        self.commit()?;
        self.conn
            .prepare_cached(
                "SELECT ino FROM inodes WHERE mode & 61440 = 16384 AND flags & 8 = 0 AND ino > ? ORDER BY ino LIMIT 1",
            )
            .and_then(|mut s| s.query_row([int(after.0)], |row| row.get::<_, i64>(0)).optional())
            .context("find a directory to list")
            .map(|found| found.map(|ino| Ino(ino as u64)))
    }

    /// Returns whether [`IndexWriter::take_root`] has been done.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn has_root(&self) -> Result<bool> {
        Ok(self.meta(ROOT_TAKEN)?.is_some())
    }

    /// Gives the root the attributes of the backend's own directory, once in the life of a cache:
    /// from then on changes in the mount count. A time that a change in the mount has set stays.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn take_root(&mut self, meta: &Metadata, xattrs: &Xattrs) -> Result<()> {
        if self.has_root()? {
            return Ok(());
        }
        let mut root = self.expect_inode(Ino::ROOT)?;
        root.mode = libc::S_IFDIR | (meta.permissions & 0o7777);
        (root.uid, root.gid) = (meta.uid, meta.gid);
        if !root.flags.has(Flags::ATTR_DIRTY) {
            root.mtime = meta.modified;
        }
        for (name, value) in xattrs {
            if self.xattr_fits(Ino::ROOT, name, value)? {
                self.put_xattr(Ino::ROOT, name, Some(value))?;
                root.flags.set(Flags::XATTRS);
            }
        }
        self.put_inode(root);
        self.set_meta(ROOT_TAKEN, "1")
    }
}
