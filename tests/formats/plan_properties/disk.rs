//! A backend in memory: a tree and numbered slots, with steps that are as strict as a real one's.

use std::collections::BTreeMap;

use ferryfs::core::{Ino, RelPath};
use ferryfs::format::steps::{ClearStep, PlaceStep, PlainKind};
use ferryfs::plan::planner::{Plan, StageSource};

/// A file's bytes, told apart by number, and its time of last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) bytes: u64,
    pub(crate) time: i64,
}

/// `what` a path holds: `None` for a directory.
pub(crate) type Listing = BTreeMap<String, Option<Version>>;

#[derive(Clone, Debug)]
pub(crate) enum Node {
    File(Version),
    /// `ino` marks directories of before the batch, so that they are found again wherever they are.
    Directory {
        ino: Option<Ino>,
        entries: BTreeMap<String, Node>,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) root: Node,
    pub(crate) slots: BTreeMap<u32, Node>,
    /// Names that differ only in case are one name.
    pub(crate) folds: bool,
}

/// Whether a step must find everything as planned, or may find that it has been done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    First,
    Redo,
}

type Outcome = Result<(), String>;

fn names(path: &RelPath) -> Vec<String> {
    path.components()
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect()
}

impl Node {
    pub(crate) fn empty_dir(ino: Option<Ino>) -> Node {
        let entries = BTreeMap::new();
        Node::Directory { ino, entries }
    }

    fn kind(&self) -> PlainKind {
        match self {
            Node::File(_) => PlainKind::File,
            Node::Directory { .. } => PlainKind::Directory,
        }
    }

    fn list(&self, path: &str, into: &mut Listing) {
        match self {
            Node::File(version) => drop(into.insert(path.to_owned(), Some(*version))),
            Node::Directory { entries, .. } => {
                into.insert(path.to_owned(), None);
                for (name, node) in entries {
                    node.list(&format!("{path}/{name}"), into);
                }
            }
        }
    }

    fn find_dir(&self, wanted: Ino) -> Option<&BTreeMap<String, Node>> {
        match self {
            Node::File(_) => None,
            Node::Directory { ino, entries } if *ino == Some(wanted) => Some(entries),
            Node::Directory { entries, .. } => {
                entries.values().find_map(|node| node.find_dir(wanted))
            }
        }
    }
}

impl Disk {
    pub(crate) fn listing(&self) -> Listing {
        let mut listing = Listing::new();
        self.root.list("", &mut listing);
        listing
    }

    /// The file under `name` in the directory `parent`, wherever that directory is just now.
    pub(crate) fn file_in(&self, parent: Ino, name: &str) -> Option<Version> {
        let mut trees = std::iter::once(&self.root).chain(self.slots.values());
        match trees.find_map(|tree| tree.find_dir(parent))?.get(name)? {
            Node::File(version) => Some(*version),
            Node::Directory { .. } => None,
        }
    }

    pub(crate) fn read(&self, path: &RelPath) -> Option<Version> {
        match self.listing().get(&format!("/{path}")) {
            Some(Some(version)) => Some(*version),
            _ => None,
        }
    }

    /// The entries of the directory that holds `path`, the last name, and that name as an entry
    /// there spells it.
    fn parent(&mut self, path: &RelPath) -> Option<Place<'_>> {
        let mut names = names(path);
        let last = names.pop()?;
        let folds = self.folds;
        let same = |it: &str, name: &str| it == name || (folds && it.eq_ignore_ascii_case(name));
        let mut node = &mut self.root;
        for name in &names {
            let Node::Directory { entries, .. } = node else {
                return None;
            };
            node = (entries.iter_mut().find(|(it, _)| same(it, name)))?.1;
        }
        let Node::Directory { entries, .. } = node else {
            return None;
        };
        let there = entries.keys().find(|it| same(it, &last)).cloned();
        Some((entries, last, there))
    }

    fn take(&mut self, path: &RelPath, kind: PlainKind) -> Result<Option<Node>, String> {
        let Some((entries, _, Some(there))) = self.parent(path) else {
            return Ok(None);
        };
        if entries[&there].kind() != kind {
            return Err(format!("{path} is not a {kind:?}"));
        }
        Ok(entries.remove(&there))
    }

    pub(crate) fn clear(&mut self, step: &ClearStep, mode: Mode) -> Outcome {
        let taken = match step {
            ClearStep::Detach { from, slot, kind } => {
                if self.slots.contains_key(&slot.0) {
                    return done(mode, step);
                }
                let node = self.take(from, *kind)?.ok_or(format!("lost: {step:?}"))?;
                self.slots.insert(slot.0, node);
                return Ok(());
            }
            ClearStep::RemoveFile { path } => self.take(path, PlainKind::File)?,
            ClearStep::RemoveDir { path } => self.take(path, PlainKind::Directory)?,
        };
        match taken {
            None => done(mode, step),
            Some(Node::Directory { entries, .. }) if !entries.is_empty() => {
                Err(format!("not empty: {step:?}"))
            }
            Some(_) => Ok(()),
        }
    }

    pub(crate) fn place(&mut self, step: &PlaceStep<StageSource>, mode: Mode) -> Outcome {
        match step {
            PlaceStep::MakeDir { path } => {
                let place = self.parent(path);
                let (entries, name, there) = place.ok_or(format!("no directory: {step:?}"))?;
                match there.map(|it| entries[&it].kind()) {
                    Some(PlainKind::Directory) => done(mode, step),
                    Some(PlainKind::File) => Err(format!("a file stands there: {step:?}")),
                    None => {
                        entries.insert(name, Node::empty_dir(None));
                        Ok(())
                    }
                }
            }
            PlaceStep::Attach { slot, to, kind } => self.unslot(slot.0, to, *kind, mode),
            PlaceStep::Install { slot, to, .. } => self.unslot(slot.0, to, PlainKind::File, mode),
            PlaceStep::InstallNode { .. } | PlaceStep::Patch { .. } | PlaceStep::Link { .. } => {
                Err(format!("not of this disk: {step:?}"))
            }
            PlaceStep::Touch { path, modified } => {
                let Some((entries, _, Some(there))) = self.parent(path) else {
                    return Err(format!("nothing there: {step:?}"));
                };
                match entries.get_mut(&there) {
                    Some(Node::File(version)) => version.time = modified.0,
                    _ => return Err(format!("no file: {step:?}")),
                }
                Ok(())
            }
        }
    }

    fn unslot(&mut self, slot: u32, to: &RelPath, kind: PlainKind, mode: Mode) -> Outcome {
        let Some(node) = self.slots.remove(&slot) else {
            return done(mode, &(slot, to));
        };
        if node.kind() != kind {
            return Err(format!("slot {slot} holds no {kind:?}"));
        }
        let (entries, name, there) = self.parent(to).ok_or(format!("no directory for {to}"))?;
        if let Some(there) = there {
            let files = kind == PlainKind::File && entries[&there].kind() == PlainKind::File;
            if !files || there != name {
                return Err(format!("{there} stands in the way of {to}"));
            }
        }
        entries.insert(name, node);
        Ok(())
    }

    /// Puts what every `Install` needs into its slot, read from the tree as it is before the first
    /// step.
    pub(crate) fn stage(&mut self, plan: &Plan) -> BTreeMap<u32, Version> {
        let mut staged = BTreeMap::new();
        for step in &plan.steps.place {
            let PlaceStep::Install { slot, content, .. } = step else {
                continue;
            };
            let (bytes, modified) = match content {
                StageSource::Object {
                    object, modified, ..
                } => (object.0, modified),
                StageSource::Backend { path, modified, .. } => {
                    (self.read(path).expect("a copy's source").bytes, modified)
                }
            };
            let time = modified.0;
            staged.insert(slot.0, Version { bytes, time });
            let file = Node::File(Version { bytes, time });
            assert!(self.slots.insert(slot.0, file).is_none(), "slot used twice");
        }
        staged
    }
}

type Place<'a> = (&'a mut BTreeMap<String, Node>, String, Option<String>);

fn done(mode: Mode, step: &dyn std::fmt::Debug) -> Outcome {
    match mode {
        Mode::Redo => Ok(()),
        Mode::First => Err(format!("already done at first: {step:?}")),
    }
}
