//! The record of a batch, `.ferryfs/batches/<batch>.rec`: the redo log with which an interrupted
//! batch is finished.
//!
//! A complete record is the commit point. So the reader distinguishes four cases:
//! - incomplete ([`RecordError::is_torn`]): what a power cut or yank leaves of a record that was
//!   being written. The BLAKE3 at the end covers every byte before it, so no part of a record
//!   passes for a record;
//! - complete, of another version ([`RecordError::Newer`], [`RecordError::OtherFormat`]):
//!   committed; only the ferryfs that wrote it may finish it. The checksum is verified first, so
//!   damage is never mistaken for this;
//! - complete but invalid (all other errors): the steps contradict each other, or reach where no
//!   batch may. A checksum is no signature, so the steps of a drive that was elsewhere are not
//!   trusted;
//! - valid.
//!
//! `docs/on-drive-format.md` has the layout byte by byte. Every version keeps the magic number, the
//! format number after it, and the checksum in the last 32 bytes.

mod check;
mod wire;

use uuid::Uuid;

use crate::core::{BatchNo, NameError, RelPath, Timestamp};
use crate::format::catalog::CatalogBatch;
use crate::format::codec;
use crate::format::codec::{ReadError, Reader};
use crate::format::expectations::Expectations;
use crate::format::steps::{FileContent, SlotNo, Steps};

pub use crate::format::record::check::check;

/// The format that this version writes and reads.
pub const FORMAT: u16 = 3;

/// The longest record, in bytes: space for some seven million files with paths of 100 bytes. A
/// caller checks the file's size before it reads the file into memory.
pub const MAX_RECORD_BYTES: usize = 1 << 30;

/// Longest path in a record, in bytes.
pub const MAX_PATH_BYTES: usize = codec::MAX_PATH_BYTES;

/// The first bytes of every record.
pub const MAGIC: [u8; 8] = *b"ferryrec";
const HEADER_BYTES: usize = 64;
/// Bytes of the checksum at the end, which covers everything before it.
pub const CHECKSUM_BYTES: usize = blake3::OUT_LEN;

/// Everything needed to finish a committed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRecord {
    /// The volume. A reader compares it with the marker.
    pub volume: Uuid,
    /// The batch number. A reader compares it with the file name.
    pub batch: BatchNo,
    /// The time of the cut.
    pub created: Timestamp,
    /// Random id of the cache that wrote it, which still has all contents.
    pub origin: [u8; 16],
    /// The steps.
    pub steps: Steps<FileContent>,
    /// The expected state of the files that it moves, replaces and removes.
    pub known: Expectations,
    /// The changes of the catalog, if any.
    pub catalog: Option<CatalogBatch>,
}

/// Why bytes are not a record that this version can execute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The magic number is missing.
    #[error("not a batch record of ferryfs")]
    NotARecord,
    /// It is truncated or altered.
    #[error("the batch record is damaged: its checksum does not match")]
    Damaged,
    /// It is complete, but has a part that this version does not know.
    #[error(
        "the batch record was written by a newer ferryfs ({part} {number} is unknown here); \
         update ferryfs on this machine, or plug the drive into the one that wrote it"
    )]
    Newer {
        /// The unknown part: "format", "section" or the like.
        part: &'static str,
        /// Its number.
        number: u64,
    },
    /// It is complete, in a format that this version does not read.
    #[error(
        "the batch record has format {0}, and this ferryfs reads format {FORMAT} alone; \
         plug the drive into the machine that wrote it, and finish the batch with its ferryfs"
    )]
    OtherFormat(u16),
    /// It is complete, but has an invalid layout.
    #[error("the batch record makes no sense at byte {offset}: {problem}")]
    Malformed {
        /// The position, in bytes from the beginning.
        offset: usize,
        /// The problem.
        problem: &'static str,
    },
    /// A path is invalid or leads out of the volume.
    #[error("the batch record has a bad path at byte {offset}: {source}")]
    BadPath {
        /// The position, in bytes from the beginning.
        offset: usize,
        /// The reason.
        source: NameError,
    },
    /// A step concerns the directory of ferryfs.
    #[error("the batch record would touch {path}, which belongs to ferryfs itself")]
    Reserved {
        /// The path.
        path: RelPath,
    },
    /// A step is invalid.
    #[error("the batch record has a step on \"{path}\" that cannot be: {problem}")]
    BadStep {
        /// The path of the step.
        path: RelPath,
        /// The problem.
        problem: &'static str,
    },
    /// The steps contradict each other about a slot.
    #[error("the batch record is at odds with itself over slot {}: {problem}", slot.0)]
    BadSlot {
        /// The slot.
        slot: SlotNo,
        /// The problem.
        problem: &'static str,
    },
    /// It is longer than [`MAX_RECORD_BYTES`].
    #[error("the batch record is too long: {bytes} bytes, at most {MAX_RECORD_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

impl RecordError {
    /// Returns whether an interrupted write of the record may leave this. Unless the cache saw the
    /// record synced, the batch was then not committed. Any other error means that it was, or that
    /// the record was tampered with.
    pub fn is_torn(&self) -> bool {
        matches!(self, RecordError::NotARecord | RecordError::Damaged)
    }
}

/// Encodes a record that [`decode`] accepts. Writing it commits a batch.
///
/// # Errors
/// The error that [`decode`] would return. The plan is wrong then, and the batch must not be
/// committed.
pub fn seal(record: &BatchRecord) -> Result<Vec<u8>, RecordError> {
    check(record)?;
    let bytes = encode(record);
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(RecordError::TooLong { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Encodes a record without validation. Equal records have equal bytes.
pub fn encode(record: &BatchRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + CHECKSUM_BYTES + 64 * record.steps.place.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(record.volume.as_bytes());
    out.extend_from_slice(&record.origin);
    out.extend_from_slice(&record.batch.0.to_le_bytes());
    out.extend_from_slice(&record.created.0.to_le_bytes());
    wire::put_sections(&mut out, record);
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    out
}

/// Decodes a record. The steps do not leave the user's tree, on any volume, and pass [`check()`].
///
/// # Errors
/// [`RecordError`]; see [`RecordError::is_torn`].
pub fn decode(bytes: &[u8]) -> Result<BatchRecord, RecordError> {
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(RecordError::TooLong { bytes: bytes.len() });
    }
    let body = verified_body(bytes)?;
    let mut reader = Reader::new(body, MAGIC.len());
    match reader.u16()? {
        FORMAT => {}
        newer if newer > FORMAT => return Err(newer_part("format", u64::from(newer))),
        other => return Err(RecordError::OtherFormat(other)),
    }
    if reader.array::<6>()? != [0; 6] {
        let problem = "the reserved bytes of the header are not zero";
        return Err(reader.malformed(problem).into());
    }
    let volume = Uuid::from_bytes(reader.array()?);
    let origin = reader.array()?;
    let batch = BatchNo(reader.u64()?);
    let created = Timestamp(reader.i64()?);
    let sections = wire::read_sections(&mut reader)?;
    let record = BatchRecord {
        volume,
        batch,
        created,
        origin,
        steps: sections.steps,
        known: sections.known,
        catalog: sections.catalog,
    };
    check(&record)?;
    Ok(record)
}

/// Returns the record without its checksum, which is right.
fn verified_body(bytes: &[u8]) -> Result<&[u8], RecordError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(RecordError::NotARecord);
    }
    let (body, checksum) = bytes
        .split_last_chunk::<CHECKSUM_BYTES>()
        .ok_or(RecordError::Damaged)?;
    if blake3::hash(body) != *checksum {
        return Err(RecordError::Damaged);
    }
    Ok(body)
}

impl From<ReadError> for RecordError {
    fn from(error: ReadError) -> RecordError {
        match error {
            ReadError::Malformed { offset, problem } => RecordError::Malformed { offset, problem },
            ReadError::BadPath { offset, source } => RecordError::BadPath { offset, source },
        }
    }
}

fn newer_part(part: &'static str, number: u64) -> RecordError {
    RecordError::Newer { part, number }
}
