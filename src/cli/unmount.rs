//! `ferryfs unmount`

use std::thread;
use std::time::{Duration, Instant};

use super::flush::verdict;
use super::progress::Bar;
use super::reach::{NotReached, Reached, Which};
use super::{reach, render, say};
use crate::control::client::Client;
use crate::control::mounts;
use crate::control::mounts::MountEntry;
use crate::control::protocol::{FlushReport, Request};
use crate::core::{Exit, Failure, ForeignText};
use crate::daemon::dead_mount;
use crate::sys::terminal::complain;

/// How long the mount may take to leave the mount table after the daemon's answer.
const LEAVING: Duration = Duration::from_secs(10);

/// Flush and end the mount
///
/// Nothing is lost in any case: what is not flushed stays in the cache, and is flushed after the
/// next mount. Also removes a mount whose daemon is gone. If a container or a bind mount keeps the
/// file system in use, that is named, the daemon continues to serve it, and the exit code is 3.
/// After Ctrl-C (130) it stays mounted.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct UnmountArgs {
    /// Do not flush: what waits stays in the cache until the next mount
    #[arg(long)]
    no_flush: bool,
    /// Cut off the programs that still use the file system, here or in a container: their open
    /// files fail from then on
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    which: Which,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs unmount
  ferryfs unmount --no-flush ~/lab   # at once; the rest follows after the next mount
  ferryfs unmount --force ~/lab      # flush, and end it also for a container that uses it";

pub(super) fn run(args: &UnmountArgs) -> Result<Exit, Failure> {
    let Reached { mut client, mount } = match reach::reach(&args.which) {
        Ok(reached) => reached,
        Err(NotReached::Dead(mount)) => return take_away(&mount),
        Err(error) => return Err(error.into()),
    };
    // The daemon may have no mount any more if it was not found by one.
    let mountpoint = match &mount {
        Some(mount) => mount.mountpoint.clone(),
        None => reach::status_of(&mut client)?.mountpoint.into(),
    };
    let mount = mount.or_else(|| mounts::find(Some(&mountpoint)).ok());
    let request = Request::Unmount {
        flush: !args.no_flush,
        force: args.force,
    };
    let report = ask_and_wait(client, &request, mount.as_ref())?;
    say(&render::unmount_report(
        &report,
        !args.no_flush,
        &mountpoint,
    ));
    Ok(match report.still_used {
        Some(_) => Exit::LeftBehind,
        None => verdict(&report),
    })
}

/// Asks for an unmount, and waits until the daemon has released everything and the mount has left
/// the table, unless it stays in use.
///
/// # Errors
/// If the mount stays.
pub(super) fn ask_and_wait(
    mut client: Client,
    request: &Request,
    mount: Option<&MountEntry>,
) -> Result<FlushReport, Failure> {
    let report = reach::report(&mut client, request, None, &mut Bar::new(false))?;
    if report.still_used.is_none() {
        client.wait_until_closed(LEAVING);
        if let Some(mount) = mount {
            wait_until_gone(mount)?;
        }
    }
    Ok(report)
}

fn take_away(mount: &MountEntry) -> Result<Exit, Failure> {
    dead_mount::detach(&mount.mountpoint).map_err(|error| {
        Failure::failed(error.to_string()).hint("try again as root, or as the user who mounted it")
    })?;
    complain(&format!(
        "ferryfs: the daemon of {} was gone; its dead mount was removed",
        mount.mountpoint.escaped()
    ));
    complain("  hint: what was not flushed is in the cache, and is flushed after the next mount");
    Ok(Exit::Done)
}

/// Waits until the mount has left the table, so that after exit code 0 the next command of a script
/// finds the mount point free. Another mount that is made there meanwhile has another number;
/// another mount that gets the number since is at another place.
fn wait_until_gone(mount: &MountEntry) -> Result<(), Failure> {
    let deadline = Instant::now() + LEAVING;
    loop {
        let there = mounts::read().is_ok_and(|all| {
            all.iter()
                .any(|other| other.id == mount.id && other.mountpoint == mount.mountpoint)
        });
        if !there {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::failed(format!(
                "{} is still mounted",
                mount.mountpoint.escaped()
            ))
            .hint("see `ferryfs status` for what uses it"));
        }
        thread::sleep(Duration::from_millis(20));
    }
}
