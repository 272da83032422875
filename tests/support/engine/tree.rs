//! The mount and the drive as trees that can be compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use ferryfs::core::{FileKind, Ino, Name, RelPath, Timestamp};
use ferryfs::drive::memory::{MemNode, differences};
use ferryfs::format::layout;
use ferryfs::index::Inode;
use ferryfs::plan::names::NameRules;

use super::{Engine, World, call};

/// A tree as the drive has it.
pub type Tree = BTreeMap<RelPath, MemNode>;

/// An entry of the mount: attributes, and the bytes of a regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub ino: Ino,
    pub mode: u32,
    pub nlink: u32,
    pub size: u64,
    pub mtime: Timestamp,
    pub target: Option<Box<[u8]>>,
    pub bytes: Option<Arc<Vec<u8>>>,
}

impl Seen {
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode).expect("a kind")
    }
}

impl Engine {
    /// The names in a directory, without `.` and `..`.
    pub fn list(&self, dir: Ino) -> Vec<(Name, Inode)> {
        let opened = call(|ctx| self.fs.opendir(ctx, dir)).expect("open a directory");
        let handle = opened.handle;
        let mut names = Vec::new();
        self.fs
            .readdir(handle, 0, |entry| {
                if let Ok(name) = Name::new(&entry.name) {
                    names.push((name, entry.inode.clone()));
                }
                true
            })
            .expect("list a directory");
        self.fs.releasedir(handle);
        names
    }

    /// All paths of the mount.
    pub fn names(&self) -> Vec<RelPath> {
        let mut open = vec![(Ino::ROOT, RelPath::root())];
        let mut found = Vec::new();
        while let Some((dir, at)) = open.pop() {
            for (name, inode) in self.list(dir) {
                let path = at.join(&name);
                if inode.is_dir() {
                    open.push((inode.ino, path.clone()));
                }
                found.push(path);
            }
        }
        found
    }

    /// All of the mount.
    pub fn mount_tree(&self) -> BTreeMap<RelPath, Seen> {
        let tree = self.readable_tree();
        for (path, seen) in &tree {
            let whole = seen.bytes.is_some() || seen.kind() != FileKind::Regular;
            assert!(whole, "{path} cannot be read");
        }
        tree
    }

    /// The same; a file that cannot be read has no bytes.
    pub fn readable_tree(&self) -> BTreeMap<RelPath, Seen> {
        let mut tree = BTreeMap::new();
        self.walk(Ino::ROOT, &RelPath::root(), &mut tree);
        tree
    }

    fn walk(&self, dir: Ino, path: &RelPath, tree: &mut BTreeMap<RelPath, Seen>) {
        for (name, listed) in self.list(dir) {
            let path = path.join(&name);
            let inode = self.fs.getattr(listed.ino).expect("attributes");
            assert_eq!(inode.size, listed.size, "{path}: listing and stat differ");
            let is_file = inode.kind() == FileKind::Regular;
            let bytes = is_file.then(|| self.read_ino(inode.ino).ok()).flatten();
            let bytes = bytes.map(Arc::new);
            if let Some(bytes) = &bytes {
                assert_eq!(
                    bytes.len() as u64,
                    inode.size,
                    "{path}: size and bytes differ"
                );
            }
            let seen = Seen {
                ino: inode.ino,
                mode: inode.mode,
                nlink: inode.nlink,
                size: inode.size,
                mtime: inode.mtime,
                target: inode.target.clone(),
                bytes,
            };
            tree.insert(path.clone(), seen);
            if inode.is_dir() {
                self.walk(inode.ino, &path, tree);
            }
        }
    }

    /// What the drive must be once all of the mount is on it: no special files, times in the
    /// drive's steps.
    pub fn expected_on_drive(&self) -> Tree {
        let cut = |time: Timestamp| Timestamp(time.0 - time.0.rem_euclid(self.granularity));
        let nodes = self.mount_tree().into_iter();
        nodes
            .filter_map(|(path, seen)| {
                let node = match seen.kind() {
                    FileKind::Directory => MemNode::Directory,
                    FileKind::Regular => MemNode::File {
                        bytes: seen.bytes?,
                        modified: cut(seen.mtime),
                    },
                    _ => return None,
                };
                Some((path, node))
            })
            .collect()
    }
}

impl World {
    /// The user's tree on the drive.
    pub fn drive_tree(&self) -> Tree {
        self.as_mounted(user_part(self.memory.tree()))
    }

    /// The same tree with each name as a mount would show it, where the name alone tells.
    pub fn as_mounted(&self, tree: Tree) -> Tree {
        let rules = NameRules::new(&self.kind.capabilities());
        let read = |path: &RelPath| {
            path.components().fold(RelPath::root(), |dir, name| {
                let stored = Name::new(name).expect("a name");
                let name = rules.decode(&stored, dir.is_root());
                dir.join(&name.unwrap_or(stored))
            })
        };
        tree.into_iter()
            .map(|(path, node)| (read(&path), node))
            .collect()
    }

    /// The bytes of a file on the drive.
    pub fn on_drive(&self, path: &str) -> Option<Vec<u8>> {
        match self.memory.tree().get(&super::script::rel(path)) {
            Some(MemNode::File { bytes, .. }) => Some(bytes.to_vec()),
            _ => None,
        }
    }
}

/// A tree without our own directory.
pub fn user_part(tree: Tree) -> Tree {
    let mut tree = tree;
    tree.retain(|path, _| !layout::is_reserved(path));
    tree
}

/// Fails, saying where they differ, if two trees do.
#[track_caller]
pub fn assert_same(found: &Tree, wanted: &Tree, what: &str) {
    let lines = differences(found, wanted);
    assert!(lines.is_empty(), "{what}:\n  {}", lines.join("\n  "));
}
