//! Opening a cache together with the drive that it belongs to: nothing is written to either before both are known.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::health::{self, Case, Decision, FsState};
use super::lease::{Holder, Keeper};
use super::options::MountOptions;
use super::verify::{self, Found};
use super::volume::{self, CacheFacts, VolumeLock};
use super::{DaemonError, attach, monitor, preflight, starting};
use crate::backend::Backend;
use crate::backend::mounted::MountedDir;
use crate::base::Clock;
use crate::cache::CacheLock;
use crate::flush::FlushError;
use crate::rules::marker::Marker;

/// A cache that is open and locked, and the volume that it belongs to.
pub(super) struct Opened {
    pub(super) dir: PathBuf,
    pub(super) facts: CacheFacts,
    /// Where the volume was found.
    pub(super) path: PathBuf,
    pub(super) found: Found,
    /// What is to be said of its file system.
    pub(super) warning: Option<String>,
    /// Keeps other machines from working on the volume.
    pub(super) lease: Arc<Keeper>,
    _lock: CacheLock,
    _volume: VolumeLock,
}

/// Opens and locks the cache of the volume that `options` name, enrolling the volume if it is a new one.
///
/// # Errors
/// If the directory is not the volume that the cache belongs to, or one of them cannot be had.
pub(super) fn open_cache(options: &MountOptions, clock: &dyn Clock) -> Result<Opened, DaemonError> {
    let (path, backend, marker) = locate(options)?;
    let volume_lock = marker
        .as_ref()
        .map(|marker| lock_volume(marker.id))
        .transpose()?;
    let dir = match (&options.cache, &marker) {
        (Some(dir), _) => dir.clone(),
        (None, Some(marker)) => volume::default_caches()?.join(marker.id.to_string()),
        // The volume's id names the cache; it is known once it is enrolled.
        (None, None) => volume::default_caches()?,
    };
    preflight::check_cache(&dir, &path, &options.mountpoint)?;
    let known = CacheFacts::read(&dir)?;
    if let Some(facts) = &known {
        facts.check(&dir, &path, marker.as_ref())?;
        // Before anything is written, be it by a checker.
        verify::verify(&path, facts, options.accept_copy)?;
    }
    let (backend, warning) = look_at_its_state(options, &path, backend, &dir)?;
    let marker = match marker {
        Some(marker) => marker,
        None => volume::enroll(&backend, clock.now())?,
    };
    let volume_lock = match volume_lock {
        Some(lock) => lock,
        None => lock_volume(marker.id)?,
    };
    let dir = match &options.cache {
        Some(_) => dir,
        None => volume::default_caches()?.join(marker.id.to_string()),
    };
    volume::make_cache_dir(&dir)?;
    let lock = CacheLock::acquire(&dir).map_err(|error| {
        let refused = DaemonError::failed(error.to_string())
            .hint("see `ferryfs status`; one cache serves one mount");
        match &known {
            Some(facts) => super::running::explain(facts.volume, refused),
            None => refused,
        }
    })?;
    let is_new = known.is_none();
    let origin = known
        .as_ref()
        .map_or_else(Uuid::new_v4, |facts| facts.origin);
    // Before anything is written but the marker, which is made once and never changed.
    let lease = take_lease(options, &path, &backend, (marker.id, origin), clock)?;
    let mut facts = match known {
        Some(facts) => facts,
        None => CacheFacts::new(&backend, &path, &marker, origin)?,
    };
    let found = verify::verify(&path, &facts, options.accept_copy)?;
    let file_system = found.file_system.clone().or(&facts.file_system);
    let probed = facts.probe_anew(&backend);
    if facts.remember(&path, file_system) || is_new || probed {
        facts.write(&dir)?;
    }
    Ok(Opened {
        dir,
        facts,
        path,
        found,
        warning,
        lease,
        _lock: lock,
        _volume: volume_lock,
    })
}

fn lock_volume(volume: Uuid) -> Result<VolumeLock, DaemonError> {
    VolumeLock::acquire(volume).map_err(|refused| super::running::explain(volume, refused))
}

/// Makes sure that no other machine has the volume at work. To be called with the cache locked.
fn take_lease(
    options: &MountOptions,
    path: &Path,
    backend: &MountedDir,
    of: (Uuid, Uuid),
    clock: &dyn Clock,
) -> Result<Arc<Keeper>, DaemonError> {
    let keeper = Keeper::start(options.lease, options.lease_timeout, of, clock.now())
        .map_err(|error| DaemonError::failed(format!("cannot start a thread: {error}")))?;
    let backend: Arc<dyn Backend> = Arc::new(backend.clone());
    keeper.take(
        &backend,
        is_shared(path),
        options.take_over,
        |holder, left| say_that_we_wait(path, holder, left),
    )?;
    Ok(keeper)
}

/// Whether other machines may have the files at `path` at hand as well.
pub(super) fn is_shared(path: &Path) -> bool {
    verify::mount_of(path).is_some_and(|mount| mount.is_shared())
}

/// Tells the person who waits why.
pub(super) fn say_that_we_wait(path: &Path, holder: &Holder, left: Duration) {
    crate::cli::complain(&format!(
        "{} was last in use by {holder}; asking whether it still is, for up to {} s",
        path.display(),
        left.as_secs().max(1)
    ));
}

/// Where the backend is, it, and its marker: the directory that was named; or, if that is one where the volume of a cache
/// has been and is not now, the place where it was attached last.
fn locate(options: &MountOptions) -> Result<(PathBuf, MountedDir, Option<Marker>), DaemonError> {
    let (backend, marker) = starting::look(&options.backend, options.io_timeout)?;
    if marker.is_some() {
        return Ok((options.backend.clone(), backend, marker));
    }
    let facts = match &options.cache {
        Some(dir) => CacheFacts::read(dir)?,
        None => volume::default_caches()
            .ok()
            .and_then(|caches| volume::cache_made_for(&caches, &options.backend))
            .map(|(_, facts)| facts),
    };
    let Some(facts) = facts.filter(|facts| facts.was_at(&options.backend)) else {
        return Ok((options.backend.clone(), backend, None));
    };
    if facts.backend != options.backend
        && let Ok(found) = verify::verify(&facts.backend, &facts, false)
    {
        tracing::info!(named = %options.backend.display(), found = %facts.backend.display(), "the drive is at another place");
        crate::cli::complain(&format!(
            "ferryfs: the drive is not at {} but at {}: mounting that",
            options.backend.display(),
            facts.backend.display()
        ));
        let marker = volume::peek(&found.dir)?;
        return Ok((facts.backend, found.dir, marker));
    }
    Err(facts.absent(&options.backend))
}

/// Looks at the state of the drive's own file system, and has it checked if that was asked for. Gives the drive, which is
/// mounted anew then, and what is to be said of it.
fn look_at_its_state(
    options: &MountOptions,
    path: &Path,
    backend: MountedDir,
    cache: &Path,
) -> Result<(MountedDir, Option<String>), DaemonError> {
    let mount = verify::mount_of(path);
    let case = Case {
        state: mount.as_ref().map_or(FsState::Irrelevant, health::state_of),
        vanished: false,
        batch_open: monitor::has_open_batch(cache),
        fsck: options.fsck,
    };
    match (health::decide(case), &mount) {
        (Decision::Check, Some(mount)) => {
            health::check(mount).map_err(|error| attach::refused(&error))?;
            crate::cli::complain("ferryfs: the drive was checked and is in order");
            let backend = MountedDir::open(path).map_err(FlushError::from)?;
            Ok((backend, None))
        }
        _ => {
            let warning = monitor::warning(case, mount.as_ref(), path);
            if let Some(warning) = &warning {
                tracing::warn!(warning, "the drive's file system");
                crate::cli::complain(&format!("ferryfs: warning: {warning}"));
            }
            Ok((backend, warning))
        }
    }
}
