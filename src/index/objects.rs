//! Table `dead_objects`: objects that no inode needs any more.

use std::collections::HashSet;

use rusqlite::params;

use crate::core::ObjectId;
use crate::index::inode::Inode;
use crate::index::{Context, IndexWriter, Result, int, statements};

impl IndexWriter {
    /// Returns a number for a new object.
    ///
    /// # Errors
    /// If it cannot be reserved.
    pub fn new_object(&mut self) -> Result<ObjectId> {
        self.take_number(|state| &mut state.objects).map(ObjectId)
    }

    /// Notes that `object` of `inode` is no longer needed. If the open batch may still read it, it
    /// is kept until the batch ends.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn bury_object(&mut self, inode: &Inode, object: ObjectId) -> Result<()> {
        let batch = match &self.active {
            Some(active) if self.is_pinned(inode) => active.batch.0,
            _ => 0,
        };
        self.change(
            "bury an object",
            statements::BURY_OBJECT,
            params![int(object.0), int(batch)],
        )?;
        Ok(())
    }

    /// Returns up to `limit` dead objects that no batch may still read.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn dead_objects(&mut self, limit: u32) -> Result<Vec<ObjectId>> {
        self.commit()?;
        self.conn
            .prepare_cached("SELECT object FROM dead_objects WHERE batch=0 LIMIT ?")
            .and_then(|mut s| {
                s.query_map([limit], |row| Ok(ObjectId(row.get::<_, i64>(0)? as u64)))?
                    .collect()
            })
            .context("list dead objects")
    }

    /// Notes that the files of `objects` have been removed.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn forget_dead_objects(&mut self, objects: &[ObjectId]) -> Result<()> {
        for object in objects {
            self.change(
                "forget an object",
                statements::FORGET_OBJECT,
                params![int(object.0)],
            )?;
        }
        Ok(())
    }

    /// Returns all objects that a row names, live or dead.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn known_objects(&mut self) -> Result<HashSet<ObjectId>> {
        self.commit()?;
        self.conn
            .prepare(
                "SELECT object FROM inodes WHERE object IS NOT NULL UNION ALL SELECT object FROM dead_objects",
            )
            .and_then(|mut s| {
                s.query_map([], |row| Ok(ObjectId(row.get::<_, i64>(0)? as u64)))?
                    .collect()
            })
            .context("list objects")
    }
}
