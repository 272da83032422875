//! Opens the index at a start, and repairs what an unclean end has left.

use std::path::Path;
use std::sync::Arc;

use super::open_cache::Opened;
use crate::cache::{Reserve, Store};
use crate::core::{Failure, printable, quoted};
use crate::index;
use crate::index::{Index, IndexError};
use crate::plan::names::NameRules;
use crate::recovery::cache::UncleanEnd;
use crate::sys::terminal::complain;
use crate::vfs::Fs;

/// The most lost files that the mount command names one by one; `status` has them all.
const LOSSES_NAMED: usize = 10;

/// Opens the index of the cache that was opened.
///
/// # Errors
/// If it is damaged or of another version, or the SSD fails.
pub(super) fn open_index(opened: &Opened) -> Result<Arc<Index>, Failure> {
    let rules = NameRules::new(&opened.facts.capabilities);
    Reserve::make_room_to_start(&opened.dir);
    // Opening the index makes durable what an earlier process committed. The bytes to which its
    // rows refer must be durable before.
    std::fs::File::open(&opened.dir)
        .and_then(crate::sys::file::sync_file_system)
        .map_err(|error| Failure::failed(format!("cannot sync the cache: {error}")))?;
    let path = opened.dir.join("index.db");
    check(&path, opened)?;
    let index = Index::open(&path, rules).map_err(|error| Failure::failed(error.to_string()))?;
    let waits = index.lock().try_again();
    waits.map_err(|error| Failure::failed(error.to_string()))?;
    Ok(Arc::new(index))
}

/// Refuses an index that is inconsistent, before anything is written to it.
fn check(path: &Path, opened: &Opened) -> Result<(), Failure> {
    let checked = index::check(path, Store::holds_objects(&opened.dir)).map_err(|error| {
        let refused = Failure::failed(error.to_string());
        let dir = quoted(&opened.dir);
        let rescue = format!("ferryfs rescue --cache {dir} --to OUT");
        match error {
            IndexError::Damaged { .. } => refused.hint(format!(
                "nothing was changed. Copy out what the cache holds: {rescue}; \
                 then move {dir} away and mount again"
            )),
            IndexError::OtherVersion(_) => refused.hint(format!(
                "nothing was changed. After that flush, move {dir} away and mount again. Without \
                 that ferryfs, copy out what can be read: {rescue}"
            )),
            _ => refused,
        }
    })?;
    for oddity in &checked.oddities {
        tracing::warn!(%oddity, "the index has an oddity that does no harm");
    }
    if !checked.complete {
        tracing::info!("the index is too large to be checked as a whole");
    }
    Ok(())
}

/// Prints a warning for each of the lost files.
fn warn_of_losses(lines: &[String]) {
    for line in lines.iter().take(LOSSES_NAMED) {
        complain(&format!("ferryfs: warning: {}", printable(line)));
    }
    if lines.len() > LOSSES_NAMED {
        let more = lines.len() - LOSSES_NAMED;
        complain(&format!(
            "ferryfs: warning: and {more} more, see `ferryfs status`"
        ));
    }
}

/// Repairs what an unclean end has left. Returns, and prints, what has become of files whose bytes
/// were lost, a line each.
///
/// # Errors
/// If the cache cannot be repaired.
pub(super) fn repair_after_unclean_end(fs: &Fs, index: &Index) -> Result<Vec<String>, Failure> {
    let unclean = index
        .lock()
        .meta("unclean")
        .map_err(|error| Failure::failed(error.to_string()))?;
    let boot = boot();
    let mut damaged = Vec::new();
    if let Some(unclean) = unclean {
        let end = match unclean == boot {
            true => UncleanEnd::Killed,
            false => UncleanEnd::PowerCut,
        };
        let recovered = fs.recover_after(end).map_err(super::run::failed)?;
        tracing::info!(
            ?end,
            measured = recovered.measured,
            orphans = recovered.orphans,
            lost_and_found = recovered.quarantined.len(),
            damaged = recovered.damaged.len(),
            "repaired what an unclean end had left"
        );
        damaged = recovered.damaged;
    }
    note_unclean(index, &boot)?;
    warn_of_losses(&damaged);
    Ok(damaged)
}

/// The current boot of the machine. If the previous daemon ran in another one, what it had not
/// synced may be lost.
fn boot() -> String {
    // Unknown: counts as another boot, which is the safe assumption.
    crate::sys::host::boot_id().unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
}

/// Notes durably in which boot the daemon runs; empty after a clean end, when the next start has
/// nothing to repair.
pub(super) fn note_unclean(index: &Index, value: &str) -> Result<(), Failure> {
    let noted = index.lock().set_meta("unclean", value);
    noted
        .and_then(|()| index.sync())
        .map_err(|error| Failure::failed(error.to_string()))
}
