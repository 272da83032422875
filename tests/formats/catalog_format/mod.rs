//! The catalog as other versions and other machines meet it: its segments byte by byte, and what
//! replaying them gives.

mod chain;
mod hostile;
mod replay;
mod some;
mod versions;

use ferryfs::core::ContentHash;
use ferryfs::format::catalog::segment::{Header, Segment, SegmentError};
use ferryfs::format::catalog::{CatalogBatch, CatalogChange};

/// A segment with a change of every kind.
const FIXTURE: &[u8] = include_bytes!("../../fixtures/segment-v1.bin");
/// A full one.
const FULL: &[u8] = include_bytes!("../../fixtures/segment-full-v1.bin");

/// Where the first change begins.
const CHANGES: usize = 80;
const CHECKSUM: usize = 32;

/// Header and changes of a segment, or why it is none.
fn read(bytes: &[u8]) -> Result<(Header, Vec<CatalogChange>), SegmentError> {
    let segment = Segment::decode(bytes)?;
    let changes = segment.changes().collect::<Result<_, _>>();
    Ok((segment.header, changes.expect("looked at before")))
}

/// The bytes of `body`, whatever they say, under a checksum that is right.
fn resealed(mut body: Vec<u8>) -> Vec<u8> {
    let checksum = blake3::hash(&body);
    body.extend_from_slice(checksum.as_bytes());
    body
}

/// `bytes` without their checksum.
fn body(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len() - CHECKSUM].to_vec()
}

fn log(number: u64, after: ContentHash, changes: Vec<CatalogChange>) -> CatalogBatch {
    CatalogBatch {
        segment: number,
        after: Some(after),
        full: false,
        changes,
    }
}

fn full(number: u64, changes: Vec<CatalogChange>) -> CatalogBatch {
    CatalogBatch {
        segment: number,
        after: None,
        full: true,
        changes,
    }
}
