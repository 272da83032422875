//! The cache and the SSD that it is on.

use std::fs;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::super::{history, monitor, verify, volume};
use super::{Finding, Findings};
use crate::cache::private;
use crate::control::protocol::Status;
use crate::core::{ForeignText, Timestamp, human_bytes, printable};
use crate::daemon::history::Outcome;
use crate::daemon::service::rfc3339;
use crate::sys;
use crate::sys::mounts::Mount;

/// With less free space than this, or a twentieth of the SSD, there is a warning.
const LITTLE: u64 = 1 << 30;

/// With less free space than this nothing works.
const NOTHING: u64 = 64 << 20;

/// Looks at `cache`, or at the place where caches are made by default.
pub(super) fn examine(cache: Option<&Path>, status: Option<&Status>) -> Vec<Finding> {
    let mut findings = Findings::of("cache");
    let place = match cache {
        Some(cache) => cache.to_path_buf(),
        None => match volume::default_caches() {
            Ok(caches) => caches,
            Err(failure) => {
                findings.problem(failure.message, failure.hint.unwrap_or_default());
                return findings.found;
            }
        },
    };
    let Some(there) = existing(&place) else {
        findings.problem(
            format!("{} cannot be reached", place.escaped()),
            "check the path of the cache",
        );
        return findings.found;
    };
    match cache {
        Some(_) if there == place => findings.ok(format!("it is {}", place.escaped())),
        Some(_) => findings.problem(
            format!("{} does not exist", place.escaped()),
            "its disk may not be mounted; name the cache with --cache DIR",
        ),
        None => findings.ok(format!(
            "there is none for this yet; it is made in {}",
            place.escaped()
        )),
    }
    if let Some(mount) = verify::mount_of(&there) {
        file_system(&mut findings, &mount, &there);
    }
    space(&mut findings, &there);
    if let Some(cache) = cache.filter(|cache| cache.is_dir()) {
        contents(&mut findings, cache, status);
    }
    findings.found
}

/// The deepest directory of `path` that exists.
fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors()
        .find(|path| path.is_dir())
        .map(Path::to_path_buf)
}

fn file_system(findings: &mut Findings, mount: &Mount, place: &Path) {
    let kind = printable(&mount.fs_type);
    const MOVE_IT: &str = "keep the cache on a local disk with ext4, XFS or btrfs (--cache DIR)";
    if mount.is_read_only() {
        findings.problem(
            "its file system is mounted read-only",
            "mount it read-write",
        );
        return;
    }
    if matches!(&*kind, "tmpfs" | "ramfs") {
        findings.problem(
            format!("it is in memory ({kind}): what waits is lost with the power"),
            MOVE_IT,
        );
        return;
    }
    if mount.is_shared() {
        findings.problem(format!("it is on a network file system ({kind})"), MOVE_IT);
        return;
    }
    let Ok(dir) = File::open(place) else {
        findings.problem("it cannot be opened", "run this as the user who mounts");
        return;
    };
    match sys::file::is_journaled(&dir) && kind != "ext2" {
        true => findings.ok(format!("its file system is {kind}, which has a journal")),
        false => findings.warn(
            format!("its file system is {kind}: a power cut may damage it"),
            MOVE_IT,
        ),
    }
    match has_reflinks(place) {
        Some(true) => findings.ok("it has reflinks: files that change during a flush are cheap"),
        Some(false) => {
            findings.ok("it has no reflinks: a file that changes during a flush is copied")
        }
        None => {}
    }
}

/// Whether two files without a name can share bytes. Nothing of them is seen or stays.
fn has_reflinks(dir: &Path) -> Option<bool> {
    let unnamed = || {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE);
        options.open(dir)
    };
    let (mut one, two) = (unnamed().ok()?, unnamed().ok()?);
    one.write_all(&[1; 4096]).ok()?;
    sys::file::clone_file(&one, &two).ok()
}

fn space(findings: &mut Findings, place: &Path) {
    let space = File::open(place).and_then(sys::file::space);
    let Ok(space) = space else {
        return;
    };
    let text = format!(
        "{} of {} are free on the SSD",
        human_bytes(space.available),
        human_bytes(space.total)
    );
    const MAKE_SPACE: &str = "free some space there, or choose a smaller --cache-size";
    if space.available < NOTHING {
        findings.problem(text, MAKE_SPACE);
    } else if space.available < LITTLE.min(space.total / 4) || space.available < space.total / 20 {
        findings.warn(text, MAKE_SPACE);
    } else {
        findings.ok(text);
    }
}

fn contents(findings: &mut Findings, cache: &Path, status: Option<&Status>) {
    if let Err(error) = private::check(cache) {
        findings.problem(error.to_string(), error.hint());
        return;
    }
    if monitor::has_open_batch(cache) {
        let advice = match status {
            Some(_) => "`ferryfs flush` finishes it while the drive is attached",
            None => "the next `ferryfs mount` finishes it; nothing is lost",
        };
        let is_running = status.is_some_and(|status| status.batch_in_progress);
        match is_running {
            true => findings.ok("a batch is being written"),
            false => findings.warn("it has the journal of an unfinished batch", advice),
        }
    }
    let lost = fs::read_dir(cache.join("lost+found")).map_or(0, Iterator::count);
    if lost > 0 {
        findings.warn(
            format!("{lost} files are in its lost+found"),
            "look at them, and delete those that you do not need",
        );
    }
    last_batch(findings, cache);
}

fn last_batch(findings: &mut Findings, cache: &Path) {
    let last = match history::read(cache, 1) {
        Ok(entries) => entries.into_iter().next(),
        Err(error) => {
            findings.warn(
                format!("its history cannot be read: {error}"),
                "it is needed for nothing else; delete history.jsonl if it is damaged",
            );
            return;
        }
    };
    let Some(last) = last else {
        return;
    };
    // Times of this form are in the order of their text.
    let now = rfc3339(Timestamp::from(SystemTime::now()));
    if last.time > now {
        findings.warn(
            format!(
                "the last batch ended at {}, which is to come",
                printable(&last.time)
            ),
            "the clock was set back; set it right (`timedatectl`)",
        );
    }
    let text = format!("the last batch was number {}", last.batch);
    match (last.outcome, last.problem) {
        (Outcome::GivenUp | Outcome::Interrupted, problem) => findings.warn(
            format!(
                "{text}, and it failed: {}",
                printable(&problem.unwrap_or_default())
            ),
            "nothing is lost; `ferryfs flush` tries again",
        ),
        (Outcome::LeftBehind, _) => findings.warn(
            format!("{text}, and it left {} entries behind", last.left_behind),
            "`ferryfs flush` names them and the reasons",
        ),
        (Outcome::Complete, _) => findings.ok(format!("{text}, and it is complete")),
    }
}
