//! The background threads of a mount: syncs, eviction, the import walk, automatic flushes.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::dead_mount;
use super::dead_mount::DetachError;
use super::hooks;
use super::keep_clean;
use super::keeping;
use super::metrics;
use super::metrics::Outlets;
use super::notify;
use super::notify::Notifier;
use super::options::Live;
use super::scrub;
use super::service::{Service, rfc3339};
use super::stop::Stop;
use crate::core::{Ino, Pace, WhileOpen};
use crate::daemon::flush_job::Patience;
use crate::drive::throttle::Manner;
pub(crate) use crate::flush::Wish;
use crate::vfs::Syncer;

/// How often pending changes are logged, so that little is lost if the daemon dies.
const FINISH_EVERY: Duration = Duration::from_millis(200);

/// How long the log record of a close waits for further closes.
const GATHER_CLOSES: Duration = Duration::from_millis(4);

/// How often everything is made durable: a power cut costs at most this time (P2).
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// How often the cache's size and the SSD's space are checked.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// How often clean objects are evicted while the SSD is nearly full.
const TRIM_CROWDED_EVERY: Duration = Duration::from_secs(1);

/// How often an automatic flush is considered.
const CONSIDER_EVERY: Duration = Duration::from_millis(500);

/// The pause before a task that panicked starts again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// How often the trimming thread looks whether the SSD is nearly full.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// While programs use the mount, the walk makes up to so many pauses of that length before each
/// directory.
const PAUSES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// The pause of the walk after a directory that could not be read.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// The longest wait after a failed flush.
const MAX_BACKOFF: Duration = Duration::from_secs(600);

/// How often there may be something new for the user's attention.
const ATTENTION_EVERY: Duration = Duration::from_secs(5);

/// How often a file that stays open is written.
fn pace(live: &Live) -> Pace {
    Pace {
        quiet: live.flush_after,
        max_age: live.max_age,
    }
}

/// The running background threads.
pub(super) struct Tasks {
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

impl Tasks {
    /// Starts them.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn start(
        service: &Arc<Service>,
        syncer: &Arc<Syncer>,
        metrics: Outlets,
        notifier: Option<Arc<Notifier>>,
    ) -> std::io::Result<Tasks> {
        let stop = Arc::new(Stop::default());
        let mut tasks = Tasks {
            stop: stop.clone(),
            threads: Vec::new(),
        };
        let (s, y) = (service.clone(), syncer.clone());
        tasks.spawn("ferryfs-tick", move |stop| tick(&s, &y, stop))?;
        let s = service.clone();
        tasks.spawn("ferryfs-trim", move |stop| trim(&s, stop))?;
        let s = service.clone();
        tasks.spawn("ferryfs-walk", move |stop| walk(&s, stop))?;
        let s = service.clone();
        tasks.spawn("ferryfs-watch", move |stop| {
            while !stop.is_given() {
                s.monitor.look();
                s.monitor.wait();
            }
        })?;
        let s = service.clone();
        tasks.spawn("ferryfs-others", move |stop| {
            crate::daemon::external_changes::run(&s, stop)
        })?;
        let s = service.clone();
        tasks.spawn("ferryfs-retry", move |stop| {
            crate::daemon::startup::retry(&s, stop)
        })?;
        let s = service.clone();
        tasks.spawn("ferryfs-keep", move |stop| keeping::run(&s, stop))?;
        if service.clean.is_on() {
            let s = service.clone();
            tasks.spawn("ferryfs-clean", move |stop| keep_clean::run(&s, stop))?;
        }
        let s = service.clone();
        tasks.spawn("ferryfs-scrub", move |stop| scrub::run(&s, stop))?;
        let s = service.clone();
        tasks.spawn("ferryfs-auto", move |stop| flush_by_itself(&s, stop))?;
        let s = service.clone();
        tasks.spawn("ferryfs-notice", move |stop| notice(&s, stop))?;
        let hooks = service.hooks.clone();
        tasks.spawn("ferryfs-hooks", move |stop| hooks.run(stop))?;
        let source = Arc::new(metrics.source);
        if let Some(file) = metrics.file {
            let source = source.clone();
            tasks.spawn("ferryfs-metrics", move |stop| {
                metrics::write_file(&source, &file, stop)
            })?;
        }
        if let Some(door) = metrics.door {
            tasks.spawn("ferryfs-listen", move |stop| {
                metrics::answer(&source, &door, stop)
            })?;
        }
        if let Some(notifier) = notifier {
            let s = service.clone();
            tasks.spawn("ferryfs-notify", move |stop| {
                notify::report(&notifier, &s, stop)
            })?;
        }
        Ok(tasks)
    }

    fn spawn(&mut self, name: &str, task: impl Fn(&Stop) + Send + 'static) -> std::io::Result<()> {
        let stop = self.stop.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            // A task that panics starts again: without the ticks nothing would become durable.
            while catch_unwind(AssertUnwindSafe(|| task(&stop))).is_err() {
                tracing::error!("a background task panicked; it starts again");
                stop.rest(AFTER_PANIC);
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Stops them all, waiting up to `patience`. A thread that is stuck in a call to the drive is
    /// not waited for.
    pub(super) fn stop(self, patience: Duration) {
        self.stop.give();
        let end = Instant::now() + patience;
        for task in self.threads {
            while !task.is_finished() && Instant::now() < end {
                thread::sleep(Duration::from_millis(5));
            }
            if task.is_finished() {
                let _ = task.join();
            }
        }
    }
}

fn tick(service: &Service, syncer: &Syncer, stop: &Stop) {
    let mut last_sync = Instant::now();
    let mut last_tick = Instant::now();
    let mut synced = u64::MAX;
    let mut said = String::new();
    while !stop.is_given() {
        let closed = service
            .fs
            .wait_for_close(FINISH_EVERY.saturating_sub(last_tick.elapsed()));
        if closed && last_tick.elapsed() < FINISH_EVERY {
            // Files that are closed in the same moment share the record. The next tick reports an
            // error.
            thread::sleep(GATHER_CLOSES);
            let _ = service.index.finish();
            continue;
        }
        last_tick = Instant::now();
        match service.fs.finish_pending() {
            Ok(()) => said.clear(),
            // An error that lasts is logged once, not five times a second.
            Err(error) if said == error.to_string() => {}
            Err(error) => {
                tracing::error!(%error, "pending changes are not logged");
                said = error.to_string();
                *service.last_error.lock() = Some(said.clone());
            }
        }
        let long = service.index.wants_checkpoint();
        if !long && last_sync.elapsed() < SYNC_EVERY {
            continue;
        }
        last_sync = Instant::now();
        let operations = service.index.lock().operations();
        if long || operations != synced || service.fs.has_unsynced() {
            synced = operations;
            sync_and_checkpoint(service, syncer);
        }
    }
}

/// Makes everything durable, then copies the WAL. The copy makes rows durable, so the bytes must be
/// durable before.
fn sync_and_checkpoint(service: &Service, syncer: &Syncer) {
    let (done, wait) = crossbeam_channel::bounded(1);
    syncer.request(move |result| {
        // Fails if the thread below no longer waits.
        let _ = done.send(result);
    });
    if let Ok(Ok(())) = wait.recv()
        && let Err(error) = service.index.checkpoint()
    {
        tracing::warn!(%error, "checkpoint failed");
    }
}

fn trim(service: &Service, stop: &Stop) {
    while !stop.is_given() {
        stop.rest(TRIM_CROWDED_EVERY);
        let end = Instant::now() + (TRIM_EVERY - TRIM_CROWDED_EVERY);
        while !stop.is_given() && !service.fs.is_crowded() && Instant::now() < end {
            stop.rest(LOOK_EVERY);
        }
        service.fs.look_at_space();
        if let Err(error) = service.fs.trim() {
            tracing::error!(%error, "cannot trim the cache");
        }
        service.fs.look_at_space();
        service.fs.close_idle_readers(false);
        service.drive.refresh_space();
        service.fs.count_needed();
    }
}

/// Imports the drive's directories, one after another. A directory that failed is tried again in
/// the next round.
fn walk(service: &Service, stop: &Stop) {
    let mut after = Ino(0);
    while !stop.is_given() {
        if !service.drive.is_attached() || service.drive.stalled().is_some() {
            stop.rest(Duration::from_secs(2));
            continue;
        }
        for _ in 0..PAUSES {
            if !service.fs.is_busy() {
                break;
            }
            stop.rest(PAUSE);
        }
        match service.fs.import_next(after) {
            Ok(Some(_)) => {}
            Ok(None) => {
                after = Ino(0);
                stop.rest(Duration::from_secs(30));
            }
            Err((dir, error)) => {
                tracing::debug!(dir = dir.0, %error, "directory not imported yet");
                after = dir;
                stop.rest(AFTER_FAILURE);
            }
        }
    }
}

fn flush_by_itself(service: &Service, stop: &Stop) {
    let mut backoff = Duration::ZERO;
    let mut not_before = Instant::now();
    // What was left behind is not tried again at once, unless writers need space: a file that is
    // being written is left behind each time.
    let mut unhurried_before = not_before;
    let mut has_written = true;
    while !stop.is_given() {
        let live = service.live.read().clone();
        if service.read_only || !live.auto_flush && live.schedule.is_none() {
            service.fs.expect_relief(false);
            stop.rest(CONSIDER_EVERY);
            continue;
        }
        let yields = service.hold().is_none_or(|hold| hold.yields_to_full_ssd());
        let ending = service.ending.load(Ordering::Acquire);
        let now = Instant::now();
        let able = !ending
            && now >= not_before
            && service.drive.is_attached()
            && service.drive.stalled().is_none();
        if service.flusher.is_retry_due()
            && let Err(error) = service.index.lock().try_again()
        {
            tracing::warn!(%error, "cannot read from the index what waits");
        }
        // After a failure, or if only files that are being written wait, a flush frees no space for
        // waiting writers.
        let in_vain = is_all_left_behind(service);
        let helps = able && live.auto_flush && yields && !in_vain;
        service
            .fs
            .expect_relief(helps && (has_written || now >= unhurried_before));
        stop.rest(CONSIDER_EVERY);
        // What the user has said meanwhile counts.
        let hold = service.hold();
        let is_changed = *service.live.read() != live;
        let able =
            able && !is_changed && !stop.is_given() && !service.ending.load(Ordering::Acquire);
        let is_full = service.fs.wants_flush();
        let may_begin = hold.is_none_or(|hold| hold.yields_to_full_ssd() && is_full);
        if !able || service.flusher.is_running() || !may_begin {
            continue;
        }
        let run = (live.schedule.as_ref()).filter(|schedule| service.timing.is_due(schedule));
        let hurried = has_written && is_full;
        // What stays local makes no flush due.
        if let Err(error) = service.sort_local() {
            tracing::warn!(%error, "cannot sort what stays local");
        }
        let by_itself =
            live.auto_flush && (hurried || now >= unhurried_before) && is_due(service, &live);
        if run.is_none() && !by_itself {
            continue;
        }
        if let Some(schedule) = run
            && !service.is_anything_waiting()
        {
            // The drive need not be woken up for it.
            service.timing.note_run(schedule);
            service.hooks.nothing_to_flush(rfc3339(hooks::now()));
            continue;
        }
        // Nobody who waits, for space or for the end, waits for a flush that is slowed down.
        let hurry = RefCell::new(None);
        let patience = Patience {
            deadline: None,
            enough: &|_| {
                let is_awaited = service.ending.load(Ordering::Acquire) || service.fs.wants_flush();
                let throttle = service.drive.throttle();
                throttle.hurry_while(is_awaited, &mut hurry.borrow_mut());
                stop.is_given()
            },
        };
        service.fs.look_at_space();
        service.count_reads();
        let flushable = service.fs.flushable();
        let wish = Wish {
            while_open: match run {
                Some(_) => WhileOpen::ON_REQUEST,
                None => WhileOpen::IfDue(pace(&live)),
            },
            manner: match is_full {
                true => Manner::AtOnce,
                false => Manner::Background(live.max_age),
            },
            ..Wish::default()
        };
        match service.run_flush(&patience, wish, &crate::daemon::shutdown::nobody()) {
            Ok(report) => {
                backoff = Duration::ZERO;
                if let Some(schedule) = run {
                    service.timing.note_run(schedule);
                    if report.batch.is_none() && report.left_behind.is_empty() {
                        service.hooks.nothing_to_flush(rfc3339(hooks::now()));
                    }
                }
                service.fs.note_flushed(flushable, report.bytes);
                if report.batch.is_some() {
                    tracing::info!(files = report.files, bytes = report.bytes, "flushed");
                    free_space_for_writers(service);
                }
                has_written = report.batch.is_some() || report.left_behind.is_empty();
                if !report.left_behind.is_empty() {
                    unhurried_before = Instant::now() + live.flush_after;
                }
            }
            Err(_) => {
                backoff = (backoff * 2).clamp(live.flush_after.min(MAX_BACKOFF), MAX_BACKOFF);
                not_before = Instant::now() + backoff;
            }
        }
    }
}

/// Reports what the user must look at, when there is something new.
fn notice(service: &Service, stop: &Stop) {
    while !stop.is_given() {
        if service.hooks.wants_attention() {
            let lines = service.worth_a_look();
            service.hooks.attention(lines, rfc3339(hooks::now()));
        }
        stop.rest(ATTENTION_EVERY);
    }
}

/// Whether only what the last flush has left behind waits.
fn is_all_left_behind(service: &Service) -> bool {
    let state = service.index.lock();
    state.dirty_since().is_none() && state.anything_dirty().unwrap_or(false)
}

/// Whether a flush is due. What the last flush has left behind, and has not changed since, does not
/// make one due: the next flush would leave it behind again, and wake the drive each time.
fn is_due(service: &Service, live: &Live) -> bool {
    let (since, dirty_bytes) = {
        let state = service.index.lock();
        (state.dirty_since(), state.totals().dirty_bytes)
    };
    since.is_some_and(|(latest, oldest)| {
        latest.elapsed() >= live.flush_after
            || oldest.elapsed() >= live.max_age
            || dirty_bytes > service.cache_limit / 4
            || service.fs.wants_flush()
    }) || (!live.wait_closed && service.fs.is_open_file_due(pace(live)))
}

/// Evicts what has just been written to the drive, if writers may be waiting for space.
fn free_space_for_writers(service: &Service) {
    if service.fs.is_crowded()
        && let Err(error) = service.fs.trim()
    {
        tracing::error!(%error, "cannot trim the cache");
    }
    service.fs.look_at_space();
}

/// Unmounts the file system with the number `device`, waiting a moment for programs that are about
/// to leave it.
///
/// # Errors
/// If the mount is still in use.
pub(super) fn unmount(mountpoint: &Path, device: Option<u64>) -> Result<(), DetachError> {
    let mut result = dead_mount::unmount(mountpoint, device);
    for _ in 0..10 {
        if result.is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
        result = dead_mount::unmount(mountpoint, device);
    }
    result
}
