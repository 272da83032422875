//! Before-images: how a batch reads a file as it was at the cut while programs go on writing it.
//!
//! The first time a block of such an object is about to change, its old bytes are copied to a side
//! file. The batch reads the object, and takes each block that was copied from the side file. So a
//! writer waits for one block, however large the file is, and the SSD needs space for what changes
//! during the batch only. A clone that shares blocks (FICLONE) is not used where the SSD's file
//! system can make one: it waits until all dirty pages of the file are on the SSD.
//!
//! State: for each such object the side file, and which blocks are in it. All of it is in memory or
//! in files without a name: a crash leaves nothing behind. What a batch then cannot read any more
//! was staged on the drive and synced before the batch was committed; a batch that was not
//! committed is given up.
//!
//! Invariant: a block is recorded as copied before its bytes in the object change. A reader reads
//! the object first and looks at the record afterwards, so it never returns newer bytes. If a block
//! cannot be copied, the image is *torn*: the writer goes on, and whoever reads the object as it
//! was is told ([`BeforeImages::is_torn`]).
//!
//! Locks: the list of images, then one image. Neither is held while another lock is taken.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::core::ObjectId;

/// Bytes of a block. Small enough that a writer waits for microseconds, large enough that few
/// blocks have to be recorded.
const BLOCK: u64 = 64 << 10;

/// The object as it was.
#[derive(Debug)]
struct Image {
    /// Its size at the cut, in bytes.
    size: u64,
    /// The old bytes, at the same offsets.
    side: File,
    copied: Mutex<BTreeSet<u64>>,
    torn: AtomicBool,
}

/// All images of the batch under way.
#[derive(Debug, Default)]
pub(super) struct BeforeImages {
    /// Whether there are any, so that a write without one costs nothing.
    any: AtomicBool,
    images: RwLock<HashMap<ObjectId, Arc<Image>>>,
}

impl BeforeImages {
    /// Keeps `object`, which has `size` bytes, as it is now. The caller ensures that nobody writes
    /// it meanwhile. If there is an image already, that one stays.
    pub(super) fn begin(&self, object: ObjectId, size: u64, side: File) {
        let mut images = self.images.write();
        images.entry(object).or_insert_with(|| {
            Arc::new(Image {
                size,
                side,
                copied: Mutex::default(),
                torn: AtomicBool::new(false),
            })
        });
        self.any.store(true, Ordering::Release);
    }

    /// Drops all images, at the end of a batch.
    pub(super) fn end(&self) {
        let mut images = self.images.write();
        images.clear();
        self.any.store(false, Ordering::Release);
    }

    fn find(&self, object: ObjectId) -> Option<Arc<Image>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.images.read().get(&object).cloned()
    }

    /// Copies the old bytes of `range` before they change, if that is `allowed`. Never fails: the
    /// writer matters more than the batch.
    pub(super) fn keep(
        &self,
        object: ObjectId,
        file: &File,
        range: Range<u64>,
        allowed: io::Result<()>,
    ) {
        let Some(image) = self.find(object) else {
            return;
        };
        if image.torn.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = allowed.and_then(|()| image.keep(file, range)) {
            tracing::warn!(%object, %error, "cannot keep the bytes that a batch reads");
            image.torn.store(true, Ordering::Release);
        }
    }

    /// Reads `object`, as it was if there is an image of it.
    pub(super) fn read(
        &self,
        object: ObjectId,
        file: &File,
        buffer: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        let got = file.read_at(buffer, offset)?;
        match self.find(object) {
            Some(image) => image.overlay(buffer, got, offset),
            None => Ok(got),
        }
    }

    /// Whether `object` can no longer be read as it was.
    pub(super) fn is_torn(&self, object: ObjectId) -> bool {
        self.find(object)
            .is_some_and(|image| image.torn.load(Ordering::Acquire))
    }
}

impl Image {
    fn keep(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        let end = range.end.min(self.size);
        if range.start >= end {
            return Ok(());
        }
        let mut copied = self.copied.lock();
        let mut buffer = Vec::new();
        for block in range.start / BLOCK..end.div_ceil(BLOCK) {
            if copied.contains(&block) {
                continue;
            }
            let at = block * BLOCK;
            let length = BLOCK.min(self.size - at);
            buffer.resize(usize::try_from(length).unwrap_or(0), 0);
            file.read_exact_at(&mut buffer, at)?;
            self.side.write_all_at(&buffer, at)?;
            copied.insert(block);
        }
        Ok(())
    }

    /// Replaces what has changed in `buffer`, of which `got` bytes were read at `offset`. Returns
    /// how many bytes of it belong to the image.
    fn overlay(&self, buffer: &mut [u8], got: usize, offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let buffer = &mut buffer[..length];
        if got < length {
            buffer[got..].fill(0);
        }
        let end = offset + length as u64;
        let copied: Vec<u64> = {
            let copied = self.copied.lock();
            let blocks = offset / BLOCK..end.div_ceil(BLOCK);
            copied.range(blocks).copied().collect()
        };
        for block in copied {
            let from = (block * BLOCK).max(offset);
            let to = ((block + 1) * BLOCK).min(end);
            let (from_here, to_here) = ((from - offset) as usize, (to - offset) as usize);
            self.side
                .read_exact_at(&mut buffer[from_here..to_here], from)?;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: ObjectId = ObjectId(7);

    fn world(bytes: &[u8]) -> (BeforeImages, File) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        let images = BeforeImages::default();
        let side = tempfile::tempfile().unwrap();
        images.begin(OBJECT, bytes.len() as u64, side);
        (images, file)
    }

    fn read_all(images: &BeforeImages, file: &File, piece: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = vec![0xee; piece];
        loop {
            let got = images
                .read(OBJECT, file, &mut buffer, all.len() as u64)
                .unwrap();
            if got == 0 {
                return all;
            }
            all.extend_from_slice(&buffer[..got]);
        }
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n / 7 % 251) as u8).collect()
    }

    #[test]
    fn any_writes_truncations_and_extensions_leave_the_image_as_it_was() {
        for seed in 0..200_u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = |below: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % below
            };
            let before = pattern(next(300_000) as usize);
            let (images, file) = world(&before);
            for _ in 0..next(20) {
                let size = file.metadata().unwrap().len();
                if next(4) == 0 {
                    let to = next(400_000);
                    images.keep(OBJECT, &file, to.min(size)..size, Ok(()));
                    file.set_len(to).unwrap();
                    continue;
                }
                let (at, length) = (next(400_000), next(100_000));
                images.keep(OBJECT, &file, at..at + length, Ok(()));
                file.write_all_at(&vec![next(256) as u8; length as usize], at)
                    .unwrap();
            }
            let piece = 1 + next(200_000) as usize;
            assert!(read_all(&images, &file, piece) == before, "seed {seed}");
            assert!(!images.is_torn(OBJECT));
        }
    }

    #[test]
    fn a_block_that_cannot_be_kept_is_told_and_the_writer_goes_on() {
        let (images, file) = world(&pattern(1000));
        // Shortened behind our back, as by a failing disk: the old bytes cannot be read.
        file.set_len(10).unwrap();
        images.keep(OBJECT, &file, 0..5, Ok(()));
        assert!(images.is_torn(OBJECT));
        images.end();
        assert!(!images.is_torn(OBJECT));
        assert_eq!(read_all(&images, &file, 64).len(), 10);
    }
}
