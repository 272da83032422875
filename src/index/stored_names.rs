//! The two spellings of a name: that of the mount, and that of the backend.
//!
//! `dirents` has both. The backend's side (`placed`, `dirty_names`, every [`NameKey`] of a batch)
//! uses the backend's spelling; programs see the mount's. The two meet only here.
//!
//! A stored name is chosen when a name of the mount is made, among those that no sibling has, and
//! stays until that name is removed: it does not depend on later siblings. A program that replaces
//! a file by a rename keeps the name, and so its spelling.

use rusqlite::{Connection, OptionalExtension, params};

use crate::core::{Ino, Name, RelPath};
use crate::index::tree::name_from_row;
use crate::index::{Context, Corruption, IndexError, IndexWriter, Result, int};
use crate::plan::names::{NameRules, safe_names};
use crate::plan::planner::NameKey;

/// The setting that says how the canonical keys were made.
const FOLD: &str = "fold";

/// Finds the inode of a stored name: parent, its key, the name, the name again.
const LOOK_UP_STORED: &str =
    "SELECT ino FROM dirents WHERE parent=?1 AND fold=?2 AND name=?3 AND stored IS NULL
 UNION ALL SELECT ino FROM dirents INDEXED BY dirents_stored WHERE parent=?1 AND stored=?3 AND stored IS NOT NULL LIMIT 1";

// SQLite's planner does not know these tables and would rather read a whole directory than use an
// index of few names, so the index is named.

/// Whether a stored name of a directory has this spelling.
const TAKEN: &str = "SELECT EXISTS(SELECT 1 FROM dirents WHERE parent=?1 AND fold=x'' AND name=?2 AND stored IS NULL)
 OR EXISTS(SELECT 1 FROM dirents INDEXED BY dirents_stored WHERE parent=?1 AND stored=?2 AND stored IS NOT NULL)";

/// The same of its key.
const TAKEN_BY_KEY: &str =
    "SELECT EXISTS(SELECT 1 FROM dirents WHERE parent=?1 AND fold=?2 AND stored IS NULL)
 OR EXISTS(SELECT 1 FROM dirents INDEXED BY dirents_stored_fold WHERE parent=?1 AND stored_fold=?2 AND stored_fold IS NOT NULL)";

impl IndexWriter {
    /// Chooses the backend's spelling of `name`, which `parent` does not have yet.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn choose_stored(&mut self, parent: Ino, name: &Name) -> Result<Name> {
        let in_root = parent == Ino::ROOT;
        if self.rules.is_plain(name, in_root) && !self.is_taken(parent, name)? {
            return Ok(name.clone());
        }
        let rules = self.rules.clone();
        for spelling in rules.spellings(name, in_root) {
            if !self.is_taken(parent, &spelling)? {
                return Ok(spelling);
            }
        }
        // The spellings never end.
        Err(IndexError::Corrupt(Corruption::NoFreeName {
            parent,
            name: name.clone(),
        }))
    }

    /// Returns whether a name of `parent` is stored under `spelling`, or under one that the backend
    /// considers equal.
    fn is_taken(&self, parent: Ino, spelling: &Name) -> Result<bool> {
        let fold = self.rules.fold(spelling);
        let (sql, key) = match fold.is_empty() {
            true => (TAKEN, spelling.as_bytes()),
            false => (TAKEN_BY_KEY, &fold[..]),
        };
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row(params![int(parent.0), key], |row| row.get(0)))
            .context("look for a name that collides")
    }

    /// Returns the inode whose name in `parent` is stored under `stored`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn lookup_stored(&mut self, parent: Ino, stored: &Name) -> Result<Option<Ino>> {
        let fold = self.rules.fold(stored);
        look_up_stored(&self.conn, parent, stored, &fold)
    }

    /// Returns the inode that the mount has at `path`, which is in stored names.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn find_stored(&mut self, path: &RelPath) -> Result<Option<Ino>> {
        self.follow(path, |state, dir, name| state.lookup_stored(dir, name))
    }

    /// Returns the inode that the backend has at `path`, as far as the index knows.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn find_placed(&mut self, path: &RelPath) -> Result<Option<Ino>> {
        self.follow(path, |state, dir, name| {
            Ok(state.placed(dir, name)?.map(|entry| entry.ino))
        })
    }

    /// Follows `path` from the root, one `step` for each component.
    fn follow(
        &mut self,
        path: &RelPath,
        step: impl Fn(&mut Self, Ino, &Name) -> Result<Option<Ino>>,
    ) -> Result<Option<Ino>> {
        let mut at = Ino::ROOT;
        for bytes in path.components() {
            let Ok(name) = Name::new(bytes) else {
                return Ok(None);
            };
            match step(self, at, &name)? {
                Some(ino) => at = ino,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Returns the backend's spelling of `name` of `parent`; `None` if there is no such name.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn stored_name(&mut self, parent: Ino, name: &Name) -> Result<Option<Name>> {
        let fold = self.rules.fold(name);
        self.conn
            .prepare_cached(
                "SELECT coalesce(stored, name) FROM dirents WHERE parent=? AND fold=? AND name=?",
            )
            .and_then(|mut s| {
                s.query_row(params![int(parent.0), fold, name.as_bytes()], |row| {
                    name_from_row(row, 0)
                })
                .optional()
            })
            .context("look up how a name is stored")
    }

    /// Returns the mount's name for the stored name `key`; the one it would get, if the mount does
    /// not have it.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn mount_name(&mut self, key: &NameKey) -> Result<Name> {
        let fold = self.rules.fold(&key.name);
        let found = mount_name_of(&self.conn, key, &fold)?;
        Ok(found
            .or_else(|| self.rules.decode(&key.name, key.parent == Ino::ROOT))
            .unwrap_or_else(|| key.name.clone()))
    }

    /// Returns the path in the mount of the stored name `key`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn key_path(&mut self, key: &NameKey) -> Result<Option<RelPath>> {
        let Some(dir) = self.mount_path(key.parent)? else {
            return Ok(None);
        };
        Ok(Some(dir.join(&self.mount_name(key)?)))
    }

    /// Returns the name under which `parent` must show the backend's name `stored`: its `exact`
    /// name if that is known, else the name of which `stored` is a spelling, else `stored` itself.
    /// If a sibling has that name already, or it is too long for Linux: a safe name, with a suffix
    /// of the hash of `stored`.
    ///
    /// If several are imported together, those whose exact names are known come first, then those
    /// that [`NameRules::decode`] knows, then the rest, each in the order of their bytes. So the
    /// result does not depend on the backend's order.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn mount_name_for(
        &mut self,
        parent: Ino,
        stored: &Name,
        exact: Option<&Name>,
    ) -> Result<Name> {
        let read = self.rules.decode(stored, parent == Ino::ROOT);
        let named = [exact.cloned(), read, Some(stored.clone())];
        let good = named.into_iter().flatten().filter(Name::is_mountable);
        for name in good.chain(safe_names(stored)) {
            if self.lookup(parent, &name)?.is_none() {
                return Ok(name);
            }
        }
        // Safe names never end.
        Err(IndexError::Corrupt(Corruption::NoFreeName {
            parent,
            name: stored.clone(),
        }))
    }
}

/// Returns the mount's name that is stored under `key`.
pub(super) fn mount_name_of(conn: &Connection, key: &NameKey, fold: &[u8]) -> Result<Option<Name>> {
    conn.prepare_cached(
        "SELECT name FROM dirents WHERE parent=?1 AND fold=?2 AND name=?3 AND stored IS NULL
         UNION ALL SELECT name FROM dirents INDEXED BY dirents_stored
         WHERE parent=?1 AND stored=?3 AND stored IS NOT NULL LIMIT 1",
    )
    .and_then(|mut s| {
        s.query_row(
            params![int(key.parent.0), fold, key.name.as_bytes()],
            |row| name_from_row(row, 0),
        )
        .optional()
    })
    .context("look up a stored name")
}

/// See [`IndexWriter::lookup_stored`].
pub(super) fn look_up_stored(
    conn: &Connection,
    parent: Ino,
    stored: &Name,
    fold: &[u8],
) -> Result<Option<Ino>> {
    conn.prepare_cached(LOOK_UP_STORED)
        .and_then(|mut s| {
            s.query_row(params![int(parent.0), fold, stored.as_bytes()], |row| {
                row.get::<_, i64>(0)
            })
            .optional()
        })
        .context("look up a stored name")
        .map(|found| found.map(|ino| Ino(ino as u64)))
}

/// Makes the canonical keys in the index those of `rules`. They change with the way they are made,
/// with the tables of Unicode, or with the capabilities found on the backend.
///
/// One transaction: a crash leaves the old keys and the old setting, and the next start does it
/// again.
pub(super) fn refold(conn: &Connection, rules: &NameRules) -> Result<()> {
    let wanted = rules.fold_id();
    let known: Option<String> = conn
        .query_row("SELECT value FROM meta WHERE key=?", [FOLD], |row| {
            row.get(0)
        })
        .optional()
        .context("read a setting")?;
    if known.as_deref() == Some(&wanted) {
        return Ok(());
    }
    // If it is dropped without a commit, everything is rolled back.
    let change = conn.unchecked_transaction().context("begin")?;
    for row in stale(conn, rules)? {
        conn.prepare_cached(
            "UPDATE dirents SET fold=?, stored_fold=? WHERE parent=? AND fold=? AND name=?",
        )
        .and_then(|mut s| {
            s.execute(params![
                row.fold,
                row.stored_fold,
                row.parent,
                row.old,
                row.name
            ])
        })
        .context("renew a key")?;
    }
    conn.execute(
        "INSERT OR REPLACE INTO meta VALUES(?,?)",
        params![FOLD, wanted],
    )
    .context("write a setting")?;
    change.commit().context("commit")
}

struct Refolded {
    parent: i64,
    old: Vec<u8>,
    name: Vec<u8>,
    fold: Vec<u8>,
    stored_fold: Option<Vec<u8>>,
}

/// Returns the names whose keys must change, with the new ones.
fn stale(conn: &Connection, rules: &NameRules) -> Result<Vec<Refolded>> {
    let mut changed = Vec::new();
    let mut look = || -> rusqlite::Result<()> {
        let mut statement =
            conn.prepare("SELECT parent, fold, name, stored, stored_fold FROM dirents")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name = name_from_row(row, 2)?;
            let (old, old_stored): (Vec<u8>, Option<Vec<u8>>) = (row.get(1)?, row.get(4)?);
            let fold = rules.fold(&name);
            let stored_fold = match row.get::<_, Option<Vec<u8>>>(3)? {
                Some(_) => Some(rules.fold(&name_from_row(row, 3)?)),
                None => None,
            };
            if (&fold, &stored_fold) != (&old, &old_stored) {
                changed.push(Refolded {
                    parent: row.get(0)?,
                    old,
                    name: name.as_bytes().to_vec(),
                    fold,
                    stored_fold,
                });
            }
        }
        Ok(())
    };
    look().context("read the names")?;
    Ok(changed)
}

#[cfg(test)]
mod tests;
