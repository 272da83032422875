//! What a batch knew, when it was committed, of the files that it moves, replaces and removes: a redo can then tell a file of the
//! tree before from one that somebody else has put there since, and a whole one from one that a yank has cut short.

use std::collections::BTreeMap;

use crate::backend::Metadata;
use crate::base::{ContentHash, FileKind, RelPath, Timestamp};
use crate::rules::describe::is_time_of;
use crate::rules::steps::{FileContent, SlotNo};

/// Times nearer than this, in nanoseconds, are taken as equal whatever the backend's granularity: FAT keeps two seconds.
pub const SLACK_NS: u64 = 2_000_000_000;

/// What a file on the backend was, as far as the index knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Believed {
    /// Length in bytes.
    pub size: u64,
    /// Time of last change.
    pub modified: Timestamp,
    /// Hash of its bytes; `None` if ferryfs has never read all of them.
    pub hash: Option<ContentHash>,
}

impl Believed {
    /// Of a file of which nothing is known.
    pub const ANYTHING: Believed = Believed {
        size: 0,
        modified: Timestamp(0),
        hash: None,
    };

    /// Whether it may be of this kind: a link or a special file has no bytes, and so no hash of them.
    pub fn may_have_kind(&self, kind: FileKind) -> bool {
        match kind {
            FileKind::Regular => true,
            FileKind::Directory => false,
            _ => self.hash.is_none(),
        }
    }

    /// Whether a file with these attributes may be it.
    pub fn agrees(&self, meta: &Metadata) -> bool {
        self.may_have_kind(meta.kind)
            && meta.size == self.size
            && is_time_of(self.modified, meta.modified, SLACK_NS)
    }

    /// The same, also for one that a check of the file system has cut short: it leaves the time as it was.
    pub fn may_be(&self, meta: &Metadata) -> bool {
        self.may_have_kind(meta.kind)
            && meta.size <= self.size
            && is_time_of(self.modified, meta.modified, SLACK_NS)
    }
}

impl From<&FileContent> for Believed {
    fn from(content: &FileContent) -> Believed {
        Believed {
            size: content.size,
            modified: content.modified,
            hash: Some(content.hash),
        }
    }
}

/// What a batch knew of files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Those that it moves, by the slot that they go through.
    pub moved: BTreeMap<SlotNo, Believed>,
    /// Those that it replaces, by the slot of what replaces them.
    pub replaced: BTreeMap<SlotNo, Believed>,
    /// Those that it removes, by path.
    pub removed: BTreeMap<RelPath, Believed>,
}

impl Known {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.moved.is_empty() && self.replaced.is_empty() && self.removed.is_empty()
    }
}
