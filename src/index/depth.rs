//! The bound on the depth of directories ([`MAX_DEPTH`]), checked when one is made or moved.
//!
//! Moving a directory deeper moves everything below it deeper, and finding out how deep that goes
//! would be a walk under the lock. So the height of a directory, the number of levels of
//! directories below it, is stored: an upper bound, since removals and moves do not lower it. Only
//! heights above [`LOW`] are stored, so nothing is stored for a tree of usual depth; every other
//! directory is no higher than that.

use rusqlite::{OptionalExtension, params};

use super::{Context, IndexWriter, Inode, Result, int, statements};
use crate::core::{Ino, MAX_DEPTH};

/// Heights up to this are not stored.
const LOW: usize = 64;

/// A stored height exceeds the needed one by this much, so that a chain of directories that grows
/// at its end does not update all its heights each time.
const SLACK: usize = 128;

/// Directories that are read before a move is refused because of a height that may be out of date.
const LOOKED_AT: usize = 4096;

/// Directories that are read to find the height of a moved one without a stored height.
const LOOKED_AT_IN_PASSING: usize = 512;

/// Names that are read in either case: a directory may have a million files beside one directory.
const NAMES_LOOKED_AT: usize = 8192;

impl IndexWriter {
    /// Returns whether a directory, with everything below it, may be in `parent`: the directory
    /// `moved`, or a new one for `None`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn may_be_in(&mut self, parent: Ino, moved: Option<Ino>) -> Result<bool> {
        let Some(above) = self.mount_depth(parent)? else {
            return Ok(true); // It was removed; the caller finds that out.
        };
        let depth = above + 1;
        let Some(moved) = moved else {
            return Ok(depth <= MAX_DEPTH);
        };
        let before = self.mount_depth(moved)?.unwrap_or(0);
        if depth <= before || depth + self.height_bound(moved)? <= MAX_DEPTH {
            return Ok(true);
        }
        // The bound may be out of date. It is not corrected, because those of other directories
        // depend on it.
        let height = self.look_for_height(moved, LOOKED_AT)?;
        Ok(height.is_some_and(|height| depth + height <= MAX_DEPTH))
    }

    /// Updates the heights of the directories above, after `ino` has got a name in `parent`. Does
    /// nothing if `ino` is no directory.
    pub(super) fn note_height(&mut self, parent: Ino, ino: Ino) -> Result<()> {
        if !self.is_known_dir(ino)? {
            return Ok(());
        }
        let Some(above) = self.mount_depth(parent)? else {
            return Ok(());
        };
        let kept = self.kept_height(ino)?;
        let own = match kept {
            Some(kept) => kept,
            None => self
                .look_for_height(ino, LOOKED_AT_IN_PASSING)?
                .unwrap_or(LOW),
        };
        if above.saturating_add(own) < LOW {
            return Ok(());
        }
        self.raise_above(parent, above, own + 1)
    }

    /// Raises the height of `dir`, which is `depth` directories deep, to at least `height`, and the
    /// height of each directory above it by one more than that of the one below.
    fn raise_above(&mut self, dir: Ino, depth: usize, height: usize) -> Result<()> {
        let (mut at, mut depth, mut height) = (dir, depth, height);
        let mut is_first = true;
        loop {
            if height > LOW {
                // A stored height has been passed on to those above.
                if (self.kept_height(at)?).is_some_and(|kept| kept >= height) {
                    return Ok(());
                }
                if is_first {
                    // As high as the one above it allows; otherwise that one, and all above, have
                    // to be updated as well.
                    let allowed = self.kept_height_above(at)?.saturating_sub(1);
                    height = match allowed >= height {
                        true => allowed,
                        false => height + SLACK,
                    };
                }
                is_first = false;
                self.set_height(at, height.min(MAX_DEPTH.saturating_sub(depth)))?;
            }
            match self.mount_parent(at)? {
                Some(parent) => (at, depth, height) = (parent, depth.saturating_sub(1), height + 1),
                None => return Ok(()),
            }
        }
    }

    /// Returns the stored height of the directory above `dir`; 0 for none.
    fn kept_height_above(&mut self, dir: Ino) -> Result<usize> {
        Ok(match self.mount_parent(dir)? {
            Some(parent) => self.kept_height(parent)?.unwrap_or(0),
            None => 0,
        })
    }

    /// Returns an upper bound of the height of `dir`.
    fn height_bound(&mut self, dir: Ino) -> Result<usize> {
        Ok(self.kept_height(dir)?.unwrap_or(LOW))
    }

    fn kept_height(&self, dir: Ino) -> Result<Option<usize>> {
        self.conn
            .prepare_cached("SELECT height FROM tall_dirs WHERE ino=?")
            .and_then(|mut s| {
                s.query_row([int(dir.0)], |row| row.get::<_, i64>(0))
                    .optional()
            })
            .context("look up the height of a directory")
            .map(|height| height.map(|height| usize::try_from(height).unwrap_or(MAX_DEPTH)))
    }

    fn set_height(&mut self, dir: Ino, height: usize) -> Result<()> {
        let height = i64::try_from(height).unwrap_or(i64::MAX);
        self.change(
            "note the height of a directory",
            statements::NOTE_HEIGHT,
            params![int(dir.0), height],
        )?;
        Ok(())
    }

    /// Returns the height of `dir`, found level by level; `None` if too many directories, or too
    /// many names in them, would have to be read.
    fn look_for_height(&mut self, dir: Ino, most: usize) -> Result<Option<usize>> {
        let mut level = vec![dir];
        let (mut height, mut looked_at, mut names) = (0, 0, 0);
        loop {
            let mut below = Vec::new();
            for dir in level {
                looked_at += 1;
                if looked_at > most || height > MAX_DEPTH {
                    return Ok(None);
                }
                // The link count of a directory includes its subdirectories: most have none.
                if (self.inode(dir)?).is_some_and(|inode| inode.nlink > 2) {
                    let entries = self.entries_in(dir, NAMES_LOOKED_AT)?;
                    names += entries.len();
                    if names > NAMES_LOOKED_AT {
                        return Ok(None);
                    }
                    let dirs = entries.iter().filter(|(_, is_dir)| *is_dir);
                    below.extend(dirs.map(|(ino, _)| *ino));
                }
            }
            if below.is_empty() {
                return Ok(Some(height));
            }
            level = below;
            height += 1;
        }
    }

    /// Returns the inodes in `dir`, at most one more than `most`, and whether each is a directory.
    fn entries_in(&self, dir: Ino, most: usize) -> Result<Vec<(Ino, bool)>> {
        self.conn
            .prepare_cached(
                "SELECT d.ino, i.mode & 61440 = 16384
                 FROM (SELECT ino FROM dirents INDEXED BY dirents_cookie WHERE parent=? LIMIT ?) d LEFT JOIN inodes i ON i.ino=d.ino",
            )
            .and_then(|mut s| {
                let params = [int(dir.0), i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1)];
                let entry = |row: &rusqlite::Row<'_>| {
                    let ino = Ino(row.get::<_, i64>(0)? as u64);
                    // An inode that is new since the last commit has no row yet.
                    let is_new_dir = || self.pending.get(&ino).is_some_and(Inode::is_dir);
                    Ok((ino, row.get::<_, Option<bool>>(1)?.unwrap_or_else(is_new_dir)))
                };
                s.query_map(params, entry)?.collect()
            })
            .context("look for directories")
    }

    fn is_known_dir(&mut self, ino: Ino) -> Result<bool> {
        let at_hand = self.pending.get(&ino).or_else(|| self.cache.peek(&ino));
        match at_hand {
            Some(inode) => Ok(inode.is_dir()),
            None => Ok(self.inode(ino)?.is_some_and(|inode| inode.is_dir())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Capabilities, Name, Timestamp};
    use crate::index::Index;
    use crate::plan::names::NameRules;

    fn add(state: &mut IndexWriter, parent: Ino, name: &str, ino: Ino) {
        let inode = state.expect_inode(ino).unwrap();
        let name = Name::new(name.as_bytes()).unwrap();
        state.add_name(parent, &name, &inode).unwrap();
    }

    fn chain(state: &mut IndexWriter, from: Ino, name: &str, levels: usize) -> Vec<Ino> {
        let mut chain = vec![from];
        for _ in 0..levels {
            let ino = state.new_ino().unwrap();
            let parent = chain[chain.len() - 1];
            let mut above = state.expect_inode(parent).unwrap();
            above.nlink += 1;
            state.put_inode(above);
            state.put_inode(Inode::new(ino, libc::S_IFDIR | 0o755, 0, 0, Timestamp(0)));
            let called = if parent == from { name } else { "d" };
            add(state, parent, called, ino);
            chain.push(ino);
        }
        chain
    }

    #[test]
    fn what_is_kept_is_never_less_than_the_height_and_seldom_noted_anew() {
        const LEVELS: usize = 600;
        let dir = tempfile::tempdir().unwrap();
        let rules = NameRules::new(&Capabilities::everything());
        let index = Index::open(&dir.path().join("index.db"), rules).unwrap();
        let mut state = index.lock();
        if state.inode(Ino::ROOT).unwrap().is_none() {
            let root = Inode::new(Ino::ROOT, libc::S_IFDIR | 0o755, 0, 0, Timestamp(0));
            state.put_inode(root);
        }
        let before = state.conn.total_changes();
        let tall = chain(&mut state, Ino::ROOT, "tall", LEVELS);
        let changes = state.conn.total_changes() - before;
        for (depth, dir) in tall.iter().enumerate() {
            let height = LEVELS - depth;
            let bound = state.height_bound(*dir).unwrap();
            assert!(bound >= height, "{depth}: {bound}");
            assert!(bound <= (height + SLACK).max(LOW), "{depth}: {bound}");
        }
        // A name, a mark and a height for each, and an update of those above now and then.
        assert!(changes < 10 * LEVELS as u64, "{changes} rows were changed");
        // A move takes everything below along.
        let other = chain(&mut state, Ino::ROOT, "other", 100);
        state
            .remove_name(Ino::ROOT, &Name::new(b"tall").unwrap())
            .unwrap();
        add(&mut state, other[100], "moved", tall[1]);
        for (depth, dir) in other.iter().enumerate().skip(1) {
            assert!(state.height_bound(*dir).unwrap() >= LEVELS - 1 + 1 + 100 - depth);
        }
        assert!(state.may_be_in(other[100], None).unwrap());
        assert!(!state.may_be_in(tall[LEVELS], Some(other[1])).unwrap() || LEVELS < MAX_DEPTH / 2);
    }
}
