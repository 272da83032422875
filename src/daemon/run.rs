//! Starts a mount: opens the cache, repairs it, attaches the drive, and serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::changes::Feed;
use super::flush_hooks::FlushHooks;
use super::flush_job::within;
use super::history::History;
use super::inhibit::Inhibitor;
use super::keep_clean::KeepClean;
use super::keeping;
use super::metrics::Totals;
use super::monitor::{Bell, Site};
use super::open_cache::{Opened, open_cache};
use super::open_index::{open_index, repair_after_unclean_end};
use super::options::{CacheSize, DeltaMode, IoMode, MountOptions};
use super::preflight::Checked;
use super::process::{block_signals, raise_open_files};
use super::serve::{Serving, Start, keep_locks, serve};
use super::startup::Begin;
use super::{Ready, inner_mounts, log, startup, volume};
use crate::cache::Store;
use crate::core::{Clock, Failure, Ino};
use crate::drive::connection::{Drive, Withheld};
use crate::drive::mounted;
use crate::drive::mounted::MountedDir;
use crate::flush::{Flusher, FlusherParts, Patching};
use crate::index::{Flags, Index};
use crate::plan::names::NameRules;
use crate::sys::terminal::complain;
use crate::sys::time::CoarseClock;
use crate::vfs::{CacheLimits, Fs, FsParts};

/// The multiple of `--io-timeout` after which the end of a mount no longer waits for the drive.
pub(super) const HOPELESS: u32 = 3;

/// The share of the SSD that stays free for other programs, as a divisor: 5%.
const KEEP_FREE_DIVISOR: u64 = 20;

/// The space on the SSD that writers may not take, at most; on a small disk, a sixteenth of it.
const RESERVE: u64 = 64 << 20;

/// The name of the log in the cache.
pub(super) const LOG: &str = "ferryfs.log";

/// How long background threads have to stop.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Starts the mount that was checked, and serves it until it ends.
///
/// # Errors
/// Why it could not start, or why it did not end cleanly.
pub(super) fn run(checked: Checked, ready: Ready) -> Result<(), Failure> {
    let Checked { options, spot } = checked;
    if options.io == IoMode::Passthrough {
        return Err(Failure::failed("--io passthrough is not implemented yet")
            .hint("use --io daemon, or leave it out"));
    }
    if options.read_only {
        mounted::forbid_changes();
    }
    log::start(options.foreground);
    let descriptors = raise_open_files();
    let signals = block_signals()?;
    let clock: Arc<dyn Clock> = Arc::new(CoarseClock);
    let opened = open_cache(&options, &*clock)?;
    if let Err(error) = log::to_file(&opened.dir.join(LOG)) {
        return Err(Failure::failed(format!(
            "cannot open the log in the cache: {error}"
        )));
    }
    let index = open_index(&opened)?;
    let store =
        Arc::new(Store::open(&opened.dir).map_err(|error| Failure::failed(error.to_string()))?);
    let drive = Drive::guarded(options.io_timeout)
        .map(Arc::new)
        .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
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
    let attention = repair_after_unclean_end(&fs, &index)?;
    if !options.read_only {
        keeping::set_local_patterns(&index, &options.live.keeping)?;
    }
    let bell =
        Bell::new().map_err(|error| Failure::failed(format!("cannot watch the drive: {error}")))?;
    let totals = Arc::new(Totals::default());
    let clean = Arc::new(KeepClean::new(&options));
    let flusher = Arc::new(flusher(
        &opened,
        &index,
        &store,
        &drive,
        &clock,
        &fs,
        (&options, &totals, &clean),
    )?);
    let (site, begin) = match &opened.found {
        Ok(found) => {
            let mut site = Site::new(&opened.path, found, &bell);
            site.remark = remark(&site.dir, options.io_timeout);
            let lines = inner_mounts::look(&index, &site.dir, clean.is_on())?;
            for line in lines.iter().chain(&site.remark) {
                complain(&format!("ferryfs: warning: {line}"));
            }
            drive.attach(site.backend.clone());
            let patience = options.io_timeout * HOPELESS;
            (site, startup::recover(&flusher, &drive, patience))
        }
        Err(why) => (
            Site::absent(&opened.path, &bell),
            Ok(Begin::Away(why.clone())),
        ),
    };
    let begin = match begin.and_then(|begin| check_can_start(begin, &index)) {
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
            tracing::warn!(why = %why.message, "the mount starts without its drive");
            drive.withhold(Withheld::Everything);
            drive.detach();
            opened.lease.suspend();
        }
    }
    let serving = Serving {
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
    };
    let start = Start {
        ready,
        signals,
        begin,
        spot,
        descriptors,
    };
    serve(&options, opened, serving, start)
}

/// The warning about the drive's top directory, if the drive answers within `patience`.
fn remark(drive: &MountedDir, patience: Duration) -> Option<String> {
    let (begun, drive) = (Instant::now(), drive.clone());
    let look = move || inner_mounts::top_directory(&drive);
    within(look, || begun.elapsed() > patience)?
}

/// Without its drive a mount starts only if the cache knows what is on it.
fn check_can_start(begin: Begin, index: &Index) -> Result<Begin, Failure> {
    let Begin::Away(why) = begin else {
        return Ok(begin);
    };
    let root = index.lock().inode(Ino::ROOT);
    match root.map_err(|error| Failure::failed(error.to_string()))? {
        Some(root) if root.flags.has(Flags::LISTED) => Ok(Begin::Away(why)),
        _ => Err(why),
    }
}

/// The flusher of the cache that was opened.
fn flusher(
    opened: &Opened,
    index: &Arc<Index>,
    store: &Arc<Store>,
    drive: &Arc<Drive>,
    clock: &Arc<dyn Clock>,
    fs: &Arc<Fs>,
    (options, totals, clean): (&MountOptions, &Arc<Totals>, &Arc<KeepClean>),
) -> Result<Flusher, Failure> {
    let journals = opened.dir.join("batches");
    volume::make_cache_dir(&journals)?;
    let blocks = opened.dir.join("blocks");
    volume::make_cache_dir(&blocks)?;
    Ok(Flusher::new(FlusherParts {
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
        patching: Patching::new(blocks, options.delta == DeltaMode::Auto),
        versions: options.versions.policy()?,
        hold_if: options.hold_if,
        hooks: Arc::new(FlushHooks {
            fs: fs.clone(),
            lease: opened.lease.clone(),
            clean: clean.clone(),
            inhibitor: Inhibitor::default(),
            mountpoint: options.mountpoint.clone(),
            history: History::of(&opened.dir),
            feed: Feed::of(&opened.dir),
            totals: totals.clone(),
            clock: clock.clone(),
        }),
    }))
}

/// The limits of the cache on its SSD, of which it takes `cached` bytes already.
fn limits(options: &MountOptions, store: &Store, cached: u64) -> Result<CacheLimits, Failure> {
    let (total, free) = store
        .space()
        .map_err(|error| Failure::failed(error.to_string()))?;
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

/// The failure of an operation on the cache.
pub(super) fn failed(error: crate::vfs::FsError) -> Failure {
    Failure::failed(error.to_string())
}
