//! The message for a mount that is refused because another daemon serves the volume or the cache.

use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::volume_lock::VolumeLockError;
use crate::cache::LockError;
use crate::control::client::Client;
use crate::control::protocol::{Answer, Request, Status};
use crate::control::registry;
use crate::core::{Failure, path_of_text, quoted};

/// How long to wait for the other daemon's status. A daemon that does not answer within it is named
/// by what is known without it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The refusal of a lock that another daemon holds.
pub(super) struct Refused {
    failure: Failure,
    /// The message names the process that holds the lock.
    names_process: bool,
}

impl From<VolumeLockError> for Refused {
    fn from(error: VolumeLockError) -> Refused {
        Refused {
            names_process: matches!(&error, VolumeLockError::InUse { pid: Some(_), .. }),
            failure: error.into(),
        }
    }
}

impl From<LockError> for Refused {
    fn from(error: LockError) -> Refused {
        Refused {
            names_process: matches!(&error, LockError::InUse { pid: Some(_), .. }),
            failure: Failure::failed(error.to_string())
                .hint("see `ferryfs status`; one cache serves one mount"),
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        refused.failure
    }
}

/// Adds to `refused`, because another daemon serves `volume`, where that one is mounted and how to
/// end it, if it answers.
pub(super) fn explain(volume: Uuid, refused: Refused) -> Failure {
    let found = registry::noted()
        .into_iter()
        .filter(|(noted, _)| *noted == volume)
        .find_map(|(_, cache)| ask(&cache));
    match found {
        Some(status) => in_words(&status, refused),
        None => refused.failure,
    }
}

fn ask(cache: &Path) -> Option<Status> {
    let mut client = Client::connect(cache).ok()?;
    match client.call(&Request::Status, Some(PATIENCE), &mut |_| {}) {
        Ok(Answer::Status(status)) => Some(status),
        _ => None,
    }
}

fn in_words(status: &Status, refused: Refused) -> Failure {
    let place = quoted(&path_of_text(&status.mountpoint));
    let Refused {
        failure: refused,
        names_process,
    } = refused;
    let process = match names_process {
        true => String::new(),
        false => format!(" (pid {})", status.pid),
    };
    if status.mounted {
        return Failure {
            message: format!("{}: it is mounted at {place}", refused.message),
            hint: Some(format!(
                "use it there, or end it first: ferryfs unmount {place}"
            )),
            ..refused
        };
    }
    Failure {
        message: format!(
            "{}{process}: it was unmounted from {place}, but is still in use by {}",
            refused.message,
            crate::control::users::users(&status.users)
        ),
        hint: Some(format!(
            "end that; or cut it off: ferryfs unmount --force --cache {}",
            quoted(&path_of_text(&status.cache))
        )),
        ..refused
    }
}
