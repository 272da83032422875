//! Taking a drive up again whose `.ferryfs` was deleted, with the cache that it had.
//!
//! The marker gets the volume's id and a new nonce: what another cache knows of the volume no longer holds. The cache notes the
//! nonce before it is on the drive, so that a crash in between leaves one of the two that it takes for right. Records of batches
//! that the cache has not finished are written again before the marker: the next recovery finishes them. The log of the catalog
//! is gone; the index has its mirror, and the next batch writes it as a whole.

use std::path::Path;

use uuid::Uuid;

use super::DaemonError;
use super::identity::Same;
use super::verify::{self, Refusal};
use super::volume::{self, CacheFacts};
use crate::backend::mounted::MountedDir;
use crate::base::{ForeignText, Timestamp};
use crate::cli::exit::Exit;
use crate::flush::FlushError;
use crate::rules::marker::Marker;

/// Makes the directory at `path` the volume of `facts`, whose cache is in `dir`, again. One that still is it stays as it is. With
/// `forced` it may be empty or on another file system than before, if only the volume was at this place. Gives the nonce that is in
/// the marker.
///
/// # Errors
/// If it cannot be taken for the volume, or something cannot be written.
pub(super) fn re_enroll(
    path: &Path,
    facts: &mut CacheFacts,
    dir: &Path,
    forced: bool,
    now: Timestamp,
) -> Result<[u8; 16], DaemonError> {
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
    crate::flush::restore_records(&backend, &dir.join("batches"))?;
    volume::write_marker(&backend, &Marker::new(facts.volume, nonce, now))?;
    tracing::warn!(path = %path.escaped(), volume = %facts.volume, "the volume's marker was written anew");
    Ok(nonce)
}

/// Whether `path` shows the whole of a file system: a drive that is mounted elsewhere than before.
fn is_root_of_a_mount(path: &Path) -> bool {
    let place = std::fs::canonicalize(path);
    verify::mount_of(path).is_some_and(|mount| {
        mount.root == Path::new("/") && place.is_ok_and(|place| place == mount.mount_point)
    })
}

fn check_place(path: &Path, facts: &CacheFacts, forced: bool) -> Result<(), DaemonError> {
    let was_here = facts.was_at(path);
    let why = match verify::file_system_at(path, facts) {
        _ if super::first_contact::is_bare(path) => {
            "is empty: the drive is probably not mounted there"
        }
        Same::No => "is on another file system than the volume was",
        Same::Yes if was_here || is_root_of_a_mount(path) => return Ok(()),
        Same::Unknown if was_here => return Ok(()),
        // A directory of a file system on which the volume was another one would make all of its files look deleted.
        Same::Yes | Same::Unknown => "was never this volume's place",
    };
    if forced && was_here {
        return Ok(());
    }
    let hint = match was_here {
        true => {
            "nothing was written. Mount the drive there first; or, if you have looked and this is it: --re-enroll --accept-copy"
        }
        false => "nothing was written. Name the directory where the drive was",
    };
    Err(DaemonError {
        code: Exit::BackendAbsent,
        message: format!("{} {why}", path.escaped()),
        hint: Some(hint.into()),
    })
}
