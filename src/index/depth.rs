//! The bound on the depth of directories ([`MAX_DEPTH`]), kept when one is made or moved.
//!
//! Moving a directory deeper moves all below it deeper, and to look how far that goes would be a walk under the lock. So the height of
//! a directory, the levels of directories below it, is kept: an upper bound, as what is removed or moved away does not lower it. Kept
//! is only what is above [`LOW`], so nothing is noted of a tree of usual depth; every other directory is no higher than that.

use rusqlite::{OptionalExtension, params};

use super::{Context, Result, State, int};
use crate::base::{Ino, MAX_DEPTH};

/// Heights up to this are not kept.
const LOW: usize = 64;

/// What is kept is that much more than is needed, so that a chain of directories that grows at its end is not noted anew all the way
/// up for each of them.
const SLACK: usize = 128;

/// Directories looked at before a move is refused because of a height that may be out of date.
const LOOKED_AT: usize = 4096;

/// Directories looked at to find the height of one that has been moved and of which none is kept.
const LOOKED_AT_IN_PASSING: usize = 512;

/// Names looked at in either case: a directory may have a million files beside one directory.
const NAMES_LOOKED_AT: usize = 8192;

impl State {
    /// Whether a directory, with what is below it, may come to be in `parent`: the directory `moved`, or a new one for `None`.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn may_be_in(&mut self, parent: Ino, moved: Option<Ino>) -> Result<bool> {
        let Some(above) = self.mount_depth(parent)? else {
            return Ok(true); // It is removed; whoever asks is told of that.
        };
        let depth = above + 1;
        let Some(moved) = moved else {
            return Ok(depth <= MAX_DEPTH);
        };
        let before = self.mount_depth(moved)?.unwrap_or(0);
        if depth <= before || depth + self.height_bound(moved)? <= MAX_DEPTH {
            return Ok(true);
        }
        // The bound may be out of date. It stays as it is: those of other directories rest on it.
        let height = self.look_for_height(moved, LOOKED_AT)?;
        Ok(height.is_some_and(|height| depth + height <= MAX_DEPTH))
    }

    /// The directory `ino` has got a name in `parent`: those above it may be higher now. Nothing to do for anything else.
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

    /// `dir`, which is `depth` directories deep, is at least so high, and each above it by one more than the one in it.
    fn raise_above(&mut self, dir: Ino, depth: usize, height: usize) -> Result<()> {
        let (mut at, mut depth, mut height) = (dir, depth, height);
        let mut is_first = true;
        loop {
            if height > LOW {
                // Of a kept height those above have been told.
                if (self.kept_height(at)?).is_some_and(|kept| kept >= height) {
                    return Ok(());
                }
                if is_first {
                    // As high as the one above it allows; else that, and all above, have to be noted anew as well.
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

    /// The height that is kept of the directory above `dir`; 0 for none.
    fn kept_height_above(&mut self, dir: Ino) -> Result<usize> {
        Ok(match self.mount_parent(dir)? {
            Some(parent) => self.kept_height(parent)?.unwrap_or(0),
            None => 0,
        })
    }

    /// An upper bound of the height of `dir`.
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
            "INSERT OR REPLACE INTO tall_dirs VALUES(?,?)",
            params![int(dir.0), height],
        )?;
        Ok(())
    }

    /// The height of `dir`, level by level; `None` if too many directories, or too many names in them, would have to be looked at.
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
                // The links of a directory count its subdirectories: most have none.
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

    /// Some of what is in `dir`, one more than `most` at most, and whether it is a directory.
    fn entries_in(&self, dir: Ino, most: usize) -> Result<Vec<(Ino, bool)>> {
        self.conn
            .prepare_cached(
                "SELECT i.ino, i.mode & 61440 = 16384
                 FROM (SELECT ino FROM dirents INDEXED BY dirents_cookie WHERE parent=? LIMIT ?) d JOIN inodes i ON i.ino=d.ino",
            )
            .and_then(|mut s| {
                let params = [int(dir.0), i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1)];
                s.query_map(params, |row| Ok((Ino(row.get::<_, i64>(0)? as u64), row.get(1)?)))?
                    .collect()
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
    use crate::backend::Capabilities;
    use crate::base::{Name, Timestamp};
    use crate::index::{Index, Inode};
    use crate::rules::names::NameRules;

    fn add(state: &mut State, parent: Ino, name: &str, ino: Ino) {
        let inode = state.expect_inode(ino).unwrap();
        let name = Name::new(name.as_bytes()).unwrap();
        state.add_name(parent, &name, &inode).unwrap();
    }

    fn chain(state: &mut State, from: Ino, name: &str, levels: usize) -> Vec<Ino> {
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
        // A name, a mark and a height for each, and the way up now and then.
        assert!(changes < 10 * LEVELS as u64, "{changes} rows were changed");
        // One that is moved takes what is below it along.
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
