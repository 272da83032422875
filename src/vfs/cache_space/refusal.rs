//! The report of a file that does not fit on the SSD: files that are being written fill it, so no
//! flush can help.

use std::time::{Duration, Instant};

use crate::core::{Ino, human_bytes};
use crate::index::Flags;
use crate::vfs::cache_space::CacheSpace;

/// How long a file that did not fit is reported after it has stopped waiting.
const REFUSAL_REPORTED: Duration = Duration::from_secs(600);

/// A file whose writes were refused, because files being written fill the SSD.
#[derive(Debug)]
pub(super) struct Refused {
    ino: Ino,
    size: u64,
    at: Instant,
}

impl CacheSpace {
    /// Records which file fills the SSD, if no flush can help.
    pub(super) fn note_refusal(&self) {
        if self.flush_may_help() {
            return;
        }
        let largest = self.index.lock().dirty_in_writing();
        let Ok((_, Some(largest))) = largest else {
            return;
        };
        // The row may lag behind by a moment.
        let size = self
            .open_files
            .with_current_size(largest.clone())
            .map_or(largest.size, |inode| inode.size);
        let mut refused = self.pressure.refused.lock();
        if refused
            .as_ref()
            .is_none_or(|known| known.ino != largest.ino)
        {
            tracing::warn!(
                ino = largest.ino.0,
                size,
                "files being written fill the SSD; no flush can help"
            );
        }
        *refused = Some(Refused {
            ino: largest.ino,
            size,
            at: Instant::now(),
        });
    }

    /// Returns the report of a file that did not fit on the SSD, while it waits and for a while
    /// after.
    pub(in crate::vfs) fn refusal(&self) -> Option<String> {
        let mut noted = self.pressure.refused.lock();
        let refused = noted.as_ref()?;
        let mut state = self.index.lock();
        let inode = state.inode(refused.ino).ok()?;
        let reported = inode.filter(|inode| {
            let waits =
                inode.flags.has(Flags::DATA_DIRTY) || refused.at.elapsed() < REFUSAL_REPORTED;
            inode.nlink > 0 && waits
        });
        let Some(inode) = reported else {
            *noted = None;
            return None;
        };
        let path = state.mount_path(inode.ino).ok()??;
        let open = if state.is_writing(inode.ino) {
            "still open"
        } else {
            "closed since"
        };
        Some(format!(
            "{path} ({} so far, {open}) does not fit on the SSD: it was refused more bytes, as the SSD is full and a file can be \
             carried to the drive only once it is closed. What is there of it is cut short: delete it; then copy it to the drive \
             itself after `ferryfs eject`, or use a cache on a larger disk (--cache)",
            human_bytes(refused.size)
        ))
    }
}
