//! The tables of the index, and what each of them vouches for.
//!
//! The file is SQLite in WAL mode with `synchronous=NORMAL` and no automatic checkpoints: a commit is one write to the WAL
//! without an fsync, so it survives the daemon's death but not a power cut. [`super::Index::sync`] makes it survive that too.
//! After a power cut SQLite takes the longest prefix of whole commits in the WAL: the index is then the state of some earlier
//! moment, no earlier than the last `sync`. An object's bytes are synced before the commit that vouches for them is, so no row
//! that survives claims bytes that did not.

/// Version of the tables, kept in `PRAGMA user_version`.
pub(super) const VERSION: i64 = 5;

/// Makes the tables of version 1.
///
/// - `inodes`: one row an inode. `mode` has the file-type bits. Times are nanoseconds since 1970. `object` is the cache's copy,
///   NULL for none; `flags` are [`super::inode::Flags`]; `data_seq` and `time_seq` say when bytes and mtime last changed;
///   `used` is the second of last use, for eviction.
/// - `dirents`: the tree of the mount. `fold` is the name's canonical key where the backend ignores case or form, else empty.
/// - `placed`: the tree of the backend as last seen or left, in the same inode numbers. `kind` is 1 for a directory, 0 for
///   anything else; `hash` is NULL for what was imported.
/// - `dirty_names`: the names at which `dirents` and `placed` may differ. May hold more than that, never less.
/// - `dirty_inodes`: the inodes with a place on the backend whose bytes or mtime differ from it. The same holds.
/// - `dead_objects`: objects that no inode needs. `batch` is the batch that may still read them, 0 for none.
/// - `batches`: the outcome of each batch; `state` 0 under way, 1 done, 2 given up. At most one is under way.
pub(super) const V1: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE inodes(
  ino INTEGER PRIMARY KEY, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL,
  nlink INTEGER NOT NULL, size INTEGER NOT NULL, blocks INTEGER NOT NULL, atime INTEGER NOT NULL, mtime INTEGER NOT NULL,
  ctime INTEGER NOT NULL, btime INTEGER NOT NULL, object INTEGER, flags INTEGER NOT NULL, data_seq INTEGER NOT NULL,
  time_seq INTEGER NOT NULL, used INTEGER NOT NULL, target BLOB);
CREATE INDEX inodes_evictable ON inodes(used) WHERE object IS NOT NULL AND flags & 3 = 0;
CREATE INDEX inodes_unlisted ON inodes(ino) WHERE mode & 61440 = 16384 AND flags & 8 = 0;
CREATE TABLE dirents(parent INTEGER NOT NULL, fold BLOB NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL,
  PRIMARY KEY(parent, fold, name)) WITHOUT ROWID;
CREATE INDEX dirents_ino ON dirents(ino);
CREATE TABLE placed(parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, kind INTEGER NOT NULL,
  size INTEGER NOT NULL, mtime INTEGER NOT NULL, hash BLOB, PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE INDEX placed_ino ON placed(ino);
CREATE TABLE dirty_names(parent INTEGER NOT NULL, name BLOB NOT NULL, seq INTEGER NOT NULL,
  PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE TABLE dirty_inodes(ino INTEGER PRIMARY KEY);
CREATE TABLE xattrs(ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY(ino, name)) WITHOUT ROWID;
CREATE TABLE dead_objects(object INTEGER PRIMARY KEY, batch INTEGER NOT NULL);
CREATE TABLE batches(batch INTEGER PRIMARY KEY, cut INTEGER NOT NULL, state INTEGER NOT NULL, time INTEGER NOT NULL,
  files INTEGER NOT NULL, bytes INTEGER NOT NULL, outcome TEXT NOT NULL);
";

/// What version 2 adds to version 1.
///
/// - `replaced`: what a name or a file had before its bytes were replaced, for as long as those that came instead are not known to be
///   durable. `parent` and `name` are NULL where the file itself was rewritten. `by` is the inode that has the new bytes and
///   `by_seq` its `data_seq`: once that has moved on, the row says nothing any more. `change` orders the rows. The other columns
///   are those of `inodes`, as they were.
pub(super) const V2: &str = "
CREATE TABLE replaced(change INTEGER PRIMARY KEY, parent INTEGER, name BLOB, by INTEGER NOT NULL, by_seq INTEGER NOT NULL,
  ino INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL,
  nlink INTEGER NOT NULL, size INTEGER NOT NULL, blocks INTEGER NOT NULL, atime INTEGER NOT NULL, mtime INTEGER NOT NULL,
  ctime INTEGER NOT NULL, btime INTEGER NOT NULL, object INTEGER, flags INTEGER NOT NULL, data_seq INTEGER NOT NULL,
  time_seq INTEGER NOT NULL, used INTEGER NOT NULL, target BLOB);
CREATE INDEX replaced_by ON replaced(by);
";

/// What version 3 adds to version 2.
///
/// - `dirents.stored`: how the backend spells the name, NULL for the same. `dirents.stored_fold`: its canonical key, as `fold` is that
///   of `name`; NULL where `stored` is. No two names of one directory are spelled alike.
/// - the setting `fold` says how all these keys were made, see `refold`.
pub(super) const V3: &str = "
ALTER TABLE dirents ADD COLUMN stored BLOB;
ALTER TABLE dirents ADD COLUMN stored_fold BLOB;
CREATE INDEX dirents_stored ON dirents(parent, stored) WHERE stored IS NOT NULL;
CREATE INDEX dirents_stored_fold ON dirents(parent, stored_fold) WHERE stored_fold IS NOT NULL;
";

/// What version 3 adds: the mirror of the drive's catalog ([`super::catalog`]).
///
/// - `catalog_nodes`: one row for each name on the backend of which something is known, and those above it. `parent` is a node, or
///   negative for what is in a slot or forgotten; `entry` is its description, NULL for none; `link` its group of hard links.
/// - `link_groups`: which inode has the bytes of a group, and how many names of it have not been met yet.
pub(super) const V3_CATALOG: &str = "
CREATE TABLE catalog_nodes(node INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL, entry BLOB, link INTEGER);
CREATE UNIQUE INDEX catalog_children ON catalog_nodes(parent, name);
CREATE INDEX catalog_links ON catalog_nodes(link) WHERE link IS NOT NULL;
INSERT INTO catalog_nodes VALUES(1, 0, x'', NULL, NULL);
CREATE TABLE link_groups(link INTEGER PRIMARY KEY, ino INTEGER NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL,
  pending INTEGER NOT NULL);
CREATE UNIQUE INDEX link_groups_ino ON link_groups(ino);
";

/// What no version before 3 told any drive waits to be told: the attributes of all that ferryfs has put there, and links and special files.
pub(super) const V3_UNTOLD: &str = "
UPDATE inodes SET flags = flags | 128 WHERE mode & 61440 = 16384 OR ino IN (SELECT ino FROM placed WHERE hash IS NOT NULL);
INSERT OR IGNORE INTO dirty_inodes SELECT ino FROM inodes WHERE flags & 144 = 144;
INSERT OR IGNORE INTO dirty_names SELECT d.parent, d.name, 0 FROM dirents d JOIN inodes i ON i.ino=d.ino
  WHERE i.mode & 61440 NOT IN (16384, 32768);
";

/// What version 4 adds to version 3.
///
/// - `dirents.cookie`: where a listing of the directory goes on after this name. Numbers go up and are never given out twice, so that
///   they mean the same for as long as the name is there; a name that is replaced by a rename keeps its own. The index holds
///   all that a listing asks for.
/// - `inodes_interrupted`: what was being written when a daemon was killed, for whoever asks for the status.
pub(super) const V4: &str = "
ALTER TABLE dirents ADD COLUMN cookie INTEGER NOT NULL DEFAULT 0;
UPDATE dirents SET cookie = n.cookie FROM (SELECT parent, fold, name, 2 + row_number() OVER (ORDER BY parent, fold, name) AS cookie
  FROM dirents) n WHERE dirents.parent = n.parent AND dirents.fold = n.fold AND dirents.name = n.name;
INSERT OR REPLACE INTO meta SELECT 'next_cookie', coalesce(max(cookie), 2) + 1 FROM dirents;
CREATE INDEX dirents_cookie ON dirents(parent, cookie, ino);
CREATE INDEX inodes_interrupted ON inodes(ino) WHERE flags & 64 <> 0;
";

/// What version 5 adds to version 4.
///
/// - `xattrs` has its key in an index of its own: a table without row numbers compares whole rows, values of 64 KiB included, and its
///   names cannot be listed without them.
/// - `xattr_sizes`: the sums of an inode's attributes, so that a bound on them costs one look-up. `names` is the length of the list that
///   listxattr(2) gives of them all, `bytes` that of names and values.
/// - `tall_dirs`: see [`super::depth`].
pub(super) const V5: &str = "
ALTER TABLE xattrs RENAME TO xattrs_before;
CREATE TABLE xattrs(ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL);
CREATE UNIQUE INDEX xattrs_name ON xattrs(ino, name);
INSERT INTO xattrs SELECT ino, name, value FROM xattrs_before;
DROP TABLE xattrs_before;
CREATE TABLE xattr_sizes(ino INTEGER PRIMARY KEY, names INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO xattr_sizes SELECT ino, sum(length(name) + 1), sum(length(name) + length(value)) FROM xattrs GROUP BY ino;
CREATE TABLE tall_dirs(ino INTEGER PRIMARY KEY, height INTEGER NOT NULL);
";
