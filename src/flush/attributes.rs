//! Which attributes a batch sets on the files that it places, on a backend that stores any.
//!
//! A new file gets all of its attributes, and so does an inode that is marked because they have
//! changed. A directory in which a name is added or removed gets its time again, because the
//! backend has just updated it: in the mount the time is that of the cut.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::core::{Capabilities, FileKind, Ino, RelPath, acl};
use crate::flush::diff::Gathered;
use crate::format::steps::AttributeStep;
use crate::index::Inode;
use crate::plan::planner::{NameKey, NewContent, Placed, Plan};
use crate::plan::representable;
use crate::plan::representable::{Attributes, Given};

/// Returns the steps for everything that `plan` places and for marked inodes; the contents of a
/// directory come before the directory. `are_one` says that all names of a file on the backend are
/// hard links to one file.
pub(super) fn steps(
    plan: &Plan,
    gathered: &Gathered,
    capabilities: &Capabilities,
    are_one: bool,
) -> Vec<AttributeStep> {
    if !representable::has_attributes(capabilities) {
        return Vec::new();
    }
    let mut chosen = Chosen {
        gathered,
        capabilities,
        are_one,
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

/// Returns the directories in which a name is added, removed, or gets another entry. A name without
/// an outcome keeps its entry: the directory of a file that is left behind is not touched.
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
    are_one: bool,
    steps: BTreeMap<RelPath, AttributeStep>,
    /// If all names are hard links of one file, one of them is enough.
    seen: HashSet<Ino>,
}

impl Chosen<'_> {
    fn give_all(&mut self, ino: Ino, path: RelPath, is_new: bool) {
        let Some(inode) = self.gathered.inodes.get(&ino) else {
            return;
        };
        if self.are_one && !self.seen.insert(ino) {
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
        // In a directory with a default ACL a new file has inherited an ACL that it must not have.
        let inherits = self.capabilities.xattrs.iter().any(|it| it == acl::SPACE);
        let none_to_set = |xattrs: &crate::core::Xattrs| is_new && xattrs.is_empty() && !inherits;
        step.xattrs = given
            .xattrs
            .filter(|xattrs| !none_to_set(xattrs))
            .map(|xattrs| xattrs.into_iter().collect());
        // The time of a regular file belongs to its bytes: it is set on its slot, or by a step of
        // its own.
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

/// Returns the attributes of an inode, for [`Given::new`].
pub(super) fn attributes(inode: &Inode, xattrs: crate::core::Xattrs) -> Attributes {
    Attributes {
        kind: inode.kind(),
        permissions: inode.mode & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        xattrs,
    }
}
