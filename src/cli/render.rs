//! Reports as text for the user. No I/O here.

use std::fmt::Write;
use std::path::Path;

use super::times;
use super::units::{human_bytes, human_seconds};
use crate::control::protocol::{
    AttachReport, Automatic, BackendState, BatchOutcome, CopiedOpen, Ejected, FlushReport,
    ImportStatus, IoPath, KeptClean, LastBatch, LeftBehind, LocalCounts, RefreshReport, Space,
    Status,
};
pub use crate::control::users::users;
pub use crate::core::quoted;
use crate::core::{ForeignText, path_of_text, printable};
use crate::daemon::{RecoverReport, Recovery};
use crate::recovery::rescue::RescueReport;

/// The most left-behind files that are listed one by one; `--json` has all.
const LISTED: usize = 20;

/// A path in a report, as [`quoted`] formats it.
fn quoted_text(path: &str) -> String {
    quoted(&path_of_text(path))
}

/// The answer to `ferryfs status`: first the advice for a user who wants to unplug the drive.
pub fn status(status: &Status) -> String {
    let mut rows = what_it_is(status);
    rows.push(("waiting", waiting(status)));
    if status.open_for_write > 0 {
        rows.push((
            "open",
            format!("{} for writing", files(status.open_for_write)),
        ));
    }
    let lines = automatic(&status.automatic).into_iter();
    rows.extend(lines.map(|line| ("automatic", line)));
    rows.extend(what_was_left(status));
    if status.conflicts > 0 {
        rows.push(("conflicts", conflicts(status.conflicts)));
    }
    if status.kept_local > 0 {
        rows.push(("kept here", kept_here(status.kept_local)));
    }
    rows.extend(local(&status.local).into_iter().map(|line| ("local", line)));
    if !status.import.complete {
        rows.push(("importing", importing(&status.import)));
    }
    rows.push(("last batch", last_batch(status.last_batch.as_ref())));
    if let Some(last) = &status.last_refresh {
        let (time, found) = (times::date_and_time(&last.time), found(&last.report));
        rows.push(("last look", format!("at {time}: {found}")));
    }
    let scrubs = super::scrub::rows(&status.scrub).into_iter();
    rows.extend(scrubs.map(|line| ("scrub", line)));
    rows.push(("cached", cached(status)));
    if let Some(space) = status.drive {
        rows.push(("on the drive", free(space)));
    }
    if let Some(clean) = &status.kept_clean {
        rows.push(("kept clean", kept_clean(clean, status.batch_in_progress)));
    }
    let io = match status.io {
        IoPath::Daemon => "daemon",
        IoPath::Passthrough => "passthrough",
    };
    let daemon = format!(
        "version {}, pid {}, I/O by {io}",
        printable(&status.version),
        status.pid
    );
    rows.push(("daemon", daemon));
    rows.extend(what_is_wrong(status));
    format!("{}\n\n{}", advice(status), table(&rows))
}

fn kept_clean(clean: &KeptClean, is_busy: bool) -> String {
    match (clean.read_only, is_busy) {
        (true, _) => "yes, its file system is read-only until the next flush",
        (false, true) => "its file system is writable while the flush runs",
        (false, false) => "no, its file system is writable now",
    }
    .into()
}

fn what_it_is(status: &Status) -> Vec<(&'static str, String)> {
    let state = match (status.backend_state, &status.stalled_since) {
        (BackendState::Attached, Some(since)) => {
            let since = times::date_and_time(since);
            format!("attached, stalled since {since}: it does not answer")
        }
        (BackendState::Attached, None) => "attached".into(),
        (BackendState::Detached, _) if status.ejected.is_some() => "ejected".into(),
        (BackendState::Detached, _) => "detached".into(),
    };
    let mount = match status.mounted {
        true if status.read_only => format!("{} (read-only)", status.mountpoint.escaped()),
        true => status.mountpoint.escaped().to_string(),
        false => format!("{} (not mounted any more)", status.mountpoint.escaped()),
    };
    let mut rows = Vec::new();
    if let Some(config) = &status.config {
        rows.push(("name", printable(&config.name)));
    }
    rows.extend([
        ("mount", mount),
        ("drive", format!("{} ({state})", status.backend.escaped())),
        ("volume", printable(&status.volume_id)),
    ]);
    if !status.cache.is_empty() {
        rows.push(("cache", status.cache.escaped().to_string()));
    }
    rows
}

/// What keeps flushes from beginning by themselves, and when the schedule is due, a line each.
pub(super) fn automatic(automatic: &Automatic) -> Vec<String> {
    let mut lines = Vec::new();
    match (&automatic.paused_until, &automatic.held) {
        (Some(until), _) => lines.push(format!("paused until {}", times::date_and_time(until))),
        (None, _) if automatic.paused => {
            lines.push("paused until you end it with `ferryfs resume`".into());
        }
        (None, Some(held)) => lines.push(format!("none now: {}", printable(held))),
        (None, None) => {}
    }
    if let Some(next) = &automatic.next_run {
        lines.push(format!("scheduled for {}", times::date_and_time(next)));
    }
    lines
}

/// What the last flush has left behind, with the reasons, and the conflicts that it has found.
fn what_was_left(status: &Status) -> Vec<(&'static str, String)> {
    let Some(last) = &status.last_flush else {
        return Vec::new();
    };
    let mut rows: Vec<(&'static str, String)> = (last.left_behind.iter().take(LISTED))
        .map(|item| {
            let line = format!("{}: {}", item.path.escaped(), printable(&item.reason));
            ("left behind", line)
        })
        .collect();
    let listed = rows.len() as u64;
    if last.left_behind_count > listed {
        let more = last.left_behind_count - listed;
        rows.push((
            "left behind",
            format!("and {more} more (--json has more of them)"),
        ));
    }
    for conflict in last.conflicts.iter().take(LISTED) {
        let line = format!(
            "{}: the drive's version is {}",
            conflict.path.escaped(),
            conflict.theirs.escaped()
        );
        rows.push(("conflict", line));
    }
    rows
}

fn what_is_wrong(status: &Status) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    for warning in &status.warnings {
        rows.push(("warning", printable(warning)));
    }
    if let Some(error) = &status.last_error {
        rows.push(("error", printable(error)));
    }
    for line in &status.attention {
        rows.push(("attention", printable(line)));
    }
    for line in &status.automatic.hook_problems {
        rows.push(("hook", printable(line)));
    }
    for item in status.import.unreadable.iter().take(LISTED) {
        let (path, reason) = (item.path.escaped(), printable(&item.reason));
        rows.push(("attention", format!("{path} cannot be read: {reason}")));
    }
    rows
}

fn cached(status: &Status) -> String {
    let mut text = human_bytes(status.cached_bytes);
    if status.cache_limit_bytes > 0 {
        text.push_str(&format!(
            " of at most {}",
            human_bytes(status.cache_limit_bytes)
        ));
    }
    if let Some(space) = status.ssd {
        text.push_str(&format!("; on the SSD {}", free(space)));
    }
    text
}

fn free(space: Space) -> String {
    format!(
        "{} of {} are free",
        human_bytes(space.free_bytes),
        human_bytes(space.total_bytes)
    )
}

fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (label, value) in rows {
        let _ = writeln!(text, "{label:<width$}  {value}");
    }
    text
}

fn waiting(status: &Status) -> String {
    let slowed = status.running.and_then(|running| running.slowed);
    let in_progress = match (status.batch_in_progress, slowed) {
        (true, None) => ", a batch is being written".to_owned(),
        (true, Some(slowed)) => format!(", a batch is being written ({})", slowed.in_words()),
        (false, _) => String::new(),
    };
    match status.dirty_files {
        0 => format!("nothing{in_progress}"),
        count => format!(
            "{}, {}{}{in_progress}",
            files(count),
            human_bytes(status.dirty_bytes),
            on_drive(status)
        ),
    }
}

/// The space that it takes on the drive, if that is a different number.
fn on_drive(status: &Status) -> String {
    let (bytes, needed) = (
        human_bytes(status.dirty_bytes),
        human_bytes(status.needed_bytes),
    );
    match status.needed_bytes <= status.dirty_bytes || bytes == needed {
        true => String::new(),
        false => format!(" ({needed} on the drive)"),
    }
}

/// How much of the drive's earlier contents has been imported.
fn importing(import: &ImportStatus) -> String {
    let unreadable = match import.unreadable_count {
        0 => String::new(),
        count => format!(", {count} cannot be read"),
    };
    format!(
        "{} of {} known directories, {}{unreadable}; all of them can be used meanwhile",
        import.directories_done,
        import.directories_known,
        files(import.files)
    )
}

fn last_batch(batch: Option<&LastBatch>) -> String {
    let Some(batch) = batch else {
        return "none yet".into();
    };
    let outcome = match batch.outcome {
        BatchOutcome::Complete => "complete",
        BatchOutcome::LeftBehind => "something was left behind",
        BatchOutcome::Failed => "failed, will be tried again",
    };
    format!(
        "{} at {}: {}, {}, {outcome}",
        batch.number,
        times::date_and_time(&batch.time),
        files(batch.files),
        human_bytes(batch.bytes),
    )
}

/// The advice for a user who wants to unplug the drive.
fn advice(status: &Status) -> String {
    let mount = quoted_text(&status.mountpoint);
    if !status.mounted {
        return in_use_elsewhere(status);
    }
    if let (BackendState::Detached, Some(ejected)) = (status.backend_state, &status.ejected) {
        return after_eject(status, ejected);
    }
    if status.backend_state == BackendState::Attached && status.stalled_since.is_some() {
        return "The drive does not answer. Programs can continue: cached files work, files that \
                are only on the drive give an error,\nand what waits is flushed when it answers \
                again."
            .into();
    }
    match (status.backend_state, status.safe_to_unplug) {
        (BackendState::Attached, true) => {
            "Safe to unplug: nothing waits, nothing is being written.".into()
        }
        (BackendState::Attached, false) => {
            format!("NOT safe to unplug. To make it so: ferryfs eject {mount}")
        }
        (BackendState::Detached, _) if status.dirty_files > 0 => {
            "The drive is not attached. Programs can continue; what waits is flushed when it is \
             back."
                .into()
        }
        (BackendState::Detached, _) => {
            "The drive is not attached, and nothing waits for it.".into()
        }
    }
}

/// A mount that was unmounted while its file system is still in use.
fn in_use_elsewhere(status: &Status) -> String {
    let safe = match (status.backend_state, status.safe_to_unplug) {
        (BackendState::Attached, true) => "Nothing waits now.",
        (BackendState::Attached, false) => "NOT safe to unplug.",
        (BackendState::Detached, _) => "The drive is not there.",
    };
    format!(
        "{safe} It was unmounted, but is still in use by {}.\nWhat is written there is flushed as before. To end it: stop \
         that, or `ferryfs unmount --force --cache {}`",
        users(&status.users),
        quoted_text(&status.cache)
    )
}

fn after_eject(status: &Status, ejected: &Ejected) -> String {
    let when = times::at(&ejected.time, std::time::SystemTime::now().into());
    let waits = match status.dirty_files {
        0 => "nothing waits for it",
        _ => "what was changed since waits in the cache",
    };
    match &ejected.mounted_at {
        Some(path) => format!(
            "You ejected it {when}; it is still mounted at {}, and {waits}. {}",
            quoted_text(path),
            ejected.advice()
        ),
        None => format!(
            "You ejected it {when}; it is not there now, and {waits}. {}",
            ejected.advice()
        ),
    }
}

/// What `ferryfs flush` did.
pub fn flush_report(report: &FlushReport) -> String {
    let mut text = written(report);
    text.push_str(&copied_open(&report.copied_open));
    text.push_str(&left_behind(&report.left_behind));
    for conflict in report.conflicts.iter().take(LISTED) {
        let (path, theirs) = (conflict.path.escaped(), conflict.theirs.escaped());
        let _ = writeln!(
            text,
            "changed on both sides: {path}; the drive's version is {theirs}"
        );
    }
    if report.conflicts.len() > LISTED {
        let more = report.conflicts.len() - LISTED;
        let _ = writeln!(text, "  and {more} more (all of them: --json)");
    }
    if report.kept_local > 0 {
        let _ = writeln!(text, "kept here: {}", kept_here(report.kept_local));
    }
    for line in local(&report.local) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// What stays on this computer because the user wants it so, a line each.
fn local(counts: &LocalCounts) -> Vec<String> {
    let mut lines = Vec::new();
    if counts.files > 0 {
        let verb = if counts.files == 1 { "stays" } else { "stay" };
        let (files, bytes) = (files(counts.files), human_bytes(counts.bytes));
        lines.push(format!("{files} {verb} on this computer (local), {bytes}"));
    }
    if counts.held > 0 {
        lines.push(format!(
            "{} were moved to local names and stay on the drive until their bytes are here",
            counts.held
        ));
    }
    lines
}

/// The files that were written while programs had them open.
fn copied_open(copies: &[CopiedOpen]) -> String {
    let mut text = String::new();
    if copies.is_empty() {
        return text;
    }
    let _ = writeln!(text, "written while open: {}", files(copies.len() as u64));
    for copy in copies.iter().take(LISTED) {
        let what = match copy.database {
            true => "database, consistent with its journal",
            false => "complete",
        };
        let _ = writeln!(
            text,
            "  {} ({what}, as of {})",
            copy.path.escaped(),
            printable(&copy.as_of)
        );
    }
    if copies.len() > LISTED {
        let more = copies.len() - LISTED;
        let _ = writeln!(text, "  and {more} more (all of them: --json)");
    }
    text
}

/// What `ferryfs eject` did.
pub fn eject_report(report: &FlushReport) -> String {
    let mut text = flush_report(report);
    text.push_str(if report.left_behind.is_empty() {
        "Safe to unplug. The mount stays usable without the drive.\n"
    } else {
        "The drive is released and may be unplugged; what was left behind is not on it.\n"
    });
    text
}

/// What `ferryfs attach` did.
pub fn attach_report(report: &AttachReport) -> String {
    let backend = report.backend.escaped().to_string();
    let mut text = match (report.already, report.checked) {
        (true, _) => format!("{backend} is attached already; nothing to do\n"),
        (false, true) => format!("checked {backend} and attached it\n"),
        (false, false) => format!("attached {backend}\n"),
    };
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {}", printable(warning));
    }
    text
}

/// What `ferryfs refresh` found.
pub fn refresh_report(report: &RefreshReport) -> String {
    let mut text = format!("{}\n", found(report));
    if report.conflicts > 0 {
        text.push_str("changed on both sides: look for names with .sync-conflict- in them\n");
    }
    for skipped in report.skipped.iter().take(LISTED) {
        let (path, reason) = (skipped.path.escaped(), printable(&skipped.reason));
        let _ = writeln!(text, "not compared: {path}: {reason}");
    }
    text
}

fn found(report: &RefreshReport) -> String {
    let counts = [
        (report.new, "new"),
        (report.changed, "changed"),
        (report.moved, "moved"),
        (report.deleted, "deleted"),
        (report.conflicts, "in conflict"),
        (report.skipped.len() as u64, "not compared"),
    ];
    let counts: Vec<String> = (counts.iter())
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    match counts.is_empty() {
        true => "no changes by another machine or program".into(),
        false => counts.join(", "),
    }
}

fn conflicts(count: u64) -> String {
    let what = match count {
        1 => "1 other version is",
        _ => return format!("{count} other versions are kept: find -name '*.sync-conflict-*'"),
    };
    format!("{what} kept: find -name '*.sync-conflict-*'")
}

/// What `ferryfs unmount` did to the mount at `mountpoint`.
pub fn unmount_report(report: &FlushReport, flushed: bool, mountpoint: &Path) -> String {
    let mut text = if flushed {
        flush_report(report)
    } else {
        String::new()
    };
    let place = quoted(mountpoint);
    let _ = match &report.still_used {
        None => writeln!(text, "unmounted {place}"),
        Some(still) => writeln!(
            text,
            "NOT ended: {place} is unmounted, but its file system is still in use by {}.\nThe \
             daemon continues to serve it, and flushes what is written there. When it is no longer \
             in use, the daemon ends; to cut it off: ferryfs unmount --force {place}",
            users(still)
        ),
    };
    text
}

/// What `ferryfs recover` found and did.
pub fn recover_report(report: &RecoverReport) -> String {
    let mut text = match report.recovery {
        Recovery::NothingToDo => "no batch was interrupted; nothing to do\n".into(),
        Recovery::Finished {
            batch,
            files: count,
            bytes,
        } => format!(
            "finished batch {batch}: {}, {}\n",
            files(count),
            human_bytes(bytes)
        ),
        Recovery::Discarded { batch } => format!(
            "discarded batch {batch}, which was not committed: the files are as they were before it\n"
        ),
    };
    text.push_str(&left_behind(&report.left_behind));
    text
}

/// What `ferryfs rescue` copied to `out`.
pub fn rescue_report(report: &RescueReport, out: &Path) -> String {
    let mut text = format!(
        "copied {} ({}) to {}\n",
        files(report.files),
        human_bytes(report.bytes),
        quoted(&out.join("files"))
    );
    for (count, what) in [
        (report.unnamed, "without a name, in unnamed/"),
        (
            report.old_versions,
            "replaced or removed before, in old-versions/",
        ),
        (
            report.lost_and_found,
            "from lost+found of the cache, in lost+found/",
        ),
        (
            report.on_drive_only,
            "whose bytes are only on the drive: not copied",
        ),
        (
            report.special,
            "that are devices, pipes or sockets: not copied",
        ),
    ] {
        if count > 0 {
            let _ = writeln!(text, "{} {what}", files(count));
        }
    }
    for line in &report.index {
        let _ = writeln!(text, "index: {}", printable(line));
    }
    for (title, list) in [("DAMAGED", &report.damaged), ("NOT copied", &report.failed)] {
        if list.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{title}: {}", list.len());
        for item in list.iter().take(LISTED) {
            let _ = writeln!(
                text,
                "  {}: {}",
                item.path.escaped(),
                printable(&item.problem)
            );
        }
        if list.len() > LISTED {
            let _ = writeln!(
                text,
                "  and {} more (all of them: --json)",
                list.len() - LISTED
            );
        }
    }
    text
}

fn written(report: &FlushReport) -> String {
    match report.batch {
        None if report.left_behind.is_empty() => {
            "nothing to do: everything is on the drive\n".into()
        }
        None => "nothing was flushed\n".into(),
        Some(batch) => {
            let mut names = String::new();
            for (count, what) in [(report.removed, "removed"), (report.moved, "moved")] {
                if count > 0 {
                    let _ = write!(names, ", {count} {what}");
                }
            }
            let speed = if report.seconds >= 0.1 && report.bytes > 0 {
                let per_second = report.bytes as f64 / report.seconds;
                format!(" ({}/s)", human_bytes(per_second as u64))
            } else {
                String::new()
            };
            format!(
                "batch {batch}: {}, {}{names} in {}{speed}\n",
                files(report.files),
                human_bytes(report.bytes),
                human_seconds(report.seconds),
            )
        }
    }
}

fn left_behind(left: &[LeftBehind]) -> String {
    let mut text = String::new();
    if left.is_empty() {
        return text;
    }
    let _ = writeln!(text, "NOT on the drive: {}", files(left.len() as u64));
    for item in left.iter().take(LISTED) {
        let _ = writeln!(
            text,
            "  {}: {}",
            item.path.escaped(),
            printable(&item.reason)
        );
    }
    if left.len() > LISTED {
        let _ = writeln!(
            text,
            "  and {} more (all of them: --json)",
            left.len() - LISTED
        );
    }
    text
}

fn kept_here(count: u64) -> String {
    let entries = if count == 1 { "entry" } else { "entries" };
    format!("{count} {entries} that the drive cannot hold (links, devices, ...)")
}

/// `1 file`, `12 files`.
pub fn files(count: u64) -> String {
    match count {
        1 => "1 file".into(),
        _ => format!("{count} files"),
    }
}

#[cfg(test)]
pub(super) mod tests;
