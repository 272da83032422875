//! Serves a mount: from the opened cache to the mount point, and the orderly stop at the end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Mutex, RwLock};

use super::background::Ready;
use super::external_changes::Refreshing;
use super::hooks::{Hooks, Subject};
use super::keep_clean::KeepClean;
use super::keeping::Keeper;
use super::metrics;
use super::metrics::{Door, Outlets, Source, Totals};
use super::monitor::{Bell, Monitor, MonitorParts, Site, unfinished_line};
use super::mountpoint::{Ground, Note};
use super::notify::Notifier;
use super::open_cache::Opened;
use super::open_index::note_unclean;
use super::options::MountOptions;
use super::run::{HOPELESS, LOG, PATIENCE, failed};
use super::scrub::Scrubber;
use super::service::Service;
use super::shutdown;
use super::shutdown::{Asked, End, Life};
use super::startup::Begin;
use super::tasks::Tasks;
use super::under_mount::Below;
use super::when::Timing;
use crate::cache::Store;
use crate::control::registry::Noted;
use crate::control::server::{Handler, ServerHandle};
use crate::control::{registry, server};
use crate::core::{Failure, ForeignText};
use crate::drive::connection::Drive;
use crate::flush::Flusher;
use crate::fuse::{RequestTimes, Session, SessionOptions, Shown, Workers};
use crate::index::Index;
use crate::sys::mounting::Spot;
use crate::sys::mounts::Mount;
use crate::sys::time::CoarseClock;
use crate::vfs::{CacheLimits, Fs, Syncer};

/// How long programs have to close their files once a signal has taken the mount away.
const LEAVING: Duration = Duration::from_secs(5);

/// The parts that serve the mount, once the cache is consistent.
pub(super) struct Serving {
    pub(super) fs: Arc<Fs>,
    pub(super) index: Arc<Index>,
    pub(super) drive: Arc<Drive>,
    pub(super) flusher: Arc<Flusher>,
    pub(super) limits: CacheLimits,
    pub(super) store: Arc<Store>,
    /// What the start has found that the user must know.
    pub(super) attention: Vec<String>,
    pub(super) bell: Arc<Bell>,
    pub(super) site: Site,
    /// What the batches have done together.
    pub(super) totals: Arc<Totals>,
    /// Keeps the drive's file system read-only between batches.
    pub(super) clean: Arc<KeepClean>,
}

/// How the mount starts.
pub(super) struct Start {
    pub(super) ready: Ready,
    /// A signal that ends the daemon has arrived.
    pub(super) signals: Receiver<()>,
    pub(super) begin: Begin,
    /// The mount point.
    pub(super) spot: Spot,
    /// How many descriptors this process may have.
    pub(super) descriptors: u64,
}

/// Mounts, serves the mount until it ends, and stops everything in the right order.
///
/// # Errors
/// If the mount cannot be made, or the cache cannot be closed cleanly.
pub(super) fn serve(
    options: &MountOptions,
    mut opened: Opened,
    serving: Serving,
    start: Start,
) -> Result<(), Failure> {
    let io = |what: &str, error: std::io::Error| Failure::failed(format!("{what}: {error}"));
    let Start {
        ready,
        signals,
        begin,
        spot,
        descriptors,
    } = start;
    let is_new = opened.fresh.is_some();
    let fs = serving.fs.clone();
    let syncer = Arc::new(Syncer::start(&fs).map_err(|e| io("cannot start a thread", e))?);
    let workers = Workers::new();
    let (ended, end) = unbounded();
    let service = Arc::new(service(options, &opened, serving, &begin, ended));
    let door = options
        .metrics
        .listen
        .as_ref()
        .map(Door::open)
        .transpose()?;
    let times = RequestTimes::default();
    let server = server::serve(&opened.dir, service.clone() as Arc<dyn Handler>)
        .map_err(|e| io("cannot open the control socket", e))?;
    // Not before the control socket is open.
    let noted = registry::note(opened.facts.volume, &opened.dir).inspect_err(
        |error| tracing::warn!(%error, "this daemon is found by its mount and cache only"),
    );
    // All that takes time is done: from here on the mount is there within moments.
    let mut note = Note::read(&opened.dir, &options.mountpoint);
    let was_cut_off = note.was_cut_off();
    note.set_serving(&opened.dir, true);
    let mounted = mount(
        options,
        &opened,
        (fs, workers, syncer.clone(), times.clone()),
        &mut note,
        spot,
    );
    let (session, ground) = match mounted {
        Ok(mounted) => mounted,
        Err(failure) => {
            note.set_serving(&opened.dir, was_cut_off);
            return Err(failure);
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
    for line in first_lines(&begin, is_new) {
        ready.say(&line);
    }
    for line in below.first_lines() {
        ready.say(&line);
    }
    let notifier = Notifier::from_env().map(Arc::new);
    let metrics = Outlets {
        source: Source::new(&service, &times),
        file: options.metrics.file.clone(),
        door,
    };
    let tasks = Tasks::start(&service, &syncer, metrics, notifier.clone())
        .map_err(|e| io("cannot start a thread", e))?;
    if let Err(error) = ready.signal(&opened.dir.join(LOG)) {
        tracing::error!(%error, "the process that started the mount is gone");
        let _ = super::dead_mount::unmount(&options.mountpoint, service.device.get().copied());
    }
    if let Some(notifier) = &notifier {
        notifier.ready();
    }
    tracing::info!(
        backend = %opened.path.escaped(),
        mountpoint = %options.mountpoint.escaped(),
        open_files = descriptors,
        "mounted"
    );
    let (is_cut_off, patience) = wait_for_end(options, &session, &service, &end, &signals);
    if let Some(notifier) = &notifier {
        notifier.stopping();
    }
    let running = Running {
        service,
        session,
        below,
        tasks,
        server,
        noted: noted.ok(),
        note,
    };
    running.stop(opened, is_cut_off, patience)
}

/// The parts of the daemon that requests work with.
fn service(
    options: &MountOptions,
    opened: &Opened,
    serving: Serving,
    begin: &Begin,
    ended: Sender<Asked>,
) -> Service {
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
        totals,
        clean,
    } = serving;
    let on_network = (site.mount.as_ref()).is_some_and(Mount::is_shared);
    let refreshing = Arc::new(Refreshing::new());
    let (readers, again) = (fs.clone(), refreshing.clone());
    let monitor = Monitor::new(
        MonitorParts {
            drive: drive.clone(),
            flusher: flusher.clone(),
            index: index.clone(),
            bell,
            cache: opened.dir.clone(),
            mountpoint: options.mountpoint.clone(),
            facts: opened.facts.clone(),
            lease: opened.lease.clone(),
            clean: clean.clone(),
            volume_lock: Arc::downgrade(&opened.volume_lock),
            on_detach: Box::new(move || readers.close_idle_readers(true)),
            on_attach: Box::new(move || again.note_attached()),
        },
        site,
        opened.warning.clone(),
        match begin {
            Begin::Away(why) => Some(why.clone()),
            _ => None,
        },
    );
    if let Begin::Unfinished(why) = begin {
        monitor.set_unfinished(Some(why.clone()));
    }
    drive.throttle().set(options.live.throttle());
    Service {
        fs,
        index,
        drive,
        flusher,
        monitor: Arc::new(monitor),
        volume: opened.facts.volume,
        mountpoint: options.mountpoint.clone(),
        hooks: Arc::new(hooks(options)),
        timing: Timing::open(&opened.dir, Arc::new(CoarseClock)),
        live: RwLock::new(options.live.clone()),
        origin: Mutex::new(options.origin.clone()),
        on_network,
        read_only: options.read_only,
        keeper: Keeper::default(),
        scrubber: Scrubber::open(&opened.dir, Arc::new(CoarseClock)),
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
        running: Arc::new(metrics::Running::new()),
        totals,
        clean,
        ended,
        life: Life::default(),
        ending: false.into(),
        closing: false.into(),
        flush_at_end: false.into(),
        over: false.into(),
    }
}

/// The runner of the user's commands.
fn hooks(options: &MountOptions) -> Hooks {
    let subject = Subject {
        name: options.origin.as_ref().map(|origin| origin.name.clone()),
        mountpoint: options.mountpoint.clone(),
        drive: options.backend.clone(),
    };
    Hooks::new(subject, options.live.hooks.clone())
}

/// Mounts at `spot`. The previous state of the mount point is restored on a failure.
fn mount(
    options: &MountOptions,
    opened: &Opened,
    (fs, workers, syncer, times): (Arc<Fs>, Workers, Arc<Syncer>, RequestTimes),
    note: &mut Note,
    spot: Spot,
) -> Result<(Session, Ground), Failure> {
    let ground = Ground::prepare(note, spot)?;
    let session_options = SessionOptions {
        source: opened.path.clone().into(),
        allow_other: options.fuse.allow_other,
        suid: options.fuse.suid,
        dev: options.fuse.dev,
        exec: options.fuse.exec,
        read_only: options.read_only,
        shown: Shown {
            uid: options.fuse.uid,
            gid: options.fuse.gid,
            umask: options.fuse.umask,
        },
        replaces_dead: ground.is_dead,
        generation: opened.facts.origin.as_fields().0,
        times,
    };
    match Session::mount(fs, workers, syncer, &ground.spot, &session_options) {
        Ok(session) => Ok((session, ground)),
        Err(error) => {
            ground.give_up(note);
            // The message of fusermount3 has line ends.
            let words = error
                .to_string()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            let place = options.mountpoint.escaped();
            Err(
                Failure::failed(format!("cannot mount at {place}: {words}")).hint(
                    "FUSE must be there (/dev/fuse, and fusermount3 for ordinary users); -o \
                     allow_other needs user_allow_other in /etc/fuse.conf",
                ),
            )
        }
    }
}

/// What the mount command prints about how the mount starts.
fn first_lines(begin: &Begin, is_new: bool) -> Vec<String> {
    match begin {
        Begin::Settled => Vec::new(),
        Begin::Unfinished(_) if is_new => Vec::new(),
        Begin::Unfinished(why) => vec![unfinished_line(why)],
        Begin::Away(why) => {
            let mut lines = vec![format!(
                "mounted without the drive: {}. Files in the cache can be used, files that are \
                 only on the drive cannot; new changes wait, and the drive is attached when it is \
                 there",
                why.message
            )];
            lines.extend(why.hint.clone());
            lines
        }
    }
}

/// Waits for the end of the mount, and flushes what can still be flushed. Returns whether programs
/// still have files open, which are then cut off, and how long to wait for a flush under way.
fn wait_for_end(
    options: &MountOptions,
    session: &Session,
    service: &Service,
    end: &Receiver<Asked>,
    signals: &Receiver<()>,
) -> (bool, Duration) {
    match shutdown::wait_for_end(session, &service.life, end, signals) {
        End::Unmounted => {
            shutdown::flush_the_rest(service);
            (false, PATIENCE)
        }
        End::CutOff => (!is_over_soon(session), PATIENCE),
        End::Signal => {
            let patience = shutdown::on_signal(service, &options.mountpoint, signals);
            (!is_over_soon(session), patience)
        }
    }
}

/// Waits a while until the last file of a mount that was taken away is closed. Returns whether it
/// is.
fn is_over_soon(session: &Session) -> bool {
    let end = Instant::now() + LEAVING;
    while !session.is_over() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    session.is_over()
}

/// What is stopped at the end.
struct Running {
    service: Arc<Service>,
    session: Session,
    below: Below,
    tasks: Tasks,
    server: ServerHandle,
    noted: Option<Noted>,
    note: Note,
}

impl Running {
    /// Stops everything. With `is_cut_off` programs still have files of the mount open; a flush
    /// under way is waited for during `patience`.
    fn stop(mut self, opened: Opened, is_cut_off: bool, patience: Duration) -> Result<(), Failure> {
        let service = &self.service;
        // Nobody who waits for the end waits for a flush that is slowed down.
        let _hurry = service.drive.throttle().hurry();
        service.ending.store(true, Ordering::Release);
        if is_cut_off {
            // The programs may write until the process ends, so the cache cannot be closed cleanly.
            // The next start repairs it as after a kill, with everything on the SSD.
            tracing::warn!(
                "files of the mount are still open; the programs that have them open get errors \
                 from now on"
            );
            self.session.abandon();
        } else if let Err(error) = self.session.end() {
            tracing::warn!(%error, "the session ended with an error");
        }
        let is_something_below = self.below.stop(PATIENCE);
        self.tasks.stop(PATIENCE);
        let at_rest = shutdown::wait_for_flush(service, patience);
        service.over.store(!at_rest, Ordering::Release);
        // The next mount moves the files below, as after a death of the daemon.
        self.note.set_serving(&opened.dir, is_something_below);
        self.server.close_door();
        drop(self.noted);
        let closed = if is_cut_off {
            service.fs.sync().map_err(failed)
        } else {
            close(&service.fs, &service.index, at_rest)
        };
        if at_rest {
            (service.clean.clone()).restore(&service.drive, patience.min(PATIENCE));
            opened.lease.release_within(patience.min(PATIENCE));
            // The locks are released before the control connections are closed: a command that
            // has learned of the end can mount again at once.
            drop(opened);
        } else {
            keep_locks(opened);
        }
        self.server.stop();
        closed
    }
}

/// Closes the cache, so that the next start has nothing to repair. If a flush is still under way,
/// it may go on until the process ends; then the index stays marked as unclean.
fn close(fs: &Fs, index: &Index, at_rest: bool) -> Result<(), Failure> {
    fs.close_all().map_err(failed)?;
    if !at_rest {
        return Ok(());
    }
    if index.lock().has_undone() {
        tracing::warn!("the index had to undo changes; the next start repairs what they have left");
        return Ok(());
    }
    note_unclean(index, "")?;
    tracing::info!("ended");
    Ok(())
}

/// Keeps the locks until the process ends. A call that changes the drive is still under way and may
/// take effect later. No other daemon may recover the batch before that, and the kernel releases
/// the locks when the last thread has returned from the call.
pub(super) fn keep_locks(opened: Opened) {
    std::mem::forget(opened);
}
