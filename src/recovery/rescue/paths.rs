//! Paths from rows that may contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::core::{Ino, Name};
use crate::index::Salvaged;

/// The longest path of a directory, in bytes. Linux takes 4096 in one call, and the target's own
/// path comes before it, a name after it.
const LONGEST: usize = 2048;

/// The tree of the mount, as far as its rows are there.
pub(super) struct Names {
    dirs: Vec<(Ino, PathBuf)>,
    files: BTreeMap<Ino, Vec<PathBuf>>,
}

impl Names {
    pub(super) fn new(salvaged: &Salvaged) -> Names {
        let mut dirs: BTreeSet<Ino> = salvaged.names.keys().map(|(parent, _)| *parent).collect();
        let inodes = salvaged.inodes.values();
        dirs.extend(inodes.filter(|inode| inode.is_dir()).map(|inode| inode.ino));
        dirs.remove(&Ino::ROOT);
        let mut upwards = BTreeMap::new();
        for ((parent, name), ino) in &salvaged.names {
            if dirs.contains(ino) {
                upwards.entry(*ino).or_insert((*parent, name));
            }
        }
        let places = places(&dirs, &upwards);
        let place_of = |dir: &Ino| places.get(dir).map_or(Path::new(""), PathBuf::as_path);
        let mut files: BTreeMap<Ino, Vec<PathBuf>> = BTreeMap::new();
        for ((parent, name), ino) in &salvaged.names {
            if !dirs.contains(ino) && *ino != Ino::ROOT {
                let path = place_of(parent).join(name.as_os_str());
                files.entry(*ino).or_default().push(path);
            }
        }
        // A directory that was removed while a program was in it has no name and no contents. Its
        // loss does not count.
        let full: BTreeSet<Ino> = salvaged.names.keys().map(|(parent, _)| *parent).collect();
        let mut paths: Vec<(Ino, PathBuf)> = dirs
            .iter()
            .filter(|ino| upwards.contains_key(*ino) || full.contains(*ino))
            .map(|ino| (*ino, place_of(ino).to_path_buf()))
            .collect();
        paths.sort_by(|a, b| a.1.cmp(&b.1));
        Names { dirs: paths, files }
    }

    /// Returns every directory but the root, each after its parent.
    pub(super) fn directories(&self) -> impl Iterator<Item = (Ino, PathBuf)> {
        self.dirs.iter().cloned()
    }

    /// Returns all other files, with all their names, at least one each.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Ino, &Vec<PathBuf>)> {
        self.files.iter()
    }
}

/// Returns the paths of all directories but the root. If a directory's own name is lost, if it is
/// inside itself, or if its path would be too long, its path begins at a name made of its number.
fn places(dirs: &BTreeSet<Ino>, upwards: &BTreeMap<Ino, (Ino, &Name)>) -> BTreeMap<Ino, PathBuf> {
    let mut places = BTreeMap::from([(Ino::ROOT, PathBuf::new())]);
    for dir in dirs {
        let (mut at, mut below, mut seen) = (*dir, Vec::new(), BTreeSet::new());
        while !places.contains_key(&at) {
            match upwards.get(&at) {
                Some((parent, name)) if seen.insert(at) => {
                    below.push((at, *name));
                    at = *parent;
                }
                _ => drop(places.insert(at, lost(at))),
            }
        }
        for (ino, name) in below.into_iter().rev() {
            let parent = places.get(&at).cloned().unwrap_or_default();
            let path = parent.join(name.as_os_str());
            let path = match path.as_os_str().len() > LONGEST {
                true => lost(ino),
                false => path,
            };
            places.entry(ino).or_insert(path);
            at = ino;
        }
    }
    places
}

fn lost(dir: Ino) -> PathBuf {
    format!("lost-directory-{}", dir.0).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Timestamp;
    use crate::index::Inode;

    fn salvaged(names: &[(u64, &str, u64)], dirs: &[u64]) -> Salvaged {
        let mut salvaged = Salvaged::default();
        for (parent, name, ino) in names {
            let name = Name::new(name.as_bytes()).unwrap();
            salvaged.names.insert((Ino(*parent), name), Ino(*ino));
        }
        for ino in dirs {
            let inode = Inode::new(Ino(*ino), libc::S_IFDIR | 0o755, 0, 0, Timestamp(0));
            salvaged.inodes.insert(Ino(*ino), inode);
        }
        salvaged
    }

    #[test]
    fn a_directory_whose_row_is_lost_still_gives_paths() {
        let names = Names::new(&salvaged(&[(1, "d", 2), (2, "f", 3), (9, "g", 4)], &[1]));
        let files: Vec<_> = names
            .files()
            .map(|(ino, paths)| (ino.0, paths[0].clone()))
            .collect();
        assert_eq!(files, [(3, "d/f".into()), (4, "lost-directory-9/g".into())]);
    }

    #[test]
    fn directories_in_a_circle_end_somewhere() {
        let names = Names::new(&salvaged(
            &[(2, "b", 3), (3, "a", 2), (3, "f", 4)],
            &[1, 2, 3],
        ));
        assert_eq!(names.directories().count(), 2);
        let (_, paths) = names.files().next().unwrap();
        assert!(paths[0].ends_with("f") && paths[0].starts_with("lost-directory-2"));
    }

    #[test]
    fn a_tree_that_is_too_deep_for_a_path_is_cut_and_costs_no_more_than_its_names() {
        let name = "d".repeat(200);
        let names: Vec<_> = (1..5000).map(|n| (n, &*name, n + 1)).collect();
        let mut all = salvaged(&names, &[1]);
        all.names
            .insert((Ino(4999), Name::new(b"f").unwrap()), Ino(9000));
        let names = Names::new(&all);
        let paths: Vec<_> = names.directories().map(|(_, path)| path).collect();
        assert_eq!(paths.len(), 4999 - 1);
        assert!(paths.iter().all(|path| path.as_os_str().len() <= LONGEST));
        let tops: BTreeSet<_> = paths.iter().filter_map(|path| path.iter().next()).collect();
        assert!(tops.len() < 600, "{}", tops.len());
        assert!(names.files().any(|(_, paths)| paths[0].ends_with("f")));
    }
}
