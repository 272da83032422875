//! What is checked before a mount is tried: mistakes that can be told from the paths alone, each with what to do.
//!
//! These checks are for people, not for safety: between check and mount anything may change, and what protects the
//! data (the volume's marker, the cache's lock) is checked where it is used.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};

use super::dead_mount::DetachError;
use super::known_caches::{self, Place};
use super::mountpoint::{self, Note};
use super::{DaemonError, MountOptions};
use crate::base::ForeignText;
use crate::cli::exit::Exit;
use crate::cli::mounts::{self, MountEntry};
use crate::cli::render::quoted;
use crate::sys;
use crate::sys::mounting::Spot;
use crate::sys::way::{self, Exposed, Writer};

/// A directory that a mount is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The slow side.
    Backend,
    /// Where the mount goes.
    Mountpoint,
    /// The directory on the SSD.
    Cache,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Backend => "backend",
            Role::Mountpoint => "mount point",
            Role::Cache => "cache",
        })
    }
}

/// Why a mount is not even tried.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// There is nothing at the mount point.
    #[error("the mount point {} does not exist", .0.escaped())]
    MountpointMissing(PathBuf),
    /// The mount point is something else.
    #[error("the mount point {} is not a directory", .0.escaped())]
    MountpointNotDirectory(PathBuf),
    /// Files under a mount are hidden, and easily forgotten.
    #[error("the mount point {} is not empty: {names}", path.escaped())]
    MountpointNotEmpty {
        /// The mount point.
        path: PathBuf,
        /// Some of what is in it.
        names: String,
    },
    /// The mount would hide another one.
    #[error("in the mount point {} something is mounted: {}", path.escaped(), inside.escaped())]
    MountInside {
        /// The mount point.
        path: PathBuf,
        /// Where something is mounted.
        inside: PathBuf,
    },
    /// Something is mounted there.
    #[error("{} is already a mount ({fstype} of {})", path.escaped(), source_path.escaped())]
    MountpointBusy {
        /// The mount point.
        path: PathBuf,
        /// Type of what is mounted there.
        fstype: String,
        /// What is mounted there.
        source_path: PathBuf,
    },
    /// A dead ferryfs mount is there and stays.
    #[error("a dead mount is in the way: {0}")]
    DeadMountStays(#[from] DetachError),
    /// The backend's directory is not there, or what it lies on does not answer.
    #[error("the backend {} is not there: {source}", path.escaped())]
    BackendMissing {
        /// The backend.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another user can make the path lead elsewhere, and this is root.
    #[error("the backend {} is not used as root: {exposed}", path.escaped())]
    BackendExposed {
        /// The backend.
        path: PathBuf,
        /// Where, and who.
        exposed: Exposed,
    },
    /// A link that another user may have made leads to the mount point, and this is root.
    #[error("the mount point {} is not used as root: a link leads from it, and {exposed}", path.escaped())]
    MountpointExposed {
        /// The mount point, as it was named.
        path: PathBuf,
        /// Where, and who.
        exposed: Exposed,
    },
    /// The mount point is not the directory any more that was looked at.
    #[error("the mount point {} is another directory than a moment ago", .0.escaped())]
    MountpointChanged(PathBuf),
    /// The backend is something else.
    #[error("the backend {} is not a directory", .0.escaped())]
    BackendNotDirectory(PathBuf),
    /// The whole file system is read-only.
    #[error("the backend {} is mounted read-only", .0.escaped())]
    BackendReadOnly(PathBuf),
    /// This user may not write there.
    #[error("the backend {} cannot be written to: {source}", path.escaped())]
    BackendNotWritable {
        /// The backend.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A ferryfs on a ferryfs.
    #[error("the backend {} is itself in a ferryfs mount ({})", backend.escaped(), mountpoint.escaped())]
    BackendIsFerryfs {
        /// The backend.
        backend: PathBuf,
        /// The mount that it is in.
        mountpoint: PathBuf,
    },
    /// Two of the directories are one, or one is inside the other.
    #[error("the {inner} {} is inside the {outer} {}", inner_path.escaped(), outer_path.escaped())]
    Nested {
        /// What is inside.
        inner: Role,
        /// Where that is.
        inner_path: PathBuf,
        /// What it is inside of.
        outer: Role,
        /// Where that is.
        outer_path: PathBuf,
    },
    /// Something could not even be looked at.
    #[error("cannot {operation} {}: {source}", path.escaped())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PreflightError {
    /// What the process is to end with.
    pub fn code(&self) -> Exit {
        match self {
            PreflightError::BackendMissing { .. } => Exit::BackendAbsent,
            _ => Exit::Failed,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        use PreflightError as E;
        match self {
            E::MountpointMissing(path) => format!("make it: mkdir -p {}", quoted(path)),
            E::MountpointNotDirectory(_) => "choose a directory".into(),
            E::MountpointNotEmpty { .. } => {
                "nothing was touched. Choose an empty directory, or move it away; or have it moved into the mount: --adopt".into()
            }
            E::MountInside { inside, .. } => format!(
                "nothing was touched. Unmount it first: umount {}; or choose another directory",
                quoted(inside)
            ),
            E::MountpointBusy { path, fstype, .. } if fstype.as_bytes() == mounts::FSTYPE => {
                format!(
                    "it may be what you want: ferryfs status {0}; to end it: ferryfs unmount {0}",
                    quoted(path)
                )
            }
            E::MountpointBusy { path, .. } => format!(
                "choose another directory, or unmount what is there: umount {}",
                quoted(path)
            ),
            E::DeadMountStays(_) => "close what still uses it, or unmount it as root".into(),
            E::BackendMissing { .. } => {
                "plug the drive in, or mount the share, and try again".into()
            }
            E::BackendExposed { exposed, .. } => safer_place(exposed),
            E::MountpointExposed { .. } => {
                "nothing was mounted. Name the directory itself, without a link".into()
            }
            E::MountpointChanged(_) => {
                "nothing was mounted. Somebody has moved it or put another one in its place: find out who, then try again".into()
            }
            E::BackendNotDirectory(_) => {
                "name the directory where the drive is mounted, not its device".into()
            }
            E::BackendReadOnly(path) => format!(
                "after an error the system makes a drive read-only: check it with fsck, then mount it again (see `dmesg`, `findmnt -T {}`)",
                quoted(path)
            ),
            E::BackendNotWritable { .. } => {
                "mount the drive with your uid (exFAT: -o uid=...,gid=...), or change its owner"
                    .into()
            }
            E::BackendIsFerryfs { .. } => "name the drive's own directory".into(),
            E::Nested { outer, .. } => match outer {
                Role::Cache => "give the cache a directory of its own with --cache DIR".into(),
                _ => "choose directories outside of one another".into(),
            },
            E::Io { .. } => "check the path, and who may use it".into(),
        }
    }
}

/// What root is told who names a directory to which others can change the way.
pub(super) fn safer_place(exposed: &Exposed) -> String {
    let as_owner = match exposed.by {
        Writer::Owner(uid) | Writer::OwnerOfNext(uid) => {
            format!("run ferryfs as that user ({uid})")
        }
        Writer::Group(_) | Writer::All => {
            format!("take that right away: chmod go-w {}", quoted(&exposed.dir))
        }
    };
    format!(
        "nothing was touched: root would follow others wherever they lead it. Either {as_owner}, or mount the drive at a place of root's, \
         such as /mnt/NAME (`mount --bind` does)"
    )
}

impl From<PreflightError> for DaemonError {
    fn from(error: PreflightError) -> DaemonError {
        DaemonError {
            code: error.code(),
            message: error.to_string(),
            hint: Some(error.hint()),
        }
    }
}

/// A mount that was checked.
#[derive(Debug)]
pub struct Checked {
    /// What it was told, with the mount point's symbolic links resolved.
    pub options: MountOptions,
    /// The mount point, held since it was looked at.
    pub spot: Spot,
}

/// Checks what can be checked before a mount.
/// A ferryfs mount whose daemon is gone stays at the mount point until the new one replaces it.
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
    let backend = match check_backend(&options.backend, &table()?) {
        // The mount begins without it.
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

/// Checks that the cache, which need not exist yet, is apart from `backend` and `mountpoint` (both absolute).
///
/// # Errors
/// [`PreflightError::Nested`] if it is not.
pub fn check_cache(cache: &Path, backend: &Path, mountpoint: &Path) -> Result<(), PreflightError> {
    check_cache_alone(cache, &resolve_lenient(backend), mountpoint)
}

/// As [`check_cache`], without a look at `backend`: it may not answer.
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

/// Checks that `backend` is a directory that a running mount with this cache and mount point can take as its backend.
///
/// # Errors
/// The first [`PreflightError`] that is found.
pub fn check_attachable(
    backend: &Path,
    cache: &Path,
    mountpoint: &Path,
) -> Result<(), PreflightError> {
    check_recoverable(backend)?;
    check_cache(cache, backend, mountpoint)?;
    let resolved = resolve_lenient(backend);
    check_apart((Role::Mountpoint, mountpoint), (Role::Backend, &resolved))
}

/// Checks that `backend` is a directory that can be written to, outside of any ferryfs mount.
///
/// # Errors
/// The first [`PreflightError`] that is found.
pub fn check_recoverable(backend: &Path) -> Result<(), PreflightError> {
    let table = mounts::read().map_err(|source| PreflightError::Io {
        operation: "read the mount table for",
        path: backend.into(),
        source,
    })?;
    check_backend(backend, &table).map(drop)
}

/// The checks of the mount point alone, for when the backend's file system does not answer.
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

/// Whether the last daemon of this mount died at this very mount point: what is in it was meant for the mount.
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
    // All that is found out from here on is about the directory that is held.
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
    // Nothing gets to what is under a dead mount, so nothing is to be looked at there before it is replaced.
    if there.is_some() {
        return Ok(spot);
    }
    let inside = |mount: &&MountEntry| mount.mountpoint.starts_with(&path);
    let names = spot.open().and_then(|dir| sys::dir::read_names(dir.into()));
    match names.map_err(io("list"))?.is_empty() {
        false if let Some(mount) = table.iter().find(inside) => Err(PreflightError::MountInside {
            inside: mount.mountpoint.clone(),
            path,
        }),
        false if !may_be_full(&path) => Err(PreflightError::MountpointNotEmpty {
            names: mountpoint::names_in(&path),
            path,
        }),
        _ => Ok(spot),
    }
}

/// The path of the mount point without links. A link that another user may have put there does not lead root anywhere.
fn resolve_mountpoint(given: &Path) -> Result<PathBuf, PreflightError> {
    // A dead mount need not tell anything of itself, and what is missing cannot.
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

fn check_backend(given: &Path, table: &[MountEntry]) -> Result<PathBuf, PreflightError> {
    let missing = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => PreflightError::Io {
            operation: "look at the backend",
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
    let flags = statvfs(&path)
        .map_err(|errno| missing(errno.into()))?
        .flags();
    let allowed = access(&path, AccessFlags::W_OK | AccessFlags::X_OK);
    check_writable(&path, flags.contains(FsFlags::ST_RDONLY), allowed)?;
    Ok(path)
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

/// Checks that neither of two directories is inside the other. Both paths are absolute and without symbolic links.
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

/// `path` with the symbolic links resolved in as much of it as exists.
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
#[path = "preflight_tests.rs"]
mod tests;
