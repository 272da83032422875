//! The paths on the backend that a batch may be moving.

use std::collections::HashSet;

use crate::core::RelPath;
use crate::format::steps::{ClearStep, PlaceStep, Steps};

/// The paths at which a batch removes or creates names, in the trees before and after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    paths: HashSet<Vec<u8>>,
    /// Their lengths in bytes.
    lengths: HashSet<usize>,
    /// Their directories.
    dirs: HashSet<RelPath>,
}

impl Touched {
    /// Returns the paths of `steps`.
    pub fn of<C>(steps: &Steps<C>) -> Touched {
        let cleared = steps.clear.iter().map(ClearStep::path);
        let placed = steps.place.iter().map(PlaceStep::path);
        let mut touched = Touched::default();
        for path in cleared.chain(placed) {
            touched.paths.insert(path.as_bytes().to_vec());
            touched.lengths.insert(path.as_bytes().len());
            touched.dirs.extend(path.split_last().map(|(dir, _)| dir));
        }
        touched
    }

    /// Adds the paths of another batch.
    pub fn extend(&mut self, other: &Touched) {
        self.paths.extend(other.paths.iter().cloned());
        self.lengths.extend(&other.lengths);
        self.dirs.extend(other.dirs.iter().cloned());
    }

    /// Returns whether `path` may be missing or lead to another file at the moment: it, or a
    /// directory above it, is moved, created, replaced or removed.
    pub fn concerns(&self, path: &RelPath) -> bool {
        let bytes = path.as_bytes();
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut prefixes = ends.map(|(at, _)| at).chain([bytes.len()]);
        // Few prefixes of a deep path are as long as any path here, and only these are looked up.
        prefixes
            .any(|end| end > 0 && self.lengths.contains(&end) && self.paths.contains(&bytes[..end]))
    }

    /// The same for everything in the directory `dir`.
    pub fn concerns_inside(&self, dir: &RelPath) -> bool {
        self.dirs.contains(dir) || self.concerns(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::steps::{PlainKind, SlotNo};

    #[test]
    fn a_path_is_concerned_by_what_happens_to_it_and_to_the_directories_above() {
        let path = RelPath::fixed;
        let steps: Steps<()> = Steps {
            clear: vec![ClearStep::Detach {
                from: path("a/dir"),
                slot: SlotNo(0),
                kind: PlainKind::Directory,
            }],
            place: vec![PlaceStep::Attach {
                slot: SlotNo(0),
                to: path("b/new"),
                kind: PlainKind::Directory,
            }],
            ..Steps::default()
        };
        let touched = Touched::of(&steps);
        for concerned in ["a/dir", "a/dir/x/y", "b/new", "b/new/z"] {
            assert!(touched.concerns(&path(concerned)), "{concerned}");
        }
        for free in ["", "a", "b", "a/dirt", "b/old", "film"] {
            assert!(!touched.concerns(&path(free)), "{free}");
        }
        assert!(touched.concerns_inside(&path("a")));
        assert!(touched.concerns_inside(&path("b/new/z")));
        assert!(!touched.concerns_inside(&path("c")));
    }
}
