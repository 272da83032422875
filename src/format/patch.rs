//! A staged patch: the blocks of a large file that a batch changes, in the batch's staging
//! directory. The batch writes them into the file on the drive, which keeps its name.
//!
//! A patch is a header, and the changed blocks in ascending order, each with its place, its length,
//! its hash, and the marks of its old sectors before its bytes. The record has the size and the
//! hash of the whole patch, so it needs no checksum of its own; the hash of a block serves the
//! second reading, when the block is written. A file is cut into blocks of one size from its
//! beginning; only the last may be shorter. What the file has beyond its old size is in the patch
//! completely.
//!
//! A *mark* is the beginning of the hash of one sector as it was before. After a crash each sector
//! of a block is the old one or the new one. The marks tell that from what another program has
//! written there.
//!
//! `docs/on-drive-format.md` has the layout byte by byte.

use crate::core::ContentHash;

/// The format that this version writes and reads.
pub const FORMAT: u16 = 2;

/// The first bytes of every patch.
pub const MAGIC: [u8; 8] = *b"ferrypch";

/// Bytes of the header.
pub const HEADER_BYTES: usize = 40;

/// Bytes before the marks of each block.
pub const FRAME_BYTES: usize = 48;

/// Bytes that a medium writes as a whole, from the beginning of a file on.
pub const SECTOR: usize = 512;

/// Bytes of the mark of a sector.
pub const MARK_BYTES: usize = 8;

/// What is known of an old sector.
pub type Mark = [u8; MARK_BYTES];

/// Returns the mark of a sector; of its part within the old file, if that ends in it.
pub fn mark_of(sector: &[u8]) -> Mark {
    array(&blake3::hash(sector).as_bytes()[..MARK_BYTES])
}

/// The smallest block, in bytes.
pub const MIN_BLOCK: u32 = 4096;

/// The largest block, in bytes. A reader needs this much memory.
pub const MAX_BLOCK: u32 = 1 << 20;

/// The most blocks of a patch, so that a reader knows how much memory their places take.
pub const MAX_BLOCKS: u64 = 1 << 20;

/// Returns whether blocks may have this size: a power of two between the two limits.
pub fn is_block_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (MIN_BLOCK..=MAX_BLOCK).contains(&bytes)
}

/// Why bytes are no patch that this version can write into a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The magic number, the format, or a reserved byte.
    #[error("not a patch of ferryfs of format {FORMAT}")]
    NotAPatch,
    /// The sizes in the header.
    #[error("the sizes in the patch cannot be")]
    BadSizes,
    /// The place or the length of a block.
    #[error("the patch has a block that cannot be")]
    BadBlock,
    /// Something that the file has beyond its old size is missing.
    #[error("the patch lacks a part of what the file has grown by")]
    Incomplete,
}

/// The beginning of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of a block.
    pub block: u32,
    /// Bytes of the file before.
    pub old_size: u64,
    /// Bytes of the file afterwards; not less.
    pub new_size: u64,
}

impl Header {
    /// Encodes the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..20].copy_from_slice(&self.block.to_le_bytes());
        out[24..32].copy_from_slice(&self.old_size.to_le_bytes());
        out[32..].copy_from_slice(&self.new_size.to_le_bytes());
        out
    }

    /// Decodes a header.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, PatchError> {
        let zeros = bytes[10..16].iter().chain(&bytes[20..24]);
        let is_known = bytes.starts_with(&MAGIC) && bytes[8..10] == FORMAT.to_le_bytes();
        if !is_known || zeros.copied().any(|byte| byte != 0) {
            return Err(PatchError::NotAPatch);
        }
        let header = Header {
            block: u32::from_le_bytes(array(&bytes[16..20])),
            old_size: u64::from_le_bytes(array(&bytes[24..32])),
            new_size: u64::from_le_bytes(array(&bytes[32..])),
        };
        let is_possible = is_block_size(header.block)
            && header.old_size <= header.new_size
            && i64::try_from(header.new_size).is_ok();
        match is_possible {
            true => Ok(header),
            false => Err(PatchError::BadSizes),
        }
    }

    /// Returns the length of the block at `offset` of the new file; 0 beyond its end.
    pub fn length_at(&self, offset: u64) -> u32 {
        let rest = self.new_size.saturating_sub(offset);
        u32::try_from(rest).map_or(self.block, |rest| rest.min(self.block))
    }

    /// Returns how many bytes of a block the file had before.
    pub fn old_part(&self, block: &Block) -> usize {
        let old = self.old_size.saturating_sub(block.offset);
        // It is not more than the length of a block.
        old.min(u64::from(block.length)) as usize
    }

    /// Returns how many bytes the marks of a block take.
    pub fn mark_bytes(&self, block: &Block) -> usize {
        self.old_part(block).div_ceil(SECTOR) * MARK_BYTES
    }

    /// Returns the number of blocks that a patch must have because the file grows: they contain
    /// bytes beyond its old size.
    fn blocks_of_growth(&self) -> u64 {
        let block = u64::from(self.block);
        match self.new_size > self.old_size {
            true => self.new_size.div_ceil(block) - self.old_size / block,
            false => 0,
        }
    }
}

/// A block of a patch, without its marks and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where it is in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u32,
    /// BLAKE3 of its bytes.
    pub hash: ContentHash,
}

impl Block {
    /// Encodes what is before the marks of the block.
    pub fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[..8].copy_from_slice(&self.offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.length.to_le_bytes());
        out[16..].copy_from_slice(&self.hash.0);
        out
    }

    /// Decodes what is before the marks of a block. [`Order`] checks it.
    ///
    /// # Errors
    /// If the reserved bytes are not zero.
    pub fn decode(bytes: &[u8; FRAME_BYTES]) -> Result<Block, PatchError> {
        if bytes[12..16] != [0; 4] {
            return Err(PatchError::BadBlock);
        }
        Ok(Block {
            offset: u64::from_le_bytes(array(&bytes[..8])),
            length: u32::from_le_bytes(array(&bytes[8..12])),
            hash: ContentHash(array(&bytes[16..])),
        })
    }
}

/// Checks the blocks of a patch one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    header: Header,
    /// The end of the last block.
    end: u64,
    count: u64,
    /// Blocks that have bytes beyond the old size.
    grown: u64,
}

impl Order {
    /// Begins with the first block.
    pub fn new(header: Header) -> Order {
        Order {
            header,
            end: 0,
            count: 0,
            grown: 0,
        }
    }

    /// Checks the next block: it is a whole block of the new file, behind the one before.
    ///
    /// # Errors
    /// If it is not, or is one too many.
    pub fn next(&mut self, block: &Block) -> Result<(), PatchError> {
        let length = self.header.length_at(block.offset);
        let fits = block.offset.is_multiple_of(u64::from(self.header.block))
            && block.offset >= self.end
            && length > 0
            && block.length == length;
        if !fits || self.count >= MAX_BLOCKS {
            return Err(PatchError::BadBlock);
        }
        self.end = block.offset + u64::from(length);
        self.count += 1;
        self.grown += u64::from(self.end > self.header.old_size);
        Ok(())
    }

    /// Checks, after the last block, that nothing is missing.
    ///
    /// # Errors
    /// If a part of what the file has grown by is missing.
    pub fn end(&self) -> Result<(), PatchError> {
        match self.grown == self.header.blocks_of_growth() {
            true => Ok(()),
            false => Err(PatchError::Incomplete),
        }
    }
}

/// Returns the bytes, of which there are `N`.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        block: 4096,
        old_size: 10_000,
        new_size: 20_000,
    };

    fn block(offset: u64, length: u32) -> Block {
        Block {
            offset,
            length,
            hash: ContentHash([7; 32]),
        }
    }

    fn check(header: Header, blocks: &[Block]) -> Result<(), PatchError> {
        let mut order = Order::new(header);
        blocks.iter().try_for_each(|block| order.next(block))?;
        order.end()
    }

    #[test]
    fn header_and_block_are_read_as_they_were_written() {
        assert_eq!(Header::decode(&HEADER.encode()), Ok(HEADER));
        let last = block(16_384, 3616);
        assert_eq!(Block::decode(&last.encode()), Ok(last));
    }

    #[test]
    fn a_header_with_any_other_byte_is_refused_or_means_other_sizes() {
        for at in 0..HEADER_BYTES {
            let mut bytes = HEADER.encode();
            bytes[at] ^= 0x40;
            match Header::decode(&bytes) {
                Ok(read) => {
                    assert!((24..40).contains(&at), "byte {at}");
                    assert_ne!(read, HEADER);
                }
                Err(error) if at < 16 => assert_eq!(error, PatchError::NotAPatch),
                Err(_) => {}
            }
        }
        for (old_size, new_size) in [(2, 1), (0, u64::MAX), (u64::MAX, u64::MAX)] {
            let bytes = Header {
                old_size,
                new_size,
                ..HEADER
            };
            assert_eq!(Header::decode(&bytes.encode()), Err(PatchError::BadSizes));
        }
        for size in [0, 1, 4095, 4097, 2048, 1 << 21, u32::MAX] {
            let bytes = Header {
                block: size,
                ..HEADER
            };
            assert_eq!(Header::decode(&bytes.encode()), Err(PatchError::BadSizes));
        }
    }

    #[test]
    fn all_that_the_file_has_grown_by_is_in_the_patch() {
        let grown = [block(8192, 4096), block(12_288, 4096), block(16_384, 3616)];
        assert_eq!(check(HEADER, &grown), Ok(()));
        let first = [block(0, 4096)];
        assert_eq!(check(HEADER, &[&first[..], &grown].concat()), Ok(()));
        for missing in 0..3 {
            let mut some = grown.to_vec();
            some.remove(missing);
            assert_eq!(check(HEADER, &some), Err(PatchError::Incomplete));
        }
        let as_large = Header {
            new_size: 10_000,
            ..HEADER
        };
        assert_eq!(check(as_large, &[]), Ok(()));
        assert_eq!(check(as_large, &[block(8192, 1808)]), Ok(()));
        let whole = Header {
            old_size: 8192,
            ..HEADER
        };
        assert_eq!(check(whole, &grown), Ok(()), "a block ended there");
        let empty = Header {
            old_size: 0,
            new_size: 0,
            ..HEADER
        };
        assert_eq!(check(empty, &[]), Ok(()));
        assert_eq!(check(empty, &[block(0, 0)]), Err(PatchError::BadBlock));
    }

    #[test]
    fn a_block_has_a_mark_for_each_sector_that_the_file_had() {
        let marks = |old_size, block: Block| {
            let header = Header { old_size, ..HEADER };
            (
                header.old_part(&block),
                header.mark_bytes(&block) / MARK_BYTES,
            )
        };
        assert_eq!(marks(10_000, block(4096, 4096)), (4096, 8));
        assert_eq!(marks(10_000, block(8192, 4096)), (1808, 4));
        assert_eq!(marks(8193, block(8192, 4096)), (1, 1));
        assert_eq!(marks(8192, block(8192, 4096)), (0, 0));
        assert_eq!(marks(10_000, block(12_288, 4096)), (0, 0));
        assert_ne!(mark_of(&[0; SECTOR]), mark_of(&[1; SECTOR]));
    }

    #[test]
    fn blocks_are_whole_in_order_and_within_the_file() {
        for wrong in [
            vec![block(4096, 4096), block(0, 4096)],
            vec![block(0, 4096), block(0, 4096)],
            vec![block(1, 4096)],
            vec![block(0, 4095)],
            vec![block(0, 0)],
            vec![block(16_384, 4096)],
            vec![block(20_480, 4096)],
            vec![block(u64::MAX - 4095, 4096)],
            vec![block(1 << 63, 4096)],
        ] {
            assert_eq!(
                check(HEADER, &wrong),
                Err(PatchError::BadBlock),
                "{wrong:?}"
            );
        }
    }
}
