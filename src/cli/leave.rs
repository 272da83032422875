//! `ferryfs leave`

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::progress::Bar;
use super::reach::{Reached, Which};
use super::{local, reach, render, say, unmount};
use crate::control::client::Client;
use crate::control::mounts;
use crate::control::protocol::{Answer, FlushReport, FlushWish, LeavePlan, Request};
use crate::core::{Exit, Failure, ForeignText, path_of_text, printable, quoted};
use crate::daemon::leave::{LeaveWish, Unfinished, Volume, go_on, leave, unfinished};

/// Looking at all names and versions takes some time.
const PATIENCE: Duration = Duration::from_secs(600);

/// Stop using ferryfs for a drive: make it a plain directory, and remove its cache
///
/// Shows what it would do, and what is in the way; with --yes it does it: looks for changes of
/// others, flushes everything, unmounts, checks again that the cache has nothing that the drive
/// does not have, and removes .ferryfs from the drive and the cache from the SSD. The files on the
/// drive stay as they are. Without the mount nothing can be flushed, so it must be mounted. If it
/// is interrupted, nothing is lost; the same command with --yes finishes it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct LeaveArgs {
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Delete the old versions in .ferryfs/versions
    #[arg(long)]
    drop_versions: bool,
    /// Copy the files that are in the cache only (--local) to this new or empty directory
    #[arg(long, value_name = "DIR")]
    local_to: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
}

const EXAMPLES: &str = "\
Examples:
  ferryfs leave ~/lab                    # what it would do
  ferryfs leave --yes ~/lab
  ferryfs leave --yes --drop-versions --local-to ~/from-lab ~/lab
The other way: ferryfs mount --adopt DRIVE DIR moves the files of DIR into the mount.";

pub(super) fn run(args: &LeaveArgs) -> Result<Exit, Failure> {
    if let Some(before) = interrupted(&args.which) {
        return match args.yes {
            true => finish(&before, args),
            false => {
                say(&how_to_finish(&before));
                Ok(Exit::Done)
            }
        };
    }
    let Reached { mut client, mount } = reach::reach(&args.which).map_err(|error| {
        let failure = Failure::from(error);
        let hint = failure.hint.unwrap_or_default();
        Failure {
            hint: Some(format!(
                "{hint}; what waits must be flushed before, so mount it first"
            )),
            ..failure
        }
    })?;
    let plan = ask_plan(&mut client)?;
    say(&in_words(&plan, args));
    refuse_what_is_in_the_way(&plan, args)?;
    if !args.yes {
        say("nothing was changed; with --yes it is done\n");
        return Ok(Exit::Done);
    }
    look_for_changes(&mut client)?;
    let wish = FlushWish::default();
    let report = reach::report(
        &mut client,
        &Request::Flush(wish),
        None,
        &mut Bar::new(false),
    )?;
    must_be_complete(&report, "nothing was removed, and it is still mounted")?;
    // What has come since the plan was made.
    let plan = ask_plan(&mut client)?;
    refuse_what_is_in_the_way(&plan, args)?;
    let mountpoint = path_of_text(&plan.mountpoint);
    let mount = mount.or_else(|| mounts::find(Some(&mountpoint)).ok());
    let request = Request::Unmount {
        flush: true,
        force: false,
    };
    let report = unmount::ask_and_wait(client, &request, mount.as_ref())?;
    if let Some(users) = &report.still_used {
        return Err(Failure::failed(format!(
            "not left: it was unmounted, but is still in use by {}",
            render::users(users)
        ))
        .hint("nothing was removed; end that, mount the drive again, and try again"));
    }
    must_be_complete(
        &report,
        "it is unmounted, and nothing was removed; mount it again",
    )?;
    let (cache, drive) = (path_of_text(&plan.cache), path_of_text(&plan.drive));
    let volume = Volume {
        cache: &cache,
        drive: &drive,
        mountpoint: &mountpoint,
        name: plan.name.clone(),
    };
    let wish = LeaveWish {
        drop_versions: args.drop_versions,
        local_to: args.local_to.as_deref().map(absolute).transpose()?,
    };
    leave(&volume, &wish, &mut step)?;
    say(&last_words(&drive, &mountpoint, plan.name.as_deref()));
    Ok(Exit::Done)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::usage(format!("no usable path: {error}")))
}

fn step(line: &str) {
    say(&format!("{line}\n"));
}

fn last_words(drive: &Path, mountpoint: &Path, name: Option<&str>) -> String {
    let mut text = format!(
        "all files are in {}, as a plain directory; {} is an ordinary directory again\n",
        drive.escaped(),
        mountpoint.escaped()
    );
    if let Some(name) = name {
        let name = printable(name);
        let _ = writeln!(
            text,
            "remove the section [drive.{name}] from the configuration"
        );
    }
    text
}

/// The interrupted leave that is meant.
fn interrupted(which: &Which) -> Option<Unfinished> {
    let found = unfinished(which.cache.as_deref());
    // With --cache the word says where the drive is by now.
    let word = which.mountpoint.as_ref().filter(|_| which.cache.is_none());
    let Some(word) = word else {
        // Another one may be meant, if it is mounted.
        let is_open = which.cache.is_some() || !mounts::has_any();
        return found.into_iter().find(|_| is_open);
    };
    let path = mounts::resolve(word).unwrap_or_else(|_| word.clone());
    found.into_iter().find(|it| {
        let is_at = |place: &PathBuf| *place == path || place == word;
        // What is mounted there by now is what is meant.
        let is_mountpoint = is_at(&it.mountpoint) && !mounts::is_mount_point(&path);
        is_mountpoint
            || is_at(&it.drive)
            || is_at(&it.cache)
            || it
                .name
                .as_deref()
                .is_some_and(|name| Path::new(name) == word)
    })
}

fn how_to_finish(before: &Unfinished) -> String {
    format!(
        "a `ferryfs leave` of {} was interrupted; nothing is lost, all files are on the drive\n\
         nothing was changed; to finish it: ferryfs leave --yes --cache {}\n",
        before.drive.escaped(),
        quoted(&before.cache)
    )
}

fn finish(before: &Unfinished, args: &LeaveArgs) -> Result<Exit, Failure> {
    let which = &args.which;
    say("going on with a leave that was interrupted\n");
    // With --cache the word says where the drive is now.
    let drive = which
        .mountpoint
        .as_deref()
        .filter(|_| which.cache.is_some());
    let drive = drive.map(absolute).transpose()?;
    go_on(
        &before.cache,
        drive.as_deref(),
        args.drop_versions,
        &mut step,
    )?;
    let name = before.name.as_deref();
    say(&last_words(
        drive.as_ref().unwrap_or(&before.drive),
        &before.mountpoint,
        name,
    ));
    Ok(Exit::Done)
}

fn ask_plan(client: &mut Client) -> Result<LeavePlan, Failure> {
    match client.call(&Request::LeavePlan, Some(PATIENCE), &mut |_| {})? {
        Answer::LeavePlan(plan) => Ok(plan),
        _ => Err(reach::unexpected()),
    }
}

/// Takes in what others have changed: what they have deleted must not be in the cache only.
fn look_for_changes(client: &mut Client) -> Result<(), Failure> {
    let request = Request::Refresh {
        path: String::new(),
    };
    let Answer::Refreshed(report) = client.call(&request, None, &mut |_| {})? else {
        return Err(reach::unexpected());
    };
    match report.skipped.first() {
        None => Ok(()),
        Some(first) => Err(Failure::failed(format!(
            "not left: {} on the drive cannot be read: {}",
            first.path.escaped(),
            printable(&first.reason)
        ))
        .hint("nothing was changed, and it is still mounted")),
    }
}

fn must_be_complete(report: &FlushReport, state: &str) -> Result<(), Failure> {
    let refuse = |what: String| {
        Err(Failure::failed(format!("not left: {what}")).hint(format!(
            "{state}. Put it right, see `ferryfs flush` and `ferryfs status`, and try again"
        )))
    };
    if let Some(left) = report.left_behind.first() {
        let more = match report.left_behind.len() {
            1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        return refuse(format!(
            "{} was left behind: {}{more}",
            left.path.escaped(),
            printable(&left.reason)
        ));
    }
    match report.copied_open.first() {
        Some(open) => refuse(format!("{} is open for writing", open.path.escaped())),
        None => Ok(()),
    }
}

fn refuse_what_is_in_the_way(plan: &LeavePlan, args: &LeaveArgs) -> Result<(), Failure> {
    let refuse = |what: &str, hint: &str| {
        Err(
            Failure::failed(format!("not left: {}", printable(what))).hint(format!(
                "nothing was changed, and it is still mounted{hint}"
            )),
        )
    };
    if let Some(line) = plan.in_the_way.first() {
        return refuse(line, "");
    }
    if plan.local.files > 0 && args.local_to.is_none() && args.yes {
        let what = format!("{} are in the cache only", local::amount(&plan.local));
        return refuse(&what, ". Say where they are to go: --local-to DIR");
    }
    if plan.versions.files > 0 && !args.drop_versions && args.yes {
        let what = format!(
            "{} are kept on the drive as old versions",
            local::amount(&plan.versions)
        );
        return refuse(
            &what,
            ". Copy those that you want, then add --drop-versions",
        );
    }
    Ok(())
}

/// What would be done, and what is lost by it.
fn in_words(plan: &LeavePlan, args: &LeaveArgs) -> String {
    let mut text = String::new();
    let (drive, cache) = (path_of_text(&plan.drive), path_of_text(&plan.cache));
    if plan.waiting > 0 {
        let _ = writeln!(text, "flush: {} changed files and names wait", plan.waiting);
    }
    let _ = writeln!(text, "unmount: {}", plan.mountpoint.escaped());
    let _ = writeln!(text, "keep: all files in {}", quoted(&drive));
    if plan.local.files > 0 {
        let to = match &args.local_to {
            Some(to) => format!("to {}", to.escaped()),
            None => "which --local-to DIR is to name".into(),
        };
        let _ = writeln!(
            text,
            "copy: {} that stay local, {to}",
            local::amount(&plan.local)
        );
        for path in &plan.local_files {
            let _ = writeln!(text, "  {}", path.escaped());
        }
    }
    if plan.versions.files > 0 {
        let _ = writeln!(
            text,
            "delete: the old versions on the drive, {}, with --drop-versions",
            local::amount(&plan.versions)
        );
    }
    let _ = writeln!(
        text,
        "remove: {} and {}",
        quoted(&drive.join(".ferryfs")),
        quoted(&cache)
    );
    if !plan.lost.is_empty() {
        text.push_str("lost, as only .ferryfs has it:\n");
        for line in &plan.lost {
            let _ = writeln!(text, "  {}", printable(line));
        }
    }
    for line in &plan.in_the_way {
        let _ = writeln!(text, "in the way: {}", printable(line));
    }
    text
}
