//! Checks before a mount: mistakes that show in the paths alone, each with what the user can do.
//!
//! The checks help the user and are not needed for safety: between check and mount anything may
//! change. The volume's marker and the cache's lock protect the data, and are checked where they
//! are used.

mod error;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};

pub(super) use self::error::safer_place;
pub use self::error::{PreflightError, Role};
use super::known_caches::Place;
use super::mountpoint::Note;
use super::{MountOptions, known_caches, mountpoint};
use crate::control::mounts;
use crate::control::mounts::MountEntry;
use crate::core::ForeignText;
use crate::format::layout;
use crate::sys;
use crate::sys::mounting::Spot;
use crate::sys::way;

/// A mount that has been checked.
#[derive(Debug)]
pub struct Checked {
    /// Its options, with the symbolic links of the mount point resolved.
    pub options: MountOptions,
    /// The mount point, held open since it was checked.
    pub spot: Spot,
}

/// Checks what can be checked before a mount. A dead ferryfs mount stays at the mount point until
/// the new mount replaces it.
///
/// # Errors
/// The first [`PreflightError`] that is found.
pub fn check(options: MountOptions) -> Result<Checked, PreflightError> {
    let table = || {
        mounts::read().map_err(|source| PreflightError::Io {
            operation: "read the mount table for",
            path: options.mountpoint.clone(),
            source,
        })
    };
    let may_be_full = |path: &Path| options.adopt || was_cut_off(&options, path, Place::Answers);
    let spot = check_mountpoint(&options.mountpoint, &table()?, may_be_full)?;
    let mountpoint = spot.path().to_path_buf();
    let backend = match check_backend(&options.backend, &table()?, Need::Files) {
        // The mount starts without it.
        Err(PreflightError::BackendMissing { .. })
            if known_caches::are_there_any(&options, Place::Answers) =>
        {
            resolve_lenient(&options.backend)
        }
        checked => checked?,
    };
    check_apart((Role::Mountpoint, &mountpoint), (Role::Backend, &backend))?;
    if let Some(cache) = &options.cache {
        check_cache(cache, &backend, &mountpoint)?;
    }
    Ok(Checked {
        options: MountOptions {
            mountpoint,
            ..options
        },
        spot,
    })
}

/// Checks that the cache, which need not exist yet, is apart from `backend` and `mountpoint` (both
/// absolute).
///
/// # Errors
/// [`PreflightError::Nested`] if it is not.
pub fn check_cache(cache: &Path, backend: &Path, mountpoint: &Path) -> Result<(), PreflightError> {
    check_cache_alone(cache, &resolve_lenient(backend), mountpoint)
}

/// As [`check_cache`], without an access to `backend`, which may not answer.
///
/// # Errors
/// [`PreflightError::Nested`] if the cache is not apart.
pub(super) fn check_cache_alone(
    cache: &Path,
    backend: &Path,
    mountpoint: &Path,
) -> Result<(), PreflightError> {
    let (cache, mountpoint) = (resolve_lenient(cache), resolve_lenient(mountpoint));
    check_apart((Role::Cache, &cache), (Role::Backend, backend))?;
    check_apart((Role::Cache, &cache), (Role::Mountpoint, &mountpoint))
}

/// Checks that `backend` is a directory that a running mount with this cache and mount point can
/// attach as its drive.
///
/// # Errors
/// The first [`PreflightError`] that is found.
pub fn check_attachable(
    backend: &Path,
    cache: &Path,
    mountpoint: &Path,
) -> Result<(), PreflightError> {
    check_alone(backend, Need::Files)?;
    check_cache(cache, backend, mountpoint)?;
    let resolved = resolve_lenient(backend);
    check_apart((Role::Mountpoint, mountpoint), (Role::Backend, &resolved))
}

/// Checks that `backend` is a directory that can be written to, outside of any ferryfs mount.
///
/// # Errors
/// The first [`PreflightError`] that is found.
pub fn check_recoverable(backend: &Path) -> Result<(), PreflightError> {
    check_alone(backend, Need::Writing)
}

/// What the drive is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// To serve its files. It must be writable only if it is not a volume yet.
    Files,
    /// To change it.
    Writing,
}

fn check_alone(backend: &Path, need: Need) -> Result<(), PreflightError> {
    let table = mounts::read().map_err(|source| PreflightError::Io {
        operation: "read the mount table for",
        path: backend.into(),
        source,
    })?;
    check_backend(backend, &table, need).map(drop)
}

/// Checks the mount point alone, because the drive does not answer.
///
/// # Errors
/// The first [`PreflightError`] that is found.
pub(super) fn check_without_backend(options: MountOptions) -> Result<Checked, PreflightError> {
    let table = mounts::read().map_err(|source| PreflightError::Io {
        operation: "read the mount table for",
        path: options.mountpoint.clone(),
        source,
    })?;
    let may_be_full = |path: &Path| options.adopt || was_cut_off(&options, path, Place::Silent);
    let spot = check_mountpoint(&options.mountpoint, &table, may_be_full)?;
    let mountpoint = spot.path().to_path_buf();
    check_apart(
        (Role::Mountpoint, &mountpoint),
        (Role::Backend, &options.backend),
    )?;
    Ok(Checked {
        options: MountOptions {
            mountpoint,
            ..options
        },
        spot,
    })
}

/// Whether the last daemon of this mount died at this mount point. Then the files in it were meant
/// for the mount.
fn was_cut_off(options: &MountOptions, path: &Path, place: Place) -> bool {
    let cache = match &options.cache {
        Some(dir) => Some(dir.clone()),
        None => known_caches::for_mount(options, path, place)
            .ok()
            .flatten()
            .map(|(dir, _)| dir),
    };
    cache.is_some_and(|dir| Note::read(&dir, path).was_cut_off())
}

fn check_mountpoint(
    given: &Path,
    table: &[MountEntry],
    may_be_full: impl Fn(&Path) -> bool,
) -> Result<Spot, PreflightError> {
    let io = |operation| {
        move |source| PreflightError::Io {
            operation,
            path: given.into(),
            source,
        }
    };
    let path = resolve_mountpoint(given)?;
    let there = table.iter().find(|mount| mount.mountpoint == path);
    if let Some(mount) = there
        && !mountpoint::is_dead_mount(&path)
    {
        return Err(busy(path, mount));
    }
    // From here on all checks are about the directory that is held open.
    let spot = match Spot::hold(&path) {
        Ok(spot) => spot,
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => PreflightError::MountpointMissing(path),
                io::ErrorKind::NotADirectory => PreflightError::MountpointNotDirectory(path),
                _ => io("look at")(error),
            });
        }
    };
    // The directory under a dead mount cannot be reached before the mount is replaced.
    if there.is_some() {
        return Ok(spot);
    }
    let inside = |mount: &&MountEntry| mount.mountpoint.starts_with(&path);
    let names = spot.open().and_then(|dir| sys::dir::read_names(dir.into()));
    if names.map_err(io("list"))?.is_empty() {
        return Ok(spot);
    }
    if let Some(mount) = table.iter().find(inside) {
        return Err(PreflightError::MountInside {
            inside: mount.mountpoint.clone(),
            path,
        });
    }
    if !may_be_full(&path) {
        return Err(PreflightError::MountpointNotEmpty {
            names: mountpoint::names_in(&path),
            path,
        });
    }
    Ok(spot)
}

/// The path of the mount point without symbolic links. Root does not follow a link that another
/// user may have made.
fn resolve_mountpoint(given: &Path) -> Result<PathBuf, PreflightError> {
    // A dead mount cannot be looked at, and a missing directory does not exist.
    let above = || {
        let (parent, name) = (given.parent()?, given.file_name()?);
        let way = way::walk(parent).ok()?;
        Some((way.place.join(name), way.lure().cloned()))
    };
    let found = match way::walk(given) {
        Ok(way) => Some((way.place.clone(), way.lure().cloned())),
        Err(_) => above(),
    };
    match found {
        Some((path, None)) => Ok(path),
        Some((_, Some(exposed))) => Err(PreflightError::MountpointExposed {
            path: given.into(),
            exposed,
        }),
        None => Ok(given.into()),
    }
}

fn busy(path: PathBuf, mount: &MountEntry) -> PreflightError {
    PreflightError::MountpointBusy {
        path,
        fstype: mount.fstype.to_text(),
        source_path: mount.source.clone(),
    }
}

fn check_backend(
    given: &Path,
    table: &[MountEntry],
    need: Need,
) -> Result<PathBuf, PreflightError> {
    let missing = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => PreflightError::Io {
            operation: "look at the drive",
            path: given.into(),
            source,
        },
        io::ErrorKind::NotADirectory => PreflightError::BackendNotDirectory(given.into()),
        _ => PreflightError::BackendMissing {
            path: given.into(),
            source,
        },
    };
    let way = way::walk(given).map_err(missing)?;
    if let Some(exposed) = way.danger() {
        return Err(PreflightError::BackendExposed {
            path: given.into(),
            exposed: exposed.clone(),
        });
    }
    let path = way.place;
    if let Some(mount) = mounts::holding(table, &path).filter(|mount| mount.is_ferryfs()) {
        return Err(PreflightError::BackendIsFerryfs {
            backend: path,
            mountpoint: mount.mountpoint.clone(),
        });
    }
    if !fs::metadata(&path).map_err(missing)?.is_dir() {
        return Err(PreflightError::BackendNotDirectory(path));
    }
    if need == Need::Files && is_volume(&path) {
        return Ok(path);
    }
    check_can_write(&path)?;
    Ok(path)
}

/// Whether the directory has a volume's marker. It need not be writable then: the files of a drive
/// that has become read-only can still be used.
fn is_volume(path: &Path) -> bool {
    fs::symlink_metadata(path.join(layout::marker_path().as_os_str())).is_ok()
}

/// Checks that the directory can be written to by this user.
///
/// # Errors
/// If it cannot, or does not answer.
pub(super) fn check_can_write(path: &Path) -> Result<(), PreflightError> {
    let flags = statvfs(path).map_err(|errno| PreflightError::BackendMissing {
        path: path.into(),
        source: errno.into(),
    })?;
    let allowed = access(path, AccessFlags::W_OK | AccessFlags::X_OK);
    check_writable(path, flags.flags().contains(FsFlags::ST_RDONLY), allowed)
}

fn check_writable(
    path: &Path,
    read_only: bool,
    allowed: nix::Result<()>,
) -> Result<(), PreflightError> {
    match allowed {
        _ if read_only => Err(PreflightError::BackendReadOnly(path.into())),
        Ok(()) => Ok(()),
        Err(nix::Error::EROFS) => Err(PreflightError::BackendReadOnly(path.into())),
        Err(errno) => Err(PreflightError::BackendNotWritable {
            path: path.into(),
            source: errno.into(),
        }),
    }
}

/// Checks that neither of two directories contains the other. Both paths are absolute and without
/// symbolic links.
fn check_apart(a: (Role, &Path), b: (Role, &Path)) -> Result<(), PreflightError> {
    let ((inner, inner_path), (outer, outer_path)) = if a.1.starts_with(b.1) {
        (a, b)
    } else if b.1.starts_with(a.1) {
        (b, a)
    } else {
        return Ok(());
    };
    Err(PreflightError::Nested {
        inner,
        inner_path: inner_path.into(),
        outer,
        outer_path: outer_path.into(),
    })
}

/// `path` with the symbolic links resolved in the part of it that exists.
fn resolve_lenient(path: &Path) -> PathBuf {
    let existing = path
        .ancestors()
        .find_map(|ancestor| Some((ancestor, fs::canonicalize(ancestor).ok()?)));
    match existing {
        Some((ancestor, resolved)) => match path.strip_prefix(ancestor) {
            Ok(rest) if !rest.as_os_str().is_empty() => resolved.join(rest),
            _ => resolved,
        },
        None => path.into(),
    }
}

#[cfg(test)]
mod tests;
