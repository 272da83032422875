//! Space on the SSD that is held for what must still be possible when it is full.
//!
//! Writers are refused before the last of the SSD is taken, see `fs`. But others write there too, and may take it to the last
//! byte. Then rename, unlink, truncate and a flush still need a little: a directory's block, a new empty object, the journal of a
//! batch, growth of the index beyond what its WAL holds for itself. For that the cache keeps a file of allocated blocks that
//! nobody reads. Whoever of us meets ENOSPC in such work gives up a part of it and tries again; in parts, because what is given up
//! anybody may take, and should the first part go to a log that grows without end, there are three more. It is allocated
//! again, part by part, once there is plenty of room.
//!
//! A file, not a mere margin in the count of free bytes, since a count holds nobody back but ourselves. Not one large hole in
//! the index either: what SQLite frees it does not give to the journal.
//!
//! A crash leaves the file at any length; the next start takes it as it is. Its bytes mean nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::base::ForeignText;
use crate::sys::file::{FallocateMode, allocate, space};

/// Name of the file in the cache.
const NAME: &str = "reserve";

/// Parts in which it is given up.
const PARTS: u64 = 4;

/// A start on an SSD with less free space than this gives up a part first: opening the index needs a few pages.
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
    /// The reserve of the cache directory `cache`, as an earlier daemon has left it. Nothing is taken before [`Reserve::want`].
    pub fn open(cache: &Path) -> Reserve {
        let path = cache.join(NAME);
        // A sparse file of an interrupted fallocate holds less than it is long.
        let held = std::fs::symlink_metadata(&path)
            .map_or(0, |meta| meta.size().min(meta.blocks().saturating_mul(512)));
        let sizes = Mutex::new(Sizes { wanted: held, held });
        Reserve { path, sizes }
    }

    /// Before anything else is opened in `cache`: frees what a start needs if the SSD is full to the last byte.
    pub fn make_room_to_start(cache: &Path) {
        let free = File::open(cache).and_then(space);
        if free.is_ok_and(|(_, free)| free < START) {
            Reserve::open(cache).give_up();
        }
    }

    /// Sets how many bytes are wanted in all.
    pub fn want(&self, bytes: u64) {
        self.sizes.lock().wanted = bytes;
    }

    /// Bytes that are held now.
    pub fn held(&self) -> u64 {
        self.sizes.lock().held
    }

    /// Frees one part for others; false if nothing is left to free.
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
            tracing::error!(path = %self.path.escaped(), %error, "the reserve cannot be given up");
            return false;
        }
        tracing::warn!(left, "the SSD is full; a part of the reserve is given up");
        sizes.held = left;
        true
    }

    /// Takes parts anew as long as more than `keep` bytes stay free beside them, of `free` that are.
    pub fn refill(&self, mut free: u64, keep: u64) {
        let mut sizes = self.sizes.lock();
        while sizes.held < sizes.wanted {
            let more = part(sizes.wanted).min(sizes.wanted - sizes.held);
            if free.saturating_sub(more) <= keep {
                return;
            }
            if let Err(error) = self.extend(sizes.held, more) {
                tracing::debug!(%error, "no reserve can be held");
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
            // What was allocated before it failed must not pass for held.
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
