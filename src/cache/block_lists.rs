//! The hashes of the blocks of large files, as the drive has them: what a flush compares a changed
//! file with, to write only the blocks that differ.
//!
//! A list is found by the hash of the content that it describes. So it can never be applied to
//! another version: the index knows the hash of what the drive has. A list is a hint. Without one,
//! or with a damaged one, the file is written whole. So lists are not synced, and the oldest go
//! when all of them take more than [`MOST`].
//!
//! A file of the directory, named by the first 32 hexadecimal digits of the content's hash: magic
//! (8 bytes), bytes of a block (u32), zeros (4 bytes), bytes of the content (u64), hash of the
//! content, hash of each block, BLAKE3 of all before; little endian. It is written under another
//! name and renamed. A crash leaves the old file, the new one, or one whose checksum is wrong.
//!
//! Blocks have 64 KiB to 1 MiB, so that a file of up to 8 GiB has at most 8192: a change of a few
//! bytes reads about 1/8192 of the file from the drive, and a list takes about 1/32768 of it on the
//! SSD. Smaller blocks would make lists of large media expensive, larger ones the reading for small
//! changes of databases.

use std::fs::{self, FileTimes};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cache::private;
use crate::core::ContentHash;

/// The most bytes that all lists take.
const MOST: u64 = 256 << 20;

/// The longest list that is read or written, in bytes: of a file of 1 TiB.
const LONGEST: u64 = 64 << 20;

/// The most blocks of a list. The hashes of more are not kept, also not in memory.
pub const MOST_BLOCKS: u64 = (LONGEST - (HEADER + HASH) as u64) / HASH as u64;

/// The most blocks of a file, unless even the largest blocks are more.
const BLOCKS: u64 = 8192;

/// The smallest and the largest block.
const SMALLEST: u32 = 64 << 10;
const LARGEST: u32 = 1 << 20;

const MAGIC: [u8; 8] = *b"ferryblk";
const HEADER: usize = 56;
const HASH: usize = 32;

/// Returns the bytes of a block of a file of `size` bytes.
pub fn block_size(size: u64) -> u32 {
    let mut block = SMALLEST;
    while block < LARGEST && size.div_ceil(u64::from(block)) > BLOCKS {
        block *= 2;
    }
    block
}

/// The hashes of the blocks of one content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockList {
    /// Bytes of each block except the last.
    pub block: u32,
    /// Bytes of the content.
    pub size: u64,
    /// Hash of the content.
    pub content: ContentHash,
    /// The hashes of its blocks, in order.
    pub hashes: Vec<ContentHash>,
}

impl BlockList {
    /// Encodes the list.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + (self.hashes.len() + 1) * HASH);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.block.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.content.0);
        for hash in &self.hashes {
            out.extend_from_slice(&hash.0);
        }
        let checksum = blake3::hash(&out);
        out.extend_from_slice(checksum.as_bytes());
        out
    }

    /// Decodes a list; `None` if it is damaged.
    pub fn decode(bytes: &[u8]) -> Option<BlockList> {
        let (body, checksum) = bytes.split_last_chunk::<HASH>()?;
        if blake3::hash(body) != *checksum {
            return None;
        }
        let (header, hashes) = body.split_first_chunk::<HEADER>()?;
        let (hashes, rest) = hashes.as_chunks::<HASH>();
        let list = BlockList {
            block: u32::from_le_bytes(header[8..12].try_into().ok()?),
            size: u64::from_le_bytes(header[16..24].try_into().ok()?),
            content: ContentHash(header[24..].try_into().ok()?),
            hashes: hashes.iter().copied().map(ContentHash).collect(),
        };
        let is_whole = header.starts_with(&MAGIC)
            && header[12..16] == [0; 4]
            && rest.is_empty()
            && list.block > 0
            && list.size.div_ceil(u64::from(list.block)) == list.hashes.len() as u64;
        is_whole.then_some(list)
    }
}

/// Cuts bytes that come in pieces of any length into blocks.
pub struct Cutter {
    block: usize,
    /// The beginning of the next block.
    part: Vec<u8>,
}

impl Cutter {
    /// Returns a cutter for blocks of `block` bytes.
    pub fn new(block: u32) -> Cutter {
        Cutter {
            block: usize::try_from(block).unwrap_or(1).max(1),
            part: Vec::new(),
        }
    }

    /// Passes each block that `bytes` complete to `each`.
    ///
    /// # Errors
    /// The first error of `each`.
    pub fn feed<E>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.part.is_empty() {
            let missing = (self.block - self.part.len()).min(bytes.len());
            self.part.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.part.len() < self.block {
                return Ok(());
            }
            each(&self.part)?;
            self.part.clear();
        }
        let mut blocks = bytes.chunks_exact(self.block);
        for block in blocks.by_ref() {
            each(block)?;
        }
        self.part.extend_from_slice(blocks.remainder());
        Ok(())
    }

    /// Passes the last block to `each`, if it is shorter than the others.
    ///
    /// # Errors
    /// The error of `each`.
    pub fn end<E>(self, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match self.part.is_empty() {
            true => Ok(()),
            false => each(&self.part),
        }
    }
}

/// The directory of the lists.
#[derive(Clone, Debug)]
pub struct BlockLists {
    dir: PathBuf,
    most: u64,
}

impl BlockLists {
    /// Returns the lists in the directory `dir`, which need not exist.
    pub fn new(dir: PathBuf) -> BlockLists {
        BlockLists { dir, most: MOST }
    }

    /// Returns whether there may be a list of this content.
    pub fn has(&self, content: ContentHash) -> bool {
        self.path(content).symlink_metadata().is_ok()
    }

    /// Returns the list of a content of `size` bytes; `None` if there is none, or if it is damaged.
    pub fn read(&self, content: ContentHash, size: u64) -> Option<BlockList> {
        let path = self.path(content);
        if path.symlink_metadata().ok()?.len() > LONGEST {
            return None;
        }
        let list = BlockList::decode(&private::read(&path).ok()?)?;
        if list.content != content || list.size != size {
            return None;
        }
        // What is used stays longest. A failure makes it go earlier.
        let now = FileTimes::new().set_modified(SystemTime::now());
        let _ = private::own()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_times(now));
        Some(list)
    }

    /// Writes a list. Without it the next version of the file is written whole, so a failure is no
    /// error.
    pub fn write(&self, list: &BlockList) {
        let bytes = list.encode();
        if bytes.len() as u64 > LONGEST {
            return;
        }
        if let Err(error) = self.replace(&self.path(list.content), &bytes) {
            tracing::debug!(%error, "the hashes of a file's blocks are not kept");
        }
        if let Err(error) = self.drop_oldest() {
            tracing::debug!(%error, "old hashes of blocks are not removed");
        }
    }

    /// Removes the list of a content, so that the file is written whole the next time.
    pub fn forget(&self, content: ContentHash) {
        match fs::remove_file(self.path(content)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the hashes of a file's blocks are not removed");
            }
            _ => {}
        }
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let new = path.with_extension("new");
        private::make_new(&new)?.write_all(bytes)?;
        fs::rename(&new, path)
    }

    fn drop_oldest(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        files.sort();
        for (_, bytes, path) in files {
            if total <= self.most {
                break;
            }
            fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(())
    }

    fn path(&self, content: ContentHash) -> PathBuf {
        let digits: String = content.0[..16].iter().map(|b| format!("{b:02x}")).collect();
        self.dir.join(digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(bytes: &[u8], block: u32) -> BlockList {
        let hash = |bytes: &[u8]| ContentHash(*blake3::hash(bytes).as_bytes());
        let mut hashes = Vec::new();
        let mut each = |block: &[u8]| -> Result<(), ()> {
            hashes.push(hash(block));
            Ok(())
        };
        let mut cutter = Cutter::new(block);
        for piece in bytes.chunks(7) {
            cutter.feed(piece, &mut each).unwrap();
        }
        cutter.end(&mut each).unwrap();
        BlockList {
            block,
            size: bytes.len() as u64,
            content: hash(bytes),
            hashes,
        }
    }

    #[test]
    fn a_list_is_read_for_the_content_that_it_describes_and_for_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let lists = BlockLists::new(dir.path().join("blocks"));
        let one = list(b"some bytes, and some more", 10);
        assert_eq!(one.hashes.len(), 3);
        assert!(!lists.has(one.content));
        assert_eq!(lists.read(one.content, one.size), None);
        lists.write(&one);
        assert!(lists.has(one.content));
        assert_eq!(lists.read(one.content, one.size), Some(one.clone()));
        assert_eq!(lists.read(one.content, one.size + 1), None);
        // As if another content had the same digits.
        let other = list(b"other bytes", 10);
        fs::rename(lists.path(one.content), lists.path(other.content)).unwrap();
        assert_eq!(lists.read(other.content, one.size), None);
        lists.forget(other.content);
        assert!(!lists.has(other.content));
        lists.forget(other.content);
    }

    #[test]
    fn a_damaged_list_counts_as_none() {
        let whole = list(&[9; 100], 30).encode();
        assert!(BlockList::decode(&whole).is_some());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert_eq!(BlockList::decode(&bytes), None, "byte {at}");
            assert_eq!(BlockList::decode(&whole[..at]), None, "cut off at {at}");
        }
        let mut too_few = list(&[9; 100], 30);
        too_few.hashes.pop();
        assert_eq!(BlockList::decode(&too_few.encode()), None);
        too_few.block = 0;
        assert_eq!(BlockList::decode(&too_few.encode()), None);
    }

    #[test]
    fn the_oldest_lists_go_when_they_take_too_much() {
        let dir = tempfile::tempdir().unwrap();
        let mut lists = BlockLists::new(dir.path().join("blocks"));
        let all: Vec<BlockList> = (0..4_u8).map(|n| list(&[n; 100], 10)).collect();
        lists.most = 3 * all[0].encode().len() as u64;
        let age = |of: &BlockList, secs| {
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs);
            let file = fs::File::options().write(true).open(lists.path(of.content));
            file.unwrap().set_modified(time).unwrap();
        };
        for (one, secs) in all[..3].iter().zip([10, 20, 30]) {
            lists.write(one);
            age(one, secs);
        }
        assert!(lists.read(all[0].content, 100).is_some(), "used just now");
        lists.write(&all[3]);
        let there: Vec<bool> = all.iter().map(|one| lists.has(one.content)).collect();
        assert_eq!(there, [true, false, true, true]);
    }

    #[test]
    fn blocks_grow_with_the_file_within_their_limits() {
        assert_eq!(block_size(0), 64 << 10);
        assert_eq!(block_size(512 << 20), 64 << 10);
        assert_eq!(block_size((512 << 20) + 1), 128 << 10);
        assert_eq!(block_size(1 << 30), 128 << 10);
        assert_eq!(block_size(u64::MAX), 1 << 20);
    }
}
