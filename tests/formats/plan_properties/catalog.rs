//! The catalog goes where the tree goes: what is known of a name is what was known of the very same
//! file or directory before, or what the batch says of it.

use std::collections::BTreeSet;

use ferryfs::core::{FileKind, RelPath, Timestamp};
use ferryfs::format::catalog::store::CatalogStore;
use ferryfs::format::catalog::{CatalogTree, Description, Principal, check_changes};
use ferryfs::plan::describe::changes;

use super::disk::{Disk, Node};
use super::{Batch, Mode, Stopped};

/// A description that tells which file or directory it is of.
fn describing(node: &Node) -> Description {
    let nobody = Principal { id: 0, name: None };
    let (kind, number) = match node {
        Node::File(version) => (FileKind::Regular, version.bytes as i64),
        Node::Directory { ino, .. } => (FileKind::Directory, ino.map_or(-1, |ino| ino.0 as i64)),
    };
    Description {
        kind,
        permissions: 0,
        owner: nobody.clone(),
        group: nobody,
        modified: Timestamp(number),
        size: 0,
        target: None,
        rdev: 0,
        link: None,
        xattrs: Default::default(),
        name: None,
        holes: Vec::new(),
    }
}

/// Everything on a disk, described.
fn described(disk: &Disk) -> Vec<(RelPath, Description)> {
    let mut found = Vec::new();
    let mut open = vec![(RelPath::root(), &disk.root)];
    while let Some((path, node)) = open.pop() {
        if !path.is_root() {
            found.push((path.clone(), describing(node)));
        }
        if let Node::Directory { entries, .. } = node {
            for (name, node) in entries {
                let name = ferryfs::core::Name::new(name.as_bytes()).unwrap();
                open.push((path.join(&name), node));
            }
        }
    }
    found
}

/// `told` are the paths of the cut that the batch brings up to date: these are described anew, and
/// all others keep what they had.
pub(crate) fn follows(batch: &Batch, told: &BTreeSet<RelPath>) {
    let mut catalog = CatalogTree::new();
    for (path, description) in described(&batch.start) {
        let Ok(()) = catalog.set(&path, &description);
    }
    let disk = batch.start.clone();
    let mut done = Stopped {
        disk,
        marked: false,
    };
    batch.run(&mut done, Mode::First, usize::MAX);
    let wanted = described(&done.disk);
    let sets = wanted
        .iter()
        .filter(|(path, _)| told.contains(path))
        .cloned();
    let made = changes(&batch.plan.steps, &[], sets.collect());
    assert_eq!(check_changes(&made, false), Ok(()), "{made:#?}");
    for change in &made {
        let Ok(()) = catalog.take(change);
    }
    let mut after = CatalogTree::new();
    for (path, description) in &wanted {
        let Ok(()) = after.set(path, description);
    }
    assert_eq!(
        catalog.whole(),
        after.whole(),
        "{:#?}\n{made:#?}",
        batch.plan.steps
    );
}
