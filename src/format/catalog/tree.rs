//! A catalog in memory.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;

use crate::core::{Name, RelPath};
use crate::format::catalog::store::{CatalogStore, live_bytes};
use crate::format::catalog::{CatalogChange, Description, encode_description};
use crate::format::steps::SlotNo;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct TreeNode {
    description: Option<Box<Description>>,
    below: BTreeMap<Box<[u8]>, TreeNode>,
}

impl TreeNode {
    fn is_empty(&self) -> bool {
        self.description.is_none() && self.below.is_empty()
    }
}

/// A whole catalog in memory. Two are equal if they describe the same names in the same way.
#[derive(Clone, Debug, Default)]
pub struct CatalogTree {
    root: TreeNode,
    slots: HashMap<SlotNo, TreeNode>,
}

impl PartialEq for CatalogTree {
    fn eq(&self, other: &CatalogTree) -> bool {
        self.root == other.root
    }
}

impl Eq for CatalogTree {}

impl CatalogTree {
    /// Returns an empty catalog.
    pub fn new() -> CatalogTree {
        CatalogTree::default()
    }

    /// Returns the description of `path`.
    pub fn get(&self, path: &RelPath) -> Option<&Description> {
        let mut node = &self.root;
        for name in path.components() {
            node = node.below.get(name)?;
        }
        node.description.as_deref()
    }

    /// Returns all descriptions as the changes of a full segment.
    pub fn whole(&self) -> Vec<CatalogChange> {
        let mut changes = Vec::new();
        walk(&self.root, &mut |path, node| {
            if let Some(description) = &node.description {
                changes.push(CatalogChange::Set {
                    path: path.clone(),
                    description: description.clone(),
                });
            }
        });
        changes
    }

    /// Returns the largest size of a full segment, without header and checksum, in bytes.
    pub fn live_bytes(&self) -> u64 {
        let mut bytes = 0;
        walk(&self.root, &mut |path, node| {
            let name = path
                .split_last()
                .map_or(0, |(_, name)| name.as_bytes().len());
            let description = node.description.as_deref();
            let description = description.map_or(0, |it| encode_description(it).len());
            bytes = u64::saturating_add(bytes, live_bytes(name, description));
        });
        bytes
    }

    fn node_mut(&mut self, path: &RelPath) -> &mut TreeNode {
        let mut node = &mut self.root;
        for name in path.components() {
            node = node.below.entry(name.into()).or_default();
        }
        node
    }

    /// Removes and returns the node at `path`, with all ancestors that are then empty.
    fn take_out(&mut self, path: &RelPath) -> Option<TreeNode> {
        let names: Vec<&[u8]> = path.components().collect();
        let (last, above) = names.split_last()?;
        // The deepest ancestor with other contents stays.
        let mut keeper = 0;
        let mut node = &self.root;
        for (depth, name) in above.iter().enumerate() {
            if node.description.is_some() || node.below.len() > 1 {
                keeper = depth;
            }
            node = node.below.get(*name)?;
        }
        if node.description.is_some() || node.below.len() > 1 {
            keeper = above.len();
        }
        if !node.below.contains_key(*last) {
            return None;
        }
        let mut node = &mut self.root;
        for name in &names[..keeper] {
            node = node.below.get_mut(*name)?;
        }
        let mut taken = node.below.remove(names[keeper])?;
        for name in &names[keeper + 1..] {
            taken = taken.below.remove(*name)?;
        }
        Some(taken)
    }
}

/// Visits every node, parents first, in the order of a full segment. Not recursive: a drive's tree
/// may be deeper than the stack allows.
fn walk(root: &TreeNode, visit: &mut dyn FnMut(&RelPath, &TreeNode)) {
    let mut open = vec![(RelPath::root(), root)];
    while let Some((path, node)) = open.pop() {
        visit(&path, node);
        for (name, below) in node.below.iter().rev() {
            if let Ok(name) = Name::new(name) {
                open.push((path.join(&name), below));
            }
        }
    }
}

impl Drop for CatalogTree {
    /// Not recursive either.
    fn drop(&mut self) {
        let mut open = vec![std::mem::take(&mut self.root)];
        open.extend(self.slots.drain().map(|(_, node)| node));
        while let Some(mut node) = open.pop() {
            open.extend(std::mem::take(&mut node.below).into_values());
        }
    }
}

impl CatalogStore for CatalogTree {
    type Error = Infallible;

    fn clear(&mut self) -> Result<(), Infallible> {
        *self = CatalogTree::new();
        Ok(())
    }

    fn detach(&mut self, from: &RelPath, slot: SlotNo) -> Result<(), Infallible> {
        if let Some(node) = self.take_out(from) {
            self.slots.insert(slot, node);
        }
        Ok(())
    }

    fn attach(&mut self, slot: SlotNo, to: &RelPath) -> Result<(), Infallible> {
        self.remove(to)?;
        if let Some(node) = self.slots.remove(&slot)
            && !node.is_empty()
        {
            *self.node_mut(to) = node;
        }
        Ok(())
    }

    fn remove(&mut self, path: &RelPath) -> Result<(), Infallible> {
        if let Some(node) = self.take_out(path) {
            drop(CatalogTree {
                root: node,
                slots: HashMap::new(),
            });
        }
        Ok(())
    }

    fn set(&mut self, path: &RelPath, description: &Description) -> Result<(), Infallible> {
        self.node_mut(path).description = Some(Box::new(description.clone()));
        Ok(())
    }
}
