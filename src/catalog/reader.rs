//! Reads the log of the catalog.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::core::{Entry, FileKind};
use crate::drive::sealed_file::SealedFileError;
use crate::drive::sealed_file::{Sealed, read_sealed_as};
use crate::drive::{Backend, BackendError, Look};
use crate::error::{FlushError, Result};
use crate::format::catalog::chain;
use crate::format::catalog::chain::{Chain, FoundSegment, Head, Link, LogState, Replay, Unusable};
use crate::format::catalog::segment::{
    HEADER_BYTES, Header, MAGIC, MAX_SEGMENT_BYTES, Segment, SegmentError, read_header,
};
use crate::format::catalog::store::CatalogStore;
use crate::format::layout;
use crate::plan::trust::Trust;

/// The catalog log of a volume, compared with a mirror at a given head.
#[derive(Clone, Debug)]
pub struct CatalogLog {
    /// The state of the log after [`CatalogLog::replay`]. The next segment continues from it.
    pub state: LogState,
    /// The segments that the mirror must apply.
    pub replay: Replay,
    /// Lost attributes, one readable line each: for the log, for `status`, and for the user who
    /// mounts.
    pub lost: Vec<String>,
    /// Problems of the log without loss, since the mirror has the entries: for the log of the
    /// daemon.
    pub mended: Vec<String>,
    /// Who could have written the log: the trust in all its segments on the drive.
    pub trust: Trust,
    volume: Uuid,
}

/// Reads the log of the catalog on `backend`, for a mirror at the head `mirror`. It verifies every
/// checksum, so it takes about as long as a read of the whole log, whose size is bounded by what it
/// describes. All batches must be finished before.
///
/// # Errors
/// If the backend fails; [`FlushError::NotOurs`] if something else occupies the path of the log;
/// [`FlushError::Catalog`] if a segment was written by a newer ferryfs: the caller must not write
/// to the volume then.
pub fn read_catalog(
    backend: &dyn Backend,
    volume: Uuid,
    mirror: Option<Head>,
) -> Result<CatalogLog> {
    let mut found = BTreeMap::new();
    let mut trust = Trust::Ours;
    for entry in segments(backend)? {
        if let Some(number) = layout::parse_segment_name(&entry.name) {
            found.insert(number, look_at(backend, volume, number, entry.meta.kind)?);
            trust = trust.and(trust_of(backend, number)?);
        }
    }
    loop {
        let chain = chain::read(&found, mirror);
        // Segments are applied as a whole, so all of them are validated before the first is
        // applied.
        match first_senseless(backend, volume, &chain)? {
            Some((number, problem)) => found.insert(number, FoundSegment::Bad(problem)),
            None => return Ok(CatalogLog::new(chain, trust, volume)),
        };
    }
}

/// Returns the trust in a segment. If it is ours, and the bytes read later are the same, they are
/// ours too.
fn trust_of(backend: &dyn Backend, number: u64) -> Result<Trust> {
    match backend.trust(&layout::segment_path(number)) {
        Ok(trust) => Ok(trust),
        Err(error) if error.is_stalled() || error.is_gone() => Err(error.into()),
        // A file that cannot be inspected is not read either.
        Err(_) => Ok(Trust::ANYBODY),
    }
}

/// Returns the entries of the log's directory.
pub(crate) fn segments(backend: &dyn Backend) -> Result<Vec<Entry>> {
    let dir = layout::catalog_dir();
    match backend.metadata(&dir) {
        Ok(meta) if meta.kind == FileKind::Directory => Ok(backend.read_dir(&dir)?),
        Ok(_) => Err(FlushError::NotOurs {
            path: dir,
            found: "no directory",
        }),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Returns the state of the file with the name of segment `number`.
pub(super) fn look_at(
    backend: &dyn Backend,
    volume: Uuid,
    number: u64,
    kind: FileKind,
) -> Result<FoundSegment> {
    let bad = |problem| Ok(FoundSegment::Bad(problem));
    if kind != FileKind::Regular {
        return bad(Unusable::NotAFile);
    }
    let path = layout::segment_path(number);
    let sealed = match read_sealed_as(
        backend,
        &path,
        &MAGIC,
        MAX_SEGMENT_BYTES,
        Some(HEADER_BYTES),
    ) {
        Ok((sealed, _)) => sealed,
        Err(SealedFileError::Backend(error)) => return unreadable(backend, error),
        Err(error) => return Err(error.into()),
    };
    let (head, hash, bytes) = match sealed {
        Sealed::Part { head, hash, bytes } => (head, hash, bytes),
        Sealed::TooLong(_) => return bad(Unusable::TooLong),
        Sealed::Nothing | Sealed::Torn | Sealed::Whole(_) => return bad(Unusable::Damaged),
    };
    match read_header(&head) {
        Ok(header) if header.number == number && header.volume == volume => {
            let Header { after, full, .. } = header;
            Ok(FoundSegment::Whole(Link {
                hash,
                after,
                full,
                bytes,
            }))
        }
        Ok(_) => bad(Unusable::Elsewhere),
        Err(other) if other.is_of_another_version() => {
            let advice = match other {
                SegmentError::Newer { .. } => "update ferryfs on this machine",
                _ => "use the ferryfs that wrote it",
            };
            Err(FlushError::Catalog(format!(
                "the catalog on the drive cannot be used: of {path}: {other}; {advice}. \
                 Nothing was changed"
            )))
        }
        Err(error) => bad(Unusable::Senseless(error)),
    }
}

/// An unreadable file loses its entries only; an absent drive is an error.
fn unreadable(backend: &dyn Backend, error: BackendError) -> Result<FoundSegment> {
    if error.is_stalled() || (error.is_gone() && backend.check_alive(Look::Read).is_err()) {
        return Err(error.into());
    }
    Ok(FoundSegment::Bad(Unusable::Unreadable(
        error.source.to_string(),
    )))
}

/// Returns the first segment to apply that is invalid or no longer readable, and the reason.
fn first_senseless(
    backend: &dyn Backend,
    volume: Uuid,
    chain: &Chain,
) -> Result<Option<(u64, Unusable)>> {
    for number in chain.replay.numbers() {
        if let Err(problem) = load(backend, volume, *number, |_| Ok(()))? {
            return Ok(Some((*number, problem)));
        }
    }
    Ok(None)
}

/// Reads and validates the segment `number` and passes it to `take`. Returns the reason in words if
/// the segment is not usable.
fn load(
    backend: &dyn Backend,
    volume: Uuid,
    number: u64,
    take: impl FnOnce(&Segment<'_>) -> Result<()>,
) -> Result<std::result::Result<(), Unusable>> {
    let path = layout::segment_path(number);
    let bytes = match read_sealed_as(backend, &path, &MAGIC, MAX_SEGMENT_BYTES, None)? {
        (Sealed::Whole(bytes), _) => bytes,
        _ => return Ok(Err(Unusable::Changed)),
    };
    match Segment::decode(&bytes) {
        Ok(segment) if segment.header.volume == volume && segment.header.number == number => {
            take(&segment).map(Ok)
        }
        Ok(_) => Ok(Err(Unusable::Changed)),
        Err(error) => Ok(Err(Unusable::Senseless(error))),
    }
}

impl CatalogLog {
    fn new(chain: Chain, trust: Trust, volume: Uuid) -> CatalogLog {
        CatalogLog {
            trust,
            state: chain.state,
            replay: chain.replay,
            lost: chain.lost,
            mended: chain.mended,
            volume,
        }
    }

    /// Brings `store` to the state of the log. If it fails halfway, the caller must discard the
    /// store or replay it from nothing.
    ///
    /// # Errors
    /// If the backend or the store fails.
    pub fn replay<S: CatalogStore>(&self, backend: &dyn Backend, store: &mut S) -> Result<()>
    where
        FlushError: From<S::Error>,
    {
        if matches!(self.replay, Replay::Anew(_)) {
            store.clear()?;
        }
        for number in self.replay.numbers() {
            let taken = load(backend, self.volume, *number, |segment| {
                for change in segment.changes() {
                    let change = change.map_err(|error| FlushError::Catalog(error.to_string()))?;
                    store.take(&change)?;
                }
                Ok(())
            })?;
            taken.map_err(|problem| {
                FlushError::Catalog(format!("segment {number} of the catalog {problem}"))
            })?;
        }
        Ok(())
    }
}
