//! The mount as it must be: names, and what they lead to. Only operations that must succeed are
//! done to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferryfs::core::RelPath;

/// What a name leads to; files with several names share a number.
pub(crate) type Id = usize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    File(Arc<Vec<u8>>),
    Dir,
    Link(Vec<u8>),
}

/// Paths of the drive: bytes of a file, nothing of a directory.
pub(crate) type Plain = BTreeMap<RelPath, Option<Arc<Vec<u8>>>>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) names: BTreeMap<String, Id>,
    pub(crate) nodes: BTreeMap<Id, What>,
    last: Id,
}

pub(crate) fn rel(path: &str) -> RelPath {
    RelPath::parse(path.as_bytes()).expect("a path")
}

pub(crate) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Whether `path` is `dir` or below it.
pub(crate) fn is_within(path: &str, dir: &str) -> bool {
    dir.is_empty() || path == dir || path.strip_prefix(dir).is_some_and(|it| it.starts_with('/'))
}

impl Model {
    pub(crate) fn what(&self, path: &str) -> Option<&What> {
        self.nodes.get(self.names.get(path)?)
    }

    pub(crate) fn paths(&self, wanted: impl Fn(&What) -> bool) -> Vec<String> {
        let names = self.names.iter();
        names
            .filter(|(_, id)| wanted(&self.nodes[id]))
            .map(|(path, _)| path.clone())
            .collect()
    }

    pub(crate) fn is_empty_dir(&self, path: &str) -> bool {
        !self
            .names
            .keys()
            .any(|at| at != path && is_within(at, path))
    }

    /// A name in the same directory that differs from `path` in nothing but case.
    pub(crate) fn respelled(&self, path: &str) -> Option<&String> {
        self.names
            .keys()
            .find(|at| *at != path && at.eq_ignore_ascii_case(path))
    }

    /// Puts something new at `path`, or new bytes into the file there, under all its names.
    pub(crate) fn put(&mut self, path: &str, what: What) {
        let id = match self.names.get(path) {
            Some(id) => *id,
            None => {
                self.last += 1;
                self.names.insert(path.to_string(), self.last);
                self.last
            }
        };
        self.nodes.insert(id, what);
    }

    pub(crate) fn link(&mut self, from: &str, to: &str) {
        let id = self.names[from];
        self.names.insert(to.to_string(), id);
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.names.remove(path);
        self.forget_unnamed();
    }

    fn forget_unnamed(&mut self) {
        let names = &self.names;
        self.nodes.retain(|id, _| names.values().any(|at| at == id));
    }

    /// Moves `from` with all below it; what is at `to` goes.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        if self.names.get(from) == self.names.get(to) {
            return; // Two names of one file: POSIX leaves both.
        }
        self.names.remove(to);
        let moved = self.names.keys().filter(|at| is_within(at, from));
        for path in moved.cloned().collect::<Vec<_>>() {
            if let Some(id) = self.names.remove(&path) {
                self.names
                    .insert(format!("{to}{}", &path[from.len()..]), id);
            }
        }
        self.forget_unnamed();
    }

    pub(crate) fn exchange(&mut self, one: &str, other: &str) {
        let aside = "\u{1}aside";
        for (from, to) in [(one, aside), (other, one), (aside, other)] {
            self.rename(from, to);
        }
    }

    /// What the drive has once all of it is there.
    pub(crate) fn on_drive(&self) -> Plain {
        let names = self.names.iter();
        names
            .filter_map(|(path, id)| match &self.nodes[id] {
                What::File(bytes) => Some((rel(path), Some(Arc::clone(bytes)))),
                What::Dir => Some((rel(path), None)),
                What::Link(_) => None,
            })
            .collect()
    }
}
