//! What keeps a volume or a cache from being mounted: the daemon that has it, for the person who tries.

use uuid::Uuid;

use super::DaemonError;
use crate::base::path_of_text;
use crate::cli::render;
use crate::cli::render::quoted;
use crate::control::client::Client;
use crate::control::protocol::{Answer, Request, Status};
use crate::control::registry;
use std::path::Path;
use std::time::Duration;

/// A daemon answers this from memory and the index; one that does not is only named by what is known anyway.
const PATIENCE: Duration = Duration::from_secs(5);

/// `refused`, because another daemon has `volume`, with what that one serves and how to end it, as far as it says so.
pub(super) fn explain(volume: Uuid, refused: DaemonError) -> DaemonError {
    let found = registry::noted()
        .into_iter()
        .filter(|(noted, _)| *noted == volume)
        .find_map(|(_, cache)| ask(&cache));
    match found {
        Some(status) => in_words(&status, refused),
        None => refused,
    }
}

fn ask(cache: &Path) -> Option<Status> {
    let mut client = Client::connect(cache).ok()?;
    match client.call(&Request::Status, Some(PATIENCE), &mut |_| {}) {
        Ok(Answer::Status(status)) => Some(status),
        _ => None,
    }
}

/// `message` with the process that has the volume, unless it names one already.
fn with_pid(message: &str, pid: u32) -> String {
    match message.contains("(pid ") {
        true => message.to_owned(),
        false => format!("{message} (pid {pid})"),
    }
}

fn in_words(status: &Status, refused: DaemonError) -> DaemonError {
    let place = quoted(&path_of_text(&status.mountpoint));
    if status.mounted {
        return DaemonError {
            message: format!("{}: it is mounted at {place}", refused.message),
            hint: Some(format!(
                "use it there, or end it first: ferryfs unmount {place}"
            )),
            ..refused
        };
    }
    DaemonError {
        message: format!(
            "{}: it was unmounted from {place}, but is still in use by {}",
            with_pid(&refused.message, status.pid),
            render::users(&status.users)
        ),
        hint: Some(format!(
            "end that; or cut it off: ferryfs unmount --force --cache {}",
            quoted(&path_of_text(&status.cache))
        )),
        ..refused
    }
}
