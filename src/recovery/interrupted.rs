//! Interrupted batches on a drive: which there are, and how a machine without their cache finishes
//! them.

use std::sync::atomic::AtomicBool;

use uuid::Uuid;

use crate::apply::Applied;
use crate::apply::explain::explain_alone;
use crate::apply::journal::Journal;
use crate::apply::limited::{Limited, no_device};
use crate::apply::place::{Manners, Placer};
use crate::apply::refused::{Refusal, StepNo, Why};
use crate::apply::refused_list;
use crate::apply::reserve::Relieved;
use crate::apply::staging::staging_trust;
use crate::apply::staging::{discard, discard_ended};
use crate::apply::versions::{self, Keeper};
use crate::core::{BatchNo, ForeignText, RelPath, SLACK_NS};
use crate::drive::sealed_file::{Sealed, read_sealed, read_small};
use crate::drive::{Backend, is_absent};
use crate::error::{FlushError, Result};
use crate::format::record::{BatchRecord, RecordError};
use crate::format::steps::{Node, PlaceStep};
use crate::format::{layout, marker, record};
use crate::plan::trust::{Author, Credentials, Trust};
use crate::recovery::locate::is_any_begun;
use crate::recovery::replay::Redo;
use crate::sys;
use crate::sys::behalf::OnBehalf;

/// Suffix of the receipt: the record of a batch that was finished without the cache that wrote it.
const DONE: &str = ".done";

/// What became of a batch that was found on a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredBatch {
    /// Its number.
    pub batch: BatchNo,
    /// Whether it was committed, and so is finished now; otherwise it was discarded.
    pub finished: bool,
    /// Files that it has written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Paths on the backend that the backend refused to change, with the reason.
    pub left_behind: Vec<(String, String)>,
}

/// Checks that the directory is the expected volume. P6 depends on this.
pub(crate) fn check_marker(backend: &dyn Backend, volume: Uuid, nonce: [u8; 16]) -> Result<()> {
    let wrong = |problem: String| FlushError::WrongDrive(problem);
    match read_small(backend, &layout::marker_path(), marker::MAX_BYTES)? {
        None => Err(wrong(
            "the directory does not carry the volume's marker \
            (.ferryfs/volume.json): the drive is not mounted there, or it is another one"
                .into(),
        )),
        Some(bytes) => match marker::decode(&bytes) {
            Ok(marker) if marker.id == volume && marker.nonce == nonce => Ok(()),
            Ok(marker) => Err(wrong(format!(
                "another volume is mounted there: {}, not {volume}",
                marker.id
            ))),
            Err(error) => Err(wrong(format!("the volume marker cannot be read: {error}"))),
        },
    }
}

pub(crate) fn done_path(batch: BatchNo) -> Result<RelPath> {
    let name = format!("{:016x}{DONE}", batch.0);
    RelPath::parse(name.as_bytes())
        .ok()
        .and_then(|path| path.split_last())
        .map(|(_, name)| layout::batches_dir().join(&name))
        .ok_or_else(|| FlushError::WrongDrive("a batch number has no file name".into()))
}

/// What the backend has as the record of a batch.
pub(crate) enum Found {
    /// Nothing: the batch was not committed, or is over.
    Nothing,
    /// An incomplete record. Its writing was interrupted, or it was damaged later; nothing tells
    /// which.
    Torn,
    /// A record of this batch and volume, and the trust in it.
    Record(Box<BatchRecord>, Trust),
}

/// Reads the record of `batch` at `path`, and checks that it belongs there.
pub(crate) fn read_record(
    backend: &dyn Backend,
    path: &RelPath,
    batch: BatchNo,
    volume: Uuid,
) -> Result<Found> {
    let (sealed, trust) = read_sealed(backend, path)?;
    let decoded = match sealed {
        Sealed::Nothing => return Ok(Found::Nothing),
        Sealed::Torn | Sealed::Part { .. } => return Ok(Found::Torn),
        Sealed::TooLong(bytes) => Err(RecordError::TooLong { bytes }),
        Sealed::Whole(bytes) => record::decode(&bytes),
    };
    match decoded {
        Ok(record) if record.volume == volume && record.batch == batch => {
            Ok(Found::Record(Box::new(record), trust))
        }
        Ok(_) => Err(FlushError::Unfinished {
            batch,
            problem: format!(
                "the record {path} belongs to another volume or batch; it was copied there by \
                 hand, move it away"
            ),
        }),
        Err(error) if error.is_torn() => Ok(Found::Torn),
        // Whole, but it cannot be applied. Nothing was done for it, and nothing will be until
        // somebody has looked.
        Err(error) => Err(FlushError::Unfinished {
            batch,
            problem: format!("{error} (the record is {path} on the drive)"),
        }),
    }
}

/// Returns the batches with a record or staged files on the backend, oldest first.
pub(crate) fn batches_on(backend: &dyn Backend) -> Result<Vec<BatchNo>> {
    let mut found = std::collections::BTreeSet::new();
    for (dir, parse) in [
        (
            layout::batches_dir(),
            layout::parse_record_name as fn(&crate::core::Name) -> Option<BatchNo>,
        ),
        (layout::staging_root(), layout::parse_staging_name),
    ] {
        match backend.read_dir(&dir) {
            Ok(entries) => found.extend(entries.iter().filter_map(|entry| parse(&entry.name))),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found.into_iter().collect())
}

/// Higher numbers are ignored. No cache gets there by counting; but a made-up name would bring ours
/// to the end of the numbers, and no batch could begin any more.
const FOLLOWED: BatchNo = BatchNo(1 << 62);

/// Returns the highest batch number on the backend, and among `others`, that was reached by
/// counting.
pub(crate) fn highest_on(backend: &dyn Backend, others: Vec<BatchNo>) -> Result<Option<BatchNo>> {
    let mut all = others;
    all.extend(batches_on(backend)?);
    all.extend(done_on(backend)?);
    let counted = all.iter().filter(|batch| **batch <= FOLLOWED).max();
    let Some(mut highest) = counted.copied() else {
        return Ok(None);
    };
    // Numbers may follow directly that somebody has made up.
    all.sort();
    for batch in all {
        if batch.0 == highest.0 + 1 {
            highest = batch;
        }
    }
    Ok(Some(highest))
}

/// Removes the receipt of a batch.
///
/// # Errors
/// If the backend fails.
pub(crate) fn forget_done(backend: &dyn Backend, batch: BatchNo) -> Result<()> {
    // The list first: without the receipt nothing would look for it.
    for path in [layout::left_path(batch), done_path(batch)?] {
        match backend.remove_file(&path) {
            Err(error) if !is_absent(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the batches with a receipt, whose caches may not know yet.
pub(crate) fn done_on(backend: &dyn Backend) -> Result<Vec<BatchNo>> {
    let entries = match backend.read_dir(&layout::batches_dir()) {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let batch = |entry: &crate::core::Entry| {
        let digits = entry.name.as_bytes().strip_suffix(DONE.as_bytes())?;
        layout::parse_staging_name(&crate::core::Name::new(digits).ok()?)
    };
    Ok(entries.iter().filter_map(batch).collect())
}

/// Finishes a batch with the files on the backend alone. A stranger's batch gets nothing that would
/// give its author rights; and root does only what the author could have done, so that the batch
/// moves and shows nothing that the author could not reach.
///
/// Returns what was not done, with the reasons.
pub(crate) fn finish_alone(
    backend: &dyn Backend,
    record: &BatchRecord,
    trust: Trust,
) -> Result<Vec<(String, String)>> {
    let (limited, _rights) = match trust {
        Trust::Ours if staging_trust(backend, Some(record.batch))?.is_ours() => {
            return apply_alone(backend, record);
        }
        // Staged files could be replaced before they get their attributes.
        Trust::Ours => (Limited::for_own(backend), None),
        // It belongs to us, so no other user has written it; but one may have put it there.
        Trust::Stranger(None) => (Limited::for_stranger(backend), None),
        Trust::Stranger(Some(author)) if nix::unistd::Uid::effective().is_root() => (
            Limited::for_stranger(backend),
            Some(rights_of(author, record.batch)?),
        ),
        Trust::Stranger(Some(author)) => {
            let author = Credentials {
                uid: author.uid,
                groups: sys::behalf::groups(author.uid, author.gid),
            };
            (Limited::for_author(backend, author), None)
        }
    };
    let mut left_behind = apply_alone(&limited, record)?;
    let left_out = limited.left_out().into_iter();
    left_behind.extend(left_out.map(|(path, reason)| (path.to_text(), reason)));
    Ok(left_behind)
}

/// Limits root's rights on the drive to those of a record's author, until the returned value is
/// dropped.
fn rights_of(author: Author, batch: BatchNo) -> Result<OnBehalf> {
    OnBehalf::of(author.uid, author.gid).map_err(|error| FlushError::Unfinished {
        batch,
        problem: format!(
            "another user wrote its record, and root may not act with that user's rights here \
                 ({error}); run `ferryfs recover` as that user"
        ),
    })
}

/// Applies a record with the files on the backend alone, and renames it to a receipt for its cache.
///
/// If a crash has left it under both names, it was finished, and stays so until its cache comes:
/// the names share clusters, and removing one, or renaming over it, would free them under the
/// other.
///
/// Returns what the backend refused, with the reasons. The staged files of refused steps are kept
/// in `.ferryfs/lost+found`, because the cache may never come back.
fn apply_alone(backend: &dyn Backend, record: &BatchRecord) -> Result<Vec<(String, String)>> {
    let done = read_record(
        backend,
        &done_path(record.batch)?,
        record.batch,
        record.volume,
    )?;
    if matches!(done, Found::Record(done, _) if *done == *record) {
        discard(backend, &layout::staging_dir(record.batch))?;
        return Ok(Vec::new());
    }
    let manners = Manners {
        time: record.created,
        host: sys::host::name(),
        slack: SLACK_NS,
        full_is_refusal: false,
        keeps_versions: versions::keeps(backend, record.batch)?,
    };
    let plain = backend;
    // The reserve is made again by the next batch.
    let gave_reserve_up = AtomicBool::new(false);
    let backend: &dyn Backend = &Relieved::new(backend, record.batch, &gave_reserve_up);
    let redo = Redo {
        backend,
        batch: record.batch,
        volume: record.volume,
        steps: &record.steps,
        known: &record.known,
        catalog: record.catalog.as_ref(),
        manners: &manners,
        ssd: None,
    };
    let applied = redo.run().map_err(|error| match error {
        // The drive is there and refuses: this does not go away by itself.
        FlushError::Backend(error) if !error.is_gone() => FlushError::Unfinished {
            batch: record.batch,
            problem: format!(
                "{error} (the record is {} on the drive)",
                layout::record_path(record.batch)
            ),
        },
        error => error,
    })?;
    for (path, reason) in applied.surprises() {
        tracing::warn!(path, reason, "differs from the batch");
    }
    let left_behind = keep_refused(backend, record, &manners, &applied)?;
    if manners.keeps_versions {
        let keeper = Keeper {
            backend: plain,
            record,
            is_repeated: true,
            make_space: &|_| Ok(false),
        };
        keeper.keep(&applied.garbage)?;
    }
    let refused: Vec<StepNo> = applied.refused.steps.iter().map(|it| it.step).collect();
    refused_list::write(backend, &layout::left_path(record.batch), &refused)?;
    backend.rename(
        &layout::record_path(record.batch),
        &done_path(record.batch)?,
    )?;
    backend.sync()?;
    for path in &applied.garbage {
        match backend.remove_file(path) {
            Err(error) if !is_absent(&error) => return Err(error.into()),
            _ => {}
        }
    }
    discard_ended(backend, &layout::staging_dir(record.batch))?;
    Ok(left_behind)
}

fn keep_refused(
    backend: &dyn Backend,
    record: &BatchRecord,
    manners: &Manners,
    applied: &Applied,
) -> Result<Vec<(String, String)>> {
    let placer = Placer {
        backend,
        batch: record.batch,
        manners,
    };
    let mut left_behind = Vec::new();
    for Refusal { step, path, why } in &applied.refused.steps {
        let mut reason = explain_alone(why);
        if let StepNo::Place(number) = step
            && let Some(PlaceStep::InstallNode { node, .. }) = record.steps.place.get(*number)
            && matches!(node, Node::CharDevice { .. } | Node::BlockDevice { .. })
            && *why == Why::Errno(libc::EPERM)
        {
            reason = no_device();
        }
        if let StepNo::Place(number) = step
            && let Some(PlaceStep::Install { slot, .. }) = record.steps.place.get(*number)
        {
            let staged = layout::slot_path(record.batch, *slot);
            if crate::drive::exists(backend, &staged)? {
                let kept = placer.to_lost_found(&staged)?;
                reason.push_str(&format!("; the new version is kept as {kept}"));
            }
        }
        if let StepNo::Place(number) = step
            && let Some(PlaceStep::Patch { .. }) = record.steps.place.get(*number)
        {
            reason.push_str("; only the machine that wrote the batch has the whole new version");
        }
        left_behind.push((path.to_text(), reason));
    }
    Ok(left_behind)
}

/// Finishes the committed batches on a backend whose cache is elsewhere, and discards the others.
///
/// # Errors
/// If the backend fails, or a staged file is damaged: then nothing more is touched. If the drive
/// has lost the record of a batch that has begun a patch: then the other batches are finished.
pub fn recover_without_cache(backend: &dyn Backend) -> Result<Vec<RecoveredBatch>> {
    let bytes =
        read_small(backend, &layout::marker_path(), marker::MAX_BYTES)?.ok_or_else(|| {
            FlushError::WrongDrive(
                "this is no volume of ferryfs: there is no .ferryfs/volume.json".into(),
            )
        })?;
    let marker = marker::decode(&bytes).map_err(|error| {
        FlushError::WrongDrive(format!("the volume marker cannot be read: {error}"))
    })?;
    let mut recovered = Vec::new();
    let mut lost = None;
    for batch in batches_on(backend)? {
        let found = read_record(backend, &layout::record_path(batch), batch, marker.id)?;
        let mut left_behind = Vec::new();
        let (finished, (files, bytes)) = match &found {
            Found::Record(record, trust) => {
                left_behind = finish_alone(backend, record, *trust)?;
                (true, totals(record))
            }
            // A patch was begun, so there was a record, and the drive has lost it.
            Found::Nothing
                if is_any_begun(backend, batch)?
                    && !crate::drive::exists(backend, &done_path(batch)?)? =>
            {
                lost.get_or_insert(lost_record(batch));
                continue;
            }
            Found::Nothing => {
                discard(backend, &layout::staging_dir(batch))?;
                (false, (0, 0))
            }
            // Clearing was over, so files were set aside, and the record of their names is damaged.
            Found::Torn if crate::drive::exists(backend, &layout::barrier_path(batch))? => {
                return Err(FlushError::Unfinished {
                    batch,
                    problem: format!(
                        "its record is damaged and {} holds files; only the machine that wrote it \
                         can tell where they belong",
                        layout::staging_dir(batch)
                    ),
                });
            }
            // Most likely its writing was interrupted, and nothing has been touched. Nothing is
            // removed in any case.
            Found::Torn => (false, (0, 0)),
        };
        recovered.push(RecoveredBatch {
            batch,
            finished,
            files,
            bytes,
            left_behind,
        });
    }
    match lost {
        None => Ok(recovered),
        Some(lost) => Err(lost),
    }
}

fn lost_record(batch: BatchNo) -> FlushError {
    FlushError::Unfinished {
        batch,
        problem: format!(
            "the drive has lost its record while blocks were written into large files, or has \
             refused to remove what it has left; only the machine that wrote it can finish it \
             (what it needs is in {})",
            layout::staging_dir(batch)
        ),
    }
}

fn totals(record: &BatchRecord) -> (u64, u64) {
    record
        .steps
        .place
        .iter()
        .fold((0, 0_u64), |(files, bytes), step| match step {
            PlaceStep::Install { content, .. } => (files + 1, bytes.saturating_add(content.size)),
            PlaceStep::Patch { patch, .. } => (files + 1, bytes.saturating_add(patch.size)),
            _ => (files, bytes),
        })
}

/// Writes the records again of the batches that have a journal in `journals` and no record on the
/// backend, because somebody has deleted our directory there. The next recovery finishes these
/// batches, or finds that they are over.
///
/// It is no longer known how far a batch had come. It counts as cleared: clearing again could
/// remove files that it has placed, while a name that was not cleared stays on the backend as an
/// unknown file.
///
/// # Errors
/// If the SSD or the backend fails.
pub(crate) fn restore_records(backend: &dyn Backend, journals: &std::path::Path) -> Result<()> {
    let make_dir = |dir: &RelPath| match backend.make_dir(dir) {
        Err(error) if error.source.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    };
    for batch in crate::apply::journal::batches_in(journals)? {
        let path = layout::record_path(batch);
        let Some(journal) = Journal::read(journals, batch)? else {
            continue;
        };
        if crate::drive::exists(backend, &path)? {
            continue;
        }
        for dir in [
            layout::dir(),
            layout::staging_root(),
            layout::staging_dir(batch),
            layout::batches_dir(),
        ] {
            make_dir(&dir)?;
        }
        let mark = layout::barrier_path(batch);
        if !crate::drive::exists(backend, &mark)? {
            crate::drive::create_with(backend, &mark, b"")?;
        }
        crate::drive::create_with(backend, &path, &record::seal(&journal.record)?)?;
    }
    Ok(backend.sync()?)
}
