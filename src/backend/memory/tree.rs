//! The tree of a [`super::MemoryBackend`]: a map from folded path to node. See there for the invariant.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::{MemNode, MemoryOptions, errno};
use crate::backend::{Entry, Metadata};
use crate::base::{FileKind, Name, RelPath, Timestamp};

/// What a node is.
#[derive(Clone, Debug)]
pub(super) enum Content {
    File(Arc<Vec<u8>>),
    Directory,
    Symlink(Vec<u8>),
}

/// What stands at one path.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Last name, as it was spelled; `None` for the root, which is never in the map.
    pub(super) name: Option<Name>,
    pub(super) id: u64,
    pub(super) content: Content,
    pub(super) modified: Timestamp,
    pub(super) permissions: u32,
}

impl Node {
    pub(super) fn metadata(&self) -> Metadata {
        let (kind, size, target) = match &self.content {
            Content::File(bytes) => (FileKind::Regular, bytes.len() as u64, None),
            Content::Directory => (FileKind::Directory, 0, None),
            Content::Symlink(target) => {
                (FileKind::Symlink, target.len() as u64, Some(target.clone()))
            }
        };
        Metadata {
            kind,
            size,
            modified: self.modified,
            permissions: self.permissions,
            target,
        }
    }

    fn is_dir(&self) -> bool {
        matches!(self.content, Content::Directory)
    }
}

/// A path as the tree looks it up.
pub(super) struct Place {
    /// Folded; empty for the root.
    key: Vec<u8>,
    /// Last name as it is to be spelled; `None` for the root.
    pub(super) name: Option<Name>,
}

impl Place {
    pub(super) fn new(path: &RelPath, options: &MemoryOptions) -> io::Result<Place> {
        let mut key = Vec::new();
        let mut name = None;
        for component in path.components() {
            let kept = accept(component, options).ok_or_else(|| errno(libc::EINVAL))?;
            if !key.is_empty() {
                key.push(b'/');
            }
            key.extend_from_slice(&fold(kept.as_bytes(), options));
            name = Some(kept);
        }
        Ok(Place { key, name })
    }

    fn must_have_name(&self, if_root: i32) -> io::Result<()> {
        self.name.as_ref().map(|_| ()).ok_or_else(|| errno(if_root))
    }
}

/// The name as the backend would keep it, if it takes it.
fn accept(component: &[u8], options: &MemoryOptions) -> Option<Name> {
    let refused = component.iter().any(|b| options.forbidden.contains(b));
    if refused || (options.utf8_only && std::str::from_utf8(component).is_err()) {
        return None;
    }
    let mut kept = component;
    while options.drops_trailing_dots && kept.ends_with(b".") {
        kept = &kept[..kept.len() - 1];
    }
    Name::new(kept).ok()
}

fn fold(name: &[u8], options: &MemoryOptions) -> Vec<u8> {
    match std::str::from_utf8(name) {
        Ok(text) if options.case_insensitive => text.to_lowercase().into_bytes(),
        _ => name.to_vec(),
    }
}

/// All nodes below the root, by folded path.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<Vec<u8>, Node>,
}

impl Tree {
    /// Bytes that all files have together.
    pub(super) fn used(&self) -> u64 {
        let sizes = self.nodes.values().map(|node| match &node.content {
            Content::File(bytes) => bytes.len() as u64,
            _ => 0,
        });
        sizes.sum()
    }

    fn get(&self, place: &Place) -> io::Result<&Node> {
        self.check_parents(place)?;
        self.nodes
            .get(&place.key)
            .ok_or_else(|| errno(libc::ENOENT))
    }

    pub(super) fn get_mut(&mut self, place: &Place) -> io::Result<&mut Node> {
        self.check_parents(place)?;
        let node = self.nodes.get_mut(&place.key);
        node.ok_or_else(|| errno(libc::ENOENT))
    }

    /// Every directory on the way to `place` must be one; links are not followed.
    fn check_parents(&self, place: &Place) -> io::Result<()> {
        let slashes = place.key.iter().enumerate().filter(|(_, b)| **b == b'/');
        for (slash, _) in slashes {
            match self.nodes.get(&place.key[..slash]).map(|n| &n.content) {
                Some(Content::Directory) => {}
                Some(Content::File(_)) => return Err(errno(libc::ENOTDIR)),
                Some(Content::Symlink(_)) => return Err(errno(libc::ELOOP)),
                None => return Err(errno(libc::ENOENT)),
            }
        }
        Ok(())
    }

    pub(super) fn metadata(&self, place: &Place) -> io::Result<Metadata> {
        if place.name.is_none() {
            return Ok(Metadata {
                kind: FileKind::Directory,
                size: 0,
                modified: Timestamp(0),
                permissions: 0o755,
                target: None,
            });
        }
        Ok(self.get(place)?.metadata())
    }

    /// Keys of all that is below `key`, at any depth.
    fn keys_below(&self, key: &[u8]) -> Vec<Vec<u8>> {
        let mut prefix = key.to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        let from = self.nodes.range(prefix.clone()..);
        from.take_while(|(k, _)| k.starts_with(&prefix))
            .map(|(k, _)| k.clone())
            .collect()
    }

    fn is_empty_dir(&self, key: &[u8]) -> bool {
        self.keys_below(key).is_empty()
    }

    pub(super) fn children(&self, place: &Place) -> io::Result<Vec<Entry>> {
        if place.name.is_some() {
            match self.get(place)?.content {
                Content::Directory => {}
                Content::File(_) => return Err(errno(libc::ENOTDIR)),
                Content::Symlink(_) => return Err(errno(libc::ELOOP)),
            }
        }
        let skip = place.key.len() + usize::from(!place.key.is_empty());
        let below = self.keys_below(&place.key);
        let direct = below.iter().filter(|key| !key[skip..].contains(&b'/'));
        Ok(direct
            .filter_map(|key| {
                let node = self.nodes.get(key)?;
                let name = node.name.clone()?;
                let meta = node.metadata();
                Some(Entry { name, meta })
            })
            .collect())
    }

    /// The number of the regular file at `place`.
    pub(super) fn regular_file(&self, place: &Place) -> io::Result<u64> {
        place.must_have_name(libc::EISDIR)?;
        let node = self.get(place)?;
        match node.content {
            Content::File(_) => Ok(node.id),
            Content::Directory => Err(errno(libc::EISDIR)),
            Content::Symlink(_) => Err(errno(libc::ELOOP)),
        }
    }

    pub(super) fn insert(&mut self, place: &Place, node: Node) -> io::Result<()> {
        place.must_have_name(libc::EEXIST)?;
        self.check_parents(place)?;
        if self.nodes.contains_key(&place.key) {
            return Err(errno(libc::EEXIST));
        }
        self.nodes.insert(place.key.clone(), node);
        Ok(())
    }

    pub(super) fn remove_file(&mut self, place: &Place) -> io::Result<()> {
        place.must_have_name(libc::EISDIR)?;
        if self.get(place)?.is_dir() {
            return Err(errno(libc::EISDIR));
        }
        self.nodes.remove(&place.key);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, place: &Place) -> io::Result<()> {
        place.must_have_name(libc::EBUSY)?;
        if !self.get(place)?.is_dir() {
            return Err(errno(libc::ENOTDIR));
        }
        if !self.is_empty_dir(&place.key) {
            return Err(errno(libc::ENOTEMPTY));
        }
        self.nodes.remove(&place.key);
        Ok(())
    }

    /// As rename(2): over a file goes what is no directory, over an empty directory a directory.
    pub(super) fn rename(&mut self, from: &Place, to: &Place) -> io::Result<()> {
        from.must_have_name(libc::EBUSY)?;
        to.must_have_name(libc::EBUSY)?;
        let moves_dir = self.get(from)?.is_dir();
        self.check_parents(to)?;
        if moves_dir && to.key.starts_with(&[&from.key[..], b"/"].concat()) {
            return Err(errno(libc::EINVAL));
        }
        // Another spelling of the same name replaces nothing.
        if to.key != from.key {
            self.check_replaceable(to, moves_dir)?;
        }
        let mut moved = self.keys_below(&from.key);
        moved.push(from.key.clone());
        for key in moved {
            let Some(mut node) = self.nodes.remove(&key) else {
                continue;
            };
            if key == from.key {
                node.name.clone_from(&to.name);
            }
            let new_key = [&to.key[..], &key[from.key.len()..]].concat();
            self.nodes.insert(new_key, node);
        }
        Ok(())
    }

    fn check_replaceable(&self, to: &Place, by_dir: bool) -> io::Result<()> {
        let Some(old) = self.nodes.get(&to.key) else {
            return Ok(());
        };
        match (by_dir, old.is_dir()) {
            (true, false) => Err(errno(libc::ENOTDIR)),
            (false, true) => Err(errno(libc::EISDIR)),
            (true, true) if !self.is_empty_dir(&to.key) => Err(errno(libc::ENOTEMPTY)),
            _ => Ok(()),
        }
    }

    /// The node of an open file; EIO once it is gone.
    pub(super) fn by_id(&mut self, id: u64) -> io::Result<&mut Node> {
        let found = self.nodes.values_mut().find(|node| node.id == id);
        found.ok_or_else(|| errno(libc::EIO))
    }

    /// The bytes of an open file, to be read.
    pub(super) fn shared_bytes(&mut self, id: u64) -> io::Result<Arc<Vec<u8>>> {
        match &self.by_id(id)?.content {
            Content::File(bytes) => Ok(Arc::clone(bytes)),
            _ => Err(errno(libc::EIO)),
        }
    }

    /// The bytes of an open file, to be changed.
    pub(super) fn bytes(&mut self, id: u64) -> io::Result<&mut Vec<u8>> {
        match &mut self.by_id(id)?.content {
            Content::File(bytes) => Ok(Arc::make_mut(bytes)),
            _ => Err(errno(libc::EIO)),
        }
    }

    /// All of it, by paths as they are spelled.
    pub(super) fn export(&self) -> BTreeMap<RelPath, MemNode> {
        // Parents sort before what is below them, so each one's spelling is known when it is needed.
        let mut spelled: BTreeMap<&[u8], RelPath> = BTreeMap::new();
        let mut tree = BTreeMap::new();
        for (key, node) in &self.nodes {
            let Some(name) = &node.name else { continue };
            let slash = key.iter().rposition(|&b| b == b'/');
            let parent = slash.and_then(|slash| spelled.get(&key[..slash]));
            let path = parent.unwrap_or(&RelPath::root()).join(name);
            let entry = match &node.content {
                Content::File(bytes) => MemNode::File {
                    bytes: Arc::clone(bytes),
                    modified: node.modified,
                },
                Content::Directory => MemNode::Directory,
                Content::Symlink(target) => MemNode::Symlink {
                    target: target.clone(),
                },
            };
            tree.insert(path.clone(), entry);
            spelled.insert(key, path);
        }
        tree
    }
}
