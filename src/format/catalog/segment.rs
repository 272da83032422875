//! One segment of the catalog's log, `.ferryfs/catalog/<number>.seg`: written once, with the batch
//! whose changes it contains.
//!
//! As for the record of a batch, the reader distinguishes what a yank leaves
//! ([`SegmentError::is_torn`]), what only a newer ferryfs understands ([`SegmentError::Newer`]),
//! and what is complete but invalid (all other errors). The checksum is verified first, so damage
//! is never taken for anything else. Every version keeps the magic number, the format number after
//! it, and the checksum in the last 32 bytes, by which the next segment names this one.
//!
//! Paths are front-coded: each is stored as the length that it shares with the path before, and the
//! rest. A full segment therefore takes about as much as the names, at any depth. A few bytes may
//! mean a long path, so changes are decoded one by one, never all at once.

use uuid::Uuid;

use crate::core::{ContentHash, NameError, RelPath};
use crate::format::catalog::check::{BadChange, Checker};
use crate::format::catalog::wire::{put_head, put_tail, read_change};
use crate::format::catalog::{CatalogBatch, CatalogChange};
use crate::format::codec::{MAX_PATH_BYTES, ReadError, Reader, put_long};
use crate::format::layout::MAX_SEGMENT;

/// The format that this version writes and reads.
pub const FORMAT: u16 = 1;

/// The longest segment, in bytes: what fits into a record fits into a segment. A caller checks the
/// file's size before it reads the file into memory.
pub const MAX_SEGMENT_BYTES: usize = 2 << 30;

/// The first bytes of every segment.
pub const MAGIC: [u8; 8] = *b"ferrycat";

/// Bytes before the first change.
pub const HEADER_BYTES: usize = 80;

/// Bytes of the checksum at the end. It covers everything before it and is the segment's hash.
pub const CHECKSUM_BYTES: usize = blake3::OUT_LEN;

const FULL: u16 = 1;
const HAS_AFTER: u16 = 2;

/// Why bytes are not a segment that this version accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The magic number is missing.
    #[error("it is no segment of a catalog")]
    NotASegment,
    /// It is truncated or altered.
    #[error("it is damaged: its checksum does not match")]
    Damaged,
    /// It is complete, but has a part that this version does not know.
    #[error("it was written by a newer ferryfs ({part} {number} is unknown here)")]
    Newer {
        /// The unknown part.
        part: &'static str,
        /// Its number.
        number: u64,
    },
    /// It is complete, in a format that this version does not read.
    #[error("it has format {0}, and this ferryfs reads format {FORMAT} alone")]
    OtherFormat(u16),
    /// It is complete, but has an invalid layout.
    #[error("it makes no sense at byte {offset}: {problem}")]
    Malformed {
        /// The position, in bytes from the beginning.
        offset: usize,
        /// The problem.
        problem: &'static str,
    },
    /// A path or name is invalid.
    #[error("it has a bad path at byte {offset}: {source}")]
    BadPath {
        /// The position, in bytes from the beginning.
        offset: usize,
        /// The reason.
        source: NameError,
    },
    /// A change is invalid.
    #[error("it has a change of \"{path}\" that cannot be: {problem}")]
    BadChange {
        /// The path of the change.
        path: RelPath,
        /// The problem.
        problem: &'static str,
    },
    /// It is longer than [`MAX_SEGMENT_BYTES`].
    #[error("it is too long: {bytes} bytes, at most {MAX_SEGMENT_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

impl SegmentError {
    /// Returns whether another version of ferryfs wrote it, for which it may be valid.
    pub fn is_of_another_version(&self) -> bool {
        matches!(
            self,
            SegmentError::Newer { .. } | SegmentError::OtherFormat(_)
        )
    }

    /// Returns whether an interrupted write of a segment may leave this.
    pub fn is_torn(&self) -> bool {
        matches!(self, SegmentError::NotASegment | SegmentError::Damaged)
    }
}

impl From<ReadError> for SegmentError {
    fn from(error: ReadError) -> SegmentError {
        match error {
            ReadError::Malformed { offset, problem } => SegmentError::Malformed { offset, problem },
            ReadError::BadPath { offset, source } => SegmentError::BadPath { offset, source },
        }
    }
}

impl From<BadChange> for SegmentError {
    fn from(bad: BadChange) -> SegmentError {
        SegmentError::BadChange {
            path: bad.path,
            problem: bad.problem,
        }
    }
}

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume.
    pub volume: Uuid,
    /// The number of the segment. A reader compares it with the file name.
    pub number: u64,
    /// Hash of the segment before it.
    pub after: Option<ContentHash>,
    /// Whether the changes begin with an empty catalog.
    pub full: bool,
    /// The number of changes.
    pub count: u64,
}

/// Encodes the segment of a batch. Equal batches have equal bytes. [`Segment::decode`] accepts the
/// result if it passes [`crate::format::catalog::check_changes`] and is not too long.
pub fn encode(volume: Uuid, batch: &CatalogBatch) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + CHECKSUM_BYTES + 64 * batch.changes.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    let full = if batch.full { FULL } else { 0 };
    let after = if batch.after.is_some() { HAS_AFTER } else { 0 };
    out.extend_from_slice(&(full | after).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(volume.as_bytes());
    out.extend_from_slice(&batch.segment.to_le_bytes());
    out.extend_from_slice(&batch.after.map_or([0; 32], |hash| hash.0));
    out.extend_from_slice(&(batch.changes.len() as u64).to_le_bytes());
    let mut last: &[u8] = &[];
    for change in &batch.changes {
        let path = change.path().as_bytes();
        put_head(&mut out, change);
        let shared = shared(last, path);
        out.extend_from_slice(&shared.to_le_bytes());
        put_long(&mut out, &path[usize::from(shared)..]);
        put_tail(&mut out, change);
        last = path;
    }
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    out
}

/// Returns the length of the common prefix, up to the largest encodable number.
fn shared(last: &[u8], path: &[u8]) -> u16 {
    let same = last.iter().zip(path).take_while(|(a, b)| a == b).count();
    u16::try_from(same).unwrap_or(u16::MAX)
}

/// Returns the checksum of a complete segment; `None` if it is too short.
pub fn hash_of(bytes: &[u8]) -> Option<ContentHash> {
    bytes.last_chunk().copied().map(ContentHash)
}

/// A segment that has been decoded and validated.
#[derive(Debug)]
pub struct Segment<'a> {
    /// The header.
    pub header: Header,
    /// The checksum, by which the next segment names this one.
    pub hash: ContentHash,
    body: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Decodes a segment. All changes have been validated when this returns, so a caller applies
    /// all of them or none.
    ///
    /// # Errors
    /// [`SegmentError`]; see [`SegmentError::is_torn`].
    pub fn decode(bytes: &'a [u8]) -> Result<Segment<'a>, SegmentError> {
        if bytes.len() > MAX_SEGMENT_BYTES {
            return Err(SegmentError::TooLong { bytes: bytes.len() });
        }
        if !bytes.starts_with(&MAGIC) {
            return Err(SegmentError::NotASegment);
        }
        let (body, checksum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(SegmentError::Damaged)?;
        if blake3::hash(body) != *checksum {
            return Err(SegmentError::Damaged);
        }
        let segment = Segment {
            header: read_header(body)?,
            hash: ContentHash(*checksum),
            body,
        };
        let mut checker = Checker::new(segment.header.full);
        for change in segment.changes() {
            checker.next(&change?)?;
        }
        checker.end()?;
        Ok(segment)
    }

    /// Returns the changes, in order. None of them is an error: they have been validated.
    pub fn changes(&self) -> SegmentChanges<'a> {
        SegmentChanges {
            reader: Reader::new(self.body, HEADER_BYTES),
            left: self.header.count,
            last: Vec::new(),
        }
    }
}

/// Decodes the header from the first [`HEADER_BYTES`]. It is reliable only if the checksum is
/// right.
///
/// # Errors
/// Those of [`Segment::decode`] that concern the header.
pub(crate) fn read_header(body: &[u8]) -> Result<Header, SegmentError> {
    let mut reader = Reader::new(body, MAGIC.len());
    match reader.u16()? {
        FORMAT => {}
        newer if newer > FORMAT => return Err(newer_part("format", u64::from(newer))),
        other => return Err(SegmentError::OtherFormat(other)),
    }
    let flags = reader.u16()?;
    if flags & !(FULL | HAS_AFTER) != 0 {
        return Err(newer_part("flag", u64::from(flags)));
    }
    if reader.array::<4>()? != [0; 4] {
        let problem = "the reserved bytes of the header are not zero";
        return Err(reader.malformed(problem).into());
    }
    let volume = Uuid::from_bytes(reader.array()?);
    let number = reader.u64()?;
    if number == 0 || number > MAX_SEGMENT {
        return Err(reader.malformed("no segment has that number").into());
    }
    let after = reader.array()?;
    let (full, has_after) = (flags & FULL != 0, flags & HAS_AFTER != 0);
    if !has_after && (after != [0; 32] || !full) {
        return Err(reader
            .malformed("it does not say what it follows on")
            .into());
    }
    Ok(Header {
        volume,
        number,
        after: has_after.then_some(ContentHash(after)),
        full,
        count: reader.u64()?,
    })
}

fn newer_part(part: &'static str, number: u64) -> SegmentError {
    SegmentError::Newer { part, number }
}

/// The changes of a segment, decoded one by one.
pub struct SegmentChanges<'a> {
    reader: Reader<'a>,
    left: u64,
    last: Vec<u8>,
}

impl Iterator for SegmentChanges<'_> {
    type Item = Result<CatalogChange, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.reader.is_at_end() {
                return None;
            }
            let problem = "bytes are left over behind the last change";
            let error = self.reader.malformed(problem);
            self.reader = Reader::new(&[], 0);
            return Some(Err(error.into()));
        }
        self.left -= 1;
        let change = self.change();
        if change.is_err() {
            self.left = 0;
            self.reader = Reader::new(&[], 0);
        }
        Some(change.map_err(SegmentError::from))
    }
}

impl SegmentChanges<'_> {
    fn change(&mut self) -> Result<CatalogChange, ReadError> {
        let last = &mut self.last;
        let change = read_change(&mut self.reader, |reader| front_coded(reader, last))?;
        last.clear();
        last.extend_from_slice(change.path().as_bytes());
        Ok(change)
    }
}

/// Decodes a path that shares as long a prefix with `last` as possible.
fn front_coded(reader: &mut Reader<'_>, last: &[u8]) -> Result<RelPath, ReadError> {
    let kept = usize::from(reader.u16()?);
    let Some(kept) = last.get(..kept) else {
        return Err(reader.malformed("a path shares more with the one before than there is"));
    };
    let at_most = MAX_PATH_BYTES - kept.len();
    let rest = reader.long(at_most, "a path is longer than any can be")?;
    let path = [kept, &rest].concat();
    if usize::from(shared(last, &path)) != kept.len() {
        return Err(reader.malformed("a path does not share all that it could"));
    }
    reader.as_path(&path)
}
