//! Opens a cache together with the drive that it belongs to. Nothing is written to either before
//! both are known.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::cache::CacheLock;
use crate::core::{Clock, Exit, Failure, ForeignText};
use crate::daemon::first_contact::Fresh;
use crate::daemon::fsck::{Case, Decision, FsState};
use crate::daemon::known_caches::Place;
use crate::daemon::lease::{Holder, Keeper};
use crate::daemon::options::MountOptions;
use crate::daemon::re_enroll::re_enroll;
use crate::daemon::verify::{Found, Refusal};
use crate::daemon::volume::CacheFacts;
use crate::daemon::volume_lock::{VolumeLock, VolumeLockError};
use crate::daemon::{
    already_running, attach, first_contact, fsck, keep_clean, known_caches, monitor, preflight,
    startup, verify, volume,
};
use crate::drive::Backend;
use crate::drive::mounted::MountedDir;
use crate::error::FlushError;
use crate::format::marker::Marker;

/// An open and locked cache, and the volume that it belongs to.
pub(super) struct Opened {
    /// Removed if the mount fails. The first field, because the locks must still be held when it is
    /// dropped.
    pub(super) fresh: Option<Fresh>,
    pub(super) dir: PathBuf,
    pub(super) facts: CacheFacts,
    /// Where the volume was found, or is expected.
    pub(super) path: PathBuf,
    /// The volume; or why the mount starts without it.
    pub(super) found: Result<Found, Failure>,
    /// A warning about its file system.
    pub(super) warning: Option<String>,
    /// The volume's marker was deleted and has been written again since the cache was last used.
    /// The index must note that before the facts are written.
    pub(super) renewed: bool,
    /// Keeps other machines from using the volume.
    pub(super) lease: Arc<Keeper>,
    _lock: CacheLock,
    /// Keeps other daemons on this machine from using the volume.
    pub(super) volume_lock: Arc<VolumeLock>,
}

/// Where the volume of a mount is.
enum Located {
    /// It is there. A directory that is not a volume yet has no marker.
    Here(PathBuf, MountedDir, Option<Marker>),
    /// Its cache is known, and it is not at its path.
    Away {
        dir: PathBuf,
        facts: Box<CacheFacts>,
        why: Failure,
    },
}

/// Opens and locks the cache of the volume that `options` name. A new volume is enrolled.
///
/// # Errors
/// If the directory is not the volume that the cache belongs to, or one of them cannot be opened.
pub(super) fn open_cache(options: &MountOptions, clock: &dyn Clock) -> Result<Opened, Failure> {
    match locate(options, clock)? {
        Located::Here(path, backend, marker) => {
            open_with_drive(options, clock, (path, backend, marker))
        }
        Located::Away { dir, facts, why } => open_alone(options, clock, dir, *facts, why),
    }
}

/// Opens the cache alone, because its drive is away: all of the cache can be used, and the drive is
/// attached when it is back.
fn open_alone(
    options: &MountOptions,
    clock: &dyn Clock,
    dir: PathBuf,
    facts: CacheFacts,
    why: Failure,
) -> Result<Opened, Failure> {
    // What is at the drive's path may not answer.
    preflight::check_cache_alone(&dir, &options.backend, &options.mountpoint)?;
    let volume_lock = explained(facts.volume, VolumeLock::acquire_away(facts.volume))?;
    let lock = lock_cache(&dir, Some(&facts))?;
    let of = (facts.volume, facts.origin);
    let lease = Keeper::start(options.lease, options.lease_timeout, of, clock.now())
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
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

/// Locks a cache. If another daemon has locked it, and `known` names the volume that it serves, the
/// message says what keeps it in use.
fn lock_cache(dir: &Path, known: Option<&CacheFacts>) -> Result<CacheLock, Failure> {
    CacheLock::acquire(dir).map_err(|error| match known {
        Some(facts) => already_running::explain(facts.volume, error.into()),
        None => already_running::Refused::from(error).into(),
    })
}

fn open_with_drive(
    options: &MountOptions,
    clock: &dyn Clock,
    (path, backend, marker): (PathBuf, MountedDir, Option<Marker>),
) -> Result<Opened, Failure> {
    let volume_lock = marker
        .as_ref()
        .map(|marker| lock_volume(marker.id, &backend))
        .transpose()?;
    let dir = match (&options.cache, &marker) {
        (Some(dir), _) => dir.clone(),
        (None, Some(marker)) => volume::default_caches()?.join(marker.id.to_string()),
        // The cache is named after the volume's id, which is known once it is enrolled.
        (None, None) => volume::default_caches()?,
    };
    preflight::check_cache(&dir, &path, &options.mountpoint)?;
    keep_clean::prepare(options, &path, &backend)?;
    match options.cache.is_some() || marker.is_some() {
        true => volume::check_private(&dir)?,
        false => volume::check_way(&dir)?,
    }
    let known = CacheFacts::read(&dir)?;
    if options.read_only && (known.is_none() || marker.is_none()) {
        return Err(not_known(&path, marker.is_some()));
    }
    if known.is_none() {
        // The probe must be able to write to the drive.
        preflight::check_can_write(&path)?;
    }
    if let Some(facts) = &known {
        facts.check(&dir, &path, marker.as_ref())?;
        // Before anything is written, also by a checker.
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
            let marker = Marker::new(Uuid::new_v4(), *Uuid::new_v4().as_bytes(), clock.now());
            let ours = Fresh::new(&path, &backend, &marker);
            let found = volume::enroll(&backend, &marker)?;
            match found == marker {
                true => fresh = Some(ours),
                false => ours.disown(),
            }
            found
        }
    };
    // A daemon that locked the volume has found the new marker, so the marker belongs to that
    // daemon from here on.
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
    // Before anything is written, except for the marker, which is made once and never changed.
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
    // Written only when the index has noted it. After a crash before that both nonces are valid.
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

/// Why a mount that only reads cannot begin. What a drive can do is found by trying, which writes;
/// and without a marker it is not known which drive it is.
fn not_known(path: &Path, is_volume: bool) -> Failure {
    let why = match is_volume {
        true => "this cache does not know the drive yet",
        false => "it is no volume of ferryfs, and is not made one",
    };
    let place = path.escaped();
    Failure::failed(format!("cannot mount {place} read-only: {why}")).hint(
        "nothing was written. Mount it once without --read-only, with the same cache; or read the \
         directory itself",
    )
}

fn lock_volume(volume: Uuid, backend: &MountedDir) -> Result<VolumeLock, Failure> {
    explained(volume, VolumeLock::acquire(volume, backend))
}

fn explained<T>(volume: Uuid, locked: Result<T, VolumeLockError>) -> Result<T, Failure> {
    locked.map_err(|refused| already_running::explain(volume, refused.into()))
}

/// Takes the lease of the volume. The cache must be locked.
fn take_lease(
    options: &MountOptions,
    path: &Path,
    backend: &MountedDir,
    of: (Uuid, Uuid),
    clock: &dyn Clock,
) -> Result<Arc<Keeper>, Failure> {
    let keeper = Keeper::start(options.lease, options.lease_timeout, of, clock.now())
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
    let backend: Arc<dyn Backend> = Arc::new(backend.clone());
    keeper.take(
        &backend,
        is_shared(path),
        options.take_over,
        |holder, left| say_that_we_wait(path, holder, left),
    )?;
    Ok(keeper)
}

/// Whether other machines may use the files at `path`, too.
pub(super) fn is_shared(path: &Path) -> bool {
    verify::mount_of(path).is_some_and(|mount| mount.is_shared())
}

/// Tells the waiting user why the mount waits.
pub(super) fn say_that_we_wait(path: &Path, holder: &Holder, left: Duration) {
    crate::sys::terminal::complain(&format!(
        "{} was last in use by {holder}; waiting up to {} s for an answer of that machine",
        path.escaped(),
        left.as_secs().max(1)
    ));
}

/// The drive's path, the directory, and its marker: the directory that `options` name; or, if a
/// volume of the cache was there and is not there now, the path where it was attached last.
fn locate(options: &MountOptions, clock: &dyn Clock) -> Result<Located, Failure> {
    let looked = startup::look(&options.backend, options.io_timeout);
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
        return Err(Failure { message, ..problem }.hint(
            "nothing was written. Mount the drive there first; to work without it, leave \
             --re-enroll out",
        ));
    }
    let place = match problem == Some(startup::no_answer()) {
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
        (None, None) => return Err(problem.unwrap_or_else(startup::no_answer)),
    };
    if facts.backend != options.backend
        && problem.is_none()
        && let Ok(found) = verify::verify(&facts.backend, &facts, false)
    {
        tracing::info!(
            named = %options.backend.escaped(),
            found = %facts.backend.escaped(),
            "the drive is at another place"
        );
        crate::sys::terminal::complain(&format!(
            "ferryfs: the drive is not at {} but at {}: mounting it from there",
            options.backend.escaped(),
            facts.backend.escaped()
        ));
        let marker = volume::peek(&found.dir)?;
        return Ok(Located::Here(facts.backend, found.dir, marker));
    }
    if options.re_enroll && problem.is_none() {
        let backend = MountedDir::open(&options.backend).map_err(FlushError::from)?;
        keep_clean::prepare(options, &options.backend, &backend)?;
        let lock = lock_cache(&dir, Some(&facts))?;
        let forced = options.accept_copy;
        re_enroll(&options.backend, &mut facts, &dir, forced, clock.now())?;
        drop(lock);
        let (backend, marker) = startup::look(&options.backend, options.io_timeout)?;
        return Ok(Located::Here(options.backend.clone(), backend, marker));
    }
    let why = match problem {
        Some(problem) => problem,
        None => match verify::verify(&options.backend, &facts, false) {
            Err(refusal @ Refusal::MarkerDeleted(_)) => refusal.into(),
            // It may be another drive, and no option names this cache.
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

fn nothing_to_re_enroll(path: &Path) -> Failure {
    Failure {
        code: Exit::BackendAbsent,
        message: format!(
            "{} has no .ferryfs/volume.json, and no cache knows a volume that was there",
            path.escaped()
        ),
        hint: Some(
            "nothing was written. Name the directory where the drive was, and its cache with \
             --cache; to make a new volume of it, leave --re-enroll out"
                .into(),
        ),
    }
}

/// Looks at the state of the drive's own file system, and checks it if that was asked for. Returns
/// the drive, which has then been mounted again, and the warning about it.
fn look_at_its_state(
    options: &MountOptions,
    path: &Path,
    backend: MountedDir,
    cache: &Path,
) -> Result<(MountedDir, Option<String>), Failure> {
    let mount = verify::mount_of(path);
    let case = Case {
        state: mount.as_ref().map_or(FsState::Irrelevant, fsck::state_of),
        vanished: false,
        batch_open: monitor::has_open_batch(cache),
        fsck: options.fsck,
    };
    match (fsck::decide(case), &mount) {
        (Decision::Check, Some(mount)) => {
            fsck::check(mount).map_err(|error| attach::refused(&error))?;
            crate::sys::terminal::complain("ferryfs: the drive was checked and has no errors");
            let backend = MountedDir::open(path).map_err(FlushError::from)?;
            Ok((backend, None))
        }
        _ => {
            let warning = monitor::warning(case, mount.as_ref(), path);
            if let Some(warning) = &warning {
                tracing::warn!(warning, "the drive's file system");
                crate::sys::terminal::complain(&format!("ferryfs: warning: {warning}"));
            }
            Ok((backend, warning))
        }
    }
}
