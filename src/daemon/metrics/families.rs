//! The metrics by name. `docs/metrics.md` lists them; a test compares the list with this text.

use super::DriveState;
use super::text::Text;
use super::totals::{BOUNDS, Sums};
use crate::control::protocol::{ScrubReport, Status};
use crate::core::{Phase, Progress, Timestamp};
use crate::daemon::history::Outcome;
use crate::fuse::{BOUNDS_US, Counts};
use std::time::Duration;

/// What is known at one moment.
pub(super) struct Sample {
    pub(super) status: Status,
    pub(super) drive_state: DriveState,
    /// The flush under way, and for how long.
    pub(super) running: Option<(Progress, Duration)>,
    pub(super) totals: Sums,
    pub(super) requests: Vec<Counts>,
    pub(super) started: Timestamp,
    pub(super) oldest_change: Option<Timestamp>,
    /// When the last scrub has ended.
    pub(super) scrubbed: Option<Timestamp>,
}

const PHASES: [(&str, Phase); 6] = [
    ("cut", Phase::Cut),
    ("stage", Phase::Stage),
    ("verify", Phase::Verify),
    ("commit", Phase::Commit),
    ("apply", Phase::Apply),
    ("confirm", Phase::Confirm),
];

const DRIVE_STATES: [(&str, DriveState); 4] = [
    ("attached", DriveState::Attached),
    ("away", DriveState::Away),
    ("unfinished", DriveState::Unfinished),
    ("stalled", DriveState::Stalled),
];

/// The metrics as text.
pub(super) fn text(sample: &Sample) -> String {
    let mut text = Text::default();
    mount(&mut text, sample);
    waiting(&mut text, sample);
    drive(&mut text, sample);
    cache(&mut text, &sample.status);
    scrub(&mut text, sample);
    running(&mut text, sample);
    totals(&mut text, &sample.totals);
    requests(&mut text, &sample.requests);
    text.finish()
}

fn seconds(time: Timestamp) -> f64 {
    let (secs, nanos) = time.parts();
    secs as f64 + f64::from(nanos / 1_000_000) / 1000.0
}

fn mount(text: &mut Text, sample: &Sample) {
    let status = &sample.status;
    text.info(
        "ferryfs_info",
        "The mount and its drive.",
        &[
            ("version", &status.version),
            ("mountpoint", &status.mountpoint),
            ("drive", &status.backend),
            ("volume", &status.volume_id),
        ],
    );
    text.gauge(
        "ferryfs_start_time_seconds",
        "When the daemon has started, in seconds since 1970.",
        seconds(sample.started),
    );
    text.gauge(
        "ferryfs_attention_lines",
        "Facts that the owner must know; ferryfs status names them.",
        status.attention.len() as u64,
    );
    text.gauge(
        "ferryfs_warnings",
        "Problems of the attached drive; ferryfs status names them.",
        status.warnings.len() as u64,
    );
    text.gauge(
        "ferryfs_error",
        "1 while there is an error that has not been resolved.",
        status.last_error.is_some(),
    );
}

fn waiting(text: &mut Text, sample: &Sample) {
    let status = &sample.status;
    text.gauge(
        "ferryfs_dirty_bytes",
        "Bytes that wait for a flush.",
        status.dirty_bytes,
    );
    text.gauge(
        "ferryfs_dirty_files",
        "Changed files, directories and names that wait for a flush.",
        status.dirty_files,
    );
    text.gauge_if(
        "ferryfs_oldest_change_timestamp_seconds",
        "When the oldest change that waits for a flush was made. Absent while none does.",
        sample.oldest_change.map(seconds),
    );
    text.gauge(
        "ferryfs_open_for_write_files",
        "Files that are open for writing.",
        status.open_for_write,
    );
    text.gauge(
        "ferryfs_conflicts",
        "Conflict versions in the mount.",
        status.conflicts,
    );
    text.gauge(
        "ferryfs_refused_names",
        "Entries that the last flush has left behind.",
        (status.last_flush.as_ref()).map_or(0, |last| last.left_behind_count),
    );
    text.gauge(
        "ferryfs_kept_local_entries",
        "Entries that the drive cannot store and that exist in the cache only.",
        status.kept_local,
    );
    text.gauge(
        "ferryfs_local_files",
        "Files that stay on this computer because they match --local.",
        status.local.files,
    );
    text.gauge("ferryfs_local_bytes", "Their bytes.", status.local.bytes);
    text.gauge(
        "ferryfs_safe_to_unplug",
        "1 if nothing waits and nothing is being written.",
        status.safe_to_unplug,
    );
}

fn drive(text: &mut Text, sample: &Sample) {
    let status = &sample.status;
    text.states(
        ("ferryfs_drive_state", "state"),
        "1 for the state of the drive.",
        &DRIVE_STATES.map(|(name, state)| (name, state == sample.drive_state)),
    );
    text.gauge(
        "ferryfs_drive_needed_bytes",
        "The space that waiting changes need on the drive.",
        status.needed_bytes,
    );
    text.gauge_if(
        "ferryfs_drive_free_bytes",
        "Free space of the drive. Absent while it is away.",
        status.drive.map(|space| space.free_bytes),
    );
    text.gauge_if(
        "ferryfs_drive_size_bytes",
        "Size of the drive. Absent while it is away.",
        status.drive.map(|space| space.total_bytes),
    );
}

fn cache(text: &mut Text, status: &Status) {
    text.gauge(
        "ferryfs_cache_used_bytes",
        "Bytes in the cache.",
        status.cached_bytes,
    );
    text.gauge(
        "ferryfs_cache_limit_bytes",
        "The space that the cache may use.",
        status.cache_limit_bytes,
    );
    text.gauge_if(
        "ferryfs_ssd_free_bytes",
        "Free space of the SSD that the cache is on.",
        status.ssd.map(|space| space.free_bytes),
    );
    text.gauge_if(
        "ferryfs_ssd_size_bytes",
        "Size of the SSD that the cache is on.",
        status.ssd.map(|space| space.total_bytes),
    );
}

fn scrub(text: &mut Text, sample: &Sample) {
    let scrub = &sample.status.scrub;
    let last = scrub.last.as_ref();
    text.gauge(
        "ferryfs_scrub_in_progress",
        "1 while the files of the drive are being compared with their hashes.",
        scrub.running,
    );
    text.gauge_if(
        "ferryfs_scrub_last_timestamp_seconds",
        "When the last scrub that read all files has ended. Absent before the first one.",
        sample.scrubbed.map(seconds),
    );
    text.gauge_if(
        "ferryfs_scrub_files",
        "Files that it has read.",
        last.map(|last| last.read.files),
    );
    text.gauge_if(
        "ferryfs_scrub_bytes",
        "Their bytes.",
        last.map(|last| last.read.bytes),
    );
    text.gauge_if(
        "ferryfs_scrub_damaged_files",
        "Files that it has found to be damaged.",
        last.map(|last| last.damaged),
    );
    text.gauge_if(
        "ferryfs_scrub_unrepaired_files",
        "Damaged and unreadable files that it could not repair.",
        last.map(ScrubReport::unresolved),
    );
}

fn running(text: &mut Text, sample: &Sample) {
    text.gauge(
        "ferryfs_batch_in_progress",
        "1 while a batch is being written.",
        sample.status.batch_in_progress,
    );
    let phase = sample.running.map(|(step, _)| step.phase);
    text.states(
        ("ferryfs_batch_phase", "phase"),
        "1 for the phase of the batch that is being written.",
        &PHASES.map(|(name, one)| (name, phase == Some(one))),
    );
    text.gauge(
        "ferryfs_batch_running_seconds",
        "For how long the flush under way has been running; 0 if none is.",
        (sample.running).map_or(0.0, |(_, time)| (time.as_secs_f64() * 10.0).round() / 10.0),
    );
}

fn totals(text: &mut Text, sums: &Sums) {
    text.counters(
        ("ferryfs_batches_total", "outcome"),
        "Batches that have ended, by outcome.",
        (Outcome::ALL.iter().map(|outcome| outcome.name())).zip(sums.by_outcome),
    );
    text.histograms(
        "ferryfs_batch_duration_seconds",
        "How long batches have taken.",
    );
    text.histogram(
        "ferryfs_batch_duration_seconds",
        None,
        (&BOUNDS, &sums.durations),
        sums.took.as_secs_f64(),
    );
    text.counter(
        "ferryfs_batch_files_total",
        "Files that batches have written.",
        sums.files,
    );
    text.counter(
        "ferryfs_batch_bytes_total",
        "Bytes that batches have written.",
        sums.bytes,
    );
    text.counter(
        "ferryfs_batch_removed_names_total",
        "Names that batches have removed.",
        sums.removed,
    );
    text.counter(
        "ferryfs_batch_moved_names_total",
        "Names that batches have moved.",
        sums.moved,
    );
    text.counter(
        "ferryfs_batch_conflicts_total",
        "Files that both sides had changed.",
        sums.conflicts,
    );
    text.gauge_if(
        "ferryfs_last_batch_timestamp_seconds",
        "When the last batch that is on the drive has ended. Absent before the first one.",
        sums.last_written.map(seconds),
    );
}

fn requests(text: &mut Text, requests: &[Counts]) {
    let name = "ferryfs_request_duration_seconds";
    text.histograms(name, "How long the kernel has waited for answers, by kind.");
    let bounds = BOUNDS_US.map(|bound| bound as f64 / 1e6);
    for kind in requests {
        let counts = (&bounds[..], &kind.buckets[..]);
        text.histogram(
            name,
            Some(("kind", kind.kind)),
            counts,
            kind.sum.as_secs_f64(),
        );
    }
}
