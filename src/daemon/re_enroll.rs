//! Enrolls a drive whose `.ferryfs` was deleted again, with its old cache.
//!
//! The marker gets the volume's id and a new nonce, because what other caches know of the volume is
//! no longer valid. The cache stores the nonce before it is on the drive; after a crash in between
//! it accepts both. The records of batches that the cache has not finished are written before the
//! marker, so that the next recovery finishes them. The log of the catalog is lost; the next batch
//! writes it as a whole from the mirror in the index.

use std::path::Path;

use uuid::Uuid;

use super::verify::Refusal;
use super::volume::CacheFacts;
use super::{verify, volume};
use crate::core::{Exit, Failure, ForeignText, Timestamp};
use crate::daemon::drive_identity::Same;
use crate::drive::mounted::MountedDir;
use crate::error::FlushError;
use crate::format::marker::Marker;

/// Makes the directory at `path` the volume of `facts` again, whose cache is in `dir`. A directory
/// that still is the volume is not changed. With `forced` it may be empty or on another file system
/// than before, if the volume was at this path. Returns the nonce in the marker.
///
/// # Errors
/// If the directory may not be the volume, or a file cannot be written.
pub(super) fn re_enroll(
    path: &Path,
    facts: &mut CacheFacts,
    dir: &Path,
    forced: bool,
    now: Timestamp,
) -> Result<[u8; 16], Failure> {
    let backend = MountedDir::open(path).map_err(FlushError::from)?;
    match volume::peek(&backend)? {
        None => {}
        Some(marker) if marker.id != facts.volume => {
            return Err(Refusal::OtherVolume {
                path: path.into(),
                found: marker.id,
                expected: facts.volume,
            }
            .into());
        }
        Some(marker) if facts.is_enrollment(marker.nonce) => return Ok(marker.nonce),
        Some(_) => return Err(Refusal::OtherEnrollment(path.into()).into()),
    }
    check_place(path, facts, forced)?;
    let nonce = *Uuid::new_v4().as_bytes();
    facts.renew_enrollment(nonce);
    facts.write(dir)?;
    crate::recovery::interrupted::restore_records(&backend, &dir.join("batches"))?;
    volume::write_marker(&backend, &Marker::new(facts.volume, nonce, now))?;
    tracing::warn!(
        path = %path.escaped(),
        volume = %facts.volume,
        "the volume's marker was written again"
    );
    Ok(nonce)
}

/// Whether `path` is the root of a mounted file system: the drive may be mounted at another path
/// than before.
fn is_root_of_a_mount(path: &Path) -> bool {
    let place = std::fs::canonicalize(path);
    verify::mount_of(path).is_some_and(|mount| {
        mount.root == Path::new("/") && place.is_ok_and(|place| place == mount.mount_point)
    })
}

fn check_place(path: &Path, facts: &CacheFacts, forced: bool) -> Result<(), Failure> {
    let was_here = facts.was_at(path);
    let why = match verify::file_system_at(path, facts) {
        _ if super::first_contact::is_bare(path) => {
            "is empty: the drive is probably not mounted there"
        }
        Same::No => "is on another file system than the volume was",
        Same::Yes if was_here || is_root_of_a_mount(path) => return Ok(()),
        Same::Unknown if was_here => return Ok(()),
        // In another directory of the same file system all files of the volume would look deleted.
        Same::Yes | Same::Unknown => "was never the path of this volume",
    };
    if forced && was_here {
        return Ok(());
    }
    let hint = match was_here {
        true => {
            "nothing was written. Mount the drive there first; or, if you have checked that this \
             is the drive: --re-enroll --accept-copy"
        }
        false => "nothing was written. Name the directory where the drive was",
    };
    Err(Failure {
        code: Exit::BackendAbsent,
        message: format!("{} {why}", path.escaped()),
        hint: Some(hint.into()),
    })
}
