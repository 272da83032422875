//! A walk over all names of the mount, on a snapshot, so that nothing waits for it.

use rusqlite::Row;

use crate::core::{FileKind, Ino, Name, RelPath, Timestamp};
use crate::index::inode::Flags;
use crate::index::tree::name_from_row;
use crate::index::{Context, Result, Snapshot, int};

/// A name of the mount, and what the walks need of its inode.
#[derive(Clone, Debug)]
pub struct WalkedName {
    /// The directory.
    pub parent: Ino,
    /// The name.
    pub name: Name,
    /// Its inode.
    pub ino: Ino,
    /// File type and permissions.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Size in bytes.
    pub size: u64,
    /// Last change of bytes.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Its state.
    pub flags: Flags,
    /// The cache has its bytes.
    pub is_cached: bool,
}

impl WalkedName {
    /// Returns whether it is a directory.
    pub fn is_dir(&self) -> bool {
        FileKind::from_mode(self.mode) == Some(FileKind::Directory)
    }

    fn from_row(parent: Ino, row: &Row<'_>) -> rusqlite::Result<WalkedName> {
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        Ok(WalkedName {
            parent,
            name: name_from_row(row, 0)?,
            ino: Ino(number(1)?),
            mode: row.get(2)?,
            nlink: row.get(3)?,
            size: number(4)?,
            mtime: Timestamp(row.get(5)?),
            ctime: Timestamp(row.get(6)?),
            flags: Flags(row.get(7)?),
            is_cached: row.get(8)?,
        })
    }
}

impl Snapshot {
    /// Visits all names below `root`, each directory before what is in it. `visit` gets a name with
    /// its path, the other names of its directory, and what it returned for the directory; if it
    /// returns `None` for a directory, this is not entered.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn walk<T, F>(&self, (root, path): (Ino, RelPath), of_root: T, visit: &mut F) -> Result<()>
    where
        F: FnMut(&WalkedName, &RelPath, &[WalkedName], &T) -> Option<T>,
    {
        let mut dirs = vec![(root, path, of_root)];
        while let Some((dir, path, of_dir)) = dirs.pop() {
            let names = self.names_in(dir)?;
            for name in &names {
                let path = path.join(&name.name);
                let entered = visit(name, &path, &names, &of_dir);
                if let (true, Some(of_name)) = (name.is_dir(), entered) {
                    dirs.push((name.ino, path, of_name));
                }
            }
        }
        Ok(())
    }

    fn names_in(&self, dir: Ino) -> Result<Vec<WalkedName>> {
        let sql = "SELECT d.name, d.ino, i.mode, i.nlink, i.size, i.mtime, i.ctime, i.flags, i.object IS NOT NULL
             FROM dirents d JOIN inodes i ON i.ino=d.ino WHERE d.parent=?";
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| {
                let read = |row: &Row<'_>| WalkedName::from_row(dir, row);
                s.query_map([int(dir.0)], read)?.collect()
            })
            .context("list a directory")
    }
}
