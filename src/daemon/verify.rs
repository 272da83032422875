//! Whether a directory is the volume that a cache belongs to: the only way by which a drive gets attached (P6).
//!
//! The marker says which volume and which enrollment it is. Markers can be copied, so the file system under it is compared
//! as well, and of two drives that carry the marker at once neither is taken. Only our own marker is read for this; nothing
//! is written.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use uuid::Uuid;

use super::DaemonError;
use super::identity::{self, FsIdentity, Same};
use super::volume::{self, CacheFacts};
use super::{preflight, write_back};
use crate::backend::mounted::MountedDir;
use crate::backend::{Backend, BackendError, Look};
use crate::base::ForeignText;
use crate::cli::exit::Exit;
use crate::cli::render::quoted;
use crate::sys::mounts::{self, Mount};
use crate::sys::way::Exposed;

/// How long another drive may take to show its marker.
const PATIENCE: Duration = Duration::from_secs(2);

/// Threads that still wait for a drive that took longer, and how many there may be.
static ABANDONED: AtomicUsize = AtomicUsize::new(0);
const MOST_ABANDONED: usize = 8;

/// A directory that was found to be the volume.
#[derive(Debug)]
pub(super) struct Found {
    /// It.
    pub(super) dir: MountedDir,
    /// What is mounted there, if the mount table tells.
    pub(super) mount: Option<Mount>,
    /// The file system that it is on.
    pub(super) file_system: FsIdentity,
    /// Whether that is known to be the one remembered; always so for a copy that was accepted.
    pub(super) is_certain: bool,
}

/// Why a directory is not taken for the volume.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It cannot be opened or read.
    #[error("the drive at {} does not answer: {source}", path.escaped())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// What was said.
        source: BackendError,
    },
    /// Another user can make the path lead elsewhere, and this is root.
    #[error("{} is not used: {exposed}", path.escaped())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Where, and who.
        exposed: Exposed,
    },
    /// It carries no marker.
    #[error("{} is not a volume of ferryfs: it has no .ferryfs/volume.json", .0.escaped())]
    Unmarked(PathBuf),
    /// It is the volume, by its place and its file system, but our own folder is gone from it.
    #[error("the folder .ferryfs was deleted from the drive at {}", .0.escaped())]
    MarkerDeleted(PathBuf),
    /// Its marker cannot be read or understood.
    #[error("{}", .0.message)]
    Marker(DaemonError),
    /// It is another volume.
    #[error("another volume is at {}: {found}, not {expected}", path.escaped())]
    OtherVolume {
        /// The directory.
        path: PathBuf,
        /// What its marker says.
        found: Uuid,
        /// What it should say.
        expected: Uuid,
    },
    /// It was enrolled anew since.
    #[error("the volume at {} has been enrolled anew since this cache knew it", .0.escaped())]
    OtherEnrollment(PathBuf),
    /// The marker is right, but not the file system under it.
    #[error(
        "{} carries this volume's marker, but is on another file system ({found}, not {expected}): it looks like a copy",
        path.escaped()
    )]
    Copy {
        /// The directory.
        path: PathBuf,
        /// The file system that it is on.
        found: String,
        /// The one that is remembered.
        expected: String,
    },
    /// It is a file system that writes later than it says.
    #[error("{}: {problem}", path.escaped())]
    WritesLater {
        /// The directory.
        path: PathBuf,
        /// What is the matter.
        problem: String,
    },
    /// Another drive that is mounted now carries the marker, too.
    #[error(
        "{} and {} carry the same volume's marker: one of the drives is a copy of the other",
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
    /// Whether it says no more than that the drive is not there, which is nothing to make words of while it is waited for.
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
                "check the drive and its cable; a stale mount of a drive that was pulled is taken away by `umount`".into()
            }
            Refusal::Exposed { exposed, .. } => preflight::safer_place(exposed),
            Refusal::Unmarked(_) => {
                "mount the drive there first; nothing was written and nothing is lost".into()
            }
            Refusal::MarkerDeleted(path) => format!(
                "nothing is lost: what waits is in the cache. Take the drive up again: ferryfs attach --re-enroll {0} \
                 (when nothing is mounted: ferryfs mount --re-enroll {0} ...)",
                quoted(path)
            ),
            Refusal::Marker(error) => error.hint.clone().unwrap_or_default(),
            Refusal::OtherVolume { .. } => {
                "attach the right drive; nothing was written and nothing is lost".into()
            }
            Refusal::OtherEnrollment(_) => "nothing was written. What waits in this cache was for the drive as it was before: unmount with \
                 `ferryfs unmount --no-flush`, and mount the drive with a new cache (--cache)"
                .into(),
            Refusal::WritesLater { .. } => write_back::HINT.into(),
            Refusal::Copy { path, .. } => format!(
                "nothing was written. Attach the original; or, if you have looked and this one is to take its place: \
                 ferryfs attach --accept-copy {0} (when nothing is mounted yet: ferryfs mount --accept-copy {0} ...)",
                quoted(path)
            ),
            Refusal::Twice { path, .. } => format!(
                "nothing was written. Unmount the one that is not to be used; or say which one is, after having looked: \
                 ferryfs attach --accept-copy {}",
                quoted(path)
            ),
        }
    }
}

impl From<Refusal> for DaemonError {
    fn from(refusal: Refusal) -> DaemonError {
        DaemonError {
            code: refusal.code(),
            message: refusal.to_string(),
            hint: Some(refusal.hint()),
        }
    }
}

/// Looks whether `path` is the volume of `facts`. With `accept_copy` the file system under it does not matter.
///
/// # Errors
/// Why it is not, or cannot be taken for it.
pub(super) fn verify(path: &Path, facts: &CacheFacts, accept_copy: bool) -> Result<Found, Refusal> {
    let dir = MountedDir::open(path).map_err(|source| not_opened(path, source))?;
    check_marker(&dir, path, facts).map_err(|refusal| explained(refusal, path, facts))?;
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

/// The mount that `path` is on, by the table.
pub(super) fn mount_of(path: &Path) -> Option<Mount> {
    let table = mounts::mounts().ok()?;
    mounts::covering(&table, &resolved(path)?).cloned()
}

/// `path` without links. One that cannot be resolved, as on a stale mount, stays as it is spelled.
fn resolved(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .ok()
}

/// A missing marker is one that was deleted where the place and its file system are those of the volume, and its files are there.
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
    // peek tells a drive that does not answer and a marker that makes no sense with one voice.
    if let Err(source) = dir.metadata(&crate::rules::layout::marker_path()) {
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

/// Another drive that is mounted, answers, carries the marker, and is not known to be another file system than the one
/// remembered: then nobody can tell which of the two is meant. Those that are known to be others are not even looked into.
fn a_rival(table: &[Mount], mount: &Mount, path: &Path, facts: &CacheFacts) -> Option<PathBuf> {
    if facts.file_system.is_unknown() {
        return None;
    }
    identity::same_places(table, mount, &resolved(path)?)
        .into_iter()
        .filter(|(other, _)| other.dev != mount.dev)
        .filter(|(other, _)| facts.file_system.compare(&FsIdentity::of(other)) != Same::No)
        .map(|(_, place)| place)
        .find(|place| carries_marker(place, facts))
}

/// Where the volume of `facts` may be now, when it is not at `path` on `mount` any more: the same directory on other drives
/// that are mounted, and were not `before`, and carry its marker. One that was mounted all along is a copy.
pub(super) fn elsewhere(
    before: &[Mount],
    mount: &Mount,
    path: &Path,
    facts: &CacheFacts,
) -> Vec<PathBuf> {
    let table = mounts::mounts().unwrap_or_default();
    // The numbers of mounts are given again. What is on the very device that the drive was on is no copy of it.
    let is_old = |other: &Mount| {
        other.dev != mount.dev
            && before.iter().any(|old| {
                (old.id, old.dev, &old.mount_point) == (other.id, other.dev, &other.mount_point)
            })
    };
    identity::same_places(&table, mount, path)
        .into_iter()
        .filter(|(other, place)| place != path && !is_old(other))
        .filter(|(other, _)| facts.file_system.compare(&FsIdentity::of(other)) != Same::No)
        .map(|(_, place)| place)
        .filter(|place| carries_marker(place, facts))
        .collect()
}

/// Whether the volume's marker can be read at `place` from a medium that is there: the mount of a drive that was pulled
/// may still tell it from memory. A drive that takes too long to say so does not count; it may be one that has nothing to do
/// with us, and hang for ever.
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
    // Counted before the receiver goes, which is what the thread finds out by.
    let answer = looker.ok().and_then(|_| told.recv_timeout(PATIENCE).ok());
    if answer.is_none() {
        ABANDONED.fetch_add(1, Ordering::AcqRel);
    }
    answer.unwrap_or(false)
}
