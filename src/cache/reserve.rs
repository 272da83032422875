//! Reserved space on the SSD, for operations that must still work when the SSD is full.
//!
//! The mount refuses writers before they use the last free space of the SSD. But other programs
//! write there too and may use the last byte. Then rename, unlink, truncate and a flush still need
//! a little: a directory block, a new empty object, the journal of a batch, growth of the index
//! beyond the space that its WAL has. For these the cache keeps a file of allocated blocks that is
//! never read. An operation that fails with ENOSPC releases a part of the file and tries again. It
//! releases only a part, because any program may use the space: if a log that grows without bound
//! takes the first part, three more are left. The file is allocated again, part by part, when the
//! SSD has enough free space.
//!
//! A mere margin in the count of free bytes would bind ferryfs only, not other programs. One large
//! hole in the index would not do either: SQLite does not give the space that it frees to the
//! journal.
//!
//! Invariant: `held` is at most the allocated size of the file. A crash leaves the file at any
//! length; the next start accepts it as it is. Its bytes have no meaning. Lock order: `sizes` is
//! the only lock, held during the file calls.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::core::ForeignText;
use crate::sys::file::{FallocateMode, allocate, space};

/// Name of the file in the cache.
const NAME: &str = "reserve";

/// The number of parts.
const PARTS: u64 = 4;

/// A start on an SSD with less free space than this releases a part first: opening the index needs
/// a few pages.
const START: u64 = 1 << 20;

/// The reserve file of one cache.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    sizes: Mutex<Sizes>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    wanted: u64,
    held: u64,
}

impl Reserve {
    /// Opens the reserve of the cache directory `cache`, as an earlier daemon left it. Allocates
    /// nothing before [`Reserve::want`].
    pub fn open(cache: &Path) -> Reserve {
        let path = cache.join(NAME);
        // After an interrupted fallocate a sparse file has fewer blocks than its length says.
        let held = std::fs::symlink_metadata(&path)
            .map_or(0, |meta| meta.size().min(meta.blocks().saturating_mul(512)));
        let sizes = Mutex::new(Sizes { wanted: held, held });
        Reserve { path, sizes }
    }

    /// Releases a part if the SSD is full to the last byte. A start calls it before it opens
    /// anything else in `cache`.
    pub fn make_room_to_start(cache: &Path) {
        let free = File::open(cache).and_then(space);
        if free.is_ok_and(|space| space.available < START) {
            Reserve::open(cache).give_up();
        }
    }

    /// Sets the wanted size in bytes. Does not allocate.
    pub fn want(&self, bytes: u64) {
        self.sizes.lock().wanted = bytes;
    }

    /// Returns the reserved bytes.
    pub fn held(&self) -> u64 {
        self.sizes.lock().held
    }

    /// Releases one part for other files. Returns `false` if none is left.
    pub fn give_up(&self) -> bool {
        let mut sizes = self.sizes.lock();
        if sizes.held == 0 {
            return false;
        }
        let left = sizes
            .held
            .saturating_sub(part(sizes.wanted.max(sizes.held)));
        let cut = super::private::own()
            .write(true)
            .open(&self.path)
            .and_then(|file| file.set_len(left));
        if let Err(error) = &cut {
            tracing::error!(path = %self.path.escaped(), %error, "cannot release the reserved space");
            return false;
        }
        tracing::warn!(
            left,
            "the SSD is full; released a part of the reserved space"
        );
        sizes.held = left;
        true
    }

    /// Allocates missing parts while more than `keep` bytes of the `free` bytes stay free.
    pub fn refill(&self, mut free: u64, keep: u64) {
        let mut sizes = self.sizes.lock();
        while sizes.held < sizes.wanted {
            let more = part(sizes.wanted).min(sizes.wanted - sizes.held);
            if free.saturating_sub(more) <= keep {
                return;
            }
            if let Err(error) = self.extend(sizes.held, more) {
                tracing::debug!(%error, "cannot allocate reserved space");
                return;
            }
            sizes.held += more;
            free -= more;
        }
    }

    fn extend(&self, held: u64, more: u64) -> io::Result<()> {
        let file = super::private::own()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)?;
        allocate(&file, FallocateMode::empty(), held, more).inspect_err(|_| {
            // Blocks that were allocated before the failure must not count as held.
            let _ = file.set_len(held);
        })
    }
}

fn part(of: u64) -> u64 {
    of.div_ceil(PARTS).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_up_in_parts_and_taken_again_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(dir.path());
        reserve.want(1 << 20);
        reserve.refill(1 << 20, 1 << 20);
        assert_eq!(reserve.held(), 0, "no room to spare");
        reserve.refill(1 << 30, 1 << 20);
        assert_eq!(reserve.held(), 1 << 20);
        let blocks = |dir: &Path| std::fs::metadata(dir.join(NAME)).unwrap().blocks() * 512;
        assert!(blocks(dir.path()) >= 1 << 20, "it is allocated");
        let mut given = 0;
        while reserve.give_up() {
            given += 1;
        }
        assert_eq!((given, reserve.held(), blocks(dir.path())), (4, 0, 0));
        reserve.refill(1 << 30, 1 << 20);
        assert_eq!(Reserve::open(dir.path()).held(), 1 << 20, "found again");
    }
}
