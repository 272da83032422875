//! Paths of directories: from row to row, each directory looked up once.
//!
//! A path needs the parent of each directory on its way. In a tree of a thousand levels that would
//! be a thousand queries for each path. So links to parents are cached, one for each directory;
//! this takes memory in proportion to the directories and not to the lengths of their paths. Moving
//! a directory changes its own link and no other.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::core::{Ino, Name, RelPath};
use crate::index::{Corruption, IndexError, IndexWriter, Result};
use crate::plan::planner::NameKey;

/// The number of cached links: some 10 MB.
const REMEMBERED: usize = 65_536;

/// Deeper than any tree, also one from another system.
const DEEPEST: usize = 100_000;

/// The links of one tree that were looked up.
#[derive(Default)]
pub(super) struct Ways {
    up: HashMap<Ino, NameKey>,
    down: HashMap<NameKey, Ino>,
    /// The depths of directories. All links on the way up of each of them are known. If one of
    /// these is forgotten, all depths are.
    depths: HashMap<Ino, usize>,
}

impl Ways {
    fn get(&self, dir: Ino) -> Option<&NameKey> {
        self.up.get(&dir)
    }

    fn note(&mut self, dir: Ino, at: NameKey) {
        if self.up.len().max(self.depths.len()) >= REMEMBERED {
            self.clear();
        }
        self.forget(dir);
        self.down.insert(at.clone(), dir);
        self.up.insert(dir, at);
    }

    /// Forgets the link of `dir`, which may have changed.
    pub(super) fn forget(&mut self, dir: Ino) {
        if let Some(at) = self.up.remove(&dir) {
            self.down.remove(&at);
            self.depths.clear();
        }
    }

    /// Forgets the link of the directory `name` in `parent`, which may have changed.
    pub(super) fn forget_name(&mut self, parent: Ino, name: &Name) {
        if self.up.is_empty() {
            return;
        }
        let at = NameKey {
            parent,
            name: name.clone(),
        };
        if let Some(dir) = self.down.remove(&at) {
            self.up.remove(&dir);
            self.depths.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.up.clear();
        self.down.clear();
        self.depths.clear();
    }
}

/// The same for a snapshot, in which nothing changes; `None` for a directory without a place.
pub(super) type FixedWays = RefCell<HashMap<Ino, Option<NameKey>>>;

/// Returns the names on the way from the root to `ino`, the last first; `link_of` returns the
/// parent and name of each. `None` if one of them has no parent.
pub(super) fn names_upwards(
    ino: Ino,
    mut link_of: impl FnMut(Ino) -> Result<Option<NameKey>>,
) -> Result<Option<Vec<Name>>> {
    let mut names = Vec::new();
    let mut at = ino;
    while at != Ino::ROOT {
        let Some(link) = link_of(at)? else {
            return Ok(None);
        };
        names.push(link.name);
        at = link.parent;
        if names.len() > DEEPEST {
            return Err(inside_itself(ino));
        }
    }
    Ok(Some(names))
}

fn inside_itself(dir: Ino) -> IndexError {
    IndexError::Corrupt(Corruption::DirLoop(dir))
}

/// Returns the path of these names.
pub(crate) fn path_upwards(
    ino: Ino,
    link_of: impl FnMut(Ino) -> Result<Option<NameKey>>,
) -> Result<Option<RelPath>> {
    let names = names_upwards(ino, link_of)?;
    Ok(names.map(|names| RelPath::of_names(names.iter().rev())))
}

impl IndexWriter {
    /// Returns the path of the directory or file `ino` on the backend.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn backend_path(&mut self, ino: Ino) -> Result<Option<RelPath>> {
        path_upwards(ino, |at| {
            if let Some(link) = self.backend_ways.get(at) {
                return Ok(Some(link.clone()));
            }
            let link = self.a_place_of(at)?.map(|(key, _)| key);
            if let (Some(link), true) = (&link, at != ino) {
                self.backend_ways.note(at, link.clone());
            }
            Ok(link)
        })
    }

    /// Returns the path of `ino` in the mount; one of them if it has several names.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn mount_path(&mut self, ino: Ino) -> Result<Option<RelPath>> {
        path_upwards(ino, |at| self.mount_link(at, at != ino))
    }

    /// Returns the depth of the directory `ino` in the mount: 0 for the root; `None` for one
    /// without a name.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn mount_depth(&mut self, ino: Ino) -> Result<Option<usize>> {
        let (mut at, mut steps) = (ino, 0);
        let above = loop {
            if at == Ino::ROOT {
                break 0;
            }
            if let Some(depth) = self.mount_ways.depths.get(&at) {
                break *depth;
            }
            steps += 1;
            match self.mount_parent(at)? {
                Some(parent) => at = parent,
                None => return Ok(None),
            }
            if steps > DEEPEST {
                return Err(inside_itself(ino));
            }
        };
        self.mount_ways.depths.insert(ino, above + steps);
        Ok(Some(above + steps))
    }

    /// Returns the directories from `dir` up to the root, without the root; `None` if one of them
    /// has no name in the mount.
    ///
    /// # Errors
    /// If SQLite cannot read.
    pub fn mount_way(&mut self, dir: Ino) -> Result<Option<Vec<Ino>>> {
        let mut way = Vec::new();
        let mut at = dir;
        while at != Ino::ROOT {
            way.push(at);
            match self.mount_parent(at)? {
                Some(parent) => at = parent,
                None => return Ok(None),
            }
            if way.len() > DEEPEST {
                return Err(inside_itself(dir));
            }
        }
        Ok(Some(way))
    }

    /// Returns the parent of the directory `dir`.
    pub(super) fn mount_parent(&mut self, dir: Ino) -> Result<Option<Ino>> {
        if dir == Ino::ROOT {
            return Ok(None);
        }
        if let Some(link) = self.mount_ways.get(dir) {
            return Ok(Some(link.parent));
        }
        Ok(self.mount_link(dir, true)?.map(|link| link.parent))
    }

    /// Returns the parent and name of `at` in the mount. Cached only if it is certainly a
    /// directory.
    pub(super) fn mount_link(&mut self, at: Ino, is_dir: bool) -> Result<Option<NameKey>> {
        if let Some(link) = self.mount_ways.get(at) {
            return Ok(Some(link.clone()));
        }
        let link = self.a_name_of(at)?;
        let link = link.map(|(parent, name)| NameKey { parent, name });
        if let (Some(link), true) = (&link, is_dir) {
            self.mount_ways.note(at, link.clone());
        }
        Ok(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Capabilities, Timestamp};
    use crate::index::{Index, Inode};
    use crate::plan::names::NameRules;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn make(state: &mut IndexWriter, parent: Ino, called: &str) -> Ino {
        let ino = state.new_ino().unwrap();
        state.put_inode(Inode::new(ino, libc::S_IFDIR | 0o755, 0, 0, Timestamp(0)));
        let inode = state.expect_inode(ino).unwrap();
        state.add_name(parent, &name(called), &inode).unwrap();
        ino
    }

    fn rename(state: &mut IndexWriter, from: (Ino, &str), to: (Ino, &str)) {
        let ino = state.lookup(from.0, &name(from.1)).unwrap().unwrap();
        let inode = state.expect_inode(ino).unwrap();
        state.remove_name(from.0, &name(from.1)).unwrap();
        state.add_name(to.0, &name(to.1), &inode).unwrap();
    }

    #[test]
    fn paths_and_depths_follow_directories_that_move() {
        let dir = tempfile::tempdir().unwrap();
        let rules = NameRules::new(&Capabilities::everything());
        let index = Index::open(&dir.path().join("index.db"), rules).unwrap();
        let mut state = index.lock();
        let a = make(&mut state, Ino::ROOT, "a");
        let b = make(&mut state, a, "b");
        let c = make(&mut state, b, "c");
        let look = |state: &mut IndexWriter, ino| {
            let path = state.mount_path(ino).unwrap().map(|it| it.to_string());
            (path, state.mount_depth(ino).unwrap())
        };
        assert_eq!(look(&mut state, c), (Some("a/b/c".into()), Some(3)));
        rename(&mut state, (a, "b"), (Ino::ROOT, "d"));
        assert_eq!(look(&mut state, c), (Some("d/c".into()), Some(2)));
        rename(&mut state, (Ino::ROOT, "a"), (c, "e"));
        assert_eq!(look(&mut state, a), (Some("d/c/e".into()), Some(3)));
        state.commit().unwrap();
        rename(&mut state, (c, "e"), (Ino::ROOT, "f"));
        assert_eq!(look(&mut state, a), (Some("f".into()), Some(1)));
        state.undo();
        assert_eq!(look(&mut state, a), (Some("d/c/e".into()), Some(3)));
        state.remove_name(b, &name("c")).unwrap();
        assert_eq!(look(&mut state, a), (None, None));
    }

    #[test]
    fn each_directory_is_looked_up_once_however_many_paths_lead_through_it() {
        const LEVELS: usize = 300;
        let dir = tempfile::tempdir().unwrap();
        let rules = NameRules::new(&Capabilities::everything());
        let index = Index::open(&dir.path().join("index.db"), rules).unwrap();
        let mut chain = vec![Ino::ROOT];
        let mut state = index.lock();
        for _ in 0..LEVELS {
            let next = make(&mut state, chain[chain.len() - 1], "d");
            chain.push(next);
        }
        state.commit().unwrap();
        drop(state);
        let snapshot = index.snapshot().unwrap();
        let lookups = std::cell::Cell::new(0);
        for dir in &chain {
            let path = path_upwards(*dir, |at| {
                let before = snapshot.mount_ways.borrow().len();
                let link = snapshot.mount_link(at);
                lookups.set(lookups.get() + snapshot.mount_ways.borrow().len() - before);
                link
            });
            assert!(path.unwrap().is_some());
        }
        assert_eq!(lookups.get(), LEVELS);
        assert_eq!(
            index.lock().mount_depth(chain[LEVELS]).unwrap(),
            Some(LEVELS)
        );
    }
}
