//! The drive against the trees that it may be, and the mount against what was done in it.

use std::collections::BTreeMap;

use ferryfs::core::RelPath;
use ferryfs::drive::memory::{MemNode, differences};

use super::super::tree::{Seen, Tree};
use super::Finding;

/// Whether every file of `drive` is a version of one of `cuts`, and the whole of it one of them.
/// With `parts` it may be between two of them, as while a batch is applied, or is to be finished.
pub fn check_drive(drive: &Tree, cuts: &[(&str, &Tree)], parts: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, node) in drive {
        let known = cuts
            .iter()
            .any(|(_, cut)| cut.values().any(|at| same_bytes(at, node)));
        if !known {
            findings.push(Finding::Torn {
                path: path.clone(),
                now: brief(node),
            });
        }
    }
    if !parts && cuts.iter().all(|(_, cut)| *cut != drive) {
        let differs = cuts
            .iter()
            .map(|(name, cut)| (name.to_string(), differences(drive, cut)));
        findings.push(Finding::NeitherCut {
            differs: differs.collect(),
        });
    }
    findings
}

/// What of the mount is not as it was.
pub fn check_mount(
    now: &BTreeMap<RelPath, Seen>,
    wanted: &BTreeMap<RelPath, Seen>,
) -> Vec<Finding> {
    let paths = now
        .keys()
        .chain(wanted.keys().filter(|path| !now.contains_key(*path)));
    let differing = paths.filter(|path| now.get(*path) != wanted.get(*path));
    differing
        .map(|path| Finding::Lost {
            path: path.clone(),
            what: format!("is {:?}, was {:?}", now.get(path), wanted.get(path)),
        })
        .collect()
}

fn same_bytes(one: &MemNode, other: &MemNode) -> bool {
    match (one, other) {
        (MemNode::File { bytes: a, .. }, MemNode::File { bytes: b, .. }) => a == b,
        (MemNode::Directory, MemNode::Directory) => true,
        _ => one == other,
    }
}

fn brief(node: &MemNode) -> String {
    match node {
        MemNode::File { bytes, .. } => {
            format!(
                "{} bytes \"{}\"",
                bytes.len(),
                bytes[..bytes.len().min(24)].escape_ascii()
            )
        }
        other => format!("{other:?}"),
    }
}
