//! Reading the log of the catalog.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::super::report::{FlushError, Result};
use super::super::untrusted::{Sealed, read_sealed_as};
use crate::backend::{Backend, BackendError, Entry, Look};
use crate::base::FileKind;
use crate::rules::catalog::chain::{self, Chain, Found, Head, Link, LogState, Replay};
use crate::rules::catalog::segment::{
    HEADER_BYTES, Header, MAGIC, MAX_SEGMENT_BYTES, Segment, SegmentError, read_header,
};
use crate::rules::catalog::store::CatalogStore;
use crate::rules::layout;
use crate::rules::trust::Trust;

/// What a volume's log of the catalog holds, for a mirror as of some head.
#[derive(Clone, Debug)]
pub struct CatalogLog {
    /// How the log stands once [`CatalogLog::replay`] is done: what the next segment is reckoned from.
    pub state: LogState,
    /// What the mirror is to take.
    pub replay: Replay,
    /// Attributes that are lost, a line for people each: for the log, for `status` and for whoever mounts.
    pub lost: Vec<String>,
    /// What is wrong with the log and costs nothing, as the mirror has it: for the log of the daemon.
    pub mended: Vec<String>,
    /// Whose word the log is, all of it that stands on the drive.
    pub trust: Trust,
    volume: Uuid,
}

/// Reads the log of the catalog on `backend`, for a mirror that is as of `mirror`. Every checksum is verified, so this takes about as
/// long as reading all of the log, which is bounded by what it describes. All batches must have been finished before.
///
/// # Errors
/// If the backend fails; [`FlushError::NotOurs`] if something else stands where the log belongs; [`FlushError::Catalog`] if a segment
/// is of a newer ferryfs: nothing must then be written to the volume.
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
        // What is taken is taken whole: that it can be meant is found out before anything is.
        match first_senseless(backend, volume, &chain)? {
            Some((number, problem)) => found.insert(number, Found::Bad(problem)),
            None => return Ok(CatalogLog::new(chain, trust, volume)),
        };
    }
}

/// Whose word a segment is. If it is ours, and those that are read later are the same, so are they.
fn trust_of(backend: &dyn Backend, number: u64) -> Result<Trust> {
    match backend.trust(&layout::segment_path(number)) {
        Ok(trust) => Ok(trust),
        Err(error) if error.is_stalled() || error.is_gone() => Err(error.into()),
        // What cannot be looked at is not read either.
        Err(_) => Ok(Trust::ANYBODY),
    }
}

/// What stands in the log's directory.
pub(super) fn segments(backend: &dyn Backend) -> Result<Vec<Entry>> {
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

/// What stands under the name of segment `number`.
pub(super) fn look_at(
    backend: &dyn Backend,
    volume: Uuid,
    number: u64,
    kind: FileKind,
) -> Result<Found> {
    let bad = |problem: &str| Ok(Found::Bad(problem.to_string()));
    if kind != FileKind::Regular {
        return bad("is no file; somebody else has put it there");
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
        Err(FlushError::Backend(error)) => return unreadable(backend, error),
        Err(error) => return Err(error),
    };
    let (head, hash, bytes) = match sealed {
        Sealed::Part { head, hash, bytes } => (head, hash, bytes),
        Sealed::TooLong(_) => return bad("is longer than any can be"),
        Sealed::Nothing | Sealed::Torn | Sealed::Whole(_) => return bad("is damaged"),
    };
    match read_header(&head) {
        Ok(header) if header.number == number && header.volume == volume => {
            let Header { after, full, .. } = header;
            Ok(Found::Whole(Link {
                hash,
                after,
                full,
                bytes,
            }))
        }
        Ok(_) => bad("belongs to another volume or to another number"),
        Err(newer @ SegmentError::Newer { .. }) => Err(FlushError::Catalog(format!(
            "the catalog on the drive cannot be used: of {path}: {newer}; update ferryfs on this machine. Nothing was changed"
        ))),
        Err(error) => Ok(Found::Bad(format!("is not to be used: {error}"))),
    }
}

/// A file that cannot be read costs what it says; a drive that is gone is another matter.
fn unreadable(backend: &dyn Backend, error: BackendError) -> Result<Found> {
    if error.is_stalled() || (error.is_gone() && backend.check_alive(Look::Read).is_err()) {
        return Err(error.into());
    }
    Ok(Found::Bad(format!("cannot be read: {}", error.source)))
}

/// The first of the segments to be taken that cannot be meant, or cannot be read any more, and why.
fn first_senseless(
    backend: &dyn Backend,
    volume: Uuid,
    chain: &Chain,
) -> Result<Option<(u64, String)>> {
    for number in chain.replay.numbers() {
        if let Err(problem) = load(backend, volume, *number, |_| Ok(()))? {
            return Ok(Some((*number, problem)));
        }
    }
    Ok(None)
}

/// Hands the segment `number` to `take`, whole and looked at; why it cannot be, in words, if it cannot.
fn load(
    backend: &dyn Backend,
    volume: Uuid,
    number: u64,
    take: impl FnOnce(&Segment<'_>) -> Result<()>,
) -> Result<std::result::Result<(), String>> {
    let path = layout::segment_path(number);
    let bytes = match read_sealed_as(backend, &path, &MAGIC, MAX_SEGMENT_BYTES, None)? {
        (Sealed::Whole(bytes), _) => bytes,
        _ => return Ok(Err("has changed while it was read".into())),
    };
    match Segment::decode(&bytes) {
        Ok(segment) if segment.header.volume == volume && segment.header.number == number => {
            take(&segment).map(Ok)
        }
        Ok(_) => Ok(Err("has changed while it was read".into())),
        Err(error) => Ok(Err(format!("is not to be used: {error}"))),
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

    /// Brings `store` to where the log is. Should it fail halfway, the store is to be thrown away or read anew from nothing.
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

impl From<std::convert::Infallible> for FlushError {
    fn from(never: std::convert::Infallible) -> FlushError {
        match never {}
    }
}
