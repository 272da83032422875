//! Moves files from the directory under the mount into the mount. A program that retried while
//! nothing was mounted has written them there, and its writes succeeded.
//!
//! A thread makes the passes (see [`mover`]): one at the start and, if the previous daemon died,
//! two more. No failure here fails the mount.

mod mover;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use nix::fcntl::OFlag;

use self::mover::{Watch, is_empty, move_all};
use super::mountpoint;
use super::mountpoint::Note;
use super::options::Protect;
use super::service::Service;
use crate::core::{ForeignText, Ino};
use crate::sys;

/// The most names that are listed one by one.
const NAMED: usize = 10;

/// What the passes have done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Paths in the mount of the files that were moved.
    pub(super) files: Vec<PathBuf>,
    /// Those of them that have a conflict name.
    pub(super) conflicts: Vec<PathBuf>,
    /// What could not be moved, and why.
    pub(super) left: Vec<(PathBuf, String)>,
}

impl Taken {
    /// Adds a later pass. Only the later one knows what stays below.
    pub(super) fn add(&mut self, later: Taken) {
        self.files.extend(later.files);
        self.conflicts.extend(later.conflicts);
        self.left = later.left;
    }

    /// For the user, a line each.
    pub(super) fn lines(&self, mountpoint: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        let list = |paths: &[PathBuf]| {
            let shown: Vec<String> = paths
                .iter()
                .take(NAMED)
                .map(|path| path.escaped().to_string())
                .collect();
            match paths.len().saturating_sub(NAMED) {
                0 => shown.join(", "),
                more => format!("{} and {more} more", shown.join(", ")),
            }
        };
        if !self.files.is_empty() {
            lines.push(format!(
                "{} files were in the bare directory {} while nothing was mounted there; they are \
                 in the mount now: {}",
                self.files.len(),
                mountpoint.escaped(),
                list(&self.files)
            ));
        }
        if !self.conflicts.is_empty() {
            lines.push(format!(
                "{} of them have a conflict name, because the mount has another file of the name: \
                 {}",
                self.conflicts.len(),
                list(&self.conflicts)
            ));
        }
        if let Some((path, reason)) = self.left.first() {
            lines.push(format!(
                "{} files in the bare directory {} are hidden under the mount and could not be \
                 moved into it: {}: {reason}; unmount, and move them away",
                self.left.len(),
                mountpoint.escaped(),
                path.escaped()
            ));
        }
        lines
    }
}

/// How long the mount waits for the first pass before it reports that it is ready.
const FIRST_PASS: Duration = Duration::from_secs(3);

/// The waits before further passes over a directory in which something was found, or into which a
/// program may have written just now.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// The thread that moves files from under the mount into it.
pub(super) struct Below {
    service: Arc<Service>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    first: Option<Receiver<()>>,
    /// The directory, if it could be opened.
    bare: Option<Arc<File>>,
    /// Whether the previous daemon died.
    is_later: bool,
    /// Whether the directory has been protected for the first time.
    is_news: bool,
}

impl Below {
    /// Protects the directory `bare` under the mount of `service`, and begins to move its contents
    /// into the mount. With `is_later` the previous daemon died, and programs may still write to
    /// the directory, so further passes follow.
    pub(super) fn begin(
        service: &Arc<Service>,
        bare: Option<File>,
        note: &mut Note,
        protect: Protect,
        cache: &Path,
        is_later: bool,
    ) -> Below {
        let mut below = Below {
            service: service.clone(),
            stop: Arc::default(),
            thread: None,
            first: None,
            bare: bare.map(Arc::new),
            is_later,
            is_news: false,
        };
        let Some(bare) = below.bare.clone() else {
            return below;
        };
        below.is_news = mountpoint::protect(&bare, note, cache, protect);
        if is_empty(&bare) && !is_later {
            return below;
        }
        let (done, first) = bounded(1);
        let (service, stop, note) = (service.clone(), below.stop.clone(), note.clone());
        let spawned = thread::Builder::new()
            .name("ferryfs-below".into())
            .spawn(move || run(&service, (&bare, is_later), &note, &stop, &done));
        match spawned {
            Ok(thread) => (below.thread, below.first) = (Some(thread), Some(first)),
            Err(error) => tracing::error!(%error, "the files under the mount stay there"),
        }
        below
    }

    /// What the mount command prints: that the directory is protected, at the first time, and what
    /// the first pass has done, if it ended soon.
    pub(super) fn first_lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.is_news {
            lines.push(format!(
                "while nothing is mounted at {}, it cannot be written to, so that no program \
                 writes there by mistake; to undo that: `ferryfs mount --no-protect-mountpoint`",
                self.service.mountpoint.escaped()
            ));
        }
        let Some(first) = self.first.take() else {
            return lines;
        };
        lines.extend(match first.recv_timeout(FIRST_PASS) {
            Err(RecvTimeoutError::Timeout) => vec![
                "files that were in the bare mount point are being moved into the mount; `ferryfs \
                 status` shows the result"
                    .into(),
            ],
            _ => self
                .service
                .from_below
                .lock()
                .lines(&self.service.mountpoint),
        });
        lines
    }

    /// Stops it, waiting a while. Returns whether the next mount has files to move.
    pub(super) fn stop(self, patience: Duration) -> bool {
        self.stop.store(true, Ordering::Release);
        let end = Instant::now() + patience;
        if let Some(thread) = self.thread {
            while !thread.is_finished() && Instant::now() < end {
                thread::sleep(Duration::from_millis(5));
            }
        }
        // A directory that could not be opened stays as it was.
        (self.bare).map_or(self.is_later, |bare| !is_empty(&bare))
    }
}

fn run(
    service: &Service,
    (bare, is_later): (&File, bool),
    note: &Note,
    stop: &AtomicBool,
    done: &Sender<()>,
) {
    let is_over = || stop.load(Ordering::Acquire);
    let is_ending = || service.ending.load(Ordering::Acquire);
    let is_interrupted = || is_over() || is_ending();
    let mut pauses = [Duration::ZERO].into_iter().chain(AGAIN).peekable();
    while let Some(pause) = pauses.next_if(|_| !is_over()) {
        let end = Instant::now() + pause;
        // An unmount that finds the mount in use revokes the end.
        while !is_over() && (Instant::now() < end || is_ending()) {
            thread::sleep(Duration::from_millis(50));
        }
        while !is_over() && !is_empty(bare) {
            if let Err(error) = one_pass(service, bare, note, is_later, &is_interrupted) {
                tracing::warn!(%error, "the files under the mount stay there for now");
            }
            if !is_ending() {
                break;
            }
            while !is_over() && is_ending() {
                thread::sleep(Duration::from_millis(50));
            }
        }
        let _ = done.try_send(());
    }
}

fn one_pass(
    service: &Service,
    bare: &File,
    note: &Note,
    is_later: bool,
    is_over: &dyn Fn() -> bool,
) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mount = File::from(sys::path::open_place_for(&service.mountpoint, flags)?);
    // The mount may be gone: nothing is moved into the bare directory itself.
    let there = mount.metadata()?;
    if service.device.get() != Some(&there.dev()) || there.ino() != Ino::ROOT.0 {
        return Err(io::Error::other("the mount is not there any more"));
    }
    mountpoint::unlock(bare, note);
    let is_written = |ino| service.index.lock().is_writing(Ino(ino));
    let taken = move_all(
        bare,
        &mount,
        &hostname(),
        Watch {
            is_later,
            is_written: &is_written,
            stop: is_over,
        },
    );
    mountpoint::lock_again(bare, note);
    service.from_below.lock().add(taken);
    Ok(())
}

/// The name of this machine, for conflict names.
fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_string())
        .unwrap_or_default()
}
