//! The record of a batch, `.ferryfs/batches/<batch>.rec`: the redo log by which a batch that was begun is finished.
//!
//! Its presence, whole, is the commit point. So reading it keeps four things apart:
//! - not whole ([`RecordError::is_torn`]): what a power cut or a yank leaves of a record that was being written. The
//!   BLAKE3 at the end covers every byte before it, so no part of a record passes for a record;
//! - whole, but beyond this version ([`RecordError::Newer`]): committed; only a newer ferryfs may finish it. The
//!   checksum is looked at first, so damage is never mistaken for this;
//! - whole, but not to be carried out (all other errors): the steps contradict each other or reach where no batch may.
//!   A checksum is no signature, so this is not taken on trust from a drive that was elsewhere;
//! - good.
//!
//! `docs/on-drive-format.md` has the layout byte by byte. What every version keeps: the magic, the format number after
//! it, and the checksum in the last 32 bytes.

mod check;
mod wire;

use uuid::Uuid;

use crate::base::{BatchNo, NameError, RelPath, Timestamp};
use crate::rules::bytes::{self, ReadError, Reader};
use crate::rules::catalog::CatalogBatch;
use crate::rules::known::Known;
use crate::rules::steps::{ClearStep, FileContent, PlaceStep, SlotNo, Steps};

pub use check::check;

/// The newest format that this version reads, and writes where the one before it cannot say what is to be said: changes of the
/// catalog, nodes, further names, attributes, names of more than 255 bytes.
pub const FORMAT: u16 = 2;

/// The format of a record that has nothing of these, so that an older ferryfs can finish the batch.
const PLAIN_FORMAT: u16 = 1;

/// Longest record, in bytes: room for some seven million files with paths of a hundred bytes. A caller looks at the
/// file's size before it reads it into memory.
pub const MAX_RECORD_BYTES: usize = 1 << 30;

/// Longest path in a record, in bytes.
pub const MAX_PATH_BYTES: usize = bytes::MAX_PATH_BYTES;

/// What every record begins with.
pub const MAGIC: [u8; 8] = *b"ferryrec";
const HEADER_BYTES: usize = 64;
/// Bytes of the checksum at its end, which covers all before it.
pub const CHECKSUM_BYTES: usize = blake3::OUT_LEN;

/// Everything that is to be known to finish a committed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRecord {
    /// The volume that it belongs to. A reader compares it with the marker.
    pub volume: Uuid,
    /// Its number. A reader compares it with the file's name.
    pub batch: BatchNo,
    /// When it was cut.
    pub created: Timestamp,
    /// Random id of the cache that wrote it, which still has all its bytes.
    pub origin: [u8; 16],
    /// What it does.
    pub steps: Steps<FileContent>,
    /// What was known of the files that it moves, replaces and removes.
    pub known: Known,
    /// What it does to the catalog, if anything.
    pub catalog: Option<CatalogBatch>,
}

/// Why bytes are no record that this version can carry out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It does not begin like one.
    #[error("not a batch record of ferryfs")]
    NotARecord,
    /// It is cut short or altered.
    #[error("the batch record is damaged: its checksum does not match")]
    Damaged,
    /// It is whole, and says what this version does not understand.
    #[error(
        "the batch record was written by a newer ferryfs ({part} {number} is unknown here); \
         update ferryfs on this machine, or plug the drive into the one that wrote it"
    )]
    Newer {
        /// What is unknown: "format", "section" or the like.
        part: &'static str,
        /// Its number.
        number: u64,
    },
    /// It is whole, and not laid out as a record is.
    #[error("the batch record makes no sense at byte {offset}: {problem}")]
    Malformed {
        /// Where, in bytes from its beginning.
        offset: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// A path leads out of the volume or is none.
    #[error("the batch record has a bad path at byte {offset}: {source}")]
    BadPath {
        /// Where, in bytes from the record's beginning.
        offset: usize,
        /// Why it is none.
        source: NameError,
    },
    /// A step would touch our own directory.
    #[error("the batch record would touch {path}, which belongs to ferryfs itself")]
    Reserved {
        /// The path.
        path: RelPath,
    },
    /// A step cannot be meant as it stands.
    #[error("the batch record has a step on \"{path}\" that cannot be: {problem}")]
    BadStep {
        /// The path of the step.
        path: RelPath,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The steps do not agree on what a slot holds.
    #[error("the batch record is at odds with itself over slot {}: {problem}", slot.0)]
    BadSlot {
        /// The slot.
        slot: SlotNo,
        /// What is wrong with it.
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
    /// Whether this is what an interrupted write of the record leaves: if the cache never saw the record synced, the
    /// batch was not committed. Any other error means that it was, or that someone tampers.
    pub fn is_torn(&self) -> bool {
        matches!(self, RecordError::NotARecord | RecordError::Damaged)
    }
}

/// Writes a record that [`decode`] is sure to take. This is what commits a batch.
///
/// # Errors
/// What [`decode`] would say of it. The plan is then at fault, and the batch must not be committed.
pub fn seal(record: &BatchRecord) -> Result<Vec<u8>, RecordError> {
    check(record)?;
    let bytes = encode(record);
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(RecordError::TooLong { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Writes a record as it is given, without a look at whether it makes sense. Equal records give equal bytes.
pub fn encode(record: &BatchRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + CHECKSUM_BYTES + 64 * record.steps.place.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&format_for(record).to_le_bytes());
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

/// Reads a record. What it gives can be carried out on any volume without leaving the user's tree, and passes [`check`].
///
/// # Errors
/// [`RecordError`]; see [`RecordError::is_torn`] for what it means.
pub fn decode(bytes: &[u8]) -> Result<BatchRecord, RecordError> {
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(RecordError::TooLong { bytes: bytes.len() });
    }
    let body = verified_body(bytes)?;
    let mut reader = Reader::new(body, MAGIC.len());
    let format = match reader.u16()? {
        0 => return Err(reader.malformed("format 0 was never written").into()),
        known @ PLAIN_FORMAT..=FORMAT => known,
        newer => return Err(newer_part("format", u64::from(newer))),
    };
    if reader.array::<6>()? != [0; 6] {
        let problem = "the reserved bytes of the header are not zero";
        return Err(reader.malformed(problem).into());
    }
    let volume = Uuid::from_bytes(reader.array()?);
    let origin = reader.array()?;
    let batch = BatchNo(reader.u64()?);
    let created = Timestamp(reader.i64()?);
    let sections = wire::read_sections(&mut reader, format)?;
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

/// All of the record but its checksum, which is right.
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

/// The oldest format that can say what `record` says.
fn format_for(record: &BatchRecord) -> u16 {
    let steps = &record.steps;
    let is_new = |step: &PlaceStep<FileContent>| {
        matches!(step, PlaceStep::InstallNode { .. } | PlaceStep::Link { .. })
    };
    let paths = steps.clear.iter().map(ClearStep::path);
    let paths = paths.chain(steps.place.iter().map(PlaceStep::path));
    let mut paths = paths.chain(record.known.removed.keys());
    let is_plain = record.catalog.is_none()
        && steps.attributes.is_empty()
        && !steps.place.iter().any(is_new)
        && !paths.any(has_long_name);
    if is_plain { PLAIN_FORMAT } else { FORMAT }
}

/// Whether a name is longer than format 1 has them.
fn has_long_name(path: &RelPath) -> bool {
    path.components().any(|name| name.len() > 255)
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
