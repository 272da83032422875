//! Folds the changes of several batches into what a second copy has to do: which files to copy, and
//! which names to remove there.
//!
//! The copy may have been made long ago, so a name that has moved twice is removed under its first
//! name, and a file that was written and removed again is not copied.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::path_of_text;
use crate::daemon::changes::{Entry, What};

use std::os::unix::ffi::OsStrExt;

/// A path on the drive.
pub(super) type Place = Vec<u8>;

/// A directory that has moved with everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MovedDir {
    /// Its name before all of the batches.
    pub(super) from: Place,
    /// Its name after them.
    pub(super) to: Place,
}

/// What has changed after a number of batches.
#[derive(Debug, Default)]
pub(super) struct Folded {
    /// Files to copy.
    pub(super) files: BTreeSet<Place>,
    /// Names with other attributes: a file is to be copied, of a directory nobody needs to know.
    pub(super) touched: BTreeSet<Place>,
    /// Directories whose contents are to be copied, and to be removed under the old name.
    pub(super) moved_dirs: Vec<MovedDir>,
    /// Names of files that are not there any more.
    pub(super) gone: BTreeSet<Place>,
    /// The batch whose entries are being taken. Their order does not count: names that are removed
    /// or moved away are those before the batch, all others those after it.
    batch: u64,
    removed: Vec<(Place, bool)>,
    moves: BTreeMap<Place, (Place, bool)>,
    written: Vec<Place>,
    attributes: Vec<Place>,
}

impl Folded {
    /// Takes the next change, in the order of the batches.
    pub(super) fn take(&mut self, entry: &Entry) {
        if entry.batch != self.batch {
            self.finish_batch();
            self.batch = entry.batch;
        }
        let path = bytes_of(&entry.path);
        match (entry.change, &entry.from) {
            (What::Removed, _) => self.removed.push((path, entry.dir)),
            (What::Moved, Some(from)) => {
                self.moves.insert(bytes_of(from), (path, entry.dir));
            }
            (What::Attributes, _) => self.attributes.push(path),
            // Of a directory its contents are told.
            (What::Written | What::Moved, _) if entry.dir => {}
            (What::Written | What::Moved, _) => self.written.push(path),
        }
    }

    /// Ends with the last change.
    pub(super) fn finish(mut self) -> Folded {
        self.finish_batch();
        let there = &self.files;
        self.gone.retain(|path| !there.contains(path));
        self
    }

    fn finish_batch(&mut self) {
        for (path, is_dir) in std::mem::take(&mut self.removed) {
            if !is_dir {
                self.gone.insert(self.first_name(&path));
                self.gone.insert(path.clone());
            }
            self.files.remove(&path);
            self.touched.remove(&path);
            self.moved_dirs.retain(|dir| dir.to != path);
        }
        self.finish_moves();
        self.files.extend(std::mem::take(&mut self.written));
        self.touched.extend(std::mem::take(&mut self.attributes));
    }

    /// Applies the moves of one batch, all at once.
    fn finish_moves(&mut self) {
        let moves = std::mem::take(&mut self.moves);
        if moves.is_empty() {
            return;
        }
        for (from, (_, is_dir)) in &moves {
            if !is_dir {
                self.gone.insert(self.first_name(from));
                self.gone.insert(from.clone());
            }
        }
        let firsts: Vec<Place> = moves.keys().map(|from| self.first_name(from)).collect();
        let now = |path: &Place| moved(&moves, path).unwrap_or_else(|| path.clone());
        self.files = self.files.iter().map(now).collect();
        self.touched = self.touched.iter().map(now).collect();
        for dir in &mut self.moved_dirs {
            dir.to = now(&dir.to);
        }
        for ((to, is_dir), from) in moves.into_values().zip(firsts) {
            match is_dir {
                false => {
                    self.files.insert(to);
                }
                true if self.moved_dirs.iter().any(|dir| dir.to == to) => {}
                true => self.moved_dirs.push(MovedDir { from, to }),
            }
        }
    }

    /// The name that `path` had before all of the batches, as far as directories have moved.
    fn first_name(&self, path: &Place) -> Place {
        let mut inner: Vec<&MovedDir> = self.moved_dirs.iter().collect();
        inner.sort_by_key(|dir| std::cmp::Reverse(dir.to.len()));
        let found = inner
            .into_iter()
            .find_map(|dir| Some([&dir.from, below(path, &dir.to)?].concat()));
        found.unwrap_or_else(|| path.clone())
    }
}

/// Where the moves of one batch take `path`: the innermost one counts.
fn moved(moves: &BTreeMap<Place, (Place, bool)>, path: &Place) -> Option<Place> {
    let ends = (path.iter().enumerate())
        .filter(|(_, byte)| **byte == b'/')
        .map(|(at, _)| at);
    let mut ends: Vec<usize> = ends.chain([path.len()]).collect();
    ends.reverse();
    ends.into_iter().find_map(|end| {
        let (to, _) = moves.get(&path[..end])?;
        Some([to, &path[end..]].concat())
    })
}

/// What follows the directory `dir` in `path`, with the slash.
fn below<'p>(path: &'p [u8], dir: &[u8]) -> Option<&'p [u8]> {
    let rest = path.strip_prefix(dir)?;
    (rest.is_empty() || rest[0] == b'/').then_some(rest)
}

fn bytes_of(text: &str) -> Place {
    path_of_text(text).as_os_str().as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(batch: u64, change: What, path: &str, from: Option<&str>) -> Entry {
        Entry {
            batch,
            time: String::new(),
            change,
            path: path.trim_end_matches('/').into(),
            from: from.map(|from| from.trim_end_matches('/').into()),
            dir: path.ends_with('/'),
        }
    }

    fn written(batch: u64, path: &str) -> Entry {
        entry(batch, What::Written, path, None)
    }

    fn removed(batch: u64, path: &str) -> Entry {
        entry(batch, What::Removed, path, None)
    }

    fn moves(batch: u64, from: &str, to: &str) -> Entry {
        entry(batch, What::Moved, to, Some(from))
    }

    /// Files, moved directories, and names that are gone.
    fn fold(entries: &[Entry]) -> (Vec<String>, Vec<String>, Vec<String>) {
        let mut folded = Folded::default();
        for entry in entries {
            folded.take(entry);
        }
        let folded = folded.finish();
        let text = |path: &Place| String::from_utf8(path.clone()).unwrap();
        let dir = |dir: &MovedDir| format!("{}>{}", text(&dir.from), text(&dir.to));
        (
            folded.files.iter().map(text).collect(),
            folded.moved_dirs.iter().map(dir).collect(),
            folded.gone.iter().map(text).collect(),
        )
    }

    #[track_caller]
    fn check(entries: &[Entry], files: &[&str], dirs: &[&str], gone: &[&str]) {
        let (found_files, found_dirs, found_gone) = fold(entries);
        assert_eq!(found_files, files, "files");
        assert_eq!(found_dirs, dirs, "directories");
        assert_eq!(found_gone, gone, "gone");
    }

    #[test]
    fn what_was_written_and_removed_again_is_not_copied() {
        let all = [
            written(1, "a"),
            written(1, "b"),
            removed(2, "a"),
            written(3, "c"),
        ];
        check(&all, &["b", "c"], &[], &["a"]);
        check(&[removed(1, "a"), written(2, "a")], &["a"], &[], &[]);
    }

    #[test]
    fn a_name_that_is_moved_away_and_written_anew_is_copied_in_any_order_of_the_entries() {
        let mut all = [written(1, "f"), moves(1, "f", "f.bak")];
        for _ in 0..2 {
            check(&all, &["f", "f.bak"], &[], &[]);
            all.reverse();
        }
        // As logrotate does.
        let all = [
            written(1, "log"),
            moves(1, "log", "log.1"),
            moves(1, "log.1", "log.2"),
        ];
        check(&all, &["log", "log.1", "log.2"], &[], &[]);
        // A swap of which one file also gets another time.
        let touched = entry(1, What::Attributes, "a", None);
        check(
            &[moves(1, "b", "a"), touched, moves(1, "a", "b")],
            &["a", "b"],
            &[],
            &[],
        );
        let made = written(1, "b/");
        let dirs = [moves(1, "c/", "a/"), made, moves(1, "a/", "c/")];
        check(&dirs, &[], &["a>c", "c>a"], &[]);
        check(&[written(2, "f"), removed(2, "f")], &["f"], &[], &[]);
    }

    #[test]
    fn a_file_that_moves_twice_is_gone_under_both_names() {
        let all = [written(1, "a"), moves(2, "a", "b"), moves(3, "b", "c")];
        check(&all, &["c"], &[], &["a", "b"]);
    }

    #[test]
    fn moves_of_one_batch_happen_at_once() {
        let swap = [moves(1, "a", "b"), moves(1, "b", "a")];
        check(&swap, &["a", "b"], &[], &[]);
        let all = [written(1, "a"), moves(2, "a", "b"), written(2, "a")];
        check(&all, &["a", "b"], &[], &[]);
    }

    #[test]
    fn what_is_in_a_moved_directory_goes_with_it() {
        let all = [
            written(1, "d/x"),
            moves(2, "d/", "e/"),
            moves(3, "e/", "f/"),
            removed(4, "f/y"),
            written(4, "f/z"),
        ];
        // The copy has f/y as d/y.
        check(&all, &["f/x", "f/z"], &["d>f"], &["d/y", "f/y"]);
    }

    #[test]
    fn a_file_that_leaves_a_directory_that_moves_is_found() {
        let all = [
            written(1, "d/x"),
            moves(2, "d/", "e/"),
            moves(2, "d/x", "x"),
        ];
        check(&all, &["x"], &["d>e"], &["d/x"]);
    }

    #[test]
    fn a_directory_that_moves_and_is_removed_is_gone_under_its_first_name() {
        let all = [moves(1, "d/", "e/"), removed(2, "e/x"), removed(2, "e/")];
        check(&all, &[], &[], &["d/x", "e/x"]);
    }

    #[test]
    fn a_directory_that_leaves_a_moved_one_is_gone_under_its_first_name() {
        let all = [moves(1, "d/", "e/"), moves(2, "e/s/", "s/")];
        check(&all, &[], &["d>e", "d/s>s"], &[]);
    }

    #[test]
    fn names_that_begin_alike_are_different() {
        let all = [written(1, "d-old/x"), moves(2, "d/", "e/")];
        check(&all, &["d-old/x"], &["d>e"], &[]);
    }
}
