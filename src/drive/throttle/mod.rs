//! Slows a flush down, so that programs that read from the same drive do not wait for it.
//!
//! A flush *enters* the throttle on its thread. Every file of the drive that this thread opens
//! through [`Patient`](crate::drive::supervised::Patient) until it leaves is wrapped ([`files`]):
//! its reads and writes are cut into small requests, and each of them asks the throttle first.
//!
//! A flush that begins by itself may wait for three reasons:
//! - **Others read from the drive.** The system counts what is read from the disk, and the readers'
//!   side counts what programs read through the mount. While either says so, each request is
//!   written out to the drive at once and followed by a rest ([`rules`]), for a bounded time.
//! - **A limit** of bytes per second.
//! - **Its own writes**: no more than a few MiB wait in the system's memory. Otherwise the sync at
//!   the end sends hundreds of MiB to the drive at once, and whoever reads waits for all of them.
//!   This holds for every flush, also if nobody reads.
//!
//! Its thread has the lowest best-effort I/O priority. Not the idle class: with that, a scheduler
//! may hold a request back for as long as others keep the drive busy, and a foreground fsync of the
//! same file system can depend on that very request. It has it only during a request: a thread that
//! it starts would keep it for ever.
//!
//! What is not slowed: a flush on request, any flush while a request waits for its turn
//! ([`Throttle::hurry`]), and the part of a flush in which a recovery or a committed batch is at
//! work ([`without_rests`]). A slow staging costs nothing but time, since nothing refers to a
//! staged file. A slow apply would keep names withheld and patched files torn for longer.
//!
//! Lock order: `state` is the only lock; the counters of the disk are read without it.

mod files;
mod rules;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::core::Slowed;
use crate::drive::throttle::rules::{Counts, Rules};
use crate::sys::priority::{self, IoPriority};

pub(super) use crate::drive::throttle::files::{over_read, over_write};

/// What the user has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Flushes yield to readers, and few of their bytes wait in the system's memory.
    pub polite: bool,
    /// Bytes per second that a flush that begins by itself may read and write.
    pub limit: Option<u64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            polite: true,
            limit: None,
        }
    }
}

/// How a flush uses the drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// As fast as it can: somebody waits for it.
    #[default]
    AtOnce,
    /// It yields to readers for at most this long, and keeps to the limit.
    Background(Duration),
}

/// Returns the bytes that have been read from a disk so far, by anyone.
pub type DiskCounter = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// The throttle of a drive. See the head of this file.
#[derive(Default)]
pub struct Throttle {
    state: Mutex<State>,
    /// Notified when a request begins or ends to wait for a flush, and when the settings change.
    changed: Condvar,
    disk: Mutex<Option<DiskCounter>>,
    ours: AtomicU64,
    mount: AtomicU64,
}

#[derive(Default)]
struct State {
    settings: Settings,
    /// Requests that wait for a flush.
    hurried: usize,
    /// The flush under way, if it may wait.
    rules: Option<Rules>,
    slowed: Option<Slowed>,
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle").finish_non_exhaustive()
    }
}

impl Throttle {
    /// Replaces the settings, also for a flush under way.
    pub fn set(&self, settings: Settings) {
        self.state.lock().settings = settings;
        self.changed.notify_all();
    }

    /// Sets the counter of the drive's disk; `None` if the system has none.
    pub fn set_disk(&self, counter: Option<DiskCounter>) {
        *self.disk.lock() = counter;
    }

    /// Notes that a program has read `bytes` bytes from the drive through the mount.
    pub(super) fn note_read(&self, bytes: usize) {
        if current().is_none() {
            self.mount.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Returns why the flush under way is slow, if it is.
    pub fn slowed(&self) -> Option<Slowed> {
        self.state.lock().slowed
    }

    /// Lets the flush under way, and those that begin meanwhile, go at full speed until the value
    /// is dropped.
    pub fn hurry(self: &Arc<Self>) -> Hurry {
        self.state.lock().hurried += 1;
        self.changed.notify_all();
        Hurry(self.clone())
    }

    /// The same for as long as it is needed: `held` is there exactly then.
    pub fn hurry_while(self: &Arc<Self>, is_needed: bool, held: &mut Option<Hurry>) {
        match is_needed {
            true => *held = held.take().or_else(|| Some(self.hurry())),
            false => *held = None,
        }
    }

    /// Begins a flush on this thread. It ends when the value is dropped, on the same thread. One
    /// flush at a time.
    pub fn enter(self: &Arc<Self>, manner: Manner) -> Entered {
        if let Manner::Background(yields_for) = manner {
            let rules = Rules::new(Instant::now(), yields_for, self.counts());
            self.state.lock().rules = Some(rules);
        }
        let section = Arc::new(Section {
            throttle: self.clone(),
            is_background: manner != Manner::AtOnce,
            without_rests: AtomicUsize::new(0),
            on_their_way: AtomicU64::new(0),
        });
        Entered {
            before: CURRENT.replace(Some(section)),
        }
    }

    fn counts(&self) -> Counts {
        Counts {
            disk: self.disk.lock().as_ref().and_then(|counter| counter()),
            ours: self.ours.load(Ordering::Relaxed),
            mount: self.mount.load(Ordering::Relaxed),
        }
    }

    /// Looks who reads, if that is due.
    fn look(&self) {
        let is_due = |state: &State| {
            let rules = state.rules.as_ref();
            rules.is_some_and(|rules| rules.is_look_due(Instant::now()))
        };
        if !is_due(&self.state.lock()) {
            return;
        }
        let counts = self.counts();
        if let Some(rules) = &mut self.state.lock().rules {
            rules.note(Instant::now(), counts);
        }
    }
}

/// Somebody waits for a flush. See [`Throttle::hurry`].
#[derive(Debug)]
pub struct Hurry(Arc<Throttle>);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.state.lock().hurried -= 1;
        self.0.changed.notify_all();
    }
}

/// A flush on its thread.
#[derive(Debug)]
struct Section {
    throttle: Arc<Throttle>,
    is_background: bool,
    /// How many values of [`WithoutRests`] there are.
    without_rests: AtomicUsize,
    /// The bytes of its files that may not have reached the drive.
    on_their_way: AtomicU64,
}

/// How the next request of a flush goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tempo {
    /// At full speed, through the system's memory.
    Full,
    /// At full speed; the system begins to write early.
    Early,
    /// The same, and no more than a few MiB are on their way.
    Bounded,
    /// Nothing, or next to nothing, is on its way when the request ends.
    Yielding,
}

/// A request whose turn it is.
#[derive(Clone, Copy, Debug)]
struct Turn {
    tempo: Tempo,
    /// It has the lowest priority.
    is_low: bool,
}

thread_local! {
    /// The flush of this thread.
    static CURRENT: RefCell<Option<Arc<Section>>> = const { RefCell::new(None) };
}

fn current() -> Option<Arc<Section>> {
    CURRENT.with_borrow(Clone::clone)
}

/// A flush until it ends. See [`Throttle::enter`].
#[derive(Debug)]
pub struct Entered {
    before: Option<Arc<Section>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(section) = CURRENT.replace(self.before.take()) {
            let mut state = section.throttle.state.lock();
            (state.rules, state.slowed) = (None, None);
        }
    }
}

/// See [`without_rests`].
#[derive(Debug)]
pub struct WithoutRests(Option<Arc<Section>>);

/// Lets the flush of this thread go on at full speed until the value is dropped.
pub fn without_rests() -> WithoutRests {
    let section = current();
    if let Some(section) = &section {
        section.without_rests.fetch_add(1, Ordering::Relaxed);
        section.throttle.state.lock().slowed = None;
    }
    WithoutRests(section)
}

impl Drop for WithoutRests {
    fn drop(&mut self) {
        if let Some(section) = &self.0 {
            section.without_rests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The lowest priority of this thread, until the value is dropped.
#[derive(Debug)]
struct Lowered(Option<IoPriority>);

/// Lowers the priority of this thread. Best effort: some systems and drives have none.
fn lower() -> Lowered {
    Lowered(priority::lower().ok().flatten())
}

impl Drop for Lowered {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            let _ = priority::set(before);
        }
    }
}

impl Section {
    /// Returns how many bytes a request may have.
    fn request(&self) -> usize {
        let limit = self.throttle.state.lock().settings.limit;
        most_of_request(limit.filter(|_| self.may_rest()))
    }

    fn may_rest(&self) -> bool {
        self.is_background && self.without_rests.load(Ordering::Relaxed) == 0
    }

    /// Makes a request of so many bytes, when it is its turn.
    fn run<T>(&self, bytes: usize, request: impl FnOnce(Tempo) -> T) -> T {
        let turn = self.wait(bytes);
        let began = Instant::now();
        let lowered = turn.is_low.then(lower);
        let answer = request(turn.tempo);
        drop(lowered);
        let mut state = self.throttle.state.lock();
        let settings = state.settings;
        if let Some(rules) = state.rules.as_mut().filter(|_| self.may_rest()) {
            rules.end(Instant::now(), began.elapsed(), &settings);
        }
        answer
    }

    /// Waits until a request of so many bytes may begin.
    fn wait(&self, bytes: usize) -> Turn {
        if self.may_rest() {
            self.throttle.look();
        }
        let began = Instant::now();
        let mut guard = self.throttle.state.lock();
        loop {
            let state = &mut *guard;
            let settings = state.settings;
            let rules = state.rules.as_mut();
            let Some(rules) = rules.filter(|_| self.may_rest() && state.hurried == 0) else {
                state.slowed = None;
                let tempo = match settings.polite {
                    true => Tempo::Early,
                    false => Tempo::Full,
                };
                return Turn {
                    tempo,
                    is_low: false,
                };
            };
            let now = Instant::now();
            let waited = now - began;
            let (wait, why) = rules.wait(now, &settings);
            // The limit is a point in time, the rest a length of it.
            let end = match why {
                Some(Slowed::OthersRead) => began + wait,
                _ => now + wait,
            };
            state.slowed = why;
            if end > now {
                self.throttle.changed.wait_until(&mut guard, end);
                continue;
            }
            // One that was cut before the limit was lowered costs no more than those after it.
            // Otherwise the next one would wait for many seconds.
            let charged = bytes.min(most_of_request(settings.limit));
            rules.begin(now, charged as u64, waited, &settings);
            let tempo = match rules.yields(now, &settings) {
                true => Tempo::Yielding,
                false if settings.polite || settings.limit.is_some() => Tempo::Bounded,
                false => Tempo::Full,
            };
            return Turn {
                tempo,
                is_low: settings.polite,
            };
        }
    }
}

/// The bytes of a request. Small ones make a film wait for a shorter time, but a disk that has to
/// move its head for each of them does little else.
const LARGEST_REQUEST: usize = 1 << 20;

/// The same under a low limit.
const SMALLEST_REQUEST: usize = 64 << 10;

/// Returns how many bytes a request may have under a limit.
fn most_of_request(limit: Option<u64>) -> usize {
    limit.map_or(LARGEST_REQUEST, |limit| {
        usize::try_from(limit / 4)
            .unwrap_or(usize::MAX)
            .clamp(SMALLEST_REQUEST, LARGEST_REQUEST)
    })
}

#[cfg(test)]
mod tests;
