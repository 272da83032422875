//! Which attributes a batch gives to what it places, on a backend that has any.
//!
//! What is made anew gets all of its attributes, and so does what was marked because they have changed. A directory in which a
//! name comes or goes gets its time again, which the backend has just moved on: in the mount it is what it was at the cut.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::gather::Gathered;
use crate::backend::Capabilities;
use crate::base::{FileKind, Ino, RelPath};
use crate::index::Inode;
use crate::rules::acl;
use crate::rules::given::{self, Attributes, Given};
use crate::rules::plan::{NameKey, NewContent, Placed, Plan};
use crate::rules::steps::AttributeStep;

/// The steps for everything that `plan` places or that was marked, what is in a directory before the directory.
pub(super) fn steps(
    plan: &Plan,
    gathered: &Gathered,
    capabilities: &Capabilities,
) -> Vec<AttributeStep> {
    if !given::has_attributes(capabilities) {
        return Vec::new();
    }
    let mut chosen = Chosen {
        gathered,
        capabilities,
        steps: BTreeMap::new(),
        seen: HashSet::new(),
    };
    let left: HashSet<Ino> = plan.left_behind.iter().map(|left| left.ino).collect();
    let before: HashSet<Ino> = gathered.before.values().map(|entry| entry.ino).collect();
    for outcome in &plan.outcomes {
        let (ino, is_new) = match &outcome.placed {
            Placed::Nothing => continue,
            Placed::Staged { ino, .. } => (*ino, true),
            Placed::Directory(ino) => (*ino, !before.contains(ino)),
            Placed::Kept { ino, .. } => (*ino, false),
        };
        let is_told = is_new || (gathered.attributes.contains(&ino) && !left.contains(&ino));
        let dir = gathered.delta.dirs.get(&outcome.key.parent);
        if let (true, Some(dir)) = (is_told, dir.and_then(|paths| paths.new.as_ref())) {
            chosen.give_all(ino, dir.join(&outcome.key.name), is_new);
        }
    }
    for (ino, path) in &gathered.told_dirs {
        if !left.contains(ino) {
            chosen.give_all(*ino, path.clone(), false);
        }
    }
    for dir in changed_dirs(plan, gathered) {
        chosen.give_time(dir);
    }
    let mut steps: Vec<AttributeStep> = chosen.steps.into_values().collect();
    steps.sort_by_cached_key(|step| std::cmp::Reverse(step.path.depth()));
    steps
}

/// Directories in which a name comes, goes, or gets another entry. A name without an outcome keeps
/// the entry it has: the directory of a file that stays behind is not touched.
fn changed_dirs(plan: &Plan, gathered: &Gathered) -> BTreeSet<Ino> {
    let stays = |content: &NewContent| {
        !matches!(content, NewContent::Changed(_)) && *content != NewContent::Live
    };
    let outcomes: HashSet<&NameKey> = plan.outcomes.iter().map(|outcome| &outcome.key).collect();
    let names = gathered.delta.names.iter();
    names
        .filter(|change| outcomes.contains(&change.key))
        .filter(|change| match (&change.old, &change.new) {
            (Some(old), Some(new)) => old.ino != new.ino || !stays(&new.content),
            _ => true,
        })
        .map(|change| change.key.parent)
        .collect()
}

struct Chosen<'a> {
    gathered: &'a Gathered,
    capabilities: &'a Capabilities,
    steps: BTreeMap<RelPath, AttributeStep>,
    /// One name of a file is enough: they are all of one.
    seen: HashSet<Ino>,
}

impl Chosen<'_> {
    fn give_all(&mut self, ino: Ino, path: RelPath, is_new: bool) {
        let Some(inode) = self.gathered.inodes.get(&ino) else {
            return;
        };
        if self.capabilities.hard_links && !self.seen.insert(ino) {
            return;
        }
        let xattrs = self.gathered.xattrs.get(&ino).cloned().unwrap_or_default();
        let given = Given::new(self.capabilities, &attributes(inode, xattrs));
        let mut step = AttributeStep::new(path);
        step.mode = given.permissions;
        // A new file has the owner that all new files have; a directory may inherit another group.
        let has_owner = is_new && !inode.is_dir() && self.capabilities.own == given.owner;
        if let (Some((owner, group)), false) = (given.owner, has_owner) {
            (step.owner, step.group) = (Some(owner), Some(group));
        }
        // What is made in a directory with a default ACL has got one that nobody has asked for.
        let inherits = self.capabilities.xattrs.iter().any(|it| it == acl::SPACE);
        let none_to_set =
            |xattrs: &crate::backend::Xattrs| is_new && xattrs.is_empty() && !inherits;
        step.xattrs = given
            .xattrs
            .filter(|xattrs| !none_to_set(xattrs))
            .map(|xattrs| xattrs.into_iter().collect());
        // The time of a regular file is a matter of its bytes: it has it from its slot, or from a step of its own.
        if inode.kind() != FileKind::Regular {
            step.modified = Some(inode.mtime);
        }
        self.steps.insert(step.path.clone(), step);
    }

    fn give_time(&mut self, dir: Ino) {
        let paths = self.gathered.delta.dirs.get(&dir);
        let Some(path) = paths.and_then(|paths| paths.new.clone()) else {
            return;
        };
        if let Some(inode) = self.gathered.inodes.get(&dir) {
            let step = self.steps.entry(path.clone());
            step.or_insert_with(|| AttributeStep::new(path)).modified = Some(inode.mtime);
        }
    }
}

/// The attributes of an inode, for [`Given::new`].
pub(super) fn attributes(inode: &Inode, xattrs: crate::backend::Xattrs) -> Attributes {
    Attributes {
        kind: inode.kind(),
        permissions: inode.mode & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        xattrs,
    }
}
