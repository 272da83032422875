//! Opening a cache together with the drive that it belongs to: nothing is written to either before both are known.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::first_contact::{self, Fresh};
use super::health::{self, Case, Decision, FsState};
use super::known_caches::{self, Place};
use super::lease::{Holder, Keeper};
use super::options::MountOptions;
use super::re_enroll::re_enroll;
use super::verify::{self, Found, Refusal};
use super::volume::{self, CacheFacts};
use super::volume_lock::VolumeLock;
use super::{DaemonError, attach, monitor, preflight, starting};
use crate::backend::Backend;
use crate::backend::mounted::MountedDir;
use crate::base::{Clock, ForeignText};
use crate::cache::CacheLock;
use crate::cli::exit::Exit;
use crate::flush::FlushError;
use crate::rules::marker::Marker;

/// A cache that is open and locked, and the volume that it belongs to.
pub(super) struct Opened {
    /// What is taken back if the mount comes to nothing. First, as it is while the locks are still held.
    pub(super) fresh: Option<Fresh>,
    pub(super) dir: PathBuf,
    pub(super) facts: CacheFacts,
    /// Where the volume was found, or is expected.
    pub(super) path: PathBuf,
    /// It; or why the mount begins without it.
    pub(super) found: Result<Found, DaemonError>,
    /// What is to be said of its file system.
    pub(super) warning: Option<String>,
    /// The volume's marker was deleted and has been written anew since the cache was in use. The index is to note that, and then
    /// the facts are to be written.
    pub(super) renewed: bool,
    /// Keeps other machines from working on the volume.
    pub(super) lease: Arc<Keeper>,
    _lock: CacheLock,
    /// Keeps other daemons of this machine off the volume.
    pub(super) volume_lock: Arc<VolumeLock>,
}

/// Where the volume of a mount is.
enum Located {
    /// There; a directory that is no volume yet has no marker.
    Here(PathBuf, MountedDir, Option<Marker>),
    /// Its cache is known, and it is not at its place.
    Away {
        dir: PathBuf,
        facts: Box<CacheFacts>,
        why: DaemonError,
    },
}

/// Opens and locks the cache of the volume that `options` name, enrolling the volume if it is a new one.
///
/// # Errors
/// If the directory is not the volume that the cache belongs to, or one of them cannot be had.
pub(super) fn open_cache(options: &MountOptions, clock: &dyn Clock) -> Result<Opened, DaemonError> {
    match locate(options, clock)? {
        Located::Here(path, backend, marker) => {
            open_with_drive(options, clock, (path, backend, marker))
        }
        Located::Away { dir, facts, why } => open_alone(options, clock, dir, *facts, why),
    }
}

/// The cache alone, with its drive away: everything in it can be used, and the drive is taken up when it comes back.
fn open_alone(
    options: &MountOptions,
    clock: &dyn Clock,
    dir: PathBuf,
    facts: CacheFacts,
    why: DaemonError,
) -> Result<Opened, DaemonError> {
    // What stands in the drive's place may not answer.
    preflight::check_cache_alone(&dir, &options.backend, &options.mountpoint)?;
    let volume_lock = explained(facts.volume, VolumeLock::acquire_away(facts.volume))?;
    let lock = lock_cache(&dir, Some(&facts))?;
    let of = (facts.volume, facts.origin);
    let lease = Keeper::start(options.lease, options.lease_timeout, of, clock.now())
        .map_err(|error| DaemonError::failed(format!("cannot start a thread: {error}")))?;
    known_caches::note(&dir, &facts);
    Ok(Opened {
        fresh: None,
        dir,
        facts,
        path: options.backend.clone(),
        found: Err(why),
        warning: None,
        renewed: false,
        lease,
        _lock: lock,
        volume_lock: Arc::new(volume_lock),
    })
}

/// The lock of a cache. If another daemon has it, and `known` tells which volume that serves, it says what keeps it in use.
fn lock_cache(dir: &Path, known: Option<&CacheFacts>) -> Result<CacheLock, DaemonError> {
    CacheLock::acquire(dir).map_err(|error| {
        let refused = DaemonError::failed(error.to_string())
            .hint("see `ferryfs status`; one cache serves one mount");
        match known {
            Some(facts) => super::running::explain(facts.volume, refused),
            None => refused,
        }
    })
}

fn open_with_drive(
    options: &MountOptions,
    clock: &dyn Clock,
    (path, backend, marker): (PathBuf, MountedDir, Option<Marker>),
) -> Result<Opened, DaemonError> {
    let volume_lock = marker
        .as_ref()
        .map(|marker| lock_volume(marker.id, &backend))
        .transpose()?;
    let dir = match (&options.cache, &marker) {
        (Some(dir), _) => dir.clone(),
        (None, Some(marker)) => volume::default_caches()?.join(marker.id.to_string()),
        // The volume's id names the cache; it is known once it is enrolled.
        (None, None) => volume::default_caches()?,
    };
    preflight::check_cache(&dir, &path, &options.mountpoint)?;
    match options.cache.is_some() || marker.is_some() {
        true => volume::check_private(&dir)?,
        false => volume::check_way(&dir)?,
    }
    let known = CacheFacts::read(&dir)?;
    if let Some(facts) = &known {
        facts.check(&dir, &path, marker.as_ref())?;
        // Before anything is written, be it by a checker.
        verify::verify(&path, facts, options.accept_copy)?;
    }
    if marker.is_none() && !options.enroll {
        first_contact::check(&path, &dir)?;
    }
    let (backend, warning) = look_at_its_state(options, &path, backend, &dir)?;
    let mut fresh = None;
    let marker = match marker {
        Some(marker) => marker,
        None => {
            fresh = Some(Fresh::new(&path, &backend));
            let (marker, is_ours) = volume::enroll(&backend, clock.now())?;
            if !is_ours && let Some(ours) = fresh.take() {
                ours.disown();
            }
            marker
        }
    };
    // Who has it at work has found the marker that was just made: it is theirs from here on.
    let theirs_if_failed = |fresh: &mut Option<Fresh>| {
        if let Some(ours) = fresh.take() {
            ours.disown();
        }
    };
    let volume_lock = match volume_lock {
        Some(lock) => lock,
        None => lock_volume(marker.id, &backend).inspect_err(|_| theirs_if_failed(&mut fresh))?,
    };
    let dir = match &options.cache {
        Some(_) => dir,
        None => volume::default_caches()?.join(marker.id.to_string()),
    };
    let is_empty = std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_none());
    let made_dir = is_empty || !dir.exists();
    volume::make_cache_dir(&dir)?;
    volume::check_private(&dir)?;
    let lock = lock_cache(&dir, known.as_ref())?;
    let is_new = known.is_none();
    let origin = known
        .as_ref()
        .map_or_else(Uuid::new_v4, |facts| facts.origin);
    // Before anything is written but the marker, which is made once and never changed.
    let lease = take_lease(options, &path, &backend, (marker.id, origin), clock)
        .inspect_err(|_| theirs_if_failed(&mut fresh))?;
    let mut facts = match known {
        Some(facts) => facts,
        None => CacheFacts::new(&backend, &path, &marker, origin)?,
    };
    let found = verify::verify(&path, &facts, options.accept_copy)?;
    let file_system = found.file_system.clone().or(&facts.file_system);
    let probed = facts.probe_anew(&backend);
    if facts.remember(&path, file_system) || is_new || probed {
        if let Some(fresh) = &mut fresh {
            fresh.with_cache(&dir, &facts, made_dir);
        }
        facts.write(&dir)?;
    }
    // Written only when the index has noted it: until then a crash leaves both nonces.
    let renewed = facts.settle_enrollment(marker.nonce);
    known_caches::note(&dir, &facts);
    Ok(Opened {
        fresh,
        dir,
        facts,
        path,
        found: Ok(found),
        warning,
        renewed,
        lease,
        _lock: lock,
        volume_lock: Arc::new(volume_lock),
    })
}

fn lock_volume(volume: Uuid, backend: &MountedDir) -> Result<VolumeLock, DaemonError> {
    explained(volume, VolumeLock::acquire(volume, backend))
}

fn explained<T>(volume: Uuid, locked: Result<T, DaemonError>) -> Result<T, DaemonError> {
    locked.map_err(|refused| super::running::explain(volume, refused))
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
        path.escaped(),
        left.as_secs().max(1)
    ));
}

/// Where the backend is, it, and its marker: the directory that was named; or, if that is one where the volume of a cache
/// has been and is not now, the place where it was attached last.
fn locate(options: &MountOptions, clock: &dyn Clock) -> Result<Located, DaemonError> {
    let looked = starting::look(&options.backend, options.io_timeout);
    let (backend, marker, problem) = match looked {
        Ok((backend, Some(marker))) => {
            return Ok(Located::Here(
                options.backend.clone(),
                backend,
                Some(marker),
            ));
        }
        Ok((backend, None)) => (Some(backend), None, None),
        Err(error) if error.code == Exit::BackendAbsent => (None, None, Some(error)),
        Err(error) => return Err(error),
    };
    if options.re_enroll
        && let Some(problem) = problem
    {
        let message = format!("--re-enroll needs the drive: {}", problem.message);
        return Err(DaemonError { message, ..problem }.hint(
            "nothing was written. Mount the drive there first; to work without it, leave --re-enroll out",
        ));
    }
    let place = match problem == Some(starting::no_answer()) {
        true => Place::Silent,
        false => Place::Answers,
    };
    let known = match options.enroll && backend.is_some() {
        true => None,
        false => known_caches::for_mount(options, &options.mountpoint, place)?,
    };
    let (dir, mut facts) = match (known, backend) {
        (Some(known), _) => known,
        (None, Some(_)) if options.re_enroll && !options.enroll => {
            return Err(nothing_to_re_enroll(&options.backend));
        }
        (None, Some(backend)) => {
            return Ok(Located::Here(options.backend.clone(), backend, marker));
        }
        (None, None) => return Err(problem.unwrap_or_else(starting::no_answer)),
    };
    if facts.backend != options.backend
        && problem.is_none()
        && let Ok(found) = verify::verify(&facts.backend, &facts, false)
    {
        tracing::info!(named = %options.backend.escaped(), found = %facts.backend.escaped(), "the drive is at another place");
        crate::cli::complain(&format!(
            "ferryfs: the drive is not at {} but at {}: mounting that",
            options.backend.escaped(),
            facts.backend.escaped()
        ));
        let marker = volume::peek(&found.dir)?;
        return Ok(Located::Here(facts.backend, found.dir, marker));
    }
    if options.re_enroll && problem.is_none() {
        let lock = lock_cache(&dir, Some(&facts))?;
        let forced = options.accept_copy;
        re_enroll(&options.backend, &mut facts, &dir, forced, clock.now())?;
        drop(lock);
        let (backend, marker) = starting::look(&options.backend, options.io_timeout)?;
        return Ok(Located::Here(options.backend.clone(), backend, marker));
    }
    let why = match problem {
        Some(problem) => problem,
        None => match verify::verify(&options.backend, &facts, false) {
            Err(refusal @ Refusal::MarkerDeleted(_)) => refusal.into(),
            // Perhaps another drive: nobody has said that this cache is meant.
            _ if options.cache.is_none() && !first_contact::is_bare(&options.backend) => {
                return Err(first_contact::known_place(&options.backend, &dir, &facts));
            }
            _ => facts.absent(&options.backend),
        },
    };
    Ok(Located::Away {
        dir,
        facts: Box::new(facts),
        why,
    })
}

fn nothing_to_re_enroll(path: &Path) -> DaemonError {
    DaemonError {
        code: Exit::BackendAbsent,
        message: format!(
            "{} has no .ferryfs/volume.json, and no cache knows a volume that was there",
            path.escaped()
        ),
        hint: Some(
            "nothing was written. Name the directory where the drive was, and its cache with --cache; to make a new volume of it, leave --re-enroll out"
                .into(),
        ),
    }
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
