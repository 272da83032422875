//! `ferryfs unmount`

use std::thread;
use std::time::{Duration, Instant};

use super::exit::{Exit, Failure};
use super::flush::verdict;
use super::mounts::{self, MountEntry};
use super::progress::Bar;
use super::reach::{self, NotReached, Reached, Which};
use super::{complain, render, say};
use crate::base::ForeignText;
use crate::control::protocol::Request;
use crate::daemon::dead_mount;

/// How long the mount may take to leave the table after the daemon said that it is done.
const LEAVING: Duration = Duration::from_secs(10);

/// Flush and end the mount
///
/// Nothing is lost either way: what is not carried over stays in the cache, and is carried over after the next mount.
/// Also takes away a mount whose daemon is gone. Where a container or a bind mount keeps the file system in use, that is named, the
/// daemon goes on for it, and the exit code is 3. After Ctrl-C (130) it stays mounted.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct UnmountArgs {
    /// Do not flush: what waits stays in the cache until the next mount
    #[arg(long)]
    no_flush: bool,
    /// Cut off whoever still uses the file system, here or in a container: their open files fail from then on
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
    // One that was not found by its mount may have none any more.
    let mountpoint = match &mount {
        Some(mount) => mount.mountpoint.clone(),
        None => reach::status_of(&mut client)?.mountpoint.into(),
    };
    let mount = mount.or_else(|| mounts::find(Some(&mountpoint)).ok());
    let request = Request::Unmount {
        flush: !args.no_flush,
        force: args.force,
    };
    let report = reach::report(&mut client, &request, None, &mut Bar::new(false))?;
    if report.still_used.is_none() {
        client.wait_until_closed(LEAVING);
        if let Some(mount) = &mount {
            wait_until_gone(mount)?;
        }
    }
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

fn take_away(mount: &MountEntry) -> Result<Exit, Failure> {
    dead_mount::detach(&mount.mountpoint).map_err(|error| {
        Failure::failed(error.to_string()).hint("try again as root, or as the user who mounted it")
    })?;
    complain(&format!(
        "ferryfs: the daemon of {} was gone; its dead mount is taken away",
        mount.mountpoint.escaped()
    ));
    complain(
        "  hint: what had not been carried over is in the cache, and follows after the next mount",
    );
    Ok(Exit::Done)
}

/// So that after exit code 0 the next command of a script finds the mount point free. The kernel's number of the mount
/// tells it from another one that somebody makes there meanwhile; the place, from another that has got its number since.
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
