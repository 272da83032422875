//! Comparison of trees, for the message of a failed test.

use std::collections::BTreeMap;

use crate::core::RelPath;
use crate::drive::memory::MemNode;

/// Returns the differences between two trees, one line for each path; empty if they are equal.
pub fn differences(
    left: &BTreeMap<RelPath, MemNode>,
    right: &BTreeMap<RelPath, MemNode>,
) -> Vec<String> {
    let one_side = |a: &BTreeMap<RelPath, MemNode>, b: &BTreeMap<RelPath, MemNode>, side: &str| {
        let only = a.iter().filter(|(path, _)| !b.contains_key(*path));
        only.map(|(path, node)| format!("{path}: only {side}: {}", brief(node)))
            .collect::<Vec<_>>()
    };
    let mut lines = one_side(left, right, "left");
    lines.extend(one_side(right, left, "right"));
    for (path, node) in left {
        match right.get(path) {
            Some(other) if other != node => {
                lines.push(format!("{path}: {} / {}", brief(node), brief(other)));
            }
            _ => {}
        }
    }
    lines
}

fn brief(node: &MemNode) -> String {
    match node {
        MemNode::Directory => "directory".to_string(),
        MemNode::Symlink { target } => format!("link to {}", target.escape_ascii()),
        MemNode::Special { kind, rdev } => format!("{kind:?} {rdev}"),
        MemNode::File { bytes, modified } => {
            let head = &bytes[..bytes.len().min(24)];
            let (length, head) = (bytes.len(), head.escape_ascii());
            format!("file of {length} bytes at {} \"{head}\"", modified.0)
        }
    }
}
