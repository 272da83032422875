//! Paths from rows that may contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::base::{Ino, Name};
use crate::index::Salvaged;

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
        let mut files: BTreeMap<Ino, Vec<PathBuf>> = BTreeMap::new();
        for ((parent, name), ino) in &salvaged.names {
            if !dirs.contains(ino) && *ino != Ino::ROOT {
                let path = path_of(*parent, &upwards).join(name.as_os_str());
                files.entry(*ino).or_default().push(path);
            }
        }
        // A directory that was removed while somebody was in it has no name, and nothing in it: it is no loss.
        let full: BTreeSet<Ino> = salvaged.names.keys().map(|(parent, _)| *parent).collect();
        let mut paths: Vec<(Ino, PathBuf)> = dirs
            .iter()
            .filter(|ino| upwards.contains_key(*ino) || full.contains(*ino))
            .map(|ino| (*ino, path_of(*ino, &upwards)))
            .collect();
        paths.sort_by(|a, b| a.1.cmp(&b.1));
        Names { dirs: paths, files }
    }

    /// Every directory but the root, each after the one that it is in.
    pub(super) fn directories(&self) -> impl Iterator<Item = (Ino, PathBuf)> {
        self.dirs.iter().cloned()
    }

    /// Everything else, with all its names: one at least.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Ino, &Vec<PathBuf>)> {
        self.files.iter()
    }
}

/// The path of a directory. Where its own name is lost, or it is inside itself, it begins at a name made of its number.
fn path_of(dir: Ino, upwards: &BTreeMap<Ino, (Ino, &Name)>) -> PathBuf {
    let mut parts = Vec::new();
    let mut seen = BTreeSet::new();
    let mut at = dir;
    while at != Ino::ROOT {
        match upwards.get(&at) {
            Some((parent, name)) if seen.insert(at) => {
                parts.push(PathBuf::from(name.as_os_str()));
                at = *parent;
            }
            _ => {
                parts.push(PathBuf::from(format!("lost-directory-{}", at.0)));
                break;
            }
        }
    }
    parts.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Timestamp;
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
        assert!(paths[0].ends_with("f") && paths[0].starts_with("lost-directory-3"));
    }
}
