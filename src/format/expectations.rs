//! The files that a batch moves, replaces and removes, as the index knew them at the commit. With
//! them a redo distinguishes an old file from one that another program has put there since, and a
//! complete file from a truncated one.

use std::collections::BTreeMap;

use crate::core::{ContentHash, FileKind, Metadata, RelPath, SLACK_NS, Timestamp, is_time_of};
use crate::format::steps::{FileContent, SlotNo};

/// A file on the backend, as far as the index knew it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedFile {
    /// Length in bytes.
    pub size: u64,
    /// Modification time.
    pub modified: Timestamp,
    /// Hash of its bytes; `None` if ferryfs has never read all of them.
    pub hash: Option<ContentHash>,
}

impl ExpectedFile {
    /// For a file without an expectation.
    pub const ANYTHING: ExpectedFile = ExpectedFile {
        size: 0,
        modified: Timestamp(0),
        hash: None,
    };

    /// Returns whether the file may be of this kind. A link or special file has no bytes, and so no
    /// hash.
    pub fn may_have_kind(&self, kind: FileKind) -> bool {
        match kind {
            FileKind::Regular => true,
            FileKind::Directory => false,
            _ => self.hash.is_none(),
        }
    }

    /// Returns whether a file with this metadata may be the expected one.
    pub fn agrees(&self, meta: &Metadata) -> bool {
        self.may_have_kind(meta.kind)
            && meta.size == self.size
            && is_time_of(self.modified, meta.modified, SLACK_NS)
    }

    /// As [`ExpectedFile::agrees`], but also accepts a file truncated by a file-system check, which
    /// does not change the time.
    pub fn may_be(&self, meta: &Metadata) -> bool {
        self.may_have_kind(meta.kind)
            && meta.size <= self.size
            && is_time_of(self.modified, meta.modified, SLACK_NS)
    }
}

impl From<&FileContent> for ExpectedFile {
    fn from(content: &FileContent) -> ExpectedFile {
        ExpectedFile {
            size: content.size,
            modified: content.modified,
            hash: Some(content.hash),
        }
    }
}

/// The expected files of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectations {
    /// Files that it moves, by slot.
    pub moved: BTreeMap<SlotNo, ExpectedFile>,
    /// Files that it replaces, by the slot of the new file.
    pub replaced: BTreeMap<SlotNo, ExpectedFile>,
    /// Files that it removes, by path.
    pub removed: BTreeMap<RelPath, ExpectedFile>,
}

impl Expectations {
    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.moved.is_empty() && self.replaced.is_empty() && self.removed.is_empty()
    }
}
