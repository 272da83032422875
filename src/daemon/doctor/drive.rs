//! The drive: its file system, its marker, its space, and who uses it.

use std::fs;
use std::io;
use std::path::Path;

use super::super::fsck::{Concern, FsState, state_of};
use super::super::volume::CacheFacts;
use super::super::{verify, volume, write_back};
use super::{Finding, Findings};
use crate::control::protocol::Status;
use crate::core::{Capabilities, ForeignText, human_bytes, printable, quoted};
use crate::drive::mounted::MountedDir;
use crate::error::FlushError;
use crate::recovery::interrupted;
use crate::sys;
use crate::sys::holders;
use crate::sys::mounts::Mount;

/// The most programs that are named.
const NAMED: usize = 5;

/// Looks at `path`. The daemon says that the drive `is_away`.
pub(super) fn examine(
    path: &Path,
    cache: Option<&Path>,
    status: Option<&Status>,
    is_away: bool,
) -> Vec<Finding> {
    let mut findings = Findings::of("drive");
    if !is_there(&mut findings, path) {
        return findings.found;
    }
    let mount = verify::mount_of(path);
    if let Some(mount) = &mount {
        file_system(&mut findings, mount, path, status);
    }
    let facts = cache.and_then(|cache| CacheFacts::read(cache).ok().flatten());
    marker(&mut findings, path, facts.as_ref(), is_away, status);
    space(&mut findings, path, status);
    if let Some(facts) = &facts {
        capabilities(&mut findings, &facts.capabilities);
    }
    if let Some(mount) = mount.filter(|mount| mount.mount_point == path) {
        users(&mut findings, &mount, status);
    }
    findings.found
}

fn is_there(findings: &mut Findings, path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => true,
        Ok(_) => {
            findings.problem(
                format!("{} is not a directory", path.escaped()),
                "name the directory where the drive is mounted",
            );
            false
        }
        Err(error) => {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => "run this as the user who mounts, or as root",
                _ => "plug the drive in and mount it",
            };
            findings.problem(format!("{}: {error}", path.escaped()), advice);
            false
        }
    }
}

fn file_system(findings: &mut Findings, mount: &Mount, path: &Path, status: Option<&Status>) {
    let what = format!(
        "{} is on {} ({})",
        path.escaped(),
        mount.source.escaped(),
        printable(&mount.fs_type)
    );
    match mount.mount_point.as_path() == Path::new("/") {
        true => findings.warn(
            format!("{what}, the disk of the system"),
            "if it should be a drive: mount the drive there first. A directory works as well",
        ),
        false => findings.ok(what),
    }
    let is_kept_clean = status.is_some_and(|status| status.kept_clean.is_some());
    match mount.is_read_only() {
        true if is_kept_clean && !mount.is_read_only_itself() => {
            findings.ok("its file system is read-only between flushes (keep_clean)");
        }
        true => findings.problem(
            "it is mounted read-only: nothing can be flushed",
            "check its write protection, have its file system checked, and mount it again",
        ),
        false => findings.ok("it is mounted read-write"),
    }
    match state_of(mount) {
        FsState::Clean => findings.ok("its file system is clean"),
        FsState::Irrelevant => findings.ok("its file system survives a pulled cable by itself"),
        FsState::Unknown => findings.ok(
            "whether its file system is clean cannot be seen now (as root, or while it is not \
             mounted, it can)",
        ),
        FsState::Dirty => findings.warn(
            "its file system is marked as not cleanly unmounted, or as damaged",
            Concern::Marked.words(mount, path),
        ),
    }
    if let Some(problem) = write_back::problem(mount) {
        findings.problem(problem, "mount the remote with `--vfs-cache-mode off`");
    }
}

fn marker(
    findings: &mut Findings,
    path: &Path,
    facts: Option<&CacheFacts>,
    is_away: bool,
    status: Option<&Status>,
) {
    let found = MountedDir::open(path)
        .map_err(|error| FlushError::from(error).to_string())
        .and_then(|dir| {
            let marker = volume::peek(&dir).map_err(|failure| failure.message)?;
            Ok((dir, marker))
        });
    let (dir, marker) = match found {
        Ok(found) => found,
        Err(error) => {
            findings.problem(error, "check the drive, and who may read .ferryfs on it");
            return;
        }
    };
    match (&marker, facts) {
        (None, Some(facts)) => findings.problem(
            format!("{} has no marker, and the cache belongs to a volume", path.escaped()),
            format!(
                "mount the drive there; if .ferryfs was deleted: `ferryfs mount --re-enroll` (volume \
                 {})",
                facts.volume
            ),
        ),
        (None, None) => findings.ok("it is no volume yet; the first mount makes it one"),
        (Some(marker), Some(facts)) if marker.id != facts.volume => findings.problem(
            format!("it is volume {}, and the cache is that of {}", marker.id, facts.volume),
            "mount the right drive there, or use the cache of this one; nothing was written",
        ),
        (Some(marker), _) => findings.ok(format!("it is volume {}", marker.id)),
    }
    match (is_away, status) {
        (true, Some(status)) if status.ejected.is_some() => {
            findings.ok("the daemon has released it (`ferryfs eject`)");
        }
        (true, _) => findings.warn(
            "the daemon has not attached it",
            format!("try `ferryfs attach {}`; it says why not", quoted(path)),
        ),
        _ => {}
    }
    unfinished(findings, &dir, path, status);
}

/// A batch that was interrupted, or is being written.
fn unfinished(findings: &mut Findings, dir: &MountedDir, path: &Path, status: Option<&Status>) {
    let is_running = status.is_some_and(|status| status.batch_in_progress);
    match interrupted::batches_on(dir) {
        Ok(batches) if batches.is_empty() => findings.ok("no unfinished batch is on it"),
        Ok(_) if is_running => findings.ok("a batch is being written to it"),
        Ok(batches) => findings.warn(
            format!("it has {} unfinished batch(es)", batches.len()),
            match status {
                Some(_) => "`ferryfs flush` finishes them, or says what prevents it".into(),
                None => format!(
                    "mount it with its cache, or without it: `ferryfs recover {}`",
                    quoted(path)
                ),
            },
        ),
        Err(error) => findings.problem(
            error.to_string(),
            "check who may read .ferryfs on the drive",
        ),
    }
}

fn space(findings: &mut Findings, path: &Path, status: Option<&Status>) {
    let Ok(space) = fs::File::open(path).and_then(sys::file::space) else {
        return;
    };
    let needed = status.map_or(0, |status| status.needed_bytes);
    let text = format!(
        "{} of {} are free",
        human_bytes(space.available),
        human_bytes(space.total)
    );
    if needed > space.available {
        findings.problem(
            format!("{text}, and {} wait", human_bytes(needed)),
            "delete something in the mount, then run `ferryfs flush --removals-first`",
        );
    } else if space.available < space.total / 100 {
        findings.warn(text, "free some space; a full drive takes no batch");
    } else {
        findings.ok(text);
    }
}

/// What the drive keeps by itself. The catalog keeps the rest.
fn capabilities(findings: &mut Findings, found: &Capabilities) {
    let all = [
        ("permissions", found.permissions),
        ("owners", found.owners),
        ("symbolic links", found.symlinks),
        ("hard links", found.hard_links),
        ("named pipes and sockets", found.special_files),
        ("extended attributes", !found.xattrs.is_empty()),
        ("names in any case", !found.case_insensitive),
        ("names that are not UTF-8", !found.utf8_only),
    ];
    let kept: Vec<&str> = (all.iter().filter(|one| one.1)).map(|one| one.0).collect();
    let kept = match kept.is_empty() {
        true => "names and contents only".into(),
        false => kept.join(", "),
    };
    findings.ok(format!("it keeps {kept}; .ferryfs keeps the rest"));
}

/// The programs that keep the drive's own file system in use, beside the daemon.
fn users(findings: &mut Findings, mount: &Mount, status: Option<&Status>) {
    let daemon = status.map(|status| status.pid);
    let found = holders::of(mount.dev);
    let others: Vec<String> = (found.found.iter())
        .filter_map(|holder| {
            let (pid, program) = holder.process.as_ref()?;
            let is_other = Some(*pid) != daemon;
            is_other.then(|| format!("{} (pid {pid})", program.escaped()))
        })
        .collect();
    if others.is_empty() {
        return findings.ok(match found.some_unseen {
            true => "no other program that this user may see uses it directly",
            false => "no other program uses it directly",
        });
    }
    let more = match others.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = others.iter().take(NAMED).cloned().collect::<Vec<_>>();
    findings.warn(
        format!("used directly by {}{more}", named.join(", ")),
        "let programs use the mount instead; the drive cannot be unmounted while they use it",
    );
}
