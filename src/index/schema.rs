//! The tables of the index, and what each of them guarantees.
//!
//! The file is SQLite in WAL mode with `synchronous=NORMAL` and no automatic checkpoints: a commit
//! is one write to the WAL without an fsync, so it survives the daemon's death but not a power cut.
//! [`super::Index::sync`] makes it survive that, too. After a power cut SQLite takes the longest
//! prefix of whole commits in the WAL: the index then has the state of some earlier moment, no
//! earlier than the last `sync`. The bytes of an object are synced before the commit of the row
//! that names it, so no surviving row claims bytes that did not survive.

/// Version of the tables, kept in `PRAGMA user_version`. An index with another one is refused. It
/// also covers the journals of batches, which have no version of their own: a change of their form
/// changes this number.
pub(super) const VERSION: i64 = 2;

/// The oldest version that is brought up to this one when it is opened.
pub(super) const OLDEST: i64 = 1;

/// Makes what version 2 has beside the tables of version 1.
pub(super) const SINCE_2: &str = "
CREATE INDEX IF NOT EXISTS inodes_orphaned ON inodes(ino) WHERE nlink = 0;
CREATE INDEX IF NOT EXISTS inodes_kept_local ON inodes(ino)
  WHERE mode & 61440 NOT IN (32768, 16384) AND flags & 16 = 0;
CREATE INDEX IF NOT EXISTS inodes_local ON inodes(ino) WHERE flags & 512 <> 0;
";

/// Makes the tables of version 1.
///
/// The tree of the mount, and the cache:
/// - `inodes`: one row for each inode. `mode` has the file-type bits. Times are nanoseconds since
///   1970. `object` is the cache's copy, NULL for none; `flags` are [`super::inode::Flags`];
///   `data_seq` and `time_seq` say when bytes and mtime last changed; `used` is the second of last
///   use, for eviction. The index `inodes_interrupted` has the files that were being written when a
///   daemon was killed, and `inodes_kept_local` links and special files that the drive does not
///   have, for `status`; `inodes_orphaned` has those without a name, for the end of a mount;
///   `inodes_local` has those that stay local.
/// - `dirents`: the names of the mount. `fold` is the name's canonical key if the backend ignores
///   case or form, else empty. `stored` is the backend's spelling of the name, NULL for the same;
///   `stored_fold` its canonical key, NULL if `stored` is. No two names of one directory are
///   spelled alike. The setting `fold` says how all these keys were made, see `refold`. `cookie` is
///   where a listing of the directory continues after this name: numbers go up and are never used
///   twice, so that one stays valid as long as its name exists; a name that is replaced by a rename
///   keeps its own. The index `dirents_cookie` has all columns that a listing needs.
/// - `xattrs`: extended attributes. Their key is in an index of its own: a table without row
///   numbers compares whole rows, values of 64 KiB included, and its names cannot be listed without
///   them.
/// - `xattr_sizes`: the sums of an inode's attributes, so that a bound on them costs one look-up.
///   `names` is the length of the list that listxattr(2) returns, `bytes` that of names and values.
/// - `tall_dirs`: see [`super::depth`].
/// - `dead_objects`: objects that no inode needs. `batch` is the batch that may still read them, 0
///   for none.
/// - `replaced`: the earlier version of a name or a file, as long as the new bytes are not known to
///   be durable. `parent` and `name` are NULL if the file itself was rewritten. `by` is the inode
///   with the new bytes and `by_seq` its `data_seq`: once that has changed, the row is void.
///   `change` orders the rows. The other columns are those of `inodes`, as they were.
///
/// The tree of the backend, and what waits for it:
/// - `placed`: the tree of the backend as last seen or left, in the same inode numbers. `kind` is 1
///   for a directory, 0 for anything else; `hash` is NULL for imported files.
/// - `dirty_names`: the names at which `dirents` and `placed` may differ. It may have more, never
///   fewer.
/// - `dirty_inodes`: the inodes with a place on the backend whose bytes or mtime differ from it.
///   The same holds.
/// - `batches`: the outcome of each batch; `state` 0 open, 1 done, 2 given up. At most one is open.
///
/// The mirror of the drive's catalog ([`crate::index::mirror`]):
/// - `catalog_nodes`: one row for each described name on the backend, and for those above it.
///   `parent` is a node, or negative for a node that is in a slot or forgotten; `entry` is its
///   description, NULL for none; `link` its group of hard links.
/// - `link_groups`: which inode has the bytes of a group, and how many names of it were not found
///   yet.
pub(super) const TABLES: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE inodes(
  ino INTEGER PRIMARY KEY, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
  rdev INTEGER NOT NULL, nlink INTEGER NOT NULL, size INTEGER NOT NULL, blocks INTEGER NOT NULL,
  atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL, btime INTEGER NOT NULL,
  object INTEGER, flags INTEGER NOT NULL, data_seq INTEGER NOT NULL, time_seq INTEGER NOT NULL,
  used INTEGER NOT NULL, target BLOB);
CREATE INDEX inodes_evictable ON inodes(used) WHERE object IS NOT NULL AND flags & 3 = 0;
CREATE INDEX inodes_unlisted ON inodes(ino) WHERE mode & 61440 = 16384 AND flags & 8 = 0;
CREATE INDEX inodes_interrupted ON inodes(ino) WHERE flags & 64 <> 0;
CREATE TABLE dirents(
  parent INTEGER NOT NULL, fold BLOB NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL,
  stored BLOB, stored_fold BLOB, cookie INTEGER NOT NULL,
  PRIMARY KEY(parent, fold, name)) WITHOUT ROWID;
CREATE INDEX dirents_ino ON dirents(ino);
CREATE INDEX dirents_stored ON dirents(parent, stored) WHERE stored IS NOT NULL;
CREATE INDEX dirents_stored_fold ON dirents(parent, stored_fold) WHERE stored_fold IS NOT NULL;
CREATE INDEX dirents_cookie ON dirents(parent, cookie, ino);
CREATE TABLE xattrs(ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL);
CREATE UNIQUE INDEX xattrs_name ON xattrs(ino, name);
CREATE TABLE xattr_sizes(ino INTEGER PRIMARY KEY, names INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE tall_dirs(ino INTEGER PRIMARY KEY, height INTEGER NOT NULL);
CREATE TABLE dead_objects(object INTEGER PRIMARY KEY, batch INTEGER NOT NULL);
CREATE TABLE replaced(
  change INTEGER PRIMARY KEY, parent INTEGER, name BLOB, by INTEGER NOT NULL,
  by_seq INTEGER NOT NULL, ino INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL,
  gid INTEGER NOT NULL, rdev INTEGER NOT NULL, nlink INTEGER NOT NULL, size INTEGER NOT NULL,
  blocks INTEGER NOT NULL, atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
  btime INTEGER NOT NULL, object INTEGER, flags INTEGER NOT NULL, data_seq INTEGER NOT NULL,
  time_seq INTEGER NOT NULL, used INTEGER NOT NULL, target BLOB);
CREATE INDEX replaced_by ON replaced(by);
CREATE TABLE placed(
  parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, kind INTEGER NOT NULL,
  size INTEGER NOT NULL, mtime INTEGER NOT NULL, hash BLOB,
  PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE INDEX placed_ino ON placed(ino);
CREATE TABLE dirty_names(parent INTEGER NOT NULL, name BLOB NOT NULL, seq INTEGER NOT NULL,
  PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE TABLE dirty_inodes(ino INTEGER PRIMARY KEY);
CREATE TABLE batches(
  batch INTEGER PRIMARY KEY, cut INTEGER NOT NULL, state INTEGER NOT NULL, time INTEGER NOT NULL,
  files INTEGER NOT NULL, bytes INTEGER NOT NULL, outcome TEXT NOT NULL);
CREATE TABLE catalog_nodes(
  node INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL, entry BLOB, link INTEGER);
CREATE UNIQUE INDEX catalog_children ON catalog_nodes(parent, name);
CREATE INDEX catalog_links ON catalog_nodes(link) WHERE link IS NOT NULL;
INSERT INTO catalog_nodes VALUES(1, 0, x'', NULL, NULL);
CREATE TABLE link_groups(
  link INTEGER PRIMARY KEY, ino INTEGER NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL,
  pending INTEGER NOT NULL);
CREATE UNIQUE INDEX link_groups_ino ON link_groups(ino);
";
