//! Finds the daemon behind a mount.
//!
//! The mount itself says where its daemon's socket is: its root has a virtual extended attribute
//! with the cache directory. The kernel reports a dead daemon. A daemon whose mount is gone but
//! whose file system is still in use is found by its cache, its volume, its drive, or the path
//! where its mount was.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use uuid::Uuid;

use super::progress::Bar;
use super::{config, interrupt};
use crate::control::client::{Client, ClientError};
use crate::control::mounts::MountEntry;
use crate::control::protocol::{Answer, FlushReport, Request, Status};
use crate::control::{mounts, registry};
use crate::core::{Failure, ForeignText, path_of_text, quoted};
use crate::daemon::find_drive;
use crate::sys::terminal::complain;
use crate::sys::xattr;

/// The virtual attribute of the mount's root; its value is the cache directory, in bytes.
pub const CACHE_ATTRIBUTE: &CStr = c"user.ferryfs.cache";

/// Why a mount's daemon cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The daemon died, and its mount is still in the table.
    #[error("the ferryfs daemon of {} is gone; nothing is lost", mountpoint.escaped())]
    DaemonGone {
        /// The mount.
        mountpoint: PathBuf,
        /// Its drive.
        backend: PathBuf,
    },
    /// The mount belongs to another user.
    #[error("{} is the mount of another user", .0.escaped())]
    NotOurs(PathBuf),
    /// The mount does not say where its daemon is.
    #[error("{} does not say where its daemon is: {source}", mountpoint.escaped())]
    Attribute {
        /// The mount.
        mountpoint: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The daemon does not listen.
    #[error(transparent)]
    Connect(#[from] ClientError),
}

impl From<ReachError> for Failure {
    fn from(error: ReachError) -> Failure {
        let failure = Failure::failed(error.to_string());
        match error {
            ReachError::DaemonGone {
                mountpoint,
                backend,
            } => failure.hint(format!(
                "run `ferryfs mount {} {}` again",
                quoted(&backend),
                quoted(&mountpoint)
            )),
            ReachError::NotOurs(_) => {
                failure.hint("run this as the user who mounted it, or as root")
            }
            ReachError::Attribute { .. } => {
                failure.hint("its daemon may be of another version: unmount, and mount again")
            }
            ReachError::Connect(error) => error.into(),
        }
    }
}

/// Connects to the daemon of `mount`.
///
/// # Errors
/// [`ReachError`].
pub fn daemon_of(mount: &MountEntry) -> Result<Client, ReachError> {
    let mountpoint = mount.mountpoint.clone();
    match xattr::get(&mountpoint, CACHE_ATTRIBUTE) {
        Ok(cache) => {
            let client = Client::connect(&PathBuf::from(OsString::from_vec(cache)))?;
            // A mount may name any cache, so the daemon must belong to the user of the mount.
            Ok(match mount.user {
                Some(user) => client.of_user(user)?,
                None => client,
            })
        }
        Err(source) => Err(match source.raw_os_error() {
            Some(libc::ENOTCONN | libc::ECONNABORTED) => ReachError::DaemonGone {
                mountpoint,
                backend: mount.source.clone(),
            },
            Some(libc::EACCES | libc::EPERM) => ReachError::NotOurs(mountpoint),
            _ => ReachError::Attribute { mountpoint, source },
        }),
    }
}

/// The daemon for which a command is meant.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Which {
    /// The cache of the mount: reaches the daemon also if the mount is gone
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// The mount, its name in the configuration, a path in it, its drive, or the id of its volume;
    /// may be left out inside a mount, and if you have only one
    pub mountpoint: Option<PathBuf>,
}

/// The cache that `which` names. With --cache no daemon is needed.
///
/// # Errors
/// If it does not exist, or no daemon says where it is.
pub(super) fn cache_of(which: &Which) -> Result<PathBuf, Failure> {
    match &which.cache {
        Some(cache) if cache.is_dir() => Ok(cache.clone()),
        Some(cache) => Err(
            Failure::failed(format!("there is no cache {}", cache.escaped()))
                .hint("name the directory that `ferryfs status` shows as cache"),
        ),
        None => {
            let status = status_of(&mut reach(which)?.client)?;
            Ok(path_of_text(&status.cache))
        }
    }
}

/// A daemon that was reached.
pub(super) struct Reached {
    /// The connection to it.
    pub(super) client: Client,
    /// Its mount; `None` if the daemon was found in another way.
    pub(super) mount: Option<MountEntry>,
}

/// Why a daemon was not reached.
pub(super) enum NotReached {
    /// The mount is there, and its daemon is dead.
    Dead(MountEntry),
    /// Another failure.
    Failed(Failure),
}

impl From<NotReached> for Failure {
    fn from(error: NotReached) -> Failure {
        match error {
            NotReached::Failed(failure) => failure,
            NotReached::Dead(mount) => Failure::from(ReachError::DaemonGone {
                mountpoint: mount.mountpoint,
                backend: mount.source,
            }),
        }
    }
}

/// Connects to the daemon that `which` names.
///
/// # Errors
/// [`NotReached`].
pub(super) fn reach(which: &Which) -> Result<Reached, NotReached> {
    if let Some(cache) = &which.cache {
        let client = of_cache(cache).map_err(NotReached::Failed)?;
        return Ok(Reached {
            client,
            mount: None,
        });
    }
    let named = which.mountpoint.as_deref().and_then(of_name);
    let wanted = named.as_deref().or(which.mountpoint.as_deref());
    let mount = match mounts::find(wanted) {
        Ok(mount) => mount,
        Err(failure) => {
            let failure = match &named {
                Some(_) => not_mounted(which.mountpoint.as_deref(), failure),
                None => failure,
            };
            let client = without_mount(wanted).ok_or(NotReached::Failed(failure))?;
            return Ok(Reached {
                client,
                mount: None,
            });
        }
    };
    at(mount)
}

/// Connects to the daemon of `mount`, also as root to that of another user.
///
/// # Errors
/// [`NotReached`].
pub(super) fn at(mount: MountEntry) -> Result<Reached, NotReached> {
    match daemon_of(&mount) {
        Ok(client) => Ok(Reached {
            client,
            mount: Some(mount),
        }),
        Err(ReachError::DaemonGone { .. }) => Err(NotReached::Dead(mount)),
        // Root may not access a user's mount, but may command its daemon.
        Err(error @ ReachError::NotOurs(_)) => match at_mount(&mount) {
            Some(client) => Ok(Reached {
                client,
                mount: Some(mount),
            }),
            None => Err(NotReached::Failed(error.into())),
        },
        Err(error) => Err(NotReached::Failed(error.into())),
    }
}

/// The mount that was made by a name of the configuration: its daemon, and what that says. It is
/// looked for at `place` first.
pub(super) fn named(name: &str, place: Option<&Path>) -> Option<(Client, Status)> {
    let mut mounts = mounts::commanded().ok()?;
    // A name means what this user's own configuration means by it. The daemons of others are not
    // even asked: one that hangs would hold the command up.
    let own = geteuid().as_raw();
    mounts.retain(|mount| mount.user.is_none_or(|user| user == own));
    let place = place.and_then(|place| mounts::resolve(place).ok());
    mounts.sort_by_key(|mount| Some(&mount.mountpoint) != place.as_ref());
    mounts.into_iter().find_map(|mount| {
        let mut client = at(mount).ok()?.client;
        if !is_believed(&client, None) {
            return None;
        }
        let status = status_of(&mut client).ok()?;
        let is_it = status
            .config
            .as_ref()
            .is_some_and(|config| config.name == name);
        is_it.then_some((client, status))
    })
}

/// The mount point of the drive that a word names. A word with a slash is a path.
fn of_name(word: &Path) -> Option<PathBuf> {
    let name = word
        .to_str()
        .filter(|name| !name.contains('/') && !name.starts_with('.'))?;
    // A configuration that cannot be used has no names.
    let config = config::load().ok();
    let drive = config
        .as_ref()
        .and_then(|config| config.drives.iter().find(|it| it.name == name));
    let place = drive.and_then(config::Drive::mountpoint);
    if let Some(place) = place
        && mounts::find(Some(place)).is_ok_and(|mount| mount.mountpoint == place)
    {
        return Some(place.to_path_buf());
    }
    // A mount here that is called so needs no other daemon's answer.
    if place.is_none() && mounts::find(Some(word)).is_ok() {
        return None;
    }
    // The section may have been changed or removed since.
    if let Some((_, status)) = named(name, place) {
        return Some(path_of_text(&status.mountpoint));
    }
    place.map(Path::to_path_buf)
}

fn not_mounted(name: Option<&Path>, failure: Failure) -> Failure {
    let name = name.map(quoted).unwrap_or_default();
    Failure {
        message: format!("{name} is not mounted: {}", failure.message),
        hint: Some(format!("mount it with `ferryfs mount {name}`")),
        ..failure
    }
}

fn of_cache(cache: &Path) -> Result<Client, Failure> {
    let cache = std::path::absolute(cache)
        .map_err(|error| Failure::usage(format!("no usable path: {error}")))?;
    Client::connect(&cache).map_err(|error| match error {
        ClientError::Connect { .. } => {
            Failure::failed(format!("no daemon serves the cache {}", cache.escaped())).hint(
                "name the cache directory of a running mount, or mount it with `ferryfs mount`",
            )
        }
        error => error.into(),
    })
}

/// Finds the daemon of `wanted` although no mount of it is there: by the id of its volume, its
/// drive, or the path where its mount was; or the only one of this user, if nothing is named and
/// there is no mount.
///
/// Any user may register a daemon that makes false statements about itself. So root believes a
/// daemon of another user only about a drive or a path that belongs to that user; about an id, only
/// its own daemons.
fn without_mount(wanted: Option<&Path>) -> Option<Client> {
    let Some(wanted) = wanted else {
        return only_one();
    };
    let id = wanted.to_str().and_then(|text| Uuid::parse_str(text).ok());
    let (volume, owner) = match id {
        Some(id) => (Some(id), None),
        None => find_drive::volume_at(wanted).unzip(),
    };
    if let Some(volume) = volume {
        return (registry::noted().into_iter())
            .filter(|(noted, _)| *noted == volume)
            .filter_map(|(_, cache)| Client::connect(&cache).ok())
            .find(|client| is_believed(client, owner));
    }
    at_place(&mounts::resolve(wanted).ok()?)
}

/// Whether a daemon is believed about what belongs to user `owner`.
fn is_believed(client: &Client, owner: Option<u32>) -> bool {
    may_speak(client.server(), geteuid().as_raw(), owner)
}

/// Whether a command of user `own` believes a daemon of user `server` about what belongs to
/// `owner`.
fn may_speak(server: u32, own: u32, owner: Option<u32>) -> bool {
    server == own || server == 0 || owner == Some(server)
}

fn only_one() -> Option<Client> {
    // If there are mounts, the command may be meant for one of them.
    if mounts::has_any() {
        return None;
    }
    let mut running: Vec<Client> = (registry::noted().into_iter())
        .filter_map(|(_, cache)| Client::connect(&cache).ok())
        .filter(|client| is_believed(client, None))
        .collect();
    match running.len() {
        1 => running.pop(),
        _ => None,
    }
}

/// The daemon of a mount that this user may not access.
fn at_mount(mount: &MountEntry) -> Option<Client> {
    let user = mount.user?;
    noted_at(&mount.mountpoint, |client, _| client.server() == user)
}

/// The daemon whose mount was at `place` or above it. The mount is gone, so the owner of the
/// directories is the user to believe.
fn at_place(place: &Path) -> Option<Client> {
    noted_at(place, |client, mountpoint| {
        let owner = owner_of(mountpoint);
        is_believed(client, owner) && is_believed(client, owner_of(place).or(owner))
    })
}

fn owner_of(path: &Path) -> Option<u32> {
    std::fs::symlink_metadata(path).ok().map(|meta| meta.uid())
}

/// The first registered daemon that reports that its mount is or was at `place` or above it, and
/// that is `believed` about its mount point.
fn noted_at(place: &Path, believed: impl Fn(&Client, &Path) -> bool) -> Option<Client> {
    (registry::noted().into_iter()).find_map(|(_, cache)| {
        let mut client = Client::connect(&cache).ok()?;
        let status = status_of(&mut client).ok()?;
        let mountpoint = path_of_text(&status.mountpoint);
        let is_it = !status.mountpoint.is_empty()
            && place.starts_with(&mountpoint)
            && believed(&client, &mountpoint);
        is_it.then_some(client)
    })
}

/// A daemon answers this from memory and the index; one that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(15);

/// The status of the daemon.
///
/// # Errors
/// If it does not answer.
pub(super) fn status_of(client: &mut Client) -> Result<Status, Failure> {
    match client.call(&Request::Status, Some(PATIENCE), &mut |_| {})? {
        Answer::Status(status) => Ok(status),
        _ => Err(unexpected()),
    }
}

/// Asks the daemon for a request that flushes, showing `bar`. Ctrl-C cancels the request.
///
/// # Errors
/// A [`Failure`] if there is no such mount, no daemon, or the request fails.
pub(super) fn ask_for_report(
    which: &Which,
    request: &Request,
    timeout: Option<Duration>,
    bar: &mut Bar,
) -> Result<FlushReport, Failure> {
    let mut client = reach(which)?.client;
    report(&mut client, request, timeout, bar)
}

/// As [`ask_for_report`], on an existing connection.
pub(super) fn report(
    client: &mut Client,
    request: &Request,
    timeout: Option<Duration>,
    bar: &mut Bar,
) -> Result<FlushReport, Failure> {
    match call_until_interrupted(client, request, timeout, bar)? {
        Answer::Report(report) => Ok(report),
        _ => Err(unexpected()),
    }
}

/// Sends a request that takes long, showing `bar`. Ctrl-C cancels it.
///
/// # Errors
/// As for [`Client::call_until`].
pub(super) fn call_until_interrupted(
    client: &mut Client,
    request: &Request,
    timeout: Option<Duration>,
    bar: &mut Bar,
) -> Result<Answer, ClientError> {
    interrupt::watch();
    let said = Cell::new(false);
    let bar = RefCell::new(bar);
    let cancelled = || {
        let interrupted = interrupt::has_come();
        if interrupted && !said.replace(true) {
            bar.borrow_mut().clear();
            complain("ferryfs: cancelling; press Ctrl-C again to stop waiting for that");
        }
        interrupted
    };
    let answer = client.call_until(
        request,
        timeout,
        &mut |step| bar.borrow_mut().show(step),
        &cancelled,
    );
    bar.borrow_mut().clear();
    answer
}

pub(super) fn unexpected() -> Failure {
    Failure::failed("the daemon gave the answer to another request")
        .hint("unmount, and mount again with this version of ferryfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_believes_a_users_daemon_only_about_what_is_that_users() {
        let [root, me, other] = [0, 1000, 1001];
        assert!(may_speak(me, me, None));
        assert!(may_speak(root, me, None));
        assert!(may_speak(me, root, Some(me)));
        assert!(!may_speak(other, root, Some(me)));
        assert!(!may_speak(other, root, Some(root)));
        assert!(!may_speak(other, root, None));
    }

    #[test]
    fn a_dead_daemon_is_said_with_the_command_that_revives_it() {
        let failure = Failure::from(ReachError::DaemonGone {
            mountpoint: "/home/me/my lab".into(),
            backend: "/media/HDD".into(),
        });
        assert_eq!(
            failure.to_string(),
            "ferryfs: the ferryfs daemon of /home/me/my lab is gone; nothing is lost\n  \
             hint: run `ferryfs mount /media/HDD '/home/me/my lab'` again"
        );
    }
}
