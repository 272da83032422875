//! Wiring: from the options of a mount to everything that serves it, and back down in order.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;

use super::below::Below;
use super::ending::{End, Life};
use super::hooks::FlushHooks;
use super::monitor::{Bell, Monitor, Parts as MonitorParts, Site};
use super::mountpoint::{Ground, Note};
use super::opening::{Opened, open_cache};
use super::options::{CacheSize, IoMode, MountOptions, Verify};
use super::preflight::Checked;
use super::refresh::Refreshing;
use super::service::Service;
use super::starting::Begin;
use super::tasks::{AutoFlush, Tasks};
use super::{DaemonError, Ready, ending, log, starting, volume};
use crate::backend::drive::{Drive, Withheld};
use crate::base::{Clock, ForeignText, Ino, printable};
use crate::cache::{Reserve, Store};
use crate::cli::{complain, render};
use crate::control::registry;
use crate::control::server::{self, Handler};
use crate::flush::{Flusher, Parts as FlushParts};
use crate::fs::{CacheLimits, Fs, Parts as FsParts, Syncer, UncleanEnd};
use crate::index::{self, Flags, Index, IndexError};
use crate::kernel::{Session, SessionOptions, Shown, Workers};
use crate::rules::names::NameRules;
use crate::sys::mounting::Spot;
use crate::sys::mounts::Mount;
use crate::sys::time::CoarseClock;

/// How many times the time that a read may go unanswered a backend may not answer before an end is made without it.
const HOPELESS: u32 = 3;

/// Share of the SSD that stays free for others, as a divisor: 5%.
const KEEP_FREE_DIVISOR: u64 = 20;

/// Space of the SSD that writers may not take, at most; on a small disk, a sixteenth of it.
const RESERVE: u64 = 64 << 20;

/// Name of the log in the cache.
const LOG: &str = "ferryfs.log";

/// How long background threads are given to come to rest.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long programs are given to close their files once a signal has taken the mount away.
const LEAVING: Duration = Duration::from_secs(5);

/// The limit of open files where the system does not tell.
const USUAL_OPEN_FILES: u64 = 1024;

pub(super) fn run(checked: Checked, ready: Ready) -> Result<(), DaemonError> {
    let Checked { options, spot } = checked;
    if options.io == IoMode::Passthrough {
        return Err(DaemonError::failed("--io passthrough is not there yet")
            .hint("use --io daemon, or leave it out"));
    }
    log::start(options.foreground);
    let descriptors = raise_open_files();
    let signals = block_signals()?;
    let clock: Arc<dyn Clock> = Arc::new(CoarseClock);
    let opened = open_cache(&options, &*clock)?;
    if let Err(error) = log::to_file(&opened.dir.join(LOG)) {
        return Err(DaemonError::failed(format!(
            "cannot open the log in the cache: {error}"
        )));
    }
    let index = open_index(&opened)?;
    let store =
        Arc::new(Store::open(&opened.dir).map_err(|error| DaemonError::failed(error.to_string()))?);
    let drive = Drive::guarded(options.io_timeout)
        .map(Arc::new)
        .map_err(|error| DaemonError::failed(format!("cannot start a thread: {error}")))?;
    let limits = limits(&options, &store, index.lock().totals().cached_bytes)?;
    let fs = Fs::new(FsParts {
        index: index.clone(),
        store: store.clone(),
        drive: drive.clone(),
        clock: clock.clone(),
        capabilities: opened.facts.capabilities.clone(),
        owner: (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        ),
        limits,
        io_timeout: options.io_timeout,
        cache_path: opened.dir.as_os_str().as_encoded_bytes().to_vec(),
    })
    .map(Arc::new)
    .map_err(failed)?;
    fs.limit_descriptors(descriptors);
    if options.show_system {
        fs.show_system();
    }
    let attention = settle_after_unclean_end(&fs, &index)?;
    tell_of_losses(&attention);
    let bell = Bell::new();
    let flusher = Arc::new(flusher(&opened, &index, &store, &drive, &clock, &fs)?);
    let (site, begin) = match &opened.found {
        Ok(found) => {
            let site = Site::new(&opened.path, found, &bell);
            drive.attach(site.backend.clone());
            let patience = options.io_timeout * HOPELESS;
            (site, starting::recover(&flusher, &drive, patience))
        }
        Err(why) => (
            Site::absent(&opened.path, &bell),
            Ok(Begin::Away(why.clone())),
        ),
    };
    let begin = match begin.and_then(|begin| can_do_without(begin, &index)) {
        Ok(begin) => begin,
        Err(error) if flusher.is_running() => {
            keep_locks(opened);
            return Err(error);
        }
        Err(error) => {
            opened.lease.release_within(PATIENCE);
            return Err(error);
        }
    };
    if opened.renewed {
        flusher.renewed(opened.facts.nonce)?;
        opened.facts.write(&opened.dir)?;
    }
    match &begin {
        Begin::Settled => {
            drive.refresh_space();
            fs.count_needed();
            if let Err(error) = fs.take_root() {
                tracing::warn!(%error, "the attributes of the drive's own directory");
            }
        }
        Begin::Unfinished(_) => flusher.withhold_unfinished()?,
        Begin::Away(why) => {
            tracing::warn!(why = %why.message, "the mount begins without its drive");
            drive.withhold(Withheld::Everything);
            drive.detach();
            opened.lease.suspend();
        }
    }
    serve(
        &options,
        ready,
        &signals,
        opened,
        Serving {
            fs,
            index,
            drive,
            flusher,
            limits,
            store,
            attention,
            bell,
            site,
            descriptors,
            begin,
            spot,
        },
    )
}

/// Without its drive a mount begins only if the cache knows what is on it.
fn can_do_without(begin: Begin, index: &Index) -> Result<Begin, DaemonError> {
    let Begin::Away(why) = begin else {
        return Ok(begin);
    };
    let root = index.lock().inode(Ino::ROOT);
    match root.map_err(|error| DaemonError::failed(error.to_string()))? {
        Some(root) if root.flags.has(Flags::LISTED) => Ok(Begin::Away(why)),
        _ => Err(why),
    }
}

/// What serves the mount once the cache is in order.
struct Serving {
    fs: Arc<Fs>,
    index: Arc<Index>,
    drive: Arc<Drive>,
    flusher: Arc<Flusher>,
    limits: CacheLimits,
    store: Arc<Store>,
    /// What the start has found that its owner must know.
    attention: Vec<String>,
    bell: Arc<Bell>,
    site: Site,
    /// How many descriptors this process may have.
    descriptors: u64,
    begin: Begin,
    /// Where the mount goes.
    spot: Spot,
}

fn serve(
    options: &MountOptions,
    ready: Ready,
    signals: &Receiver<()>,
    opened: Opened,
    parts: Serving,
) -> Result<(), DaemonError> {
    let io = |what: &str, error: std::io::Error| DaemonError::failed(format!("{what}: {error}"));
    let Serving {
        fs,
        index,
        drive,
        flusher,
        limits,
        store,
        attention,
        bell,
        site,
        descriptors,
        begin,
        spot,
    } = parts;
    let mut opened = opened;
    let is_new = opened.fresh.is_some();
    let syncer = Arc::new(Syncer::start(fs.clone()).map_err(|e| io("cannot start a thread", e))?);
    let workers = Workers::start().map_err(|e| io("cannot start a thread", e))?;
    let session_options = SessionOptions {
        source: opened.path.clone().into(),
        allow_other: options.fuse.allow_other,
        suid: options.fuse.suid,
        dev: options.fuse.dev,
        exec: options.fuse.exec,
        shown: Shown {
            uid: options.fuse.uid,
            gid: options.fuse.gid,
            umask: options.fuse.umask,
        },
        replaces_dead: false,
        generation: opened.facts.origin.as_fields().0,
    };
    let (ended, end) = unbounded();
    let on_network = (site.mount.as_ref()).is_some_and(Mount::is_shared);
    let refreshing = Arc::new(Refreshing::new(options.refresh.every(on_network)));
    let (readers, again) = (fs.clone(), refreshing.clone());
    let monitor = Monitor::new(
        MonitorParts {
            drive: drive.clone(),
            flusher: flusher.clone(),
            bell,
            cache: opened.dir.clone(),
            mountpoint: options.mountpoint.clone(),
            facts: opened.facts.clone(),
            lease: opened.lease.clone(),
            volume_lock: Arc::downgrade(&opened.volume_lock),
            on_detach: Box::new(move || readers.close_idle_readers(true)),
            on_attach: Box::new(move || again.note_attached()),
        },
        site,
        opened.warning.clone(),
        match &begin {
            Begin::Away(why) => Some(why.message.clone()),
            _ => None,
        },
    );
    if let Begin::Unfinished(why) = &begin {
        monitor.set_unfinished(Some(why.clone()));
    }
    let service = Arc::new(Service {
        fs: fs.clone(),
        index: index.clone(),
        drive,
        flusher,
        monitor: Arc::new(monitor),
        volume: opened.facts.volume,
        mountpoint: options.mountpoint.clone(),
        verify: options.verify == Verify::AfterFlush,
        last_error: Arc::new(Mutex::new(None)),
        patience: options.io_timeout * HOPELESS,
        store,
        attention,
        from_below: Arc::default(),
        refreshing,
        cache: opened.dir.clone(),
        cache_limit: limits.max_bytes,
        device: OnceLock::new(),
        last_flush: Arc::default(),
        ended,
        life: Life::default(),
        ending: false.into(),
        closing: false.into(),
        flush_at_end: false.into(),
        over: false.into(),
    });
    let mut server = server::serve(&opened.dir, service.clone() as Arc<dyn Handler>)
        .map_err(|e| io("cannot open the control socket", e))?;
    // Once it can be asked.
    let noted = registry::note(opened.facts.volume, &opened.dir).inspect_err(
        |error| tracing::warn!(%error, "this daemon is found by its mount and cache only"),
    );
    // All that takes time is behind us: from here on it is a matter of moments until the mount is there.
    let mut note = Note::read(&opened.dir, &options.mountpoint);
    let was_cut_off = note.was_cut_off();
    note.set_serving(&opened.dir, true);
    let ground = match Ground::prepare(&mut note, spot) {
        Ok(ground) => ground,
        Err(error) => {
            note.set_serving(&opened.dir, was_cut_off);
            return Err(error.into());
        }
    };
    let session_options = SessionOptions {
        replaces_dead: ground.is_dead,
        ..session_options
    };
    let session = match Session::mount(
        fs.clone(),
        workers,
        syncer.clone(),
        &ground.spot,
        &session_options,
    ) {
        Ok(session) => session,
        Err(error) => {
            ground.give_up(&note);
            note.set_serving(&opened.dir, was_cut_off);
            // fusermount3's words come with their line ends.
            let words = error
                .to_string()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            return Err(DaemonError::failed(format!("cannot mount at {}: {words}", options.mountpoint.escaped()))
                .hint("FUSE must be there (/dev/fuse, and fusermount3 for ordinary users); -o allow_other needs user_allow_other in /etc/fuse.conf"));
        }
    };
    match ground.device() {
        Ok(device) => drop(service.device.set(device)),
        Err(error) => tracing::warn!(%error, "the number of the mount's device"),
    }
    if let Some(fresh) = opened.fresh.take() {
        ready.say(&fresh.keep(&opened.dir));
    }
    let mut below = Below::begin(
        &service,
        ground.covered(),
        &mut note,
        options.protect,
        &opened.dir,
        was_cut_off,
    );
    for line in first_words(&begin, is_new) {
        ready.say(&line);
    }
    for line in below.first_lines() {
        ready.say(&line);
    }
    let auto = options.auto_flush.then_some(AutoFlush {
        after: options.flush_after,
        max_age: options.max_age,
        max_dirty: limits.max_bytes / 4,
    });
    let tasks =
        Tasks::start(&service, &syncer, auto).map_err(|e| io("cannot start a thread", e))?;
    if let Err(error) = ready.signal(&opened.dir.join(LOG)) {
        tracing::error!(%error, "whoever started the mount is gone");
        let _ = super::dead_mount::unmount(&options.mountpoint, service.device.get().copied());
    }
    tracing::info!(backend = %opened.path.escaped(), mountpoint = %options.mountpoint.escaped(), open_files = descriptors, "mounted");
    let (cut_off, patience) = match ending::wait_for_end(&session, &service.life, &end, signals) {
        End::Unmounted => {
            ending::flush_the_rest(&service);
            (false, PATIENCE)
        }
        End::CutOff => (!is_over_soon(&session), PATIENCE),
        End::Signal => {
            let patience = ending::on_signal(&service, &options.mountpoint, signals);
            (!is_over_soon(&session), patience)
        }
    };
    service
        .ending
        .store(true, std::sync::atomic::Ordering::Release);
    if cut_off {
        // They may write to the very end of the process, so nothing can be settled: to the next start this is a death like
        // another, with everything on the SSD.
        tracing::warn!("files of the mount are still open; whoever has them is cut off");
        session.abandon();
    } else if let Err(error) = session.end() {
        tracing::warn!(%error, "the session ended with an error");
    }
    let is_something_left = below.stop(PATIENCE);
    tasks.stop(PATIENCE);
    let at_rest = ending::wait_for_flush(&service, patience);
    service
        .over
        .store(!at_rest, std::sync::atomic::Ordering::Release);
    // What is left below is for the next mount to move, as after a death.
    note.set_serving(&opened.dir, is_something_left);
    server.close_door();
    drop(noted);
    let closed = if cut_off {
        fs.sync().map_err(failed)
    } else {
        close(&fs, &index, at_rest)
    };
    if at_rest {
        opened.lease.release_within(patience.min(PATIENCE));
        // The locks go before the connection of whoever asked for the end: when that is told, all is free.
        drop(opened);
    } else {
        keep_locks(opened);
    }
    server.stop();
    closed
}

/// What whoever mounts is told of how the mount begins.
fn first_words(begin: &Begin, is_new: bool) -> Vec<String> {
    match begin {
        Begin::Settled => Vec::new(),
        Begin::Unfinished(_) if is_new => Vec::new(),
        Begin::Unfinished(why) => vec![super::monitor::unfinished_line(why)],
        Begin::Away(why) => {
            let mut lines = vec![format!(
                "mounted without the drive: {}. Files in the cache can be used, what is only on the drive cannot; new changes wait, and the drive is taken up when it is there",
                why.message
            )];
            lines.extend(why.hint.clone());
            lines
        }
    }
}

/// Keeps the locks until the process is gone. A call that changes the backend is still under way and may yet take effect, and no
/// other daemon may recover the batch before that: the kernel lets go of the locks when the last thread has come back from it.
fn keep_locks(opened: Opened) {
    std::mem::forget(opened);
}

/// Everything is settled, so that the next start need not look for what an unclean end leaves; unless a flush is not at rest,
/// which may go on until the process is gone: as if it were killed.
fn close(fs: &Fs, index: &Index, at_rest: bool) -> Result<(), DaemonError> {
    fs.close_all().map_err(failed)?;
    if !at_rest {
        return Ok(());
    }
    if index.lock().has_undone() {
        tracing::warn!(
            "the index had to undo changes; the next start looks for what they have left"
        );
        return Ok(());
    }
    note_unclean(index, "")?;
    tracing::info!("ended");
    Ok(())
}

/// Notes, durably, whether the next start must look for what an unclean end leaves.
fn note_unclean(index: &Index, value: &str) -> Result<(), DaemonError> {
    let noted = index.lock().set_meta("unclean", value);
    noted
        .and_then(|()| index.sync())
        .map_err(|error| DaemonError::failed(error.to_string()))
}

/// Whether the last file of a mount that was taken away is closed before long.
fn is_over_soon(session: &Session) -> bool {
    let end = Instant::now() + LEAVING;
    while !session.is_over() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    session.is_over()
}

/// Files of the mount that are in use take a descriptor each, so the usual limit of 1024 is soon met. Gives the limit.
fn raise_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(errno) => {
            tracing::warn!(%errno, "the limit of open files is not known");
            return USUAL_OPEN_FILES;
        }
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(errno) => {
            tracing::warn!(%errno, soft, "the limit of open files stays as it is");
            soft
        }
    }
}

/// Signals that ask for an end arrive on a channel. Before any other thread is started, so that all inherit the mask.
fn block_signals() -> Result<Receiver<()>, DaemonError> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()
        .map_err(|errno| DaemonError::failed(format!("cannot block signals: {errno}")))?;
    let (sender, receiver): (Sender<()>, _) = unbounded();
    std::thread::Builder::new()
        .name("ferryfs-signal".into())
        .spawn(move || {
            while set.wait().is_ok() {
                if sender.send(()).is_err() {
                    return;
                }
            }
        })
        .map_err(|error| DaemonError::failed(format!("cannot start a thread: {error}")))?;
    Ok(receiver)
}

fn open_index(opened: &Opened) -> Result<Arc<Index>, DaemonError> {
    let rules = NameRules::new(&opened.facts.capabilities);
    Reserve::make_room_to_start(&opened.dir);
    // What an earlier process committed becomes durable when the index is opened; so must the bytes that it vouches for.
    std::fs::File::open(&opened.dir)
        .and_then(crate::sys::file::sync_file_system)
        .map_err(|error| DaemonError::failed(format!("cannot sync the cache: {error}")))?;
    let path = opened.dir.join("index.db");
    look_over(&path, opened)?;
    let index =
        Index::open(&path, rules).map_err(|error| DaemonError::failed(error.to_string()))?;
    let waits = index.lock().try_again();
    waits.map_err(|error| DaemonError::failed(error.to_string()))?;
    Ok(Arc::new(index))
}

/// Refuses an index that does not hold together, before anything is written to it.
fn look_over(path: &Path, opened: &Opened) -> Result<(), DaemonError> {
    let checked = index::check(path, Store::holds_objects(&opened.dir)).map_err(|error| {
        let refused = DaemonError::failed(error.to_string());
        match error {
            IndexError::Damaged { .. } => {
                let dir = render::quoted(&opened.dir);
                refused.hint(format!(
                    "nothing was changed. Copy out what the cache holds: ferryfs rescue --cache {dir} --to OUT; \
                     then move {dir} away and mount again"
                ))
            }
            _ => refused,
        }
    })?;
    for oddity in &checked.oddities {
        tracing::warn!(oddity, "the index is odd in places; that does no harm");
    }
    if !checked.complete {
        tracing::info!("the index is too large to be looked over as a whole");
    }
    Ok(())
}

/// How many lost files the person who mounts is told of one by one; `status` has them all.
const LOSSES_TOLD: usize = 10;

fn tell_of_losses(lines: &[String]) {
    for line in lines.iter().take(LOSSES_TOLD) {
        complain(&format!("ferryfs: warning: {}", printable(line)));
    }
    if lines.len() > LOSSES_TOLD {
        let more = lines.len() - LOSSES_TOLD;
        complain(&format!(
            "ferryfs: warning: and {more} more, see `ferryfs status`"
        ));
    }
}

/// Gives what has become of files whose bytes were lost, a line each.
fn settle_after_unclean_end(fs: &Fs, index: &Index) -> Result<Vec<String>, DaemonError> {
    let unclean = index
        .lock()
        .meta("unclean")
        .map_err(|error| DaemonError::failed(error.to_string()))?;
    let boot = boot();
    let mut damaged = Vec::new();
    if let Some(unclean) = unclean {
        let end = match unclean == boot {
            true => UncleanEnd::Killed,
            false => UncleanEnd::PowerCut,
        };
        let recovered = fs.recover_after(end).map_err(failed)?;
        tracing::info!(
            ?end,
            measured = recovered.measured,
            orphans = recovered.orphans,
            lost_and_found = recovered.quarantined.len(),
            damaged = recovered.damaged.len(),
            "set right what an unclean end had left"
        );
        damaged = recovered.damaged;
    }
    note_unclean(index, &boot)?;
    Ok(damaged)
}

/// Which run of the machine this is: if it is not that of the daemon before, what was not synced then may be lost.
fn boot() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) if !id.trim().is_empty() => id.trim().into(),
        // Never the same as before: the careful way.
        _ => uuid::Uuid::new_v4().to_string(),
    }
}

fn flusher(
    opened: &Opened,
    index: &Arc<Index>,
    store: &Arc<Store>,
    drive: &Arc<Drive>,
    clock: &Arc<dyn Clock>,
    fs: &Arc<Fs>,
) -> Result<Flusher, DaemonError> {
    let journals = opened.dir.join("batches");
    volume::make_cache_dir(&journals)?;
    Ok(Flusher::new(FlushParts {
        index: index.clone(),
        store: store.clone(),
        drive: drive.clone(),
        clock: clock.clone(),
        volume: opened.facts.volume,
        nonce: opened.facts.nonce,
        origin: *opened.facts.origin.as_bytes(),
        rules: NameRules::new(&opened.facts.capabilities),
        capabilities: opened.facts.capabilities.clone(),
        time_granularity_ns: opened.facts.capabilities.time_granularity_ns,
        journals,
        hooks: Arc::new(FlushHooks {
            fs: fs.clone(),
            lease: opened.lease.clone(),
        }),
    }))
}

fn limits(options: &MountOptions, store: &Store, cached: u64) -> Result<CacheLimits, DaemonError> {
    let (total, free) = store
        .space()
        .map_err(|error| DaemonError::failed(error.to_string()))?;
    let max_bytes = match options.cache_size {
        CacheSize::Bytes(bytes) => bytes,
        CacheSize::PercentOfFree(percent) => free.saturating_add(cached) / 100 * u64::from(percent),
    };
    Ok(CacheLimits {
        max_bytes,
        keep_free: total / KEEP_FREE_DIVISOR,
        reserve: RESERVE.min(total / 16),
    })
}

fn failed(error: crate::fs::FsError) -> DaemonError {
    DaemonError::failed(error.to_string())
}
