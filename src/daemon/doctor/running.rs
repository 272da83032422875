//! The daemon.

use super::{Finding, Findings, Subject};
use crate::control::protocol::{BackendState, Status};
use crate::core::{ForeignText, printable, quoted};

pub(super) fn examine(subject: &Subject) -> Vec<Finding> {
    let mut findings = Findings::of("daemon");
    if let Some(mount) = &subject.dead_mount {
        let drive = subject.drive.as_deref().map(quoted).unwrap_or_default();
        findings.problem(
            format!("the daemon of {} is gone", mount.escaped()),
            format!(
                "nothing is lost: run `ferryfs mount {drive} {}` again",
                quoted(mount)
            ),
        );
        return findings.found;
    }
    match &subject.status {
        Some(status) => answers(&mut findings, status),
        None if subject.drive.is_some() => findings.ok("none serves this drive"),
        None => findings.ok("none was asked; name a mount or a drive to look at it"),
    }
    findings.found
}

fn answers(findings: &mut Findings, status: &Status) {
    let who = format!(
        "version {} serves {}, pid {}",
        printable(&status.version),
        status.mountpoint.escaped(),
        status.pid
    );
    match status.version == env!("CARGO_PKG_VERSION") {
        true => findings.ok(who),
        false => findings.warn(
            format!("{who}; this program is {}", env!("CARGO_PKG_VERSION")),
            "unmount, and mount again",
        ),
    }
    if !status.mounted {
        findings.warn(
            "its mount is gone, and its file system is still in use",
            "`ferryfs status` names by what; `ferryfs unmount --force` ends it",
        );
    }
    if status.backend_state == BackendState::Attached
        && let Some(since) = &status.stalled_since
    {
        findings.problem(
            format!("the drive has not answered since {}", printable(since)),
            "check the NAS or the drive and its cable",
        );
    }
    for warning in &status.warnings {
        findings.warn(printable(warning), "see `ferryfs status`");
    }
    if let Some(error) = &status.last_error {
        findings.problem(printable(error), "see `ferryfs status`; nothing is lost");
    }
    for line in &status.attention {
        findings.warn(printable(line), "see `ferryfs status`");
    }
    match status.dirty_files {
        0 => findings.ok("nothing waits for the drive"),
        count => findings.ok(format!("{count} changes wait for the next flush")),
    }
}
