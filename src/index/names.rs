//! The two spellings of a name: that of the mount, and that of the backend.
//!
//! `dirents` has both. What concerns the backend (`placed`, `dirty_names`, every [`NameKey`] of a batch) is in the backend's spelling;
//! what concerns programs is in the mount's. They meet here and nowhere else.
//!
//! A stored name is chosen when a name of the mount is made, among those that no sibling has, and stays until that name goes: it does
//! not depend on what comes and goes beside it later. A program that replaces a file by a rename keeps the name, and so its spelling.

use rusqlite::{Connection, OptionalExtension, params};

use super::tree::name_from_row;
use super::{Context, IndexError, Result, State, int};
use crate::base::{Ino, Name, RelPath};
use crate::rules::names::{NameRules, safe_names};
use crate::rules::plan::NameKey;

/// The setting that says how the canonical keys were made.
const FOLD: &str = "fold";

/// The inode behind a stored name: parent, its key, the name, the name again.
const LOOK_UP_STORED: &str =
    "SELECT ino FROM dirents WHERE parent=?1 AND fold=?2 AND name=?3 AND stored IS NULL
 UNION ALL SELECT ino FROM dirents INDEXED BY dirents_stored WHERE parent=?1 AND stored=?3 AND stored IS NOT NULL LIMIT 1";

// The planner knows nothing of these tables and would rather walk a directory than use an index of few names: it is told.

/// Whether a stored name of a directory is spelled like this.
const TAKEN: &str = "SELECT EXISTS(SELECT 1 FROM dirents WHERE parent=?1 AND fold=x'' AND name=?2 AND stored IS NULL)
 OR EXISTS(SELECT 1 FROM dirents INDEXED BY dirents_stored WHERE parent=?1 AND stored=?2 AND stored IS NOT NULL)";

/// The same of its key.
const TAKEN_BY_KEY: &str =
    "SELECT EXISTS(SELECT 1 FROM dirents WHERE parent=?1 AND fold=?2 AND stored IS NULL)
 OR EXISTS(SELECT 1 FROM dirents INDEXED BY dirents_stored_fold WHERE parent=?1 AND stored_fold=?2 AND stored_fold IS NOT NULL)";

impl State {
    /// How `name`, which `parent` does not have yet, is to be spelled on the backend.
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
        // There is no end to spellings.
        Err(IndexError::Corrupt(format!(
            "no spelling of {name} in directory {} is free",
            parent.0
        )))
    }

    /// Whether a name of `parent` is stored under `spelling`, or under one that the backend takes for the same.
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

    /// The inode whose name in `parent` is stored under `stored`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn lookup_stored(&mut self, parent: Ino, stored: &Name) -> Result<Option<Ino>> {
        let fold = self.rules.fold(stored);
        look_up_stored(&self.conn, parent, stored, &fold)
    }

    /// How `name` of `parent` is spelled on the backend; `None` if there is no such name.
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

    /// The name of the mount for the stored name `key`; for one that the mount does not have, what it would be.
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

    /// The path in the mount of the stored name `key`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn key_path(&mut self, key: &NameKey) -> Result<Option<RelPath>> {
        let Some(dir) = self.mount_path(key.parent)? else {
            return Ok(None);
        };
        Ok(Some(dir.join(&self.mount_name(key)?)))
    }

    /// Under which name `parent` is to show what the backend has there as `stored`: its `exact` name if that is known, else what
    /// `stored` is a spelling of, else `stored` itself. If a sibling has that name already, or Linux has none so long: a safe one,
    /// with a suffix of the hash of `stored`.
    ///
    /// Where several are taken in, those whose exact names are known come first, then those that [`NameRules::decode`] knows, then the
    /// rest, each by their bytes: then what becomes of each does not depend on the backend's order.
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
        // There is no end to safe names.
        Err(IndexError::Corrupt(format!(
            "no name for {stored} in directory {} is free",
            parent.0
        )))
    }
}

/// The name of the mount that is stored under `key`.
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

/// See [`State::lookup_stored`].
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

/// Sees to it that the canonical keys in the index are those of `rules`. They are others after a change of how they are made, of the
/// tables of Unicode, or of what the backend was found to be.
///
/// One transaction: a crash leaves the old keys and the old setting, and the next start does it again.
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
    // Dropped without a commit, it takes everything back.
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

/// The names whose keys have to change, with the new ones.
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
