//! Checks that a directory is the volume that a cache belongs to, which is the only way to attach a
//! drive (P6).
//!
//! The marker names the volume and the enrollment. Markers can be copied, so the file system is
//! compared as well; and if two mounted drives have the marker, neither is attached. Only our own
//! marker is read for this, and nothing is written.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use uuid::Uuid;

use super::volume::CacheFacts;
use super::{preflight, volume, write_back};
use crate::core::{Exit, Failure, ForeignText, quoted};
use crate::daemon::drive_identity;
use crate::daemon::drive_identity::{FsIdentity, Same};
use crate::drive::mounted::MountedDir;
use crate::drive::{Backend, BackendError, Look, exchanged};
use crate::format::{layout, marker};
use crate::sys::mounts;
use crate::sys::mounts::Mount;
use crate::sys::time;
use crate::sys::way::Exposed;

/// How long another drive may take to show its marker.
const PATIENCE: Duration = Duration::from_secs(2);

/// The clocks of a machine that has never slept differ by less.
const A_SLEEP: Duration = Duration::from_millis(500);

/// How many threads are waiting for a drive that took longer, and the most there may be.
static ABANDONED: AtomicUsize = AtomicUsize::new(0);
const MOST_ABANDONED: usize = 8;

/// A directory that is the volume.
#[derive(Debug)]
pub(super) struct Found {
    /// The directory.
    pub(super) dir: MountedDir,
    /// The mount that it is on, if the mount table has it.
    pub(super) mount: Option<Mount>,
    /// The file system that it is on.
    pub(super) file_system: FsIdentity,
    /// Whether that is known to be the stored one. Always true for a copy that was accepted.
    pub(super) is_certain: bool,
}

/// Why a directory is not accepted as the volume.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It cannot be opened or read.
    #[error("the drive at {} does not answer: {source}", path.escaped())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// The error of the system.
        source: BackendError,
    },
    /// Another user can change where the path leads, and this process is root.
    #[error("{} is not used: {exposed}", path.escaped())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Where, and which user.
        exposed: Exposed,
    },
    /// It has no marker.
    #[error("{} is not a volume of ferryfs: it has no .ferryfs/volume.json", .0.escaped())]
    Unmarked(PathBuf),
    /// It is the volume, by its path and its file system, but .ferryfs was deleted.
    #[error("the folder .ferryfs was deleted from the drive at {}", .0.escaped())]
    MarkerDeleted(PathBuf),
    /// Its marker cannot be read or decoded.
    #[error("{}", .0.message)]
    Marker(Failure),
    /// It is another volume.
    #[error("another volume is at {}: {found}, not {expected}", path.escaped())]
    OtherVolume {
        /// The directory.
        path: PathBuf,
        /// The volume in its marker.
        found: Uuid,
        /// The volume of the cache.
        expected: Uuid,
    },
    /// It was enrolled again since.
    #[error("the volume at {} has been enrolled again since this cache was made", .0.escaped())]
    OtherEnrollment(PathBuf),
    /// The marker is right, but the file system is not.
    #[error(
        "{} has this volume's marker, but is on another file system ({found}, not {expected}): it \
         looks like a copy",
        path.escaped()
    )]
    Copy {
        /// The directory.
        path: PathBuf,
        /// The file system that it is on.
        found: String,
        /// The stored one.
        expected: String,
    },
    /// It is a file system that writes later than its calls return.
    #[error("{}: {problem}", path.escaped())]
    WritesLater {
        /// The directory.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// Another mounted drive has the marker, too.
    #[error(
        "{} and {} have the same volume's marker: one of the drives is a copy of the other",
        path.escaped(),
        other.escaped()
    )]
    Twice {
        /// The directory.
        path: PathBuf,
        /// The other one.
        other: PathBuf,
    },
}

impl Refusal {
    /// Whether it only says that the drive is not there, which is not reported while the mount
    /// waits for the drive.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            Refusal::Unmarked(_) => true,
            Refusal::Unreadable { source, .. } => source.is_gone() || source.is_not_found(),
            _ => false,
        }
    }

    fn code(&self) -> Exit {
        match self {
            Refusal::Unreadable { .. }
            | Refusal::Unmarked(_)
            | Refusal::MarkerDeleted(_)
            | Refusal::OtherVolume { .. }
            | Refusal::OtherEnrollment(_) => Exit::BackendAbsent,
            Refusal::Marker(error) => error.code,
            Refusal::Copy { .. }
            | Refusal::Twice { .. }
            | Refusal::Exposed { .. }
            | Refusal::WritesLater { .. } => Exit::Failed,
        }
    }

    fn hint(&self) -> String {
        match self {
            Refusal::Unreadable { .. } => {
                "check the drive and its cable; `umount` removes the stale mount of a drive that \
                 was pulled"
                    .into()
            }
            Refusal::Exposed { exposed, .. } => preflight::safer_place(exposed),
            Refusal::Unmarked(_) => {
                "mount the drive there first; nothing was written and nothing is lost".into()
            }
            Refusal::MarkerDeleted(path) => format!(
                "nothing is lost: what waits is in the cache. Enroll the drive again: ferryfs \
                 attach --re-enroll {0} (when nothing is mounted: ferryfs mount --re-enroll {0} \
                 ...)",
                quoted(path)
            ),
            Refusal::Marker(error) => error.hint.clone().unwrap_or_default(),
            Refusal::OtherVolume { .. } => {
                "attach the right drive; nothing was written and nothing is lost".into()
            }
            Refusal::OtherEnrollment(_) => "nothing was written. What waits in this cache belongs \
                                            to the earlier enrollment of the drive: unmount with \
                                            `ferryfs unmount --no-flush`, and mount the drive with \
                                            a new cache (--cache)"
                .into(),
            Refusal::WritesLater { .. } => write_back::HINT.into(),
            Refusal::Copy { path, .. } => format!(
                "nothing was written. Attach the original; or, if you have checked that this one \
                 replaces it: ferryfs attach --accept-copy {0} (when nothing is mounted yet: \
                 ferryfs mount --accept-copy {0} ...)",
                quoted(path)
            ),
            Refusal::Twice { path, .. } => format!(
                "nothing was written. Unmount the copy; or, if you have checked which one is the \
                 original, name it: ferryfs attach --accept-copy {}",
                quoted(path)
            ),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure {
            code: refusal.code(),
            message: refusal.to_string(),
            hint: Some(refusal.hint()),
        }
    }
}

/// Checks that `path` is the volume of `facts`. With `accept_copy` it may be on another file
/// system.
///
/// # Errors
/// Why it is not the volume, or may not be.
pub(super) fn verify(path: &Path, facts: &CacheFacts, accept_copy: bool) -> Result<Found, Refusal> {
    let dir = MountedDir::open(path).map_err(|source| not_opened(path, source))?;
    check_marker(&dir, path, facts).map_err(|refusal| explained(refusal, path, facts))?;
    if time::asleep() > A_SLEEP {
        check_medium(&dir, path, facts)?;
    }
    let table = mounts::mounts().unwrap_or_default();
    let mount = resolved(path).and_then(|path| mounts::covering(&table, &path).cloned());
    if let Some(problem) = mount.as_ref().and_then(write_back::problem) {
        return Err(Refusal::WritesLater {
            path: path.into(),
            problem,
        });
    }
    let file_system = mount.as_ref().map(FsIdentity::of).unwrap_or_default();
    let same = facts.file_system.compare(&file_system);
    if !accept_copy {
        if same == Same::No {
            return Err(Refusal::Copy {
                path: path.into(),
                found: file_system.words().into(),
                expected: facts.file_system.words().into(),
            });
        }
        if let Some(mount) = &mount
            && let Some(other) = a_rival(&table, mount, path, facts)
        {
            return Err(Refusal::Twice {
                path: path.into(),
                other,
            });
        }
    }
    Ok(Found {
        dir,
        mount,
        file_system,
        is_certain: same == Same::Yes || accept_copy,
    })
}

/// Why the directory at `path` was not opened.
fn not_opened(path: &Path, source: BackendError) -> Refusal {
    let path = path.to_path_buf();
    let exposed = (source.source.get_ref()).and_then(|inner| inner.downcast_ref::<Exposed>());
    match exposed.cloned() {
        Some(exposed) => Refusal::Exposed { path, exposed },
        None => Refusal::Unreadable { path, source },
    }
}

/// The mount that `path` is on, by the mount table.
pub(super) fn mount_of(path: &Path) -> Option<Mount> {
    let table = mounts::mounts().ok()?;
    mounts::covering(&table, &resolved(path)?).cloned()
}

/// `path` without symbolic links. A path that cannot be resolved, as on a stale mount, is not
/// changed.
fn resolved(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .ok()
}

/// Explains a missing marker: it was deleted if the path and the file system are those of the
/// volume and its files are there.
/// volume, and its files are there.
fn explained(refusal: Refusal, path: &Path, facts: &CacheFacts) -> Refusal {
    let is_volume = matches!(refusal, Refusal::Unmarked(_))
        && facts.was_at(path)
        && !super::first_contact::is_bare(path)
        && file_system_at(path, facts) == Same::Yes;
    match is_volume {
        true => Refusal::MarkerDeleted(path.into()),
        false => refusal,
    }
}

/// Whether `path` is on the file system that the volume was on.
pub(super) fn file_system_at(path: &Path, facts: &CacheFacts) -> Same {
    mount_of(path).map_or(Same::Unknown, |mount| {
        facts.file_system.compare(&FsIdentity::of(&mount))
    })
}

fn check_marker(dir: &MountedDir, path: &Path, facts: &CacheFacts) -> Result<(), Refusal> {
    // `peek` does not distinguish a drive that does not answer from a marker that cannot be
    // decoded.
    if let Err(source) = dir.metadata(&layout::marker_path()) {
        return Err(match source.is_not_found() {
            true => Refusal::Unmarked(path.into()),
            false => Refusal::Unreadable {
                path: path.into(),
                source,
            },
        });
    }
    match volume::peek(dir).map_err(Refusal::Marker)? {
        None => Err(Refusal::Unmarked(path.into())),
        Some(marker) if marker.id != facts.volume => Err(Refusal::OtherVolume {
            path: path.into(),
            found: marker.id,
            expected: facts.volume,
        }),
        Some(marker) if !facts.is_enrollment(marker.nonce) => {
            Err(Refusal::OtherEnrollment(path.into()))
        }
        Some(_) => Ok(()),
    }
}

/// Checks the marker on the medium itself. A drive that was exchanged while the machine slept may
/// still show the marker of the other one, from memory.
fn check_medium(dir: &MountedDir, path: &Path, facts: &CacheFacts) -> Result<(), Refusal> {
    let unreadable = |source| Refusal::Unreadable {
        path: path.into(),
        source,
    };
    let bytes = exchanged::on_medium(dir).map_err(unreadable)?;
    let is_ours = marker::decode(&bytes)
        .is_ok_and(|marker| marker.id == facts.volume && facts.is_enrollment(marker.nonce));
    match is_ours {
        true => Ok(()),
        false => Err(unreadable(BackendError::new(
            "read",
            &layout::marker_path(),
            std::io::Error::from_raw_os_error(libc::ENOMEDIUM),
        ))),
    }
}

/// Another mounted drive that answers, has the marker, and is not known to be another file system
/// than the stored one: then it is unknown which of the two is the volume. Drives that are known to
/// be other ones are not opened.
fn a_rival(table: &[Mount], mount: &Mount, path: &Path, facts: &CacheFacts) -> Option<PathBuf> {
    if facts.file_system.is_unknown() {
        return None;
    }
    drive_identity::same_places(table, mount, &resolved(path)?)
        .into_iter()
        .filter(|(other, _)| other.dev != mount.dev)
        .filter(|(other, _)| facts.file_system.compare(&FsIdentity::of(other)) != Same::No)
        .map(|(_, place)| place)
        .find(|place| carries_marker(place, facts))
}

/// The paths where the volume of `facts` may be now, when it is not at `path` on `mount` any more:
/// the same directory on other drives that are mounted, were not in `before`, and have its marker.
/// A drive that was mounted all the time is a copy.
pub(super) fn elsewhere(
    before: &[Mount],
    mount: &Mount,
    path: &Path,
    facts: &CacheFacts,
) -> Vec<PathBuf> {
    let table = mounts::mounts().unwrap_or_default();
    // The kernel uses the numbers of mounts again. A mount of the same device is not a copy.
    let is_old = |other: &Mount| {
        other.dev != mount.dev
            && before.iter().any(|old| {
                (old.id, old.dev, &old.mount_point) == (other.id, other.dev, &other.mount_point)
            })
    };
    drive_identity::same_places(&table, mount, path)
        .into_iter()
        .filter(|(other, place)| place != path && !is_old(other))
        .filter(|(other, _)| facts.file_system.compare(&FsIdentity::of(other)) != Same::No)
        .map(|(_, place)| place)
        .filter(|place| carries_marker(place, facts))
        .collect()
}

/// Whether the volume's marker can be read at `place` from a medium that is there: the mount of a
/// pulled drive may still answer from memory. A drive that takes too long does not count; it may
/// hang for ever and be unrelated.
fn carries_marker(place: &Path, facts: &CacheFacts) -> bool {
    if ABANDONED.load(Ordering::Acquire) >= MOST_ABANDONED {
        return false;
    }
    let (tell, told) = crossbeam_channel::bounded(1);
    let (place, facts) = (place.to_path_buf(), facts.clone());
    let looker = std::thread::Builder::new()
        .name("ferryfs-look".into())
        .spawn(move || {
            let found = MountedDir::open(&place).is_ok_and(|dir| {
                check_marker(&dir, &place, &facts).is_ok() && dir.check_alive(Look::Read).is_ok()
            });
            if tell.send(found).is_err() {
                ABANDONED.fetch_sub(1, Ordering::AcqRel);
            }
        });
    // Counted before the receiver is dropped, by which the thread notices it.
    let answer = looker.ok().and_then(|_| told.recv_timeout(PATIENCE).ok());
    if answer.is_none() {
        ABANDONED.fetch_add(1, Ordering::AcqRel);
    }
    answer.unwrap_or(false)
}
