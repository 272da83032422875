//! Encoding of the catalog's changes in a record.

use crate::core::ContentHash;
use crate::format::catalog::CatalogBatch;
use crate::format::catalog::wire::{MIN_CHANGE_BYTES, put_change, read_change};
use crate::format::codec::{Reader, Result};
use crate::format::record::wire::put_all;

const FULL: u8 = 1;
const HAS_AFTER: u8 = 2;

pub(super) fn put_catalog(out: &mut Vec<u8>, catalog: &CatalogBatch) {
    out.extend_from_slice(&catalog.segment.to_le_bytes());
    let full = if catalog.full { FULL } else { 0 };
    out.push(
        full | if catalog.after.is_some() {
            HAS_AFTER
        } else {
            0
        },
    );
    if let Some(after) = catalog.after {
        out.extend_from_slice(&after.0);
    }
    put_all(out, &catalog.changes, put_change);
}

pub(super) fn read_catalog(reader: &mut Reader<'_>) -> Result<CatalogBatch> {
    let segment = reader.u64()?;
    let flags = reader.u8()?;
    if flags & !(FULL | HAS_AFTER) != 0 {
        return Err(reader.malformed("there is no such flag of the catalog"));
    }
    let after = match flags & HAS_AFTER {
        0 => None,
        _ => Some(ContentHash(reader.array()?)),
    };
    Ok(CatalogBatch {
        segment,
        after,
        full: flags & FULL != 0,
        changes: reader.all(MIN_CHANGE_BYTES, |it| read_change(it, Reader::path))?,
    })
}
