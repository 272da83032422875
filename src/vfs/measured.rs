//! Size, allocation and time of an object's file. While a file is being written, its object has the
//! current values, and its row follows.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use crate::core::Timestamp;
use crate::index::Inode;
use crate::vfs::Result;

/// Size, allocation and time of an object's file.
pub(crate) struct Measured {
    size: u64,
    blocks: u64,
    mtime: Timestamp,
}

/// Reads the metadata of an object's file.
pub(crate) fn measure(file: &File) -> Result<Measured> {
    let meta = file.metadata()?;
    let mtime = Timestamp::from_parts(meta.mtime(), meta.mtime_nsec() as u32);
    Ok(Measured {
        size: meta.size(),
        blocks: meta.blocks(),
        mtime,
    })
}

impl Measured {
    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the allocation in units of 512 bytes.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Updates the row of an inode that is being written.
    pub(crate) fn apply(&self, inode: &mut Inode) {
        inode.size = self.size;
        inode.blocks = self.blocks;
        if self.mtime != inode.mtime {
            inode.mtime = self.mtime;
            inode.ctime = inode.ctime.max(self.mtime);
        }
    }
}
