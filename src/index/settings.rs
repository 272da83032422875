//! Table `meta`: settings, by name.

use rusqlite::{OptionalExtension, params};

use crate::index::{Context, IndexWriter, Result, statements};

impl IndexWriter {
    /// Returns a setting.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn meta(&self, key: &str) -> Result<Option<String>> {
        self.conn
            .prepare_cached("SELECT CAST(value AS TEXT) FROM meta WHERE key=?")
            .and_then(|mut s| s.query_row([key], |row| row.get(0)).optional())
            .context("read a setting")
    }

    /// Sets a setting; an empty value removes it.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn set_meta(&mut self, key: &str, value: &str) -> Result<()> {
        if value.is_empty() {
            self.change("drop a setting", statements::DROP_SETTING, params![key])?;
        } else {
            self.change(
                "write a setting",
                statements::PUT_SETTING,
                params![key, value],
            )?;
        }
        Ok(())
    }

    /// Returns the settings whose keys begin with `prefix`; the keys without it.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn metas(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        self.conn
            .prepare_cached(
                "SELECT substr(key, length(?1) + 1), CAST(value AS TEXT) FROM meta WHERE substr(key, 1, length(?1)) = ?1",
            )
            .and_then(|mut s| {
                s.query_map([prefix], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .context("read settings")
    }
}
