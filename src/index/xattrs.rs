//! Extended attributes. A call reads no other value than the one asked for.

use rusqlite::{OptionalExtension, params};

use super::{Context, IndexWriter, Result, Snapshot, int, statements};
use crate::core::{Ino, Xattrs};
use crate::plan::representable;

/// The sums over the extended attributes of an inode, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct XattrSizes {
    /// Their names, each with the NUL that ends it in a list.
    pub names: u64,
    /// Their names and values.
    pub bytes: u64,
}

fn sizes(conn: &rusqlite::Connection, ino: Ino) -> Result<XattrSizes> {
    let read = |row: &rusqlite::Row<'_>| {
        let number = |column| -> rusqlite::Result<u64> {
            Ok(row.get::<_, i64>(column)?.max(0).cast_unsigned())
        };
        Ok(XattrSizes {
            names: number(0)?,
            bytes: number(1)?,
        })
    };
    conn.prepare_cached("SELECT names, bytes FROM xattr_sizes WHERE ino=?")
        .and_then(|mut s| s.query_row([int(ino.0)], read).optional())
        .context("read the size of xattrs")
        .map(Option::unwrap_or_default)
}

impl XattrSizes {
    /// Returns the sums after a value of `old` bytes was replaced by one of `new` bytes; `None`
    /// stands for no attribute.
    fn with(self, name: usize, old: Option<u64>, new: Option<u64>) -> XattrSizes {
        let name = name as u64;
        let (mut names, mut bytes) = (self.names, self.bytes);
        if let Some(old) = old {
            names = names.saturating_sub(name + 1);
            bytes = bytes.saturating_sub(old.saturating_add(name));
        }
        if let Some(new) = new {
            names = names.saturating_add(name + 1);
            bytes = bytes.saturating_add(new.saturating_add(name));
        }
        XattrSizes { names, bytes }
    }
}

impl IndexWriter {
    /// Returns the sums over the extended attributes of `ino`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn xattr_sizes(&self, ino: Ino) -> Result<XattrSizes> {
        sizes(&self.conn, ino)
    }

    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn xattr(&mut self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.conn
            .prepare_cached("SELECT value FROM xattrs WHERE ino=? AND name=?")
            .and_then(|mut s| {
                s.query_row(params![int(ino.0), name], |row| row.get(0))
                    .optional()
            })
            .context("read an xattr")
    }

    /// Returns the length in bytes of the value of an extended attribute, without reading it;
    /// `None` if there is no such attribute.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn xattr_length(&self, ino: Ino, name: &[u8]) -> Result<Option<u64>> {
        self.conn
            .prepare_cached("SELECT length(value) FROM xattrs WHERE ino=? AND name=?")
            .and_then(|mut s| {
                s.query_row(params![int(ino.0), name], |row| row.get::<_, i64>(0))
                    .optional()
            })
            .context("look for an xattr")
            .map(|length| length.map(|length| length.max(0).cast_unsigned()))
    }

    /// Returns the names of the extended attributes.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn xattr_names(&mut self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.conn
            .prepare_cached(
                "SELECT name FROM xattrs INDEXED BY xattrs_name WHERE ino=? ORDER BY name",
            )
            .and_then(|mut s| s.query_map([int(ino.0)], |row| row.get(0))?.collect())
            .context("list xattrs")
    }

    /// Returns whether `ino` has any extended attributes.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn has_xattrs(&self, ino: Ino) -> Result<bool> {
        Ok(self.xattr_sizes(ino)?.names > 0)
    }

    /// Returns whether `ino` may have the extended attribute `name` with `value`, beside its
    /// others, or in place of its present value. A value that needs less space is accepted even if
    /// there is too much already.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn xattr_fits(&self, ino: Ino, name: &[u8], value: &[u8]) -> Result<bool> {
        let before = self.xattr_sizes(ino)?;
        let old = self.xattr_length(ino, name)?;
        let after = before.with(name.len(), old, Some(value.len() as u64));
        Ok(
            (after.names <= representable::MAX_XATTR_LIST || after.names <= before.names)
                && (after.bytes <= representable::MAX_XATTRS || after.bytes <= before.bytes),
        )
    }

    /// Sets an extended attribute, or removes it.
    ///
    /// # Errors
    /// If SQLite fails.
    pub fn put_xattr(&mut self, ino: Ino, name: &[u8], value: Option<&[u8]>) -> Result<()> {
        let old = self.xattr_length(ino, name)?;
        let before = self.xattr_sizes(ino)?;
        match value {
            Some(value) => self.change(
                "set an xattr",
                statements::SET_XATTR,
                params![int(ino.0), name, value],
            )?,
            None => self.change(
                "remove an xattr",
                statements::REMOVE_XATTR,
                params![int(ino.0), name],
            )?,
        };
        let new = value.map(|value| value.len() as u64);
        self.put_xattr_sizes(ino, before.with(name.len(), old, new))
    }

    fn put_xattr_sizes(&mut self, ino: Ino, sizes: XattrSizes) -> Result<()> {
        match sizes.names {
            0 => self.change(
                "note the size of xattrs",
                statements::DROP_XATTR_SIZES,
                params![int(ino.0)],
            )?,
            _ => self.change(
                "note the size of xattrs",
                statements::PUT_XATTR_SIZES,
                params![int(ino.0), int(sizes.names), int(sizes.bytes)],
            )?,
        };
        Ok(())
    }

    /// Removes all extended attributes of `ino`.
    ///
    /// # Errors
    /// If SQLite fails.
    pub(super) fn drop_xattrs(&mut self, ino: Ino) -> Result<()> {
        for statement in [statements::DROP_XATTRS, statements::DROP_XATTR_SIZES] {
            self.change("drop xattrs", statement, params![int(ino.0)])?;
        }
        Ok(())
    }
}

impl Snapshot {
    /// See [`IndexWriter::xattr_sizes`].
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn xattr_sizes(&self, ino: Ino) -> Result<XattrSizes> {
        sizes(&self.conn, ino)
    }

    /// Returns the extended attributes of `ino`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn xattrs(&self, ino: Ino) -> Result<Xattrs> {
        let bytes = |row: &rusqlite::Row<'_>, column| -> rusqlite::Result<Box<[u8]>> {
            Ok(row.get::<_, Vec<u8>>(column)?.into())
        };
        self.conn
            .prepare_cached("SELECT name, value FROM xattrs WHERE ino=?")
            .and_then(|mut s| {
                s.query_map([int(ino.0)], |row| Ok((bytes(row, 0)?, bytes(row, 1)?)))?
                    .collect()
            })
            .context("read xattrs")
    }
}
