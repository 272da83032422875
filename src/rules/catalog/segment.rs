//! One segment of the catalog's log, `.ferryfs/catalog/<number>.seg`: written once, with the batch whose changes it has.
//!
//! As with the record of a batch, reading keeps apart what a yank leaves of it ([`SegmentError::is_torn`]), what only a newer
//! ferryfs understands ([`SegmentError::Newer`]), and what is whole and cannot be meant (all other errors). The checksum is looked
//! at first, so damage is never taken for anything else. What every version keeps: the magic, the format number after it, and the
//! checksum in the last 32 bytes, by which the next segment names this one.
//!
//! Paths are front-coded: each as what it shares with the one before and the rest. So the whole of a tree takes about its names,
//! however deep it is. A few bytes may stand for a long path that way; therefore changes are read one by one and never all at once.

use uuid::Uuid;

use super::check::{BadChange, Checker};
use super::wire::{put_head, put_tail, read_change};
use super::{CatalogBatch, CatalogChange};
use crate::base::{ContentHash, NameError, RelPath};
use crate::rules::bytes::{MAX_PATH_BYTES, ReadError, Reader, put_long};
use crate::rules::layout::MAX_SEGMENT;

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u16 = 1;

/// Longest segment, in bytes: whatever fits into a record fits into it. A caller looks at the file's size before it reads it into memory.
pub const MAX_SEGMENT_BYTES: usize = 2 << 30;

/// What every segment begins with.
pub const MAGIC: [u8; 8] = *b"ferrycat";

/// Bytes before the first change.
pub const HEADER_BYTES: usize = 80;

/// Bytes of the checksum at its end, which covers all before it and is the segment's hash.
pub const CHECKSUM_BYTES: usize = blake3::OUT_LEN;

const FULL: u16 = 1;
const HAS_AFTER: u16 = 2;

/// Why bytes are no segment that this version can take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// It does not begin like one.
    #[error("it is no segment of a catalog")]
    NotASegment,
    /// It is cut short or altered.
    #[error("it is damaged: its checksum does not match")]
    Damaged,
    /// It is whole, and says what this version does not understand.
    #[error("it was written by a newer ferryfs ({part} {number} is unknown here)")]
    Newer {
        /// What is unknown.
        part: &'static str,
        /// Its number.
        number: u64,
    },
    /// It is whole, and not laid out as a segment is.
    #[error("it makes no sense at byte {offset}: {problem}")]
    Malformed {
        /// Where, in bytes from its beginning.
        offset: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// A path or a name in it is none.
    #[error("it has a bad path at byte {offset}: {source}")]
    BadPath {
        /// Where, in bytes from its beginning.
        offset: usize,
        /// Why it is none.
        source: NameError,
    },
    /// A change cannot be meant as it stands.
    #[error("it has a change of \"{path}\" that cannot be: {problem}")]
    BadChange {
        /// What the change is about.
        path: RelPath,
        /// What is wrong with it.
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
    /// Whether this is what an interrupted write of the segment leaves.
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

/// What stands at the beginning of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume that it belongs to.
    pub volume: Uuid,
    /// Its number. A reader compares it with the file's name.
    pub number: u64,
    /// Hash of the segment before it.
    pub after: Option<ContentHash>,
    /// Whether it begins with nothing known.
    pub full: bool,
    /// How many changes follow.
    pub count: u64,
}

/// Writes the segment of a batch. Equal batches give equal bytes. What passes [`super::check_changes`] and is not too long is
/// taken by [`Segment::decode`].
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

/// How many bytes two paths begin with in common, as far as it is counted.
fn shared(last: &[u8], path: &[u8]) -> u16 {
    let same = last.iter().zip(path).take_while(|(a, b)| a == b).count();
    u16::try_from(same).unwrap_or(u16::MAX)
}

/// The checksum of a whole segment; `None` if it is too short to have one.
pub fn hash_of(bytes: &[u8]) -> Option<ContentHash> {
    bytes.last_chunk().copied().map(ContentHash)
}

/// A segment that has been read and found good.
#[derive(Debug)]
pub struct Segment<'a> {
    /// What it says of itself.
    pub header: Header,
    /// Its checksum, by which the next one names it.
    pub hash: ContentHash,
    body: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a segment. Every change in it has been looked at when this returns, so it is taken as a whole or not at all.
    ///
    /// # Errors
    /// [`SegmentError`]; see [`SegmentError::is_torn`] for what it means.
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

    /// Its changes, in order. None of them is an error, as they have been looked at before.
    pub fn changes(&self) -> Changes<'a> {
        Changes {
            reader: Reader::new(self.body, HEADER_BYTES),
            left: self.header.count,
            last: Vec::new(),
        }
    }
}

/// The header of a segment, from its first [`HEADER_BYTES`]. What it says is to be trusted only under a right checksum.
///
/// # Errors
/// As [`Segment::decode`], as far as the header goes.
pub(crate) fn read_header(body: &[u8]) -> Result<Header, SegmentError> {
    let mut reader = Reader::new(body, MAGIC.len());
    match reader.u16()? {
        0 => return Err(reader.malformed("format 0 was never written").into()),
        FORMAT => {}
        newer => return Err(newer_part("format", u64::from(newer))),
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

/// The changes of a segment, one by one.
pub struct Changes<'a> {
    reader: Reader<'a>,
    left: u64,
    last: Vec<u8>,
}

impl Iterator for Changes<'_> {
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

impl Changes<'_> {
    fn change(&mut self) -> Result<CatalogChange, ReadError> {
        let last = &mut self.last;
        let change = read_change(&mut self.reader, |reader| front_coded(reader, last))?;
        last.clear();
        last.extend_from_slice(change.path().as_bytes());
        Ok(change)
    }
}

/// A path that shares its beginning with `last`, as much of it as it can.
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
