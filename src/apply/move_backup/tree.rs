//! The contents of a directory that a batch moves: a list beside the backup's files.

use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::apply::move_backup::failed;
use crate::cache::private;
use crate::core::{RelPath, Timestamp};
use crate::error::Result;
use crate::format::steps::SlotNo;

const LIST: &str = "trees.json";

/// A directory that moves.
pub(crate) struct Tree {
    pub(crate) slot: SlotNo,
    /// Everything in it, at any depth, that moves along with it; directories before their contents.
    pub(crate) entries: Vec<TreeEntry>,
}

/// Something in a directory that moves.
pub(crate) struct TreeEntry {
    /// Its path in the directory.
    pub(crate) path: RelPath,
    pub(crate) is_dir: bool,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) modified: Timestamp,
    /// Whether the backup has its bytes.
    pub(crate) kept: bool,
}

/// Slot, then of each entry path, whether it is a directory, size, time, whether its bytes are
/// kept.
#[derive(Serialize, Deserialize)]
struct TreeFact(u32, Vec<(Vec<u8>, bool, u64, i64, bool)>);

/// Returns the name of the backup file of entry `number`.
pub(super) fn file_name(slot: SlotNo, number: usize) -> String {
    format!("{}-{number}", slot.file_name())
}

pub(super) fn write(dir: &Path, trees: &[Tree]) -> Result<()> {
    let facts: Vec<TreeFact> = trees
        .iter()
        .map(|tree| {
            let entries = tree.entries.iter().map(|entry| {
                let path = entry.path.as_bytes().to_vec();
                (path, entry.is_dir, entry.size, entry.modified.0, entry.kept)
            });
            TreeFact(tree.slot.0, entries.collect())
        })
        .collect();
    let path = dir.join(LIST);
    let written = serde_json::to_vec(&facts)
        .map_err(io::Error::from)
        .and_then(|json| {
            let mut file = private::make_new(&path)?;
            file.write_all(&json)?;
            file.sync_all()
        });
    written.map_err(|error| failed("write", &path, error))
}

pub(super) fn read(dir: &Path) -> Result<Vec<Tree>> {
    let path = dir.join(LIST);
    let json = match private::read(&path) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read", &path, error)),
    };
    let facts: Vec<TreeFact> =
        serde_json::from_slice(&json).map_err(|error| failed("read", &path, error.into()))?;
    let trees = facts.into_iter().map(|TreeFact(slot, entries)| {
        let entries = entries.into_iter().map(|(path, is_dir, size, time, kept)| {
            Some(TreeEntry {
                path: RelPath::parse(&path).ok()?,
                is_dir,
                size,
                modified: Timestamp(time),
                kept,
            })
        });
        Some(Tree {
            slot: SlotNo(slot),
            entries: entries.collect::<Option<_>>()?,
        })
    });
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    trees
        .collect::<Option<_>>()
        .ok_or_else(|| failed("read", &path, damaged()))
}
