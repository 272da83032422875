//! The statements that change the index on behalf of a request. Only these may be in the redo log.

pub(super) const ADD_NAME: &str = "INSERT INTO dirents(parent, fold, name, ino, stored, stored_fold, cookie) VALUES(?,?,?,?,?,?,?)";
pub(super) const BURY_OBJECT: &str = "INSERT OR REPLACE INTO dead_objects VALUES(?,?)";
pub(super) const DROP_HEIGHT: &str = "DELETE FROM tall_dirs WHERE ino=?";
pub(super) const DROP_INODE: &str = "DELETE FROM inodes WHERE ino=?";
pub(super) const DROP_LINK_GROUP: &str = "DELETE FROM link_groups WHERE ino=?";
pub(super) const DROP_PLACED: &str = "DELETE FROM placed WHERE parent=? AND name=?";
pub(super) const DROP_SETTING: &str = "DELETE FROM meta WHERE key=?";
pub(super) const DROP_XATTRS: &str = "DELETE FROM xattrs WHERE ino=?";
pub(super) const DROP_XATTR_SIZES: &str = "DELETE FROM xattr_sizes WHERE ino=?";
pub(super) const FOLLOW_REPLACED: &str = "UPDATE replaced SET by_seq=? WHERE by=? AND by_seq=?";
pub(super) const FORGET_DIRTY_NAME: &str = "DELETE FROM dirty_names WHERE parent=? AND name=?";
pub(super) const FORGET_OBJECT: &str = "DELETE FROM dead_objects WHERE object=?";
pub(super) const FORGET_REPLACED: &str = "DELETE FROM replaced WHERE change < ?";
pub(super) const MARK_INODE: &str = "INSERT OR IGNORE INTO dirty_inodes VALUES(?)";
pub(super) const MARK_NAME: &str = "INSERT OR REPLACE INTO dirty_names VALUES(?,?,?)";
pub(super) const NOTE_HEIGHT: &str = "INSERT OR REPLACE INTO tall_dirs VALUES(?,?)";
pub(super) const NOTE_REPLACED: &str =
    "INSERT INTO replaced VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)";
pub(super) const PUT_INODE: &str =
    "INSERT OR REPLACE INTO inodes VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)";
pub(super) const PUT_PLACED: &str = "INSERT OR REPLACE INTO placed VALUES(?,?,?,?,?,?,?)";
pub(super) const PUT_SETTING: &str = "INSERT OR REPLACE INTO meta VALUES(?,?)";
pub(super) const PUT_XATTR_SIZES: &str = "INSERT OR REPLACE INTO xattr_sizes VALUES(?,?,?)";
pub(super) const REMOVE_CLEAN_NAME: &str =
    "DELETE FROM dirents WHERE parent=? AND fold=? AND name=? RETURNING cookie";
pub(super) const REMOVE_NAME: &str = "DELETE FROM dirents WHERE parent=? AND fold=? AND name=? RETURNING coalesce(stored, name), ino, cookie";
pub(super) const REMOVE_XATTR: &str = "DELETE FROM xattrs WHERE ino=? AND name=?";
pub(super) const SETTLE_INODE: &str = "DELETE FROM dirty_inodes WHERE ino=?";
pub(super) const SET_XATTR: &str = "INSERT OR REPLACE INTO xattrs VALUES(?,?,?)";

/// All of them. Other statements are committed instead of logged, and not replayed.
pub(super) const LOGGED: &[&str] = &[
    ADD_NAME,
    BURY_OBJECT,
    DROP_HEIGHT,
    DROP_INODE,
    DROP_LINK_GROUP,
    DROP_PLACED,
    DROP_SETTING,
    DROP_XATTRS,
    DROP_XATTR_SIZES,
    FOLLOW_REPLACED,
    FORGET_DIRTY_NAME,
    FORGET_OBJECT,
    FORGET_REPLACED,
    MARK_INODE,
    MARK_NAME,
    NOTE_HEIGHT,
    NOTE_REPLACED,
    PUT_INODE,
    PUT_PLACED,
    PUT_SETTING,
    PUT_XATTR_SIZES,
    REMOVE_CLEAN_NAME,
    REMOVE_NAME,
    REMOVE_XATTR,
    SETTLE_INODE,
    SET_XATTR,
];
