//! Wiring: from the options of a mount to everything that serves it, and back down in order.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::signal::{SigSet, Signal};
use parking_lot::Mutex;

use super::monitor::Monitor;
use super::options::{CacheSize, IoMode, MountOptions, Verify};
use super::service::Service;
use super::tasks::{AutoFlush, Tasks};
use super::volume::{self, CacheFacts, VolumeLock};
use super::{DaemonError, Ready, preflight};
use crate::backend::drive::Drive;
use crate::backend::mounted::MountedDir;
use crate::base::{Clock, Ino};
use crate::cache::{CacheLock, Reserve, Store};
use crate::control::server::{self, Handler};
use crate::flush::{FlushError, Flusher, Hooks, Parts as FlushParts};
use crate::fs::{CacheLimits, Fs, Parts as FsParts, Syncer};
use crate::index::Index;
use crate::kernel::{Session, SessionOptions, Workers};
use crate::rules::names::NameRules;
use crate::sys::time::CoarseClock;

/// Threads that may wait for the backend.
const WORKERS: usize = 8;

/// How long a request may wait for the backend.
const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// Share of the SSD that stays free for others, as a divisor: 5%.
const KEEP_FREE_DIVISOR: u64 = 20;

/// Space of the SSD that writers may not take, at most; on a small disk, a sixteenth of it.
const RESERVE: u64 = 64 << 20;

/// How long background threads are given to come to rest.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the daemon comes to its end.
enum End {
    Unmounted,
    Signal,
}

struct FlushHooks {
    fs: Arc<Fs>,
}

impl Hooks for FlushHooks {
    fn sync_cache(&self) -> Result<(), String> {
        self.fs.sync().map_err(|error| error.to_string())
    }

    fn hold_open(&self, inos: &[Ino]) {
        self.fs.hold_open_for_readers(inos);
    }

    fn give_up_reserve(&self) -> bool {
        self.fs.give_up_reserve()
    }
}

/// A cache that is open and locked, and the volume that it belongs to.
struct Opened {
    dir: PathBuf,
    facts: CacheFacts,
    backend: Arc<MountedDir>,
    _lock: CacheLock,
    _volume: VolumeLock,
}

pub(super) fn run(options: MountOptions, ready: Ready) -> Result<(), DaemonError> {
    if options.io == IoMode::Passthrough {
        return Err(DaemonError::failed("--io passthrough is not there yet")
            .hint("use --io daemon, or leave it out"));
    }
    start_logging();
    raise_open_files();
    let signals = block_signals()?;
    let clock: Arc<dyn Clock> = Arc::new(CoarseClock);
    let opened = open_cache(&options, &*clock)?;
    let index = open_index(&opened)?;
    let store =
        Arc::new(Store::open(&opened.dir).map_err(|error| DaemonError::failed(error.to_string()))?);
    let drive = Arc::new(Drive::detached());
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
        io_timeout: IO_TIMEOUT,
        cache_path: opened.dir.as_os_str().as_encoded_bytes().to_vec(),
    })
    .map(Arc::new)
    .map_err(failed)?;
    settle_after_unclean_end(&fs, &index)?;
    drive.attach(opened.backend.clone());
    let flusher = Arc::new(flusher(&opened, &index, &store, &drive, &clock, &fs)?);
    flusher.recover()?;
    drive.refresh_space();
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
        },
    )
}

/// What serves the mount once the cache is in order.
struct Serving {
    fs: Arc<Fs>,
    index: Arc<Index>,
    drive: Arc<Drive>,
    flusher: Arc<Flusher>,
    limits: CacheLimits,
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
    } = parts;
    let syncer = Arc::new(Syncer::start(fs.clone()).map_err(|e| io("cannot start a thread", e))?);
    let workers = Workers::start(WORKERS).map_err(|e| io("cannot start a thread", e))?;
    let session_options = SessionOptions {
        source: options.backend.to_string_lossy().into_owned(),
        allow_other: options.fuse.allow_other,
        suid: options.fuse.suid,
        dev: options.fuse.dev,
        exec: options.fuse.exec,
    };
    let (ended, end) = unbounded();
    let monitor = Monitor::new(
        drive.clone(),
        flusher.clone(),
        options.backend.clone(),
        (opened.facts.volume, opened.facts.nonce),
    );
    let service = Arc::new(Service {
        fs: fs.clone(),
        index: index.clone(),
        drive,
        flusher,
        monitor: Arc::new(monitor),
        volume: opened.facts.volume,
        backend: options.backend.clone(),
        mountpoint: options.mountpoint.clone(),
        last_error: Mutex::new(None),
        verify: options.verify == Verify::AfterFlush,
        ended,
        ending: false.into(),
    });
    let mut server = server::serve(&opened.dir, service.clone() as Arc<dyn Handler>)
        .map_err(|e| io("cannot open the control socket", e))?;
    let session = Session::mount(fs.clone(), workers, syncer.clone(), &options.mountpoint, &session_options).map_err(|error| {
        DaemonError::failed(format!("cannot mount at {}: {error}", options.mountpoint.display()))
            .hint("FUSE must be there (/dev/fuse, and fusermount3 for ordinary users); -o allow_other needs user_allow_other in /etc/fuse.conf")
    })?;
    let auto = options.auto_flush.then_some(AutoFlush {
        after: options.flush_after,
        max_age: options.max_age,
        max_dirty: limits.max_bytes / 4,
    });
    let tasks =
        Tasks::start(&service, &syncer, auto).map_err(|e| io("cannot start a thread", e))?;
    let log = opened.dir.join("ferryfs.log");
    if let Err(error) = ready.signal(&log) {
        tracing::error!(%error, "whoever started the mount is gone");
        let _ = super::dead_mount::unmount(&options.mountpoint);
    }
    tracing::info!(backend = %options.backend.display(), mountpoint = %options.mountpoint.display(), "mounted");
    match wait_for_end(&session, &end, signals) {
        End::Unmounted => {}
        End::Signal => end_on_signal(&service, &options.mountpoint),
    }
    service
        .ending
        .store(true, std::sync::atomic::Ordering::Release);
    if let Err(error) = session.end() {
        tracing::warn!(%error, "the session ended with an error");
    }
    tasks.stop(PATIENCE);
    server.close_door();
    let closed = close(&fs, &index);
    // The locks go before the connection of whoever asked for the end: when that is told, all is free.
    drop(opened);
    server.stop();
    closed
}

/// Everything is settled, so that the next start need not look for what an unclean end leaves.
fn close(fs: &Fs, index: &Index) -> Result<(), DaemonError> {
    fs.close_all().map_err(failed)?;
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

/// A signal asks for an end: what waits is carried if the drive is there, the mount taken away even if it is in use.
fn end_on_signal(service: &Service, mountpoint: &Path) {
    tracing::info!("ending on a signal");
    if service.drive.is_attached() {
        // Its outcome is logged; what was not carried waits in the cache.
        let _ = service.run_flush(None, &|_| {});
    }
    if super::tasks::unmount(mountpoint).is_err()
        && let Err(error) = super::dead_mount::detach(mountpoint)
    {
        tracing::error!(%error, "the mount could not be taken away");
    }
}

fn wait_for_end(session: &Session, end: &Receiver<()>, signals: &Receiver<()>) -> End {
    loop {
        crossbeam_channel::select! {
            recv(end) -> _ => return End::Unmounted,
            recv(signals) -> _ => return End::Signal,
            default(Duration::from_millis(200)) => if session.is_over() { return End::Unmounted },
        }
    }
}

/// Every open file of the mount is one of ours, so the usual limit of 1024 is soon met.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::warn!(%errno, "the limit of open files stays as it is");
    }
}

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FERRYFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,ferryfs=info,fuser=error"));
    // Fails only if a test has set one up already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(|| Unfailing)
        .try_init();
}

/// stderr, which is the log on the SSD. What cannot be written is dropped: told of an error, the logger would say so on stderr
/// again, and fail so hard that it takes the thread along. A full or dead SSD must not end the daemon.
struct Unfailing;

impl std::io::Write for Unfailing {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
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

fn open_cache(options: &MountOptions, clock: &dyn Clock) -> Result<Opened, DaemonError> {
    let backend = MountedDir::open(&options.backend).map_err(FlushError::from)?;
    let marker = volume::peek(&backend)?;
    let dir = match (&options.cache, &marker) {
        (Some(dir), _) => dir.clone(),
        (None, Some(marker)) => volume::default_caches()?.join(marker.id.to_string()),
        // The volume's id names the cache; it is known once it is enrolled.
        (None, None) => volume::default_caches()?,
    };
    if marker.is_none()
        && let Ok(caches) = volume::default_caches()
        && let Some((_, facts)) = volume::cache_made_for(&caches, &options.backend)
    {
        return Err(facts.absent());
    }
    preflight::check_cache(&dir, &options.backend, &options.mountpoint)?;
    let known = CacheFacts::read(&dir)?;
    if let Some(facts) = &known {
        facts.check(&dir, &options.backend, marker.as_ref())?;
    }
    let marker = match marker {
        Some(marker) => marker,
        None => volume::enroll(&backend, clock.now())?,
    };
    let volume_lock = VolumeLock::acquire(marker.id)?;
    let dir = match options.cache {
        Some(_) => dir,
        None => volume::default_caches()?.join(marker.id.to_string()),
    };
    volume::make_cache_dir(&dir)?;
    let lock = CacheLock::acquire(&dir).map_err(|error| {
        DaemonError::failed(error.to_string())
            .hint("see `ferryfs status`; one cache serves one mount")
    })?;
    let facts = match known {
        Some(facts) => facts,
        None => {
            let facts = CacheFacts::new(&backend, &options.backend, &marker)?;
            facts.write(&dir)?;
            facts
        }
    };
    Ok(Opened {
        dir,
        facts,
        backend: Arc::new(backend),
        _lock: lock,
        _volume: volume_lock,
    })
}

fn open_index(opened: &Opened) -> Result<Arc<Index>, DaemonError> {
    let rules = NameRules::new(&opened.facts.capabilities);
    Reserve::make_room_to_start(&opened.dir);
    // What an earlier process committed becomes durable when the index is opened; so must the bytes that it vouches for.
    std::fs::File::open(&opened.dir)
        .and_then(crate::sys::file::sync_file_system)
        .map_err(|error| DaemonError::failed(format!("cannot sync the cache: {error}")))?;
    let index = Index::open(&opened.dir.join("index.db"), rules)
        .map_err(|error| DaemonError::failed(error.to_string()))?;
    {
        let mut state = index.lock();
        if state
            .anything_dirty()
            .map_err(|error| DaemonError::failed(error.to_string()))?
        {
            state.set_dirty_since(Some(Instant::now()));
        }
    }
    Ok(Arc::new(index))
}

fn settle_after_unclean_end(fs: &Fs, index: &Index) -> Result<(), DaemonError> {
    let unclean = index
        .lock()
        .meta("unclean")
        .map_err(|error| DaemonError::failed(error.to_string()))?;
    if unclean.is_some() {
        // First what a batch may still need, so that nothing of it is taken for dead.
        index
            .lock()
            .resume_batch()
            .map_err(|error| DaemonError::failed(error.to_string()))?;
        let recovered = fs.recover().map_err(failed)?;
        tracing::info!(
            measured = recovered.measured,
            orphans = recovered.orphans,
            lost_and_found = recovered.quarantined.len(),
            "set right what an unclean end had left"
        );
    }
    note_unclean(index, "1")
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
        time_granularity_ns: opened.facts.capabilities.time_granularity_ns,
        journals,
        hooks: Arc::new(FlushHooks { fs: fs.clone() }),
    }))
}

fn limits(options: &MountOptions, store: &Store, cached: u64) -> Result<CacheLimits, DaemonError> {
    let (total, free) = store
        .space()
        .map_err(|error| DaemonError::failed(error.to_string()))?;
    let max_bytes = match options.cache_size {
        CacheSize::Bytes(bytes) => bytes,
        CacheSize::PercentOfFree(percent) => (free + cached) / 100 * u64::from(percent),
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
